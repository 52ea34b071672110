//! Where a reader of a stream starts or goes on, as the stream's source answers it.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::executor::StreamPermit;
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
    /// Never empty, so that each page brings its reader forward.
    Page(Vec<Frame>),
    /// The answer takes time and reads the log for this operation alone, so it first waits as long
    /// as [`crate::StreamPermit::throttle`] says. A task of the operation awaits it, and ends with
    /// the operation. The future has its own deadline; one that takes longer than
    /// [`crate::limits::START_DEADLINE`] counts as [`Resume::CannotContinue`].
    Throttled(BoxFuture<'static, Answer>),
    /// The answer takes time, as another thread makes it from memory. Awaited like
    /// [`Resume::Throttled`], but not throttled.
    Pending(BoxFuture<'static, Answer>),
    /// Ask again: the reader waited until its client had paid for earlier answers.
    Again,
    /// The operation ends with these errors (a JSON array of GraphQL errors).
    Refused(Bytes),
    /// The frames can't be made: nothing can be merged and the log does not help, or the answer
    /// took too long. The connection is closed with 1013.
    CannotContinue,
}

/// An answer that took time. It is no further one of this kind.
#[derive(Debug)]
pub struct Answer {
    pub resume: Resume,
    /// Processor time that it took, which the client of the operation pays.
    pub took: Duration,
}

/// What cost next to nothing.
impl From<Resume> for Answer {
    fn from(resume: Resume) -> Self {
        Self { resume, took: Duration::ZERO }
    }
}

/// Awaits an answer that takes time in the turn of its client, first for as long as the client is
/// throttled.
pub(crate) fn await_answer(
    answer: BoxFuture<'static, Answer>,
    throttled: bool,
    permit: Option<&dyn StreamPermit>,
) -> impl Future<Output = Answer> + use<> {
    let throttle = permit.filter(|_| throttled).and_then(StreamPermit::throttle);
    let answer = match permit {
        Some(permit) => permit.in_turn(answer),
        None => answer,
    };
    async move {
        if let Some(throttle) = throttle {
            tokio::time::sleep(throttle).await;
        }
        let answer = tokio::time::timeout(START_DEADLINE, answer).await;
        answer.unwrap_or(Resume::CannotContinue.into())
    }
}

impl Resume {
    /// Of its frames.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Frames { frames, .. } | Self::Page(frames) => {
                frames.iter().map(|frame| frame.tail.len()).sum()
            }
            _ => 0,
        }
    }
}

impl fmt::Debug for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring { seen, next } => write!(f, "Ring {{ seen: {seen}, next: {next} }}"),
            Self::Frames { frames, next } => write!(f, "Frames {{ {frames:?}, next: {next} }}"),
            Self::Page(frames) => write!(f, "Page({frames:?})"),
            Self::Again => f.write_str("Again"),
            Self::Throttled(_) => f.write_str("Throttled"),
            Self::Pending(_) => f.write_str("Pending"),
            Self::Refused(errors) => write!(f, "Refused({errors:?})"),
            Self::CannotContinue => f.write_str("CannotContinue"),
        }
    }
}
