//! The trait that the hub's GraphQL execution implements: what a request becomes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::request::{OperationKind, Request};
use crate::resume::Answer;
use crate::rounds::Priority;
use crate::stream::ResponseStream;

/// What a request becomes.
pub enum Execution {
    /// A subscription: join this stream after the cursor `after`, or from now on. `permit` is
    /// dropped when the operation ends.
    Stream {
        stream: Arc<ResponseStream>,
        after: Option<String>,
        permit: Option<Box<dyn StreamPermit>>,
    },
    /// A query or mutation: one result, or the errors of [`Execution::Refused`] if it is refused
    /// while it runs. Dropping the future ends the work.
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

/// An operation's permit to read a stream, as the executor counts them. Dropped when the operation
/// ends.
pub trait StreamPermit: Send {
    /// Called before the operation waits for [`crate::resume::Resume::Throttled`], which mostly
    /// reads a page of the log for it. Returns how long its client has to wait first, if at all.
    fn throttle(&self) -> Option<Duration>;

    /// Whether the client owes for earlier work. A reader of it that was too slow is throttled
    /// then, before the source makes what it missed.
    fn is_in_debt(&self) -> bool {
        false
    }

    /// Lets the stream's source answer, and charges the processor time that this took.
    fn measure(&self, answer: &mut dyn FnMut()) {
        answer();
    }

    /// Awaits an answer of the stream's source that takes time, after others that the client waits
    /// for, so that it does not hold more of them than it may. Charges what the answer takes, also
    /// where the operation ends before it comes.
    fn in_turn(&self, answer: BoxFuture<'static, Answer>) -> BoxFuture<'static, Answer> {
        answer
    }
}

/// What a client sends to prove who it is.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// The payload of `connection_init`.
    Init(Option<Map<String, Value>>),
    /// The value of the header `Authorization` of an HTTP request, if it has one.
    Header(Option<String>),
}

/// What a client proved.
#[derive(Clone, Debug)]
pub struct Grant<P> {
    pub principal: P,
    /// When it is no longer valid: then the socket is closed with 4403, and an event stream ends.
    pub expires_at: Option<Instant>,
}

/// Why credentials were not accepted; the socket is closed with 4403 and this reason.
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
    /// The client has spent more than its budget: further messages wait.
    Exceeded,
}

/// Implemented once by the hub, and once by the engine's tests.
pub trait Executor: Send + Sync + 'static {
    /// The authenticated identity of a client.
    type Principal: Clone + Send + Sync + 'static;

    /// Where a connection comes from, known when it is accepted: the account that pays for it.
    type Client: Clone + 'static;

    /// Charges a client for a message of any type, with so many bytes.
    fn charge_message(&self, client: &Self::Client, bytes: usize) -> Budget;

    /// Does what a client asked for, and charges what it took beyond what was charged meanwhile.
    fn measure<T>(&self, client: &Self::Client, work: impl FnOnce() -> T) -> T;

    /// `Low` for a client that caused much work lately: its connections wait for those of others.
    fn priority(&self, client: &Self::Client) -> Priority;

    /// Checks a client's credentials. Called once for each socket, and for each HTTP request. A
    /// socket reads nothing more until the answer is there; `init_timeout` limits that time.
    fn authenticate(
        &self,
        credentials: Credentials,
        client: &Self::Client,
    ) -> BoxFuture<'static, Result<Grant<Self::Principal>, InitRefused>>;

    /// The kind of a request, for transports that don't support every kind. Runs nothing. `None`
    /// if the request is invalid: [`Executor::execute`] then says why.
    fn kind(&self, request: &Request, principal: &Self::Principal) -> Option<OperationKind>;

    /// Decides what a request becomes. Must not wait: work that takes time belongs into the future
    /// of [`Execution::Single`].
    fn execute(&self, request: Request, principal: &Self::Principal) -> Execution;
}
