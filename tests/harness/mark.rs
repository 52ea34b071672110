//! The mark beside a store, as a hub would have written it: with one a test brings about what only a
//! power cut or a snapshot of a whole disk does, that log and mark are older together.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::follower::crc32;

/// Says that the store is what it was, as it is now.
pub fn forge(store: &Path) {
    let log = rusqlite::Connection::open(store).unwrap();
    let query = "SELECT epoch, (SELECT coalesce(max(sequence), 0) FROM events) FROM log";
    let (epoch, seen): (i64, i64) =
        log.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let mut name = store.as_os_str().to_owned();
    name.push(".mark");
    let mut file = File::create(name).unwrap();
    let inode = file.metadata().unwrap().ino();
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let text = format!(
        "spreadly mark 1\nepoch {epoch:016x}\nseen {seen:020}\ninode {inode:020}\ntime {time:020}\n"
    );
    file.write_all(format!("{text}sum {:08x}\n", crc32(text.as_bytes())).as_bytes()).unwrap();
}
