//! A folder of `*.ndjson` files as a feed: each whole line is an event, and enters the log exactly
//! once, also across `kill -9`. How far each file was read is in the log, written in the same
//! transaction as its lines.
//!
//! Followed are regular files directly in the folder whose names end in `.ndjson`; symlinks, FIFOs,
//! folders and names that aren't UTF-8 are left alone and named in the feed's status. A line
//! without its newline waits for it.
//!
//! **Which file continues which stream of lines.** Of each stream the log keeps its device and
//! inode, its name, the offset after its last line, and a fingerprint of the first and of the last
//! up to 256 bytes before that offset.
//! - A file with a known inode that matches both fingerprints goes on from the offset, under any
//!   name: a file that is rotated away is drained, also under a name that doesn't end in `.ndjson`,
//!   and, while it is kept open, outside the folder or after its removal.
//! - A new file under a known name, whose own file is no longer there, goes on from the offset when
//!   it matches both fingerprints: an editor's save, a rename over it, a backup put back. While the
//!   old file is still open, a new one that begins as it does replaces it too, read or not.
//! - All else begins at 0, as a stream of its own: a new file, one that was truncated below the
//!   offset or rewritten, a copy.
//!
//! What this can't know: lines appended to a file that was moved away before its first line was in
//! the log, or that wasn't among the last 256 read when it left the folder; and lines lost in
//! `copytruncate` rotation before they were read. Give events an `id` where files are copied.
//!
//! The kernel's watch is a [`doorbell`] only. Every [`SAFETY_SCAN`] the folder is compared anyway.
//!
//! **Two threads read, one at a time.** While the feed sleeps, the thread of the watch reads what
//! rang and brings it into the log itself ([`Reading::answer`]). All else is left to the feed's own
//! thread: rings that follow closely on each other, scans, faults, large batches, and a sequencer
//! that is busy.

mod doorbell;
mod folder;
mod lag;
mod markets;
mod stream;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::RecommendedWatcher;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::doorbell::{Doorbell, Ring};
use self::folder::{Folder, Turn};
use self::lag::Moved;
pub use self::lag::{InLog, watch_lag};
use self::markets::IsDefined;
use self::stream::identity;
use crate::ingest::feed_status::{Cause, FeedId, FeedStatuses};
use crate::ingest::handle::{Batch, IngestError, IngestHandle};
use crate::store::Progress;

/// How often a watched folder is compared as a whole, in case a ring was lost. 30,000 files cost
/// some 100 ms each time.
const SAFETY_SCAN: Duration = Duration::from_secs(2);
/// A ring that comes sooner after a commit was waiting for it, or is one of many: then the feed's
/// own thread takes all of them together, as each commit costs as much as some ten events.
const LULL: Duration = Duration::from_micros(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The kernel reports changes. Where it can't (network file systems, no watches left) the
    /// folder is polled too.
    Watch,
    Poll,
}

#[derive(Clone)]
pub struct FilesConfig {
    /// Made when it is missing. As written it also names the feed's progress in the log.
    pub path: PathBuf,
    pub mode: Mode,
    pub poll_interval: Duration,
    pub is_defined: IsDefined,
    /// Knows what is in the log.
    pub in_log: Arc<InLog>,
}

/// Runs until `shutdown`, or until the log is closed. Reads files in place, so it wants a thread
/// of its own: handing each read to another thread and back cost more than the read itself.
pub async fn run(
    config: FilesConfig,
    ingest: IngestHandle,
    statuses: FeedStatuses,
    feed: FeedId,
    shutdown: CancellationToken,
) {
    shutdown.run_until_cancelled(Files::new(config, ingest, statuses.clone(), feed).follow()).await;
    statuses.shutting_down(feed);
}

struct Files {
    config: FilesConfig,
    name: String,
    ingest: IngestHandle,
    statuses: FeedStatuses,
    feed: FeedId,
    bell: Doorbell,
}

/// What the two threads share.
struct Reading {
    folder: Folder,
    in_log: Arc<InLog>,
    /// The feed waits for its doorbell, and the folder has no fault and no line that is not
    /// delivered.
    asleep: bool,
    left: Left,
    /// Of the last batch.
    delivered: std::time::Instant,
}

