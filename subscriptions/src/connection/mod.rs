//! The owner of one socket: reads what the client says, asks its session what to do, and is the
//! only one that writes. A connection that can't write keeps numbers, not messages.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::codec::{Codec, Received};
use crate::executor::{Budget, Execution, Executor, StreamPlace};
use crate::limits::{
    BYTES_OF_A_REFUSAL, BYTES_PER_TURN, CLOSE_LINGER, FRAMES_PER_WRITE, PONG_INTERVALS,
    READS_PER_TURN, REFUSALS_AT_ONCE, REFUSALS_PER_SWEEP, REPLY_BACKLOG_BYTES, SILENT_INTERVALS,
    START_DEADLINE, TIME_PER_TURN, UNFINISHED_MESSAGE, UNHEARD_BYTES,
};
use crate::message::{self, CloseCode};
use crate::ring::Frame;
use crate::rounds::Ticket;
use crate::session::{Decision, OperationRef, Session};
use crate::shard::{Opening, Rank, Seat, Shard};
use crate::streams::{ResponseStream, Start};

/// What carries a connection.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Writes what the socket takes at once. [`io::ErrorKind::WouldBlock`] when it is full: nobody
    /// is woken for it, that is for `poll_write` to do.
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize>;
}

impl Socket for TcpStream {
    /// Straight to the system: what the runtime notes of a socket's readiness lies in memory of its
    /// own, which a fan-out over thousands of sockets would fetch for each of them.
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        SockRef::from(&*self).send(bytes)
    }
}

/// A pipe, for tests and for fuzzing.
impl Socket for DuplexStream {
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(self).poll_write(&mut cx, bytes) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// Something whose end tells its maker that the connection is gone (a count of sockets).
pub type Guard = Box<dyn std::any::Any>;

/// A connection as its task, its shard's fan-out and its pending queries share it.
pub(crate) type Shared<S, E> = Rc<RefCell<Connection<S, E>>>;

/// In this order in memory: what a fan-out touches of each of thousands of connections comes
/// first and together, as each further cache line costs more than the work done on it.
#[repr(C)]
pub(crate) struct Connection<S, E: Executor> {
    socket: S,
    /// Nothing waits to be written: the fan-out may write at once. Set by `flush` alone, taken back
    /// by whatever queues something.
    clear: bool,
    /// By the session's slot.
    work: Vec<Option<Work>>,
    /// Of these, those that read a stream.
    streams: u32,
    /// Wakes this connection's task; none before its first turn.
    waker: Option<Waker>,
    ticket: Ticket,
    /// The frame of a stream that left in part; nothing else may be written before its rest.
    partial: Option<Box<Partial>>,
    /// Whole WebSocket frames that wait, all of them before any result of a stream.
    replies: Vec<u8>,
    /// Slots with something to send that could not be sent at once, each once, in turn.
    waiting: VecDeque<u32>,
    /// A close frame of ours was queued: nothing else is sent, and this is the end of patience.
    closing: Option<Instant>,
    /// Since when nothing could be written although something waits.
    stalled_since: Option<Instant>,
    /// Bytes that left since the peer was last heard: what may stand before a ping in its path.
    unheard_bytes: usize,
    replies_sent: usize,
    /// Set when a turn ended before all messages were handled: bytes that the codec was not given
    /// yet. It may be none, as the codec itself holds whole messages too.
    unhandled: Option<Vec<u8>>,
    /// Refusals until nothing more is handled before the next sweep.
    refusals_left: i32,
    codec: Codec,
    session: Session,
    principal: Option<E::Principal>,
    opened: Instant,
    heard: Instant,
    /// When a full socket last took bytes again: then the peer had taken some.
    moved: Instant,
    pinged: Instant,
    drain_at: Option<Instant>,
    /// The peer broke the framing: what comes is thrown away, as its messages can't be told apart.
    deaf: bool,
    dead: bool,
    own: Weak<RefCell<Self>>,
    key: usize,
    client: E::Client,
    rank: Rank,
    _guard: Option<Guard>,
}

enum Work {
    Single(AbortHandle),
    Stream(Reading),
}

/// An operation that reads a stream. Its place in the ring is the shard's [`Member`].
struct Reading {
    stream: Arc<ResponseStream>,
    seat: Seat,
    /// What comes before the ring; none for nearly all readers nearly always.
    before: Option<Box<Before>>,
    place: Option<Box<dyn StreamPlace>>,
}

enum Before {
    /// The source was not asked yet; with the cursor that the client brought.
    Join(Option<Box<str>>),
    /// The source was asked and takes its time: the operation's turn comes with the answer.
    Asked {
        _task: Asking,
    },
    Answered(Start),
    /// Frames to send: a snapshot, a merged delta, a page of the log.
    Owed {
        frames: VecDeque<Frame>,
        then: Then,
    },
    /// A page was sent: the source is asked what follows it.
    Ask,
}

/// Where a reader goes on behind what it is owed.
#[derive(Clone, Copy)]
enum Then {
    Ring,
    Ask,
}

/// A task that waits for a source's answer; ends with the operation it waits for.
struct Asking(AbortHandle);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Before {
    /// These frames, and what comes behind them where there are none.
    fn owe(frames: VecDeque<Frame>, then: Then) -> Option<Box<Self>> {
        match then {
            _ if !frames.is_empty() => Some(Box::new(Self::Owed { frames, then })),
            Then::Ring => None,
            Then::Ask => Some(Box::new(Self::Ask)),
        }
    }

