//! As much of WebSocket (RFC 6455) as a client needs to count messages: the upgrade, a reader that
//! looks at headers and copies nothing that arrives whole, and masked small frames out. Written by
//! hand because the tester shares two cores with the hub it measures.

use std::io::Write;
use thiserror::Error;

/// The key of the RFC's example, and its answer. A key needs no secrecy, and a fixed one lets the
/// answer be checked without SHA-1.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A snapshot of a deep book is a few MiB at most; more is a broken header.
const MESSAGE_MAX: u64 = 64 * 1024 * 1024;
/// What a connection keeps for a message that arrived in pieces, once that is read.
const CARRY_KEPT: usize = 4 * 1024;
/// Masks protect proxies from what a page's script chooses to send. No script here: any will do.
const MASK: [u8; 4] = [0x53, 0x74, 0x6F, 0x72];

pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    #[error("a frame that RFC 6455 forbids a server: {0}")]
    Frame(&'static str),
    #[error("HTTP {0}")]
    Refused(u16),
    #[error("the answer to the upgrade is not HTTP or not an upgrade: {0}")]
    Upgrade(&'static str),
}

/// `headers` are further lines, each with its end.
pub fn upgrade_request(host: &str, path: &str, headers: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: graphql-transport-ws\r\n{headers}\r\n"
    )
}

/// What a server answers to [`upgrade_request`].
pub fn accepted_upgrade() -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\nSec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
    )
}

/// `None` until the head is complete; then where the first frame begins.
///
/// # Errors
/// When the server refused or answers something else.
pub fn upgrade_answer(bytes: &[u8]) -> Result<Option<usize>, WireError> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| WireError::Upgrade("no text"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    match status {
        Some(101) => {}
        Some(other) => return Err(WireError::Refused(other)),
        None => return Err(WireError::Upgrade("no status line")),
    }
    let header = |name: &str| {
        lines.clone().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    };
    if header("sec-websocket-accept") != Some(ACCEPT) {
        return Err(WireError::Upgrade("wrong Sec-WebSocket-Accept"));
    }
    if header("sec-websocket-protocol") != Some("graphql-transport-ws") {
        return Err(WireError::Upgrade("subprotocol is not graphql-transport-ws"));
    }
    Ok(Some(end + 4))
}

/// A whole frame to a server, masked as it must be.
pub fn masked_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(opcode, payload.len());
    frame[1] |= 0x80;
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// The header of a final, unmasked frame.
pub fn header(opcode: u8, length: usize) -> Vec<u8> {
    let mut header = vec![0x80 | opcode];
    let written = match (u8::try_from(length), u16::try_from(length)) {
        (Ok(small), _) if small < 126 => header.write(&[small]),
        (_, Ok(medium)) => {
            header.push(126);
            header.write(&medium.to_be_bytes())
        }
        _ => {
            header.push(127);
            header.write(&(length as u64).to_be_bytes())
        }
    };
    debug_assert!(written.is_ok(), "a Vec takes every write");
    header
}

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default)]
pub struct Frames {
    /// The beginning of a frame whose rest hasn't come.
    carry: Vec<u8>,
    /// The fragments of a message so far, with its opcode.
    fragments: Option<(u8, Vec<u8>)>,
}

struct Head {
    last: bool,
    opcode: u8,
    payload: usize,
    end: usize,
}

