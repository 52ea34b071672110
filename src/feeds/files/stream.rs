//! One stream of lines: a file, wherever it was renamed to, from the last line that is in the log.
//! Which file continues which stream is decided here by content; who is asked, in
//! [`super::folder`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::markets::Waits;
use crate::ingest::handle::Incoming;
use crate::ingest::place::{At, Place};
use crate::market::event::{MOST_LINE_BYTES, begins_epochs};
use crate::market::refusal::Refusal;
use crate::store::{FileProgress, Fingerprint};

/// Read at a time: large enough that a 10 GB file costs few calls, small enough that others get
/// their turn within a millisecond.
pub(super) const CHUNK_BYTES: usize = 256 * 1024;
/// Remembered of a file's beginning, and of the bytes before the offset.
const FINGERPRINT_BYTES: u64 = 256;

const _: () = assert!(CHUNK_BYTES < MOST_LINE_BYTES, "a line that outgrows a chunk is read again");

pub(super) struct Stream {
    pub(super) progress: FileProgress,
    /// Shown with each line; the name, shared.
    source: Arc<str>,
    /// The offset up to which the end of an overlong line was searched for. It is no progress:
    /// after a crash the search starts at the line's beginning again.
    skipped_to: Option<u64>,
}

/// Lines on their way into one batch.
#[derive(Default)]
pub(super) struct Lines {
    pub(super) all: Vec<Incoming>,
    /// Nothing more may come along, as the next line, or the last one, comes by itself.
    pub(super) closed: bool,
}

impl Lines {
    /// Whether a line may come along.
    fn admits(&mut self, line: &[u8]) -> bool {
        let alone = begins_epochs(line);
        let admitted = !self.closed && (self.all.is_empty() || !alone);
        self.closed |= alone;
        admitted
    }
}

/// What one read brought.
#[derive(Debug)]
pub(super) enum Read {
    Lines {
        /// There is more to read at once.
        more: bool,
        /// The next line waits for the definition of this market.
        waits_for: Option<Box<str>>,
    },
    /// The file holds something else than what was read of it before.
    Another,
}

/// What became of a window.
struct Split {
    /// Bytes that were taken.
    taken: usize,
    /// Every whole line was.
    ended: bool,
    waits_for: Option<Box<str>>,
}

impl Stream {
    pub(super) fn new(progress: FileProgress) -> Self {
        Self { source: (*progress.name).into(), progress, skipped_to: None }
    }

    pub(super) fn rename(&mut self, name: &str) {
        self.progress.name = name.into();
        self.source = name.into();
    }

    pub(super) fn bind(&mut self, (device, inode): (u64, u64)) {
        (self.progress.device, self.progress.inode) = (device, inode);
    }

    /// From the first byte again, as a file with new content.
    pub(super) fn restart(&mut self) {
        self.progress.offset = 0;
        self.progress.line = 0;
        self.progress.head = Fingerprint::default();
        self.progress.tail = Fingerprint::default();
        self.skipped_to = None;
    }