    /// What the source says; `None` while it takes its time, or where frames are owed.
    fn ask(&mut self, stream: &ResponseStream, seen: u64) -> Option<Start> {
        let source = stream.source();
        match self {
            Self::Join(after) => Some(source.join(stream, after.as_deref())),
            Self::Ask => Some(source.catch_up(stream, seen)),
            Self::Answered(_) => match std::mem::replace(self, Self::Ask) {
                Self::Answered(start) => Some(start),
                _ => None,
            },
            Self::Asked { .. } | Self::Owed { .. } => None,
        }
    }
}

/// The time that one turn of a connection may take: a source may encode a snapshot in it, and a
/// request may have to be parsed.
struct Allowance(std::time::Instant);

impl Allowance {
    fn new() -> Self {
        Self(std::time::Instant::now())
    }

    fn is_used_up(&self) -> bool {
        self.0.elapsed() >= TIME_PER_TURN
    }
}

struct Partial {
    prefix: Box<[u8]>,
    tail: Bytes,
    /// Of both together.
    sent: usize,
}

/// The socket or something queued before stands in the way.
pub(crate) struct Blocked;

/// How a write went.
enum Written {
    /// This many frames need no further thought; the last may be in `partial`.
    Frames(usize),
    Blocked,
}

impl<S: Socket, E: Executor> Connection<S, E> {
    pub(crate) fn share(
        socket: S,
        shard: &Shard<S, E>,
        key: usize,
        client: E::Client,
        rank: Rank,
        guard: Option<Guard>,
    ) -> Shared<S, E> {
        let now = shard.now();
        Rc::new_cyclic(|own| {
            RefCell::new(Self {
                socket,
                clear: false,
                codec: Codec::new(shard.limits.message_bytes_before_ack),
                session: Session::new(&shard.limits, now),
                principal: None,
                replies: Vec::new(),
                replies_sent: 0,
                unhandled: None,
                refusals_left: REFUSALS_AT_ONCE,
                partial: None,
                work: Vec::new(),
                streams: 0,
                waiting: VecDeque::new(),
                waker: None,
                ticket: Ticket::default(),
                opened: now,
                heard: now,
                moved: now,
                unheard_bytes: 0,
                pinged: now,
                stalled_since: None,
                closing: None,
                drain_at: None,
                deaf: false,
                dead: false,
                own: own.clone(),
                key,
                client,
                rank,
                _guard: guard,
            })
        })
    }

    /// Before its first turn: what came with the upgrade, or why there is nothing to come.
    pub(crate) fn open(&mut self, opening: Opening, early: &[u8], shard: &Shard<S, E>) {
        match opening {
            Opening::Speak(dialect) => {
                self.session.speak(dialect);
                if !early.is_empty() {
                    self.digest(early, &Allowance::new(), shard);
                }
            }
            Opening::Refuse { code, reason } => self.close(code, reason, shard),
        }
    }

