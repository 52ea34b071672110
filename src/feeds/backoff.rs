//! How long to wait before the next attempt at something that failed.

use std::time::Duration;

use rand::Rng;

/// First wait: most faults that pass at all (a lock, a rename in progress) pass within it.
const FIRST: Duration = Duration::from_millis(10);
/// Longest wait, jitter included: a mended disk is noticed within a second.
pub const CEILING: Duration = Duration::from_secs(1);

/// Doubling waits with jitter, so that hubs that failed together don't return together.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    pub fn new() -> Self {
        Self { next: FIRST }
    }

    /// Between half of the wait that is due and all of it.
    pub fn wait(&mut self) -> Duration {
        let due = self.next;
        self.next = (due * 2).min(CEILING);
        due.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Only once things work again.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_ceiling_and_begin_anew_when_healthy() {
        let mut backoff = Backoff::new();
        for _ in 0..20 {
            assert!(backoff.wait() <= CEILING);
        }
        assert!(backoff.wait() >= CEILING / 2);
        backoff.reset();
        assert!(backoff.wait() <= FIRST);
    }
}
