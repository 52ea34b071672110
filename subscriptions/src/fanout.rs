//! The fan-out of one shard: new frames of its streams are read once and written to each subscriber
//! inline. No task is woken, nothing is queued and nothing is allocated for a subscriber that keeps
//! up.

use std::cell::{Cell, RefCell};

use bytes::Bytes;

use crate::batch::Rank;
use crate::connection::Connection;
use crate::context::ShardContext;
use crate::executor::Executor;
use crate::framing::{ContiguousMessage, PREFIX_BYTES};
use crate::limits::{
    CONTIGUOUS_BYTES, FRAMES_PER_WRITE, LAST_SLICE, WRITES_PER_LOOK, WRITES_PER_YIELD,
};
use crate::socket::Socket;
use crate::subscribers::{LocalStream, SubscriberHandle, Subscribers};

/// See the module's text.
#[derive(Default)]
pub(crate) struct FanOut {
    last: RefCell<LastRound>,
    /// Readers that are no WebSockets were notified since this was last taken.
    notified_readers: Cell<bool>,
    // Buffers, kept so that the hot path allocates nothing.
    contiguous: RefCell<ContiguousMessage>,
    gathered: RefCell<Vec<u8>>,
    /// Of each operation in a write: its slot, its handle and its number of frames.
    counted: RefCell<Vec<(u32, SubscriberHandle, usize)>>,
}

/// How far the fan-out to the sockets of the last rank is. It works in time slices.
#[derive(Default)]
struct LastRound {
    /// Indices of streams that have batches for these sockets.
    streams: Vec<usize>,
    /// The position in `streams`, and the subscriber there, that come next.
    at: (usize, usize),
    /// Indices of streams that have new frames for the next round.
    next: Vec<usize>,
}

impl FanOut {
    /// Whether readers that are no WebSockets were notified since the last call.
    pub(crate) fn take_notified_readers(&self) -> bool {
        self.notified_readers.take()
    }

    /// Hands the new frames of some streams to their subscribers of the first rank. Then hands
    /// earlier ones to subscribers of the last rank, for one time slice. The frames for one socket
    /// leave in one write. True if subscribers of the last rank still wait.
    pub(crate) async fn deliver<S: Socket, E: Executor>(
        &self,
        context: &ShardContext<Connection<S, E>, E>,
        rung: &mut Vec<usize>,
    ) -> bool {
        let mut writes = 0;
        while !rung.is_empty() {
            context.set_now();
            rung.retain(|index| self.read_batch(context, *index));
            self.serve_first(context, rung, &mut writes).await;
            // Streams whose batch was full may have more.
            rung.retain(|index| end_batch(context, *index, Rank::First) == FRAMES_PER_WRITE);
            if !rung.is_empty() {
                tokio::task::yield_now().await;
            }
        }
        if self.begin_last_round(context) && writes > 0 {
            // The clients that were just written to may wait for this processor.
            std::thread::yield_now();
        }
        self.serve_last(context)
    }

    /// Hands the batches of some streams to their subscribers of the first rank.
    async fn serve_first<S: Socket, E: Executor>(
        &self,
        context: &ShardContext<Connection<S, E>, E>,
        streams: &[usize],
        writes: &mut usize,
    ) {
        let several = streams.len() > 1;
        for index in streams {
            let slots = context.subscribers.borrow().slots(*index);
            for subscriber in 0..slots {
                if !self.serve(context, *index, subscriber, Rank::First, several) {
                    continue;
                }
                *writes += 1;
                if writes.is_multiple_of(WRITES_PER_YIELD) {
                    tokio::task::yield_now().await;
                    context.set_now();
                }
            }
        }
    }

    /// Reads the batches of the next round, if none is under way. True if one is under way now.
    fn begin_last_round<C, E>(&self, context: &ShardContext<C, E>) -> bool {
        let LastRound { streams, at, next } = &mut *self.last.borrow_mut();
        if streams.is_empty() {
            std::mem::swap(streams, next);
            let mut subscribers = context.subscribers.borrow_mut();
            streams.retain(|index| {
                let Some(local) = subscribers.stream_mut(*index) else { return false };
                // Another stream may have got the index of one that was removed.
                std::mem::take(&mut local.is_queued)
                    && local.batches[Rank::Last as usize].read(&local.stream)
            });
            *at = (0, 0);
        }
        !streams.is_empty()
    }

    /// Continues the round of the last rank for one time slice. True if anything is left.
    fn serve_last<S: Socket, E: Executor>(
        &self,
        context: &ShardContext<Connection<S, E>, E>,
    ) -> bool {
        let LastRound { streams, at, next } = &mut *self.last.borrow_mut();
        let several = streams.len() > 1;
        let (begin, mut writes) = (std::time::Instant::now(), 0);
        while let Some(index) = streams.get(at.0).copied() {
            let slots = context.subscribers.borrow().slots(index);
            for subscriber in at.1..slots {
                if self.serve(context, index, subscriber, Rank::Last, several) {
                    writes += 1;
                    if writes % WRITES_PER_LOOK == 0 && begin.elapsed() >= LAST_SLICE {
                        at.1 = subscriber + 1;
                        return true;
                    }
                }
            }
            *at = (at.0 + 1, 0);
        }
        for index in streams.drain(..) {
            let mut subscribers = context.subscribers.borrow_mut();
            let Some(local) = subscribers.stream_mut(index) else { continue };
            if local.batches[Rank::Last as usize].end() == FRAMES_PER_WRITE {
                local.queue(index, next);
            }
        }
        !next.is_empty()
    }

