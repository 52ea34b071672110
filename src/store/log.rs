//! Events: what is written of each, and how they are read back in order.

use std::collections::HashMap;
use std::slice;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use rusqlite::{Connection, params};

use super::candle_table::{NewTrade, Writing};
use super::fault::{At, StoreError};
use super::orders::OrderRecord;
use super::progress::Progress;
use super::runs::Tail;
use super::{Store, Synchronous, reader, runs, schema, transact};
use crate::market::candles::Candle;
use crate::market::time::Micros;

/// Sequences reserved at once. Each block costs an fsync, some 10 ms on a slow disk, and an unclean
/// stop skips at most as many numbers.
pub(super) const RESERVED_AT_ONCE: u64 = 10_000;

/// Rows of one INSERT. A larger statement opens the table and its indexes less often. It is used
/// only for rows without ids and numbers: SQLite appends these, and no id can be a known one.
pub(super) const ROWS: usize = 32;
/// A fault ends the transaction, as it would anyway: to undo the statement alone SQLite would keep
/// a copy of each page that it touches.
static INSERT_ROWS: LazyLock<String> = LazyLock::new(|| {
    let rows = ["(?, ?, ?, ?)"; ROWS].join(", ");
    format!("INSERT OR ROLLBACK INTO events (topic, body, received_micros, height) VALUES {rows}")
});

/// An event on its way into the log.
#[derive(Clone, Debug, Default)]
pub struct NewEvent {
    pub topic: Arc<str>,
    /// With its kind, see [`EventId`].
    pub id: Option<Box<str>>,
    pub kind: &'static str,
    /// The line as written.
    pub body: Box<str>,
    /// The height of the block whose removal removes the event.
    pub height: Option<u64>,
    /// Where it changes a single order.
    pub order: Option<OrderRecord>,
    /// Where somebody traded: its candles are written along.
    pub trade: Option<NewTrade>,
    /// Where this store is a replica; otherwise it numbers the event itself.
    pub numbered: Option<Numbered>,
}

/// What an event is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId<'a> {
    pub topic: &'a str,
    pub kind: &'a str,
    pub id: &'a str,
}

/// The place of an event in the log that this one is a replica of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered {
    pub sequence: u64,
    /// When that log was given it.
    pub received: Micros,
}

/// See [`Store::append_or`].
pub(super) type Instead<'a> =
    dyn FnMut(usize, &dyn Fn() -> Option<Stored>) -> Option<NewEvent> + 'a;

impl NewEvent {
    /// Its place in the log after this sequence.
    fn after(&self, last: u64, now: Micros) -> Numbered {
        self.numbered.unwrap_or(Numbered { sequence: last + 1, received: now })
    }
}

/// What [`Store::append`] did.
#[derive(Debug, Default)]
pub struct Appended {
    /// Of each event; `None` for one that was known by its id: it counts once.
    pub sequences: Vec<Option<u64>>,
    /// The places of those events that another was written for, see [`Store::append_or`].
    pub replaced: Vec<usize>,
    /// Of each trade by its sequence: the candle of each interval as it left them.
    pub candles: HashMap<u64, Vec<Candle>>,
}

/// An event as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub sequence: u64,
    pub topic: Box<str>,
    pub body: Box<str>,
    pub received: Micros,
    /// Of an order's event, what it did, as JSON; read with [`LogReader::read_span`] alone.
    pub update: Option<Box<str>>,
}

/// A topic that has events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPosition {
    pub name: Box<str>,
    /// Of its newest event.
    pub last: u64,
}

impl Store {
    /// The event of this id.
    pub fn find(&self, id: EventId<'_>) -> Result<Option<Stored>, StoreError> {
        reader::find(&self.connection, id).at(&self.path)
    }

    /// Writes events, the candles of their trades and progress in one transaction: all of it or, on
    /// an error, nothing.
    pub fn append(
        &mut self,
        batch: &[NewEvent],
        progress: &[Progress],
        now: Micros,
    ) -> Result<Appended, StoreError> {
        self.append_or(batch, progress, now, |_, _| None)
    }

