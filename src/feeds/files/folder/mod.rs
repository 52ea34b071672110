//! The watched folder: which of its files continue which streams, and whose turn it is. Blocking;
//! the feed runs it beside the async threads.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::doorbell::Ring;
use super::stream::{CHUNK_BYTES, Lines, Read, Stream, contains, identity, open};
use crate::descriptors;
use crate::ingest::handle::Incoming;
use crate::store::{FileProgress, Fingerprint};

/// Most files followed, drained and removed ones included: some 50 MB of memory.
pub(super) const MOST_STREAMS: usize = 100_000;
/// Most streams remembered whose file is gone, in case it comes back: a backup put back in place,
/// a folder mounted late.
const MOST_GONE: usize = 10_000;
/// Files kept open, so that what is appended to a file after it was moved out of the folder or
/// removed still gets in. A quarter of the usual limit of a process.
const MOST_OPEN: usize = 256;
/// Lines of one batch. With `BATCH_BYTES` this bounds what the feed holds in memory.
const BATCH_LINES: usize = 1_024;
const BATCH_BYTES: usize = 1024 * 1024;
/// A file changed this recently may change again without its times telling (they are as coarse as
/// the kernel's tick, 4 to 10 ms): it is looked into at every scan.
const RACY: Duration = Duration::from_millis(100);
/// How many scans a removed file is kept open for its writer's last words, once drained.
const LAST_WORDS_SCANS: u8 = 2;
/// Names in a reason; the rest is a number.
const MOST_NAMED: usize = 3;

const ENDING: &str = ".ndjson";
const ANOTHER_NAME: &str = "it is another name of a file that is read";

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
}

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
    pub(super) faults: BTreeMap<Box<str>, String>,
    /// What is left alone, with the reason.
    ignored: BTreeMap<String, &'static str>,
    buffer: Vec<u8>,
    needs_scan: bool,
    /// Something could not be opened for want of a file descriptor. It is no fault of the folder,
    /// and the next scan tries again.
    pub(super) out_of_descriptors: bool,
}

struct Entry {
    name: Box<str>,
    metadata: Metadata,
}

impl Folder {
    /// Goes on from what the log says was read.
    pub(super) fn new(path: &Path, feed: &str, progress: Vec<FileProgress>) -> Self {
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
        self.due.iter().filter_map(unread).sum()
    }

    /// Why not all of the folder gets in, if so.
    pub(super) fn fault(&self) -> Option<String> {
        let all = self.faults.iter().map(|(name, reason)| format!("{name}: {reason}"));
        summary(all, self.faults.len())
    }

