//! Where several hubs share a log: a client that comes from one that is further than this one waits
//! until this one is there too. Numbers are the log's, so any of its cursors says how far that is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use spreadly_subscriptions::{Cursor, Epoch, ResponseStream, Resume, Source};
use tokio::time::Instant;

use super::Live;

/// A hub that is further behind than this is no help to its client: 1013, so that it tries another.
const PATIENCE: Duration = Duration::from_secs(4);
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// How far the log is taken in.
#[derive(Default)]
pub(super) struct Reached {
    sequence: AtomicU64,
    /// Other hubs have the same log, and may be further.
    shared: AtomicBool,
}

impl Reached {
    pub(super) fn begin(&self, sequence: u64) {
        self.sequence.store(sequence, Ordering::Release);
    }

    pub(super) fn to(&self, sequence: u64) {
        self.sequence.fetch_max(sequence, Ordering::Release);
    }

    pub(super) fn get(&self) -> u64 {
        self.sequence.load(Ordering::Acquire)
    }
}

/// A source whose readers may come from another hub.
struct Reaching {
    live: Arc<Live>,
    own: Arc<dyn Source>,
    stream: OnceLock<Weak<ResponseStream>>,
}

impl Live {
    /// The log is shared, and taken in up to this sequence.
    pub fn share(&self, sequence: u64) {
        self.reached.begin(sequence);
        self.reached.shared.store(true, Ordering::Release);
    }

    /// Lets readers of a source wait where they come from a hub that is further, or from another
    /// worker of this one.
    pub(super) fn reaching(self: &Arc<Self>, own: impl Source + 'static) -> Box<dyn Source> {
        if self.origin.is_none() && !self.is_shared() {
            return Box::new(own);
        }
        let own: Arc<dyn Source> = Arc::new(own);
        Box::new(Reaching { live: self.clone(), own, stream: OnceLock::new() })
    }

    fn is_shared(&self) -> bool {
        self.origin.as_deref().unwrap_or(self).reached.shared.load(Ordering::Acquire)
    }

    /// Whether a position of the log is still to come here.
    fn is_behind(&self, sequence: u64) -> bool {
        self.reached.get() < sequence
            && (self.is_shared()
                // Otherwise it is a position that the log never reached, or has no longer.
                || self.origin.as_ref().is_some_and(|origin| sequence <= origin.reached.get()))
    }
}

impl Source for Reaching {
    fn attach(&self, stream: &Arc<ResponseStream>) {
        self.stream.get_or_init(|| Arc::downgrade(stream));
        self.own.attach(stream);
    }

    fn join(&self, stream: &ResponseStream, after: Option<&str>) -> Resume {
        let ahead = after.and_then(furthest).filter(|(_, at)| self.live.is_behind(*at));
        let (Some((epoch, sequence)), Some(after)) = (ahead, after) else {
            return self.own.join(stream, after);
        };
        let (live, own, after) = (self.live.clone(), self.own.clone(), after.to_owned());
        let stream = self.stream.get().cloned().unwrap_or_default();
        Resume::Throttled(Box::pin(async move {
            let until = Instant::now() + PATIENCE;
            while live.is_behind(sequence) && Instant::now() < until {
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
            // Of another epoch it may be of a log that is gone, and is answered as such.
            if live.is_behind(sequence) && epoch == live.epoch() {
                return Resume::TooSlow;
            }
            let Some(stream) = stream.upgrade() else { return Resume::TooSlow };
            let start = own.join(&stream, Some(&after));
            drop(stream);
            match start {
                Resume::Throttled(later) | Resume::Pending(later) => later.await,
                start => start,
            }
        }))
    }

    fn catch_up(&self, stream: &ResponseStream, seen: u64) -> Resume {
        self.own.catch_up(stream, seen)
    }

    fn detach(&self, stream: &ResponseStream) {
        self.own.detach(stream);
    }
}

/// The newest position in a cursor; `None` where it can't be read, which its source
/// says.
fn furthest(cursor: &str) -> Option<(Epoch, u64)> {
    let positions = Cursor::decode(cursor).ok()?.positions;
    let newest = positions.iter().max_by_key(|(_, position)| position.sequence);
    newest.map(|(_, position)| (position.epoch, position.sequence))
}