    /// The same, with another event of the same topic in the place of one whose id is known, if
    /// there is one. `instead` gets its place, and what reads the event that has the id.
    pub fn append_or(
        &mut self,
        batch: &[NewEvent],
        progress: &[Progress],
        now: Micros,
        mut instead: impl FnMut(usize, &dyn Fn() -> Option<Stored>) -> Option<NewEvent>,
    ) -> Result<Appended, StoreError> {
        let moves = self.begin_append(batch, progress)?;
        let due = self.tail.is_due(now);
        let write = |connection: &Connection| {
            if due {
                self.tail.write(connection, self.last)?;
            }
            let appended = Self::write_events(connection, self.last, batch, now, &mut instead)?;
            Self::write_progress(connection, moves, progress)?;
            Ok(appended)
        };
        let began = Instant::now();
        let written = transact(&self.connection, write);
        self.meters.commit(began, &written);
        let appended = written.at(&self.path)?;
        if due {
            self.tail = Tail::default();
        }
        let mut counts = self.meters.topics();
        for (event, sequence) in batch.iter().zip(&appended.sequences) {
            let Some(sequence) = *sequence else { continue };
            self.last = sequence;
            self.tail.add(&event.topic, sequence, now);
            counts.add(&event.topic);
        }
        drop(counts);
        // Before anybody is sent what was committed.
        if appended.sequences.iter().any(Option::is_some) {
            self.move_mark(self.last);
        }
        Ok(appended)
    }

    /// Sees to it that events have numbers; the move after which the progress begins.
    pub(super) fn begin_append(
        &mut self,
        batch: &[NewEvent],
        progress: &[Progress],
    ) -> Result<i64, StoreError> {
        #[cfg(test)]
        self.limit_pages();
        self.files.check()?;
        let most = batch.iter().filter(|event| event.numbered.is_none()).count() as u64;
        if self.reserved.saturating_sub(self.last) < most {
            self.reserve(self.last + most.max(RESERVED_AT_ONCE))?;
        }
        // Also if nothing of it is kept: it only has to rise.
        let moves = self.moves;
        self.moves += progress.len() as i64;
        Ok(moves)
    }

    /// Allows sequences up to this one, with an fsync whatever the level is otherwise.
    pub(super) fn reserve(&mut self, reserved: u64) -> Result<(), StoreError> {
        let reserve = |connection: &Connection| {
            schema::synchronous(connection, Synchronous::Full)?;
            let written =
                connection.execute("UPDATE log SET reserved = ?1", params![reserved.cast_signed()]);
            schema::synchronous(connection, self.synchronous)?;
            written
        };
        reserve(&self.connection).at(&self.path)?;
        self.reserved = reserved;
        self.renew_mark();
        Ok(())
    }

    pub(super) fn write_events(
        connection: &Connection,
        mut last: u64,
        batch: &[NewEvent],
        now: Micros,
        instead: &mut Instead<'_>,
    ) -> rusqlite::Result<Appended> {
        let mut sequences = Vec::with_capacity(batch.len());
        let mut replaced = Vec::new();
        let mut candles = HashMap::new();
        let mut writing = Writing::new(connection);
        // The newest row, after which SQLite numbers on: not the last number where a row is gone.
        let mut newest = match batch.len() < ROWS {
            true => None,
            false => Self::newest_row(connection)?,
        };
        let mut rest = batch;
        while let [first, ..] = rest {
            let rows = rest.first_chunk::<ROWS>().filter(|rows| {
                let plain = |event: &NewEvent| event.id.is_none() && event.numbered.is_none();
                newest == Some(last) && rows.iter().all(plain)
            });
            let some = rows.map_or(slice::from_ref(first), |rows| rows);
            rest = &rest[some.len()..];
            let entered = match rows {
                Some(rows) => {
                    Self::insert_rows(connection, rows, last, now)?;
                    true
                }
                None => Self::insert(connection, first, last, now)?,
            };
            if !entered {
                let place = sequences.len();
                let stored = || {
                    let NewEvent { topic, id, kind, .. } = first;
                    let id = EventId { topic, kind, id: id.as_deref()? };
                    reader::find(connection, id).ok().flatten()
                };
                let other = instead(place, &stored);
                if let Some(other) = &other {
                    Self::insert(connection, other, last, now)?;
                    last = other.after(last, now).sequence;
                    newest = Some(last);
                    replaced.push(place);
                }
                sequences.push(other.map(|_| last));
                continue;
            }
            for event in some {
                let Numbered { sequence, received } = event.after(last, now);
                last = sequence;
                newest = Some(sequence);
                sequences.push(Some(sequence));
                if let Some(order) = &event.order {
                    Self::write_order(connection, sequence.cast_signed(), order)?;
                }
                if let Some(trade) = &event.trade {
                    candles.insert(sequence, writing.trade(sequence, trade, received)?);
                }
            }
        }
        writing.write()?;
        Ok(Appended { sequences, replaced, candles })
    }

