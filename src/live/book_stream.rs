//! One response stream of a market's book: what it pushes, and how its readers start. All of it
//! runs under the market's lock, which is what makes joining free of gaps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use spreadly_subscriptions::{Cursor, Frame, ResponseStream};

use super::drafts::{Answer, Draft, Drafter, Drafts, Reply, Unmade, Wanted};
use super::frame::{
    BookDelta, BookHead, BookHeartbeat, BookSnapshot, Encode, FeedState, LiveFrame, SnapshotReason,
    Speed, book_topic, is_same, shape,
};
use super::pace::QUIET_BEATS;
use super::reader_errors::bad_cursor;
use crate::market::book::Book;
use crate::market::definition::MarketDefinition;
use crate::market::epochs::{EpochHistory, ResumeFrom};
use crate::market::levels::Side;

/// Frames a joiner may be sent after a cached frame. Each costs the joiner a message, so a
/// longer tail is worth a new encoding.
const MOST_BACKLOG_FRAMES: u64 = 32;

/// Largest snapshot kept for later joiners: the deepest book with all its fields is about half of
/// this. What a document of many aliases blows up further is not worth a stream's memory.
const MOST_CACHED_BYTES: usize = 1 << 20;

/// The market as it is at this moment, for what builds frames of it.
pub(super) struct Now<'a> {
    /// With the depth left at 0: each stream puts its own.
    pub(super) head: BookHead,
    pub(super) book: &'a Book,
    pub(super) epochs: &'a EpochHistory,
    /// Counts the times that the book was replaced as a whole, and why it was the last time.
    pub(super) restated: (u64, SnapshotReason),
    /// Of its feeds; the state of the book is in the head.
    pub(super) feed_state: FeedState,
    pub(super) snapshot_encodings: &'a AtomicU64,
}

impl Now<'_> {
    fn head(&self, depth: usize) -> BookHead {
        BookHead { depth, ..self.head.clone() }
    }

    pub(super) fn snapshot(&self, depth: usize, reason: SnapshotReason) -> BookSnapshot {
        BookSnapshot {
            head: self.head(depth),
            reason,
            bids: self.book.top(Side::Buy, depth),
            asks: self.book.top(Side::Sell, depth),
        }
    }
}

pub(super) struct BookStream {
    stream: Arc<ResponseStream>,
    depth: usize,
    speed: Speed,
    /// Sequence of the last frame in the ring, or of the book when the stream was opened: what the
    /// next frame follows.
    last: u64,
    restated: u64,
    /// The sequence at which the book was replaced, and why, where readers have to ask for it.
    replaced: Option<(u64, SnapshotReason)>,
    state: FeedState,
    feed_state: FeedState,
    /// The definition that readers were sent.
    definition: Arc<MarketDefinition>,
    quiet_beats: u8,
    encode: Encode,
    /// How frames are encoded that take long; `None` where none does.
    long: Option<Drafter>,
    drafts: Drafts,
    /// Encoded for an earlier joiner, one a reason at most.
    snapshots: Vec<(SnapshotReason, Frame)>,
    /// Merged for an earlier reader, from its frame's `previous`.
    merged: Option<Frame>,
    /// The state's notice for joiners while the feed is not live.
    notice: Option<Frame>,
}

impl BookStream {
    pub(super) fn new(
        stream: Arc<ResponseStream>,
        (depth, speed): (usize, Speed),
        now: &Now<'_>,
        encode: Encode,
        long: Option<Drafter>,
    ) -> Self {
        Self {
            stream,
            depth,
            speed,
            last: now.book.sequence(),
            restated: now.restated.0,
            replaced: None,
            state: now.head.state,
            feed_state: now.feed_state,
            definition: now.head.definition.clone(),
            quiet_beats: 0,
            encode,
            long,
            drafts: Drafts::default(),
            snapshots: Vec::new(),
            merged: None,
            notice: None,
        }
    }

    /// Sets how often it pushes.
    pub(super) fn set_speed(&mut self, speed: Speed) {
        self.speed = speed;
    }

    fn push(&mut self, sequence: u64, frame: LiveFrame) -> Frame {
        let frame = Frame::new(self.last, sequence, (self.encode)(frame));
        self.stream.push(frame.clone());
        self.last = sequence;
        self.quiet_beats = 0;
        frame
    }

