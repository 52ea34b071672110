//! The seam to whoever knows what an operation means: the hub's GraphQL execution.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

use crate::rounds::Priority;
use crate::streams::ResponseStream;

/// A GraphQL request, as it stands in a `subscribe` payload or an HTTP body.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Empty where `extensions.persistedQuery` names a document by its hash.
    pub query: String,
    pub operation_name: Option<String>,
    pub variables: Option<Map<String, Value>>,
    pub extensions: Option<Map<String, Value>>,
}

impl Request {
    /// Reads the fields of a request; others are ignored, and null is as good as absent where a
    /// field is optional. The error says which field is not what it should be.
    pub fn from_fields(mut fields: Map<String, Value>) -> Result<Self, &'static str> {
        let object = |value| match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err("'variables' and 'extensions' must be objects"),
        };
        let query = fields.remove("query");
        let operation_name = match fields.remove("operationName") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name),
            Some(_) => return Err("'operationName' must be a string"),
        };
        let variables = object(fields.remove("variables"))?;
        let extensions = object(fields.remove("extensions"))?;
        let is_persisted = || extensions.as_ref().is_some_and(|all| all.contains_key(PERSISTED));
        let query = match query {
            Some(Value::String(query)) => query,
            None if is_persisted() => String::new(),
            _ => return Err("a 'query' that is a string is missing"),
        };
        Ok(Self { query, operation_name, variables, extensions })
    }
}

/// The extension that names a document by its hash instead of bringing it.
pub const PERSISTED: &str = "persistedQuery";

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    Query,
    Mutation,
    Subscription,
}

/// What becomes of a request.
pub enum Execution {
    /// A subscription: join this stream behind `after`, or from now on. `place` is dropped when the
    /// operation ends.
    Stream {
        stream: Arc<ResponseStream>,
        after: Option<String>,
        place: Option<Box<dyn StreamPlace>>,
    },
    /// A query or mutation: one result, or the errors of [`Execution::Refused`] where these are
    /// known late. Dropping the future ends the work.
    Single(BoxFuture<'static, Result<SingleResult, Bytes>>),
    /// Refused before it ran (syntax, validation, limits): a JSON array of GraphQL errors.
    Refused(Bytes),
}

/// The result of a query or mutation that ran.
#[derive(Clone, Debug)]
pub struct SingleResult {
    /// `{"data":…,"errors":…}`
    pub json: Bytes,
    /// Whether it has errors beside its data.
    pub has_errors: bool,
}

/// An operation's place among the readers of streams, as its maker counts them: dropped when the
/// operation ends.
pub trait StreamPlace: Send {
    /// The operation is about to wait for its source ([`crate::streams::Start::Later`]), which
    /// mostly reads a page of the log for it. Returns how long it has to wait for its turn, if at
    /// all.
    fn turn(&self) -> Option<Duration>;
}

/// Why `connection_init` was not accepted; the socket is closed with 4403 and this reason.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct InitRefused {
    /// At most 123 bytes, what a close frame holds.
    pub reason: String,
}

/// What a client's message costs the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    Within,
    /// The client has spent more than it may: further messages wait.
    Exceeded,
}

/// Implemented by the hub once; the engine's tests have a small one of their own.
pub trait Executor: Send + Sync + 'static {
    /// Who the client proved to be.
    type Principal: Clone + Send + Sync + 'static;

    /// Where a connection comes from, as known when it was accepted: who pays for its work.
    type Client: Clone + 'static;

    /// Charges a client for a message of so many bytes, whatever it says.
    fn charge_message(&self, client: &Self::Client, bytes: usize) -> Budget;

    /// Whether a client's connections wait for those of others, as it has caused much work lately.
    fn priority(&self, client: &Self::Client) -> Priority;

    /// Judges the payload of `connection_init` (or an HTTP request's credentials). Called once for
    /// each socket.
    fn init(
        &self,
        payload: Option<&Map<String, Value>>,
        client: &Self::Client,
    ) -> Result<Self::Principal, InitRefused>;

    /// What a request asks for, for transports that don't carry everything; runs nothing. `None`
    /// where it can't be told: executing it tells why.
    fn kind(&self, request: &Request, principal: &Self::Principal) -> Option<OperationKind>;

    /// Decides what a request is. Must not wait: whatever takes time belongs into the future of
    /// [`Execution::Single`].
    fn execute(&self, request: Request, principal: &Self::Principal) -> Execution;
}
