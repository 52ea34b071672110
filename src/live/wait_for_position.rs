//! Hubs that share a log: a client may come from a hub that has applied more of the log than this
//! one. It waits here until this hub has applied as much. Sequences are the log's, so a cursor says
//! how far that is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use spreadly_subscriptions::{Answer, Cursor, Epoch, ResponseStream, Resume, Source};
use tokio::time::Instant;

use super::Live;
use crate::pool::timed;

/// A hub that lags more than this closes with 1013, so that its client tries another one.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The last event of the log that was applied.
#[derive(Default)]
pub(super) struct AppliedSequence {
    sequence: AtomicU64,
    /// Other hubs have the same log, and may have applied more of it.
    shared: AtomicBool,
}

impl AppliedSequence {
    pub(super) fn reset(&self, sequence: u64) {
        self.sequence.store(sequence, Ordering::Release);
    }

    pub(super) fn raise_to(&self, sequence: u64) {
        self.sequence.fetch_max(sequence, Ordering::Release);
    }

    pub(super) fn get(&self) -> u64 {
        self.sequence.load(Ordering::Acquire)
    }
}

/// A source whose readers wait where this hub lags the one that they come from.
struct WaitingSource {
    live: Arc<Live>,
    source: Arc<dyn Source>,
    stream: OnceLock<Weak<ResponseStream>>,
}

impl Live {
    /// Other hubs share the log, and it is applied up to this sequence.
    pub fn share(&self, sequence: u64) {
        self.applied.reset(sequence);
        self.applied.shared.store(true, Ordering::Release);
    }

    /// Lets readers of a source wait where they come from a hub that has applied more, or from
    /// another worker of this one.
    pub(super) fn waiting_source(
        self: &Arc<Self>,
        source: impl Source + 'static,
    ) -> Box<dyn Source> {
        if self.origin.is_none() && !self.is_shared() {
            return Box::new(source);
        }
        let source: Arc<dyn Source> = Arc::new(source);
        Box::new(WaitingSource { live: self.clone(), source, stream: OnceLock::new() })
    }

    fn is_shared(&self) -> bool {
        self.origin.as_deref().unwrap_or(self).applied.shared.load(Ordering::Acquire)
    }

    /// Whether a sequence of the log is not applied here yet, but will be.
    fn is_pending(&self, sequence: u64) -> bool {
        self.applied.get() < sequence
            && (self.is_shared()
                // Otherwise the log never had this sequence, or has lost it.
                || self.origin.as_ref().is_some_and(|origin| sequence <= origin.applied.get()))
    }
}

impl Source for WaitingSource {
    fn attach(&self, stream: &Arc<ResponseStream>) {
        self.stream.get_or_init(|| Arc::downgrade(stream));
        self.source.attach(stream);
    }

    fn join(&self, stream: &ResponseStream, after: Option<&str>) -> Resume {
        let ahead = after.and_then(newest_position).filter(|(_, at)| self.live.is_pending(*at));
        let (Some((epoch, sequence)), Some(after)) = (ahead, after) else {
            return self.source.join(stream, after);
        };
        let (live, source, after) = (self.live.clone(), self.source.clone(), after.to_owned());
        let stream = self.stream.get().cloned().unwrap_or_default();
        Resume::Throttled(Box::pin(async move {
            let until = Instant::now() + LONGEST_WAIT;
            while live.is_pending(sequence) && Instant::now() < until {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            // A position of another epoch may be of a log that is gone: the source answers it.
            if live.is_pending(sequence) && epoch == live.epoch() {
                return Resume::CannotContinue.into();
            }
            let Some(stream) = stream.upgrade() else { return Resume::CannotContinue.into() };
            let (start, asking) = timed(|| source.join(&stream, Some(&after)));
            drop(stream);
            let Answer { resume, took } = match start {
                Resume::Throttled(later) | Resume::Pending(later) => later.await,
                start => start.into(),
            };
            Answer { resume, took: asking + took }
        }))
    }

    fn catch_up(&self, stream: &ResponseStream, seen: u64) -> Resume {
        self.source.catch_up(stream, seen)
    }

    fn advance(&self, stream: &ResponseStream) {
        self.source.advance(stream);
    }

    fn detach(&self, stream: &ResponseStream) {
        self.source.detach(stream);
    }
}

/// The newest position in a cursor; `None` where it can't be read: the source refuses it.
fn newest_position(cursor: &str) -> Option<(Epoch, u64)> {
    let positions = Cursor::decode(cursor).ok()?.positions;
    let newest = positions.iter().max_by_key(|(_, position)| position.sequence);
    newest.map(|(_, position)| (position.epoch, position.sequence))
}
