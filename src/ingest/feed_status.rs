//! How each feed does, for operators and clients: feeds and the sequencer write it, the API reads
//! it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::place::Place;
use super::refusals::{Logged, Refusals};
use super::source_lags::SourceLags;
use super::summary::summary;
use super::topic_sources::TopicSources;
use crate::market::refusal::Refusal;
use crate::market::time::Micros;

/// As clients see it. A later one is worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum FeedState {
    #[default]
    Live,
    /// Cut off from its source, or late.
    Stale,
    /// Nothing, or not everything, of it gets into the log.
    Halted,
    ShuttingDown,
}

/// Names a feed within this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeedId(u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedKind {
    Files,
    Postgres,
    Kafka,
    Simulator,
    /// Mutations.
    Local,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastRefusal {
    pub place: Place,
    pub reason: Refusal,
}

/// Why a feed isn't live. Each cause comes and goes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The log can't be written.
    Store,
    /// The log's file is gone.
    LogFile,
    /// The log that hubs share takes nothing from it.
    SharedLog,
    /// The source, or a part of it, can't be read.
    Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedStatus {
    pub name: Arc<str>,
    pub kind: FeedKind,
    pub state: FeedState,
    /// The same without what single sources of it lack.
    pub state_as_a_whole: FeedState,
    /// Whether clients can be sent to the hub as far as this feed goes.
    pub is_ready: bool,
    /// Sources that can't be read, with their reasons.
    pub source_faults: BTreeMap<Arc<str>, String>,
    /// Sources that are cut off or late, with their reasons; a topic of Kafka for its partitions.
    pub stale_sources: BTreeMap<Arc<str>, String>,
    /// What is wrong, or what is passed over on purpose while the feed is live.
    pub reason: Option<String>,
    /// Events that went into the log since the hub started.
    pub events_total: u64,
    /// Events that were in the log already.
    pub known_total: u64,
    pub refused_total: u64,
    pub last_refusal: Option<LastRefusal>,
    /// The newest, `last_refusal` among them.
    pub refusals: Arc<Refusals>,
    /// When the newest event went into the log, by the hub's clock.
    pub last_event_micros: Option<Micros>,
    /// What the source holds and the log doesn't yet; 0 when it has caught up. Bytes of files, rows
    /// of Postgres, records of Kafka.
    pub lag: u64,
    /// How often it was cut off from its source since the hub started.
    pub cuts_total: u64,
}

impl FeedStatus {
    /// The state of one of its sources.
    pub fn of(&self, source: &str) -> FeedState {
        let topic = source.rsplit_once('/').map_or(source, |(topic, _)| topic);
        let own = match () {
            () if self.source_faults.contains_key(source) => FeedState::Halted,
            () if [source, topic].iter().any(|own| self.stale_sources.contains_key(*own)) => {
                FeedState::Stale
            }
            () => FeedState::Live,
        };
        self.state_as_a_whole.max(own)
    }
}

/// What one commit brought from one feed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub accepted: u64,
    /// Of these, events that change nothing a client can see yet.
    pub logged_only: u64,
    pub known: u64,
    pub refused: u64,
    pub last_refusal: Option<LastRefusal>,
    pub refusals: Refusals,
}

struct Entry {
    status: FeedStatus,
    halted: BTreeMap<Cause, String>,
    stale: Option<String>,
    note: Option<String>,
    /// Of its refusals.
    logged: Logged,
    /// It brought events that change nothing a client can see yet.
    logged_only: bool,
    is_optional: bool,
    shutting_down: bool,
}

/// Said once for all such events: a count in it would be sent to every client again and again.
const LOGGED_ONLY: &str = "its block.applied events are only logged: nothing follows from them yet";

/// The log can't be written.
const LOG_CAUSES: [Cause; 2] = [Cause::Store, Cause::LogFile];

/// The board. Clones share it.
#[derive(Clone)]
pub struct FeedStatuses {
    entries: Arc<Mutex<Vec<Entry>>>,
    /// Rises with each change; a watcher that is slow sees only the newest.
    generation: Arc<watch::Sender<u64>>,
    sources: TopicSources,
    lags: SourceLags,
    /// What stops every feed.
    halted: Arc<Mutex<BTreeSet<Cause>>>,
}