    /// What is left alone on purpose, if anything.
    pub(super) fn note(&self) -> Option<String> {
        let all = self.ignored.iter().map(|(name, reason)| format!("{name} is ignored: {reason}"));
        summary(all, self.ignored.len())
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

    /// Compares the whole folder with what is known.
    fn scan(&mut self) -> io::Result<()> {
        let entries = self.list()?;
        self.needs_scan = false;
        self.out_of_descriptors = false;
        self.faults.clear();
        for followed in self.streams.values_mut() {
            followed.alive = false;
        }
        // First the files we know, under whatever name: only then a name that now has another file
        // is known to have been left by its own.
        let mut unknown = Vec::new();
        for entry in entries {
            if !self.find(&entry) && entry.name.ends_with(ENDING) {
                unknown.push(entry);
            }
        }
        for entry in unknown {
            self.take_over(&entry);
        }
        self.tend_gone();
        Ok(())
    }

    /// Regular files of the folder, by name, as far as they may matter.
    fn list(&mut self) -> io::Result<Vec<Entry>> {
        let mut ignored = BTreeMap::new();
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                if is_ours(&name) {
                    ignored.insert(name.to_string_lossy().into_owned(), "its name is not UTF-8");
                }
                continue;
            };
            let ours = name.ends_with(ENDING);
            let metadata = match fs::symlink_metadata(entry.path()) {
                Ok(metadata) => metadata,
                // Removed since: the bell rings for that too.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if metadata.is_file() {
                if ours || self.by_file.contains_key(&identity(&metadata)) {
                    entries.push(Entry { name: name.into(), metadata });
                }
            } else if ours {
                let kind = metadata.file_type();
                let reason = match () {
                    () if kind.is_symlink() => "it is a symlink",
                    () if kind.is_dir() => "it is a folder",
                    () => "it is not a regular file",
                };
                ignored.insert(name.to_owned(), reason);
            }
        }
        entries.sort_unstable_by(|one, next| one.name.cmp(&next.name));
        self.ignored = ignored;
        Ok(entries)
    }

    /// Whether an entry is a file that a stream is bound to; then it is seen to.
    fn find(&mut self, entry: &Entry) -> bool {
        let id = identity(&entry.metadata);
        let Some(known) = self.by_file.get(&id).copied() else { return false };
        let followed = &self.streams[&known];
        if followed.alive {
            self.ignored.insert(entry.name.to_string(), ANOTHER_NAME);
            return true;
        }
        let same_name = followed.stream.progress.name == entry.name;
        let seen = Some(stamp(&entry.metadata));
        if same_name && followed.seen == seen {
            self.change(known, |followed| followed.alive = true);
            return true;
        }
        // The number of a removed file is given to new ones. One that is open can't have been
        // removed for good; otherwise it must hold what was read, and more than nothing.
        if followed.file.is_none() && followed.stream.progress.offset == 0 {
            return false;
        }
        let file = self.open_entry(entry);
        let continues =
            file.and_then(|file| Ok(followed.stream.continues_in(&file)?.then_some(file)));
        match continues {
            Ok(Some(file)) => {
                if !same_name {
                    self.rename(known, &entry.name);
                }
                self.go_on(known, file, &entry.metadata);
                true
            }
            Ok(None) => {
                self.close(known);
                false
            }
            Err(error) => {
                self.change(known, |followed| followed.alive = true);
                self.fail(known, &entry.name, &error);
                true
            }
        }
    }

    /// An entry whose file no stream continues in by its number: an editor's save or a rename over
    /// a file goes on where the name's stream is, if the content does; all else begins.
    fn take_over(&mut self, entry: &Entry) {
        let id = identity(&entry.metadata);
        if self.by_file.get(&id).is_some_and(|known| self.streams[known].alive) {
            self.ignored.insert(entry.name.to_string(), ANOTHER_NAME);
            return;
        }
        let named = self.by_name.get(&entry.name).copied();
        if let Some(left) = named.filter(|named| !self.streams[named].alive) {
            let followed = &self.streams[&left];
            let read = followed.stream.progress.offset > 0;
            let found = self.open_entry(entry).and_then(|file| {
                // What the name's own file holds now is in the new one too, or has to be drained.
                let contained = match &followed.file {
                    Some(old) => contains(&file, old)?,
                    None => false,
                };
                let continues = read && followed.stream.continues_in(&file)?;
                Ok((continues || contained).then_some((file, continues)))
            });
            match found {
                Ok(Some((file, continues))) => {
                    self.close(left);
                    self.rebind(left, id);
                    if !continues {
                        // It had been rewritten before it was replaced.
                        self.change(left, |followed| followed.stream.restart());
                    }
                    self.go_on(left, file, &entry.metadata);
                    return;
                }
                Ok(None) => {}
                Err(error) => {
                    // Not known yet whether it goes on: the name's stream waits for it.
                    self.fail(left, &entry.name, &error);
                    return;
                }
            }
        }
        // Truncated, or rewritten: the same file or name, another stream. The old one's content
        // is gone; but if its file only left the folder, it is drained and may come back.
        // A stream of another name that had this file's number isn't touched: its own file may be
        // the next entry, by name.
        match self.by_file.get(&id).copied() {
            Some(known) if self.streams[&known].stream.progress.name == entry.name => {
                self.change(known, |followed| {
                    followed.stream.restart();
                    followed.alive = true;
                });
                // A later stream of this name may have left with its file.
                self.by_name.insert(entry.name.clone(), known);
                self.moved.insert(known);
                self.seen(known, &entry.metadata);
                self.queue(known);
            }
            _ => self.begin(&entry.name, &entry.metadata),
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
        };
        self.streams.insert(id, followed);
        id
    }

    /// Streams whose file left the folder: what is still open is drained, what is long gone is
    /// forgotten.
    fn tend_gone(&mut self) {
        let gone: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, followed)| !followed.alive)
            .map(|(id, _)| *id)
            .collect();
        for id in &gone {
            let Some(followed) = self.streams.get_mut(id) else { continue };
            let Some(metadata) = followed.file.as_ref().and_then(|file| file.metadata().ok())
            else {
                continue;
            };
            followed.size = metadata.len();
            if followed.size > followed.stream.progress.offset {
                followed.quiet_scans = 0;
                self.queue(*id);
            } else {
                followed.quiet_scans += 1;
                // Kept open longer it would hold its disk space.
                if metadata.nlink() == 0 && followed.quiet_scans >= LAST_WORDS_SCANS {
                    self.close(*id);
                }
            }
        }
        for id in gone.iter().take(gone.len().saturating_sub(MOST_GONE)) {
            self.forget(*id);
        }
    }

    fn forget(&mut self, id: u64) {
        self.close(id);
        self.moved.remove(&id);
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

    /// Opens an entry, if it is still the file that was looked at.
    fn open_entry(&self, entry: &Entry) -> io::Result<File> {
        self.open_as(&entry.name, identity(&entry.metadata))
    }

    fn open_as(&self, name: &str, id: FileId) -> io::Result<File> {
        let file = open(&self.path.join(name))?;
        if identity(&file.metadata()?) != id {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(file)
    }

    /// Keeps a stream's file open, and only the last used ones.
    fn hold(&mut self, id: u64, file: File) {
        self.close(id);
        self.uses += 1;
        let uses = self.uses;
        self.change(id, |followed| (followed.file, followed.opened) = (Some(file), uses));
        self.opened.insert(uses, id);
        if self.opened.len() > MOST_OPEN
            && let Some((_, oldest)) = self.opened.pop_first()
        {
            self.change(oldest, |followed| followed.file = None);
        }
    }

    fn close(&mut self, id: u64) {
        if let Some(followed) = self.streams.get_mut(&id)
            && followed.file.take().is_some()
        {
            self.opened.remove(&followed.opened);
        }
    }

    /// The next batch: a chunk of each file that has something, in the order they came, until it
    /// is full. What it holds counts as read: it must be delivered, or this folder be dropped.
    pub(super) fn turn(&mut self) -> Turn {
        let mut turn = Turn::default();
        let mut lines = Lines::default();
        let (mut bytes, mut reads) = (0, 0);
        while lines.all.len() < BATCH_LINES
            && !lines.closed
            && bytes + CHUNK_BYTES <= BATCH_BYTES
            && reads < BATCH_LINES
        {
            reads += 1;
            let Some(id) = self.due.pop_front() else { break };
            self.change(id, |followed| followed.queued = false);
            bytes += self.read(id, BATCH_LINES - lines.all.len(), &mut lines);
        }
        turn.lines = lines.all;
        turn.progress = std::mem::take(&mut self.forgotten);
        for id in std::mem::take(&mut self.moved) {
            turn.progress.extend(self.streams.get(&id).map(|one| one.stream.progress.clone()));
        }
        turn
    }

    /// A chunk of one stream; says how many bytes it was.
    fn read(&mut self, id: u64, room: usize, lines: &mut Lines) -> usize {
        let Some(followed) = self.streams.get(&id) else { return 0 };
        let progress = &followed.stream.progress;
        let (name, from) = (progress.name.clone(), progress.offset);
        let file = (progress.device, progress.inode);
        let mut buffer = std::mem::take(&mut self.buffer);
        let held = self.streams.get_mut(&id).and_then(|followed| followed.file.take());
        let held = held.map_or_else(|| self.open_as(&name, file), Ok);
        let read = held.and_then(|held| {
            let Some(followed) = self.streams.get_mut(&id) else { return Ok(Read::Another) };
            let read = followed.stream.read(&held, followed.size, &mut buffer, room, lines);
            self.opened.remove(&followed.opened);
            self.hold(id, held);
            read
        });
        // Grown for one long line; others rarely need it.
        buffer.truncate(CHUNK_BYTES * 2);
        buffer.shrink_to(CHUNK_BYTES * 2);
        self.buffer = buffer;
        let mut unended = false;
        match read {
            Ok(Read::Lines { more }) => {
                unended = more;
                if more {
                    self.queue(id);
                }
            }
            Ok(Read::Another) => {
                self.change(id, |followed| {
                    followed.seen = None;
                    if !followed.alive {
                        // Rewritten and then moved away: nothing else will report it.
                        followed.stream.restart();
                    }
                });
                self.needs_scan = true;
            }
            Err(error) => self.fail(id, &name, &error),
        }
        let to = self.streams.get(&id).map_or(from, |followed| followed.stream.progress.offset);
        if to != from {
            self.moved.insert(id);
        } else if unended {
            // Looking for the end of a line that is too long is work too.
            return CHUNK_BYTES;
        }
        usize::try_from(to.saturating_sub(from)).unwrap_or(CHUNK_BYTES)
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

fn summary(all: impl Iterator<Item = String>, count: usize) -> Option<String> {
    let named: Vec<_> = all.take(MOST_NAMED).collect();
    let more = count - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!named.is_empty()).then(|| named.join("; ") + &more)
}
