//! A folder of `*.ndjson` files as a feed: each whole line is an event, and enters the log exactly
//! once, also across `kill -9`. How far each file was read stands in the log, written in the same
//! transaction as its lines.
//!
//! Followed are regular files directly in the folder whose names end in `.ndjson`; symlinks, FIFOs,
//! folders and names that aren't UTF-8 are left alone and told in the feed's status. A line
//! without its newline waits for it.
//!
//! **Which file continues which stream of lines.** Of each stream the log keeps its device and
//! inode, its name, the offset behind its last line, and a fingerprint of the first and of the last
//! up to 256 bytes before that offset.
//! - A file with a known inode that matches both fingerprints goes on from the offset, under any
//!   name: a file that is rotated away is drained, also under a name that doesn't end in `.ndjson`,
//!   and, while it is kept open, outside the folder or after its removal.
//! - A new file under a known name, whose own file is no longer there, goes on from the offset when
//!   it matches both fingerprints: an editor's save, a rename over it, a backup put back. While the
//!   old file is still open, a new one that begins as it does replaces it too, read or not.
//! - All else begins at 0, as a stream of its own: a new file, one that was truncated below the
//!   offset or written anew, a copy.
//!
//! What this can't know: lines appended to a file that was moved away before its first line was in
//! the log, or that wasn't among the last 256 read when it left the folder; and lines lost in
//! `copytruncate` rotation before they were read. Give events an `id` where files are copied.
//!
//! The kernel's watch is a [`doorbell`] only. Every [`SAFETY_SCAN`] the folder is compared anyway.

mod doorbell;
mod folder;
mod stream;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::RecommendedWatcher;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::doorbell::{Doorbell, Ring};
use self::folder::{Folder, Turn};
use self::stream::identity;
use super::door::{Batch, Door, DoorError};
use super::status::{Cause, FeedId, FeedStatuses};
use crate::store::Progress;

/// How often a watched folder is compared as a whole, in case a ring was lost. 30,000 files cost
/// some 100 ms each time.
const SAFETY_SCAN: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The kernel tells; where it can't (network file systems, no watches left) it is polled too.
    Watch,
    Poll,
}

#[derive(Clone, Debug)]
pub struct FilesConfig {
    /// Made when it is missing. As written it also names the feed's progress in the log.
    pub path: PathBuf,
    pub mode: Mode,
    pub poll_interval: Duration,
}

/// Runs until told to stop, or until the door is closed. Reads files in place, so it wants a thread
/// of its own: handing each read to another thread and back cost more than the read itself.
pub async fn run(
    config: FilesConfig,
    door: Door,
    statuses: FeedStatuses,
    feed: FeedId,
    shutdown: CancellationToken,
) {
    shutdown.run_until_cancelled(Files::new(config, door, statuses.clone(), feed).follow()).await;
    statuses.shutting_down(feed);
}

struct Files {
    config: FilesConfig,
    name: String,
    door: Door,
    statuses: FeedStatuses,
    feed: FeedId,
    bell: Doorbell,
}

/// What reads the folder.
struct Side {
    folder: Folder,
    watch: Option<Watch>,
    /// Why there is no watch, told once.
    unwatched: Option<String>,
    warned_of_descriptors: bool,
}

struct Watch {
    /// Held for its drop.
    _watcher: RecommendedWatcher,
    /// A folder that was removed and made again is another one.
    folder: (u64, u64),
}

/// What one look at the folder found.
struct Step {
    turn: Turn,
    /// The folder can't be read.
    fault: Option<String>,
}

impl Files {
    fn new(config: FilesConfig, door: Door, statuses: FeedStatuses, feed: FeedId) -> Self {
        let name = config.path.to_string_lossy().into_owned();
        Self { config, name, door, statuses, feed, bell: Doorbell::default() }
    }

