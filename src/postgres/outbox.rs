//! One connection to the database: the table's migrations, numbering and reading it, and the
//! doorbell. Does not know what a row means. Everything has a deadline, as a database that is
//! stopped or unreachable says nothing at all.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, NoTls, Statement};

use super::client::{
    Driver, OutboxError, migrate, refuse_shared_sessions, session, settings, within,
};
use super::{Doorbell, PostgresConfig};
use crate::market::event::MOST_LINE_BYTES;
use crate::market::refusal::Refusal;
use crate::market::time::Micros;

/// Rows numbered and read at once. The table `spreadly_runs` takes no longer run either.
const BATCH_ROWS: i32 = 1_024;
/// Bytes of payloads read at once, but for the last one's.
const BATCH_BYTES: i64 = 1 << 20;
/// Rows without a number that are counted, so that a look at what waits stays short.
const MOST_COUNTED: i64 = 100_000;
/// Advisory locks within the database. The doorbell's is in the migration too.
const DOORBELL: &str = "1936749172, 1";

/// What is numbered of the table.
#[derive(Clone, Copy, Debug)]
pub struct Numbering {
    /// Made with the table.
    pub epoch: u64,
    /// The newest number.
    pub last: u64,
}

impl Numbering {
    /// Whether a position is one of its.
    pub fn has(&self, epoch: u64, position: u64) -> bool {
        epoch == self.epoch && position <= self.last
    }
}

pub struct Row {
    pub position: u64,
    /// As its writer knows it.
    pub id: u64,
    /// Or why it was not even read.
    pub line: Result<Vec<u8>, Refusal>,
    pub inserted: Micros,
    /// Which insertion of a hub it is of, and which line of it.
    pub origin: Option<(u64, usize)>,
}

impl Row {
    /// Of columns that both queries begin with.
    fn new(
        row: &tokio_postgres::Row,
        id: i64,
        position: u64,
    ) -> Result<Self, tokio_postgres::Error> {
        let text: Option<&str> = row.try_get(1)?;
        let origin: Option<i64> = row.try_get(3)?;
        let line: Option<i32> = row.try_get(4)?;
        let line = line.and_then(|line| usize::try_from(line).ok());
        Ok(Self {
            position,
            id: id.cast_unsigned(),
            line: text.map(|text| text.as_bytes().to_vec()).ok_or(Refusal::TooLong),
            inserted: row.try_get(2)?,
            origin: origin.map(i64::cast_unsigned).zip(line),
        })
    }
}

pub struct Rows {
    /// In the order of their numbers.
    pub rows: Vec<Row>,
    /// Up to which number they are. Some have no row any more.
    pub until: u64,
    /// The newest number that was given.
    pub newest: u64,
}

/// What came of going to sleep.
pub enum Sleep {
    /// Who commits from now on rings.
    Asleep,
    /// Another hub does already, and rings for us.
    AnotherSleeps,
    /// Some are about to commit that did not ring.
    WritersBusy,
}

/// See the module's text.
pub struct Outbox {
    client: Client,
    deadline: Duration,
    rung: Arc<Notify>,
    may_sleep: bool,
    take: Statement,
    read: Statement,
    _driver: Driver,
}

impl Outbox {
    /// Connects, and makes the tables where they are missing.
    pub async fn open(config: &PostgresConfig) -> Result<Self, OutboxError> {
        let deadline = config.deadline;
        let settings = settings(config)?;
        // Each address may take as long.
        let addresses = u32::try_from(settings.get_hosts().len()).unwrap_or(u32::MAX).max(1);
        let connecting = within(deadline.saturating_mul(addresses), settings.connect(NoTls));
        let (mut client, mut connection) = connecting.await?;
        let rung = Arc::new(Notify::new());
        let ringing = rung.clone();
        let driver = Driver(tokio::spawn(async move {
            loop {
                match poll_fn(|cx| connection.poll_message(cx)).await {
                    Some(Ok(AsyncMessage::Notification(_))) => ringing.notify_one(),
                    Some(Ok(_)) => {}
                    // The task that waits asks something and so finds out.
                    Some(Err(_)) | None => return ringing.notify_one(),
                }
            }
        }));
        refuse_shared_sessions(&client, &settings, deadline).await?;
        migrate(&mut client, config.schema.as_deref()).await?;
        let session =
            session(config) + BY_INDEX + "LISTEN spreadly_events; LISTEN spreadly_numbered";
        within(deadline, client.batch_execute(&session)).await?;
        let may_sleep = match config.doorbell {
            Doorbell::Auto => !may_prepare(&client, deadline).await?,
            Doorbell::On => true,
            Doorbell::Off => false,
        };
        let take = within(deadline, client.prepare(TAKE)).await?;
        let read = within(deadline, client.prepare(READ)).await?;
        Ok(Self { client, deadline, rung, may_sleep, take, read, _driver: driver })
    }

