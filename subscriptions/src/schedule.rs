//! Which response stream is encoded next, and which ones are merged because they can't keep their
//! pace. A pure state machine: it is given the time, and what an encoding cost.
//!
//! Streams are served in the order of readers per cost. The cost of a stream that one owner reads
//! alone is multiplied by how many such streams that owner has, so that a second stream of the same
//! owner takes from the owner's first one and not from others. A stream that waits for longer than
//! its pace allows gets the next slower pace: its changes are merged.

use std::cmp::Ordering;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// How often a stream is brought up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pace {
    /// At each event.
    Raw,
    Ms100,
    Ms250,
    S1,
}

impl Pace {
    /// Those that gather changes, the fastest first.
    pub const MERGING: [Self; 3] = [Self::Ms100, Self::Ms250, Self::S1];

    /// Time between two encodings.
    pub fn period(self) -> Duration {
        Duration::from_millis(match self {
            Self::Raw => 0,
            Self::Ms100 => 100,
            Self::Ms250 => 250,
            Self::S1 => 1_000,
        })
    }

    /// How long a stream of this pace may wait for its turn before it gets the next slower pace.
    fn patience(self) -> Duration {
        match self {
            Self::Raw => RAW_PATIENCE,
            merging => merging.period(),
        }
    }

    fn slower(self) -> Self {
        match self {
            Self::Raw => Self::Ms100,
            Self::Ms100 => Self::Ms250,
            Self::Ms250 | Self::S1 => Self::S1,
        }
    }

    fn faster(self) -> Self {
        match self {
            Self::S1 => Self::Ms250,
            Self::Ms250 => Self::Ms100,
            Self::Ms100 | Self::Raw => Self::Raw,
        }
    }

    /// Its place in [`Pace::MERGING`]; `None` for [`Pace::Raw`].
    fn place(self) -> Option<usize> {
        Self::MERGING.iter().position(|one| *one == self)
    }
}

/// Wait after which a RAW stream is merged. A third of what a person notices, and longer than the
/// commit of the largest group of events takes, so that a burst alone merges nothing.
const RAW_PATIENCE: Duration = Duration::from_millis(50);
/// How often the waits are looked at.
const LOOK: Duration = Duration::from_millis(25);
/// How often merged streams may get a faster pace again.
const RECOVERY: Duration = Duration::from_secs(1);
/// Share of the last second that encoding may have taken, in percent, for that to happen.
const RECOVERY_BUSY_PERCENT: u32 = 40;
/// Least number of streams that get a faster pace at once; otherwise a quarter of the merged ones.
const RECOVERY_STREAMS: usize = 16;
/// Longest time that a stream which was merged again right after its recovery is left alone.
const MOST_HOLD: Duration = Duration::from_secs(8);
/// Every so many turns the stream that has waited longest goes first, so that none starves.
const OLDEST_EVERY: u32 = 4;
/// What the cost of a stream is taken for that was not encoded yet.
const FIRST_COST_NANOS: u32 = 12_000;

/// By whom a stream is read.
#[derive(Clone, Copy, Debug)]
pub struct Audience {
    pub readers: usize,
    /// By more than one owner: then how many streams its first owner has does not count.
    pub shared: bool,
}

/// What is known of a stream.
#[derive(Debug)]
struct Slot {
    own: Pace,
    pace: Pace,
    owner: u64,
    /// Nanoseconds that an encoding takes, averaged over the last ones.
    cost: u32,
    /// Since when it waits for its turn.
    waits: Option<Instant>,
    /// Tells this wait from earlier ones: entries of those are stale.
    wait: u64,
    /// No faster pace before this, and how long the next such time is.
    hold: (Option<Instant>, Duration),
}

/// A place in the queue.
#[derive(Debug)]
struct Ready {
    score: f64,
    wait: u64,
    id: u64,
}

impl Ord for Ready {
    fn cmp(&self, other: &Self) -> Ordering {
        // Of equal scores the one that has waited longer.
        self.score.total_cmp(&other.score).then_with(|| other.wait.cmp(&self.wait))
    }
}

impl PartialOrd for Ready {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ready {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ready {}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    id: u64,
    wait: u64,
    since: Instant,
}

/// What changed for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paced {
    pub id: u64,
    pub pace: Pace,
}

/// See the module's text.
#[derive(Debug)]
pub struct Schedule {
    slots: HashMap<u64, Slot>,
    /// Streams that one owner reads alone.
    owners: HashMap<u64, usize>,
    best: BinaryHeap<Ready>,
    /// In the order in which they began to wait.
    oldest: VecDeque<Waiting>,
    /// Waiting streams, and those among them whose pace is RAW.
    waiting: usize,
    raw_waiting: usize,
    /// By pace, see [`Pace::MERGING`].
    paced: [BTreeSet<u64>; 3],
    ticks: [Instant; 3],
    looked: Instant,
    recovered: Instant,
    /// Spent on encoding, and whether a stream had to wait for long, since `recovered`.
    spent: Duration,
    late: bool,
    turns: u32,
    waits: u64,
}

