//! The markets: their definitions, books and candles, and the streams that follow a book.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Live;
use super::book_stream::{BookStream, Now};
use super::candles::CandleBoard;
use super::frame::{BookHead, BookSnapshot, FeedState, SnapshotReason, Speed};
use super::pace::Touched;
use crate::market::admission::BookMode;
use crate::market::book::Book;
use crate::market::book_gap::{BookGap, Missed};
use crate::market::checksum;
use crate::market::definition::{MarketDefinition, MarketId};
use crate::market::epochs::EpochHistory;
use crate::market::time::Micros;
use crate::market::topic::Topic;

/// Why a book is not up to date that had no event yet.
const NO_BOOK: &str = "the market has no book yet: it waits for the first snapshot or order";

/// A market with its streams.
pub(super) struct Market {
    pub(super) state: Mutex<MarketState>,
    pub(super) candles: Mutex<CandleBoard>,
    /// A rollback removed its definition. Kept for the streams that follow it: it may be defined
    /// again.
    pub(super) gone: AtomicBool,
}

/// What the book of a market lacks.
#[derive(Clone, Debug)]
pub struct BookLack {
    pub market: MarketId,
    pub mode: BookMode,
    /// `None`: nothing.
    pub gap: Option<Arc<BookGap>>,
}

impl BookLack {
    /// Whether it lacks such an event already: of levels, or of this order. What a rollback may
    /// remove and leave an event of this height does not count.
    pub fn has(&self, missed: &Missed, height: Option<u64>) -> bool {
        self.gap.as_ref().is_some_and(|gap| {
            let is_known = gap.missed == *missed || gap.missed == Missed::SomeOrder;
            is_known && !gap.may_go_before(height)
        })
    }
}

pub(super) struct MarketState {
    pub(super) definition: Arc<MarketDefinition>,
    pub(super) epochs: EpochHistory,
    pub(super) book: Book,
    /// It had a snapshot, or is summed from orders.
    pub(super) has_book: bool,
    /// The book missed an event, and had no snapshot since.
    pub(super) gap: Option<Arc<BookGap>>,
    /// Of the last event, at its source.
    pub(super) event_time: Option<Micros>,
    /// Of the current book; computed when the first frame needs it.
    pub(super) checksum: OnceCell<u32>,
    /// Sequence of the event that defined the market, and see [`Now`].
    pub(super) defined_at: u64,
    pub(super) restated: (u64, SnapshotReason),
    pub(super) streams: BTreeMap<u64, BookStream>,
    /// Those that push each event.
    pub(super) raw: BTreeSet<u64>,
}

impl Live {
    pub fn definition(&self, market: &str) -> Option<Arc<MarketDefinition>> {
        Some(self.market(market)?.state.lock().definition.clone())
    }

    /// Sorted by id.
    pub fn definitions(&self) -> Vec<Arc<MarketDefinition>> {
        let all = self.all();
        let there = all.iter().filter(|market| !market.is_gone());
        let mut definitions: Vec<_> =
            there.map(|market| market.state.lock().definition.clone()).collect();
        definitions.sort_unstable_by(|one, other| one.market.cmp(&other.market));
        definitions
    }

    /// Markets that are known, also those that a rollback removed.
    pub fn market_count(&self) -> usize {
        self.markets.read().len()
    }

    /// The best `depth` levels of a market now; `None` also while it has no book.
    pub fn snapshot(&self, market: &str, depth: usize) -> Option<BookSnapshot> {
        let market = self.market(market)?;
        let state = market.state.lock();
        state.has_book.then(|| state.now(self).snapshot(depth, SnapshotReason::Initial))
    }

    pub(super) fn market(&self, id: &str) -> Option<Arc<Market>> {
        self.known(id).filter(|market| !market.is_gone())
    }

    /// Also one that is gone.
    pub(super) fn known(&self, id: &str) -> Option<Arc<Market>> {
        self.markets.read().get(id).cloned()
    }

    /// Also those that are gone.
    pub(super) fn all(&self) -> Vec<Arc<Market>> {
        self.markets.read().values().cloned().collect()
    }

    /// Defines or redefines a market. Its book is in units of its decimals, so other decimals begin
    /// an empty one, which every stream states.
    pub fn define(&self, definition: Arc<MarketDefinition>) {
        let mut touched = Touched::new();
        self.define_at(definition, 0, &mut touched);
        self.advance_all(&touched);
    }

    pub(super) fn define_at(
        &self,
        definition: Arc<MarketDefinition>,
        sequence: u64,
        touched: &mut Touched,
    ) {
        let id = definition.market.clone();
        let epochs = self.epochs(&Topic::Market(&id).to_string());
        // First, so that a market that can be asked for has an offer to state.
        self.offers.lock().define(&definition, &epochs, touched);
        self.tickers.lock().define(&definition, &epochs, touched);
        if let Some(market) = self.known(&id) {
            market.gone.store(false, Ordering::Release);
            market.candles.lock().define(&definition, touched);
            let mut state = market.state.lock();
            state.defined_at = state.defined_at.max(sequence);
            let decimals = |one: &MarketDefinition| (one.price_decimals, one.size_decimals);
            let same = decimals(&state.definition) == decimals(&definition);
            if *state.definition != *definition {
                touched.extend(state.streams.keys());
            }
            state.definition = definition.clone();
            if !same {
                state.book = self.empty_book(state.book.sequence());
                (state.has_book, state.gap) = (false, None);
                state.restate(SnapshotReason::EpochChange, touched);
            }
        } else {
            let candles = Mutex::new(CandleBoard::new(definition.clone(), epochs.clone()));
            let state = MarketState {
                definition,
                book: self.empty_book(0),
                epochs,
                has_book: false,
                gap: None,
                event_time: None,
                checksum: OnceCell::new(),
                defined_at: sequence,
                restated: (0, SnapshotReason::EpochChange),
                streams: BTreeMap::new(),
                raw: BTreeSet::new(),
            };
            let market = Market { state: Mutex::new(state), candles, gone: AtomicBool::new(false) };
            self.markets.write().insert(id, Arc::new(market));
        }
    }

