//! The tickers of all markets, and the streams that follow some of them. One lock for all of it: a
//! stream spans markets, and its ring wants rising sequences.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};
use spreadly_subscriptions::{Cursor, CursorError, Frame, Position, ResponseStream, Start};

use super::book_stream::{QUIET_BEATS, bad_cursor};
use super::frame::{
    Encode, FeedState, LiveFrame, SnapshotReason, TickerFrame, TickerView, ticker_topic,
};
use super::offers::Stated;
use crate::market::bbo::BestBidOffer;
use crate::market::book::Level;
use crate::market::candles::Candle;
use crate::market::event::{Applied, MarketDefinition, MarketId, Micros};
use crate::market::numbering::{Numbering, Standing, Undoing};
use crate::market::ticker::{LastTrade, Ticker};
use crate::store::MarketCandles;

pub(super) struct Tickers {
    state: FeedState,
    /// Of the last event of the log that changed any ticker.
    sequence: u64,
    markets: HashMap<MarketId, Own>,
    streams: BTreeMap<u64, TickerStream>,
}

struct Own {
    definition: Arc<MarketDefinition>,
    numbering: Numbering,
    ticker: Ticker,
}

struct TickerStream {
    stream: Arc<ResponseStream>,
    encode: Encode,
    /// Of the last frame in the ring: a sequence of the log, over all markets.
    last: u64,
    markets: BTreeMap<MarketId, Followed>,
}

#[derive(Default)]
struct Followed {
    quiet_beats: u8,
    /// The ticker, encoded for earlier joiners and readers.
    stated: Stated,
}

