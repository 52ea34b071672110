//! Which response stream is encoded next, and which ones are merged because they can't keep their
//! pace. A pure state machine: it is given the time, and what an encoding cost.
//!
//! Streams are served in the order of readers per cost. The cost of a stream that one owner reads
//! alone is multiplied by how many such streams that owner has, so that a second stream of the same
//! owner takes from the owner's first one and not from others. A stream that waits for longer than
//! its pace allows gets the next slower pace: its changes are merged. So does one that is served
//! beyond a budget, see `owners`.

use std::cmp::Ordering;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use foldhash::{HashMap, HashMapExt as _};
use tokio::time::Instant;

use crate::owners::{FREE_STREAMS, Owners};

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
    /// Those that have a slower one.
    const IMPATIENT: [Self; 3] = [Self::Raw, Self::Ms100, Self::Ms250];

    /// Time between two encodings.
    pub fn period(self) -> Duration {
        Duration::from_millis(match self {
            Self::Raw => 0,
            Self::Ms100 => 100,
            Self::Ms250 => 250,
            Self::S1 => 1_000,
        })
    }

    /// Time that may be spent on other streams while one of this pace waits; beyond, it gets the
    /// next slower pace.
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
const CHANGES_AT_ONCE: usize = 256;
/// Streams of one pace that are served at once where there are few, and into how many portions of a
/// period they are divided where there are many.
const PORTION: usize = 64;
const MOST_PORTIONS: usize = 20;
/// Merged streams of each pace that are looked at whether they may get a faster one, at one look.
const LOOKED_AT_ONCE: usize = 256;
/// A stream that was slowed down for a budget is not slowed down again within this: others come
/// first, and what that changes shows.
const SETTLE: Duration = Duration::from_secs(1);
/// Periods of the slowest pace in a row that a stream beyond a budget is left out at most.
const MOST_SKIPPED: u8 = 3;
/// Of the changes at one look, those to a faster pace: slowly, so that what they cost shows before
/// it is too much.
const FASTER_AT_ONCE: usize = 16;
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
    /// Since when it waits for its turn, by the clock of [`Schedule::spent`].
    waits: Option<Duration>,
    /// The next event waits for it.
    awaited: bool,
    /// When it was last made ready.
    audience: Audience,
    /// Periods of the slowest pace in a row that it was left out.
    skipped: u8,
    /// In [`Schedule::beyond`].
    beyond: bool,
    slowed: Option<Instant>,
    /// Tells this wait from earlier ones: entries of those are stale.
    wait: u64,
    /// Waits in a row that were brief.
    brief: u32,
    /// No faster pace before this, and how long the next such time is.
    hold: (Option<Instant>, Duration),
}

impl Slot {
    /// Gives it the next slower pace, and says which one it had.
    fn slow_down(&mut self, id: u64, now: Instant) -> (Pace, Repaced) {
        let before = self.pace;
        self.pace = before.slower();
        let (_, next) = self.hold;
        self.hold = (Some(now + next), (next * 2).min(MOST_HOLD));
        (self.slowed, self.brief, self.awaited) = (Some(now), 0, false);
        (before, Repaced { id, pace: self.pace })
    }
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

/// The streams of a pace. They are served in portions, each stream once a period: served all at
/// once they would hold the thread, and with it the processor, for longer than others can wait.
#[derive(Debug)]
struct Paced {
    pace: Pace,
    ids: BTreeSet<u64>,
    /// When the next portion is due, and which stream it begins with.
    next: Instant,
    first: u64,
    /// Which stream the next look at their waits begins with.
    looked: u64,
}

impl Paced {
    fn new(pace: Pace, now: Instant) -> Self {
        Self { pace, ids: BTreeSet::new(), next: now + pace.period(), first: 0, looked: 0 }
    }

