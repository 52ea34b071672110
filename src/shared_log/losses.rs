//! Gaps of books for lines that this hub's feeds bring and that no hub can take. A row of the
//! shared log does not say its source, and has the number of one event only. So the gaps enter as
//! rows of their own, beside what caused them.

use std::sync::Arc;

use foldhash::{HashMap, HashSet};

use crate::ingest::losses::{Lost, gap_reason};
use crate::ingest::place::Place;
use crate::ingest::topic_sources::TopicSources;
use crate::live::{BookLack, Live};
use crate::market::admission::BookMode;
use crate::market::book_gap::{BookGap, Missed};
use crate::market::definition::MarketId;
use crate::market::event::{Body, Event, OrderEvent};
use crate::market::ownership::Ownership;
use crate::market::refusal::Refusal;
use crate::market::topic::Topic;

/// What the lines of one batch lose.
pub(super) struct Losses<'a> {
    live: &'a Live,
    sources: &'a TopicSources,
    /// The feed that brings them.
    feed: Arc<str>,
    /// What only another feed may bring.
    foreign: Option<&'a Ownership>,
    /// What the batch changes until here: whether a market's book is whole, by the markets that
    /// it defines too.
    changed: HashMap<MarketId, Option<bool>>,
    /// What it makes the books of single orders lack.
    lost: HashSet<(MarketId, Missed)>,
    /// Markets whose orders it says to be complete, and orders that it makes final.
    complete: HashSet<MarketId>,
    ended: HashSet<Box<str>>,
    /// Markets whose books begin with an order of it.
    begun: HashSet<MarketId>,
}

impl<'a> Losses<'a> {
    pub(super) fn new(
        live: &'a Live,
        sources: &'a TopicSources,
        feed: Arc<str>,
        foreign: Option<&'a Ownership>,
    ) -> Self {
        let (changed, lost) = Default::default();
        let (complete, ended, begun) = Default::default();
        Self { live, sources, feed, foreign, changed, lost, complete, ended, begun }
    }

    /// The gaps that a line leaves which can't be read.
    pub(super) fn of_line(&mut self, line: &[u8], place: &Place, reason: &Refusal) -> Vec<String> {
        let lost = Lost::of_line(line, |market| self.is_defined(market));
        self.gaps(lost, None, place, reason)
    }

    /// Takes an event that enters. It leaves gaps if its market is not defined: the name may be a
    /// misspelt one.
    pub(super) fn of_event(&mut self, event: &Event<'_>, place: &Place) -> Vec<String> {
        let (market, is_whole) = match &event.body {
            Body::Market(definition) => {
                self.changed.entry(definition.market.clone()).or_default();
                return Vec::new();
            }
            Body::BookSnapshot { market, .. } => (&**market, Some(true)),
            Body::BookDelta { market, .. } => (&**market, None),
            Body::BookGap(gap) if !gap.is_of_orders() => (&*gap.market, Some(false)),
            Body::Order(order) => match &**order {
                OrderEvent::Placed(placed) => (&*placed.market, None),
                // The order says its market, and every hub finds it.
                OrderEvent::Filled(_) | OrderEvent::Canceled(_) => {
                    self.end_gaps(None, Some(order.order()));
                    return Vec::new();
                }
            },
            Body::OrdersComplete(complete) => {
                self.end_gaps(Some(&complete.market), complete.order.as_deref());
                return Vec::new();
            }
            Body::Gap { source } => {
                let reason = Refusal::events_lost_of(source);
                return self.gaps(Lost::Unknown, None, place, &reason);
            }
            _ => return Vec::new(),
        };
        if !self.is_defined(market) {
            let reason = Refusal::UnknownMarket(market.into());
            return self.gaps(Lost::of_event(event, &reason), event.height, place, &reason);
        }
        if let Body::Order(_) = event.body {
            if self.live.book_lack(market).is_none() {
                self.begun.insert(market.into());
            }
        } else if is_whole.is_some() {
            self.changed.insert(market.into(), is_whole);
        }
        Vec::new()
    }

    /// What follows may be lost once more: of this order, or of all orders of a market.
    fn end_gaps(&mut self, market: Option<&MarketId>, order: Option<&str>) {
        let missed = order.map(|order| Missed::of_order(Some(order)));
        self.lost.retain(|(own, lost)| {
            let is_other_market = market.is_some_and(|market| market != own);
            is_other_market || missed.as_ref().is_some_and(|missed| missed != lost)
        });
        match order {
            Some(order) => drop(self.ended.insert(order.into())),
            None => self.complete.extend(market.cloned()),
        }
    }

