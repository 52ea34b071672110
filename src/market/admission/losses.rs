//! What books miss, as far as it decides what may be lost and what makes a book whole.

use std::sync::Arc;

use super::{Admission, Admitted, BookMode};
use crate::market::book_gap::{BookGap, OrdersComplete};
use crate::market::definition::MarketId;
use crate::market::effect::Effect;
use crate::market::refusal::Refusal;

impl Admission {
    /// Whether a market has a book of price levels that has an event of this height to lose: it is
    /// whole, or a rollback may end its gap.
    pub fn may_lose_levels(&self, market: &str, height: Option<u64>) -> bool {
        self.markets.get(market).is_some_and(|market| market.may_lose_levels(height))
    }

    /// Whether a market has a book that is summed from orders, or may get one, which does not lack
    /// an event of this order and height yet.
    pub fn may_lose_order(&self, market: &str, order: Option<&str>, height: Option<u64>) -> bool {
        let mode = self.markets.get(market).map(|market| market.mode);
        mode.is_some_and(|mode| mode != Some(BookMode::Levels))
            && !self.orders.has_gap(market, order, height)
    }

    /// The markets without any book yet.
    pub fn without_book(&self) -> impl Iterator<Item = &MarketId> {
        self.markets.iter().filter(|(_, market)| market.mode.is_none()).map(|(id, _)| id)
    }

    /// The markets of each book that may miss an event of this height and does not lack that yet,
    /// with the topics of the books. `order`: the one that the event may be of.
    pub fn losable_books<'a>(
        &'a self,
        order: Option<&'a str>,
        height: Option<u64>,
    ) -> impl Iterator<Item = (&'a MarketId, BookMode, &'a str)> {
        self.markets.iter().filter_map(move |(id, market)| match market.mode? {
            BookMode::Levels if market.may_lose_levels(height) => {
                Some((id, BookMode::Levels, &*market.book_topic))
            }
            BookMode::Orders if !self.orders.has_gap(id, order, height) => {
                Some((id, BookMode::Orders, &*market.orders_topic))
            }
            BookMode::Levels | BookMode::Orders => None,
        })
    }

    pub(super) fn lose(&mut self, gap: &BookGap) -> Result<Admitted, Refusal> {
        let known = self.market(&gap.market)?;
        let mut gap = Arc::new(gap.clone());
        if !gap.is_of_orders() {
            known.check_mode(BookMode::Levels)?;
            if known.gap.as_ref().is_none_or(|own| own.may_go_before(gap.height)) {
                known.gap = Some(gap.clone());
            }
            return Ok(known.book(Effect::Gap(gap)));
        }
        known.check_mode(BookMode::Orders)?;
        let begins = known.mode.replace(BookMode::Orders).is_none();
        let topic = Arc::clone(&known.orders_topic);
        self.orders.lose(&gap);
        self.made_whole += u64::from(begins);
        // With too many orders the book lacks another one than the event says.
        gap = self.orders.gap(&gap.market).cloned().unwrap_or(gap);
        Ok(Admitted { topic, effect: Effect::Gap(gap) })
    }

    pub(super) fn complete(&mut self, complete: &OrdersComplete) -> Result<Admitted, Refusal> {
        let OrdersComplete { market, order } = complete;
        let known = self.market(market)?;
        known.check_mode(BookMode::Orders)?;
        let begins = known.mode.replace(BookMode::Orders).is_none();
        let (topic, market) = (Arc::clone(&known.orders_topic), known.id());
        let lacked = self.orders.gap(&market).is_some();
        self.orders.complete(&market, order.as_deref());
        let gap = self.orders.gap(&market).cloned();
        self.made_whole += u64::from(begins || (lacked && gap.is_none()));
        Ok(Admitted { topic, effect: Effect::Complete { market, gap } })
    }
}
