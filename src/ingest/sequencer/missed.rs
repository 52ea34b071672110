//! What books and trades missed because an event was refused, as events of the hub's own.

use super::Sequencer;
use super::group::Group;
use crate::ingest::feed_status::FeedId;
use crate::ingest::losses::{Lost, gap_reason};
use crate::ingest::place::Place;
use crate::market::admission::{Admitted, BookMode};
use crate::market::book_gap::{BookGap, Missed, OrdersComplete};
use crate::market::definition::MarketId;
use crate::market::event::{Body, Event, OrderEvent};
use crate::market::refusal::Refusal;
use crate::market::topic::Topic;
use crate::store::{NewEvent, Numbered};

impl Sequencer {
    /// Logs for each market whose book a refused event was lost to that the book has a gap. Trades
    /// that missed one are stale for a while.
    pub(super) fn lose(
        &mut self,
        feed: Option<FeedId>,
        lost: Lost<'_>,
        (place, reason): (&Place, &Refusal),
        numbered: Option<Numbered>,
        group: &mut Group,
    ) {
        // The client of a mutation gets the refusal as its answer.
        let Some(feed) = feed else { return };
        let name = self.statuses.name(feed);
        let sources = self.statuses.sources();
        let books = match (lost, self.market_of(lost)) {
            (Lost::Nothing, _) => return,
            (Lost::Trades(market), _) => {
                if self.admission.definition(market).is_some() {
                    sources.miss(Topic::Trades(market).name());
                }
                return;
            }
            (_, Some(market)) => self.lost_book(lost, market).into_iter().collect(),
            // It has the number of one event only. See `shared_log::losses`.
            _ if numbered.is_some() => return,
            (Lost::Undefined { market, by_snapshot }, _)
                if sources.is_other_market(market, by_snapshot) =>
            {
                return;
            }
            (Lost::UndefinedOrder { market, .. }, _) if sources.is_other_market(market, true) => {
                return;
            }
            _ => self.in_doubt(feed, &place.source, lost),
        };
        let source: Option<Box<str>> = name.as_deref().map(Box::from);
        let foreign = self.foreign(Some(feed));
        let is_foreign = |market: &str| foreign.as_ref().is_some_and(|own| own.has_market(market));
        for (market, missed) in books {
            if is_foreign(&market) {
                continue;
            }
            let reason = gap_reason(place, reason);
            let gap = BookGap { market, missed, source: source.clone(), reason };
            let body = gap.line();
            self.log_own(Body::BookGap(Box::new(gap)), body, numbered, group);
        }
    }

    /// The market whose book lost an event, where it is known.
    fn market_of<'a>(&'a self, lost: Lost<'a>) -> Option<&'a str> {
        let open = match lost {
            Lost::Order { order: Some(order), .. } => self.admission.orders().market_of_open(order),
            _ => None,
        };
        open.map(|market| &**market).or(lost.market())
    }

    /// What a market's book missed, unless it lacks that already.
    fn lost_book(&self, lost: Lost<'_>, market: &str) -> Option<(MarketId, Missed)> {
        let order = match lost {
            Lost::UnknownOrder { .. } if !self.admission.orders().knows_all(market) => return None,
            Lost::UnknownOrder { .. } => Some(None),
            Lost::Order { order, .. } => Some(order),
            // A kind that can't be read may be that of an order.
            _ => (self.admission.mode(market) == Some(BookMode::Orders)).then_some(None),
        };
        let (is_lost, missed) = match order {
            Some(order) => (self.admission.may_lose_order(market, order), Missed::of_order(order)),
            None => (self.admission.is_whole(market), Missed::Levels),
        };
        is_lost.then(|| (market.into(), missed))
    }

    /// The cancellation of an order that books lacked makes them whole, though it is refused: the
    /// order is final. True if any book lacked it.
    pub(super) fn end_gaps(
        &mut self,
        order: &OrderEvent,
        numbered: Option<Numbered>,
        group: &mut Group,
    ) -> bool {
        let OrderEvent::Canceled(canceled) = order else { return false };
        let mut markets = self.admission.orders().lacking(&canceled.order);
        if numbered.is_some() {
            // It has the number of one event only.
            markets.truncate(1);
        }
        let is_any = !markets.is_empty();
        for market in markets {
            let complete = OrdersComplete { market, order: Some(canceled.order.clone()) };
            let body = complete.line();
            self.log_own(Body::OrdersComplete(Box::new(complete)), body, numbered, group);
        }
        is_any
    }

    /// Whether an order that is not open was never heard of, although the source of some book said
    /// that it knows all orders.
    pub(super) fn is_new_to_all(&mut self, order: &str) -> Option<bool> {
        let orders = self.admission.orders();
        if !orders.knows_all_of_any() || !orders.lacking(order).is_empty() {
            return Some(false);
        }
        self.persist(|store| store.knows_order(order)).map(|known| !known)
    }

    /// Logs an event of the hub's own.
    fn log_own(
        &mut self,
        event: Body<'_>,
        line: String,
        numbered: Option<Numbered>,
        group: &mut Group,
    ) {
        let Ok(Admitted { topic, effect }) = self.admission.admit(&Event::new(event)) else {
            return;
        };
        let body = line.into();
        group.events.push(NewEvent { topic, body, numbered, ..NewEvent::default() });
        group.effects.push((None, None, effect));
    }
}
