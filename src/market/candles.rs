//! Candles of one market from its trades: what one bucket of an interval holds, exactly, and the
//! buckets that were touched lately. No clock, no input or output.
//!
//! A candle is a function of the trades in its bucket and of their order in the log, whatever the
//! order they came in by their own time: its open is the earliest trade's price, its close the
//! latest's. Of several at one moment the log's order decides.

use std::collections::BTreeMap;

use ethnum::U256;
use serde::{Deserialize, Serialize};

use super::fixed::Fixed;
use super::time::Micros;

/// From the end of a bucket until it counts as closed, in microseconds. Block explorers and venues
/// report trades about so late. A trade that comes even later still enters its bucket.
pub const CLOSE_GRACE: Micros = 2_000_000;

/// Candles of one interval kept in memory: for M1 more than half a day of busy minutes, which is
/// longer than a client takes to come back, at some 200 bytes each.
pub const SERIES_KEPT: usize = 1_000;

const MINUTE: Micros = 60_000_000;

/// How much time one candle covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Interval {
    M1,
    M5,
    M15,
    M30,
    H1,
    H4,
    D1,
}

impl Interval {
    /// Shortest first.
    pub const ALL: [Self; 7] =
        [Self::M1, Self::M5, Self::M15, Self::M30, Self::H1, Self::H4, Self::D1];

    pub fn minutes(self) -> u32 {
        match self {
            Self::M1 => 1,
            Self::M5 => 5,
            Self::M15 => 15,
            Self::M30 => 30,
            Self::H1 => 60,
            Self::H4 => 240,
            Self::D1 => 1_440,
        }
    }

    pub fn micros(self) -> Micros {
        Micros::from(self.minutes()) * MINUTE
    }

    /// As the schema writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::M1 => "M1",
            Self::M5 => "M5",
            Self::M15 => "M15",
            Self::M30 => "M30",
            Self::H1 => "H1",
            Self::H4 => "H4",
            Self::D1 => "D1",
        }
    }

    /// Start of the bucket that a moment lies in: floor(t / interval), from 1970 on in UTC.
    pub fn bucket(self, time: Micros) -> Micros {
        // Saturating: the first bucket of all time would begin before the smallest number.
        time.saturating_sub(time.rem_euclid(self.micros()))
    }

    /// The bucket that the clock is in; a grace after the end of the one before.
    pub fn current(self, now: Micros) -> Micros {
        self.bucket(now.saturating_sub(CLOSE_GRACE))
    }
}

/// What candles need of a trade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Of its event in the log.
    pub sequence: u64,
    /// At its source; when the log took it, where the source gave none.
    pub time: Micros,
    pub price: Fixed,
    pub size: Fixed,
}

/// What happened in one bucket, or that nothing did: then all prices are the close before, and
/// volume, notional and count are 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candle {
    pub start: Micros,
    pub open: Fixed,
    pub high: Fixed,
    pub low: Fixed,
    pub close: Fixed,
    /// Σq, in units of the market's size.
    pub volume: Fixed,
    /// Σpq, exact, in units of price times size.
    pub notional: U256,
    pub count: u64,
    /// Time of the trade that is the open.
    pub opened: Micros,
    /// Time of the trade that is the close.
    pub last: Micros,
    /// The event that is the close.
    pub close_sequence: u64,
    /// The first event that came into this bucket: a rebuild begins to read there.
    pub first_sequence: u64,
    /// The newest event that touched it.
    pub sequence: u64,
}

impl Candle {
    /// A bucket's first trade.
    pub fn begin(interval: Interval, tick: &Tick) -> Self {
        Self {
            start: interval.bucket(tick.time),
            open: tick.price,
            high: tick.price,
            low: tick.price,
            close: tick.price,
            volume: tick.size,
            notional: product(tick),
            count: 1,
            opened: tick.time,
            last: tick.time,
            close_sequence: tick.sequence,
            first_sequence: tick.sequence,
            sequence: tick.sequence,
        }
    }

