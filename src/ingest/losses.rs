//! What a refused event means for books. A book of price levels that missed an event is wrong until
//! its next snapshot.

use crate::market::event::{Body, Event, Subject, subject};
use crate::market::refusal::Refusal;

/// Which book lost a refused event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost<'a> {
    /// None: it is of no book, or the book is as it was meant to be.
    Nothing,
    /// The book of this market.
    Book(&'a str),
    /// Any of those that the source brings.
    Unknown,
}

impl<'a> Lost<'a> {
    /// By a line that can't be read. Empty: a line that was too long to be held.
    pub(crate) fn of_line(line: &'a [u8]) -> Self {
        match subject(line) {
            Subject::Book(market) => Self::Book(market),
            Subject::Unknown => Self::Unknown,
            Subject::Other => Self::Nothing,
        }
    }

    /// By an event that was refused for this reason.
    pub(crate) fn of_event(event: &'a Event<'_>, reason: &Refusal) -> Self {
        // A book of another kind lost nothing, and one that does not exist waits for a snapshot.
        if let Refusal::MixedBook { .. } | Refusal::UnknownMarket(_) = reason {
            return Self::Nothing;
        }
        match &event.body {
            Body::BookSnapshot { market, .. } | Body::BookDelta { market, .. } => {
                Self::Book(market)
            }
            _ => Self::Nothing,
        }
    }
}
