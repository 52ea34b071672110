//! What an event costs that comes by itself, in a program that does no more than it must: watch a
//! folder, read the new line, commit it with the file's offset. `single_events.py` compares the hub
//! with it. It has no state of markets, no mark beside its log and no clients.
//!
//!     single_event_limit FOLDER
//!
//! It reads `a.ndjson` of the folder, and ends when its standard input does.

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use notify::{EventKind, RecursiveMode, Watcher as _};
use rusqlite::{Connection, params};

const LONGEST_LINE: usize = 64 * 1024;

struct Log {
    database: Connection,
    path: PathBuf,
    file: File,
    offset: u64,
    buffer: Vec<u8>,
}

impl Log {
    fn open(folder: PathBuf) -> Result<Self, Box<dyn Error>> {
        let database = Connection::open(folder.join("limit.db"))?;
        database.pragma_update(None, "journal_mode", "WAL")?;
        database.pragma_update(None, "synchronous", "NORMAL")?;
        database.execute_batch(
            "CREATE TABLE events (sequence INTEGER PRIMARY KEY, topic TEXT NOT NULL,
                 body TEXT NOT NULL, received_micros INTEGER NOT NULL) STRICT;
             CREATE TABLE files (name TEXT PRIMARY KEY, offset INTEGER NOT NULL) STRICT,
                 WITHOUT ROWID;",
        )?;
        let path = folder.join("a.ndjson");
        let file = File::options().create(true).append(true).read(true).open(&path)?;
        Ok(Self { database, path, file, offset: 0, buffer: vec![0; LONGEST_LINE] })
    }

    /// Commits each whole line that came since.
    fn read_on(&mut self) -> Result<(), Box<dyn Error>> {
        let size = fs::symlink_metadata(&self.path)?.len();
        while self.offset < size {
            let got = self.file.read_at(&mut self.buffer, self.offset)?;
            let Some(end) = self.buffer[..got].iter().rposition(|byte| *byte == b'\n') else {
                return Ok(());
            };
            let lines = std::str::from_utf8(&self.buffer[..end])?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as i64;
            let transaction = self.database.transaction()?;
            for line in lines.split('\n') {
                transaction
                    .prepare_cached(
                        "INSERT INTO events (topic, body, received_micros) VALUES (?1, ?2, ?3)",
                    )?
                    .execute(params!["book:A-B", line, now])?;
            }
            self.offset += end as u64 + 1;
            transaction
                .prepare_cached("INSERT OR REPLACE INTO files VALUES (?1, ?2)")?
                .execute(params!["a.ndjson", self.offset as i64])?;
            transaction.commit()?;
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: single_event_limit FOLDER")?;
    let folder = PathBuf::from(folder);
    let mut log = Log::open(folder.clone())?;
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| matches!(event.kind, EventKind::Modify(_))) {
            log.read_on().expect("a line can be read and committed");
        }
    })?;
    watcher.watch(&folder.join("a.ndjson"), RecursiveMode::NonRecursive)?;
    println!("ready");
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}
