//! The files of the log by their identity. SQLite keeps on writing a file that was deleted or
//! replaced, and all of that is lost when the hub ends.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::fault::StoreError;

/// See the module's text. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct LogFiles(Arc<Mutex<Vec<LogFile>>>);

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl LogFiles {
    /// Takes the files as they are, which a connection has just opened.
    pub(super) fn note(&self, path: &Path) {
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        let file = |path: PathBuf| identity(&path).map(|identity| LogFile { path, identity });
        *self.0.lock() = [path.to_owned(), wal.into()].into_iter().filter_map(file).collect();
    }

    /// # Errors
    /// When one is not there any more, or is another file.
    pub fn check(&self) -> Result<(), StoreError> {
        let files = self.0.lock();
        match files.iter().find(|file| identity(&file.path) != Some(file.identity)) {
            Some(file) => Err(StoreError::Gone { path: file.path.clone() }),
            None => Ok(()),
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{event, folder};
    use super::super::{Store, StoreError};
    use super::*;

    #[test]
    fn a_log_whose_file_is_deleted_takes_nothing_until_it_is_back() {
        for ending in ["", "-wal"] {
            let (folder, path) = folder();
            let mut store = Store::open(&path).unwrap();
            store.append(&[event("a", None, "1")], &[], 0).unwrap();
            let mut file = path.clone().into_os_string();
            file.push(ending);
            let aside = folder.path().join("aside");
            fs::rename(&file, &aside).unwrap();
            let refused = store.append(&[event("a", None, "2")], &[], 0).unwrap_err();
            assert!(matches!(&refused, StoreError::Gone { path } if path.as_os_str() == file));
            assert!(refused.is_retryable());
            fs::write(&file, "another file").unwrap();
            assert!(store.append(&[event("a", None, "2")], &[], 0).is_err());
            fs::rename(&aside, &file).unwrap();
            store.reopen().unwrap();
            let sequences = store.append(&[event("a", None, "2")], &[], 0).unwrap().sequences;
            assert_eq!(sequences, [Some(2)]);
            assert!(store.files().check().is_ok());
        }
    }
}
