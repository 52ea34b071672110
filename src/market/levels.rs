//! Price levels: a change of one, one as it is, and the key that orders the levels of a side. The
//! book, its ladders and its journal are built from these.

use serde::{Deserialize, Serialize};

use super::fixed::Fixed;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Side {
    Buy,
    Sell,
}

impl Side {
    /// As events, the schema and the store write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Buy => "BUY",
            Self::Sell => "SELL",
        }
    }

    pub fn opposite(self) -> Self {
        match self {
            Self::Buy => Self::Sell,
            Self::Sell => Self::Buy,
        }
    }
}

/// A price level at its market's precision; size 0 removes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelChange {
    pub side: Side,
    pub price: Fixed,
    pub size: Fixed,
    /// Number of orders that make up the size; 0 if the source publishes levels only.
    pub orders: u32,
}

/// One price of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    pub price: Fixed,
    /// 0: the level is gone, or left the window.
    pub size: Fixed,
    /// Number of orders that make up the size; 0 if the source publishes levels only.
    pub orders: u32,
}

/// Size and order count of one price level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LevelState {
    pub(super) size: Fixed,
    pub(super) orders: u32,
}

impl LevelState {
    /// No level. A level that is gone has no orders.
    pub(super) const NONE: Self = Self { size: 0, orders: 0 };

    pub(super) fn at(self, side: Side, key: PriceKey) -> Level {
        Level { price: price_key(side, key), size: self.size, orders: self.orders }
    }
}

impl From<&LevelChange> for LevelState {
    fn from(change: &LevelChange) -> Self {
        match change.size {
            0 => Self::NONE,
            size => Self { size, orders: change.orders },
        }
    }
}

/// Price priority of a level on its side: the best price has the smallest key, on both sides.
pub(super) type PriceKey = u128;

/// After the key of every price: the edge of a window that contains the whole side.
pub(super) const WORST: PriceKey = PriceKey::MAX;

/// The key of a price. It is its own inverse: the key of a key is the price.
pub(super) fn price_key(side: Side, price: u128) -> PriceKey {
    match side {
        Side::Buy => !price,
        Side::Sell => price,
    }
}
