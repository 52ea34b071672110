//! Which response stream is encoded next, and which ones are merged because they can't keep their
//! pace. A pure state machine: the caller passes the time, and what an encoding cost.
//!
//! Streams are served in the order of readers per cost. The cost of a stream with a single owner is
//! multiplied by how many such streams that owner has. So a further stream of an owner takes turns
//! from that owner's other streams. A stream that waits for longer than its pace allows gets the
//! next slower pace, which merges its changes. So does a stream that is served beyond a budget, see
//! `owners`.

mod adapt;
mod portions;
mod ready_queue;
#[cfg(test)]
mod tests;

use std::time::Duration;

use foldhash::{HashMap, HashMapExt as _};
use tokio::time::Instant;

use self::portions::Portions;
use self::ready_queue::{ReadyQueue, Ticket};
use crate::owners::Owners;
use crate::pace::Pace;
use crate::readership::Readership;

/// A wait that is no reason to stay merged: some 200 encodings.
const SHORT_WAIT: Duration = Duration::from_millis(2);
/// How long a merged stream keeps its pace at least before it may get a faster one.
const FIRST_HOLD: Duration = Duration::from_secs(1);
/// Periods of the slowest pace in a row for which a stream beyond a budget is left out at most.
const MOST_SKIPPED: u8 = 3;
/// The largest multiple of a stream's usual cost that is counted for one encoding.
const MOST_OF_USUAL: u32 = 4;
/// The assumed cost of a stream that was not encoded yet.
const FIRST_COST_NANOS: u32 = 12_000;

/// What is known of a stream.
#[derive(Debug)]
struct StreamState {
    /// The pace that its clients asked for.
    requested: Pace,
    pace: Pace,
    owner: u64,
    /// Nanoseconds that an encoding takes, averaged over the last ones.
    cost: u32,
    /// Since when it waits for its turn, by the clock of [`Schedule::spent`].
    waits_since: Option<Duration>,
    /// The number of its last wait, see [`Ticket::wait`].
    wait: u64,
    /// The next event waits for it.
    is_blocking: bool,
    /// At the time when it was last made ready.
    readership: Readership,
    /// Periods of the slowest pace in a row for which it was left out.
    skipped: u8,
    /// In [`Schedule::over_budget`].
    is_over_budget: bool,
    /// When it was last slowed down.
    slowed: Option<Instant>,
    /// Waits in a row that were short.
    short_waits: u32,
    /// It gets no faster pace before this time.
    hold_until: Option<Instant>,
    /// How long it is held the next time.
    next_hold: Duration,
}

/// A stream has a new pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaceChange {
    pub id: u64,
    pub pace: Pace,
}

/// See the module's text.
#[derive(Debug)]
pub struct Schedule {
    streams: HashMap<u64, StreamState>,
    owners: Owners,
    /// Streams that were served beyond a budget since the last check.
    over_budget: Vec<u64>,
    queue: ReadyQueue,
    /// Streams that wait.
    waiting: usize,
    /// Of these, streams that the next event waits for.
    blocking: usize,
    /// Of those that wait, streams that several clients read.
    shared: usize,
    /// By pace, see [`Pace::MERGING`].
    merging: [Portions; 3],
    /// When the waits were last checked.
    checked: Instant,
    /// What serving all streams took so far: the clock by which waits are counted.
    spent: Duration,
}

impl Schedule {
    /// The streams of one owner may cost so many microseconds a second.
    pub fn new(owner_rate: u32, now: Instant) -> Self {
        Self {
            streams: HashMap::new(),
            owners: Owners::new(owner_rate, now),
            over_budget: Vec::new(),
            queue: ReadyQueue::default(),
            waiting: 0,
            blocking: 0,
            shared: 0,
            merging: Pace::MERGING.map(|pace| Portions::new(pace, now)),
            checked: now,
            spent: Duration::ZERO,
        }
    }

    /// A stream begins, at the pace that its clients asked for.
    pub fn add(&mut self, id: u64, requested: Pace, owner: u64, now: Instant) {
        let state = StreamState {
            requested,
            pace: requested,
            owner,
            cost: FIRST_COST_NANOS,
            waits_since: None,
            wait: 0,
            is_blocking: false,
            readership: Readership { readers: 1, shared: false },
            skipped: 0,
            is_over_budget: false,
            slowed: None,
            short_waits: 0,
            hold_until: None,
            next_hold: FIRST_HOLD,
        };
        if self.streams.insert(id, state).is_none() {
            self.owners.add(owner, now);
            self.add_to_pace(id, requested);
        }
    }

    /// A stream ends.
    pub fn remove(&mut self, id: u64) {
        let Some(state) = self.streams.remove(&id) else { return };
        self.owners.remove(state.owner);
        self.remove_from_pace(id, state.pace);
        if state.waits_since.is_some() {
            self.leave_queue(state.is_blocking, state.readership);
        }
    }

    fn add_to_pace(&mut self, id: u64, pace: Pace) {
        if let Some(index) = pace.merging_index() {
            self.merging[index].ids.insert(id);
        }
    }

    fn remove_from_pace(&mut self, id: u64, pace: Pace) {
        if let Some(index) = pace.merging_index() {
            self.merging[index].ids.remove(&id);
        }
    }

    fn leave_queue(&mut self, was_blocking: bool, readership: Readership) {
        self.waiting -= 1;
        self.blocking -= usize::from(was_blocking);
        self.shared -= usize::from(readership.readers > 1);
    }

