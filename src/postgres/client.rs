//! Connections to the database: their settings, their errors, the tables that they find.

use std::error::Error as _;
use std::future::Future;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

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
    #[error(
        "its tables can't be made: {0}: {cause}: run `spreadly migrate` once as a role that may",
        cause = first_cause(.0)
    )]
    Migration(#[from] Box<refinery::Error>),
    #[error(
        "its table `events` is not the hub's: name a schema for the hub's tables \
         (feeds.postgres.schema)"
    )]
    ForeignTable,
    #[error(
        "its connections share sessions, as PgBouncer has them with pool_mode = transaction: use \
         pool_mode = session, or name the database itself"
    )]
    SharedSessions,
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
    if let Some(schema) = &config.schema {
        let theirs = settings.get_options().map_or(String::new(), |options| format!("{options} "));
        settings.options(format!("{theirs}-c search_path={schema}"));
    }
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

/// Refuses a pooler that gives one session of the database to many connections in turn: the
/// doorbell's lock and what this session has set would be those of others. `own` has just asked
/// something, so its session is the next one that such a pooler gives.
pub(super) async fn refuse_shared_sessions(
    own: &Client,
    settings: &tokio_postgres::Config,
    deadline: Duration,
) -> Result<(), OutboxError> {
    let process = async |client: &Client| {
        // Without a prepared statement, which a pooler may lose.
        let answers = within(deadline, client.simple_query("SELECT pg_backend_pid()")).await?;
        let row = answers.iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok::<_, OutboxError>(row)
    };
    let first = process(own).await?;
    // Where no second connection is to be had, there is nothing to see.
    let Ok((second, connection)) = within(deadline, settings.connect(NoTls)).await else {
        return Ok(());
    };
    let _driver = Driver(tokio::spawn(async move { drop(connection.await) }));
    match process(&second).await {
        Ok(second) if second == first => Err(OutboxError::SharedSessions),
        _ => Ok(()),
    }
}

/// Whether the tables are those that this release makes. A role that may not make any can ask.
async fn is_up_to_date(client: &Client, runner: &refinery::Runner) -> Result<bool, OutboxError> {
    let tables = "SELECT to_regclass('spreadly_migrations') IS NOT NULL,
        to_regclass('events') IS NOT NULL";
    let tables = within(MIGRATION_DEADLINE, client.query_one(tables, &[])).await?;
    let (ours, events): (bool, bool) = (tables.try_get(0)?, tables.try_get(1)?);
    if !ours {
        return if events { Err(OutboxError::ForeignTable) } else { Ok(false) };
    }
    let applied = "SELECT version::bigint, checksum FROM spreadly_migrations ORDER BY version";
    let applied = within(MIGRATION_DEADLINE, client.query(applied, &[])).await?;
    let applied: Vec<(i64, String)> = applied
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, tokio_postgres::Error>>()?;
    let mut known: Vec<_> = runner
        .get_migrations()
        .iter()
        .map(|one| (i64::from(one.version()), one.checksum().to_string()))
        .collect();
    known.sort_unstable();
    Ok(applied == known)
}

/// Makes the tables, or brings them up to date. Gives the names of what was done.
pub async fn make_tables(config: &PostgresConfig) -> Result<Vec<String>, OutboxError> {
    let settings = settings(config)?;
    let (mut client, connection) = within(config.deadline, settings.connect(NoTls)).await?;
    let _driver = Driver(tokio::spawn(async move { drop(connection.await) }));
    refuse_shared_sessions(&client, &settings, config.deadline).await?;
    migrate(&mut client, config.schema.as_deref()).await
}

pub(super) async fn migrate(
    client: &mut Client,
    schema: Option<&str>,
) -> Result<Vec<String>, OutboxError> {
    // Writers wait while a migration waits for a transaction, so it gives up soon and tries again.
    let lock =
        format!("SET lock_timeout = {MIGRATION_LOCK_MS}; SELECT pg_advisory_lock({MIGRATING})");
    within(MIGRATION_DEADLINE, client.batch_execute(&lock)).await?;
    let mut runner = migrations::migrations::runner();
    runner.set_migration_table_name("spreadly_migrations");
    let mut applied = Vec::new();
    if !is_up_to_date(client, &runner).await? {
        if let Some(schema) = schema {
            let make = format!("CREATE SCHEMA IF NOT EXISTS {schema}");
            within(MIGRATION_DEADLINE, client.batch_execute(&make)).await?;
        }
        let migrating = tokio::time::timeout(MIGRATION_DEADLINE, runner.run_async(client));
        let report = migrating
            .await
            .map_err(|_| OutboxError::Late(MIGRATION_DEADLINE))?
            .map_err(Box::new)?;
        for migration in report.applied_migrations() {
            tracing::info!(%migration, "the database's tables are brought up to date");
            applied.push(migration.to_string());
        }
    }
    within(MIGRATION_DEADLINE, client.batch_execute("SELECT spreadly_adopt()")).await?;
    // An error leaves it to the session's end.
    let unlock = format!("SET lock_timeout = 0; SELECT pg_advisory_unlock({MIGRATING})");
    within(MIGRATION_DEADLINE, client.batch_execute(&unlock)).await?;
    Ok(applied)
}

pub(super) async fn within<T>(
    deadline: Duration,
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, OutboxError> {
    let answer = tokio::time::timeout(deadline, answer).await;
    Ok(answer.map_err(|_| OutboxError::Late(deadline))??)
}
