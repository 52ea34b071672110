//! The engine's sources: each joins a stream with the live topics that it follows.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use spreadly_subscriptions::{ResponseStream, Resume, Source};

use super::book_stream::{BookStream, Now};
use super::drafts::{Answer, DraftSource, LongFrames};
use super::follower::{Followed, Follower};
use super::frame::{Encode, Speed, with_pace};
use super::topics::{Replay, TopicName};
use super::{Live, Market};
use crate::market::candles::Interval;
use crate::market::definition::MarketId;

impl Live {
    /// The source of one market's book; `None` if the market is not known. Without `long` every
    /// frame is encoded where it is asked for.
    pub fn book_source(
        self: &Arc<Self>,
        market: &str,
        depth: usize,
        speed: Speed,
        encode: Encode,
        long: Option<LongFrames>,
    ) -> Option<Box<dyn Source>> {
        let market = OneMarket::new(self, market)?;
        let (encode, long) = (Mutex::new(Some(encode)), long.map(Arc::new));
        Some(self.reaching(BookSource { live: self.clone(), market, depth, speed, encode, long }))
    }

    /// The source of several markets' best bid and offer.
    pub fn offer_source(
        self: &Arc<Self>,
        markets: Vec<MarketId>,
        encode: Encode,
    ) -> Box<dyn Source> {
        Box::new(OfferSource { live: self.clone(), markets, encode: Mutex::new(Some(encode)) })
    }

    /// The source of some log topics.
    pub fn topic_source(
        self: &Arc<Self>,
        mut names: Vec<TopicName>,
        encode: Encode,
    ) -> Box<dyn Source> {
        names.sort_unstable();
        names.dedup();
        let encode = Mutex::new(Some(encode));
        self.reaching(TopicSource { live: self.clone(), names: names.into(), encode })
    }

    /// The source of one market's candles; `None` if the market is not known.
    pub fn candle_source(
        self: &Arc<Self>,
        market: &str,
        interval: Interval,
        encode: Encode,
    ) -> Option<Box<dyn Source>> {
        let market = OneMarket::new(self, market)?;
        let encode = Mutex::new(Some(encode));
        Some(self.reaching(CandleSource { live: self.clone(), market, interval, encode }))
    }

    /// The source of several markets' tickers.
    pub fn ticker_source(
        self: &Arc<Self>,
        markets: Vec<MarketId>,
        encode: Encode,
    ) -> Box<dyn Source> {
        self.reaching(TickerSource {
            live: self.clone(),
            markets,
            encode: Mutex::new(Some(encode)),
        })
    }

    /// The source of the feeds' status.
    pub fn feed_source(self: &Arc<Self>, encode: Encode) -> Box<dyn Source> {
        Box::new(FeedSource { live: self.clone(), encode: Mutex::new(Some(encode)) })
    }
}

/// Holds the encoder until the stream it belongs to exists.
type Waiting = Mutex<Option<Encode>>;

/// The market of a source, once a stream follows it.
struct OneMarket {
    id: MarketId,
    own: OnceLock<Arc<Market>>,
}

impl OneMarket {
    fn new(live: &Live, id: &str) -> Option<Self> {
        // A copy may not have it yet.
        let known = live.origin.as_deref().unwrap_or(live).definition(id)?;
        Some(Self { id: known.market.clone(), own: OnceLock::new() })
    }

    /// In the state that the stream follows.
    fn find(&self, live: &Live) -> Option<&Arc<Market>> {
        let known = live.known(&self.id)?;
        Some(self.own.get_or_init(|| known))
    }

    fn get(&self) -> Option<&Arc<Market>> {
        self.own.get()
    }
}

struct BookSource {
    live: Arc<Live>,
    market: OneMarket,
    depth: usize,
    speed: Speed,
    encode: Waiting,
    long: Option<Arc<LongFrames>>,
}

