//! The schema's tickers: thin views of what the live topics publish.

use async_graphql::{ID, Object};

use super::book::PriceLevel;
use super::candle::notional;
use super::feed::FeedState;
use super::head::{BookSpeed, SnapshotReason};
use super::market::{Market, Side};
use super::scalars::{Cursor, DateTime, Decimal, UInt64};
use crate::live::{self, TickerView, age_ms};
use crate::market::fixed;
use crate::market::levels::Level;
use crate::market::ticker::Day;

/// A summary of a market's trades and of its best bid and offer. "24 hours" means the current
/// minute and the 1,439 minutes before it, by the hub's clock.
pub struct Ticker(pub TickerView);

impl Ticker {
    fn price(&self, value: fixed::Fixed) -> Decimal {
        Decimal::new(value, self.0.definition.price_decimals)
    }

    fn day(&self) -> Option<&Day> {
        self.0.day.as_ref()
    }

    fn level(&self, level: Option<Level>) -> Option<PriceLevel> {
        level.map(|level| PriceLevel::new(&self.0.definition, level))
    }
}

/// A summary of a market's trades and of its best bid and offer. "24 hours" means the current
/// minute and the 1,439 minutes before it, by the hub's clock.
#[Object(serial)]
impl Ticker {
    /// The market's id, `BASE-QUOTE`.
    async fn market(&self) -> ID {
        ID(self.0.definition.market.to_string())
    }

    /// Price of the latest trade by the times of the trades, of any age; null before the first
    /// trade.
    async fn last(&self) -> Option<Decimal> {
        self.0.last.map(|last| self.price(last.price))
    }

    /// Size of that trade, in the base.
    async fn last_size(&self) -> Option<Decimal> {
        self.0.last.map(|last| Decimal::new(last.size, self.0.definition.size_decimals))
    }

    /// Time of that trade, as its source gave it; otherwise when the hub received it.
    async fn last_time(&self) -> Option<DateTime> {
        self.0.last.map(|last| DateTime(last.time))
    }

    /// The taker's side of that trade; null also if the source does not say.
    async fn last_side(&self) -> Option<Side> {
        self.0.last.and_then(|last| last.taker_side).map(Side::from)
    }

    /// Price of the earliest trade of the last 24 hours; null without trades.
    async fn open(&self) -> Option<Decimal> {
        self.day().map(|day| self.price(day.open))
    }

    /// Highest price of the last 24 hours; null without trades.
    async fn high(&self) -> Option<Decimal> {
        self.day().map(|day| self.price(day.high))
    }

    /// Lowest price of the last 24 hours; null without trades.
    async fn low(&self) -> Option<Decimal> {
        self.day().map(|day| self.price(day.low))
    }

    /// Sum of the sizes of the last 24 hours, in the base.
    async fn volume(&self) -> Decimal {
        Decimal::new(self.day().map_or(0, |day| day.volume), self.0.definition.size_decimals)
    }

    /// Sum of price times size of the last 24 hours, in the quote. It is exact, with the decimals
    /// of both together.
    async fn quote_volume(&self) -> Decimal {
        let value = self.day().map_or(ethnum::U256::ZERO, |day| day.notional);
        notional(value, &self.0.definition)
    }

    /// Price of the latest trade of the last 24 hours minus `open` (`"-1.5"` if it fell); null
    /// without trades.
    async fn change(&self) -> Option<Decimal> {
        self.day().map(|day| {
            let (fell, by) = day.change();
            let by = self.price(by).0;
            Decimal(if fell { format!("-{by}") } else { by })
        })
    }

    /// `quoteVolume` / `volume`, rounded down to the price's decimals; null without trades.
    async fn vwap(&self) -> Option<Decimal> {
        self.day().and_then(Day::vwap).map(|vwap| self.price(vwap))
    }

    /// Trades of the last 24 hours.
    async fn count(&self) -> UInt64 {
        UInt64(self.day().map_or(0, |day| day.count))
    }

    /// The current best bid; null while the book has no bids.
    async fn bid(&self) -> Option<PriceLevel> {
        self.level(self.0.bid)
    }

    /// The current best offer; null while the book has no offers.
    async fn ask(&self) -> Option<PriceLevel> {
        self.level(self.0.ask)
    }
}

/// The ticker of one market, or a heartbeat. A frame follows the market's previous one if and only
/// if its epoch is the same and its `prevSequence` is the previous `sequence`.
pub struct TickerFrame(pub live::TickerFrame);

/// The ticker of one market, or a heartbeat. A frame follows the market's previous one if and only
/// if its epoch is the same and its `prevSequence` is the previous `sequence`.
#[Object(serial)]
impl TickerFrame {
    /// The market's id, `BASE-QUOTE`.
    async fn market(&self) -> ID {
        ID(self.0.definition.market.to_string())
    }

    /// The epoch of `sequence`. Sequences of different epochs can't be compared.
    async fn epoch(&self) -> ID {
        ID(self.0.epoch.to_string())
    }

    /// Sequence of the trade, or of the change of the best bid or offer, that last changed the
    /// ticker.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.0.sequence)
    }

    /// Sequence of the previous change. It equals `sequence` where no event came: old minutes left
    /// the 24 hours, or the frame is a heartbeat. Null where this frame is a new start.
    async fn prev_sequence(&self) -> Option<UInt64> {
        self.0.previous.map(UInt64)
    }

    /// The position of this frame. With it as `after`, this market resumes, and the other markets
    /// begin with a new start.
    async fn cursor(&self) -> Cursor {
        Cursor(self.0.cursor())
    }

    /// Why this frame is a new start; null where it follows the previous frame.
    async fn reason(&self) -> Option<SnapshotReason> {
        self.0.reason.map(SnapshotReason::from)
    }

    /// Changes since `prevSequence`; 0 where no event came or the frame is a new start.
    async fn merged_events(&self) -> i32 {
        i32::try_from(self.0.merged_events).unwrap_or(i32::MAX)
    }

    /// The complete ticker; null in a heartbeat.
    async fn ticker(&self) -> Option<Ticker> {
        self.0.ticker.clone().map(Ticker)
    }

    /// Time of the event that last changed it, as its source gave it.
    async fn event_time(&self) -> Option<DateTime> {
        self.0.event_time.map(DateTime)
    }

    /// The pace that an overloaded hub slowed this stream to; null where it is as the client asked.
    async fn slowed_to(&self) -> Option<BookSpeed> {
        self.0.slowed_to.map(BookSpeed::from)
    }

    /// The hub's clock.
    async fn publish_time(&self) -> DateTime {
        DateTime(self.0.publish_time)
    }

    /// The market as it is now. A frame comes at once when it changes, such as when trading halts.
    async fn definition(&self) -> Market {
        Market(self.0.definition.clone())
    }

    /// Whether the ticker is up to date.
    async fn state(&self) -> FeedState {
        self.0.state.into()
    }

    /// Milliseconds from `eventTime` to `publishTime`; 0 where `eventTime` is null.
    async fn last_event_age_ms(&self) -> i32 {
        age_ms(self.0.event_time, self.0.publish_time)
    }
}
