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

    /// Time that may be spent on other streams while one of this pace waits; beyond, it gets the next
    /// slower pace.
    fn patience(self) -> Duration {
        match self {
            Self::Raw => RAW_PATIENCE,
            merging => merging.period() / 2,
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

/// What may be spent on other streams while a RAW stream waits: some 800 encodings.
const RAW_PATIENCE: Duration = Duration::from_millis(10);
/// A wait that is no reason to stay merged: some 200 encodings.
const BRIEF: Duration = Duration::from_millis(2);
/// Brief waits in a row before a stream gets a faster pace.
const BRIEF_WAITS: u32 = 2;
/// How often the waits are looked at.
const LOOK: Duration = Duration::from_millis(25);
/// How long a merged stream has its pace at least before it may get a faster one.
const RECOVERY: Duration = Duration::from_secs(1);
/// Streams whose pace changes at one look: each change costs its worker a microsecond or two.
const CHANGES_AT_ONCE: usize = 64;
/// Longest time that a stream which was merged again right after its recovery is left alone.
const MOST_HOLD: Duration = Duration::from_secs(8);
/// Every so many turns the stream that has waited longest goes first, so that none starves.
const OLDEST_EVERY: u32 = 4;
/// How many times the usual cost of a stream may count at once.
const MOST_OF_USUAL: u32 = 4;
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
    /// Since when it waits for its turn, see [`Schedule::spent`].
    waits: Option<Duration>,
    /// Tells this wait from earlier ones: entries of those are stale.
    wait: u64,
    /// Waits in a row that were brief.
    brief: u32,
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
    since: Duration,
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
    /// What serving all streams took so far: the clock by which waits are counted.
    spent: Duration,
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
            spent: Duration::ZERO,
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
            brief: 0,
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
    pub fn ready(&mut self, id: u64, audience: Audience) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.waits.is_some() {
            return;
        }
        self.waits += 1;
        (slot.waits, slot.wait) = (Some(self.spent), self.waits);
        self.waiting += 1;
        self.raw_waiting += usize::from(slot.pace == Pace::Raw);
        let streams = match audience.shared {
            true => 1,
            false => self.owners.get(&slot.owner).copied().unwrap_or(1),
        };
        let score = audience.readers as f64 / (f64::from(slot.cost) * streams as f64);
        self.best.push(Ready { score, wait: slot.wait, id });
        self.oldest.push_back(Waiting { id, wait: slot.wait, since: self.spent });
    }

    /// The streams of each merging pace whose time has come. The caller says which of them are ready.
    pub fn tick(&mut self, now: Instant, mut due: impl FnMut(&BTreeSet<u64>)) {
        for (place, pace) in Pace::MERGING.into_iter().enumerate() {
            if now < self.ticks[place] {
                continue;
            }
            // Ticks that were missed are not made up for.
            self.ticks[place] = (self.ticks[place] + pace.period()).max(now);
            due(&self.paced[place]);
        }
    }

    /// The stream whose turn it is; it waits no longer.
    pub fn pop(&mut self) -> Option<u64> {
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
            let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.wait == wait) else {
                continue;
            };
            if let Some(since) = slot.waits.take() {
                let brief = self.spent - since <= BRIEF;
                slot.brief = if brief { slot.brief.saturating_add(1) } else { 0 };
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

    /// What serving a stream took; `pushed` where there was something to push. Of a time that is far
    /// above the usual only a part counts: the thread was not running.
    pub fn served(&mut self, id: u64, took: Duration, pushed: bool) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let took = u32::try_from(took.as_nanos()).unwrap_or(u32::MAX);
        let took = took.clamp(1, slot.cost.saturating_mul(MOST_OF_USUAL));
        self.spent += Duration::from_nanos(took.into());
        if pushed {
            slot.cost = slot.cost - slot.cost / 8 + took / 8;
        }
    }

    /// What serving all streams took so far.
    pub fn spent(&self) -> Duration {
        self.spent
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

    #[cfg(test)]
    fn is_merged(&self, id: u64) -> bool {
        self.slots.get(&id).is_some_and(|slot| slot.pace > slot.own)
    }

    /// Whether a stream is brought up to date by the clock instead of with each event.
    #[cfg(test)]
    fn is_paced(&self, id: u64) -> bool {
        self.slots.get(&id).is_some_and(|slot| slot.pace != Pace::Raw)
    }

    /// Looks at the waits, and gives streams slower or faster paces; those whose pace changed.
    pub fn adapt(&mut self, now: Instant) -> Vec<Paced> {
        let mut changed: Vec<(Pace, Paced)> = Vec::new();
        if now.saturating_duration_since(self.looked) >= LOOK {
            self.looked = now;
            self.slow_down(now, &mut changed);
            self.speed_up(now, &mut changed);
        }
        self.relist(&changed);
        changed.into_iter().map(|(_, paced)| paced).collect()
    }

    fn slow_down(&mut self, now: Instant, changed: &mut Vec<(Pace, Paced)>) {
        for Waiting { id, wait, since } in &self.oldest {
            if changed.len() == CHANGES_AT_ONCE {
                break;
            }
            if self.spent - *since <= RAW_PATIENCE {
                // Those after it have not waited longer.
                break;
            }
            let Some(slot) = self.slots.get_mut(id).filter(|slot| slot.wait == *wait) else {
                continue;
            };
            let Some(since) = slot.waits else { continue };
            let waited = self.spent - since;
            if waited <= slot.pace.patience() || slot.pace == Pace::S1 {
                continue;
            }
            let (before, pace) = (slot.pace, slot.pace.slower());
            self.raw_waiting -= usize::from(slot.pace == Pace::Raw);
            slot.pace = pace;
            let (_, next) = slot.hold;
            slot.hold = (Some(now + next), (next * 2).min(MOST_HOLD));
            // It has waited for the pace that it had; for the new one it begins to wait.
            (slot.waits, slot.brief) = (Some(self.spent), 0);
            changed.push((before, Paced { id: *id, pace }));
        }
    }

    fn speed_up(&mut self, now: Instant, changed: &mut Vec<(Pace, Paced)>) {
        for id in self.paced.iter().flatten() {
            if changed.len() >= CHANGES_AT_ONCE {
                break;
            }
            let Some(slot) = self.slots.get_mut(id).filter(|slot| slot.pace > slot.own) else {
                continue;
            };
            if slot.brief < BRIEF_WAITS || slot.hold.0.is_some_and(|until| now < until) {
                continue;
            }
            slot.brief = 0;
            let before = slot.pace;
            slot.hold.0 = Some(now + RECOVERY);
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
        ticks.min()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const ALONE: Audience = Audience { readers: 1, shared: false };
    const MICROS: Duration = Duration::from_micros(1);

    fn crowd(readers: usize) -> Audience {
        Audience { readers, shared: true }
    }

    #[test]
    fn the_most_readers_per_cost_go_first_and_equals_by_age() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        for id in 1..=4 {
            schedule.add(id, Pace::Raw, id);
        }
        // The third costs ten times as much as the others.
        for _ in 0..40 {
            schedule.served(3, FIRST_COST_NANOS * 10 * MICROS / 1_000, true);
        }
        schedule.ready(1, ALONE);
        schedule.ready(2, crowd(5));
        schedule.ready(3, crowd(20));
        schedule.ready(4, ALONE);
        schedule.ready(2, crowd(1));
        assert_eq!((schedule.waiting(), schedule.raw_waiting()), (4, 4));
        let order: Vec<_> = std::iter::from_fn(|| schedule.pop()).collect();
        assert_eq!(order, [2, 3, 1, 4]);
        assert_eq!((schedule.waiting(), schedule.raw_waiting()), (0, 0));
    }

    #[test]
    fn a_further_stream_of_one_owner_takes_from_that_owner() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        (1..=100).for_each(|id| schedule.add(id, Pace::Raw, 7));
        schedule.add(101, Pace::Raw, 8);
        (1..=101).for_each(|id| schedule.ready(id, ALONE));
        assert_eq!(schedule.pop(), Some(101), "though it came last");
        // One that others read as well is not counted to its first owner.
        schedule.remove(50);
        schedule.ready(50, crowd(1));
        schedule.add(50, Pace::Raw, 7);
        schedule.ready(50, crowd(1));
        assert_eq!(schedule.pop(), Some(50));
    }

    #[test]
    fn none_starves_whatever_goes_before_it() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        (1..=2).for_each(|id| schedule.add(id, Pace::Raw, id));
        schedule.ready(1, ALONE);
        let turns = (1..).find(|_| {
            schedule.ready(2, crowd(1_000));
            schedule.pop() == Some(1)
        });
        assert!(turns.is_some_and(|turns| turns <= OLDEST_EVERY));
    }

    #[test]
    fn a_stream_that_waits_is_merged_step_by_step_and_recovers() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin);
        (1..=2).for_each(|id| schedule.add(id, Pace::Raw, id));
        schedule.ready(1, ALONE);
        let (mut now, mut slower) = (begin, Vec::new());
        for _ in 0..400 {
            // All of the time goes to the other one.
            now += MICROS * 10_000;
            schedule.served(2, MICROS * 10_000, true);
            slower.extend(schedule.adapt(now).into_iter().map(|paced| (paced.id, paced.pace)));
        }
        assert_eq!(slower, Pace::MERGING.map(|pace| (1, pace)));
        assert!(schedule.is_merged(1) && schedule.is_paced(1));
        assert_eq!((schedule.merged(), schedule.raw_waiting()), ([0, 0, 1], 0));
        assert_eq!(schedule.pop(), Some(1));
        let mut faster = Vec::new();
        for _ in 0..60 {
            now += Duration::from_secs(1);
            schedule.ready(1, ALONE);
            assert_eq!(schedule.pop(), Some(1));
            faster.extend(schedule.adapt(now).into_iter().map(|paced| paced.pace));
        }
        assert_eq!(faster, [Pace::Ms250, Pace::Ms100, Pace::Raw]);
        assert_eq!((schedule.is_merged(1), schedule.merged()), (false, [0; 3]));
    }

    #[test]
    fn a_thread_that_is_held_up_merges_nothing() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin);
        schedule.add(1, Pace::Raw, 1);
        schedule.ready(1, ALONE);
        assert_eq!(schedule.adapt(begin + Duration::from_secs(60)), []);
    }

    /// A worker that has more to do than it can for two thirds of the time.
    #[test]
    fn under_overload_the_least_shared_give_way_and_all_recover() {
        for seed in [1, 7, 20_261_128] {
            println!("seed {seed}");
            storm(&mut SmallRng::seed_from_u64(seed));
        }
    }

    /// Crowds are never merged, the others are and recover, each is served in bounded time, and what
    /// the schedule counts is what there is.
    fn storm(random: &mut SmallRng) {
        let begin = Instant::now();
        let (mut now, mut schedule) = (begin, Schedule::new(begin));
        let mut alive: BTreeMap<u64, (Audience, Pace)> = BTreeMap::new();
        let mut waits: HashMap<u64, Instant> = HashMap::new();
        let (mut next_id, mut merged, mut served) = (1, 0, 0);
        let (mut longest, mut crowd_merged) = (Duration::ZERO, 0);
        while now - begin < Duration::from_secs(30) {
            let overload = now - begin < Duration::from_secs(15);
            let most = if overload { 2_000 } else { 100 };
            if alive.len() < most {
                let audience = if random.random_bool(0.005) { crowd(500) } else { ALONE };
                let own = match random.random_range(0..4) {
                    0 => Pace::MERGING[random.random_range(0..3)],
                    _ => Pace::Raw,
                };
                schedule.add(next_id, own, random.random_range(1..5));
                alive.insert(next_id, (audience, own));
                next_id += 1;
            } else if random.random_bool(0.01) || alive.len() > most {
                let id = *alive
                    .range(random.random_range(0..next_id)..)
                    .next()
                    .unwrap_or_else(|| alive.first_key_value().unwrap())
                    .0;
                alive.remove(&id);
                schedule.remove(id);
                waits.remove(&id);
            }
            let mut ready = Vec::new();
            // An event touches the streams that push each event.
            if random.random_bool(0.02) {
                ready.extend(alive.keys().filter(|id| !schedule.is_paced(**id)));
            }
            schedule.tick(now, |streams| ready.extend(streams));
            for id in ready {
                schedule.ready(id, alive[&id].0);
                waits.entry(id).or_insert(now);
            }
            for _ in 0..8 {
                let Some(id) = schedule.pop() else {
                    now += MICROS * 500;
                    break;
                };
                let took = MICROS * random.random_range(4..20);
                now += took;
                let since = waits.remove(&id).expect("whatever waits was made ready");
                longest = longest.max(now - since);
                schedule.served(id, took, true);
                served += 1;
            }
            for Paced { id, pace } in schedule.adapt(now) {
                let (audience, own) = alive[&id];
                assert!(pace >= own, "nobody is served faster than it asked for");
                merged += usize::from(pace > own);
                crowd_merged += usize::from(audience.readers > 1 && pace > own);
            }
            assert_eq!(schedule.waiting(), waits.len());
        }
        assert!(served > 10_000 && merged > 1_000, "{served} {merged}");
        assert_eq!(crowd_merged, 0, "crowds keep their pace");
        assert!(longest < Duration::from_secs(4), "{longest:?}");
        assert_eq!(schedule.merged(), [0; 3], "all have their own pace again");
        assert!(schedule.best.len() <= 2 * alive.len() + 65);
        alive.keys().for_each(|id| schedule.remove(*id));
        assert_eq!((schedule.waiting(), schedule.raw_waiting()), (0, 0));
        assert!(schedule.slots.is_empty() && schedule.owners.is_empty());
    }
}
