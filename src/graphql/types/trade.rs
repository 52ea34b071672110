//! The schema's frames of trades: thin views, like [`super::book`].

use std::sync::Arc;

use async_graphql::{ID, Object};

use super::feed::FeedState;
use super::head::{BookSpeed, SnapshotReason};
use super::market::Side;
use super::scalars::{Cursor, DateTime, Decimal, UInt64};
use crate::live::{self, Item, ItemBody, LogFrame};
use crate::market::time::Micros;
use crate::market::topic::Topic;
use crate::market::trade;

/// A trade.
#[derive(Clone)]
pub struct Trade {
    pub sequence: u64,
    pub time: Option<Micros>,
    pub trade: Arc<trade::Trade>,
}

/// A trade.
#[Object(serial)]
impl Trade {
    /// As its source gave it; null if the source gave none.
    async fn id(&self) -> Option<ID> {
        self.trade.id.as_deref().map(ID::from)
    }

    /// The market's id, `BASE-QUOTE`.
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

    /// The side of the taker, whose order matched one that rested in the book; null if the source
    /// does not say.
    async fn taker_side(&self) -> Option<Side> {
        self.trade.taker_side.map(Side::from)
    }

    /// As its source gave it; null if the source gave none.
    async fn time(&self) -> Option<DateTime> {
        self.time.map(DateTime)
    }

    /// Sequence of this trade, within the epoch.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.sequence)
    }
}

pub fn trade_of(item: &Item) -> Option<Trade> {
    match &item.body {
        ItemBody::Trade(trade) => {
            Some(Trade { sequence: item.sequence, time: item.time, trade: trade.clone() })
        }
        ItemBody::Message(_) | ItemBody::Order(_) | ItemBody::OfBook => None,
    }
}

/// Trades of one market, without gaps. A frame follows the market's previous one if and only if its
/// epoch is the same and its `prevSequence` is the previous `sequence`.
pub struct TradeFrame(pub LogFrame);

/// Trades of one market, without gaps. A frame follows the market's previous one if and only if its
/// epoch is the same and its `prevSequence` is the previous `sequence`.
#[Object(serial)]
impl TradeFrame {
    /// The market's id, `BASE-QUOTE`.
    async fn market(&self) -> ID {
        ID::from(Topic::parse(&self.0.topic).and_then(Topic::market).unwrap_or_default())
    }

    /// The epoch of `sequence`. Sequences of different epochs can't be compared.
    async fn epoch(&self) -> ID {
        ID(self.0.epoch.to_string())
    }

    /// Sequence of the market's last trade in this frame or before it.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.0.sequence)
    }

    /// Sequence of the market's trade before these. It equals `sequence` in a frame without trades,
    /// and is null where the client begins or must go back.
    async fn prev_sequence(&self) -> Option<UInt64> {
        self.0.previous.map(UInt64)
    }

    /// Why `prevSequence` is null. `INITIAL`: the subscription begins. `REORG`: discard all trades
    /// of this market after `sequence`; those that remain valid follow. `EPOCH_CHANGE`: trades may
    /// be missing before this frame; keep the earlier ones.
    async fn reason(&self) -> Option<SnapshotReason> {
        self.0.reason.map(SnapshotReason::from)
    }

    /// Pass this as `after` to resume with the next frame, for all markets of the subscription.
    async fn cursor(&self) -> Cursor {
        Cursor(self.0.cursor.encode())
    }

    /// Oldest first; empty in a heartbeat.
    async fn trades(&self) -> Vec<Trade> {
        self.0.items.iter().filter_map(trade_of).collect()
    }

    /// Time of the last trade, as its source gave it.
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
