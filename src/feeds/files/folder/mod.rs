//! The watched folder: which of its files continue which streams, and whose turn it is. Blocking;
//! the feed runs it beside the async threads.

mod read;
mod scan;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::doorbell::Ring;
use super::markets::{IsDefined, Markets};
use super::stream::{Stream, identity};
use crate::descriptors;
use crate::ingest::handle::Incoming;
use crate::ingest::summary::summary;
use crate::store::{FileProgress, Fingerprint};

/// Most files followed, drained and removed ones included: some 50 MB of memory.
pub(super) const MOST_STREAMS: usize = 100_000;
/// A file changed this recently may change again without its times telling (they are as coarse as
/// the kernel's tick, 4 to 10 ms): it is looked into at every scan.
const RACY: Duration = Duration::from_millis(100);

pub(super) const ENDING: &str = ".ndjson";

type FileId = (u64, u64);
/// Size and times: unchanged means unread content can't have appeared.
type Seen = (u64, (i64, i64), (i64, i64));

struct Followed {
    stream: Stream,
    /// Its file is in the folder.
    alive: bool,
    file: Option<File>,
    /// Its key in [`Folder::opened`].
    opened: u64,
    seen: Option<Seen>,
    size: u64,
    queued: bool,
    quiet_scans: u8,
    /// Markets for whose definition it waited in vain: their lines do not wait again.
    in_vain: Vec<Box<str>>,
}

/// A stream whose next line waits for the definition of its market.
struct Waiting {
    market: Box<str>,
    since: Instant,
}

/// How long a line waits for the definition of its market, which may be in another file or come by
/// another feed. Then it is refused.
const DEFINITION_WAIT: Duration = Duration::from_secs(10);

/// Markets for whose definitions a file waits in vain, before it waits for none.
pub(super) const MOST_IN_VAIN: usize = 8;

/// After so long the topics of the file are STALE: nothing of it is read meanwhile.
const LATE: Duration = Duration::from_secs(1);

/// What a batch is made of.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) lines: Vec<Incoming>,
    pub(super) progress: Vec<FileProgress>,
}

pub(super) struct Folder {
    path: PathBuf,
    feed: Box<str>,
    streams: BTreeMap<u64, Followed>,
    by_file: HashMap<FileId, u64>,
    /// The newest stream of each name.
    by_name: HashMap<Box<str>, u64>,
    next_stream: u64,
    /// Streams that have something to read, each once. First come, first served, a chunk each.
    due: VecDeque<u64>,
    /// Streams whose progress is not in the log yet.
    moved: BTreeSet<u64>,
    forgotten: Vec<FileProgress>,
    /// Open files by when they were last used.
    opened: BTreeMap<u64, u64>,
    uses: u64,
    /// Files that can't be read, with the reason.
    pub(super) faults: BTreeMap<Arc<str>, String>,
    /// Streams whose last line has no newline yet, and how often the folder was compared since.
    unended: BTreeMap<u64, u32>,
    markets: Markets,
    waiting: BTreeMap<u64, Waiting>,
    /// [`DEFINITION_WAIT`]; other times in tests.
    pub(super) patience: Duration,
    /// See [`LATE`].
    pub(super) late_after: Duration,
    /// What is left alone, with the reason.
    ignored: BTreeMap<String, &'static str>,
    buffer: Vec<u8>,
    needs_scan: bool,
    /// Something could not be opened for want of a file descriptor. It is no fault of the folder,
    /// and the next scan tries again.
    pub(super) out_of_descriptors: bool,
}

/// How often the folder is compared before a last line without a newline is reported: its writer
/// may be in the middle of it.
const UNENDED_SCANS: u32 = 2;

struct Entry {
    name: Box<str>,
    metadata: Metadata,
}

impl Folder {
    /// Goes on from what the log says was read.
    pub(super) fn new(
        path: &Path,
        feed: &str,
        progress: Vec<FileProgress>,
        is_defined: IsDefined,
    ) -> Self {
        let mut folder = Self {
            path: path.to_owned(),
            feed: feed.into(),
            streams: BTreeMap::new(),
            by_file: HashMap::new(),
            by_name: HashMap::new(),
            next_stream: 1,
            due: VecDeque::new(),
            moved: BTreeSet::new(),
            forgotten: Vec::new(),
            opened: BTreeMap::new(),
            uses: 0,
            faults: BTreeMap::new(),
            unended: BTreeMap::new(),
            markets: Markets::new(is_defined),
            waiting: BTreeMap::new(),
            patience: DEFINITION_WAIT,
            late_after: LATE,
            ignored: BTreeMap::new(),
            buffer: Vec::new(),
            needs_scan: true,
            out_of_descriptors: false,
        };
        for one in progress {
            folder.follow(one, false);
        }
        folder
    }

