//! Reads the files whose turn it is, and keeps the last used ones open.

use std::fs::File;
use std::io;
use std::time::Instant;

use super::{Entry, FileId, Folder, MOST_IN_VAIN, Turn, Waiting};
use crate::feeds::files::markets::Waits;
use crate::feeds::files::stream::{CHUNK_BYTES, Lines, Read, identity, open};

/// Files kept open, so that what is appended to a file after it was moved out of the folder or
/// removed still gets in. A quarter of the usual limit of a process.
const MOST_OPEN: usize = 256;
/// Lines of one batch. With `BATCH_BYTES` this bounds what the feed holds in memory.
const BATCH_LINES: usize = 1_024;
const BATCH_BYTES: usize = 1024 * 1024;

impl Folder {
    /// Opens an entry, if it is still the file that was looked at.
    pub(super) fn open_entry(&self, entry: &Entry) -> io::Result<File> {
        self.open_as(&entry.name, identity(&entry.metadata))
    }

    pub(super) fn open_as(&self, name: &str, id: FileId) -> io::Result<File> {
        let file = open(&self.path.join(name))?;
        if identity(&file.metadata()?) != id {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(file)
    }

    /// Keeps a stream's file open, and only the last used ones.
    pub(super) fn hold(&mut self, id: u64, file: File) {
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

    pub(super) fn close(&mut self, id: u64) {
        if let Some(followed) = self.streams.get_mut(&id)
            && followed.file.take().is_some()
        {
            self.opened.remove(&followed.opened);
        }
    }

    /// The next batch: a chunk of each file that has something, in the order they came, until it
    /// is full. What it holds counts as read: it must be delivered, or this folder be dropped.
    pub(in super::super) fn turn(&mut self) -> Turn {
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
        if self.markets.take_news() {
            self.release();
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
            let (markets, in_vain) = (&mut self.markets, &followed.in_vain[..]);
            let waits = (in_vain.len() < MOST_IN_VAIN).then_some(Waits { markets, in_vain });
            let (size, limits) = (followed.size, (room, waits));
            let read = followed.stream.read(&held, size, &mut buffer, limits, lines);
            self.opened.remove(&followed.opened);
            self.hold(id, held);
            read
        });
        // Grown for one long line; others rarely need it.
        buffer.truncate(CHUNK_BYTES * 2);
        buffer.shrink_to(CHUNK_BYTES * 2);
        self.buffer = buffer;
        let mut unended = false;
        let mut waits = false;
        match read {
            Ok(Read::Lines { more, waits_for }) => {
                unended = more;
                if more {
                    self.queue(id);
                }
                waits = self.wait_for(id, waits_for);
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
        let (to, size) = self
            .streams
            .get(&id)
            .map_or((from, from), |followed| (followed.stream.progress.offset, followed.size));
        if unended || waits || to >= size {
            self.unended.remove(&id);
        } else {
            self.unended.entry(id).or_default();
        }
        if to != from {
            self.moved.insert(id);
        } else if unended {
            // Looking for the end of a line that is too long is work too.
            return CHUNK_BYTES;
        }
        usize::try_from(to.saturating_sub(from)).unwrap_or(CHUNK_BYTES)
    }

    /// Lets a stream wait for the definition of a market, or wait no longer. Whether it waits.
    fn wait_for(&mut self, id: u64, market: Option<Box<str>>) -> bool {
        let Some(market) = market else {
            self.waiting.remove(&id);
            return false;
        };
        let since = self.waiting.remove(&id).map_or_else(Instant::now, |before| before.since);
        self.waiting.insert(id, Waiting { market, since });
        true
    }

    /// Reads on in the streams whose market is defined by now.
    pub(super) fn release(&mut self) {
        let Self { waiting, markets, .. } = self;
        let ready: Vec<u64> = waiting
            .iter()
            .filter(|(_, one)| markets.knows(&one.market))
            .map(|(id, _)| *id)
            .collect();
        for id in ready {
            self.waiting.remove(&id);
            self.queue(id);
        }
    }

    /// Reads on in the streams that waited for too long: their lines are refused, unless their
    /// market is defined in the last moment.
    pub(super) fn give_up(&mut self) {
        let patience = self.patience;
        let late = |one: &Waiting| one.since.elapsed() >= patience;
        let given_up: Vec<u64> =
            self.waiting.iter().filter(|(_, one)| late(one)).map(|(id, _)| *id).collect();
        for id in given_up {
            if let Some(Waiting { market, .. }) = self.waiting.remove(&id) {
                self.change(id, |followed| followed.in_vain.push(market));
            }
            self.queue(id);
        }
    }
}
