//! How long to wait before the next attempt at something that failed. No clock, no task.

use std::time::Duration;

use rand::Rng;

/// Doubling waits with jitter, so that those who failed together don't return together.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    ceiling: Duration,
    next: Duration,
}

impl Backoff {
    /// From the first wait to the longest, jitter included.
    pub fn between(first: Duration, ceiling: Duration) -> Self {
        Self { first, ceiling, next: first }
    }

    /// Between half of the wait that is due and all of it.
    pub fn wait(&mut self) -> Duration {
        let due = self.next;
        self.next = (due * 2).min(self.ceiling);
        due.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Only once things work again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_ceiling_and_start_again_when_healthy() {
        let (first, ceiling) = (Duration::from_millis(10), Duration::from_secs(1));
        let mut backoff = Backoff::between(first, ceiling);
        for _ in 0..20 {
            assert!(backoff.wait() <= ceiling);
        }
        assert!(backoff.wait() >= ceiling / 2);
        backoff.reset();
        assert!(backoff.wait() <= first);
    }
}
