//! Errors as clients get them: each with a code, few, short, and without what is only ours to know.

use std::io;
use std::time::Duration;

use async_graphql::{Context, Error, ErrorExtensions, Pos, Response, ServerError, Value};
use bytes::Bytes;
use serde::Serialize as _;
use serde_json::ser::{Formatter, Serializer};
pub(super) use spreadly_subscriptions::ErrorCode;
use spreadly_subscriptions::GraphqlError;

use super::limits::{DEFAULT_DEPTH, QueryLimits};
use crate::budgets::RateLimited;
use crate::live::TopicName;
use crate::market::definition::MOST_MARKET_BYTES;
use crate::market::event::check_topic;
use crate::market::topic::Topic;
use crate::pool::give_way;

/// Most errors in one reply. More do not help, and an attacker's document could cause thousands.
pub(super) const MOST_ERRORS: usize = 10;
/// Most bytes of one message: names in it come from the document. Ten of these, with what
/// encloses them, stay below the 16 KiB of a refusal.
const MOST_MESSAGE_BYTES: usize = 1_024;

/// The error for a market that is not defined. Of an id that is none, its beginning is named.
pub(super) fn no_market(id: &str) -> Error {
    let named = &id[..id.floor_char_boundary(MOST_MARKET_BYTES)];
    fault(ErrorCode::NotFound, &format!("there is no market {named:?}"))
}

/// An error of a resolver.
pub(super) fn fault(code: ErrorCode, message: &str) -> Error {
    of_resolver(GraphqlError::new(code, message))
}

/// The same error as async-graphql has it.
pub(super) fn of_resolver(error: GraphqlError) -> Error {
    Error::new(error.message()).extend_with(|_, values| {
        for (name, value) in error.extensions() {
            values.set(name, Value::from_json(value).unwrap_or_default());
        }
    })
}

/// A limit that was passed, by its name in the configuration.
pub(super) fn limit_exceeded(name: &str, limit: usize, current: usize) -> Error {
    // A document can expand to more than GraphQL's largest `Int`.
    let current = current.min(i32::MAX as usize);
    let message = format!("{name}: at most {limit}, this request has {current}");
    of_resolver(GraphqlError::limit_exceeded(name, limit, current, message))
}

/// An address that has spent what it may for now.
pub(super) fn rate_limited(limited: RateLimited) -> Error {
    of_resolver(limited.error())
}

/// The depth argument of an order book.
pub(super) fn checked_depth(depth: Option<i32>, limits: &QueryLimits) -> Result<usize, Error> {
    // An explicit null is the default too.
    match depth.map_or(Ok(DEFAULT_DEPTH), usize::try_from) {
        Ok(depth) if depth > limits.book_depth => {
            Err(limit_exceeded("book_depth", limits.book_depth, depth))
        }
        Ok(depth) if depth > 0 => Ok(depth),
        _ => Err(fault(ErrorCode::ValidationFailed, "depth must be at least 1")),
    }
}

/// The log's name of a generic topic.
pub(super) fn checked_topic(name: &str) -> Result<TopicName, Error> {
    match check_topic(name) {
        Ok(()) => Ok(Topic::Message(name).name()),
        Err(reason) => Err(fault(ErrorCode::ValidationFailed, &format!("topic {reason}"))),
    }
}

/// Errors that end a request before it runs.
#[derive(Debug)]
pub struct Refused(Vec<ServerError>);

impl Refused {
    pub fn new(code: ErrorCode, message: &str, at: Option<Pos>) -> Self {
        Self(vec![fault(code, message).into_server_error(at.unwrap_or_default()).located(at)])
    }

    pub fn limit(name: &str, limit: usize, current: usize) -> Self {
        limit_exceeded(name, limit, current).into()
    }

    pub fn rate(limited: RateLimited) -> Self {
        limited.error().into()
    }

    /// An address that has as many requests waiting as may; it may ask again after `wait`.
    pub fn waiting(name: &str, limit: usize, wait: Duration) -> Self {
        let message = format!("limit {name} is {limit}: wait for an answer before the next one");
        GraphqlError::rate_limited(name, limit, wait, message).into()
    }

