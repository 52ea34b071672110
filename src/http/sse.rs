//! Server-sent events: one operation whose results leave as events of one response, as the protocol
//! of npm `graphql-sse` has it for distinct connections. The frames are those that everyone else is
//! sent; what is written around them is all that is done for one client.

use std::cell::Cell;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame as Piece};
use hyper::header::HeaderMap;
use spreadly_subscriptions::limits::STALLED_READER;
use spreadly_subscriptions::{ErrorCode, EventStreamEnd, Executor, Frame, SseReader, StreamEnd};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};

use super::delivery::Delivery;
use crate::budgets::ConnectionPlace;

/// Where a client that comes back says what it saw last.
pub const LAST_EVENT_ID: &str = "last-event-id";

/// The id of a last event after which nothing follows. An `EventSource` opens its URL again
/// whenever a response ends, with the id of the last event: this one is answered 204, which ends
/// that. No cursor contains `!`.
const DONE: &str = "!done";

/// A comment: it begins a stream, so that the client sees it open, and shows that it lives.
const COMMENT: &[u8] = b":\n\n";
const COMPLETE: &[u8] = b"event: complete\ndata:\n\n";

/// A larger result leaves as it is shared, between pieces of ours, instead of being copied.
const COPIED_BYTES: usize = 16 << 10;

/// What a response of events is made of. One piece waits at most, so that a client that does not
/// read holds no more than the frames of one turn.
pub struct Events {
    receiver: mpsc::Receiver<Bytes>,
    delivery: Arc<Delivery>,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.delivery.wait();
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece<Bytes>, Infallible>>> {
        self.receiver.poll_recv(cx).map(|piece| piece.map(|bytes| Ok(Piece::data(bytes))))
    }
}

/// What the client of a stream has to keep to.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Without an event for this long a comment is sent.
    pub comment_interval: Duration,
    /// Without a byte taken for this long the connection is cut.
    pub stall: Duration,
}

/// On which terms a client reads a stream.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub pace: Pace,
    /// When its credentials are no longer valid.
    pub expires_at: Option<Instant>,
    /// It comes back with the id of an event.
    pub resumed: bool,
}

/// What a client that opens its URL again after the last event brings as its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    /// The one it had: what was refused may be possible then.
    Same,
    /// None: what it had is of no use any more, and the subscription begins from now.
    Without,
    /// [`DONE`].
    Done,
}

impl Back {
    /// After these errors; `resumed` where the client has an id by now.
    pub fn after_refusal(errors: &[u8], resumed: bool) -> Self {
        match ErrorCode::of_first(errors) {
            Some(code) if code.is_temporary() || code == ErrorCode::Internal => Self::Same,
            _ if resumed => Self::Without,
            _ => Self::Done,
        }
    }

    fn line(self) -> String {
        match self {
            Self::Same => String::new(),
            Self::Without => "id:\n".to_owned(),
            Self::Done => format!("id: {DONE}\n"),
        }
    }
}

/// All of a result that came at once: it, and that it was the only one.
pub fn whole(result: &[u8], back: Back) -> Bytes {
    let id = back.line();
    [b"event: next\n", id.as_bytes(), b"data: ", result, b"\n\n", COMPLETE].concat().into()
}

/// Errors that end an operation, as a result.
pub fn refusal(errors: &[u8], resumed: bool) -> Bytes {
    let result = [b"{\"errors\":".as_slice(), errors, b"}"].concat();
    whole(&result, Back::after_refusal(errors, resumed))
}

/// Whether a client comes back after the last event there was.
pub fn is_done(headers: &HeaderMap) -> bool {
    last_event_id(headers).is_some_and(|id| id == DONE)
}

/// The cursor of a client that comes back.
pub fn last_event_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(LAST_EVENT_ID)?.to_str().ok()?.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