    /// The books that missed an event and had no snapshot since, sorted by their markets.
    pub fn book_gaps(&self) -> Vec<Arc<BookGap>> {
        let all = self.all();
        let mut gaps: Vec<_> =
            all.iter().filter_map(|market| market.state.lock().gap.clone()).collect();
        gaps.sort_unstable_by(|one, other| one.market.cmp(&other.market));
        gaps
    }

    /// What a market's book lacks; `None` while it has no book.
    pub fn book_lack(&self, market: &str) -> Option<BookLack> {
        self.lack_of(&*self.market(market)?)
    }

    fn lack_of(&self, market: &Market) -> Option<BookLack> {
        let (market, gap) = {
            let state = market.state.lock();
            (state.has_book.then(|| state.definition.market.clone())?, state.gap.clone())
        };
        let is_of_orders = self.last_of(&Topic::orders_of(&market).name()) > 0;
        let mode = if is_of_orders { BookMode::Orders } else { BookMode::Levels };
        Some(BookLack { market, mode, gap })
    }

    /// What each book lacks.
    pub fn book_lacks(&self) -> Vec<BookLack> {
        let all = self.all();
        let there = all.iter().filter(|market| !market.is_gone());
        there.filter_map(|market| self.lack_of(market)).collect()
    }

    /// How many books are crossed now.
    pub fn crossed_books(&self) -> usize {
        let all = self.all();
        let there = all.iter().filter(|market| !market.is_gone());
        there.filter(|market| market.state.lock().is_crossed()).count()
    }

    pub(super) fn empty_book(&self, sequence: u64) -> Book {
        Book::with_journal(sequence, self.journal_touches)
    }

    /// The sequence of each market's book.
    pub fn book_sequences(&self) -> Vec<(MarketId, u64)> {
        let all = self.all();
        let there = all.iter().filter(|market| !market.is_gone());
        there
            .map(|market| {
                let state = market.state.lock();
                (state.definition.market.clone(), state.book.sequence())
            })
            .collect()
    }

    /// Events of a market's book after this sequence, as far as its journal reaches.
    pub fn events_after(&self, market: &str, sequence: u64) -> usize {
        self.market(market).map_or(0, |own| own.state.lock().book.events_after(sequence))
    }
}

impl Market {
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

impl MarketState {
    pub(super) fn now<'a>(&'a self, live: &'a Live) -> Now<'a> {
        let checksum = *self.checksum.get_or_init(|| checksum::of(&self.book));
        let feed_state = live.feed_states.lock().of_book(&self.definition.market);
        let (state, state_reason) = self.soundness(feed_state);
        Now {
            head: BookHead {
                definition: self.definition.clone(),
                epoch: self.epochs.epoch(),
                sequence: self.book.sequence(),
                depth: 0,
                checksum,
                event_time: self.event_time,
                publish_time: live.now(),
                slowed_to: None,
                state,
                state_reason,
                is_crossed: self.is_crossed(),
            },
            book: &self.book,
            epochs: &self.epochs,
            restated: self.restated,
            feed_state,
            snapshot_encodings: &live.snapshot_encodings,
        }
    }

    /// Takes what the book lacks from now on. True if that is something else than before.
    pub(super) fn set_gap(&mut self, gap: Option<&Arc<BookGap>>) -> bool {
        let is_new = self.gap.as_ref() != gap;
        if is_new {
            self.gap = gap.cloned();
        }
        is_new
    }

    /// Whether the best bid is at the best ask or above. Sources of a decentralised exchange may
    /// have such books: nobody matches their orders.
    fn is_crossed(&self) -> bool {
        let (bid, ask) = self.book.best();
        bid.zip(ask).is_some_and(|(bid, ask)| bid.price >= ask.price)
    }

    /// Whether the book is up to date and whole; why not, where that is the market's own.
    fn soundness(&self, feed_state: FeedState) -> (FeedState, Option<Arc<str>>) {
        let reason = match &self.gap {
            Some(gap) => Some(Arc::from(&*gap.reason)),
            None if !self.has_book => Some(Arc::from(NO_BOOK)),
            None => None,
        };
        match feed_state {
            FeedState::Live if reason.is_some() => (FeedState::Stale, reason),
            state => (state, reason),
        }
    }

    /// Gives a stream the current book.
    pub(super) fn with<T>(
        &mut self,
        live: &Live,
        stream: u64,
        act: impl FnOnce(&mut BookStream, &Now<'_>) -> T,
    ) -> Option<T> {
        // Taken out for the moment, so that the book can be read beside it.
        let mut own = self.streams.remove(&stream)?;
        let done = act(&mut own, &self.now(live));
        self.streams.insert(stream, own);
        Some(done)
    }

    /// The book was replaced as a whole: every stream states it.
    pub(super) fn restate(&mut self, reason: SnapshotReason, touched: &mut Touched) {
        self.restated = (self.restated.0 + 1, reason);
        self.checksum.take();
        touched.extend(self.streams.keys());
    }

    pub(super) fn set_speed(&mut self, stream: u64, speed: Speed) {
        if let Some(own) = self.streams.get_mut(&stream) {
            own.set_speed(speed);
            match speed {
                Speed::Raw => self.raw.insert(stream),
                _ => self.raw.remove(&stream),
            };
        }
    }
}
