//! A market's book with its offer, as the store and the cache keep it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spreadly_subscriptions::Epoch;

use super::Live;
use super::markets::MarketState;
use super::pace::Touched;
use crate::market::bbo::BestBidOffer;
use crate::market::book::{Book, BookState, CheckpointError};
use crate::market::book_gap::BookGap;
use crate::market::levels::Level;
use crate::market::time::Micros;

/// How often a state is taken until its book and its offer are of one moment. Between the two
/// changes lie microseconds.
const MOST_LOOKS: usize = 8;

/// What the store keeps of a market, beside the log.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Checkpoint<B> {
    event_time: Option<Micros>,
    /// The event that set the best bid and offer; `None` if book and offer were not of one moment.
    offer: Option<OfferMark>,
    has_book: bool,
    /// See [`super::markets::MarketState`].
    gap: Option<Arc<BookGap>>,
    book: B,
}

/// What [`Live::read_checkpoint`] gives.
pub(super) struct BookRead {
    pub(super) book: Book,
    /// Of its last event.
    pub(super) event_time: Option<Micros>,
    /// The event that set the offer.
    pub(super) offer: OfferMark,
    pub(super) has_book: bool,
    pub(super) gap: Option<Arc<BookGap>>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OfferMark {
    pub(super) sequence: u64,
    pub(super) event_time: Option<Micros>,
}

/// A market's state as [`Live::state`] took it.
#[derive(Debug)]
pub struct StateTaken {
    /// Of the market's positions.
    pub epoch: Epoch,
    event_time: Option<Micros>,
    offer: Option<OfferMark>,
    has_book: bool,
    gap: Option<Arc<BookGap>>,
    book: BookState,
}

impl StateTaken {
    /// Of the book's last event.
    pub fn sequence(&self) -> u64 {
        self.book.sequence()
    }

    /// What [`Live::restore`] takes. Costs milliseconds for a large book.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { event_time, offer, has_book, gap, book, .. } = self;
        let book = serde_json::from_slice::<Box<serde_json::value::RawValue>>(&book.to_bytes());
        let Ok(book) = book else { return Vec::new() };
        let (has_book, gap) = (*has_book, gap.clone());
        let checkpoint = Checkpoint { event_time: *event_time, offer: *offer, has_book, gap, book };
        serde_json::to_vec(&checkpoint).unwrap_or_default()
    }
}

impl Live {
    /// Puts a market's book back as [`Live::checkpoint`] gave it, with its sequence. The market has
    /// to be defined.
    pub fn restore(&self, market: &str, sequence: u64, state: &[u8]) -> Result<(), RestoreError> {
        let unknown = || RestoreError::UnknownMarket(market.to_owned());
        let own = self.market(market).ok_or_else(unknown)?;
        let read = self.read_checkpoint(state)?;
        // A book that is ahead would ignore the events in between.
        if read.book.sequence() != sequence {
            return Err(RestoreError::OtherSequence { own: read.book.sequence(), sequence });
        }
        let (best, since, has_gap) = (read.book.best(), read.offer, read.gap.is_some());
        let id = {
            let mut state = own.state.lock();
            state.put_back(read);
            state.definition.market.clone()
        };
        let mut touched = Touched::new();
        self.set_gap(&id, has_gap, &mut touched);
        self.change_offer(&id, best, since.sequence, since.event_time, &mut touched);
        Ok(())
    }

    /// A book as [`Live::checkpoint`] gave it.
    pub(super) fn read_checkpoint(&self, state: &[u8]) -> Result<BookRead, CheckpointError> {
        let checkpoint: Checkpoint<&serde_json::value::RawValue> = serde_json::from_slice(state)?;
        let Checkpoint { event_time, offer, has_book, gap, book } = checkpoint;
        let book = Book::from_checkpoint(book.get().as_bytes(), self.journal_touches)?;
        // Where the event that set the offer isn't known, the book's last event is a safe answer.
        let unknown = OfferMark { sequence: book.sequence(), event_time };
        Ok(BookRead { book, event_time, offer: offer.unwrap_or(unknown), has_book, gap })
    }

    /// A market's state and the sequence of its last event; `None` if the market is not known. Call
    /// it from the thread of [`Live::apply`], so that the book and its offer are of one moment.
    pub fn checkpoint(&self, market: &str) -> Option<(u64, Vec<u8>)> {
        let state = self.state(market, 0)?;
        Some((state.sequence(), state.to_bytes()))
    }

    /// A market's state with the newest part of its book's journal (see [`Book::state`]), from
    /// any thread; `None` if the market is not known.
    pub fn state(&self, market: &str, journal: usize) -> Option<StateTaken> {
        let own = self.market(market)?;
        // The book changes before its offer does: an offer that isn't the book's is of another
        // moment.
        for _ in 0..MOST_LOOKS {
            let taken = own.state.lock().taken(journal);
            let book = &taken.book;
            let offer = self.offers.lock().get(market);
            let prices = |(bid, ask): (Option<Level>, Option<Level>)| {
                [bid, ask].map(|level| level.map(|level| (level.price, level.size)))
            };
            let offer = offer.filter(|bbo| {
                bbo.sequence <= book.sequence() && prices((bbo.bid, bbo.ask)) == prices(book.best())
            });
            if let Some(BestBidOffer { sequence, event_time: time, .. }) = offer {
                let offer = OfferMark { sequence, event_time: time };
                return Some(StateTaken { offer: Some(offer), ..taken });
            }
        }
        let taken = own.state.lock().taken(journal);
        Some(taken)
    }
}

impl MarketState {
    /// The state without its offer.
    fn taken(&self, journal: usize) -> StateTaken {
        StateTaken {
            epoch: self.epochs.epoch(),
            event_time: self.event_time,
            offer: None,
            has_book: self.has_book,
            gap: self.gap.clone(),
            book: self.book.state(journal),
        }
    }

    /// Takes what a checkpoint holds.
    pub(super) fn put_back(&mut self, read: BookRead) {
        let BookRead { book, event_time, offer: _, has_book, gap } = read;
        (self.book, self.event_time) = (book, event_time);
        (self.has_book, self.gap) = (has_book, gap);
        self.checksum.take();
    }
}

/// Why a market's state was not put back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("market {0:?} is not defined")]
    UnknownMarket(String),
    #[error("the state is of sequence {own}, not of {sequence}")]
    OtherSequence { own: u64, sequence: u64 },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}
