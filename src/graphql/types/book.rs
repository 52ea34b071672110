//! The schema's frames of books: thin views of the live state's frames.

use std::borrow::Cow;

use async_graphql::registry::Registry;
use async_graphql::{
    ContextSelectionSet, ID, Interface, Name, Object, OutputType, Positioned, ServerResult,
    SimpleObject, Value,
};
use async_graphql_parser::types::{Field, Selection, SelectionSet};

use super::feed::FeedState;
use super::head::{BookSpeed, SnapshotReason};
use super::market::Market;
use super::scalars::{Cursor, DateTime, Decimal, UInt32, UInt64};
use crate::live;
use crate::market::definition::MarketDefinition;
use crate::market::fixed;
use crate::market::levels::Level;
use crate::pool::give_way;

/// One price level of a book.
#[derive(Clone, SimpleObject)]
#[graphql(serial)]
pub struct PriceLevel {
    /// In the quote, at the market's precision.
    price: Decimal,
    /// In the base, at the market's precision; in a delta 0 means that the level left the window.
    size: Decimal,
    /// Number of orders at this price; null where the source gives levels only, and on a level that
    /// left the window.
    orders: Option<i32>,
}

impl PriceLevel {
    pub fn new(definition: &MarketDefinition, level: Level) -> Self {
        Levels::new(definition, std::iter::empty()).object(&level)
    }
}

/// Levels that are resolved without a pause: some 50 us.
const LEVELS_AT_ONCE: usize = 64;

/// Levels of one side, as `[PriceLevel!]!`.
///
/// A deep book has ten thousand of them, and the library spends microseconds on each object of a
/// list. Where the selection is nothing but fields, as it nearly always is, the values are put
/// together here; anything else goes the library's way.
pub struct Levels {
    levels: Vec<Level>,
    price_decimals: u8,
    size_decimals: u8,
}

impl Levels {
    fn new(definition: &MarketDefinition, levels: impl Iterator<Item = Level>) -> Self {
        Self {
            levels: levels.collect(),
            price_decimals: definition.price_decimals,
            size_decimals: definition.size_decimals,
        }
    }

    fn object(&self, level: &Level) -> PriceLevel {
        PriceLevel {
            price: Decimal::new(level.price, self.price_decimals),
            size: Decimal::new(level.size, self.size_decimals),
            orders: orders(level),
        }
    }

    fn value(&self, wanted: &[(Name, Wanted)], level: &Level) -> Value {
        let part = |(key, wanted): &(Name, Wanted)| {
            let value = match wanted {
                Wanted::Price => Value::String(fixed::format(level.price, self.price_decimals)),
                Wanted::Size => Value::String(fixed::format(level.size, self.size_decimals)),
                Wanted::Orders => orders(level).map_or(Value::Null, Value::from),
            };
            (key.clone(), value)
        };
        Value::Object(wanted.iter().map(part).collect())
    }
}

/// Null where no single orders are known: a level of the book has at least one.
fn orders(level: &Level) -> Option<i32> {
    (level.orders > 0).then(|| i32::try_from(level.orders).unwrap_or(i32::MAX))
}

#[derive(Clone, Copy)]
enum Wanted {
    Price,
    Size,
    Orders,
}

/// Response keys with what they stand for; `None` where the selection is more than fields.
fn wanted(set: &SelectionSet) -> Option<Vec<(Name, Wanted)>> {
    let field = |selection: &Positioned<Selection>| {
        let Selection::Field(field) = &selection.node else { return None };
        let wanted = match field.node.name.node.as_str() {
            "price" => Wanted::Price,
            "size" => Wanted::Size,
            "orders" => Wanted::Orders,
            _ => return None,
        };
        Some((field.node.response_key().node.clone(), wanted))
    };
    set.items.iter().map(field).collect()
}

impl OutputType for Levels {
    fn type_name() -> Cow<'static, str> {
        <Vec<PriceLevel> as OutputType>::type_name()
    }

    fn qualified_type_name() -> String {
        <Vec<PriceLevel> as OutputType>::qualified_type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        <Vec<PriceLevel> as OutputType>::create_type_info(registry)
    }

    async fn resolve(
        &self,
        ctx: &ContextSelectionSet<'_>,
        field: &Positioned<Field>,
    ) -> ServerResult<Value> {
        match wanted(&field.node.selection_set.node) {
            Some(wanted) => {
                let mut values = Vec::with_capacity(self.levels.len());
                for levels in self.levels.chunks(LEVELS_AT_ONCE) {
                    values.extend(levels.iter().map(|one| self.value(&wanted, one)));
                    give_way();
                }
                Ok(Value::List(values))
            }
            None => {
                let objects: Vec<_> = self.levels.iter().map(|one| self.object(one)).collect();
                objects.resolve(ctx, field).await
            }
        }
    }
}

