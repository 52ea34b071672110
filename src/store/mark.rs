//! The mark: a small file beside the log that says which log it is and how far it has come. A log
//! that was put back from an older copy has fewer events than the mark says, or its mark was put back
//! with it. Either way the log can't know what clients have seen, so it begins a new epoch.
//!
//! **A copy of the mark is not the mark.** It holds its own inode and the time at which it was
//! written. A copy has another inode, and the system dates every change of a file: nobody can set
//! that time (`ctime`) back. So it makes no difference which files of the folder are put back, by
//! which program, or whether the hub runs meanwhile.
//!
//! The mark is written after each commit and before anybody is sent what was committed. A hub that is
//! killed between the two leaves a mark that is one commit late, which a log may be ahead of. Only
//! a snapshot of the whole disk brings back log and mark as they were: then the operator removes the
//! mark.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use spreadly_subscriptions::Epoch;

/// How far the time inside the mark may be from that of the file, whose clock ticks every 4 to 10 ms.
/// A mark whose writer was held up for longer is written again.
const TOLERANCE_NANOS: i128 = 30_000_000;
/// The same on file systems that know whole seconds only.
const TOLERANCE_OF_SECONDS_NANOS: i128 = 2_000_000_000;
/// Tries to write the mark within half of the tolerance. Each of them is a few microseconds.
const MOST_TRIES: usize = 10;
/// More than a mark has, so that a longer file is none.
const MOST_BYTES: usize = 512;

/// Why a mark does not confirm that its log goes on where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Doubt {
    #[error("its mark is missing")]
    Missing,
    #[error("its mark can't be read")]
    Unreadable,
    #[error("its mark is a copy")]
    Copied,
    #[error("its mark is of another log")]
    OtherLog,
    #[error("its mark has seen event {seen}, and the log ends at {newest}")]
    Ahead { seen: u64, newest: u64 },
}

/// What a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    epoch: Epoch,
    /// The newest event of the log.
    seen: u64,
    inode: u64,
    /// By the clock of the file system, in nanoseconds from 1970.
    time: i128,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
    epoch: Epoch,
    /// The newest event that it was written for, or should have been.
    seen: u64,
    /// None after a write failed: the mark was removed, so that the next start has a doubt.
    file: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    inode: u64,
    /// What the clock of the file system is ahead of ours.
    ahead: i128,
}

impl Mark {
    /// Whether the mark of the log at `store` confirms that its newest event is this one.
    pub(super) fn check(store: &Path, epoch: Epoch, newest: u64) -> Result<(), Doubt> {
        let file = File::open(named(store)).map_err(|_| Doubt::Missing)?;
        let metadata = file.metadata().map_err(|_| Doubt::Unreadable)?;
        let mut bytes = [0; MOST_BYTES];
        let read = file.read_at(&mut bytes, 0).map_err(|_| Doubt::Unreadable)?;
        let written = Written::read(&bytes[..read]).ok_or(Doubt::Unreadable)?;
        let tolerance = match (metadata.mtime_nsec(), metadata.ctime_nsec()) {
            (0, 0) => TOLERANCE_OF_SECONDS_NANOS,
            _ => TOLERANCE_NANOS,
        };
        let near = |time: i128| (time - written.time).abs() <= tolerance;
        let changed = nanos(metadata.ctime(), metadata.ctime_nsec());
        if metadata.ino() != written.inode || !near(changed) || !near(modified(&metadata)) {
            return Err(Doubt::Copied);
        }
        if written.epoch != epoch {
            return Err(Doubt::OtherLog);
        }
        if written.seen > newest {
            return Err(Doubt::Ahead { seen: written.seen, newest });
        }
        Ok(())
    }

    /// Makes the mark of a log that is at this event, or takes it over.
    pub(super) fn begin(store: &Path, epoch: Epoch, newest: u64) -> io::Result<Self> {
        let mut mark = Self { path: named(store), epoch, seen: newest, file: None };
        mark.renew()?;
        Ok(mark)
    }

    /// Makes the mark again where it is missing because a write failed.
    pub(super) fn renew(&mut self) -> io::Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        let file =
            File::options().create(true).truncate(false).read(true).write(true).open(&self.path)?;
        file.set_len(Written::LENGTH as u64)?;
        let mut open = Open { inode: file.metadata()?.ino(), file, ahead: 0 };
        open.write(self.epoch, self.seen)?;
        open.file.sync_all()?;
        self.file = Some(open);
        Ok(())
    }

    /// The newest event that this process knows of.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// The log has come to this event. A mark that can't be written is removed: it must not confirm
    /// more than it has seen.
    pub(super) fn move_to(&mut self, newest: u64) {
        self.seen = newest;
        let Some(open) = &mut self.file else { return };
        if let Err(error) = open.write(self.epoch, newest) {
            tracing::warn!(mark = ?self.path, %error, "the mark of the log can't be written: removed");
            self.file = None;
            // If that fails too, the mark stays as late as it is.
            let _removed = fs::remove_file(&self.path);
        }
    }
}

impl Open {
    fn write(&mut self, epoch: Epoch, seen: u64) -> io::Result<()> {
        for _ in 0..MOST_TRIES {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let time = i128::try_from(since.as_nanos()).unwrap_or_default() + self.ahead;
            let text = Written { epoch, seen, inode: self.inode, time }.to_string();
            // In place and with one call, so that a kill leaves it whole.
            self.file.write_all_at(text.as_bytes(), 0)?;
            let off = modified(&self.file.metadata()?) - time;
            if off.abs() <= TOLERANCE_NANOS / 2 {
                break;
            }
            self.ahead += off;
        }
        Ok(())
    }
}