    /// Whether a file begins with what this stream has read: then it goes on in it.
    pub(super) fn continues_in(&self, file: &File) -> io::Result<bool> {
        let FileProgress { offset, head, tail, .. } = &self.progress;
        if file.metadata()?.len() < *offset {
            return Ok(false);
        }
        let mut bytes = [0; FINGERPRINT_BYTES as usize];
        for (print, from) in [(head, 0), (tail, offset.saturating_sub(u64::from(tail.bytes)))] {
            let wanted = print.bytes as usize;
            if wanted == 0 {
                continue;
            }
            let Some(bytes) = bytes.get_mut(..wanted) else { return Ok(false) };
            let got = read_at(file, bytes, from, u64::MAX)?;
            if got < wanted || !is_print_of(print, bytes) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The same as [`Self::continues_in`], of bytes up to the offset that begin at `start`. Only a
    /// beginning that is not among them is read.
    fn continues_after(&self, file: &File, start: u64, before: &[u8]) -> io::Result<bool> {
        let FileProgress { head, tail, .. } = &self.progress;
        let Some(last) = before.len().checked_sub(tail.bytes as usize) else { return Ok(false) };
        if !is_print_of(tail, &before[last..]) {
            return Ok(false);
        }
        let mut bytes = [0; FINGERPRINT_BYTES as usize];
        let Some(bytes) = bytes.get_mut(..head.bytes as usize) else { return Ok(false) };
        let first = match before.get(..bytes.len()).filter(|_| start == 0) {
            Some(first) => first,
            None if read_at(file, bytes, 0, u64::MAX)? < bytes.len() => return Ok(false),
            None => bytes,
        };
        Ok(is_print_of(head, first))
    }

    /// Takes at most `room` lines, not all of them if they don't fit into one chunk. The buffer is
    /// the caller's, as one serves all streams. `size` is the file's when it was last looked at.
    /// Lines that are appended later are found by the next look. With `waits`, a line waits for the
    /// definition of its market.
    pub(super) fn read(
        &mut self,
        file: &File,
        size: u64,
        buffer: &mut Vec<u8>,
        (room, waits): (usize, Option<Waits<'_>>),
        lines: &mut Lines,
    ) -> io::Result<Read> {
        if let Some(from) = self.skipped_to {
            if !self.continues_in(file)? {
                return Ok(Read::Another);
            }
            return self.skip(file, buffer, from, lines);
        }
        // Also the bytes before the offset: the new fingerprints are of bytes that were read
        // in one go with the lines.
        let start = self.progress.offset.saturating_sub(FINGERPRINT_BYTES);
        let before = usize::try_from(self.progress.offset - start).map_err(io::Error::other)?;
        let mut want = CHUNK_BYTES;
        let got = loop {
            buffer.resize(before + want, 0);
            let got = read_at(file, buffer, start, size)?;
            let Some(got) = got.checked_sub(before) else { return Ok(Read::Another) };
            if !self.continues_after(file, start, &buffer[..before])? {
                return Ok(Read::Another);
            }
            let window = &buffer[before..before + got];
            if window.contains(&b'\n') {
                break got;
            }
            if got < want {
                // A line without its end waits for it.
                return Ok(Read::Lines { more: false, waits_for: None });
            }
            if want > MOST_LINE_BYTES {
                self.skipped_to = Some(self.progress.offset + got as u64);
                return Ok(Read::Lines { more: true, waits_for: None });
            }
            want = MOST_LINE_BYTES + 1;
        };
        let window = &buffer[before..before + got];
        let Split { taken, ended, waits_for } = self.split(window, room, waits, lines);
        self.advance(start, &buffer[..before + taken]);
        let more = waits_for.is_none() && (!ended || got == want);
        Ok(Read::Lines { more, waits_for })
    }

    /// Cuts a window into lines.
    fn split(
        &mut self,
        window: &[u8],
        room: usize,
        mut waits: Option<Waits<'_>>,
        lines: &mut Lines,
    ) -> Split {
        let mut taken = 0;
        let mut left = room;
        for line in window.split_inclusive(|byte| *byte == b'\n') {
            let Some(text) = line.strip_suffix(b"\n") else { break };
            let blank = text.iter().all(u8::is_ascii_whitespace);
            if left == 0 {
                return Split { taken, ended: false, waits_for: None };
            }
            if let Some(Waits { markets, in_vain }) = &mut waits
                && let Err(market) = markets.admit(text)
                && !in_vain.contains(&market)
            {
                return Split { taken, ended: false, waits_for: Some(market) };
            }
            if !(blank || lines.admits(text)) {
                return Split { taken, ended: false, waits_for: None };
            }
            self.progress.line += 1;
            if !blank {
                let place = self.place(self.progress.offset + taken as u64);
                lines.all.push(Incoming { place, line: Ok(text.to_vec()), numbered: None });
                left -= 1;
            }
            taken += line.len();
        }
        Split { taken, ended: true, waits_for: None }
    }

    /// Looks for the end of a line that is too long.
    fn skip(
        &mut self,
        file: &File,
        buffer: &mut Vec<u8>,
        from: u64,
        lines: &mut Lines,
    ) -> io::Result<Read> {
        // The line is longer than a fingerprint, so the bytes before are of the line.
        let start = from - FINGERPRINT_BYTES;
        let before = FINGERPRINT_BYTES as usize;
        buffer.resize(before + CHUNK_BYTES, 0);
        let got = read_at(file, buffer, start, u64::MAX)?.saturating_sub(before);
        let Some(end) = buffer[before..before + got].iter().position(|byte| *byte == b'\n') else {
            self.skipped_to = Some(from + got as u64);
            return Ok(Read::Lines { more: got == CHUNK_BYTES, waits_for: None });
        };
        let mut head = [0; FINGERPRINT_BYTES as usize];
        if read_at(file, &mut head, 0, u64::MAX)? < head.len() {
            return Ok(Read::Another);
        }
        self.progress.line += 1;
        let place = self.place(self.progress.offset);
        lines.all.push(Incoming { place, line: Err(Refusal::TooLong), numbered: None });
        self.skipped_to = None;
        self.progress.head = fingerprint(&head);
        self.advance(start, &buffer[..before + end + 1]);
        Ok(Read::Lines { more: true, waits_for: None })
    }

    /// Puts the offset after a window of whole lines that begins at `start`.
    fn advance(&mut self, start: u64, window: &[u8]) {
        if start == 0 {
            self.progress.head =
                fingerprint(&window[..window.len().min(FINGERPRINT_BYTES as usize)]);
        }
        let tail = window.len().saturating_sub(FINGERPRINT_BYTES as usize);
        self.progress.tail = fingerprint(&window[tail..]);
        self.progress.offset = start + window.len() as u64;
    }

    fn place(&self, byte: u64) -> Place {
        let at = At::Line { number: self.progress.line, byte };
        Place { source: Arc::clone(&self.source), at }
    }
}

/// Opens what is a regular file and nothing else: opening a FIFO never waits for its writer, and
/// a symlink is not followed, also if it came between a look at the folder and now.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file"));
    }
    Ok(file)
}

/// Whether a file is at least as long as another and begins alike.
pub(super) fn contains(file: &File, other: &File) -> io::Result<bool> {
    let (mut one, mut two) = ([0; FINGERPRINT_BYTES as usize], [0; FINGERPRINT_BYTES as usize]);
    let wanted = read_at(other, &mut one, 0, u64::MAX)?;
    let got = read_at(file, &mut two, 0, u64::MAX)?.min(wanted);
    Ok(got == wanted
        && one[..wanted] == two[..wanted]
        && file.metadata()?.len() >= other.metadata()?.len())
}

pub(super) fn identity(of: &impl MetadataExt) -> (u64, u64) {
    (of.dev(), of.ino())
}

/// Reads until the buffer is full or the file ends. A read that is short and reaches `size` has met
/// the end: to ask once more costs as much as the read.
fn read_at(file: &File, buffer: &mut [u8], from: u64, size: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], from + done as u64) {
            Ok(0) => break,
            Ok(got) => {
                done += got;
                if from + done as u64 >= size {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Of no bytes it is a print of anything.
fn is_print_of(print: &Fingerprint, bytes: &[u8]) -> bool {
    print.bytes == 0 || fingerprint(bytes) == *print
}

fn fingerprint(bytes: &[u8]) -> Fingerprint {
    // FNV-1a: stable over builds, as the store contains it.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // Never more than FINGERPRINT_BYTES.
    Fingerprint { bytes: bytes.len() as u32, hash }
}