    /// Takes a trade of this bucket. Trades come in the log's order.
    pub fn add(&mut self, tick: &Tick) {
        if tick.time < self.opened {
            (self.open, self.opened) = (tick.price, tick.time);
        }
        if tick.time >= self.last {
            (self.close, self.last, self.close_sequence) = (tick.price, tick.time, tick.sequence);
        }
        self.high = self.high.max(tick.price);
        self.low = self.low.min(tick.price);
        // Full only where a bucket holds a whole supply of 18 decimals a million times over.
        self.volume = self.volume.saturating_add(tick.size);
        self.notional = self.notional.saturating_add(product(tick));
        self.count += 1;
        self.sequence = tick.sequence;
    }

    /// A bucket without trades, after this one.
    pub fn empty_at(&self, start: Micros) -> Self {
        let (open, high, low, close) = (self.close, self.close, self.close, self.close);
        let (volume, notional, count) = (0, U256::ZERO, 0);
        Self { start, open, high, low, close, volume, notional, count, ..self.clone() }
    }

    /// Σpq / Σq at the price's precision, rounded down, as Kraken does; none where nothing traded.
    pub fn vwap(&self) -> Option<Fixed> {
        vwap(self.notional, self.volume)
    }

    /// Whether the clock has passed its end by [`CLOSE_GRACE`].
    pub fn is_closed(&self, interval: Interval, now: Micros) -> bool {
        self.start < interval.current(now)
    }
}

fn product(tick: &Tick) -> U256 {
    // Two numbers of 128 bits always fit.
    U256::from(tick.price) * U256::from(tick.size)
}

/// Rounded down, see [`Candle::vwap`]. Tickers use it too.
pub fn vwap(notional: U256, volume: Fixed) -> Option<Fixed> {
    // No larger than the highest price, unless a sum was full.
    (volume > 0).then(|| (notional / U256::from(volume)).try_into().unwrap_or(Fixed::MAX))
}

/// A decimal of up to 256 bits, with exactly `decimals` decimals.
pub fn format_wide(value: U256, decimals: u8) -> String {
    let decimals = usize::from(decimals);
    let digits = format!("{:0>width$}", value.to_string(), width = decimals + 1);
    let (whole, fraction) = digits.split_at(digits.len() - decimals);
    if decimals == 0 { whole.to_owned() } else { format!("{whole}.{fraction}") }
}

/// Every bucket from `from` up to and without `to`, at most the newest `most`: those given, oldest
/// first, and empty ones between and after them. `before` is the newest candle ahead of `from`;
/// without it nothing is known before the first.
pub fn filled(
    interval: Interval,
    before: Option<Candle>,
    candles: Vec<Candle>,
    from: Micros,
    to: Micros,
    most: usize,
) -> Vec<Candle> {
    let step = interval.micros();
    let mut all = Vec::new();
    let mut last = before;
    let mut given = candles.into_iter().peekable();
    let mut start = match (&last, given.peek()) {
        (Some(_), _) => from,
        (None, Some(first)) => first.start,
        (None, None) => return all,
    };
    while start < to && all.len() < most {
        let candle = match given.next_if(|candle| candle.start == start) {
            Some(candle) => candle,
            None => match &last {
                Some(last) => last.empty_at(start),
                None => break,
            },
        };
        all.push(candle.clone());
        last = Some(candle);
        start = start.saturating_add(step);
    }
    all
}

/// One candle, with the market's newest event when its close was published.
#[derive(Clone, Debug)]
struct Kept {
    candle: Candle,
    closed_at: Option<u64>,
}

/// The candles of one interval that were touched lately, bounded: those touched longest ago leave.
#[derive(Clone, Debug)]
pub struct Series {
    interval: Interval,
    candles: BTreeMap<Micros, Kept>,
    /// What was touched after this event is all here.
    floor: u64,
    /// The bucket that the clock was in when it was last looked at.
    current: Micros,
    most: usize,
}

impl Series {
    pub fn new(interval: Interval, most: usize) -> Self {
        Self { interval, candles: BTreeMap::new(), floor: 0, current: Micros::MIN, most }
    }

    pub fn interval(&self) -> Interval {
        self.interval
    }