    /// The connection's task: ready when the socket is to be dropped.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, shard: &Shard<S, E>) -> Poll<()> {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        if !shard.admits(&self.ticket, &self.client, cx.waker()) {
            return Poll::Pending;
        }
        self.clear = false;
        let begin = std::time::Instant::now();
        let turned = self.read(cx, shard).and_then(|()| self.flush(cx, shard));
        shard.spend(begin.elapsed());
        if turned.is_err() || self.dead {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Everything that others hold of this connection is given back. With hundreds of operations
    /// that is the longest of its turns.
    pub(crate) fn end(&mut self, shard: &Shard<S, E>) {
        let begin = std::time::Instant::now();
        self.dead = true;
        for slot in 0..self.work.len() {
            self.stop(slot as u32, shard);
        }
        shard.forget(self.key);
        shard.spend(begin.elapsed());
    }

    // ---- reading ----

    fn read(&mut self, cx: &mut Context<'_>, shard: &Shard<S, E>) -> io::Result<()> {
        let turn = Allowance::new();
        let mut buffer = shard.read_buffer.borrow_mut();
        for _ in 0..READS_PER_TURN {
            if self.dead || self.replies.len() > REPLY_BACKLOG_BYTES || self.refusals_left <= 0 {
                // The flush that makes room wakes this task, or the sweep.
                return Ok(());
            }
            if let Some(unhandled) = self.unhandled.take() {
                self.digest(&unhandled, &turn, shard);
                if self.unhandled.is_some() {
                    break;
                }
                continue;
            }
            let mut filled = ReadBuf::new(&mut buffer);
            match Pin::new(&mut self.socket).poll_read(cx, &mut filled) {
                Poll::Pending => return Ok(()),
                Poll::Ready(result) => result?,
            }
            if filled.filled().is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.heard = shard.now();
            self.unheard_bytes = 0;
            self.digest(filled.filled(), &turn, shard);
            if turn.is_used_up() {
                break;
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Takes in what was read: messages are handled in their order, also within one segment. What
    /// is left when the turn is used up is kept for the next one.
    fn digest(&mut self, mut input: &[u8], turn: &Allowance, shard: &Shard<S, E>) {
        if self.deaf {
            return;
        }
        let mut whole = 0;
        let is_fresh = !input.is_empty();
        loop {
            if whole > 0 && (turn.is_used_up() || self.refusals_left <= 0) {
                self.unhandled = Some(input.to_vec());
                break;
            }
            let mut answers = Vec::new();
            let received = self.codec.next(&mut input, &mut answers);
            if self.closing.is_none() {
                self.replies.append(&mut answers);
            }
            match received {
                Ok(None) => break,
                Ok(Some(Received::Close)) => {
                    // Our answer to it, if any, leaves in the flush that follows.
                    self.hang_up(shard);
                    break;
                }
                Ok(Some(_)) if self.closing.is_some() => {}
                Ok(Some(Received::Sign)) => self.charge(0, shard),
                Ok(Some(Received::Text(text))) => self.receive(&text, shard),
                Ok(Some(Received::Binary)) => {
                    self.close(CloseCode::InvalidMessage, "Binary messages are not used", shard);
                }
                Err(fault) => {
                    self.deaf = true;
                    self.close(fault.code, &fault.reason, shard);
                    break;
                }
            }
            whole += 1;
        }
        self.codec.unfinished_since = match whole {
            0 if is_fresh => Some(self.codec.unfinished_since.unwrap_or(shard.now())),
            0 => self.codec.unfinished_since,
            _ => None,
        };
    }

    fn receive(&mut self, text: &str, shard: &Shard<S, E>) {
        shard.meters.messages_received.add(1);
        self.charge(text.len(), shard);
        match self.session.receive(text, &shard.limits, shard.now()) {
            Decision::Nothing => {}
            Decision::Reply(message) => message::text_frame(&message, &mut self.replies),
            Decision::Refuse(message) => {
                message::text_frame(&message, &mut self.replies);
                self.count_refusals(1);
            }
            Decision::Close { code, reason } => self.close(code, &reason, shard),
            Decision::End { operation, answer } => {
                self.stop(operation.slot, shard);
                if let Some(answer) = answer {
                    message::text_frame(&answer, &mut self.replies);
                }
            }
            Decision::Judge(payload) => match shard.executor.init(payload.as_ref(), &self.client) {
                Ok(principal) => {
                    self.principal = Some(principal);
                    self.codec.allow(shard.limits.message_bytes);
                    message::text_frame(self.session.accept(), &mut self.replies);
                    self.keep_alive();
                }
                Err(refused) => {
                    if let Some(message) = self.session.dialect().rejection(&refused.reason) {
                        message::text_frame(&message, &mut self.replies);
                    }
                    self.close(CloseCode::Forbidden, &refused.reason, shard);
                }
            },
            Decision::Begin { operation, request } => {
                let Some(principal) = &self.principal else {
                    return; // The session lets nobody subscribe before the ack.
                };
                let execution = shard.executor.execute(request, principal);
                self.begin(operation, execution, shard);
            }
        }
    }

    /// A client that sends more than it may is read less often.
    fn charge(&mut self, bytes: usize, shard: &Shard<S, E>) {
        if shard.executor.charge_message(&self.client, bytes) == Budget::Exceeded {
            self.count_refusals(1 + bytes / BYTES_OF_A_REFUSAL);
        }
    }

    /// Says that we live, to a client that doesn't see a WebSocket's own pings.
    fn keep_alive(&mut self) {
        if let Some(message) = self.session.dialect().keep_alive() {
            message::text_frame(message, &mut self.replies);
        }
    }

    fn begin(&mut self, operation: OperationRef, execution: Execution, shard: &Shard<S, E>) {
        let work = match execution {
            Execution::Refused(errors) => return self.refuse(operation, &errors),
            Execution::Single(result) => {
                let own = self.own.clone();
                let task = tokio::task::spawn_local(async move {
                    let result = result.await;
                    if let Some(connection) = own.upgrade() {
                        let mut connection = connection.borrow_mut();
                        match result {
                            Ok(result) => connection.settle(operation, &result.json),
                            Err(errors) => connection.refuse_late(operation, &errors),
                        }
                    }
                });
                Work::Single(task.abort_handle())
            }
            Execution::Stream { stream, after, place } => {
                let Some(id) = self.session.streams(operation) else {
                    return shard.give_back(&stream);
                };
                let dialect = self.session.dialect();
                let seat =
                    shard.join(&stream, self.own.clone(), operation.slot, &id, dialect, self.rank);
                self.waiting.push_back(operation.slot);
                Work::Stream(Reading {
                    stream,
                    seat,
                    before: Some(Box::new(Before::Join(after.map(String::into_boxed_str)))),
                    place,
                })
            }
        };
        let slot = operation.slot as usize;
        if self.work.len() <= slot {
            self.work.resize_with(slot + 1, || None);
        }
        self.streams += u32::from(matches!(work, Work::Stream(_)));
        self.work[slot] = Some(work);
    }

    /// Operations that read a stream.
    pub(crate) fn streams(&self) -> u32 {
        self.streams
    }

    /// Where the shard knows the readers of this connection, with their slots.
    pub(crate) fn seats(&self) -> impl Iterator<Item = (u32, Seat)> {
        self.work.iter().enumerate().filter_map(|(slot, work)| match work {
            Some(Work::Stream(reading)) => Some((slot as u32, reading.seat)),
            _ => None,
        })
    }

    fn refuse(&mut self, operation: OperationRef, errors: &[u8]) {
        self.count_refusals(1);
        if let Some(message) = self.session.refuse(operation, errors) {
            message::text_frame(&message, &mut self.replies);
        }
    }

    /// A client that asks on and on for what it is refused is read less often.
    fn count_refusals(&mut self, count: usize) {
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        self.refusals_left = self.refusals_left.saturating_sub(count);
    }

    /// A query turned out to be refused after it was handed to a task.
    fn refuse_late(&mut self, operation: OperationRef, errors: &[u8]) {
        let Some(message) = self.session.refuse(operation, errors) else {
            return; // Completed by the client in the meantime.
        };
        self.work[operation.slot as usize] = None;
        self.clear = false;
        self.count_refusals(1);
        message::text_frame(&message, &mut self.replies);
        self.wake();
    }

    /// A query or mutation has its result.
    fn settle(&mut self, operation: OperationRef, result: &[u8]) {
        let Some((id, complete)) = self.session.settle(operation) else {
            return; // Completed by the client in the meantime.
        };
        self.work[operation.slot as usize] = None;
        self.clear = false;
        let dialect = self.session.dialect();
        message::next_prefix(dialect, id.as_bytes(), result.len() + 1, &mut self.replies);
        self.replies.extend_from_slice(result);
        self.replies.push(b'}');
        message::text_frame(&complete, &mut self.replies);
        self.wake();
    }

    /// Forgets what runs in a slot; the session has forgotten it already, or will.
    fn stop(&mut self, slot: u32, shard: &Shard<S, E>) {
        match self.work.get_mut(slot as usize).and_then(Option::take) {
            Some(Work::Single(task)) => task.abort(),
            Some(Work::Stream(reading)) => {
                self.streams -= 1;
                shard.leave(reading.seat);
                self.waiting.retain(|one| *one != slot);
            }
            None => {}
        }
    }

    // ---- closing ----

    fn close(&mut self, code: CloseCode, reason: &str, shard: &Shard<S, E>) {
        if self.closing.is_some() {
            return;
        }
        shard.meters.closed(code);
        for slot in 0..self.work.len() {
            self.stop(slot as u32, shard);
        }
        message::close_frame(code, reason, &mut self.replies);
        self.closing = Some(shard.now() + CLOSE_LINGER);
    }

    /// The peer closes or has answered our close: what is queued leaves, then the socket goes.
    fn hang_up(&mut self, shard: &Shard<S, E>) {
        if self.closing.is_some() {
            self.dead = true;
            return;
        }
        for slot in 0..self.work.len() {
            self.stop(slot as u32, shard);
        }
        self.closing = Some(shard.now());
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Spreads the closes of a shutdown over time.
    pub(crate) fn drain_at(&mut self, when: Instant) {
        self.drain_at = Some(when);
    }

    /// Looks at the deadlines; called every `SWEEP_INTERVAL`.
    pub(crate) fn sweep(&mut self, now: Instant, shard: &Shard<S, E>) {
        let limits = &shard.limits;
        if self.refusals_left <= 0 {
            self.wake();
        }
        self.refusals_left = (self.refusals_left + REFUSALS_PER_SWEEP).min(REFUSALS_AT_ONCE);
        // Whatever is found to do below queues something, and wakes the task that flushes it.
        let passed = |since: Instant, most: Duration| now.saturating_duration_since(since) >= most;
        if let Some(deadline) = self.closing {
            self.dead = now >= deadline;
        } else if self.is_silent(now, limits.ping_interval * SILENT_INTERVALS) {
            shard.meters.dropped_silent.add(1);
            self.dead = true;
        } else if passed(self.heard, limits.ping_interval * PONG_INTERVALS) {
            let reason = format!(
                "Too slow: no answer to a ping for {} ms ({PONG_INTERVALS} ping_interval_ms)",
                (limits.ping_interval * PONG_INTERVALS).as_millis()
            );
            self.close(CloseCode::TryAgainLater, &reason, shard);
        } else if self.drain_at.is_some_and(|when| now >= when) {
            self.close(CloseCode::Restarting, "The hub restarts: come back", shard);
        } else if self.session.is_fresh() && passed(self.opened, limits.init_timeout) {
            self.close(CloseCode::InitTimeout, "Connection initialisation timeout", shard);
        } else if self.stalled_since.is_some_and(|since| passed(since, limits.writer_stall)) {
            let reason = format!(
                "Too slow: nothing could be sent for {} ms (writer_stall_ms)",
                limits.writer_stall.as_millis()
            );
            self.close(CloseCode::TryAgainLater, &reason, shard);
        } else if self.codec.unfinished_since.is_some_and(|since| passed(since, UNFINISHED_MESSAGE))
        {
            self.close(CloseCode::ProtocolError, "A message did not end within 10 s", shard);
        } else if passed(self.pinged, limits.ping_interval) {
            self.pinged = now;
            self.replies.extend_from_slice(message::PING_FRAME);
            if self.principal.is_some() {
                self.keep_alive();
            }
        } else {
            return;
        }
        self.clear = false;
        self.wake();
    }

    /// Nothing came, and it is no slow reader, which would see our ping late: a full socket is for
    /// `writer_stall` to judge, and one that was full has taken something since.
    fn is_silent(&self, now: Instant, most: Duration) -> bool {
        let last = self.heard.max(self.moved);
        now.saturating_duration_since(last) >= most
            && self.stalled_since.is_none()
            && self.unheard_bytes < UNHEARD_BYTES
    }

    // ---- writing ----

    /// Called by the fan-out with one whole message, of which the payload `tail` is shared. What
    /// the socket does not take of it is kept.
    pub(crate) fn offer(
        &mut self,
        message: &[u8],
        tail: &Bytes,
        shard: &Shard<S, E>,
    ) -> Result<(), Blocked> {
        if !self.clear && !self.send_replies(shard) {
            return Err(Blocked);
        }
        // A socket that is full is the connection's own task's to wait for.
        let polled = try_write(&mut self.socket, message);
        match self.progress(polled, shard) {
            Poll::Ready(Ok(written)) if written == message.len() => Ok(()),
            Poll::Ready(Ok(written)) => {
                self.rest(&message[..message.len() - tail.len()], tail, written);
                self.wake();
                Ok(())
            }
            Poll::Ready(Err(_)) => {
                self.dead = true;
                self.wake();
                Ok(())
            }
            Poll::Pending => Err(Blocked),
        }
    }

    /// Sends the replies if nothing else is to be sent before a frame: so a ping of ours or a
    /// result does not hold back frames until the connection has its turn, which may be long after.
    /// Whether the way is clear now.
    fn send_replies(&mut self, shard: &Shard<S, E>) -> bool {
        if self.partial.is_some() || !self.waiting.is_empty() || self.closing.is_some() || self.dead
        {
            return false;
        }
        self.clear = matches!(self.flush_replies(shard, try_write), Ok(Poll::Ready(())));
        self.clear
    }

    /// Has something to send that was not handed over: its turn comes when there is room.
    pub(crate) fn wait(&mut self, slot: u32) {
        self.clear = false;
        self.waiting.push_back(slot);
        self.wake();
    }

    /// Keeps what is left of a message of which `sent` bytes are gone.
    fn rest(&mut self, prefix: &[u8], tail: &Bytes, sent: usize) {
        self.clear = false;
        self.partial = Some(Box::new(Partial { prefix: prefix.into(), tail: tail.clone(), sent }));
    }

    /// Writes as much as the socket takes: the rest of a frame, then replies, then each waiting
    /// operation in turn.
    fn flush(&mut self, cx: &mut Context<'_>, shard: &Shard<S, E>) -> io::Result<()> {
        let mut turns = 0;
        let allowance = Allowance::new();
        loop {
            if self.partial.is_some() {
                if self.flush_partial(cx, shard)?.is_pending() {
                    return Ok(());
                }
            } else if !self.replies.is_empty() {
                let write = |socket: &mut S, bytes: &[u8]| Pin::new(socket).poll_write(cx, bytes);
                if self.flush_replies(shard, write)?.is_pending() {
                    return Ok(());
                }
            } else if let Some(deadline) = self.closing {
                // All has left. A peer that closed first is done; one that we closed answers, or,
                // where we can't understand it any more, sees the end of our side and goes. Read
                // on until then: closing on unread bytes would destroy the close frame on its way.
                self.dead |= deadline <= shard.now();
                if self.deaf && !self.dead {
                    let _gone = Pin::new(&mut self.socket).poll_shutdown(cx)?;
                }
                return Ok(());
            } else if let Some(slot) = self.waiting.pop_front() {
                if turns == READS_PER_TURN || (turns > 0 && allowance.is_used_up()) {
                    self.waiting.push_front(slot);
                    cx.waker().wake_by_ref();
                    return Ok(());
                }
                turns += 1;
                if self.turn(cx, slot, shard)?.is_pending() {
                    return Ok(());
                }
            } else {
                self.clear = true;
                return Ok(());
            }
        }
    }

    fn flush_partial(&mut self, cx: &mut Context<'_>, shard: &Shard<S, E>) -> Polled {
        let Some(mut partial) = self.partial.take() else {
            return Ok(Poll::Ready(()));
        };
        let whole = partial.prefix.len() + partial.tail.len();
        while partial.sent < whole {
            let head = partial.prefix.get(partial.sent..).unwrap_or_default();
            let tail = &partial.tail[partial.sent.saturating_sub(partial.prefix.len())..];
            let slices = [IoSlice::new(head), IoSlice::new(tail)];
            let slices = if head.is_empty() { &slices[1..] } else { &slices[..] };
            let polled = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
            match self.progress(polled, shard) {
                Poll::Ready(result) => partial.sent += result?,
                Poll::Pending => {
                    self.partial = Some(partial);
                    return Ok(Poll::Pending);
                }
            }
        }
        Ok(Poll::Ready(()))
    }

    fn flush_replies(
        &mut self,
        shard: &Shard<S, E>,
        mut write: impl FnMut(&mut S, &[u8]) -> Poll<io::Result<usize>>,
    ) -> Polled {
        while self.replies_sent < self.replies.len() {
            let polled = write(&mut self.socket, &self.replies[self.replies_sent..]);
            match self.progress(polled, shard) {
                Poll::Ready(result) => self.replies_sent += result?,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        let paused = self.replies.len() > REPLY_BACKLOG_BYTES;
        // Given back whole: an idle connection keeps no buffer.
        self.replies = Vec::new();
        self.replies_sent = 0;
        if paused {
            // It was not read from meanwhile.
            self.wake();
        }
        Ok(Poll::Ready(()))
    }

    /// One operation's turn: what it is owed, then the ring, until it is up to date, had its
    /// share, or the socket is full. Ready means that another may go on.
    fn turn(&mut self, cx: &mut Context<'_>, slot: u32, shard: &Shard<S, E>) -> Polled {
        let mut written_bytes = 0;
        loop {
            let Some(Some(Work::Stream(reading))) = self.work.get_mut(slot as usize) else {
                return Ok(Poll::Ready(()));
            };
            if written_bytes >= BYTES_PER_TURN {
                self.waiting.push_back(slot);
                return Ok(Poll::Ready(()));
            }
            let (seat, owed) = (reading.seat, reading.before.is_some());
            let (next, seen) = shard.progress(seat);
            let mut frames = shard.frames.take();
            frames.clear();
            let start = match reading.before.as_deref_mut() {
                Some(Before::Owed { frames: owed, .. }) => {
                    frames.extend(owed.iter().take(FRAMES_PER_WRITE).cloned());
                    None
                }
                Some(before) => match before.ask(&reading.stream, seen) {
                    Some(start) => Some(start),
                    None => {
                        shard.frames.replace(frames);
                        return Ok(Poll::Ready(()));
                    }
                },
                None if reading.stream.read(next, FRAMES_PER_WRITE, &mut frames) => None,
                None => {
                    shard.meters.catch_ups.add(1);
                    Some(reading.stream.source().catch_up(&reading.stream, seen))
                }
            };
            if let Some(start) = start {
                shard.frames.replace(frames);
                if !self.start(slot, start, shard) {
                    return Ok(Poll::Ready(()));
                }
                continue;
            }
            if frames.is_empty() {
                shard.up_to_date(seat);
                shard.frames.replace(frames);
                return Ok(Poll::Ready(()));
            }
            let outcome = match self.write_frames(cx, seat, &frames, shard) {
                Ok(Written::Frames(count)) => {
                    let sent = &frames[..count];
                    written_bytes += sent.iter().map(|one| one.tail.len()).sum::<usize>();
                    let seen = sent.last().map_or(seen, |last| last.sequence);
                    let next = if owed { next } else { next + count as u64 };
                    shard.advance(seat, next, seen);
                    if owed {
                        self.pay(slot, count);
                    }
                    None
                }
                Ok(Written::Blocked) => Some(Ok(Poll::Pending)),
                Err(error) => Some(Err(error)),
            };
            shard.frames.replace(frames);
            if let Some(outcome) = outcome {
                self.waiting.push_front(slot);
                return outcome;
            }
            if self.partial.is_some() {
                // Others may have been waiting longer: the rest first, then they.
                self.waiting.push_back(slot);
                return Ok(Poll::Ready(()));
            }
        }
    }

    /// Takes in where a stream starts or goes on. False if the operation or the connection ends.
    fn start(&mut self, slot: u32, start: Start, shard: &Shard<S, E>) -> bool {
        let Some(Some(Work::Stream(reading))) = self.work.get_mut(slot as usize) else {
            return false;
        };
        reading.before = None;
        let start = match start.awaited() {
            Ok((answer, in_turn)) => {
                let task = self.ask(slot, answer, in_turn);
                if let Some(Some(Work::Stream(reading))) = self.work.get_mut(slot as usize) {
                    reading.before = Some(Box::new(Before::Asked { _task: task }));
                }
                return true;
            }
            Err(start) => start,
        };
        match start {
            Start::Ring { seen, next } => {
                shard.advance(reading.seat, next, seen);
                true
            }
            Start::Frames { frames, next } => {
                reading.before = Before::owe(frames.into(), Then::Ring);
                let (_, seen) = shard.progress(reading.seat);
                shard.advance(reading.seat, next, seen);
                true
            }
            Start::Page(frames) => {
                shard.meters.replayed_pages.add(1);
                debug_assert!(!frames.is_empty(), "a page brings its reader on");
                reading.before = Before::owe(frames.into(), Then::Ask);
                true
            }
            Start::Refused(errors) => {
                let operation = self.session.reference(slot);
                self.stop(slot, shard);
                self.refuse(operation, &errors);
                false
            }
            Start::TooSlow | Start::Later(_) | Start::Soon(_) => {
                let reason = "Too slow: the hub no longer has what was missed, resume or restart";
                self.close(CloseCode::TryAgainLater, reason, shard);
                false
            }
        }
    }

    /// Waits for a source's answer in a task of its own; the operation goes on with it, unless it
    /// has ended meanwhile.
    fn ask(&self, slot: u32, answer: BoxFuture<'static, Start>, in_turn: bool) -> Asking {
        let (own, operation) = (self.own.clone(), self.session.reference(slot));
        let place = match self.work.get(slot as usize) {
            Some(Some(Work::Stream(reading))) => reading.place.as_ref(),
            _ => None,
        };
        let wait = place.filter(|_| in_turn).and_then(|place| place.turn());
        let task = tokio::task::spawn_local(async move {
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
            let answer = tokio::time::timeout(START_DEADLINE, answer).await;
            if let Some(connection) = own.upgrade() {
                connection.borrow_mut().answered(operation, answer.unwrap_or(Start::TooSlow));
            }
        });
        Asking(task.abort_handle())
    }

    fn answered(&mut self, operation: OperationRef, answer: Start) {
        let OperationRef { slot, .. } = operation;
        if self.session.reference(slot) == operation
            && let Some(Some(Work::Stream(reading))) = self.work.get_mut(slot as usize)
            && let Some(Before::Asked { .. }) = reading.before.as_deref()
        {
            reading.before = Some(Box::new(Before::Answered(answer)));
            self.wait(slot);
        }
    }

    /// After `count` owed frames left.
    fn pay(&mut self, slot: u32, count: usize) {
        if let Some(Some(Work::Stream(reading))) = self.work.get_mut(slot as usize)
            && let Some(Before::Owed { frames, then }) = reading.before.as_deref_mut()
        {
            frames.drain(..count);
            if frames.is_empty() {
                reading.before = Before::owe(VecDeque::new(), *then);
            }
        }
    }

    /// One vectored write of at most `FRAMES_PER_WRITE` frames, each with this client's prefix.
    fn write_frames(
        &mut self,
        cx: &mut Context<'_>,
        seat: Seat,
        frames: &[Frame],
        shard: &Shard<S, E>,
    ) -> io::Result<Written> {
        let frames = &frames[..frames.len().min(FRAMES_PER_WRITE)];
        let mut prefixes = shard.prefixes.borrow_mut();
        prefixes.clear();
        let mut ends = [0; FRAMES_PER_WRITE];
        for (frame, end) in frames.iter().zip(&mut ends) {
            shard.prefix(seat, frame.tail.len(), &mut prefixes);
            *end = prefixes.len();
        }
        let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE * 2];
        let mut begin = 0;
        for (place, (frame, end)) in frames.iter().zip(ends).enumerate() {
            slices[place * 2] = IoSlice::new(&prefixes[begin..end]);
            slices[place * 2 + 1] = IoSlice::new(&frame.tail);
            begin = end;
        }
        let polled =
            Pin::new(&mut self.socket).poll_write_vectored(cx, &slices[..frames.len() * 2]);
        let mut written = match self.progress(polled, shard) {
            Poll::Pending => return Ok(Written::Blocked),
            Poll::Ready(result) => result?,
        };
        shard.count_writes();
        let mut begin = 0;
        for (place, (frame, end)) in frames.iter().zip(ends).enumerate() {
            let whole = end - begin + frame.tail.len();
            if written < whole {
                if written > 0 {
                    self.rest(&prefixes[begin..end], &frame.tail, written);
                }
                let count = place + usize::from(written > 0);
                shard.count_delivered(count);
                return Ok(Written::Frames(count));
            }
            written -= whole;
            begin = end;
        }
        shard.count_delivered(frames.len());
        Ok(Written::Frames(frames.len()))
    }

    /// Notes whether the socket takes bytes; a write of nothing is the end.
    fn progress(
        &mut self,
        polled: Poll<io::Result<usize>>,
        shard: &Shard<S, E>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(result) = polled else {
            self.stalled_since.get_or_insert(shard.now());
            return Poll::Pending;
        };
        if self.stalled_since.take().is_some() {
            self.moved = shard.now();
        }
        let written = ready!(Poll::Ready(result))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unheard_bytes = self.unheard_bytes.saturating_add(written);
        shard.count_bytes(written);
        Poll::Ready(Ok(written))
    }
}

type Polled = io::Result<Poll<()>>;

/// Writes what the socket takes at once. Pending where it is full: nobody is woken for it.
fn try_write(socket: &mut impl Socket, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match socket.write_now(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}
