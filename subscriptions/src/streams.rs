//! A response stream: the results of one operation key, resolved once and encoded once, for all
//! operations that asked for the same. And the table of those that are open.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::key::OperationKey;
use crate::memory::{Memory, STREAM_BYTES};
use crate::meters::Meters;
use crate::ring::{Frame, Ring};
use crate::schedule::{Audience, Pace};

/// Where a response stream gets its frames: the hub's state of a topic. May lock its own state,
/// must not wait for anything else: what has to is answered by [`Start::Later`] or [`Start::Soon`].
///
/// What makes joining free of gaps: the implementor pushes into a stream only while it holds the
/// lock under which `join` and `catch_up` look at the state and at [`ResponseStream::next_index`].
pub trait Source: Send + Sync {
    /// Called once, before anyone joins: push what happens from now on into this stream.
    fn attach(&self, stream: &Arc<ResponseStream>);

    /// Where an operation starts that just asked, with the cursor it brought.
    fn join(&self, stream: &ResponseStream, after: Option<&str>) -> Start;

    /// What brings a reader up to date that saw everything up to `seen`, and either asks for frames
    /// that the ring no longer holds or has read the page it was given.
    fn catch_up(&self, stream: &ResponseStream, seen: u64) -> Start;

    /// The last operation left and none came back: forget the stream.
    fn detach(&self, stream: &ResponseStream);
}

/// Where a reader goes on.
pub enum Start {
    /// The ring holds all that follows `seen`, from index `next` on.
    Ring { seen: u64, next: u64 },
    /// Send these frames first (a snapshot for each topic, or one merged delta), then go on in the
    /// ring at `next`. Never empty.
    Frames { frames: Vec<Frame>, next: u64 },
    /// Send these frames first (a page of the log), then ask [`Source::catch_up`] again. Never
    /// empty, so that each page brings its reader on.
    Page(Vec<Frame>),
    /// Only something that takes time can tell (the log): awaited in a task of the operation's own,
    /// which ends with it. The future keeps its own deadline; one that takes longer than
    /// [`crate::limits::START_DEADLINE`] counts as [`Start::TooSlow`].
    Later(BoxFuture<'static, Start>),
    /// Made on another thread, of what is in memory: awaited like [`Start::Later`], but nothing is
    /// read for this operation alone, so it waits for no turn of its client.
    Soon(BoxFuture<'static, Start>),
    /// The operation ends with these errors (a JSON array of GraphQL errors).
    Refused(Bytes),
    /// Nothing can be merged and the log can't help: the connection is closed with 1013.
    TooSlow,
}

impl Start {
    /// The answer to wait for, and whether it waits for a turn; the error is one that is there.
    pub(crate) fn awaited(self) -> Result<(BoxFuture<'static, Self>, bool), Self> {
        match self {
            Self::Later(answer) => Ok((answer, true)),
            Self::Soon(answer) => Ok((answer, false)),
            start => Err(start),
        }
    }
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring { seen, next } => write!(f, "Ring {{ seen: {seen}, next: {next} }}"),
            Self::Frames { frames, next } => write!(f, "Frames {{ {frames:?}, next: {next} }}"),
            Self::Page(frames) => write!(f, "Page({frames:?})"),
            Self::Later(_) => f.write_str("Later"),
            Self::Soon(_) => f.write_str("Soon"),
            Self::Refused(errors) => write!(f, "Refused({errors:?})"),
            Self::TooSlow => f.write_str("TooSlow"),
        }
    }
}

/// How a stream tells one shard that it has news. A shard's own doorbell with the stream's place
/// in that shard, so that a push costs one flag per shard however many readers it has.
pub(crate) struct Listener {
    doorbell: Arc<Doorbell>,
    place: usize,
    /// Rung and not yet answered: further pushes need not ring again.
    rung: AtomicBool,
}

/// A shard's list of streams with news.
#[derive(Default)]
pub(crate) struct Doorbell {
    places: Mutex<Vec<usize>>,
    notify: Notify,
}

impl Doorbell {
    pub(crate) async fn rung(&self) {
        self.notify.notified().await;
    }

