//! The line in which the work of one address waits for the pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::MOST_JOBS;

/// Jobs of an address that are queued or run: one runs while the next is handed over.
pub const PLACES: usize = 2;

/// Requests of an address that wait for one of its places. Each holds its variables, at most
/// `limits.message_bytes`. An office of 100 sockets may ask for two deep books each at once.
pub const MOST_WAITING: usize = 256;

/// See the module's text.
pub struct Line {
    pub(super) places: Arc<Semaphore>,
    waiting: AtomicUsize,
    most_waiting: usize,
}

/// As many requests wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} requests wait already")]
pub struct LineFull(pub usize);

/// A request that waits in a line, or runs; counted until it is dropped.
pub struct Waiting(Arc<Line>);

impl Line {
    fn new(places: usize, most_waiting: usize) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(places));
        Arc::new(Self { places, waiting: AtomicUsize::new(0), most_waiting })
    }

    /// Of a client.
    pub fn limited() -> Arc<Self> {
        Self::new(PLACES, MOST_WAITING)
    }

    /// Of an address that nothing is refused to.
    pub fn exempt() -> Arc<Self> {
        Self::new(MOST_JOBS, usize::MAX)
    }

    /// Counts a request in.
    ///
    /// # Errors
    /// When as many wait as may.
    pub fn wait(self: &Arc<Self>) -> Result<Waiting, LineFull> {
        let more = |current| (current < self.most_waiting).then_some(current + 1);
        match self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Waiting(self.clone())),
            Err(current) => Err(LineFull(current)),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
