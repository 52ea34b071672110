//! The streams that one shard has readers of, and these readers. Generic in the connection `C`,
//! which it only points to.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use slab::Slab;

use crate::batch::{Batch, Rank};
use crate::dialect::Dialect;
use crate::framing::next_prefix;
use crate::signal::{Doorbell, Listener, ReaderSignal};
use crate::stream::ResponseStream;
use crate::stream_cursor::Progress;

/// See the module's text.
pub(crate) struct Subscribers<C> {
    streams: Slab<LocalStream<C>>,
    by_id: HashMap<u64, usize>,
    /// Readers that are no WebSockets.
    readers: usize,
}

/// A stream and its readers on this shard.
pub(crate) struct LocalStream<C> {
    pub(crate) stream: Arc<ResponseStream>,
    listener: Arc<Listener>,
    /// What is handed to the subscribers of either rank, by [`Rank`].
    pub(crate) batches: [Batch; 2],
    /// A slab, so that a subscriber that leaves moves no other while these are being served.
    pub(crate) subscribers: Slab<Subscriber<C>>,
    /// How many of these are served last.
    pub(crate) last_rank: usize,
    /// It is queued for the next round of the last rank.
    pub(crate) is_queued: bool,
    /// Readers that are no WebSockets: they are notified, and read by themselves.
    pub(crate) readers: Slab<Rc<ReaderSignal>>,
}

/// A WebSocket's operation that reads a stream: all that a reader which keeps up costs. Kept here
/// rather than with its connection, contiguous in memory, as a fan-out runs over thousands.
pub(crate) struct Subscriber<C> {
    pub(crate) connection: Weak<RefCell<C>>,
    pub(crate) progress: Progress,
    /// The operation's slot in its connection.
    pub(crate) slot: u32,
    /// It reads the ring itself, in its connection's turns, until it is up to date.
    pub(crate) waits: bool,
    pub(crate) rank: Rank,
    pub(crate) dialect: Dialect,
    pub(crate) id: InlineId,
}

/// Identifies a reader in [`Subscribers`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct SubscriberHandle {
    stream: u32,
    subscriber: u32,
}

/// An operation's id as JSON, stored in place if it is short, as nearly all are (a UUID has 38
/// bytes).
pub(crate) enum InlineId {
    Short { length: u8, bytes: [u8; INLINE_ID_BYTES] },
    Long(Rc<str>),
}

const INLINE_ID_BYTES: usize = 46;

impl InlineId {
    pub(crate) fn new(id: &Rc<str>) -> Self {
        let mut bytes = [0; INLINE_ID_BYTES];
        match bytes.get_mut(..id.len()) {
            Some(own) => {
                own.copy_from_slice(id.as_bytes());
                Self::Short { length: id.len() as u8, bytes }
            }
            None => Self::Long(id.clone()),
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => &bytes[..usize::from(*length)],
            Self::Long(id) => id.as_bytes(),
        }
    }
}

impl<C> Subscriber<C> {
    /// Appends what precedes a payload of this length for this subscriber.
    pub(crate) fn prefix(&self, tail_bytes: usize, into: &mut Vec<u8>) {
        next_prefix(self.dialect, self.id.as_bytes(), tail_bytes, into);
    }
}

impl<C> LocalStream<C> {
    /// From now on a push rings again. Must come before the ring is read.
    pub(crate) fn reset_listener(&self) {
        self.listener.reset();
    }

    /// Adds its index to the streams of the next round of the last rank, once.
    pub(crate) fn queue(&mut self, index: usize, next: &mut Vec<usize>) {
        if !std::mem::replace(&mut self.is_queued, true) {
            next.push(index);
        }
    }
}

impl<C> Default for Subscribers<C> {
    fn default() -> Self {
        Self { streams: Slab::new(), by_id: HashMap::new(), readers: 0 }
    }
}

impl<C> Subscribers<C> {
    pub(crate) fn stream_mut(&mut self, index: usize) -> Option<&mut LocalStream<C>> {
        self.streams.get_mut(index)
    }

