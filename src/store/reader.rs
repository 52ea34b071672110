//! Reading the log: the same queries for the writer's replay and for readers beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::fault::{At, StoreError};
use super::{EventId, Stored, TopicPosition, runs, schema};
use crate::market::time::Micros;

/// A read-only connection of its own: reads while the writer writes, and never blocks it.
#[derive(Debug)]
pub struct LogReader {
    pub(super) path: PathBuf,
    pub(super) connection: Connection,
}

impl LogReader {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { path: path.to_owned(), connection: schema::connect_reader(path)? })
    }

    /// All that is read by the way is of one moment of the log.
    pub fn at_once<T>(
        &self,
        read: impl FnOnce(&Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let moment = self.connection.unchecked_transaction().at(&self.path)?;
        let done = read(self)?;
        moment.finish().at(&self.path)?;
        Ok(done)
    }

    /// The newest event that began an epoch of any topic; 0 if none did.
    pub fn newest_epoch_change(&self) -> Result<u64, StoreError> {
        self.connection
            .prepare_cached("SELECT max(at) FROM epoch_changes")
            .and_then(|mut statement| statement.query_row([], |row| row.get::<_, Option<i64>>(0)))
            .map(|at| at.map_or(0, i64::cast_unsigned))
            .at(&self.path)
    }

    /// Events of one topic after `sequence`, in order, at most `most`.
    pub fn read_topic(
        &self,
        topic: &str,
        sequence: u64,
        most: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        read_topic(&self.connection, topic, sequence, most).at(&self.path)
    }

    /// Events of some topics, over all of them in the log's order. What it costs is bound by the
    /// span's `most` and the number of topics (and the log's tail, see [`runs`]), not by what else
    /// is in the log.
    pub fn read_span(&self, topics: &[Arc<str>], span: &Span) -> Result<Vec<Stored>, StoreError> {
        read_span(&self.connection, topics, span).at(&self.path)
    }

    /// The event of this id.
    pub fn find(&self, id: EventId<'_>) -> Result<Option<Stored>, StoreError> {
        find(&self.connection, id).at(&self.path)
    }

    /// Orders by the event that placed them. What it costs is bound by the page where no side and
    /// no final status is asked for, else by the orders of the market or the account.
    pub fn orders(&self, query: &OrderQuery) -> Result<Vec<StoredOrder>, StoreError> {
        orders(&self.connection, query).at(&self.path)
    }

    /// One order, with the event that placed it.
    pub fn order(&self, id: &str) -> Result<Option<StoredOrder>, StoreError> {
        let by_id = "SELECT placed, state FROM orders WHERE id = ?1";
        self.one_order(by_id, id)
    }

    /// The order that an event placed.
    pub fn order_of_event(&self, sequence: u64) -> Result<Option<StoredOrder>, StoreError> {
        let by_event = "SELECT placed, state FROM orders WHERE placed = ?1";
        self.one_order(by_event, bound(sequence))
    }

    fn one_order(&self, query: &str, by: impl ToSql) -> Result<Option<StoredOrder>, StoreError> {
        let one = |connection: &Connection| {
            connection.prepare_cached(query)?.query_row([by], stored_order).optional()
        };
        one(&self.connection).at(&self.path)
    }

    /// A topic's newest events, in order, at most `most`.
    pub fn newest(&self, topic: &str, most: usize) -> Result<Vec<Stored>, StoreError> {
        newest(&self.connection, topic, most).at(&self.path)
    }

    /// The event before the first one that the log took at this moment or later, in some thirty
    /// looks. Where clocks were set back, one of the events before such a first one.
    pub fn last_before(&self, moment: Micros) -> Result<u64, StoreError> {
        last_before(&self.connection, moment).at(&self.path)
    }

    /// The newest event of a topic up to `sequence`.
    pub fn last_until(&self, topic: &str, sequence: u64) -> Result<Option<u64>, StoreError> {
        last_until(&self.connection, topic, sequence).at(&self.path)
    }
}

/// Which orders to list.
#[derive(Clone, Debug, Default)]
pub struct OrderQuery {
    pub market: Option<Arc<str>>,
    pub account: Option<Arc<str>>,
    pub side: Option<&'static str>,
    pub status: Option<&'static str>,
    pub open: Option<bool>,
    /// Placed after this sequence.
    pub after: u64,
    pub most: usize,
}