impl Schedule {
    pub fn new(now: Instant) -> Self {
        Self {
            slots: HashMap::new(),
            owners: HashMap::new(),
            best: BinaryHeap::new(),
            oldest: VecDeque::new(),
            waiting: 0,
            raw_waiting: 0,
            paced: Default::default(),
            ticks: Pace::MERGING.map(|pace| now + pace.period()),
            looked: now,
            recovered: now,
            spent: Duration::ZERO,
            late: false,
            turns: 0,
            waits: 0,
        }
    }

    /// A stream begins, at the pace that its clients asked for.
    pub fn add(&mut self, id: u64, own: Pace, owner: u64) {
        let slot = Slot {
            own,
            pace: own,
            owner,
            cost: FIRST_COST_NANOS,
            waits: None,
            wait: 0,
            hold: (None, RECOVERY),
        };
        if self.slots.insert(id, slot).is_none() {
            *self.owners.entry(owner).or_default() += 1;
            self.list(id, own);
        }
    }

    /// A stream ends.
    pub fn remove(&mut self, id: u64) {
        let Some(slot) = self.slots.remove(&id) else { return };
        self.disown(slot.owner);
        self.unlist(id, slot.pace);
        if slot.waits.is_some() {
            self.leave_queue(slot.pace);
        }
    }

