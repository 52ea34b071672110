//! Compares the whole folder with the streams that are known: which file continues which stream.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use super::{ENDING, Entry, Folder, is_ours, stamp};
use crate::feeds::files::stream::{contains, identity};

/// Most streams remembered whose file is gone, in case it comes back: a backup put back in place,
/// a folder mounted late.
const MOST_GONE: usize = 10_000;
/// How many scans a removed file is kept open for its writer's last words, once drained.
const LAST_WORDS_SCANS: u8 = 2;
const ANOTHER_NAME: &str = "it is another name of a file that is read";

impl Folder {
    /// Compares the whole folder with what is known.
    pub(super) fn scan(&mut self) -> io::Result<()> {
        let entries = self.list()?;
        self.needs_scan = false;
        self.out_of_descriptors = false;
        self.faults.clear();
        self.unended.values_mut().for_each(|scans| *scans += 1);
        self.release();
        self.give_up();
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
}
