//! Which events each topic has: runs of sequences, many in a row. They are written after the log,
//! as an entry for each event at its commit would touch a page of each topic again and again, which
//! costs a busy hub as much as the events themselves. What came since is the tail: readers look at
//! each event of it. Both follow from the log, and who reads them together reads them of one
//! moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, params};

use super::reader::bound;
use super::{TopicPosition, transact};
use crate::market::time::Micros;

/// Events of the tail from which on it is written, with the next commit. Reading a topic looks at
/// all of them, some 0.1 us each; the more there are, the more each page takes that is written.
pub(super) const TAIL: usize = 8_192;
/// Nor does it get older, in microseconds: where few events come, runs cost little and readers the
/// more.
pub(super) const TAIL_AGE: Micros = 1_000_000;
/// Sequences of a run: reading one of them reads all.
const RUN: usize = 1_024;
/// Events put into runs in one transaction where a log has none yet.
const PIECE: i64 = 65_536;

/// Events that are in the log and in no run yet, as the writer keeps them.
#[derive(Debug, Default)]
pub(super) struct Tail {
    topics: HashMap<Arc<str>, Vec<u64>>,
    events: usize,
    /// When its first came.
    since: Option<Micros>,
}

impl Tail {
    /// Of an event after all others. Once it is committed.
    pub(super) fn add(&mut self, topic: &Arc<str>, sequence: u64, now: Micros) {
        self.events += 1;
        self.since.get_or_insert(now);
        match self.topics.get_mut(topic) {
            Some(sequences) => sequences.push(sequence),
            None => drop(self.topics.insert(topic.clone(), vec![sequence])),
        }
    }

    #[cfg(test)]
    pub(super) fn events(&self) -> usize {
        self.events
    }

    pub(super) fn is_due(&self, now: Micros) -> bool {
        // A clock that was set back is no reason to wait for it.
        let age = self.since.map_or(0, |since| now.abs_diff(since));
        self.events >= TAIL || age >= TAIL_AGE.unsigned_abs()
    }

    /// Makes runs of it, within a transaction after whose commit it is empty. `last`: of the log.
    pub(super) fn write(&self, connection: &Connection, last: u64) -> rusqlite::Result<()> {
        let topics = self.topics.iter().map(|(topic, sequences)| (&**topic, &sequences[..]));
        write(connection, topics, last)
    }
}

fn write<'a>(
    connection: &Connection,
    topics: impl Iterator<Item = (&'a str, &'a [u64])>,
    indexed: u64,
) -> rusqlite::Result<()> {
    // In their order on the disk, so that neighbours meet on a page.
    let mut topics: Vec<_> = topics.collect();
    topics.sort_unstable();
    for (topic, sequences) in topics {
        for run in sequences.chunks(RUN) {
            put(connection, topic, run)?;
        }
    }
    connection.prepare_cached("UPDATE log SET indexed = ?1")?.execute([bound(indexed)]).map(drop)
}

fn put(connection: &Connection, topic: &str, run: &[u64]) -> rusqlite::Result<()> {
    let Some(last) = run.last() else { return Ok(()) };
    connection
        .prepare_cached("INSERT INTO runs (topic, last, sequences) VALUES (?1, ?2, ?3)")?
        .execute(params![topic, bound(*last), encode(run)])
        .map(drop)
}

/// Puts all of the tail into runs, for who opens a log: a start asks for many topics.
pub(super) fn catch_up(connection: &Connection) -> rusqlite::Result<()> {
    loop {
        let after = indexed(connection)?;
        let mut topics: HashMap<Box<str>, Vec<u64>> = HashMap::new();
        let mut last = None;
        let mut events = connection.prepare_cached(
            "SELECT sequence, topic FROM events WHERE sequence > ?1 ORDER BY sequence LIMIT ?2",
        )?;
        let mut rows = events.query(params![bound(after), PIECE])?;
        while let Some(row) = rows.next()? {
            let sequence = row.get::<_, i64>(0)?.cast_unsigned();
            topics.entry(row.get(1)?).or_default().push(sequence);
            last = Some(sequence);
        }
        drop(rows);
        let Some(last) = last else { return Ok(()) };
        let topics = topics.iter().map(|(topic, sequences)| (&**topic, &sequences[..]));
        transact(connection, |connection| write(connection, topics, last))?;
    }
}

