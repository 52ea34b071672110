//! Checkpoints of SQLite's write-ahead log (WAL), which copy its pages into the database file with
//! two fsyncs. They have a thread and a connection of their own, so that no event waits for them:
//! SQLite lets a passive checkpoint run beside the writer. When every page is copied, the writer's
//! next commit begins at the front of the WAL again.
//!
//! A writer that never pauses for as long as a checkpoint takes would make the WAL grow. From
//! [`MOST_PAGES`] on it waits for the thread after each commit and checkpoints the rest by itself.

use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;

use super::fault::{At, StoreError};
use super::schema;

/// Pages of the WAL (16 MiB) that make a checkpoint due. A page that several commits wrote is
/// copied once, so more at once is less in all.
const CHECKPOINT_PAGES: i32 = 4_000;
/// Pages of the WAL (64 MiB) from which on the writer waits for checkpoints.
const MOST_PAGES: i32 = 4 * CHECKPOINT_PAGES;
/// Checkpoints in a row, each of what was committed during the one before. They take less and less
/// time, until one ends between two commits.
const MOST_ROUNDS: usize = 5;

/// The thread of one store. It ends with this value, after the checkpoint that runs.
#[derive(Debug)]
pub(super) struct Checkpointer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Pages of the WAL after the newest commit.
    pages: i32,
    /// Pages that the last checkpoint saw, where it did not copy all of them.
    left: i32,
    is_due: bool,
    is_stopped: bool,
    /// Checkpoints of this thread that copied every page.
    #[cfg(test)]
    whole: u32,
}