    /// Puts back what is known of the touched candles, by the newest `newest` event of the market:
    /// everything that was touched after `floor`. Which closes were published before is not
    /// known, so those that may have closed since are published again.
    pub fn restore(&mut self, candles: Vec<Candle>, floor: u64, newest: u64, now: Micros) {
        self.candles.clear();
        self.floor = floor;
        self.current = self.interval.current(now);
        for candle in candles {
            self.put(candle);
        }
        // At any moment one bucket is open, two within the grace, one more by a source whose clock
        // is ahead.
        for kept in self.candles.values_mut().rev().take(3) {
            kept.closed_at = Some(newest);
        }
    }

    /// Takes a candle as its newest trade left it. It replaces the one before, whose close may have
    /// been published: the close is published again.
    pub fn put(&mut self, candle: Candle) {
        let start = candle.start;
        let closed_at = (start < self.current).then_some(candle.sequence);
        self.candles.insert(start, Kept { candle, closed_at });
        if self.candles.len() > self.most {
            let oldest = self.candles.iter().min_by_key(|(_, kept)| kept.candle.sequence);
            if let Some((start, sequence)) = oldest.map(|(at, kept)| (*at, kept.candle.sequence)) {
                self.candles.remove(&start);
                self.floor = self.floor.max(sequence);
            }
        }
    }

    /// The newest bucket: the last that traded, or an empty one after it that the clock is in.
    pub fn newest(&self, now: Micros) -> Option<Candle> {
        let (start, kept) = self.candles.last_key_value()?;
        match self.interval.current(now) {
            current if current > *start => Some(kept.candle.empty_at(current)),
            _ => Some(kept.candle.clone()),
        }
    }

    /// What is to be published when the clock has moved on: buckets that closed since this was last
    /// asked, and the empty one it is in now. Empty ones in between are not published, as
    /// they repeat the close before. `newest` is the market's newest event.
    pub fn roll(&mut self, newest: u64, now: Micros) -> Vec<Candle> {
        let current = self.interval.current(now);
        let before = std::mem::replace(&mut self.current, current);
        if current <= before {
            // A clock that was set back opens nothing again.
            self.current = before;
            return Vec::new();
        }
        let Some((last, _)) = self.candles.last_key_value() else { return Vec::new() };
        let last = *last;
        let mut published = Vec::new();
        // The bucket the clock was in, if nothing traded there: it is closed now.
        if before > last {
            published.extend(
                self.candles.last_key_value().map(|(_, kept)| kept.candle.empty_at(before)),
            );
        }
        for (_, kept) in self.candles.range_mut(before..current) {
            kept.closed_at = Some(newest);
            published.push(kept.candle.clone());
        }
        if current > last {
            published.extend(self.newest(now));
        }
        published
    }

    /// What is published with a trade's candle: the empty bucket that the clock is in repeats its
    /// close.
    pub fn touched(&self, candle: &Candle, now: Micros) -> Vec<Candle> {
        let last = self.candles.last_key_value().map(|(start, _)| *start);
        match self.newest(now) {
            Some(newest) if last == Some(candle.start) && newest.start > candle.start => {
                vec![candle.clone(), newest]
            }
            _ => vec![candle.clone()],
        }
    }

    /// Every candle that was touched after `seen`, or whose close a reader at that position may not
    /// have received; with the empty one that the clock is in. `None` if that isn't known any
    /// more.
    pub fn changes_since(&self, seen: u64, now: Micros) -> Option<Vec<Candle>> {
        if seen < self.floor {
            return None;
        }
        let is_news = |kept: &&Kept| {
            kept.candle.sequence > seen || kept.closed_at.is_some_and(|closed| closed >= seen)
        };
        let mut published: Vec<_> =
            self.candles.values().filter(is_news).map(|kept| kept.candle.clone()).collect();
        let newest = self.newest(now);
        if let Some(newest) =
            newest.filter(|one| published.last().is_none_or(|last| last.start < one.start))
        {
            published.push(newest);
        }
        Some(published)
    }

