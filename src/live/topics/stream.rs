//! One response stream that follows some log topics: what it pushes, and how its readers start. All
//! of it runs under the topics' lock, which is what makes joining free of gaps.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use spreadly_subscriptions::{Epoch, Frame, Position, ResponseStream, Start};

use super::{Place, TopicName, frame};
use crate::live::book_stream::{QUIET_BEATS, bad_cursor};
use crate::live::frame::{Encode, FeedState, Item, LiveFrame, LogCursor, LogFrame, log_topics};
use crate::market::event::Micros;

/// Pages read for an earlier reader that are kept for the crowd behind it, at most for a second.
const MOST_PAGES: usize = 4;

/// The moment of a frame.
pub(super) struct At {
    pub(super) epoch: Epoch,
    pub(super) state: FeedState,
    pub(super) now: Micros,
}

pub(super) struct TopicStream {
    stream: Arc<ResponseStream>,
    encode: Encode,
    names: Arc<[TopicName]>,
    /// The cursor's name of them.
    topics: u64,
    /// The last event of any of them: where the ring stands.
    last: u64,
    /// Of each topic, in the order of the names.
    quiet: Box<[Quiet]>,
    /// Pages of the log by the sequence they follow.
    pages: VecDeque<(u64, Vec<Frame>)>,
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
        last: u64,
        encode: Encode,
    ) -> Self {
        let topics = log_topics(&names);
        let quiet = vec![Quiet::default(); names.len()].into_boxed_slice();
        Self { stream, encode, names, topics, last, quiet, pages: VecDeque::new() }
    }

    pub(super) fn names(&self) -> &Arc<[TopicName]> {
        &self.names
    }

    fn place(&self, name: &TopicName) -> Option<usize> {
        self.names.binary_search(name).ok()
    }

    fn cursor(&self, sequence: u64, at: &At) -> LogCursor {
        LogCursor { topics: self.topics, position: Position { epoch: at.epoch, sequence } }
    }

    /// Events of one topic as the bytes of a result.
    pub(super) fn encode_items(
        &mut self,
        name: &TopicName,
        previous: Option<u64>,
        items: Vec<Item>,
        at: &At,
    ) -> Vec<u8> {
        let Some(last) = items.last() else { return Vec::new() };
        let own = frame(name, at, self.cursor(last.sequence, at));
        let own = LogFrame { previous, event_time: last.time, items, ..own };
        (self.encode)(LiveFrame::Log(own))
    }

    pub(super) fn publish(
        &mut self,
        name: &TopicName,
        previous: Option<u64>,
        item: &Item,
        at: &At,
    ) {
        let bytes = self.encode_items(name, previous, vec![item.clone()], at);
        self.stream.push(Frame::new(self.last, item.sequence, bytes));
        self.last = item.sequence;
        if let Some(place) = self.place(name) {
            self.quiet[place].beats = 0;
        }
        // The others stand where they stood, but their cursor stands for the whole stream.
        self.quiet.iter_mut().for_each(|quiet| quiet.stated = None);
    }

    /// Counts a second in which nothing was said of a topic; true when it was the last to pass.
    pub(super) fn is_quiet(&mut self, place: usize) -> bool {
        self.quiet[place].beats += 1;
        self.quiet[place].beats >= QUIET_BEATS
    }

    /// Pushes a heartbeat of one topic.
    pub(super) fn beat(&mut self, place: usize, last: u64, time: Option<Micros>, at: &At) {
        self.quiet[place] = Quiet::default();
        let bytes = self.encode_stand(place, Some(last), (last, time), at);
        self.stream.push(Frame::new(self.last, self.last, bytes));
    }

    /// Where a topic stands, without items.
    fn encode_stand(
        &mut self,
        place: usize,
        previous: Option<u64>,
        (sequence, event_time): (u64, Option<Micros>),
        at: &At,
    ) -> Vec<u8> {
        let own = frame(&self.names[place], at, self.cursor(self.last, at));
        let own = LogFrame { sequence, previous, event_time, ..own };
        (self.encode)(LiveFrame::Log(own))
    }

    /// Now: where each topic stands, then what is pushed.
    pub(super) fn begin(
        &mut self,
        stands: impl Fn(&TopicName) -> (u64, Option<Micros>),
        at: &At,
    ) -> Start {
        let names = self.names.clone();
        let mut frames = Vec::with_capacity(names.len());
        for (place, name) in names.iter().enumerate() {
            if self.quiet[place].stated.is_none() {
                let bytes = self.encode_stand(place, None, stands(name), at);
                self.quiet[place].stated = Some(Frame::new(self.last, self.last, bytes));
            }
            frames.extend(self.quiet[place].stated.clone());
        }
        Start::Frames { frames, next: self.stream.next_index() }
    }

    /// Behind a client's cursor. One who is up to date is told at once where the feed is not live.
    pub(super) fn resume(
        &mut self,
        after: &str,
        stands: impl Fn(&TopicName) -> (u64, Option<Micros>),
        at: &At,
    ) -> Place {
        let requested = match LogCursor::decode(after, self.topics) {
            Ok(cursor) => cursor.position,
            Err(fault) => return Place::Here(Start::Refused(bad_cursor(fault))),
        };
        // A sequence of the same epoch that the log has not reached: the log lost its end.
        if requested.epoch != at.epoch || requested.sequence > self.last {
            return Place::Here(Start::Refused(resync_required(requested, at.epoch)));
        }
        if requested.sequence == self.last && at.state != FeedState::Live {
            let names = self.names.clone();
            let notice = |(place, name)| {
                let (last, time) = stands(name);
                let bytes = self.encode_stand(place, Some(last), (last, time), at);
                Frame::new(self.last, self.last, bytes)
            };
            let frames = names.iter().enumerate().map(notice).collect();
            return Place::Here(Start::Frames { frames, next: self.stream.next_index() });
        }
        self.behind(requested.sequence)
    }

    /// Goes on behind `seen`: from the ring, or from the log. The ring of a new stream is empty and
    /// knows no boundary yet, so the last one is asked first.
    pub(super) fn behind(&self, seen: u64) -> Place {
        let next = match seen == self.last {
            true => Some(self.stream.next_index()),
            false => self.stream.behind(seen),
        };
        match next {
            Some(next) => Place::Here(Start::Ring { seen, next }),
            // The log may hold more already; that was not pushed yet and will be.
            None => Place::Log { after: seen, until: self.last },
        }
    }

    pub(super) fn page(&self, after: u64) -> Option<Vec<Frame>> {
        self.pages.iter().find(|(own, _)| *own == after).map(|(_, frames)| frames.clone())
    }

    pub(super) fn keep_page(&mut self, after: u64, frames: Vec<Frame>) {
        if self.pages.len() == MOST_PAGES {
            self.pages.pop_front();
        }
        self.pages.push_back((after, frames));
    }

    /// Called each second, as what is kept says when it was published.
    pub(super) fn forget_pages(&mut self) {
        self.pages.clear();
    }
}

/// The errors array for a position that nothing can be told behind any more.
fn resync_required(requested: Position, epoch: Epoch) -> Bytes {
    let position = |epoch: Epoch, sequence: u64| json!({"epoch": epoch.to_string(), "sequence": sequence.to_string()});
    let errors = json!([{
        "message": "this position is not of the hub's log: query what is missing, then subscribe \
                    without `after`",
        "extensions": {
            "code": "RESYNC_REQUIRED",
            "requested": position(requested.epoch, requested.sequence),
            // Nothing is ever removed from the log.
            "floor": position(epoch, 0),
        },
    }]);
    Bytes::from(errors.to_string())
}
