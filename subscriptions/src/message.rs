//! The messages of `graphql-transport-ws`, as the protocol document of the graphql-ws project has
//! them: text to [`ClientMessage`], and what we say to bytes. No state here. What the older
//! subprotocol has otherwise is in [`crate::dialect`].

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::dialect::Dialect;
use crate::executor::Request;
use crate::limits::{CLOSE_REASON_BYTES, OPERATION_ID_BYTES};

/// Name of the subprotocol in `Sec-WebSocket-Protocol`.
pub const GRAPHQL_TRANSPORT_WS: &str = "graphql-transport-ws";

/// Codes we close with. Part of the contract: stock clients decide by them whether to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// 1000: the client said that it is done.
    Done,
    /// 1002: broken WebSocket framing.
    ProtocolError,
    /// 1007: text that is not UTF-8.
    InvalidText,
    /// 1009: message larger than the limit.
    TooLarge,
    /// 1012: the hub is going away; come back.
    Restarting,
    /// 1013: too slow, or a limit that may pass; come back.
    TryAgainLater,
    /// 4400
    InvalidMessage,
    /// 4401: subscribe before the ack.
    Unauthorized,
    /// 4403: refused or expired.
    Forbidden,
    /// 4406: no common subprotocol.
    NoSubprotocol,
    /// 4408: no `connection_init` in time.
    InitTimeout,
    /// 4409: an operation with this id is alive.
    IdInUse,
    /// 4429: second `connection_init`.
    TooManyInits,
}

impl CloseCode {
    pub const ALL: [Self; 13] = [
        Self::Done,
        Self::ProtocolError,
        Self::InvalidText,
        Self::TooLarge,
        Self::Restarting,
        Self::TryAgainLater,
        Self::InvalidMessage,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NoSubprotocol,
        Self::InitTimeout,
        Self::IdInUse,
        Self::TooManyInits,
    ];

    pub fn number(self) -> u16 {
        match self {
            Self::Done => 1000,
            Self::ProtocolError => 1002,
            Self::InvalidText => 1007,
            Self::TooLarge => 1009,
            Self::Restarting => 1012,
            Self::TryAgainLater => 1013,
            Self::InvalidMessage => 4400,
            Self::Unauthorized => 4401,
            Self::Forbidden => 4403,
            Self::NoSubprotocol => 4406,
            Self::InitTimeout => 4408,
            Self::IdInUse => 4409,
            Self::TooManyInits => 4429,
        }
    }
}

/// What a client may say.
#[derive(Debug)]
pub(crate) enum ClientMessage {
    Init(Option<Map<String, Value>>),
    Ping(Option<Map<String, Value>>),
    Pong,
    Subscribe {
        id: String,
        request: Request,
    },
    Complete {
        id: String,
    },
    /// The legacy protocol's way of hanging up.
    Terminate,
}

/// A message's type and the rest of it, in either dialect.
pub(crate) fn object(text: &str) -> Result<(String, Map<String, Value>), &'static str> {
    let Ok(Value::Object(mut message)) = serde_json::from_str(text) else {
        return Err("Message is not a JSON object");
    };
    match message.remove("type") {
        Some(Value::String(kind)) => Ok((kind, message)),
        _ => Err("Message needs a 'type' that is a string"),
    }
}

/// A message of `graphql-transport-ws`. The error is the reason of the 4400.
pub(crate) fn parse(
    kind: &str,
    mut message: Map<String, Value>,
) -> Result<ClientMessage, &'static str> {
    match kind {
        "connection_init" => init(message),
        "ping" => Ok(ClientMessage::Ping(payload_of(message)?)),
        "pong" => payload_of(message).map(|_| ClientMessage::Pong),
        "subscribe" => subscribe(message),
        "complete" => Ok(ClientMessage::Complete { id: id_of(&mut message)? }),
        _ => Err("Message has an unknown 'type'"),
    }
}

pub(crate) fn init(message: Map<String, Value>) -> Result<ClientMessage, &'static str> {
    Ok(ClientMessage::Init(payload_of(message)?))
}

pub(crate) fn subscribe(mut message: Map<String, Value>) -> Result<ClientMessage, &'static str> {
    let id = id_of(&mut message)?;
    let Some(Value::Object(payload)) = message.remove("payload") else {
        return Err("Subscribe needs a 'payload' that is an object");
    };
    Ok(ClientMessage::Subscribe { id, request: Request::from_fields(payload)? })
}

fn payload_of(mut message: Map<String, Value>) -> Result<Option<Map<String, Value>>, &'static str> {
    match message.remove("payload") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err("Message 'payload' must be an object"),
    }
}

