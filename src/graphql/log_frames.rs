//! The schema's frames and events of log topics: trades and generic topics. Thin views, like
//! `frames`.

use std::sync::Arc;

use async_graphql::{ID, Object};

use super::scalars::{Cursor, DateTime, Decimal, Json, UInt64};
use super::types::{BookSpeed, FeedState, Side, SnapshotReason};
use crate::live::{self, Item, ItemBody, LogFrame};
use crate::market::event::{Message, Micros};
use crate::market::trade;

/// Somebody traded.
#[derive(Clone)]
pub struct Trade {
    pub sequence: u64,
    pub time: Option<Micros>,
    pub trade: Arc<trade::Trade>,
}

/// Somebody traded.
#[Object]
impl Trade {
    /// As its source gave it; null if it gave none.
    async fn id(&self) -> Option<ID> {
        self.trade.id.as_deref().map(ID::from)
    }

    /// `BASE-QUOTE`.
    async fn market(&self) -> ID {
        ID(self.trade.market.to_string())
    }

    /// In the quote, at the market's precision.
    async fn price(&self) -> Decimal {
        Decimal::new(self.trade.price, self.trade.price_decimals)
    }

    /// In the base, at the market's precision.
    async fn size(&self) -> Decimal {
        Decimal::new(self.trade.size, self.trade.size_decimals)
    }

    /// Who took what stood in the book; null if the source does not tell.
    async fn taker_side(&self) -> Option<Side> {
        self.trade.taker_side.map(Side::from)
    }

    /// At its source; null if it gave none.
    async fn time(&self) -> Option<DateTime> {
        self.time.map(DateTime)
    }

    /// Of this trade, within the epoch.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.sequence)
    }
}

/// What somebody published to a generic topic.
#[derive(Clone)]
pub struct Event {
    pub sequence: u64,
    pub time: Option<Micros>,
    pub message: Arc<Message>,
}

/// What somebody published to a generic topic.
#[Object]
impl Event {
    /// As its source gave it; null if it gave none.
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

    /// At its source; null if it gave none.
    async fn time(&self) -> Option<DateTime> {
        self.time.map(DateTime)
    }

    /// Of this event, within the epoch.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.sequence)
    }
}

pub fn trade_of(item: &Item) -> Option<Trade> {
    match &item.body {
        ItemBody::Trade(trade) => {
            Some(Trade { sequence: item.sequence, time: item.time, trade: trade.clone() })
        }
        ItemBody::Message(_) | ItemBody::Order(_) => None,
    }
}

pub fn event_of(item: &Item) -> Option<Event> {
    match &item.body {
        ItemBody::Message(message) => {
            Some(Event { sequence: item.sequence, time: item.time, message: message.clone() })
        }
        ItemBody::Trade(_) | ItemBody::Order(_) => None,
    }
}

/// Trades of one market, none left out. It follows the last one of this market iff its epoch is the
/// same and its `prevSequence` is the last sequence seen.
pub struct TradeFrame(pub LogFrame);

/// Trades of one market, none left out. It follows the last one of this market iff its epoch is the
/// same and its `prevSequence` is the last sequence seen.
#[Object]
impl TradeFrame {
    /// `BASE-QUOTE`.
    async fn market(&self) -> ID {
        ID::from(self.0.topic.strip_prefix("trades:").unwrap_or_default())
    }

    /// Which numbering the sequence belongs to.
    async fn epoch(&self) -> ID {
        ID(self.0.epoch.to_string())
    }

