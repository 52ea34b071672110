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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::codec::{Codec, Received};
use crate::executor::{Execution, Executor};
use crate::limits::{
    BYTES_PER_TURN, CLOSE_LINGER, CONTIGUOUS_BYTES, FRAMES_PER_WRITE, READS_PER_TURN,
    REPLY_BACKLOG_BYTES, UNFINISHED_MESSAGE,
};
use crate::protocol::{self, CloseCode};
use crate::ring::Frame;
use crate::session::{Decision, OperationRef, Session};
use crate::shard::{Opening, Shard};
use crate::stream::{ResponseStream, Start};

/// What carries a connection: a TCP socket, or a pipe in tests.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Socket for S {}

/// Something whose end tells its maker that the connection is gone (a count of sockets).
pub type Guard = Box<dyn std::any::Any>;

/// A connection as its task, its shard's fan-out and its pending queries share it.
pub(crate) type Shared<S, E> = Rc<RefCell<Connection<S, E>>>;

/// In this order in memory: what a fan-out touches of each of thousands of connections comes
/// first and together, as each further cache line costs more than the work done on it.
#[repr(C)]
pub(crate) struct Connection<S, E: Executor> {
    socket: S,
    /// By the session's slot.
    work: Vec<Option<Work>>,
    /// Wakes this connection's task; none before its first turn.
    waker: Option<Waker>,
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
    replies_sent: usize,
    codec: Codec,
    session: Session,
    principal: Option<E::Principal>,
    opened: Instant,
    heard: Instant,
    pinged: Instant,
    drain_at: Option<Instant>,
    /// The peer broke the framing: what comes is thrown away, as its messages can't be told apart.
    deaf: bool,
    dead: bool,
    own: Weak<RefCell<Self>>,
    key: usize,
    _guard: Option<Guard>,
}

enum Work {
    Single(AbortHandle),
    Stream(Reading),
}

/// A place in a stream: all that a reader costs.
struct Reading {
    /// The operation's id as JSON.
    id: Rc<str>,
    stream: Arc<ResponseStream>,
    /// Where the shard knows this reader.
    place: usize,
    member: usize,
    /// Index in the ring of the next frame to send, once `joined`.
    next: u64,
    /// The last sequence sent.
    seen: u64,
    /// In `waiting`.
    waits: bool,
    state: Joining,
    /// Frames to send before the ring's: a snapshot, a merged delta.
    owed: VecDeque<Frame>,
}

enum Joining {
    /// Not asked the source yet; with the cursor that the client brought.
    Asked(Option<Box<str>>),
    Joined,
}

