//! Generic topics that nobody follows. Memory holds the last event of the newest ones; of others
//! only the log has it. So clients may name any topics, and memory stays bounded.

use std::collections::BTreeMap;

use crate::live::frame::TopicName;
use crate::market::topic::Topic;

/// Generic topics remembered without a follower, of some 200 bytes each.
const MOST_IDLE: usize = 100_000;

/// See the module's text.
pub(super) struct Idle {
    /// By their last event, which is of no other topic of this kind.
    by_last: BTreeMap<u64, TopicName>,
    most: usize,
    /// Some were forgotten: a topic that is not known may have events in the log.
    pub forgets: bool,
}

impl Default for Idle {
    fn default() -> Self {
        Self { by_last: BTreeMap::new(), most: MOST_IDLE, forgets: false }
    }
}

impl Idle {
    /// Whether topics of this kind can be forgotten. There are as many others as there are markets
    /// and accounts.
    pub(super) fn can_forget(name: &str) -> bool {
        matches!(Topic::parse(name), Some(Topic::Message(_)))
    }

    /// A topic has no follower, and this last event. Returns one that is to be forgotten for it.
    pub(super) fn add(&mut self, name: TopicName, last: u64) -> Option<TopicName> {
        self.by_last.insert(last, name);
        if self.by_last.len() <= self.most {
            return None;
        }
        self.forgets = true;
        self.by_last.pop_first().map(|(_, oldest)| oldest)
    }

    /// The topic with this last event is followed, or has another one.
    pub(super) fn remove(&mut self, last: u64) {
        self.by_last.remove(&last);
    }

    #[cfg(test)]
    pub(super) fn keep(&mut self, most: usize) {
        self.most = most;
    }
}
