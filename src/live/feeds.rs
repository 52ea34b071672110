//! How the feeds do, and the streams that tell. The numbering is this board's own: a feed's status
//! is no event of the log, so it has no cursor.

use std::collections::BTreeMap;
use std::sync::Arc;

use spreadly_subscriptions::{Frame, ResponseStream, Start};

use super::book_stream::QUIET_BEATS;
use super::frame::{Encode, FeedView, LiveFrame};

#[derive(Default)]
pub(super) struct FeedBoard {
    views: Vec<FeedView>,
    /// Counts the frames that were pushed.
    sequence: u64,
    quiet_beats: u8,
    streams: BTreeMap<u64, FeedStream>,
}

struct FeedStream {
    stream: Arc<ResponseStream>,
    encode: Encode,
    /// All feeds, encoded for an earlier joiner.
    stated: Option<Vec<Frame>>,
}

impl FeedBoard {
    pub(super) fn views(&self) -> &[FeedView] {
        &self.views
    }

    /// Takes the feeds as they are now and pushes those that changed.
    pub(super) fn set(&mut self, views: Vec<FeedView>) {
        let earlier = std::mem::replace(&mut self.views, views);
        for place in 0..self.views.len() {
            let view = &self.views[place];
            let known = earlier.iter().find(|one| one.name == view.name);
            if known.is_none_or(|known| view.differs_from(known)) {
                self.push(place);
            }
        }
    }

    /// Called each second.
    pub(super) fn beat(&mut self) {
        self.quiet_beats += 1;
        if self.quiet_beats >= QUIET_BEATS {
            self.quiet_beats = 0;
            (0..self.views.len()).for_each(|place| self.push(place));
        }
    }

    fn push(&mut self, place: usize) {
        let previous = self.sequence;
        self.sequence += 1;
        for own in self.streams.values_mut() {
            let bytes = (own.encode)(LiveFrame::Feed(self.views[place].clone()));
            own.stream.push(Frame::new(previous, self.sequence, bytes));
            own.stated = None;
        }
    }

    pub(super) fn attach(&mut self, stream: &Arc<ResponseStream>, encode: Encode) {
        let own = FeedStream { stream: stream.clone(), encode, stated: None };
        self.streams.insert(stream.id(), own);
    }

    pub(super) fn detach(&mut self, stream: &ResponseStream) {
        self.streams.remove(&stream.id());
    }

    /// States all feeds, for who joins and for who lagged.
    pub(super) fn join(&mut self, stream: &ResponseStream) -> Start {
        let sequence = self.sequence;
        let Some(own) = self.streams.get_mut(&stream.id()) else { return Start::TooSlow };
        let encode = &mut own.encode;
        let stated = own.stated.get_or_insert_with(|| {
            let frame = |view: &FeedView| {
                Frame::new(sequence, sequence, encode(LiveFrame::Feed(view.clone())))
            };
            self.views.iter().map(frame).collect()
        });
        let next = own.stream.next_index();
        match stated.is_empty() {
            true => Start::Ring { seen: sequence, next },
            false => Start::Frames { frames: stated.clone(), next },
        }
    }
}