impl Written {
    const LENGTH: usize = 131;

    fn read(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut values = text.lines().skip(1).map(|line| line.split_once(' ').map(|(_, one)| one));
        let epoch = u64::from_str_radix(values.next()??, 16).ok().map(Epoch)?;
        let seen = values.next()??.parse().ok()?;
        let inode = values.next()??.parse().ok()?;
        let time = values.next()??.parse().ok()?;
        let written = Self { epoch, seen, inode, time };
        // Every byte of it, with its sum.
        (written.to_string() == text).then_some(written)
    }
}

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { epoch: Epoch(epoch), seen, inode, time } = self;
        let text = format!(
            "spreadly mark 1\nepoch {epoch:016x}\nseen {seen:020}\ninode {inode:020}\n\
             time {time:020}\n"
        );
        writeln!(f, "{text}sum {:08x}", crc32fast::hash(text.as_bytes()))
    }
}

fn named(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".mark");
    name.into()
}

fn modified(metadata: &fs::Metadata) -> i128 {
    nanos(metadata.mtime(), metadata.mtime_nsec())
}

fn nanos(seconds: i64, nanos: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(7);

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("log.db");
        (folder, store)
    }

    /// Waits until a file that is changed now can't be taken for one that was changed then.
    pub(in crate::store) fn after_tolerance() {
        let began = SystemTime::now();
        while began.elapsed().unwrap().as_nanos() as i128 <= 2 * TOLERANCE_NANOS {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_mark_confirms_its_log_at_its_event_or_a_later_one() {
        let (_folder, store) = folder();
        assert_eq!(Mark::check(&store, EPOCH, 0), Err(Doubt::Missing));
        let mut mark = Mark::begin(&store, EPOCH, 5).unwrap();
        assert_eq!(fs::metadata(named(&store)).unwrap().len(), Written::LENGTH as u64);
        assert_eq!(Mark::check(&store, EPOCH, 5), Ok(()));
        mark.move_to(8);
        assert_eq!(Mark::check(&store, EPOCH, 8), Ok(()));
        assert_eq!(Mark::check(&store, EPOCH, 9), Ok(()), "a kill between commit and mark");
        assert_eq!(Mark::check(&store, EPOCH, 7), Err(Doubt::Ahead { seen: 8, newest: 7 }));
        assert_eq!(Mark::check(&store, Epoch(8), 8), Err(Doubt::OtherLog));
    }

    #[test]
    fn a_mark_is_taken_over_whatever_was_there() {
        let (_folder, store) = folder();
        for before in ["", "nonsense", &"x".repeat(1_000)] {
            fs::write(named(&store), before).unwrap();
            assert_eq!(Mark::check(&store, EPOCH, 9), Err(Doubt::Unreadable));
            drop(Mark::begin(&store, EPOCH, 9).unwrap());
            assert_eq!(Mark::check(&store, EPOCH, 9), Ok(()));
        }
        let mut damaged = fs::read(named(&store)).unwrap();
        damaged[40] ^= 1;
        fs::write(named(&store), damaged).unwrap();
        assert_eq!(Mark::check(&store, EPOCH, 9), Err(Doubt::Unreadable));
    }

    #[test]
    fn a_copy_of_a_mark_is_not_the_mark_however_it_is_put_back() {
        let (folder, store) = folder();
        drop(Mark::begin(&store, EPOCH, 9).unwrap());
        let (mark, copy) = (named(&store), folder.path().join("copy"));
        // A copy that was made within the tolerance has another inode.
        fs::copy(&mark, &copy).unwrap();
        let text = fs::read(&mark).unwrap();
        fs::rename(&mark, folder.path().join("original")).unwrap();
        fs::rename(&copy, &mark).unwrap();
        assert_eq!(Mark::check(&store, EPOCH, 9), Err(Doubt::Copied));
        fs::rename(folder.path().join("original"), &mark).unwrap();
        assert_eq!(Mark::check(&store, EPOCH, 9), Ok(()), "the mark itself, moved away and back");
        // One that is written over the mark has the same inode and another time.
        after_tolerance();
        fs::write(&mark, &text).unwrap();
        assert_eq!(Mark::check(&store, EPOCH, 9), Err(Doubt::Copied));
        // Also where a program sets the times that it may set.
        let kept = Written::read(&text).unwrap();
        let time = UNIX_EPOCH + std::time::Duration::from_nanos(kept.time as u64);
        let times = fs::FileTimes::new().set_modified(time).set_accessed(time);
        File::options().write(true).open(&mark).unwrap().set_times(times).unwrap();
        assert_eq!(Mark::check(&store, EPOCH, 9), Err(Doubt::Copied));
    }

    #[test]
    fn a_mark_that_can_not_be_written_is_removed_until_it_can() {
        let (_folder, store) = folder();
        let mut mark = Mark::begin(&store, EPOCH, 1).unwrap();
        // A file that was opened for reading alone takes no write.
        mark.file.as_mut().unwrap().file = File::open(named(&store)).unwrap();
        mark.move_to(2);
        assert_eq!(Mark::check(&store, EPOCH, 2), Err(Doubt::Missing));
        mark.move_to(3);
        assert_eq!(Mark::check(&store, EPOCH, 3), Err(Doubt::Missing));
        mark.renew().unwrap();
        mark.move_to(4);
        assert_eq!(Mark::check(&store, EPOCH, 4), Ok(()));
    }
}