    /// Of the market's last trade in this frame, or before it where there is none in it.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.0.sequence)
    }

    /// Of the market's trade before these; the same as `sequence` where there are none; null where
    /// the client begins or goes back.
    async fn prev_sequence(&self) -> Option<UInt64> {
        self.0.previous.map(UInt64)
    }

    /// Why `prevSequence` is null: `INITIAL`, or `REORG`, then forget all of this market behind
    /// `sequence`: what still stands of it follows. `EPOCH_CHANGE`: events may be missing before
    /// this; keep what you hold.
    async fn reason(&self) -> Option<SnapshotReason> {
        self.0.reason.map(SnapshotReason::from)
    }

    /// Resumes behind this frame, as `after`; for all markets of the subscription.
    async fn cursor(&self) -> Cursor {
        Cursor(self.0.cursor.encode())
    }

    /// Oldest first; empty in a heartbeat.
    async fn trades(&self) -> Vec<Trade> {
        self.0.items.iter().filter_map(trade_of).collect()
    }

    /// Of the last trade, at its source.
    async fn event_time(&self) -> Option<DateTime> {
        self.0.event_time.map(DateTime)
    }

    /// How often the hub pushes this stream while it is overloaded, where that is less often
    /// than the client asked for; otherwise null.
    async fn slowed_to(&self) -> Option<BookSpeed> {
        self.0.slowed_to.map(BookSpeed::from)
    }

    /// The hub's clock.
    async fn publish_time(&self) -> DateTime {
        DateTime(self.0.publish_time)
    }

    /// Whether what is told is up to date.
    async fn state(&self) -> FeedState {
        self.0.state.into()
    }

    /// Milliseconds from the last trade's own time to this frame's; 0 where that is not known.
    async fn last_event_age_ms(&self) -> i32 {
        live::age_ms(self.0.event_time, self.0.publish_time)
    }
}

/// Events of a generic topic, none left out. It follows the last one iff its epoch is the same and
/// its `prevSequence` is the last sequence seen.
pub struct EventFrame(pub LogFrame);

/// Events of a generic topic, none left out. It follows the last one iff its epoch is the same and
/// its `prevSequence` is the last sequence seen.
#[Object]
impl EventFrame {
    /// As the subscription names it.
    async fn topic(&self) -> &str {
        self.0.topic.strip_prefix("message:").unwrap_or_default()
    }

    /// Which numbering the sequence belongs to.
    async fn epoch(&self) -> ID {
        ID(self.0.epoch.to_string())
    }

    /// Of the topic's last event in this frame, or before it where there is none in it; 0 while it
    /// never had one.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.0.sequence)
    }

    /// Of the topic's event before these; the same as `sequence` where there are none; null where
    /// the client begins or goes back.
    async fn prev_sequence(&self) -> Option<UInt64> {
        self.0.previous.map(UInt64)
    }

    /// Why `prevSequence` is null: `INITIAL`, or `REORG`, then forget all of this topic behind
    /// `sequence`: what still stands of it follows. `EPOCH_CHANGE`: events may be missing before
    /// this; keep what you hold.
    async fn reason(&self) -> Option<SnapshotReason> {
        self.0.reason.map(SnapshotReason::from)
    }

    /// Resumes behind this frame, as `after`.
    async fn cursor(&self) -> Cursor {
        Cursor(self.0.cursor.encode())
    }

    /// Oldest first; empty in a heartbeat.
    async fn events(&self) -> Vec<Event> {
        self.0.items.iter().filter_map(event_of).collect()
    }

    /// Of the last event, at its source.
    async fn event_time(&self) -> Option<DateTime> {
        self.0.event_time.map(DateTime)
    }

    /// How often the hub pushes this stream while it is overloaded, where that is less often
    /// than the client asked for; otherwise null.
    async fn slowed_to(&self) -> Option<BookSpeed> {
        self.0.slowed_to.map(BookSpeed::from)
    }

    /// The hub's clock.
    async fn publish_time(&self) -> DateTime {
        DateTime(self.0.publish_time)
    }

    /// Whether what is told is up to date.
    async fn state(&self) -> FeedState {
        self.0.state.into()
    }

    /// Milliseconds from the last event's own time to this frame's; 0 where that is not known.
    async fn last_event_age_ms(&self) -> i32 {
        live::age_ms(self.0.event_time, self.0.publish_time)
    }
}
