//! What encoding costs by owner: the streams that one owner reads alone, and all streams with few
//! readers together. A stream that is served beyond one of these budgets is to be merged, before
//! the processor is so busy that everybody waits.

use std::time::Duration;

use foldhash::{HashMap, HashMapExt as _};
use tokio::time::Instant;

use crate::bucket::{Bucket, Flow};
use crate::schedule::Audience;

/// The bit of an owner's number which says that no owner's budget limits its streams.
pub const EXEMPT: u64 = 1 << 63;

/// What all streams with few readers may take of a worker's thread, in microseconds a second: the
/// rest is for shared streams, for what the sockets ask for, and for writing.
const ALL_RATE: u32 = 400_000;
/// How long a thread may be busy at once before streams are merged: a second of encoding, so that
/// a recording which is replayed is not.
const BURST_MICROS: u32 = 1_000_000;
/// With fewer streams no budget binds: one busy market can cost more than thousands of quiet ones.
pub(crate) const FREE_STREAMS: usize = 16;
/// With so many readers a stream's encoding is a small part of what it costs.
const CROWD: usize = 8;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Owners {
    by_id: HashMap<u64, Owner>,
    /// Of an owner's budget, in microseconds a second.
    rate: u32,
    streams: usize,
    all: Budget,
    /// Owners in debt.
    in_debt: Vec<u64>,
}

#[derive(Debug)]
struct Owner {
    streams: usize,
    budget: Budget,
}

#[derive(Debug)]
struct Budget {
    flow: Flow,
    bucket: Bucket,
    in_debt: bool,
}

impl Budget {
    fn new(rate: u32, now: Instant) -> Self {
        let flow = Flow { rate, burst: rate.min(BURST_MICROS) };
        Self { flow, bucket: Bucket::new(flow, now), in_debt: false }
    }

    fn spend(&mut self, took: Duration, now: Instant) {
        // A debt is a quarter of the burst at most: streams that were slowed down since need not
        // pay for it by an even slower pace.
        if self.bucket.spent_nanos(self.flow, now) < 1_250 * u64::from(self.flow.burst) {
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.bucket.spend(nanos, self.flow, now);
        }
        self.look(now);
    }

    fn look(&mut self, now: Instant) {
        self.in_debt = self.bucket.wait(self.flow, now).is_some();
    }

    /// At least half of the burst is there.
    fn has_room(&mut self, now: Instant) -> bool {
        self.bucket.spent_nanos(self.flow, now) <= 500 * u64::from(self.flow.burst)
    }
}

impl Owners {
    /// An owner may spend so many microseconds a second.
    pub(crate) fn new(rate: u32, now: Instant) -> Self {
        Self {
            by_id: HashMap::new(),
            rate,
            streams: 0,
            all: Budget::new(ALL_RATE, now),
            in_debt: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, owner: u64, now: Instant) {
        let rate = self.rate;
        let new = || Owner { streams: 0, budget: Budget::new(rate, now) };
        self.by_id.entry(owner).or_insert_with(new).streams += 1;
        self.streams += 1;
    }

    /// An owner whose last stream ends is forgotten, and with it what it spent: a stream that is
    /// opened again costs more than that.
    pub(crate) fn remove(&mut self, id: u64) {
        let Some(owner) = self.by_id.get_mut(&id) else { return };
        owner.streams -= 1;
        self.streams -= 1;
        if owner.streams == 0 {
            self.by_id.remove(&id);
        }
    }

    /// How many streams share their owner's turns.
    pub(crate) fn sharing(&self, id: u64, audience: Audience) -> usize {
        let owner = self.by_id.get(&id).filter(|_| !audience.shared);
        owner.map_or(1, |owner| owner.streams)
    }

    fn binds_all(&self, audience: Audience) -> bool {
        audience.readers < CROWD && self.streams > FREE_STREAMS
    }

    /// The owner, where its own budget binds.
    fn bound(&mut self, id: u64, audience: Audience) -> Option<&mut Owner> {
        let owner = self.by_id.get_mut(&id)?;
        let binds = id & EXEMPT == 0 && !audience.shared && owner.streams > FREE_STREAMS;
        binds.then_some(owner)
    }

    /// Charges what serving a stream took; whether it is to be merged.
    pub(crate) fn spend(
        &mut self,
        id: u64,
        audience: Audience,
        took: Duration,
        now: Instant,
    ) -> bool {
        let mut beyond = false;
        if let Some(owner) = self.bound(id, audience) {
            let before = owner.budget.in_debt;
            owner.budget.spend(took, now);
            beyond = owner.budget.in_debt;
            if beyond && !before {
                self.in_debt.push(id);
            }
        }
        if self.binds_all(audience) {
            self.all.spend(took, now);
            beyond |= self.all.in_debt;
        }
        beyond
    }

    /// Whether no event should wait for a stream of such an audience.
    pub(crate) fn is_beyond(&mut self, id: u64, audience: Audience) -> bool {
        let all = self.all.in_debt && self.binds_all(audience);
        all || self.bound(id, audience).is_some_and(|owner| owner.budget.in_debt)
    }

    /// Whether a merged stream may get a faster pace.
    pub(crate) fn has_room(&mut self, id: u64, audience: Audience, now: Instant) -> bool {
        let all = !self.binds_all(audience) || self.all.has_room(now);
        let own = self.bound(id, audience);
        all && own.is_none_or(|owner| owner.budget.has_room(now))
    }

    /// Looks which debts are paid.
    pub(crate) fn look(&mut self, now: Instant) {
        self.all.look(now);
        let by_id = &mut self.by_id;
        self.in_debt.retain(|id| {
            let Some(owner) = by_id.get_mut(id) else { return false };
            owner.budget.look(now);
            owner.budget.in_debt
        });
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty() && self.streams == 0
    }
}
