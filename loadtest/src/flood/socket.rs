//! A WebSocket of a flood, steady or attacking: it reads what is there into one shared buffer and
//! hands each message on with its type and id, and writes without ever waiting for the reader.

use crate::run::client::{self, string_after};
use crate::wire::{self, Frames};
use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 64 * 1024;
/// Type and id stand in front of the payload.
const ENVELOPE_BYTES: usize = 160;
pub const PATH: &str = "/graphql";

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

pub struct Socket {
    stream: TcpStream,
    frames: Frames,
    out: Vec<u8>,
    /// Bytes read so far.
    pub bytes: u64,
}

/// One message of the subprotocol.
pub struct Message<'a> {
    pub kind: &'a [u8],
    pub id: &'a [u8],
    pub text: &'a [u8],
}

impl Socket {
    /// Upgrades and sends `connection_init`; the acknowledgement comes as a message.
    ///
    /// # Errors
    /// Why it was refused.
    pub async fn open(
        address: SocketAddr,
        source: Option<IpAddr>,
        receive_buffer: Option<u32>,
    ) -> Result<Self, String> {
        let host = address.to_string();
        let opening = async {
            let socket = client::local_socket(address, source).map_err(|e| e.kind().to_string())?;
            if let Some(bytes) = receive_buffer {
                socket.set_recv_buffer_size(bytes).map_err(|e| e.kind().to_string())?;
            }
            client::upgraded(socket, &host, PATH, address).await
        };
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, opening).await;
        let (stream, first) = opened.map_err(|_| "no answer in time".to_owned())??;
        if !first.is_empty() {
            return Err("a message before connection_init".to_owned());
        }
        let mut socket = Self { stream, frames: Frames::default(), out: Vec::new(), bytes: 0 };
        socket.send(r#"{"type":"connection_init"}"#);
        Ok(socket)
    }

    /// Written with the next `turn`.
    pub fn send(&mut self, text: &str) {
        self.out.extend(wire::masked_frame(wire::TEXT, text.as_bytes()));
    }

    /// Waits until something can be read or written and does that. May be dropped while it waits.
    ///
    /// # Errors
    /// How the socket ended: the close code, or the fault.
    pub async fn turn(&mut self, on: impl FnMut(Message)) -> Result<(), String> {
        let interest = match self.out.is_empty() {
            true => Interest::READABLE,
            false => Interest::READABLE | Interest::WRITABLE,
        };
        let ready = self.stream.ready(interest).await.map_err(|e| e.kind().to_string())?;
        if ready.is_writable() {
            match self.stream.try_write(&self.out) {
                Ok(written) => drop(self.out.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.kind().to_string()),
            }
        }
        if ready.is_readable() {
            self.take(on)?;
        }
        Ok(())
    }

    /// Writes all that was sent, and reads nothing meanwhile.
    ///
    /// # Errors
    /// As [`Socket::turn`].
    pub async fn write(&mut self) -> Result<(), String> {
        let written = self.stream.write_all(&self.out).await;
        self.out.clear();
        written.map_err(|error| error.kind().to_string())
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// As [`Socket::turn`].
    pub fn take(&mut self, mut on: impl FnMut(Message)) -> Result<(), String> {
        BUFFER.with_borrow_mut(|buffer| {
            let read = match self.stream.try_read(buffer) {
                Ok(0) => return Err("no close frame".to_owned()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.kind().to_string()),
            };
            self.bytes += read as u64;
            let (out, mut close) = (&mut self.out, None);
            let result = self.frames.feed(&buffer[..read], |opcode, payload| match opcode {
                wire::TEXT => {
                    let message = message(payload);
                    if message.kind == b"ping" {
                        out.extend(wire::masked_frame(wire::TEXT, br#"{"type":"pong"}"#));
                    }
                    on(message);
                }
                wire::PING => out.extend(wire::masked_frame(wire::PONG, payload)),
                wire::CLOSE => close = Some(close_code(payload)),
                _ => {}
            });
            result.map_err(|error| error.to_string())?;
            close.map_or(Ok(()), Err)
        })
    }

    /// Reads what waits, up to a bound.
    ///
    /// # Errors
    /// As [`Socket::turn`].
    pub fn drain(&mut self, most: u64, mut on: impl FnMut(Message)) -> Result<(), String> {
        let until = self.bytes + most;
        let mut before = u64::MAX;
        while self.bytes != before && self.bytes < until {
            before = self.bytes;
            self.take(&mut on)?;
        }
        Ok(())
    }
}

fn message(text: &[u8]) -> Message<'_> {
    let envelope = &text[..text.len().min(ENVELOPE_BYTES)];
    Message {
        kind: string_after(envelope, b"\"type\":\"").unwrap_or_default(),
        id: string_after(envelope, b"\"id\":\"").unwrap_or_default(),
        text,
    }
}

fn close_code(payload: &[u8]) -> String {
    match payload {
        [high, low, ..] => u16::from_be_bytes([*high, *low]).to_string(),
        _ => "1005".to_owned(),
    }
}

/// The number that follows `key` within the first `within` bytes.
pub fn number_after(text: &[u8], key: &[u8], within: usize) -> Option<u64> {
    let text = &text[..text.len().min(within)];
    let from = text.windows(key.len()).position(|window| window == key)? + key.len();
    let digits = text[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&text[from..from + digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_type_and_id_in_any_order() {
        for text in [r#"{"id":"7","type":"next"}"#, r#"{"type":"next","id":"7","payload":{}}"#] {
            let message = message(text.as_bytes());
            assert_eq!((message.kind, message.id), (&b"next"[..], &b"7"[..]));
        }
        assert_eq!(number_after(br#"{"mergedEvents":12,"#, b"mergedEvents\":", 99), Some(12));
        assert_eq!(number_after(b"none", b"mergedEvents\":", 99), None);
    }
}
