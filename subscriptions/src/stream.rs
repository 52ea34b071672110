//! A response stream: the results of one operation key, resolved once and encoded once, for all
//! operations that asked for the same. And the table of those that are open.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::key::OperationKey;
use crate::meters::Meters;
use crate::ring::{Frame, Ring};

/// What stands behind a response stream: the hub's state of a topic. May lock its own state, must
/// not wait for anything else: what has to is told by [`Start::Later`].
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
    /// The operation ends with these errors (a JSON array of GraphQL errors).
    Refused(Bytes),
    /// Nothing can be merged and the log can't help: the connection is closed with 1013.
    TooSlow,
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring { seen, next } => write!(f, "Ring {{ seen: {seen}, next: {next} }}"),
            Self::Frames { frames, next } => write!(f, "Frames {{ {frames:?}, next: {next} }}"),
            Self::Page(frames) => write!(f, "Page({frames:?})"),
            Self::Later(_) => f.write_str("Later"),
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
    readers: Mutex<Readers>,
    meters: Arc<Meters>,
}

struct Readers {
    count: usize,
    /// When the last one left, or when the stream was opened.
    idle_since: Instant,
}

impl ResponseStream {
    /// Unique in this process: tells a stream from an earlier one under the same key.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Puts a frame behind the others and tells the shards. Never waits; costs the same for any
    /// number of readers.
    pub fn push(&self, frame: Frame) {
        self.ring.lock().push(frame);
        self.meters.frames_published.add(1);
        for listener in self.listeners.lock().iter() {
            listener.ring();
        }
    }

    /// Forgets what was pushed, as it does not hold any more: every reader asks
    /// [`Source::catch_up`] where it goes on.
    pub fn cut(&self) {
        self.ring.lock().cut();
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
        self.readers.lock().count
    }

    pub(crate) fn reader_left(&self) {
        let mut readers = self.readers.lock();
        readers.count -= 1;
        readers.idle_since = Instant::now();
    }
}

/// How the table of streams is kept small.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Encoded bytes that one stream's ring keeps for readers that lag or come back.
    pub ring_bytes: usize,
    /// How long a stream without readers is kept, so that a crowd that lost its network finds it.
    pub linger: Duration,
    /// Streams open at the same time, with and without readers.
    pub most_streams: usize,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self { ring_bytes: 1 << 20, linger: Duration::from_secs(30), most_streams: 100_000 }
    }
}

/// Why no stream was opened.
#[derive(Debug)]
pub enum OpenError {
    /// Refused by whoever was to build the source: a JSON array of GraphQL errors.
    Refused(Bytes),
    /// `most_streams` are open.
    TooMany { limit: usize },
}

/// The open response streams by operation key.
pub struct Streams {
    table: DashMap<OperationKey, Arc<ResponseStream>>,
    next_id: AtomicU64,
    limits: StreamLimits,
    meters: Arc<Meters>,
}

impl Streams {
    pub fn new(limits: StreamLimits, meters: Arc<Meters>) -> Self {
        Self { table: DashMap::new(), next_id: AtomicU64::new(1), limits, meters }
    }

    /// The stream of this key, with one reader more. `build` runs only if there is none yet, under
    /// the key's lock, so that a crowd that asks for the same at once costs one validation.
    /// The caller owes one [`Streams::release`].
    pub fn open(
        &self,
        key: OperationKey,
        build: impl FnOnce() -> Result<Box<dyn Source>, Bytes>,
    ) -> Result<Arc<ResponseStream>, OpenError> {
        let count = self.table.len();
        let entry = match self.table.entry(key) {
            Entry::Occupied(entry) => {
                entry.get().readers.lock().count += 1;
                return Ok(entry.get().clone());
            }
            Entry::Vacant(entry) => entry,
        };
        if count >= self.limits.most_streams {
            return Err(OpenError::TooMany { limit: self.limits.most_streams });
        }
        let source = build().map_err(OpenError::Refused)?;
        let stream = Arc::new(ResponseStream {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            source,
            ring: Mutex::new(Ring::new(self.limits.ring_bytes)),
            listeners: Mutex::default(),
            readers: Mutex::new(Readers { count: 1, idle_since: Instant::now() }),
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

    /// Forgets the streams that had no reader for longer than the linger time. To be called every
    /// few seconds.
    pub fn sweep(&self, now: Instant) {
        let mut gone = Vec::new();
        self.table.retain(|_, stream| {
            let readers = stream.readers.lock();
            let keep = readers.count > 0
                || now.saturating_duration_since(readers.idle_since) < self.limits.linger;
            if !keep {
                gone.push(stream.clone());
            }
            keep
        });
        for stream in gone {
            self.meters.streams_open.subtract(1);
            stream.source.detach(&stream);
        }
    }

    /// Streams open now.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}