pub(crate) fn id_of(message: &mut Map<String, Value>) -> Result<String, &'static str> {
    match message.remove("id") {
        Some(Value::String(id)) if id.is_empty() => Err("Message 'id' must not be empty"),
        Some(Value::String(id)) if id.len() > OPERATION_ID_BYTES => {
            Err("Message 'id' is longer than 128 bytes")
        }
        Some(Value::String(id)) => Ok(id),
        _ => Err("Message needs an 'id' that is a string"),
    }
}

pub(crate) const ACK: &[u8] = br#"{"type":"connection_ack"}"#;

pub(crate) fn pong(payload: Option<Map<String, Value>>) -> Vec<u8> {
    match payload {
        None => br#"{"type":"pong"}"#.to_vec(),
        Some(payload) => {
            let mut text = br#"{"type":"pong","payload":"#.to_vec();
            text.extend_from_slice(Value::Object(payload).to_string().as_bytes());
            text.push(b'}');
            text
        }
    }
}

/// `id` is JSON already, with its quotes.
pub(crate) fn error(id: &str, errors: &[u8]) -> Vec<u8> {
    [br#"{"id":"#, id.as_bytes(), br#","type":"error","payload":"#, errors, b"}"].concat()
}

/// `id` is JSON already, with its quotes.
pub(crate) fn complete(id: &str) -> Vec<u8> {
    [br#"{"id":"#, id.as_bytes(), br#","type":"complete"}"#].concat()
}

/// What stands before a shared payload; the payload brings the closing brace (see `Frame::tail`).
const NEXT_BEFORE_ID: &[u8] = br#"{"id":"#;
/// Longest of what stands behind the id.
const AFTER_ID_BYTES: usize = 32;

/// Appends the WebSocket header and the client-specific start of a result's message whose rest is
/// `tail_bytes` long.
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

/// Most bytes before a payload, but for the operation's id.
pub(crate) const PREFIX_BYTES: usize = 10 + NEXT_BEFORE_ID.len() + AFTER_ID_BYTES;

/// One payload with room before it, so that each reader's prefix is written in front of it and both
/// leave as one piece. The payload is copied once, however many readers there are.
#[derive(Default)]
pub(crate) struct Contiguous {
    bytes: Vec<u8>,
    /// What stands in `bytes` behind the room; held, so that its address stays its own.
    tail: Bytes,
    prefix: Vec<u8>,
}

impl Contiguous {
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
    use super::*;

    fn read(text: &str) -> Result<ClientMessage, &'static str> {
        Dialect::TransportWs.parse(text)
    }

    #[test]
    fn each_malformed_message_has_its_reason() {
        let cases = [
            ("", "Message is not a JSON object"),
            ("[]", "Message is not a JSON object"),
            ("{}", "Message needs a 'type' that is a string"),
            (r#"{"type":1}"#, "Message needs a 'type' that is a string"),
            (r#"{"type":"next","id":"1","payload":{}}"#, "Message has an unknown 'type'"),
            (r#"{"type":"start","id":"1"}"#, "Message has an unknown 'type'"),
            (r#"{"type":"ping","payload":1}"#, "Message 'payload' must be an object"),
            (r#"{"type":"complete"}"#, "Message needs an 'id' that is a string"),
            (r#"{"type":"complete","id":""}"#, "Message 'id' must not be empty"),
            (r#"{"type":"subscribe","id":"1"}"#, "Subscribe needs a 'payload' that is an object"),
            (
                r#"{"type":"subscribe","id":"1","payload":{"query":1}}"#,
                "a 'query' that is a string is missing",
            ),
            (
                r#"{"type":"subscribe","id":"1","payload":{"query":"","variables":[]}}"#,
                "'variables' and 'extensions' must be objects",
            ),
            (
                r#"{"type":"subscribe","id":"1","payload":{"query":"","operationName":1}}"#,
                "'operationName' must be a string",
            ),
        ];
        for (text, reason) in cases {
            assert_eq!(read(text).err(), Some(reason), "{text}");
            assert!(reason.len() <= CLOSE_REASON_BYTES);
        }
        let long = format!(r#"{{"type":"complete","id":"{}"}}"#, "x".repeat(129));
        assert_eq!(read(&long).err(), Some("Message 'id' is longer than 128 bytes"));
    }

    #[test]
    fn a_hundred_thousand_nested_brackets_are_refused_without_a_stack_overflow() {
        let text = format!(r#"{{"type":"ping","payload":{}"#, "[".repeat(100_000));
        assert_eq!(read(&text).err(), Some("Message is not a JSON object"));
    }

    #[test]
    fn a_message_in_one_piece_is_what_prefix_and_payload_are_in_two() {
        let mut contiguous = Contiguous::default();
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
