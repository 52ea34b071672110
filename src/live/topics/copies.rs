//! What a copy of the state takes of the topics from another one.

use super::{Topics, end_of};
use crate::live::frame::TopicName;
use crate::market::epochs::EpochHistory;
use crate::market::time::Micros;
use crate::market::topic::scope_of;

impl Topics {
    /// The ends of some topics with their epochs, for another copy of the state.
    pub(in crate::live) fn copy(&self, names: &[TopicName]) -> Ends {
        let end = |name: &TopicName| {
            let (last, time) = end_of(&self.topics, name);
            let is_forgotten = self.is_forgotten(name);
            End { name: name.clone(), last, time, is_forgotten, epochs: self.epochs(name) }
        };
        Ends { ends: names.iter().map(end).collect(), undone_at: self.undone_at }
    }

    /// Replaces the ends of topics by those of another copy: of topics that are not followed here
    /// yet or, with `again`, of all.
    pub(in crate::live) fn adopt(&mut self, copy: Ends, again: bool) {
        for end in copy.ends {
            self.epochs.insert(scope_of(&end.name), end.epochs);
            let topic = self.topics.entry(end.name).or_default();
            if topic.followers == 0 || again {
                topic.forget_recent();
                (topic.last, topic.event_time) = (end.last, end.time);
                topic.undone_at = copy.undone_at;
                topic.is_forgotten = end.is_forgotten;
                self.idle.forgets |= end.is_forgotten;
            }
        }
        self.undone_at = self.undone_at.max(copy.undone_at);
    }

    /// Replaces the epochs of all scopes by those of another copy.
    pub(in crate::live) fn adopt_epochs(&mut self, other: &Self) {
        self.is_copy = true;
        self.epochs = other.epochs.clone();
        self.undone_at = other.undone_at;
    }

    /// Whether an event of this topic is of no use here.
    pub(in crate::live) fn ignores(&self, name: &str) -> bool {
        self.is_copy && !self.topics.contains_key(name)
    }

    /// Topics that some stream follows.
    pub(in crate::live) fn followed(&self) -> Vec<TopicName> {
        let followed = self.topics.iter().filter(|(_, topic)| topic.followers > 0);
        followed.map(|(name, _)| name.clone()).collect()
    }

    /// Forgets topics without a follower: the origin has them.
    pub(in crate::live) fn forget_unfollowed(&mut self) {
        self.topics.retain(|_, topic| topic.followers > 0);
    }
}

/// The ends of some topics with the numbering of each, as [`Topics::copy`] took them.
pub(in crate::live) struct Ends {
    ends: Vec<End>,
    undone_at: u64,
}

struct End {
    name: TopicName,
    last: u64,
    time: Option<Micros>,
    is_forgotten: bool,
    epochs: EpochHistory,
}
