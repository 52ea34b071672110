//! The state of the feeds, and the streams that follow it. A stream numbers its own frames: a
//! feed's status is no event of the log, so it has no cursor.

use std::collections::BTreeMap;
use std::sync::Arc;

use spreadly_subscriptions::{Frame, ResponseStream, Resume};

use super::frame::{Encode, FeedView, LiveFrame};
use super::pace::{QUIET_BEATS, Touched};

#[derive(Default)]
pub(super) struct FeedBoard {
    views: Vec<FeedView>,
    /// Of each feed, counts what streams have to push: changes, and times that it was quiet.
    versions: Vec<u64>,
    quiet_beats: u8,
    streams: BTreeMap<u64, FeedStream>,
}

struct FeedStream {
    stream: Arc<ResponseStream>,
    encode: Encode,
    /// Counts the frames that were pushed.
    sequence: u64,
    /// Of each feed, what was pushed.
    versions: Vec<u64>,
    /// All feeds, encoded for an earlier joiner.
    stated: Option<Vec<Frame>>,
}

impl FeedBoard {
    pub(super) fn views(&self) -> &[FeedView] {
        &self.views
    }

    /// Takes the feeds as they are now.
    pub(super) fn set(&mut self, views: Vec<FeedView>, touched: &mut Touched) {
        let earlier = std::mem::replace(&mut self.views, views);
        self.versions.resize(self.views.len(), 0);
        let mut changed = false;
        for (view, version) in self.views.iter().zip(&mut self.versions) {
            let known = earlier.iter().find(|one| one.name == view.name);
            if known.is_none_or(|known| view.differs_from(known)) {
                *version += 1;
                changed = true;
            }
        }
        if changed {
            touched.extend(self.streams.keys());
        }
    }

    /// Called each second.
    pub(super) fn roll(&mut self, touched: &mut Touched) {
        self.quiet_beats += 1;
        if self.quiet_beats >= QUIET_BEATS {
            self.quiet_beats = 0;
            self.versions.iter_mut().for_each(|version| *version += 1);
            touched.extend(self.streams.keys());
        }
    }

    /// Pushes the feeds that changed since the stream's last frames.
    pub(super) fn advance(&mut self, stream: u64) {
        let Some(own) = self.streams.get_mut(&stream) else { return };
        own.versions.resize(self.versions.len(), 0);
        for (place, version) in self.versions.iter().enumerate() {
            if std::mem::replace(&mut own.versions[place], *version) == *version {
                continue;
            }
            let bytes = (own.encode)(LiveFrame::Feed(self.views[place].clone()));
            own.stream.push(Frame::new(own.sequence, own.sequence + 1, bytes));
            own.sequence += 1;
            own.stated = None;
        }
    }

    pub(super) fn attach(&mut self, stream: &Arc<ResponseStream>, encode: Encode) {
        let own = FeedStream {
            stream: stream.clone(),
            encode,
            sequence: 0,
            versions: self.versions.clone(),
            stated: None,
        };
        self.streams.insert(stream.id(), own);
    }

    pub(super) fn detach(&mut self, stream: &ResponseStream) {
        self.streams.remove(&stream.id());
    }

    /// States all feeds, for those that join and those that lagged.
    pub(super) fn join(&mut self, stream: &ResponseStream) -> Resume {
        self.advance(stream.id());
        let Some(own) = self.streams.get_mut(&stream.id()) else { return Resume::CannotContinue };
        let (encode, sequence) = (&mut own.encode, own.sequence);
        let stated = own.stated.get_or_insert_with(|| {
            let frame = |view: &FeedView| {
                Frame::new(sequence, sequence, encode(LiveFrame::Feed(view.clone())))
            };
            self.views.iter().map(frame).collect()
        });
        let next = own.stream.next_index();
        match stated.is_empty() {
            true => Resume::Ring { seen: sequence, next },
            false => Resume::Frames { frames: stated.clone(), next },
        }
    }
}