    pub async fn is_utf8(&self) -> Result<(), OutboxError> {
        let query = self.client.query_one("SHOW server_encoding", &[]);
        let row = within(self.deadline, query).await?;
        match row.try_get(0)? {
            "UTF8" => Ok(()),
            other => Err(OutboxError::Encoding(other.to_owned())),
        }
    }

    /// Begins a new epoch after the numbers of this one, once, however many hubs ask for it.
    pub async fn renumber(&self, epoch: u64) -> Result<(), OutboxError> {
        let fresh: i64 = rand::random();
        let parameters: [&(dyn ToSql + Sync); 2] = [&epoch.cast_signed(), &fresh];
        let query = "UPDATE spreadly_numbering SET epoch = $2 WHERE epoch = $1";
        within(self.deadline, self.client.execute(query, &parameters)).await?;
        Ok(())
    }

    pub async fn numbering(&self) -> Result<Numbering, OutboxError> {
        let query = self.client.query_one("SELECT epoch, last FROM spreadly_numbering", &[]);
        let row = within(self.deadline, query).await?;
        let whole = |column| row.try_get::<_, i64>(column).map(i64::cast_unsigned);
        Ok(Numbering { epoch: whole(0)?, last: whole(1)? })
    }

    /// The rows after a number, of which `newest` was known to be the last. Where there are none,
    /// numbers what was committed since; `busy`: something was, most likely.
    pub async fn after(&self, position: u64, newest: u64, busy: bool) -> Result<Rows, OutboxError> {
        if position < newest {
            let found = self.read(position, newest).await?;
            if found.until > position {
                return Ok(found);
            }
        }
        let taken = self.take(!busy).await?;
        // Others were numbered before them, by another hub or without being known; or they are too
        // large.
        let next = taken.rows.first().map_or(taken.newest, |row| row.position - 1);
        if next == position { Ok(taken) } else { self.read(position, taken.newest).await }
    }

    /// Numbers what was committed and brings it, if it is not too large.
    async fn take(&self, look_first: bool) -> Result<Rows, OutboxError> {
        let parameters: [&(dyn ToSql + Sync); 3] = [&BATCH_ROWS, &BATCH_BYTES, &look_first];
        let query = self.client.query(&self.take, &parameters);
        // All of it, so that it is committed: only then do the numbers count.
        let found = within(self.deadline, query).await?;
        let first = found.first().ok_or(OutboxError::NotOurs)?;
        let newest = first.try_get::<_, i64>(5)?.cast_unsigned();
        let before = newest - first.try_get::<_, i64>(6)?.cast_unsigned();
        let mut taken = Rows { rows: Vec::with_capacity(found.len()), until: newest, newest };
        for (row, position) in found.iter().zip(before + 1..) {
            if let Some(id) = row.try_get::<_, Option<i64>>(0)? {
                taken.rows.push(Row::new(row, id, position)?);
            }
        }
        Ok(taken)
    }

    /// What has a number after this one.
    async fn read(&self, position: u64, newest: u64) -> Result<Rows, OutboxError> {
        let after = position.cast_signed();
        let most = MOST_LINE_BYTES as i32;
        let parameters: [&(dyn ToSql + Sync); 4] =
            [&after, &i64::from(BATCH_ROWS), &BATCH_BYTES, &most];
        let query = self.client.query(&self.read, &parameters);
        let found = within(self.deadline, query).await?;
        let mut read = Rows { rows: Vec::with_capacity(found.len()), until: position, newest };
        for row in &found {
            read.until = row.try_get::<_, i64>(5)?.cast_unsigned();
            // One that was deleted leaves its number.
            if row.try_get::<_, bool>(6)? {
                read.rows.push(Row::new(row, row.try_get(0)?, read.until)?);
            }
        }
        Ok(read)
    }