    /// Where a client begins: the last candle that traded and, after it, the empty one that the
    /// clock is in.
    pub fn present(&self, now: Micros) -> Vec<Candle> {
        match self.candles.last_key_value() {
            Some((_, kept)) => self.touched(&kept.candle, now),
            None => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Micros = 1_000_000;

    fn tick(sequence: u64, time: Micros, price: u128, size: u128) -> Tick {
        Tick { sequence, time, price, size }
    }

    /// Each tick in the bucket it belongs to, as the store does it.
    fn take_all(series: &mut Series, ticks: &[Tick]) -> Vec<Candle> {
        let take = |tick: &Tick| {
            let start = series.interval.bucket(tick.time);
            let candle = match series.candles.get(&start) {
                Some(kept) => {
                    let mut candle = kept.candle.clone();
                    candle.add(tick);
                    candle
                }
                None => Candle::begin(series.interval, tick),
            };
            series.put(candle.clone());
            candle
        };
        ticks.iter().map(take).collect()
    }

    /// The plain way: all trades of a bucket, sorted by time and then as they came.
    fn naive(interval: Interval, ticks: &[Tick], start: Micros) -> Option<(Vec<u128>, u64, u128)> {
        let end = start + interval.micros();
        let mut own: Vec<_> =
            ticks.iter().filter(|tick| (start..end).contains(&tick.time)).collect();
        own.sort_by_key(|tick| (tick.time, tick.sequence));
        let (first, last) = (own.first()?, own.last()?);
        let prices = own.iter().map(|tick| tick.price);
        let (high, low) = (prices.clone().max()?, prices.min()?);
        let volume = own.iter().map(|tick| tick.size).sum();
        let paid: u128 = own.iter().map(|tick| tick.price * tick.size).sum();
        Some((
            vec![first.price, high, low, last.price, volume, paid],
            own.len() as u64,
            paid / volume,
        ))
    }

    fn ticks() -> impl Strategy<Value = Vec<Tick>> {
        let one = (-200 * SECOND..20_000 * SECOND, 1u128..1_000, 1u128..1_000);
        prop::collection::vec(one, 1..60).prop_map(|all| {
            let number = |(at, (time, price, size))| tick(at as u64 + 1, time, price, size);
            all.into_iter().enumerate().map(number).collect()
        })
    }

    proptest! {
        #[test]
        fn candles_are_what_the_trades_of_their_buckets_say_in_whatever_order_they_come(
            ticks in ticks(), place in 0..Interval::ALL.len(),
        ) {
            let interval = Interval::ALL[place];
            let mut series = Series::new(interval, SERIES_KEPT);
            take_all(&mut series, &ticks);
            for (start, kept) in &series.candles {
                let Candle { open, high, low, close, volume, notional, count, .. } =
                    kept.candle.clone();
                let prices = vec![open, high, low, close, volume, notional.as_u128()];
                let vwap = kept.candle.vwap().unwrap();
                prop_assert_eq!(Some((prices, count, vwap)), naive(interval, &ticks, *start));
            }
            let counted: u64 = series.candles.values().map(|kept| kept.candle.count).sum();
            prop_assert_eq!(counted, ticks.len() as u64);
        }

        #[test]
        fn a_reader_that_applies_the_changes_since_an_event_holds_every_candle_from_there_on(
            ticks in ticks(), cut in 0usize..60, most in 3usize..20,
        ) {
            let cut = cut.min(ticks.len());
            let mut all = Series::new(Interval::M1, SERIES_KEPT);
            let mut series = Series::new(Interval::M1, most);
            let mut held: BTreeMap<Micros, Candle> = BTreeMap::new();
            for candle in take_all(&mut all, &ticks[..cut]) {
                held.insert(candle.start, candle.clone());
                series.put(candle);
            }
            take_all(&mut all, &ticks[cut..]).into_iter().for_each(|candle| series.put(candle));
            if let Some(changes) = series.changes_since(cut as u64, Micros::MIN / 2) {
                for candle in changes {
                    held.insert(candle.start, candle);
                }
                for (start, candle) in held {
                    let (prices, count, _) = naive(Interval::M1, &ticks, start).unwrap();
                    prop_assert_eq!((candle.close, candle.count), (prices[3], count));
                }
            } else {
                prop_assert!(series.floor > cut as u64);
            }
            prop_assert!(series.candles.len() <= most);
        }
    }

    #[test]
    fn a_bucket_is_floor_of_time_by_interval_also_before_1970() {
        assert_eq!(Interval::M1.bucket(59_999_999), 0);
        assert_eq!(Interval::M1.bucket(60_000_000), 60_000_000);
        assert_eq!(Interval::M5.bucket(-1), -300_000_000);
        assert_eq!(Interval::D1.bucket(86_400 * SECOND + 1), 86_400 * SECOND);
    }

    #[test]
    fn vwap_is_rounded_down_and_numbers_beyond_128_bits_are_exact() {
        let mut candle = Candle::begin(Interval::M1, &tick(1, 0, 100, 1));
        candle.add(&tick(2, 0, 101, 2));
        assert_eq!(candle.vwap(), Some(100), "302 / 3");
        let huge = tick(3, 0, 10u128.pow(38), 10u128.pow(38));
        let candle = Candle::begin(Interval::M1, &huge);
        assert_eq!(candle.vwap(), Some(10u128.pow(38)));
        assert_eq!(
            format_wide(candle.notional, 36),
            format!("1{}.{}", "0".repeat(40), "0".repeat(36))
        );
        assert_eq!(format_wide(U256::from(7u8), 3), "0.007");
        assert_eq!(format_wide(U256::from(7u8), 0), "7");
        assert_eq!(candle.empty_at(60 * SECOND).vwap(), None);
    }

    #[test]
    fn the_clock_closes_a_bucket_two_seconds_after_its_end_and_opens_an_empty_one() {
        let mut series = Series::new(Interval::M1, SERIES_KEPT);
        let starts = |candles: &[Candle], now| -> Vec<_> {
            let one = |candle: &Candle| {
                (candle.start / SECOND, candle.count, candle.is_closed(Interval::M1, now))
            };
            candles.iter().map(one).collect()
        };
        assert_eq!(series.roll(0, 5 * SECOND), []);
        take_all(&mut series, &[tick(1, 10 * SECOND, 5, 1)]);
        assert_eq!(series.roll(1, 60 * SECOND), [], "the grace");
        let now = 62 * SECOND;
        assert_eq!(starts(&series.roll(1, now), now), [(0, 1, true), (60, 0, false)]);
        assert_eq!(series.roll(1, now + SECOND), [], "published once");
        let now = 122 * SECOND;
        assert_eq!(starts(&series.roll(1, now), now), [(60, 0, true), (120, 0, false)]);
        // A late trade enters its bucket, and the empty one the clock is in repeats its close.
        let late = take_all(&mut series, &[tick(2, 59 * SECOND, 7, 1)]);
        let republished = series.touched(&late[0], now);
        assert_eq!(starts(&republished, now), [(0, 2, true), (120, 0, false)]);
        assert_eq!(republished[1].close, 7);
        // A reader that saw it open receives the close; a later reader does not receive it again.
        assert_eq!(
            starts(&series.changes_since(1, now).unwrap(), now),
            [(0, 2, true), (120, 0, false)]
        );
        // A clock that was set back opens nothing again.
        assert_eq!(series.roll(2, 30 * SECOND), []);
    }

    #[test]
    fn gaps_are_filled_with_the_close_before_and_nothing_is_before_the_first_trade() {
        let candle = |minute: i64, price| {
            Candle::begin(Interval::M1, &tick(1, minute * 60 * SECOND, price, 1))
        };
        let fill = |before, candles, from: i64, to: i64, most| -> Vec<_> {
            let (from, to) = (from * 60 * SECOND, to * 60 * SECOND);
            filled(Interval::M1, before, candles, from, to, most)
                .iter()
                .map(|candle| (candle.start / SECOND / 60, candle.close, candle.count))
                .collect()
        };
        assert_eq!(fill(None, vec![], 0, 9, 9), []);
        assert_eq!(
            fill(None, vec![candle(2, 5), candle(4, 6)], 0, 6, 9),
            [(2, 5, 1), (3, 5, 0), (4, 6, 1), (5, 6, 0)]
        );
        assert_eq!(fill(Some(candle(0, 3)), vec![], 7, 9, 9), [(7, 3, 0), (8, 3, 0)]);
        assert_eq!(fill(Some(candle(0, 3)), vec![], 7, 90, 3).len(), 3);
    }
}
