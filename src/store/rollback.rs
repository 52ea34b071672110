//! Taking blocks back: their events leave the log in the same transaction as the event that
//! undoes them, together with all that followed from it. What left is kept in a table of its own,
//! for people: nothing reads it, and its ids are free again. What an event means, and so what has
//! to go along, is decided by who holds a [`RollbackTransaction`].

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rusqlite::{Connection, OptionalExtension, params};

use super::candle_table;
use super::fault::{At, StoreError};
use super::reader::{self, Span};
use super::rebuild;
use super::runs::{self, Tail};
use super::{
    Checkpoint, MarketCandles, NewEvent, NewTrade, Progress, Store, Stored, TopicPosition, transact,
};
use crate::market::definition::MarketId;
use crate::market::epochs::{EpochChange, MOST_EPOCH_CHANGES};
use crate::market::time::Micros;

/// The open transaction of an event that undoes blocks.
pub struct RollbackTransaction<'a> {
    connection: &'a Connection,
    path: &'a Path,
    /// Of the event.
    pub sequence: u64,
}

/// What ends the transaction without a commit.
enum Failed {
    Sqlite(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Store {
    /// Writes an event that undoes blocks, its feed's progress and what `work` does, in one
    /// transaction: all of it or, on an error, nothing. `None` where its id was known: then `work`
    /// is not called.
    pub fn roll_back<T>(
        &mut self,
        event: &NewEvent,
        progress: &[Progress],
        now: Micros,
        work: impl FnOnce(&RollbackTransaction<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<(u64, T)>, StoreError> {
        let moves = self.begin_append(std::slice::from_ref(event), progress)?;
        let path = &self.path;
        let last = self.last;
        let write = |connection: &Connection| -> Result<_, Failed> {
            self.tail.write(connection, last)?;
            let appended = Self::write_events(
                connection,
                last,
                std::slice::from_ref(event),
                now,
                &mut |_, _| None,
            )?;
            Self::write_progress(connection, moves, progress)?;
            let Some(Some(sequence)) = appended.sequences.first().copied() else { return Ok(None) };
            let transaction = RollbackTransaction { connection, path, sequence };
            let done = work(&transaction).map_err(Failed::Store)?;
            Ok(Some((sequence, done)))
        };
        let began = Instant::now();
        let written = transact(&self.connection, write);
        self.meters.commit(began, &written);
        let written = match written {
            Err(Failed::Sqlite(error)) => return Err(error).at(path),
            Err(Failed::Store(error)) => return Err(error),
            Ok(written) => written,
        };
        self.tail = Tail::default();
        if let Some((sequence, _)) = written {
            self.last = sequence;
            self.tail.add(&event.topic, sequence, now);
            self.move_mark(sequence);
        }
        Ok(written)
    }

    /// Every epoch change that is remembered, by scope and oldest first.
    pub fn epoch_changes(&self) -> Result<Vec<(Box<str>, EpochChange)>, StoreError> {
        let read = |connection: &Connection| -> rusqlite::Result<Vec<_>> {
            connection
                .prepare("SELECT scope, at, first FROM epoch_changes ORDER BY scope, at")?
                .query_map([], |row| {
                    let whole = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
                    Ok((row.get(0)?, EpochChange { at: whole(1)?, first: whole(2)? }))
                })?
                .collect()
        };
        read(&self.connection).at(&self.path)
    }
}

impl RollbackTransaction<'_> {
    /// Standing events of blocks from this height on, at most `most`: those that are undone are
    /// no longer among them.
    pub fn from_height(&self, height: u64, most: usize) -> Result<Vec<Stored>, StoreError> {
        let read = || -> rusqlite::Result<Vec<_>> {
            self.connection
                .prepare_cached(
                    "SELECT events.sequence, topic, body, received_micros, state
                     FROM events LEFT JOIN order_updates USING (sequence)
                     WHERE height >= ?1 ORDER BY height, events.sequence LIMIT ?2",
                )?
                .query_map(params![reader::bound(height), reader::count(most)], |row| {
                    Ok(Stored { update: row.get(4)?, ..reader::stored(row)? })
                })?
                .collect()
        };
        read().at(self.path)
    }

    /// An event leaves the log, and the further topics it was in.
    pub fn undo(&self, sequence: u64, further: &[Arc<str>]) -> Result<(), StoreError> {
        let undo = || {
            let number = reader::bound(sequence);
            let topic: Option<Box<str>> = self
                .connection
                .prepare_cached("SELECT topic FROM events WHERE sequence = ?1")?
                .query_row([number], |row| row.get(0))
                .optional()?;
            if let Some(topic) = topic {
                runs::remove(self.connection, &topic, sequence)?;
            }
            self.connection
                .prepare_cached(
                    "INSERT INTO undone (sequence, topic, id, body, received_micros, height, undone_by)
                     SELECT sequence, topic, id, body, received_micros, height, ?2 FROM events
                     WHERE sequence = ?1",
                )?
                .execute(params![number, reader::bound(self.sequence)])?;
            for statement in [
                "DELETE FROM events WHERE sequence = ?1",
                "DELETE FROM order_updates WHERE sequence = ?1",
            ] {
                self.connection.prepare_cached(statement)?.execute([number])?;
            }
            for topic in further {
                self.connection
                    .prepare_cached("DELETE FROM event_topics WHERE topic = ?1 AND sequence = ?2")?
                    .execute(params![&**topic, number])?;
            }
            Ok(())
        };
        undo().at(self.path)
    }

    /// Valid events of a topic after `sequence`, in order, at most `most`; of those of orders
    /// also what they did.
    pub fn read_topic(
        &self,
        topic: &Arc<str>,
        sequence: u64,
        most: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        let span = Span { after: sequence, until: u64::MAX, most, most_bytes: usize::MAX };
        reader::read_span(self.connection, std::slice::from_ref(topic), &span).at(self.path)
    }

    /// The newest valid event of a topic, also of one that it is in beside its own.
    pub fn newest(&self, topic: &Arc<str>) -> Result<Option<Stored>, StoreError> {
        match reader::last_until(self.connection, topic, u64::MAX).at(self.path)? {
            Some(last) => Ok(self.read_topic(topic, last - 1, 1)?.pop()),
            None => Ok(None),
        }
    }

    /// A topic's newest state from before an event. Those from after it are removed.
    pub fn base(&self, topic: &str, event: u64) -> Result<Option<Checkpoint>, StoreError> {
        let read = || {
            self.connection
                .prepare_cached("DELETE FROM checkpoints WHERE topic = ?1 AND sequence >= ?2")?
                .execute(params![topic, reader::bound(event)])?;
            self.connection
                .prepare_cached(
                    "SELECT sequence, state FROM checkpoints WHERE topic = ?1
                     ORDER BY sequence DESC LIMIT 1",
                )?
                .query_row([topic], |row| {
                    Ok(Checkpoint {
                        topic: topic.into(),
                        sequence: row.get::<_, i64>(0)?.cast_unsigned(),
                        state: row.get(1)?,
                    })
                })
                .optional()
        };
        read().at(self.path)
    }

    /// What a standing event did to its order, as JSON, where that differs from what it did before.
    pub fn put_update(&self, sequence: u64, update: &str) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE order_updates SET state = ?2 WHERE sequence = ?1")
            .and_then(|mut statement| statement.execute(params![reader::bound(sequence), update]))
            .at(self.path)?;
        Ok(())
    }

    /// The current state of an order, as JSON.
    pub fn put_order(
        &self,
        id: &str,
        status: &'static str,
        open: bool,
        state: &str,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE orders SET status = ?2, open = ?3, state = ?4 WHERE id = ?1")
            .and_then(|mut statement| statement.execute(params![id, status, open, state]))
            .at(self.path)?;
        Ok(())
    }

    /// An order that was never placed.
    pub fn forget_order(&self, id: &str) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM orders WHERE id = ?1")
            .and_then(|mut statement| statement.execute([id]))
            .at(self.path)?;
        Ok(())
    }

    /// Every topic that has events, or has those of others.
    pub fn topics(&self) -> Result<Vec<TopicPosition>, StoreError> {
        let read = || -> rusqlite::Result<_> {
            let mut topics = runs::topics(self.connection)?;
            topics.extend(reader::topics(self.connection, "event_topics", "sequence")?);
            Ok(topics)
        };
        read().at(self.path)
    }

    /// Remembers that a scope begins a new epoch with this event, as it undid `first` of it.
    pub fn renumber(&self, scope: &str, first: u64) -> Result<(), StoreError> {
        let write = || {
            self.connection
                .prepare_cached("INSERT INTO epoch_changes (scope, at, first) VALUES (?1, ?2, ?3)")?
                .execute(params![scope, reader::bound(self.sequence), reader::bound(first)])?;
            // One more than is remembered shows that there were more.
            self.connection
                .prepare_cached(
                    "DELETE FROM epoch_changes WHERE scope = ?1 AND at NOT IN (
                         SELECT at FROM epoch_changes WHERE scope = ?1 ORDER BY at DESC LIMIT ?2)",
                )?
                .execute(params![scope, reader::count(MOST_EPOCH_CHANGES + 1)])
        };
        write().at(self.path)?;
        Ok(())
    }

    /// See [`rebuild::rebuild`].
    pub fn rebuild_candles(
        &self,
        market: &str,
        from: u64,
        standing: &mut dyn FnMut(&Stored) -> Option<NewTrade>,
    ) -> Result<(), StoreError> {
        rebuild::rebuild(self.connection, market, from, standing).at(self.path)
    }

    /// See [`Store::market_candles`].
    pub fn market_candles(
        &self,
        market: &MarketId,
        now: Micros,
    ) -> Result<MarketCandles, StoreError> {
        candle_table::market_candles(self.connection, market, now).at(self.path)
    }
}
