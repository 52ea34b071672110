//! What encoding costs by owner: the streams with a single owner, and all streams with few readers
//! together. A stream that is served beyond one of these budgets is merged before the processor is
//! so busy that all others wait.

use std::time::Duration;

use foldhash::{HashMap, HashMapExt as _};
use tokio::time::Instant;

use crate::bucket::{Bucket, Flow};
use crate::readership::Readership;

/// The bit of an owner's number that exempts its streams from the budget of an owner.
pub const EXEMPT: u64 = 1 << 63;

/// What all streams with few readers may take of a worker's thread, in microseconds a second. The
/// rest is for shared streams, for requests of the sockets, and for writing.
const ALL_RATE: u32 = 400_000;
/// How long a thread may be busy at once before streams are merged: a second of encoding, so that
/// a recording which is replayed is not.
const BURST_MICROS: u32 = 1_000_000;
/// Up to so many streams no budget applies: one busy market can cost more than thousands of quiet
/// ones.
pub(crate) const FREE_STREAMS: usize = 16;
/// With so many readers a stream's encoding is a small part of its cost.
const CROWD: usize = 8;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Owners {
    by_id: HashMap<u64, Owner>,
    /// Of an owner's budget, in microseconds a second.
    rate: u32,
    streams: usize,
    all: TimeBudget,
    /// Owners in debt.
    in_debt: Vec<u64>,
}

#[derive(Debug)]
struct Owner {
    streams: usize,
    budget: TimeBudget,
}

#[derive(Debug)]
struct TimeBudget {
    flow: Flow,
    bucket: Bucket,
    in_debt: bool,
}

impl TimeBudget {
    fn new(rate: u32, now: Instant) -> Self {
        let flow = Flow { rate, burst: rate.min(BURST_MICROS) };
        Self { flow, bucket: Bucket::new(flow, now), in_debt: false }
    }

    fn spend(&mut self, took: Duration, now: Instant) {
        // A debt is at most a quarter of the burst. Streams that were slowed down since should not
        // get an even slower pace for it.
        if self.bucket.spent_nanos(self.flow, now) < 1_250 * u64::from(self.flow.burst) {
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.bucket.spend(nanos, self.flow, now);
        }
        self.check_debt(now);
    }

    fn check_debt(&mut self, now: Instant) {
        self.in_debt = self.bucket.wait(self.flow, now).is_some();
    }

    /// At least half of the burst is left.
    fn has_room(&mut self, now: Instant) -> bool {
        self.bucket.spent_nanos(self.flow, now) <= 500 * u64::from(self.flow.burst)
    }
}

impl Owners {
    /// Each owner may spend so many microseconds a second.
    pub(crate) fn new(rate: u32, now: Instant) -> Self {
        Self {
            by_id: HashMap::new(),
            rate,
            streams: 0,
            all: TimeBudget::new(ALL_RATE, now),
            in_debt: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, owner: u64, now: Instant) {
        let rate = self.rate;
        let new = || Owner { streams: 0, budget: TimeBudget::new(rate, now) };
        self.by_id.entry(owner).or_insert_with(new).streams += 1;
        self.streams += 1;
    }

    /// Forgets an owner with its last stream, and with it what the owner spent. Opening a stream
    /// again costs more than that.
    pub(crate) fn remove(&mut self, id: u64) {
        let Some(owner) = self.by_id.get_mut(&id) else { return };
        owner.streams -= 1;
        self.streams -= 1;
        if owner.streams == 0 {
            self.by_id.remove(&id);
        }
    }

    /// How many streams share the turns of this owner.
    pub(crate) fn sharing(&self, id: u64, readership: Readership) -> usize {
        let owner = self.by_id.get(&id).filter(|_| !readership.shared);
        owner.map_or(1, |owner| owner.streams)
    }

    fn all_applies(&self, readership: Readership) -> bool {
        readership.readers < CROWD && self.streams > FREE_STREAMS
    }

    /// The owner, if its own budget applies.
    fn limited_owner(&mut self, id: u64, readership: Readership) -> Option<&mut Owner> {
        let owner = self.by_id.get_mut(&id)?;
        let applies = id & EXEMPT == 0 && !readership.shared && owner.streams > FREE_STREAMS;
        applies.then_some(owner)
    }

    /// Charges what serving a stream took. True if the stream should be merged.
    pub(crate) fn spend(
        &mut self,
        id: u64,
        readership: Readership,
        took: Duration,
        now: Instant,
    ) -> bool {
        let mut over_budget = false;
        if let Some(owner) = self.limited_owner(id, readership) {
            let before = owner.budget.in_debt;
            owner.budget.spend(took, now);
            over_budget = owner.budget.in_debt;
            if over_budget && !before {
                self.in_debt.push(id);
            }
        }
        if self.all_applies(readership) {
            self.all.spend(took, now);
            over_budget |= self.all.in_debt;
        }
        over_budget
    }

    /// Whether a budget that applies to the stream is used up: then no event waits for it.
    pub(crate) fn is_over_budget(&mut self, id: u64, readership: Readership) -> bool {
        let all = self.all.in_debt && self.all_applies(readership);
        all || self.limited_owner(id, readership).is_some_and(|owner| owner.budget.in_debt)
    }

    /// Whether a merged stream may get a faster pace.
    pub(crate) fn has_room(&mut self, id: u64, readership: Readership, now: Instant) -> bool {
        let all = !self.all_applies(readership) || self.all.has_room(now);
        let own = self.limited_owner(id, readership);
        all && own.is_none_or(|owner| owner.budget.has_room(now))
    }

    /// Checks which debts are paid.
    pub(crate) fn check_debts(&mut self, now: Instant) {
        self.all.check_debt(now);
        let by_id = &mut self.by_id;
        self.in_debt.retain(|id| {
            let Some(owner) = by_id.get_mut(id) else { return false };
            owner.budget.check_debt(now);
            owner.budget.in_debt
        });
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty() && self.streams == 0
    }
}
