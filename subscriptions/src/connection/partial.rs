//! A message of which the socket took only a part.

use bytes::Bytes;

/// See the module's text.
pub(super) struct Partial {
    /// What differs by client.
    pub(super) prefix: Box<[u8]>,
    /// The shared payload.
    pub(super) tail: Bytes,
    /// Bytes of both together that were written.
    pub(super) sent: usize,
}

impl Partial {
    /// The parts of prefix and payload that were not written; `None` if all was.
    pub(super) fn unsent(&self) -> Option<(&[u8], &[u8])> {
        let head = self.prefix.get(self.sent..).unwrap_or_default();
        let tail = &self.tail[self.sent.saturating_sub(self.prefix.len())..];
        (!head.is_empty() || !tail.is_empty()).then_some((head, tail))
    }
}