    /// The next portion, if it is due. What was missed is not made up for.
    fn tick(&mut self, now: Instant) -> Vec<u64> {
        if now < self.next || self.ids.is_empty() {
            return Vec::new();
        }
        let portions = self.ids.len().div_ceil(PORTION).min(MOST_PORTIONS);
        let step = self.pace.period() / portions as u32;
        self.next = if now < self.next + step { self.next + step } else { now + step };
        take_from(&self.ids, &mut self.first, self.ids.len().div_ceil(portions))
    }

    /// So many of them, in turn.
    fn look(&mut self, most: usize) -> Vec<u64> {
        take_from(&self.ids, &mut self.looked, most)
    }
}

/// At most so many of them from `first` on, which moves on, and begins again after the last.
fn take_from(ids: &BTreeSet<u64>, first: &mut u64, most: usize) -> Vec<u64> {
    let taken: Vec<_> = ids.range(*first..).take(most).copied().collect();
    let next = taken.last().and_then(|last| ids.range(last + 1..).next());
    *first = next.copied().unwrap_or(0);
    taken
}

/// Puts a stream that waits among those that are slowed down if they wait for too long.
fn watch(impatient: &mut [VecDeque<Waiting>], pace: Pace, waiting: Waiting) {
    let place = Pace::IMPATIENT.iter().position(|one| *one == pace);
    if let Some(place) = place {
        impatient[place].push_back(waiting);
    }
}

/// What changed for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repaced {
    pub id: u64,
    pub pace: Pace,
}

/// See the module's text.
#[derive(Debug)]
pub struct Schedule {
    slots: HashMap<u64, Slot>,
    owners: Owners,
    /// Served beyond a budget since the last look.
    beyond: Vec<u64>,
    best: BinaryHeap<Ready>,
    /// In the order in which they began to wait.
    oldest: VecDeque<Waiting>,
    /// The same for those that are slowed down if they wait for too long, by pace.
    impatient: [VecDeque<Waiting>; Pace::IMPATIENT.len()],
    /// Waiting streams, and those among them that the next event waits for.
    waiting: usize,
    awaited: usize,
    /// By pace, see [`Pace::MERGING`].
    paced: [Paced; 3],
    looked: Instant,
    /// What serving all streams took so far: the clock by which waits are counted.
    spent: Duration,
    turns: u32,
    waits: u64,
}

impl Schedule {
    /// An owner's streams may cost so many microseconds a second.
    pub fn new(owner_rate: u32, now: Instant) -> Self {
        Self {
            slots: HashMap::new(),
            owners: Owners::new(owner_rate, now),
            beyond: Vec::new(),
            best: BinaryHeap::new(),
            oldest: VecDeque::new(),
            impatient: Default::default(),
            waiting: 0,
            awaited: 0,
            paced: Pace::MERGING.map(|pace| Paced::new(pace, now)),
            looked: now,
            spent: Duration::ZERO,
            turns: 0,
            waits: 0,
        }
    }

    /// A stream begins, at the pace that its clients asked for.
    pub fn add(&mut self, id: u64, own: Pace, owner: u64, now: Instant) {
        let slot = Slot {
            own,
            pace: own,
            owner,
            cost: FIRST_COST_NANOS,
            waits: None,
            awaited: false,
            audience: Audience { readers: 1, shared: false },
            skipped: 0,
            beyond: false,
            slowed: None,
            wait: 0,
            brief: 0,
            hold: (None, RECOVERY),
        };
        if self.slots.insert(id, slot).is_none() {
            self.owners.add(owner, now);
            self.list(id, own);
        }
    }

    /// A stream ends.
    pub fn remove(&mut self, id: u64) {
        let Some(slot) = self.slots.remove(&id) else { return };
        self.owners.remove(slot.owner);
        self.unlist(id, slot.pace);
        if slot.waits.is_some() {
            self.leave_queue(slot.awaited);
        }
    }

    fn list(&mut self, id: u64, pace: Pace) {
        if let Some(place) = pace.place() {
            self.paced[place].ids.insert(id);
        }
    }

    fn unlist(&mut self, id: u64, pace: Pace) {
        if let Some(place) = pace.place() {
            self.paced[place].ids.remove(&id);
        }
    }

