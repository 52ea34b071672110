//! Candles of every market and interval, kept beside the log: what a trade does to them is written
//! in the transaction that writes its event, so neither can be ahead of the other, a restart reads
//! no trades again, and a query of any interval reads only the rows it returns. All of it follows
//! from the log and can be rebuilt, see [`Store::rebuild_candles`]; it has a version of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ethnum::U256;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::fault::{At, StoreError};
use super::reader::{self, LogReader};
use super::{Store, Stored, runs, transact};
use crate::market::candles::{Candle, Interval, Tick, filled, format_wide};
use crate::market::definition::MarketId;
use crate::market::fixed;
use crate::market::ticker;
use crate::market::time::Micros;
use crate::market::topic::Topic;
use crate::market::trade::Trade;

/// Of the table below, apart from the log's format: another one is dropped and rebuilt.
pub(super) const VERSION: i64 = 1;
/// Candles of a transaction held in memory before they are written: some 2 MiB.
const HELD: usize = 8_192;
/// Candles of each interval that a restart puts back into memory; what was touched before those is
/// too old to resume from.
const RESTORED_CANDLES: usize = 128;
/// Trades of a market from which a client may still resume after a restart.
const RESTORED_TRADES: usize = 2_000;

/// Prices, volume and notional are exact decimals with all of the market's digits. `start`,
/// `opened` and `last` are microseconds since 1970. The index serves "what was touched since".
const TABLES: &str = "
    DROP TABLE IF EXISTS candles;
    CREATE TABLE IF NOT EXISTS derived (
        name TEXT PRIMARY KEY,
        version INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    DELETE FROM derived WHERE name = 'candles';
    CREATE TABLE candles (
        market TEXT NOT NULL,
        minutes INTEGER NOT NULL,
        start INTEGER NOT NULL,
        open TEXT NOT NULL,
        high TEXT NOT NULL,
        low TEXT NOT NULL,
        close TEXT NOT NULL,
        volume TEXT NOT NULL,
        notional TEXT NOT NULL,
        count INTEGER NOT NULL,
        opened INTEGER NOT NULL,
        last INTEGER NOT NULL,
        close_sequence INTEGER NOT NULL,
        first_sequence INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        PRIMARY KEY (market, minutes, start)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX candles_touched ON candles (market, minutes, sequence);
";

/// In the order in which [`candle`] reads them.
const COLUMNS: &str = "start, open, high, low, close, volume, notional, count, opened, last, \
                       close_sequence, first_sequence, sequence";

/// A trade on its way into the log, with the time at its source.
#[derive(Clone, Debug)]
pub struct NewTrade {
    pub trade: Arc<Trade>,
    pub time: Option<Micros>,
}

/// Which candles to read: buckets that start at `from` or later and before `to`, of these the
/// newest `most`.
#[derive(Clone, Copy, Debug)]
pub struct CandleSpan {
    pub interval: Interval,
    pub from: Option<Micros>,
    pub to: Option<Micros>,
    pub most: usize,
    /// The hub's clock: the bucket it is in is the newest, unless trades are ahead of it.
    pub now: Micros,
}

/// What a hub that starts needs of one market.
#[derive(Clone, Debug)]
pub struct MarketCandles {
    pub market: MarketId,
    /// Of each interval the candles touched last, and the event from which on they are known.
    pub series: Vec<(Interval, Vec<Candle>, u64)>,
    /// Of the last 24 hours.
    pub minutes: Vec<Candle>,
    /// Sequences of the newest trades, oldest first.
    pub trades: Vec<u64>,
    /// Whether there are older trades.
    pub more_trades: bool,
    /// The latest trade by its own time.
    pub last: Option<Stored>,
    /// The newest one by its sequence.
    pub newest: Option<Stored>,
}

/// Makes the table where it is absent or of another version; whether it still has to be filled.
pub(super) fn prepare(connection: &Connection) -> rusqlite::Result<bool> {
    let known = connection.query_row(
        "SELECT count(*) FROM sqlite_schema WHERE name = 'derived'",
        [],
        |row| row.get::<_, i64>(0),
    )? > 0;
    let select = "SELECT version FROM derived WHERE name = 'candles'";
    let version = match known {
        true => connection.query_row(select, [], |row| row.get::<_, i64>(0)).optional()?,
        false => None,
    };
    if version == Some(VERSION) {
        return Ok(false);
    }
    transact(connection, |connection| connection.execute_batch(TABLES))?;
    Ok(true)
}

/// Trades becoming candles, within one transaction. Rows are read when first touched and written
/// at the end.
pub(super) struct Writing<'a> {
    connection: &'a Connection,
    held: HashMap<(MarketId, Interval, Micros), Held>,
}

struct Held {
    candle: Candle,
    price_decimals: u8,
    size_decimals: u8,
}

impl<'a> Writing<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        Self { connection, held: HashMap::new() }
    }

    /// The candle of each interval that `which` takes, as the trade leaves it.
    pub(super) fn take(
        &mut self,
        tick: &Tick,
        trade: &Trade,
        which: impl Fn(Interval) -> bool,
    ) -> rusqlite::Result<Vec<Candle>> {
        if self.held.len() >= HELD {
            self.write()?;
        }
        let mut changed = Vec::with_capacity(Interval::ALL.len());
        for interval in Interval::ALL.into_iter().filter(|interval| which(*interval)) {
            let start = interval.bucket(tick.time);
            let key = (trade.market.clone(), interval, start);
            let known = match self.held.remove(&key) {
                Some(held) => Some(held.candle),
                None => one(self.connection, &trade.market, interval, start)?,
            };
            let candle = match known {
                Some(mut candle) => {
                    candle.add(tick);
                    candle
                }
                None => Candle::begin(interval, tick),
            };
            changed.push(candle.clone());
            let Trade { price_decimals, size_decimals, .. } = *trade;
            self.held.insert(key, Held { candle, price_decimals, size_decimals });
        }
        Ok(changed)
    }

    /// The candle of each interval as the trade leaves it, shortest first.
    pub(super) fn trade(
        &mut self,
        sequence: u64,
        new: &NewTrade,
        received: Micros,
    ) -> rusqlite::Result<Vec<Candle>> {
        self.take(&tick(sequence, new, received), &new.trade, |_| true)
    }

    pub(super) fn write(&mut self) -> rusqlite::Result<()> {
        let mut insert = self.connection.prepare_cached(&format!(
            "INSERT OR REPLACE INTO candles (market, minutes, {COLUMNS})
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)"
        ))?;
        for ((market, interval, start), Held { candle, price_decimals, size_decimals }) in
            self.held.drain()
        {
            let price = |value| fixed::format(value, price_decimals);
            insert.execute(params![
                &*market,
                interval.minutes(),
                start,
                price(candle.open),
                price(candle.high),
                price(candle.low),
                price(candle.close),
                fixed::format(candle.volume, size_decimals),
                format_wide(candle.notional, price_decimals + size_decimals),
                candle.count.cast_signed(),
                candle.opened,
                candle.last,
                candle.close_sequence.cast_signed(),
                candle.first_sequence.cast_signed(),
                candle.sequence.cast_signed(),
            ])?;
        }
        Ok(())
    }
}

