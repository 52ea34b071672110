//! Connections to the database: their settings, their errors, the tables that they find.

use std::error::Error as _;
use std::future::Future;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::PostgresConfig;

/// Migrations of a large table take their time; a hub that starts waits for another that runs them.
const MIGRATION_DEADLINE: Duration = Duration::from_secs(60);

/// How long a migration waits for a table. Writers of that table wait meanwhile.
const MIGRATION_LOCK_MS: u32 = 2_000;

const MIGRATING: &str = "1936749172, 2";

mod migrations {
    refinery::embed_migrations!("config/migrations/postgres");
}

#[derive(Debug, Error)]
pub enum OutboxError {
    #[error("it did not answer within {} ms (feeds.postgres.deadline_ms)", .0.as_millis())]
    Late(Duration),
    #[error("{}", described(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("{0}")]
    Pool(#[from] deadpool_postgres::BuildError),
    #[error("its encoding is {0}, and events are UTF8: create the database again with UTF8")]
    Encoding(String),
    #[error("its function spreadly_take is not the hub's, as it gives no counts")]
    NotOurs,
    #[error("its tables can't be made: {0}: {cause}", cause = first_cause(.0))]
    Migration(#[from] Box<refinery::Error>),
}

/// What the library's own text leaves out.
fn described(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), error.source()) {
        (Some(reported), _) => format!("{}: {}", reported.severity(), reported.message()),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

/// The library's own text ends with "db error".
fn first_cause(error: &refinery::Error) -> &dyn std::error::Error {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

/// Moves the connection's bytes, as long as it is held.
pub(super) struct Driver(pub(super) JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How every connection to it is made.
pub fn settings(config: &PostgresConfig) -> Result<tokio_postgres::Config, tokio_postgres::Error> {
    let deadline = config.deadline;
    let mut settings: tokio_postgres::Config = config.url.expose_secret().parse()?;
    settings.application_name("spreadly").connect_timeout(deadline).tcp_user_timeout(deadline);
    Ok(settings)
}

/// The first statements of each connection. A hub that is stopped within a transaction holds rows
/// no longer than one that works.
pub fn session(config: &PostgresConfig) -> String {
    let timeout = config.deadline.as_millis();
    format!(
        "SET statement_timeout = {timeout}; SET idle_in_transaction_session_timeout = {timeout};
         SET default_transaction_isolation = 'read committed';"
    )
}

pub(super) async fn migrate(client: &mut Client) -> Result<(), OutboxError> {
    // Writers wait while a migration waits for a transaction, so it gives up soon and tries again.
    let lock =
        format!("SET lock_timeout = {MIGRATION_LOCK_MS}; SELECT pg_advisory_lock({MIGRATING})");
    within(MIGRATION_DEADLINE, client.batch_execute(&lock)).await?;
    let mut runner = migrations::migrations::runner();
    runner.set_migration_table_name("spreadly_migrations");
    let migrating = tokio::time::timeout(MIGRATION_DEADLINE, runner.run_async(client));
    let report =
        migrating.await.map_err(|_| OutboxError::Late(MIGRATION_DEADLINE))?.map_err(Box::new)?;
    for migration in report.applied_migrations() {
        tracing::info!(%migration, "the database's tables are brought up to date");
    }
    within(MIGRATION_DEADLINE, client.batch_execute("SELECT spreadly_adopt()")).await?;
    // An error leaves it to the session's end.
    let unlock = format!("SET lock_timeout = 0; SELECT pg_advisory_unlock({MIGRATING})");
    within(MIGRATION_DEADLINE, client.batch_execute(&unlock)).await
}

pub(super) async fn within<T>(
    deadline: Duration,
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, OutboxError> {
    let answer = tokio::time::timeout(deadline, answer).await;
    Ok(answer.map_err(|_| OutboxError::Late(deadline))??)
}
