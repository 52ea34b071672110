//! The embedded event log: one SQLite file, written by the owner of the one [`Store`]. What
//! an event means is not known here, only its topic, its id and its line. Others read through a
//! [`LogReader`] of their own.
//!
//! Each append is one transaction that also moves the files' progress, so a line and the mark
//! behind it stand in the log together or not at all.
//!
//! No sequence is ever given out twice, though a power cut may take the last commits and with them
//! what they say of the numbering: numbers are reserved in blocks, by a commit that is on the disk
//! before the first of its block is used. After a stop that was not clean the numbering goes on
//! behind the block. So a client's cursor never names another event than the one it was made for.
//! A log that was put back from an older copy begins a new epoch, see [`mark`].

mod candle_table;
mod fault;
mod mark;
mod reader;
mod readers;
mod rollback;
mod runs;
mod schema;
mod wal;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::{Arc, LazyLock};

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use spreadly_subscriptions::Epoch;

use self::candle_table::Writing;
pub use self::candle_table::{CandleSpan, MarketCandles, NewTrade};
use self::fault::At;
pub use self::fault::StoreError;
use self::mark::Mark;
pub use self::reader::{LogReader, OrderQuery, Span, StoredOrder};
pub use self::readers::{LogReaders, MOST_READERS, ReadError};
pub use self::rollback::RollbackTransaction;
use self::runs::Tail;
use self::wal::Checkpointer;
use crate::market::candles::Candle;
use crate::market::event::Micros;

/// Sequences reserved at once. Each block costs an fsync, some 10 ms on a slow disk, and an unclean
/// stop skips at most as many numbers.
const RESERVED_AT_ONCE: u64 = 10_000;

/// Checkpoints kept of a topic. A start needs two; blocks that are undone are replayed from the
/// newest before them, so with the sequencer's 2,000 events between two this many spare the whole log
/// to a reorganisation of the last 30,000 events of a book.
const MOST_CHECKPOINTS: usize = 16;

/// Events that one statement inserts, where that many come without ids and numbers: each statement
/// opens the table and its indexes anew, and where SQLite numbers the rows itself it appends them
/// without looking for the place of each. With ids it has to be known of each whether it entered.
const ROWS: usize = 32;
/// A fault ends the transaction, as it would anyway: to undo the statement alone SQLite would keep
/// a copy of each page that it touches.
static INSERT_ROWS: LazyLock<String> = LazyLock::new(|| {
    let rows = ["(?, ?, ?, ?)"; ROWS].join(", ");
    format!("INSERT OR ROLLBACK INTO events (topic, body, received_micros, height) VALUES {rows}")
});

/// What a power cut may take; a killed process loses nothing either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// No fsync per commit: a power cut may take the last commits, never the file's integrity.
    #[default]
    Normal,
    /// An fsync per commit.
    Full,
}

/// An event on its way into the log.
#[derive(Clone, Debug, Default)]
pub struct NewEvent {
    pub topic: Arc<str>,
    pub id: Option<Box<str>>,
    /// The line as written.
    pub body: Box<str>,
    /// Of the block that it is undone with.
    pub height: Option<u64>,
    /// Where it changes a single order.
    pub order: Option<OrderRecord>,
    /// Where somebody traded: its candles are written along.
    pub trade: Option<NewTrade>,
    /// Where this store is a replica; otherwise it numbers the event itself.
    pub numbered: Option<Numbered>,
}

/// Where an event stands in the log that this one is a replica of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered {
    pub sequence: u64,
    /// When that log was given it.
    pub received: Micros,
}

/// What queries read of a single order, as an event left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderRecord {
    pub id: Arc<str>,
    pub market: Arc<str>,
    pub account: Option<Arc<str>>,
    pub side: &'static str,
    pub status: &'static str,
    /// Something may still happen to it.
    pub open: bool,
    /// The order as JSON.
    pub state: Box<str>,
    /// The order with what the event did to it, as JSON.
    pub update: Box<str>,
    /// Topics that tell of it beside the event's own.
    pub topics: Vec<Arc<str>>,
}

impl NewEvent {
    /// Its place in the log behind this sequence.
    fn behind(&self, last: u64, now: Micros) -> Numbered {
        self.numbered.unwrap_or(Numbered { sequence: last + 1, received: now })
    }
}

