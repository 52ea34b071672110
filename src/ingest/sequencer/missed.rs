//! What books and trades missed because an event was refused, as events of the hub's own.

use super::Sequencer;
use super::group::Group;
use crate::ingest::feed_status::FeedId;
use crate::ingest::losses::{Lost, Refused, gap_reason};
use crate::ingest::place::Place;
use crate::market::admission::{Admitted, BookMode};
use crate::market::book_gap::{BookGap, Missed, OrdersComplete};
use crate::market::definition::MarketId;
use crate::market::event::{Body, Event, OrderEvent, PlacedOrder, parse};
use crate::market::refusal::Refusal;
use crate::market::topic::Topic;
use crate::store::{NewEvent, Numbered};

impl Sequencer {
    /// Refuses an event of a delivery, and logs what is lost by that.
    pub(super) fn refuse(
        &mut self,
        delivery: usize,
        lost: Lost<'_>,
        refused: Refused,
        group: &mut Group,
    ) -> Option<()> {
        self.lose(group.deliveries[delivery].feed, lost, &refused, group)?;
        group.deliveries[delivery].ack.refuse(refused.place, refused.reason);
        Some(())
    }

    /// Logs for each market whose book a refused event was lost to that the book has a gap. Trades
    /// that missed one are stale for a while. `None`: shut down while the log could not be read.
    pub(super) fn lose(
        &mut self,
        feed: Option<FeedId>,
        lost: Lost<'_>,
        refused: &Refused,
        group: &mut Group,
    ) -> Option<()> {
        // The client of a mutation gets the refusal as its answer.
        let Some(feed) = feed else { return Some(()) };
        let &Refused { ref place, ref reason, height, numbered } = refused;
        if self.is_of_final_order(lost, group)? {
            return Some(());
        }
        let name = self.statuses.name(feed);
        let sources = self.statuses.sources().clone();
        let books = match (lost, self.market_of(lost)) {
            (Lost::Nothing, _) => return Some(()),
            (Lost::Trades(market), _) => {
                if self.admission.definition(market).is_some() {
                    sources.miss(Topic::Trades(market).name());
                }
                return Some(());
            }
            (Lost::Book(market), _) if self.admission.mode(market).is_none() => {
                sources.lose_early(std::iter::once(market));
                return Some(());
            }
            (_, Some(market)) => self.lost_book(lost, market, height).into_iter().collect(),
            // It has the number of one event only. See `shared_log::losses`.
            _ if numbered.is_some() => return Some(()),
            _ if lost.is_of_other_market(&sources) => return Some(()),
            _ => self.in_doubt(feed, &place.source, lost, height),
        };
        let foreign = self.foreign(Some(feed));
        let is_foreign = |market: &str| foreign.as_ref().is_some_and(|own| own.has_market(market));
        for (market, missed) in books {
            if !is_foreign(&market) {
                let (source, reason) = (name.as_deref().map(Box::from), gap_reason(place, reason));
                let gap = BookGap { market, missed, height, source, reason };
                self.log_own(gap.line(), numbered, group);
            }
        }
        Some(())
    }

    /// A market's book begins with an order. It lacks another one if a line was lost before that
    /// may have been of it.
    pub(super) fn lose_earlier(
        &mut self,
        feed: Option<FeedId>,
        market: MarketId,
        place: &Place,
        group: &mut Group,
    ) {
        if self.statuses.sources().take_early(&market) {
            let name = feed.and_then(|feed| self.statuses.name(feed));
            let reason = Refusal::EventsLost("earlier ones of this market were refused".into());
            let gap = BookGap {
                market,
                missed: Missed::SomeOrder,
                height: None,
                source: name.as_deref().map(Box::from),
                reason: gap_reason(place, &reason),
            };
            self.log_own(gap.line(), None, group);
        }
    }

    /// Whether what was lost is of an order that is final: its book has all of that.
    fn is_of_final_order(&mut self, lost: Lost<'_>, group: &Group) -> Option<bool> {
        let Lost::Order { order: Some(order), .. } = lost else { return Some(false) };
        if self.admission.orders().market_of_open(order).is_some() {
            return Some(false);
        }
        if group.placed.contains(order) {
            return Some(true);
        }
        self.persist(|store| store.knows_order(order))
    }