    pub(super) fn newest_row(connection: &Connection) -> rusqlite::Result<Option<u64>> {
        connection
            .prepare_cached("SELECT max(sequence) FROM events")?
            .query_row([], |row| row.get::<_, Option<i64>>(0))
            .map(|newest| newest.map(i64::cast_unsigned))
    }

    /// Whether it entered: its id was not known.
    pub(super) fn insert(
        connection: &Connection,
        event: &NewEvent,
        last: u64,
        now: Micros,
    ) -> rusqlite::Result<bool> {
        let Numbered { sequence, received } = event.after(last, now);
        let rows = connection
            .prepare_cached(
                "INSERT INTO events (sequence, topic, id, kind, body, received_micros, height)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (id, kind, topic) WHERE id IS NOT NULL DO NOTHING",
            )?
            .execute(params![
                sequence.cast_signed(),
                &*event.topic,
                event.id.as_deref(),
                event.id.as_ref().map(|_| event.kind),
                &*event.body,
                received,
                event.height.map(reader::bound)
            ])?;
        Ok(rows > 0)
    }

    /// Events without ids and numbers, right after the newest row.
    pub(super) fn insert_rows(
        connection: &Connection,
        events: &[NewEvent; ROWS],
        last: u64,
        now: Micros,
    ) -> rusqlite::Result<()> {
        let mut insert = connection.prepare_cached(&INSERT_ROWS)?;
        for (event, column) in events.iter().zip((1..).step_by(4)) {
            insert.raw_bind_parameter(column, &*event.topic)?;
            insert.raw_bind_parameter(column + 1, &*event.body)?;
            insert.raw_bind_parameter(column + 2, now)?;
            insert.raw_bind_parameter(column + 3, event.height.map(reader::bound))?;
        }
        insert.raw_execute()?;
        let numbered = connection.last_insert_rowid().cast_unsigned();
        assert_eq!(numbered, last + ROWS as u64, "SQLite numbers after the newest row");
        Ok(())
    }

    /// Events of every topic after `sequence`, in order, at most `most`.
    pub fn read_from(&self, sequence: u64, most: usize) -> Result<Vec<Stored>, StoreError> {
        reader::read_from(&self.connection, sequence, most).at(&self.path)
    }

    /// Events of one topic after `sequence`, in order, at most `most`.
    pub fn read_topic(
        &self,
        topic: &str,
        sequence: u64,
        most: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        reader::read_topic(&self.connection, topic, sequence, most).at(&self.path)
    }

    /// The newest event of a topic.
    pub fn latest(&self, topic: &str) -> Result<Option<Stored>, StoreError> {
        Ok(reader::newest(&self.connection, topic, 1).at(&self.path)?.pop())
    }

    /// Every topic that has events, by name.
    pub fn topics(&self) -> Result<Vec<TopicPosition>, StoreError> {
        runs::topics(&self.connection).at(&self.path)
    }

    /// Every topic that events of other topics are in too, by name.
    pub fn further_topics(&self) -> Result<Vec<TopicPosition>, StoreError> {
        reader::topics(&self.connection, "event_topics", "sequence").at(&self.path)
    }
}