    /// Upper bound of the indices of a stream's subscribers.
    pub(crate) fn slots(&self, index: usize) -> usize {
        self.streams.get(index).map_or(0, |local| local.subscribers.capacity())
    }

    /// A subscriber with the batches of its stream.
    pub(crate) fn with_batches(
        &mut self,
        handle: SubscriberHandle,
    ) -> (&mut Subscriber<C>, &[Batch; 2]) {
        let LocalStream { batches, subscribers, .. } = &mut self.streams[handle.stream as usize];
        (&mut subscribers[handle.subscriber as usize], batches)
    }

    pub(crate) fn get_mut(&mut self, handle: SubscriberHandle) -> &mut Subscriber<C> {
        &mut self.streams[handle.stream as usize].subscribers[handle.subscriber as usize]
    }

    pub(crate) fn add(
        &mut self,
        stream: &Arc<ResponseStream>,
        doorbell: &Arc<Doorbell>,
        subscriber: Subscriber<C>,
    ) -> SubscriberHandle {
        let index = self.index_of(stream, doorbell);
        let local = &mut self.streams[index];
        local.last_rank += usize::from(subscriber.rank == Rank::Last);
        let subscriber = local.subscribers.insert(subscriber);
        SubscriberHandle { stream: index as u32, subscriber: subscriber as u32 }
    }

    pub(crate) fn remove(&mut self, handle: SubscriberHandle) {
        let local = &mut self.streams[handle.stream as usize];
        let removed = local.subscribers.remove(handle.subscriber as usize);
        local.last_rank -= usize::from(removed.rank == Rank::Last);
        self.release(handle.stream as usize);
    }

    /// Adds a reader that is no WebSocket.
    pub(crate) fn add_reader(
        &mut self,
        stream: &Arc<ResponseStream>,
        doorbell: &Arc<Doorbell>,
        signal: Rc<ReaderSignal>,
    ) -> SubscriberHandle {
        self.readers += 1;
        let index = self.index_of(stream, doorbell);
        let reader = self.streams[index].readers.insert(signal);
        SubscriberHandle { stream: index as u32, subscriber: reader as u32 }
    }

    pub(crate) fn remove_reader(&mut self, handle: SubscriberHandle) {
        self.readers -= 1;
        self.streams[handle.stream as usize].readers.remove(handle.subscriber as usize);
        self.release(handle.stream as usize);
    }

    /// Readers that are no WebSockets.
    pub(crate) fn readers(&self) -> usize {
        self.readers
    }

    pub(crate) fn reader_signals(&self) -> impl Iterator<Item = &ReaderSignal> {
        let readers = self.streams.iter().flat_map(|(_, local)| local.readers.iter());
        readers.map(|(_, signal)| &**signal)
    }

    /// The index of a stream, which is added if it has no reader here yet.
    fn index_of(&mut self, stream: &Arc<ResponseStream>, doorbell: &Arc<Doorbell>) -> usize {
        let Self { streams, by_id, .. } = self;
        *by_id.entry(stream.id()).or_insert_with(|| {
            let entry = streams.vacant_entry();
            let index = entry.key();
            let listener = Arc::new(Listener::new(doorbell.clone(), index));
            // Before `next` is read: a push after this rings, one before it is below `next`.
            stream.add_listener(listener.clone());
            let next = stream.next_index();
            entry.insert(LocalStream {
                batches: [Batch::starting_at(next), Batch::starting_at(next)],
                stream: stream.clone(),
                listener,
                subscribers: Slab::new(),
                last_rank: 0,
                is_queued: false,
                readers: Slab::new(),
            });
            index
        })
    }

    /// A reader of a stream left: without further ones here, the stream is removed.
    fn release(&mut self, index: usize) {
        let local = &self.streams[index];
        local.stream.release();
        if local.subscribers.is_empty() && local.readers.is_empty() {
            let local = self.streams.remove(index);
            local.stream.remove_listener(&local.listener);
            self.by_id.remove(&local.stream.id());
        }
    }
}
