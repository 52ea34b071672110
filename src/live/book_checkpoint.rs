//! A market's book with its offer, as the store and the cache keep it.

use serde::{Deserialize, Serialize};
use spreadly_subscriptions::Epoch;

use super::Live;
use super::pace::Touched;
use crate::market::bbo::BestBidOffer;
use crate::market::book::{Book, BookState, CheckpointError};
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
    book: B,
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
    book: BookState,
}

impl StateTaken {
    /// Of the book's last event.
    pub fn sequence(&self) -> u64 {
        self.book.sequence()
    }

    /// What [`Live::restore`] takes. Costs milliseconds for a large book.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { event_time, offer, book, .. } = self;
        let book = serde_json::from_slice::<Box<serde_json::value::RawValue>>(&book.to_bytes());
        let Ok(book) = book else { return Vec::new() };
        let checkpoint = Checkpoint { event_time: *event_time, offer: *offer, book };
        serde_json::to_vec(&checkpoint).unwrap_or_default()
    }
}

impl Live {
    /// Puts a market's book back as [`Live::checkpoint`] gave it, with its sequence. The market
    /// must be defined.
    pub fn restore(&self, market: &str, sequence: u64, state: &[u8]) -> Result<(), RestoreError> {
        let unknown = || RestoreError::UnknownMarket(market.to_owned());
        let own = self.market(market).ok_or_else(unknown)?;
        let (book, event_time, since) = self.read_checkpoint(state)?;
        // A book that is ahead would ignore the events in between.
        if book.sequence() != sequence {
            return Err(RestoreError::OtherSequence { own: book.sequence(), sequence });
        }
        let best = book.best();
        let id = {
            let mut state = own.state.lock();
            (state.book, state.event_time) = (book, event_time);
            state.checksum.take();
            state.definition.market.clone()
        };
        self.change_offer(&id, best, since.sequence, since.event_time, &mut Touched::new());
        Ok(())
    }

    /// A book as [`Live::checkpoint`] gave it, the time of its last event, and the event that set
    /// its offer.
    pub(super) fn read_checkpoint(
        &self,
        state: &[u8],
    ) -> Result<(Book, Option<Micros>, OfferMark), CheckpointError> {
        let checkpoint: Checkpoint<&serde_json::value::RawValue> = serde_json::from_slice(state)?;
        let Checkpoint { event_time, offer, book } = checkpoint;
        let book = Book::from_checkpoint(book.get().as_bytes(), self.journal_touches)?;
        // Where the event that set the offer isn't known, the book's last event is a safe answer.
        let unknown = OfferMark { sequence: book.sequence(), event_time };
        Ok((book, event_time, offer.unwrap_or(unknown)))
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
            let (epoch, book, event_time) = {
                let state = own.state.lock();
                (state.epochs.epoch(), state.book.state(journal), state.event_time)
            };
            let offer = self.offers.lock().get(market);
            let prices = |(bid, ask): (Option<Level>, Option<Level>)| {
                [bid, ask].map(|level| level.map(|level| (level.price, level.size)))
            };
            let offer = offer.filter(|bbo| {
                bbo.sequence <= book.sequence() && prices((bbo.bid, bbo.ask)) == prices(book.best())
            });
            if let Some(BestBidOffer { sequence, event_time: time, .. }) = offer {
                let offer = OfferMark { sequence, event_time: time };
                return Some(StateTaken { epoch, event_time, offer: Some(offer), book });
            }
        }
        let state = own.state.lock();
        let (epoch, book) = (state.epochs.epoch(), state.book.state(journal));
        Some(StateTaken { epoch, event_time: state.event_time, offer: None, book })
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
