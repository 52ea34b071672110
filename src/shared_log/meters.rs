//! How long writes wait for a connection to the shared log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Counters since the start.
#[derive(Debug, Default)]
pub struct PostgresMeters {
    pub taken: AtomicU64,
    pub waited_nanos: AtomicU64,
    pub failed: AtomicU64,
}

impl PostgresMeters {
    /// A write that began to wait at a time got a connection, or none.
    pub(super) fn take(&self, began: Instant, taken: bool) {
        let waited = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited_nanos.fetch_add(waited, Ordering::Relaxed);
        if taken { &self.taken } else { &self.failed }.fetch_add(1, Ordering::Relaxed);
    }
}
