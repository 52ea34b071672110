//! A token bucket of processor time that may go into debt. The cost of work is known only
//! afterwards. So work is admitted while the bucket is above zero, and then pays its full cost.

use std::time::Duration;

use tokio::time::Instant;

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Microseconds of processor time a second.
    pub rate: u32,
    /// Microseconds of processor time that it holds at most.
    pub burst: u32,
}

impl Flow {
    fn full(self) -> i64 {
        i64::from(self.burst) * 1_000
    }
}

#[derive(Debug)]
pub struct Bucket {
    /// Nanoseconds of processor time; below zero: a debt.
    nanos: i64,
    filled: Instant,
}

impl Bucket {
    pub fn new(flow: Flow, now: Instant) -> Self {
        Self { nanos: flow.full(), filled: now }
    }

    fn fill(&mut self, flow: Flow, now: Instant) {
        let waited = now.saturating_duration_since(self.filled);
        // A microsecond of processor time a second is a nanosecond each millisecond.
        let gained = waited.as_micros().saturating_mul(u128::from(flow.rate)) / 1_000;
        if gained > 0 {
            let gained = i64::try_from(gained).unwrap_or(i64::MAX);
            self.nanos = self.nanos.saturating_add(gained).min(flow.full());
            self.filled = now;
        }
    }

    /// Takes a cost, also if that makes a debt.
    pub fn spend(&mut self, nanos: u64, flow: Flow, now: Instant) {
        self.fill(flow, now);
        self.nanos = self.nanos.saturating_sub(i64::try_from(nanos).unwrap_or(i64::MAX));
    }

    /// Time until it is above zero; `None` if it is.
    pub fn wait(&mut self, flow: Flow, now: Instant) -> Option<Duration> {
        self.fill(flow, now);
        if self.nanos > 0 {
            return None;
        }
        let debt = 1 + self.nanos.unsigned_abs();
        let millis = debt.div_ceil(u64::from(flow.rate.max(1)));
        Some(Duration::from_millis(millis))
    }

    /// Nothing was spent, or all of it was refilled.
    pub fn is_full(&mut self, flow: Flow, now: Instant) -> bool {
        self.fill(flow, now);
        self.nanos >= flow.full()
    }

    /// How much it is below full.
    pub fn spent_nanos(&mut self, flow: Flow, now: Instant) -> u64 {
        self.fill(flow, now);
        flow.full().saturating_sub(self.nanos).max(0).unsigned_abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: Flow = Flow { rate: 50_000, burst: 1_000_000 };

    #[test]
    fn a_debt_is_paid_at_the_rate_and_the_bucket_never_holds_more_than_its_burst() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut bucket = Bucket::new(FLOW, start);
        assert!(bucket.is_full(FLOW, at(5_000)));
        bucket.spend(1_100_000_000, FLOW, at(5_000));
        // 100 ms of debt at 50 ms a second.
        assert_eq!(bucket.wait(FLOW, at(5_000)), Some(Duration::from_millis(2_001)));
        assert_eq!(bucket.wait(FLOW, at(7_000)), Some(Duration::from_millis(1)));
        assert_eq!(bucket.wait(FLOW, at(7_001)), None);
        assert!(!bucket.is_full(FLOW, at(26_999)));
        assert!(bucket.is_full(FLOW, at(27_000)));
    }

    #[test]
    fn frequent_checks_lose_no_time() {
        let start = Instant::now();
        let flow = Flow { rate: 1, burst: 1_000 };
        let mut bucket = Bucket::new(flow, start);
        bucket.spend(1_000_000, flow, start);
        for micros in 1..=1_000_000u64 {
            bucket.wait(flow, start + Duration::from_micros(micros));
        }
        assert_eq!(bucket.spent_nanos(flow, start + Duration::from_secs(1)), 1_000_000 - 1_000);
    }
}
