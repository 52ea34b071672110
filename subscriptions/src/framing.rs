//! WebSocket frames of what we send. Those of clients are read by [`crate::codec`].

use bytes::Bytes;

use crate::close::CloseCode;
use crate::dialect::Dialect;
use crate::limits::{CLOSE_REASON_BYTES, OPERATION_ID_BYTES};

/// What precedes the operation's id in a message with a result.
const NEXT_BEFORE_ID: &[u8] = br#"{"id":"#;
/// The longest text between the id and the payload, in any dialect.
const AFTER_ID_BYTES: usize = 32;

/// Appends the WebSocket header and the client-specific start of a result's message. `tail_bytes`
/// is the length of the shared rest, which brings the closing brace (see `Frame::tail`).
pub(crate) fn next_prefix(dialect: Dialect, id: &[u8], tail_bytes: usize, into: &mut Vec<u8>) {
    let after_id = dialect.after_id();
    text_header(NEXT_BEFORE_ID.len() + id.len() + after_id.len() + tail_bytes, into);
    into.extend_from_slice(NEXT_BEFORE_ID);
    into.extend_from_slice(id);
    into.extend_from_slice(after_id);
}

/// Room before a payload for any prefix: header, fixed text, and an id in which every byte had to
/// be escaped as `\u00XX`.
const HEADROOM: usize = PREFIX_BYTES + (OPERATION_ID_BYTES * 6 + 2);

/// Most bytes before a payload, without the operation's id.
pub(crate) const PREFIX_BYTES: usize = 10 + NEXT_BEFORE_ID.len() + AFTER_ID_BYTES;

/// One payload with room before it. Each reader's prefix is written in front of the payload, and
/// both leave as one piece. The payload is copied once for all readers.
#[derive(Default)]
pub(crate) struct ContiguousMessage {
    bytes: Vec<u8>,
    /// The payload in `bytes`. Held, so that no other payload can get its address.
    tail: Bytes,
    prefix: Vec<u8>,
}

impl ContiguousMessage {
    /// The whole message: prefix and payload.
    pub(crate) fn message(&mut self, dialect: Dialect, id: &[u8], tail: &Bytes) -> &[u8] {
        if self.tail.as_ptr() != tail.as_ptr() || self.tail.len() != tail.len() {
            self.bytes.resize(HEADROOM, 0);
            self.bytes.truncate(HEADROOM);
            self.bytes.extend_from_slice(tail);
            self.tail = tail.clone();
        }
        self.prefix.clear();
        next_prefix(dialect, id, tail.len(), &mut self.prefix);
        let start = HEADROOM - self.prefix.len();
        self.bytes[start..HEADROOM].copy_from_slice(&self.prefix);
        &self.bytes[start..]
    }
}

/// Header of an unmasked, final text frame (RFC 6455, 5.2).
fn text_header(length: usize, into: &mut Vec<u8>) {
    header(0x81, length, into);
}

fn header(first: u8, length: usize, into: &mut Vec<u8>) {
    into.push(first);
    match length {
        0..=125 => into.push(length as u8),
        126..=0xFFFF => {
            into.push(126);
            into.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            into.push(127);
            into.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// A whole text frame.
pub(crate) fn text_frame(text: &[u8], into: &mut Vec<u8>) {
    text_header(text.len(), into);
    into.extend_from_slice(text);
}

/// A ping without payload.
pub(crate) const PING_FRAME: &[u8] = &[0x89, 0];

/// A whole close frame; the reason is cut to what fits.
pub(crate) fn close_frame(code: CloseCode, reason: &str, into: &mut Vec<u8>) {
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES)];
    header(0x88, 2 + reason.len(), into);
    into.extend_from_slice(&code.number().to_be_bytes());
    into.extend_from_slice(reason.as_bytes());
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_message_in_one_piece_is_what_prefix_and_payload_are_in_two() {
        let mut contiguous = ContiguousMessage::default();
        let worst = Value::from("\u{1}".repeat(OPERATION_ID_BYTES)).to_string();
        for tail in [100, 40_000, 70_000].map(|length| Bytes::from(vec![b'x'; length])) {
            for (dialect, id) in [
                (Dialect::TransportWs, "\"1\""),
                (Dialect::LegacyWs, worst.as_str()),
                (Dialect::TransportWs, worst.as_str()),
                (Dialect::LegacyWs, "\"22\""),
            ] {
                let mut expected = Vec::new();
                next_prefix(dialect, id.as_bytes(), tail.len(), &mut expected);
                expected.extend_from_slice(&tail);
                let message = contiguous.message(dialect, id.as_bytes(), &tail);
                assert_eq!(message, expected.as_slice());
            }
        }
    }

    #[test]
    fn a_close_reason_is_cut_at_a_character() {
        let mut frame = Vec::new();
        close_frame(CloseCode::TryAgainLater, &"é".repeat(100), &mut frame);
        assert_eq!((frame[0], frame[1], frame.len()), (0x88, 124, 126));
    }
}