    /// Rows after a number, those without a number among them: so many of these at most.
    pub async fn lag(&self, position: u64) -> Result<u64, OutboxError> {
        let query = self.client.query_one(LAG, &[&MOST_COUNTED]);
        let row = within(self.deadline, query).await?;
        let whole = |column| row.try_get::<_, i64>(column).map(i64::cast_unsigned);
        Ok(whole(0)?.saturating_sub(position) + whole(1)?)
    }

    /// Writers may be made to ring.
    pub fn may_sleep(&self) -> bool {
        self.may_sleep
    }

    /// From now on writers ring, if nobody is in the way.
    pub async fn sleep(&self) -> Result<Sleep, OutboxError> {
        // The second only shows who is in the way of the first.
        let query = format!(
            "SELECT CASE WHEN pg_try_advisory_lock({DOORBELL}) THEN 0
                 WHEN pg_try_advisory_lock_shared({DOORBELL})
                     THEN CASE WHEN pg_advisory_unlock_shared({DOORBELL}) THEN 1 END
                 ELSE 2 END"
        );
        let row = within(self.deadline, self.client.query_one(&query, &[])).await?;
        Ok(match row.try_get::<_, i32>(0)? {
            0 => Sleep::Asleep,
            1 => Sleep::WritersBusy,
            _ => Sleep::AnotherSleeps,
        })
    }

    /// Writers need not ring any more.
    pub async fn wake(&self) -> Result<(), OutboxError> {
        let query = format!("SELECT pg_advisory_unlock({DOORBELL})");
        within(self.deadline, self.client.query_one(&query, &[])).await?;
        Ok(())
    }

    /// Waits for the doorbell, at most so long.
    pub async fn rung(&self, wait: Duration) {
        drop(tokio::time::timeout(wait, self.rung.notified()).await);
    }
}

/// Whether the server lets anybody prepare a transaction. It says so at its start, for its life.
async fn may_prepare(client: &Client, deadline: Duration) -> Result<bool, OutboxError> {
    let query = "SELECT current_setting('max_prepared_transactions')::integer > 0";
    Ok(within(deadline, client.query_one(query, &[])).await?.try_get(0)?)
}

/// Postgres has old statistics of a table that grows fast, so these settings force index scans.
/// Each query here has an index.
const BY_INDEX: &str = "SET enable_seqscan = off; SET enable_bitmapscan = off;
    SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off; ";

/// The newest number, and how many committed rows have none yet, at most $1. They are those that
/// the last numbering did not see, without those of a round that is not over which have theirs
/// already.
const LAG: &str = "
    SELECT last, (
        SELECT count(*) FROM (
            SELECT FROM events
            WHERE xact >= pg_snapshot_xmin(seen) AND NOT pg_visible_in_snapshot(xact, seen)
                AND (round IS NULL OR NOT pg_visible_in_snapshot(xact, round)
                    OR (xact, id) > (round_xact, round_id))
            LIMIT $1
        ) AS new)
    FROM spreadly_numbering";

/// What [`Row::new`] takes, then the newest number and how many of them were numbered by this.
const TAKE: &str = "
    SELECT id, payload::text, (date_part('epoch', inserted_at) * 1000000)::bigint, origin, line,
        newest, numbered
    FROM spreadly_take($1, $2, $3)";

/// What [`Row::new`] takes, then its number and whether there is one. Rows after the number $1, at
/// most $2, of which those before the last have at most $3 bytes. A payload that no event may have
/// is not even fetched. Runs have no more rows than are read at once; the next one may be further
/// off than that.
const READ: &str = "
    SELECT id, CASE WHEN size <= $4 THEN payload::text END,
        (date_part('epoch', inserted_at) * 1000000)::bigint, origin, line,
        position, size IS NOT NULL
    FROM (
        SELECT *, sum(size) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) AS bytes FROM (
            SELECT *, octet_length(payload::text) AS size FROM (
                SELECT first + place - 1 AS position, id
                FROM spreadly_runs, unnest(ids) WITH ORDINALITY AS numbered (id, place)
                WHERE first BETWEEN
                        (SELECT coalesce(max(first), 0) FROM spreadly_runs WHERE first <= $1::bigint + 1)
                        AND greatest($1::bigint + $2::bigint,
                            (SELECT min(first) FROM spreadly_runs WHERE first > $1::bigint + 1))
                    AND first + place - 1 > $1::bigint
                ORDER BY position LIMIT $2::bigint
            ) AS numbered LEFT JOIN events USING (id)
        ) AS next
    ) AS counted
    WHERE coalesce(bytes, 0) - coalesce(size, 0) <= $3 ORDER BY position";
