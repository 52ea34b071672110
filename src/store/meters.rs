//! What the log counts of itself, for operators.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use foldhash::HashMap;
use parking_lot::{Mutex, MutexGuard};

/// Topics whose events are counted by name: those of a hundred markets.
pub(super) const MOST_COUNTED_TOPICS: usize = 300;
/// The topics beyond that.
const OTHER_TOPICS: &str = "other";

#[derive(Debug, Default)]
pub struct StoreMeters {
    /// Transactions with events or with feeds' progress.
    pub commits: AtomicU64,
    pub commit_nanos: AtomicU64,
    pub commit_failures: AtomicU64,
    /// Sequence of the newest event.
    pub newest: AtomicU64,
    topics: Mutex<TopicCounts>,
}

/// Events of each topic since the start. All accounts of a market count together, and so do all
/// generic topics, as clients make these.
#[derive(Debug, Default)]
pub struct TopicCounts {
    named: HashMap<Arc<str>, u64>,
    other: u64,
}

impl TopicCounts {
    pub(super) fn add(&mut self, topic: &Arc<str>) {
        if let Some(count) = self.named.get_mut(topic) {
            *count += 1;
            return;
        }
        let name = match topic.split_once(':') {
            Some((generic @ "message", _)) => generic,
            _ => topic.split('@').next().unwrap_or_default(),
        };
        if let Some(count) = self.named.get_mut(name) {
            *count += 1;
        } else if self.named.len() < MOST_COUNTED_TOPICS {
            self.named.insert(name.into(), 1);
        } else {
            self.other += 1;
        }
    }

    /// In the order of the names.
    pub fn counts(&self) -> Vec<(Arc<str>, u64)> {
        let named = self.named.iter().map(|(name, count)| (name.clone(), *count));
        let other = (self.other > 0).then(|| (OTHER_TOPICS.into(), self.other));
        let mut all: Vec<_> = named.chain(other).collect();
        all.sort_unstable();
        all
    }
}

impl StoreMeters {
    pub fn topics(&self) -> MutexGuard<'_, TopicCounts> {
        self.topics.lock()
    }

    /// Counts a commit that began at a time.
    pub(super) fn commit<T, E>(&self, began: Instant, done: &Result<T, E>) {
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match done {
            Ok(_) => {
                self.commits.fetch_add(1, Ordering::Relaxed);
                self.commit_nanos.fetch_add(nanos, Ordering::Relaxed);
            }
            Err(_) => {
                self.commit_failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_by_topic_for_so_many_topics_and_generic_ones_together() {
        let mut counts = TopicCounts::default();
        let mut add = |topic: &str| counts.add(&topic.into());
        for topic in ["message:a", "message:b", "orders:A-B@one", "orders:A-B", "trades:A-B"] {
            add(topic);
        }
        (0..MOST_COUNTED_TOPICS).for_each(|number| add(&format!("book:{number}")));
        add("trades:A-B");
        let counts: HashMap<_, _> = counts.counts().into_iter().collect();
        let of = |name: &str| counts.get(name).copied();
        assert_eq!(counts.len(), MOST_COUNTED_TOPICS + 1);
        assert_eq!(
            (of("message"), of("orders:A-B"), of("trades:A-B")),
            (Some(2), Some(2), Some(2))
        );
        assert_eq!(of("other"), Some(3), "books beyond the named ones");
    }
}