impl BookSource {
    fn with_stream(
        &self,
        stream: &ResponseStream,
        act: impl FnOnce(&mut BookStream, &Now<'_>) -> Answer,
    ) -> Resume {
        let Some(market) = self.market.get() else { return Resume::TooSlow };
        let mut state = market.state.lock();
        state.with(&self.live, stream.id(), act).map_or(Resume::TooSlow, Resume::from)
    }
}

impl Source for BookSource {
    fn attach(&self, stream: &Arc<ResponseStream>) {
        let Some(encode) = self.encode.lock().take() else { return };
        let encode = with_pace(stream, encode);
        self.live.begin(std::slice::from_ref(&self.market.id), &Arc::default(), || {
            let market = self.market.find(&self.live)?;
            let mut state = market.state.lock();
            let now = state.now(&self.live);
            let long = self.long.clone().map(|long| {
                let (live, market) = (Arc::downgrade(&self.live), Arc::downgrade(market));
                (long, DraftSource { live, market })
            });
            let shape = (self.depth, self.speed);
            let own = BookStream::new(stream.clone(), shape, &now, encode, long);
            state.streams.insert(stream.id(), own);
            state.set_speed(stream.id(), self.speed);
            let followed = Followed::Book(market.clone());
            Some(Follower { pace: self.speed.into(), ..Follower::new(stream, followed) })
        });
    }

    fn join(&self, stream: &ResponseStream, after: Option<&str>) -> Resume {
        match self.market.get().is_none_or(|market| market.is_gone()) {
            true => Resume::Refused(gone()),
            false => self.with_stream(stream, |own, now| own.join(now, after)),
        }
    }

    fn catch_up(&self, stream: &ResponseStream, seen: u64) -> Resume {
        self.with_stream(stream, |own, now| own.catch_up(now, seen))
    }

    fn detach(&self, stream: &ResponseStream) {
        self.live.end(stream.id(), || {
            if let Some(market) = self.market.get() {
                let mut state = market.state.lock();
                state.streams.remove(&stream.id());
                state.raw.remove(&stream.id());
            }
        });
    }
}

/// For a client that joins a stream which others opened while its market was defined.
pub(super) fn gone() -> Bytes {
    let errors = serde_json::json!([{
        "message": "there is no market of this id any more: blocks were undone",
        "extensions": { "code": "NOT_FOUND" },
    }]);
    Bytes::from(errors.to_string())
}

struct OfferSource {
    live: Arc<Live>,
    markets: Vec<MarketId>,
    encode: Waiting,
}

impl Source for OfferSource {
    fn attach(&self, stream: &Arc<ResponseStream>) {
        let Some(encode) = self.encode.lock().take() else { return };
        let encode = with_pace(stream, encode);
        self.live.begin(&self.markets, &Arc::default(), || {
            self.live.offers.lock().attach(stream, &self.markets, encode);
            Some(Follower::new(stream, Followed::Offers))
        });
    }

    fn join(&self, stream: &ResponseStream, _after: Option<&str>) -> Resume {
        self.live.offers.lock().join(stream, self.live.now())
    }

    fn catch_up(&self, stream: &ResponseStream, seen: u64) -> Resume {
        self.live.offers.lock().catch_up(stream, seen, self.live.now())
    }

    fn detach(&self, stream: &ResponseStream) {
        self.live.end(stream.id(), || self.live.offers.lock().detach(stream));
    }
}

struct TopicSource {
    live: Arc<Live>,
    names: Arc<[TopicName]>,
    encode: Waiting,
}

impl Source for TopicSource {
    fn attach(&self, stream: &Arc<ResponseStream>) {
        let Some(encode) = self.encode.lock().take() else { return };
        let encode = with_pace(stream, encode);
        self.live.begin(&[], &self.names, || {
            self.live.topics.lock().attach(stream, self.names.clone(), encode);
            Some(Follower::new(stream, Followed::Topics))
        });
    }