    /// What the hub has no time for now; the client may ask again after `wait`.
    pub fn unavailable(message: &str, wait: Duration) -> Self {
        GraphqlError::new(ErrorCode::Unavailable, message).retry_after(wait).into()
    }

    pub fn internal(reason: &str) -> Self {
        internal(reason).into()
    }

    pub fn from_response(response: Response) -> Self {
        Self(response.errors)
    }

    /// A JSON array of GraphQL errors.
    pub fn into_bytes(self) -> Bytes {
        let errors = tidy(self.0);
        Bytes::from(serde_json::to_vec(&errors).unwrap_or_else(|_| b"[]".to_vec()))
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(vec![error.into_server_error(Pos::default()).located(None)])
    }
}

impl From<GraphqlError> for Refused {
    fn from(error: GraphqlError) -> Self {
        of_resolver(error).into()
    }
}

trait Located {
    fn located(self, at: Option<Pos>) -> Self;
}

impl Located for ServerError {
    fn located(mut self, at: Option<Pos>) -> Self {
        self.locations = at.into_iter().collect();
        self
    }
}

/// Bounds the errors and gives each its code. What has none comes from the library's checks of the
/// document and its variables.
fn tidy(mut errors: Vec<ServerError>) -> Vec<ServerError> {
    errors.truncate(MOST_ERRORS);
    for error in &mut errors {
        if error.message.len() > MOST_MESSAGE_BYTES {
            let whole = |at: &usize| error.message.is_char_boundary(*at);
            let end = (0..=MOST_MESSAGE_BYTES).rev().find(whole).unwrap_or(0);
            error.message.truncate(end);
            error.message.push('…');
        }
        let values = error.extensions.get_or_insert_default();
        if values.get("code").is_none() {
            values.set("code", ErrorCode::ValidationFailed.name());
        }
    }
    errors
}

/// A response as bytes, `{"data":…}` with errors and extensions where there are any.
pub(super) fn encode(mut response: Response, cursor: Option<String>) -> Vec<u8> {
    response.errors = tidy(response.errors);
    if let Some(cursor) = cursor {
        response.extensions.insert("cursor".to_owned(), Value::String(cursor));
    }
    let mut written = Written::default();
    let mut json = Serializer::with_formatter(&mut written, BinaryIsJson);
    match response.serialize(&mut json) {
        Ok(()) => written.bytes,
        Err(fault) => internal_result(&fault.to_string()),
    }
}

/// Writes bytes as they are, see [`super::types::scalars::Json::from_text`].
struct BinaryIsJson;

impl Formatter for BinaryIsJson {
    fn write_byte_array<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        value: &[u8],
    ) -> io::Result<()> {
        writer.write_all(value)
    }
}

/// Takes what is encoded, and pauses after each [`BYTES_AT_ONCE`].
#[derive(Default)]
struct Written {
    bytes: Vec<u8>,
    /// Bytes at the last pause.
    paused_at: usize,
}

/// Bytes that are encoded without a pause: some 20 us.
const BYTES_AT_ONCE: usize = 8 << 10;

impl io::Write for Written {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.write_all(part)?;
        Ok(part.len())
    }

    fn write_all(&mut self, part: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(part);
        if self.bytes.len() - self.paused_at >= BYTES_AT_ONCE {
            self.paused_at = self.bytes.len();
            give_way();
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// For what would be a bug of ours: the client gets an id, the log has the id and the reason.
pub(super) fn internal(reason: &str) -> Error {
    let id = format!("{:016x}", rand::random::<u64>());
    tracing::error!(id, reason, "internal error");
    of_resolver(GraphqlError::new(ErrorCode::Internal, "internal error").with("id", id))
}

/// A whole result that is nothing but an internal error.
pub(super) fn internal_result(reason: &str) -> Vec<u8> {
    let errors = Refused::internal(reason).into_bytes();
    [b"{\"data\":null,\"errors\":", &errors[..], b"}"].concat()
}

/// What every schema that executes was built with.
pub(super) fn state<'a, T: Send + Sync + 'static>(ctx: &Context<'a>) -> Result<&'a T, Error> {
    ctx.data::<T>().map_err(|_| internal(std::any::type_name::<T>()))
}
