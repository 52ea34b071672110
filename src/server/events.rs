//! Server-sent events: one operation whose results leave as events of one response, as the protocol
//! of npm `graphql-sse` has it for distinct connections. The frames are those that everyone else is
//! sent; what is written around them is all that is done for one client.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame as Piece};
use hyper::header::HeaderMap;
use spreadly_subscriptions::{End, Executor, Frame, Reader};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

use crate::clients::Place;

/// Where a client that comes back says what it saw last.
pub const LAST_EVENT_ID: &str = "last-event-id";

/// A comment: it begins a stream, so that the client sees it open, and shows that it lives.
const COMMENT: &[u8] = b":\n\n";
const COMPLETE: &[u8] = b"event: complete\ndata:\n\n";

/// A larger result leaves as it is shared, between pieces of ours, instead of being copied.
const COPIED_BYTES: usize = 16 << 10;

/// What a response of events is made of. One piece waits at most, so that a client that does not
/// read holds no more than the frames of one turn.
pub struct Events(mpsc::Receiver<Bytes>);

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|bytes| Ok(Piece::data(bytes))))
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

/// All of a result that came at once: it, and that it was the only one.
pub fn whole(result: &[u8]) -> Bytes {
    [b"event: next\ndata: ", result, b"\n\n", COMPLETE].concat().into()
}

/// The cursor of a client that comes back.
pub fn last_event_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(LAST_EVENT_ID)?.to_str().ok()?.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

/// Begins a stream, in a task that ends with it. `cut` is rung if the client takes nothing.
pub fn start<E: Executor>(
    reader: Reader<TcpStream, E>,
    pace: Pace,
    cut: Rc<Notify>,
    place: Place,
) -> Events {
    let (sender, receiver) = mpsc::channel(1);
    tokio::task::spawn_local(async move {
        let sender = Sender { sender, pace, cut };
        // None: the client is gone, or was cut.
        let _done = sender.follow(reader).await;
        drop(place);
    });
    Events(receiver)
}

struct Sender {
    sender: mpsc::Sender<Bytes>,
    pace: Pace,
    cut: Rc<Notify>,
}

impl Sender {
    async fn follow<E: Executor>(&self, mut reader: Reader<TcpStream, E>) -> Option<()> {
        self.send(Bytes::from_static(COMMENT)).await?;
        loop {
            let read = {
                let mut read = pin!(reader.frames());
                loop {
                    tokio::select! {
                        frames = &mut read => break frames,
                        () = self.sender.closed() => return None,
                        () = tokio::time::sleep(self.pace.comment_interval) => {
                            self.send(Bytes::from_static(COMMENT)).await?;
                        }
                    }
                }
            };
            match read {
                Ok(frames) => {
                    for frame in &frames {
                        self.event(frame).await?;
                    }
                }
                Err(End::Refused(errors)) => {
                    let result = [b"{\"errors\":".as_slice(), &errors, b"}"].concat();
                    return self.send(whole(&result)).await;
                }
                Err(End::TooSlow) => {
                    let told = ": too slow: what was missed can't be told any more, resume\n\n";
                    return self.send(Bytes::from_static(told.as_bytes())).await;
                }
                Err(End::Draining) => {
                    let told = ": the hub restarts: come back and resume\n\n";
                    return self.send(Bytes::from_static(told.as_bytes())).await;
                }
            }
        }
    }

    async fn event(&self, frame: &Frame) -> Option<()> {
        let result = frame.result();
        let mut head = b"event: next\n".to_vec();
        if let Some(cursor) = cursor(&result) {
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
        match tokio::time::timeout(self.pace.stall, self.sender.send(piece)).await {
            Ok(sent) => sent.ok(),
            Err(_) => {
                self.cut.notify_one();
                None
            }
        }
    }
}

/// The `extensions.cursor` of an encoded result: behind its data, in which a quote is escaped, so
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

    #[test]
    fn the_cursor_of_a_result_is_found_behind_its_data() {
        let tricky =
            br#"{"data":{"a":"\"extensions\":{\"cursor\":\"x"},"extensions":{"cursor":"Y_-1"}}"#;
        assert_eq!(cursor(tricky), Some(b"Y_-1".as_slice()));
        assert_eq!(cursor(br#"{"data":{"a":1}}"#), None);
    }
}
