//! The mark beside a store, as a hub would have written it: with one a test brings about what only
//! a power cut or a snapshot of a whole disk does, that log and mark are older together.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use super::follower::crc32;

/// Says that the store is what it was, as it is now.
pub fn forge(store: &Path) {
    let log = rusqlite::Connection::open(store).unwrap();
    let query = "SELECT epoch, (SELECT coalesce(max(sequence), 0) FROM events) FROM log";
    let (epoch, seen): (i64, i64) =
        log.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let files = [".mark-1", ".mark-2"].map(|ending| {
        let mut name = store.as_os_str().to_owned();
        name.push(ending);
        File::create(name).unwrap()
    });
    for (writing, [file, other]) in [(1, [&files[0], &files[1]]), (2, [&files[1], &files[0]])] {
        let other = other.metadata().unwrap();
        let (inode, changed) = (other.ino(), other.ctime() * 1_000_000_000 + other.ctime_nsec());
        let text = format!(
            "spreadly mark 1\nepoch {epoch:016x}\nseen {seen:020}\nwriting {writing:020}\n\
             inode {inode:020}\nchanged {changed:020}\n"
        );
        let sum = crc32(text.as_bytes());
        file.write_all_at(format!("{text}sum {sum:08x}\n").as_bytes(), 0).unwrap();
    }
}
