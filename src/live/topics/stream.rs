//! One response stream that follows some log topics: what it pushes, and how its readers start. All
//! of it runs under the topics' lock, which is what makes joining free of gaps.
//!
//! A ring needs numbers that never fall, but a rollback takes the stream back in the log. So a
//! number of the ring is a base plus the log's sequence, and a rollback raises the base: a number
//! below the base is of a reader that has not gone back yet.

use std::collections::VecDeque;
use std::sync::Arc;

use spreadly_subscriptions::{Epoch, Frame, Position, ResponseStream, Resume};

use super::continuation::{Continuation, Reach};
use crate::live::feed_states::FeedStates;
use crate::live::frame::{
    Encode, FeedState, Item, LiveFrame, LogCursor, LogFrame, SnapshotReason, TopicName, log_topics,
};
use crate::live::pace::QUIET_BEATS;
use crate::live::reader_errors::{bad_cursor, resync_required};
use crate::live::stated_frames::{Stated, StatedFrames};
use crate::live::steps::{Step, most_stated};
use crate::market::epochs::{EpochHistory, MOST_EPOCH_CHANGES, ResumeFrom};
use crate::market::time::Micros;

/// Events of a frame, and fields of all of them unless it has one event. It is encoded under the
/// topics' lock: below a millisecond.
pub(super) const FRAME_EVENTS: usize = 64;
/// Bytes of the stored lines of one frame, unless it has one event. JSON may grow fourfold when it
/// is sent, which is far below the 1 MiB that a single event may have.
pub(super) const FRAME_BYTES: usize = 48 << 10;

/// Pages that are kept for further readers of the same part of the log, at most for a second.
const MOST_PAGES: usize = 4;

/// The moment of a frame.
pub(super) struct At {
    pub(super) states: FeedStates,
    pub(super) now: Micros,
}

/// The epochs of a stream's positions.
pub(super) struct StreamEpochs {
    /// Of its cursors, which are of all of its topics.
    pub(super) together: EpochHistory,
    /// Of each topic, in the order of the names.
    pub(super) topics: Box<[Epoch]>,
}

/// The end of a topic: its last event, and the time of that at its source.
type End = (u64, Option<Micros>);

pub(super) struct TopicStream {
    stream: Arc<ResponseStream>,
    encode: Encode,
    /// Events of a frame at most.
    frame_events: usize,
    names: Arc<[TopicName]>,
    /// The cursor's name of them.
    topics: u64,
    epochs: StreamEpochs,
    /// The last event of any of them, which is the ring's last.
    last: u64,
    /// Of each topic, in the order of the names: what readers were sent.
    states: Box<[FeedState]>,
    /// Bases of the ring's numbers, newest last and never none; each with the first event that its
    /// rollback removed.
    bases: VecDeque<(u64, u64)>,
    /// Of each topic, in the order of the names.
    quiet: Box<[Quiet]>,
    /// Pages of the log by the part that they have.
    pages: VecDeque<(Reach, Vec<Frame>)>,
}

#[derive(Clone, Default)]
struct Quiet {
    beats: u8,
    /// The topic's position, encoded for earlier readers.
    stated: StatedFrames,
}

