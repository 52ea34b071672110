//! Reading the log: the same queries for the writer's replay and for readers beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::fault::{At, StoreError};
use super::{Stored, Topic, schema};

/// A read-only connection of its own: reads while the writer writes, and never blocks it.
#[derive(Debug)]
pub struct LogReader {
    pub(super) path: PathBuf,
    pub(super) connection: Connection,
}

impl LogReader {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { path: path.to_owned(), connection: schema::connect_reader(path)? })
    }

    /// Events of one topic behind `sequence`, in order, at most `most`.
    pub fn read_topic(
        &self,
        topic: &str,
        sequence: u64,
        most: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        read_topic(&self.connection, topic, sequence, most).at(&self.path)
    }

    /// Events of some topics, over all of them in the log's order. What it costs is bound by the
    /// span's `most` and the number of topics, not by what else stands in the log.
    pub fn read_span(&self, topics: &[Arc<str>], span: &Span) -> Result<Vec<Stored>, StoreError> {
        read_span(&self.connection, topics, span).at(&self.path)
    }

    /// The event of this id.
    pub fn find(&self, id: &str) -> Result<Option<Stored>, StoreError> {
        find(&self.connection, id).at(&self.path)
    }

    /// The newest event of a topic up to `sequence`.
    pub fn last_until(&self, topic: &str, sequence: u64) -> Result<Option<u64>, StoreError> {
        last_until(&self.connection, topic, sequence).at(&self.path)
    }
}

/// Which part of the log to read.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Behind this sequence.
    pub after: u64,
    /// Up to this one.
    pub until: u64,
    /// Events.
    pub most: usize,
    /// Bytes of their lines; at least one event is read, however long.
    pub most_bytes: usize,
}

fn read_span(
    connection: &Connection,
    topics: &[Arc<str>],
    span: &Span,
) -> rusqlite::Result<Vec<Stored>> {
    let (after, until, most) = (bound(span.after), bound(span.until), count(span.most));
    // Only the index is read here: of many topics nearly all candidates are for a later page.
    let mut numbers = connection.prepare_cached(
        "SELECT sequence FROM events
         WHERE topic = ?1 AND sequence > ?2 AND sequence <= ?3 ORDER BY sequence LIMIT ?4",
    )?;
    let mut due = Vec::new();
    for topic in topics {
        let rows = numbers.query_map(params![&**topic, after, until, most], |row| row.get(0))?;
        for sequence in rows {
            due.push(sequence?);
        }
    }
    due.sort_unstable();
    due.truncate(span.most);
    let mut row = connection.prepare_cached(
        "SELECT sequence, topic, body, received_micros FROM events WHERE sequence = ?1",
    )?;
    let (mut events, mut bytes) = (Vec::new(), 0);
    for sequence in due {
        let sequence: i64 = sequence;
        let event = row.query_row([sequence], stored)?;
        bytes += event.body.len();
        if bytes > span.most_bytes && !events.is_empty() {
            break;
        }
        events.push(event);
    }
    Ok(events)
}

fn find(connection: &Connection, id: &str) -> rusqlite::Result<Option<Stored>> {
    connection
        .prepare_cached("SELECT sequence, topic, body, received_micros FROM events WHERE id = ?1")?
        .query_row([id], stored)
        .optional()
}

fn last_until(
    connection: &Connection,
    topic: &str,
    sequence: u64,
) -> rusqlite::Result<Option<u64>> {
    connection
        .prepare_cached("SELECT max(sequence) FROM events WHERE topic = ?1 AND sequence <= ?2")?
        .query_row(params![topic, bound(sequence)], |row| row.get::<_, Option<i64>>(0))
        .map(|sequence| sequence.map(i64::cast_unsigned))
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
    connection
        .prepare_cached(
            "SELECT sequence, topic, body, received_micros FROM events
             WHERE topic = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3",
        )?
        .query_map(params![topic, bound(sequence), count(most)], stored)?
        .collect()
}

pub(super) fn latest(connection: &Connection, topic: &str) -> rusqlite::Result<Option<Stored>> {
    connection
        .prepare_cached(
            "SELECT sequence, topic, body, received_micros FROM events
             WHERE topic = ?1 ORDER BY sequence DESC LIMIT 1",
        )?
        .query_row([topic], stored)
        .optional()
}

/// Hops from topic to topic in the index: costs the number of topics, not of events.
pub(super) fn topics(connection: &Connection) -> rusqlite::Result<Vec<Topic>> {
    connection
        .prepare_cached(
            "WITH RECURSIVE names (name) AS (
                 SELECT min(topic) FROM events
                 UNION ALL
                 SELECT (SELECT min(topic) FROM events WHERE topic > name) FROM names
                 WHERE name IS NOT NULL)
             SELECT name, (SELECT max(sequence) FROM events WHERE topic = name) FROM names
             WHERE name IS NOT NULL",
        )?
        .query_map([], |row| {
            Ok(Topic { name: row.get(0)?, last: row.get::<_, i64>(1)?.cast_unsigned() })
        })?
        .collect()
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        sequence: row.get::<_, i64>(0)?.cast_unsigned(),
        topic: row.get(1)?,
        body: row.get(2)?,
        received: row.get(3)?,
    })
}

/// A client's cursor may hold any number; SQLite's are signed.
fn bound(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

fn count(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}