    /// Moves the places with news into `into`. Bounded by the number of the shard's streams, as
    /// each listener rings once until it is answered.
    pub(crate) fn take(&self, into: &mut Vec<usize>) {
        into.append(&mut self.places.lock());
    }

    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }
}

impl Listener {
    pub(crate) fn new(doorbell: Arc<Doorbell>, place: usize) -> Self {
        Self { doorbell, place, rung: AtomicBool::new(false) }
    }

    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.doorbell.places.lock().push(self.place);
            self.doorbell.wake();
        }
    }

    /// Must come before the ring is read, or a push in between would be missed.
    pub(crate) fn answered(&self) {
        self.rung.store(false, Ordering::Release);
    }
}

/// See the module's text. Always in an `Arc`: connections, the table and the source share it.
pub struct ResponseStream {
    id: u64,
    source: Box<dyn Source>,
    ring: Mutex<Ring>,
    listeners: Mutex<Vec<Arc<Listener>>>,
    readers: Readers,
    /// Bytes that the source keeps for later readers.
    cached: AtomicUsize,
    /// How often it is brought up to date where that is slower than its clients asked for.
    slowed_to: AtomicU8,
    memory: Arc<Memory>,
    meters: Arc<Meters>,
}

struct Readers {
    count: AtomicUsize,
    /// Whose operation opened the stream.
    owner: u64,
    /// Operations of other owners have read it as well.
    shared: AtomicBool,
    /// When the last one left, or when the stream was opened.
    idle_since: Mutex<Instant>,
}

impl ResponseStream {
    /// Unique in this process: tells a stream from an earlier one under the same key.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Puts a frame after the others and wakes the shards. Never waits; costs the same for any
    /// number of readers.
    pub fn push(&self, frame: Frame) {
        {
            let mut ring = self.ring.lock();
            let before = ring.bytes();
            ring.push(frame);
            if self.memory.used() > self.memory.budget() && self.readers() < 2 {
                // Without waiting for the next look at all streams.
                let half = ring.bytes() / 2;
                ring.limit(half);
            }
            self.memory.change(before, ring.bytes());
        }
        self.meters.frames_published.add(1);
        for listener in self.listeners.lock().iter() {
            listener.ring();
        }
    }

    /// The pace of this stream while it can't keep the one that its clients asked for.
    pub fn slowed_to(&self) -> Option<Pace> {
        let place = usize::from(self.slowed_to.load(Ordering::Relaxed));
        Pace::MERGING.get(place.checked_sub(1)?).copied()
    }

    /// Says at which pace it is brought up to date; `None` where that is what its clients asked
    /// for.
    pub fn set_slowed_to(&self, pace: Option<Pace>) {
        let place = pace.and_then(|pace| Pace::MERGING.iter().position(|one| *one == pace));
        self.slowed_to.store(place.map_or(0, |place| place as u8 + 1), Ordering::Relaxed);
    }

    /// Counts what the source keeps for later readers, in bytes.
    pub fn set_cached(&self, bytes: usize) {
        self.memory.change(self.cached.swap(bytes, Ordering::Relaxed), bytes);
    }

    /// Whether there is memory for a frame that later readers may want.
    pub fn may_cache(&self) -> bool {
        self.memory.excess() == 0
    }

    /// Forgets what was pushed, as it does not hold any more: every reader asks
    /// [`Source::catch_up`] where it goes on.
    pub fn cut(&self) {
        {
            let mut ring = self.ring.lock();
            let before = ring.bytes();
            ring.cut();
            self.memory.change(before, ring.bytes());
        }
        for listener in self.listeners.lock().iter() {
            listener.ring();
        }
    }

    /// Index in the ring that the next pushed frame will get.
    pub fn next_index(&self) -> u64 {
        self.ring.lock().next()
    }

    /// Where in the ring a reader goes on that saw everything up to `sequence`.
    pub fn behind(&self, sequence: u64) -> Option<u64> {
        self.ring.lock().behind(sequence)
    }

    /// Bytes a reader at `index` would still be sent; `None` if the ring no longer holds them all.
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

