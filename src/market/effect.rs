//! What an admitted event does to the state.

use std::sync::Arc;

use super::book_gap::BookGap;
use super::candles::Candle;
use super::definition::{MarketDefinition, MarketId};
use super::event::Message;
use super::levels::LevelChange;
use super::orders::OrderUpdate;
use super::time::Micros;
use super::trade::Trade;

/// What an admitted event does to the state: checked against the market it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Defines or redefines a market.
    Define(Arc<MarketDefinition>),
    /// Replaces the whole book of a market.
    Replace { market: MarketId, levels: Vec<LevelChange> },
    /// Sets levels of a market's book; absolute sizes.
    Change { market: MarketId, levels: Vec<LevelChange> },
    /// Events of a market's book are missing: it is wrong until it is whole again.
    Gap(Arc<BookGap>),
    /// Changes a single order, and with it the levels of its market's book (absolute sizes). `gap`
    /// is what the book then still lacks.
    Order { update: Arc<OrderUpdate>, levels: Vec<LevelChange>, gap: Option<Arc<BookGap>> },
    /// Missing orders are there again. `gap` is what the book then still lacks.
    Complete { market: MarketId, gap: Option<Arc<BookGap>> },
    /// Somebody traded; in the topic `Topic::Trades`.
    Trade(Arc<Trade>),
    /// Somebody published to a generic topic, `Topic::Message`.
    Message(Arc<Message>),
    /// It is in the log only.
    None,
}

impl Effect {
    /// The market whose book it is an event of.
    pub fn book(&self) -> Option<&MarketId> {
        match self {
            Self::Replace { market, .. }
            | Self::Change { market, .. }
            | Self::Complete { market, .. } => Some(market),
            Self::Gap(gap) => Some(&gap.market),
            Self::Order { update, .. } => Some(&update.order.market),
            Self::Define(_) | Self::Trade(_) | Self::Message(_) | Self::None => None,
        }
    }
}

/// An event that is in the log, with the position the log gave it.
#[derive(Clone, Debug)]
pub struct Applied {
    pub sequence: u64,
    pub time: Option<Micros>,
    pub effect: Effect,
    /// Of a trade: the candle of each interval as it left them, shortest first; none where the
    /// log is read again, as these are kept beside it.
    pub candles: Vec<Candle>,
}