/// One frame of an order book. A delta follows the previous frame if and only if its epoch is the
/// same and its `prevSequence` is the previous `sequence`. A snapshot is a new start.
#[derive(Interface)]
#[expect(clippy::duplicated_attributes, reason = "fields of one type are no duplicates")]
#[graphql(
    field(name = "market", ty = "ID", desc = "The market's id, `BASE-QUOTE`."),
    field(
        name = "epoch",
        ty = "ID",
        desc = "The epoch of `sequence`. Sequences of different epochs can't be compared."
    ),
    field(name = "sequence", ty = "UInt64", desc = "Sequence of the last event in this frame."),
    field(
        name = "cursor",
        ty = "Cursor",
        desc = "Pass this as `after` to resume with the next frame."
    ),
    field(
        name = "checksum",
        ty = "UInt32",
        desc = "CRC32 of the book's best ten levels at this sequence. It does not depend on `depth`."
    ),
    field(
        name = "event_time",
        ty = "Option<DateTime>",
        desc = "Time of the last event in this frame, as its source gave it."
    ),
    field(name = "publish_time", ty = "DateTime", desc = "The hub's clock."),
    field(
        name = "slowed_to",
        ty = "Option<BookSpeed>",
        desc = "The pace that an overloaded hub slowed this stream to; null where it is as the \
                client asked."
    ),
    field(name = "state", ty = "FeedState", desc = "Whether the book is up to date."),
    field(
        name = "state_reason",
        ty = "Option<&str>",
        desc = "Why this book is STALE while others may be LIVE: it missed an event, or had none \
                yet."
    ),
    field(
        name = "definition",
        ty = "Market",
        desc = "The market as it is now. A frame comes at once when it changes, such as when \
                trading halts."
    ),
    field(
        name = "crossed",
        ty = "bool",
        desc = "Whether the best bid is at the best ask or above."
    )
)]
pub enum BookFrame {
    Snapshot(BookSnapshot),
    Delta(BookDelta),
    Heartbeat(BookHeartbeat),
}

/// The best levels of a book.
pub struct BookSnapshot(pub live::BookSnapshot);

/// The best levels of a book.
#[Object(serial)]
impl BookSnapshot {
    /// The market's id, `BASE-QUOTE`.
    async fn market(&self) -> ID {
        ID(self.0.head.definition.market.to_string())
    }

    /// The epoch of `sequence`. Sequences of different epochs can't be compared.
    async fn epoch(&self) -> ID {
        ID(self.0.head.epoch.to_string())
    }

    /// Sequence of the last event in this frame.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.0.head.sequence)
    }

    /// Pass this as `after` to resume with the next frame.
    async fn cursor(&self) -> Cursor {
        Cursor(self.0.head.cursor())
    }

    /// CRC32 of the book's best ten levels at this sequence. It does not depend on `depth`.
    async fn checksum(&self) -> UInt32 {
        UInt32(self.0.head.checksum)
    }

    /// Time of the last event in this frame, as its source gave it.
    async fn event_time(&self) -> Option<DateTime> {
        self.0.head.event_time.map(DateTime)
    }

    /// The pace that an overloaded hub slowed this stream to; null where it is as the client asked.
    async fn slowed_to(&self) -> Option<BookSpeed> {
        self.0.head.slowed_to.map(BookSpeed::from)
    }

    /// Whether the book is up to date.
    async fn state(&self) -> FeedState {
        self.0.head.state.into()
    }

    /// Why this book is STALE while others may be LIVE: it missed an event, or had none yet.
    async fn state_reason(&self) -> Option<&str> {
        self.0.head.state_reason.as_deref()
    }

    /// The market as it is now. A frame comes at once when it changes, such as when trading halts.
    async fn definition(&self) -> Market {
        Market(self.0.head.definition.clone())
    }

    /// Whether the best bid is at the best ask or above.
    async fn crossed(&self) -> bool {
        self.0.head.is_crossed
    }

    /// The hub's clock.
    async fn publish_time(&self) -> DateTime {
        DateTime(self.0.head.publish_time)
    }

    /// Why it was sent.
    async fn reason(&self) -> SnapshotReason {
        self.0.reason.into()
    }

    /// The depth of the window: the largest number of levels on each side.
    async fn depth(&self) -> i32 {
        i32::try_from(self.0.head.depth).unwrap_or(i32::MAX)
    }

    /// Bids, the highest price first.
    async fn bids(&self) -> Levels {
        Levels::new(&self.0.head.definition, self.0.bids.iter())
    }

    /// Offers, the lowest price first.
    async fn asks(&self) -> Levels {
        Levels::new(&self.0.head.definition, self.0.asks.iter())
    }
}

/// Changes of the best levels of a book.
pub struct BookDelta(pub live::BookDelta);

/// Changes of the best levels of a book.
#[Object(serial)]
impl BookDelta {
    /// The market's id, `BASE-QUOTE`.
    async fn market(&self) -> ID {
        ID(self.0.head.definition.market.to_string())
    }

