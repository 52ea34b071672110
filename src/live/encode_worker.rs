//! A worker that resolves and encodes response streams, on the thread of its shard. It has a copy
//! of what its streams follow, takes the events in their order, and advances the streams in the
//! order that the schedule gives. Streams that can't keep their pace are merged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::{HashMap, HashSet};
use parking_lot::Mutex;
use spreadly_subscriptions::{PaceChange, Turn, Worker};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Live;
use super::follower::Follower;
use super::inbox::{self, Change, Inbox};
use super::pace::Touched;
use super::steps::Step;

/// Longest turn of a worker: how late a socket or the next event may be because of it.
const SLICE: Duration = Duration::from_micros(150);
/// Longest turn while no more than a few streams wait, or no more than a few that several clients
/// read: what a commit changes leaves together then, in one write a socket.
const COMMIT_SLICE: Duration = Duration::from_millis(1);
pub(super) const FEW_STREAMS: usize = 16;
/// Time after an event before what was pushed leaves: by then the most shared streams have pushed.
const FIRST_SLICE: Duration = Duration::from_micros(100);
/// Time that streams whose pace is RAW have to push an event before the next one of its market or
/// topic is taken; the rest of them are merged. Other events don't wait. Where more than a few
/// streams wait, all events that wait share it.
const EVENT_BUDGET: Duration = Duration::from_millis(5);
/// Time of a turn, beside its slice, in which streams are asked whether they were quiet for long,
/// and in which they get slower or faster paces. One of either is done in any case.
const UPKEEP_SLICE: Duration = Duration::from_micros(50);
/// Merged streams whose time has come that are put into the schedule in one turn.
const DUE_AT_ONCE: usize = 128;
/// Streams that an event touched and one client reads that are put into the schedule in one turn,
/// and further ones whenever none waits in it.
pub(super) const MARKED_AT_ONCE: usize = 64;
const BEAT: Duration = Duration::from_secs(1);
/// Streams whose owner is beyond a budget are asked in one of so many rounds: their heartbeats come
/// at a quarter of the pace.
const SLOW_BEAT: u32 = 4;

/// What the workers did, since the start.
#[derive(Debug, Default)]
pub struct EncodeMeters {
    /// Times that a stream was advanced.
    pub advanced: AtomicU64,
    /// Times that a stream got a slower pace because it could not keep its own.
    pub slowed: AtomicU64,
    /// Times that a worker had too many events to take and copied the state instead.
    pub copied_again: AtomicU64,
    /// Nanoseconds spent on resolving and encoding what was pushed.
    pub nanos: AtomicU64,
}

/// A worker: see the module's text.
pub struct EncodeWorker {
    live: Arc<Live>,
    inbox: Mutex<Inbox>,
    rounds: Mutex<Rounds>,
    /// By market or topic, those that some RAW streams may not have pushed yet.
    unpushed: Mutex<HashMap<Arc<str>, Taken>>,
    unmarked: Mutex<Unmarked>,
    meters: EncodeMeters,
}

/// Work that is due by the clock.
struct Rounds {
    next_beat: Instant,
    /// Streams that are still to be asked whether they were quiet for long.
    beats: VecDeque<u64>,
    /// Times that streams were asked.
    beaten: u32,
    /// Merged streams whose time has come.
    due: Vec<u64>,
    /// Streams that are still to be given the pace that the schedule has for them.
    repaced: VecDeque<PaceChange>,
}

/// Streams that events touched and that are not in the schedule yet.
#[derive(Default)]
struct Unmarked {
    /// Each once.
    queue: VecDeque<u64>,
    /// Those of `queue`.
    ids: HashSet<u64>,
    /// Not in `queue` yet, as that takes longer than the frames of shared streams can wait.
    added: Touched,
}

impl Unmarked {
    /// Takes the same time for any number of streams, if none was added since `settle`.
    fn add(&mut self, mut touched: Touched) {
        if self.added.is_empty() {
            self.added = touched;
        } else {
            self.added.append(&mut touched);
        }
    }

