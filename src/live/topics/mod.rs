//! Log topics: those whose events are told one by one and never merged away (trades, messages), and
//! the streams that follow some of them. One lock for all of it: a stream may span topics, and its
//! ring wants rising sequences. What the rings no longer hold is read from the log, see `replay`.

mod idle;
mod replay;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};
use spreadly_subscriptions::{Epoch, ResponseStream, Start};

use self::idle::Idle;
use self::stream::{At, Numbered, TopicStream};
use super::frame::{Encode, FeedState, Item};
use crate::market::event::Micros;
use crate::market::numbering::{Numbering, Undoing, scope_of};
use crate::store;

pub(super) use self::replay::Replay;
pub use self::replay::item;

/// The log's name of a topic.
pub type TopicName = Arc<str>;

/// Where a reader goes on.
pub(super) enum Place {
    /// Known from memory.
    Here(Start),
    /// Only the log has what follows.
    Log(Reach),
    /// Only the log knows where this topic stands: it is to be asked, see [`Topics::recall`].
    Forgotten(TopicName),
}

/// A part of the log that a reader is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// Behind this sequence.
    after: u64,
    /// All of it up to this one.
    until: u64,
    /// The reader is told first that it goes back to `after`: what it saw behind that was undone
    /// or is told again.
    back: bool,
    /// Of the stream's numbering when this was said: what is read under another one is not told.
    base: u64,
}

pub(super) struct Topics {
    epoch: Epoch,
    state: FeedState,
    /// Those that are followed, and those that have events as far as they are remembered: nothing is
    /// kept of names that were only asked for.
    topics: HashMap<TopicName, Topic>,
    idle: Idle,
    /// Of the scopes of which something was undone.
    numberings: HashMap<String, Numbering>,
    /// The newest event that undid something, as far as is known here.
    undone_at: u64,
    streams: BTreeMap<u64, TopicStream>,
}

/// Where a topic stands.
#[derive(Default)]
struct Topic {
    /// Sequence of its last event; 0 if there is none yet.
    last: u64,
    event_time: Option<Micros>,
    streams: BTreeSet<u64>,
    /// It is followed, and may have events in the log of which nothing is known here.
    is_forgotten: bool,
}

