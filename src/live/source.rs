//! The engine's source: it joins a stream with the part of the live state that it follows.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use spreadly_subscriptions::{self as engine, ResponseStream, Resume, Source};

use super::Live;
use super::book_stream::{BookStream, Now};
use super::drafts::{Answer, LongFrames};
use super::follower::{Followed, Follower};
use super::frame::{Encode, Speed, TopicName};
use super::long_frames::drafter;
use super::market_streams::{MarketStreams, MarketValue};
use super::markets::Market;
use super::pace::with_pace;
use super::reader_errors::{bad_cursor, gone};
use super::start_from::StartFrom;
use super::steps::{Step, in_steps};
use super::topics::Replay;
use crate::market::candles::Interval;
use crate::market::definition::MarketId;

impl Live {
    /// The source of one market's book; `None` if the market is not known. Without `long` every
    /// frame is encoded where its reader asks for it.
    pub fn book_source(
        self: &Arc<Self>,
        market: &str,
        depth: usize,
        speed: Speed,
        encode: Encode,
        long: Option<LongFrames>,
    ) -> Option<Box<dyn Source>> {
        let market = OneMarket::new(self, market)?;
        let long = long.map(Arc::new);
        Some(self.resumable(Target::Book { market, depth, speed, long }, encode))
    }

    /// The source of several markets' best bid and offer.
    pub fn offer_source(
        self: &Arc<Self>,
        markets: Vec<MarketId>,
        encode: Encode,
    ) -> Box<dyn Source> {
        // No cursor resumes it, so nothing has to be waited for.
        Box::new(LiveSource::new(self, Target::Offers(markets), encode))
    }

    /// The source of some log topics, with so many fields of each event.
    pub fn topic_source(
        self: &Arc<Self>,
        mut names: Vec<TopicName>,
        fields: usize,
        encode: Encode,
    ) -> Box<dyn Source> {
        names.sort_unstable();
        names.dedup();
        self.resumable(Target::Topics { names: names.into(), fields }, encode)
    }

    /// The source of one market's candles, with so many fields of each; `None` if the market is not
    /// known.
    pub fn candle_source(
        self: &Arc<Self>,
        market: &str,
        interval: Interval,
        fields: usize,
        encode: Encode,
    ) -> Option<Box<dyn Source>> {
        let market = OneMarket::new(self, market)?;
        Some(self.resumable(Target::Candles { market, interval, fields }, encode))
    }

    /// The source of several markets' tickers.
    pub fn ticker_source(
        self: &Arc<Self>,
        markets: Vec<MarketId>,
        encode: Encode,
    ) -> Box<dyn Source> {
        self.resumable(Target::Tickers(markets), encode)
    }

    /// The source of the feeds' status.
    pub fn feed_source(self: &Arc<Self>, encode: Encode) -> Box<dyn Source> {
        Box::new(LiveSource::new(self, Target::Feeds, encode))
    }

    fn resumable(self: &Arc<Self>, target: Target, encode: Encode) -> Box<dyn Source> {
        self.waiting_source(LiveSource::new(self, target, encode))
    }
}

/// What a source's stream follows.
enum Target {
    Book { market: OneMarket, depth: usize, speed: Speed, long: Option<Arc<LongFrames>> },
    Candles { market: OneMarket, interval: Interval, fields: usize },
    Offers(Vec<MarketId>),
    Tickers(Vec<MarketId>),
    Topics { names: Arc<[TopicName]>, fields: usize },
    Feeds,
}

impl Target {
    /// Markets whose state the stream needs.
    fn markets(&self) -> &[MarketId] {
        match self {
            Self::Book { market, .. } | Self::Candles { market, .. } => {
                std::slice::from_ref(&market.id)
            }
            Self::Offers(markets) | Self::Tickers(markets) => markets,
            Self::Topics { .. } | Self::Feeds => &[],
        }
    }

    /// Log topics whose state the stream needs.
    fn topics(&self) -> Arc<[TopicName]> {
        match self {
            Self::Topics { names, .. } => names.clone(),
            _ => Arc::default(),
        }
    }
}

/// The market of a source, found once a stream follows it.
struct OneMarket {
    id: MarketId,
    found: OnceLock<Arc<Market>>,
}

impl OneMarket {
    fn new(live: &Live, id: &str) -> Option<Self> {
        // A copy may not have it yet.
        let known = live.origin.as_deref().unwrap_or(live).definition(id)?;
        Some(Self { id: known.market.clone(), found: OnceLock::new() })
    }

    /// In the state that the stream follows.
    fn find(&self, live: &Live) -> Option<&Arc<Market>> {
        let known = live.known(&self.id)?;
        Some(self.found.get_or_init(|| known))
    }

    fn get(&self) -> Option<&Arc<Market>> {
        self.found.get()
    }
}

struct LiveSource {
    live: Arc<Live>,
    target: Target,
    /// Until the stream exists that it belongs to.
    encode: Mutex<Option<Encode>>,
}

impl LiveSource {
    fn new(live: &Arc<Live>, target: Target, encode: Encode) -> Self {
        Self { live: live.clone(), target, encode: Mutex::new(Some(encode)) }
    }