    fn settle(&mut self) {
        self.queue.extend(self.added.drain(..).filter(|id| self.ids.insert(*id)));
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.added.is_empty()
    }

    /// How many there are.
    fn count(&mut self) -> usize {
        self.settle();
        self.queue.len()
    }

    /// The next ones.
    fn take(&mut self, most: usize) -> Touched {
        self.settle();
        let taken: Touched = self.queue.drain(..most.min(self.queue.len())).collect();
        for id in &taken {
            self.ids.remove(id);
        }
        taken
    }
}

/// The last event of a market or topic.
struct Taken {
    at: Instant,
    /// Streams that it touched, without some of those that have pushed it.
    streams: Touched,
}

impl EncodeWorker {
    pub(super) fn new(origin: &Arc<Live>, stream_cost_rate: u32) -> Self {
        Self {
            live: Arc::new(Live::copy_of(origin, stream_cost_rate)),
            inbox: Mutex::default(),
            rounds: Mutex::new(Rounds {
                next_beat: Instant::now() + BEAT,
                beats: VecDeque::new(),
                beaten: 0,
                due: Vec::new(),
                repaced: VecDeque::new(),
            }),
            unpushed: Mutex::default(),
            unmarked: Mutex::default(),
            meters: EncodeMeters::default(),
        }
    }

    /// Its copy of the state.
    pub(super) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    pub(super) fn meters(&self) -> &EncodeMeters {
        &self.meters
    }

    /// Streams that events touched and that are not in the schedule yet.
    pub(super) fn unscheduled(&self) -> usize {
        self.unmarked.lock().count()
    }

    /// Drops the changes that wait here, as if there had been no room.
    #[cfg(test)]
    pub(super) fn lose_changes(&self) {
        self.inbox.lock().overrun();
    }

    pub(super) fn pass_on(&self, change: Change) {
        self.inbox.lock().push(change);
        self.live.wake.notify_one();
    }

    /// Whether the next event has to wait until RAW streams have pushed earlier ones: for a moment
    /// in any case, then where these are of the same market or topic.
    fn is_blocked(&self, for_a_moment: bool, now: Instant) -> bool {
        let schedule = self.live.schedule.lock();
        let mut unmarked = self.unmarked.lock();
        let mut unpushed = self.unpushed.lock();
        if schedule.blocking() == 0 && unmarked.is_empty() {
            unpushed.clear();
            return false;
        }
        if for_a_moment {
            return true;
        }
        let awaited = schedule.blocking() + unmarked.count();
        // Not locked for longer: the sequencer waits for it.
        let (next, events) = {
            let inbox = self.inbox.lock();
            (inbox.next_name().cloned(), inbox.events())
        };
        let Some(last) = next.and_then(|next| unpushed.get_mut(&next)) else { return false };
        let awaits = |id: &u64| schedule.is_blocking(*id) || unmarked.ids.contains(id);
        while last.streams.pop_if(|id| !awaits(id)).is_some() {}
        let sharing = if awaited <= FEW_STREAMS { 1 } else { events.max(1) };
        let waited = (now - last.at) * u32::try_from(sharing).unwrap_or(u32::MAX);
        !last.streams.is_empty() && waited < EVENT_BUDGET
    }

