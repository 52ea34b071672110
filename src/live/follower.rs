//! The streams that follow the live state: what each follows, and how it is advanced.
//! An event only marks the streams that it touches. Frames are resolved and encoded when a stream
//! has its turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use spreadly_subscriptions::{Pace, Readership, ResponseStream};
use tokio::time::Instant;

use super::Live;
use super::markets::Market;
use super::pace::Touched;
use super::steps::Step;
use crate::market::definition::MarketId;

/// What a stream follows.
pub(super) enum Followed {
    Book(Arc<Market>),
    Candles(Arc<Market>),
    Offers,
    Tickers,
    Topics,
    Feeds,
}

/// See the module's text.
pub struct Follower {
    pub(super) stream: Arc<ResponseStream>,
    pub(super) followed: Followed,
    /// Markets whose state it needs.
    pub(super) markets: Vec<MarketId>,
    /// As its clients asked for.
    pub(super) pace: Pace,
    /// It has changes to push that it was not scheduled for, as nobody read it.
    pub(super) skipped: AtomicBool,
}

impl Follower {
    pub(super) fn new(stream: &Arc<ResponseStream>, followed: Followed) -> Self {
        Self {
            stream: stream.clone(),
            followed,
            markets: Vec::new(),
            pace: Pace::Raw,
            skipped: AtomicBool::new(false),
        }
    }

    /// How many clients read it, if it has any. Otherwise the next one that joins advances it.
    pub(super) fn readership(&self) -> Option<Readership> {
        let current = || Some(self.stream.readership()).filter(|now| now.readers > 0);
        current().or_else(|| {
            self.skipped.store(true, Ordering::Relaxed);
            // A reader that is not seen here sees the mark.
            fence(Ordering::SeqCst);
            current()
        })
    }

    /// What it pushes into.
    pub fn stream(&self) -> &ResponseStream {
        &self.stream
    }
}

impl Live {
    /// A stream begins to follow.
    pub(super) fn follow(&self, follower: Follower) {
        let id = follower.stream.id();
        let (pace, owner) = (follower.pace, follower.stream.owner());
        self.followers.lock().insert(id, Arc::new(follower));
        self.schedule.lock().add(id, pace, owner, Instant::now());
    }

    /// A stream ends.
    pub(super) fn unfollow(&self, stream: u64) -> Option<Arc<Follower>> {
        self.schedule.lock().remove(stream);
        let mut followers = self.followers.lock();
        self.shared.lock().remove(&stream);
        followers.remove(&stream)
    }

    /// Takes out the streams that several clients read. It looks at no other stream, so that many
    /// others do not delay the frames of these.
    pub(super) fn take_shared(&self, touched: &mut Touched) -> Touched {
        let followers = self.followers.lock();
        let mut shared = self.shared.lock();
        let taken: Touched = touched.extract_if(.., |id| shared.contains(id)).collect();
        for id in &taken {
            if followers.get(id).is_none_or(|one| one.stream.readership().readers <= 1) {
                shared.remove(id);
            }
        }
        taken
    }

    /// The streams that follow.
    pub fn followers(&self) -> Vec<Arc<Follower>> {
        self.followers.lock().values().cloned().collect()
    }

    pub(super) fn follower(&self, stream: u64) -> Option<Arc<Follower>> {
        self.followers.lock().get(&stream).cloned()
    }

    /// Advances these streams, in this order.
    pub(super) fn advance_all(&self, touched: &[u64]) {
        for stream in touched {
            if let Some(follower) = self.follower(*stream) {
                self.advance(&follower);
            }
        }
    }

    /// Pushes what a stream has not pushed yet; nothing if there is nothing.
    pub fn advance(&self, follower: &Follower) {
        self.advance_step(follower, &mut Step::whole());
    }

    /// As [`Self::advance`]. Of many markets or topics only what belongs to this step: false if
    /// more is left.
    pub(super) fn advance_step(&self, follower: &Follower, step: &mut Step) -> bool {
        let id = follower.stream.id();
        match &follower.followed {
            Followed::Book(market) => {
                market.state.lock().with(self, id, |stream, now| stream.advance(now));
            }
            Followed::Candles(market) => market.candles.lock().advance(id, &self.moment()),
            Followed::Offers => return self.offers.lock().advance(id, self.now(), step),
            Followed::Tickers => return self.tickers.lock().advance(id, self.now(), step),
            Followed::Topics => return self.topics.lock().advance(id, self.now(), step),
            Followed::Feeds => self.feeds.lock().advance(id),
        }
        true
    }

    /// A reader joins a stream, or takes frames again, and is counted already: pushes what was left
    /// out while nobody read the stream.
    pub(super) fn welcome_reader(&self, stream: u64) {
        let followers = self.followers.lock();
        let Some(follower) = followers.get(&stream).cloned() else { return };
        if follower.stream.readership().readers > 1 {
            self.shared.lock().insert(stream);
        }
        drop(followers);
        fence(Ordering::SeqCst);
        if !follower.skipped.swap(false, Ordering::Relaxed) {
            return;
        }
        // Where no worker serves the schedule, nothing is left for later.
        let mut step = if self.origin.is_some() { Step::begin() } else { Step::whole() };
        if !self.advance_step(&follower, &mut step) {
            self.schedule_unawaited(&follower);
            self.wake.notify_one();
        }
    }

    /// Puts a stream into the schedule that no event waits for.
    pub(super) fn schedule_unawaited(&self, follower: &Follower) {
        if let Some(readership) = follower.readership() {
            self.schedule.lock().ready_unawaited(follower.stream.id(), readership);
        }
    }

    /// Call it each second: a stream that was quiet for long pushes a heartbeat. True if it is to
    /// be advanced for that, as it may have many to push.
    pub fn beat(&self, follower: &Follower) -> bool {
        let id = follower.stream.id();
        match &follower.followed {
            Followed::Book(market) => {
                market.state.lock().with(self, id, |stream, now| stream.beat(now));
            }
            Followed::Candles(market) => market.candles.lock().beat(id, &self.moment()),
            Followed::Offers => return self.offers.lock().beat(id),
            Followed::Tickers => return self.tickers.lock().beat(id),
            Followed::Topics => return self.topics.lock().beat(id),
            // Touched as a whole, see [`Live::roll`].
            Followed::Feeds => {}
        }
        false
    }

    /// Sets how often a stream pushes.
    pub fn set_pace(&self, follower: &Follower, pace: Pace) {
        let (id, raw) = (follower.stream.id(), pace == Pace::Raw);
        match &follower.followed {
            Followed::Book(market) => market.state.lock().set_speed(id, pace.into()),
            Followed::Candles(market) => market.candles.lock().set_raw(id, raw),
            Followed::Offers => self.offers.lock().set_raw(id, raw),
            Followed::Tickers => self.tickers.lock().set_raw(id, raw),
            Followed::Topics => self.topics.lock().set_raw(id, raw),
            Followed::Feeds => {}
        }
    }
}
