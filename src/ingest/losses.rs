//! What a refused event means for books and trades. A book that missed an event is wrong: one of
//! price levels until its next snapshot, one that is summed from orders until the order is final.

use crate::ingest::place::Place;
use crate::ingest::topic_sources::TopicSources;
use crate::market::admission::BookMode;
use crate::market::event::{Body, Event, MOST_REASON_BYTES, OrderEvent, Subject, subject};
use crate::market::refusal::Refusal;
use crate::store::Numbered;

/// What lost a refused event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost<'a> {
    /// None: it is of no book, or the book is as it was meant to be.
    Nothing,
    /// The book of this market.
    Book(&'a str),
    /// The book of the market in which this order is open, else of the market that is named. With
    /// neither, any book that is summed from orders and that the source brings.
    Order { market: Option<&'a str>, order: Option<&'a str> },
    /// The trades of this market, and its candles: nothing brings that back.
    Trades(&'a str),
    /// Any book of price levels that the source brings, if the name of this market is a misspelt
    /// one. It is not defined.
    Undefined { market: &'a str, by_snapshot: bool },
    /// A book whose source said that it knows all orders of it, by an event of an order that is not
    /// known. Without a named market, any such book.
    UnknownOrder { market: Option<&'a str> },
    /// The book of a market that is not defined, if its name is a misspelt one: any book that is
    /// summed from orders and that the source brings.
    UndefinedOrder { market: &'a str, order: Option<&'a str> },
    /// Any of those that the source brings.
    Unknown,
}

impl<'a> Lost<'a> {
    /// By a line that can't be read. Empty: a line that was too long to be held.
    pub fn of_line(line: &'a [u8], is_defined: impl Fn(&str) -> bool) -> Self {
        match subject(line) {
            // Its name may be what is broken.
            Subject::Book(market) if !is_defined(market) => Self::undefined(market),
            Subject::Book(market) => Self::Book(market),
            Subject::Order { market: Some(market), order } if !is_defined(market) => {
                Self::UndefinedOrder { market, order }
            }
            Subject::Order { market, order } => Self::Order { market, order },
            Subject::Trades(market) => Self::Trades(market),
            Subject::Unknown => Self::Unknown,
            Subject::Other => Self::Nothing,
        }
    }

    /// The market that is named and whose book lost it.
    pub fn market(&self) -> Option<&'a str> {
        match self {
            Self::Book(market) => Some(market),
            Self::Order { market, .. } | Self::UnknownOrder { market } => *market,
            _ => None,
        }
    }

    /// The order that it is of, if that is known.
    pub fn order(&self) -> Option<&'a str> {
        match self {
            Self::Order { order, .. } | Self::UndefinedOrder { order, .. } => *order,
            _ => None,
        }
    }

    /// Whether books of this mode may have lost it.
    pub fn is_of(&self, mode: BookMode) -> bool {
        match self {
            Self::Nothing | Self::Trades(_) => false,
            Self::Undefined { .. } => mode == BookMode::Levels,
            Self::Order { .. } | Self::UnknownOrder { .. } | Self::UndefinedOrder { .. } => {
                mode == BookMode::Orders
            }
            Self::Book(_) | Self::Unknown => true,
        }
    }

    /// Whether its market is not defined and one of its own, so that no book lost anything. Else
    /// its name may be a misspelt one. Orders have no snapshots: the second one shows it.
    pub fn is_of_other_market(&self, sources: &TopicSources) -> bool {
        match self {
            Self::Undefined { market, by_snapshot } => {
                sources.is_other_market(market, *by_snapshot)
            }
            Self::UndefinedOrder { market, .. } => sources.is_other_market(market, true),
            _ => false,
        }
    }

    fn undefined(market: &'a str) -> Self {
        Self::Undefined { market, by_snapshot: false }
    }

    /// By an event that was refused for this reason.
    pub fn of_event(event: &'a Event<'_>, reason: &Refusal) -> Self {
        match (&event.body, reason) {
            (Body::BookSnapshot { market, .. }, Refusal::UnknownMarket(_)) => {
                Self::Undefined { market, by_snapshot: true }
            }
            (Body::BookDelta { market, .. }, Refusal::UnknownMarket(_)) => Self::undefined(market),
            (Body::BookGap(gap), Refusal::UnknownMarket(_)) if gap.is_of_orders() => {
                Self::UndefinedOrder { market: &gap.market, order: gap.order() }
            }
            (Body::BookGap(gap), Refusal::UnknownMarket(_)) => Self::undefined(&gap.market),
            (Body::Order(order), reason) => Self::of_order(order, reason),
            (Body::BookGap(gap), _) if gap.is_of_orders() => {
                Self::Order { market: Some(&gap.market), order: gap.order() }
            }
            (Body::BookGap(gap), _) => Self::Book(&gap.market),
            // Also of a book of the other kind: it is not what its source sends.
            (Body::BookSnapshot { market, .. } | Body::BookDelta { market, .. }, _) => {
                Self::Book(market)
            }
            (Body::Trade(trade), _) => Self::Trades(&trade.market),
            _ => Self::Nothing,
        }
    }

    fn of_order(event: &'a OrderEvent, reason: &Refusal) -> Self {
        let market = event.market().map(|market| &**market);
        match (event, reason) {
            // A client of a hub was refused.
            _ if event.is_requested() => Self::Nothing,
            // Sources may send an event twice.
            (_, Refusal::DoubledOrder(_)) => Self::Nothing,
            (_, Refusal::UnknownOrder(_)) => Self::UnknownOrder { market },
            // The name may be a misspelt one.
            (OrderEvent::Placed(placed), Refusal::UnknownMarket(_) | Refusal::MixedBook { .. }) => {
                Self::UndefinedOrder { market: &placed.market, order: Some(event.order()) }
            }
            _ => Self::Order { market, order: Some(event.order()) },
        }
    }
}

/// An event that was refused.
pub struct Refused {
    pub place: Place,
    pub reason: Refusal,
    /// Of its block.
    pub height: Option<u64>,
    /// Its number in a shared log.
    pub numbered: Option<Numbered>,
}

/// Why a book has a gap.
pub fn gap_reason(place: &Place, refusal: &Refusal) -> Box<str> {
    let reason = format!("{place}: {refusal}");
    reason[..reason.floor_char_boundary(MOST_REASON_BYTES)].into()
}