    /// Pushes what changed in the window since the last frame; nothing if nothing did.
    pub(super) fn advance(&mut self, now: &Now<'_>) {
        let before = self.stream.next_index();
        self.push_changes(now, false);
        let is_pushed = before != self.stream.next_index();
        if self.state != now.head.state {
            // What joiners get says the state too.
            self.snapshots.clear();
            self.count_cached();
            // The frame of a snapshot that ended a gap, or began the book, says it too.
            match is_pushed && self.feed_state == now.feed_state {
                true => self.state = now.head.state,
                false => {
                    self.definition = now.head.definition.clone();
                    return self.announce(now);
                }
            }
        }
        let is_new = !is_same(&self.definition, &now.head.definition);
        self.definition = now.head.definition.clone();
        if is_new && !is_pushed {
            self.announce(now);
        }
    }

    /// Brings the ring to the book's sequence, whether or not the window changed, so that a frame
    /// made of the book now fits before the ring's next one.
    fn flush(&mut self, now: &Now<'_>) {
        self.push_changes(now, true);
    }

    fn push_changes(&mut self, now: &Now<'_>, even_if_empty: bool) {
        let sequence = now.book.sequence();
        if self.restated != now.restated.0 {
            self.restate(now, now.restated.1);
            return;
        }
        if sequence == self.last {
            return;
        }
        if self.is_left_to_pool(now, Wanted::After { seen: self.last, resumes: false }) {
            self.leave_to_readers(sequence);
            return;
        }
        match now.book.changes_since(self.last, self.depth) {
            Some(changes) if changes.is_empty() && !even_if_empty => {}
            Some(changes) => {
                let delta = BookDelta::new(now.head(self.depth), self.last, changes);
                self.push(sequence, LiveFrame::Delta(delta));
            }
            // More was touched since the last push than the journal holds.
            None => self.restate(now, SnapshotReason::Lagged),
        }
    }

    /// Whether the pool makes this frame, as that takes long.
    fn is_left_to_pool(&self, now: &Now<'_>, wanted: Wanted) -> bool {
        self.long.as_ref().is_some_and(|drafter| self.is_long(now, wanted, drafter.most_levels))
    }

    /// Leaves out what follows up to this event. Each reader asks for it, and all of them share
    /// what the pool makes.
    fn leave_to_readers(&mut self, sequence: u64) {
        self.last = sequence;
        self.quiet_beats = 0;
        self.stream.invalidate();
    }

    /// Pushes the whole window, and forgets what was encoded before for those that join later.
    fn restate(&mut self, now: &Now<'_>, reason: SnapshotReason) {
        self.restated = now.restated.0;
        self.snapshots.clear();
        self.drafts.clear();
        (self.merged, self.notice) = (None, None);
        self.count_cached();
        let sequence = now.book.sequence();
        // A reader that is at this sequence already would not ask for it.
        if sequence > self.last && self.is_left_to_pool(now, Wanted::Snapshot(reason)) {
            self.replaced = Some((sequence, reason));
            self.leave_to_readers(sequence);
            return;
        }
        self.replaced = None;
        now.snapshot_encodings.fetch_add(1, Ordering::Relaxed);
        self.push(sequence, LiveFrame::Snapshot(now.snapshot(self.depth, reason)));
    }

    /// Called each second.
    pub(super) fn beat(&mut self, now: &Now<'_>) {
        self.quiet_beats += 1;
        if self.quiet_beats < QUIET_BEATS {
            return;
        }
        // What joiners get says when it was published: it is no older than a heartbeat.
        self.snapshots.clear();
        self.count_cached();
        if now.book.sequence() == self.last {
            self.announce(now);
        } else {
            self.flush(now);
        }
    }

    /// Pushes a heartbeat, which says the feed's state, at once.
    fn announce(&mut self, now: &Now<'_>) {
        self.flush(now);
        (self.state, self.feed_state) = (now.head.state, now.feed_state);
        let beat = BookHeartbeat { head: now.head(self.depth) };
        let frame = self.push(self.last, LiveFrame::Heartbeat(beat));
        self.notice = (now.feed_state != FeedState::Live).then_some(frame);
    }

