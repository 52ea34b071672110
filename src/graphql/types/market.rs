//! Markets, and their sides.

use std::sync::Arc;

use async_graphql::{Enum, ID, Object};

use super::scalars::Decimal;
use crate::market::definition::{MarketDefinition, MarketStatus as Status};
use crate::market::levels;

/// Which side of a market.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "levels::Side")]
pub enum Side {
    /// The buyer's side: it pays the quote and receives the base.
    Buy,
    /// The seller's side: it gives the base and receives the quote.
    Sell,
}

/// Whether a market trades.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "Status")]
pub enum MarketStatus {
    /// The market trades.
    Active,
    /// Trading is paused.
    Halted,
    /// It never trades again.
    Closed,
}

/// A pair that trades.
pub struct Market(pub Arc<MarketDefinition>);

/// A pair that trades.
#[Object(serial)]
impl Market {
    /// The market's id, `BASE-QUOTE`.
    async fn id(&self) -> ID {
        ID(self.0.market.to_string())
    }

    /// The asset that is traded; sizes are in it.
    async fn base(&self) -> &str {
        &self.0.base
    }

    /// The asset that pays; prices are in it.
    async fn quote(&self) -> &str {
        &self.0.quote
    }

    /// Decimals of every price.
    async fn price_decimals(&self) -> i32 {
        i32::from(self.0.price_decimals)
    }

    /// Decimals of every size.
    async fn size_decimals(&self) -> i32 {
        i32::from(self.0.size_decimals)
    }

    /// Smallest step of a price, in the quote.
    async fn tick_size(&self) -> Decimal {
        Decimal(self.0.tick_size.clone())
    }

    /// Smallest step of a size, in the base.
    async fn lot_size(&self) -> Decimal {
        Decimal(self.0.lot_size.clone())
    }

    /// Smallest size of an order, in the base.
    async fn min_size(&self) -> Decimal {
        Decimal(self.0.min_size.clone())
    }

    /// Whether it trades.
    async fn status(&self) -> MarketStatus {
        self.0.status.into()
    }
}
