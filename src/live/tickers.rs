//! The tickers of all markets, and the streams that follow some of them. One lock for all of it: a
//! stream spans markets, and its ring wants rising sequences.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};
use spreadly_subscriptions::{Cursor, CursorError, Epoch, Frame, Position, ResponseStream, Resume};

use super::book_stream::{QUIET_BEATS, bad_cursor};
use super::follower::Touched;
use super::frame::{
    Encode, FeedState, LiveFrame, SnapshotReason, TickerFrame, TickerView, ticker_topic,
};
use super::offers::Stated;
use crate::market::bbo::BestBidOffer;
use crate::market::candles::Candle;
use crate::market::definition::{MarketDefinition, MarketId};
use crate::market::effect::Applied;
use crate::market::epochs::{EpochChange, EpochHistory, ResumeFrom};
use crate::market::levels::Level;
use crate::market::ticker::{LastTrade, Ticker};
use crate::market::time::Micros;
use crate::store::MarketCandles;

pub(super) struct Tickers {
    state: FeedState,
    /// Of the last event of the log that changed any ticker.
    sequence: u64,
    markets: HashMap<MarketId, Own>,
    streams: BTreeMap<u64, TickerStream>,
}

#[derive(Clone)]
pub(super) struct Own {
    definition: Arc<MarketDefinition>,
    epochs: EpochHistory,
    ticker: Ticker,
    /// Counts the events that changed it, and the times that the clock did.
    events: u64,
    rolls: u64,
    /// Streams that follow it and push each change.
    raw: BTreeSet<u64>,
}

struct TickerStream {
    stream: Arc<ResponseStream>,
    encode: Encode,
    /// Of the last frame in the ring: a sequence of the log, over all markets.
    last: u64,
    markets: BTreeMap<MarketId, Followed>,
}

/// What of a market a stream has pushed.
struct Followed {
    quiet_beats: u8,
    /// The ticker, encoded for earlier joiners and readers.
    stated: Stated,
    epoch: Epoch,
    sequence: u64,
    events: u64,
    rolls: u64,
    state: FeedState,
}

impl Followed {
    /// Whether the ticker says something else than what was pushed.
    fn is_behind(&self, known: &Own) -> bool {
        (self.events, self.rolls) != (known.events, known.rolls)
    }
}

/// What a frame says beside the ticker itself.
#[derive(Clone, Copy)]
struct Told {
    previous: Option<u64>,
    merged_events: u64,
    reason: Option<SnapshotReason>,
    /// Or nothing but that it lives.
    whole: bool,
    state: FeedState,
    now: Micros,
}

impl Own {
    fn view(&self, now: Micros) -> TickerView {
        TickerView {
            definition: self.definition.clone(),
            last: self.ticker.last,
            day: self.ticker.day(now),
            bid: self.ticker.bid,
            ask: self.ticker.ask,
        }
    }

    fn frame(&self, told: Told) -> LiveFrame {
        LiveFrame::Ticker(Box::new(TickerFrame {
            definition: self.definition.clone(),
            epoch: self.epochs.epoch(),
            sequence: self.ticker.sequence,
            previous: told.previous,
            merged_events: told.merged_events,
            reason: told.reason,
            ticker: told.whole.then(|| self.view(told.now)),
            event_time: self.ticker.event_time,
            publish_time: told.now,
            slowed_to: None,
            state: told.state,
        }))
    }

    fn followed(&self, state: FeedState) -> Followed {
        Followed {
            quiet_beats: 0,
            stated: Stated::default(),
            epoch: self.epochs.epoch(),
            sequence: self.ticker.sequence,
            events: self.events,
            rolls: self.rolls,
            state,
        }
    }

    /// An event changed it.
    fn changed(&mut self, touched: &mut Touched) {
        self.events += 1;
        touched.extend(&self.raw);
    }
}

impl Tickers {
    pub(super) fn new() -> Self {
        Self {
            state: FeedState::Live,
            sequence: 0,
            markets: HashMap::new(),
            streams: BTreeMap::new(),
        }
    }

