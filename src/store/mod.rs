//! The embedded event log: one SQLite file, written by the owner of the one [`Store`]. What
//! an event means is not known here, only its topic, its id and its line. Others read through a
//! [`LogReader`] of their own.
//!
//! Each append is one transaction that also moves the files' progress, so a line and the mark
//! after it are in the log together or not at all.
//!
//! No sequence is ever given out twice, though a power cut may take the last commits and with them
//! what they say of the numbering: numbers are reserved in blocks, by a commit that is on the disk
//! before the first of its block is used. After a stop that was not clean the numbering goes on
//! after the block. So a client's cursor never names another event than the one it was made for.
//! A log that was put back from an older copy begins a new epoch, see [`mark`].

mod backup;
mod candle_table;
mod checkpoint;
mod fault;
mod log;
mod log_files;
mod mark;
mod meters;
mod orders;
mod progress;
mod reader;
mod readers;
mod rebuild;
mod rollback;
mod runs;
mod schema;
mod topic_sources;
mod wal;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rusqlite::{Connection, OptionalExtension, params};
use spreadly_subscriptions::Epoch;

pub use self::backup::{BackupError, BackupStep, Copied, back_up};
pub use self::candle_table::{CandleSpan, MarketCandles, NewTrade};
pub use self::checkpoint::Checkpoint;
use self::fault::At;
pub use self::fault::StoreError;
pub use self::log::{Appended, EventId, NewEvent, Numbered, Stored, TopicPosition};
pub use self::log_files::LogFiles;
use self::mark::Mark;
pub use self::meters::StoreMeters;
pub use self::orders::OrderRecord;
pub use self::progress::{FeedPosition, FileProgress, Fingerprint, Progress};
pub use self::reader::{LogReader, OrderQuery, Span, StoredOrder};
pub use self::readers::{LogReaders, MOST_READERS, ReadError};
pub use self::rollback::RollbackTransaction;
use self::runs::Tail;
pub use self::topic_sources::TopicSource;
use self::wal::Checkpointer;

/// What a power cut may take; a killed process loses nothing either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// No fsync per commit: a power cut may take the last commits, never the file's integrity.
    #[default]
    Normal,
    /// An fsync per commit.
    Full,
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
    files: LogFiles,
    /// None for a replica, which follows its log's numbering.
    mark: Option<Mark>,
    /// The newest sequence given out, or the end of what an unclean stop left reserved.
    last: u64,
    /// No sequence above it was ever given out. On the disk, which the newest commits need not be.
    reserved: u64,
    /// Moves of files' progress, so that it can be listed in their order.
    moves: i64,
    /// What [`runs`] do not have yet.
    tail: Tail,
    /// See [`Store::candles_are_missing`].
    candles_missing: bool,
    meters: Arc<StoreMeters>,
    /// Pages the database may grow to: a full disk, as far as SQLite knows.
    #[cfg(test)]
    pub(crate) disk: std::sync::Arc<std::sync::atomic::AtomicI64>,
    /// So many of the next commits fail, after all was written.
    #[cfg(test)]
    pub(crate) failing_commits: std::sync::Arc<std::sync::atomic::AtomicU32>,
    /// What SQLite was last set to.
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
        let files = LogFiles::default();
        files.note(path);
        #[cfg(test)]
        let failing_commits = fail_commits(&mut connection, std::sync::Arc::default());
        let meters = Arc::<StoreMeters>::default();
        meters.newest.store(newest, Ordering::Relaxed);
        Ok(Self {
            path: path.to_owned(),
            synchronous,
            checkpointer,
            connection,
            _lock: lock,
            epoch,
            files,
            mark: None,
            last: newest.max(reserved),
            reserved,
            moves,
            tail: Tail::default(),
            candles_missing,
            meters,
            #[cfg(test)]
            disk: std::sync::Arc::new(std::sync::atomic::AtomicI64::new(i64::from(u32::MAX) - 1)),
            #[cfg(test)]
            failing_commits,
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
        #[cfg(test)]
        fail_commits(&mut fresh, self.failing_commits.clone());
        self.connection = fresh;
        self.files.note(&self.path);
        // A commit that was reported as failed may be there after all.
        self.last = self.last.max(log.newest);
        self.reserved = log.reserved;
        self.move_mark(log.newest);
        self.renew_mark();
        #[cfg(test)]
        self.limited.set(0);
        Ok(())
    }

    /// Says whether the log's files are still there, also beside its writer.
    pub fn files(&self) -> LogFiles {
        self.files.clone()
    }

    /// Made with the database: another one means that the numbering began again.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn meters(&self) -> Arc<StoreMeters> {
        self.meters.clone()
    }

    /// Sequence of the newest event, or a later one that none has.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// For those who only read, on a connection of their own.
    pub fn reader(&self) -> Result<LogReader, StoreError> {
        LogReader::open(&self.path)
    }

    fn move_mark(&mut self, newest: u64) {
        self.meters.newest.store(newest, Ordering::Relaxed);
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

    /// Gives back what was reserved and not used, so that a clean stop skips no number, and moves
    /// the write-ahead log into the database, so that a stopped hub leaves one file.
    pub fn tidy(&mut self) -> Result<(), StoreError> {
        // It is after the events in the write-ahead log, so it can't be there without them.
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

/// All of it or, on an error, nothing. rusqlite's own transactions prepare their statements again
/// each time.
fn transact<T, E: From<rusqlite::Error>>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, E>,
) -> Result<T, E> {
    let run = |sql| connection.prepare_cached(sql)?.execute([]);
    // Immediate: a lock that can't be had is reported before anything is written.
    run("BEGIN IMMEDIATE")?;
    let done = work(connection).and_then(|value| Ok(run("COMMIT").map(|_| value)?));
    // Some errors (a full disk) have rolled back by themselves.
    if done.is_err() && !connection.is_autocommit() {
        run("ROLLBACK")?;
    }
    done
}

/// Lets commits of this connection fail while the count says so.
#[cfg(test)]
fn fail_commits(
    connection: &mut Connection,
    left: std::sync::Arc<std::sync::atomic::AtomicU32>,
) -> std::sync::Arc<std::sync::atomic::AtomicU32> {
    use std::sync::atomic::Ordering::SeqCst;

    let own = left.clone();
    let fails = move || own.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
    connection.commit_hook(Some(fails)).unwrap();
    left
}

#[cfg(test)]
mod tests;
