//! The last frames of one response stream, encoded once and bounded by bytes. A reader is an index
//! into the ring, so a reader that stalls costs a number.

use std::collections::VecDeque;

use bytes::Bytes;

/// One encoded result, shared by all readers.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The sequence a reader must have seen before this frame; equal to `sequence` where the frame
    /// carries no event (a heartbeat).
    pub previous: u64,
    /// The sequence a reader has seen after this frame.
    pub sequence: u64,
    /// The GraphQL result, `{"data":…}`, followed by the brace that closes the `next` message, so
    /// that a connection only has to write its own prefix before it.
    pub tail: Bytes,
}

impl Frame {
    /// Takes an encoded result, `{"data":…}`, and closes the message around it.
    pub fn new(previous: u64, sequence: u64, mut result: Vec<u8>) -> Self {
        result.push(b'}');
        Self { previous, sequence, tail: Bytes::from(result) }
    }

    /// The result without that brace, shared.
    pub fn result(&self) -> Bytes {
        self.tail.slice(..self.tail.len() - 1)
    }
}

/// What a frame costs beside its bytes: its own fields and the allocation's header.
const FRAME_OVERHEAD_BYTES: usize = size_of::<Frame>() + 16;

/// A ring that is shrunk keeps as much, so that a reader which lags a little is still served.
pub(crate) const LEAST_RING_BYTES: usize = 8 << 10;

/// Frames `first..next`, in the order they were pushed.
#[derive(Debug)]
pub(crate) struct Ring {
    frames: VecDeque<Frame>,
    /// Index of the oldest frame still held.
    first: u64,
    bytes: usize,
    most_bytes: usize,
}

impl Ring {
    pub(crate) fn new(most_bytes: usize) -> Self {
        Self { frames: VecDeque::new(), first: 0, bytes: 0, most_bytes }
    }

    /// Index that the next frame will get.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// Bytes of the frames, with their overhead.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sets how many bytes it may hold; drops the oldest frames beyond that.
    pub(crate) fn limit(&mut self, most_bytes: usize) {
        self.most_bytes = most_bytes;
        self.trim();
        self.frames.shrink_to(self.frames.len() * 2);
    }

    /// As [`Ring::limit`], but the newest frame stays only if it is within the limit, too.
    pub(crate) fn shrink(&mut self, most_bytes: usize) {
        self.limit(most_bytes);
        if self.bytes > most_bytes {
            self.first = self.next();
            self.frames = VecDeque::new();
            self.bytes = 0;
        }
    }

    /// Appends a frame; drops the oldest ones if there are too many bytes. The newest one stays,
    /// however large it is.
    pub(crate) fn push(&mut self, frame: Frame) {
        self.bytes += frame.tail.len() + FRAME_OVERHEAD_BYTES;
        self.frames.push_back(frame);
        self.trim();
    }

    fn trim(&mut self) {
        while self.bytes > self.most_bytes && self.frames.len() > 1 {
            if let Some(old) = self.frames.pop_front() {
                self.bytes -= old.tail.len() + FRAME_OVERHEAD_BYTES;
                self.first += 1;
            }
        }
    }

    /// Drops every frame, and skips one index, so that every reader finds frames missing.
    pub(crate) fn invalidate(&mut self) {
        self.first = self.next() + 1;
        self.frames.clear();
        self.bytes = 0;
    }

    /// The frames from `index` on, at most `most`; `None` if some of them were already dropped.
    pub(crate) fn from(&self, index: u64, most: usize) -> Option<impl Iterator<Item = &Frame>> {
        let skip = usize::try_from(index.checked_sub(self.first)?).ok()?;
        Some(self.frames.iter().skip(skip).take(most))
    }

    /// The index at which a reader goes on that has seen everything up to `sequence`: the frame
    /// there, if any, has `sequence` as its previous one.
    pub(crate) fn index_after(&self, sequence: u64) -> Option<u64> {
        let offset = self.frames.partition_point(|frame| frame.sequence <= sequence);
        let fits = match self.frames.get(offset) {
            Some(following) => following.previous == sequence,
            None => self.frames.back().is_some_and(|last| last.sequence == sequence),
        };
        fits.then_some(self.first + offset as u64)
    }

    /// Bytes of the frames from `index` on; `None` if some of them were already dropped.
    pub(crate) fn bytes_from(&self, index: u64) -> Option<usize> {
        Some(self.from(index, usize::MAX)?.map(|one| one.tail.len()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(previous: u64, sequence: u64) -> Frame {
        Frame::new(previous, sequence, vec![b'x'; 99])
    }

    #[test]
    fn a_reader_goes_on_after_the_sequence_it_has_seen() {
        let mut ring = Ring::new(1 << 20);
        for (previous, sequence) in [(2, 5), (5, 5), (5, 9), (9, 12)] {
            ring.push(frame(previous, sequence));
        }
        assert_eq!(ring.index_after(2), Some(0));
        assert_eq!(ring.index_after(5), Some(2), "the heartbeat at 5 is not sent again");
        assert_eq!(ring.index_after(9), Some(3));
        assert_eq!(ring.index_after(12), Some(4));
        for unknown in [0, 1, 3, 7, 13] {
            assert_eq!(ring.index_after(unknown), None, "{unknown} is no boundary here");
        }
    }

    #[test]
    fn after_an_invalidation_every_reader_finds_frames_missing() {
        let mut ring = Ring::new(1 << 20);
        ring.push(frame(0, 1));
        let next = ring.next();
        ring.invalidate();
        assert!(ring.from(next, 1).is_none(), "also for a reader that had read all");
        assert_eq!((ring.index_after(1), ring.next(), ring.bytes), (None, next + 1, 0));
        ring.push(frame(1, 2));
        assert_eq!(ring.from(next + 1, 9).map(Iterator::count), Some(1));
    }

    #[test]
    fn the_oldest_frames_leave_by_bytes_and_the_newest_stays() {
        let mut ring = Ring::new(3 * (100 + FRAME_OVERHEAD_BYTES));
        for sequence in 1..=10 {
            ring.push(frame(sequence - 1, sequence));
        }
        assert_eq!((ring.first, ring.next()), (7, 10));
        assert!(ring.from(6, 1).is_none());
        assert_eq!(
            ring.from(7, 9).map(|some| some.map(|one| one.sequence).collect()),
            Some(vec![8, 9, 10])
        );
        ring.push(Frame::new(10, 11, vec![b'x'; 10_000]));
        assert_eq!((ring.first, ring.next()), (10, 11));
        assert_eq!(ring.bytes_from(10), Some(10_001));
        ring.limit(10_000);
        assert_eq!(ring.bytes_from(10), Some(10_001));
        ring.shrink(10_001 + FRAME_OVERHEAD_BYTES);
        assert_eq!(ring.bytes_from(10), Some(10_001));
        ring.shrink(10_000);
        assert_eq!((ring.bytes_from(10), ring.bytes, ring.next()), (None, 0, 11));
        assert_eq!(ring.bytes_from(11), Some(0), "a reader that has read it goes on");
    }
}