/// An event that is undone leaves the runs; the tail has to be empty.
pub(super) fn remove(connection: &Connection, topic: &str, sequence: u64) -> rusqlite::Result<()> {
    let found = connection
        .prepare_cached(
            "SELECT last, sequences FROM runs WHERE topic = ?1 AND last >= ?2
             ORDER BY last LIMIT 1",
        )?
        .query_row(params![topic, bound(sequence)], |row| {
            Ok((row.get::<_, i64>(0)?, decode(row.get_ref(1)?.as_blob()?)?))
        })
        .optional()?;
    let Some((last, mut run)) = found else { return Ok(()) };
    run.retain(|one| *one != sequence);
    connection
        .prepare_cached("DELETE FROM runs WHERE topic = ?1 AND last = ?2")?
        .execute(params![topic, last])?;
    put(connection, topic, &run)
}

/// Sequences of some topics after `after` and up to `until`, each with its topic's place, in the
/// log's order, at most `most`.
pub(super) fn ascending(
    connection: &Connection,
    topics: &[&str],
    (after, until): (u64, u64),
    most: usize,
) -> rusqlite::Result<Vec<(u64, usize)>> {
    at_once(connection, || {
        let indexed = indexed(connection)?;
        let mut found = Vec::new();
        let mut runs = connection.prepare_cached(
            "SELECT sequences FROM runs WHERE topic = ?1 AND last > ?2 ORDER BY last",
        )?;
        for (place, topic) in topics.iter().enumerate() {
            let (begin, mut rows) = (found.len(), runs.query(params![topic, bound(after)])?);
            'topic: while let Some(row) = rows.next()? {
                for sequence in decode(row.get_ref(0)?.as_blob()?)? {
                    if sequence > until || found.len() - begin >= most {
                        break 'topic;
                    }
                    if sequence > after {
                        found.push((sequence, place));
                    }
                }
            }
        }
        found.sort_unstable();
        // All of the tail is after all of the runs.
        let span = (after.max(indexed), until);
        each_of_tail(connection, "ASC", span, |sequence, topic| {
            let places = topics.iter().enumerate().filter(|(_, one)| **one == topic);
            found.extend(places.map(|(place, _)| (sequence, place)));
            found.len() < most
        })?;
        found.truncate(most);
        Ok(found)
    })
}

/// A topic's newest sequences up to `until`, the newest first, at most `most`.
pub(super) fn descending(
    connection: &Connection,
    topic: &str,
    until: u64,
    most: usize,
) -> rusqlite::Result<Vec<u64>> {
    at_once(connection, || {
        let mut found = Vec::new();
        each_of_tail(connection, "DESC", (indexed(connection)?, until), |sequence, own| {
            if own == topic && found.len() < most {
                found.push(sequence);
            }
            found.len() < most
        })?;
        // From the run on that `until` may stand in.
        let mut runs = connection.prepare_cached(
            "SELECT sequences FROM runs WHERE topic = ?1 AND last <= coalesce(
                 (SELECT min(last) FROM runs WHERE topic = ?1 AND last >= ?2), ?2)
             ORDER BY last DESC",
        )?;
        let mut rows = runs.query(params![topic, bound(until)])?;
        while found.len() < most
            && let Some(row) = rows.next()?
        {
            let run = decode(row.get_ref(0)?.as_blob()?)?;
            let older = run.into_iter().rev().filter(|sequence| *sequence <= until);
            found.extend(older.take(most - found.len()));
        }
        Ok(found)
    })
}

