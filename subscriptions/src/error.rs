//! Errors as clients receive them: a code, a message, and values that a program can read. The codes
//! are a part of the protocol; docs/reference/errors.md is written from this table.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::position::Position;

/// The `extensions.code` of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    BadRequest,
    ValidationFailed,
    NotFound,
    Unauthenticated,
    Forbidden,
    Conflict,
    LimitExceeded,
    RateLimited,
    ResyncRequired,
    Unavailable,
    PersistedQueryNotFound,
    Internal,
}

impl ErrorCode {
    pub const ALL: [Self; 12] = [
        Self::BadRequest,
        Self::ValidationFailed,
        Self::NotFound,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::Conflict,
        Self::LimitExceeded,
        Self::RateLimited,
        Self::ResyncRequired,
        Self::Unavailable,
        Self::PersistedQueryNotFound,
        Self::Internal,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "BAD_REQUEST",
            Self::ValidationFailed => "VALIDATION_FAILED",
            Self::NotFound => "NOT_FOUND",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Forbidden => "FORBIDDEN",
            Self::Conflict => "CONFLICT",
            Self::LimitExceeded => "LIMIT_EXCEEDED",
            Self::RateLimited => "RATE_LIMITED",
            Self::ResyncRequired => "RESYNC_REQUIRED",
            Self::Unavailable => "UNAVAILABLE",
            Self::PersistedQueryNotFound => "PERSISTED_QUERY_NOT_FOUND",
            Self::Internal => "INTERNAL",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.name() == name)
    }

    /// Of the first of some errors, a JSON array.
    pub fn of_first(errors: &[u8]) -> Option<Self> {
        let errors: Value = serde_json::from_slice(errors).ok()?;
        Self::by_name(errors[0]["extensions"]["code"].as_str()?)
    }

    /// Whether the same request may succeed later, with nothing changed by the client.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::RateLimited | Self::Unavailable)
    }

    /// When a client receives it, for the reference page.
    pub fn when(self) -> &'static str {
        match self {
            Self::BadRequest => {
                "the request is not GraphQL, has no such operation, has a cursor that is not the \
                 hub's, or is a faulty HTTP request"
            }
            Self::ValidationFailed => {
                "the document does not fit the schema, or an argument is out of range"
            }
            Self::NotFound => "there is no such market or order; for HTTP, no such path",
            Self::Unauthenticated => {
                "the field belongs to an account, and the client is not signed in"
            }
            Self::Forbidden => {
                "the field belongs to another account; for HTTP, the `Origin` is not allowed"
            }
            Self::Conflict => {
                "the current state does not allow it: an `id` or `clientId` is in use, or an order \
                 is not open"
            }
            Self::LimitExceeded => {
                "a [limit](limits.md) is exceeded; with `name`, `limit` and `current`"
            }
            Self::RateLimited => {
                "the address or socket asks too often; with `name`, `limit` and `retryAfterMs`"
            }
            Self::ResyncRequired => {
                "the hub can send nothing after this cursor; with `requested` and `floor`"
            }
            Self::Unavailable => {
                "the hub can't do it now; with `retryAfterMs` where it knows a time"
            }
            Self::PersistedQueryNotFound => "the hub stores no document with this hash",
            Self::Internal => {
                "a fault of the hub; the error's `id` is in the hub's log too, its text is not sent"
            }
        }
    }

    /// What a client does then, for the reference page.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::BadRequest | Self::ValidationFailed | Self::NotFound => "correct it",
            Self::Unauthenticated => "sign in",
            Self::Forbidden => "stop",
            Self::Conflict => "read the state",
            Self::LimitExceeded => "ask for less",
            Self::RateLimited | Self::Unavailable => "wait, then repeat",
            Self::ResyncRequired => "subscribe without a cursor, query the rest",
            Self::PersistedQueryNotFound => "send the document once",
            Self::Internal => "report the `id`",
        }
    }
}

/// One error: the only place that knows its form in JSON.
#[derive(Clone, Debug)]
pub struct GraphqlError {
    code: ErrorCode,
    message: String,
    /// What `extensions` has beside the code.
    details: Map<String, Value>,
}

impl GraphqlError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Map::new() }
    }

    /// A limit that the request exceeds, by its name in the configuration.
    pub fn limit_exceeded(
        name: &str,
        limit: usize,
        current: usize,
        message: impl Into<String>,
    ) -> Self {
        Self::new(ErrorCode::LimitExceeded, message)
            .with("name", name)
            .with("limit", limit)
            .with("current", current)
    }

    /// A rate or a number of requests, by its name in the configuration. The client may repeat its
    /// request after `wait`.
    pub fn rate_limited(
        name: &str,
        limit: impl Into<Value>,
        wait: Duration,
        message: impl Into<String>,
    ) -> Self {
        Self::new(ErrorCode::RateLimited, message)
            .with("name", name)
            .with("limit", limit)
            .retry_after(wait)
    }

    /// For a position that the hub can't go on from; `floor` is the last valid one before it.
    pub fn resync_required(
        requested: Position,
        floor: Position,
        message: impl Into<String>,
    ) -> Self {
        let position = |Position { epoch, sequence }| {
            let (epoch, sequence) = (epoch.to_string(), sequence.to_string());
            json!({ "epoch": epoch, "sequence": sequence })
        };
        Self::new(ErrorCode::ResyncRequired, message)
            .with("requested", position(requested))
            .with("floor", position(floor))
    }

    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        self.with("retryAfterMs", millis(wait))
    }

    /// One more value of `extensions`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// Its `extensions`, the code among them.
    pub fn extensions(&self) -> impl Iterator<Item = (&str, Value)> {
        let details = self.details.iter().map(|(name, value)| (name.as_str(), value.clone()));
        std::iter::once(("code", Value::from(self.code.name()))).chain(details)
    }

    /// A JSON array with this error alone.
    pub fn into_list(self) -> Value {
        let Self { code, message, mut details } = self;
        details.insert("code".to_owned(), code.name().into());
        json!([{ "message": message, "extensions": details }])
    }

    /// The same as bytes.
    pub fn into_list_bytes(self) -> Bytes {
        self.into_list().to_string().into()
    }

    /// A result with this error alone: `{"errors":[…]}`.
    pub fn into_result_bytes(self) -> Bytes {
        json!({ "errors": self.into_list() }).to_string().into()
    }
}

/// As `retryAfterMs` has them.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_is_found_by_its_name_and_in_an_encoded_error() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::by_name(code.name()), Some(code));
            let encoded = GraphqlError::new(code, "m").into_list_bytes();
            assert_eq!(ErrorCode::of_first(&encoded), Some(code));
        }
        assert_eq!(ErrorCode::by_name("OTHER"), None);
        assert_eq!(ErrorCode::of_first(b"[]"), None);
        assert_eq!(ErrorCode::of_first(b"{"), None);
    }

    #[test]
    fn an_error_has_its_code_and_its_values_in_extensions() {
        let wait = Duration::from_millis(1_500);
        let error = GraphqlError::rate_limited("a_rate", 5, wait, "too fast");
        let extensions =
            json!({ "code": "RATE_LIMITED", "name": "a_rate", "limit": 5, "retryAfterMs": 1_500 });
        let list = json!([{ "message": "too fast", "extensions": extensions }]);
        let named: Map<_, _> = error.extensions().map(|(name, v)| (name.to_owned(), v)).collect();
        assert_eq!(Value::from(named), extensions);
        assert_eq!(error.clone().into_list(), list);
        let result: Value = serde_json::from_slice(&error.into_result_bytes()).unwrap();
        assert_eq!(result, json!({ "errors": list }));
    }
}
