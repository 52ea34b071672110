//! What a reader of a book wants and gets, and its frames that are not encoded yet. Frames that
//! take long are encoded on the pool, see `long_frames`; readers of one stream that want the same
//! frame share it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use spreadly_subscriptions::{self as engine, Frame, ResponseStream, Resume};

use super::frame::{BookDelta, BookHead, BookSnapshot, Encode, LiveFrame, SnapshotReason};
use crate::market::book::Since;
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
    CannotContinue,
}

impl From<Reply> for Resume {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Ring { seen, next } => Self::Ring { seen, next },
            Reply::Frames { frames, next } => Self::Frames { frames, next },
            Reply::Refused(errors) => Self::Refused(errors),
            Reply::CannotContinue => Self::CannotContinue,
        }
    }
}

/// A reply that took time to make.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) reply: Reply,
    /// Processor time.
    pub(super) took: Duration,
}

impl From<Reply> for Made {
    fn from(reply: Reply) -> Self {
        Self { reply, took: Duration::ZERO }
    }
}

/// A reply that is being made.
pub(super) type Drafting = Shared<BoxFuture<'static, Made>>;

/// What a stream answers a reader.
pub(super) enum Answer {
    Now(Reply),
    Later {
        drafting: Drafting,
        /// Whether it is made for this reader, who pays for it.
        is_first: bool,
    },
}

impl From<Answer> for Resume {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Now(reply) => reply.into(),
            Answer::Later { drafting, is_first } => {
                let answer = move |Made { reply, took }| engine::Answer {
                    resume: reply.into(),
                    took: if is_first { took } else { Duration::ZERO },
                };
                Self::Pending(drafting.map(answer).boxed())
            }
        }
    }
}

/// A frame that is not encoded yet.
pub(super) struct Draft {
    pub(super) frame: Unmade,
    pub(super) wanted: Wanted,
    /// The frame's, see [`Frame`].
    pub(super) previous: u64,
    pub(super) sequence: u64,
    /// What makes it useless for readers that come later, once it differs.
    pub(super) restated: u64,
    /// Where in the ring its reader continues.
    pub(super) next: u64,
    /// Sent after it.
    pub(super) notice: Option<Frame>,
}

/// A frame whose levels were only taken out of the book.
pub(super) enum Unmade {
    Snapshot(BookSnapshot),
    Delta { head: BookHead, previous: u64, since: Since },
}

impl Unmade {
    pub(super) fn make(self) -> LiveFrame {
        match self {
            Self::Snapshot(snapshot) => LiveFrame::Snapshot(snapshot),
            Self::Delta { head, previous, since } => {
                let changes = since.changes(head.depth);
                LiveFrame::Delta(BookDelta::new(head, previous, changes))
            }
        }
    }
}

/// What makes the replies of one stream whose frames take long to encode.
pub(super) struct Drafter {
    /// Levels of a frame that is encoded where its reader asked.
    pub(super) most_levels: usize,
    pub(super) make: MakeReply,
}

/// Makes the reply of a stream for what its reader wants.
pub(super) type MakeReply =
    Box<dyn Fn(Weak<ResponseStream>, Wanted) -> BoxFuture<'static, Made> + Send + Sync>;

/// Replies that are being made for readers of one stream; none for nearly all streams.
#[derive(Default)]
pub(super) struct Drafts(Vec<(Wanted, WeakShared<BoxFuture<'static, Made>>)>);

impl Drafts {
    /// The reply that others wait for already, or a new one.
    pub(super) fn share(
        &mut self,
        wanted: Wanted,
        make: impl FnOnce() -> BoxFuture<'static, Made>,
    ) -> Answer {
        let waited_for = |one: &WeakShared<_>| one.upgrade().filter(|own| own.peek().is_none());
        self.0.retain(|(_, one)| waited_for(one).is_some());
        let same = self.0.iter().find(|(own, _)| *own == wanted);
        if let Some(drafting) = same.and_then(|(_, one)| waited_for(one)) {
            return Answer::Later { drafting, is_first: false };
        }
        let drafting = make().shared();
        self.0.extend(drafting.downgrade().map(|one| (wanted, one)));
        Answer::Later { drafting, is_first: true }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
