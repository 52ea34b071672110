//! A simulated book as single orders: one rests at each price, and what a step does to the levels
//! becomes what happened to orders.

use std::collections::BTreeMap;

use super::{Changes, Market, Trade};
use crate::market::levels::Side;

/// Whose orders they are.
pub const ACCOUNT: &str = "simulator";

/// The resting orders, by price.
#[derive(Default)]
pub(super) struct RestingOrders {
    bids: BTreeMap<u64, Order>,
    asks: BTreeMap<u64, Order>,
    placed: u64,
}

struct Order {
    id: String,
    left: u64,
}

impl RestingOrders {
    /// The step's events: fills with their trades, then cancels, then new orders, so that the book
    /// is never crossed in between. `run` distinguishes the orders of this run from earlier ones.
    pub(super) fn follow(
        &mut self,
        market: &Market,
        changes: &Changes,
        trades: &[String],
        run: &str,
        time: &str,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        for (trade, id) in changes.trades.iter().zip(trades) {
            lines.push(market.trade(id, trade, time));
            lines.extend(self.fill(market, trade, id, time));
        }
        let sides = [(Side::Buy, &changes.bids), (Side::Sell, &changes.asks)];
        for (side, levels) in sides {
            for (price, size) in levels {
                let orders = self.side(side);
                if orders.get(price).is_some_and(|order| order.left != *size)
                    && let Some(order) = orders.remove(price)
                {
                    lines.push(canceled(&order.id, time));
                }
            }
        }
        for (side, levels) in sides {
            for (price, size) in levels.iter().filter(|(_, size)| **size > 0) {
                if self.side(side).contains_key(price) {
                    continue;
                }
                let id = format!("{run}-o{}", self.placed);
                self.placed += 1;
                lines.push(placed(market, &id, side, *price, *size, time));
                self.side(side).insert(*price, Order { id, left: *size });
            }
        }
        lines
    }

    fn fill(&mut self, market: &Market, trade: &Trade, id: &str, time: &str) -> Option<String> {
        let maker = self.side(trade.taker.opposite());
        let order = maker.get_mut(&trade.price)?;
        order.left = order.left.saturating_sub(trade.size);
        let (price, size) = (market.price(trade.price), market.size(trade.size));
        let line = format!(
            r#"{{"kind":"order.filled","market":"{}","order":"{}","trade":"{id}","price":"{price}","size":"{size}","liquidity":"MAKER","time":"{time}"}}"#,
            market.name, order.id
        );
        if order.left == 0 {
            maker.remove(&trade.price);
        }
        Some(line)
    }

    fn side(&mut self, side: Side) -> &mut BTreeMap<u64, Order> {
        match side {
            Side::Buy => &mut self.bids,
            Side::Sell => &mut self.asks,
        }
    }
}

fn placed(market: &Market, id: &str, side: Side, price: u64, size: u64, time: &str) -> String {
    let (price, size) = (market.price(price), market.size(size));
    format!(
        r#"{{"kind":"order.placed","market":"{}","order":"{id}","account":"{ACCOUNT}","side":"{}","type":"LIMIT","price":"{price}","size":"{size}","time":"{time}"}}"#,
        market.name,
        side.name()
    )
}

pub(super) fn canceled(id: &str, time: &str) -> String {
    format!(r#"{{"kind":"order.canceled","order":"{id}","time":"{time}"}}"#)
}