    /// Begins to follow; `None` if the market is gone.
    fn follow(&self, stream: &Arc<ResponseStream>, encode: Encode) -> Option<Follower> {
        let live = &self.live;
        let followed = match &self.target {
            Target::Book { market, depth, speed, long } => {
                let market = market.find(live)?;
                let mut state = market.state.lock();
                let now = state.now(live);
                let drafter = long.clone().map(|long| drafter(long, live, market));
                let shape = (*depth, *speed);
                let own = BookStream::new(stream.clone(), shape, &now, encode, drafter);
                state.streams.insert(stream.id(), own);
                state.set_speed(stream.id(), *speed);
                let followed = Followed::Book(market.clone());
                let pace = (*speed).into();
                return Some(Follower { pace, ..Follower::new(stream, followed) });
            }
            Target::Candles { market, interval, fields } => {
                let market = market.find(live)?;
                let (states, shape) = (live.feed_states(), (*interval, *fields));
                market.candles.lock().attach(stream, shape, &states, encode);
                Followed::Candles(market.clone())
            }
            Target::Offers(markets) => {
                live.offers.lock().attach(stream, markets, encode);
                Followed::Offers
            }
            Target::Tickers(markets) => {
                live.tickers.lock().attach(stream, markets, encode);
                Followed::Tickers
            }
            Target::Topics { names, fields } => {
                live.topics.lock().attach(stream, names.clone(), (encode, *fields));
                Followed::Topics
            }
            Target::Feeds => {
                live.feeds.lock().attach(stream, encode);
                Followed::Feeds
            }
        };
        Some(Follower::new(stream, followed))
    }

    fn with_book(
        &self,
        market: &OneMarket,
        stream: &ResponseStream,
        act: impl FnOnce(&mut BookStream, &Now<'_>) -> Answer,
    ) -> Resume {
        let Some(market) = market.get() else { return Resume::CannotContinue };
        let mut state = market.state.lock();
        state.with(&self.live, stream.id(), act).map_or(Resume::CannotContinue, Resume::from)
    }

    /// Where a reader of many markets starts: now, or after some steps.
    fn start<T: MarketValue + Send + 'static>(
        &self,
        stream: &ResponseStream,
        from: StartFrom,
        streams: fn(&Live) -> &Mutex<MarketStreams<T>>,
    ) -> Resume {
        let (live, id) = (self.live.clone(), stream.id());
        let ask = move |live: &Live, step: &mut Step| {
            streams(live).lock().start(id, &from, live.now(), step)
        };
        if let Some(start) = ask(&live, &mut Step::begin()) {
            return start;
        }
        Resume::Pending(Box::pin(async move {
            match in_steps(&live.answering, |step| ask(&live, step)).await {
                Some((resume, took)) => engine::Answer { resume, took },
                None => Resume::CannotContinue.into(),
            }
        }))
    }
}

impl Source for LiveSource {
    fn attach(&self, stream: &Arc<ResponseStream>) {
        let Some(encode) = self.encode.lock().take() else { return };
        let encode = with_pace(stream, encode);
        let (markets, topics) = (self.target.markets(), self.target.topics());
        self.live.begin(markets, &topics, || self.follow(stream, encode));
    }

    fn join(&self, stream: &ResponseStream, after: Option<&str>) -> Resume {
        let live = &self.live;
        live.welcome_reader(stream.id());
        match &self.target {
            Target::Book { market, .. } | Target::Candles { market, .. }
                if market.get().is_none_or(|market| market.is_gone()) =>
            {
                Resume::Refused(gone())
            }
            Target::Book { market, .. } => {
                self.with_book(market, stream, |own, now| own.join(now, after))
            }
            Target::Candles { market, .. } => match market.get() {
                Some(market) => market.candles.lock().join(stream, after, &live.moment()),
                None => Resume::Refused(gone()),
            },
            Target::Offers(_) => self.start(stream, StartFrom::Nothing, |live| &live.offers),
            Target::Tickers(_) => {
                let from = live.tickers.lock().start_from(stream.id(), after);
                match from {
                    Ok(from) => self.start(stream, from, |live| &live.tickers),
                    Err(fault) => Resume::Refused(bad_cursor(fault)),
                }
            }
            Target::Topics { names, .. } => {
                let (id, after) = (stream.id(), after.map(str::to_owned));
                Replay::Joining.start(live, id, names, move |live, step| {
                    live.topics.lock().join(id, after.as_deref(), live.now(), step)
                })
            }
            Target::Feeds => live.feeds.lock().join(stream),
        }
    }

    fn catch_up(&self, stream: &ResponseStream, seen: u64) -> Resume {
        let live = &self.live;
        match &self.target {
            Target::Book { market, .. } => {
                self.with_book(market, stream, |own, now| own.catch_up(now, seen))
            }
            Target::Candles { market, .. } => match market.get() {
                Some(market) => market.candles.lock().catch_up(stream, seen, &live.moment()),
                None => Resume::CannotContinue,
            },
            Target::Offers(_) => self.start(stream, StartFrom::Seen(seen), |live| &live.offers),
            Target::Tickers(_) => self.start(stream, StartFrom::Seen(seen), |live| &live.tickers),
            Target::Topics { names, .. } => {
                let id = stream.id();
                Replay::CatchingUp.start(live, id, names, move |live, step| {
                    live.topics.lock().catch_up(id, seen, live.now(), step)
                })
            }
            Target::Feeds => live.feeds.lock().join(stream),
        }
    }

    fn advance(&self, stream: &ResponseStream) {
        self.live.welcome_reader(stream.id());
    }

    fn detach(&self, stream: &ResponseStream) {
        let live = &self.live;
        live.end(stream.id(), || match &self.target {
            Target::Book { market, .. } => {
                if let Some(market) = market.get() {
                    let mut state = market.state.lock();
                    state.streams.remove(&stream.id());
                    state.raw.remove(&stream.id());
                }
            }
            Target::Candles { market, .. } => {
                if let Some(market) = market.get() {
                    market.candles.lock().detach(stream);
                }
            }
            Target::Offers(_) => live.offers.lock().detach(stream),
            Target::Tickers(_) => live.tickers.lock().detach(stream),
            Target::Topics { .. } => live.topics.lock().detach(stream),
            Target::Feeds => live.feeds.lock().detach(stream),
        });
    }
}