    /// Defines a market, numbered so, or redefines it.
    pub(super) fn define(&mut self, definition: &Arc<MarketDefinition>, epochs: &EpochHistory) {
        let own = self.markets.entry(definition.market.clone()).or_insert_with(|| Own {
            definition: definition.clone(),
            epochs: epochs.clone(),
            ticker: Ticker::default(),
            events: 0,
            rolls: 0,
            raw: BTreeSet::new(),
        });
        own.definition = definition.clone();
        for stream in self.streams.values_mut() {
            if let Some(followed) = stream.markets.get_mut(&definition.market) {
                followed.stated.clear();
            }
        }
    }

    /// A market's ticker, to be followed elsewhere.
    pub(super) fn copy(&self, market: &str) -> Option<Own> {
        let own = self.markets.get(market)?.clone();
        Some(Own { raw: BTreeSet::new(), ..own })
    }

    /// Takes over a market's ticker as it is elsewhere; those that follow it stay.
    pub(super) fn adopt(&mut self, own: Own) {
        let id = own.definition.market.clone();
        self.sequence = self.sequence.max(own.ticker.sequence);
        let before = self.markets.remove(&id);
        let raw = before.map(|before| before.raw).unwrap_or_default();
        self.markets.insert(id, Own { raw, ..own });
    }

    pub(super) fn forget(&mut self, market: &str) {
        self.markets.remove(market);
    }

    pub(super) fn view(&self, market: &str, now: Micros) -> Option<TickerView> {
        self.markets.get(market).map(|own| own.view(now))
    }

    /// Sequence of the event that last changed a market's ticker; 0 if none did.
    pub(super) fn last(&self, market: &str) -> u64 {
        self.markets.get(market).map_or(0, |own| own.ticker.sequence)
    }

    /// Takes another top of a market's book.
    pub(super) fn change_offer(
        &mut self,
        market: &MarketId,
        best: (Option<Level>, Option<Level>),
        sequence: u64,
        event_time: Option<Micros>,
        touched: &mut Touched,
    ) {
        let Some(own) = self.markets.get_mut(market) else { return };
        if sequence <= own.ticker.sequence {
            return;
        }
        (own.ticker.bid, own.ticker.ask) = best;
        own.ticker.follow(sequence, event_time);
        own.changed(touched);
        self.sequence = self.sequence.max(sequence);
    }

    /// Takes a trade: its minute as it left it, and itself if it is the latest.
    pub(super) fn trade(
        &mut self,
        market: &MarketId,
        event: &Applied,
        minute: &Candle,
        last: Option<LastTrade>,
        now: Micros,
        touched: &mut Touched,
    ) {
        let Some(own) = self.markets.get_mut(market) else { return };
        if event.sequence <= own.ticker.sequence {
            return;
        }
        own.ticker.minute(minute.clone(), now);
        if let Some(last) = last {
            own.ticker.trade(last);
        }
        own.ticker.follow(event.sequence, event.time);
        own.changed(touched);
        self.sequence = self.sequence.max(event.sequence);
    }

    pub(super) fn restore(
        &mut self,
        known: &MarketCandles,
        last: Option<LastTrade>,
        event_time: Option<Micros>,
        now: Micros,
    ) {
        let Some(own) = self.markets.get_mut(&known.market) else { return };
        own.ticker.forget_trades();
        if let Some(last) = last {
            own.ticker.trade(last);
        }
        for minute in &known.minutes {
            own.ticker.minute(minute.clone(), now);
        }
        if let Some(newest) = known.trades.last() {
            own.ticker.follow(*newest, event_time);
        }
        self.sequence = self.sequence.max(own.ticker.sequence);
    }

    /// A market that was read from the log stands at least where its epoch began.
    pub(super) fn stand(&mut self, market: &str) {
        let Some(own) = self.markets.get_mut(market) else { return };
        own.ticker.sequence = own.ticker.sequence.max(own.epochs.since());
        self.sequence = self.sequence.max(own.ticker.sequence);
    }