impl Frames {
    /// Calls `on` with opcode and payload of every message that `bytes` completes.
    ///
    /// # Errors
    /// When the server breaks the framing; nothing after that can be read.
    pub fn feed(&mut self, bytes: &[u8], mut on: impl FnMut(u8, &[u8])) -> Result<(), WireError> {
        if self.carry.is_empty() {
            let used = self.whole_frames(bytes, &mut on)?;
            self.carry.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        self.carry.extend_from_slice(bytes);
        let mut carry = std::mem::take(&mut self.carry);
        let used = self.whole_frames(&carry, &mut on)?;
        carry.drain(..used);
        if carry.is_empty() && carry.capacity() > CARRY_KEPT {
            carry = Vec::new();
        }
        self.carry = carry;
        Ok(())
    }

    fn whole_frames(
        &mut self,
        bytes: &[u8],
        on: &mut impl FnMut(u8, &[u8]),
    ) -> Result<usize, WireError> {
        let mut used = 0;
        while let Some(head) = head(&bytes[used..])? {
            let Some(payload) = bytes.get(used + head.payload..used + head.end) else {
                break;
            };
            used += head.end;
            self.frame(&head, payload, on)?;
        }
        Ok(used)
    }

    fn frame(
        &mut self,
        head: &Head,
        payload: &[u8],
        on: &mut impl FnMut(u8, &[u8]),
    ) -> Result<(), WireError> {
        if head.opcode >= CLOSE {
            on(head.opcode, payload);
        } else if head.opcode == 0 {
            let Some((opcode, mut message)) = self.fragments.take() else {
                return Err(WireError::Frame("a continuation of nothing"));
            };
            message.extend_from_slice(payload);
            if head.last {
                on(opcode, &message);
            } else {
                self.fragments = Some((opcode, message));
            }
        } else if self.fragments.is_some() {
            return Err(WireError::Frame("a message inside a fragmented one"));
        } else if head.last {
            on(head.opcode, payload);
        } else {
            self.fragments = Some((head.opcode, payload.to_vec()));
        }
        Ok(())
    }
}

fn head(bytes: &[u8]) -> Result<Option<Head>, WireError> {
    let &[first, second, ref rest @ ..] = bytes else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(WireError::Frame("reserved bits without an extension"));
    }
    if second & 0x80 != 0 {
        return Err(WireError::Frame("a masked frame"));
    }
    let (payload, length) = match (second, rest) {
        (127, &[a, b, c, d, e, f, g, h, ..]) => (10, u64::from_be_bytes([a, b, c, d, e, f, g, h])),
        (126, &[a, b, ..]) => (4, u64::from(u16::from_be_bytes([a, b]))),
        (126 | 127, _) => return Ok(None),
        (length, _) => (2, u64::from(length)),
    };
    if length > MESSAGE_MAX {
        return Err(WireError::Frame("longer than any message"));
    }
    let end = payload + usize::try_from(length).map_err(|_| WireError::Frame("too long"))?;
    Ok(Some(Head { last: first & 0x80 != 0, opcode: first & 0x0F, payload, end }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = header(first & 0x0F, payload.len());
        frame[0] = first;
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn messages_are_the_same_however_the_bytes_are_cut() {
        let long = vec![b'x'; 70_000];
        let mut stream = frame(0x81, b"one");
        stream.extend(frame(0x01, b"tw"));
        stream.extend(frame(0x89, b"ping"));
        stream.extend(frame(0x80, b"o"));
        stream.extend(frame(0x81, &long[..300]));
        stream.extend(frame(0x81, &long));
        for cut in [1, 2, 3, 7, 1000, stream.len()] {
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            for piece in stream.chunks(cut) {
                frames.feed(piece, |opcode, bytes| seen.push((opcode, bytes.to_vec()))).unwrap();
            }
            let expected = [
                (TEXT, b"one".to_vec()),
                (PING, b"ping".to_vec()),
                (TEXT, b"two".to_vec()),
                (TEXT, long[..300].to_vec()),
                (TEXT, long.clone()),
            ];
            assert_eq!(seen, expected, "cut every {cut} bytes");
            assert!(frames.carry.is_empty());
        }
    }

    #[test]
    fn a_masked_frame_and_reserved_bits_are_refused() {
        let masked = masked_frame(TEXT, b"x");
        assert!(Frames::default().feed(&masked, |_, _| {}).is_err());
        assert!(Frames::default().feed(&frame(0xC1, b"x"), |_, _| {}).is_err());
    }

    #[test]
    fn a_refusal_keeps_its_status_and_a_wrong_subprotocol_is_no_upgrade() {
        let refused = b"HTTP/1.1 429 Too Many Requests\r\n\r\n";
        assert_eq!(upgrade_answer(refused), Err(WireError::Refused(429)));
        assert_eq!(upgrade_answer(b"HTTP/1.1 101 Switching"), Ok(None));
        let other = format!("HTTP/1.1 101 X\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n");
        assert!(upgrade_answer(other.as_bytes()).is_err());
    }
}
