//! How mutations reach the log: through the same handle as every feed, which the hub fills in,
//! as this part and the feeds do not know each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_graphql::Error;
use futures_util::future::BoxFuture;

use crate::graphql::errors::{ErrorCode, fault};
use crate::market::orders::OrderUpdate;
use crate::market::refusal::Refusal;

/// The outcome of the lines that a mutation wrote. Accepted ones are in the log, and were published
/// to the topics' subscribers.
#[derive(Clone, Debug, Default)]
pub struct Written {
    pub accepted: usize,
    /// Their ids were in the log before.
    pub known: usize,
    /// Why the last of those that were not taken was refused.
    pub refusal: Option<Refusal>,
    /// Of the last accepted event.
    pub sequence: Option<u64>,
    /// The last order that was changed.
    pub order: Option<Arc<OrderUpdate>>,
}

/// Why it is not known that lines were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("the hub shuts down: nothing was written, ask again when it is back")]
    Closed,
    #[error("the log does not answer in time: it may be written later, ask again with the same id")]
    Late,
    #[error("the log can't be written now: nothing was written, ask again when the hub is LIVE")]
    Halted,
    #[error("the shared log takes nothing now: nothing was written, ask again")]
    Unreachable,
    #[error("Kafka can't be reached now: nothing was written, ask again")]
    KafkaAway,
    #[error("too many records wait for Kafka: nothing was written, ask again")]
    KafkaFull,
    #[error("Kafka refused it: nothing was written, and the hub's log has the reason")]
    KafkaRefused,
    #[error(
        "Kafka did not confirm it in time: it may be written later, ask again with the same \
         id"
    )]
    KafkaLate,
    #[error("a part of it was written, the rest may be written later: ask again")]
    Partly,
}

impl WriteError {
    /// The error for the client.
    pub fn into_error(self) -> Error {
        fault(ErrorCode::Unavailable, &self.to_string())
    }
}

/// Counters since the start of what came of mutations' writes.
#[derive(Debug, Default)]
pub struct MutationMeters([AtomicU64; 4]);

impl MutationMeters {
    const OUTCOMES: [&'static str; 4] = ["accepted", "known", "refused", "unavailable"];

    fn count(&self, written: &Result<Written, WriteError>) {
        let outcome = match written {
            Ok(Written { refusal: Some(_), .. }) => 2,
            Ok(Written { accepted: 0, .. }) => 1,
            Ok(_) => 0,
            Err(_) => 3,
        };
        self.0[outcome].fetch_add(1, Ordering::Relaxed);
    }

    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Self::OUTCOMES.into_iter().zip(self.0.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

type Writing = BoxFuture<'static, Result<Written, WriteError>>;
type Write = dyn Fn(Vec<String>) -> Writing + Send + Sync;

/// The handle that mutations are given.
#[derive(Clone)]
pub struct MutationPort {
    write: Arc<Write>,
    meters: Arc<MutationMeters>,
}

impl MutationPort {
    pub fn new<F>(write: impl Fn(Vec<String>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Written, WriteError>> + Send + 'static,
    {
        let write = Arc::new(move |lines| -> Writing { Box::pin(write(lines)) });
        Self { write, meters: Arc::default() }
    }

    /// Counts there.
    #[must_use]
    pub fn counting(self, meters: Arc<MutationMeters>) -> Self {
        Self { meters, ..self }
    }

    /// Writes events, one a line, in one go.
    pub async fn write(&self, lines: Vec<String>) -> Result<Written, WriteError> {
        let written = (self.write)(lines).await;
        self.meters.count(&written);
        written
    }
}
