//! Log topics: those whose events are told one by one and never merged away (trades, messages), and
//! the streams that follow some of them. One lock for all of it: a stream may span topics, and its
//! ring wants rising sequences. What the rings no longer hold is read from the log, see `replay`.

mod replay;
mod stream;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use spreadly_subscriptions::{Epoch, ResponseStream, Start};

use self::stream::{At, TopicStream};
use super::frame::{Encode, FeedState, Item, LogFrame};
use crate::market::event::Micros;
use crate::store;

pub(super) use self::replay::Replay;
pub use self::replay::item;

/// The log's name of a topic.
pub type TopicName = Arc<str>;

/// Where a reader goes on.
pub(super) enum Place {
    /// Known from memory.
    Here(Start),
    /// Only the log has what follows `after`, all of it up to `until`.
    Log { after: u64, until: u64 },
}

pub(super) struct Topics {
    epoch: Epoch,
    state: FeedState,
    /// Those that have events or are followed: nothing is kept of names that were only asked for.
    topics: HashMap<TopicName, Topic>,
    streams: BTreeMap<u64, TopicStream>,
}

/// Where a topic stands.
#[derive(Default)]
struct Topic {
    /// Sequence of its last event; 0 if there is none yet.
    last: u64,
    event_time: Option<Micros>,
    streams: BTreeSet<u64>,
}

impl Topics {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self { epoch, state: FeedState::Live, topics: HashMap::new(), streams: BTreeMap::new() }
    }

    /// Takes over where a topic of the log stands, before anything is published.
    pub(super) fn restore(&mut self, known: store::Topic, event_time: Option<Micros>) {
        let topic = self.topics.entry(known.name.into()).or_default();
        (topic.last, topic.event_time) = (known.last, event_time);
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
            let at = At { epoch: self.epoch, state: self.state, now };
            stream.publish(name, Some(previous), item, &at);
        }
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
        let at = At { epoch: self.epoch, state: self.state, now };
        for stream in self.streams.values_mut() {
            stream.forget_pages();
            for place in 0..stream.names().len() {
                if due(stream, place) {
                    let (last, time) = stands(&self.topics, &stream.names()[place]);
                    stream.beat(place, last, time, &at);
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
            self.topics.entry(name.clone()).or_default().streams.insert(stream.id());
        }
        let last = names.iter().map(|name| stands(&self.topics, name).0).max().unwrap_or(0);
        let own = TopicStream::new(stream.clone(), names, last, encode);
        self.streams.insert(stream.id(), own);
    }

    pub(super) fn detach(&mut self, stream: &ResponseStream) {
        let Some(gone) = self.streams.remove(&stream.id()) else { return };
        for name in gone.names().iter() {
            let Some(topic) = self.topics.get_mut(name) else { continue };
            topic.streams.remove(&stream.id());
            if topic.last == 0 && topic.streams.is_empty() {
                self.topics.remove(name);
            }
        }
    }

    /// Where an operation starts: now, with where each topic stands, or behind its cursor.
    pub(super) fn join(
        &mut self,
        stream: &ResponseStream,
        after: Option<&str>,
        now: Micros,
    ) -> Place {
        let at = At { epoch: self.epoch, state: self.state, now };
        let Some(own) = self.streams.get_mut(&stream.id()) else {
            return Place::Here(Start::TooSlow);
        };
        let stands = |name: &TopicName| stands(&self.topics, name);
        match after {
            None => Place::Here(own.begin(stands, &at)),
            Some(after) => own.resume(after, stands, &at),
        }
    }

    pub(super) fn catch_up(&mut self, stream: &ResponseStream, seen: u64) -> Place {
        match self.streams.get_mut(&stream.id()) {
            Some(own) => own.behind(seen),
            None => Place::Here(Start::TooSlow),
        }
    }

    /// Makes a frame of events that were read from the log; `None` if the stream is gone.
    fn encode(
        &mut self,
        stream: u64,
        (name, previous): (&TopicName, u64),
        items: Vec<Item>,
        now: Micros,
    ) -> Option<Vec<u8>> {
        let at = At { epoch: self.epoch, state: self.state, now };
        Some(self.streams.get_mut(&stream)?.encode_items(name, Some(previous), items, &at))
    }

    fn stream(&mut self, id: u64) -> Option<&mut TopicStream> {
        self.streams.get_mut(&id)
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

/// What every frame of a stream has in common.
fn frame(topic: &TopicName, at: &At, cursor: super::frame::LogCursor) -> LogFrame {
    LogFrame {
        topic: topic.clone(),
        epoch: at.epoch,
        sequence: cursor.position.sequence,
        previous: None,
        cursor,
        event_time: None,
        publish_time: at.now,
        state: at.state,
        items: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
