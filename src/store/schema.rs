//! The database file: how it is opened, what tables it has and which formats are known.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};
use spreadly_subscriptions::Epoch;

use super::Synchronous;
use super::fault::{At, StoreError};

/// Format of the tables. A migration raises it; a newer one than ours is not touched.
const FORMAT: i64 = 1;
const TABLES: &str = include_str!("../../config/migrations/sqlite/V1.sql");
/// "Sprd": distinguishes our databases from those of other programs.
const APPLICATION: i64 = 0x5370_7264;
/// How long a writer waits for another process (a backup, a shell) to leave the lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// A hub that was asked to stop may need a moment to end. A program that it has just started holds
/// the lock until it has become that program.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Replicas of other logs that are kept beside the replica.
pub(super) const MOST_SET_ASIDE: usize = 3;
/// Files of a database in WAL mode, by what follows its name.
const ENDINGS: [&str; 3] = ["", "-wal", "-shm"];
/// Statements kept prepared: more than this module has.
const PREPARED: usize = 64;

/// What to do where there is no database.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Missing {
    /// One of this epoch.
    Make(Epoch),
    Refuse,
}

/// Makes sure that its folder is there and that nobody else writes it, as long as what is given
/// back is held.
pub(super) fn own(path: &Path) -> Result<File, StoreError> {
    make_folder(path)?;
    lock(path)
}

fn make_folder(path: &Path) -> Result<(), StoreError> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => fs::create_dir_all(folder)
            .map_err(|source| StoreError::Folder { path: path.to_owned(), source }),
        None => Ok(()),
    }
}

/// In a file of its own: SQLite's locks are only held while it writes, and one on the database
/// itself would be lost with any other file handle of it. The system gives it back when the
/// process ends, however it ends; the file stays, as removing it would race with the next one.
fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let failed = |source| StoreError::Lock { path: name.clone().into(), source };
    let options = File::options().create(true).truncate(false).write(true).clone();
    let file = options.open(&name).map_err(failed)?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_PATIENCE => {
                thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse { path: path.to_owned(), lock: name.into() });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

pub(super) fn connect(
    path: &Path,
    synchronous: Synchronous,
    missing: Missing,
) -> Result<Connection, StoreError> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, missing != Missing::Refuse);
    let mut connection = Connection::open_with_flags(path, flags).at(path)?;
    configure(&connection).at(path)?;
    let number = |name: &str| {
        connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0)).at(path)
    };
    let (application, format) = (number("application_id")?, number("user_version")?);
    if application != APPLICATION && (format > 0 || !is_empty(&connection).at(path)?) {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    if format > FORMAT {
        return Err(StoreError::Newer { path: path.to_owned(), found: format, known: FORMAT });
    }
    connection.pragma_update(None, "journal_mode", "WAL").at(path)?;
    // What follows may say which numbers were given out, so it must be on the disk before them.
    self::synchronous(&connection, Synchronous::Full).at(path)?;
    match missing {
        Missing::Make(epoch) if format == 0 => create(&mut connection, epoch).at(path)?,
        // Where there was one it was emptied meanwhile.
        Missing::Refuse if format == 0 => {
            return Err(StoreError::Replaced { path: path.to_owned() });
        }
        _ => {}
    }
    self::synchronous(&connection, synchronous).at(path)?;
    Ok(connection)
}

pub(super) fn is_ours(connection: &Connection) -> rusqlite::Result<bool> {
    let found = connection.query_row("PRAGMA application_id", [], |row| row.get::<_, i64>(0))?;
    Ok(found == APPLICATION)
}

/// Which log a database is of; `None` where there is none, or one that was never finished.
pub(super) fn epoch(path: &Path) -> Result<Option<Epoch>, StoreError> {
    if !path.exists() || is_empty(&connect_reader(path)?).at(path)? {
        return Ok(None);
    }
    let connection = connect(path, Synchronous::Normal, Missing::Refuse)?;
    log(path, &connection).map(|log| Some(log.epoch))
}