/// What [`Store::append`] did.
#[derive(Debug, Default)]
pub struct Appended {
    /// Of each event; `None` stands for one whose id was known: it counts once.
    pub sequences: Vec<Option<u64>>,
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
pub struct Topic {
    pub name: Box<str>,
    /// Of its newest event.
    pub last: u64,
}

/// A topic's state as it was after an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub topic: Box<str>,
    pub sequence: u64,
    pub state: Vec<u8>,
}

/// A short proof of what some bytes of a file were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub bytes: u32,
    pub hash: u64,
}

/// How far a file was read into the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileProgress {
    /// Which folder's feed it belongs to: its path as configured.
    pub feed: Box<str>,
    /// Which of that feed's streams: names and inodes come back, this number doesn't.
    pub stream: u64,
    pub name: Box<str>,
    pub device: u64,
    pub inode: u64,
    /// Bytes of whole lines that are in the log.
    pub offset: u64,
    /// Lines before `offset`.
    pub line: u64,
    /// Of the file's first bytes.
    pub head: Fingerprint,
    /// Of the last bytes before `offset`.
    pub tail: Fingerprint,
    /// Nothing can come from this stream any more: its row is removed.
    pub forgotten: bool,
}

/// How far a feed is read whose source numbers its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedPosition {
    pub feed: Box<str>,
    /// Which numbering of the source it is of.
    pub epoch: u64,
    /// How far it has read, in what the feed counts: the number of the last row, the offset of the
    /// next record.
    pub position: u64,
    /// A hash of what was read last: whether the source still has the same before `position`.
    pub mark: Option<u64>,
}

/// What a feed has read, written with what it brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    File(FileProgress),
    Position(FeedPosition),
}

impl From<FileProgress> for Progress {
    fn from(file: FileProgress) -> Self {
        Self::File(file)
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    synchronous: Synchronous,
    /// Before the connection, which is closed after it.
    checkpointer: Checkpointer,
    connection: Connection,
    /// Held for the store's life: the numbering and the state are only right with one writer.
    _lock: File,
    epoch: Epoch,
    /// None for a replica, which follows its log's numbering.
    mark: Option<Mark>,
    /// The newest sequence given out, or the end of what an unclean stop left reserved.
    last: u64,
    /// No sequence above it was ever given out. On the disk, which the newest commits need not be.
    reserved: u64,
    /// Moves of files' progress, so that it can be listed in their order.
    moves: i64,
    /// What [`runs`] do not tell of yet.
    tail: Tail,
    /// See [`Store::candles_are_missing`].
    candles_missing: bool,
    /// Pages the database may grow to: a full disk, as far as SQLite can tell.
    #[cfg(test)]
    pub(crate) disk: std::sync::Arc<std::sync::atomic::AtomicI64>,
    /// What SQLite was last told of it.
    #[cfg(test)]
    limited: std::cell::Cell<i64>,
}

impl Store {
    /// Opens the log and makes it, with its folder, where there is none. One at a time: another
    /// opening of the same file, by whatever process, is [`StoreError::InUse`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, Synchronous::Normal)
    }

    pub fn open_with(path: &Path, synchronous: Synchronous) -> Result<Self, StoreError> {
        let lock = schema::own(path)?;
        let fresh = Epoch(rand::random());
        let mut store = Self::open_locked(path, synchronous, lock, schema::Missing::Make(fresh))?;
        store.confirm(fresh)?;
        Ok(store)
    }

    /// Begins a new epoch unless this log was just made, or its mark confirms that it is no older
    /// copy: then clients may have seen what it has not. `fresh` is the epoch of a log just made,
    /// or that which begins.
    fn confirm(&mut self, fresh: Epoch) -> Result<(), StoreError> {
        let newest = Self::newest_row(&self.connection).at(&self.path)?.unwrap_or(0);
        if self.epoch != fresh
            && let Err(doubt) = Mark::check(&self.path, self.epoch, newest)
        {
            tracing::warn!(
                store = ?self.path, %doubt, before = %self.epoch, epoch = %fresh,
                "the log may be an older copy, as {doubt}: a new epoch begins, and clients \
                 subscribe again from now"
            );
            // First the log, then the mark: a kill in between is one more doubt.
            schema::synchronous(&self.connection, Synchronous::Full).at(&self.path)?;
            schema::begin_epoch(&self.connection, fresh).at(&self.path)?;
            schema::synchronous(&self.connection, self.synchronous).at(&self.path)?;
            self.epoch = fresh;
        }
        let failed = |source| StoreError::Mark { path: self.path.clone(), source };
        self.mark = Some(Mark::begin(&self.path, self.epoch, newest).map_err(failed)?);
        Ok(())
    }

