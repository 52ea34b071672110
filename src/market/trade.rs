//! A trade: what was bought and sold, at which price, exactly.

use std::time::Duration;

use thiserror::Error;

use super::definition::{MarketDefinition, MarketId};
use super::fixed::{self, Fixed, FixedError, MOST_DECIMALS};
use super::levels::Side;

/// How far the time of a trade may be ahead of the hub's clock. A candle and `last` of a later
/// moment would stay until that moment. Clocks that are set by the network differ by less than a
/// second.
pub const MOST_AHEAD: Duration = Duration::from_secs(10);

/// A `trade` event, not yet at its market's precision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenTrade {
    pub market: MarketId,
    /// The event's own id, which makes it count once.
    pub id: Option<Box<str>>,
    pub price: Box<str>,
    pub size: Box<str>,
    pub taker_side: Option<Side>,
}

/// A trade at its market's precision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trade {
    pub market: MarketId,
    /// As its source gave it.
    pub id: Option<Box<str>>,
    /// In the quote, in units of 10^-`price_decimals`.
    pub price: Fixed,
    /// In the base, in units of 10^-`size_decimals`.
    pub size: Fixed,
    pub price_decimals: u8,
    pub size_decimals: u8,
    /// The taker's side; not every source publishes it.
    pub taker_side: Option<Side>,
}

/// What of a trade does not fit its market.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TradeError {
    #[error("price {0}")]
    Price(NumberError),
    #[error("size {0}")]
    Size(NumberError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NumberError {
    #[error("must be above 0")]
    Zero,
    #[error(transparent)]
    Fixed(#[from] FixedError),
}

impl Trade {
    /// Exactly as precise as its market, or refused.
    pub fn admit(written: &WrittenTrade, market: &MarketDefinition) -> Result<Self, TradeError> {
        let trade = Self::at(written, market.price_decimals, market.size_decimals)?;
        match (trade.price, trade.size) {
            (0, _) => Err(TradeError::Price(NumberError::Zero)),
            (_, 0) => Err(TradeError::Size(NumberError::Zero)),
            _ => Ok(trade),
        }
    }

    /// From the log, where earlier releases also let in what [`Trade::admit`] refuses: such a trade
    /// keeps a precision of its own.
    pub fn from_log(
        written: &WrittenTrade,
        market: Option<&MarketDefinition>,
    ) -> Result<Self, TradeError> {
        let fitting = |market: &MarketDefinition| {
            Self::at(written, market.price_decimals, market.size_decimals).ok()
        };
        match market.and_then(fitting) {
            Some(trade) => Ok(trade),
            None => Self::at(written, MOST_DECIMALS, MOST_DECIMALS),
        }
    }

    fn at(written: &WrittenTrade, price: u8, size: u8) -> Result<Self, TradeError> {
        let number = |text, decimals| Ok(fixed::parse(text, decimals)?);
        Ok(Self {
            market: written.market.clone(),
            id: written.id.clone(),
            price: number(&written.price, price).map_err(TradeError::Price)?,
            size: number(&written.size, size).map_err(TradeError::Size)?,
            price_decimals: price,
            size_decimals: size,
            taker_side: written.taker_side,
        })
    }
}