pub(super) fn tick(sequence: u64, new: &NewTrade, received: Micros) -> Tick {
    let Trade { price, size, .. } = *new.trade;
    Tick { sequence, time: new.time.unwrap_or(received), price, size }
}

impl Store {
    /// What a hub that starts needs of a market's candles, and all it needs: no trade is replayed.
    pub fn market_candles(
        &self,
        market: &MarketId,
        now: Micros,
    ) -> Result<MarketCandles, StoreError> {
        market_candles(&self.connection, market, now).at(&self.path)
    }
}

impl LogReader {
    /// Buckets without a gap, oldest first. Costs the rows it returns, however old the market is.
    pub fn candles(&self, market: &str, span: &CandleSpan) -> Result<Vec<Candle>, StoreError> {
        between(&self.connection, market, span).at(&self.path)
    }
}

fn between(
    connection: &Connection,
    market: &str,
    span: &CandleSpan,
) -> rusqlite::Result<Vec<Candle>> {
    let (interval, step) = (span.interval, span.interval.micros());
    let Some(newest) = before(connection, market, interval, Micros::MAX)? else {
        return Ok(Vec::new());
    };
    // A bucket that starts at a moment is the first at or after it.
    let first_at = |time: Micros| interval.bucket(time.saturating_add(step - 1));
    let end = interval.current(span.now).max(newest.start).saturating_add(step);
    let to = span.to.map_or(end, |to| first_at(to).min(end));
    let reach = i64::try_from(span.most).unwrap_or(i64::MAX).saturating_mul(step);
    let from = span.from.map_or(Micros::MIN, first_at).max(to.saturating_sub(reach));
    let rows = connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM candles
             WHERE market = ?1 AND minutes = ?2 AND start >= ?3 AND start < ?4 ORDER BY start"
        ))?
        .query_map(params![market, interval.minutes(), from, to], candle)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let ahead = before(connection, market, interval, from)?;
    Ok(filled(interval, ahead, rows, from, to, span.most))
}

