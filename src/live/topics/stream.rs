//! One response stream that follows some log topics: what it pushes, and how its readers start. All
//! of it runs under the topics' lock, which is what makes joining free of gaps.
//!
//! The ring wants numbers that never fall. When blocks are undone the stream goes back in the log,
//! so its numbers in the ring are the log's sequences behind a base that rises then: a number below
//! the base is of a reader that was not told yet.

use std::collections::VecDeque;
use std::sync::Arc;

use spreadly_subscriptions::{Epoch, Frame, Position, ResponseStream, Resume};

use super::place::{Place, Reach};
use crate::live::frame::{
    Encode, FeedState, Item, LiveFrame, LogCursor, LogFrame, SnapshotReason, TopicName, log_topics,
};
use crate::live::pace::QUIET_BEATS;
use crate::live::refusal::{bad_cursor, resync_required};
use crate::market::epochs::{CursorEpoch, EpochHistory, MOST_EPOCH_CHANGES};
use crate::market::event::Micros;

/// Events of a frame, which is encoded under the topics' lock: below a millisecond.
pub(super) const FRAME_EVENTS: usize = 64;
/// Bytes of their lines, unless it is a single one. Four times as many can be sent of them, with
/// all else that is sent of 64 events far below the 1 MiB that a single one may be.
pub(super) const FRAME_BYTES: usize = 48 << 10;

/// Pages read for an earlier reader that are kept for the crowd behind it, at most for a second.
const MOST_PAGES: usize = 4;

/// The moment of a frame.
pub(super) struct At {
    pub(super) state: FeedState,
    pub(super) now: Micros,
}

/// How a stream's positions are numbered.
pub(super) struct Numbered {
    /// Its cursors, which stand for all of its topics.
    pub(super) together: EpochHistory,
    /// Of each topic, in the order of the names.
    pub(super) epochs: Box<[Epoch]>,
}

/// Where a topic stands: its last event and when that was at its source.
type Stand = (u64, Option<Micros>);

pub(super) struct TopicStream {
    stream: Arc<ResponseStream>,
    encode: Encode,
    names: Arc<[TopicName]>,
    /// The cursor's name of them.
    topics: u64,
    numbered: Numbered,
    /// The last event of any of them: where the ring stands.
    last: u64,
    state: FeedState,
    /// Bases of the ring's numbers, newest last and never none; each with the first event that was
    /// undone when it began.
    bases: VecDeque<(u64, u64)>,
    /// Of each topic, in the order of the names.
    quiet: Box<[Quiet]>,
    /// Pages of the log by what they tell.
    pages: VecDeque<(Reach, Vec<Frame>)>,
    /// What readers are told that were at the end when blocks were undone, or came right after.
    back: Option<Vec<Frame>>,
}

#[derive(Clone, Default)]
struct Quiet {
    beats: u8,
    /// Where the topic stands, encoded for an earlier joiner.
    stated: Option<Frame>,
}

impl TopicStream {
    pub(super) fn new(
        stream: Arc<ResponseStream>,
        names: Arc<[TopicName]>,
        numbered: Numbered,
        (last, state): (u64, FeedState),
        encode: Encode,
    ) -> Self {
        let topics = log_topics(&names);
        let quiet = vec![Quiet::default(); names.len()].into_boxed_slice();
        Self {
            stream,
            encode,
            names,
            topics,
            numbered,
            last,
            state,
            bases: VecDeque::from([(0, u64::MAX)]),
            quiet,
            pages: VecDeque::new(),
            back: None,
        }
    }

    pub(super) fn names(&self) -> &Arc<[TopicName]> {
        &self.names
    }

    /// See the module's text.
    pub(super) fn base(&self) -> u64 {
        self.bases.back().map_or(0, |(base, _)| *base)
    }

    fn number(&self, sequence: u64) -> u64 {
        self.base() + sequence
    }

    /// What every frame has in common, with a cursor behind `sequence`.
    fn frame(&self, place: usize, sequence: u64, at: &At) -> LogFrame {
        let position = Position { epoch: self.numbered.together.epoch(), sequence };
        LogFrame {
            topic: self.names[place].clone(),
            epoch: self.numbered.epochs[place],
            sequence,
            previous: None,
            reason: None,
            cursor: LogCursor { topics: self.topics, position },
            event_time: None,
            publish_time: at.now,
            slowed_to: None,
            state: at.state,
            items: Vec::new(),
        }
    }

    /// Events of one topic, as a frame behind `seen` in the log.
    pub(super) fn items(
        &mut self,
        place: usize,
        (seen, previous): (u64, u64),
        items: Vec<Item>,
        at: &At,
    ) -> Frame {
        let (last, event_time) =
            items.last().map_or((seen, None), |last| (last.sequence, last.time));
        let own = self.frame(place, last, at);
        let own = LogFrame { previous: Some(previous), event_time, items, ..own };
        let bytes = (self.encode)(LiveFrame::Log(own));
        Frame::new(self.number(seen), self.number(last), bytes)
    }

