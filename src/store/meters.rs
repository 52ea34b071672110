//! What the log counts of itself, for operators.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

#[derive(Debug, Default)]
pub struct StoreMeters {
    /// Transactions with events or with feeds' progress.
    pub commits: AtomicU64,
    pub commit_nanos: AtomicU64,
    pub commit_failures: AtomicU64,
    /// Sequence of the newest event.
    pub newest: AtomicU64,
}

impl StoreMeters {
    /// Counts a commit that began at a time.
    pub(super) fn commit<T, E>(&self, began: Instant, done: &Result<T, E>) {
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match done {
            Ok(_) => {
                self.commits.fetch_add(1, Ordering::Relaxed);
                self.commit_nanos.fetch_add(nanos, Ordering::Relaxed);
            }
            Err(_) => {
                self.commit_failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
