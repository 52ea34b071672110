//! What a storm counts. Shared by all connections; touched once or twice a message, so plain
//! relaxed atomics, and a lock only where it is rare (one message in 64, a close).

use super::follow::FollowCounts;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct Meters {
    pub acknowledged: AtomicU64,
    /// Connections of which every operation has had its first result (or its end).
    pub ready: AtomicU64,
    /// Connections that were refused or ended before they were ready.
    pub failed: AtomicU64,
    /// Results (`next`).
    pub messages: AtomicU64,
    /// Bytes off the wire, frame headers included.
    pub bytes: AtomicU64,
    pub errors: AtomicU64,
    pub completes: AtomicU64,
    /// Latency counts only inside the measured window.
    pub measuring: AtomicBool,
    rare: Mutex<Rare>,
}

/// What the lock guards.
#[derive(Debug, Default)]
pub struct Rare {
    pub latency: Histogram,
    /// Samples with a negative age: the hub's clock is ahead of this machine's.
    pub early: u64,
    pub refusals: BTreeMap<String, u64>,
    pub closes: BTreeMap<String, u64>,
    pub follow: FollowCounts,
    /// The first `error` message, printed in the report: usually all are the same.
    pub first_error: Option<String>,
}

impl Meters {
    pub fn add(counter: &AtomicU64, amount: u64) -> u64 {
        counter.fetch_add(amount, Ordering::Relaxed)
    }

    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// Nothing panics while it holds the lock, but a report is wanted even then.
    pub fn rare(&self) -> std::sync::MutexGuard<'_, Rare> {
        self.rare.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Buckets of 1/32 of their power of two: 3 % wide, 2 KiB × 4, no allocation a sample.
const SUB_BUCKETS: u64 = 32;
const BUCKETS: usize = 2048;

/// Microseconds, in buckets.
#[derive(Debug)]
pub struct Histogram {
    buckets: Vec<u32>,
    pub samples: u64,
    pub max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], samples: 0, max: 0 }
    }
}

impl Histogram {
    pub fn record(&mut self, micros: u64) {
        self.samples += 1;
        self.max = self.max.max(micros);
        self.buckets[bucket_of(micros).min(BUCKETS - 1)] += 1;
    }

    pub fn add(&mut self, other: &Self) {
        self.samples += other.samples;
        self.max = self.max.max(other.max);
        for (bucket, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += count;
        }
    }

    /// The upper edge of the bucket that holds the quantile, never above the maximum.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        if self.samples == 0 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
        let rank = ((self.samples as f64 * quantile).ceil() as u64).max(1);
        let mut passed = 0;
        let bucket = self.buckets.iter().position(|count| {
            passed += u64::from(*count);
            passed >= rank
        })?;
        Some(upper_edge(bucket).min(self.max))
    }
}

fn bucket_of(micros: u64) -> usize {
    if micros < SUB_BUCKETS {
        return usize::try_from(micros).unwrap_or(0);
    }
    let shift = micros.ilog2() - SUB_BUCKETS.ilog2();
    let within = (micros >> shift) - SUB_BUCKETS;
    usize::try_from(SUB_BUCKETS * (u64::from(shift) + 1) + within).unwrap_or(BUCKETS)
}

fn upper_edge(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB_BUCKETS {
        return bucket;
    }
    let shift = bucket / SUB_BUCKETS - 1;
    ((SUB_BUCKETS + bucket % SUB_BUCKETS + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_at_most_one_bucket_above_the_truth() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for micros in 1..=10_000 {
            histogram.record(micros);
        }
        for (quantile, truth) in [(0.5, 5_000), (0.99, 9_900), (1.0, 10_000)] {
            let found = histogram.quantile(quantile).unwrap();
            assert!((truth..=truth + truth / SUB_BUCKETS).contains(&found), "{found}");
        }
    }

    #[test]
    fn every_value_lies_in_a_bucket_whose_edge_is_not_below_it() {
        for micros in (0..100_000).chain([u64::from(u32::MAX), 1 << 40]) {
            let bucket = bucket_of(micros);
            assert!(upper_edge(bucket) >= micros);
            assert!(bucket == 0 || upper_edge(bucket - 1) < micros);
        }
    }
}
