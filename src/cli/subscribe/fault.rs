//! Why the terminal client could not go on, in words for the user who typed the command.

use std::fmt;
use std::io;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use spreadly_subscriptions::ErrorCode;

/// Close codes after which no stock client comes back: each is a fault that would only repeat
/// itself.
const FINAL_CODES: [u16; 13] =
    [1002, 1003, 1007, 1008, 1009, 1010, 1011, 4400, 4401, 4406, 4409, 4429, 4500];

const REQUEST_TIMEOUT: u16 = 408;
const TOO_MANY_REQUESTS: u16 = 429;
const FIRST_SERVER_FAULT: u16 = 500;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("can't connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("no TLS with the server: {0}")]
    Tls(String),
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("the upgrade to a WebSocket was answered with {status}{}", after_colon(.detail))]
    NoUpgrade { status: u16, detail: String },
    #[error("the server is no Spreadly hub, or speaks another protocol: {0}")]
    Protocol(String),
    #[error("closed with {code}{}", after_colon(.reason))]
    Closed { code: u16, reason: String },
    #[error("the connection was cut: {0}")]
    Cut(String),
    #[error("{0}")]
    Refused(GraphqlErrors),
    #[error("can't write to stdout: {0}")]
    Output(io::Error),
    #[error("the system refused a signal or a timer: {0}")]
    System(io::Error),
}

impl ClientError {
    /// Whether the same may succeed later, with nobody doing anything about it here.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Late(_) | Self::Cut(_) => true,
            Self::NoUpgrade { status, .. } => {
                matches!(*status, REQUEST_TIMEOUT | TOO_MANY_REQUESTS)
                    || *status >= FIRST_SERVER_FAULT
            }
            Self::Closed { code, .. } => !FINAL_CODES.contains(code),
            Self::Refused(errors) => errors.0.iter().all(GraphqlError::may_pass),
            Self::Tls(_) | Self::Protocol(_) | Self::Output(_) | Self::System(_) => false,
        }
    }
}

fn after_colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// The errors of one reply.
#[derive(Debug, Deserialize)]
pub struct GraphqlErrors(Vec<GraphqlError>);

#[derive(Debug, Deserialize)]
struct GraphqlError {
    message: String,
    #[serde(default)]
    extensions: Map<String, Value>,
}

impl GraphqlError {
    fn code(&self) -> Option<&str> {
        self.extensions.get("code").and_then(Value::as_str)
    }

    fn may_pass(&self) -> bool {
        self.code().and_then(ErrorCode::by_name).is_some_and(ErrorCode::is_temporary)
    }
}

impl fmt::Display for GraphqlErrors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, error) in self.0.iter().enumerate() {
            if place > 0 {
                out.write_str("; ")?;
            }
            if let Some(code) = error.code() {
                write!(out, "{code}: ")?;
            }
            out.write_str(&error.message)?;
            for (name, value) in error.extensions.iter().filter(|(name, _)| *name != "code") {
                write!(out, ", {name} {value}")?;
            }
            if error.code() == Some(ErrorCode::ResyncRequired.name()) {
                out.write_str(". The events between are gone: begin again without --after")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use spreadly_subscriptions::CloseCode;

    use super::*;

    fn refused(errors: Value) -> ClientError {
        ClientError::Refused(serde_json::from_value(errors).unwrap())
    }

    #[test]
    fn the_codes_that_stock_clients_give_up_at_are_final_here_too() {
        let closed = |code| ClientError::Closed { code, reason: String::new() };
        for code in FINAL_CODES {
            assert!(!closed(code).is_retryable(), "{code}");
        }
        for code in [1000, 1001, 1006, 1012, 1013, 4403, 4408] {
            assert!(closed(code).is_retryable(), "{code}");
        }
    }

    #[test]
    fn it_comes_back_after_each_close_of_the_hub_after_which_stock_clients_do() {
        // The hub closes with 1000 only at the request of a client, which this one never makes.
        for code in CloseCode::ALL.into_iter().filter(|code| *code != CloseCode::Done) {
            let closed = ClientError::Closed { code: code.number(), reason: String::new() };
            assert_eq!(closed.is_retryable(), code.reconnects().starts_with("yes"), "{code:?}");
        }
    }

    #[test]
    fn an_http_refusal_is_final_unless_it_says_later() {
        let refused = |status| ClientError::NoUpgrade { status, detail: String::new() };
        let later = [400, 403, 404, 408, 426, 429, 500, 503]
            .into_iter()
            .filter(|status| refused(*status).is_retryable());
        assert_eq!(later.collect::<Vec<_>>(), [408, 429, 500, 503]);
    }

    #[test]
    fn an_error_is_printed_with_its_numbers_and_only_a_passing_one_is_tried_again() {
        let limit = refused(json!([
            {"message": "too deep", "extensions": {"code": "LIMIT_EXCEEDED", "limit": 12, "current": 13}},
            {"message": "bare"},
        ]));
        assert_eq!(limit.to_string(), "LIMIT_EXCEEDED: too deep, current 13, limit 12; bare");
        assert!(!limit.is_retryable());
        let later = refused(json!([{"message": "m", "extensions": {"code": "UNAVAILABLE"}}]));
        assert!(later.is_retryable());
        let gone = refused(json!([{"message": "m", "extensions": {"code": "RESYNC_REQUIRED"}}]));
        assert!(!gone.is_retryable());
        assert!(gone.to_string().ends_with("without --after"), "{gone}");
    }
}