    /// What stands behind this stream.
    pub fn source(&self) -> &dyn Source {
        &*self.source
    }

    pub(crate) fn listen(&self, listener: Arc<Listener>) {
        self.listeners.lock().push(listener);
    }

    pub(crate) fn unlisten(&self, listener: &Arc<Listener>) {
        self.listeners.lock().retain(|one| !Arc::ptr_eq(one, listener));
    }

    /// Operations that read here now.
    pub fn readers(&self) -> usize {
        self.readers.count.load(Ordering::Acquire)
    }

    /// Whose operation opened the stream.
    pub fn owner(&self) -> u64 {
        self.readers.owner
    }

    /// By whom it is read.
    pub fn audience(&self) -> Audience {
        Audience { readers: self.readers(), shared: self.is_shared() }
    }

    fn is_shared(&self) -> bool {
        self.readers.shared.load(Ordering::Relaxed)
    }

    /// Whether the stream is shared from now on.
    fn reader_joins(&self, owner: u64) -> bool {
        self.readers.count.fetch_add(1, Ordering::AcqRel);
        owner != self.readers.owner && !self.readers.shared.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn reader_left(&self) {
        // The time first: whoever sees no readers sees since when.
        *self.readers.idle_since.lock() = Instant::now();
        self.readers.count.fetch_sub(1, Ordering::AcqRel);
    }

    fn idle_for(&self, now: Instant) -> Option<Duration> {
        let idle = self.readers() == 0;
        idle.then(|| now.saturating_duration_since(*self.readers.idle_since.lock()))
    }

    /// Lets the ring hold as many bytes at most.
    fn limit_ring(&self, most_bytes: usize) {
        let mut ring = self.ring.lock();
        let before = ring.bytes();
        ring.limit(most_bytes);
        self.memory.change(before, ring.bytes());
    }

    fn ring_bytes(&self) -> usize {
        self.ring.lock().bytes()
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        let held = self.ring.get_mut().bytes() + *self.cached.get_mut() + STREAM_BYTES;
        self.memory.change(held, 0);
    }
}

/// How the table of streams is kept small.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Encoded bytes that one stream's ring keeps for readers that lag or come back. Of a stream
    /// that one owner reads alone, 128 KiB at most.
    pub ring_bytes: usize,
    /// How long a stream without readers is kept, so that a crowd that lost its network finds it.
    pub linger: Duration,
    /// Streams open at the same time, with and without readers.
    pub most_streams: usize,
    /// Bytes of all rings, of the frames that sources keep, and of the streams themselves.
    pub memory_bytes: usize,
}

impl StreamLimits {
    /// Bytes that a stream's ring may hold.
    fn ring_of(&self, is_shared: bool) -> usize {
        if is_shared { self.ring_bytes } else { self.ring_bytes.min(RING_BYTES_ALONE) }
    }
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            ring_bytes: 1 << 20,
            linger: Duration::from_secs(30),
            most_streams: 100_000,
            memory_bytes: 1 << 30,
        }
    }
}

/// Why no stream was opened.
#[derive(Debug)]
pub enum OpenError {
    /// Refused by whoever was to build the source: a JSON array of GraphQL errors.
    Refused(Bytes),
    /// `most_streams` are open.
    TooMany { limit: usize },
    /// `memory_bytes` are in use, and rings have given way already.
    NoMemory { limit: usize, used: usize },
}

/// How long a stream is kept that no second owner ever read: its one client resumes from the
/// source's own history, so the ring is no use to anyone else.
const LINGER_ALONE: Duration = Duration::from_secs(5);
/// What the ring of such a stream holds at most. All streams of one address with full rings would
/// be 4 GiB.
const RING_BYTES_ALONE: usize = 128 << 10;
/// A ring that gives way keeps as much, so that a reader which is a little late is still served.
const LEAST_RING_BYTES: usize = 8 << 10;
/// Streams without readers that make room at once when there are too many streams.
const EVICTED_AT_ONCE: usize = 1_000;