    /// Takes new frames of a stream for the subscribers of the first rank; false if there are none.
    /// Those of the last rank get theirs in the next round.
    fn read_batch<C, E>(&self, context: &ShardContext<C, E>, index: usize) -> bool {
        let mut subscribers = context.subscribers.borrow_mut();
        let Some(local) = subscribers.stream_mut(index) else { return false };
        if local.batches[Rank::First as usize].is_under_way() {
            // It is listed twice: a push may ring between two rounds, and a stream that is gone may
            // have rung under the same index.
            return false;
        }
        local.reset_listener();
        for (_, signal) in &local.readers {
            signal.notify();
            self.notified_readers.set(true);
        }
        let [first, last] = &mut local.batches;
        let has_new = first.read(&local.stream);
        if local.last_rank == 0 {
            // A subscriber that joins that rank begins at the end of the ring.
            last.next = first.next;
        } else if has_new {
            local.queue(index, &mut self.last.borrow_mut().next);
        }
        has_new
    }

    /// Hands a stream's batch to one subscriber of this rank, unless it waits. If it has several
    /// frames or `several` streams have a batch, then together with the batches of the other
    /// operations on its socket. True if there was something to hand out.
    fn serve<S: Socket, E: Executor>(
        &self,
        context: &ShardContext<Connection<S, E>, E>,
        index: usize,
        subscriber: usize,
        rank: Rank,
        several: bool,
    ) -> bool {
        let mut subscribers = context.subscribers.borrow_mut();
        let Some(local) = subscribers.stream_mut(index) else { return false };
        let LocalStream { batches, subscribers: all, .. } = local;
        let Some(subscriber) = all.get_mut(subscriber).filter(|one| !one.waits && one.rank == rank)
        else {
            return false;
        };
        let batch = &batches[rank as usize];
        debug_assert!(
            batch.overrun || subscriber.progress.next >= batch.start,
            "a subscriber that lags more than the shard waits"
        );
        let unsent = batch.unsent(subscriber.progress.next);
        if unsent.is_empty() && !batch.overrun {
            return false;
        }
        let Some(connection) = subscriber.connection.upgrade() else { return false };
        let mut connection = connection.borrow_mut();
        if unsent.len() > 1 || (several && connection.streams() > 1) {
            self.serve_all(context, &mut subscribers, &mut connection);
            return true;
        }
        if let [frame] = unsent
            && frame.tail.len() <= CONTIGUOUS_BYTES
        {
            let mut contiguous = self.contiguous.borrow_mut();
            let (dialect, id) = (subscriber.dialect, subscriber.id.as_bytes());
            let message = contiguous.message(dialect, id, &frame.tail);
            if connection.offer(message, &frame.tail, context).is_ok() {
                subscriber.progress.next += 1;
                subscriber.progress.seen = frame.sequence;
                context.count_delivered(1);
                context.count_write();
                return true;
            }
        }
        // A large frame, or no room: in the connection's own turn, for which it may have to queue.
        subscriber.waits = true;
        connection.wait(subscriber.slot);
        true
    }

    /// Writes the batches of all operations of a connection in one piece. What does not fit waits
    /// for the connection's own turns.
    fn serve_all<S: Socket, E: Executor>(
        &self,
        context: &ShardContext<Connection<S, E>, E>,
        subscribers: &mut Subscribers<Connection<S, E>>,
        connection: &mut Connection<S, E>,
    ) {
        let mut message = self.gathered.borrow_mut();
        message.clear();
        let mut counted = self.counted.borrow_mut();
        counted.clear();
        let mut frames = 0;
        for (slot, handle) in connection.subscribers() {
            let (subscriber, batches) = subscribers.with_batches(handle);
            let batch = &batches[subscriber.rank as usize];
            let unsent = batch.unsent(subscriber.progress.next);
            if subscriber.waits || (unsent.is_empty() && !batch.overrun) {
                continue;
            }
            let prefix_bytes = subscriber.id.as_bytes().len() + PREFIX_BYTES;
            let bytes: usize = unsent.iter().map(|frame| prefix_bytes + frame.tail.len()).sum();
            let fits = message.len() + bytes <= CONTIGUOUS_BYTES
                && frames + unsent.len() <= FRAMES_PER_WRITE;
            counted.push((slot, handle, if fits && !batch.overrun { unsent.len() } else { 0 }));
            if fits && !batch.overrun {
                frames += unsent.len();
                for frame in unsent {
                    subscriber.prefix(frame.tail.len(), &mut message);
                    message.extend_from_slice(&frame.tail);
                }
            }
        }
        let sent = frames > 0 && connection.offer(&message, &Bytes::new(), context).is_ok();
        if sent {
            context.count_delivered(frames);
            context.count_write();
        }
        for (slot, handle, count) in counted.drain(..) {
            let (subscriber, batches) = subscribers.with_batches(handle);
            let batch = &batches[subscriber.rank as usize];
            if sent && let Some(last) = batch.unsent(subscriber.progress.next)[..count].last() {
                subscriber.progress.seen = last.sequence;
                subscriber.progress.next += count as u64;
            } else {
                subscriber.waits = true;
                connection.wait(slot);
            }
        }
    }
}

/// Drops the batch of this rank, and returns how many frames it had.
fn end_batch<C, E>(context: &ShardContext<C, E>, index: usize, rank: Rank) -> usize {
    let mut subscribers = context.subscribers.borrow_mut();
    subscribers.stream_mut(index).map_or(0, |local| local.batches[rank as usize].end())
}