    fn leave_queue(&mut self, awaited: bool) {
        self.waiting -= 1;
        self.awaited -= usize::from(awaited);
    }

    /// A stream may have something to push. It keeps its place where it waits already.
    pub fn ready(&mut self, id: u64, audience: Audience) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.waits.is_some() {
            return;
        }
        let beyond = self.owners.is_beyond(slot.owner, audience);
        if beyond && slot.pace == Pace::S1 && slot.skipped < MOST_SKIPPED {
            slot.skipped += 1;
            return;
        }
        slot.skipped = 0;
        self.waits += 1;
        (slot.waits, slot.wait, slot.audience) = (Some(self.spent), self.waits, audience);
        slot.awaited = slot.pace == Pace::Raw && !beyond;
        self.waiting += 1;
        self.awaited += usize::from(slot.awaited);
        let sharing = self.owners.sharing(slot.owner, audience);
        let score = audience.readers as f64 / (f64::from(slot.cost) * sharing as f64);
        self.best.push(Ready { score, wait: slot.wait, id });
        let waiting = Waiting { id, wait: slot.wait, since: self.spent };
        self.oldest.push_back(waiting);
        watch(&mut self.impatient, slot.pace, waiting);
    }

    /// The merged streams whose time has come. The caller says which of them are ready.
    pub fn tick(&mut self, now: Instant) -> Vec<u64> {
        self.paced.iter_mut().flat_map(|paced| paced.tick(now)).collect()
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
                let awaited = std::mem::take(&mut slot.awaited);
                self.leave_queue(awaited);
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
        if self.best.len() > most {
            self.best.retain(|ready| waits(&ready.id, ready.wait));
        }
        for queue in std::iter::once(&mut self.oldest).chain(&mut self.impatient) {
            if queue.len() > most {
                queue.retain(|waiting| waits(&waiting.id, waiting.wait));
            }
        }
    }

    /// What serving a stream took; `pushed` where there was something to push. Of a time that is
    /// far above the usual only a part counts: the thread was not running.
    pub fn served(&mut self, id: u64, took: Duration, pushed: bool, now: Instant) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let took = u32::try_from(took.as_nanos()).unwrap_or(u32::MAX);
        let took = took.clamp(1, slot.cost.saturating_mul(MOST_OF_USUAL));
        let counted = Duration::from_nanos(took.into());
        self.spent += counted;
        if self.owners.spend(slot.owner, slot.audience, counted, now) && !slot.beyond {
            slot.beyond = true;
            self.beyond.push(id);
        }
        if pushed {
            slot.cost = slot.cost - slot.cost / 8 + took / 8;
        }
    }

    /// Streams that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Of these, those whose pace is RAW and that no budget is used up for: the next event should
    /// wait for them, for a while.
    pub fn awaited(&self) -> usize {
        self.awaited
    }

    /// Whether a stream is one of those.
    pub fn awaits(&self, id: u64) -> bool {
        self.slots.get(&id).is_some_and(|slot| slot.awaited)
    }

    /// Streams that are served at a slower pace than their clients asked for, by pace.
    pub fn merged(&self) -> [usize; 3] {
        let mut count = [0; 3];
        for (count, paced) in count.iter_mut().zip(&self.paced) {
            let slower = |id: &&u64| self.slots.get(id).is_some_and(|slot| slot.own < paced.pace);
            *count = paced.ids.iter().filter(slower).count();
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
    pub fn adapt(&mut self, now: Instant) -> Vec<Repaced> {
        let mut changed: Vec<(Pace, Repaced)> = Vec::new();
        if now.saturating_duration_since(self.looked) >= LOOK {
            self.looked = now;
            self.owners.look(now);
            self.slow_down(now, &mut changed);
            self.slow_down_beyond(now, &mut changed);
            self.speed_up(now, &mut changed);
        }
        self.relist(&changed);
        changed.into_iter().map(|(_, repaced)| repaced).collect()
    }

    fn slow_down(&mut self, now: Instant, changed: &mut Vec<(Pace, Repaced)>) {
        for (place, pace) in Pace::IMPATIENT.into_iter().enumerate() {
            // Those after one that has not waited for too long have not either.
            while changed.len() < CHANGES_AT_ONCE
                && let Some(&Waiting { id, wait, since }) = self.impatient[place].front()
                && self.spent - since > pace.patience()
            {
                self.impatient[place].pop_front();
                let slot = self.slots.get_mut(&id);
                let Some(slot) = slot
                    .filter(|slot| slot.waits.is_some() && slot.wait == wait && slot.pace == pace)
                else {
                    continue;
                };
                // It has waited for the pace that it had; for the new one it begins to wait.
                slot.waits = Some(self.spent);
                self.awaited -= usize::from(slot.awaited);
                changed.push(slot.slow_down(id, now));
            }
        }
    }

    /// Those that were served beyond a budget, while it is used up. Of them only the ones with the
    /// fewest readers, so that others keep their pace as long as there are such. Where only a few
    /// were served at all, they are not what used it up: those that did are gone.
    fn slow_down_beyond(&mut self, now: Instant, changed: &mut Vec<(Pace, Repaced)>) {
        let beyond = std::mem::take(&mut self.beyond);
        let are_few = beyond.len() <= FREE_STREAMS;
        let readers = |id: &u64| Some(self.slots.get(id)?.audience.readers);
        let fewest = beyond.iter().filter_map(readers).min();
        for id in beyond {
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            slot.beyond = false;
            let settles = slot.slowed.is_some_and(|slowed| now < slowed + SETTLE);
            if are_few
                || settles
                || slot.pace == Pace::S1
                || Some(slot.audience.readers) != fewest
                || changed.len() >= CHANGES_AT_ONCE
                || !self.owners.is_beyond(slot.owner, slot.audience)
            {
                continue;
            }
            self.awaited -= usize::from(slot.awaited);
            changed.push(slot.slow_down(id, now));
        }
    }

    fn speed_up(&mut self, now: Instant, changed: &mut Vec<(Pace, Repaced)>) {
        let looked: Vec<_> =
            self.paced.iter_mut().flat_map(|paced| paced.look(LOOKED_AT_ONCE)).collect();
        let most = (changed.len() + FASTER_AT_ONCE).min(CHANGES_AT_ONCE);
        for id in looked {
            if changed.len() >= most {
                break;
            }
            let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.pace > slot.own) else {
                continue;
            };
            let held = slot.hold.0.is_some_and(|until| now < until);
            if slot.brief < BRIEF_WAITS
                || held
                || !self.owners.has_room(slot.owner, slot.audience, now)
            {
                continue;
            }
            slot.brief = 0;
            let before = slot.pace;
            slot.hold.0 = Some(now + RECOVERY);
            slot.pace = before.faster().max(slot.own);
            if slot.waits.is_some() && slot.pace == Pace::Raw {
                slot.awaited = true;
                self.awaited += 1;
            }
            changed.push((before, Repaced { id, pace: slot.pace }));
        }
    }

    /// Puts streams into the lists of their paces.
    fn relist(&mut self, changed: &[(Pace, Repaced)]) {
        for (before, Repaced { id, pace }) in changed {
            self.unlist(*id, *before);
            self.list(*id, *pace);
            if let Some(Slot { waits: Some(since), wait, .. }) = self.slots.get(id) {
                let waiting = Waiting { id: *id, wait: *wait, since: *since };
                watch(&mut self.impatient, *pace, waiting);
            }
        }
    }

    /// When the schedule has to be looked at though nothing happens.
    pub fn next_look(&self) -> Option<Instant> {
        let busy = self.paced.iter().filter(|paced| !paced.ids.is_empty());
        busy.map(|paced| paced.next).min()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::owners::{EXEMPT, FREE_STREAMS};

    const ALONE: Audience = Audience { readers: 1, shared: false };
    /// More than any of these tests spends.
    const RATE: u32 = 1_000_000;
    const MICROS: Duration = Duration::from_micros(1);

    fn crowd(readers: usize) -> Audience {
        Audience { readers, shared: true }
    }

    #[test]
    fn the_most_readers_per_cost_go_first_and_equals_by_age() {
        let now = Instant::now();
        let mut schedule = Schedule::new(RATE, now);
        for id in 1..=4 {
            schedule.add(id, Pace::Raw, id, now);
        }
        // The third costs ten times as much as the others.
        for _ in 0..40 {
            schedule.served(3, FIRST_COST_NANOS * 10 * MICROS / 1_000, true, now);
        }
        schedule.ready(1, ALONE);
        schedule.ready(2, crowd(5));
        schedule.ready(3, crowd(20));
        schedule.ready(4, ALONE);
        schedule.ready(2, crowd(1));
        assert_eq!((schedule.waiting(), schedule.awaited()), (4, 4));
        let order: Vec<_> = std::iter::from_fn(|| schedule.pop()).collect();
        assert_eq!(order, [2, 3, 1, 4]);
        assert_eq!((schedule.waiting(), schedule.awaited()), (0, 0));
    }

    #[test]
    fn a_further_stream_of_one_owner_takes_from_that_owner() {
        let now = Instant::now();
        let mut schedule = Schedule::new(RATE, now);
        (1..=100).for_each(|id| schedule.add(id, Pace::Raw, 7, now));
        schedule.add(101, Pace::Raw, 8, now);
        (1..=101).for_each(|id| schedule.ready(id, ALONE));
        assert_eq!(schedule.pop(), Some(101), "though it came last");
        // One that others read as well is not counted to its first owner.
        schedule.remove(50);
        schedule.ready(50, crowd(1));
        schedule.add(50, Pace::Raw, 7, now);
        schedule.ready(50, crowd(1));
        assert_eq!(schedule.pop(), Some(50));
    }

    #[test]
    fn none_starves_whatever_goes_before_it() {
        let now = Instant::now();
        let mut schedule = Schedule::new(RATE, now);
        (1..=2).for_each(|id| schedule.add(id, Pace::Raw, id, now));
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
        let mut schedule = Schedule::new(RATE, begin);
        (1..=2).for_each(|id| schedule.add(id, Pace::Raw, id, begin));
        schedule.ready(1, ALONE);
        let (mut now, mut slower) = (begin, Vec::new());
        for _ in 0..400 {
            // All of the time goes to the other one.
            now += MICROS * 10_000;
            schedule.served(2, MICROS * 10_000, true, now);
            slower.extend(schedule.adapt(now).into_iter().map(|paced| (paced.id, paced.pace)));
        }
        assert_eq!(slower, Pace::MERGING.map(|pace| (1, pace)));
        assert!(schedule.is_merged(1) && schedule.is_paced(1));
        assert_eq!((schedule.merged(), schedule.awaited()), ([0, 0, 1], 0));
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
        let mut schedule = Schedule::new(RATE, begin);
        schedule.add(1, Pace::Raw, 1, begin);
        schedule.ready(1, ALONE);
        assert_eq!(schedule.adapt(begin + Duration::from_secs(60)), []);
    }

    /// An event each 20 ms touches every stream, and each encoding takes 10 us. Returns what each
    /// owner's streams took, in microseconds.
    fn run(
        schedule: &mut Schedule,
        now: &mut Instant,
        seconds: u64,
        streams: &BTreeMap<u64, u64>,
    ) -> BTreeMap<u64, u64> {
        let (begin, mut took) = (*now, BTreeMap::new());
        for millis in 0..seconds * 1_000 {
            *now = begin + MICROS * 1_000 * millis as u32;
            if millis % 20 == 0 {
                let raw = streams.keys().filter(|id| !schedule.is_paced(**id));
                raw.copied().collect::<Vec<_>>().iter().for_each(|id| schedule.ready(*id, ALONE));
            }
            schedule.tick(*now).iter().for_each(|id| schedule.ready(*id, ALONE));
            while let Some(id) = schedule.pop() {
                schedule.served(id, 10 * MICROS, true, *now);
                *took.entry(streams[&id]).or_default() += 10;
            }
            schedule.adapt(*now);
        }
        took
    }

    fn with_streams(
        rate: u32,
        now: Instant,
        owners: &[(u64, u64)],
    ) -> (Schedule, BTreeMap<u64, u64>) {
        let mut schedule = Schedule::new(rate, now);
        let streams = owners.iter().flat_map(|(owner, count)| (0..*count).map(|_| *owner));
        let streams: BTreeMap<u64, u64> = (1..).zip(streams).collect();
        streams.iter().for_each(|(id, owner)| schedule.add(*id, Pace::Raw, *owner, now));
        (schedule, streams)
    }

    #[test]
    fn an_owner_beyond_its_budget_is_merged_though_there_is_time() {
        let mut now = Instant::now();
        // The first would take 100 ms a second, the second what few streams take.
        let owners = [(1, 200), (2, FREE_STREAMS as u64)];
        let (mut schedule, mut streams) = with_streams(20_000, now, &owners);
        let took = run(&mut schedule, &mut now, 20, &streams);
        // The rate of 20 seconds, and once the burst, which is what a second brings.
        assert!((20 * 7_000..=21 * 20_000).contains(&took[&1]), "{took:?}");
        let each = FREE_STREAMS as u64 * 50 * 10;
        assert_eq!(took[&2] / 20, each, "each event, whatever they cost");
        let merged = |owner| {
            streams.iter().filter(|(id, of)| **of == owner && schedule.is_merged(**id)).count()
        };
        assert!(merged(1) > 100 && merged(2) == 0, "{} {}", merged(1), merged(2));
        // Within its budget it gets its own pace back.
        streams.retain(|id, _| *id <= 20);
        (21..=200).for_each(|id| schedule.remove(id));
        run(&mut schedule, &mut now, 30, &streams);
        let took = run(&mut schedule, &mut now, 1, &streams);
        assert_eq!((took[&1], schedule.merged()), (20 * 50 * 10, [0; 3]));
    }

    #[test]
    fn streams_with_few_readers_together_leave_time_for_the_rest() {
        let mut now = Instant::now();
        // Nobody is beyond a budget of its own, and all of them would take 1.5 s a second.
        let owners: Vec<_> =
            (0..=30).map(|owner| (if owner == 0 { 7 | EXEMPT } else { owner }, 100)).collect();
        let (mut schedule, streams) = with_streams(1_000_000, now, &owners);
        run(&mut schedule, &mut now, 5, &streams);
        let took = run(&mut schedule, &mut now, 15, &streams);
        let all = took.values().sum::<u64>() / 15;
        assert!((200_000..450_000).contains(&all), "{all}");
    }

    #[test]
    fn an_event_waits_for_no_stream_beyond_a_budget() {
        let now = Instant::now();
        let (mut schedule, streams) = with_streams(10, now, &[(1, 17), (2, 1)]);
        schedule.served(1, 12 * MICROS, true, now);
        streams.keys().for_each(|id| schedule.ready(*id, ALONE));
        assert_eq!((schedule.waiting(), schedule.awaited()), (18, 1));
    }

    #[test]
    fn merged_streams_are_served_in_portions_and_each_once_a_period() {
        let begin = Instant::now();
        for count in [1_u64, 63, 64, 100, 2_000] {
            let mut schedule = Schedule::new(RATE, begin);
            (1..=count).for_each(|id| schedule.add(id, Pace::Ms100, id, begin));
            let (mut times, mut largest) = (BTreeMap::<u64, u32>::new(), 0);
            for millis in 0..2_000 {
                let due = schedule.tick(begin + MICROS * 1_000 * millis);
                largest = largest.max(due.len());
                due.iter().for_each(|id| *times.entry(*id).or_default() += 1);
            }
            assert_eq!(times.len() as u64, count);
            assert!(times.values().all(|times| (18..=20).contains(times)), "{count}: {times:?}");
            assert!(largest <= PORTION.max(count as usize / MOST_PORTIONS), "{largest}");
        }
    }

    #[test]
    fn a_pace_that_had_no_streams_for_long_is_kept_from_its_first_portion_on() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(RATE, begin);
        let late = begin + Duration::from_secs(60);
        schedule.add(1, Pace::Ms100, 1, late);
        let due = (0..1_000).filter(|millis| {
            let now = late + MICROS * 1_000 * *millis;
            !schedule.tick(now).is_empty()
        });
        assert_eq!(due.collect::<Vec<_>>(), (0..1_000).step_by(100).collect::<Vec<_>>());
    }

    /// Streams of one reader and of four, all beyond the budget that they share.
    #[test]
    fn beyond_a_budget_those_with_the_fewest_readers_give_way_alone() {
        let now = Instant::now();
        let (mut schedule, _) = with_streams(RATE, now, &[(1, 100), (2, 17)]);
        let (alone, fours) = (1..=100, 101..=117);
        // So much is used up that it lasts for the test.
        while schedule.spent < Duration::from_secs(2) {
            schedule.served(1, Duration::from_secs(1), true, now);
        }
        let look = |schedule: &mut Schedule, ids: &[u64], now: Instant| {
            for id in ids {
                let readers = if fours.contains(id) { 4 } else { 1 };
                schedule.ready(*id, Audience { readers, shared: false });
            }
            while let Some(id) = schedule.pop() {
                schedule.served(id, 10 * MICROS, true, now);
            }
            let mut changed: Vec<_> = schedule.adapt(now).iter().map(|one| one.id).collect();
            changed.sort_unstable();
            changed
        };
        let all: Vec<_> = alone.clone().chain(fours.clone()).collect();
        let changed = look(&mut schedule, &all, now + LOOK);
        assert_eq!(changed, alone.collect::<Vec<_>>(), "at first all that are read alone");
        let one_and_fours: Vec<_> = [1].into_iter().chain(fours.clone()).collect();
        let changed = look(&mut schedule, &one_and_fours, now + LOOK * 2);
        assert!(changed.is_empty(), "none of the others while there are such: {changed:?}");
        let changed = look(&mut schedule, &one_and_fours[1..17], now + LOOK * 3);
        assert!(changed.is_empty(), "none where few are left: {changed:?}");
        let fours: Vec<_> = fours.clone().collect();
        assert_eq!(look(&mut schedule, &fours, now + LOOK * 4), fours, "then others");
    }

    #[test]
    fn beyond_a_budget_the_slowest_pace_is_left_out_three_times_in_a_row_at_most() {
        let now = Instant::now();
        let mut schedule = Schedule::new(10, now);
        (1..=17).for_each(|id| schedule.add(id, Pace::S1, 1, now));
        schedule.served(1, 12 * MICROS, true, now);
        for _ in 0..3 {
            for _ in 0..MOST_SKIPPED {
                schedule.ready(2, ALONE);
                assert_eq!(schedule.pop(), None);
            }
            schedule.ready(2, ALONE);
            assert_eq!(schedule.pop(), Some(2));
        }
    }

    /// A worker that has more to do than it can for two thirds of the time.
    #[test]
    fn under_overload_the_least_shared_give_way_and_all_recover() {
        for seed in [1, 7, 20_261_128] {
            println!("seed {seed}");
            storm(&mut SmallRng::seed_from_u64(seed));
        }
    }

    /// Crowds are never merged, the others are and recover, each is served in bounded time, and
    /// what the schedule counts is what there is.
    fn storm(random: &mut SmallRng) {
        let begin = Instant::now();
        let (mut now, mut schedule) = (begin, Schedule::new(RATE, begin));
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
                schedule.add(next_id, own, random.random_range(1..5), now);
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
            ready.extend(schedule.tick(now));
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
                schedule.served(id, took, true, now);
                served += 1;
            }
            for Repaced { id, pace } in schedule.adapt(now) {
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
        assert_eq!((schedule.waiting(), schedule.awaited()), (0, 0));
        assert!(schedule.slots.is_empty() && schedule.owners.is_empty());
    }
}
