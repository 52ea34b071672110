//! A rollback: blocks of the chain were removed, or a source lost events. The live state takes what
//! is left, begins new epochs, and every stream states it. The ingest side computes what is left
//! from the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Live;
use super::book_checkpoint::{BookRead, OfferMark, RestoreError};
use super::frame::SnapshotReason;
use super::pace::Touched;
use crate::market::bbo::BestBidOffer;
use crate::market::definition::{MarketDefinition, MarketId};
use crate::market::epochs::EpochChange;
use crate::market::ticker::LastTrade;
use crate::market::time::Micros;
use crate::market::topic::Topic;
use crate::store::{self, MarketCandles};

/// What is left after a rollback.
#[derive(Debug)]
pub struct Rollback {
    /// Sequence of the rollback's event.
    pub at: u64,
    /// Of blocks, not of a gap.
    pub of_blocks: bool,
    /// Events that left the log.
    pub undone: u64,
    /// The first removed event of each scope, see [`crate::market::topic::scope_of`]; `at` after
    /// a gap.
    pub scopes: Vec<(String, u64)>,
    /// Every market among the scopes.
    pub markets: Vec<MarketLeft>,
    /// Log topics that are touched: where they stand, and when their last event was at its source.
    pub topics: Vec<(store::TopicPosition, Option<Micros>)>,
}

/// What is left of a market.
#[derive(Debug)]
pub struct MarketLeft {
    pub market: MarketId,
    pub defined: Defined,
    /// Its book as [`Live::checkpoint`] gives it; `None` where no event of it was removed, or where
    /// nothing is left of it.
    pub book: Option<Vec<u8>>,
    pub candles: MarketCandles,
    /// Its latest trade, and when its newest was at its source.
    pub last: Option<LastTrade>,
    pub event_time: Option<Micros>,
}

/// What is left of a market's definition.
#[derive(Debug)]
pub enum Defined {
    AsBefore,
    /// By an earlier one.
    So(Arc<MarketDefinition>),
    /// By none: there is no such market until it is defined again.
    Not,
}

impl Live {
    /// Takes which topics began new epochs from the log. Before anything else is read.
    pub fn restore_epochs(&self, known: &[(Box<str>, EpochChange)]) {
        let mut topics = self.topics.lock();
        for (scope, change) in known {
            topics.begin_epoch(scope, *change);
        }
    }

    /// An empty state of the same log, which no stream follows.
    pub fn aside(&self) -> Self {
        Self::new(self.epoch, Box::new(|| 0), self.journal_touches, self.log.clone())
    }

    /// Raises each market's sequence to where its epoch began, which may be after its last event.
    /// Once the log is read.
    pub fn raise_to_epochs(&self) {
        for market in self.all() {
            let id = {
                let mut state = market.state.lock();
                let since = state.epochs.since();
                state.book.add_sequence(since);
                state.definition.market.clone()
            };
            self.offers.lock().raise_to_epoch(&id);
            self.tickers.lock().raise_to_epoch(&id);
        }
    }

    /// Takes what is left, and lets every stream state it. From the thread that calls
    /// [`Live::apply`].
    ///
    /// # Errors
    /// When a book is not readable: it is left empty then, and a restart reads it from the log.
    pub fn roll_back(&self, left: &Rollback) -> Result<(), RestoreError> {
        let mut touched = Touched::new();
        let done = self.take_rollback(left, &mut touched);
        self.advance_all(&touched);
        done
    }

    pub(super) fn take_rollback(
        &self,
        left: &Rollback,
        touched: &mut Touched,
    ) -> Result<(), RestoreError> {
        let count = if left.of_blocks { &self.reorganisations } else { &self.gaps };
        count.fetch_add(1, Ordering::Relaxed);
        self.events_undone.fetch_add(left.undone, Ordering::Relaxed);
        let mut done = Ok(());
        for (scope, first) in &left.scopes {
            let change = EpochChange { at: left.at, first: *first };
            let market = Topic::parse(scope).and_then(Topic::market);
            let market = left.markets.iter().find(|one| Some(&*one.market) == market);
            if let Some(market) = market {
                done = done.and(self.roll_back_market(market, change, touched));
            }
        }
        let changes = left
            .scopes
            .iter()
            .map(|(scope, first)| (&**scope, EpochChange { at: left.at, first: *first }));
        self.topics.lock().roll_back(changes, &left.topics);
        self.applied.raise_to(left.at);
        done
    }

    fn roll_back_market(
        &self,
        left: &MarketLeft,
        change: EpochChange,
        touched: &mut Touched,
    ) -> Result<(), RestoreError> {
        let Some(market) = self.known(&left.market) else {
            if self.origin.is_some() {
                // A copy has only markets that streams follow.
                return Ok(());
            }
            return Err(RestoreError::UnknownMarket(left.market.to_string()));
        };
        if market.state.lock().epochs.since() >= change.at {
            // Copied later.
            return Ok(());
        }
        match &left.defined {
            Defined::AsBefore => {}
            Defined::So(definition) => self.define_at(definition.clone(), change.at, touched),
            Defined::Not => market.gone.store(true, Ordering::Release),
        }
        let read = left.book.as_deref().map(|state| self.read_checkpoint(state)).transpose();
        let mut done = Ok(());
        let (best, rebuilt, has_gap) = {
            let mut state = market.state.lock();
            let rebuilt = match read {
                Ok(Some(read)) => {
                    let since = read.offer;
                    state.put_back(read);
                    Some(since)
                }
                Ok(None) if !market.is_gone() => None,
                other => {
                    done = other.map(drop);
                    let offer = OfferMark { sequence: 0, event_time: None };
                    let (book, event_time) = (self.empty_book(0), None);
                    state.put_back(BookRead {
                        book,
                        event_time,
                        offer,
                        has_book: false,
                        gap: None,
                    });
                    Some(offer)
                }
            };
            state.epochs.begin(change);
            state.book.begin_epoch(change.at);
            let reason = SnapshotReason::of_epoch(&state.epochs);
            state.restate(reason, touched);
            (state.book.best(), rebuilt, state.gap.is_some())
        };
        self.set_gap(&left.market, has_gap, touched);
        let known = self.offers.lock().get(&left.market).unwrap_or_default();
        let known = OfferMark { sequence: known.sequence, event_time: known.event_time };
        let OfferMark { sequence, event_time } = rebuilt.unwrap_or(known);
        let offer = BestBidOffer { bid: best.0, ask: best.1, sequence, event_time };
        let moment = self.moment();
        self.offers.lock().roll_back(&left.market, change, offer, touched);
        let mut candles = market.candles.lock();
        candles.roll_back(change, &left.candles, left.event_time, &moment, touched);
        drop(candles);
        let trades = (left.last, left.event_time);
        let mut tickers = self.tickers.lock();
        tickers.roll_back(change, &offer, &left.candles, trades, moment.now, touched);
        Ok(done?)
    }
}
