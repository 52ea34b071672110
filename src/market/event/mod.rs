//! One event as feeds bring it (CONTRACT section 4), checked as far as its own text allows. What
//! depends on other events (is the market known, how precise is it) is [`super::admission`].

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use super::candles::Candle;
use super::fixed::{self, MOST_DECIMALS};
use super::orders::OrderUpdate;
use super::trade::{Trade, WrittenTrade};

/// Longest line, in bytes without its newline: a book of some 20,000 levels. What is longer is
/// skipped by the feeds without being held in memory.
pub const MOST_LINE_BYTES: usize = 1024 * 1024;
/// Longest `id`, order id, account or other identifier, in bytes: two hashes in hexadecimal.
pub const MOST_ID_BYTES: usize = 128;
/// Longest market id, in bytes: it stands in topics, cache keys and metric labels.
pub const MOST_MARKET_BYTES: usize = 64;
/// Longest topic of a `message` event, in characters.
pub const MOST_TOPIC_CHARACTERS: usize = 128;
/// Longest name of a source that events are missing of, in bytes: a topic of Kafka with its
/// partition has half of it.
pub const MOST_SOURCE_BYTES: usize = 512;
/// Longest `data` of a `message`, in bytes as it is sent: with all around it one such event is a
/// frame below 1 MiB, which is the largest message that Python's `websockets` takes by default.
pub const MOST_DATA_BYTES: usize = 1_000_000;
/// How much longer `data` can be when it is sent than as it was written: `1e15` becomes
/// `1000000000000000.0`.
const MOST_DATA_GROWTH: usize = 4;
/// Longest `reason`, in bytes. A frame may hold 64 of them.
pub const MOST_REASON_BYTES: usize = 1_024;
/// Highest height of a block: the store's numbers are signed.
pub const MOST_HEIGHT: u64 = i64::MAX as u64;
/// Deepest nesting of objects and lists: half of what serde_json reads back, so that whatever
/// stands in the log can be read again inside another document.
pub const MOST_NESTING: usize = 64;
/// How much of a foreign text a reason repeats, in characters.
const MOST_QUOTED: usize = 64;

/// Microseconds since 1970 in UTC.
pub type Micros = i64;

/// RFC 3339 UTC with microseconds, as events and the schema write it.
pub fn time_text(micros: Micros) -> String {
    // Outside of the years -9999 to 9999 there is no RFC 3339; admission lets none in, and a clock
    // out there is no reason to stop a hub.
    let time = Timestamp::from_microsecond(micros).unwrap_or_default();
    format!("{time:.6}")
}

/// A market's identifier, usually `BASE-QUOTE`: a letter or digit, then letters, digits, `.`, `_`
/// or `-`, 64 in all at most. Upper and lower case are different markets.
pub type MarketId = Arc<str>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Side {
    Buy,
    Sell,
}

impl Side {
    /// As events, the schema and the store write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Buy => "BUY",
            Self::Sell => "SELL",
        }
    }

    pub fn opposite(self) -> Self {
        match self {
            Self::Buy => Self::Sell,
            Self::Sell => Self::Buy,
        }
    }
}

/// A `market` event: what a market is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MarketDefinition {
    pub market: MarketId,
    pub base: String,
    pub quote: String,
    pub price_decimals: u8,
    pub size_decimals: u8,
    pub tick_size: String,
    pub lot_size: String,
    /// Of an order; the lot size unless given.
    pub min_size: String,
    pub status: MarketStatus,
    pub time: Option<Micros>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MarketStatus {
    Active,
    Halted,
    Closed,
}

impl MarketStatus {
    /// As events and the schema write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Halted => "HALTED",
            Self::Closed => "CLOSED",
        }
    }
}

/// A string of the line, where it stands there unless it is written with escapes: most events are
/// books, and each text of their levels would cost an allocation.
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
    /// Makes the event idempotent: the same id from any feed counts once.
    pub id: Option<Box<str>>,
    pub time: Option<Micros>,
    /// Of the block it stands in, at most [`MOST_HEIGHT`]: undone with it.
    pub height: Option<u64>,
    pub body: Body<'a>,
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
    Order(Box<OrderEvent>),
    Trade(WrittenTrade),
    Message(Message),
    /// The blocks from this height on are undone, with what stood in them.
    Reverted {
        height: u64,
    },
    /// Events of a source are lost, of whatever topics.
    Gap {
        source: Box<str>,
    },
    /// A known kind that goes into the log and touches no state yet; the topic it belongs to.
    Logged {
        topic: Box<str>,
    },
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
    /// When the order ends by itself; told, as only the chain's events end an order.
    pub expires_at: Option<Micros>,
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

/// The log's name of what happened to the chain itself, or to a source.
pub const BLOCKS: &str = "blocks";

/// The log's name of what defines a market.
pub fn market_topic(market: &str) -> Arc<str> {
    format!("market:{market}").into()
}

/// The log's name of a market's trades.
pub fn trades_topic(market: &str) -> Arc<str> {
    format!("trades:{market}").into()
}

/// What the log's names of generic topics begin with.
pub const MESSAGE: &str = "message:";

/// The log's name of a generic topic.
pub fn message_topic(name: &str) -> Arc<str> {
    format!("{MESSAGE}{name}").into()
}

