//! The mark: two small files beside the log that say which log it is and how far it has come. A log
//! that was put back from an older copy has fewer events than the mark says, or its mark was put
//! back with it. Either way the log can't know what clients have seen, so it begins a new epoch.
//!
//! **A copy of the mark is not the mark.** The two files are written in turn, and each states the
//! inode of the other and the time at which the system last saw the other change (`ctime`). Nobody
//! can set that time. So it makes no difference which files of the folder are put back, by which
//! program, or whether the hub runs meanwhile: what the newer file states of the older one no
//! longer holds, or the newer one is gone.
//!
//! The mark is written after each commit and before anybody is sent what was committed, with one
//! call that a kill leaves whole. A hub that is killed before that call leaves a mark that is one
//! commit late, which a log may be ahead of. Only a snapshot of the whole disk brings back log and
//! mark as they were: then the operator removes the mark.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use spreadly_subscriptions::Epoch;

/// More than a file of the mark has, so that a longer one is none.
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

/// What one file of a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    epoch: Epoch,
    /// The newest event of the log.
    seen: u64,
    /// Rises with each writing of either file.
    writing: u64,
    /// As it was then.
    other: Identity,
}

/// What distinguishes a file from its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    inode: u64,
    /// `ctime`, in nanoseconds from 1970.
    changed: i128,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Mark {
    paths: [PathBuf; 2],
    epoch: Epoch,
    /// The newest event that it was written for, or should have been.
    seen: u64,
    writing: u64,
    /// The one to write next is first. None after a write failed: the mark was removed, so that
    /// the next start has a doubt.
    files: Option<[File; 2]>,
}

impl Mark {
    /// Whether the mark of the log at `store` confirms that its newest event is this one.
    pub(super) fn check(store: &Path, epoch: Epoch, newest: u64) -> Result<(), Doubt> {
        let [one, two] = paths(store).map(|path| File::open(path).map_err(|_| Doubt::Missing));
        let [one, two] = [one?, two?];
        let (first, second) = (Written::read(&one)?, Written::read(&two)?);
        let (written, older) =
            if first.writing > second.writing { (first, two) } else { (second, one) };
        if Identity::of(&older).map_err(|_| Doubt::Unreadable)? != written.other {
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
        let mut mark = Self { paths: paths(store), epoch, seen: newest, writing: 0, files: None };
        mark.renew()?;
        Ok(mark)
    }

    /// Makes the mark again where it is missing because a write failed.
    pub(super) fn renew(&mut self) -> io::Result<()> {
        if self.files.is_some() {
            return Ok(());
        }
        let [one, two] = self.paths.each_ref().map(|path| {
            File::options().create(true).truncate(false).read(true).write(true).open(path)
        });
        let mut files = [one?, two?];
        let [first, second] = files.each_ref().map(|file| Written::read(file).ok());
        let writing = |file: Option<Written>| file.map_or(0, |written| written.writing);
        // The newer file stays until the older one has taken its place: a kill leaves one of them.
        if writing(first) > writing(second) {
            files.swap(0, 1);
        }
        self.writing = self.writing.max(writing(first)).max(writing(second));
        for _ in 0..files.len() {
            if files[0].metadata()?.len() != Written::LENGTH as u64 {
                files[0].set_len(Written::LENGTH as u64)?;
            }
            self.write(&mut files)?;
        }
        for file in &files {
            file.sync_all()?;
        }
        self.files = Some(files);
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
        let Some(mut files) = self.files.take() else { return };
        match self.write(&mut files) {
            Ok(()) => self.files = Some(files),
            Err(error) => {
                let mark = &self.paths;
                tracing::warn!(?mark, %error, "the mark of the log can't be written: removed");
                for path in mark {
                    // If that fails too, the mark stays as late as it is.
                    let _removed = fs::remove_file(path);
                }
            }
        }
    }

    /// Writes the first of the files, which is the second then.
    fn write(&mut self, files: &mut [File; 2]) -> io::Result<()> {
        self.writing += 1;
        let Self { epoch, seen, writing, .. } = *self;
        let [next, last] = &*files;
        let text = Written { epoch, seen, writing, other: Identity::of(last)? }.to_string();
        // In place and with one call, so that a kill leaves it whole.
        next.write_all_at(text.as_bytes(), 0)?;
        files.swap(0, 1);
        Ok(())
    }
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let changed = i128::from(metadata.ctime()) * 1_000_000_000;
        Ok(Self { inode: metadata.ino(), changed: changed + i128::from(metadata.ctime_nsec()) })
    }
}

