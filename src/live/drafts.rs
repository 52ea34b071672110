//! Frames of a book that take long to encode. Under the market's lock their levels are only taken;
//! the pool encodes them, and their readers wait for that. Readers of one stream that want the same
//! share it.
//!
//! A reader gets such a frame with the place in the ring that follows it, as of the moment when the
//! levels were taken. What was pushed meanwhile comes from there. If the ring does not reach back
//! by then, the reader asks again, like any that was too slow.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use spreadly_subscriptions::{Frame, ResponseStream, Resume};

use super::book_stream::{BookStream, Now};
use super::frame::{Encode, LiveFrame, SnapshotReason};
use super::source::gone;
use super::{Live, Market};
use crate::pool::{Line, MOST_INLINE_NANOS, Pool};

/// How long frames of a stream are encoded.
pub struct LongFrames {
    pub pool: Arc<Pool>,
    /// Of the address that opened the stream.
    pub line: Arc<Line>,
    /// Makes what encodes one frame on the pool; the stream's own encodes what is pushed meanwhile.
    /// `None` where the market is gone.
    pub encoder: Box<dyn Fn() -> Option<Encode> + Send + Sync>,
    /// Estimated processor time in nanoseconds for each level.
    pub level_nanos: u64,
}

impl LongFrames {
    /// Levels of a frame that is encoded where its reader asked.
    pub(super) fn most_levels(&self) -> usize {
        usize::try_from(MOST_INLINE_NANOS / self.level_nanos.max(1)).unwrap_or(usize::MAX)
    }
}

/// What a reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Snapshot(SnapshotReason),
    /// The changes since `seen`, or a snapshot where the journal does not reach back to it.
    After {
        seen: u64,
        resumes: bool,
    },
}

/// What a reader is given: a [`Resume`] that many can have.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Ring { seen: u64, next: u64 },
    Frames { frames: Vec<Frame>, next: u64 },
    Refused(Bytes),
    TooSlow,
}

impl From<Reply> for Resume {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Ring { seen, next } => Self::Ring { seen, next },
            Reply::Frames { frames, next } => Self::Frames { frames, next },
            Reply::Refused(errors) => Self::Refused(errors),
            Reply::TooSlow => Self::TooSlow,
        }
    }
}

/// A reply that is being made.
pub(super) type Drafting = Shared<BoxFuture<'static, Reply>>;

/// What a stream answers a reader.
pub(super) enum Answer {
    Now(Reply),
    Later(Drafting),
}

impl From<Answer> for Resume {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Now(reply) => reply.into(),
            Answer::Later(drafting) => Self::Pending(drafting.map(Self::from).boxed()),
        }
    }
}

/// A frame that is not encoded yet.
pub(super) struct Draft {
    pub(super) frame: LiveFrame,
    pub(super) wanted: Wanted,
    /// The frame's, see [`Frame`].
    pub(super) previous: u64,
    pub(super) sequence: u64,
    /// What makes it useless for readers that come later, once it differs.
    pub(super) restated: u64,
    /// Where in the ring its reader goes on.
    pub(super) next: u64,
    /// Sent after it.
    pub(super) notice: Option<Frame>,
}

/// Replies that are being made for readers of one stream; none for nearly all streams.
#[derive(Default)]
pub(super) struct Drafts(Vec<(Wanted, WeakShared<BoxFuture<'static, Reply>>)>);

impl Drafts {
    /// The reply that others wait for already, or a new one.
    pub(super) fn share(
        &mut self,
        wanted: Wanted,
        make: impl FnOnce() -> BoxFuture<'static, Reply>,
    ) -> Drafting {
        let waited_for = |one: &WeakShared<_>| one.upgrade().filter(|own| own.peek().is_none());
        self.0.retain(|(_, one)| waited_for(one).is_some());
        let same = self.0.iter().find(|(own, _)| *own == wanted);
        if let Some(drafting) = same.and_then(|(_, one)| waited_for(one)) {
            return drafting;
        }
        let drafting = make().shared();
        self.0.extend(drafting.downgrade().map(|one| (wanted, one)));
        drafting
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The stream that a draft is made for. It may be gone by the time of its turn.
#[derive(Clone)]
pub(super) struct DraftSource {
    pub(super) live: Weak<Live>,
    pub(super) market: Weak<Market>,
}

impl DraftSource {
    fn with<T>(&self, stream: u64, act: impl FnOnce(&mut BookStream, &Now<'_>) -> T) -> Option<T> {
        let (live, market) = (self.live.upgrade()?, self.market.upgrade()?);
        let mut state = market.state.lock();
        state.with(&live, stream, act)
    }
}

/// Makes a reply. Nothing is taken before the pool has a place for it, so what waits is small.
pub(super) async fn make(
    long: Arc<LongFrames>,
    source: DraftSource,
    stream: Weak<ResponseStream>,
    wanted: Wanted,
) -> Reply {
    let Some((id, is_shared)) =
        stream.upgrade().map(|stream| (stream.id(), stream.readership().shared))
    else {
        return Reply::TooSlow;
    };
    // What several addresses read is no work of the one that opened it.
    let line = if is_shared { long.pool.common() } else { &long.line };
    let Ok(place) = long.pool.enter(line).await else { return Reply::TooSlow };
    let draft = match source.with(id, |own, now| own.draft(now, wanted)) {
        Some(Ok(draft)) => draft,
        Some(Err(reply)) => return reply,
        None => return Reply::TooSlow,
    };
    let Draft { frame, wanted, previous, sequence, restated, next, notice } = draft;
    let encoding = long.clone();
    let encoded = place.run(move || {
        let mut encode = (encoding.encoder)()?;
        Some(Frame::new(previous, sequence, encode(frame)))
    });
    let frame = match encoded.await {
        Ok((_, Some(frame))) => frame,
        Ok((_, None)) => return Reply::Refused(gone()),
        Err(_) => return Reply::TooSlow,
    };
    source.with(id, |own, _| own.keep(wanted, restated, &frame));
    Reply::Frames { frames: std::iter::once(frame).chain(notice).collect(), next }
}