    /// Takes what is left of a market once blocks were undone, and tells everyone anew: the top of
    /// its book, its trades as [`Tickers::restore`] does.
    pub(super) fn roll_back(
        &mut self,
        change: EpochChange,
        offer: &BestBidOffer,
        known: &MarketCandles,
        (last, event_time): (Option<LastTrade>, Option<Micros>),
        now: Micros,
        touched: &mut Touched,
    ) {
        let Some(own) = self.markets.get_mut(&known.market) else { return };
        if own.epochs.since() >= change.at {
            return;
        }
        own.epochs.begin(change);
        own.changed(touched);
        own.ticker = Ticker::default();
        (own.ticker.bid, own.ticker.ask) = (offer.bid, offer.ask);
        own.ticker.follow(offer.sequence, offer.event_time);
        self.restore(known, last, event_time, now);
        self.stand(&known.market);
    }

    pub(super) fn set_state(&mut self, state: FeedState, touched: &mut Touched) {
        self.state = state;
        touched.extend(self.streams.keys());
    }

    /// Called each second: touches the tickers whose oldest minutes have left.
    pub(super) fn roll(&mut self, now: Micros, touched: &mut Touched) {
        for own in self.markets.values_mut() {
            if own.ticker.forget(now) {
                own.rolls += 1;
                touched.extend(&own.raw);
            }
        }
    }

    /// Pushes what changed since the stream's last frames, of each market at most one frame.
    pub(super) fn advance(&mut self, stream: u64, now: Micros) {
        let Some(own) = self.streams.get_mut(&stream) else { return };
        let mut due: Vec<(u64, &MarketId)> = Vec::new();
        for (market, followed) in &own.markets {
            let Some(known) = self.markets.get(market) else { continue };
            if followed.is_behind(known)
                || followed.state != self.state
                || followed.epoch != known.epochs.epoch()
            {
                due.push((known.ticker.sequence, market));
            }
        }
        if due.is_empty() {
            return;
        }
        due.sort_unstable();
        let due: Vec<_> = due.into_iter().map(|(_, market)| market.clone()).collect();
        for market in due {
            own.push(&market, &self.markets[&market], self.state, now);
        }
    }

    /// Called each second: those that were quiet for long say that they live.
    pub(super) fn beat(&mut self, stream: u64, now: Micros) {
        let Some(own) = self.streams.get_mut(&stream) else { return };
        let quiet: Vec<_> = own
            .markets
            .iter_mut()
            .filter_map(|(market, followed)| {
                followed.quiet_beats += 1;
                (followed.quiet_beats >= QUIET_BEATS).then(|| market.clone())
            })
            .collect();
        for market in quiet {
            if let Some(known) = self.markets.get(&market) {
                own.push(&market, known, self.state, now);
            }
        }
    }

    /// Whether a stream pushes each change.
    pub(super) fn set_raw(&mut self, stream: u64, raw: bool) {
        let Some(own) = self.streams.get(&stream) else { return };
        for market in own.markets.keys() {
            if let Some(known) = self.markets.get_mut(market) {
                match raw {
                    true => known.raw.insert(stream),
                    false => known.raw.remove(&stream),
                };
            }
        }
    }

    pub(super) fn attach(
        &mut self,
        stream: &Arc<ResponseStream>,
        markets: &[MarketId],
        encode: Encode,
    ) {
        let id = stream.id();
        let mut followed = BTreeMap::new();
        for market in markets {
            let Some(own) = self.markets.get_mut(market) else { continue };
            own.raw.insert(id);
            followed.insert(market.clone(), own.followed(self.state));
        }
        let stream = stream.clone();
        let own = TickerStream { stream, encode, last: self.sequence, markets: followed };
        self.streams.insert(id, own);
    }

    pub(super) fn detach(&mut self, stream: &ResponseStream) {
        self.set_raw(stream.id(), false);
        self.streams.remove(&stream.id());
    }