/// The newest candle that starts before a moment.
fn before(
    connection: &Connection,
    market: &str,
    interval: Interval,
    time: Micros,
) -> rusqlite::Result<Option<Candle>> {
    connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM candles WHERE market = ?1 AND minutes = ?2 AND start < ?3
             ORDER BY start DESC LIMIT 1"
        ))?
        .query_row(params![market, interval.minutes(), time], candle)
        .optional()
}

fn one(
    connection: &Connection,
    market: &str,
    interval: Interval,
    start: Micros,
) -> rusqlite::Result<Option<Candle>> {
    connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM candles WHERE market = ?1 AND minutes = ?2 AND start = ?3"
        ))?
        .query_row(params![market, interval.minutes(), start], candle)
        .optional()
}

pub(super) fn market_candles(
    connection: &Connection,
    market: &MarketId,
    now: Micros,
) -> rusqlite::Result<MarketCandles> {
    let mut lately = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM candles WHERE market = ?1 AND minutes = ?2
         ORDER BY sequence DESC LIMIT ?3"
    ))?;
    let most = RESTORED_CANDLES + 1;
    let mut series = Vec::with_capacity(Interval::ALL.len());
    for interval in Interval::ALL {
        let mut candles = lately
            .query_map(params![market, interval.minutes(), most as i64], candle)?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let floor = match candles.len() == most {
            true => candles.pop().map_or(0, |oldest| oldest.sequence),
            false => 0,
        };
        // The newest bucket is what an empty one repeats, whenever it was touched.
        if let Some(newest) = before(connection, market, interval, Micros::MAX)?
            && !candles.iter().any(|candle| candle.start == newest.start)
        {
            candles.push(newest);
        }
        series.push((interval, candles, floor));
    }
    let minutes: BTreeMap<_, _> = connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM candles WHERE market = ?1 AND minutes = 1 AND start >= ?2
             ORDER BY start LIMIT ?3"
        ))?
        .query_map(params![market, ticker::first_minute(now), ticker::MINUTES_KEPT], candle)?
        .map(|row| row.map(|candle| (candle.start, candle)))
        .collect::<rusqlite::Result<_>>()?;
    let topic = Topic::Trades(market).name();
    let mut trades = runs::descending(connection, &topic, u64::MAX, RESTORED_TRADES)?;
    trades.reverse();
    let event = |sequence: u64| {
        let page = reader::read_topic(connection, &topic, sequence.saturating_sub(1), 1)?;
        Ok::<_, rusqlite::Error>(page.into_iter().next())
    };
    let last = match before(connection, market, Interval::M1, Micros::MAX)? {
        Some(minute) => event(minute.close_sequence)?,
        None => None,
    };
    let newest = trades.last().map_or(Ok(None), |sequence| event(*sequence))?;
    Ok(MarketCandles {
        market: market.clone(),
        series,
        minutes: minutes.into_values().collect(),
        more_trades: trades.len() == RESTORED_TRADES,
        trades,
        last,
        newest,
    })
}