/// The open response streams by operation key.
pub struct Streams {
    table: DashMap<OperationKey, Arc<ResponseStream>>,
    next_id: AtomicU64,
    limits: StreamLimits,
    memory: Arc<Memory>,
    /// Some rings hold less than they may.
    some_gave_way: AtomicBool,
    meters: Arc<Meters>,
}

impl Streams {
    pub fn new(limits: StreamLimits, meters: Arc<Meters>) -> Self {
        let memory = Arc::new(Memory::new(limits.memory_bytes));
        Self {
            table: DashMap::new(),
            next_id: AtomicU64::new(1),
            limits,
            memory,
            some_gave_way: AtomicBool::new(false),
            meters,
        }
    }

    /// The stream of this key, with one reader more, of this owner. `build` runs only if there is
    /// none yet, under the key's lock, so that a crowd that asks for the same at once costs one
    /// validation. The caller owes one [`Streams::release`].
    pub fn open(
        &self,
        key: OperationKey,
        owner: u64,
        build: impl FnOnce() -> Result<Box<dyn Source>, Bytes>,
    ) -> Result<Arc<ResponseStream>, OpenError> {
        if self.table.len() >= self.limits.most_streams {
            self.evict(EVICTED_AT_ONCE);
        }
        let count = self.table.len();
        let entry = match self.table.entry(key) {
            Entry::Occupied(entry) => {
                if entry.get().reader_joins(owner) {
                    entry.get().limit_ring(self.limits.ring_of(true));
                }
                return Ok(entry.get().clone());
            }
            Entry::Vacant(entry) => entry,
        };
        if count >= self.limits.most_streams {
            return Err(OpenError::TooMany { limit: self.limits.most_streams });
        }
        let (limit, used) = (self.memory.budget(), self.memory.used());
        if used + STREAM_BYTES > limit {
            return Err(OpenError::NoMemory { limit, used });
        }
        let source = build().map_err(OpenError::Refused)?;
        self.memory.change(0, STREAM_BYTES);
        let stream = Arc::new(ResponseStream {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            source,
            ring: Mutex::new(Ring::new(self.limits.ring_of(false))),
            listeners: Mutex::default(),
            readers: Readers {
                count: AtomicUsize::new(1),
                owner,
                shared: AtomicBool::new(false),
                idle_since: Mutex::new(Instant::now()),
            },
            cached: AtomicUsize::new(0),
            slowed_to: AtomicU8::new(0),
            memory: self.memory.clone(),
            meters: self.meters.clone(),
        });
        stream.source.attach(&stream);
        self.meters.streams_open.add(1);
        entry.insert(stream.clone());
        Ok(stream)
    }

    /// Gives back what [`Streams::open`] gave.
    pub fn release(&self, stream: &ResponseStream) {
        stream.reader_left();
    }

    /// The streams that had no reader for longer than the linger time.
    pub fn unread(&self, now: Instant) -> Vec<OperationKey> {
        let unread = self.table.iter().filter(|entry| self.is_unread(entry.value(), now));
        unread.map(|entry| entry.key().clone()).collect()
    }

    /// Forgets those of these streams that still have no reader. Each takes some 10 us, and up to
    /// `ring_bytes` are freed: a crowd that left at once is forgotten in several steps.
    pub fn forget_unread(&self, keys: &[OperationKey], now: Instant) {
        for key in keys {
            // A reader joins under the lock that is held here.
            let gone = self.table.remove_if(key, |_, stream| self.is_unread(stream, now));
            if let Some((_, stream)) = gone {
                self.end(&stream);
            }
        }
    }

    fn is_unread(&self, stream: &ResponseStream, now: Instant) -> bool {
        let linger = match stream.is_shared() {
            true => self.limits.linger,
            false => self.limits.linger.min(LINGER_ALONE),
        };
        stream.idle_for(now).is_some_and(|idle| idle >= linger)
    }

    fn end(&self, stream: &ResponseStream) {
        self.meters.streams_open.subtract(1);
        stream.source.detach(stream);
    }

