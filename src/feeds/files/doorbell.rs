//! What rings when something happened in the folder: names to look at, or that all must be looked
//! at. It only ever says "look": what is there is read from the folder, so a lost or doubled ring
//! costs time and never a line.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Names kept apart; of more the whole folder is looked at instead.
const MOST_NAMES: usize = 4_096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    Names(HashSet<OsString>),
    Scan,
}

#[derive(Default)]
struct Rung {
    names: HashSet<OsString>,
    scan: bool,
}

/// Clones share it.
#[derive(Clone, Default)]
pub(super) struct Doorbell {
    rung: Arc<Mutex<Rung>>,
    notify: Arc<Notify>,
}

impl Doorbell {
    /// Takes what was rung since the last time.
    pub(super) fn take(&self) -> Ring {
        let rung = std::mem::take(&mut *self.rung.lock());
        if rung.scan { Ring::Scan } else { Ring::Names(rung.names) }
    }

    /// Waits for the next ring, also one from before.
    pub(super) async fn rung(&self) {
        self.notify.notified().await;
    }

    /// Notes what happened, and wakes nobody; whether it is anything to look at.
    fn note(&self, folder: &Path, event: notify::Result<Event>) -> bool {
        let mut rung = self.rung.lock();
        match event {
            // Errors too: whatever was lost, a look at the folder finds it.
            Err(_) => rung.scan = true,
            Ok(event) if event.need_rescan() || event.paths.is_empty() => rung.scan = true,
            // Our own reading rings as well.
            Ok(Event { kind: EventKind::Access(kind), .. })
                if kind != AccessKind::Close(AccessMode::Write) =>
            {
                return false;
            }
            Ok(event) => {
                for path in event.paths {
                    match path.file_name() {
                        Some(name) if path.as_path() != folder => {
                            rung.names.insert(name.to_owned());
                        }
                        _ => rung.scan = true,
                    }
                }
            }
        }
        if rung.scan || rung.names.len() > MOST_NAMES {
            *rung = Rung { names: HashSet::new(), scan: true };
        }
        true
    }

    /// Lets the kernel ring it. `answered` is called with each ring, on the thread of the watch,
    /// and says whether nothing is left to do; otherwise who waits for the bell is woken. The watch
    /// ends when the value is dropped.
    pub(super) fn watch(
        &self,
        folder: &Path,
        answered: impl Fn() -> bool + Send + 'static,
    ) -> notify::Result<RecommendedWatcher> {
        let folder: PathBuf = std::path::absolute(folder).map_err(notify::Error::io)?;
        let (bell, own) = (self.clone(), folder.clone());
        let mut watcher = notify::recommended_watcher(move |event| {
            if bell.note(&own, event) && !answered() {
                bell.notify.notify_one();
            }
        })?;
        watcher.watch(&folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}

#[cfg(test)]
impl Doorbell {
    pub(super) fn ring_by_hand(&self, name: &str) {
        self.rung.lock().names.insert(name.into());
        self.notify.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, Flag, RemoveKind};

    use super::*;

    fn event(kind: EventKind, path: &str) -> notify::Result<Event> {
        Ok(Event::new(kind).add_path(path.into()))
    }

    #[test]
    fn events_fold_into_names_and_are_taken_once() {
        let bell = Doorbell::default();
        let folder = Path::new("/f");
        for path in ["/f/a", "/f/b", "/f/a"] {
            bell.note(folder, event(EventKind::Create(CreateKind::File), path));
        }
        bell.note(folder, event(EventKind::Access(AccessKind::Open(AccessMode::Any)), "/f/c"));
        assert_eq!(bell.take(), Ring::Names(["a".into(), "b".into()].into()));
        assert_eq!(bell.take(), Ring::Names(HashSet::new()));
    }

    #[tokio::test]
    async fn only_a_ring_that_is_not_answered_wakes_who_waits() {
        let folder = tempfile::tempdir().unwrap();
        let bell = Doorbell::default();
        let is_last = |name: &OsString| name == "last";
        let own = bell.clone();
        let watch = bell.watch(folder.path(), move || !own.rung.lock().names.iter().any(is_last));
        for name in ["first", "last"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        bell.rung().await;
        assert_eq!(bell.take(), Ring::Names(["first".into(), "last".into()].into()));
        drop(watch.unwrap());
    }

    #[tokio::test]
    async fn reading_a_file_rings_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let read = folder.path().join("read");
        std::fs::write(&read, "text").unwrap();
        let bell = Doorbell::default();
        let _watch = bell.watch(folder.path(), || false).unwrap();
        assert_eq!(std::fs::read(&read).unwrap(), b"text");
        // It rings after all that went before.
        std::fs::write(folder.path().join("end"), "").unwrap();
        bell.rung().await;
        assert_eq!(bell.take(), Ring::Names(["end".into()].into()));
    }

    #[test]
    fn an_overflow_an_error_or_the_folder_itself_rings_for_all() {
        let folder = Path::new("/f");
        let overflow = Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan));
        let error = Err(notify::Error::generic("lost"));
        let gone = event(EventKind::Remove(RemoveKind::Folder), "/f");
        for event in [overflow, error, gone] {
            let bell = Doorbell::default();
            bell.note(folder, event);
            assert_eq!(bell.take(), Ring::Scan);
        }
    }

    #[test]
    fn too_many_names_ring_for_all() {
        let bell = Doorbell::default();
        for number in 0..=MOST_NAMES {
            let path = format!("/f/{number}");
            bell.note(Path::new("/f"), event(EventKind::Create(CreateKind::File), &path));
        }
        assert_eq!(bell.take(), Ring::Scan);
    }
}
