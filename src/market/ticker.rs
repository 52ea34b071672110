//! What one market's ticker says: its last trade, the last 24 hours, the top of its book. No clock,
//! no input or output.

use std::collections::BTreeMap;

use ethnum::U256;

use super::candles::{Candle, Interval, vwap};
use super::fixed::Fixed;
use super::levels::Level;
use super::levels::Side;
use super::time::Micros;

/// Minutes that "24 hours" means: the one the clock is in and those before it.
pub const DAY_MINUTES: i64 = 1_440;
/// Most minute buckets kept, whatever times a source gives: two days.
pub const MINUTES_KEPT: i64 = 2 * DAY_MINUTES;

/// The latest trade by its own time; of several at one moment the one the log has last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastTrade {
    pub time: Micros,
    pub price: Fixed,
    pub size: Fixed,
    /// The taker's side; not every source publishes it.
    pub taker_side: Option<Side>,
}

/// What traded in the last 24 hours: the minute buckets whose start lies less than 1,440 minutes
/// before that of the clock's own, and any that a source whose clock is ahead began already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Day {
    /// Price of the earliest trade.
    pub open: Fixed,
    pub high: Fixed,
    pub low: Fixed,
    /// Price of the latest trade.
    pub close: Fixed,
    /// Σq in the base.
    pub volume: Fixed,
    /// Σpq in the quote, exact.
    pub notional: U256,
    /// Trades.
    pub count: u64,
}

impl Day {
    /// Σpq / Σq at the price's precision, rounded down.
    pub fn vwap(&self) -> Option<Fixed> {
        vwap(self.notional, self.volume)
    }

    /// Close less open: whether it fell, and by how much.
    pub fn change(&self) -> (bool, Fixed) {
        (self.close < self.open, self.close.abs_diff(self.open))
    }
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub struct Ticker {
    pub last: Option<LastTrade>,
    pub bid: Option<Level>,
    pub ask: Option<Level>,
    /// The newest event that changed any of it.
    pub sequence: u64,
    /// When that event happened at its source.
    pub event_time: Option<Micros>,
    /// Those that traded, by start. At most a day of them, and those of a clock that is ahead.
    minutes: BTreeMap<Micros, Candle>,
}

impl Ticker {
    /// Takes an event that changed something. Returns the change before, which it follows.
    pub fn follow(&mut self, sequence: u64, event_time: Option<Micros>) -> u64 {
        let previous = self.sequence;
        if sequence >= previous {
            (self.sequence, self.event_time) = (sequence, event_time);
        }
        previous
    }

    /// Takes a trade, unless it is older than the last one.
    pub fn trade(&mut self, trade: LastTrade) {
        if self.last.is_none_or(|last| last.time <= trade.time) {
            self.last = Some(trade);
        }
    }

    /// Takes a minute as its newest trade left it.
    pub fn minute(&mut self, minute: Candle, now: Micros) {
        if minute.start >= first_minute(now) {
            self.minutes.insert(minute.start, minute);
        }
        while self.minutes.len() > MINUTES_KEPT as usize {
            self.minutes.pop_last();
        }
    }

    /// Forgets minutes that have left the window; whether there were any.
    pub fn forget(&mut self, now: Micros) -> bool {
        let kept = self.minutes.split_off(&first_minute(now));
        !std::mem::replace(&mut self.minutes, kept).is_empty()
    }

    /// Forgets what came from trades: it is about to be put back.
    pub fn forget_trades(&mut self) {
        self.last = None;
        self.minutes.clear();
    }

    /// None where nothing traded.
    pub fn day(&self, now: Micros) -> Option<Day> {
        let mut minutes = self.minutes.range(first_minute(now)..).map(|(_, minute)| minute);
        let first = minutes.next()?;
        let begin = Day {
            open: first.open,
            high: first.high,
            low: first.low,
            close: first.close,
            volume: first.volume,
            notional: first.notional,
            count: first.count,
        };
        Some(minutes.fold(begin, |day, minute| Day {
            open: day.open,
            high: day.high.max(minute.high),
            low: day.low.min(minute.low),
            close: minute.close,
            volume: day.volume.saturating_add(minute.volume),
            notional: day.notional.saturating_add(minute.notional),
            count: day.count + minute.count,
        }))
    }
}

/// Start of the oldest minute that "24 hours" holds.
pub fn first_minute(now: Micros) -> Micros {
    let minute = Interval::M1.micros();
    Interval::M1.bucket(now).saturating_sub((DAY_MINUTES - 1) * minute)
}

#[cfg(test)]
mod tests {
    use super::super::candles::Tick;
    use super::*;

    const MINUTE: Micros = 60_000_000;

    fn minute(at: i64, price: Fixed, size: Fixed) -> Candle {
        let tick = Tick { sequence: 1, time: at * MINUTE, price, size };
        Candle::begin(Interval::M1, &tick)
    }

    #[test]
    fn a_day_is_1440_minutes_with_the_one_the_clock_is_in() {
        let mut ticker = Ticker::default();
        let now = 2_000 * MINUTE + 5;
        for (at, price) in [(560, 9), (561, 5), (1_000, 7), (2_000, 3)] {
            ticker.minute(minute(at, price, 2), now);
        }
        let day = ticker.day(now).unwrap();
        assert_eq!((day.open, day.high, day.low, day.close), (5, 7, 3, 3));
        assert_eq!((day.volume, day.count, day.vwap()), (6, 3, Some(5)));
        assert_eq!(day.change(), (true, 2));
        assert!(!ticker.forget(now));
        assert!(ticker.forget(now + MINUTE), "the oldest has left");
        assert_eq!(ticker.day(now + MINUTE).unwrap().open, 7);
        assert_eq!(ticker.day(now + 9_000 * MINUTE), None);
    }

    #[test]
    fn the_last_trade_is_the_latest_by_its_own_time_and_the_later_of_two_at_once() {
        let mut ticker = Ticker::default();
        let trade = |time, price| LastTrade { time, price, size: 1, taker_side: None };
        for (time, price) in [(5, 1), (9, 2), (7, 3), (9, 4)] {
            ticker.trade(trade(time, price));
        }
        assert_eq!(ticker.last, Some(trade(9, 4)));
    }

    #[test]
    fn minutes_of_a_clock_that_is_far_ahead_stay_bounded() {
        let mut ticker = Ticker::default();
        (0..4_000).for_each(|at| ticker.minute(minute(at, 1, 1), 0));
        assert_eq!(ticker.minutes.len() as i64, MINUTES_KEPT);
    }
}
