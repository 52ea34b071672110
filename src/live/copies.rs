//! A worker's copy of the live state: it has the markets and topics that the worker's streams
//! follow, and nothing else. What is missing is copied from the origin when a stream begins to
//! follow it; from then on the copy takes the same events in the same order.
//!
//! No event is missed in between. The origin takes an event first, then it is handed to the copies.
//! A copy takes an event only while nothing is copied, and passes over events that what it copied
//! has taken already: sequences say which these are.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use foldhash::HashMap;
use parking_lot::{Mutex, MutexGuard};
use spreadly_subscriptions::Schedule;
use tokio::time::Instant;

use super::Live;
use super::follower::Follower;
use super::frame::TopicName;
use super::markets::{Market, MarketState};
use super::pace::Touched;
use crate::market::definition::MarketId;

/// How many streams of a copy need a market.
#[derive(Default)]
pub(super) struct Copied {
    markets: HashMap<MarketId, usize>,
}

impl Live {
    /// A copy of `origin` that has no market and no topic yet. The streams of one owner that follow
    /// it may cost this many microseconds a second.
    pub(super) fn copy_of(origin: &Arc<Self>, stream_cost_rate: u32) -> Self {
        let clock = origin.clone();
        let clock = Box::new(move || clock.now());
        let mut copy = Self::new(origin.epoch, clock, origin.journal_touches, origin.log.clone());
        copy.snapshot_encodings = origin.snapshot_encodings.clone();
        copy.applied.reset(origin.applied.get());
        copy.origin = Some(origin.clone());
        copy.schedule = Mutex::new(Schedule::new(stream_cost_rate, Instant::now()));
        copy.take_from_origin(&mut Touched::new());
        copy.topics.lock().adopt_epochs(&origin.topics.lock());
        copy
    }

    /// Copies what every stream may follow: the state of the feeds.
    fn take_from_origin(&self, touched: &mut Touched) {
        let Some(origin) = &self.origin else { return };
        self.take_feed_states(origin.feed_states(), touched);
        let views = origin.feeds();
        self.feeds.lock().set(views, touched);
    }

    /// Held while something is copied, and while an event is taken.
    pub(super) fn copying(&self) -> MutexGuard<'_, Copied> {
        self.copying.lock()
    }

    /// Lets a stream follow the markets and topics that it names: they are copied if they are not
    /// here. `attach` then begins to follow them.
    pub(super) fn begin(
        &self,
        markets: &[MarketId],
        topics: &Arc<[TopicName]>,
        attach: impl FnOnce() -> Option<Follower>,
    ) {
        let mut copied = self.copying();
        // Before anything is copied: from now on events are handed on.
        self.following.fetch_add(1, Ordering::SeqCst);
        if self.origin.is_some() {
            for market in markets {
                let count = copied.markets.entry(market.clone()).or_default();
                *count += 1;
                if *count == 1 {
                    self.copy_market(market);
                }
            }
            self.copy_topics(topics, false);
        }
        match attach() {
            Some(follower) => {
                self.follow(Follower { markets: markets.to_vec(), ..follower });
            }
            None => self.give_back(&mut copied, markets),
        }
    }

    /// A stream follows no longer; `detach` ends it.
    pub(super) fn end(&self, stream: u64, detach: impl FnOnce()) {
        let mut copied = self.copying();
        detach();
        let Some(follower) = self.unfollow(stream) else { return };
        self.give_back(&mut copied, &follower.markets);
    }

    /// Forgets what no stream follows any more.
    fn give_back(&self, copied: &mut Copied, markets: &[MarketId]) {
        self.following.fetch_sub(1, Ordering::SeqCst);
        if self.origin.is_none() {
            return;
        }
        for market in markets {
            let Some(count) = copied.markets.get_mut(market) else { continue };
            *count -= 1;
            if *count == 0 {
                copied.markets.remove(market);
                self.markets.write().remove(market);
                self.offers.lock().forget(market);
                self.tickers.lock().forget(market);
            }
        }
        self.topics.lock().forget_unfollowed();
    }

    /// Events were lost on their way here: everything is copied again.
    pub(super) fn copy_again(&self, copied: &Copied, touched: &mut Touched) {
        let Some(origin) = &self.origin else { return };
        self.applied.raise_to(origin.applied.get());
        self.take_from_origin(touched);
        self.topics.lock().adopt_epochs(&origin.topics.lock());
        for market in copied.markets.keys() {
            self.copy_market(market);
        }
        let topics = self.topics.lock().followed();
        self.copy_topics(&topics, true);
        touched.extend(self.followers.lock().keys());
    }

    fn copy_topics(&self, names: &[TopicName], again: bool) {
        if let (Some(origin), false) = (&self.origin, names.is_empty()) {
            let ends = origin.topics.lock().copy(names);
            self.topics.lock().adopt(ends, again);
        }
    }

    fn copy_market(&self, id: &MarketId) {
        let Some((origin, theirs)) =
            self.origin.as_ref().and_then(|origin| Some((origin, origin.known(id)?)))
        else {
            return;
        };
        let state = theirs.state.lock().copy();
        let has_gap = state.gap.is_some();
        let candles = theirs.candles.lock().copy();
        match self.known(id) {
            Some(own) => {
                own.gone.store(theirs.is_gone(), Ordering::Release);
                own.state.lock().adopt(state);
                own.candles.lock().adopt(candles);
            }
            None => {
                let market = Market {
                    state: Mutex::new(state),
                    candles: Mutex::new(candles),
                    gone: AtomicBool::new(theirs.is_gone()),
                };
                self.markets.write().insert(id.clone(), Arc::new(market));
            }
        }
        let offer = origin.offers.lock().copy(id);
        if let Some(offer) = offer {
            self.offers.lock().adopt(offer);
        }
        let ticker = origin.tickers.lock().copy(id);
        if let Some(ticker) = ticker {
            self.tickers.lock().adopt(ticker);
        }
        // Offer and ticker were copied later than the book.
        self.set_gap(id, has_gap, &mut Touched::new());
    }

    /// Whether a definition is newer than what is known of the market here. A copy takes only those
    /// of markets that it has.
    pub(super) fn takes_definition(&self, market: &str, sequence: u64) -> bool {
        match self.known(market) {
            Some(own) => self.origin.is_none() || own.state.lock().defined_at < sequence,
            None => self.origin.is_none(),
        }
    }
}

impl MarketState {
    /// The state without the streams.
    fn copy(&self) -> Self {
        Self {
            definition: self.definition.clone(),
            epochs: self.epochs.clone(),
            book: self.book.clone(),
            has_book: self.has_book,
            gap: self.gap.clone(),
            event_time: self.event_time,
            checksum: OnceCell::new(),
            defined_at: self.defined_at,
            restated: self.restated,
            streams: std::collections::BTreeMap::new(),
            raw: BTreeSet::new(),
        }
    }

    /// Replaces the state by a copy; the streams stay.
    fn adopt(&mut self, copy: Self) {
        let (streams, raw) = (std::mem::take(&mut self.streams), std::mem::take(&mut self.raw));
        *self = Self { streams, raw, ..copy };
    }
}