    pub(super) fn join(&mut self, now: &Now<'_>, after: Option<&str>) -> Answer {
        self.restate_if_due(now);
        let snapshot = |reason| Wanted::Snapshot(reason);
        let Some(after) = after else { return self.answer(now, snapshot(SnapshotReason::Initial)) };
        let decoded = Cursor::decode(after).and_then(|cursor| {
            cursor.only(book_topic(&now.head.definition.market)).map(|at| (cursor.shape, at))
        });
        let (depth, position) = match decoded {
            Ok(decoded) => decoded,
            Err(fault) => return Answer::Now(Reply::Refused(bad_cursor(fault))),
        };
        let wanted = match now.epochs.resume(&position, now.book.sequence()) {
            ResumeFrom::RolledBack { .. } => snapshot(SnapshotReason::of_epoch(now.epochs)),
            ResumeFrom::Start => snapshot(SnapshotReason::EpochChange),
            ResumeFrom::After(_) if depth != shape(self.depth) => {
                snapshot(SnapshotReason::ResumeTooOld)
            }
            ResumeFrom::After(seen) => Wanted::After { seen, resumes: true },
        };
        self.answer(now, wanted)
    }

    pub(super) fn catch_up(&mut self, now: &Now<'_>, seen: u64) -> Answer {
        self.restate_if_due(now);
        self.answer(now, Wanted::After { seen, resumes: false })
    }

    /// What the ring holds of before the book was replaced is not resumed from.
    fn restate_if_due(&mut self, now: &Now<'_>) {
        if self.restated != now.restated.0 {
            self.restate(now, now.restated.1);
        }
    }

    fn answer(&mut self, now: &Now<'_>, wanted: Wanted) -> Answer {
        let wanted = self.settle(now, wanted);
        if let Some(reply) = self.known(now, wanted) {
            return Answer::Now(reply);
        }
        if let Some(drafter) = &self.long
            && self.is_left_to_pool(now, wanted)
        {
            let make = || (drafter.make)(Arc::downgrade(&self.stream), wanted);
            return self.drafts.share(wanted, make);
        }
        Answer::Now(match self.draft(now, wanted) {
            Err(reply) => reply,
            Ok(Draft { frame, wanted, previous, sequence, restated, next, notice }) => {
                let frame = Frame::new(previous, sequence, (self.encode)(frame.make()));
                self.keep(wanted, restated, &frame);
                Reply::Frames { frames: std::iter::once(frame).chain(notice).collect(), next }
            }
        })
    }

    /// The changes since `seen` where the journal reaches back to it; else a snapshot.
    fn settle(&self, now: &Now<'_>, wanted: Wanted) -> Wanted {
        match wanted {
            Wanted::After { seen, resumes }
                if self.next_after(seen).is_none() && !now.book.has_sequence(seen) =>
            {
                Wanted::Snapshot(match self.replaced {
                    _ if resumes => SnapshotReason::ResumeTooOld,
                    Some((replaced, reason)) if seen < replaced => reason,
                    _ => SnapshotReason::of_lag(seen, now.epochs),
                })
            }
            wanted => wanted,
        }
    }

    /// Whether the frame has more levels than these, estimated without making it.
    fn is_long(&self, now: &Now<'_>, wanted: Wanted, most: usize) -> bool {
        match wanted {
            Wanted::After { seen, .. } => now.book.is_touched_more(seen, most),
            Wanted::Snapshot(_) => now.book.len_within(self.depth) > most,
        }
    }

    /// What needs no new frame: the ring, or a frame that was encoded for an earlier reader.
    fn known(&mut self, now: &Now<'_>, wanted: Wanted) -> Option<Reply> {
        let frame = match wanted {
            Wanted::After { seen, .. } => {
                if let Some(next) = self.next_after(seen) {
                    return Some(Reply::Ring { seen, next });
                }
                self.merged.as_ref().filter(|frame| frame.previous == seen)
            }
            Wanted::Snapshot(reason) => {
                self.snapshots.iter().find(|(why, _)| *why == reason).map(|(_, frame)| frame)
            }
        };
        let frame = frame?.clone();
        let next = self.reusable(&frame)?;
        let notice = match wanted {
            Wanted::Snapshot(_) => self.notice(now, frame.sequence),
            Wanted::After { .. } => None,
        };
        Some(Reply::Frames { frames: std::iter::once(frame).chain(notice).collect(), next })
    }

