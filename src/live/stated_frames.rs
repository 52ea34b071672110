//! Frames that state a value or a position, encoded for earlier readers.

use bytes::Bytes;

use super::frame::SnapshotReason;
use super::steps::Step;

/// The tail of such a frame. It may be sent at several places of a ring.
#[derive(Clone)]
pub(super) struct Stated {
    reason: Option<SnapshotReason>,
    /// Of the stream, its last event then.
    pub(super) at: u64,
    pub(super) tail: Bytes,
}

/// One for each reason, and one that repeats the value without a reason.
#[derive(Clone, Default)]
pub(super) struct StatedFrames(Vec<Stated>);

impl StatedFrames {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Makes its tail if that was not done yet; `None` if that does not belong to this step any
    /// more.
    pub(super) fn get(
        &mut self,
        reason: Option<SnapshotReason>,
        at: u64,
        step: &mut Step,
        make: impl FnOnce() -> Bytes,
    ) -> Option<Stated> {
        if let Some(stated) = self.0.iter().find(|stated| stated.reason == reason) {
            return Some(stated.clone());
        }
        if !step.goes_on() {
            return None;
        }
        let stated = Stated { reason, at, tail: make() };
        self.0.push(stated.clone());
        Some(stated)
    }

    /// Forgets one that is of an earlier moment.
    pub(super) fn forget_before(&mut self, reason: Option<SnapshotReason>, at: u64) {
        self.0.retain(|stated| stated.reason != reason || stated.at == at);
    }
}