    /// Ends when the door is closed.
    async fn follow(self) {
        let mut backoff = super::backoff();
        let progress = loop {
            match self.door.file_progress(&self.name).await {
                Ok(progress) => break progress,
                Err(DoorError::Closed) => return,
                Err(error) => {
                    self.statuses.halt(self.feed, Cause::Source, &error.to_string());
                    tokio::time::sleep(backoff.wait()).await;
                }
            }
        };
        backoff.reset();
        // What can't be made is told by the first look at it.
        drop(fs::create_dir_all(&self.config.path));
        let folder = Folder::new(&self.config.path, &self.name, progress);
        let mut side = Side { folder, watch: None, unwatched: None, warned_of_descriptors: false };
        let mut next_scan = Instant::now();
        loop {
            let scan = Instant::now() >= next_scan;
            let ring = if scan { Ring::Scan } else { self.bell.take() };
            let step = side.step(ring, self.config.mode, &self.config.path, &self.bell);
            let healthy = self.report(&mut side, &step);
            if healthy {
                backoff.reset();
            }
            if scan || !healthy {
                let polled = side.watch.is_none();
                let usual = if polled { self.config.poll_interval } else { SAFETY_SCAN };
                let wait = if healthy { usual } else { usual.min(backoff.wait()) };
                next_scan =
                    if scan { Instant::now() + wait } else { next_scan.min(Instant::now() + wait) };
            }
            let Turn { lines, progress } = step.turn;
            if !lines.is_empty() || !progress.is_empty() {
                let progress = progress.into_iter().map(Progress::from).collect();
                let batch = Batch { feed: Some(self.feed), lines, progress };
                if self.door.deliver(batch).await.is_err() {
                    return;
                }
            }
            let blocked = step.fault.is_some() || side.folder.out_of_descriptors;
            if !blocked && side.folder.is_busy() {
                continue;
            }
            self.statuses.behind(self.feed, side.folder.bytes_behind());
            tokio::select! {
                () = self.bell.rung() => {}
                () = tokio::time::sleep_until(next_scan) => {}
            }
        }
    }

    /// Tells the board; whether all of the folder can be read.
    fn report(&self, side: &mut Side, step: &Step) -> bool {
        let fault = step.fault.clone().or_else(|| side.folder.fault());
        self.statuses.behind(self.feed, side.folder.bytes_behind());
        self.statuses.note(self.feed, side.folder.note());
        if side.folder.out_of_descriptors {
            // What is live stays live; what can't be opened is behind, and says so there.
            if !side.warned_of_descriptors {
                let folder = self.config.path.display();
                tracing::warn!(%folder, "no file descriptor is left to read the feed: trying again");
            }
            side.warned_of_descriptors = true;
            return false;
        }
        side.warned_of_descriptors = false;
        match fault {
            Some(reason) => {
                self.statuses.halt(self.feed, Cause::Source, &reason);
                false
            }
            None => {
                self.statuses.clear(self.feed, Cause::Source);
                true
            }
        }
    }
}

impl Side {
    fn step(&mut self, ring: Ring, mode: Mode, path: &Path, bell: &Doorbell) -> Step {
        if ring == Ring::Scan && mode == Mode::Watch {
            // Before the look, so that nothing falls between the two.
            self.keep_watch(path, bell);
        }
        let fault =
            self.folder.look(ring).err().map(|error| {
                format!("the folder {} can't be read ({error}): mend it", path.display())
            });
        Step { turn: self.folder.turn(), fault }
    }

    fn keep_watch(&mut self, path: &Path, bell: &Doorbell) {
        let Ok(metadata) = fs::metadata(path) else {
            self.watch = None;
            return;
        };
        let folder = identity(&metadata);
        if self.watch.as_ref().is_some_and(|watch| watch.folder == folder) {
            return;
        }
        self.watch = None;
        match bell.watch(path) {
            Ok(watcher) => {
                self.watch = Some(Watch { _watcher: watcher, folder });
                self.unwatched = None;
            }
            Err(error) => {
                let reason = error.to_string();
                if self.unwatched.as_ref() != Some(&reason) {
                    tracing::warn!(%reason, folder = %path.display(), "polling instead of watching");
                }
                self.unwatched = Some(reason);
            }
        }
    }
}

#[cfg(test)]
mod tests;