/// What the thread of the watch leaves to the feed's own.
#[derive(Default)]
enum Left {
    #[default]
    Nothing,
    /// Read, and not delivered yet.
    Batch(Read),
    /// A batch was read and can't be delivered. The feed ends: if it read on, the batch would be
    /// lost.
    Closed,
}

/// What was read at once.
struct Read {
    batch: Batch,
    /// What its streams have in the log after it.
    moves: Vec<Moved>,
}

/// What the feed's own thread has beside it.
struct Side {
    reading: Arc<Mutex<Reading>>,
    watch: Option<Watch>,
    /// Why there is no watch, reported once.
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
    fn new(
        config: FilesConfig,
        ingest: IngestHandle,
        statuses: FeedStatuses,
        feed: FeedId,
    ) -> Self {
        let name = config.path.to_string_lossy().into_owned();
        Self { config, name, ingest, statuses, feed, bell: Doorbell::default() }
    }

    /// Ends when the log is closed.
    async fn follow(self) {
        let mut backoff = crate::ingest::backoff();
        let progress = loop {
            match self.ingest.file_progress(&self.name).await {
                Ok(progress) => break progress,
                Err(IngestError::Closed) => return,
                Err(error) => {
                    self.statuses.halt(self.feed, Cause::Source, &error.to_string());
                    tokio::time::sleep(backoff.wait()).await;
                }
            }
        };
        backoff.reset();
        self.config.in_log.add(progress.iter().map(Moved::from));
        // What can't be made is reported by the first look at it.
        drop(fs::create_dir_all(&self.config.path));
        let is_defined = self.config.is_defined.clone();
        let folder = Folder::new(&self.config.path, &self.name, progress, is_defined);
        let mut side = Side {
            reading: Arc::new(Mutex::new(Reading::new(folder, self.config.in_log.clone()))),
            watch: None,
            unwatched: None,
            warned_of_descriptors: false,
        };
        let mut next_scan = Instant::now();
        loop {
            // From here on the watch only rings.
            let left = side.reading.lock().wake();
            match left {
                Left::Nothing => {}
                Left::Closed => return,
                Left::Batch(Read { batch, moves }) => {
                    if self.ingest.deliver(batch).await.is_err() {
                        return;
                    }
                    self.config.in_log.add(moves);
                }
            }
            let scan = Instant::now() >= next_scan;
            if scan && self.config.mode == Mode::Watch {
                // Before the look, so that nothing falls between the two.
                self.keep_watch(&mut side);
            }
            let ring = if scan { Ring::Scan } else { self.bell.take() };
            let step = side.reading.lock().step(ring, &self.config.path);
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
            if let Some(Read { batch, moves }) = Read::new(step.turn, self.feed) {
                if self.ingest.write(batch).await.is_err() {
                    return;
                }
                self.config.in_log.add(moves);
            }
            {
                let mut reading = side.reading.lock();
                let folder = &reading.folder;
                let blocked = step.fault.is_some() || folder.out_of_descriptors;
                if !blocked && folder.is_busy() {
                    continue;
                }
                self.statuses.set_lag_while_live(self.feed, folder.unread_bytes());
                // Not healthy where it is blocked, so of a healthy folder all is read.
                reading.asleep = healthy;
                reading.delivered = std::time::Instant::now();
            }
            tokio::select! {
                () = self.bell.rung() => {}
                () = tokio::time::sleep_until(next_scan) => {}
            }
        }
    }

    /// Updates the status. Returns whether all of the folder can be read.
    fn report(&self, side: &mut Side, step: &Step) -> bool {
        let (faults, late, lag, note, out_of_descriptors) = {
            let folder = &side.reading.lock().folder;
            let (faults, late) = (folder.faults.clone(), folder.late());
            (faults, late, folder.unread_bytes(), folder.note(), folder.out_of_descriptors)
        };
        self.statuses.set_lag_while_live(self.feed, lag);
        // The same file is in one of the two.
        self.statuses.note(self.feed, note);
        self.statuses.stale_sources(self.feed, late);
        if out_of_descriptors {
            // What is live stays live; what can't be opened lags, and its status says so.
            if !side.warned_of_descriptors {
                let folder = self.config.path.display();
                tracing::warn!(%folder, "no file descriptor is left to read the feed: trying again");
            }
            side.warned_of_descriptors = true;
            return false;
        }
        side.warned_of_descriptors = false;
        let healthy = step.fault.is_none() && faults.is_empty();
        self.statuses.source_faults(self.feed, faults);
        match &step.fault {
            Some(reason) => self.statuses.halt(self.feed, Cause::Source, reason),
            None => self.statuses.clear(self.feed, Cause::Source),
        }
        healthy
    }

