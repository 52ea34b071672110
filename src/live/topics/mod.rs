//! Log topics: those whose events are sent one by one and never merged (trades, messages), and
//! the streams that follow some of them. One lock for all of it: a stream may span topics, and its
//! ring wants rising sequences. What the rings no longer hold is read from the log, see `replay`.

mod continuation;
mod copies;
mod idle;
mod replay;
mod stream;
mod topic;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};
use spreadly_subscriptions::{Epoch, ResponseStream, Resume};

use self::continuation::Continuation;
use self::idle::Idle;
use self::stream::{At, StreamEpochs, TopicStream};
use self::topic::Topic;
use super::feed_states::FeedStates;
use super::frame::{Encode, Item, SnapshotReason, TopicName};
use super::pace::Touched;
use super::steps::Step;
use crate::market::epochs::{EpochChange, EpochHistory};
use crate::market::time::Micros;
use crate::market::topic::scope_of;
use crate::store;

pub(super) use self::replay::Replay;
pub use self::replay::item;

pub(super) struct Topics {
    epoch: Epoch,
    /// Of a worker: only topics that are followed are here, others are kept elsewhere.
    is_copy: bool,
    states: FeedStates,
    /// Topics that are followed, and remembered topics that have events. Nothing is kept of names
    /// that were only asked for.
    topics: HashMap<TopicName, Topic>,
    idle: Idle,
    /// Of the scopes that had a rollback.
    epochs: HashMap<String, EpochHistory>,
    /// The newest rollback that is known here.
    undone_at: u64,
    streams: BTreeMap<u64, TopicStream>,
}

