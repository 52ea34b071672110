//! What goes wrong with the embedded log, and whether waiting helps.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum StoreError {
    #[error("the folder of the store {path} can't be made: {source}")]
    Folder { path: PathBuf, source: io::Error },
    #[error(
        "the store {path} is in use by another hub, which holds {lock}: stop that one (`fuser \
         {lock}` names it) or give this one a file of its own with store.url"
    )]
    InUse { path: PathBuf, lock: PathBuf },
    #[error("the store's lock {path} can't be taken: {source}")]
    Lock { path: PathBuf, source: io::Error },
    #[error(
        "the mark {path}.mark-1 or .mark-2 can't be written ({source}): give the hub the right to \
         write both, or free space"
    )]
    Mark { path: PathBuf, source: io::Error },
    #[error(
        "the store {path} can't be written ({source}): free space or mend the disk, the hub goes on by itself"
    )]
    Unavailable { path: PathBuf, source: rusqlite::Error },
    #[error(
        "the store's file {path} was deleted or replaced while the hub runs: put it back, and the \
         hub goes on by itself; until the hub ends, `ls -l /proc/{}/fd` shows where its content is",
        std::process::id()
    )]
    Gone { path: PathBuf },
    #[error(
        "the store {path} is damaged ({source}): move it and its -wal and -shm files aside, then \
         put a copy of it back or start with an empty one, into which the feeds bring what they \
         still have"
    )]
    Damaged { path: PathBuf, source: rusqlite::Error },
    #[error("{path} is a database of another program: set store.url to a file of its own")]
    Foreign { path: PathBuf },
    #[error(
        "the store {path} has format {found}, written by a newer release (this one knows \
         {known}): start that release"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("the store {path} was replaced by another one while in use: restart the hub")]
    Replaced { path: PathBuf },
    #[error(
        "event {sequence} of the store can't be replayed ({reason}): it was admitted by another \
         release, start that one"
    )]
    Unreplayable { sequence: u64, reason: String },
    #[error(
        "the system refuses the store {path} a thread ({source}): raise the limit of processes \
         (`ulimit -u`, `TasksMax` of systemd)"
    )]
    Thread { path: PathBuf, source: io::Error },
    #[error("the store {path}: {source}")]
    Other { path: PathBuf, source: rusqlite::Error },
}

impl StoreError {
    /// Whether the same call may work later with nothing else done by us. Nothing of the failed
    /// call was kept.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. }
                | Self::Gone { .. }
                | Self::Folder { .. }
                | Self::Thread { .. }
        )
    }

    fn new(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(
                ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::OutOfMemory
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::OperationInterrupted,
            ) => Self::Unavailable { path, source },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { path, source }
            }
            _ => Self::Other { path, source },
        }
    }
}

/// Says which store an error of SQLite is about.
pub(super) trait At<T> {
    fn at(self, path: &Path) -> Result<T, StoreError>;
}

impl<T> At<T> for rusqlite::Result<T> {
    fn at(self, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::new(path, source))
    }
}
