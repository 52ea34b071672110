//! The frames of one stream that a fan-out hands to readers now, and in which order these are
//! served.

use crate::limits::FRAMES_PER_WRITE;
use crate::ring::Frame;
use crate::stream::ResponseStream;

/// When a fan-out writes to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    First,
    /// After all sockets of the first rank, even if these get later events. For sockets of an
    /// address that has many, so that others don't wait until each of these is written to.
    Last,
}

/// Frames of a ring, from index `start` on.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) start: u64,
    pub(crate) frames: Vec<Frame>,
    /// Index in the ring up to which every reader that isn't waiting was served, or is now.
    pub(crate) next: u64,
    /// The ring no longer holds what the readers need next: each asks its source.
    pub(crate) overrun: bool,
}

impl Batch {
    pub(crate) fn starting_at(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    /// Takes new frames out of a stream's ring; false if there are none.
    pub(crate) fn read(&mut self, stream: &ResponseStream) -> bool {
        debug_assert!(!self.is_under_way(), "a batch ends before the next one");
        self.start = self.next;
        if stream.read(self.next, FRAMES_PER_WRITE, &mut self.frames) {
            self.next += self.frames.len() as u64;
        } else {
            // The thread was suspended while more was pushed than the ring holds.
            self.next = stream.next_index();
            self.overrun = true;
        }
        self.is_under_way()
    }

    /// It was read and has not ended.
    pub(crate) fn is_under_way(&self) -> bool {
        self.overrun || !self.frames.is_empty()
    }

    /// Drops the frames, and returns how many there were.
    pub(crate) fn end(&mut self) -> usize {
        self.overrun = false;
        self.frames.drain(..).count()
    }

    /// The frames that a reader at index `next` was not sent yet.
    pub(crate) fn unsent(&self, next: u64) -> &[Frame] {
        let skip = usize::try_from(next - self.start.min(next)).unwrap_or(usize::MAX);
        self.frames.get(skip..).unwrap_or_default()
    }
}