    /// Takes the next event or other change; false if there is none.
    fn take(&self, touched: &mut Touched, now: Instant) -> bool {
        let copied = self.live.copying();
        // Not locked for longer: the sequencer waits for it.
        let (is_overrun, next) = {
            let mut inbox = self.inbox.lock();
            (inbox.take_overrun(), inbox.take())
        };
        if is_overrun {
            self.meters.copied_again.fetch_add(1, Ordering::Relaxed);
            self.live.copy_again(&copied, touched);
            return true;
        }
        match next {
            None => return false,
            Some((Change::Events(events), at)) => {
                let event = &events[at];
                self.live.take(event, touched);
                if let Some(name) = inbox::name(event).filter(|_| !touched.is_empty()) {
                    let taken = Taken { at: now, streams: touched.clone() };
                    self.unpushed.lock().insert(name.clone(), taken);
                }
            }
            Some((Change::RolledBack(left), _)) => {
                // The origin has reported what could not be read.
                drop(self.live.take_rollback(&left, touched));
            }
            Some((Change::FeedStates(states), _)) => self.live.take_feed_states(states, touched),
            Some((Change::Feeds(views), _)) => {
                self.live.feeds.lock().set(views.to_vec(), touched);
            }
        }
        true
    }

    /// Puts the streams that have something to push into the schedule. A stream without readers is
    /// advanced when one joins.
    fn mark(&self, touched: &[u64]) {
        if touched.is_empty() {
            return;
        }
        let followers = self.live.followers.lock();
        let mut schedule = self.live.schedule.lock();
        for id in touched {
            if let Some(readership) = followers.get(id).and_then(|one| one.readership()) {
                schedule.ready(*id, readership);
            }
        }
    }

    /// Whether so few streams wait that all of them push before any frame leaves. If several
    /// clients read some of them, only these count: nothing else is sent before their frames.
    fn few_wait(&self) -> bool {
        let schedule = self.live.schedule.lock();
        let waiting = match schedule.waiting_shared() {
            0 => schedule.waiting(),
            shared => shared,
        };
        waiting <= FEW_STREAMS
    }

    /// Puts the streams that an event touched into the schedule; of many only the shared ones.
    fn mark_shared(&self, touched: &mut Touched) {
        if touched.len() > FEW_STREAMS {
            let shared = self.live.take_shared(touched);
            self.unmarked.lock().add(std::mem::replace(touched, shared));
        }
        self.mark(touched);
        touched.clear();
    }

    /// Puts some of the others into the schedule; false if there are none.
    fn mark_some(&self) -> bool {
        let some = self.unmarked.lock().take(MARKED_AT_ONCE);
        self.mark(&some);
        !some.is_empty()
    }

    /// Advances the stream whose turn it is; false if none is in the schedule.
    fn serve(&self) -> bool {
        let Some(id) = self.live.schedule.lock().pop() else { return false };
        let Some(follower) = self.live.follower(id) else { return true };
        let mut step = Step::begin();
        if !self.advance(&follower, |follower| self.live.advance_step(follower, &mut step)) {
            self.live.schedule_unawaited(&follower);
        }
        true
    }

    fn advance<T>(&self, follower: &Follower, act: impl FnOnce(&Follower) -> T) -> T {
        let stream = follower.stream();
        let (before, begin) = (stream.next_index(), Instant::now());
        let done = act(follower);
        let (took, pushed) = (begin.elapsed(), stream.next_index() != before);
        self.live.schedule.lock().served(stream.id(), took, pushed, begin);
        if pushed {
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.meters.advanced.fetch_add(1, Ordering::Relaxed);
            self.meters.nanos.fetch_add(nanos, Ordering::Relaxed);
        }
        done
    }

    /// Schedules what is due by the clock.
    fn keep_time(&self, now: Instant) {
        let mut rounds = self.rounds.lock();
        if rounds.due.is_empty() {
            rounds.due = self.live.schedule.lock().tick(now);
        }
        let left = rounds.due.len().saturating_sub(DUE_AT_ONCE);
        self.mark(&rounds.due.split_off(left));
        if now >= rounds.next_beat {
            rounds.next_beat = (rounds.next_beat + BEAT).max(now);
            let mut touched = Touched::new();
            self.live.roll(&mut touched);
            self.mark_shared(&mut touched);
            if rounds.beats.is_empty() {
                self.begin_beats(&mut rounds);
            }
        }
    }