/// A price level at its market's precision; size 0 removes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelChange {
    pub side: Side,
    pub price: super::fixed::Fixed,
    pub size: super::fixed::Fixed,
    /// Single orders that make up the size; 0 where the source tells levels only.
    pub orders: u32,
}

/// What an admitted event does to the state: checked against the market it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Defines or redefines a market.
    Define(Arc<MarketDefinition>),
    /// Replaces the whole book of a market.
    Replace { market: MarketId, levels: Vec<LevelChange> },
    /// Sets levels of a market's book; absolute sizes.
    Change { market: MarketId, levels: Vec<LevelChange> },
    /// Changes a single order, and with it the levels of its market's book (absolute sizes).
    Order { update: Arc<OrderUpdate>, levels: Vec<LevelChange> },
    /// Somebody traded; in the topic [`trades_topic`].
    Trade(Arc<Trade>),
    /// Somebody published to a generic topic, [`message_topic`].
    Message(Arc<Message>),
    /// Stands in the log only.
    None,
}

impl Effect {
    /// The market whose book it is an event of.
    pub fn book(&self) -> Option<&MarketId> {
        match self {
            Self::Replace { market, .. } | Self::Change { market, .. } => Some(market),
            Self::Order { update, .. } => Some(&update.order.market),
            Self::Define(_) | Self::Trade(_) | Self::Message(_) | Self::None => None,
        }
    }
}

/// An event that stands in the log, with the position the log gave it.
#[derive(Clone, Debug)]
pub struct Applied {
    pub sequence: u64,
    pub time: Option<Micros>,
    pub effect: Effect,
    /// Of a trade: the candle of each interval as it left them, shortest first; none where the
    /// log is read again, as these are kept beside it.
    pub candles: Vec<Candle>,
}

/// Why an event is refused: what is wrong with it and what to do about it. Where it stood is added
/// by the feed that brought it.
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
         can't change under them, define a new market"
    )]
    DecimalsChanged { market: MarketId, price: u8, size: u8 },
    #[error("order \"{0}\" was placed before: give each order an id of its own")]
    DoubledOrder(Box<str>),
    #[error("order \"{0}\" is not open: it was never placed, or is filled or canceled already")]
    UnknownOrder(Box<str>),
    #[error("order \"{order}\": a fill of {size} is beyond its open size {open}")]
    Overfilled { order: Box<str>, size: String, open: String },
    #[error("order \"{order}\" is one of market {has}, not of {sent}")]
    OtherMarket { order: Box<str>, has: MarketId, sent: MarketId },
    #[error(
        "`block.reverted` or `source.gap` came in one batch with other events: a bug of this feed, \
         report it"
    )]
    NotAlone,
    #[error("{0} accounts have orders already: that is the most")]
    TooManyAccounts(usize),
    #[error("{0} orders are open already: that is the most")]
    TooManyOrders(usize),
    #[error("{0} markets are defined already: that is the most")]
    TooManyMarkets(usize),
    #[error("topic {0:?} belongs to Kafka (feeds.kafka.own_topics): send it there")]
    TopicOfKafka(Arc<str>),
    #[error("market {0} belongs to Kafka (feeds.kafka.own_markets): send its events there")]
    MarketOfKafka(MarketId),
}

const KINDS: &str = "market, book.snapshot, book.delta, trade, order.placed, order.filled, \
                     order.canceled, block.applied, block.reverted, source.gap, message";

/// Every field that some kind knows, not yet read: so a fault can be named by its field, and what
/// is not asked for costs no more than its syntax check.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    time: Option<&'a RawValue>,
    #[serde(borrow)]
    height: Option<&'a RawValue>,
    #[serde(borrow)]
    block: Option<&'a RawValue>,
    #[serde(borrow)]
    tx: Option<&'a RawValue>,
    #[serde(borrow)]
    market: Option<&'a RawValue>,
    #[serde(borrow)]
    base: Option<&'a RawValue>,
    #[serde(borrow)]
    quote: Option<&'a RawValue>,
    #[serde(borrow)]
    price_decimals: Option<&'a RawValue>,
    #[serde(borrow)]
    size_decimals: Option<&'a RawValue>,
    #[serde(borrow)]
    tick_size: Option<&'a RawValue>,
    #[serde(borrow)]
    lot_size: Option<&'a RawValue>,
    #[serde(borrow)]
    min_size: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    bids: Option<&'a RawValue>,
    #[serde(borrow)]
    asks: Option<&'a RawValue>,
    #[serde(borrow)]
    price: Option<&'a RawValue>,
    #[serde(borrow)]
    size: Option<&'a RawValue>,
    #[serde(borrow)]
    taker_side: Option<&'a RawValue>,
    #[serde(borrow)]
    order: Option<&'a RawValue>,
    #[serde(borrow)]
    account: Option<&'a RawValue>,
    #[serde(borrow)]
    side: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    order_type: Option<&'a RawValue>,
    #[serde(borrow)]
    client_id: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata_cid: Option<&'a RawValue>,
    #[serde(borrow)]
    box_id: Option<&'a RawValue>,
    #[serde(borrow)]
    expires_at: Option<&'a RawValue>,
    #[serde(borrow)]
    trade: Option<&'a RawValue>,
    #[serde(borrow)]
    liquidity: Option<&'a RawValue>,
    #[serde(borrow)]
    reason: Option<&'a RawValue>,
    #[serde(borrow)]
    source: Option<&'a RawValue>,
    #[serde(borrow)]
    topic: Option<&'a RawValue>,
    /// `null` is data too, hence not read as an absent field.
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
}

