//! One event as feeds bring it (CONTRACT section 4), checked as far as its own text allows.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Microseconds since 1970 in UTC.
pub type Micros = i64;

/// A market's identifier, `BASE-QUOTE`.
pub type MarketId = Arc<str>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Side {
    Buy,
    Sell,
}

/// A `market` event: what a market is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MarketDefinition {
    pub market: MarketId,
    pub base: String,
    pub quote: String,
    pub price_decimals: u8,
    pub size_decimals: u8,
    pub tick_size: String,
    pub lot_size: String,
    pub status: MarketStatus,
    pub time: Option<Micros>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MarketStatus {
    Active,
    Halted,
    Closed,
}

/// Price and size as written, not yet at a market's precision.
pub type WrittenLevel = (Box<str>, Box<str>);

/// An event whose JSON is well formed and whose kind is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Makes the event idempotent: the same id from any feed counts once.
    pub id: Option<Box<str>>,
    pub time: Option<Micros>,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Market(MarketDefinition),
    BookSnapshot {
        market: MarketId,
        bids: Vec<WrittenLevel>,
        asks: Vec<WrittenLevel>,
    },
    BookDelta {
        market: MarketId,
        bids: Vec<WrittenLevel>,
        asks: Vec<WrittenLevel>,
    },
    /// A known kind that goes into the log and touches no state yet; the topic it belongs to.
    Logged {
        topic: Box<str>,
    },
}

/// A price level at its market's precision; size 0 removes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelChange {
    pub side: Side,
    pub price: super::fixed::Fixed,
    pub size: super::fixed::Fixed,
}

/// What an admitted event does to the state: checked against the market it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Defines or redefines a market.
    Define(Arc<MarketDefinition>),
    /// Replaces the whole book of a market.
    Replace { market: MarketId, levels: Vec<LevelChange> },
    /// Sets levels of a market's book; absolute sizes.
    Change { market: MarketId, levels: Vec<LevelChange> },
    /// Stands in the log only.
    None,
}

/// An event that stands in the log, with the position the log gave it.
#[derive(Clone, Debug)]
pub struct Applied {
    pub sequence: u64,
    pub time: Option<Micros>,
    pub effect: Effect,
}
