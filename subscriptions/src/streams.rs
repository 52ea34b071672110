//! The table of open response streams, by operation key: opens them, shares them, and forgets those
//! that nobody reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::time::Instant;

use crate::idle_streams::Linger;
use crate::key::OperationKey;
use crate::memory::{Memory, STREAM_BYTES};
use crate::meters::Meters;
use crate::ring::LEAST_RING_BYTES;
use crate::stream::{ResponseStream, Source, StreamContext};

/// Bounds of the table and of the memory of its streams.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Encoded bytes that one stream's ring keeps for readers that lag or come back. A stream with
    /// a single owner keeps at most 128 KiB.
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
    /// Building the source failed: a JSON array of GraphQL errors.
    Refused(Bytes),
    /// `most_streams` are open.
    TooMany { limit: usize },
    /// `memory_bytes` are in use, though rings were shrunk already.
    NoMemory { limit: usize, used: usize },
}

/// How long a stream without readers is kept that no second owner ever read: its one client resumes
/// from the source's own history, and no other client needs the ring.
const LINGER_ALONE: Duration = Duration::from_secs(2);
/// What the ring of such a stream holds at most. All streams of one address with full rings would
/// be 4 GiB.
const RING_BYTES_ALONE: usize = 128 << 10;
/// Streams without readers that are closed at once when there are too many streams. Opening
/// one closes them, so they are few.
const EVICTED_AT_ONCE: usize = 8;

/// The open response streams by operation key.
pub struct Streams {
    table: DashMap<Arc<OperationKey>, Arc<ResponseStream>>,
    next_id: AtomicU64,
    limits: StreamLimits,
    /// Some rings are limited to less than their usual size.
    some_shrunk: AtomicBool,
    context: StreamContext,
}

impl Streams {
    pub fn new(limits: StreamLimits, meters: Arc<Meters>) -> Self {
        let memory = Arc::new(Memory::new(limits.memory_bytes));
        Self {
            table: DashMap::new(),
            next_id: AtomicU64::new(1),
            limits,
            some_shrunk: AtomicBool::new(false),
            context: StreamContext { memory, idle: Arc::default(), meters },
        }
    }

    /// The stream of this key, with one more reader, of this owner. `build` runs only if there is
    /// none yet, under the key's lock, so that a crowd with the same key costs one validation. The
    /// caller must call [`Streams::release`] once.
    pub fn open(
        &self,
        key: OperationKey,
        owner: u64,
        build: impl FnOnce() -> Result<Box<dyn Source>, Bytes>,
    ) -> Result<Arc<ResponseStream>, OpenError> {
        if self.table.len() >= self.limits.most_streams {
            // Makes room: closes some that had no reader for longest.
            self.forget_after(Linger::NONE, EVICTED_AT_ONCE, Instant::now());
        }
        let count = self.table.len();
        let key = Arc::new(key);
        let entry = match self.table.entry(key.clone()) {
            Entry::Occupied(entry) => {
                if entry.get().add_reader(owner) {
                    entry.get().limit_ring(self.limits.ring_of(true));
                }
                return Ok(entry.get().clone());
            }
            Entry::Vacant(entry) => entry,
        };
        if count >= self.limits.most_streams {
            return Err(OpenError::TooMany { limit: self.limits.most_streams });
        }
        let (limit, used) = (self.context.memory.budget(), self.context.memory.used());
        if used + STREAM_BYTES > limit {
            return Err(OpenError::NoMemory { limit, used });
        }
        let source = build().map_err(OpenError::Refused)?;
        let stream = Arc::new(ResponseStream::new(
            self.next_id.fetch_add(1, Ordering::Relaxed),
            key,
            source,
            self.limits.ring_of(false),
            owner,
            self.context.clone(),
        ));
        stream.source().attach(&stream);
        self.context.meters.streams_open.add(1);
        entry.insert(stream.clone());
        Ok(stream)
    }

    /// Ends the reader that [`Streams::open`] counted.
    pub fn release(&self, stream: &Arc<ResponseStream>) {
        stream.release();
    }

    /// Forgets streams that had no reader for their linger time, among the `most` that are idle for
    /// longest. Says whether others are due. Each takes some 10 us and frees up to `ring_bytes`, so
    /// the caller forgets a crowd of them in several steps.
    pub fn forget_idle(&self, most: usize, now: Instant) -> bool {
        let shared = self.limits.linger;
        self.forget_after(Linger { shared, alone: shared.min(LINGER_ALONE) }, most, now)
    }

    fn forget_after(&self, linger: Linger, most: usize, now: Instant) -> bool {
        let (due, others) = self.context.idle.take_due(linger, most, now);
        due.iter().for_each(|stream| self.forget(stream, linger, now));
        others
    }