impl Default for FeedStatuses {
    fn default() -> Self {
        let generation = Arc::new(watch::Sender::new(0));
        let (entries, sources, lags, halted) = Default::default();
        Self { entries, generation, sources, lags, halted }
    }
}

impl FeedStatuses {
    pub fn new() -> Self {
        Self::default()
    }

    /// Feeds are few and made at start-up from the config; they are never taken off.
    pub fn register(&self, name: &str, kind: FeedKind) -> FeedId {
        let mut entries = self.entries.lock();
        let status = FeedStatus {
            name: name.into(),
            kind,
            state: FeedState::Live,
            state_as_a_whole: FeedState::Live,
            is_ready: true,
            source_faults: BTreeMap::new(),
            stale_sources: BTreeMap::new(),
            reason: None,
            events_total: 0,
            known_total: 0,
            refused_total: 0,
            last_refusal: None,
            refusals: Arc::default(),
            last_event_micros: None,
            lag: 0,
            cuts_total: 0,
        };
        let id = FeedId(u16::try_from(entries.len()).unwrap_or(u16::MAX));
        assert_ne!(id.0, u16::MAX, "feeds come from the config, one by one");
        let halted = BTreeMap::new();
        entries.push(Entry {
            status,
            halted,
            stale: None,
            note: None,
            logged: Logged::default(),
            logged_only: false,
            is_optional: false,
            shutting_down: false,
        });
        drop(entries);
        self.generation.send_modify(|generation| *generation += 1);
        id
    }

    /// All feeds as they are now, in the order they were registered.
    pub fn snapshot(&self) -> Vec<FeedStatus> {
        self.entries.lock().iter().map(|entry| entry.status.clone()).collect()
    }

    pub fn get(&self, feed: FeedId) -> Option<FeedStatus> {
        self.entries.lock().get(usize::from(feed.0)).map(|entry| entry.status.clone())
    }

    /// Which feed brings which topic.
    pub fn sources(&self) -> &TopicSources {
        &self.sources
    }

    /// How far single sources are.
    pub fn lags(&self) -> &SourceLags {
        &self.lags
    }

    pub fn name(&self, feed: FeedId) -> Option<Arc<str>> {
        self.entries.lock().get(usize::from(feed.0)).map(|entry| entry.status.name.clone())
    }

    /// The name of the first feed of a kind.
    pub fn first_of(&self, kind: FeedKind) -> Option<Arc<str>> {
        let entries = self.entries.lock();
        let first = entries.iter().find(|entry| entry.status.kind == kind)?;
        Some(first.status.name.clone())
    }

    pub fn is_kafka(&self, feed: Option<FeedId>) -> bool {
        let entries = self.entries.lock();
        let entry = feed.and_then(|feed| entries.get(usize::from(feed.0)));
        entry.is_some_and(|entry| entry.status.kind == FeedKind::Kafka)
    }

    /// Whether a feed of this kind is not reached now, or has not read all that was there.
    pub fn is_any_stale(&self, kind: FeedKind) -> bool {
        let entries = self.entries.lock();
        entries.iter().any(|entry| entry.status.kind == kind && entry.stale.is_some())
    }

    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Signals each change. Each commit is one too, so take them at your own pace.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// HALTED with a reason, until [`Self::clear`] of the same cause.
    pub fn halt(&self, feed: FeedId, cause: Cause, reason: &str) {
        self.change(feed, |entry| {
            entry.halted.insert(cause, reason.to_owned());
        });
    }

    pub fn clear(&self, feed: FeedId, cause: Cause) {
        self.change(feed, |entry| {
            entry.halted.remove(&cause);
        });
    }

    /// The hub is ready also where this feed is not live.
    pub fn make_optional(&self, feed: FeedId) {
        self.change(feed, |entry| entry.is_optional = true);
    }

    /// The sources of a feed that can't be read. Only their topics are HALTED.
    pub fn source_faults(&self, feed: FeedId, faults: BTreeMap<Arc<str>, String>) {
        self.change(feed, |entry| entry.status.source_faults = faults);
    }

