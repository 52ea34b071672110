//! The messages of `graphql-transport-ws`, as the protocol document of the graphql-ws project has
//! them: text to [`ClientMessage`], and ours to text. No state here. [`crate::dialect`] has what
//! differs in the older subprotocol.

use serde_json::{Map, Value};

use crate::limits::OPERATION_ID_BYTES;
use crate::request::{Request, has_too_many_values};

/// A message of a client.
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
    /// The legacy protocol's message that closes the connection.
    Terminate,
}

/// A message's type and the rest of it, in either dialect.
pub(crate) fn object(text: &str) -> Result<(String, Map<String, Value>), &'static str> {
    if has_too_many_values(text) {
        return Err("Message has more than 10000 JSON values");
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CLOSE_REASON_BYTES;

    fn read(text: &str) -> Result<ClientMessage, &'static str> {
        let (kind, message) = object(text)?;
        parse(&kind, message)
    }

    #[test]
    fn a_message_of_too_many_values_is_refused_before_it_is_read() {
        let nested = format!(r#"{{"type":"ping","payload":{}"#, "[".repeat(100_000));
        let reason = read(&nested).unwrap_err();
        assert_eq!(reason, "Message has more than 10000 JSON values");
        assert!(reason.len() <= CLOSE_REASON_BYTES);
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
            (r#"{"type":"subscribe","id":"1","payload":{"query":1}}"#, "'query' must be a string"),
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
    fn nested_brackets_are_refused_without_a_stack_overflow() {
        let text = format!(r#"{{"type":"ping","payload":{}"#, "[".repeat(9_000));
        assert_eq!(read(&text).err(), Some("Message is not a JSON object"));
    }
}