impl TopicStream {
    pub(super) fn new(
        stream: Arc<ResponseStream>,
        names: Arc<[TopicName]>,
        epochs: StreamEpochs,
        (last, states): (u64, &FeedStates),
        (encode, fields): (Encode, usize),
    ) -> Self {
        let topics = log_topics(&names);
        let quiet = vec![Quiet::default(); names.len()].into_boxed_slice();
        let states = states_of(&names, states);
        Self {
            stream,
            encode,
            frame_events: most_stated(fields).min(FRAME_EVENTS),
            names,
            topics,
            epochs,
            last,
            states,
            bases: VecDeque::from([(0, u64::MAX)]),
            quiet,
            pages: VecDeque::new(),
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

    /// What every frame has in common, with a cursor at `sequence`.
    fn frame(&self, place: usize, sequence: u64, at: &At) -> LogFrame {
        let position = Position { epoch: self.epochs.together.epoch(), sequence };
        LogFrame {
            topic: self.names[place].clone(),
            epoch: self.epochs.topics[place],
            sequence,
            previous: None,
            reason: None,
            cursor: LogCursor { topics: self.topics, position },
            event_time: None,
            publish_time: at.now,
            slowed_to: None,
            state: at.states.of_topic(&self.names[place]),
            items: Vec::new(),
        }
    }

    /// Events of one topic, as a frame after `seen` in the log.
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
    /// the topic's event before it. False if more are left than belong to this step.
    pub(super) fn publish(
        &mut self,
        items: &[(usize, u64, &Item)],
        at: &At,
        step: &mut Step,
    ) -> bool {
        for run in items.chunk_by(|(one, ..), (other, ..)| one == other) {
            for run in frames_of(run, self.frame_events, |(_, _, item)| item.bytes()) {
                let [(place, previous, _), ..] = run else { continue };
                if !step.goes_on() {
                    return false;
                }
                let items: Vec<_> = run.iter().map(|(_, _, item)| (*item).clone()).collect();
                let last = items.last().map_or(self.last, |item| item.sequence);
                let frame = self.items(*place, (self.last, *previous), items, at);
                self.stream.push(frame);
                self.last = last;
                self.quiet[*place] = Quiet::default();
                self.states[*place] = at.states.of_topic(&self.names[*place]);
            }
        }
        true
    }

    /// Leaves out what follows up to this event: readers read that from the log.
    pub(super) fn skip_to(&mut self, last: u64) {
        self.last = last;
        self.forget_positions();
        self.stream.invalidate();
    }

    /// Events of a frame at most.
    pub(super) fn frame_events(&self) -> usize {
        self.frame_events
    }

    /// The last event that was pushed.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The places of topics of which readers were sent another state, or nothing for long.
    pub(super) fn due(&self, at: &At) -> Vec<usize> {
        let is_due = |place: &usize| {
            self.quiet[*place].beats >= QUIET_BEATS
                || self.states[*place] != at.states.of_topic(&self.names[*place])
        };
        (0..self.names.len()).filter(is_due).collect()
    }

    /// Takes the last event of a topic that was forgotten. Before a reader gets anything.
    pub(super) fn recall(&mut self, last: u64) {
        self.last = self.last.max(last);
        self.forget_positions();
    }

    fn forget_positions(&mut self) {
        self.quiet.iter_mut().for_each(|quiet| quiet.stated.clear());
    }

    /// Counts a second without a frame; true when a heartbeat is due.
    pub(super) fn count_beat(&mut self) -> bool {
        self.quiet.iter_mut().for_each(|quiet| quiet.beats = quiet.beats.saturating_add(1));
        self.quiet.iter().any(|quiet| quiet.beats >= QUIET_BEATS)
    }

    /// Pushes a heartbeat of one topic.
    pub(super) fn beat(&mut self, place: usize, end: End, at: &At) {
        self.quiet[place] = Quiet::default();
        self.states[place] = at.states.of_topic(&self.names[place]);
        let frame = self.position(place, Ok(end.0), end, self.last, at);
        self.stream.push(frame);
    }

    /// The position of a topic, without items: after `previous` or for a reason, in a frame that
    /// leaves its reader at `seen`.
    pub(super) fn position(
        &mut self,
        place: usize,
        previous: Result<u64, SnapshotReason>,
        (sequence, event_time): End,
        seen: u64,
        at: &At,
    ) -> Frame {
        let mut own = self.frame(place, seen, at);
        let (previous, reason) = (previous.ok(), previous.err());
        let goes_back = reason.is_some_and(|reason| reason != SnapshotReason::Initial);
        if goes_back && place + 1 < self.names.len() {
            // The frames of the other topics follow. A client that is cut before them gets all of
            // them again: to this cursor's epoch the rollback is still to come.
            own.cursor.position.epoch = self.epochs.together.previous();
        }
        let own = LogFrame { sequence, previous, reason, event_time, ..own };
        let bytes = (self.encode)(LiveFrame::Log(own));
        Frame::new(self.number(seen), self.number(seen), bytes)
    }

    /// Gives the position of each topic, for a reason or as a heartbeat; what is pushed follows.
    ///
    /// A cursor is of the whole stream. For a reader that begins, a topic's frame may be of an
    /// earlier moment than the last event of another topic. It comes before that one's then: a
    /// client that is cut in between continues where the frames that it has were made.
    pub(super) fn state_all(
        &mut self,
        reason: Option<SnapshotReason>,
        end: impl Fn(&TopicName) -> End,
        at: &At,
        step: &mut Step,
    ) -> Option<Continuation> {
        let (names, last) = (self.names.clone(), self.last);
        let mut all = Vec::with_capacity(names.len());
        for (place, name) in names.iter().enumerate() {
            let end = end(name);
            let previous = reason.map_or(Ok(end.0), Err);
            let mut stated = std::mem::take(&mut self.quiet[place].stated);
            if reason != Some(SnapshotReason::Initial) {
                stated.forget_before(reason, last);
            }
            let make = || self.position(place, previous, end, last, at).tail;
            let own = stated.get(reason, last, step, make);
            self.quiet[place].stated = stated;
            all.push(own?);
        }
        all.sort_by_key(|stated| stated.at);
        let number = self.number(last);
        let frame = |Stated { tail, .. }| Frame { previous: number, sequence: number, tail };
        let (frames, next) = (all.into_iter().map(frame).collect(), self.stream.next_index());
        Some(Continuation::Here(Resume::Frames { frames, next }))
    }

    /// Continues after a client's cursor. A client that is up to date gets a heartbeat at once
    /// where the feed is not live.
    pub(super) fn resume(
        &mut self,
        after: &str,
        end: impl Fn(&TopicName) -> End,
        at: &At,
        step: &mut Step,
    ) -> Option<Continuation> {
        let refused = |errors| Some(Continuation::Here(Resume::Refused(errors)));
        let requested = match LogCursor::decode(after, self.topics) {
            Ok(cursor) => cursor.position,
            Err(fault) => return refused(bad_cursor(fault)),
        };
        match self.epochs.together.resume(&requested, self.last) {
            ResumeFrom::After(_) => {}
            ResumeFrom::RolledBack { valid } => return self.back(valid, end, at, step),
            ResumeFrom::Start => {
                return refused(resync_required(requested, self.epochs.together.epoch()));
            }
        }
        let is_live = |name: &TopicName| at.states.of_topic(name) == FeedState::Live;
        if requested.sequence == self.last && !self.names.iter().all(is_live) {
            return self.state_all(None, end, at, step);
        }
        Some(self.continue_after(requested.sequence))
    }

    /// Continues after what a reader saw, by its number in the ring.
    pub(super) fn catch_up(
        &mut self,
        seen: u64,
        end: impl Fn(&TopicName) -> End,
        at: &At,
        step: &mut Step,
    ) -> Option<Continuation> {
        let place = self.bases.partition_point(|(base, _)| *base <= seen);
        let Some((base, _)) = place.checked_sub(1).map(|place| self.bases[place]) else {
            // From before more changes than are remembered.
            return Some(Continuation::Here(Resume::CannotContinue));
        };
        let sequence = seen - base;
        match self.bases.iter().skip(place).map(|(_, undone)| *undone).min() {
            None => Some(self.continue_after(sequence)),
            Some(undone) => self.back(sequence.min(undone - 1), end, at, step),
        }
    }

    /// Why readers of an earlier epoch go back.
    pub(super) fn epoch_reason(&self) -> SnapshotReason {
        SnapshotReason::of_epoch(&self.epochs.together)
    }

    /// Goes back to `after` and continues from there.
    fn back(
        &mut self,
        after: u64,
        end: impl Fn(&TopicName) -> End,
        at: &At,
        step: &mut Step,
    ) -> Option<Continuation> {
        if after < self.last {
            let (until, base) = (self.last, self.base());
            return Some(Continuation::Log(Reach { after, until, back: true, base }));
        }
        self.state_all(Some(self.epoch_reason()), end, at, step)
    }

    /// Continues after `seen`: from the ring, or from the log. The ring of a new stream is empty
    /// and knows no boundary yet, so the last one is asked first.
    fn continue_after(&self, seen: u64) -> Continuation {
        let number = self.number(seen);
        let next = match seen == self.last {
            true => Some(self.stream.next_index()),
            false => self.stream.index_after(number),
        };
        match next {
            Some(next) => Continuation::Here(Resume::Ring { seen: number, next }),
            // The log may hold more already; that was not pushed yet and will be.
            None => {
                let (until, base) = (self.last, self.base());
                Continuation::Log(Reach { after: seen, until, back: false, base })
            }
        }
    }

    /// Takes a rollback. What the ring holds has the earlier numbering, so every reader must ask
    /// where it continues.
    pub(super) fn roll_back(&mut self, epochs: StreamEpochs, last: u64) {
        let before = self.epochs.together.epoch();
        self.epochs = epochs;
        let Some(undone) = self.epochs.together.first_removed_since(before) else {
            // Its epoch did not change.
            return;
        };
        let base = self.number(self.last) + 1;
        self.bases.push_back((base, undone));
        if self.bases.len() > MOST_EPOCH_CHANGES {
            self.bases.pop_front();
        }
        self.last = last;
        self.pages.clear();
        self.forget_positions();
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

    /// Called each second: kept frames have the time when they were published.
    pub(super) fn forget_pages(&mut self) {
        self.pages.clear();
    }
}

/// The state of each of these topics.
fn states_of(names: &[TopicName], states: &FeedStates) -> Box<[FeedState]> {
    names.iter().map(|name| states.of_topic(name)).collect()
}

/// Cuts events of one topic into those of each frame; `bytes` says how long an event's line is.
pub(super) fn frames_of<T>(
    mut events: &[T],
    most: usize,
    bytes: impl Fn(&T) -> usize,
) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |one: &&T| {
            sum += bytes(one);
            sum <= FRAME_BYTES
        };
        let count = events.iter().take(most).take_while(fits).count().max(1);
        let (frame, rest) = events.split_at_checked(count)?;
        events = rest;
        Some(frame)
    })
}