    /// Pushes events that follow the last one, in the log's order, each with its topic's place and
    /// the topic's event before it.
    pub(super) fn publish(&mut self, items: &[(usize, u64, &Item)], at: &At) {
        for run in items.chunk_by(|(one, ..), (other, ..)| one == other) {
            for run in frames_of(run, |(_, _, item)| item.bytes()) {
                let [(place, previous, _), ..] = run else { continue };
                let items: Vec<_> = run.iter().map(|(_, _, item)| (*item).clone()).collect();
                let last = items.last().map_or(self.last, |item| item.sequence);
                let frame = self.items(*place, (self.last, *previous), items, at);
                self.stream.push(frame);
                self.last = last;
                self.quiet[*place].beats = 0;
                // The others have no event since, but their cursor is the whole stream's.
                self.forget_stands();
            }
        }
    }

    /// Leaves out what follows up to this event: readers read that from the log.
    pub(super) fn skip_to(&mut self, last: u64) {
        self.last = last;
        self.forget_stands();
        self.stream.invalidate();
    }

    /// The last event that was pushed.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The feeds' state that readers were sent.
    pub(super) fn state(&self) -> FeedState {
        self.state
    }

    pub(super) fn set_state(&mut self, state: FeedState) {
        self.state = state;
    }

    /// Its topic turned out to stand here. Before anyone was told anything.
    pub(super) fn recall(&mut self, last: u64) {
        self.last = self.last.max(last);
        self.forget_stands();
    }

    fn forget_stands(&mut self) {
        self.quiet.iter_mut().for_each(|quiet| quiet.stated = None);
        self.back = None;
    }

    /// Counts a second in which nothing was said of a topic; true when it was the last to pass.
    pub(super) fn is_quiet(&mut self, place: usize) -> bool {
        self.quiet[place].beats += 1;
        self.quiet[place].beats >= QUIET_BEATS
    }

    /// Pushes a heartbeat of one topic.
    pub(super) fn beat(&mut self, place: usize, stand: Stand, at: &At) {
        self.quiet[place] = Quiet::default();
        let frame = self.standing(place, Ok(stand.0), stand, self.last, at);
        self.stream.push(frame);
    }

    /// Where a topic stands, without items: behind `previous` or for a reason, in a frame that
    /// leaves its reader at `seen`.
    pub(super) fn standing(
        &mut self,
        place: usize,
        previous: Result<u64, SnapshotReason>,
        (sequence, event_time): Stand,
        seen: u64,
        at: &At,
    ) -> Frame {
        let own = self.frame(place, seen, at);
        let (previous, reason) = (previous.ok(), previous.err());
        let own = LogFrame { sequence, previous, reason, event_time, ..own };
        let bytes = (self.encode)(LiveFrame::Log(own));
        Frame::new(self.number(seen), self.number(seen), bytes)
    }

    /// Now: where each topic stands, then what is pushed.
    pub(super) fn begin(&mut self, stands: impl Fn(&TopicName) -> Stand, at: &At) -> Resume {
        let names = self.names.clone();
        let mut frames = Vec::with_capacity(names.len());
        for (place, name) in names.iter().enumerate() {
            if self.quiet[place].stated.is_none() {
                let reason = Err(SnapshotReason::Initial);
                let frame = self.standing(place, reason, stands(name), self.last, at);
                self.quiet[place].stated = Some(frame);
            }
            frames.extend(self.quiet[place].stated.clone());
        }
        Resume::Frames { frames, next: self.stream.next_index() }
    }

    /// Behind a client's cursor. One who is up to date is told at once where the feed is not live.
    pub(super) fn resume(
        &mut self,
        after: &str,
        stands: impl Fn(&TopicName) -> Stand,
        at: &At,
    ) -> Place {
        let requested = match LogCursor::decode(after, self.topics) {
            Ok(cursor) => cursor.position,
            Err(fault) => return Place::Here(Resume::Refused(bad_cursor(fault))),
        };
        match self.numbered.together.cursor_epoch(&requested) {
            CursorEpoch::Current if requested.sequence <= self.last => {}
            CursorEpoch::Superseded { undone } => {
                return self.back(requested.sequence.min(undone - 1), stands, at);
            }
            // A sequence of the same epoch that the log has not reached: the log lost its end.
            CursorEpoch::Current | CursorEpoch::Unknown => {
                let epoch = self.numbered.together.epoch();
                return Place::Here(Resume::Refused(resync_required(requested, epoch)));
            }
        }
        if requested.sequence == self.last && at.state != FeedState::Live {
            let names = self.names.clone();
            let notice = |(place, name)| {
                let stand = stands(name);
                self.standing(place, Ok(stand.0), stand, self.last, at)
            };
            let frames = names.iter().enumerate().map(notice).collect();
            return Place::Here(Resume::Frames { frames, next: self.stream.next_index() });
        }
        self.behind(requested.sequence)
    }