    fn is_defined(&self, market: &str) -> bool {
        self.changed.contains_key(market) || self.live.definition(market).is_some()
    }

    fn gaps(
        &mut self,
        lost: Lost<'_>,
        height: Option<u64>,
        place: &Place,
        reason: &Refusal,
    ) -> Vec<String> {
        match lost {
            Lost::Nothing => return Vec::new(),
            Lost::Trades(market) => {
                if self.is_defined(market) {
                    self.sources.miss(Topic::Trades(market).name());
                }
                return Vec::new();
            }
            _ if lost.is_of_other_market(self.sources) => return Vec::new(),
            _ => {}
        }
        let named = lost.market();
        let books: Vec<BookLack> = match named {
            Some(market) => self.live.book_lack(market).into_iter().collect(),
            None => self.live.book_lacks(),
        };
        let mut lacking = self.levels(lost, height, &books);
        lacking.extend(self.orders(lost, height, &books));
        lacking.retain(|(market, _)| self.foreign.is_none_or(|own| !own.has_market(market)));
        if named.is_none() {
            let topics: Vec<_> = lacking
                .into_iter()
                .map(|(market, missed)| {
                    let topic = match missed {
                        Missed::Levels => Topic::Book(&market).to_string(),
                        _ => Topic::orders_of(&market).to_string(),
                    };
                    (topic, (market, missed))
                })
                .collect();
            let named = topics.iter().map(|(topic, book)| (book.clone(), topic.as_str()));
            lacking = self.sources.brought((&self.feed, &place.source), named);
        }
        lacking
            .into_iter()
            .map(|(market, missed)| {
                match &missed {
                    Missed::Levels => drop(self.changed.insert(market.clone(), Some(false))),
                    _ => drop(self.lost.insert((market.clone(), missed.clone()))),
                }
                let (source, reason) = (Some((*self.feed).into()), gap_reason(place, reason));
                BookGap { market, missed, height, source, reason }.line()
            })
            .collect()
    }

    /// The books of price levels that may have lost it and are whole until here.
    fn levels(
        &self,
        lost: Lost<'_>,
        height: Option<u64>,
        books: &[BookLack],
    ) -> Vec<(MarketId, Missed)> {
        if !lost.is_of(BookMode::Levels) {
            return Vec::new();
        }
        let named = lost.market();
        let is_whole =
            |book: &&BookLack| book.mode == BookMode::Levels && !book.has(&Missed::Levels, height);
        let before = books.iter().filter(is_whole).map(|book| &book.market);
        let before = before.filter(|market| !matches!(self.changed.get(*market), Some(Some(_))));
        let of_batch = self.changed.iter().filter(|(_, is_whole)| **is_whole == Some(true));
        let of_batch = of_batch.map(|(market, _)| market);
        let of_batch = of_batch.filter(|market| named.is_none_or(|named| ***market == *named));
        before.chain(of_batch).map(|market| (market.clone(), Missed::Levels)).collect()
    }

    /// The books that are summed from orders, may have lost it, and do not lack it until here.
    fn orders(
        &self,
        lost: Lost<'_>,
        height: Option<u64>,
        books: &[BookLack],
    ) -> Vec<(MarketId, Missed)> {
        if !lost.is_of(BookMode::Orders) {
            return Vec::new();
        }
        let missed = Missed::of_order(lost.order());
        let is_lost = |market: &MarketId| {
            let lacks = |missed: &Missed| self.lost.contains(&(market.clone(), missed.clone()));
            lacks(&missed) || lacks(&Missed::SomeOrder)
        };
        let is_ended = lost.order().is_some_and(|order| self.ended.contains(order));
        let may_lack = |book: &&BookLack| {
            let is_known = book.has(&missed, height) && !self.complete.contains(&book.market);
            book.mode == BookMode::Orders && (is_ended || !is_known) && !is_lost(&book.market)
        };
        let mut lacking: Vec<_> =
            books.iter().filter(may_lack).map(|book| book.market.clone()).collect();
        // Those that begin in this batch.
        let begun = self.begun.iter().filter(|market| {
            lost.market().is_none_or(|named| named == &***market) && !is_lost(market)
        });
        lacking.extend(begun.cloned());
        // Its first order makes a book.
        if let Lost::Order { market: Some(market), .. } = lost
            && books.is_empty()
            && lacking.is_empty()
            && !is_lost(&market.into())
        {
            lacking.push(market.into());
        }
        lacking.into_iter().map(|market| (market, missed.clone())).collect()
    }
}