impl Written {
    const LENGTH: usize = 163;

    fn read(file: &File) -> Result<Self, Doubt> {
        let mut bytes = [0; MOST_BYTES];
        let read = file.read_at(&mut bytes, 0).map_err(|_| Doubt::Unreadable)?;
        std::str::from_utf8(&bytes[..read]).ok().and_then(Self::parse).ok_or(Doubt::Unreadable)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut values = text.lines().skip(1).map(|line| line.split_once(' ').map(|(_, one)| one));
        let epoch = u64::from_str_radix(values.next()??, 16).ok().map(Epoch)?;
        let seen = values.next()??.parse().ok()?;
        let writing = values.next()??.parse().ok()?;
        let inode = values.next()??.parse().ok()?;
        let changed = values.next()??.parse().ok()?;
        let written = Self { epoch, seen, writing, other: Identity { inode, changed } };
        // Every byte of it, with its sum.
        (written.to_string() == text).then_some(written)
    }
}

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { epoch: Epoch(epoch), seen, writing, other: Identity { inode, changed } } = self;
        let text = format!(
            "spreadly mark 1\nepoch {epoch:016x}\nseen {seen:020}\nwriting {writing:020}\n\
             inode {inode:020}\nchanged {changed:020}\n"
        );
        writeln!(f, "{text}sum {:08x}", crc32fast::hash(text.as_bytes()))
    }
}