/// What a frame says beside the ticker itself.
#[derive(Clone, Copy)]
struct Told {
    previous: Option<u64>,
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
            epoch: self.numbering.epoch(),
            sequence: self.ticker.sequence,
            previous: told.previous,
            reason: told.reason,
            ticker: told.whole.then(|| self.view(told.now)),
            event_time: self.ticker.event_time,
            publish_time: told.now,
            state: told.state,
        }))
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
    pub(super) fn define(&mut self, definition: &Arc<MarketDefinition>, numbering: &Numbering) {
        let own = self.markets.entry(definition.market.clone()).or_insert_with(|| Own {
            definition: definition.clone(),
            numbering: numbering.clone(),
            ticker: Ticker::default(),
        });
        own.definition = definition.clone();
        for stream in self.streams.values_mut() {
            if let Some(followed) = stream.markets.get_mut(&definition.market) {
                followed.stated.clear();
            }
        }
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
        now: Micros,
    ) {
        let Some(own) = self.markets.get_mut(market) else { return };
        (own.ticker.bid, own.ticker.ask) = best;
        let previous = own.ticker.follow(sequence, event_time);
        self.push(market, Ok(previous), true, now);
    }

    /// Takes a trade: its minute as it left it, and itself if it is the latest.
    pub(super) fn trade(
        &mut self,
        market: &MarketId,
        event: &Applied,
        minute: &Candle,
        last: Option<LastTrade>,
        now: Micros,
    ) {
        let Some(own) = self.markets.get_mut(market) else { return };
        own.ticker.minute(minute.clone(), now);
        if let Some(last) = last {
            own.ticker.trade(last);
        }
        let previous = own.ticker.follow(event.sequence, event.time);
        self.push(market, Ok(previous), true, now);
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
        own.ticker.sequence = own.ticker.sequence.max(own.numbering.since());
        self.sequence = self.sequence.max(own.ticker.sequence);
    }

    /// Takes what is left of a market once blocks were undone, and tells everyone anew: the top of
    /// its book, its trades as [`Tickers::restore`] does.
    pub(super) fn reorganise(
        &mut self,
        undoing: Undoing,
        offer: &BestBidOffer,
        known: &MarketCandles,
        (last, event_time): (Option<LastTrade>, Option<Micros>),
        now: Micros,
    ) {
        let Some(own) = self.markets.get_mut(&known.market) else { return };
        own.numbering.undo(undoing);
        let reason = SnapshotReason::of_epoch(&own.numbering);
        own.ticker = Ticker::default();
        (own.ticker.bid, own.ticker.ask) = (offer.bid, offer.ask);
        own.ticker.follow(offer.sequence, offer.event_time);
        self.restore(known, last, event_time, now);
        self.stand(&known.market);
        self.push(&known.market, Err(reason), true, now);
    }

    pub(super) fn set_state(&mut self, state: FeedState, now: Micros) {
        self.state = state;
        for market in self.followed(|_| true) {
            self.repeat(&market, false, now);
        }
    }

    /// Called each second: tells tickers whose oldest minutes have left, and that quiet ones live.
    pub(super) fn beat(&mut self, now: Micros) {
        let mut moved: Vec<_> = Vec::new();
        for (market, own) in &mut self.markets {
            if own.ticker.forget(now) {
                moved.push(market.clone());
            }
        }
        for market in moved {
            self.repeat(&market, true, now);
        }
        let quiet = self.followed(|followed| {
            followed.quiet_beats += 1;
            followed.quiet_beats >= QUIET_BEATS
        });
        for market in quiet {
            self.repeat(&market, false, now);
        }
    }

    /// Markets that some stream follows and that `due` takes there.
    fn followed(&mut self, due: impl Fn(&mut Followed) -> bool) -> Vec<MarketId> {
        let mut all = Vec::new();
        for stream in self.streams.values_mut() {
            for (market, followed) in &mut stream.markets {
                if due(followed) {
                    all.push(market.clone());
                }
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Where no event came.
    fn repeat(&mut self, market: &MarketId, whole: bool, now: Micros) {
        let Some(own) = self.markets.get(market) else { return };
        self.push(market, Ok(own.ticker.sequence), whole, now);
    }

    /// Pushes a ticker behind the change before it, or anew for a reason.
    fn push(
        &mut self,
        market: &MarketId,
        previous: Result<u64, SnapshotReason>,
        whole: bool,
        now: Micros,
    ) {
        let Some(own) = self.markets.get(market) else { return };
        let event = previous != Ok(own.ticker.sequence);
        self.sequence = self.sequence.max(own.ticker.sequence);
        let (previous, reason) = (previous.ok(), previous.err());
        for stream in self.streams.values_mut() {
            let Some(followed) = stream.markets.get_mut(market) else { continue };
            *followed = Followed::default();
            let told = Told { previous, reason, whole, state: self.state, now };
            let bytes = (stream.encode)(own.frame(told));
            // Over all markets of the stream, so that its numbers rise.
            let sequence = if event { stream.last.max(own.ticker.sequence) } else { stream.last };
            stream.stream.push(Frame::new(stream.last, sequence, bytes));
            stream.last = sequence;
        }
    }

    pub(super) fn attach(
        &mut self,
        stream: &Arc<ResponseStream>,
        markets: &[MarketId],
        encode: Encode,
    ) {
        let markets = markets.iter().map(|id| (id.clone(), Followed::default())).collect();
        let last = self.sequence;
        let own = TickerStream { stream: stream.clone(), encode, last, markets };
        self.streams.insert(stream.id(), own);
    }

    pub(super) fn detach(&mut self, stream: &ResponseStream) {
        self.streams.remove(&stream.id());
    }

    /// States each ticker, for who joins. A cursor is one market's: that one goes on behind it.
    pub(super) fn join(
        &mut self,
        stream: &ResponseStream,
        after: Option<&str>,
        now: Micros,
    ) -> Start {
        let Some(own) = self.streams.get(&stream.id()) else { return Start::TooSlow };
        let resumed = match after.map(|after| place(after, &own.markets)).transpose() {
            Ok(resumed) => resumed,
            Err(fault) => return Start::Refused(bad_cursor(fault)),
        };
        self.state_all(stream, now, |market, own| {
            let Some((_, at)) = resumed.as_ref().filter(|(resumed, _)| resumed == market) else {
                return Err(SnapshotReason::Initial);
            };
            match own.numbering.standing(at) {
                Standing::Now if at.sequence <= own.ticker.sequence => Ok(at.sequence),
                Standing::Earlier { .. } => Err(SnapshotReason::of_epoch(&own.numbering)),
                // A sequence of the same epoch that the log has not reached: it lost its end.
                Standing::Now | Standing::Unknown => Err(SnapshotReason::EpochChange),
            }
        })
    }

    /// States each ticker for who lagged: it is the whole state, so nothing has to be merged.
    pub(super) fn catch_up(&mut self, stream: &ResponseStream, seen: u64, now: Micros) -> Start {
        self.state_all(stream, now, |_, own| Err(SnapshotReason::of_lag(seen, &own.numbering)))
    }

    /// Each ticker as it is, behind what a reader saw of it or anew for a reason.
    fn state_all(
        &mut self,
        stream: &ResponseStream,
        now: Micros,
        previous: impl Fn(&MarketId, &Own) -> Result<u64, SnapshotReason>,
    ) -> Start {
        let Some(own) = self.streams.get_mut(&stream.id()) else { return Start::TooSlow };
        let (sequence, encode, state) = (own.last, &mut own.encode, self.state);
        let mut frames = Vec::with_capacity(own.markets.len());
        for (market, followed) in &mut own.markets {
            let Some(known) = self.markets.get(market) else { continue };
            let told = Told { previous: None, reason: None, whole: true, state, now };
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
            true => Start::Ring { seen: own.last, next: own.stream.next_index() },
            false => Start::Frames { frames, next: own.stream.next_index() },
        }
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
