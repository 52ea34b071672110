//! Which sources each topic had events of: a file of a feed, a partition, a table. What a source
//! lacks, only its topics lack. Of a topic without a known source, any feed may be the source.
//!
//! The log keeps them, so that a restart need not wait for an event of each topic.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::{HashMap, HashSet};
use parking_lot::Mutex;

use super::feed_status::{FeedState, FeedStatus};
use crate::store::TopicSource;

/// Most topics whose sources are known; some 200 bytes each. Further ones count as of any source.
pub const MOST_TOPICS: usize = 100_000;
/// Most sources of a topic, such as the files of a source that begins one each day. With one more,
/// those before are forgotten.
pub const MOST_SOURCES: usize = 16;
/// Most markets that are not defined and had a snapshot. With one more, those before are forgotten.
pub const MOST_UNDEFINED: usize = 10_000;

/// See the module's text. Clones share it.
#[derive(Clone, Default)]
pub struct TopicSources {
    known: Arc<Mutex<Known>>,
    /// How many topics missed an event.
    missed: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Known {
    topics: HashMap<Arc<str>, Vec<Source>>,
    /// Topics that missed an event which nothing brings back, and whether they had one since.
    missed: HashMap<Arc<str>, bool>,
    /// Markets that are not defined, and had a snapshot or lost an order.
    undefined: HashSet<Box<str>>,
    /// Markets that may have lost an event before their books began. As many as of those.
    early: HashSet<Box<str>>,
    /// Counts the changes.
    changes: u64,
}

/// A source by the names of its feed and of itself.
struct Source {
    feed: Arc<str>,
    name: Arc<str>,
}

impl Source {
    fn is(&self, feed: &str, name: &str) -> bool {
        *self.name == *name && *self.feed == *feed
    }
}

impl TopicSources {
    /// Takes what the log keeps.
    pub fn restore(&self, kept: &[TopicSource]) {
        for TopicSource { topic, feed, source, .. } in kept {
            self.note(topic, feed, source);
        }
    }

    /// A topic had an event of a source. What is new is given back, for the log.
    pub fn note(
        &self,
        topic: &Arc<str>,
        feed: &Arc<str>,
        source: &Arc<str>,
    ) -> Option<TopicSource> {
        let mut known = self.known.lock();
        let is_full = known.topics.len() >= MOST_TOPICS;
        let mut replaces = false;
        match known.topics.get_mut(topic) {
            Some(sources) if sources.iter().any(|own| own.is(feed, source)) => return None,
            Some(sources) => {
                replaces = sources.len() >= MOST_SOURCES;
                if replaces {
                    sources.clear();
                }
                sources.push(Source { feed: feed.clone(), name: source.clone() });
            }
            None if is_full => return None,
            None => {
                let first = Source { feed: feed.clone(), name: source.clone() };
                known.topics.insert(topic.clone(), vec![first]);
            }
        }
        known.changes += 1;
        let (topic, feed, source) = (topic.clone(), feed.clone(), source.clone());
        Some(TopicSource { topic, feed, source, replaces })
    }

    /// Those of the topics that may have events of this source: they had some, or their sources
    /// are not known.
    pub fn brought<'a, T>(
        &self,
        (feed, source): (&str, &str),
        topics: impl Iterator<Item = (T, &'a str)>,
    ) -> Vec<T> {
        let known = self.known.lock();
        let may_bring = |topic: &str| {
            known.topics.get(topic).is_none_or(|all| all.iter().any(|own| own.is(feed, source)))
        };
        topics.filter(|(_, topic)| may_bring(topic)).map(|(own, _)| own).collect()
    }

    /// Whether a market that is not defined is one of its own, as it had a snapshot before. Else
    /// its name may be that of another market, misspelt.
    pub fn is_other_market(&self, market: &str, by_snapshot: bool) -> bool {
        let mut known = self.known.lock();
        if known.undefined.contains(market) {
            return true;
        }
        if by_snapshot {
            if known.undefined.len() >= MOST_UNDEFINED {
                known.undefined.clear();
            }
            known.undefined.insert(market.into());
        }
        false
    }

