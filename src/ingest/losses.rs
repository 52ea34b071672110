//! What a refused event means for books and trades. A book of price levels that missed an event is
//! wrong until its next snapshot.

use crate::ingest::place::Place;
use crate::market::event::{Body, Event, MOST_REASON_BYTES, Subject, subject};
use crate::market::refusal::Refusal;

/// What lost a refused event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost<'a> {
    /// None: it is of no book, or the book is as it was meant to be.
    Nothing,
    /// The book of this market.
    Book(&'a str),
    /// The trades of this market, and its candles: nothing brings that back.
    Trades(&'a str),
    /// Any of those that the source brings, if the name of this market is a misspelt one. It is not
    /// defined.
    Undefined { market: &'a str, by_snapshot: bool },
    /// Any of those that the source brings.
    Unknown,
}

impl<'a> Lost<'a> {
    /// By a line that can't be read. Empty: a line that was too long to be held.
    pub fn of_line(line: &'a [u8]) -> Self {
        match subject(line) {
            Subject::Book(market) => Self::Book(market),
            Subject::Trades(market) => Self::Trades(market),
            Subject::Unknown => Self::Unknown,
            Subject::Other => Self::Nothing,
        }
    }

    pub fn undefined(market: &'a str) -> Self {
        Self::Undefined { market, by_snapshot: false }
    }

    /// By an event that was refused for this reason.
    pub fn of_event(event: &'a Event<'_>, reason: &Refusal) -> Self {
        match (&event.body, reason) {
            (Body::BookSnapshot { market, .. }, Refusal::UnknownMarket(_)) => {
                Self::Undefined { market, by_snapshot: true }
            }
            (Body::BookDelta { market, .. }, Refusal::UnknownMarket(_)) => Self::undefined(market),
            (Body::BookGap(gap), Refusal::UnknownMarket(_)) => Self::undefined(&gap.market),
            // A book of another kind lost nothing.
            (_, Refusal::MixedBook { .. }) => Self::Nothing,
            (Body::BookSnapshot { market, .. } | Body::BookDelta { market, .. }, _) => {
                Self::Book(market)
            }
            (Body::Trade(trade), _) => Self::Trades(&trade.market),
            _ => Self::Nothing,
        }
    }
}

/// Why a book has a gap.
pub fn gap_reason(place: &Place, refusal: &Refusal) -> Box<str> {
    let reason = format!("{place}: {refusal}");
    reason[..reason.floor_char_boundary(MOST_REASON_BYTES)].into()
}
