//! The frames of the live state before they are encoded. Plain data: no GraphQL, no stream.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spreadly_subscriptions::{Cursor, CursorError, Epoch, Position, topic_hash};

use crate::market::book::Changes;
use crate::market::book_gap::BookGap;
use crate::market::candles::{Candle, Interval};
use crate::market::definition::MarketDefinition;
use crate::market::epochs::EpochHistory;
use crate::market::event::Message;
use crate::market::ladder::TopLevels;
use crate::market::levels::Level;
use crate::market::orders::OrderUpdate;
use crate::market::ticker::{Day, LastTrade};
use crate::market::time::Micros;
use crate::market::topic::Topic;
use crate::market::trade::Trade;

/// The log's name of a topic.
pub type TopicName = Arc<str>;

/// How often an `orderBook` stream pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Speed {
    /// Each event that changes the window.
    Raw,
    Ms100,
    Ms250,
    S1,
}

/// Why a snapshot was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SnapshotReason {
    Initial,
    Lagged,
    EpochChange,
    Reorg,
    ResumeTooOld,
}

impl SnapshotReason {
    /// For a reader that was too slow and saw everything up to `seen`.
    pub(super) fn of_lag(seen: u64, epochs: &EpochHistory) -> Self {
        if seen < epochs.since() { Self::of_epoch(epochs) } else { Self::Lagged }
    }

    /// For a reader of an earlier epoch.
    pub(super) fn of_epoch(epochs: &EpochHistory) -> Self {
        if epochs.removed_events() { Self::Reorg } else { Self::EpochChange }
    }
}

/// Whether data is up to date. A later one is worse.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FeedState {
    #[default]
    Live,
    /// The source is cut off or late.
    Stale,
    /// The hub can't recover without an operator.
    Halted,
    ShuttingDown,
}

/// What every frame of a book says.
#[derive(Clone, Debug)]
pub struct BookHead {
    pub definition: Arc<MarketDefinition>,
    pub epoch: Epoch,
    pub sequence: u64,
    /// Levels a side that the stream shows; the shape of its cursors.
    pub depth: usize,
    /// Of the whole book's best ten levels, whatever the depth.
    pub checksum: u32,
    /// Of the last event merged, at its source.
    pub event_time: Option<Micros>,
    /// The hub's clock.
    pub publish_time: Micros,
    /// The pace of the stream while it can't keep the one that its clients asked for.
    pub slowed_to: Option<Speed>,
    pub state: FeedState,
    /// Why this book is not up to date, where other markets may be.
    pub state_reason: Option<Arc<str>>,
    /// The best bid is at the best ask or above.
    pub is_crossed: bool,
}

impl BookHead {
    pub fn cursor(&self) -> String {
        let position = Position { epoch: self.epoch, sequence: self.sequence };
        Cursor::single(shape(self.depth), book_topic(&self.definition.market), position).encode()
    }
}

/// Whether two definitions say the same. Nearly always they are the very same one.
pub(super) fn is_same(one: &Arc<MarketDefinition>, other: &Arc<MarketDefinition>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

/// A depth as a cursor has it.
pub(super) fn shape(depth: usize) -> u32 {
    u32::try_from(depth).unwrap_or(u32::MAX)
}

/// The cursor's name of a market's book.
pub(super) fn book_topic(market: &str) -> u64 {
    Topic::Book(market).cursor_hash()
}

#[derive(Clone, Debug)]
pub struct BookSnapshot {
    pub head: BookHead,
    pub reason: SnapshotReason,
    pub bids: TopLevels,
    pub asks: TopLevels,
}

#[derive(Clone, Debug)]
pub struct BookDelta {
    pub head: BookHead,
    /// The sequence this one follows.
    pub previous: u64,
    pub merged_events: u32,
    /// Size 0: the level left the window.
    pub bids: Vec<Level>,
    pub asks: Vec<Level>,
}

impl BookDelta {
    pub(super) fn new(head: BookHead, previous: u64, changes: Changes) -> Self {
        let Changes { events: merged_events, bids, asks } = changes;
        Self { head, previous, merged_events, bids, asks }
    }
}

#[derive(Clone, Debug)]
pub struct BookHeartbeat {
    pub head: BookHead,
}

/// One market's best bid and offer.
#[derive(Clone, Debug)]
pub struct Offer {
    pub definition: Arc<MarketDefinition>,
    pub epoch: Epoch,
    /// Of the event that last changed price or size of either.
    pub sequence: u64,
    /// The change before; the same as `sequence` where the offer is repeated; `None` where it is
    /// stated for a reason.
    pub previous: Option<u64>,
    /// Changes since `previous`; 0 where the offer is repeated or stated.
    pub merged_events: u64,
    /// Why it is stated.
    pub reason: Option<SnapshotReason>,
    pub bid: Option<Level>,
    pub ask: Option<Level>,
    pub event_time: Option<Micros>,
    pub publish_time: Micros,
    /// The pace of the stream while it can't keep the one that its clients asked for.
    pub slowed_to: Option<Speed>,
    pub state: FeedState,
}

impl Offer {
    pub fn cursor(&self) -> String {
        let topic = Topic::Bbo(&self.definition.market).cursor_hash();
        Cursor::single(0, topic, Position { epoch: self.epoch, sequence: self.sequence }).encode()
    }
}

/// An event that the hub refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedEvent {
    pub source: String,
    /// Where in the source: a line, an offset, a row.
    pub place: String,
    pub reason: String,
}