/// Begins a stream, in a task that ends with it. `cut` is rung if the client takes nothing.
pub fn start<E: Executor>(
    reader: SseReader<TcpStream, E>,
    terms: Terms,
    cut: Arc<Notify>,
    place: ConnectionPlace,
    delivery: Arc<Delivery>,
) -> Events {
    let (sender, receiver) = mpsc::channel(1);
    let stalled = delivery.stalled();
    tokio::task::spawn_local(async move {
        let Terms { pace, expires_at, resumed } = terms;
        let (resumed, ended) = (Cell::new(resumed), Cell::new(None));
        let sender = Sender { sender, pace, cut, expires_at, resumed, ended };
        let meters = reader.meters().clone();
        // None: the client is gone, or was cut.
        let _done = sender.follow(reader).await;
        let stalled = stalled.load(Ordering::Relaxed).then_some(EventStreamEnd::Stalled);
        if let Some(end) = sender.ended.get().or(stalled) {
            meters.event_stream_ended(end);
        }
        drop(place);
    });
    Events { receiver, delivery }
}

/// Waits until credentials are no longer valid.
async fn expired(expires_at: Option<Instant>) {
    match expires_at {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

struct Sender {
    sender: mpsc::Sender<Bytes>,
    pace: Pace,
    cut: Arc<Notify>,
    expires_at: Option<Instant>,
    /// The client has an id: it brought one, or an event gave it one.
    resumed: Cell<bool>,
    /// Why the hub ended the stream. `None`: its client did.
    ended: Cell<Option<EventStreamEnd>>,
}

impl Sender {
    async fn follow<E: Executor>(&self, mut reader: SseReader<TcpStream, E>) -> Option<()> {
        self.send(Bytes::from_static(COMMENT)).await?;
        loop {
            let read = self.while_valid(reader.frames()).await?;
            match read {
                Ok(frames) => {
                    for frame in &frames {
                        let mut event = pin!(self.event(frame));
                        if let Ok(sent) = timeout(STALLED_READER, event.as_mut()).await {
                            sent?;
                        } else {
                            reader.stall();
                            event.await?;
                            reader.resume();
                        }
                    }
                }
                Err(StreamEnd::Refused(errors)) => {
                    self.ended.set(Some(EventStreamEnd::Refused));
                    return self.send(refusal(&errors, self.resumed.get())).await;
                }
                Err(StreamEnd::CannotContinue) => {
                    self.ended.set(Some(EventStreamEnd::CannotContinue));
                    let comment = ": the hub can't continue from what you have now: resume\n\n";
                    return self.send(Bytes::from_static(comment.as_bytes())).await;
                }
                Err(StreamEnd::Draining) => {
                    self.ended.set(Some(EventStreamEnd::Draining));
                    let comment = ": the hub restarts: come back and resume\n\n";
                    return self.send(Bytes::from_static(comment.as_bytes())).await;
                }
            }
        }
    }

    /// The result of a read. Until it is there, comments are sent. `None` where the stream ended:
    /// the client is gone, or its credentials have expired.
    async fn while_valid<T>(&self, read: impl Future<Output = T>) -> Option<T> {
        let mut read = pin!(read);
        loop {
            tokio::select! {
                read = &mut read => return Some(read),
                () = self.sender.closed() => return None,
                // Here, as it must not cut an event in two.
                () = expired(self.expires_at) => {
                    self.ended.set(Some(EventStreamEnd::Expired));
                    let comment = ": the sign-in has expired: sign in again and resume\n\n";
                    self.send(Bytes::from_static(comment.as_bytes())).await?;
                    return None;
                }
                () = tokio::time::sleep(self.pace.comment_interval) => {
                    self.send(Bytes::from_static(COMMENT)).await?;
                }
            }
        }
    }

    async fn event(&self, frame: &Frame) -> Option<()> {
        let result = frame.result();
        let mut head = b"event: next\n".to_vec();
        if let Some(cursor) = cursor(&result) {
            self.resumed.set(true);
            head.extend_from_slice(b"id: ");
            head.extend_from_slice(cursor);
            head.push(b'\n');
        }
        head.extend_from_slice(b"data: ");
        if result.len() <= COPIED_BYTES {
            head.extend_from_slice(&result);
            head.extend_from_slice(b"\n\n");
            return self.send(head.into()).await;
        }
        self.send(head.into()).await?;
        self.send(result.clone()).await?;
        self.send(Bytes::from_static(b"\n\n")).await
    }

    async fn send(&self, piece: Bytes) -> Option<()> {
        match timeout(self.pace.stall, self.sender.send(piece)).await {
            Ok(sent) => sent.ok(),
            Err(_) => {
                self.ended.set(Some(EventStreamEnd::Stalled));
                self.cut.notify_one();
                None
            }
        }
    }
}

/// The `extensions.cursor` of an encoded result: after its data, in which a quote is escaped, so
/// that the last one there is can only be its own. A cursor itself has nothing to escape.
fn cursor(result: &[u8]) -> Option<&[u8]> {
    const BEFORE: &[u8] = b"\"extensions\":{\"cursor\":\"";
    let at = result.windows(BEFORE.len()).rposition(|window| window == BEFORE)?;
    let rest = &result[at + BEFORE.len()..];
    rest.split(|byte| *byte == b'"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(expires_at: Option<Instant>) -> (Sender, mpsc::Receiver<Bytes>) {
        let (sender, receiver) = mpsc::channel(8);
        let pace =
            Pace { comment_interval: Duration::from_secs(10), stall: Duration::from_secs(1) };
        let (cut, resumed, ended) = (Arc::default(), Cell::new(false), Cell::new(None));
        (Sender { sender, pace, cut, expires_at, resumed, ended }, receiver)
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_stream_ends_with_a_comment_when_its_credentials_expire() {
        let (own, mut sent) = sender(Some(Instant::now() + Duration::from_secs(15)));
        assert_eq!(own.while_valid(std::future::pending::<()>()).await, None);
        assert_eq!(own.ended.get(), Some(EventStreamEnd::Expired));
        drop(own);
        assert_eq!(&*sent.recv().await.unwrap(), COMMENT);
        assert!(sent.recv().await.unwrap().starts_with(b": the sign-in has expired"));
        assert_eq!(sent.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_ends_before_the_credentials_expire_is_what_it_is() {
        let (own, mut sent) = sender(Some(Instant::now() + Duration::from_secs(15)));
        let read = async {
            tokio::time::sleep(Duration::from_secs(14)).await;
            7
        };
        assert_eq!(own.while_valid(read).await, Some(7));
        drop(own);
        assert_eq!(&*sent.recv().await.unwrap(), COMMENT);
        assert_eq!(sent.recv().await, None);
    }

    #[test]
    fn a_refusal_that_lasts_takes_the_id_away_and_then_ends_the_returning() {
        for code in ["RESYNC_REQUIRED", "BAD_REQUEST", "NOT_FOUND", "LIMIT_EXCEEDED", "FORBIDDEN"] {
            let errors = format!(r#"[{{"extensions":{{"code":"{code}"}}}}]"#);
            assert_eq!(Back::after_refusal(errors.as_bytes(), true), Back::Without, "{code}");
            assert_eq!(Back::after_refusal(errors.as_bytes(), false), Back::Done, "{code}");
        }
        for code in ["UNAVAILABLE", "RATE_LIMITED", "INTERNAL"] {
            let errors = format!(r#"[{{"extensions":{{"code":"{code}"}}}}]"#);
            assert_eq!(Back::after_refusal(errors.as_bytes(), true), Back::Same, "{code}");
            assert_eq!(Back::after_refusal(errors.as_bytes(), false), Back::Same, "{code}");
        }
        assert_eq!(
            &*whole(b"1", Back::Same),
            b"event: next\ndata: 1\n\nevent: complete\ndata:\n\n"
        );
        let done = whole(b"1", Back::Done);
        assert!(done.starts_with(b"event: next\nid: !done\ndata: 1\n\n"));
        assert!(whole(b"1", Back::Without).starts_with(b"event: next\nid:\ndata: 1\n\n"));
    }

    #[test]
    fn the_cursor_of_a_result_is_found_after_its_data() {
        let tricky =
            br#"{"data":{"a":"\"extensions\":{\"cursor\":\"x"},"extensions":{"cursor":"Y_-1"}}"#;
        assert_eq!(cursor(tricky), Some(b"Y_-1".as_slice()));
        assert_eq!(cursor(br#"{"data":{"a":1}}"#), None);
    }
}
