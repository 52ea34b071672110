//! Candles made again from the log: where the store has none, and after a rollback.

use std::collections::HashSet;

use rusqlite::{Connection, params};

use super::candle_table::{NewTrade, VERSION, Writing, tick};
use super::fault::{At, StoreError};
use super::log::Stored;
use super::{Store, reader, transact};
use crate::market::time::Micros;
use crate::market::topic::Topic;

/// Events read at once while candles are rebuilt.
const PAGE: usize = 1_024;

impl Store {
    /// Whether candles have to be made from the log before they are true: the store is new, or was
    /// written by a release that had none or others.
    pub fn candles_are_missing(&self) -> bool {
        self.candles_missing
    }

    /// Says that every market's candles are there.
    pub fn candles_are_whole(&mut self) -> Result<(), StoreError> {
        self.connection
            .execute("INSERT OR REPLACE INTO derived VALUES ('candles', ?1)", params![VERSION])
            .at(&self.path)?;
        self.candles_missing = false;
        Ok(())
    }

    /// Rebuilds a market's candles from the log, all of them or, on an error, none: see
    /// [`rebuild`].
    pub fn rebuild_candles(
        &mut self,
        market: &str,
        from: u64,
        standing: &mut dyn FnMut(&Stored) -> Option<NewTrade>,
    ) -> Result<(), StoreError> {
        let work = |connection: &Connection| rebuild(connection, market, from, standing);
        transact(&self.connection, work).at(&self.path)
    }
}

/// Rebuilds a market's candles from the log, as far as events from the sequence `from` on have
/// touched them: after a reorganisation of the chain, from the first event that it undid.
/// `standing` reads a trade and says `None` of one that does not count. Costs the market's trades
/// since the oldest bucket that is touched began. Who shows candles has to take them from
/// [`market_candles`] then.
pub(super) fn rebuild(
    connection: &Connection,
    market: &str,
    from: u64,
    standing: &mut dyn FnMut(&Stored) -> Option<NewTrade>,
) -> rusqlite::Result<()> {
    let (touched, begin) = touched(connection, market, from)?;
    connection
        .prepare_cached(
            "DELETE FROM candles WHERE market = ?1 AND sequence >= ?2
                 AND minutes IN (1, 5, 15, 30, 60, 240, 1440)",
        )?
        .execute(params![market, from.cast_signed()])?;
    let (topic, mut after) = (Topic::Trades(market).name(), begin.saturating_sub(1));
    let mut writing = Writing::new(connection);
    loop {
        let page = reader::read_topic(connection, &topic, after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = last.sequence;
        for stored in &page {
            let Some(new) = standing(stored) else { continue };
            let tick = tick(stored.sequence, &new, stored.received);
            writing.take(&tick, &new.trade, |interval| {
                stored.sequence >= from
                    || touched.contains(&(interval.minutes(), interval.bucket(tick.time)))
            })?;
        }
    }
    writing.write()
}

/// Buckets that events from this one on have touched, and the first event that is in any of them.
fn touched(
    connection: &Connection,
    market: &str,
    from: u64,
) -> rusqlite::Result<(HashSet<(u32, Micros)>, u64)> {
    let mut all = HashSet::new();
    let mut begin = from;
    let mut rows = connection.prepare_cached(
        "SELECT minutes, start, first_sequence FROM candles WHERE market = ?1 AND sequence >= ?2
             AND minutes IN (1, 5, 15, 30, 60, 240, 1440)",
    )?;
    let mut rows = rows.query(params![market, from.cast_signed()])?;
    while let Some(row) = rows.next()? {
        all.insert((row.get(0)?, row.get(1)?));
        begin = begin.min(row.get::<_, i64>(2)?.cast_unsigned());
    }
    Ok((all, begin))
}