impl Topics {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            state: FeedState::Live,
            topics: HashMap::new(),
            idle: Idle::default(),
            numberings: HashMap::new(),
            undone_at: 0,
            streams: BTreeMap::new(),
        }
    }

    /// How a topic is numbered now.
    pub(super) fn numbering(&self, topic: &str) -> Numbering {
        let known = self.numberings.get(&scope_of(topic));
        known.cloned().unwrap_or_else(|| Numbering::new(self.epoch))
    }

    fn numbered(&self, names: &[TopicName]) -> Numbered {
        let own: Vec<_> = names.iter().map(|name| self.numbering(name)).collect();
        let together = Numbering::union(self.epoch, own.iter());
        Numbered { together, epochs: own.iter().map(Numbering::epoch).collect() }
    }

    /// Takes over that a scope began a new epoch.
    pub(super) fn renumber(&mut self, scope: &str, undoing: Undoing) {
        self.undone_at = self.undone_at.max(undoing.at);
        let known = self.numberings.entry(scope.to_owned());
        known.or_insert_with(|| Numbering::new(self.epoch)).undo(undoing);
    }

    /// Blocks were undone: where the topics stand that lost events, and what it means to scopes.
    /// Whoever follows one of these goes back to what stands.
    pub(super) fn reorganise<'a>(
        &mut self,
        undoings: impl Iterator<Item = (&'a str, Undoing)>,
        left: &[(store::Topic, Option<Micros>)],
    ) {
        let mut scopes = BTreeSet::new();
        for (scope, undoing) in undoings {
            self.renumber(scope, undoing);
            scopes.insert(scope);
        }
        for (known, event_time) in left {
            if let Some((name, topic)) = self.topics.get_key_value(&*known.name) {
                let (name, before) = (name.clone(), topic.last);
                if let Some(topic) = self.topics.get_mut(&name) {
                    (topic.last, topic.event_time) = (known.last, *event_time);
                }
                self.rest(&name, before);
            }
        }
        let mut streams = std::mem::take(&mut self.streams);
        for stream in streams.values_mut() {
            let names = stream.names().clone();
            if names.iter().any(|name| scopes.contains(&*scope_of(name))) {
                stream.reorganise(self.numbered(&names), self.last_of(&names));
            }
        }
        self.streams = streams;
    }

    /// The last event of any of these.
    fn last_of(&self, names: &[TopicName]) -> u64 {
        names.iter().map(|name| stands(&self.topics, name).0).max().unwrap_or(0)
    }

    /// Sequence of a topic's last event; 0 if there is none.
    pub(super) fn last(&self, name: &str) -> u64 {
        stands(&self.topics, name).0
    }

    /// Takes over where a topic of the log stands, before anything is published.
    pub(super) fn restore(&mut self, known: store::Topic, event_time: Option<Micros>) {
        let name = TopicName::from(known.name);
        let topic = self.topics.entry(name.clone()).or_default();
        (topic.last, topic.event_time) = (known.last, event_time);
        self.rest(&name, 0);
    }

    /// Where a topic stands is not known here, and may not be told before it was recalled.
    pub(super) fn is_forgotten(&self, name: &str) -> bool {
        self.idle.forgets
            && Idle::takes(name)
            && self.topics.get(name).is_none_or(|topic| topic.is_forgotten)
    }

    /// Takes over where a forgotten topic stands, as the log has it; 0 if it has no event there.
    pub(super) fn recall(&mut self, name: &TopicName, last: u64) {
        if !self.is_forgotten(name) {
            return;
        }
        let topic = self.topics.entry(name.clone()).or_default();
        topic.is_forgotten = false;
        topic.last = topic.last.max(last);
        for id in &topic.streams {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.recall(last);
            }
        }
    }

    /// A topic stood at `before` and has another last event, or its last follower left it.
    fn rest(&mut self, name: &TopicName, before: u64) {
        if !Idle::takes(name) {
            return;
        }
        let Some(topic) = self.topics.get(name) else { return };
        self.idle.remove(before);
        if topic.streams.is_empty()
            && topic.last > 0
            && let Some(oldest) = self.idle.add(name.clone(), topic.last)
        {
            self.topics.remove(&oldest);
        }
    }

    /// Tells an event of the log to whoever follows its topic.
    pub(super) fn publish(&mut self, name: &TopicName, item: &Item, now: Micros) {
        let topic = match self.topics.get_mut(name) {
            Some(topic) => topic,
            None => self.topics.entry(name.clone()).or_default(),
        };
        if item.sequence <= topic.last {
            return; // Read again at the start; the topic stands at its end already.
        }
        let previous = std::mem::replace(&mut topic.last, item.sequence);
        topic.event_time = item.time;
        for id in &topic.streams {
            let Some(stream) = self.streams.get_mut(id) else { continue };
            let at = At { state: self.state, now };
            stream.publish(name, previous, item, &at);
        }
        self.rest(name, previous);
    }

    pub(super) fn set_state(&mut self, state: FeedState, now: Micros) {
        self.state = state;
        self.repeat(now, |_, _| true);
    }

    /// Called each second: topics that were quiet for long say that they live.
    pub(super) fn beat(&mut self, now: Micros) {
        self.repeat(now, TopicStream::is_quiet);
    }

    /// Pushes where a topic stands into each stream where it is due.
    fn repeat(&mut self, now: Micros, due: impl Fn(&mut TopicStream, usize) -> bool) {
        let at = At { state: self.state, now };
        for stream in self.streams.values_mut() {
            stream.forget_pages();
            for place in 0..stream.names().len() {
                if due(stream, place) {
                    let stand = stands(&self.topics, &stream.names()[place]);
                    stream.beat(place, stand, &at);
                }
            }
        }
    }

    /// `names` are sorted and each stands once.
    pub(super) fn attach(
        &mut self,
        stream: &Arc<ResponseStream>,
        names: Arc<[TopicName]>,
        encode: Encode,
    ) {
        for name in names.iter() {
            let is_forgotten = self.is_forgotten(name);
            let topic = self.topics.entry(name.clone()).or_default();
            topic.streams.insert(stream.id());
            topic.is_forgotten = is_forgotten;
            if Idle::takes(name) {
                self.idle.remove(topic.last);
            }
        }
        let (numbered, last) = (self.numbered(&names), self.last_of(&names));
        let own = TopicStream::new(stream.clone(), names, numbered, last, encode);
        self.streams.insert(stream.id(), own);
    }

    pub(super) fn detach(&mut self, stream: &ResponseStream) {
        let Some(gone) = self.streams.remove(&stream.id()) else { return };
        for name in gone.names().iter() {
            let Some(topic) = self.topics.get_mut(name) else { continue };
            topic.streams.remove(&stream.id());
            let (last, is_forgotten) = (topic.last, topic.is_forgotten);
            if topic.streams.is_empty() && (last == 0 || is_forgotten) {
                self.topics.remove(name);
            } else {
                self.rest(name, last);
            }
        }
    }

    /// Where an operation of this stream starts: now, with where each topic stands, or behind its cursor.
    pub(super) fn join(&mut self, stream: u64, after: Option<&str>, now: Micros) -> Place {
        let at = At { state: self.state, now };
        let Some(own) = self.streams.get_mut(&stream) else {
            return Place::Here(Start::TooSlow);
        };
        let forgotten = own
            .names()
            .iter()
            .find(|name| self.topics.get(*name).is_some_and(|topic| topic.is_forgotten));
        if let Some(name) = forgotten {
            return Place::Forgotten(name.clone());
        }
        let stands = |name: &TopicName| stands(&self.topics, name);
        match after {
            None => Place::Here(own.begin(stands, &at)),
            Some(after) => own.resume(after, stands, &at),
        }
    }

    pub(super) fn catch_up(&mut self, stream: u64, seen: u64, now: Micros) -> Place {
        let at = At { state: self.state, now };
        match self.streams.get_mut(&stream) {
            Some(own) => own.catch_up(seen, |name| stands(&self.topics, name), &at),
            None => Place::Here(Start::TooSlow),
        }
    }

    /// Makes frames by what was read from the log when `undone_at` was its newest undoing; `None`
    /// if that is not what is known here, if the stream is gone or was numbered anew meanwhile.
    fn told<T>(
        &mut self,
        (stream, base, undone_at): (u64, u64, u64),
        now: Micros,
        make: impl FnOnce(&mut TopicStream, &At) -> T,
    ) -> Option<T> {
        if undone_at != self.undone_at {
            return None;
        }
        let at = At { state: self.state, now };
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
fn stands(topics: &HashMap<TopicName, Topic>, name: &str) -> (u64, Option<Micros>) {
    topics.get(name).map_or((0, None), |topic| (topic.last, topic.event_time))
}

#[cfg(test)]
mod tests;
