//! The state of all markets and topics, and the streams that follow it. The sequencer's thread
//! applies events. Workers advance the streams; each has a copy of what its streams follow, see
//! `encoders`. Knows no GraphQL: the opener of a stream brings the encoder of its frames.
//!
//! Locks: a market's book, its candles, the offers, the tickers, the log topics, the feeds' board
//! and the list of markets are each under their own, and no two of them are ever held together, so
//! there is no order to keep. The locks of the feed state and of the schedule are the innermost:
//! held for one read or write, inside any of the others.

mod apply;
mod book_checkpoint;
mod book_stream;
mod candles;
pub mod checkpoint;
mod copies;
mod drafts;
mod encode_worker;
mod encoders;
mod feed_states;
mod feeds;
mod follower;
mod frame;
mod inbox;
mod long_frames;
mod market_streams;
mod markets;
mod offers;
mod pace;
mod reader_errors;
mod rollback;
mod source;
mod start_from;
mod stated_frames;
mod steps;
mod tickers;
mod topics;
mod wait_for_position;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use foldhash::{HashMap, HashSet};
use parking_lot::{Mutex, RwLock};
use spreadly_subscriptions::{Epoch, Schedule};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use self::candles::Moment;
use self::copies::Copied;
use self::feeds::FeedBoard;
use self::follower::Follower;
use self::markets::Market;
use self::offers::Offers;
use self::pace::Touched;
use self::tickers::Tickers;
use self::topics::Topics;
use self::wait_for_position::AppliedSequence;
use crate::market::definition::MarketId;
use crate::market::epochs::EpochHistory;
use crate::market::ticker::LastTrade;
use crate::market::time::Micros;
use crate::store::{self, LogReaders};

pub use self::book_checkpoint::{RestoreError, StateTaken};
pub use self::drafts::LongFrames;
pub use self::encoders::Encoders;
pub use self::feed_states::FeedStates;
pub use self::frame::{
    BookDelta, BookHead, BookHeartbeat, BookSnapshot, CandleFrame, Encode, FeedState, FeedView,
    Item, ItemBody, LiveFrame, LogCursor, LogFrame, MOST_GAPS, MOST_REFUSALS, Offer, RefusedEvent,
    SnapshotReason, Speed, TickerFrame, TickerView, TopicName, age_ms, log_topics,
};
pub use self::markets::BookLack;
pub use self::rollback::{Defined, MarketLeft, Rollback};
pub use self::steps::MOST_STATED_FIELDS;
#[cfg(test)]
pub use self::steps::made;
pub use self::topics::item;

/// The hub's wall clock.
pub type Clock = Box<dyn Fn() -> Micros + Send + Sync>;

/// See the module's text.
pub struct Live {
    epoch: Epoch,
    clock: Clock,
    /// Of each book, see [`Book::with_journal`].
    journal_touches: usize,
    markets: RwLock<HashMap<MarketId, Arc<Market>>>,
    offers: Mutex<Offers>,
    tickers: Mutex<Tickers>,
    topics: Mutex<Topics>,
    /// Read what a resumed client missed.
    log: Arc<LogReaders>,
    feeds: Mutex<FeedBoard>,
    feed_states: Mutex<FeedStates>,
    applied: AppliedSequence,
    followers: Mutex<HashMap<u64, Arc<Follower>>>,
    /// Streams that several clients read, or read until lately.
    shared: Mutex<HashSet<u64>>,
    /// Which follower is advanced next.
    schedule: Mutex<Schedule>,
    /// Notified where its worker has something to do.
    wake: Notify,
    /// Answers that take many steps take them one by one.
    answering: Semaphore,
    /// Of a worker's copy: the state that it copies.
    origin: Option<Arc<Live>>,
    /// Held while something is copied, and while an event is applied, so that a copy misses none.
    copying: Mutex<Copied>,
    /// Streams that follow this state.
    following: AtomicUsize,
    /// Snapshots that were encoded rather than taken from a stream's cache.
    pub snapshot_encodings: Arc<AtomicU64>,
    /// Rollbacks of blocks, and the events that they removed, since the start.
    pub reorganisations: AtomicU64,
    pub events_undone: AtomicU64,
    /// Times that events of a source were lost.
    pub gaps: AtomicU64,
}