struct Partial {
    prefix: Box<[u8]>,
    tail: Bytes,
    /// Of both together.
    sent: usize,
}

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
        guard: Option<Guard>,
    ) -> Shared<S, E> {
        let now = shard.now();
        Rc::new_cyclic(|own| {
            RefCell::new(Self {
                socket,
                codec: Codec::new(shard.limits.message_bytes_before_ack),
                session: Session::new(&shard.limits, now),
                principal: None,
                replies: Vec::new(),
                replies_sent: 0,
                partial: None,
                work: Vec::new(),
                waiting: VecDeque::new(),
                waker: None,
                opened: now,
                heard: now,
                pinged: now,
                stalled_since: None,
                closing: None,
                drain_at: None,
                deaf: false,
                dead: false,
                own: own.clone(),
                key,
                _guard: guard,
            })
        })
    }

    /// Before its first turn: what came with the upgrade, or why there is nothing to come.
    pub(crate) fn open(&mut self, opening: Opening, early: &[u8], shard: &Shard<S, E>) {
        match opening {
            Opening::GraphqlTransportWs => self.digest(early, shard),
            Opening::Refuse { code, reason } => self.close(code, reason, shard),
        }
    }

    /// The connection's task: ready when the socket is to be dropped.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, shard: &Shard<S, E>) -> Poll<()> {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        let turned = self.read(cx, shard).and_then(|()| self.flush(cx, shard));
        if turned.is_err() || self.dead {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Everything that others hold of this connection is given back.
    pub(crate) fn end(&mut self, shard: &Shard<S, E>) {
        self.dead = true;
        for slot in 0..self.work.len() {
            self.stop(slot as u32, shard);
        }
        shard.forget(self.key);
    }

    // ---- reading ----

    fn read(&mut self, cx: &mut Context<'_>, shard: &Shard<S, E>) -> io::Result<()> {
        let mut buffer = shard.read_buffer.borrow_mut();
        for _ in 0..READS_PER_TURN {
            if self.dead || self.replies.len() > REPLY_BACKLOG_BYTES {
                // The flush that makes room wakes this task.
                return Ok(());
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
            self.digest(filled.filled(), shard);
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Takes in what was read: messages are handled in their order, also within one segment.
    fn digest(&mut self, mut input: &[u8], shard: &Shard<S, E>) {
        if input.is_empty() || self.deaf {
            return;
        }
        let mut whole = 0;
        loop {
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
                Ok(Some(Received::Sign)) => {}
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
            0 => Some(self.codec.unfinished_since.unwrap_or(shard.now())),
            _ => None,
        };
    }

    fn receive(&mut self, text: &str, shard: &Shard<S, E>) {
        shard.meters.messages_received.add(1);
        match self.session.receive(text, &shard.limits, shard.now()) {
            Decision::Nothing => {}
            Decision::Reply(message) => protocol::text_frame(&message, &mut self.replies),
            Decision::Close { code, reason } => self.close(code, &reason, shard),
            Decision::End { operation } => self.stop(operation.slot, shard),
            Decision::Judge(payload) => match shard.executor.init(payload.as_ref()) {
                Ok(principal) => {
                    self.principal = Some(principal);
                    self.codec.allow(shard.limits.message_bytes);
                    protocol::text_frame(self.session.accept(), &mut self.replies);
                }
                Err(refused) => self.close(CloseCode::Forbidden, &refused.reason, shard),
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

    fn begin(&mut self, operation: OperationRef, execution: Execution, shard: &Shard<S, E>) {
        let work = match execution {
            Execution::Refused(errors) => return self.refuse(operation, &errors),
            Execution::Single(result) => {
                let own = self.own.clone();
                let task = tokio::task::spawn_local(async move {
                    let result = result.await;
                    if let Some(connection) = own.upgrade() {
                        connection.borrow_mut().settle(operation, &result);
                    }
                });
                Work::Single(task.abort_handle())
            }
            Execution::Stream { stream, after } => {
                let Some(id) = self.session.streams(operation) else {
                    return shard.give_back(&stream);
                };
                let (place, member) = shard.join(&stream, self.own.clone(), operation.slot);
                self.waiting.push_back(operation.slot);
                Work::Stream(Reading {
                    id,
                    stream,
                    place,
                    member,
                    next: 0,
                    seen: 0,
                    waits: true,
                    state: Joining::Asked(after.map(String::into_boxed_str)),
                    owed: VecDeque::new(),
                })
            }
        };
        let slot = operation.slot as usize;
        if self.work.len() <= slot {
            self.work.resize_with(slot + 1, || None);
        }
        self.work[slot] = Some(work);
    }

    fn refuse(&mut self, operation: OperationRef, errors: &[u8]) {
        if let Some(message) = self.session.refuse(operation, errors) {
            protocol::text_frame(&message, &mut self.replies);
        }
    }

    /// A query or mutation has its result.
    fn settle(&mut self, operation: OperationRef, result: &[u8]) {
        let Some((id, complete)) = self.session.settle(operation) else {
            return; // Completed by the client in the meantime.
        };
        self.work[operation.slot as usize] = None;
        protocol::next_prefix(&id, result.len() + 1, &mut self.replies);
        self.replies.extend_from_slice(result);
        self.replies.push(b'}');
        protocol::text_frame(&complete, &mut self.replies);
        self.wake();
    }

    /// Forgets what runs in a slot; the session has forgotten it already, or will.
    fn stop(&mut self, slot: u32, shard: &Shard<S, E>) {
        match self.work.get_mut(slot as usize).and_then(Option::take) {
            Some(Work::Single(task)) => task.abort(),
            Some(Work::Stream(reading)) => {
                shard.leave(reading.place, reading.member);
                if reading.waits {
                    self.waiting.retain(|one| *one != slot);
                }
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
        protocol::close_frame(code, reason, &mut self.replies);
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
        let passed = |since: Instant, most: Duration| now.saturating_duration_since(since) >= most;
        if let Some(deadline) = self.closing {
            self.dead = now >= deadline;
        } else if passed(self.heard, limits.ping_interval * 2) {
            shard.meters.dropped_silent.add(1);
            self.dead = true;
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
            self.replies.extend_from_slice(protocol::PING_FRAME);
        } else {
            return;
        }
        self.wake();
    }

    // ---- writing ----

    /// Called by the fan-out: frames `start..start + frames.len()` of the stream this slot reads.
    pub(crate) fn offer(&mut self, slot: u32, start: u64, frames: &[Frame], shard: &Shard<S, E>) {
        let busy = self.partial.is_some()
            || !self.replies.is_empty()
            || !self.waiting.is_empty()
            || self.closing.is_some();
        let Some(Some(Work::Stream(reading))) = self.work.get_mut(slot as usize) else {
            return;
        };
        if reading.waits {
            return;
        }
        debug_assert!(reading.next >= start, "a reader behind the shard must be waiting");
        let skip = usize::try_from(reading.next - start).unwrap_or(usize::MAX);
        let Some(fresh) = frames.get(skip..).filter(|fresh| !fresh.is_empty()) else {
            return;
        };
        let Some(waker) = (if busy { None } else { self.waker.take() }) else {
            return self.wait(slot);
        };
        let mut cx = Context::from_waker(&waker);
        let written = self.write_frames(&mut cx, slot, fresh, shard);
        let blocked = match written {
            Ok(Written::Frames(count)) => {
                self.advance(slot, &fresh[..count]);
                count < fresh.len() || self.partial.is_some()
            }
            Ok(Written::Blocked) => true,
            Err(_) => {
                self.dead = true;
                waker.wake_by_ref();
                false
            }
        };
        self.waker = Some(waker);
        if blocked {
            self.wait(slot);
            // Not only a partial write: the task must ask for the socket's readiness.
            self.wake();
        }
    }

    /// The stream has news that the shard could not hand over: read the ring when there is room.
    pub(crate) fn lag(&mut self, slot: u32) {
        if let Some(Some(Work::Stream(reading))) = self.work.get(slot as usize)
            && !reading.waits
        {
            self.wait(slot);
            self.wake();
        }
    }

    fn wait(&mut self, slot: u32) {
        if let Some(Some(Work::Stream(reading))) = self.work.get_mut(slot as usize)
            && !reading.waits
        {
            reading.waits = true;
            self.waiting.push_back(slot);
        }
    }

    /// After `sent` frames of the ring left.
    fn advance(&mut self, slot: u32, sent: &[Frame]) {
        if let (Some(Some(Work::Stream(reading))), Some(last)) =
            (self.work.get_mut(slot as usize), sent.last())
        {
            reading.next += sent.len() as u64;
            reading.seen = last.sequence;
        }
    }

    /// Writes as much as the socket takes: the rest of a frame, then replies, then each waiting
    /// operation in turn.
    fn flush(&mut self, cx: &mut Context<'_>, shard: &Shard<S, E>) -> io::Result<()> {
        let mut turns = 0;
        loop {
            if self.partial.is_some() {
                if self.flush_partial(cx, shard)?.is_pending() {
                    return Ok(());
                }
            } else if !self.replies.is_empty() {
                if self.flush_replies(cx, shard)?.is_pending() {
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
                if turns == READS_PER_TURN {
                    self.waiting.push_front(slot);
                    cx.waker().wake_by_ref();
                    return Ok(());
                }
                turns += 1;
                if self.turn(cx, slot, shard)?.is_pending() {
                    return Ok(());
                }
            } else {
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

    fn flush_replies(&mut self, cx: &mut Context<'_>, shard: &Shard<S, E>) -> Polled {
        while self.replies_sent < self.replies.len() {
            let rest = &self.replies[self.replies_sent..];
            let polled = Pin::new(&mut self.socket).poll_write(cx, rest);
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
            cx.waker().wake_by_ref();
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
            if let Joining::Asked(after) = &reading.state {
                let start = reading.stream.source().join(&reading.stream, after.as_deref());
                if !self.start(slot, start, shard) {
                    return Ok(Poll::Ready(()));
                }
                continue;
            }
            let mut frames = shard.frames.take();
            frames.clear();
            let owed = !reading.owed.is_empty();
            let held = owed || reading.stream.read(reading.next, FRAMES_PER_WRITE, &mut frames);
            frames.extend(reading.owed.iter().take(FRAMES_PER_WRITE).cloned());
            if !held {
                let start = reading.stream.source().catch_up(&reading.stream, reading.seen);
                shard.meters.catch_ups.add(1);
                shard.frames.replace(frames);
                if !self.start(slot, start, shard) {
                    return Ok(Poll::Ready(()));
                }
                continue;
            }
            if frames.is_empty() {
                reading.waits = false;
                shard.frames.replace(frames);
                return Ok(Poll::Ready(()));
            }
            let written = self.write_frames(cx, slot, &frames, shard);
            let outcome = match written {
                Ok(Written::Frames(count)) => {
                    written_bytes +=
                        frames[..count].iter().map(|one| one.tail.len()).sum::<usize>();
                    if owed {
                        self.pay(slot, count, frames[count - 1].sequence);
                    } else {
                        self.advance(slot, &frames[..count]);
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
        reading.state = Joining::Joined;
        match start {
            Start::Ring { seen, next } => {
                reading.seen = seen;
                reading.next = next;
                true
            }
            Start::Frames { frames, next } => {
                reading.owed = frames.into();
                reading.next = next;
                true
            }
            Start::Refused(errors) => {
                reading.waits = false;
                let operation = self.session.reference(slot);
                self.stop(slot, shard);
                self.refuse(operation, &errors);
                false
            }
            Start::TooSlow => {
                let reason = "Too slow: what was missed can't be told any more, resume or restart";
                reading.waits = false;
                self.close(CloseCode::TryAgainLater, reason, shard);
                false
            }
        }
    }

    /// After `count` owed frames left.
    fn pay(&mut self, slot: u32, count: usize, seen: u64) {
        if let Some(Some(Work::Stream(reading))) = self.work.get_mut(slot as usize) {
            reading.owed.drain(..count);
            if reading.owed.is_empty() {
                // Its buffer is given back: most readers never owe again.
                reading.owed = VecDeque::new();
            }
            reading.seen = seen;
        }
    }

    /// One write of at most `FRAMES_PER_WRITE` frames, each with this client's prefix: a vectored
    /// one, or for a single small frame a plain one, which costs the kernel less.
    fn write_frames(
        &mut self,
        cx: &mut Context<'_>,
        slot: u32,
        frames: &[Frame],
        shard: &Shard<S, E>,
    ) -> io::Result<Written> {
        let frames = &frames[..frames.len().min(FRAMES_PER_WRITE)];
        let Some(Some(Work::Stream(Reading { id, .. }))) = self.work.get(slot as usize) else {
            return Ok(Written::Frames(frames.len()));
        };
        if let [frame] = frames
            && frame.tail.len() <= CONTIGUOUS_BYTES
        {
            let mut contiguous = shard.contiguous.borrow_mut();
            let (message, prefix) = contiguous.message(id, &frame.tail);
            let polled = Pin::new(&mut self.socket).poll_write(cx, message);
            let written = match self.progress(polled, shard) {
                Poll::Pending => return Ok(Written::Blocked),
                Poll::Ready(result) => result?,
            };
            if written < message.len() {
                let prefix = message[..prefix].into();
                let tail = frame.tail.clone();
                self.partial = Some(Box::new(Partial { prefix, tail, sent: written }));
            }
            shard.count_writes();
            shard.count_delivered(1);
            return Ok(Written::Frames(1));
        }
        let mut prefixes = shard.prefixes.borrow_mut();
        prefixes.clear();
        let mut ends = [0; FRAMES_PER_WRITE];
        for (frame, end) in frames.iter().zip(&mut ends) {
            protocol::next_prefix(id, frame.tail.len(), &mut prefixes);
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
                    let prefix = prefixes[begin..end].into();
                    let tail = frame.tail.clone();
                    self.partial = Some(Box::new(Partial { prefix, tail, sent: written }));
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
        self.stalled_since = None;
        let written = ready!(Poll::Ready(result))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        shard.count_bytes(written);
        Poll::Ready(Ok(written))
    }
}

type Polled = io::Result<Poll<()>>;
