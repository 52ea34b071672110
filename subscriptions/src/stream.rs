//! A response stream: the results of one operation key, resolved once and encoded once for all
//! operations with that key. And its [`Source`], which makes the results.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::idle_streams::IdleStreams;
use crate::key::OperationKey;
use crate::memory::{Memory, STREAM_BYTES};
use crate::meters::Meters;
use crate::pace::Pace;
use crate::readership::Readership;
use crate::resume::Resume;
use crate::ring::{Frame, LEAST_RING_BYTES, Ring};
use crate::signal::Listener;

/// Where a response stream gets its frames: the hub's state of a topic. May lock its own state, and
/// must not wait for anything else: an answer that takes time is [`Resume::Throttled`] or
/// [`Resume::Pending`].
///
/// What makes joining free of gaps: the implementor pushes into a stream only while it holds the
/// lock under which `join` and `catch_up` read the state and [`ResponseStream::next_index`].
pub trait Source: Send + Sync {
    /// Called once, before the first reader joins: push all later events into this stream.
    fn attach(&self, stream: &Arc<ResponseStream>);

    /// Where a new operation starts; `after` is the cursor that its client sent.
    fn join(&self, stream: &ResponseStream, after: Option<&str>) -> Resume;

    /// Brings a reader up to date that has seen everything up to `seen`. It either needs frames
    /// that the ring no longer holds, or has been sent a whole page.
    fn catch_up(&self, stream: &ResponseStream, seen: u64) -> Resume;

    /// A reader that did not count in [`ResponseStream::readership`] counts again: push what was
    /// left out because nobody else counted.
    fn advance(&self, stream: &ResponseStream);

    /// The last operation ended and no other came: forget the stream.
    fn detach(&self, stream: &ResponseStream);
}

/// See the module's text. Always in an `Arc`: connections, the table and the source share it.
pub struct ResponseStream {
    id: u64,
    key: Arc<OperationKey>,
    source: Box<dyn Source>,
    ring: Mutex<Ring>,
    listeners: Mutex<Vec<Arc<Listener>>>,
    readers: Readers,
    /// Bytes that the source keeps for later readers.
    cached: AtomicUsize,
    /// The pace of the stream if it is slower than its clients asked for.
    slowed_to: AtomicU8,
    context: StreamContext,
}

/// What all streams of a table share.
#[derive(Clone)]
pub(crate) struct StreamContext {
    pub memory: Arc<Memory>,
    pub idle: Arc<IdleStreams>,
    pub meters: Arc<Meters>,
}

struct Readers {
    count: AtomicUsize,
    /// Of these, readers whose sockets are full for long.
    stalled: AtomicUsize,
    /// The owner of the operation that opened the stream.
    owner: u64,
    /// Operations of other owners have read it as well.
    shared: AtomicBool,
    /// When the last one left, or when the stream was opened.
    idle_since: Mutex<Instant>,
    /// It is in the list of idle streams. It may have readers again since.
    in_idle_list: AtomicBool,
}

impl ResponseStream {
    /// A stream with its first reader, an operation of `owner`.
    pub(crate) fn new(
        id: u64,
        key: Arc<OperationKey>,
        source: Box<dyn Source>,
        ring_bytes: usize,
        owner: u64,
        context: StreamContext,
    ) -> Self {
        context.memory.change(0, STREAM_BYTES);
        Self {
            id,
            key,
            source,
            ring: Mutex::new(Ring::new(ring_bytes)),
            listeners: Mutex::default(),
            readers: Readers {
                count: AtomicUsize::new(1),
                stalled: AtomicUsize::new(0),
                owner,
                shared: AtomicBool::new(false),
                idle_since: Mutex::new(Instant::now()),
                in_idle_list: AtomicBool::new(false),
            },
            cached: AtomicUsize::new(0),
            slowed_to: AtomicU8::new(0),
            context,
        }
    }

    /// Unique in this process: distinguishes a stream from an earlier one of the same key.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The key of the operations that read it.
    pub(crate) fn key(&self) -> &Arc<OperationKey> {
        &self.key
    }

    /// Appends a frame and wakes the shards. Never waits; costs the same for any number of readers.
    pub fn push(&self, frame: Frame) {
        {
            let mut ring = self.ring.lock();
            let before = ring.bytes();
            ring.push(frame);
            if self.context.memory.used() > self.context.memory.budget() && self.readers() < 2 {
                // Without waiting for the next `Streams::resize_rings`.
                let half = ring.bytes() / 2;
                ring.shrink(half.max(LEAST_RING_BYTES));
            }
            self.context.memory.change(before, ring.bytes());
        }
        self.context.meters.frames_published.add(1);
        for listener in self.listeners.lock().iter() {
            listener.ring();
        }
    }

    /// The pace of this stream while it can't keep the one that its clients asked for.
    pub fn slowed_to(&self) -> Option<Pace> {
        let index = usize::from(self.slowed_to.load(Ordering::Relaxed));
        Pace::MERGING.get(index.checked_sub(1)?).copied()
    }

    /// Sets a pace that is slower than its clients asked for; `None` for the one they asked for.
    pub fn set_slowed_to(&self, pace: Option<Pace>) {
        let index = pace.and_then(Pace::merging_index);
        self.slowed_to.store(index.map_or(0, |index| index as u8 + 1), Ordering::Relaxed);
    }

