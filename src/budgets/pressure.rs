//! Prices rise while all clients together ask for more than the hub can give. So a hundred
//! addresses that each keep within their rate can't take the whole hub, and one that asks for
//! little notices nothing: its bucket is full.

use parking_lot::Mutex;
use spreadly_subscriptions::bucket::{Bucket, Flow};
use tokio::time::Instant;

/// What all clients' requests may take of the hub, in microseconds of processor time a second: half
/// of each shard. The rest is for the frames of streams, and for what the estimate misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubShare(pub u32);

impl HubShare {
    pub fn of_shards(shards: usize) -> Self {
        const EACH: u32 = 500_000;
        Self(u32::try_from(shards).unwrap_or(u32::MAX).saturating_mul(EACH))
    }
}

/// The price doubles, triples and so on with each of these that was asked for beyond the share.
const STEP_NANOS: u64 = 50_000_000;
/// Requests of so long at the share are nobody's fault: a crowd comes back, a page opens.
const FREE_NANOS: u64 = 250_000_000;
/// The highest factor. It also bounds how long prices stay up once demand is gone.
const MOST_FACTOR: u64 = 64;

pub(super) struct Pressure {
    flow: Flow,
    bucket: Mutex<Bucket>,
}

impl Pressure {
    pub(super) fn new(share: HubShare, now: Instant) -> Self {
        let burst = (FREE_NANOS + MOST_FACTOR * STEP_NANOS) / 1_000;
        let flow = Flow { rate: share.0, burst: u32::try_from(burst).unwrap_or(u32::MAX) };
        Self { flow, bucket: Mutex::new(Bucket::new(flow, now)) }
    }

    /// Notes some work, and says what its price is multiplied by.
    pub(super) fn spend(&self, nanos: u64, now: Instant) -> u64 {
        let mut bucket = self.bucket.lock();
        let factor = factor(bucket.spent_nanos(self.flow, now));
        // At the highest price it counts no further, so that prices fall soon.
        if factor < MOST_FACTOR {
            bucket.spend(nanos, self.flow, now);
        }
        factor
    }

    pub(super) fn factor(&self, now: Instant) -> u64 {
        factor(self.bucket.lock().spent_nanos(self.flow, now))
    }
}

fn factor(spent: u64) -> u64 {
    (1 + spent.saturating_sub(FREE_NANOS) / STEP_NANOS).min(MOST_FACTOR)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn prices_rise_with_demand_beyond_the_share_and_fall_again_within_seconds() {
        let start = Instant::now();
        let pressure = Pressure::new(HubShare::of_shards(1), start);
        // A quarter of a second of work at once is free of it.
        assert_eq!(pressure.spend(FREE_NANOS, start), 1);
        assert_eq!(pressure.spend(STEP_NANOS, start), 1);
        assert_eq!(pressure.factor(start), 2);
        for _ in 0..1_000 {
            pressure.spend(STEP_NANOS, start);
        }
        assert_eq!(pressure.factor(start), MOST_FACTOR);
        let later = |seconds| start + Duration::from_secs(seconds);
        assert!(pressure.factor(later(1)) < MOST_FACTOR);
        assert_eq!(pressure.factor(later(8)), 1);
    }
}
