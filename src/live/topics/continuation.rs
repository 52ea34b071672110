//! Where a reader of log topics continues.

use spreadly_subscriptions::Resume;

use crate::live::frame::TopicName;

/// Where a reader continues.
pub(in crate::live) enum Continuation {
    /// Memory has what follows.
    Here(Resume),
    /// Only the log has what follows.
    Log(Reach),
    /// Only the log knows the last event of this topic: look it up, then call `Topics::recall`.
    Forgotten(TopicName),
}

/// A part of the log that a reader is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::live) struct Reach {
    /// The events after this sequence.
    pub(super) after: u64,
    /// All of them up to this one.
    pub(super) until: u64,
    /// A frame first sends the reader back to `after`: later events that it has were removed, or
    /// are sent again.
    pub(super) back: bool,
    /// Of the stream's numbering when this was decided. Under another one nothing is sent of it.
    pub(super) base: u64,
}