    /// Counts what the source keeps for later readers, in bytes.
    pub fn set_cached(&self, bytes: usize) {
        self.context.memory.change(self.cached.swap(bytes, Ordering::Relaxed), bytes);
    }

    /// Whether there is memory for a frame that later readers may want.
    pub fn may_cache(&self) -> bool {
        self.context.memory.excess() == 0
    }

    /// Drops what was pushed, as it is no longer valid: every reader asks [`Source::catch_up`]
    /// where it goes on.
    pub fn invalidate(&self) {
        {
            let mut ring = self.ring.lock();
            let before = ring.bytes();
            ring.invalidate();
            self.context.memory.change(before, ring.bytes());
        }
        for listener in self.listeners.lock().iter() {
            listener.ring();
        }
    }

    /// Index in the ring that the next pushed frame will get.
    pub fn next_index(&self) -> u64 {
        self.ring.lock().next()
    }

    /// Where in the ring a reader goes on that has seen everything up to `sequence`.
    pub fn index_after(&self, sequence: u64) -> Option<u64> {
        self.ring.lock().index_after(sequence)
    }

    /// Bytes of the frames from `index` on; `None` if the ring no longer holds all of them.
    pub fn backlog_bytes(&self, index: u64) -> Option<usize> {
        self.ring.lock().bytes_from(index)
    }

    /// Appends at most `most` frames from `index` on; false if some were already dropped.
    pub fn read(&self, index: u64, most: usize, into: &mut Vec<Frame>) -> bool {
        match self.ring.lock().from(index, most) {
            Some(frames) => {
                into.extend(frames.cloned());
                true
            }
            None => false,
        }
    }

    /// What makes the frames of this stream.
    pub fn source(&self) -> &dyn Source {
        &*self.source
    }

    pub(crate) fn add_listener(&self, listener: Arc<Listener>) {
        self.listeners.lock().push(listener);
    }

    pub(crate) fn remove_listener(&self, listener: &Arc<Listener>) {
        self.listeners.lock().retain(|one| !Arc::ptr_eq(one, listener));
    }

    /// Operations that read here now.
    pub fn readers(&self) -> usize {
        self.readers.count.load(Ordering::Acquire)
    }

    /// The owner of the operation that opened the stream.
    pub fn owner(&self) -> u64 {
        self.readers.owner
    }

    /// How many readers can take frames, and whether it has had several owners.
    pub fn readership(&self) -> Readership {
        let stalled = self.readers.stalled.load(Ordering::Acquire);
        Readership { readers: self.readers().saturating_sub(stalled), shared: self.is_shared() }
    }

    /// A reader's socket is full for long: it takes no frames.
    pub(crate) fn stall_reader(&self) {
        self.readers.stalled.fetch_add(1, Ordering::AcqRel);
    }

    /// It ends.
    pub(crate) fn end_stalled_reader(&self) {
        self.readers.stalled.fetch_sub(1, Ordering::AcqRel);
    }

    /// It takes frames again: the source pushes what it left out.
    pub(crate) fn resume_reader(&self) {
        self.readers.stalled.fetch_sub(1, Ordering::AcqRel);
        self.source.advance(self);
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.readers.shared.load(Ordering::Relaxed)
    }

    /// Counts one more reader. True if the stream is shared from now on and was not before.
    pub(crate) fn add_reader(&self, owner: u64) -> bool {
        self.readers.count.fetch_add(1, Ordering::AcqRel);
        owner != self.readers.owner && !self.readers.shared.swap(true, Ordering::Relaxed)
    }

    /// Counts one reader less.
    pub(crate) fn release(self: &Arc<Self>) {
        let now = Instant::now();
        // The time first: a thread that sees no readers must see since when.
        *self.readers.idle_since.lock() = now;
        if self.readers.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.enter_idle_list(now);
        }
    }

    /// Puts it into the list of idle streams, unless it is there.
    pub(crate) fn enter_idle_list(self: &Arc<Self>, since: Instant) {
        if !self.readers.in_idle_list.swap(true, Ordering::AcqRel) {
            self.context.idle.add(self, since);
        }
    }

    /// It was taken from the list of idle streams.
    pub(crate) fn leave_idle_list(&self) {
        self.readers.in_idle_list.store(false, Ordering::Release);
    }

    /// How long it has had no reader; `None` if it has one.
    pub(crate) fn idle_for(&self, now: Instant) -> Option<Duration> {
        let idle = self.readers() == 0;
        idle.then(|| now.saturating_duration_since(*self.readers.idle_since.lock()))
    }

    /// Sets how many bytes the ring may hold beside its newest frame.
    pub(crate) fn limit_ring(&self, most_bytes: usize) {
        let mut ring = self.ring.lock();
        let before = ring.bytes();
        ring.limit(most_bytes);
        self.context.memory.change(before, ring.bytes());
    }

    /// Sets how many bytes the ring may hold in all. Returns how many it freed.
    pub(crate) fn shrink_ring(&self, most_bytes: usize) -> usize {
        let mut ring = self.ring.lock();
        let before = ring.bytes();
        ring.shrink(most_bytes);
        self.context.memory.change(before, ring.bytes());
        before - ring.bytes()
    }

    #[cfg(test)]
    pub(crate) fn ring_bytes(&self) -> usize {
        self.ring.lock().bytes()
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        let held = self.ring.get_mut().bytes() + *self.cached.get_mut() + STREAM_BYTES;
        self.context.memory.change(held, 0);
    }
}
