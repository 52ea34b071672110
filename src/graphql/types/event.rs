//! The schema's frames and events of generic topics: thin views, like [`super::book`].

use std::sync::Arc;

use async_graphql::{ID, Object};

use super::feed::FeedState;
use super::head::{BookSpeed, SnapshotReason};
use super::scalars::{Cursor, DateTime, Json, UInt64};
use crate::live::{self, Item, ItemBody, LogFrame};
use crate::market::event::Message;
use crate::market::time::Micros;
use crate::market::topic::Topic;

/// An event of a generic topic.
#[derive(Clone)]
pub struct Event {
    pub sequence: u64,
    pub time: Option<Micros>,
    pub message: Arc<Message>,
}

/// An event of a generic topic.
#[Object(serial)]
impl Event {
    /// As its source gave it; null if the source gave none.
    async fn id(&self) -> Option<ID> {
        self.message.id.as_deref().map(ID::from)
    }

    /// Where it was published.
    async fn topic(&self) -> &str {
        &self.message.topic
    }

    /// What was published.
    async fn data(&self) -> Json {
        Json::from_text(&self.message.data)
    }

    /// As its source gave it; null if the source gave none.
    async fn time(&self) -> Option<DateTime> {
        self.time.map(DateTime)
    }

    /// Sequence of this event, within the epoch.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.sequence)
    }
}

pub fn event_of(item: &Item) -> Option<Event> {
    match &item.body {
        ItemBody::Message(message) => {
            Some(Event { sequence: item.sequence, time: item.time, message: message.clone() })
        }
        ItemBody::Trade(_) | ItemBody::Order(_) | ItemBody::OfBook => None,
    }
}

/// Events of a generic topic, without gaps. A frame follows the previous one if and only if its
/// epoch is the same and its `prevSequence` is the previous `sequence`.
pub struct EventFrame(pub LogFrame);

/// Events of a generic topic, without gaps. A frame follows the previous one if and only if its
/// epoch is the same and its `prevSequence` is the previous `sequence`.
#[Object(serial)]
impl EventFrame {
    /// As the subscription names it.
    async fn topic(&self) -> &str {
        match Topic::parse(&self.0.topic) {
            Some(Topic::Message(name)) => name,
            _ => "",
        }
    }

    /// The epoch of `sequence`. Sequences of different epochs can't be compared.
    async fn epoch(&self) -> ID {
        ID(self.0.epoch.to_string())
    }

    /// Sequence of the topic's last event in this frame or before it; 0 while the topic has no
    /// events.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.0.sequence)
    }

    /// Sequence of the topic's event before these. It equals `sequence` in a frame without events,
    /// and is null where the client begins or must go back.
    async fn prev_sequence(&self) -> Option<UInt64> {
        self.0.previous.map(UInt64)
    }

    /// Why `prevSequence` is null. `INITIAL`: the subscription begins. `REORG`: discard all events
    /// of this topic after `sequence`; those that remain valid follow. `EPOCH_CHANGE`: events may
    /// be missing before this frame; keep the earlier ones.
    async fn reason(&self) -> Option<SnapshotReason> {
        self.0.reason.map(SnapshotReason::from)
    }

    /// Pass this as `after` to resume with the next frame.
    async fn cursor(&self) -> Cursor {
        Cursor(self.0.cursor.encode())
    }

    /// Oldest first; empty in a heartbeat.
    async fn events(&self) -> Vec<Event> {
        self.0.items.iter().filter_map(event_of).collect()
    }

    /// Time of the last event, as its source gave it.
    async fn event_time(&self) -> Option<DateTime> {
        self.0.event_time.map(DateTime)
    }

    /// The pace that an overloaded hub slowed this stream to; null where it is as the client asked.
    async fn slowed_to(&self) -> Option<BookSpeed> {
        self.0.slowed_to.map(BookSpeed::from)
    }

    /// The hub's clock.
    async fn publish_time(&self) -> DateTime {
        DateTime(self.0.publish_time)
    }

    /// Whether the data is up to date.
    async fn state(&self) -> FeedState {
        self.0.state.into()
    }

    /// Milliseconds from `eventTime` to `publishTime`; 0 where `eventTime` is null.
    async fn last_event_age_ms(&self) -> i32 {
        live::age_ms(self.0.event_time, self.0.publish_time)
    }
}
