//! The open orders of one market as bytes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::gaps::Gaps;
use super::{MarketOrders, Order, Orders};
use crate::market::definition::MarketId;
use crate::market::fixed::MOST_DECIMALS;

/// Why bytes are not the open orders of a market.
#[derive(Debug, Error)]
pub enum OrdersError {
    #[error("the orders are not readable: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the order {0:?} can't be open in this market")]
    Impossible(Arc<str>),
    #[error("the market {0:?} can't have these gaps")]
    ImpossibleGaps(MarketId),
}

/// What is kept of a market.
#[derive(Serialize, Deserialize)]
struct Checkpoint<O, G> {
    open: Vec<O>,
    gaps: G,
}

impl Orders {
    /// The open orders of one market, and what its book lacks.
    pub fn to_checkpoint(&self, market: &str) -> Vec<u8> {
        let open: Vec<&Order> = match self.markets.get(market) {
            Some(market) => market.open.values().collect(),
            None => Vec::new(),
        };
        serde_json::to_vec(&Checkpoint { open, gaps: self.gaps.get(market) }).unwrap_or_default()
    }

    /// Puts a market's open orders back as [`Orders::to_checkpoint`] gave them; nothing on an
    /// error.
    pub fn restore(&mut self, market: &str, checkpoint: &[u8]) -> Result<(), OrdersError> {
        let Checkpoint::<Order, Option<Gaps>> { open, gaps } = serde_json::from_slice(checkpoint)?;
        let id: MarketId = market.into();
        if gaps.as_ref().is_some_and(|gaps| gaps.is_empty() || !gaps.is_possible(&id)) {
            return Err(OrdersError::ImpossibleGaps(id));
        }
        let mut own = MarketOrders::default();
        for order in open {
            let elsewhere = self.placed.get(&order.id).is_some_and(|other| *other != id);
            let rests = order.rests();
            if elsewhere
                || order.market != id
                || !order.is_possible()
                || own.open.contains_key(&order.id)
                || rests.is_some_and(|price| own.add(order.side, price, order.open).is_none())
            {
                return Err(OrdersError::Impossible(order.id));
            }
            own.open.insert(order.id.clone(), order);
        }
        self.forget(market);
        self.placed.extend(own.open.keys().map(|order| (order.clone(), id.clone())));
        self.gaps.extend(gaps.map(|gaps| (id.clone(), gaps)));
        self.markets.insert(id, own);
        Ok(())
    }
}

impl Order {
    /// Whether an open order can be like this.
    fn is_possible(&self) -> bool {
        self.open > 0
            && self.open.checked_add(self.filled) == Some(self.size)
            && !self.status.is_final()
            && self.price_decimals.max(self.size_decimals) <= MOST_DECIMALS
    }
}