    /// The frame that a reader wants, or what it is given without one. What follows the frame in
    /// the ring follows it for its reader.
    pub(super) fn draft(&mut self, now: &Now<'_>, wanted: Wanted) -> Result<Draft, Reply> {
        self.restate_if_due(now);
        let wanted = self.settle(now, wanted);
        if let Some(reply) = self.known(now, wanted) {
            return Err(reply);
        }
        let since = match wanted {
            Wanted::After { seen, .. } => now.book.since(seen),
            Wanted::Snapshot(_) => None,
        };
        self.flush(now);
        let slowed_to = self.stream.slowed_to().map(Speed::from);
        let (previous, frame, notice) = match (wanted, since) {
            (Wanted::After { seen, .. }, _) if seen == self.last => {
                return Err(Reply::Ring { seen, next: self.stream.next_index() });
            }
            (Wanted::After { seen: previous, .. }, Some(since)) => {
                let head = BookHead { slowed_to, ..now.head(self.depth) };
                (previous, Unmade::Delta { head, previous, since }, None)
            }
            (Wanted::After { .. }, None) => return Err(Reply::CannotContinue),
            (Wanted::Snapshot(reason), _) => {
                now.snapshot_encodings.fetch_add(1, Ordering::Relaxed);
                let mut snapshot = now.snapshot(self.depth, reason);
                snapshot.head.slowed_to = slowed_to;
                (self.last, Unmade::Snapshot(snapshot), self.notice(now, self.last))
            }
        };
        let (sequence, restated, next) = (self.last, self.restated, self.stream.next_index());
        Ok(Draft { frame, wanted, previous, sequence, restated, next, notice })
    }

    /// Keeps a frame for later readers.
    pub(super) fn keep(&mut self, wanted: Wanted, restated: u64, frame: &Frame) {
        if restated != self.restated {
            return;
        }
        let may_keep = self.stream.may_cache();
        match wanted {
            Wanted::After { .. } => self.merged = may_keep.then(|| frame.clone()),
            Wanted::Snapshot(reason) => {
                self.snapshots.retain(|(why, _)| *why != reason);
                if may_keep && frame.tail.len() <= MOST_CACHED_BYTES {
                    self.snapshots.push((reason, frame.clone()));
                }
            }
        }
        self.count_cached();
    }

    /// The heartbeat for a joiner while the feed is not live, so that it need not wait for the
    /// next.
    fn notice(&mut self, now: &Now<'_>, sequence: u64) -> Option<Frame> {
        // The ring follows an older cached snapshot, with the next heartbeat in it.
        if now.feed_state == FeedState::Live || sequence != now.book.sequence() {
            return None;
        }
        if let Some(frame) = self.notice.as_ref().filter(|frame| frame.sequence == sequence) {
            return Some(frame.clone());
        }
        let beat = BookHeartbeat { head: now.head(self.depth) };
        let frame = Frame::new(sequence, sequence, (self.encode)(LiveFrame::Heartbeat(beat)));
        self.notice = Some(frame.clone());
        Some(frame)
    }

    /// Counts the frames that are kept for later readers.
    fn count_cached(&self) {
        let kept = self.snapshots.iter().map(|(_, frame)| frame).chain(&self.merged);
        self.stream.set_cached(kept.map(|frame| frame.tail.len()).sum());
    }

    /// Where in the ring a reader at `sequence` continues. The ring of a new stream is empty and
    /// knows no boundary yet, so the last one is asked first.
    fn next_after(&self, sequence: u64) -> Option<u64> {
        match sequence == self.last {
            true => Some(self.stream.next_index()),
            false => self.stream.index_after(sequence),
        }
    }

    /// Where a reader continues after a frame that was encoded earlier; `None` if what follows it
    /// in the ring would cost the reader more than a new one.
    fn reusable(&self, frame: &Frame) -> Option<u64> {
        let next = self.next_after(frame.sequence)?;
        let backlog = self.stream.next_index() - next;
        let bytes = self.stream.backlog_bytes(next)?;
        (backlog <= MOST_BACKLOG_FRAMES && bytes < frame.tail.len()).then_some(next)
    }
}