fn present<'de: 'a, 'a, D: Deserializer<'de>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

type Raw<'a> = Option<&'a RawValue>;

/// A book's line that has these fields only, all of them of their types: nearly all that a hub
/// reads are, and this reads each byte once. [`Fields`] reads all others, and says what is wrong.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BookLine<'a> {
    #[serde(borrow)]
    kind: Text<'a>,
    #[serde(borrow)]
    market: Text<'a>,
    #[serde(borrow)]
    bids: Vec<WrittenLevel<'a>>,
    #[serde(borrow)]
    asks: Vec<WrittenLevel<'a>>,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    time: Option<Text<'a>>,
    height: Option<u64>,
}

impl<'a> BookLine<'a> {
    /// `None`: not such a line, or one with a fault.
    fn read(text: &'a str) -> Option<Event<'a>> {
        // Another line would be read twice.
        if !begins_as_book(text.as_bytes()) {
            return None;
        }
        let Self { kind, market, bids, asks, id, time, height } =
            serde_json::from_str(text).ok()?;
        let market = checked_market(market).ok()?;
        let body = match &*kind {
            "book.snapshot" => Body::BookSnapshot { market, bids, asks },
            "book.delta" => Body::BookDelta { market, bids, asks },
            _ => return None,
        };
        let id = id.map(|id| checked_identifier(id, "id")).transpose().ok()?.map(Text::into_box);
        let time = time.map(|time| checked_time(&time, "time")).transpose().ok()?;
        let height = height.map(checked_height).transpose().ok()?;
        Some(Event { id, time, height, body })
    }
}

/// Reads one event. Unknown fields are ignored here and kept by the log, which stores the line.
pub fn parse(line: &[u8]) -> Result<Event<'_>, Refusal> {
    if line.len() > MOST_LINE_BYTES {
        return Err(Refusal::TooLong);
    }
    let text = std::str::from_utf8(line)
        .map_err(|error| Refusal::NotUtf8 { column: error.valid_up_to() + 1 })?;
    // Windows editors begin a file with it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match BookLine::read(text) {
        Some(event) => Ok(event),
        None => read_fields(text),
    }
}

fn read_fields(text: &str) -> Result<Event<'_>, Refusal> {
    if !text.trim_start().starts_with('{') && serde_json::from_str::<&RawValue>(text).is_ok() {
        return Err(Refusal::NotAnObject);
    }
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|error| Refusal::Malformed {
        column: error.column(),
        reason: without_place(&error),
    })?;
    if nested_too_deep(text) {
        return Err(Refusal::TooDeep);
    }
    let kind: Text<'_> = required(fields.kind, "kind")?;
    let body = match &*kind {
        "market" => Body::Market(definition(&fields)?),
        "book.snapshot" => {
            let (market, bids, asks) = book(&fields)?;
            Body::BookSnapshot { market, bids, asks }
        }
        "book.delta" => {
            let (market, bids, asks) = book(&fields)?;
            Body::BookDelta { market, bids, asks }
        }
        "trade" => Body::Trade(trade(&fields)?),
        "order.placed" => order_placed(&fields)?,
        "order.filled" => order_filled(&fields)?,
        "order.canceled" => order_canceled(&fields)?,
        "block.applied" => {
            height(&fields)?.ok_or(Refusal::Missing("height"))?;
            identifier(fields.block, "block")?.ok_or(Refusal::Missing("block"))?;
            Body::Logged { topic: BLOCKS.into() }
        }
        "block.reverted" => {
            Body::Reverted { height: height(&fields)?.ok_or(Refusal::Missing("height"))? }
        }
        "source.gap" => Body::Gap { source: source(&fields)? },
        "message" => Body::Message(message(&fields)?),
        other => return Err(Refusal::UnknownKind(other.chars().take(MOST_QUOTED).collect())),
    };
    identifier(fields.block, "block")?;
    identifier(fields.tx, "tx")?;
    let (id, height) = (boxed(fields.id, "id")?, height(&fields)?);
    Ok(Event { id, time: time(fields.time, "time")?, height, body })
}

/// Whether a line begins new epochs: a `block.reverted` or `source.gap` event. A feed asks, as such
/// an event is delivered by itself: what comes before it has to be in the log. Costs a search, not
/// a parse.
pub fn renumbers(line: &[u8]) -> bool {
    // No line has two kinds. One may be written with escapes, which hide it.
    let kinds = ["block.reverted", "source.gap", "\\u00"];
    !begins_as_book(line)
        && std::str::from_utf8(line).is_ok_and(|text| kinds.iter().any(|kind| text.contains(kind)))
        && parse(line)
            .is_ok_and(|event| matches!(event.body, Body::Reverted { .. } | Body::Gap { .. }))
}

/// For people.
fn source(fields: &Fields<'_>) -> Result<Box<str>, Refusal> {
    let source: String = required(fields.source, "source")?;
    if source.is_empty() || source.len() > MOST_SOURCE_BYTES {
        return Err(fault("source", format!("must have 1 to {MOST_SOURCE_BYTES} bytes")));
    }
    Ok(source.into())
}

