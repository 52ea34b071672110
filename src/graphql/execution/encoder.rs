//! What encodes the frames of a response stream: the schema's execution of its document, which is
//! given one frame at a time.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use async_graphql::Response;
use async_graphql_parser::parse_query;
use async_graphql_parser::types::ExecutableDocument;
use futures_util::FutureExt;
use futures_util::stream::{BoxStream, StreamExt};
use serde_json::{Map, Value};

use super::document;
use super::executor::HubSchema;
use super::suggestions;
use crate::graphql::errors::{self, ErrorCode, Refused};
use crate::graphql::identity::{Audience, Identity, Principal};
use crate::graphql::subscription::{Slot, SourceSpec};
use crate::live::{Encode, LiveFrame};

/// A subscription as its stream was opened with it.
pub struct StreamRequest {
    pub schema: HubSchema,
    pub text: String,
    pub name: Option<String>,
    pub variables: Map<String, Value>,
    pub principal: Principal,
    pub audience: Audience,
    pub with_cursor: bool,
    /// Errors may propose names of the schema: it is no secret.
    pub suggests: bool,
}

impl StreamRequest {
    /// Validates the document and lets the resolver name its source.
    pub fn encoder(&self, document: ExecutableDocument) -> Result<(SourceSpec, Encoder), Refused> {
        let (name, variables) = (self.name.clone(), self.variables.clone());
        let request = prepared(self.text.clone(), name, variables, document);
        let slot = Arc::new(Slot::default());
        let identity = Arc::new(Identity::new(self.principal.clone()));
        let request = request.data(identity.clone()).data(slot.clone());
        let mut results = self.schema.execute_stream(request);
        match results.next().now_or_never() {
            Some(Some(mut response)) => {
                if self.suggests {
                    suggestions::add(&mut response.errors);
                }
                return Err(Refused::from_response(response));
            }
            Some(None) => {
                let message = "the subscription selects nothing";
                return Err(Refused::new(ErrorCode::ValidationFailed, message, None));
            }
            None => {}
        }
        let spec = slot.take_spec();
        debug_assert!(spec.is_some(), "a resolver that runs names its source");
        let spec = spec.ok_or_else(|| Refused::internal("a subscription named no source"))?;
        let shared = (self.audience == Audience::Everyone).then_some(identity);
        let encoder =
            Encoder { slot, results: Some(results), with_cursor: self.with_cursor, shared };
        match encoder.reveals() {
            true => Err(Refused::internal(REVEALS)),
            false => Ok((spec, encoder)),
        }
    }

    /// Another encoder, for a thread that does not own the stream. Parses again, as a stream keeps
    /// no document of its own. `None` where the schema refuses by now, as the market is gone.
    pub fn encode_elsewhere(&self) -> Option<Encode> {
        let document = parse_query(&self.text).ok()?;
        let operation = document::operation(&document, self.name.as_deref()).ok()?;
        let field = document::root_field(&document, operation).ok()?;
        let plain = document::with_plain_root(&document, operation, field);
        let (_, mut encoder) = self.encoder(plain.unwrap_or(document)).ok()?;
        Some(Box::new(move |frame| encoder.encode(frame)))
    }
}

/// Resolves and encodes the frames of one response stream.
pub struct Encoder {
    pub slot: Arc<Slot>,
    /// None after a panic: such a stream can't be polled again.
    pub results: Option<BoxStream<'static, Response>>,
    pub with_cursor: bool,
    /// If everyone shares the stream: whether a resolver asked who its client is.
    pub shared: Option<Arc<Identity>>,
}

/// A fault of ours, which must not become a leak.
const REVEALS: &str = "a subscription that everyone shares depends on who its client is";

impl Encoder {
    /// Whether everyone would get results that depend on one client.
    fn reveals(&self) -> bool {
        self.shared.as_ref().is_some_and(|identity| identity.was_asked())
    }

    pub fn encode(&mut self, frame: LiveFrame) -> Vec<u8> {
        let cursor = if self.with_cursor { frame.cursor() } else { None };
        self.slot.put(frame);
        let Some(results) = &mut self.results else {
            return errors::internal_result("a resolver of this subscription panicked before");
        };
        // No resolver of a subscription waits, so the frame that was put is resolved by one poll.
        let polled = catch_unwind(AssertUnwindSafe(|| results.next().now_or_never().flatten()));
        debug_assert!(!matches!(polled, Ok(None)), "a frame's resolvers waited for something");
        match polled {
            Ok(Some(_)) if self.reveals() => errors::internal_result(REVEALS),
            Ok(Some(response)) => errors::encode(response, cursor),
            Ok(None) => errors::internal_result("a frame's resolvers waited for something"),
            Err(panic) => {
                self.results = None;
                errors::internal_result(&said(&*panic))
            }
        }
    }
}

pub fn prepared(
    query: String,
    name: Option<String>,
    variables: Map<String, Value>,
    document: ExecutableDocument,
) -> async_graphql::Request {
    let variables = async_graphql::Variables::from_json(Value::Object(variables));
    let mut request = async_graphql::Request::new(query).variables(variables);
    request.operation_name = name;
    request.set_parsed_query(document);
    request
}

/// What a panic said, for the log.
pub fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a resolver panicked: {}", text.unwrap_or("without a text"))
}
