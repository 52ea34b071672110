//! How far a folder is ahead of the log, as somebody beside the feed sees it. The feed itself can't
//! say it while it waits for the log, or for a file to be mended.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::folder::ENDING;
use crate::ingest::feed_status::{FeedId, FeedState, FeedStatuses};
use crate::store::FileProgress;

/// Between two looks at a folder whose feed is not live.
const LAG_LOOK: Duration = Duration::from_secs(1);

/// The bytes of each file that are in the log, by its stream. The feed says what it has brought.
#[derive(Debug, Default)]
pub struct InLog(Mutex<HashMap<u64, Moved>>);

/// A step of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    stream: u64,
    /// Device and inode.
    file: (u64, u64),
    offset: u64,
    forgotten: bool,
}

impl From<&FileProgress> for Moved {
    fn from(progress: &FileProgress) -> Self {
        let FileProgress { stream, device, inode, offset, forgotten, .. } = *progress;
        Self { stream, file: (device, inode), offset, forgotten }
    }
}

impl InLog {
    pub(super) fn add(&self, moves: impl IntoIterator<Item = Moved>) {
        let mut all = self.0.lock();
        for moved in moves {
            match moved.forgotten {
                true => all.remove(&moved.stream),
                false => all.insert(moved.stream, moved),
            };
        }
    }

    /// Bytes of the folder's files that are not in the log.
    fn lag(&self, folder: &Path) -> io::Result<u64> {
        let mut known: Vec<_> = self.0.lock().values().copied().collect();
        // Of an inode that is used again the newest stream counts.
        known.sort_unstable_by_key(|moved| moved.stream);
        let known: HashMap<_, _> =
            known.into_iter().map(|moved| (moved.file, moved.offset)).collect();
        let mut lag = 0;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(|name| name.ends_with(ENDING)) {
                continue;
            }
            // One that has just gone lags no more.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                let read = known.get(&(metadata.dev(), metadata.ino())).copied();
                lag += metadata.len().saturating_sub(read.unwrap_or(0));
            }
        }
        Ok(lag)
    }
}

/// Counts on while the feed is not live. A folder that can't be read keeps the last number.
pub async fn watch_lag(
    path: PathBuf,
    in_log: Arc<InLog>,
    statuses: FeedStatuses,
    feed: FeedId,
    stop: CancellationToken,
) {
    let mut interval = tokio::time::interval(LAG_LOOK);
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        let Some(status) = statuses.get(feed) else { return };
        if status.state == FeedState::Live {
            continue;
        }
        let (path, in_log) = (path.clone(), in_log.clone());
        let looked = tokio::task::spawn_blocking(move || in_log.lag(&path)).await;
        if let Ok(Ok(lag)) = looked {
            statuses.set_lag_unless_live(feed, lag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_the_log_is_counted_by_file_whatever_its_name_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a.ndjson"), "12345").unwrap();
        fs::write(path("b.ndjson"), "123").unwrap();
        fs::write(path("c.txt"), "of nobody").unwrap();
        let in_log = InLog::default();
        assert_eq!(in_log.lag(folder.path()).unwrap(), 8);
        let file = fs::metadata(path("a.ndjson")).unwrap();
        let moved = |stream, offset, forgotten| Moved {
            stream,
            file: (file.dev(), file.ino()),
            offset,
            forgotten,
        };
        in_log.add([moved(1, 4, false)]);
        fs::rename(path("a.ndjson"), path("d.ndjson")).unwrap();
        assert_eq!(in_log.lag(folder.path()).unwrap(), 4);
        // The file was written again from its start: another stream of the same inode.
        in_log.add([moved(2, 1, false), moved(1, 4, true)]);
        assert_eq!(in_log.lag(folder.path()).unwrap(), 7);
        assert!(in_log.lag(&path("nowhere")).is_err());
    }
}
