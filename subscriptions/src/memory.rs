//! The memory of all response streams together: what their rings and caches hold, against one
//! budget. A ring counts its own bytes. The table of streams decides which rings are shrunk.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What a stream costs beside its ring and its cached frames: the parsed document, the state of the
/// GraphQL library, and the entries in the tables. An estimate from the sizes of these parts.
pub const STREAM_BYTES: usize = 48 << 10;

/// See the module's text.
#[derive(Debug)]
pub struct Memory {
    used: AtomicUsize,
    budget: usize,
}

impl Memory {
    pub fn new(budget: usize) -> Self {
        Self { used: AtomicUsize::new(0), budget }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that may be in use.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Bytes beyond three quarters of the budget. Rings are shrunk then already, so that the last
    /// quarter is free for pushes until they are.
    pub fn excess(&self) -> usize {
        self.used().saturating_sub(self.budget - self.budget / 4)
    }

    /// Half of the budget is free: rings may grow again.
    pub fn is_plenty(&self) -> bool {
        self.used() < self.budget / 2
    }

    /// Counts a part that had `before` bytes and has `now` bytes.
    pub(crate) fn change(&self, before: usize, now: usize) {
        if now >= before {
            self.used.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - now, Ordering::Relaxed);
        }
    }
}
