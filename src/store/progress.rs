//! How far each feed is read, written with what it brought.

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::Store;
use super::fault::{At, StoreError};

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

impl Store {
    pub(super) fn write_progress(
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
}
