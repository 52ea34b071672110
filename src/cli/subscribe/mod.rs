//! The terminal client: `spreadly subscribe`. A client like any other: it knows the protocol and
//! nothing of the hub's state, and imports no other part of the hub. What becomes of a cut is
//! decided here; one socket's life is in [`socket`].

mod arguments;
mod endpoint;
mod fault;
mod output;
mod socket;
mod tls;

use std::io;
use std::time::Duration;

use async_graphql_parser::types::OperationType;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_util::sync::CancellationToken;

pub use self::arguments::{EXAMPLES, Subscribe, header, object};
pub use self::endpoint::Endpoint;
pub use self::fault::{ClientError, GraphqlErrors};
use self::output::Output;
use self::socket::{Message, Socket};
use crate::backoff::Backoff;
use crate::signals;

/// Before the second try. A restarting hub is back within about a second.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// However long the hub is away, it is found again within this.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// For the goodbye after Ctrl-C; also where the reader of our output has stopped.
const GOODBYE: Duration = Duration::from_secs(1);

/// A header of an upgrade.
pub type Header = (HeaderName, HeaderValue);

/// Where the hub is, and what a connection to it begins with.
#[derive(Clone, Debug)]
pub struct Opening {
    pub endpoint: Endpoint,
    pub headers: Vec<Header>,
    /// The payload of `connection_init`.
    pub init: Option<Map<String, Value>>,
}

/// One operation, and how to follow it.
#[derive(Clone, Debug)]
pub struct Operation {
    pub opening: Opening,
    /// A GraphQL document with one operation.
    pub document: String,
    pub variables: Map<String, Value>,
    /// Begin after this position.
    pub after: Option<String>,
    /// End after so many results.
    pub count: Option<u64>,
    /// Results over many lines, for people.
    pub pretty: bool,
}

/// Writes each result to stdout and what happens meanwhile to stderr, until the operation is
/// complete, the count is reached, or SIGINT or SIGTERM comes.
///
/// A subscription outlives its socket: it is opened again after the last cursor. A query or
/// mutation has one try, as nobody knows whether a lost one took effect.
///
/// # Errors
/// What can't be mended by trying again: see [`ClientError::is_retryable`].
pub fn execute(asked: Operation) -> Result<(), ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(ClientError::System)?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        let stopped = signals::stopped().map_err(ClientError::System)?;
        let mut following = std::pin::pin!(Following::new(asked, stop.clone()).run());
        tokio::select! {
            outcome = &mut following => outcome,
            () = stopped => {
                stop.cancel();
                tokio::time::timeout(GOODBYE, following).await.unwrap_or(Ok(()))
            }
        }
    });
    // Not waited for: a write to a pipe that nobody reads never ends.
    runtime.shutdown_background();
    outcome
}

/// One operation over as many sockets as it needs.
struct Following {
    asked: Operation,
    /// Else one try is all it has.
    subscription: bool,
    output: Output,
    backoff: Backoff,
    /// Of the last result that was written, so that a cut neither loses nor doubles one.
    cursor: Option<String>,
    /// Results still to come; `None` without a count.
    left: Option<u64>,
    /// A connection was lost, and no result has come since.
    lost: bool,
    stop: CancellationToken,
}

impl Following {
    fn new(asked: Operation, stop: CancellationToken) -> Self {
        Self {
            subscription: is_subscription(&asked.document),
            output: Output::new(asked.pretty),
            backoff: Backoff::between(FIRST_WAIT, LONGEST_WAIT),
            cursor: asked.after.clone(),
            left: asked.count,
            lost: false,
            stop,
            asked,
        }
    }

    async fn run(mut self) -> Result<(), ClientError> {
        loop {
            let error = match self.operate().await {
                // The reader of our output has seen enough, as `head` does.
                Err(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Ok(());
                }
                Err(error) if self.subscription && error.is_retryable() => error,
                outcome => return outcome,
            };
            let wait = self.backoff.wait();
            eprintln!("spreadly: {error}; trying again in {:.1} s", wait.as_secs_f64());
            self.lost = true;
            if self.stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Over one socket, until the end or a fault.
    async fn operate(&mut self) -> Result<(), ClientError> {
        let stop = self.stop.clone();
        let opening = Socket::open(&self.asked.opening);
        let Some(socket) = stop.run_until_cancelled(opening).await else { return Ok(()) };
        let mut socket = socket?;
        let Operation { document, variables, .. } = &self.asked;
        socket.subscribe(document, variables, self.cursor.as_deref()).await?;
        // Of a query whose result has errors: the result is written, and so is the failure.
        let mut failed = None;
        loop {
            let Some(message) = stop.run_until_cancelled(socket.message()).await else {
                socket.goodbye().await;
                return Ok(());
            };
            match message? {
                Message::Next(result) => {
                    let errors = self.take(&result).await?.map(ClientError::Refused);
                    match errors {
                        Some(errors) if self.subscription => eprintln!("spreadly: {errors}"),
                        errors => failed = errors.or(failed),
                    }
                    if self.left == Some(0) {
                        socket.goodbye().await;
                        return failed.map_or(Ok(()), Err);
                    }
                }
                Message::Error(errors) => return Err(ClientError::Refused(errors)),
                Message::Complete => return failed.map_or(Ok(()), Err),
            }
        }
    }

    /// Writes a result, then remembers its cursor. The result's errors, if it has any.
    async fn take(&mut self, result: &RawValue) -> Result<Option<GraphqlErrors>, ClientError> {
        let (cursor, errors) = socket::read_result(result)?;
        self.output.write(result).await.map_err(ClientError::Output)?;
        if std::mem::take(&mut self.lost) {
            let how =
                if self.cursor.is_some() { "after the last cursor" } else { "from the start" };
            eprintln!("spreadly: connected again, going on {how}");
        }
        self.cursor = cursor.or_else(|| self.cursor.take());
        self.left = self.left.map(|left| left - 1);
        self.backoff.reset();
        Ok(errors)
    }
}

/// What can't be parsed is the hub's to judge.
fn is_subscription(document: &str) -> bool {
    async_graphql_parser::parse_query(document).is_ok_and(|parsed| {
        parsed.operations.iter().any(|(_, one)| one.node.ty == OperationType::Subscription)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_subscription_is_worth_a_second_try() {
        assert!(is_subscription(r#"subscription { orderBook(market: "A-B") { cursor } }"#));
        assert!(is_subscription("fragment F on Subscription { x } subscription S { ...F }"));
        assert!(!is_subscription("{ markets { id } }"));
        assert!(!is_subscription("mutation { signOut }"));
        assert!(!is_subscription("subscription {"));
    }
}