    /// The epoch of `sequence`. Sequences of different epochs can't be compared.
    async fn epoch(&self) -> ID {
        ID(self.0.head.epoch.to_string())
    }

    /// Sequence of the last event in this frame.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.0.head.sequence)
    }

    /// Pass this as `after` to resume with the next frame.
    async fn cursor(&self) -> Cursor {
        Cursor(self.0.head.cursor())
    }

    /// CRC32 of the book's best ten levels at this sequence. It does not depend on `depth`.
    async fn checksum(&self) -> UInt32 {
        UInt32(self.0.head.checksum)
    }

    /// Time of the last event in this frame, as its source gave it.
    async fn event_time(&self) -> Option<DateTime> {
        self.0.head.event_time.map(DateTime)
    }

    /// The pace that an overloaded hub slowed this stream to; null where it is as the client asked.
    async fn slowed_to(&self) -> Option<BookSpeed> {
        self.0.head.slowed_to.map(BookSpeed::from)
    }

    /// Whether the book is up to date.
    async fn state(&self) -> FeedState {
        self.0.head.state.into()
    }

    /// Why this book is STALE while others may be LIVE: it missed an event, or had none yet.
    async fn state_reason(&self) -> Option<&str> {
        self.0.head.state_reason.as_deref()
    }

    /// The market as it is now. A frame comes at once when it changes, such as when trading halts.
    async fn definition(&self) -> Market {
        Market(self.0.head.definition.clone())
    }

    /// Whether the best bid is at the best ask or above.
    async fn crossed(&self) -> bool {
        self.0.head.is_crossed
    }

    /// The hub's clock.
    async fn publish_time(&self) -> DateTime {
        DateTime(self.0.head.publish_time)
    }

    /// Sequence of the previous frame.
    async fn prev_sequence(&self) -> UInt64 {
        UInt64(self.0.previous)
    }

    /// Events of the market since `prevSequence`, including those outside the window.
    async fn merged_events(&self) -> i32 {
        i32::try_from(self.0.merged_events).unwrap_or(i32::MAX)
    }

    /// Changed levels with their new sizes. A size of 0 means that the level left the window.
    async fn bids(&self) -> Levels {
        Levels::new(&self.0.head.definition, self.0.bids.iter().copied())
    }

    /// Changed levels with their new sizes. A size of 0 means that the level left the window.
    async fn asks(&self) -> Levels {
        Levels::new(&self.0.head.definition, self.0.asks.iter().copied())
    }
}

/// Sent at least every 5 seconds while nothing changes.
pub struct BookHeartbeat(pub live::BookHeartbeat);

/// Sent at least every 5 seconds while nothing changes.
#[Object(serial)]
impl BookHeartbeat {
    /// The market's id, `BASE-QUOTE`.
    async fn market(&self) -> ID {
        ID(self.0.head.definition.market.to_string())
    }

    /// The epoch of `sequence`. Sequences of different epochs can't be compared.
    async fn epoch(&self) -> ID {
        ID(self.0.head.epoch.to_string())
    }

    /// The same as in the previous frame.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.0.head.sequence)
    }

    /// Pass this as `after` to resume with the next frame.
    async fn cursor(&self) -> Cursor {
        Cursor(self.0.head.cursor())
    }

    /// CRC32 of the book's best ten levels at this sequence. It does not depend on `depth`.
    async fn checksum(&self) -> UInt32 {
        UInt32(self.0.head.checksum)
    }

    /// Time of the last event, as its source gave it.
    async fn event_time(&self) -> Option<DateTime> {
        self.0.head.event_time.map(DateTime)
    }

    /// The pace that an overloaded hub slowed this stream to; null where it is as the client asked.
    async fn slowed_to(&self) -> Option<BookSpeed> {
        self.0.head.slowed_to.map(BookSpeed::from)
    }

    /// Whether the book is up to date.
    async fn state(&self) -> FeedState {
        self.0.head.state.into()
    }

    /// Why this book is STALE while others may be LIVE: it missed an event, or had none yet.
    async fn state_reason(&self) -> Option<&str> {
        self.0.head.state_reason.as_deref()
    }

    /// The market as it is now. A frame comes at once when it changes, such as when trading halts.
    async fn definition(&self) -> Market {
        Market(self.0.head.definition.clone())
    }

    /// Whether the best bid is at the best ask or above.
    async fn crossed(&self) -> bool {
        self.0.head.is_crossed
    }

    /// The hub's clock.
    async fn publish_time(&self) -> DateTime {
        DateTime(self.0.head.publish_time)
    }

    /// Milliseconds from `eventTime` to `publishTime`; 0 where `eventTime` is null.
    async fn last_event_age_ms(&self) -> i32 {
        live::age_ms(self.0.head.event_time, self.0.head.publish_time)
    }
}