    fn disown(&mut self, owner: u64) {
        if let Some(count) = self.owners.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(&owner);
            }
        }
    }

    fn list(&mut self, id: u64, pace: Pace) {
        if let Some(place) = pace.place() {
            self.paced[place].insert(id);
        }
    }

    fn unlist(&mut self, id: u64, pace: Pace) {
        if let Some(place) = pace.place() {
            self.paced[place].remove(&id);
        }
    }

    fn leave_queue(&mut self, pace: Pace) {
        self.waiting -= 1;
        self.raw_waiting -= usize::from(pace == Pace::Raw);
    }

    /// A stream may have something to push. It keeps its place where it waits already.
    pub fn ready(&mut self, id: u64, audience: Audience, now: Instant) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.waits.is_some() {
            return;
        }
        self.waits += 1;
        (slot.waits, slot.wait) = (Some(now), self.waits);
        self.waiting += 1;
        self.raw_waiting += usize::from(slot.pace == Pace::Raw);
        let streams = match audience.shared {
            true => 1,
            false => self.owners.get(&slot.owner).copied().unwrap_or(1),
        };
        let score = audience.readers as f64 / (f64::from(slot.cost) * streams as f64);
        self.best.push(Ready { score, wait: slot.wait, id });
        self.oldest.push_back(Waiting { id, wait: slot.wait, since: now });
    }

    /// The merging paces whose time has come, with their streams; whoever serves the schedule says
    /// which of these have something to push.
    pub fn tick(&mut self, now: Instant, mut due: impl FnMut(Pace, &BTreeSet<u64>)) {
        for (place, pace) in Pace::MERGING.into_iter().enumerate() {
            if now < self.ticks[place] {
                continue;
            }
            // Ticks that were missed are not made up for.
            self.ticks[place] = (self.ticks[place] + pace.period()).max(now);
            due(pace, &self.paced[place]);
        }
    }

    /// The stream whose turn it is; it waits no longer.
    pub fn next(&mut self) -> Option<u64> {
        self.turns = self.turns.wrapping_add(1);
        let by_age = self.turns.is_multiple_of(OLDEST_EVERY);
        loop {
            let (wait, id) = match by_age {
                true => {
                    let Waiting { wait, id, .. } = self.oldest.pop_front()?;
                    (wait, id)
                }
                false => {
                    let Ready { wait, id, .. } = self.best.pop()?;
                    (wait, id)
                }
            };
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            if slot.waits.is_some() && slot.wait == wait {
                slot.waits = None;
                let pace = slot.pace;
                self.leave_queue(pace);
                self.sweep_stale();
                return Some(id);
            }
        }
    }

    /// Keeps what was served by the other order from piling up.
    fn sweep_stale(&mut self) {
        let most = self.waiting * 2 + 64;
        let slots = &self.slots;
        let waits = |id: &u64, wait: u64| {
            slots.get(id).is_some_and(|slot| slot.waits.is_some() && slot.wait == wait)
        };
        if self.oldest.len() > most {
            self.oldest.retain(|waiting| waits(&waiting.id, waiting.wait));
        }
        if self.best.len() > most {
            self.best.retain(|ready| waits(&ready.id, ready.wait));
        }
    }

    /// What serving a stream took; `pushed` where there was something to push.
    pub fn served(&mut self, id: u64, took: Duration, pushed: bool) {
        self.spent += took;
        if let Some(slot) = self.slots.get_mut(&id).filter(|_| pushed) {
            let took = u32::try_from(took.as_nanos()).unwrap_or(u32::MAX).max(1);
            slot.cost = slot.cost - slot.cost / 8 + took / 8;
        }
    }

    /// Streams that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Of these, those whose pace is RAW: the next event should wait for them, within a budget.
    pub fn raw_waiting(&self) -> usize {
        self.raw_waiting
    }

    /// Streams that are served at a slower pace than their clients asked for, by pace.
    pub fn merged(&self) -> [usize; 3] {
        let mut count = [0; 3];
        for (place, ids) in self.paced.iter().enumerate() {
            let pace = Pace::MERGING[place];
            let slower = |id: &&u64| self.slots.get(id).is_some_and(|slot| slot.own < pace);
            count[place] = ids.iter().filter(slower).count();
        }
        count
    }

    /// Whether a stream is served at a slower pace than its clients asked for.
    pub fn is_merged(&self, id: u64) -> bool {
        self.slots.get(&id).is_some_and(|slot| slot.pace > slot.own)
    }

    /// Looks at the waits, and gives streams slower or faster paces; those whose pace changed.
    pub fn adapt(&mut self, now: Instant) -> Vec<Paced> {
        let mut changed: Vec<(Pace, Paced)> = Vec::new();
        if now.saturating_duration_since(self.looked) >= LOOK {
            self.looked = now;
            self.slow_down(now, &mut changed);
        }
        let since = now.saturating_duration_since(self.recovered);
        if since >= RECOVERY {
            self.recovered = now;
            let busy = std::mem::take(&mut self.spent);
            let late = std::mem::take(&mut self.late);
            if !late && busy * 100 <= since * RECOVERY_BUSY_PERCENT {
                self.speed_up(now, &mut changed);
            }
        }
        self.relist(&changed);
        changed.into_iter().map(|(_, paced)| paced).collect()
    }

    fn slow_down(&mut self, now: Instant, changed: &mut Vec<(Pace, Paced)>) {
        for Waiting { id, wait, since } in &self.oldest {
            if now.saturating_duration_since(*since) <= RAW_PATIENCE {
                // Those after it have not waited longer.
                break;
            }
            let Some(slot) = self.slots.get_mut(id).filter(|slot| slot.wait == *wait) else {
                continue;
            };
            let Some(since) = slot.waits else { continue };
            let waited = now.saturating_duration_since(since);
            self.late |= waited > slot.pace.patience();
            if waited <= slot.pace.patience() || slot.pace == Pace::S1 {
                continue;
            }
            let (before, pace) = (slot.pace, slot.pace.slower());
            self.raw_waiting -= usize::from(slot.pace == Pace::Raw);
            slot.pace = pace;
            let (_, next) = slot.hold;
            slot.hold = (Some(now + next), (next * 2).min(MOST_HOLD));
            // It has waited for the pace that it had; for the new one it begins to wait.
            slot.waits = Some(now);
            changed.push((before, Paced { id: *id, pace }));
        }
    }

    fn speed_up(&mut self, now: Instant, changed: &mut Vec<(Pace, Paced)>) {
        let slower: usize = self.merged().iter().sum();
        let most = (slower / 4).max(RECOVERY_STREAMS);
        for id in self.paced.iter().flatten() {
            if changed.len() == most {
                break;
            }
            let Some(slot) = self.slots.get_mut(id).filter(|slot| slot.pace > slot.own) else {
                continue;
            };
            if slot.hold.0.is_some_and(|until| now < until) {
                continue;
            }
            let before = slot.pace;
            slot.pace = before.faster().max(slot.own);
            if slot.waits.is_some() && slot.pace == Pace::Raw {
                self.raw_waiting += 1;
            }
            changed.push((before, Paced { id: *id, pace: slot.pace }));
        }
    }

    /// Puts streams into the lists of their paces.
    fn relist(&mut self, changed: &[(Pace, Paced)]) {
        for (before, Paced { id, pace }) in changed {
            self.unlist(*id, *before);
            self.list(*id, *pace);
        }
    }

    /// When the schedule has to be looked at though nothing happens.
    pub fn next_look(&self) -> Option<Instant> {
        let ticks = self.ticks.iter().zip(&self.paced);
        let ticks = ticks.filter(|(_, streams)| !streams.is_empty()).map(|(tick, _)| *tick);
        let recovery = self.paced.iter().any(|streams| !streams.is_empty());
        ticks.chain(recovery.then(|| self.recovered + RECOVERY)).min()
    }
}
