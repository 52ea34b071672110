//! The database file: how it is opened, what tables it has and which formats are known.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};
use spreadly_subscriptions::Epoch;

use super::fault::{At, StoreError};
use super::{Synchronous, runs};

/// Format of the tables below. A migration raises it; a newer one than ours is not touched.
/// Format 2 numbers events by `log.reserved`, format 1 did by AUTOINCREMENT, which costs a page
/// each commit; so did an index of `files` beside its table. Format 3 has the tables of orders,
/// format 4 those of what blocks took with them that were undone, and the positions of feeds.
/// Format 5 has runs of each topic (see [`runs`]) in place of an index of the events; and it marks
/// what feeds read last.
const FORMAT: i64 = 5;
/// "Sprd": tells our databases from those of other programs.
const APPLICATION: i64 = 0x5370_7264;
/// How long a writer waits for another process (a backup, a shell) to leave the lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// A hub that was told to stop may need a moment to be gone, and a program that it has just started
/// holds the lock until it has become that program.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Statements kept prepared: more than this module has.
const PREPARED: usize = 64;

/// Rows of `events` leave it only for `undone`, and their sequences are ours. `id` is unique only
/// where given. `files` and `checkpoints` may be lost without losing events: the first would read
/// files anew, the second replay the log from its start.
const TABLES: &str = "
    CREATE TABLE log (epoch INTEGER NOT NULL, reserved INTEGER NOT NULL DEFAULT 0) STRICT;
    CREATE TABLE events (
        sequence INTEGER PRIMARY KEY,
        topic TEXT NOT NULL,
        id TEXT,
        body TEXT NOT NULL,
        received_micros INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX events_id ON events (id) WHERE id IS NOT NULL;
    CREATE TABLE checkpoints (
        topic TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        state BLOB NOT NULL,
        PRIMARY KEY (topic, sequence)
    ) STRICT;
";

/// `height` is of the block that an event is undone with. `undone` has what left: which event took
/// it along, for people to look at. `undoings` has what each such event means to the numbering of
/// the topics it touched. `feed_positions` is how far a feed is read whose source numbers its
/// events.
const BLOCKS: &str = "
    ALTER TABLE events ADD COLUMN height INTEGER;
    CREATE INDEX events_height ON events (height) WHERE height IS NOT NULL;
    CREATE TABLE undone (
        sequence INTEGER PRIMARY KEY,
        topic TEXT NOT NULL,
        id TEXT,
        body TEXT NOT NULL,
        received_micros INTEGER NOT NULL,
        height INTEGER,
        undone_by INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE undoings (
        scope TEXT NOT NULL,
        at INTEGER NOT NULL,
        first INTEGER NOT NULL,
        PRIMARY KEY (scope, at)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX undoings_at ON undoings (at);
    CREATE TABLE feed_positions (
        feed TEXT PRIMARY KEY,
        epoch INTEGER NOT NULL,
        position INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// What is read of single orders, written with the events that it follows from: each order as it
/// is now, and as each of its events (`sequence`) left it. `placed` is the event that placed it.
/// `event_topics` has the further topics that an event is told in (those of its account).
const ORDERS: &str = "
    CREATE TABLE orders (
        id TEXT PRIMARY KEY,
        placed INTEGER NOT NULL,
        market TEXT NOT NULL,
        account TEXT,
        side TEXT NOT NULL,
        status TEXT NOT NULL,
        open INTEGER NOT NULL,
        state TEXT NOT NULL
    ) STRICT;
    CREATE INDEX orders_placed ON orders (placed);
    CREATE INDEX orders_market ON orders (market, placed);
    CREATE INDEX orders_account ON orders (account, placed) WHERE account IS NOT NULL;
    CREATE INDEX orders_open ON orders (market, placed) WHERE open = 1;
    CREATE INDEX orders_account_open ON orders (account, placed) WHERE open = 1;
    CREATE TABLE order_updates (
        sequence INTEGER PRIMARY KEY,
        state TEXT NOT NULL
    ) STRICT;
    CREATE TABLE event_topics (
        topic TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        PRIMARY KEY (topic, sequence)
    ) STRICT, WITHOUT ROWID;
";

/// `mark` is of what was read last.
const MARKS: &str = "ALTER TABLE feed_positions ADD COLUMN mark INTEGER;";

/// `moved` rises over all rows.
const FILES: &str = "
    CREATE TABLE files (
        feed TEXT NOT NULL,
        stream INTEGER NOT NULL,
        name TEXT NOT NULL,
        device INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        line INTEGER NOT NULL,
        head_bytes INTEGER NOT NULL,
        head_hash INTEGER NOT NULL,
        tail_bytes INTEGER NOT NULL,
        tail_hash INTEGER NOT NULL,
        moved INTEGER NOT NULL,
        PRIMARY KEY (feed, stream)
    ) STRICT, WITHOUT ROWID;
";

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
    for (from, migrate) in MIGRATIONS {
        if (1..=from).contains(&format) {
            migrate(&mut connection).at(path)?;
        }
    }
    self::synchronous(&connection, synchronous).at(path)?;
    Ok(connection)
}

/// Which log a database is of; `None` where there is none, or one that was never finished.
pub(super) fn epoch(path: &Path) -> Result<Option<Epoch>, StoreError> {
    if !path.exists() || is_empty(&connect_reader(path)?).at(path)? {
        return Ok(None);
    }
    let connection = connect(path, Synchronous::Normal, Missing::Refuse)?;
    log(path, &connection).map(|log| Some(log.epoch))
}

/// Renames a database that nobody has open, with what stands beside it. It is not removed: of a log
/// that lost its end it may have what nobody else has.
pub(super) fn set_aside(path: &Path, epoch: Epoch) -> Result<(), StoreError> {
    let named = |ending: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        name
    };
    let aside = format!(".of-{epoch}");
    tracing::warn!(aside = ?named(&aside), "the replica is of another log: it is set aside");
    for ending in ["", "-wal", "-shm"] {
        match fs::rename(named(ending), named(&format!("{aside}{ending}"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::Folder { path: path.to_owned(), source: error });
            }
            _ => {}
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
    transaction.execute_batch(FILES)?;
    transaction.execute_batch(ORDERS)?;
    transaction.execute_batch(BLOCKS)?;
    transaction.execute_batch(MARKS)?;
    transaction.execute_batch(runs::TABLES)?;
    transaction.execute("INSERT INTO log (epoch) VALUES (?1)", params![epoch.0.cast_signed()])?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()
}

/// What was numbered before is of another log from here on.
pub(super) fn begin_epoch(connection: &Connection, epoch: Epoch) -> rusqlite::Result<()> {
    connection.execute("UPDATE log SET epoch = ?1", params![epoch.0.cast_signed()]).map(|_| ())
}

type Migrate = fn(&mut Connection) -> rusqlite::Result<()>;

/// From each format to the next one, each in a transaction of its own.
const MIGRATIONS: [(i64, Migrate); 4] =
    [(1, from_format_1), (2, from_format_2), (3, from_format_3), (4, from_format_4)];

/// From format 1, whose last commits may be lost with their numbers: skips more than those were.
fn from_format_1(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    transaction.execute_batch(
        "ALTER TABLE log ADD COLUMN reserved INTEGER NOT NULL DEFAULT 0;
         UPDATE log SET reserved = (SELECT max(sequence) + 1000000 FROM events)
             WHERE EXISTS (SELECT 1 FROM events);
         ALTER TABLE files RENAME TO files_1;",
    )?;
    transaction.execute_batch(FILES)?;
    transaction.execute_batch(
        "INSERT INTO files SELECT *, rowid FROM files_1 ORDER BY rowid; DROP TABLE files_1;",
    )?;
    transaction.pragma_update(None, "user_version", 2)?;
    transaction.commit()
}

/// Before format 3 order events were checked by their form alone and changed nothing, so they may
/// not follow from each other. They stay readable under another topic.
fn from_format_2(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    transaction.execute_batch(ORDERS)?;
    transaction.execute_batch(
        "UPDATE events SET topic = 'unchecked:' || topic
             WHERE topic = 'orders' OR topic >= 'orders:' AND topic < 'orders;'",
    )?;
    transaction.pragma_update(None, "user_version", 3)?;
    transaction.commit()
}

/// Before format 4 heights stood in the events' lines alone. What was undone before then stays.
fn from_format_3(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    transaction.execute_batch(BLOCKS)?;
    transaction.execute_batch(
        "UPDATE events SET height = json_extract(body, '$.height')
             WHERE body LIKE '%\"height\"%' AND json_type(body, '$.height') = 'integer'
                 AND json_extract(body, '$.kind') <> 'block.reverted'",
    )?;
    transaction.pragma_update(None, "user_version", 4)?;
    transaction.commit()
}

/// Before format 5 an index told which events a topic has. Whoever opens the log makes the runs.
/// What feeds had read last is not known: a source is believed to be as it was, once.
fn from_format_4(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    transaction.execute_batch("DROP INDEX events_topic")?;
    transaction.execute_batch(runs::TABLES)?;
    transaction.execute_batch(MARKS)?;
    transaction.pragma_update(None, "user_version", 5)?;
    transaction.commit()
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
