//! The tickers of all markets, and the streams that follow some of them. One lock for all of it: a
//! stream spans markets, and its ring wants rising sequences.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use spreadly_subscriptions::{Cursor, CursorError, Epoch, Frame, Position, ResponseStream, Start};

use super::book_stream::{QUIET_BEATS, bad_cursor};
use super::frame::{Encode, FeedState, LiveFrame, TickerFrame, TickerView, ticker_topic};
use crate::market::book::Level;
use crate::market::candles::Candle;
use crate::market::event::{Applied, MarketDefinition, MarketId, Micros};
use crate::market::ticker::{LastTrade, Ticker};
use crate::store::MarketCandles;

pub(super) struct Tickers {
    epoch: Epoch,
    state: FeedState,
    /// Of the last event of the log that changed any ticker.
    sequence: u64,
    markets: HashMap<MarketId, Own>,
    streams: BTreeMap<u64, TickerStream>,
}

struct Own {
    definition: Arc<MarketDefinition>,
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
    /// The ticker, encoded for an earlier joiner.
    stated: Option<Frame>,
}

/// What a frame says beside the ticker itself.
#[derive(Clone, Copy)]
struct Told {
    previous: Option<u64>,
    /// Or nothing but that it lives.
    whole: bool,
    state: FeedState,
    epoch: Epoch,
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
            epoch: told.epoch,
            sequence: self.ticker.sequence,
            previous: told.previous,
            ticker: told.whole.then(|| self.view(told.now)),
            event_time: self.ticker.event_time,
            publish_time: told.now,
            state: told.state,
        }))
    }
}

impl Tickers {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            state: FeedState::Live,
            sequence: 0,
            markets: HashMap::new(),
            streams: BTreeMap::new(),
        }
    }

    pub(super) fn define(&mut self, definition: &Arc<MarketDefinition>) {
        let own = self
            .markets
            .entry(definition.market.clone())
            .or_insert_with(|| Own { definition: definition.clone(), ticker: Ticker::default() });
        own.definition = definition.clone();
        for stream in self.streams.values_mut() {
            if let Some(followed) = stream.markets.get_mut(&definition.market) {
                followed.stated = None;
            }
        }
    }

    pub(super) fn view(&self, market: &str, now: Micros) -> Option<TickerView> {
        self.markets.get(market).map(|own| own.view(now))
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
        self.push(market, Some(previous), true, now);
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
        self.push(market, Some(previous), true, now);
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
        self.push(&known.market, None, true, now);
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
        let sequence = self.markets.get(market).map(|own| own.ticker.sequence);
        self.push(market, sequence, whole, now);
    }

    fn push(&mut self, market: &MarketId, previous: Option<u64>, whole: bool, now: Micros) {
        let Some(own) = self.markets.get(market) else { return };
        let event = previous != Some(own.ticker.sequence);
        self.sequence = self.sequence.max(own.ticker.sequence);
        for stream in self.streams.values_mut() {
            let Some(followed) = stream.markets.get_mut(market) else { continue };
            *followed = Followed::default();
            let told = Told { previous, whole, state: self.state, epoch: self.epoch, now };
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

    /// States each ticker, for who joins and for who lagged: it is the whole state, so nothing has
    /// to be merged. A cursor is one market's: that one goes on behind it.
    pub(super) fn join(
        &mut self,
        stream: &ResponseStream,
        after: Option<&str>,
        now: Micros,
    ) -> Start {
        let Some(own) = self.streams.get_mut(&stream.id()) else { return Start::TooSlow };
        let resumed = match after.map(|after| place(after, &own.markets)).transpose() {
            Ok(resumed) => resumed,
            Err(fault) => return Start::Refused(bad_cursor(fault)),
        };
        let mut frames = Vec::with_capacity(own.markets.len());
        for (market, followed) in &mut own.markets {
            let Some(known) = self.markets.get(market) else { continue };
            let sequence = own.last;
            let told =
                Told { previous: None, whole: true, state: self.state, epoch: self.epoch, now };
            let follows = resumed.as_ref().filter(|(resumed, at)| {
                resumed == market && at.epoch == self.epoch && at.sequence <= known.ticker.sequence
            });
            let encode = &mut own.encode;
            let tail = match follows {
                Some((_, at)) => {
                    let told = Told { previous: Some(at.sequence), ..told };
                    Frame::new(sequence, sequence, encode(known.frame(told))).tail
                }
                None => {
                    let stated = followed.stated.get_or_insert_with(|| {
                        Frame::new(sequence, sequence, encode(known.frame(told)))
                    });
                    stated.tail.clone()
                }
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