    /// Markets without a book yet may have lost an event of it.
    pub fn lose_early<'a>(&self, markets: impl Iterator<Item = &'a str>) {
        let mut known = self.known.lock();
        for market in markets.take(MOST_UNDEFINED) {
            if known.early.len() >= MOST_UNDEFINED {
                known.early.clear();
            }
            known.early.insert(market.into());
        }
    }

    /// Whether a market whose book begins now may have lost an event of it. Then it is forgotten.
    pub fn take_early(&self, market: &str) -> bool {
        let mut known = self.known.lock();
        let was_undefined = known.undefined.remove(market);
        known.early.remove(market) || was_undefined
    }

    /// A topic missed an event which nothing brings back. It is stale until the next one, and for
    /// one look at the states at least.
    pub fn miss(&self, topic: Arc<str>) {
        let mut known = self.known.lock();
        if known.missed.len() < MOST_TOPICS {
            known.missed.insert(topic, false);
            known.changes += 1;
        }
        self.missed.store(known.missed.len(), Ordering::Release);
    }

    /// A topic has an event again. Costs nothing where none missed one.
    pub fn goes_on(&self, topic: &str) {
        if !self.misses_any() {
            return;
        }
        let mut known = self.known.lock();
        let goes_on = known.missed.get_mut(topic).is_some_and(|own| !std::mem::replace(own, true));
        known.changes += u64::from(goes_on);
    }

    /// Whether a topic missed an event, and had none since the last look.
    pub fn misses_any(&self) -> bool {
        self.missed.load(Ordering::Acquire) > 0
    }

    /// Counts the changes.
    pub fn changes(&self) -> u64 {
        self.known.lock().changes
    }