/// Renames a database that nobody has open, with the files beside it. It is not removed: of a log
/// that lost its end it may have what nobody else has. Beyond [`MOST_SET_ASIDE`] of these, the
/// oldest is removed.
pub(super) fn set_aside(path: &Path, epoch: Epoch) -> Result<(), StoreError> {
    let failed = |source| StoreError::Folder { path: path.to_owned(), source };
    let aside = with_ending(path, &format!("{ASIDE}{epoch}"));
    tracing::warn!(
        aside = %aside.display(),
        "the replica is of another log: it is set aside; remove it once nobody needs its events"
    );
    for ending in ENDINGS {
        ignore_absent(fs::rename(with_ending(path, ending), with_ending(&aside, ending)))
            .map_err(failed)?;
    }
    forget_oldest_aside(path).map_err(failed)
}

/// What the name of a replica that was set aside has after the replica's own, before its epoch.
const ASIDE: &str = ".of-";

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn ignore_absent(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn forget_oldest_aside(path: &Path) -> io::Result<()> {
    let own = with_ending(path, ASIDE);
    let own = own.file_name().unwrap_or_default().to_string_lossy();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut all = Vec::new();
    for entry in fs::read_dir(folder.unwrap_or(Path::new(".")))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Not the files beside it, whose names go on after the epoch.
        let is_epoch = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_hexdigit());
        if name.strip_prefix(&*own).is_some_and(is_epoch) {
            all.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    all.sort_unstable();
    let most = all.len().saturating_sub(MOST_SET_ASIDE);
    for (_, oldest) in all.drain(..most) {
        tracing::warn!(removed = %oldest.display(), "more replicas were set aside than are kept");
        for ending in ENDINGS {
            ignore_absent(fs::remove_file(with_ending(&oldest, ending)))?;
        }
    }
    Ok(())
}

fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    let tables = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
    Ok(tables == 0)
}

/// Not within a transaction: SQLite would leave it as it was.
pub(super) fn synchronous(connection: &Connection, level: Synchronous) -> rusqlite::Result<()> {
    let level = match level {
        Synchronous::Normal => "NORMAL",
        Synchronous::Full => "FULL",
    };
    connection.pragma_update(None, "synchronous", level)
}

/// For a reader beside the writer.
pub(super) fn connect_reader(path: &Path) -> Result<Connection, StoreError> {
    connect_beside(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

/// For checkpoints of the write-ahead log beside the writer.
pub(super) fn connect_checkpointer(path: &Path) -> Result<Connection, StoreError> {
    connect_beside(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
}

fn connect_beside(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).at(path)?;
    configure(&connection).at(path)?;
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(PREPARED);
    Ok(())
}

/// In one transaction: a hub killed in between leaves an empty file, which is made again.
fn create(connection: &mut Connection, epoch: Epoch) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    transaction.execute_batch(TABLES)?;
    transaction.execute("INSERT INTO log (epoch) VALUES (?1)", params![epoch.0.cast_signed()])?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()
}

/// What was numbered before is of another log from here on.
pub(super) fn begin_epoch(connection: &Connection, epoch: Epoch) -> rusqlite::Result<()> {
    connection.execute("UPDATE log SET epoch = ?1", params![epoch.0.cast_signed()]).map(|_| ())
}

/// What the log says of its numbering.
pub(super) struct Log {
    pub(super) epoch: Epoch,
    /// Sequence of the newest event; 0 if there is none.
    pub(super) newest: u64,
    /// No sequence above it was given out.
    pub(super) reserved: u64,
    /// The newest of the files' progress.
    pub(super) moves: i64,
}

/// Also walks to both ends of the log, where a torn file shows first.
pub(super) fn log(path: &Path, connection: &Connection) -> Result<Log, StoreError> {
    let newest = connection
        .query_row(
            "SELECT max(sequence), sum(length(body)) FROM events WHERE sequence IN (
                 (SELECT min(sequence) FROM events), (SELECT max(sequence) FROM events))",
            [],
            |row| row.get::<_, Option<i64>>(0),
        )
        .at(path)?
        .map_or(0, i64::cast_unsigned);
    connection
        .query_row("SELECT epoch, reserved, (SELECT max(moved) FROM files) FROM log", [], |row| {
            let whole = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
            let moves = row.get::<_, Option<i64>>(2)?.unwrap_or(0);
            Ok(Log { epoch: Epoch(whole(0)?), newest, reserved: whole(1)?, moves })
        })
        .at(path)
}