    fn begin_beats(&self, rounds: &mut Rounds) {
        rounds.beats = self.live.followers.lock().keys().copied().collect();
        rounds.beaten = rounds.beaten.wrapping_add(1);
    }

    /// As if a second had passed.
    #[cfg(test)]
    pub(super) fn beat_all(&self) {
        self.begin_beats(&mut self.rounds.lock());
        while !self.rounds.lock().beats.is_empty() {
            self.beat();
        }
        while self.serve() {}
    }

    /// Lets streams that were quiet for long push a heartbeat, for a moment.
    fn beat(&self) {
        let mut rounds = self.rounds.lock();
        for () in upkeep() {
            let Some(id) = rounds.beats.pop_front() else { return };
            let Some(follower) = self.live.follower(id) else { continue };
            let is_late = !rounds.beaten.is_multiple_of(SLOW_BEAT)
                && self.live.schedule.lock().is_over_budget(id);
            if follower.stream().readership().readers > 0
                && !is_late
                && self.advance(&follower, |follower| self.live.beat(follower))
            {
                self.live.schedule_unawaited(&follower);
            }
        }
    }

    /// Gives streams slower or faster paces, for a moment.
    fn adapt(&self, now: Instant) {
        let mut rounds = self.rounds.lock();
        if rounds.repaced.is_empty() {
            rounds.repaced.extend(self.live.schedule.lock().adapt(now));
        }
        for () in upkeep() {
            let Some(paced) = rounds.repaced.pop_front() else { return };
            let Some(follower) = self.live.follower(paced.id) else { continue };
            let stream = follower.stream();
            let before = stream.slowed_to().unwrap_or(follower.pace);
            self.meters.slowed.fetch_add(u64::from(paced.pace > before), Ordering::Relaxed);
            stream.set_slowed_to((paced.pace > follower.pace).then_some(paced.pace));
            self.live.set_pace(&follower, paced.pace);
            // What it gathered at the slower pace.
            self.mark(&[paced.id]);
        }
    }
}

impl Worker for EncodeWorker {
    fn wake(&self) -> &Notify {
        &self.live.wake
    }

    fn turn(&self) -> Turn {
        let begin = Instant::now();
        self.mark_some();
        self.keep_time(begin);
        let mut touched = Touched::new();
        let mut now = begin;
        // After an event streams are served for a moment, and one of them in any case.
        let (mut serve_until, mut owed) = (begin, false);
        loop {
            // Those that are not in the schedule yet wait: first the shared ones' frames leave.
            let few = self.few_wait();
            if now >= begin + if few { COMMIT_SLICE } else { SLICE } {
                break;
            }
            let moment_is_over = now >= serve_until && !owed && !few;
            if !self.is_blocked(!moment_is_over, now) && self.take(&mut touched, now) {
                owed = !touched.is_empty();
                self.mark_shared(&mut touched);
                serve_until = now + FIRST_SLICE;
            } else if moment_is_over && serve_until > begin {
                // The most shared streams have pushed.
                break;
            } else if self.serve() {
                owed = false;
            } else if serve_until > begin || !self.mark_some() {
                break;
            }
            now = Instant::now();
        }
        self.beat();
        self.adapt(now);
        let rounds = self.rounds.lock();
        let again = self.live.schedule.lock().waiting() + self.unscheduled() > 0
            || !self.inbox.lock().is_empty()
            || !rounds.beats.is_empty()
            || !rounds.due.is_empty()
            || !rounds.repaced.is_empty();
        if again {
            return Turn::Again;
        }
        let beat = rounds.next_beat;
        let look = self.live.schedule.lock().next_due();
        Turn::Done { wake_at: Some(look.map_or(beat, |look| look.min(beat))) }
    }
}

/// As many steps as one kind of upkeep may make in a turn.
fn upkeep() -> impl Iterator<Item = ()> {
    let begin = Instant::now();
    (0..).take_while(move |done| *done == 0 || begin.elapsed() < UPKEEP_SLICE).map(|_| ())
}
