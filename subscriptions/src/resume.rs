//! Where a reader of a stream starts or goes on, as the stream's source answers it.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::limits::START_DEADLINE;
use crate::ring::Frame;

/// See the module's text.
pub enum Resume {
    /// The ring holds all that follows `seen`, from index `next` on.
    Ring { seen: u64, next: u64 },
    /// Send these frames first (a snapshot for each topic, or one merged delta), then go on in the
    /// ring at `next`. Never empty.
    Frames { frames: Vec<Frame>, next: u64 },
    /// Send these frames first (a page of the log), then ask [`crate::Source::catch_up`] again.
    /// Never empty, so that each page brings its reader forward. Making them took so much processor
    /// time.
    Page { frames: Vec<Frame>, took: Duration },
    /// The answer takes time and reads the log for this operation alone, so it first waits as long
    /// as [`crate::StreamPermit::throttle`] says. A task of the operation awaits it, and ends with
    /// the operation. The future has its own deadline; one that takes longer than
    /// [`crate::limits::START_DEADLINE`] counts as [`Resume::CannotContinue`].
    Throttled(BoxFuture<'static, Resume>),
    /// The answer takes time, as another thread makes it from memory. Awaited like
    /// [`Resume::Throttled`], but not throttled.
    Pending(BoxFuture<'static, Resume>),
    /// The operation ends with these errors (a JSON array of GraphQL errors).
    Refused(Bytes),
    /// The frames can't be made: nothing can be merged and the log does not help, or the answer
    /// took too long. The connection is closed with 1013.
    CannotContinue,
}

/// Awaits an answer that takes time, first for as long as its client is throttled.
pub(crate) async fn await_answer(
    answer: BoxFuture<'static, Resume>,
    throttle: Option<Duration>,
) -> Resume {
    if let Some(throttle) = throttle {
        tokio::time::sleep(throttle).await;
    }
    tokio::time::timeout(START_DEADLINE, answer).await.unwrap_or(Resume::CannotContinue)
}

impl fmt::Debug for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring { seen, next } => write!(f, "Ring {{ seen: {seen}, next: {next} }}"),
            Self::Frames { frames, next } => write!(f, "Frames {{ {frames:?}, next: {next} }}"),
            Self::Page { frames, .. } => write!(f, "Page({frames:?})"),
            Self::Throttled(_) => f.write_str("Throttled"),
            Self::Pending(_) => f.write_str("Pending"),
            Self::Refused(errors) => write!(f, "Refused({errors:?})"),
            Self::CannotContinue => f.write_str("CannotContinue"),
        }
    }
}