/// Most refused events that the status of a feed names.
pub const MOST_REFUSALS: usize = 20;
/// Most books with gaps that the status of a feed names.
pub const MOST_GAPS: usize = 100;

/// The state of one feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedView {
    pub name: String,
    pub kind: String,
    pub state: FeedState,
    pub reason: Option<String>,
    pub events_total: u64,
    pub known_total: u64,
    pub refused_total: u64,
    pub last_refusal: Option<RefusedEvent>,
    /// The newest [`MOST_REFUSALS`], newest first.
    pub refusals: Vec<RefusedEvent>,
    /// When the newest event went into the log, by the hub's clock.
    pub last_event_time: Option<Micros>,
    /// What the source has and the log has not: bytes of files, rows, or records.
    pub lag: Option<u64>,
    /// Books that missed an event which it brought, and had no snapshot since: at most
    /// [`MOST_GAPS`].
    pub gaps: Vec<Arc<BookGap>>,
}

impl FeedView {
    /// Differs in more than its counts of good events, which change all the time.
    pub(super) fn differs_from(&self, earlier: &Self) -> bool {
        (self.state, &self.reason, self.refused_total, &self.last_refusal, &self.gaps)
            != (
                earlier.state,
                &earlier.reason,
                earlier.refused_total,
                &earlier.last_refusal,
                &earlier.gaps,
            )
    }
}

/// An event of a topic whose events are sent one by one and never merged.
#[derive(Clone, Debug)]
pub struct Item {
    pub sequence: u64,
    /// At its source.
    pub time: Option<Micros>,
    pub body: ItemBody,
}

impl Item {
    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + match &self.body {
                ItemBody::Trade(_) | ItemBody::Order(_) | ItemBody::OfBook => ITEM_BYTES,
                ItemBody::Message(message) => message.data.len(),
            }
    }
}

/// About what a trade or an order takes in memory: some texts of a few dozen bytes.
const ITEM_BYTES: usize = 512;

/// What such an event means.
#[derive(Clone, Debug)]
pub enum ItemBody {
    Trade(Arc<Trade>),
    Message(Arc<Message>),
    Order(Arc<OrderUpdate>),
    /// None of an order: their book lacks events, or has them again. The topic has its sequence.
    OfBook,
}

/// Some events of one topic in the log's order, or none: then it gives the topic's position.
#[derive(Clone, Debug)]
pub struct LogFrame {
    /// The log's name of it.
    pub topic: TopicName,
    pub epoch: Epoch,
    /// Of the last event in it, or of the topic's last.
    pub sequence: u64,
    /// The topic's event before the first one in it; the same as `sequence` where nothing happened;
    /// `None` where the client begins, or goes back to `sequence`.
    pub previous: Option<u64>,
    /// Why `previous` is absent.
    pub reason: Option<SnapshotReason>,
    /// The position of the whole subscription, which may follow several topics.
    pub cursor: LogCursor,
    /// Of the last event, at its source.
    pub event_time: Option<Micros>,
    pub publish_time: Micros,
    /// The pace of the stream while it can't keep the one that its clients asked for.
    pub slowed_to: Option<Speed>,
    pub state: FeedState,
    pub items: Vec<Item>,
}

/// A place on all topics of a subscription: one number is enough, as the log numbers all topics
/// with one rising sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCursor {
    /// Which topics, see [`log_topics`].
    pub topics: u64,
    pub position: Position,
}

impl LogCursor {
    pub fn encode(&self) -> String {
        Cursor::single(0, self.topics, self.position).encode()
    }

    /// Reads a client's cursor of exactly these topics.
    pub fn decode(text: &str, topics: u64) -> Result<Self, CursorError> {
        Ok(Self { topics, position: Cursor::decode(text)?.only(topics)? })
    }
}

/// The cursor's name of a set of topics, given sorted; of a single one its own.
pub fn log_topics(names: &[TopicName]) -> u64 {
    // No name has a control character in it.
    topic_hash(&names.join("\n"))
}

