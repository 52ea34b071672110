//! The two subprotocols that a socket may use, and all that differs between them: how messages
//! are read and what ours are called. One session serves both.
//!
//! `graphql-ws` is the older one, of the npm library `subscriptions-transport-ws` and its protocol
//! document in apollographql/subscriptions-transport-ws, which is no longer maintained.
//! Clients of it are still in use, so the hub supports it. New clients should not choose it.

use serde_json::{Map, Value, json};

use crate::message::{self, ClientMessage};

/// Name of the preferred subprotocol in `Sec-WebSocket-Protocol`.
pub const GRAPHQL_TRANSPORT_WS: &str = "graphql-transport-ws";

/// Name of the older subprotocol in `Sec-WebSocket-Protocol`.
pub const GRAPHQL_WS: &str = "graphql-ws";

/// See the module's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// `graphql-transport-ws`, preferred.
    #[default]
    TransportWs,
    /// `graphql-ws`.
    LegacyWs,
}

impl Dialect {
    /// Reads one message. The error is the reason of the 4400.
    pub(crate) fn parse(self, text: &str) -> Result<ClientMessage, &'static str> {
        let (kind, fields) = message::object(text)?;
        match self {
            Self::TransportWs => message::parse(&kind, fields),
            Self::LegacyWs => parse_legacy(&kind, fields),
        }
    }

    /// The text between an operation's id and its result.
    pub(crate) fn after_id(self) -> &'static [u8] {
        match self {
            Self::TransportWs => br#","type":"next","payload":"#,
            Self::LegacyWs => br#","type":"data","payload":"#,
        }
    }

    /// An operation ends with these errors, a JSON array. `id` is JSON already.
    pub(crate) fn error(self, id: &str, errors: &[u8]) -> Vec<u8> {
        match self {
            Self::TransportWs => message::error(id, errors),
            // An error's payload is one object there. All errors are in its `errors`.
            Self::LegacyWs => {
                let all: Value = serde_json::from_slice(errors).unwrap_or_default();
                let first = all[0]["message"].as_str().unwrap_or("refused");
                let payload = json!({"message": first, "errors": all});
                message::error(id, payload.to_string().as_bytes())
            }
        }
    }

    /// The answer to a client that ends an operation which was alive.
    pub(crate) fn ended(self, id: &str) -> Option<Vec<u8>> {
        match self {
            Self::TransportWs => None,
            Self::LegacyWs => Some(message::complete(id)),
        }
    }

    /// The message before the close that refuses a client.
    pub(crate) fn rejection(self, reason: &str) -> Option<Vec<u8>> {
        let message = || json!({"type": "connection_error", "payload": {"message": reason}});
        (self == Self::LegacyWs).then(|| message().to_string().into_bytes())
    }

    /// The message that its clients expect at once after the ack, and then at each interval.
    /// Without it they time out, as they don't see a WebSocket's own pings.
    pub(crate) fn keep_alive(self) -> Option<&'static [u8]> {
        (self == Self::LegacyWs).then_some(br#"{"type":"ka"}"#.as_slice())
    }
}

fn parse_legacy(kind: &str, mut fields: Map<String, Value>) -> Result<ClientMessage, &'static str> {
    match kind {
        "connection_init" => message::init(fields),
        "start" => message::subscribe(fields),
        "stop" => Ok(ClientMessage::Complete { id: message::id_of(&mut fields)? }),
        "connection_terminate" => Ok(ClientMessage::Terminate),
        _ => Err("Message has an unknown 'type'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subprotocol_accepts_its_own_message_types_only() {
        let subscribe = |kind| format!(r#"{{"type":"{kind}","id":"1","payload":{{"query":""}}}}"#);
        for (dialect, own, foreign) in [
            (Dialect::TransportWs, "subscribe", "start"),
            (Dialect::LegacyWs, "start", "subscribe"),
        ] {
            assert!(matches!(dialect.parse(&subscribe(own)), Ok(ClientMessage::Subscribe { .. })));
            assert_eq!(
                dialect.parse(&subscribe(foreign)).err(),
                Some("Message has an unknown 'type'")
            );
        }
        for kind in ["ping", "pong", "complete"] {
            let text = format!(r#"{{"type":"{kind}","id":"1"}}"#);
            assert!(Dialect::LegacyWs.parse(&text).is_err(), "{kind}");
        }
    }

    #[test]
    fn a_legacy_error_is_an_object_with_all_errors_in_it() {
        let errors = br#"[{"message":"a"},{"message":"b"}]"#;
        let message: Value =
            serde_json::from_slice(&Dialect::LegacyWs.error("\"1\"", errors)).unwrap();
        assert_eq!(message["payload"]["message"], "a");
        assert_eq!(message["payload"]["errors"][1]["message"], "b");
    }
}