/// As most lines of books do.
fn begins_as_book(line: &[u8]) -> bool {
    ["{", "\"kind\"", ":", "\"book."]
        .iter()
        .try_fold(line, |rest, word| rest.trim_ascii_start().strip_prefix(word.as_bytes()))
        .is_some()
}

fn height(fields: &Fields<'_>) -> Result<Option<u64>, Refusal> {
    optional(fields.height, "height")?.map(checked_height).transpose()
}

fn checked_height(height: u64) -> Result<u64, Refusal> {
    match height > MOST_HEIGHT {
        true => Err(fault("height", format!("must be at most {MOST_HEIGHT}"))),
        false => Ok(height),
    }
}

fn definition(fields: &Fields<'_>) -> Result<MarketDefinition, Refusal> {
    let decimals = |raw, field| {
        required::<u8>(raw, field).ok().filter(|count| *count <= MOST_DECIMALS).ok_or_else(|| {
            match raw {
                None => Refusal::Missing(field),
                Some(_) => fault(field, format!("must be a whole number up to {MOST_DECIMALS}")),
            }
        })
    };
    let price_decimals = decimals(fields.price_decimals, "priceDecimals")?;
    let size_decimals = decimals(fields.size_decimals, "sizeDecimals")?;
    // A step that isn't given is the smallest the precision allows.
    let step = |raw, field, decimals| match optional::<String>(raw, field)? {
        None => Ok(fixed::format(1, decimals)),
        Some(text) => match fixed::parse(&text, decimals) {
            Ok(0) => Err(fault(field, "must be above 0".into())),
            Ok(_) => Ok(text),
            Err(error) => Err(fault(field, error.to_string())),
        },
    };
    Ok(MarketDefinition {
        market: market_id(fields)?,
        base: identifier(fields.base, "base")?.ok_or(Refusal::Missing("base"))?.0.into_owned(),
        quote: identifier(fields.quote, "quote")?.ok_or(Refusal::Missing("quote"))?.0.into_owned(),
        price_decimals,
        size_decimals,
        tick_size: step(fields.tick_size, "tickSize", price_decimals)?,
        min_size: match fields.min_size {
            Some(_) => step(fields.min_size, "minSize", size_decimals)?,
            None => step(fields.lot_size, "lotSize", size_decimals)?,
        },
        lot_size: step(fields.lot_size, "lotSize", size_decimals)?,
        status: optional(fields.status, "status")?.unwrap_or(MarketStatus::Active),
        time: time(fields.time, "time")?,
    })
}

type WrittenBook<'a> = (Text<'a>, Vec<WrittenLevel<'a>>, Vec<WrittenLevel<'a>>);

fn book<'a>(fields: &Fields<'a>) -> Result<WrittenBook<'a>, Refusal> {
    Ok((market(fields)?, required(fields.bids, "bids")?, required(fields.asks, "asks")?))
}

fn trade(fields: &Fields<'_>) -> Result<WrittenTrade, Refusal> {
    Ok(WrittenTrade {
        market: market_id(fields)?,
        id: boxed(fields.id, "id")?,
        price: decimal(fields.price, "price")?,
        size: decimal(fields.size, "size")?,
        taker_side: optional(fields.taker_side, "takerSide")?,
    })
}

