//! A copy of the log while its hub writes. All pages are read in one transaction: what is committed
//! meanwhile is not in the copy and does not make it begin again, however busy the writer is. The
//! write-ahead log keeps these commits until the copy is done.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use spreadly_subscriptions::Epoch;
use thiserror::Error;

use super::fault::{At, StoreError};
use super::schema;

/// Pages between two reports of the progress: 4 MiB.
const PAGES_PER_STEP: i32 = 1_024;

#[derive(Debug, Error)]
pub enum BackupError {
    #[error("there is no log {0}: name its file with store.url")]
    NoLog(PathBuf),
    #[error("{0} is there already: name a file that isn't, or remove it")]
    Exists(PathBuf),
    #[error(
        "{0} is there already: another back-up writes it now, or one was killed; then remove it"
    )]
    Unfinished(PathBuf),
    #[error("{path} can't be written: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("the copy {path} is not whole ({fault}), so it was removed: check the disk")]
    Faulty { path: PathBuf, fault: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was copied.
#[derive(Debug)]
pub struct Copied {
    pub epoch: Epoch,
    /// Sequence of the newest event.
    pub newest: u64,
    pub bytes: u64,
}

/// How far a back-up is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupStep {
    Copied {
        pages: i32,
        of: i32,
    },
    /// All is copied, and SQLite checks it.
    Checking,
}

/// Copies the log at `path` to the file `to`, which must not be there. It appears when it is whole.
pub fn back_up(
    path: &Path,
    to: &Path,
    report: impl FnMut(BackupStep),
) -> Result<Copied, BackupError> {
    if !path.exists() {
        return Err(BackupError::NoLog(path.to_owned()));
    }
    if to.exists() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let partial = beside(to, ".partial");
    let failed = |path: &Path, source: io::Error| BackupError::Write { path: path.into(), source };
    match File::create_new(&partial) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(BackupError::Unfinished(partial));
        }
        Err(error) => return Err(failed(&partial, error)),
    }
    let copied = copy(path, &partial, report).and_then(|copied| {
        // Unlike a renaming this replaces nothing.
        match fs::hard_link(&partial, to) {
            Ok(()) => Ok(copied),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(BackupError::Exists(to.to_owned()))
            }
            Err(error) => Err(failed(to, error)),
        }
    });
    for ending in ["", "-journal", "-wal", "-shm"] {
        drop(fs::remove_file(beside(&partial, ending)));
    }
    let copied = copied?;
    // So that a power cut does not take the name.
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| failed(to, error))?;
    Ok(copied)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn copy(path: &Path, to: &Path, mut report: impl FnMut(BackupStep)) -> Result<Copied, BackupError> {
    let log = schema::connect_reader(path)?;
    if !schema::is_ours(&log).at(path)? {
        return Err(StoreError::Foreign { path: path.to_owned() }.into());
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut copy = Connection::open_with_flags(to, flags).at(to)?;
    let moment = log.unchecked_transaction().at(path)?;
    // The moment begins with what is read first.
    let schema::Log { epoch, newest, .. } = schema::log(path, &moment)?;
    let copying = Backup::new(&moment, &mut copy).at(to)?;
    while copying.step(PAGES_PER_STEP).at(to)? != StepResult::Done {
        let progress = copying.progress();
        let pages = progress.pagecount - progress.remaining;
        report(BackupStep::Copied { pages, of: progress.pagecount });
    }
    drop(copying);
    moment.finish().at(path)?;
    report(BackupStep::Checking);
    // One file, as it has no write-ahead log.
    copy.pragma_update(None, "journal_mode", "DELETE").at(to)?;
    let fault = copy.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
    let fault = fault.at(to)?;
    if fault != "ok" {
        return Err(BackupError::Faulty { path: to.to_owned(), fault });
    }
    drop(copy);
    let bytes = fs::metadata(to).and_then(|file| {
        File::open(to)?.sync_all()?;
        Ok(file.len())
    });
    let bytes = bytes.map_err(|source| BackupError::Write { path: to.to_owned(), source })?;
    Ok(Copied { epoch, newest, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NewEvent, Store};

    fn append(store: &mut Store, events: usize) {
        let event =
            NewEvent { topic: "t".into(), body: "x".repeat(8_000).into(), ..NewEvent::default() };
        store.append(&vec![event; events], &[], 7).unwrap();
    }

    #[test]
    fn a_copy_has_the_moment_at_which_it_began_however_much_is_written_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let (path, to) = (folder.path().join("spreadly.db"), folder.path().join("copy.db"));
        let mut store = Store::open(&path).unwrap();
        append(&mut store, 2_000);
        let mut steps = Vec::new();
        let copied = back_up(&path, &to, |step| {
            // Far more than a step copies.
            append(&mut store, 2_000);
            steps.push(step);
        });
        let copied = copied.unwrap();
        assert_eq!((copied.epoch, copied.newest), (store.epoch(), 2_000));
        assert!(matches!(steps[0], BackupStep::Copied { pages: PAGES_PER_STEP, .. }), "{steps:?}");
        assert_eq!(steps.last(), Some(&BackupStep::Checking));
        let restored = Store::open(&to).unwrap();
        assert_eq!(restored.read_from(0, 9_999).unwrap().len(), 2_000);
        // It was put back, as far as it can know.
        assert_ne!(restored.epoch(), store.epoch());
    }

    #[test]
    fn a_copy_replaces_no_file_and_leaves_none_where_it_fails() {
        let folder = tempfile::tempdir().unwrap();
        let (path, to) = (folder.path().join("spreadly.db"), folder.path().join("copy.db"));
        let copy = || back_up(&path, &to, |_| ()).unwrap_err();
        assert!(matches!(copy(), BackupError::NoLog(_)));
        drop(Store::open(&path).unwrap());
        fs::write(&to, "of somebody").unwrap();
        assert!(matches!(copy(), BackupError::Exists(_)));
        assert_eq!(fs::read_to_string(&to).unwrap(), "of somebody");
        fs::remove_file(&to).unwrap();
        let partial = beside(&to, ".partial");
        fs::write(&partial, "of another").unwrap();
        assert!(matches!(copy(), BackupError::Unfinished(_)));
        fs::remove_file(&partial).unwrap();
        // Appears while it is copied.
        let failed = back_up(&path, &to, |_| fs::write(&to, "of somebody").unwrap());
        assert!(matches!(failed.unwrap_err(), BackupError::Exists(_)));
        assert_eq!(fs::read_to_string(&to).unwrap(), "of somebody");
        assert!(!partial.exists());
        fs::remove_file(&to).unwrap();
        let other = folder.path().join("other.db");
        Connection::open(&other).unwrap().execute("CREATE TABLE t (a)", []).unwrap();
        let failed = back_up(&other, &to, |_| ()).unwrap_err();
        assert!(matches!(failed, BackupError::Store(StoreError::Foreign { .. })), "{failed}");
        assert!(!to.exists() && !partial.exists());
    }
}
