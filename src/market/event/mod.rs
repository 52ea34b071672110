//! One event as a feed delivers it: well-formed, but not yet checked against its market. The rules
//! that depend on other events are in [`super::admission`].

mod fields;
mod parse;
mod subject;

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::book_gap::{BookGap, OrdersComplete};
use super::definition::{MarketDefinition, MarketId};
use super::levels::Side;
use super::time::Micros;
use super::topic::Topic;
use super::trade::WrittenTrade;
pub use parse::{begins_epochs, check_topic, parse};
pub use subject::{Named, Subject, named_market, subject};

/// Longest line, in bytes without its newline: a book of some 20,000 levels. What is longer is
/// skipped by the feeds without being held in memory.
pub const MOST_LINE_BYTES: usize = 1024 * 1024;
/// Longest `id`, order id, account or other identifier, in bytes: two hashes in hexadecimal.
pub const MOST_ID_BYTES: usize = 128;
/// Longest topic of a `message` event, in characters.
pub const MOST_TOPIC_CHARACTERS: usize = 128;
/// Longest name of a source that events are missing of, in bytes: a topic of Kafka with its
/// partition has half of it.
pub const MOST_SOURCE_BYTES: usize = 512;
/// Longest `data` of a `message`, in bytes as it is sent: with all around it one such event is a
/// frame below 1 MiB, which is the largest message that Python's `websockets` takes by default.
pub const MOST_DATA_BYTES: usize = 1_000_000;
/// Longest `reason`, in bytes. A frame may hold 64 of them.
pub const MOST_REASON_BYTES: usize = 1_024;
/// Highest height of a block: the store's numbers are signed.
pub const MOST_HEIGHT: u64 = i64::MAX as u64;
/// Deepest nesting of objects and lists: half of what serde_json reads back, so that whatever
/// is in the log can be read again inside another document.
pub const MOST_NESTING: usize = 64;

/// What [`parse`] reads, for the refusal of any other kind.
pub(super) const KINDS: &str = "market, book.snapshot, book.delta, book.gap, trade, order.placed, \
                                order.filled, order.canceled, orders.gap, orders.complete, \
                                block.applied, block.reverted, source.gap, message";

/// A string of the line, borrowed unless it is written with escapes: most events are books, and
/// each text of their levels would cost an allocation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Text<'_> {
    fn into_box(self) -> Box<str> {
        self.0.into()
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(text.into())
    }
}

/// Price and size as written, not yet at a market's precision.
pub type WrittenLevel<'a> = (Text<'a>, Text<'a>);

/// An event whose JSON is well formed and whose kind is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Event<'a> {
    /// Makes the event idempotent: the same id from any feed counts once within its topic and kind.
    pub id: Option<Box<str>>,
    pub time: Option<Micros>,
    /// Height of its block, at most [`MOST_HEIGHT`]. A rollback of the block removes the event.
    pub height: Option<u64>,
    pub body: Body<'a>,
}

impl<'a> Event<'a> {
    /// One without an id, a time and a block.
    pub fn new(body: Body<'a>) -> Self {
        Self { id: None, time: None, height: None, body }
    }

    /// The topic that it belongs to. `None` for an event of an order whose line names no market.
    pub fn topic(&self) -> Option<Arc<str>> {
        let topic = match &self.body {
            Body::Market(definition) => Topic::Market(&definition.market),
            Body::BookSnapshot { market, .. } | Body::BookDelta { market, .. } => {
                Topic::Book(market)
            }
            Body::BookGap(gap) if gap.is_of_orders() => Topic::orders_of(&gap.market),
            Body::BookGap(gap) => Topic::Book(&gap.market),
            Body::OrdersComplete(complete) => Topic::orders_of(&complete.market),
            Body::Trade(trade) => Topic::Trades(&trade.market),
            Body::Order(order) => Topic::orders_of(order.market()?),
            Body::Message(message) => Topic::Message(&message.topic),
            Body::BlockApplied | Body::Reverted { .. } | Body::Gap { .. } => Topic::Blocks,
        };
        Some(topic.name())
    }