fn order_placed(fields: &Fields<'_>) -> Result<Body<'static>, Refusal> {
    let order_type = optional(fields.order_type, "type")?.unwrap_or(OrderType::Limit);
    // Only an order that rests in the book must have a price.
    let price = match order_type == OrderType::Limit || fields.price.is_some() {
        true => Some(decimal(fields.price, "price")?),
        false => None,
    };
    Ok(order(OrderEvent::Placed(PlacedOrder {
        market: market_id(fields)?,
        order: order_id(fields)?,
        account: boxed(fields.account, "account")?,
        side: required(fields.side, "side")?,
        order_type,
        price,
        size: decimal(fields.size, "size")?,
        client_id: boxed(fields.client_id, "clientId")?,
        metadata_cid: boxed(fields.metadata_cid, "metadataCid")?,
        box_id: boxed(fields.box_id, "boxId")?,
        expires_at: time(fields.expires_at, "expiresAt")?,
    })))
}

fn order_filled(fields: &Fields<'_>) -> Result<Body<'static>, Refusal> {
    Ok(order(OrderEvent::Filled(FilledOrder {
        market: fields.market.map(|_| market_id(fields)).transpose()?,
        order: order_id(fields)?,
        trade: boxed(fields.trade, "trade")?,
        price: decimal(fields.price, "price")?,
        size: decimal(fields.size, "size")?,
        liquidity: optional(fields.liquidity, "liquidity")?,
        box_id: boxed(fields.box_id, "boxId")?,
    })))
}

fn order_canceled(fields: &Fields<'_>) -> Result<Body<'static>, Refusal> {
    Ok(order(OrderEvent::Canceled(CanceledOrder {
        market: fields.market.map(|_| market_id(fields)).transpose()?,
        order: order_id(fields)?,
        reason: reason(fields)?,
    })))
}

fn order(event: OrderEvent) -> Body<'static> {
    Body::Order(Box::new(event))
}

fn order_id(fields: &Fields<'_>) -> Result<Box<str>, Refusal> {
    boxed(fields.order, "order")?.ok_or(Refusal::Missing("order"))
}

fn message(fields: &Fields<'_>) -> Result<Message, Refusal> {
    let topic: String = required(fields.topic, "topic")?;
    check_topic(&topic).map_err(|reason| fault("topic", reason))?;
    let data = fields.data.ok_or(Refusal::Missing("data"))?;
    let sent = sent_bytes(data);
    if sent > MOST_DATA_BYTES {
        let reason = format!(
            "has {sent} bytes as it is sent, at most {MOST_DATA_BYTES} fit: split it into several events"
        );
        return Err(fault("data", reason));
    }
    let id = boxed(fields.id, "id")?;
    Ok(Message { id, topic: topic.into(), data: data.get().into() })
}

/// Of a JSON as clients are sent it, or a number that is surely below [`MOST_DATA_BYTES`]: only a
/// long one is worth reading.
fn sent_bytes(data: &RawValue) -> usize {
    let written = data.get();
    if written.len() <= MOST_DATA_BYTES / MOST_DATA_GROWTH {
        return written.len();
    }
    serde_json::from_str::<serde_json::Value>(written)
        .map_or(written.len(), |value| value.to_string().len())
}

/// Why something happened, for people.
fn reason(fields: &Fields<'_>) -> Result<Option<Box<str>>, Refusal> {
    let reason: Option<Box<str>> = optional(fields.reason, "reason")?;
    match reason {
        Some(reason) if reason.len() > MOST_REASON_BYTES => {
            Err(fault("reason", format!("must have at most {MOST_REASON_BYTES} bytes")))
        }
        reason => Ok(reason),
    }
}

/// Whether a generic topic may have this name; the error is what it must be.
pub fn check_topic(name: &str) -> Result<(), String> {
    if name.is_empty() || name.chars().count() > MOST_TOPIC_CHARACTERS {
        return Err(format!("must have 1 to {MOST_TOPIC_CHARACTERS} characters"));
    }
    if name.chars().any(char::is_control) {
        return Err("must be without control characters".to_owned());
    }
    Ok(())
}

fn market_id(fields: &Fields<'_>) -> Result<MarketId, Refusal> {
    market(fields).map(|id| MarketId::from(&*id))
}

fn market<'a>(fields: &Fields<'a>) -> Result<Text<'a>, Refusal> {
    checked_market(required(fields.market, "market")?)
}

