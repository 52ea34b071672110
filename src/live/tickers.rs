//! The tickers of all markets, and the streams that follow some of them.

use spreadly_subscriptions::{Cursor, CursorError};

use super::feed_states::FeedStates;
use super::frame::{FeedState, LiveFrame, TickerFrame, TickerView, ticker_topic};
use super::market_streams::{FrameLink, MarketEntry, MarketStreams, MarketValue};
use super::pace::Touched;
use super::start_from::StartFrom;
use crate::market::bbo::BestBidOffer;
use crate::market::candles::Candle;
use crate::market::definition::MarketId;
use crate::market::effect::Applied;
use crate::market::epochs::EpochChange;
use crate::market::levels::Level;
use crate::market::ticker::{LastTrade, Ticker};
use crate::market::time::Micros;
use crate::store::MarketCandles;

pub(super) type Tickers = MarketStreams<Ticker>;

impl MarketValue for Ticker {
    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn set_sequence(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    fn feed_state(states: &FeedStates, market: &str) -> FeedState {
        states.of_market(market)
    }

    fn frame(entry: &MarketEntry<Self>, link: FrameLink) -> LiveFrame {
        LiveFrame::Ticker(Box::new(TickerFrame {
            definition: entry.definition.clone(),
            epoch: entry.epochs.epoch(),
            sequence: entry.value.sequence,
            previous: link.previous,
            merged_events: link.merged_events,
            reason: link.reason,
            ticker: (!link.is_heartbeat).then(|| view(entry, link.now)),
            event_time: entry.value.event_time,
            publish_time: link.now,
            slowed_to: None,
            state: link.state,
        }))
    }
}

fn view(entry: &MarketEntry<Ticker>, now: Micros) -> TickerView {
    let ticker = &entry.value;
    TickerView {
        definition: entry.definition.clone(),
        last: ticker.last,
        day: ticker.day(now),
        bid: ticker.bid,
        ask: ticker.ask,
    }
}

impl Tickers {
    pub(super) fn view(&self, market: &str, now: Micros) -> Option<TickerView> {
        self.entry(market).map(|entry| view(entry, now))
    }

    /// Sequence of the event that last changed a market's ticker; 0 if none did.
    pub(super) fn last(&self, market: &str) -> u64 {
        self.entry(market).map_or(0, |entry| entry.value.sequence)
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
        self.change(market, touched, |ticker| {
            let is_new = sequence > ticker.sequence;
            if is_new {
                (ticker.bid, ticker.ask) = best;
                ticker.follow(sequence, event_time);
            }
            is_new
        });
    }

    /// Takes a trade: its minute after it, and the trade itself if it is the latest.
    pub(super) fn trade(
        &mut self,
        market: &MarketId,
        event: &Applied,
        minute: &Candle,
        last: Option<LastTrade>,
        now: Micros,
        touched: &mut Touched,
    ) {
        self.change(market, touched, |ticker| {
            let is_new = event.sequence > ticker.sequence;
            if is_new {
                ticker.minute(minute.clone(), now);
                if let Some(last) = last {
                    ticker.trade(last);
                }
                ticker.follow(event.sequence, event.time);
            }
            is_new
        });
    }

    pub(super) fn restore(
        &mut self,
        known: &MarketCandles,
        last: Option<LastTrade>,
        event_time: Option<Micros>,
        now: Micros,
    ) {
        self.put_back(&known.market, |ticker| {
            restore_trades(ticker, known, last, event_time, now);
        });
    }

    /// Takes what is left of a market after a rollback: the top of its book, and its trades as
    /// [`Tickers::restore`] does.
    pub(super) fn roll_back(
        &mut self,
        change: EpochChange,
        offer: &BestBidOffer,
        known: &MarketCandles,
        (last, event_time): (Option<LastTrade>, Option<Micros>),
        now: Micros,
        touched: &mut Touched,
    ) {
        self.begin_epoch(&known.market, change, touched, |ticker| {
            *ticker = Ticker::default();
            (ticker.bid, ticker.ask) = (offer.bid, offer.ask);
            ticker.follow(offer.sequence, offer.event_time);
            restore_trades(ticker, known, last, event_time, now);
        });
    }

    /// Called each second: touches the tickers whose oldest minutes have left.
    pub(super) fn roll(&mut self, now: Micros, touched: &mut Touched) {
        self.roll_all(touched, |ticker| ticker.forget(now));
    }

    /// Where a reader of this stream starts with its cursor, which is of one of its markets.
    pub(super) fn start_from(
        &self,
        stream: u64,
        after: Option<&str>,
    ) -> Result<StartFrom, CursorError> {
        let Some(after) = after else { return Ok(StartFrom::Nothing) };
        let cursor = Cursor::decode(after)?;
        let mut markets = self.markets_of(stream).into_iter().flatten();
        markets
            .find_map(|market| {
                let position = cursor.only(ticker_topic(market)).ok()?;
                Some(StartFrom::Cursor(market.clone(), position))
            })
            .ok_or(CursorError::OtherTopic)
    }
}

fn restore_trades(
    ticker: &mut Ticker,
    known: &MarketCandles,
    last: Option<LastTrade>,
    event_time: Option<Micros>,
    now: Micros,
) {
    ticker.forget_trades();
    if let Some(last) = last {
        ticker.trade(last);
    }
    for minute in &known.minutes {
        ticker.minute(minute.clone(), now);
    }
    if let Some(newest) = known.trades.last() {
        ticker.follow(*newest, event_time);
    }
}
