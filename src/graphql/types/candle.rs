//! The schema's candles: thin views of what the live topics and the store give.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, Object};

use super::feed::FeedState;
use super::head::{BookSpeed, SnapshotReason};
use super::market::Market;
use super::scalars::{Cursor, DateTime, Decimal, UInt64};
use crate::budgets::Work;
use crate::graphql::errors::{ErrorCode, fault, limit_exceeded, no_market};
use crate::graphql::execution::offload;
use crate::graphql::limits::{DEFAULT_CANDLES, MOST_CANDLES};
use crate::graphql::query::{live, read};
use crate::live::{self, age_ms};
use crate::market::candles::{self, format_wide};
use crate::market::definition::MarketDefinition;
use crate::market::fixed;
use crate::market::time::Micros;
use crate::store::CandleSpan;

/// The length of a candle. Buckets begin at multiples of it since 1970-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "candles::Interval")]
pub enum Interval {
    /// A minute.
    M1,
    /// 5 minutes.
    M5,
    /// 15 minutes.
    M15,
    /// 30 minutes.
    M30,
    /// An hour.
    H1,
    /// 4 hours.
    H4,
    /// A day.
    D1,
}

/// The trades of one bucket of time: from `start`, and before `end`, by the times of the trades. A
/// bucket without trades repeats the previous close, with volume 0 and count 0.
pub struct Candle {
    pub candle: candles::Candle,
    pub interval: candles::Interval,
    pub definition: Arc<MarketDefinition>,
    /// The hub's clock when it was published.
    pub now: Micros,
}

impl Candle {
    fn price(&self, value: fixed::Fixed) -> Decimal {
        Decimal::new(value, self.definition.price_decimals)
    }
}

/// The trades of one bucket of time: from `start`, and before `end`, by the times of the trades. A
/// bucket without trades repeats the previous close, with volume 0 and count 0.
#[Object(serial)]
impl Candle {
    /// The first moment of its bucket.
    async fn start(&self) -> DateTime {
        DateTime(self.candle.start)
    }

    /// The first moment after its bucket.
    async fn end(&self) -> DateTime {
        DateTime(self.candle.start.saturating_add(self.interval.micros()))
    }

    /// Price of its earliest trade.
    async fn open(&self) -> Decimal {
        self.price(self.candle.open)
    }

    /// Highest price.
    async fn high(&self) -> Decimal {
        self.price(self.candle.high)
    }

    /// Lowest price.
    async fn low(&self) -> Decimal {
        self.price(self.candle.low)
    }

    /// Price of its latest trade.
    async fn close(&self) -> Decimal {
        self.price(self.candle.close)
    }

    /// Sum of the sizes, in the base.
    async fn volume(&self) -> Decimal {
        Decimal::new(self.candle.volume, self.definition.size_decimals)
    }

    /// Sum of price times size, in the quote. It is exact, with the decimals of both together.
    async fn quote_volume(&self) -> Decimal {
        notional(self.candle.notional, &self.definition)
    }

    /// `quoteVolume` / `volume`, rounded down to the price's decimals; null without trades.
    async fn vwap(&self) -> Option<Decimal> {
        self.candle.vwap().map(|vwap| self.price(vwap))
    }

    /// Number of trades.
    async fn count(&self) -> UInt64 {
        UInt64(self.candle.count)
    }

    /// Whether the hub's clock has passed `end` by 2 seconds. A later trade still enters its
    /// bucket, and the candle is sent again.
    async fn closed(&self) -> bool {
        self.candle.is_closed(self.interval, self.now)
    }
}

pub fn notional(value: ethnum::U256, definition: &MarketDefinition) -> Decimal {
    Decimal(format_wide(value, definition.price_decimals + definition.size_decimals))
}

/// Candles of one market and interval, in their current state: one after each trade, several after
/// a merge or a resume, none in a heartbeat. A frame follows the previous one if and only if its
/// epoch is the same and its `prevSequence` is the previous `sequence`.
pub struct CandleFrame(pub live::CandleFrame);