/// An order as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredOrder {
    /// Of the event that placed it.
    pub sequence: u64,
    /// As it is now, as JSON.
    pub state: Box<str>,
}

/// Only what is asked for is in the query, so that each has the index that fits.
fn orders(connection: &Connection, query: &OrderQuery) -> rusqlite::Result<Vec<StoredOrder>> {
    let OrderQuery { market, account, side, status, open, after, most } = query;
    let mut text = "SELECT placed, state FROM orders WHERE placed > ?1".to_owned();
    for (clause, asked) in [
        (" AND market = ?2", market.is_some()),
        (" AND account = ?3", account.is_some()),
        (" AND side = ?4", side.is_some()),
        (" AND status = ?5", status.is_some()),
        (" AND open = 1", *open == Some(true)),
        (" AND open = 0", *open == Some(false)),
    ] {
        text.push_str(if asked { clause } else { "" });
    }
    text.push_str(" ORDER BY placed LIMIT ?6");
    connection
        .prepare_cached(&text)?
        .query_map(
            params![
                bound(*after),
                market.as_deref(),
                account.as_deref(),
                side,
                status,
                count(*most)
            ],
            stored_order,
        )?
        .collect()
}

fn stored_order(row: &Row<'_>) -> rusqlite::Result<StoredOrder> {
    Ok(StoredOrder { sequence: row.get::<_, i64>(0)?.cast_unsigned(), state: row.get(1)? })
}

/// Which part of the log to read.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// After this sequence.
    pub after: u64,
    /// Up to this one.
    pub until: u64,
    /// Events.
    pub most: usize,
    /// Bytes of their lines; at least one event is read, however long.
    pub most_bytes: usize,
}

pub(super) fn read_span(
    connection: &Connection,
    topics: &[Arc<str>],
    span: &Span,
) -> rusqlite::Result<Vec<Stored>> {
    let (after, until, most) = (bound(span.after), bound(span.until), count(span.most));
    // Only numbers are read here: of many topics nearly all candidates are for a later page.
    let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    let mut due = runs::ascending(connection, &names, (span.after, span.until), span.most)?;
    let mut further = connection.prepare_cached(
        "SELECT sequence FROM event_topics WHERE topic = ?1 AND sequence > ?2 AND sequence <= ?3
         ORDER BY sequence LIMIT ?4",
    )?;
    for (place, name) in names.iter().enumerate() {
        let rows = further.query_map(params![name, after, until, most], |row| row.get(0))?;
        for sequence in rows {
            due.push((i64::cast_unsigned(sequence?), place));
        }
    }
    due.sort_unstable();
    due.truncate(span.most);
    let mut row = connection.prepare_cached(
        "SELECT sequence, topic, body, received_micros,
             (SELECT state FROM order_updates WHERE sequence = ?1)
         FROM events WHERE sequence = ?1",
    )?;
    let (mut events, mut bytes) = (Vec::new(), 0);
    for (sequence, place) in due {
        // Under the topic that was asked for: an event may be in several.
        let event = row.query_row([bound(sequence)], |row| {
            Ok(Stored { topic: names[place].into(), update: row.get(4)?, ..stored(row)? })
        });
        // Undone between two moments, where the reader does not hold one.
        let Some(event) = event.optional()? else { continue };
        bytes += event.body.len() + event.update.as_ref().map_or(0, |update| update.len());
        if bytes > span.most_bytes && !events.is_empty() {
            break;
        }
        events.push(event);
    }
    Ok(events)
}

pub(super) fn find(
    connection: &Connection,
    EventId { topic, kind, id }: EventId<'_>,
) -> rusqlite::Result<Option<Stored>> {
    connection
        .prepare_cached(
            "SELECT sequence, topic, body, received_micros FROM events
             WHERE id = ?1 AND kind = ?2 AND topic = ?3",
        )?
        .query_row([id, kind, topic], stored)
        .optional()
}