/// Some candles of a market and interval in their current state, or none: then it gives the
/// stream's position.
#[derive(Clone, Debug)]
pub struct CandleFrame {
    pub definition: Arc<MarketDefinition>,
    pub interval: Interval,
    pub epoch: Epoch,
    /// Of the market's newest trade.
    pub sequence: u64,
    /// The trade before those of this frame; the same as `sequence` where none came; `None` where
    /// all candles are stated.
    pub previous: Option<u64>,
    /// Why all are stated.
    pub reason: Option<SnapshotReason>,
    /// Trades since `previous`.
    pub merged_events: u64,
    /// Oldest first. A bucket that is left out in between is empty or did not change.
    pub candles: Vec<Candle>,
    /// Of the market's newest trade, at its source.
    pub event_time: Option<Micros>,
    pub publish_time: Micros,
    /// The pace of the stream while it can't keep the one that its clients asked for.
    pub slowed_to: Option<Speed>,
    pub state: FeedState,
}

impl CandleFrame {
    pub fn cursor(&self) -> String {
        let topic = candles_topic(&self.definition.market, self.interval);
        Cursor::single(0, topic, Position { epoch: self.epoch, sequence: self.sequence }).encode()
    }
}

/// The cursor's name of a market's candles.
pub(super) fn candles_topic(market: &str, interval: Interval) -> u64 {
    Topic::Candles(market, interval).cursor_hash()
}

/// What a ticker says.
#[derive(Clone, Debug)]
pub struct TickerView {
    pub definition: Arc<MarketDefinition>,
    pub last: Option<LastTrade>,
    pub day: Option<Day>,
    pub bid: Option<Level>,
    pub ask: Option<Level>,
}

/// One market's ticker, or a heartbeat.
#[derive(Clone, Debug)]
pub struct TickerFrame {
    pub definition: Arc<MarketDefinition>,
    pub epoch: Epoch,
    /// Of the event that last changed it.
    pub sequence: u64,
    /// The change before; the same as `sequence` where no event came; `None` where it is stated
    /// for a reason.
    pub previous: Option<u64>,
    /// Changes since `previous`; 0 where no event came or the ticker is stated.
    pub merged_events: u64,
    /// Why it is stated.
    pub reason: Option<SnapshotReason>,
    /// `None` in a heartbeat.
    pub ticker: Option<TickerView>,
    pub event_time: Option<Micros>,
    pub publish_time: Micros,
    /// The pace of the stream while it can't keep the one that its clients asked for.
    pub slowed_to: Option<Speed>,
    pub state: FeedState,
}

impl TickerFrame {
    pub fn cursor(&self) -> String {
        let position = Position { epoch: self.epoch, sequence: self.sequence };
        Cursor::single(0, ticker_topic(&self.definition.market), position).encode()
    }
}

/// The cursor's name of a market's ticker.
pub(super) fn ticker_topic(market: &str) -> u64 {
    Topic::Ticker(market).cursor_hash()
}

/// What a stream is given to encode.
#[derive(Clone, Debug)]
pub enum LiveFrame {
    Snapshot(BookSnapshot),
    Delta(BookDelta),
    Heartbeat(BookHeartbeat),
    Offer(Offer),
    Candles(CandleFrame),
    /// Several times as large as the others.
    Ticker(Box<TickerFrame>),
    Feed(FeedView),
    Log(LogFrame),
}

impl LiveFrame {
    /// The cursor of the frame, if its topic has positions.
    pub fn cursor(&self) -> Option<String> {
        match self {
            Self::Snapshot(BookSnapshot { head, .. })
            | Self::Delta(BookDelta { head, .. })
            | Self::Heartbeat(BookHeartbeat { head, .. }) => Some(head.cursor()),
            Self::Offer(offer) => Some(offer.cursor()),
            Self::Log(frame) => Some(frame.cursor.encode()),
            Self::Candles(frame) => Some(frame.cursor()),
            Self::Ticker(frame) => Some(frame.cursor()),
            Self::Feed(_) => None,
        }
    }
}

impl LiveFrame {
    /// Sets the slower pace at which its stream pushes; `None` if it is as its clients asked.
    pub(super) fn slow_to(&mut self, speed: Option<Speed>) {
        match self {
            Self::Snapshot(BookSnapshot { head, .. })
            | Self::Delta(BookDelta { head, .. })
            | Self::Heartbeat(BookHeartbeat { head, .. }) => head.slowed_to = speed,
            Self::Offer(frame) => frame.slowed_to = speed,
            Self::Candles(frame) => frame.slowed_to = speed,
            Self::Ticker(frame) => frame.slowed_to = speed,
            Self::Log(frame) => frame.slowed_to = speed,
            Self::Feed(_) => {}
        }
    }
}

/// Turns a frame into the bytes of its GraphQL result, `{"data":…}`. Owned by one stream and
/// called under the lock of its topic, so it must not lock any live state itself.
pub type Encode = Box<dyn FnMut(LiveFrame) -> Vec<u8> + Send>;

/// Milliseconds since an event, for a heartbeat. An event of the future is 0 old; one from long ago
/// (a replayed recording) stops at GraphQL's largest `Int`.
pub fn age_ms(event_time: Option<Micros>, now: Micros) -> i32 {
    let age = event_time.map_or(0, |time| now.saturating_sub(time).max(0) / 1_000);
    i32::try_from(age).unwrap_or(i32::MAX)
}