    /// Opens the replica of the log of this epoch, and makes it where there is none. One of another
    /// log is set aside first.
    pub fn open_replica(
        path: &Path,
        synchronous: Synchronous,
        epoch: Epoch,
    ) -> Result<Self, StoreError> {
        let lock = schema::own(path)?;
        if let Some(other) = schema::epoch(path)?.filter(|found| *found != epoch) {
            schema::set_aside(path, other)?;
        }
        Self::open_locked(path, synchronous, lock, schema::Missing::Make(epoch))
    }

    /// The replica there is, of whatever log; `None` where none was ever finished.
    pub fn existing_replica(
        path: &Path,
        synchronous: Synchronous,
    ) -> Result<Option<Self>, StoreError> {
        let lock = schema::own(path)?;
        let found = schema::epoch(path)?;
        found
            .map(|_| Self::open_locked(path, synchronous, lock, schema::Missing::Refuse))
            .transpose()
    }

    fn open_locked(
        path: &Path,
        synchronous: Synchronous,
        lock: File,
        missing: schema::Missing,
    ) -> Result<Self, StoreError> {
        let mut connection = schema::connect(path, synchronous, missing)?;
        let schema::Log { epoch, newest, reserved, moves } = schema::log(path, &connection)?;
        let candles_missing = candle_table::prepare(&connection).at(path)?;
        runs::catch_up(&connection).at(path)?;
        let checkpointer = Checkpointer::start(path, &mut connection)?;
        Ok(Self {
            path: path.to_owned(),
            synchronous,
            checkpointer,
            connection,
            _lock: lock,
            epoch,
            mark: None,
            last: newest.max(reserved),
            reserved,
            moves,
            tail: Tail::default(),
            candles_missing,
            #[cfg(test)]
            disk: std::sync::Arc::new(std::sync::atomic::AtomicI64::new(i64::from(u32::MAX) - 1)),
            #[cfg(test)]
            limited: std::cell::Cell::default(),
        })
    }

    /// Leaves the connection for a new one: after an I/O error the old one may keep a stale view
    /// of a file that has been mended meanwhile. Never makes a database: one that is gone may
    /// come back.
    pub fn reopen(&mut self) -> Result<(), StoreError> {
        let mut fresh = schema::connect(&self.path, self.synchronous, schema::Missing::Refuse)?;
        let log = schema::log(&self.path, &fresh)?;
        // A log that ends before its mark was put back from an older copy.
        let seen = self.mark.as_ref().map_or(0, Mark::seen);
        if log.epoch != self.epoch || log.newest < seen {
            return Err(StoreError::Replaced { path: self.path.clone() });
        }
        // What is kept of the tail may lack a commit that was reported as failed.
        runs::catch_up(&fresh).at(&self.path)?;
        self.tail = Tail::default();
        self.checkpointer = Checkpointer::start(&self.path, &mut fresh)?;
        self.connection = fresh;
        // A commit that was reported as failed may be there after all.
        self.last = self.last.max(log.newest);
        self.reserved = log.reserved;
        self.move_mark(log.newest);
        self.renew_mark();
        #[cfg(test)]
        self.limited.set(0);
        Ok(())
    }

    /// Made with the database: another one means that the numbering began anew.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Sequence of the newest event, or a later one that none has.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// For those who only read, on a connection of their own.
    pub fn reader(&self) -> Result<LogReader, StoreError> {
        LogReader::open(&self.path)
    }