    /// Behind what a reader saw, by its number in the ring.
    pub(super) fn catch_up(
        &mut self,
        seen: u64,
        stands: impl Fn(&TopicName) -> Stand,
        at: &At,
    ) -> Place {
        let place = self.bases.partition_point(|(base, _)| *base <= seen);
        let Some((base, _)) = place.checked_sub(1).map(|place| self.bases[place]) else {
            // From before more changes than are remembered.
            return Place::Here(Resume::TooSlow);
        };
        let sequence = seen - base;
        match self.bases.iter().skip(place).map(|(_, undone)| *undone).min() {
            None => self.behind(sequence),
            Some(undone) => self.back(sequence.min(undone - 1), stands, at),
        }
    }

    /// Why those go back who follow it in an earlier epoch.
    pub(super) fn epoch_reason(&self) -> SnapshotReason {
        SnapshotReason::of_epoch(&self.numbered.together)
    }

    /// Goes back to `after` and on from there.
    fn back(&mut self, after: u64, stands: impl Fn(&TopicName) -> Stand, at: &At) -> Place {
        if after < self.last {
            let (until, base) = (self.last, self.base());
            return Place::Log(Reach { after, until, back: true, base });
        }
        let frames = match self.back.clone() {
            Some(frames) => frames,
            None => {
                let names = self.names.clone();
                let reason = Err(self.epoch_reason());
                let stand =
                    |(place, name)| self.standing(place, reason, stands(name), self.last, at);
                let frames: Vec<_> = names.iter().enumerate().map(stand).collect();
                self.back = Some(frames.clone());
                frames
            }
        };
        Place::Here(Resume::Frames { frames, next: self.stream.next_index() })
    }

    /// Goes on behind `seen`: from the ring, or from the log. The ring of a new stream is empty and
    /// knows no boundary yet, so the last one is asked first.
    fn behind(&self, seen: u64) -> Place {
        let number = self.number(seen);
        let next = match seen == self.last {
            true => Some(self.stream.next_index()),
            false => self.stream.index_after(number),
        };
        match next {
            Some(next) => Place::Here(Resume::Ring { seen: number, next }),
            // The log may hold more already; that was not pushed yet and will be.
            None => {
                let (until, base) = (self.last, self.base());
                Place::Log(Reach { after: seen, until, back: false, base })
            }
        }
    }

    /// Blocks were undone. Whatever stands in the ring is of the earlier numbering, so every reader
    /// is sent to ask where it goes on.
    pub(super) fn roll_back(&mut self, numbered: Numbered, last: u64) {
        let before = self.numbered.together.epoch();
        self.numbered = numbered;
        let undone =
            match self.numbered.together.cursor_epoch(&Position { epoch: before, sequence: 0 }) {
                CursorEpoch::Superseded { undone } => undone,
                // Its epoch did not change.
                CursorEpoch::Current | CursorEpoch::Unknown => return,
            };
        let base = self.number(self.last) + 1;
        self.bases.push_back((base, undone));
        if self.bases.len() > MOST_EPOCH_CHANGES {
            self.bases.pop_front();
        }
        self.last = last;
        self.pages.clear();
        self.forget_stands();
        self.stream.invalidate();
    }

    pub(super) fn page(&self, reach: &Reach) -> Option<Vec<Frame>> {
        // How far it reaches does not matter: its reader asks again.
        let same = |own: &Reach| (own.after, own.back) == (reach.after, reach.back);
        self.pages.iter().find(|(own, _)| same(own)).map(|(_, frames)| frames.clone())
    }

    pub(super) fn keep_page(&mut self, reach: Reach, frames: Vec<Frame>) {
        if self.pages.len() == MOST_PAGES {
            self.pages.pop_front();
        }
        self.pages.push_back((reach, frames));
    }

    /// Called each second, as what is kept says when it was published.
    pub(super) fn forget_pages(&mut self) {
        self.pages.clear();
        self.back = None;
    }
}

/// Cuts events of one topic into those of each frame; `bytes` says how long an event's line is.
pub(super) fn frames_of<T>(
    mut events: &[T],
    bytes: impl Fn(&T) -> usize,
) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |one: &&T| {
            sum += bytes(one);
            sum <= FRAME_BYTES
        };
        let count = events.iter().take(FRAME_EVENTS).take_while(fits).count().max(1);
        let (frame, rest) = events.split_at_checked(count)?;
        events = rest;
        Some(frame)
    })
}