    fn keep_watch(&self, side: &mut Side) {
        let path = &self.config.path;
        let Ok(metadata) = fs::metadata(path) else {
            side.watch = None;
            return;
        };
        let folder = identity(&metadata);
        if side.watch.as_ref().is_some_and(|watch| watch.folder == folder) {
            return;
        }
        side.watch = None;
        match self.bell.watch(path, self.answering(&side.reading)) {
            Ok(watcher) => {
                side.watch = Some(Watch { _watcher: watcher, folder });
                side.unwatched = None;
            }
            Err(error) => {
                let reason = error.to_string();
                if side.unwatched.as_ref() != Some(&reason) {
                    tracing::warn!(%reason, folder = %path.display(), "polling instead of watching");
                }
                side.unwatched = Some(reason);
            }
        }
    }

    /// What the watch does with a ring. It holds neither the handle nor what is read, as its thread
    /// ends some time after the feed.
    fn answering(&self, reading: &Arc<Mutex<Reading>>) -> impl Fn() -> bool + Send + 'static {
        let (reading, bell, feed) = (Arc::downgrade(reading), self.bell.clone(), self.feed);
        let ingest = self.ingest.downgrade();
        move || {
            let Some(reading) = reading.upgrade() else { return true };
            // The feed has it and sees the ring before it sleeps. Waited for, it could wait for
            // this thread itself, which takes new watches.
            let Some(mut reading) = reading.try_lock() else { return false };
            let Some(ingest) = ingest.upgrade() else { return true };
            reading.answer(&bell, &ingest, feed)
        }
    }
}

impl Reading {
    fn new(folder: Folder, in_log: Arc<InLog>) -> Self {
        let delivered = std::time::Instant::now();
        Self { folder, in_log, asleep: false, left: Left::Nothing, delivered }
    }

    /// The feed is awake; gives it what the watch read and could not deliver.
    fn wake(&mut self) -> Left {
        self.asleep = false;
        std::mem::take(&mut self.left)
    }

    fn step(&mut self, ring: Ring, path: &Path) -> Step {
        let fault =
            self.folder.look(ring).err().map(|error| {
                format!("the folder {} can't be read ({error}): mend it", path.display())
            });
        Step { turn: self.folder.turn(), fault }
    }

    /// Brings what rang into the log, on the thread of the watch; whether nothing is left for the
    /// feed, which otherwise has to be woken.
    fn answer(&mut self, bell: &Doorbell, ingest: &IngestHandle, feed: FeedId) -> bool {
        if !self.asleep || self.delivered.elapsed() < LULL {
            return false;
        }
        self.asleep = match bell.take() {
            Ring::Names(names) => self.folder.touch_all(&names) && self.read_on(ingest, feed),
            Ring::Scan => {
                self.folder.want_scan();
                false
            }
        };
        self.asleep
    }

    /// Whether all of it is in the log.
    fn read_on(&mut self, ingest: &IngestHandle, feed: FeedId) -> bool {
        let Some(Read { batch, moves }) = Read::new(self.folder.turn(), feed) else {
            return !self.folder.has_news();
        };
        self.left = match ingest.try_write(batch) {
            Ok(Ok(_)) => {
                self.in_log.add(moves);
                Left::Nothing
            }
            Ok(Err(_)) => Left::Closed,
            Err(batch) => Left::Batch(Read { batch, moves }),
        };
        if !matches!(self.left, Left::Nothing) {
            return false;
        }
        self.delivered = std::time::Instant::now();
        !self.folder.has_news()
    }
}

impl Read {
    fn new(Turn { lines, progress }: Turn, feed: FeedId) -> Option<Self> {
        if lines.is_empty() && progress.is_empty() {
            return None;
        }
        let moves = progress.iter().map(Moved::from).collect();
        let progress = progress.into_iter().map(Progress::from).collect();
        Some(Self { batch: Batch { feed: Some(feed), lines, progress }, moves })
    }
}

#[cfg(test)]
mod tests;
