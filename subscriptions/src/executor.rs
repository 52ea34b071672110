//! The seam to whoever knows what an operation means: the hub's GraphQL execution.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::stream::ResponseStream;

/// A GraphQL request, as it stands in a `subscribe` payload or an HTTP body.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    pub query: String,
    #[serde(default)]
    pub operation_name: Option<String>,
    #[serde(default)]
    pub variables: Option<Map<String, Value>>,
    #[serde(default)]
    pub extensions: Option<Map<String, Value>>,
}

/// What becomes of a request.
pub enum Execution {
    /// A subscription: join this stream behind `after`, or from now on.
    Stream { stream: Arc<ResponseStream>, after: Option<String> },
    /// A query or mutation: one result, `{"data":…,"errors":…}`.
    Single(BoxFuture<'static, Bytes>),
    /// Refused before it ran (syntax, validation, limits): a JSON array of GraphQL errors.
    Refused(Bytes),
}

/// Why `connection_init` was not accepted; the socket is closed with 4403 and this reason.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct InitRefused {
    /// At most 123 bytes, what a close frame holds.
    pub reason: String,
}

/// Implemented by the hub once; the engine's tests have a small one of their own.
pub trait Executor: Send + Sync + 'static {
    /// Who the client proved to be.
    type Principal: Clone + Send + Sync + 'static;

    /// Judges the payload of `connection_init` (or an HTTP request's credentials).
    fn init(&self, payload: Option<&Map<String, Value>>) -> Result<Self::Principal, InitRefused>;

    /// Decides what a request is. Must not wait: whatever takes time belongs into the future of
    /// [`Execution::Single`].
    fn execute(&self, request: Request, principal: &Self::Principal) -> Execution;
}
