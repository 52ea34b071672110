//! The live topics: the state of every market and the streams that follow it. The sequencer's
//! thread brings events in; the streams are brought up to date by workers, each of which has a copy
//! of what its streams follow, see `encoders`. Knows no GraphQL: what opens a stream brings what
//! encodes its frames.
//!
//! Locks: a market's book, its candles, the offers, the tickers, the log topics, the feeds' board
//! and the list of markets are each under their own, and no two of them are ever held together, so
//! there is no order to keep. The locks of the feed state and of the schedule are the innermost:
//! held for one read or write, inside any of the others.

mod book_stream;
mod candles;
pub mod checkpoint;
mod copies;
mod drafts;
mod encoders;
mod feeds;
mod follower;
mod frame;
mod inbox;
mod offers;
mod rollback;
mod source;
mod tickers;
mod topics;
mod wait_for_position;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use foldhash::HashMap;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use spreadly_subscriptions::{Epoch, Schedule};
use tokio::time::Instant;

use self::book_stream::{BookStream, Now};
use self::candles::{CandleBoard, Moment};
use self::copies::Copied;
use self::feeds::FeedBoard;
use self::follower::{Follower, Touched};
use self::offers::Offers;
use self::tickers::Tickers;
use self::topics::Topics;
use self::wait_for_position::Reached;
use crate::market::bbo::BestBidOffer;
use crate::market::book::{Book, BookState, CheckpointError};
use crate::market::checksum;
use crate::market::definition::{MarketDefinition, MarketId};
use crate::market::effect::{Applied, Effect};
use crate::market::epochs::EpochHistory;
use crate::market::levels::Level;
use crate::market::levels::LevelChange;
use crate::market::ticker::LastTrade;
use crate::market::time::Micros;
use crate::market::topic::Topic;
use crate::market::trade::Trade;
use crate::store::{self, LogReaders};

pub use self::drafts::LongFrames;
pub use self::encoders::Encoders;
pub use self::frame::{
    BookDelta, BookHead, BookHeartbeat, BookSnapshot, CandleFrame, Encode, FeedState, FeedView,
    Item, ItemBody, LiveFrame, LogCursor, LogFrame, Offer, Refusal, SnapshotReason, Speed,
    TickerFrame, TickerView, age_ms, log_topics,
};
pub use self::rollback::{Defined, MarketLeft, Rollback};
pub use self::topics::{TopicName, item};

/// How often a state is taken until its book and its offer are of one moment. Between the two
/// changes lie microseconds.
const MOST_LOOKS: usize = 8;

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
    /// What is told again to whoever comes back is read with these.
    log: Arc<LogReaders>,
    feeds: Mutex<FeedBoard>,
    feed_state: Mutex<FeedState>,
    reached: Reached,
    followers: Mutex<HashMap<u64, Arc<Follower>>>,
    /// Which of them is brought up to date next.
    schedule: Mutex<Schedule>,
    /// Of a worker's copy: what it is a copy of. Held while what is followed is copied, and while
    /// an event is taken, so that none is missed in between.
    origin: Option<Arc<Live>>,
    copying: Mutex<Copied>,
    /// Streams that follow this state.
    following: AtomicUsize,
    /// Snapshots that were encoded rather than taken from a stream's cache.
    pub snapshot_encodings: Arc<AtomicU64>,
    /// How often blocks were undone, and the events that went with them, since the start.
    pub reorganisations: AtomicU64,
    pub events_undone: AtomicU64,
    /// Times that events of a source were lost.
    pub gaps: AtomicU64,
}

struct Market {
    state: Mutex<MarketState>,
    candles: Mutex<CandleBoard>,
    /// Nothing defines it any more, as blocks were undone. Kept for those who follow it: it may be
    /// defined again.
    gone: AtomicBool,
}

struct MarketState {
    definition: Arc<MarketDefinition>,
    epochs: EpochHistory,
    book: Book,
    /// Of the last event, at its source.
    event_time: Option<Micros>,
    /// Of the book as it is; computed when the first frame wants it.
    checksum: OnceCell<u32>,
    /// Sequence of the event that defined the market, and see [`Now`].
    defined_at: u64,
    restated: (u64, SnapshotReason),
    streams: BTreeMap<u64, BookStream>,
    /// Those that push each event.
    raw: BTreeSet<u64>,
}

/// What the store keeps of a market, beside the log.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Checkpoint<B> {
    event_time: Option<Micros>,
    /// The event that put the best bid and offer there; releases before did not keep it.
    #[serde(default)]
    offer: Option<OfferMark>,
    book: B,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfferMark {
    sequence: u64,
    event_time: Option<Micros>,
}