    /// Forgets a stream that was taken from the list of idle streams, if it had no reader for its
    /// linger time. If it had one since, it enters the list again.
    fn forget(&self, stream: &Arc<ResponseStream>, linger: Linger, now: Instant) {
        let lingered = |stream: &ResponseStream| {
            stream.idle_for(now).is_some_and(|idle| idle >= linger.of(stream.is_shared()))
        };
        // A reader joins under the lock that is held here.
        let removed = self
            .table
            .remove_if(stream.key(), |_, found| Arc::ptr_eq(found, stream) && lingered(found));
        if removed.is_some() {
            self.close(stream);
        } else if let Some(idle) = stream.idle_for(now) {
            stream.enter_idle_list(now - idle);
        }
    }

    fn close(&self, stream: &ResponseStream) {
        self.context.meters.streams_open.subtract(1);
        stream.source().detach(stream);
    }

    /// If too much memory is in use, shrinks rings: first of streams without readers, the longest
    /// idle ones first, then of those with the fewest readers. With enough free memory, rings may
    /// grow again.
    pub fn resize_rings(&self, now: Instant) {
        let mut excess = self.context.memory.excess();
        let grows = self.context.memory.is_plenty() && self.some_shrunk.load(Ordering::Relaxed);
        if excess == 0 && !grows {
            return;
        }
        self.some_shrunk.store(excess > 0, Ordering::Relaxed);
        let mut streams: Vec<_> = self.table.iter().map(|entry| entry.value().clone()).collect();
        if excess == 0 {
            for stream in streams {
                stream.limit_ring(self.limits.ring_of(stream.is_shared()));
            }
            return;
        }
        streams.sort_by_cached_key(|stream| {
            let idle = stream.idle_for(now).map(std::cmp::Reverse);
            (stream.readers(), idle)
        });
        for stream in streams {
            if excess == 0 {
                break;
            }
            let kept = if stream.readers() == 0 { 0 } else { LEAST_RING_BYTES };
            let freed = stream.shrink_ring(kept);
            self.context.meters.rings_shrunk.add(u64::from(freed > 0));
            excess = excess.saturating_sub(freed);
        }
    }

    /// The memory of all streams.
    pub fn memory(&self) -> &Memory {
        &self.context.memory
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
    use crate::resume::Resume;
    use crate::ring::Frame;

    /// A source without events.
    struct Quiet;

    impl Source for Quiet {
        fn attach(&self, _: &Arc<ResponseStream>) {}

        fn join(&self, _: &ResponseStream, _: Option<&str>) -> Resume {
            Resume::CannotContinue
        }

        fn catch_up(&self, _: &ResponseStream, _: u64) -> Resume {
            Resume::CannotContinue
        }

        fn advance(&self, _: &ResponseStream) {}

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
        assert!(
            bytes[..10].iter().all(|bytes| *bytes > 60 << 10),
            "shared rings keep their size: {bytes:?}"
        );
        assert!(bytes[COUNT - 2..].iter().all(|bytes| *bytes < 2 << 10), "{bytes:?}");
        let shrunk = bytes[10..COUNT - 2].iter().filter(|bytes| **bytes <= LEAST_RING_BYTES);
        assert!(shrunk.count() >= 3, "no fewer than needed: {bytes:?}");
        // Released memory is not counted any more, and rings grow again.
        for stream in &all[5..] {
            for _ in 0..stream.readers() {
                streams.release(stream);
            }
        }
        drop(all);
        let later = Instant::now() + Duration::from_secs(3_600);
        streams.forget_idle(usize::MAX, later);
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
        assert!(!streams.forget_idle(usize::MAX, now));
        assert_eq!(streams.len(), 2, "not before its time");
        assert!(!streams.forget_idle(usize::MAX, now + LINGER_ALONE));
        assert_eq!(streams.len(), 1);
        let later = now + StreamLimits::default().linger;
        streams.forget_idle(usize::MAX, later);
        assert_eq!((streams.len(), streams.context.meters.streams_open.get()), (0, 0));
    }

    #[test]
    fn idle_streams_are_listed_once_and_forgotten_in_portions() {
        let streams = streams(StreamLimits::default());
        let all: Vec<_> = (0..10).map(|number| open(&streams, number, 1)).collect();
        for _ in 0..100 {
            all.iter().for_each(|stream| streams.release(stream));
            (0..10).for_each(|number| drop(open(&streams, number, 1)));
        }
        assert_eq!(streams.context.idle.len(), 10, "each once, however often it was left");
        let later = Instant::now() + LINGER_ALONE;
        assert!(!streams.forget_idle(usize::MAX, later));
        assert_eq!((streams.len(), streams.context.idle.len()), (10, 0), "all have readers");
        all.iter().for_each(|stream| streams.release(stream));
        let later = Instant::now() + LINGER_ALONE;
        assert!(streams.forget_idle(4, later));
        assert_eq!(streams.len(), 6);
        drop(open(&streams, 9, 1));
        assert!(!streams.forget_idle(usize::MAX, later));
        assert_eq!(streams.len(), 1, "the one that has a reader again");
        streams.release(&all[9]);
        streams.forget_idle(usize::MAX, Instant::now() + LINGER_ALONE);
        assert_eq!((streams.len(), streams.context.idle.len()), (0, 0));
    }

    #[test]
    fn streams_without_readers_are_closed_when_there_are_too_many() {
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