fn last_before(connection: &Connection, moment: Micros) -> rusqlite::Result<u64> {
    let mut from = connection.prepare_cached(
        "SELECT sequence, received_micros FROM events WHERE sequence >= ?1
         ORDER BY sequence LIMIT 1",
    )?;
    let last = connection
        .prepare_cached("SELECT max(sequence) FROM events")?
        .query_row([], |row| row.get::<_, Option<i64>>(0))?;
    // All events up to `before` came earlier; the one at `since`, if any, did not.
    let (mut before, mut since) = (0, last.unwrap_or(0) + 1);
    while since - before > 1 {
        let middle = before + (since - before) / 2;
        let found = from
            .query_row([middle], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Micros>(1)?)))
            .optional()?;
        match found {
            Some((sequence, received)) if received < moment && sequence < since => {
                before = sequence;
            }
            _ => since = middle,
        }
    }
    Ok(before.cast_unsigned())
}

pub(super) fn last_until(
    connection: &Connection,
    topic: &str,
    sequence: u64,
) -> rusqlite::Result<Option<u64>> {
    let own = runs::descending(connection, topic, sequence, 1)?.pop();
    let further = connection
        .prepare_cached(
            "SELECT max(sequence) FROM event_topics WHERE topic = ?1 AND sequence <= ?2",
        )?
        .query_row(params![topic, bound(sequence)], |row| row.get::<_, Option<i64>>(0))?;
    Ok(own.max(further.map(i64::cast_unsigned)))
}

pub(super) fn read_from(
    connection: &Connection,
    sequence: u64,
    most: usize,
) -> rusqlite::Result<Vec<Stored>> {
    connection
        .prepare_cached(
            "SELECT sequence, topic, body, received_micros FROM events
             WHERE sequence > ?1 ORDER BY sequence LIMIT ?2",
        )?
        .query_map(params![bound(sequence), count(most)], stored)?
        .collect()
}

pub(super) fn read_topic(
    connection: &Connection,
    topic: &str,
    sequence: u64,
    most: usize,
) -> rusqlite::Result<Vec<Stored>> {
    let found = runs::ascending(connection, &[topic], (sequence, u64::MAX), most)?;
    each(connection, found.into_iter().map(|(sequence, _)| sequence))
}

/// In order.
pub(super) fn newest(
    connection: &Connection,
    topic: &str,
    most: usize,
) -> rusqlite::Result<Vec<Stored>> {
    let found = runs::descending(connection, topic, u64::MAX, most)?;
    each(connection, found.into_iter().rev())
}

/// The events of these sequences.
fn each(
    connection: &Connection,
    sequences: impl Iterator<Item = u64>,
) -> rusqlite::Result<Vec<Stored>> {
    let mut event = connection.prepare_cached(
        "SELECT sequence, topic, body, received_micros FROM events WHERE sequence = ?1",
    )?;
    let read = |sequence| event.query_row([bound(sequence)], stored).optional();
    // One may have been undone since, where the reader does not hold a moment of the log.
    sequences.map(read).filter_map(Result::transpose).collect()
}

/// Hops from topic to topic in a table's key of topic and number: costs the number of topics, not
/// of rows.
pub(super) fn topics(
    connection: &Connection,
    table: &'static str,
    number: &'static str,
) -> rusqlite::Result<Vec<TopicPosition>> {
    connection
        .prepare(&format!(
            "WITH RECURSIVE names (name) AS (
                 SELECT min(topic) FROM {table}
                 UNION ALL
                 SELECT (SELECT min(topic) FROM {table} WHERE topic > name) FROM names
                 WHERE name IS NOT NULL)
             SELECT name, (SELECT max({number}) FROM {table} WHERE topic = name) FROM names
             WHERE name IS NOT NULL",
        ))?
        .query_map([], |row| {
            Ok(TopicPosition { name: row.get(0)?, last: row.get::<_, i64>(1)?.cast_unsigned() })
        })?
        .collect()
}

pub(super) fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        sequence: row.get::<_, i64>(0)?.cast_unsigned(),
        topic: row.get(1)?,
        body: row.get(2)?,
        received: row.get(3)?,
        update: None,
    })
}

/// A client's cursor may hold any number; SQLite's are signed.
pub(super) fn bound(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

pub(super) fn count(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}