    /// Whether an order that was placed before was placed by other words. Of one that is final only
    /// the market is compared: sources send old lines again.
    fn is_other_order(&mut self, placed: &PlacedOrder) -> Option<bool> {
        let orders = self.admission.orders();
        if orders.market_of_open(&placed.order).is_some() {
            return Some(!orders.is_same(placed));
        }
        let known = self.persist(|store| store.market_of_order(&placed.order))?;
        Some(known.is_some_and(|known| *known != *placed.market))
    }

    /// What a refused event lost. The refused cancellation of an order that books lacked ends their
    /// gaps.
    pub(super) fn lost_by<'a>(
        &mut self,
        feed: Option<FeedId>,
        event: &'a Event<'_>,
        reason: &Refusal,
        numbered: Option<Numbered>,
        group: &mut Group,
    ) -> Option<Lost<'a>> {
        let lost = Lost::of_event(event, reason);
        let Body::Order(order) = &event.body else { return Some(lost) };
        match (lost, &**order) {
            (Lost::UnknownOrder { .. }, order) => {
                let ends = feed.is_some() && self.end_gaps(order, event.height, numbered, group);
                let is_lost = !ends && self.is_new_to_all(order.order(), group)?;
                Some(if is_lost { lost } else { Lost::Nothing })
            }
            (Lost::Nothing, OrderEvent::Placed(placed))
                if !placed.requested && self.is_other_order(placed)? =>
            {
                Some(Lost::Order { market: Some(&placed.market), order: None })
            }
            _ => Some(lost),
        }
    }

    /// The market whose book lost an event, where it is known.
    fn market_of<'a>(&'a self, lost: Lost<'a>) -> Option<&'a str> {
        let open = match lost {
            Lost::Order { order: Some(order), .. } => self.admission.orders().market_of_open(order),
            _ => None,
        };
        let named = lost.market().filter(|market| match lost {
            // The name may be a misspelt one.
            Lost::UnknownOrder { .. } => self.admission.definition(market).is_some(),
            _ => true,
        });
        open.map(|market| &**market).or(named)
    }

    /// What a market's book missed, unless it lacks that already.
    fn lost_book(
        &self,
        lost: Lost<'_>,
        market: &str,
        height: Option<u64>,
    ) -> Option<(MarketId, Missed)> {
        let order = match lost {
            Lost::UnknownOrder { .. } if !self.admission.orders().knows_all(market) => return None,
            Lost::UnknownOrder { .. } => Some(None),
            Lost::Order { order, .. } => Some(order),
            // A kind that can't be read may be that of an order.
            _ => (self.admission.mode(market) == Some(BookMode::Orders)).then_some(None),
        };
        let (is_lost, missed) = match order {
            Some(order) => {
                let is_lost = self.admission.may_lose_order(market, order, height);
                (is_lost, Missed::of_order(order))
            }
            None => (self.admission.may_lose_levels(market, height), Missed::Levels),
        };
        is_lost.then(|| (market.into(), missed))
    }

    /// The cancellation of an order that books lacked makes them whole, though it is refused: the
    /// order is final. True if any book lacked it.
    fn end_gaps(
        &mut self,
        order: &OrderEvent,
        height: Option<u64>,
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
            let order = Some(canceled.order.clone());
            let line = OrdersComplete { market, order }.line(height);
            self.log_own(line, numbered, group);
        }
        is_any
    }

    /// Whether an order that is not open was never heard of, although the source of some book said
    /// that it knows all orders.
    fn is_new_to_all(&mut self, order: &str, group: &Group) -> Option<bool> {
        let orders = self.admission.orders();
        if group.placed.contains(order)
            || !orders.knows_all_of_any()
            || !orders.lacking(order).is_empty()
        {
            return Some(false);
        }
        self.persist(|store| store.knows_order(order)).map(|known| !known)
    }

    /// Logs an event of the hub's own, as a restart reads it.
    fn log_own(&mut self, line: String, numbered: Option<Numbered>, group: &mut Group) {
        let event = match parse(line.as_bytes()) {
            Ok(event) => event,
            Err(error) => {
                debug_assert!(false, "{error}: {line}");
                tracing::error!(%error, line, "an event of the hub's own can't be read");
                return;
            }
        };
        let height = event.height;
        let Ok(Admitted { topic, effect }) = self.admission.admit(&event) else { return };
        let body = line.into();
        group.events.push(NewEvent { topic, body, height, numbered, ..NewEvent::default() });
        group.effects.push((None, None, effect));
    }
}