fn candle(row: &Row<'_>) -> rusqlite::Result<Candle> {
    let units = |column| {
        let text: String = row.get(column)?;
        units(&text).ok_or_else(|| {
            rusqlite::Error::InvalidColumnType(column, "a decimal".to_owned(), Type::Text)
        })
    };
    let fixed = |column| {
        units(column)?.try_into().map_err(|_| {
            rusqlite::Error::InvalidColumnType(column, "a decimal".to_owned(), Type::Text)
        })
    };
    let whole = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
    Ok(Candle {
        start: row.get(0)?,
        open: fixed(1)?,
        high: fixed(2)?,
        low: fixed(3)?,
        close: fixed(4)?,
        volume: fixed(5)?,
        notional: units(6)?,
        count: whole(7)?,
        opened: row.get(8)?,
        last: row.get(9)?,
        close_sequence: whole(10)?,
        first_sequence: whole(11)?,
        sequence: whole(12)?,
    })
}

/// A decimal that has all of its digits, in units of the last one.
fn units(text: &str) -> Option<U256> {
    text.replacen('.', "", 1).parse().ok()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::super::{LogReaders, NewEvent};
    use super::*;

    const MINUTE: Micros = 60_000_000;

    fn trade(time: Micros, price: u128, size: u128) -> NewTrade {
        let trade = Trade {
            market: "A-B".into(),
            id: None,
            price,
            size,
            price_decimals: 2,
            size_decimals: 1,
            taker_side: None,
        };
        NewTrade { trade: Arc::new(trade), time: Some(time) }
    }

    fn append(store: &mut Store, trades: &[NewTrade]) -> Vec<u64> {
        let event = |new: &NewTrade| NewEvent {
            topic: Topic::Trades("A-B").name(),
            // What the tests' `standing` reads back.
            body: format!("{} {} {}", new.time.unwrap(), new.trade.price, new.trade.size).into(),
            trade: Some(new.clone()),
            ..NewEvent::default()
        };
        let events: Vec<_> = trades.iter().map(event).collect();
        store.append(&events, &[], 7).unwrap().sequences.into_iter().flatten().collect()
    }

    fn standing(stored: &Stored) -> NewTrade {
        let all: Vec<i64> = stored.body.split(' ').map(|part| part.parse().unwrap()).collect();
        trade(all[0], all[1] as u128, all[2] as u128)
    }

    fn rows(store: &Store) -> Vec<Vec<String>> {
        let columns = format!("minutes, {COLUMNS}");
        let mut rows = store
            .connection
            .prepare(&format!("SELECT {columns} FROM candles ORDER BY 1, 2"))
            .unwrap();
        let row = |row: &Row<'_>| {
            (0..14).map(|at| row.get_ref(at).map(|value| format!("{value:?}"))).collect()
        };
        rows.query_map([], row).unwrap().map(Result::unwrap).collect()
    }

    fn random(random: &mut StdRng, count: usize) -> Vec<NewTrade> {
        let one = |at: usize| {
            let late = if random.random_bool(0.2) { random.random_range(0..300) } else { 0 };
            let time = (at as i64 * 3 - late) * MINUTE + random.random_range(0..MINUTE);
            trade(time, random.random_range(1..999), random.random_range(1..999))
        };
        (0..count).map(one).collect()
    }

    fn new_store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("log.db")).unwrap();
        (folder, store)
    }

    #[test]
    fn rebuilt_candles_equal_those_written_with_their_trades_after_any_rollback() {
        for seed in 0..8 {
            let mut random_numbers = StdRng::seed_from_u64(seed);
            let trades = random(&mut random_numbers, 400);
            let (_folder, mut store) = new_store();
            let sequences: Vec<_> =
                trades.chunks(37).flat_map(|some| append(&mut store, some)).collect();
            let written = rows(&store);
            let from = sequences[random_numbers.random_range(0..400)];
            store.rebuild_candles("A-B", from, &mut |stored| Some(standing(stored))).unwrap();
            assert_eq!(rows(&store), written, "seed {seed}, from {from}");
            // What follows `from` is undone: as if it had never come.
            let undone = |stored: &Stored| (stored.sequence < from).then(|| standing(stored));
            store.rebuild_candles("A-B", from, &mut |stored| undone(stored)).unwrap();
            let (_other, mut without) = new_store();
            let kept = sequences.iter().filter(|sequence| **sequence < from).count();
            append(&mut without, &trades[..kept]);
            assert_eq!(rows(&store), rows(&without), "seed {seed}, undone from {from}");
        }
    }

    #[test]
    fn a_store_of_an_earlier_release_says_that_its_candles_are_missing_until_they_are_made() {
        let (folder, mut store) = new_store();
        let path = folder.path().join("log.db");
        assert!(store.candles_are_missing());
        append(&mut store, &random(&mut StdRng::seed_from_u64(1), 50));
        let written = rows(&store);
        store.candles_are_whole().unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert!(!store.candles_are_missing());
        assert_eq!(rows(&store), written);
        store.connection.execute_batch("UPDATE derived SET version = 0").unwrap();
        drop(store);
        let mut store = Store::open(&path).unwrap();
        assert!(store.candles_are_missing() && rows(&store).is_empty());
        store.rebuild_candles("A-B", 0, &mut |stored| Some(standing(stored))).unwrap();
        assert_eq!(rows(&store), written);
    }

    #[test]
    fn candles_of_events_that_did_not_enter_are_not_written_either() {
        let (_folder, mut store) = new_store();
        append(&mut store, &[trade(0, 100, 1)]);
        let written = rows(&store);
        store.disk.store(1, std::sync::atomic::Ordering::SeqCst);
        let body = "x".repeat(1 << 20);
        let event = NewEvent {
            topic: Topic::Trades("A-B").name(),
            body: body.into(),
            trade: Some(trade(1, 200, 5)),
            ..NewEvent::default()
        };
        assert!(store.append(&[event], &[], 0).unwrap_err().is_retryable());
        assert_eq!(rows(&store), written);
    }

    #[test]
    fn a_query_gives_the_newest_buckets_of_a_span_without_a_gap() {
        let (folder, mut store) = new_store();
        append(&mut store, &[trade(MINUTE, 100, 10), trade(4 * MINUTE + 9, 200, 5)]);
        let path = folder.path().join("log.db");
        let read = |from: Option<i64>, to: Option<i64>, most| {
            let span = CandleSpan {
                interval: Interval::M1,
                from: from.map(|at| at * MINUTE / 2),
                to: to.map(|at| at * MINUTE / 2),
                most,
                now: 6 * MINUTE + 2_000_000,
            };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let readers = LogReaders::new(&path, 1);
            let candles = runtime.block_on(readers.now(move |reader| reader.candles("A-B", &span)));
            let short = |candle: &Candle| (candle.start / MINUTE, candle.close, candle.count);
            candles.unwrap().iter().map(short).collect::<Vec<_>>()
        };
        let all = [(1, 100, 1), (2, 100, 0), (3, 100, 0), (4, 200, 1), (5, 200, 0), (6, 200, 0)];
        assert_eq!(read(None, None, 500), all);
        assert_eq!(read(None, None, 2), all[4..]);
        assert_eq!(read(Some(3), Some(8), 500), all[1..3], "starts in [1:30, 4:00)");
        assert_eq!(read(Some(3), Some(9), 500), all[1..4], "starts in [1:30, 4:30)");
        assert_eq!(read(Some(0), Some(1), 500), []);
        assert_eq!(read(None, Some(99), 500), all, "nothing of what is to come");
    }
}