    /// Follows a ring of the bell: the named files, or all. `Err` is about the folder itself.
    pub(super) fn look(&mut self, ring: Ring) -> io::Result<()> {
        match ring {
            Ring::Scan => self.needs_scan = true,
            Ring::Names(names) => {
                self.touch_all(&names);
            }
        }
        if self.needs_scan
            && let Err(error) = self.scan()
        {
            if !descriptors::are_exhausted(&error) {
                return Err(error);
            }
            self.out_of_descriptors = true;
        }
        Ok(())
    }

    /// Looks at the named files alone; whether that is enough, and the folder need not be compared.
    pub(super) fn touch_all(&mut self, names: &HashSet<OsString>) -> bool {
        for name in names {
            self.touch(name);
        }
        !self.needs_scan
    }

    /// Whether [`Self::turn`] or another look has something to do now.
    pub(super) fn is_busy(&self) -> bool {
        !self.due.is_empty() || self.needs_scan || !self.moved.is_empty()
    }

    /// Whether there is more to read, or to report about the folder.
    pub(super) fn has_news(&self) -> bool {
        self.is_busy() || self.out_of_descriptors || !self.faults.is_empty()
    }

    pub(super) fn want_scan(&mut self) {
        self.needs_scan = true;
    }

    /// Bytes that wait to be read, of whole files' sizes when they were last looked at.
    pub(super) fn unread_bytes(&self) -> u64 {
        let unread = |id| {
            let followed: &Followed = self.streams.get(id)?;
            Some(followed.size.saturating_sub(followed.stream.progress.offset))
        };
        let waiting = self.waiting.keys().filter(|id| !self.due.contains(id));
        self.due.iter().chain(waiting).filter_map(unread).sum()
    }

    /// What is left alone on purpose, or waits for its writer, if anything.
    pub(super) fn note(&self) -> Option<String> {
        let ignored =
            self.ignored.iter().map(|(name, reason)| format!("{name} is ignored: {reason}"));
        let unended = self.unended.iter().filter(|(_, scans)| **scans >= UNENDED_SCANS);
        let waiting = self.waiting(|since| since < self.late_after);
        let count = self.ignored.len() + waiting.clone().count() + unended.clone().count();
        let waiting = waiting.map(|(name, reason)| format!("{name}: {reason}"));
        let unended = unended.filter_map(|(id, _)| {
            let Followed { stream, size, .. } = self.streams.get(id)?;
            let bytes = size.saturating_sub(stream.progress.offset);
            let name = &stream.progress.name;
            Some(format!("{name}: the last {bytes} bytes have no newline, so they wait for one"))
        });
        summary(ignored.chain(waiting).chain(unended), count)
    }

    /// The files that wait for long, and why.
    pub(super) fn late(&self) -> BTreeMap<Arc<str>, String> {
        self.waiting(|since| since >= self.late_after).collect()
    }

    /// The files that wait for a definition, by how long they do.
    fn waiting(
        &self,
        is_meant: impl Fn(Duration) -> bool + Clone,
    ) -> impl Iterator<Item = (Arc<str>, String)> + Clone {
        let meant = move |(_, own): &(&u64, &Waiting)| is_meant(own.since.elapsed());
        self.waiting.iter().filter(meant).filter_map(|(id, Waiting { market, .. })| {
            let name = self.streams.get(id)?.stream.progress.name.clone();
            Some((name.into(), format!("waits for the definition of market {market}")))
        })
    }

    /// One named file, without a look at all the others. Whatever is not plainly "the file we know
    /// has grown" or "a new file" is left to a scan.
    fn touch(&mut self, name: &OsStr) {
        let Some(name) = name.to_str() else {
            self.needs_scan |= is_ours(name);
            return;
        };
        let named = self.by_name.get(name).copied();
        let ours = name.ends_with(ENDING);
        let Ok(metadata) = fs::symlink_metadata(self.path.join(name)) else {
            // Gone, maybe under another name.
            self.needs_scan |= named.is_some();
            return;
        };
        if !metadata.is_file() {
            self.needs_scan |= ours || named.is_some();
            return;
        }
        match (named, self.by_file.get(&identity(&metadata)).copied()) {
            (Some(named), Some(known)) if named == known && self.streams[&named].alive => {
                self.seen(known, &metadata);
                self.queue(known);
            }
            (None, None) if ours => self.begin(name, &metadata),
            (None, None) => {}
            _ => self.needs_scan = true,
        }
    }