    fn join(&self, stream: &ResponseStream, after: Option<&str>) -> Resume {
        let (id, after) = (stream.id(), after.map(str::to_owned));
        Replay::Joining.start(&self.live, id, &self.names, move |live| {
            live.topics.lock().join(id, after.as_deref(), live.now())
        })
    }

    fn catch_up(&self, stream: &ResponseStream, seen: u64) -> Resume {
        let id = stream.id();
        Replay::CatchingUp.start(&self.live, id, &self.names, move |live| {
            live.topics.lock().catch_up(id, seen, live.now())
        })
    }

    fn detach(&self, stream: &ResponseStream) {
        self.live.end(stream.id(), || self.live.topics.lock().detach(stream));
    }
}

struct CandleSource {
    live: Arc<Live>,
    market: OneMarket,
    interval: Interval,
    encode: Waiting,
}

impl Source for CandleSource {
    fn attach(&self, stream: &Arc<ResponseStream>) {
        let Some(encode) = self.encode.lock().take() else { return };
        let encode = with_pace(stream, encode);
        self.live.begin(std::slice::from_ref(&self.market.id), &Arc::default(), || {
            let market = self.market.find(&self.live)?;
            let state = self.live.feed_state();
            market.candles.lock().attach(stream, self.interval, state, encode);
            Some(Follower::new(stream, Followed::Candles(market.clone())))
        });
    }

    fn join(&self, stream: &ResponseStream, after: Option<&str>) -> Resume {
        match self.market.get().filter(|market| !market.is_gone()) {
            Some(market) => market.candles.lock().join(stream, after, &self.live.moment()),
            None => Resume::Refused(gone()),
        }
    }

    fn catch_up(&self, stream: &ResponseStream, seen: u64) -> Resume {
        match self.market.get() {
            Some(market) => market.candles.lock().catch_up(stream, seen, &self.live.moment()),
            None => Resume::TooSlow,
        }
    }

    fn detach(&self, stream: &ResponseStream) {
        self.live.end(stream.id(), || {
            if let Some(market) = self.market.get() {
                market.candles.lock().detach(stream);
            }
        });
    }
}

struct TickerSource {
    live: Arc<Live>,
    markets: Vec<MarketId>,
    encode: Waiting,
}

impl Source for TickerSource {
    fn attach(&self, stream: &Arc<ResponseStream>) {
        let Some(encode) = self.encode.lock().take() else { return };
        let encode = with_pace(stream, encode);
        self.live.begin(&self.markets, &Arc::default(), || {
            self.live.tickers.lock().attach(stream, &self.markets, encode);
            Some(Follower::new(stream, Followed::Tickers))
        });
    }

    fn join(&self, stream: &ResponseStream, after: Option<&str>) -> Resume {
        self.live.tickers.lock().join(stream, after, self.live.now())
    }

    fn catch_up(&self, stream: &ResponseStream, seen: u64) -> Resume {
        self.live.tickers.lock().catch_up(stream, seen, self.live.now())
    }

    fn detach(&self, stream: &ResponseStream) {
        self.live.end(stream.id(), || self.live.tickers.lock().detach(stream));
    }
}

struct FeedSource {
    live: Arc<Live>,
    encode: Waiting,
}

impl Source for FeedSource {
    fn attach(&self, stream: &Arc<ResponseStream>) {
        let Some(encode) = self.encode.lock().take() else { return };
        let encode = with_pace(stream, encode);
        self.live.begin(&[], &Arc::default(), || {
            self.live.feeds.lock().attach(stream, encode);
            Some(Follower::new(stream, Followed::Feeds))
        });
    }

    fn join(&self, stream: &ResponseStream, _after: Option<&str>) -> Resume {
        self.live.feeds.lock().join(stream)
    }

    fn catch_up(&self, stream: &ResponseStream, _seen: u64) -> Resume {
        self.live.feeds.lock().join(stream)
    }

    fn detach(&self, stream: &ResponseStream) {
        self.live.end(stream.id(), || self.live.feeds.lock().detach(stream));
    }
}