    /// The sources of a feed that are cut off. Only their topics are STALE.
    pub fn stale_sources(&self, feed: FeedId, reasons: BTreeMap<Arc<str>, String>) {
        self.change(feed, |entry| entry.status.stale_sources = reasons);
    }

    /// For what stops every feed at once.
    pub fn halt_all(&self, cause: Cause, reason: &str) {
        self.halted.lock().insert(cause);
        self.each(|entry| {
            entry.halted.insert(cause, reason.to_owned());
        });
    }

    pub fn clear_all(&self, cause: Cause) {
        self.halted.lock().remove(&cause);
        self.each(|entry| {
            entry.halted.remove(&cause);
        });
    }

    /// Whether the log is known to take nothing now.
    pub fn is_log_halted(&self) -> bool {
        let halted = self.halted.lock();
        LOG_CAUSES.iter().any(|cause| halted.contains(cause))
    }

    /// STALE with a reason, or no longer.
    pub fn stale(&self, feed: FeedId, reason: Option<String>) {
        self.change(feed, |entry| entry.stale = reason);
    }

    /// STALE, as it was cut off from its source; counted each time.
    pub fn cut_off(&self, feed: FeedId, reason: String) {
        self.change(feed, |entry| {
            entry.stale = Some(reason);
            entry.status.cuts_total += 1;
        });
    }

    /// What a live feed passes over on purpose.
    pub fn note(&self, feed: FeedId, note: Option<String>) {
        self.change(feed, |entry| entry.note = note);
    }

    pub fn set_lag(&self, feed: FeedId, lag: u64) {
        self.change(feed, |entry| entry.status.lag = lag);
    }

    /// As the feed itself knows it.
    pub fn set_lag_while_live(&self, feed: FeedId, lag: u64) {
        self.set_lag_if(feed, true, lag);
    }

    /// As somebody beside the feed sees it, which can't say it itself.
    pub fn set_lag_unless_live(&self, feed: FeedId, lag: u64) {
        self.set_lag_if(feed, false, lag);
    }

    fn set_lag_if(&self, feed: FeedId, live: bool, lag: u64) {
        self.change(feed, |entry| {
            if (entry.status.state == FeedState::Live) == live {
                entry.status.lag = lag;
            }
        });
    }

    /// Writes to the hub's log what was refused since its last line, not too often.
    pub fn log_refusals(&self, now: Instant) {
        for entry in self.entries.lock().iter_mut() {
            let status = &entry.status;
            let Some(refused) = entry.logged.due(status.refused_total, now) else { continue };
            let Some(LastRefusal { place, reason }) = &status.last_refusal else { continue };
            let (feed, total) = (&status.name, status.refused_total);
            tracing::warn!(%feed, refused, total, %place, %reason, "events were refused; the last");
        }
    }

    pub fn shutting_down(&self, feed: FeedId) {
        self.change(feed, |entry| entry.shutting_down = true);
    }

    /// Before their tasks end: clients receive it while there are still sockets.
    pub fn all_shutting_down(&self) {
        self.each(|entry| entry.shutting_down = true);
    }

    pub(crate) fn count(&self, feed: FeedId, counts: Counts, now: Micros) {
        let Counts { accepted, logged_only, known, refused, last_refusal, refusals } = counts;
        let changed = accepted + known + refused > 0 || last_refusal.is_some();
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(usize::from(feed.0)) else { return };
        // Each commit calls this, so it changes the counts in place: a copy to compare costs more.
        let status = &mut entry.status;
        status.events_total += accepted;
        status.known_total += known;
        status.refused_total += refused;
        if last_refusal.is_some() {
            status.last_refusal = last_refusal;
            Arc::make_mut(&mut status.refusals).add(refusals);
        }
        if accepted > 0 {
            status.last_event_micros = Some(now);
        }
        if logged_only > 0 && !entry.logged_only {
            entry.with(|entry| entry.logged_only = true);
        }
        drop(entries);
        self.changed(changed);
    }