fn checked_market(id: Text<'_>) -> Result<Text<'_>, Refusal> {
    check_market(&id).map_err(|reason| fault("market", reason))?;
    Ok(id)
}

/// Whether a market may have this id; the error is what it must be.
pub fn check_market(id: &str) -> Result<(), String> {
    let begins = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let holds = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !begins || !holds || id.len() > MOST_MARKET_BYTES {
        return Err(format!(
            "must be 1 to {MOST_MARKET_BYTES} of A-Z a-z 0-9 . _ - and begin with a letter or digit"
        ));
    }
    Ok(())
}

fn identifier<'a>(raw: Raw<'a>, field: &'static str) -> Result<Option<Text<'a>>, Refusal> {
    optional(raw, field)?.map(|text| checked_identifier(text, field)).transpose()
}

fn checked_identifier<'a>(text: Text<'a>, field: &'static str) -> Result<Text<'a>, Refusal> {
    if text.is_empty() || text.len() > MOST_ID_BYTES || text.chars().any(char::is_control) {
        let reason = format!("must have 1 to {MOST_ID_BYTES} bytes and no control characters");
        return Err(fault(field, reason));
    }
    Ok(text)
}

fn boxed(raw: Raw<'_>, field: &'static str) -> Result<Option<Box<str>>, Refusal> {
    Ok(identifier(raw, field)?.map(Text::into_box))
}

/// A decimal string, as precise as any market may be.
fn decimal(raw: Raw<'_>, field: &'static str) -> Result<Box<str>, Refusal> {
    let text: Box<str> = required(raw, field)?;
    fixed::parse(&text, MOST_DECIMALS).map_err(|error| fault(field, error.to_string()))?;
    Ok(text)
}

fn time(raw: Raw<'_>, field: &'static str) -> Result<Option<Micros>, Refusal> {
    optional(raw, field)?.map(|text: Text<'_>| checked_time(&text, field)).transpose()
}

fn checked_time(text: &str, field: &'static str) -> Result<Micros, Refusal> {
    let time: Timestamp = text.parse().map_err(|_| {
        fault(field, "must be RFC 3339 such as \"2026-01-31T12:00:00.000001Z\"".into())
    })?;
    Ok(time.as_microsecond())
}

fn required<'a, T: Deserialize<'a>>(raw: Raw<'a>, field: &'static str) -> Result<T, Refusal> {
    optional(raw, field)?.ok_or(Refusal::Missing(field))
}

fn optional<'a, T: Deserialize<'a>>(
    raw: Raw<'a>,
    field: &'static str,
) -> Result<Option<T>, Refusal> {
    raw.map(|raw| serde_json::from_str(raw.get()))
        .transpose()
        .map_err(|error| fault(field, format!("has another type: {}", without_place(&error))))
}

fn fault(field: &'static str, reason: String) -> Refusal {
    Refusal::Field { field, reason }
}

/// serde_json's text without its " at line 1 column 9": the place is told once, and by us.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    reason.chars().take(4 * MOST_QUOTED).collect()
}

/// Of text that is known to be JSON.
fn nested_too_deep(text: &str) -> bool {
    // Counted in a moment, and most lines have no more in all.
    if text.bytes().filter(|byte| matches!(byte, b'{' | b'[')).count() <= MOST_NESTING {
        return false;
    }
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => {
                depth += 1;
                if depth > MOST_NESTING {
                    return true;
                }
            }
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: &str = "2026-01-31T12:00:00.000001Z";

    fn logged(line: &str) -> String {
        match parse(line.as_bytes()).unwrap().body {
            Body::Logged { topic } => topic.into(),
            Body::Trade(trade) => trades_topic(&trade.market).to_string(),
            Body::Message(message) => message_topic(&message.topic).to_string(),
            Body::Reverted { .. } | Body::Gap { .. } => BLOCKS.to_owned(),
            other => panic!("{other:?}"),
        }
    }

    fn refused(line: &str) -> String {
        parse(line.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_market_is_read_with_every_field() {
        let line = format!(
            r#"{{"kind":"market","market":"ERG-USD","base":"ERG","quote":"USD","priceDecimals":4,
            "sizeDecimals":8,"tickSize":"0.0001","lotSize":"0.01","status":"HALTED","time":"{TIME}"}}"#
        );
        let event = parse(line.as_bytes()).unwrap();
        let expected = MarketDefinition {
            market: "ERG-USD".into(),
            base: "ERG".into(),
            quote: "USD".into(),
            price_decimals: 4,
            size_decimals: 8,
            tick_size: "0.0001".into(),
            lot_size: "0.01".into(),
            min_size: "0.01".into(),
            status: MarketStatus::Halted,
            time: Some(1_769_860_800_000_001),
        };
        assert_eq!(event.time, Some(1_769_860_800_000_001));
        assert_eq!(event.body, Body::Market(expected));
    }

    #[test]
    fn a_market_without_steps_gets_the_smallest() {
        let line = r#"{"kind":"market","market":"a-b","base":"a","quote":"b","priceDecimals":2,"sizeDecimals":0}"#;
        let Body::Market(market) = parse(line.as_bytes()).unwrap().body else { panic!() };
        assert_eq!((market.tick_size.as_str(), market.lot_size.as_str()), ("0.01", "1"));
        assert_eq!(market.status, MarketStatus::Active);
    }

    #[test]
    fn books_keep_their_levels_as_written() {
        let line = r#"{"kind":"book.delta","market":"XBT-USD","id":"7","bids":[["45283.50","0"]],"asks":[],"extra":{"x":[1]}}"#;
        let event = parse(line.as_bytes()).unwrap();
        assert_eq!(event.id.as_deref(), Some("7"));
        let bids = vec![("45283.50".into(), "0".into())];
        assert_eq!(event.body, Body::BookDelta { market: "XBT-USD".into(), bids, asks: vec![] });
    }

    #[test]
    fn what_touches_no_book_goes_to_its_topic() {
        let all = [
            (
                r#"{"kind":"trade","market":"KSM-XBT","id":"1","price":"1.5","size":"2","takerSide":"BUY"}"#,
                "trades:KSM-XBT",
            ),
            (r#"{"kind":"block.applied","height":1200345,"block":"ab"}"#, "blocks"),
            (r#"{"kind":"block.reverted","height":1200345}"#, "blocks"),
            (r#"{"kind":"source.gap","source":"events/0"}"#, "blocks"),
            (r#"{"kind":"message","topic":"news","data":null}"#, "message:news"),
        ];
        for (line, topic) in all {
            assert_eq!(logged(line), topic);
        }
    }

    #[test]
    fn an_orders_events_are_read_with_all_they_say() {
        let order = |line: &str| match parse(line.as_bytes()).unwrap().body {
            Body::Order(event) => *event,
            other => panic!("{other:?}"),
        };
        let line = r#"{"kind":"order.placed","market":"GRT-ETH","order":"o","account":"9g","side":"SELL","type":"LIMIT","price":"1","size":"2","clientId":"c","metadataCid":"bafy","boxId":"b","expiresAt":"1970-01-01T00:00:01Z"}"#;
        let placed = PlacedOrder {
            market: "GRT-ETH".into(),
            order: "o".into(),
            account: Some("9g".into()),
            side: Side::Sell,
            order_type: OrderType::Limit,
            price: Some("1".into()),
            size: "2".into(),
            client_id: Some("c".into()),
            metadata_cid: Some("bafy".into()),
            box_id: Some("b".into()),
            expires_at: Some(1_000_000),
        };
        assert_eq!(order(line), OrderEvent::Placed(placed));
        let line = r#"{"kind":"order.filled","order":"o","trade":"t","price":"1","size":"2","liquidity":"MAKER"}"#;
        let filled = FilledOrder {
            market: None,
            order: "o".into(),
            trade: Some("t".into()),
            price: "1".into(),
            size: "2".into(),
            liquidity: Some(Liquidity::Maker),
            box_id: None,
        };
        assert_eq!(order(line), OrderEvent::Filled(filled));
        let line = r#"{"kind":"order.canceled","market":"GRT-ETH","order":"o","reason":"user"}"#;
        let canceled = CanceledOrder {
            market: Some("GRT-ETH".into()),
            order: "o".into(),
            reason: Some("user".into()),
        };
        assert_eq!(order(line), OrderEvent::Canceled(canceled));
    }

    #[test]
    fn each_fault_is_named() {
        let all = [
            (
                r#"{"kind":"nonsense"}"#,
                "unknown kind \"nonsense\": use one of market, book.snapshot, book.delta, trade, order.placed, order.filled, order.canceled, block.applied, block.reverted, source.gap, message",
            ),
            (r#"{"market":"A-B"}"#, "field `kind` is missing"),
            (
                r#"{"kind":5}"#,
                "field `kind` has another type: invalid type: integer `5`, expected a string",
            ),
            (r#"[1]"#, "not a JSON object: one line holds one event, {\"kind\":…}"),
            (r#"{"kind":"trade",}"#, "malformed JSON at column 17: trailing comma"),
            (r#"{"kind":"tra"#, "malformed JSON at column 12: EOF while parsing a string"),
            (r#"{"kind":"trade"} {}"#, "malformed JSON at column 18: trailing characters"),
            (r#"{"kind":"trade","market":"A-B","size":"1"}"#, "field `price` is missing"),
            (
                r#"{"kind":"trade","market":"A-B","price":1.5,"size":"1"}"#,
                "field `price` has another type: invalid type: floating point `1.5`, expected a string",
            ),
            (
                r#"{"kind":"trade","market":"A-B","price":"1e5","size":"1"}"#,
                "field `price` is not a plain decimal number such as \"12.5\"",
            ),
            (
                r#"{"kind":"trade","market":"../x","price":"1","size":"1"}"#,
                "field `market` must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit",
            ),
            (r#"{"kind":"book.snapshot","market":"A-B","bids":[]}"#, "field `asks` is missing"),
            (
                r#"{"kind":"book.delta","market":"A-B","bids":[["1",2]],"asks":[]}"#,
                "field `bids` has another type: invalid type: integer `2`, expected a string",
            ),
            (
                r#"{"kind":"block.applied","height":-1,"block":"b"}"#,
                "field `height` has another type: invalid value: integer `-1`, expected u64",
            ),
            (
                r#"{"kind":"message","topic":"a\u0000b","data":1}"#,
                "field `topic` must be without control characters",
            ),
            (r#"{"kind":"message","topic":"a"}"#, "field `data` is missing"),
            (
                r#"{"kind":"block.reverted","height":1,"time":"yesterday"}"#,
                "field `time` must be RFC 3339 such as \"2026-01-31T12:00:00.000001Z\"",
            ),
            (
                r#"{"kind":"market","market":"A-B","base":"A","quote":"B","priceDecimals":19,"sizeDecimals":1}"#,
                "field `priceDecimals` must be a whole number up to 18",
            ),
            (
                r#"{"kind":"market","market":"A-B","base":"A","quote":"B","priceDecimals":1,"sizeDecimals":1,"tickSize":"0"}"#,
                "field `tickSize` must be above 0",
            ),
        ];
        for (line, reason) in all {
            assert_eq!(refused(line), reason, "{line}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_with_their_column() {
        assert_eq!(parse(b"{\"kind\":\"\xff\"}"), Err(Refusal::NotUtf8 { column: 10 }));
    }

    #[test]
    fn a_line_that_undoes_blocks_is_known_however_it_is_written() {
        assert!(renumbers(br#"{"kind":"block.reverted","height":1}"#));
        assert!(renumbers(br#" {"height":1, "kind" : "block\u002ereverted"}"#));
        assert!(!renumbers(br#"{"kind":"block.reverted","height":-1}"#));
        assert!(!renumbers(br#"{"kind":"message","topic":"t","data":"block.reverted"}"#));
        assert!(!renumbers(b"block.reverted \xff"));
        assert!(renumbers(br#"{"kind":"source.gap","source":"events/0","reason":"retention"}"#));
        assert!(!renumbers(br#"{"kind":"source.gap"}"#));
        assert!(!renumbers(br#"{"kind":"book.delta","kind":"block.reverted","height":1}"#));
        assert!(renumbers(br#"{"id":"book.delta","kind":"block.reverted","height":1}"#));
    }

    #[test]
    fn a_byte_order_mark_is_no_fault() {
        assert_eq!(logged("\u{feff}{\"kind\":\"block.reverted\",\"height\":1}"), "blocks");
    }

    #[test]
    fn every_limit_holds_to_the_byte() {
        let padded = |bytes: usize| {
            let mut line = br#"{"kind":"block.reverted","height":1}"#.to_vec();
            line.resize(bytes, b' ');
            parse(&line).map(drop)
        };
        assert!(padded(MOST_LINE_BYTES).is_ok());
        assert_eq!(padded(MOST_LINE_BYTES + 1), Err(Refusal::TooLong));
        let reason = |bytes: usize| {
            let reason = "r".repeat(bytes);
            let line = format!(r#"{{"kind":"order.canceled","order":"1","reason":"{reason}"}}"#);
            parse(line.as_bytes()).map(drop)
        };
        assert!(reason(MOST_REASON_BYTES).is_ok());
        assert!(reason(MOST_REASON_BYTES + 1).is_err());
        let data = |data: &str| {
            let line = format!(r#"{{"kind":"message","topic":"t","data":{data}}}"#);
            parse(line.as_bytes()).map(drop)
        };
        let text = |bytes: usize| format!("\"{}\"", "d".repeat(bytes - 2));
        assert!(data(&text(MOST_DATA_BYTES)).is_ok());
        let refused = data(&text(MOST_DATA_BYTES + 1)).unwrap_err().to_string();
        assert!(refused.contains("has 1000001 bytes as it is sent"), "{refused}");
        // What grows when it is sent: 18 bytes of 4, with a comma each.
        let numbers = |count: usize| data(&format!("[{}]", vec!["1e15"; count].join(",")));
        assert!(numbers((MOST_DATA_BYTES - 1) / 19).is_ok());
        assert!(numbers(MOST_DATA_BYTES / 19 + 1).is_err());
        let id = |bytes: usize| {
            let id = "i".repeat(bytes);
            parse(format!(r#"{{"kind":"block.reverted","height":1,"id":"{id}"}}"#).as_bytes())
                .map(drop)
        };
        assert!(id(MOST_ID_BYTES).is_ok());
        assert!(id(MOST_ID_BYTES + 1).is_err());
        let height = |height: u64| {
            parse(format!(r#"{{"kind":"block.reverted","height":{height}}}"#).as_bytes()).map(drop)
        };
        assert!(height(MOST_HEIGHT).is_ok());
        assert!(height(MOST_HEIGHT + 1).is_err());
        let topic = |characters: usize| {
            let topic = "é".repeat(characters);
            parse(format!(r#"{{"kind":"message","topic":"{topic}","data":1}}"#).as_bytes())
                .map(drop)
        };
        assert!(topic(MOST_TOPIC_CHARACTERS).is_ok());
        assert!(topic(MOST_TOPIC_CHARACTERS + 1).is_err());
        let source = |bytes: usize| {
            let source = "s".repeat(bytes);
            parse(format!(r#"{{"kind":"source.gap","source":"{source}"}}"#).as_bytes()).is_ok()
        };
        assert!(source(MOST_SOURCE_BYTES));
        assert!(!source(MOST_SOURCE_BYTES + 1) && !source(0));
        let nested = |depth: usize| {
            let (open, close) = ("[".repeat(depth), "]".repeat(depth));
            parse(
                format!(r#"{{"kind":"message","topic":"a","data":{open}{close},"x":"[[\"["}}"#)
                    .as_bytes(),
            )
            .map(drop)
        };
        assert!(nested(MOST_NESTING - 1).is_ok());
        assert_eq!(nested(MOST_NESTING), Err(Refusal::TooDeep));
        assert_eq!(nested(100_000), Err(Refusal::TooDeep));
    }

    /// A value that may stand in a book's line, or not.
    fn value() -> impl Strategy<Value = String> {
        let text = prop_oneof![
            Just("A-B".to_owned()),
            Just("1.50".to_owned()),
            Just(TIME.to_owned()),
            Just("\\u0041-\\n".to_owned()),
            Just(String::new()),
            Just("i".repeat(MOST_ID_BYTES + 1)),
        ];
        let text = text.prop_map(|text| format!("\"{text}\""));
        let number = prop_oneof![
            Just("null".to_owned()),
            Just("7".to_owned()),
            Just("-1".to_owned()),
            Just(u64::MAX.to_string()),
        ];
        let one = prop_oneof![text, number];
        let level = prop::collection::vec(one.clone(), 1..4);
        let levels =
            prop::collection::vec(level.prop_map(|all| format!("[{}]", all.join(","))), 0..3);
        prop_oneof![one, levels.prop_map(|all| format!("[{}]", all.join(" , ")))]
    }

    proptest! {
        #[test]
        fn a_books_line_reads_the_same_by_both_ways(
            kind in prop_oneof![Just("book.delta"), Just("book.snapshot"), Just("book.x")],
            right in prop::collection::vec(prop::bool::weighted(0.9), 5),
            wrong in prop::collection::vec(
                (0..9usize, value()),
                0..3,
            ),
        ) {
            let mut fields = vec![format!(r#""kind":"{kind}""#)];
            let whole = [
                r#""market": "A-B""#.to_owned(),
                r#""bids":[["1.5","2"],["1","0"]]"#.to_owned(),
                r#""asks":[]"#.to_owned(),
                format!(r#""time":"{TIME}""#),
                r#""id":"7" ,"height": 9"#.to_owned(),
            ];
            fields.extend(whole.into_iter().zip(right).filter(|(_, there)| *there).map(|(field, _)| field));
            const NAMES: [&str; 9] =
                ["market", "bids", "asks", "time", "id", "height", "block", "tx", "unknown"];
            fields.extend(wrong.into_iter().map(|(name, value)| format!("\"{}\":{value}", NAMES[name])));
            let line = format!(" {{ {} }} ", fields.join(", "));
            prop_assert_eq!(parse(line.as_bytes()), read_fields(&line));
        }

        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }
    }
}