    /// States each ticker, for who joins. A cursor is one market's: that one goes on behind it.
    pub(super) fn join(
        &mut self,
        stream: &ResponseStream,
        after: Option<&str>,
        now: Micros,
    ) -> Resume {
        // What follows in the ring follows what is stated.
        self.advance(stream.id(), now);
        let Some(own) = self.streams.get(&stream.id()) else { return Resume::TooSlow };
        let resumed = match after.map(|after| place(after, &own.markets)).transpose() {
            Ok(resumed) => resumed,
            Err(fault) => return Resume::Refused(bad_cursor(fault)),
        };
        self.state_all(stream, now, |market, own| {
            let Some((_, at)) = resumed.as_ref().filter(|(resumed, _)| resumed == market) else {
                return Err(SnapshotReason::Initial);
            };
            match own.epochs.resume(at, own.ticker.sequence) {
                ResumeFrom::After(seen) => Ok(seen),
                ResumeFrom::RolledBack { .. } => Err(SnapshotReason::of_epoch(&own.epochs)),
                ResumeFrom::Start => Err(SnapshotReason::EpochChange),
            }
        })
    }

    /// States each ticker for who lagged: it is the whole state, so nothing has to be merged.
    pub(super) fn catch_up(&mut self, stream: &ResponseStream, seen: u64, now: Micros) -> Resume {
        self.advance(stream.id(), now);
        self.state_all(stream, now, |_, own| Err(SnapshotReason::of_lag(seen, &own.epochs)))
    }

    /// Each ticker as it is, behind what a reader saw of it or anew for a reason.
    fn state_all(
        &mut self,
        stream: &ResponseStream,
        now: Micros,
        previous: impl Fn(&MarketId, &Own) -> Result<u64, SnapshotReason>,
    ) -> Resume {
        let Some(own) = self.streams.get_mut(&stream.id()) else { return Resume::TooSlow };
        let (sequence, encode, state) = (own.last, &mut own.encode, self.state);
        let mut frames = Vec::with_capacity(own.markets.len());
        for (market, followed) in &mut own.markets {
            let Some(known) = self.markets.get(market) else { continue };
            let told =
                Told { previous: None, merged_events: 0, reason: None, whole: true, state, now };
            let tail = match previous(market, known) {
                Ok(seen) => {
                    let told = Told { previous: Some(seen), ..told };
                    Frame::new(sequence, sequence, encode(known.frame(told))).tail
                }
                Err(reason) => followed.stated.get(reason, || {
                    let told = Told { reason: Some(reason), ..told };
                    encode(known.frame(told))
                }),
            };
            frames.push(Frame { previous: sequence, sequence, tail });
        }
        match frames.is_empty() {
            true => Resume::Ring { seen: own.last, next: own.stream.next_index() },
            false => Resume::Frames { frames, next: own.stream.next_index() },
        }
    }
}

impl TickerStream {
    /// Pushes a market's ticker: after what was pushed of it, or stated where an epoch began. Where
    /// nothing changed, only that it lives.
    fn push(&mut self, market: &MarketId, known: &Own, state: FeedState, now: Micros) {
        let Some(followed) = self.markets.get_mut(market) else { return };
        let same_epoch = followed.epoch == known.epochs.epoch();
        let told = Told {
            previous: same_epoch.then_some(followed.sequence),
            merged_events: if same_epoch { known.events - followed.events } else { 0 },
            reason: (!same_epoch).then(|| SnapshotReason::of_epoch(&known.epochs)),
            whole: followed.is_behind(known),
            state,
            now,
        };
        *followed = known.followed(state);
        let bytes = (self.encode)(known.frame(told));
        // Over all markets of the stream, so that its numbers rise.
        let sequence = self.last.max(known.ticker.sequence);
        self.stream.push(Frame::new(self.last, sequence, bytes));
        self.last = sequence;
    }
}

/// Which of the stream's markets a cursor stands on.
fn place(
    after: &str,
    markets: &BTreeMap<MarketId, Followed>,
) -> Result<(MarketId, Position), CursorError> {
    let cursor = Cursor::decode(after)?;
    markets
        .keys()
        .find_map(|market| Some((market.clone(), cursor.only(ticker_topic(market)).ok()?)))
        .ok_or(CursorError::OtherTopic)
}