    /// As its line names it.
    pub fn kind(&self) -> &'static str {
        match &self.body {
            Body::Market(_) => "market",
            Body::BookSnapshot { .. } => "book.snapshot",
            Body::BookDelta { .. } => "book.delta",
            Body::BookGap(gap) => gap.kind(),
            Body::OrdersComplete(_) => "orders.complete",
            Body::Trade(_) => "trade",
            Body::Order(order) => order.kind(),
            Body::Message(_) => "message",
            Body::BlockApplied => "block.applied",
            Body::Reverted { .. } => "block.reverted",
            Body::Gap { .. } => "source.gap",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body<'a> {
    Market(MarketDefinition),
    BookSnapshot {
        market: Text<'a>,
        bids: Vec<WrittenLevel<'a>>,
        asks: Vec<WrittenLevel<'a>>,
    },
    BookDelta {
        market: Text<'a>,
        bids: Vec<WrittenLevel<'a>>,
        asks: Vec<WrittenLevel<'a>>,
    },
    /// Events of a market's book are missing.
    BookGap(Box<BookGap>),
    /// Those of a book that is summed from orders are there again.
    OrdersComplete(Box<OrdersComplete>),
    Order(Box<OrderEvent>),
    Trade(WrittenTrade),
    Message(Message),
    /// The blocks from this height on are removed, with their events.
    Reverted {
        height: u64,
    },
    /// Events of a source are lost, of whatever topics.
    Gap {
        source: Box<str>,
    },
    /// A block joined the chain. It goes into the log and changes no state.
    BlockApplied,
}

/// What happens to a single order. Prices and sizes as written; ids are checked by form only.
#[derive(Clone, Debug, PartialEq)]
pub enum OrderEvent {
    Placed(PlacedOrder),
    Filled(FilledOrder),
    Canceled(CanceledOrder),
}

impl OrderEvent {
    /// The order's id.
    pub fn order(&self) -> &str {
        match self {
            Self::Placed(placed) => &placed.order,
            Self::Filled(filled) => &filled.order,
            Self::Canceled(canceled) => &canceled.order,
        }
    }

    /// See [`PlacedOrder::requested`].
    pub fn is_requested(&self) -> bool {
        match self {
            Self::Placed(placed) => placed.requested,
            Self::Filled(_) => false,
            Self::Canceled(canceled) => canceled.requested,
        }
    }

    /// See [`Event::kind`].
    fn kind(&self) -> &'static str {
        match self {
            Self::Placed(_) => "order.placed",
            Self::Filled(_) => "order.filled",
            Self::Canceled(_) => "order.canceled",
        }
    }

    /// The market that the event itself names.
    pub fn market(&self) -> Option<&MarketId> {
        match self {
            Self::Placed(placed) => Some(&placed.market),
            Self::Filled(filled) => filled.market.as_ref(),
            Self::Canceled(canceled) => canceled.market.as_ref(),
        }
    }
}

/// An `order.placed` event.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedOrder {
    pub market: MarketId,
    pub order: Box<str>,
    pub account: Option<Box<str>>,
    pub side: Side,
    pub order_type: OrderType,
    /// Always there for a limit order.
    pub price: Option<Box<str>>,
    pub size: Box<str>,
    pub client_id: Option<Box<str>>,
    pub metadata_cid: Option<Box<str>>,
    pub box_id: Option<Box<str>>,
    /// When the order ends by itself. It is published only: only the chain's events end an order.
    pub expires_at: Option<Micros>,
    /// A client of the hub asks for it. If it is refused, it happened nowhere.
    pub requested: bool,
}

/// An `order.filled` event.
#[derive(Clone, Debug, PartialEq)]
pub struct FilledOrder {
    /// May be left out, as the order's id says it.
    pub market: Option<MarketId>,
    pub order: Box<str>,
    pub trade: Option<Box<str>>,
    pub price: Box<str>,
    pub size: Box<str>,
    pub liquidity: Option<Liquidity>,
    /// The box that holds the rest of the order.
    pub box_id: Option<Box<str>>,
}

/// An `order.canceled` event.
#[derive(Clone, Debug, PartialEq)]
pub struct CanceledOrder {
    /// May be left out, as the order's id says it.
    pub market: Option<MarketId>,
    pub order: Box<str>,
    pub reason: Option<Box<str>>,
    /// See [`PlacedOrder::requested`].
    pub requested: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum OrderType {
    /// Rests in the book at its price.
    Limit,
    /// Never rests.
    Market,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Liquidity {
    Maker,
    Taker,
}

/// A `message` event: what somebody published to a generic topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The event's own id, which makes it count once.
    pub id: Option<Box<str>>,
    /// 1 to [`MOST_TOPIC_CHARACTERS`] characters, none of them a control character.
    pub topic: Arc<str>,
    /// JSON, as written.
    pub data: Box<str>,
}