    /// Makes room for streams that somebody reads: the longest unread leave.
    fn evict(&self, most: usize) {
        let now = Instant::now();
        let mut idle: Vec<_> = self
            .table
            .iter()
            .filter_map(|entry| entry.idle_for(now).map(|idle| (idle, entry.id())))
            .collect();
        idle.sort_unstable_by(|one, other| other.cmp(one));
        let gone: HashSet<_> = idle.into_iter().take(most).map(|(_, id)| id).collect();
        let mut ended = Vec::new();
        self.table.retain(|_, stream| {
            let ends = gone.contains(&stream.id()) && stream.readers() == 0;
            if ends {
                ended.push(stream.clone());
            }
            !ends
        });
        ended.iter().for_each(|stream| self.end(stream));
    }

    /// Where too much memory is in use, rings give way: of streams without readers first, those
    /// unread for longest, then of those with the fewest readers. Where there is plenty, they may
    /// grow again.
    pub fn resize_rings(&self, now: Instant) {
        let mut excess = self.memory.excess();
        let grows = self.memory.is_plenty() && self.some_gave_way.load(Ordering::Relaxed);
        if excess == 0 && !grows {
            return;
        }
        self.some_gave_way.store(excess > 0, Ordering::Relaxed);
        let mut streams: Vec<_> = self.table.iter().map(|entry| entry.value().clone()).collect();
        if excess == 0 {
            for stream in streams {
                stream.limit_ring(self.limits.ring_of(stream.is_shared()));
            }
            return;
        }
        streams.sort_by_cached_key(|stream| {
            let unread = stream.idle_for(now).map(std::cmp::Reverse);
            (stream.readers(), unread)
        });
        for stream in streams {
            if excess == 0 {
                break;
            }
            let before = stream.ring_bytes();
            let kept = if stream.readers() == 0 { 0 } else { LEAST_RING_BYTES };
            stream.limit_ring(kept);
            self.meters.rings_shrunk.add(u64::from(before > kept));
            excess = excess.saturating_sub(before.saturating_sub(kept));
        }
    }

    /// What rings and caches hold.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Streams open now.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing happens at it.
    struct Quiet;

    impl Source for Quiet {
        fn attach(&self, _: &Arc<ResponseStream>) {}

        fn join(&self, _: &ResponseStream, _: Option<&str>) -> Start {
            Start::TooSlow
        }

        fn catch_up(&self, _: &ResponseStream, _: u64) -> Start {
            Start::TooSlow
        }

        fn detach(&self, _: &ResponseStream) {}
    }

    fn streams(limits: StreamLimits) -> Streams {
        Streams::new(limits, Arc::default())
    }

    fn key(number: usize) -> OperationKey {
        OperationKey {
            document: number.to_string(),
            operation_name: None,
            variables: String::new(),
            audience: String::new(),
            cursor_extension: false,
        }
    }

    fn open(streams: &Streams, number: usize, owner: u64) -> Arc<ResponseStream> {
        streams.open(key(number), owner, || Ok(Box::new(Quiet))).unwrap()
    }

    fn fill(stream: &ResponseStream) {
        for sequence in 1..=64 {
            stream.push(Frame::new(sequence - 1, sequence, vec![b'x'; 1 << 10]));
        }
    }

