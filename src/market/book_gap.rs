//! A book that missed an event: it is wrong until it is whole again, and says so.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::definition::MarketId;

/// Events of a market's book are missing. The hub writes such an event itself where it refuses one
/// of a book; a source may send it, such as where it missed updates of its venue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BookGap {
    pub market: MarketId,
    pub missed: Missed,
    /// Of the block of the event that is missing: the gap goes with that block.
    pub height: Option<u64>,
    /// The feed that brought what was refused; `None` where a source sent the event.
    pub source: Option<Box<str>>,
    /// For people.
    pub reason: Box<str>,
}

/// What a book missed, which decides what makes it whole again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Missed {
    /// An event of a book of price levels. The next snapshot has all of it.
    Levels,
    /// An event of this order, in a book that is summed from orders. The book is whole once the
    /// order is final, or once its source says that its orders are complete.
    Order(Box<str>),
    /// An event of an order that is not known. Only the source knows when its orders are complete.
    SomeOrder,
}

impl Missed {
    /// By an event of this order, if it is known.
    pub fn of_order(order: Option<&str>) -> Self {
        order.map_or(Self::SomeOrder, |order| Self::Order(order.into()))
    }
}

impl BookGap {
    /// The order that missed an event, if it is known.
    pub fn order(&self) -> Option<&str> {
        match &self.missed {
            Missed::Order(order) => Some(order),
            Missed::Levels | Missed::SomeOrder => None,
        }
    }

    /// Whether the book is summed from orders.
    pub fn is_of_orders(&self) -> bool {
        self.missed != Missed::Levels
    }

    /// Whether a rollback may remove the gap and leave an event of this height.
    pub fn may_go_before(&self, height: Option<u64>) -> bool {
        self.height.is_some_and(|own| height.is_none_or(|height| height < own))
    }

    /// See [`super::event::Event::kind`].
    pub fn kind(&self) -> &'static str {
        if self.is_of_orders() { "orders.gap" } else { "book.gap" }
    }

    /// The event as a line.
    pub fn line(&self) -> String {
        let Self { market, source, reason, .. } = self;
        let line = json!({
            "kind": self.kind(), "market": market, "source": source, "reason": reason,
        });
        with(line, self.order(), self.height)
    }
}

/// An `orders.complete` event: all open orders of a market are known, or an order that missed an
/// event is final. A source sends it once it has sent again what the hub lacked. The hub writes it
/// where it refuses the cancellation of an order that it lacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrdersComplete {
    pub market: MarketId,
    /// `None`: all of them.
    pub order: Option<Box<str>>,
}

impl OrdersComplete {
    /// The event as a line, of a block of this height.
    pub fn line(&self, height: Option<u64>) -> String {
        let Self { market, order } = self;
        with(json!({ "kind": "orders.complete", "market": market }), order.as_deref(), height)
    }
}

/// A line with these fields, where it has them.
fn with(mut line: Value, order: Option<&str>, height: Option<u64>) -> String {
    if let Some(order) = order {
        line["order"] = order.into();
    }
    if let Some(height) = height {
        line["height"] = height.into();
    }
    line.to_string()
}