    /// Whether an event with this id stands in the log.
    pub fn knows(&self, id: &str) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached("SELECT 1 FROM events WHERE id = ?1")
            .and_then(|mut statement| statement.exists([id]))
            .at(&self.path)
    }

    /// Whether an order of this id was ever placed.
    pub fn knows_order(&self, id: &str) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached("SELECT 1 FROM orders WHERE id = ?1")
            .and_then(|mut statement| statement.exists([id]))
            .at(&self.path)
    }

    /// Writes events, the candles of their trades and progress in one transaction: all of it or, on
    /// an error, nothing.
    pub fn append(
        &mut self,
        batch: &[NewEvent],
        progress: &[Progress],
        now: Micros,
    ) -> Result<Appended, StoreError> {
        let moves = self.begin_append(batch, progress)?;
        let due = self.tail.is_due(now);
        let write = |connection: &Connection| {
            if due {
                self.tail.write(connection, self.last)?;
            }
            let appended = Self::write_events(connection, self.last, batch, now)?;
            Self::write_progress(connection, moves, progress)?;
            Ok(appended)
        };
        let appended = transact(&self.connection, write).at(&self.path)?;
        if due {
            self.tail = Tail::default();
        }
        for (event, sequence) in batch.iter().zip(&appended.sequences) {
            let Some(sequence) = *sequence else { continue };
            self.last = sequence;
            self.tail.add(&event.topic, sequence, now);
        }
        // Before anybody is sent what was committed.
        if appended.sequences.iter().any(Option::is_some) {
            self.move_mark(self.last);
        }
        Ok(appended)
    }

    /// Sees to it that events have numbers; the move that the progress begins behind.
    fn begin_append(
        &mut self,
        batch: &[NewEvent],
        progress: &[Progress],
    ) -> Result<i64, StoreError> {
        #[cfg(test)]
        self.limit_pages();
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
    fn reserve(&mut self, reserved: u64) -> Result<(), StoreError> {
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

    fn move_mark(&mut self, newest: u64) {
        if let Some(mark) = &mut self.mark {
            mark.move_to(newest);
        }
    }

    /// Tries to make a mark that could not be written. Its absence costs no more than a new epoch
    /// at the next start.
    fn renew_mark(&mut self) {
        if let Some(Err(error)) = self.mark.as_mut().map(Mark::renew) {
            tracing::warn!(store = ?self.path, %error, "the mark of the log is still missing");
        }
    }

    fn write_events(
        connection: &Connection,
        mut last: u64,
        batch: &[NewEvent],
        now: Micros,
    ) -> rusqlite::Result<Appended> {
        let mut sequences = Vec::with_capacity(batch.len());
        let mut candles = HashMap::new();
        let mut writing = Writing::new(connection);
        // The newest row, behind which SQLite numbers on: not the last number where a row is gone.
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
                sequences.push(None);
                continue;
            }
            for event in some {
                let Numbered { sequence, received } = event.behind(last, now);
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
        Ok(Appended { sequences, candles })
    }

    fn newest_row(connection: &Connection) -> rusqlite::Result<Option<u64>> {
        connection
            .prepare_cached("SELECT max(sequence) FROM events")?
            .query_row([], |row| row.get::<_, Option<i64>>(0))
            .map(|newest| newest.map(i64::cast_unsigned))
    }

    /// Whether it entered: its id was not known.
    fn insert(
        connection: &Connection,
        event: &NewEvent,
        last: u64,
        now: Micros,
    ) -> rusqlite::Result<bool> {
        let Numbered { sequence, received } = event.behind(last, now);
        let rows = connection
            .prepare_cached(
                "INSERT INTO events (sequence, topic, id, body, received_micros, height)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (id) WHERE id IS NOT NULL DO NOTHING",
            )?
            .execute(params![
                sequence.cast_signed(),
                &*event.topic,
                event.id.as_deref(),
                &*event.body,
                received,
                event.height.map(reader::bound)
            ])?;
        Ok(rows > 0)
    }

    /// Events without ids and numbers, right behind the newest row.
    fn insert_rows(
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
        assert_eq!(numbered, last + ROWS as u64, "SQLite numbers behind the newest row");
        Ok(())
    }

    fn write_order(
        connection: &Connection,
        sequence: i64,
        order: &OrderRecord,
    ) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO orders (id, placed, market, account, side, status, open, state)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (id) DO UPDATE SET status = ?6, open = ?7, state = ?8",
            )?
            .execute(params![
                &*order.id,
                sequence,
                &*order.market,
                order.account.as_deref(),
                order.side,
                order.status,
                order.open,
                &*order.state
            ])?;
        connection
            .prepare_cached("INSERT INTO order_updates (sequence, state) VALUES (?1, ?2)")?
            .execute(params![sequence, &*order.update])?;
        for topic in &order.topics {
            connection
                .prepare_cached("INSERT INTO event_topics (topic, sequence) VALUES (?1, ?2)")?
                .execute(params![&**topic, sequence])?;
        }
        Ok(())
    }

    fn write_progress(
        connection: &Connection,
        mut moves: i64,
        progress: &[Progress],
    ) -> rusqlite::Result<()> {
        for one in progress {
            let file = match one {
                Progress::File(file) => file,
                Progress::Position(FeedPosition { feed, epoch, position, mark }) => {
                    connection
                        .prepare_cached(
                            "INSERT OR REPLACE INTO feed_positions (feed, epoch, position, mark)
                             VALUES (?1, ?2, ?3, ?4)",
                        )?
                        .execute(params![
                            &**feed,
                            epoch.cast_signed(),
                            position.cast_signed(),
                            mark.map(u64::cast_signed)
                        ])?;
                    continue;
                }
            };
            let stream = file.stream.cast_signed();
            if file.forgotten {
                connection
                    .prepare_cached("DELETE FROM files WHERE feed = ?1 AND stream = ?2")?
                    .execute(params![&*file.feed, stream])?;
                continue;
            }
            moves += 1;
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO files (feed, stream, name, device, inode, offset, line,
                         head_bytes, head_hash, tail_bytes, tail_hash, moved)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                )?
                .execute(params![
                    &*file.feed,
                    stream,
                    &*file.name,
                    file.device.cast_signed(),
                    file.inode.cast_signed(),
                    file.offset.cast_signed(),
                    file.line.cast_signed(),
                    file.head.bytes,
                    file.head.hash.cast_signed(),
                    file.tail.bytes,
                    file.tail.hash.cast_signed(),
                    moves,
                ])?;
        }
        Ok(())
    }

    /// Events of every topic behind `sequence`, in order, at most `most`.
    pub fn read_from(&self, sequence: u64, most: usize) -> Result<Vec<Stored>, StoreError> {
        reader::read_from(&self.connection, sequence, most).at(&self.path)
    }

    /// Events of one topic behind `sequence`, in order, at most `most`.
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
    pub fn topics(&self) -> Result<Vec<Topic>, StoreError> {
        runs::topics(&self.connection).at(&self.path)
    }

    /// Every topic that events of other topics are told in too, by name.
    pub fn further_topics(&self) -> Result<Vec<Topic>, StoreError> {
        reader::topics(&self.connection, "event_topics", "sequence").at(&self.path)
    }

    /// Keeps a topic's state, and of the earlier ones the newest.
    pub fn save_checkpoint(
        &mut self,
        topic: &str,
        sequence: u64,
        state: &[u8],
    ) -> Result<(), StoreError> {
        let save = |connection: &Connection| {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO checkpoints (topic, sequence, state)
                     VALUES (?1, ?2, ?3)",
                )?
                .execute(params![topic, sequence.cast_signed(), state])?;
            connection
                .prepare_cached(
                    "DELETE FROM checkpoints WHERE topic = ?1 AND sequence NOT IN (
                         SELECT sequence FROM checkpoints WHERE topic = ?1
                         ORDER BY sequence DESC LIMIT ?2)",
                )?
                .execute(params![topic, reader::count(MOST_CHECKPOINTS)])?;
            Ok::<_, rusqlite::Error>(())
        };
        transact(&self.connection, save).at(&self.path)
    }

    /// Of each topic that has two checkpoints or more the newest but one: a restart from it replays
    /// at least the stretch between the two, and so can serve clients that resume from within it. A
    /// topic with one is replayed whole.
    pub fn older_checkpoints(&self) -> Result<Vec<Checkpoint>, StoreError> {
        self.connection
            .prepare_cached(
                "SELECT topic, sequence, state FROM checkpoints JOIN (
                     SELECT topic, sequence, row_number() OVER newest AS place FROM checkpoints
                     WINDOW newest AS (PARTITION BY topic ORDER BY sequence DESC)
                 ) USING (topic, sequence) WHERE place = 2 ORDER BY topic",
            )
            .and_then(|mut statement| {
                statement
                    .query_map([], |row| {
                        Ok(Checkpoint {
                            topic: row.get(0)?,
                            sequence: row.get::<_, i64>(1)?.cast_unsigned(),
                            state: row.get(2)?,
                        })
                    })?
                    .collect()
            })
            .at(&self.path)
    }

    /// Where a topic's newest checkpoint stands.
    pub fn newest_checkpoint(&self, topic: &str) -> Result<Option<u64>, StoreError> {
        self.connection
            .prepare_cached("SELECT max(sequence) FROM checkpoints WHERE topic = ?1")
            .and_then(|mut statement| {
                statement.query_row([topic], |row| row.get::<_, Option<i64>>(0))
            })
            .map(|sequence| sequence.map(i64::cast_unsigned))
            .at(&self.path)
    }

    /// How far each file of a feed was read; the one that moved last comes last.
    pub fn file_progress(&self, feed: &str) -> Result<Vec<FileProgress>, StoreError> {
        self.connection
            .prepare_cached(
                "SELECT feed, stream, name, device, inode, offset, line, head_bytes, head_hash,
                     tail_bytes, tail_hash
                 FROM files WHERE feed = ?1 ORDER BY moved",
            )
            .and_then(|mut statement| {
                statement
                    .query_map([feed], |row| {
                        let whole = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
                        Ok(FileProgress {
                            feed: row.get(0)?,
                            stream: whole(1)?,
                            name: row.get(2)?,
                            device: whole(3)?,
                            inode: whole(4)?,
                            offset: whole(5)?,
                            line: whole(6)?,
                            head: Fingerprint { bytes: row.get(7)?, hash: whole(8)? },
                            tail: Fingerprint { bytes: row.get(9)?, hash: whole(10)? },
                            forgotten: false,
                        })
                    })?
                    .collect()
            })
            .at(&self.path)
    }

    /// How far a feed is read whose source numbers its events.
    pub fn feed_position(&self, feed: &str) -> Result<Option<FeedPosition>, StoreError> {
        self.connection
            .prepare_cached("SELECT epoch, position, mark FROM feed_positions WHERE feed = ?1")
            .and_then(|mut statement| {
                statement
                    .query_row([feed], |row| {
                        let whole = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
                        Ok(FeedPosition {
                            feed: feed.into(),
                            epoch: whole(0)?,
                            position: whole(1)?,
                            mark: row.get::<_, Option<i64>>(2)?.map(i64::cast_unsigned),
                        })
                    })
                    .optional()
            })
            .at(&self.path)
    }

    /// Gives back what was reserved and not used, so that a clean stop skips no number, and moves
    /// the write-ahead log into the database, so that a stopped hub leaves one file.
    pub fn tidy(&mut self) -> Result<(), StoreError> {
        // It stands behind the events in the write-ahead log, so it can't be there without them.
        self.connection
            .execute("UPDATE log SET reserved = ?1", params![self.last.cast_signed()])
            .at(&self.path)?;
        self.reserved = self.last;
        self.connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .optional()
            .at(&self.path)?;
        Ok(())
    }

    #[cfg(test)]
    fn tail_events(&self) -> usize {
        self.tail.events()
    }

    #[cfg(test)]
    fn limit_pages(&self) {
        let pages = self.disk.load(std::sync::atomic::Ordering::SeqCst);
        if self.limited.replace(pages) == pages {
            return;
        }
        self.connection
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
            .unwrap();
    }
}

/// All of it or, on an error, nothing. rusqlite's own transactions prepare their statements anew
/// each time.
fn transact<T, E: From<rusqlite::Error>>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, E>,
) -> Result<T, E> {
    let run = |sql| connection.prepare_cached(sql)?.execute([]);
    // Immediate: a lock that can't be had is told before anything is written.
    run("BEGIN IMMEDIATE")?;
    let done = work(connection).and_then(|value| Ok(run("COMMIT").map(|_| value)?));
    // Some errors (a full disk) have rolled back by themselves.
    if done.is_err() && !connection.is_autocommit() {
        run("ROLLBACK")?;
    }
    done
}

#[cfg(test)]
mod tests;