    #[test]
    fn the_least_shared_rings_give_way_where_memory_is_short() {
        const COUNT: usize = 20;
        let memory_bytes = COUNT * (STREAM_BYTES + (70 << 10));
        let streams = streams(StreamLimits { memory_bytes, ..StreamLimits::default() });
        let all: Vec<_> = (0..COUNT).map(|number| open(&streams, number, 1)).collect();
        for crowd in 0..10 {
            (0..5).for_each(|owner| drop(open(&streams, crowd, owner)));
        }
        // Nobody reads the last two.
        all[COUNT - 2..].iter().for_each(|stream| streams.release(stream));
        all.iter().for_each(|stream| fill(stream));
        assert!(streams.memory().excess() > 0);
        streams.resize_rings(Instant::now());
        assert_eq!(streams.memory().excess(), 0);
        let bytes: Vec<_> = all.iter().map(|stream| stream.ring_bytes()).collect();
        assert!(bytes[..10].iter().all(|bytes| *bytes > 60 << 10), "crowds keep theirs: {bytes:?}");
        assert!(bytes[COUNT - 2..].iter().all(|bytes| *bytes < 2 << 10), "{bytes:?}");
        let shrunk = bytes[10..COUNT - 2].iter().filter(|bytes| **bytes <= LEAST_RING_BYTES);
        assert!(shrunk.count() >= 3, "no more than it takes, and no less: {bytes:?}");
        // What was given back is not counted any more, and rings grow again.
        for stream in &all[5..] {
            for _ in 0..stream.readers() {
                streams.release(stream);
            }
        }
        drop(all);
        let later = Instant::now() + Duration::from_secs(3_600);
        streams.forget_unread(&streams.unread(later), later);
        assert_eq!(streams.len(), 5);
        assert!(streams.memory().is_plenty());
        streams.resize_rings(Instant::now());
        let crowd = open(&streams, 0, 1);
        fill(&crowd);
        assert!(crowd.ring_bytes() > 120 << 10, "{}", crowd.ring_bytes());
    }

    #[test]
    fn a_stream_too_many_for_the_memory_is_refused_by_name() {
        let memory_bytes = STREAM_BYTES * 3 + 1;
        let streams = streams(StreamLimits { memory_bytes, ..StreamLimits::default() });
        let all: Vec<_> = (0..3).map(|number| open(&streams, number, 1)).collect();
        let refused = streams.open(key(3), 1, || Ok(Box::new(Quiet)));
        assert!(matches!(
            refused,
            Err(OpenError::NoMemory { limit, used })
                if limit == memory_bytes && used == STREAM_BYTES * 3
        ));
        assert_eq!(open(&streams, 2, 9).id(), all[2].id(), "one that is open can be joined");
    }

    #[test]
    fn the_ring_of_a_stream_that_one_owner_reads_holds_less_until_it_is_shared() {
        let streams = streams(StreamLimits::default());
        let stream = open(&streams, 1, 1);
        let fill = || (0..40).for_each(|_| fill(&stream));
        open(&streams, 1, 1);
        fill();
        assert!((RING_BYTES_ALONE / 2..=RING_BYTES_ALONE).contains(&stream.ring_bytes()));
        open(&streams, 1, 2);
        fill();
        let most = StreamLimits::default().ring_bytes;
        assert!((most / 2..=most).contains(&stream.ring_bytes()), "{}", stream.ring_bytes());
    }

    #[test]
    fn a_stream_that_nobody_shared_is_forgotten_sooner() {
        let streams = streams(StreamLimits::default());
        let (alone, shared) = (open(&streams, 1, 1), open(&streams, 2, 1));
        streams.release(&open(&streams, 2, 2));
        for stream in [&alone, &shared] {
            streams.release(stream);
        }
        let now = Instant::now();
        assert_eq!(streams.unread(now).len(), 0);
        let unread = streams.unread(now + LINGER_ALONE);
        streams.forget_unread(&unread, now);
        assert_eq!((streams.len(), unread.len()), (2, 1), "not before its time");
        streams.forget_unread(&unread, now + LINGER_ALONE);
        assert_eq!(streams.len(), 1);
        let later = now + StreamLimits::default().linger;
        streams.forget_unread(&streams.unread(later), later);
        assert_eq!((streams.len(), streams.meters.streams_open.get()), (0, 0));
    }

    #[test]
    fn streams_that_nobody_reads_make_room_where_there_are_too_many() {
        let limits = StreamLimits { most_streams: 10, ..StreamLimits::default() };
        let streams = streams(limits);
        let all: Vec<_> = (0..10).map(|number| open(&streams, number, 1)).collect();
        let full = streams.open(key(10), 1, || Ok(Box::new(Quiet)));
        assert!(matches!(full, Err(OpenError::TooMany { limit: 10 })));
        all[..4].iter().for_each(|stream| streams.release(stream));
        open(&streams, 10, 1);
        assert_eq!(streams.len(), 7);
    }
}