/// Every topic that has events, by name.
pub(super) fn topics(connection: &Connection) -> rusqlite::Result<Vec<TopicPosition>> {
    at_once(connection, || {
        let known = super::reader::topics(connection, "runs", "last")?;
        let mut all: BTreeMap<Box<str>, u64> =
            known.into_iter().map(|topic| (topic.name, topic.last)).collect();
        each_of_tail(connection, "ASC", (indexed(connection)?, u64::MAX), |sequence, topic| {
            match all.get_mut(topic) {
                Some(last) => *last = sequence,
                None => drop(all.insert(topic.into(), sequence)),
            }
            true
        })?;
        Ok(all.into_iter().map(|(name, last)| TopicPosition { name, last }).collect())
    })
}

fn indexed(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached("SELECT indexed FROM log")?
        .query_row([], |row| row.get::<_, i64>(0).map(i64::cast_unsigned))
}

/// Events after `after` and up to `until`, the oldest (`ASC`) or the newest (`DESC`) first, as
/// long as `take` wants more.
fn each_of_tail(
    connection: &Connection,
    order: &'static str,
    (after, until): (u64, u64),
    mut take: impl FnMut(u64, &str) -> bool,
) -> rusqlite::Result<()> {
    let mut events = connection.prepare_cached(&format!(
        "SELECT sequence, topic FROM events WHERE sequence > ?1 AND sequence <= ?2
         ORDER BY sequence {order}"
    ))?;
    let mut rows = events.query(params![bound(after), bound(until)])?;
    while let Some(row) = rows.next()?
        && take(row.get::<_, i64>(0)?.cast_unsigned(), row.get_ref(1)?.as_str()?)
    {}
    Ok(())
}

/// Reads all of it of one moment of the log, also where no transaction is open.
fn at_once<T>(
    connection: &Connection,
    read: impl FnOnce() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let moment = match connection.is_autocommit() {
        true => Some(connection.unchecked_transaction()?),
        false => None,
    };
    let done = read()?;
    moment.map_or(Ok(()), |moment| moment.finish())?;
    Ok(done)
}

/// The first sequence and the distances of the others, each in groups of seven bits, the lowest
/// first, all but the last of which have the eighth bit set.
fn encode(run: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 * run.len() + 8);
    let mut before = 0;
    for sequence in run {
        let mut rest = sequence - before;
        while rest > 0x7f {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        before = *sequence;
    }
    bytes
}

fn decode(bytes: &[u8]) -> rusqlite::Result<Vec<u64>> {
    let broken = || rusqlite::Error::InvalidColumnType(0, "a run of sequences".into(), Type::Blob);
    let mut run = Vec::with_capacity(bytes.len());
    let (mut sequence, mut distance, mut bits) = (0u64, 0u64, 0);
    for byte in bytes {
        if bits > 63 {
            return Err(broken());
        }
        distance |= u64::from(byte & 0x7f) << bits;
        bits += 7;
        if *byte < 0x80 {
            sequence = sequence.checked_add(distance).ok_or_else(broken)?;
            run.push(sequence);
            (distance, bits) = (0, 0);
        }
    }
    if bits > 0 { Err(broken()) } else { Ok(run) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_reads_back_and_a_broken_one_is_reported() {
        let runs: [&[u64]; 4] =
            [&[], &[0], &[1, 2, 129, 130, 16_514, 1 << 40], &[i64::MAX as u64, u64::MAX]];
        for run in runs {
            assert_eq!(decode(&encode(run)).unwrap(), run);
        }
        let (mut broken, whole) = (encode(&[300]), encode(&[u64::MAX, u64::MAX]));
        broken.pop();
        assert!(decode(&broken).is_err());
        assert_eq!(decode(&whole).unwrap(), [u64::MAX, u64::MAX]);
        assert!(decode(&[&encode(&[u64::MAX])[..], &[1]].concat()).is_err());
        assert!(decode(&[0xff; 11]).is_err());
    }
}
