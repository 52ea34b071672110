//! The way out: the rest of a frame that left in part, then replies, then the frames of streams,
//! from the fan-out inline or in the connection's own turns.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::Connection;
use super::partial::Partial;
use crate::context::ShardContext;
use crate::executor::Executor;
use crate::limits::{BYTES_PER_TURN, FRAMES_PER_WRITE, REPLY_BACKLOG_BYTES, STEPS_PER_TURN};
use crate::ring::Frame;
use crate::rounds::TurnTimer;
use crate::socket::{Socket, try_write};
use crate::stream_cursor::Step;
use crate::subscribers::SubscriberHandle;

/// The socket is full, or something that was queued earlier comes first.
pub(crate) struct Blocked;

/// The result of a write.
enum Written {
    /// So many frames are done; of the last, the rest may be in `partial`.
    Frames(usize),
    Blocked,
}

type Polled = io::Result<Poll<()>>;

impl<S: Socket, E: Executor> Connection<S, E> {
    /// Called by the fan-out with one whole message; its payload `tail` is shared. If the socket
    /// takes only a part, the rest is kept.
    pub(crate) fn offer(
        &mut self,
        message: &[u8],
        tail: &Bytes,
        context: &ShardContext<Self, E>,
    ) -> Result<(), Blocked> {
        if !self.can_write_inline && !self.send_replies(context) {
            return Err(Blocked);
        }
        // If the socket is full, the connection's own task waits for it.
        let polled = try_write(&mut self.socket, message);
        match self.note_write(polled, context) {
            Poll::Ready(Ok(written)) if written == message.len() => Ok(()),
            Poll::Ready(Ok(written)) => {
                self.keep_rest(&message[..message.len() - tail.len()], tail, written);
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

    /// Sends the replies if nothing else comes before a frame. So a ping of ours or a result does
    /// not hold back frames until the connection has its turn, which may be much later. True if
    /// the fan-out may write now.
    fn send_replies(&mut self, context: &ShardContext<Self, E>) -> bool {
        if self.partial.is_some() || !self.waiting.is_empty() || self.closing.is_some() || self.dead
        {
            return false;
        }
        self.can_write_inline =
            matches!(self.flush_replies(context, try_write), Ok(Poll::Ready(())));
        self.can_write_inline
    }

    /// An operation has something to send that could not be sent at once: it gets a turn when there
    /// is room.
    pub(crate) fn wait(&mut self, slot: u32) {
        self.can_write_inline = false;
        self.waiting.push_back(slot);
        self.wake();
    }

    /// Keeps the rest of a message of which `sent` bytes were written.
    fn keep_rest(&mut self, prefix: &[u8], tail: &Bytes, sent: usize) {
        self.can_write_inline = false;
        self.partial = Some(Box::new(Partial { prefix: prefix.into(), tail: tail.clone(), sent }));
    }

    /// Writes as much as the socket takes: the rest of a frame, then replies, then each waiting
    /// operation in turn.
    pub(super) fn flush(
        &mut self,
        cx: &mut Context<'_>,
        context: &ShardContext<Self, E>,
    ) -> io::Result<()> {
        let mut turns = 0;
        let timer = TurnTimer::start();
        loop {
            if self.partial.is_some() {
                if self.flush_partial(cx, context)?.is_pending() {
                    return Ok(());
                }
            } else if !self.replies.is_empty() {
                let write = |socket: &mut S, bytes: &[u8]| Pin::new(socket).poll_write(cx, bytes);
                if self.flush_replies(context, write)?.is_pending() {
                    return Ok(());
                }
            } else if let Some(deadline) = self.closing {
                // All has left. If the peer closed first, the socket is dropped now. If we closed,
                // the peer answers; one whose input we ignore sees the end of our side instead.
                // Until then we go on reading: to drop a socket with unread bytes would destroy
                // the close frame on its way.
                self.dead |= deadline <= context.now();
                if self.ignore_input && !self.dead {
                    let _shut = Pin::new(&mut self.socket).poll_shutdown(cx)?;
                }
                return Ok(());
            } else if self.waiting.is_empty() && self.stalled_streams == 0 {
                self.can_write_inline = true;
                return Ok(());
            } else if turns == STEPS_PER_TURN || (turns > 0 && timer.is_over()) {
                cx.waker().wake_by_ref();
                return Ok(());
            } else {
                turns += 1;
                // Stalled ones first: a slow client may never have all that waits. Also if none
                // waits any more: then no write would ever show that the socket has room.
                let unstalls = self.stalled_streams > 0 && self.stalled_since.is_none();
                let slot = if unstalls { None } else { self.waiting.pop_front() };
                match slot {
                    None => self.unstall_stream(),
                    Some(slot) if self.turn(cx, slot, context)?.is_pending() => return Ok(()),
                    Some(_) => {}
                }
            }
        }
    }

    fn flush_partial(&mut self, cx: &mut Context<'_>, context: &ShardContext<Self, E>) -> Polled {
        let Some(mut partial) = self.partial.take() else {
            return Ok(Poll::Ready(()));
        };
        while let Some((head, tail)) = partial.unsent() {
            let slices = [IoSlice::new(head), IoSlice::new(tail)];
            let slices = if head.is_empty() { &slices[1..] } else { &slices[..] };
            let polled = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
            match self.note_write(polled, context) {
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
        context: &ShardContext<Self, E>,
        mut write: impl FnMut(&mut S, &[u8]) -> Poll<io::Result<usize>>,
    ) -> Polled {
        while self.replies_sent < self.replies.len() {
            let polled = write(&mut self.socket, &self.replies[self.replies_sent..]);
            match self.note_write(polled, context) {
                Poll::Ready(result) => self.replies_sent += result?,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        let paused = self.replies.len() > REPLY_BACKLOG_BYTES;
        // The memory is freed: an idle connection keeps no buffer.
        self.replies = Vec::new();
        self.replies_sent = 0;
        if paused {
            // Reading had stopped.
            self.wake();
        }
        Ok(Poll::Ready(()))
    }

    /// One operation's turn: its backlog, then the ring, until it is up to date, has used its share
    /// of the turn, or the socket is full. Ready if another operation may go on.
    fn turn(&mut self, cx: &mut Context<'_>, slot: u32, context: &ShardContext<Self, E>) -> Polled {
        let mut written_bytes = 0;
        loop {
            let Some(operation) = self.stream_mut(slot) else {
                return Ok(Poll::Ready(()));
            };
            let handle = operation.handle;
            if written_bytes >= BYTES_PER_TURN {
                self.waiting.push_back(slot);
                return Ok(Poll::Ready(()));
            }
            let mut frames = context.frames.take();
            frames.clear();
            let mut progress = context.progress(handle);
            let (stream, meters) = (&operation.stream, &context.meters);
            let (cursor, permit) = (&mut operation.cursor, operation.permit.as_deref());
            let most = FRAMES_PER_WRITE;
            let step = cursor.next(stream, &mut progress, most, &mut frames, meters, permit);
            if !matches!(step, Step::Send) {
                context.frames.replace(frames);
                context.set_progress(handle, progress);
                self.take_step(slot, step, context);
                return Ok(Poll::Ready(()));
            }
            let written = self.write_frames(cx, handle, &frames, context);
            if let Ok(Written::Frames(count)) = written
                && let Some(operation) = self.stream_mut(slot)
            {
                let sent = &frames[..count];
                written_bytes += sent.iter().map(|one| one.tail.len()).sum::<usize>();
                operation.cursor.sent(&mut progress, sent);
            }
            context.set_progress(handle, progress);
            context.frames.replace(frames);
            if !matches!(written, Ok(Written::Frames(_))) {
                self.waiting.push_front(slot);
                return written.map(|_| Poll::Pending);
            }
            if self.partial.is_some() {
                // Others may have waited longer: first the rest, then they.
                self.waiting.push_back(slot);
                return Ok(Poll::Ready(()));
            }
        }
    }

    /// One vectored write of at most `FRAMES_PER_WRITE` frames, each with this client's prefix.
    fn write_frames(
        &mut self,
        cx: &mut Context<'_>,
        handle: SubscriberHandle,
        frames: &[Frame],
        context: &ShardContext<Self, E>,
    ) -> io::Result<Written> {
        let frames = &frames[..frames.len().min(FRAMES_PER_WRITE)];
        let mut prefixes = context.prefixes.borrow_mut();
        prefixes.clear();
        let mut ends = [0; FRAMES_PER_WRITE];
        for (frame, end) in frames.iter().zip(&mut ends) {
            context.prefix(handle, frame.tail.len(), &mut prefixes);
            *end = prefixes.len();
        }
        let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE * 2];
        let mut begin = 0;
        for (index, (frame, end)) in frames.iter().zip(ends).enumerate() {
            slices[index * 2] = IoSlice::new(&prefixes[begin..end]);
            slices[index * 2 + 1] = IoSlice::new(&frame.tail);
            begin = end;
        }
        let polled =
            Pin::new(&mut self.socket).poll_write_vectored(cx, &slices[..frames.len() * 2]);
        let mut written = match self.note_write(polled, context) {
            Poll::Pending => return Ok(Written::Blocked),
            Poll::Ready(result) => result?,
        };
        context.count_write();
        let mut begin = 0;
        for (index, (frame, end)) in frames.iter().zip(ends).enumerate() {
            let whole = end - begin + frame.tail.len();
            if written < whole {
                if written > 0 {
                    self.keep_rest(&prefixes[begin..end], &frame.tail, written);
                }
                let count = index + usize::from(written > 0);
                context.count_delivered(count);
                return Ok(Written::Frames(count));
            }
            written -= whole;
            begin = end;
        }
        context.count_delivered(frames.len());
        Ok(Written::Frames(frames.len()))
    }

    /// Notes whether the socket takes bytes. A write of no bytes is an error.
    fn note_write(
        &mut self,
        polled: Poll<io::Result<usize>>,
        context: &ShardContext<Self, E>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(result) = polled else {
            self.stalled_since.get_or_insert(context.now());
            return Poll::Pending;
        };
        if self.stalled_since.take().is_some() {
            self.unblocked = context.now();
        }
        let written = ready!(Poll::Ready(result))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unheard_bytes = self.unheard_bytes.saturating_add(written);
        context.count_bytes(written);
        Poll::Ready(Ok(written))
    }
}