    fn begin(&mut self, name: &str, metadata: &Metadata) {
        if self.streams.len() >= MOST_STREAMS {
            self.faults
                .insert(name.into(), format!("more than {MOST_STREAMS} files: move old ones"));
            return;
        }
        let (device, inode) = identity(metadata);
        let id = self.follow(
            FileProgress {
                feed: self.feed.clone(),
                stream: self.next_stream,
                name: name.into(),
                device,
                inode,
                offset: 0,
                line: 0,
                head: Fingerprint::default(),
                tail: Fingerprint::default(),
                forgotten: false,
            },
            true,
        );
        self.seen(id, metadata);
        self.queue(id);
    }

    fn follow(&mut self, progress: FileProgress, alive: bool) -> u64 {
        let id = progress.stream;
        self.next_stream = self.next_stream.max(id + 1);
        self.by_file.insert((progress.device, progress.inode), id);
        self.by_name.insert(progress.name.clone(), id);
        let followed = Followed {
            stream: Stream::new(progress),
            alive,
            file: None,
            opened: 0,
            seen: None,
            size: 0,
            queued: false,
            quiet_scans: 0,
            in_vain: Vec::new(),
        };
        self.streams.insert(id, followed);
        id
    }

    fn forget(&mut self, id: u64) {
        self.close(id);
        self.moved.remove(&id);
        self.unended.remove(&id);
        self.waiting.remove(&id);
        let Some(followed) = self.streams.remove(&id) else { return };
        let progress = followed.stream.progress;
        let file = (progress.device, progress.inode);
        if self.by_file.get(&file) == Some(&id) {
            self.by_file.remove(&file);
        }
        if self.by_name.get(&progress.name) == Some(&id) {
            self.by_name.remove(&progress.name);
        }
        self.forgotten.push(FileProgress { forgotten: true, ..progress });
    }

    fn rename(&mut self, id: u64, name: &str) {
        let Some(followed) = self.streams.get_mut(&id) else { return };
        let old = std::mem::replace(&mut followed.stream.progress.name, name.into());
        followed.stream.rename(name);
        if self.by_name.get(&old) == Some(&id) {
            self.by_name.remove(&old);
        }
        self.by_name.insert(name.into(), id);
        self.moved.insert(id);
    }

    /// Puts a stream on another file.
    fn rebind(&mut self, id: u64, file: FileId) {
        let Some(followed) = self.streams.get_mut(&id) else { return };
        let old = (followed.stream.progress.device, followed.stream.progress.inode);
        followed.stream.bind(file);
        if self.by_file.get(&old) == Some(&id) {
            self.by_file.remove(&old);
        }
        self.by_file.insert(file, id);
        self.moved.insert(id);
    }

    fn change(&mut self, id: u64, change: impl FnOnce(&mut Followed)) {
        if let Some(followed) = self.streams.get_mut(&id) {
            change(followed);
        }
    }

    fn seen(&mut self, id: u64, metadata: &Metadata) {
        let settled = metadata
            .modified()
            .is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age > RACY));
        self.change(id, |followed| {
            followed.seen = settled.then(|| stamp(metadata));
            followed.size = metadata.len();
        });
    }

    fn queue(&mut self, id: u64) {
        if let Some(followed) = self.streams.get_mut(&id).filter(|followed| !followed.queued) {
            followed.queued = true;
            self.due.push_back(id);
        }
    }

    /// A stream goes on in an entry's file.
    fn go_on(&mut self, id: u64, file: File, metadata: &Metadata) {
        self.change(id, |followed| followed.alive = true);
        if let Some(followed) = self.streams.get(&id) {
            self.by_name.insert(followed.stream.progress.name.clone(), id);
        }
        self.hold(id, file);
        self.seen(id, metadata);
        self.queue(id);
    }

    /// A file that was renamed, removed or replaced since it was looked at is no fault: the next
    /// look, at once, finds out. Any other error is reported until a scan reads the file again.
    fn fail(&mut self, id: u64, name: &str, error: &io::Error) {
        self.change(id, |followed| followed.seen = None);
        if error.kind() == io::ErrorKind::NotFound {
            self.needs_scan = true;
            return;
        }
        if descriptors::are_exhausted(error) {
            self.out_of_descriptors = true;
            return;
        }
        self.faults.insert(name.into(), format!("can't be read ({error})"));
    }
}

#[cfg(test)]
impl Folder {
    pub(super) fn buffer_bytes(&self) -> usize {
        self.buffer.capacity()
    }
}

fn stamp(metadata: &Metadata) -> Seen {
    (
        metadata.len(),
        (metadata.mtime(), metadata.mtime_nsec()),
        (metadata.ctime(), metadata.ctime_nsec()),
    )
}

/// A name that would be ours if it were UTF-8.
fn is_ours(name: &OsStr) -> bool {
    name.as_encoded_bytes().ends_with(ENDING.as_bytes())
}