impl CandleFrame {
    fn all(&self) -> impl Iterator<Item = Candle> {
        self.0.candles.iter().map(|candle| Candle {
            candle: candle.clone(),
            interval: self.0.interval,
            definition: self.0.definition.clone(),
            now: self.0.publish_time,
        })
    }
}

/// Candles of one market and interval, in their current state: one after each trade, several after
/// a merge or a resume, none in a heartbeat. A frame follows the previous one if and only if its
/// epoch is the same and its `prevSequence` is the previous `sequence`.
#[Object(serial)]
impl CandleFrame {
    /// The market's id, `BASE-QUOTE`.
    async fn market(&self) -> ID {
        ID(self.0.definition.market.to_string())
    }

    /// The length of a candle.
    async fn interval(&self) -> Interval {
        self.0.interval.into()
    }

    /// The epoch of `sequence`. Sequences of different epochs can't be compared.
    async fn epoch(&self) -> ID {
        ID(self.0.epoch.to_string())
    }

    /// Sequence of the market's newest trade.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.0.sequence)
    }

    /// Sequence of the previous frame. It equals `sequence` where no trade came: the clock closed a
    /// candle, or the frame is a heartbeat. Null where this frame is a new start.
    async fn prev_sequence(&self) -> Option<UInt64> {
        self.0.previous.map(UInt64)
    }

    /// Pass this as `after` to resume with the next frame.
    async fn cursor(&self) -> Cursor {
        Cursor(self.0.cursor())
    }

    /// Why this frame is a new start; null where it follows the previous frame.
    async fn reason(&self) -> Option<SnapshotReason> {
        self.0.reason.map(SnapshotReason::from)
    }

    /// Trades since `prevSequence`.
    async fn merged_events(&self) -> i32 {
        i32::try_from(self.0.merged_events).unwrap_or(i32::MAX)
    }

    /// Oldest first, each complete. A bucket that is missing between two of them is unchanged, or
    /// empty if the client has none for it. So is one between the client's newest candle and the
    /// first of these.
    async fn candles(&self) -> Vec<Candle> {
        self.all().collect()
    }

    /// Whether the newest candle in this frame is closed; false where it has none.
    async fn closed(&self) -> bool {
        let newest = self.0.candles.last();
        newest.is_some_and(|candle| candle.is_closed(self.0.interval, self.0.publish_time))
    }

    /// Time of the market's newest trade, as its source gave it.
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

    /// Whether the candles are up to date.
    async fn state(&self) -> FeedState {
        self.0.state.into()
    }

    /// Milliseconds from `eventTime` to `publishTime`; 0 where `eventTime` is null.
    async fn last_event_age_ms(&self) -> i32 {
        age_ms(self.0.event_time, self.0.publish_time)
    }
}

/// What `Query.candles` answers.
pub async fn asked(
    ctx: &Context<'_>,
    market: &str,
    interval: Interval,
    (from, to): (Option<DateTime>, Option<DateTime>),
    last: Option<i32>,
) -> Result<Vec<Candle>, async_graphql::Error> {
    let most = match last.map_or(Ok(DEFAULT_CANDLES), usize::try_from) {
        Ok(last) if last > MOST_CANDLES => {
            return Err(limit_exceeded("candles_per_query", MOST_CANDLES, last));
        }
        Ok(last) if last > 0 => last,
        _ => return Err(fault(ErrorCode::ValidationFailed, "last must be at least 1")),
    };
    if let (Some(from), Some(to)) = (from, to)
        && from.0 > to.0
    {
        return Err(fault(ErrorCode::ValidationFailed, "from must not be after to"));
    }
    let live = live(ctx)?;
    let Some(definition) = live.definition(market) else {
        return Err(no_market(market));
    };
    let (interval, now) = (interval.into(), live.now());
    let (from, to) = (from.map(|from| from.0), to.map(|to| to.0));
    let span = CandleSpan { interval, from, to, most, now };
    let market = definition.market.clone();
    let candles = read(ctx, Vec::len, move |log| log.candles(&market, &span)).await?;
    let fields = ctx.field().selection_set().count();
    offload::before(ctx, Work::LevelField, candles.len() * fields).await;
    let candle = |candle| Candle { candle, interval, definition: definition.clone(), now };
    Ok(candles.into_iter().map(candle).collect())
}