/// A market's state as [`Live::state`] took it.
#[derive(Debug)]
pub struct StateTaken {
    /// Of the market's positions.
    pub epoch: Epoch,
    event_time: Option<Micros>,
    offer: Option<OfferMark>,
    book: BookState,
}

impl StateTaken {
    /// Of the book's last event.
    pub fn sequence(&self) -> u64 {
        self.book.sequence()
    }

    /// What [`Live::restore`] takes. Costs milliseconds for a large book.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { event_time, offer, book, .. } = self;
        let book = serde_json::from_slice::<Box<serde_json::value::RawValue>>(&book.to_bytes());
        let Ok(book) = book else { return Vec::new() };
        let checkpoint = Checkpoint { event_time: *event_time, offer: *offer, book };
        serde_json::to_vec(&checkpoint).unwrap_or_default()
    }
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
            feed_state: Mutex::new(FeedState::Live),
            reached: Reached::default(),
            followers: Mutex::default(),
            // Nothing is served by it: copies have schedules of their own.
            schedule: Mutex::new(Schedule::new(0, Instant::now())),
            origin: None,
            copying: Mutex::default(),
            following: AtomicUsize::new(0),
            snapshot_encodings: Arc::default(),
            reorganisations: AtomicU64::new(0),
            events_undone: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
        }
    }

    /// The log's own: of all topics of which nothing was undone.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How positions of a topic are numbered now, by the log's name of it.
    pub fn epochs(&self, topic: &str) -> EpochHistory {
        self.topics.lock().epochs(topic)
    }

    /// For who reads the log beside its writer.
    pub fn log(&self) -> &Arc<LogReaders> {
        &self.log
    }

    /// The hub's clock, in microseconds since 1970.
    pub fn now(&self) -> Micros {
        (self.clock)()
    }

    pub fn feed_state(&self) -> FeedState {
        *self.feed_state.lock()
    }

    pub fn definition(&self, market: &str) -> Option<Arc<MarketDefinition>> {
        Some(self.market(market)?.state.lock().definition.clone())
    }

    /// Sorted by id.
    pub fn definitions(&self) -> Vec<Arc<MarketDefinition>> {
        let all = self.all();
        let there = all.iter().filter(|market| !market.is_gone());
        let mut definitions: Vec<_> =
            there.map(|market| market.state.lock().definition.clone()).collect();
        definitions.sort_unstable_by(|one, other| one.market.cmp(&other.market));
        definitions
    }

    /// The best `depth` levels of a market now.
    pub fn snapshot(&self, market: &str, depth: usize) -> Option<BookSnapshot> {
        let market = self.market(market)?;
        let state = market.state.lock();
        Some(state.now(self).snapshot(depth, SnapshotReason::Initial))
    }

    fn market(&self, id: &str) -> Option<Arc<Market>> {
        self.known(id).filter(|market| !market.is_gone())
    }

    /// Also one that is gone.
    fn known(&self, id: &str) -> Option<Arc<Market>> {
        self.markets.read().get(id).cloned()
    }

    /// Also those that are gone.
    fn all(&self) -> Vec<Arc<Market>> {
        self.markets.read().values().cloned().collect()
    }

    /// Defines or redefines a market. Its book is in units of its decimals, so other decimals begin
    /// an empty one, and everyone is told.
    pub fn define(&self, definition: Arc<MarketDefinition>) {
        let mut touched = Touched::new();
        self.define_at(definition, 0, &mut touched);
        self.advance_all(&touched);
    }

    fn define_at(&self, definition: Arc<MarketDefinition>, sequence: u64, touched: &mut Touched) {
        let id = definition.market.clone();
        let epochs = self.epochs(&Topic::Market(&id).to_string());
        // First, so that a market that can be asked for has an offer to state.
        self.offers.lock().define(&definition, &epochs);
        self.tickers.lock().define(&definition, &epochs);
        if let Some(market) = self.known(&id) {
            market.gone.store(false, Ordering::Release);
            market.candles.lock().define(&definition);
            let mut state = market.state.lock();
            state.defined_at = state.defined_at.max(sequence);
            let decimals = |one: &MarketDefinition| (one.price_decimals, one.size_decimals);
            let same = decimals(&state.definition) == decimals(&definition);
            state.definition = definition.clone();
            if !same {
                state.book = self.empty_book(state.book.sequence());
                state.restate(SnapshotReason::EpochChange, touched);
            }
        } else {
            let candles = Mutex::new(CandleBoard::new(definition.clone(), epochs.clone()));
            let state = MarketState {
                definition,
                book: self.empty_book(0),
                epochs,
                event_time: None,
                checksum: OnceCell::new(),
                defined_at: sequence,
                restated: (0, SnapshotReason::EpochChange),
                streams: BTreeMap::new(),
                raw: BTreeSet::new(),
            };
            let market = Market { state: Mutex::new(state), candles, gone: AtomicBool::new(false) };
            self.markets.write().insert(id, Arc::new(market));
        }
    }

    fn empty_book(&self, sequence: u64) -> Book {
        Book::with_journal(sequence, self.journal_touches)
    }

    /// Puts a market's book back as [`Live::checkpoint`] gave it; the market must be defined.
    pub fn restore(&self, market: &str, state: &[u8]) -> Result<(), RestoreError> {
        let unknown = || RestoreError::UnknownMarket(market.to_owned());
        let own = self.market(market).ok_or_else(unknown)?;
        let (book, event_time, since) = self.read_checkpoint(state)?;
        let best = book.best();
        let id = {
            let mut state = own.state.lock();
            (state.book, state.event_time) = (book, event_time);
            state.checksum.take();
            state.definition.market.clone()
        };
        self.change_offer(&id, best, since.sequence, since.event_time, &mut Touched::new());
        Ok(())
    }

    /// A book as [`Live::checkpoint`] gave it, the time of its last event, and since when its offer
    /// stands.
    fn read_checkpoint(
        &self,
        state: &[u8],
    ) -> Result<(Book, Option<Micros>, OfferMark), CheckpointError> {
        let checkpoint: Checkpoint<&serde_json::value::RawValue> = serde_json::from_slice(state)?;
        let Checkpoint { event_time, offer, book } = checkpoint;
        let book = Book::from_checkpoint(book.get().as_bytes(), self.journal_touches)?;
        // Where it isn't known since when the offer stands: it stood at the book's sequence.
        let unknown = OfferMark { sequence: book.sequence(), event_time };
        Ok((book, event_time, offer.unwrap_or(unknown)))
    }

    /// A market's state and the sequence it stands for; `None` if the market is not known. To be
    /// called by who calls [`Live::apply`], so that the book and its offer are of one moment.
    pub fn checkpoint(&self, market: &str) -> Option<(u64, Vec<u8>)> {
        let state = self.state(market, 0)?;
        Some((state.sequence(), state.to_bytes()))
    }

    /// A market's state with the newest part of its book's journal (see [`Book::state`]), from
    /// any thread; `None` if the market is not known.
    pub fn state(&self, market: &str, journal: usize) -> Option<StateTaken> {
        let own = self.market(market)?;
        // The book changes before its offer does: an offer that isn't the book's is of another
        // moment.
        for _ in 0..MOST_LOOKS {
            let (epoch, book, event_time) = {
                let state = own.state.lock();
                (state.epochs.epoch(), state.book.state(journal), state.event_time)
            };
            let offer = self.offers.lock().get(market);
            let prices = |(bid, ask): (Option<Level>, Option<Level>)| {
                [bid, ask].map(|level| level.map(|level| (level.price, level.size)))
            };
            let offer = offer.filter(|bbo| {
                bbo.sequence <= book.sequence() && prices((bbo.bid, bbo.ask)) == prices(book.best())
            });
            if let Some(BestBidOffer { sequence, event_time: time, .. }) = offer {
                let offer = OfferMark { sequence, event_time: time };
                return Some(StateTaken { epoch, event_time, offer: Some(offer), book });
            }
        }
        let state = own.state.lock();
        let (epoch, book) = (state.epochs.epoch(), state.book.state(journal));
        Some(StateTaken { epoch, event_time: state.event_time, offer: None, book })
    }

    /// The last sequence of each market's book.
    pub fn book_sequences(&self) -> Vec<(MarketId, u64)> {
        let all = self.all();
        let there = all.iter().filter(|market| !market.is_gone());
        there
            .map(|market| {
                let state = market.state.lock();
                (state.definition.market.clone(), state.book.sequence())
            })
            .collect()
    }

    /// Sequence of a log topic's last event; 0 if there is none.
    pub fn last_of(&self, topic: &str) -> u64 {
        self.topics.lock().last(topic)
    }

    /// Sequence of the event that last changed a market's ticker; 0 if none did.
    pub fn last_of_ticker(&self, market: &str) -> u64 {
        self.tickers.lock().last(market)
    }

    /// Events of a market's book behind this sequence, as far as its journal reaches.
    pub fn events_after(&self, market: &str, sequence: u64) -> usize {
        self.market(market).map_or(0, |own| own.state.lock().book.events_after(sequence))
    }

    /// Takes events that are in the log, in the log's order, from one thread, and brings the
    /// streams up to date that follow this state itself.
    pub fn apply(&self, events: &[Applied]) {
        let mut touched = Touched::new();
        for event in events {
            self.take(event, &mut touched);
            self.advance_all(&touched);
            touched.clear();
        }
    }

    /// Takes an event that is in the log, in the log's order, from one thread at a time. Costs the
    /// same for any number of streams that do not push each event.
    fn take(&self, event: &Applied, touched: &mut Touched) {
        match &event.effect {
            Effect::Define(definition) => {
                if self.takes_definition(&definition.market, event.sequence) {
                    self.define_at(definition.clone(), event.sequence, touched);
                }
            }
            Effect::Replace { market, levels } => self.change(event, market, levels, true, touched),
            Effect::Change { market, levels } => self.change(event, market, levels, false, touched),
            Effect::Order { update, levels } => {
                let order = &update.order;
                self.change(event, &order.market, levels, false, touched);
                let own = Topic::orders_of(&order.market).name();
                for topic in order.account_topics().iter().chain([&own]) {
                    self.publish(topic, event, ItemBody::Order(update.clone()), touched);
                }
            }
            Effect::Trade(trade) => {
                let body = ItemBody::Trade(trade.clone());
                self.publish(&Topic::Trades(&trade.market).name(), event, body, touched);
                self.trade(event, trade, touched);
            }
            Effect::Message(message) => {
                let body = ItemBody::Message(message.clone());
                self.publish(&Topic::Message(&message.topic).name(), event, body, touched);
            }
            Effect::None => {}
        }
        self.reached.to(event.sequence);
    }

    /// Makes an event the end of a log topic. An event may be in several.
    fn publish(&self, topic: &TopicName, event: &Applied, body: ItemBody, touched: &mut Touched) {
        let item = Item { sequence: event.sequence, time: event.time, body };
        let mut topics = self.topics.lock();
        if topics.ignores(topic) {
            return;
        }
        if topics.is_forgotten(topic) {
            drop(topics);
            // Read without the lock; nobody else publishes events meanwhile.
            let before = event.sequence.saturating_sub(1);
            let last = self.log.read_here(|log| log.last_until(topic, before));
            let last = last.unwrap_or_else(|error| {
                // Its followers see an event whose `prevSequence` is not the last one.
                tracing::error!(%error, %topic, "the end of a topic can't be read");
                None
            });
            topics = self.topics.lock();
            topics.recall(topic, last.unwrap_or(0));
        }
        topics.publish(topic, &item, touched);
    }

    /// Whether something is kept of a log topic: it is followed, or had an event lately.
    pub fn knows_topic(&self, topic: &str) -> bool {
        self.topics.lock().knows(topic)
    }

    /// Takes over where topics of the log stand, and when their last events were at their source,
    /// where that is known. Before the first event.
    pub fn restore_topics(&self, known: Vec<(store::TopicPosition, Option<Micros>)>) {
        let mut topics = self.topics.lock();
        for (topic, time) in known {
            topics.restore(topic, time);
        }
    }

    fn change(
        &self,
        event: &Applied,
        id: &MarketId,
        levels: &[LevelChange],
        replace: bool,
        touched: &mut Touched,
    ) {
        let Some(market) = self.market(id) else {
            // Admission lets no event through whose market was not defined before it; a copy has
            // only what is followed.
            debug_assert!(self.origin.is_some(), "an event for {id}, which is not defined");
            return;
        };
        let best = {
            let mut state = market.state.lock();
            if event.sequence <= state.book.sequence() {
                // Read again after an older checkpoint of another market, or copied later.
                return;
            }
            match replace {
                true => state.book.replace(event.sequence, levels),
                false => state.book.apply(event.sequence, levels),
            }
            state.event_time = event.time;
            state.checksum.take();
            touched.extend(&state.raw);
            state.book.best()
        };
        self.change_offer(id, best, event.sequence, event.time, touched);
    }

    fn change_offer(
        &self,
        id: &MarketId,
        best: (Option<Level>, Option<Level>),
        sequence: u64,
        time: Option<Micros>,
        touched: &mut Touched,
    ) {
        // Most events do not reach the top of the book.
        if self.offers.lock().update(id, best, sequence, time, touched) {
            self.tickers.lock().change_offer(id, best, sequence, time, touched);
        }
    }

    /// Takes a trade with the candles that it left.
    fn trade(&self, event: &Applied, trade: &Trade, touched: &mut Touched) {
        // What is read again from the log has none: the candles' own state has it already.
        let ([minute, ..], Some(market)) = (&event.candles[..], self.market(&trade.market)) else {
            return;
        };
        market.candles.lock().trade(event, touched);
        // A trade that is not its minute's latest is not the market's either.
        let last = (minute.close_sequence == event.sequence).then_some(LastTrade {
            time: minute.last,
            price: trade.price,
            size: trade.size,
            taker_side: trade.taker_side,
        });
        let mut tickers = self.tickers.lock();
        tickers.trade(&trade.market, event, minute, last, self.now(), touched);
    }

    fn moment(&self) -> Moment {
        Moment { now: self.now(), state: self.feed_state() }
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

    /// Brings the books' streams of this speed up to date that follow this state itself.
    #[cfg(test)]
    fn tick(&self, speed: Speed) {
        for follower in self.followers() {
            if follower.pace == speed.into() {
                self.advance(&follower);
            }
        }
    }

    /// The same, called each second, of what the clock has changed, and quiet streams.
    pub fn heartbeat(&self) {
        let mut touched = Touched::new();
        self.roll(&mut touched);
        self.advance_all(&touched);
        for follower in self.followers() {
            self.beat(&follower);
        }
    }

    /// Takes what the clock has changed. To be called each second.
    fn roll(&self, touched: &mut Touched) {
        let now = self.now();
        for market in self.all() {
            market.candles.lock().roll(now, touched);
        }
        self.tickers.lock().roll(now, touched);
        self.feeds.lock().roll(touched);
    }

    /// Whether what every stream says is up to date; those that follow this state itself say it at
    /// once.
    pub fn set_feed_state(&self, state: FeedState) {
        let mut touched = Touched::new();
        self.take_feed_state(state, &mut touched);
        self.advance_all(&touched);
    }

    fn take_feed_state(&self, state: FeedState, touched: &mut Touched) {
        if std::mem::replace(&mut *self.feed_state.lock(), state) == state {
            return;
        }
        for market in self.all() {
            touched.extend(market.state.lock().streams.keys());
            touched.extend(market.candles.lock().streams());
        }
        self.offers.lock().set_state(state, touched);
        self.tickers.lock().set_state(state, touched);
        self.topics.lock().set_state(state, touched);
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

impl Market {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

impl MarketState {
    fn now<'a>(&'a self, live: &'a Live) -> Now<'a> {
        let checksum = *self.checksum.get_or_init(|| checksum::of(&self.book));
        Now {
            head: BookHead {
                definition: self.definition.clone(),
                epoch: self.epochs.epoch(),
                sequence: self.book.sequence(),
                depth: 0,
                checksum,
                event_time: self.event_time,
                publish_time: live.now(),
                slowed_to: None,
            },
            book: &self.book,
            epochs: &self.epochs,
            restated: self.restated,
            state: live.feed_state(),
            snapshot_encodings: &live.snapshot_encodings,
        }
    }

    /// Gives a stream the book as it is now.
    fn with<T>(
        &mut self,
        live: &Live,
        stream: u64,
        act: impl FnOnce(&mut BookStream, &Now<'_>) -> T,
    ) -> Option<T> {
        // Taken out for the moment, so that the book can be read beside it.
        let mut own = self.streams.remove(&stream)?;
        let done = act(&mut own, &self.now(live));
        self.streams.insert(stream, own);
        Some(done)
    }

    /// The book was replaced as a whole: every stream states it.
    fn restate(&mut self, reason: SnapshotReason, touched: &mut Touched) {
        self.restated = (self.restated.0 + 1, reason);
        self.checksum.take();
        touched.extend(self.streams.keys());
    }

    fn set_speed(&mut self, stream: u64, speed: Speed) {
        if let Some(own) = self.streams.get_mut(&stream) {
            own.set_speed(speed);
            match speed {
                Speed::Raw => self.raw.insert(stream),
                _ => self.raw.remove(&stream),
            };
        }
    }
}

/// Why a market's state was not put back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("market {0:?} is not defined")]
    UnknownMarket(String),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

#[cfg(test)]
mod tests;