    /// A stream may have something to push. If it waits already, it keeps its place.
    pub fn ready(&mut self, id: u64, readership: Readership) {
        self.enter(id, readership, true);
    }

    /// As [`Self::ready`], for heartbeats and for the rest of a long step: no event waits for them.
    pub fn ready_unawaited(&mut self, id: u64, readership: Readership) {
        self.enter(id, readership, false);
    }

    fn enter(&mut self, id: u64, readership: Readership, is_awaited: bool) {
        let Some(state) = self.streams.get_mut(&id) else { return };
        if state.waits_since.is_some() {
            return;
        }
        let over_budget = self.owners.is_over_budget(state.owner, readership);
        if over_budget && state.pace == Pace::S1 && state.skipped < MOST_SKIPPED {
            state.skipped += 1;
            return;
        }
        state.skipped = 0;
        state.readership = readership;
        state.waits_since = Some(self.spent);
        state.is_blocking = is_awaited && state.pace == Pace::Raw && !over_budget;
        self.waiting += 1;
        self.blocking += usize::from(state.is_blocking);
        self.shared += usize::from(readership.readers > 1);
        let sharing = self.owners.sharing(state.owner, readership);
        let score = readership.readers as f64 / (f64::from(state.cost) * sharing as f64);
        state.wait = self.queue.push(id, score, state.pace, self.spent);
    }

    /// The merged streams that are due. The caller says which of them are ready.
    pub fn tick(&mut self, now: Instant) -> Vec<u64> {
        self.merging.iter_mut().flat_map(|portions| portions.tick(now)).collect()
    }

    /// The stream whose turn it is. It no longer waits.
    pub fn pop(&mut self) -> Option<u64> {
        let order = self.queue.next_order();
        loop {
            let Ticket { id, wait } = self.queue.pop(order)?;
            let Some(state) = self.streams.get_mut(&id).filter(|state| state.wait == wait) else {
                continue;
            };
            if let Some(since) = state.waits_since.take() {
                let is_short = self.spent - since <= SHORT_WAIT;
                state.short_waits = if is_short { state.short_waits.saturating_add(1) } else { 0 };
                let was_blocking = std::mem::take(&mut state.is_blocking);
                let readership = state.readership;
                self.leave_queue(was_blocking, readership);
                self.sweep_stale();
                return Some(id);
            }
        }
    }

    /// Keeps the stale entries of the queue from piling up.
    fn sweep_stale(&mut self) {
        let streams = &self.streams;
        self.queue.sweep_stale(self.waiting * 2 + 64, |Ticket { id, wait }| {
            let state = streams.get(&id);
            state.is_some_and(|state| state.waits_since.is_some() && state.wait == wait)
        });
    }

    /// A stream was served, which took so long; `pushed` if there was something to push. Of a time
    /// far above the usual only a part counts: then the thread was not running.
    pub fn served(&mut self, id: u64, took: Duration, pushed: bool, now: Instant) {
        let Some(state) = self.streams.get_mut(&id) else { return };
        let took = u32::try_from(took.as_nanos()).unwrap_or(u32::MAX);
        let took = took.clamp(1, state.cost.saturating_mul(MOST_OF_USUAL));
        let counted = Duration::from_nanos(took.into());
        self.spent += counted;
        let over_budget = self.owners.spend(state.owner, state.readership, counted, now);
        if over_budget && !state.is_over_budget {
            state.is_over_budget = true;
            self.over_budget.push(id);
        }
        if pushed {
            state.cost = state.cost - state.cost / 8 + took / 8;
        }
    }

    /// Whether this stream's owner is beyond a budget.
    pub fn is_over_budget(&mut self, id: u64) -> bool {
        let Some(state) = self.streams.get(&id) else { return false };
        self.owners.is_over_budget(state.owner, state.readership)
    }

    /// Streams that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Of these, streams that several clients read.
    pub fn waiting_shared(&self) -> usize {
        self.shared
    }

    /// Of those that wait, streams of pace RAW within their budgets: the next event should wait for
    /// them, for a limited time.
    pub fn blocking(&self) -> usize {
        self.blocking
    }

    /// Whether the next event should wait for this stream.
    pub fn is_blocking(&self, id: u64) -> bool {
        self.streams.get(&id).is_some_and(|state| state.is_blocking)
    }

    /// Streams that are served at a slower pace than their clients asked for, by pace.
    pub fn merged(&self) -> [usize; 3] {
        let mut count = [0; 3];
        for (count, portions) in count.iter_mut().zip(&self.merging) {
            let is_slower = |id: &&u64| {
                self.streams.get(id).is_some_and(|state| state.requested < portions.pace)
            };
            *count = portions.ids.iter().filter(is_slower).count();
        }
        count
    }

    #[cfg(test)]
    fn is_merged(&self, id: u64) -> bool {
        self.streams.get(&id).is_some_and(|state| state.pace > state.requested)
    }

    /// Whether a stream is brought up to date by the clock instead of with each event.
    #[cfg(test)]
    fn is_paced(&self, id: u64) -> bool {
        self.streams.get(&id).is_some_and(|state| state.pace != Pace::Raw)
    }

    /// When the next merged streams are due.
    pub fn next_due(&self) -> Option<Instant> {
        self.merging.iter().filter_map(Portions::next_due).min()
    }
}
