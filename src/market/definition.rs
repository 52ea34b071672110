//! What a market is: its id, its precision, its steps and its status.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::time::Micros;

/// Longest market id, in bytes: topics, cache keys and metric labels contain it.
pub const MOST_MARKET_BYTES: usize = 64;

/// A market's identifier, usually `BASE-QUOTE`: a letter or digit, then letters, digits, `.`, `_`
/// or `-`, 64 in all at most. Upper and lower case are different markets.
pub type MarketId = Arc<str>;

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
    /// Of an order; the lot size unless given.
    pub min_size: String,
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

impl MarketStatus {
    /// As events and the schema write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Halted => "HALTED",
            Self::Closed => "CLOSED",
        }
    }
}

/// Whether a market may have this id; the error is what it must be.
pub fn check_market(id: &str) -> Result<(), String> {
    let begins = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let holds = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !begins || !holds || id.len() > MOST_MARKET_BYTES {
        return Err(format!(
            "must be 1 to {MOST_MARKET_BYTES} of A-Z a-z 0-9 . _ - and begin with a letter or digit"
        ));
    }
    Ok(())
}
