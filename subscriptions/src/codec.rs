//! WebSocket frames of clients: bytes of a socket to messages. tungstenite's state machine decodes
//! them from memory instead of a socket. So one large read buffer serves a whole shard, and an idle
//! connection keeps only the few hundred bytes of an unfinished frame.

use std::io::{self, Read, Write};

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::close::{self, CloseCode};

/// What tungstenite keeps per connection; it grows to the largest message and no further.
const CODEC_BUFFER_BYTES: usize = 256;

pub(crate) enum Received {
    Text(Utf8Bytes),
    Binary,
    /// A ping (answered already) or a pong: the peer is alive.
    PingOrPong,
    /// The peer closes, or has answered our close.
    Close,
}

/// The peer broke the protocol: close with this.
pub(crate) struct CodecError {
    pub(crate) code: CloseCode,
    pub(crate) reason: String,
}

pub(crate) struct Codec {
    context: WebSocketContext,
    /// Since when bytes have come without completing a message.
    pub(crate) unfinished_since: Option<Instant>,
}

impl Codec {
    pub(crate) fn new(most_message_bytes: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(CODEC_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(most_message_bytes))
            .max_frame_size(Some(most_message_bytes));
        let context = WebSocketContext::new(Role::Server, Some(config));
        Self { context, unfinished_since: None }
    }

    pub(crate) fn set_message_limit(&mut self, most_message_bytes: usize) {
        self.context.set_config(|config| {
            config.max_message_size = Some(most_message_bytes);
            config.max_frame_size = Some(most_message_bytes);
        });
    }

    /// The next message in `input`, `None` when it is used up. Pongs and the answer to a close are
    /// appended to `replies`.
    pub(crate) fn next(
        &mut self,
        input: &mut &[u8],
        replies: &mut Vec<u8>,
    ) -> Result<Option<Received>, CodecError> {
        let error = |code, reason: String| Err(CodecError { code, reason });
        match self.context.read(&mut MemoryStream { input, replies }) {
            Ok(Message::Text(text)) => Ok(Some(Received::Text(text))),
            Ok(Message::Binary(_)) => Ok(Some(Received::Binary)),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {
                Ok(Some(Received::PingOrPong))
            }
            Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                // The answer is queued inside tungstenite until the next flush.
                let _closed = self.context.flush(&mut MemoryStream { input, replies });
                Ok(Some(Received::Close))
            }
            Err(Error::Io(_)) => Ok(None),
            Err(Error::Capacity(CapacityError::MessageTooLong { max_size, .. })) => {
                error(CloseCode::TooLarge, close::message_too_large(max_size))
            }
            Err(Error::Utf8(_)) => error(CloseCode::InvalidText, close::INVALID_TEXT.to_owned()),
            Err(other) => error(CloseCode::ProtocolError, other.to_string()),
        }
    }
}

/// In place of a socket: its bytes were read already, and its writes are collected.
struct MemoryStream<'a, 'b> {
    input: &'a mut &'b [u8],
    replies: &'a mut Vec<u8>,
}

impl Read for MemoryStream<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(into)
    }
}

impl Write for MemoryStream<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.replies.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