impl Topics {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            is_copy: false,
            states: FeedStates::default(),
            topics: HashMap::new(),
            idle: Idle::default(),
            epochs: HashMap::new(),
            undone_at: 0,
            streams: BTreeMap::new(),
        }
    }

    /// The epochs of a topic.
    pub(super) fn epochs(&self, topic: &str) -> EpochHistory {
        let known = self.epochs.get(&scope_of(topic));
        known.cloned().unwrap_or_else(|| EpochHistory::new(self.epoch))
    }

    fn stream_epochs(&self, names: &[TopicName]) -> StreamEpochs {
        let own: Vec<_> = names.iter().map(|name| self.epochs(name)).collect();
        let together = EpochHistory::union(self.epoch, own.iter());
        StreamEpochs { together, topics: own.iter().map(EpochHistory::epoch).collect() }
    }

    /// Begins a new epoch of a scope.
    pub(super) fn begin_epoch(&mut self, scope: &str, change: EpochChange) {
        self.undone_at = self.undone_at.max(change.at);
        let known = self.epochs.entry(scope.to_owned());
        let known = known.or_insert_with(|| EpochHistory::new(self.epoch));
        if known.since() < change.at {
            known.begin(change);
        }
    }

    /// Takes a rollback: the ends of the topics that lost events, and the new epochs of scopes.
    /// Readers that follow one of these go back to the events that are left.
    pub(super) fn roll_back<'a>(
        &mut self,
        changes: impl Iterator<Item = (&'a str, EpochChange)>,
        left: &[(store::TopicPosition, Option<Micros>)],
    ) {
        let mut scopes = BTreeSet::new();
        let mut at = 0;
        for (scope, change) in changes {
            at = at.max(change.at);
            self.begin_epoch(scope, change);
            scopes.insert(scope);
        }
        for (known, event_time) in left {
            let known_here = self.topics.get_key_value(&*known.name);
            let newer = known_here.filter(|(_, topic)| topic.undone_at < at);
            if let Some((name, topic)) = newer {
                let (name, before) = (name.clone(), topic.last);
                if let Some(topic) = self.topics.get_mut(&name) {
                    (topic.last, topic.event_time) = (known.last, *event_time);
                    topic.forget_recent();
                }
                self.update_idle(&name, before);
            }
        }
        let mut streams = std::mem::take(&mut self.streams);
        for stream in streams.values_mut() {
            let names = stream.names().clone();
            if names.iter().any(|name| scopes.contains(&*scope_of(name))) {
                stream.roll_back(self.stream_epochs(&names), self.last_of(&names));
            }
        }
        self.streams = streams;
    }

    /// The last event of any of these.
    fn last_of(&self, names: &[TopicName]) -> u64 {
        names.iter().map(|name| end_of(&self.topics, name).0).max().unwrap_or(0)
    }

    /// Sequence of a topic's last event; 0 if there is none.
    pub(super) fn last(&self, name: &str) -> u64 {
        end_of(&self.topics, name).0
    }

    /// Takes the end of a topic of the log, before anything is published.
    pub(super) fn restore(&mut self, known: store::TopicPosition, event_time: Option<Micros>) {
        let name = TopicName::from(known.name);
        let topic = self.topics.entry(name.clone()).or_default();
        (topic.last, topic.event_time) = (known.last, event_time);
        self.update_idle(&name, 0);
    }

    /// Whether the end of a topic is unknown here: nothing is sent of it before [`Topics::recall`].
    pub(super) fn is_forgotten(&self, name: &str) -> bool {
        self.idle.forgets
            && Idle::can_forget(name)
            && self.topics.get(name).is_none_or(|topic| topic.is_forgotten)
    }

    /// Takes the last event of a forgotten topic from the log; 0 if it has none there.
    pub(super) fn recall(&mut self, name: &TopicName, last: u64) {
        if !self.is_forgotten(name) {
            return;
        }
        let topic = self.topics.entry(name.clone()).or_default();
        topic.is_forgotten = false;
        topic.last = topic.last.max(last);
        for stream in self.streams.values_mut() {
            if stream.names().binary_search(name).is_ok() {
                stream.recall(last);
            }
        }
    }

    /// A topic's last event was `before` and is another now, or its last follower left.
    fn update_idle(&mut self, name: &TopicName, before: u64) {
        if self.is_copy || !Idle::can_forget(name) {
            return;
        }
        let Some(topic) = self.topics.get(name) else { return };
        self.idle.remove(before);
        if topic.followers == 0
            && topic.last > 0
            && let Some(oldest) = self.idle.add(name.clone(), topic.last)
        {
            self.topics.remove(&oldest);
        }
    }

    /// Takes an event of the log: it becomes the end of its topic.
    pub(super) fn publish(&mut self, name: &TopicName, item: &Item, touched: &mut Touched) {
        let topic = match self.topics.get_mut(name) {
            Some(topic) => topic,
            None => self.topics.entry(name.clone()).or_default(),
        };
        if item.sequence <= topic.last {
            return; // Read again at the start; the topic is at its end already.
        }
        let previous = std::mem::replace(&mut topic.last, item.sequence);
        topic.event_time = item.time;
        topic.keep(previous, item);
        touched.extend(&topic.raw);
        self.update_idle(name, previous);
    }

    /// Pushes the events that a stream has not pushed. Then pushes the positions of topics whose
    /// state changed or that were quiet for long. False if more are left than belong to this step.
    pub(super) fn advance(&mut self, stream: u64, now: Micros, step: &mut Step) -> bool {
        let Some(own) = self.streams.get_mut(&stream) else { return true };
        let at = At { states: self.states.clone(), now };
        let names = own.names().clone();
        let seen = own.last();
        let mut items: Vec<(usize, u64, &Item)> = Vec::new();
        let mut whole = true;
        for (place, name) in names.iter().enumerate() {
            let Some(topic) = self.topics.get(name).filter(|topic| topic.last > seen) else {
                continue;
            };
            match topic.after(seen) {
                Some(events) => {
                    items.extend(events.map(|(previous, item)| (place, *previous, item)));
                }
                None => whole = false,
            }
        }
        if whole {
            items.sort_by_key(|(_, _, item)| item.sequence);
            if !own.publish(&items, &at, step) {
                return false;
            }
        } else {
            // Its readers read the log from where they are.
            let last = self.last_of(&names);
            if let Some(own) = self.streams.get_mut(&stream) {
                own.skip_to(last);
            }
        }
        self.announce(stream, &at, step)
    }

    pub(super) fn set_states(&mut self, states: FeedStates, touched: &mut Touched) {
        self.states = states;
        touched.extend(self.streams.keys());
    }

    /// Called each second. Whether a topic was quiet for long: then the stream is to be advanced.
    pub(super) fn beat(&mut self, stream: u64) -> bool {
        let Some(own) = self.streams.get_mut(&stream) else { return false };
        own.forget_pages();
        own.count_beat()
    }

    /// Pushes the end of each topic of a stream where it is due.
    fn announce(&mut self, stream: u64, at: &At, step: &mut Step) -> bool {
        let Some(own) = self.streams.get_mut(&stream) else { return true };
        let names = own.names().clone();
        for place in own.due(at) {
            if !step.goes_on() {
                return false;
            }
            own.beat(place, end_of(&self.topics, &names[place]), at);
        }
        true
    }

    /// Whether a stream pushes each event.
    pub(super) fn set_raw(&mut self, stream: u64, raw: bool) {
        let Some(own) = self.streams.get(&stream) else { return };
        for name in own.names().iter() {
            if let Some(topic) = self.topics.get_mut(name) {
                match raw {
                    true => topic.raw.insert(stream),
                    false => topic.raw.remove(&stream),
                };
            }
        }
    }

    /// `names` are sorted and without duplicates.
    pub(super) fn attach(
        &mut self,
        stream: &Arc<ResponseStream>,
        names: Arc<[TopicName]>,
        (encode, fields): (Encode, usize),
    ) {
        for name in names.iter() {
            let is_forgotten = self.is_forgotten(name);
            let topic = self.topics.entry(name.clone()).or_default();
            topic.raw.insert(stream.id());
            topic.followers += 1;
            topic.is_forgotten = is_forgotten;
            if Idle::can_forget(name) {
                self.idle.remove(topic.last);
            }
        }
        let (epochs, last) = (self.stream_epochs(&names), self.last_of(&names));
        let end = (last, &self.states);
        let own = TopicStream::new(stream.clone(), names, epochs, end, (encode, fields));
        self.streams.insert(stream.id(), own);
    }

    pub(super) fn detach(&mut self, stream: &ResponseStream) {
        let Some(gone) = self.streams.remove(&stream.id()) else { return };
        for name in gone.names().iter() {
            let Some(topic) = self.topics.get_mut(name) else { continue };
            topic.raw.remove(&stream.id());
            topic.followers -= 1;
            if topic.followers > 0 {
                continue;
            }
            topic.forget_recent();
            let (last, is_forgotten) = (topic.last, topic.is_forgotten);
            if last == 0 || is_forgotten {
                self.topics.remove(name);
            } else {
                self.update_idle(name, last);
            }
        }
    }

    /// Where an operation of this stream starts: now, with the position of each topic, or after its
    /// cursor. `None` if it takes a further step.
    pub(super) fn join(
        &mut self,
        stream: u64,
        after: Option<&str>,
        now: Micros,
        step: &mut Step,
    ) -> Option<Continuation> {
        // So that the ring's next frames follow those that are made here.
        if !self.advance(stream, now, step) {
            return None;
        }
        let at = At { states: self.states.clone(), now };
        let Some(own) = self.streams.get_mut(&stream) else {
            return Some(Continuation::Here(Resume::CannotContinue));
        };
        let forgotten = own
            .names()
            .iter()
            .find(|name| self.topics.get(*name).is_some_and(|topic| topic.is_forgotten));
        if let Some(name) = forgotten {
            return Some(Continuation::Forgotten(name.clone()));
        }
        let end = |name: &TopicName| end_of(&self.topics, name);
        match after {
            None => own.state_all(Some(SnapshotReason::Initial), end, &at, step),
            Some(after) => own.resume(after, end, &at, step),
        }
    }

    /// Where a reader continues that was too slow. `None` if it takes a further step.
    pub(super) fn catch_up(
        &mut self,
        stream: u64,
        seen: u64,
        now: Micros,
        step: &mut Step,
    ) -> Option<Continuation> {
        if !self.advance(stream, now, step) {
            return None;
        }
        let at = At { states: self.states.clone(), now };
        match self.streams.get_mut(&stream) {
            Some(own) => own.catch_up(seen, |name| end_of(&self.topics, name), &at, step),
            None => Some(Continuation::Here(Resume::CannotContinue)),
        }
    }

    /// Makes frames of events that were read from the log. `undone_at` is the newest rollback that
    /// the read saw. `None` if this state knows another one, or if the stream is gone or was rolled
    /// back meanwhile.
    fn with_stream<T>(
        &mut self,
        (stream, base, undone_at): (u64, u64, u64),
        now: Micros,
        make: impl FnOnce(&mut TopicStream, &At) -> T,
    ) -> Option<T> {
        if undone_at != self.undone_at {
            return None;
        }
        let at = At { states: self.states.clone(), now };
        let own = self.streams.get_mut(&stream).filter(|own| own.base() == base)?;
        Some(make(own, &at))
    }

    /// Whether something is kept of a topic.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.topics.contains_key(name)
    }

    #[cfg(test)]
    pub(super) fn keep_idle(&mut self, most: usize) {
        self.idle.keep(most);
    }

    /// Names of topics that something is kept of.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.topics.len()
    }
}

/// Sequence and time of a topic's last event.
fn end_of(topics: &HashMap<TopicName, Topic>, name: &str) -> (u64, Option<Micros>) {
    topics.get(name).map_or((0, None), |topic| (topic.last, topic.event_time))
}

#[cfg(test)]
mod tests;