    /// The state of each topic with a known source, which is the worst of its sources. A feed that
    /// is not among these brings nothing any more. What missed an event and goes on is forgotten
    /// by this look.
    pub fn states(&self, feeds: &[FeedStatus]) -> HashMap<Arc<str>, FeedState> {
        let feeds: HashMap<&str, &FeedStatus> =
            feeds.iter().map(|feed| (&*feed.name, feed)).collect();
        let mut known = self.known.lock();
        let mut states = HashMap::default();
        for (topic, sources) in &known.topics {
            let state = |source: &Source| Some(feeds.get(&*source.feed)?.of(&source.name));
            if let Some(worst) = sources.iter().filter_map(state).max() {
                states.insert(topic.clone(), worst);
            }
        }
        for topic in known.missed.keys() {
            let state = states.entry(topic.clone()).or_default();
            *state = FeedState::Stale.max(*state);
        }
        let before = known.missed.len();
        known.missed.retain(|_, goes_on| !*goes_on);
        known.changes += u64::from(known.missed.len() != before);
        self.missed.store(known.missed.len(), Ordering::Release);
        states
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::feed_status::{FeedKind, FeedStatuses};

    fn may_bring(all: &TopicSources, topic: &str, source: &str) -> bool {
        !all.brought(("files", source), std::iter::once(((), topic))).is_empty()
    }

    fn note(all: &TopicSources, topic: &str, feed: &str, source: &str) -> Option<bool> {
        Some(all.note(&topic.into(), &feed.into(), &source.into())?.replaces)
    }

    #[test]
    fn a_topic_has_the_worst_state_of_its_own_sources() {
        let statuses = FeedStatuses::new();
        let files = statuses.register("files", FeedKind::Files);
        let kafka = statuses.register("kafka", FeedKind::Kafka);
        let sources = statuses.sources();
        assert_eq!(note(sources, "A", "files", "a"), Some(false));
        assert_eq!(note(sources, "A", "files", "a"), None);
        note(sources, "B", "files", "b");
        note(sources, "C", "kafka", "p[0]");
        note(sources, "C", "files", "b");
        note(sources, "D", "gone", "x");
        let states = || {
            let states = sources.states(&statuses.snapshot());
            ["A", "B", "C", "D"].map(|topic| states.get(topic).copied())
        };
        let live = Some(FeedState::Live);
        assert_eq!(states(), [live, live, live, None]);
        statuses.source_faults(files, [("a".into(), "no".into())].into());
        assert_eq!(states(), [Some(FeedState::Halted), live, live, None]);
        statuses.stale(kafka, Some("cut off".into()));
        assert_eq!(states(), [Some(FeedState::Halted), live, Some(FeedState::Stale), None]);
        statuses.source_faults(files, [].into());
        assert_eq!(states(), [live, live, Some(FeedState::Stale), None]);
        assert!(may_bring(sources, "A", "a"));
        assert!(!may_bring(sources, "A", "b"));
        assert!(may_bring(sources, "E", "b"));
    }

    #[test]
    fn a_topic_that_missed_an_event_is_stale_for_a_look_at_least_and_until_the_next_event() {
        let statuses = FeedStatuses::new();
        let files = statuses.register("files", FeedKind::Files);
        let sources = statuses.sources();
        note(sources, "A", "files", "a");
        note(sources, "B", "files", "b");
        let look = || {
            let (before, states) = (sources.changes(), sources.states(&statuses.snapshot()));
            (states.get("A").copied(), states.get("B").copied(), sources.changes() != before)
        };
        let (live, stale) = (Some(FeedState::Live), Some(FeedState::Stale));
        assert_eq!(look(), (live, live, false));
        sources.miss("A".into());
        assert_eq!(look(), (stale, live, false));
        sources.goes_on("B");
        assert_eq!(look(), (stale, live, false));
        sources.goes_on("A");
        assert_eq!(look(), (stale, live, true), "another look is due");
        assert_eq!(look(), (live, live, false));
        // Also if the next event comes at once.
        sources.miss("B".into());
        sources.goes_on("B");
        assert_eq!(look(), (live, stale, true));
        assert!(!sources.misses_any());
        // It is no better for it.
        sources.miss("A".into());
        statuses.source_faults(files, [("a".into(), "no".into())].into());
        assert_eq!(look().0, Some(FeedState::Halted));
    }

    #[test]
    fn a_source_too_many_replaces_the_others_and_a_topic_too_many_is_of_any_source() {
        let sources = TopicSources::default();
        for number in 0..MOST_SOURCES {
            assert_eq!(note(&sources, "A", "files", &number.to_string()), Some(false));
        }
        assert_eq!(note(&sources, "A", "files", "one more"), Some(true));
        assert!(!may_bring(&sources, "A", "0"));
        for number in 1..MOST_TOPICS {
            assert_eq!(note(&sources, &number.to_string(), "files", "a"), Some(false));
        }
        assert_eq!(note(&sources, "one more", "files", "a"), None);
        assert!(may_bring(&sources, "one more", "b"));
        assert_eq!(note(&sources, "A", "files", "0"), Some(false));
    }

    #[test]
    fn an_undefined_market_may_be_any_until_it_had_a_snapshot() {
        let all = TopicSources::default();
        let had_snapshot = |market: &str| all.is_other_market(market, true);
        assert!(!all.is_other_market("ERG-USDX", false));
        assert!(!all.is_other_market("ERG-USDX", false));
        assert!(!had_snapshot("ERG-USDX"), "the first snapshot may be misspelt itself");
        assert!(all.is_other_market("ERG-USDX", false) && had_snapshot("ERG-USDX"));
        (1..MOST_UNDEFINED).for_each(|number| assert!(!had_snapshot(&number.to_string())));
        assert!(all.is_other_market("ERG-USDX", false));
        assert!(!had_snapshot("one too many"));
        assert!(!all.is_other_market("ERG-USDX", false), "it is forgotten");
    }
}
