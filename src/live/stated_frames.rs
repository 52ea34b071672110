//! Frames that state a value or a position, encoded for earlier readers.

use bytes::Bytes;
use spreadly_subscriptions::Frame;

use super::frame::SnapshotReason;
use super::steps::Step;

/// The tails of such frames, see [`Frame`]: one for each reason, and one that repeats the value
/// without a reason.
#[derive(Clone, Default)]
pub(super) struct StatedFrames(Vec<(Option<SnapshotReason>, Bytes)>);

impl StatedFrames {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Encodes it if that was not done yet; `None` if that does not belong to this step any more.
    pub(super) fn get(
        &mut self,
        reason: Option<SnapshotReason>,
        step: &mut Step,
        encode: impl FnOnce() -> Vec<u8>,
    ) -> Option<Bytes> {
        if let Some((_, tail)) = self.0.iter().find(|(why, _)| *why == reason) {
            return Some(tail.clone());
        }
        if !step.goes_on() {
            return None;
        }
        // It may be sent at several places of a ring.
        let Frame { tail, .. } = Frame::new(0, 0, encode());
        self.0.push((reason, tail.clone()));
        Some(tail)
    }
}