    fn change(&self, feed: FeedId, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.entries.lock();
        let changed = entries.get_mut(usize::from(feed.0)).is_some_and(|entry| entry.with(change));
        drop(entries);
        self.changed(changed);
    }

    fn each(&self, mut change: impl FnMut(&mut Entry)) {
        let mut changed = false;
        for entry in self.entries.lock().iter_mut() {
            changed |= entry.with(&mut change);
        }
        self.changed(changed);
    }

    fn changed(&self, changed: bool) {
        if changed {
            self.generation.send_modify(|generation| *generation += 1);
        }
    }
}

impl Entry {
    /// Whether what others see of it changed.
    fn with(&mut self, change: impl FnOnce(&mut Self)) -> bool {
        let before = self.status.clone();
        change(self);
        let mut reasons: Vec<&str> = self.halted.values().map(String::as_str).collect();
        // Two causes may come of the same fault.
        reasons.dedup();
        let (whole, reason) = if !reasons.is_empty() {
            (FeedState::Halted, Some(reasons.join("; ")))
        } else if self.stale.is_some() {
            (FeedState::Stale, self.stale.clone())
        } else {
            let logged_only = self.logged_only.then_some(LOGGED_ONLY);
            let notes: Vec<&str> = self.note.as_deref().into_iter().chain(logged_only).collect();
            (FeedState::Live, (!notes.is_empty()).then(|| notes.join("; ")))
        };
        let FeedStatus { source_faults: faults, stale_sources: stale, .. } = &self.status;
        let all = faults.iter().chain(stale);
        let faulty = all.map(|(source, reason)| format!("{source}: {reason}"));
        let faulty = summary(faulty, faults.len() + stale.len());
        let of_sources = match () {
            () if !faults.is_empty() => FeedState::Halted,
            () if !stale.is_empty() => FeedState::Stale,
            () => FeedState::Live,
        };
        let whole = if self.shutting_down { FeedState::ShuttingDown } else { whole };
        self.status.state_as_a_whole = whole;
        // Of single sources that can't be read, only their own topics are not live.
        self.status.is_ready = !LOG_CAUSES.iter().any(|cause| self.halted.contains_key(cause))
            && (self.is_optional || whole == FeedState::Live);
        self.status.state = whole.max(of_sources);
        let reasons: Vec<String> = faulty.into_iter().chain(reason).collect();
        self.status.reason = (!reasons.is_empty()).then(|| reasons.join("; "));
        self.status != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::place::At;

    #[test]
    fn a_source_that_can_not_be_read_halts_only_itself() {
        let board = FeedStatuses::new();
        let feed = board.register("files", FeedKind::Files);
        board.note(feed, Some("b.txt is ignored".into()));
        board.source_faults(feed, [("a.ndjson".into(), "no".into())].into());
        let status = board.get(feed).unwrap();
        assert_eq!((status.state, status.state_as_a_whole), (FeedState::Halted, FeedState::Live));
        assert_eq!(status.reason.as_deref(), Some("a.ndjson: no; b.txt is ignored"));
        assert_eq!(status.of("a.ndjson"), FeedState::Halted);
        assert_eq!(status.of("c.ndjson"), FeedState::Live);
        assert!(status.is_ready);
        board.stale(feed, Some("late".into()));
        assert_eq!(board.get(feed).unwrap().of("c.ndjson"), FeedState::Stale);
        board.stale(feed, None);
        // One that is only cut off is less than that.
        board.stale_sources(feed, [("c.ndjson".into(), "late".into())].into());
        let status = board.get(feed).unwrap();
        assert_eq!(
            (status.of("a.ndjson"), status.of("c.ndjson")),
            (FeedState::Halted, FeedState::Stale)
        );
        assert_eq!((status.state, status.is_ready), (FeedState::Halted, true));
        board.source_faults(feed, BTreeMap::new());
        let status = board.get(feed).unwrap();
        assert_eq!((status.state, status.state_as_a_whole), (FeedState::Stale, FeedState::Live));
        assert_eq!(status.reason.as_deref(), Some("c.ndjson: late; b.txt is ignored"));
        board.stale_sources(feed, BTreeMap::new());
        board.source_faults(feed, BTreeMap::new());
        assert_eq!(board.get(feed).unwrap().state, FeedState::Live);
    }

    #[test]
    fn a_hub_is_ready_without_an_optional_feed_but_not_without_its_log() {
        let board = FeedStatuses::new();
        let feed = board.register("kafka", FeedKind::Kafka);
        let is_ready = || board.get(feed).unwrap().is_ready;
        board.stale(feed, Some("cut off".into()));
        assert!(!is_ready());
        board.make_optional(feed);
        assert!(is_ready());
        board.halt_all(Cause::Store, "disk full");
        assert!(!is_ready());
        board.clear_all(Cause::Store);
        assert!(is_ready());
    }

    #[test]
    fn a_feed_is_live_again_only_when_every_cause_is_gone() {
        let board = FeedStatuses::new();
        let feed = board.register("files", FeedKind::Files);
        board.halt(feed, Cause::Source, "a.ndjson: no");
        board.halt_all(Cause::Store, "disk full");
        let status = board.get(feed).unwrap();
        assert_eq!(status.state, FeedState::Halted);
        assert_eq!(status.reason.as_deref(), Some("disk full; a.ndjson: no"));
        board.clear_all(Cause::Store);
        assert_eq!(board.get(feed).unwrap().reason.as_deref(), Some("a.ndjson: no"));
        board.clear(feed, Cause::Source);
        assert_eq!(board.get(feed).unwrap().state, FeedState::Live);
        board.shutting_down(feed);
        assert_eq!(board.get(feed).unwrap().state, FeedState::ShuttingDown);
    }

    #[test]
    fn the_generation_rises_with_each_change_and_only_then() {
        let board = FeedStatuses::new();
        let feed = board.register("files", FeedKind::Files);
        let changes = board.changes();
        let before = board.generation();
        board.set_lag(feed, 0);
        board.clear(feed, Cause::Store);
        assert_eq!(board.generation(), before);
        board.set_lag(feed, 9);
        assert_eq!(board.generation(), before + 1);
        assert!(changes.has_changed().unwrap());
    }

    #[test]
    fn a_feed_says_once_that_some_of_its_events_are_only_logged() {
        let board = FeedStatuses::new();
        let feed = board.register("files", FeedKind::Files);
        board.note(feed, Some("a.txt is no .ndjson".into()));
        board.count(feed, Counts { accepted: 1, ..Counts::default() }, 5);
        assert_eq!(board.get(feed).unwrap().reason.as_deref(), Some("a.txt is no .ndjson"));
        board.count(feed, Counts { accepted: 2, logged_only: 1, ..Counts::default() }, 6);
        let status = board.get(feed).unwrap();
        assert_eq!(status.state, FeedState::Live);
        assert_eq!(status.reason, Some(format!("a.txt is no .ndjson; {LOGGED_ONLY}")));
        board.count(feed, Counts { accepted: 9, logged_only: 9, ..Counts::default() }, 7);
        assert_eq!(board.get(feed).unwrap().reason, status.reason);
    }

    #[test]
    fn the_last_refusal_stays_and_the_counts_add_up() {
        let board = FeedStatuses::new();
        let feed = board.register("files", FeedKind::Files);
        let place = Place { source: "a.ndjson".into(), at: At::Line { number: 3, byte: 90 } };
        assert_eq!(place.to_string(), "a.ndjson line 3 (byte 90)");
        let refusal = Some(LastRefusal { place, reason: Refusal::NotAnObject });
        let first = Counts {
            accepted: 2,
            known: 1,
            refused: 1,
            last_refusal: refusal.clone(),
            ..Counts::default()
        };
        board.count(feed, first, 5);
        board.count(feed, Counts { known: 1, ..Counts::default() }, 6);
        let status = board.get(feed).unwrap();
        assert_eq!((status.events_total, status.known_total, status.refused_total), (2, 2, 1));
        assert_eq!(status.last_refusal, refusal);
        assert_eq!(status.last_event_micros, Some(5));
    }
}