impl Live {
    pub fn new(epoch: Epoch, clock: Clock, journal_touches: usize, log: Arc<LogReaders>) -> Self {
        Self {
            epoch,
            clock,
            journal_touches,
            markets: RwLock::default(),
            offers: Mutex::new(Offers::new()),
            tickers: Mutex::new(Tickers::new()),
            topics: Mutex::new(Topics::new(epoch)),
            log,
            feeds: Mutex::default(),
            feed_states: Mutex::default(),
            applied: AppliedSequence::default(),
            followers: Mutex::default(),
            shared: Mutex::default(),
            // Nothing is served by it: copies have schedules of their own.
            schedule: Mutex::new(Schedule::new(0, Instant::now())),
            wake: Notify::new(),
            answering: Semaphore::new(1),
            origin: None,
            copying: Mutex::default(),
            following: AtomicUsize::new(0),
            snapshot_encodings: Arc::default(),
            reorganisations: AtomicU64::new(0),
            events_undone: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
        }
    }

    /// The log's epoch: of all topics without a rollback.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The epochs of a topic, by the log's name of it.
    pub fn epochs(&self, topic: &str) -> EpochHistory {
        self.topics.lock().epochs(topic)
    }

    /// Readers of the log, beside its writer.
    pub fn log(&self) -> &Arc<LogReaders> {
        &self.log
    }

    /// The hub's clock, in microseconds since 1970.
    pub fn now(&self) -> Micros {
        (self.clock)()
    }

    pub fn feed_states(&self) -> FeedStates {
        self.feed_states.lock().clone()
    }

    /// Sequence of a log topic's last event; 0 if there is none.
    pub fn last_of(&self, topic: &str) -> u64 {
        self.topics.lock().last(topic)
    }

    /// Sequence of the event that last changed a market's ticker; 0 if none did.
    pub fn last_of_ticker(&self, market: &str) -> u64 {
        self.tickers.lock().last(market)
    }

    /// Whether something is kept of a log topic: it is followed, or had an event lately.
    pub fn knows_topic(&self, topic: &str) -> bool {
        self.topics.lock().knows(topic)
    }

    /// Takes the last event of topics of the log, and its time at the source where that is known.
    /// Before the first event.
    pub fn restore_topics(&self, known: Vec<(store::TopicPosition, Option<Micros>)>) {
        let mut topics = self.topics.lock();
        for (topic, time) in known {
            topics.restore(topic, time);
        }
    }

    fn moment(&self) -> Moment {
        Moment { now: self.now(), states: self.feed_states() }
    }

    /// Takes what the store keeps of a market's candles, with its latest trade and the time of the
    /// newest event.
    pub fn restore_candles(
        &self,
        known: &store::MarketCandles,
        last: Option<LastTrade>,
        event_time: Option<Micros>,
    ) {
        let Some(market) = self.market(&known.market) else { return };
        let moment = self.moment();
        market.candles.lock().restore(known, event_time, &moment);
        self.tickers.lock().restore(known, last, event_time, moment.now);
    }

    /// A market's ticker now.
    pub fn ticker(&self, market: &str) -> Option<TickerView> {
        self.market(market)?;
        self.tickers.lock().view(market, self.now())
    }

    /// Takes the feeds as they are now.
    pub fn set_feeds(&self, views: Vec<FeedView>) {
        let mut touched = Touched::new();
        self.feeds.lock().set(views, &mut touched);
        self.advance_all(&touched);
    }

    pub fn feeds(&self) -> Vec<FeedView> {
        self.feeds.lock().views().to_vec()
    }
}

#[cfg(test)]
mod tests;
