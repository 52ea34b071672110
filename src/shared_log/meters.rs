//! How long writes wait for a connection to the shared log, and what is known of its hubs.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

/// Counters since the start, and what the hub saw when the database last answered.
#[derive(Debug, Default)]
pub struct PostgresMeters {
    pub taken: AtomicU64,
    pub waited_nanos: AtomicU64,
    pub failed: AtomicU64,
    /// Hubs of the log, this one among them.
    pub hubs_live: AtomicU64,
    /// Those of another release or with other settings than this one.
    pub hubs_different: AtomicU64,
    /// Topics of Kafka that a hub has read and none reads now.
    pub topics_unread: AtomicU64,
    /// How far this hub's clock is ahead of the database's.
    pub clock_micros: AtomicI64,
}

impl PostgresMeters {
    /// A write that began to wait at a time got a connection, or none.
    pub(super) fn take(&self, began: Instant, taken: bool) {
        let waited = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited_nanos.fetch_add(waited, Ordering::Relaxed);
        if taken { &self.taken } else { &self.failed }.fetch_add(1, Ordering::Relaxed);
    }
}
