//! Why an event is refused. A refusal changes nothing, so the feed can go on with the next event.

use std::sync::Arc;

use thiserror::Error;

use super::definition::MarketId;
use super::event::{KINDS, MOST_LINE_BYTES, MOST_NESTING};
use super::trade::MOST_AHEAD;

/// Why an event is refused: what is wrong with it and what to do about it. `ingest` adds the place
/// that the feed states, and counts it (`Ack::refuse`, then `FeedStatuses`).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("the line is longer than {MOST_LINE_BYTES} bytes: split it into several events")]
    TooLong,
    #[error("byte {column} is not UTF-8: write events in UTF-8")]
    NotUtf8 { column: usize },
    #[error("malformed JSON at column {column}: {reason}")]
    Malformed { column: usize, reason: String },
    #[error("not a JSON object: one line holds one event, {{\"kind\":…}}")]
    NotAnObject,
    #[error("nested deeper than {MOST_NESTING}: flatten its data")]
    TooDeep,
    #[error("unknown kind \"{0}\": use one of {KINDS}")]
    UnknownKind(String),
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    #[error("field `{field}` {reason}")]
    Field { field: &'static str, reason: String },
    #[error("market {0} is not defined: send its `market` event first")]
    UnknownMarket(MarketId),
    #[error("market {market}: {what} \"{written}\" {reason}")]
    Level { market: MarketId, what: &'static str, written: String, reason: String },
    #[error(
        "market {market}: price \"{price}\" is given twice among the {side}: give each price once"
    )]
    DoubledPrice { market: MarketId, side: &'static str, price: String },
    #[error(
        "market {market} takes its book from {has} events: one market can't mix them with {sent} \
         events"
    )]
    MixedBook { market: MarketId, has: &'static str, sent: &'static str },
    #[error(
        "market {market} has a book or trades at {price} price and {size} size decimals: they \
         can't change now, define a new market"
    )]
    DecimalsChanged { market: MarketId, price: u8, size: u8 },
    #[error(
        "the trade's time is {seconds} s ahead of the hub's clock, and at most {} s are allowed: \
         check the clock of its source",
        MOST_AHEAD.as_secs()
    )]
    TooFarAhead { seconds: i64 },
    #[error("another event of this topic and kind has the id \"{0}\": give each an id of its own")]
    IdTaken(Box<str>),
    #[error("order \"{0}\" was placed before: give each order an id of its own")]
    DoubledOrder(Box<str>),
    #[error("order \"{0}\" is not open: it was never placed, or is filled or canceled already")]
    UnknownOrder(Box<str>),
    #[error("order \"{order}\": a fill of {size} is beyond its open size {open}")]
    Overfilled { order: Box<str>, size: String, open: String },
    #[error("order \"{order}\" belongs to market {has}, not to {sent}")]
    OtherMarket { order: Box<str>, has: MarketId, sent: MarketId },
    #[error("events are lost: {0}")]
    EventsLost(Box<str>),
    #[error(
        "`block.reverted` or `source.gap` came in one batch with other events: a bug of this feed, \
         report it"
    )]
    NotAlone,
    #[error("{0} accounts have orders: no more are allowed")]
    TooManyAccounts(usize),
    #[error("{0} orders are open: no more are allowed")]
    TooManyOrders(usize),
    #[error("{0} markets are defined: no more are allowed")]
    TooManyMarkets(usize),
    #[error("topic {0:?} belongs to Kafka (feeds.kafka.own_topics): send it there")]
    TopicOfKafka(Arc<str>),
    #[error("market {0} belongs to Kafka (feeds.kafka.own_markets): send its events there")]
    MarketOfKafka(MarketId),
}

impl Refusal {
    /// Of events that a source says to be lost.
    pub fn events_lost_of(source: &str) -> Self {
        Self::EventsLost(format!("those of {source}").into())
    }
}
