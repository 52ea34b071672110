//! What books that are summed from orders lack.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Order, Orders};
use crate::market::book_gap::{BookGap, Missed};
use crate::market::definition::MarketId;

/// Most orders of a market that are named as missing an event. With one more, the book lacks an
/// order that is not known, and only its source makes it whole.
pub const MOST_NAMED_ORDERS: usize = 64;

/// What the book of one market lacks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Gaps {
    /// Of orders that are known, the newest last.
    orders: Vec<Arc<BookGap>>,
    /// Of an order that is not known. Then the others do not matter.
    unknown: Option<Arc<BookGap>>,
    /// The source said that all open orders are known. So it never sends an event of another one.
    knows_all: bool,
}

impl Gaps {
    fn lose(&mut self, gap: &Arc<BookGap>) {
        if self.has(gap.order(), gap.height) {
            return;
        }
        let has_room = self.orders.len() < MOST_NAMED_ORDERS;
        if let Some(order) = gap.order().filter(|_| has_room) {
            self.forget(order);
            self.orders.push(gap.clone());
            return;
        }
        let unknown = BookGap { missed: Missed::SomeOrder, ..BookGap::clone(gap) };
        self.unknown = Some(Arc::new(unknown));
        // Those that a rollback of the block may leave stay.
        self.orders.retain(|own| gap.may_go_before(own.height));
    }

    /// Whether it lacks the events of this order already, or those of some order. What a rollback
    /// may remove and leave an event of this height does not count.
    fn has(&self, order: Option<&str>, height: Option<u64>) -> bool {
        let named = self.orders.iter().filter(|gap| gap.order() == order);
        self.unknown.iter().chain(named).any(|gap| !gap.may_go_before(height))
    }

    fn lacks(&self, order: &str) -> bool {
        self.orders.iter().any(|gap| gap.order() == Some(order))
    }

    fn forget(&mut self, order: &str) {
        self.orders.retain(|gap| gap.order() != Some(order));
    }

    fn newest(&self) -> Option<&Arc<BookGap>> {
        self.unknown.as_ref().or_else(|| self.orders.last())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.newest().is_none() && !self.knows_all
    }

    /// Whether a market can have such gaps.
    pub(super) fn is_possible(&self, market: &MarketId) -> bool {
        let mut all = self.orders.iter().chain(&self.unknown);
        self.orders.len() <= MOST_NAMED_ORDERS
            && all.all(|gap| gap.market == *market && gap.is_of_orders())
    }
}

impl Orders {
    /// A market's book missed an event.
    pub fn lose(&mut self, gap: &Arc<BookGap>) {
        self.gaps.entry(gap.market.clone()).or_default().lose(gap);
    }

    /// What a market's book lacks: of several gaps the one that is most difficult to end, then the
    /// newest.
    pub fn gap(&self, market: &str) -> Option<&Arc<BookGap>> {
        self.gaps.get(market)?.newest()
    }

    /// The markets whose books lack events of this order.
    pub fn lacking(&self, order: &str) -> Vec<MarketId> {
        let lacking = self.gaps.iter().filter(|(_, gaps)| gaps.lacks(order));
        lacking.map(|(market, _)| market.clone()).collect()
    }

    /// Whether a market's book lacks the events of this order already, or those of some order. What
    /// a rollback may remove and leave an event of this height does not count.
    pub(in crate::market) fn has_gap(
        &self,
        market: &str,
        order: Option<&str>,
        height: Option<u64>,
    ) -> bool {
        self.gaps.get(market).is_some_and(|gaps| gaps.has(order, height))
    }

    /// What a market's book lacked of this order is there again; `None`: of all orders.
    pub fn complete(&mut self, market: &MarketId, order: Option<&str>) {
        let gaps = self.gaps.entry(market.clone()).or_default();
        match order {
            Some(order) => gaps.forget(order),
            None => *gaps = Gaps { knows_all: true, ..Gaps::default() },
        }
        if gaps.is_empty() {
            self.gaps.remove(market);
        }
    }

    /// Whether an event of an order that was never placed is a sign that a market's book lacks
    /// something.
    pub fn knows_all(&self, market: &str) -> bool {
        self.gaps.get(market).is_some_and(|gaps| gaps.knows_all)
    }

    /// The same of any market.
    pub fn knows_all_of_any(&self) -> bool {
        self.gaps.values().any(|gaps| gaps.knows_all)
    }

    /// An order that is final lacks nothing any more. One that is placed again may: its fills may
    /// have been refused meanwhile.
    pub(super) fn end_gap(&mut self, order: &Order) {
        if order.status.is_final() && self.gap(&order.market).is_some() {
            self.complete(&order.market, Some(&order.id));
        }
    }
}