impl Checkpointer {
    /// Starts the thread for the database at `path`, and has it called by each commit of `writer`.
    ///
    /// # Errors
    /// When the system refuses a thread or SQLite the hook.
    pub(super) fn start(path: &Path, writer: &mut Connection) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared::default());
        let of_writer = shared.clone();
        let hook = move |wal: &mut rusqlite::hooks::Wal, pages| {
            of_writer.committed(pages);
            if pages >= MOST_PAGES {
                of_writer.wait_until_idle();
                // The commit holds whatever this brings, and the next one tries again.
                if let Err(error) = wal.checkpoint() {
                    tracing::debug!(%error, "the writer's checkpoint of the WAL failed");
                }
            }
            Ok(())
        };
        writer.wal_hook(Some(hook)).at(path)?;
        let (of_thread, own) = (shared.clone(), path.to_owned());
        let thread = thread::Builder::new()
            .name("checkpoints".into())
            .spawn(move || of_thread.work(&own))
            .map_err(|source| StoreError::Thread { path: path.to_owned(), source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Ends the thread.
    fn stop(&mut self) {
        self.shared.state.lock().is_stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the WAL's checkpoints panicked");
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Called by the writer after each commit.
    fn committed(&self, pages: i32) {
        let mut state = self.state.lock();
        if pages < state.pages {
            // It began at the front again.
            state.left = 0;
        }
        state.pages = pages;
        if !state.is_due && pages - state.left >= CHECKPOINT_PAGES {
            state.is_due = true;
            drop(state);
            self.changed.notify_all();
        }
    }

    fn work(&self, path: &Path) {
        let mut connection = None;
        while self.is_due() {
            let left = match self.checkpoint(path, &mut connection) {
                Ok(left) => left,
                Err(error) => {
                    // The writer meets the same fault, and it is the one who reports it.
                    tracing::debug!(%error, "a checkpoint of the WAL failed");
                    connection = None;
                    self.state.lock().pages
                }
            };
            let mut state = self.state.lock();
            state.left = left;
            state.is_due = false;
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Waits until the thread has no checkpoint to do.
    fn wait_until_idle(&self) {
        let mut state = self.state.lock();
        while state.is_due && !state.is_stopped {
            self.changed.wait(&mut state);
        }
    }

    /// Waits until a checkpoint is due. `false` ends the thread.
    fn is_due(&self) -> bool {
        let mut state = self.state.lock();
        while !state.is_due && !state.is_stopped {
            self.changed.wait(&mut state);
        }
        !state.is_stopped
    }

    /// Copies pages until none is left, or for as many rounds as are allowed. The pages of the WAL
    /// where some are left, otherwise 0.
    fn checkpoint(
        &self,
        path: &Path,
        connection: &mut Option<Connection>,
    ) -> Result<i32, StoreError> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(schema::connect_checkpointer(path)?),
        };
        let mut pages = 0;
        for _ in 0..MOST_ROUNDS {
            let (busy, all, copied) = connection
                .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
                    Ok((row.get::<_, bool>(0)?, row.get(1)?, row.get::<_, i32>(2)?))
                })
                .at(path)?;
            pages = all;
            if !busy && copied == pages && self.state.lock().pages == pages {
                #[cfg(test)]
                {
                    self.state.lock().whole += 1;
                }
                return Ok(0);
            }
            if self.state.lock().is_stopped {
                break;
            }
        }
        Ok(pages)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::super::{NewEvent, Store};
    use super::*;

    /// Bytes of a page in the WAL, with its header.
    const PAGE: u64 = 4_096 + 24;
    /// Pages of one [`append`], and some more.
    const BATCH: u64 = 300;

    fn opened() -> (TempDir, PathBuf, Store) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.db");
        let store = Store::open(&path).unwrap();
        (folder, path, store)
    }

    fn append(store: &mut Store) {
        let event = NewEvent {
            topic: "a".into(),
            body: "x".repeat(1_000_000).into(),
            ..NewEvent::default()
        };
        store.append(&[event], &[], 0).unwrap();
    }

    fn wal_pages(path: &Path) -> u64 {
        fs::metadata(path.with_extension("db-wal")).unwrap().len() / PAGE
    }

    #[test]
    fn the_thread_checkpoints_and_the_wal_begins_at_the_front_again() {
        let (_folder, path, mut store) = opened();
        let shared = store.checkpointer.shared.clone();
        let mut written = 0;
        while shared.state.lock().whole < 3 {
            append(&mut store);
            written += BATCH;
            assert!(written < 100 * u64::from(CHECKPOINT_PAGES.cast_unsigned()));
            shared.wait_until_idle();
        }
        let pages = wal_pages(&path);
        let most = u64::from(CHECKPOINT_PAGES.cast_unsigned()) + 2 * BATCH;
        assert!(pages <= most, "{pages} pages");
        drop(store);
        assert!(!path.with_extension("db-wal").exists(), "a close leaves no WAL");
    }

    #[test]
    fn a_writer_without_the_thread_checkpoints_by_itself() {
        let (_folder, path, mut store) = opened();
        store.checkpointer.stop();
        let most = u64::from(MOST_PAGES.cast_unsigned());
        for _ in 0..2 * most / 244 {
            append(&mut store);
        }
        let pages = wal_pages(&path);
        assert!((most..most + 2 * BATCH).contains(&pages), "{pages} pages");
    }

    #[test]
    fn a_reader_of_an_old_state_holds_back_the_checkpoint_and_not_the_writer() {
        let (_folder, path, mut store) = opened();
        let shared = store.checkpointer.shared.clone();
        append(&mut store);
        let reader = schema::connect_reader(&path).unwrap();
        reader.execute_batch("BEGIN; SELECT count(*) FROM events").unwrap();
        while shared.state.lock().left == 0 {
            append(&mut store);
            shared.wait_until_idle();
        }
        assert_eq!(shared.state.lock().whole, 0);
        reader.execute_batch("COMMIT").unwrap();
        let most = u64::from(MOST_PAGES.cast_unsigned());
        for _ in 0..3 * most / 244 {
            append(&mut store);
        }
        let pages = wal_pages(&path);
        assert!(pages < most + 2 * BATCH, "{pages} pages");
    }
}