fn paths(store: &Path) -> [PathBuf; 2] {
    [".mark-1", ".mark-2"].map(|ending| {
        let mut path = store.as_os_str().to_owned();
        path.push(ending);
        path.into()
    })
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

    /// Waits until the system dates a change of a file later than those of before: its clock for
    /// files ticks every few milliseconds.
    pub(in crate::store) fn after_a_tick(folder: &Path) {
        let path = folder.join("clock");
        let changed = || {
            fs::write(&path, "").unwrap();
            Identity::of(&File::open(&path).unwrap()).unwrap().changed
        };
        let before = changed();
        while changed() == before {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_mark_confirms_its_log_at_its_event_or_a_later_one() {
        let (_folder, store) = folder();
        assert_eq!(Mark::check(&store, EPOCH, 0), Err(Doubt::Missing));
        let mut mark = Mark::begin(&store, EPOCH, 5).unwrap();
        for path in paths(&store) {
            assert_eq!(fs::metadata(path).unwrap().len(), Written::LENGTH as u64);
        }
        assert_eq!(Mark::check(&store, EPOCH, 5), Ok(()));
        for seen in 6..9 {
            mark.move_to(seen);
            assert_eq!(Mark::check(&store, EPOCH, seen), Ok(()));
            assert_eq!(Mark::check(&store, EPOCH, 9), Ok(()), "a kill between commit and mark");
            let ahead = Doubt::Ahead { seen, newest: seen - 1 };
            assert_eq!(Mark::check(&store, EPOCH, seen - 1), Err(ahead));
        }
        assert_eq!(Mark::check(&store, Epoch(8), 8), Err(Doubt::OtherLog));
    }

    #[test]
    fn a_mark_is_taken_over_whatever_was_there() {
        let (_folder, store) = folder();
        for before in ["", "nonsense", &"x".repeat(1_000)] {
            for path in paths(&store) {
                drop(Mark::begin(&store, EPOCH, 8).unwrap());
                fs::write(path, before).unwrap();
                assert_eq!(Mark::check(&store, EPOCH, 9), Err(Doubt::Unreadable));
                drop(Mark::begin(&store, EPOCH, 9).unwrap());
                assert_eq!(Mark::check(&store, EPOCH, 9), Ok(()));
            }
        }
        for path in paths(&store) {
            let mut damaged = fs::read(&path).unwrap();
            damaged[40] ^= 1;
            fs::write(&path, damaged).unwrap();
            assert_eq!(Mark::check(&store, EPOCH, 9), Err(Doubt::Unreadable));
            drop(Mark::begin(&store, EPOCH, 9).unwrap());
        }
        for path in paths(&store) {
            fs::remove_file(&path).unwrap();
            assert_eq!(Mark::check(&store, EPOCH, 9), Err(Doubt::Missing));
            drop(Mark::begin(&store, EPOCH, 9).unwrap());
        }
    }

    /// However late the writer is scheduled: between two calls to the system it can be stopped for
    /// as long as it likes, or for ever.
    #[test]
    fn a_kill_before_any_write_of_a_mark_leaves_one_that_confirms_its_log() {
        let (folder, store) = folder();
        let mut mark = Mark::begin(&store, EPOCH, 1).unwrap();
        for seen in 2..6 {
            after_a_tick(folder.path());
            assert_eq!(Mark::check(&store, EPOCH, seen), Ok(()), "killed before it wrote");
            mark.move_to(seen);
            assert_eq!(Mark::check(&store, EPOCH, seen), Ok(()), "killed after it wrote");
        }
        // A start that takes it over writes both files: here it is killed before the second.
        drop(mark);
        for seen in 6..9 {
            after_a_tick(folder.path());
            let mut mark = Mark::begin(&store, EPOCH, seen).unwrap();
            let mut files = mark.files.take().unwrap();
            mark.write(&mut files).unwrap();
            assert_eq!(Mark::check(&store, EPOCH, seen), Ok(()));
        }
    }

    #[test]
    fn a_copy_of_a_mark_is_not_the_mark_however_it_is_put_back() {
        // Which of its files are put back, and whether into the files that are there.
        for (which, in_place) in
            [(0..2, true), (0..2, false), (0..1, true), (0..1, false), (1..2, true), (1..2, false)]
        {
            for writings in 1..4 {
                let (folder, store) = folder();
                let mut mark = Mark::begin(&store, EPOCH, 1).unwrap();
                let kept = folder.path().join("kept");
                fs::create_dir(&kept).unwrap();
                let copy = |path: &Path| kept.join(path.file_name().unwrap());
                for path in paths(&store) {
                    fs::copy(&path, copy(&path)).unwrap();
                }
                for seen in 2..2 + writings {
                    mark.move_to(seen);
                }
                drop(mark);
                after_a_tick(folder.path());
                for path in &paths(&store)[which.clone()] {
                    let modified = fs::metadata(path).unwrap().modified().unwrap();
                    if in_place {
                        fs::write(path, fs::read(copy(path)).unwrap()).unwrap();
                    } else {
                        fs::rename(copy(path), path).unwrap();
                    }
                    // Also where a program sets the times that it may set.
                    let times = fs::FileTimes::new().set_modified(modified).set_accessed(modified);
                    File::options().write(true).open(path).unwrap().set_times(times).unwrap();
                }
                // Event 1 is what the copy has seen.
                let what = format!("{which:?}, in place {in_place}, {writings} writings later");
                assert_eq!(Mark::check(&store, EPOCH, 1), Err(Doubt::Copied), "{what}");
            }
        }
    }

    #[test]
    fn a_mark_that_can_not_be_written_is_removed_until_it_can() {
        let (_folder, store) = folder();
        let mut mark = Mark::begin(&store, EPOCH, 1).unwrap();
        // A file that was opened for reading alone takes no write.
        mark.files.as_mut().unwrap()[0] = File::open(&paths(&store)[0]).unwrap();
        mark.move_to(2);
        assert_eq!(Mark::check(&store, EPOCH, 2), Err(Doubt::Missing));
        mark.move_to(3);
        assert_eq!(Mark::check(&store, EPOCH, 3), Err(Doubt::Missing));
        mark.renew().unwrap();
        mark.move_to(4);
        assert_eq!(Mark::check(&store, EPOCH, 4), Ok(()));
    }
}
