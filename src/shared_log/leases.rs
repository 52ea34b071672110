//! Which hub reads what, and how far that is in the shared log: the tables `spreadly_sources` and
//! `spreadly_files`. A hub that writes events holds their source's row until the commit, so
//! a reader that was replaced meanwhile writes nothing.
//!
//! A hub that begins to read a folder takes it over. A partition of Kafka has a reader as long
//! as that one says so again within [`LEASE`]; then any hub may go on in its place. Hubs that can
//! read the same partitions share them: see [`super::share`].

use std::collections::BTreeSet;
use std::time::Duration;

use deadpool_postgres::{Object, Transaction};
use parking_lot::Mutex;
use spreadly_subscriptions::topic_hash;
use thiserror::Error;
use tokio_postgres::Row;

use super::share::{Claimer, Share, Step};
use crate::ingest::handle::{self, Lease};
use crate::store::{FeedPosition, FileProgress, Progress};

/// How long a reader of a partition is taken for alive that says nothing. With the second between
/// two looks of the others it stays below the 5 s within which a topic has to be reported as STALE.
pub const LEASE: Duration = Duration::from_secs(3);

/// Waits for the current writer.
const TAKE_OVER: &str = "
    INSERT INTO spreadly_sources (feed, reader) VALUES ($1, $2)
    ON CONFLICT (feed) DO UPDATE SET reader = EXCLUDED.reader";
const HOLD: &str = "SELECT FROM spreadly_sources WHERE feed = $1 AND reader = $2 FOR UPDATE";
const MAKE: &str = "
    INSERT INTO spreadly_sources (feed, reader) SELECT feed, $2 FROM unnest($1::text[]) AS asked (feed)
    ON CONFLICT (feed) DO NOTHING";
const CAN_READ: &str = "
    UPDATE spreadly_hubs SET claims = $2, claimed = clock_timestamp() WHERE reader = $1";
/// Hubs that can read the same, this one among them, and how much of it each reads.
const CLAIMERS: &str = "
    SELECT reader, coalesce(count, 0)
    FROM (
            SELECT reader FROM spreadly_hubs
            WHERE claims = $4 AND claimed > clock_timestamp() - make_interval(secs => $3)
            UNION SELECT $2
        ) AS claimer
        LEFT JOIN (
            SELECT reader, count(*) FROM spreadly_sources
            WHERE feed = ANY ($1) AND renewed > clock_timestamp() - make_interval(secs => $3)
            GROUP BY reader
        ) AS held USING (reader)";
const GIVE_UP: &str = "
    WITH least AS (
        SELECT feed FROM spreadly_sources
        WHERE feed = ANY ($1) AND reader = $2 AND renewed > '-infinity'
        ORDER BY feed DESC LIMIT $3 FOR UPDATE SKIP LOCKED)
    UPDATE spreadly_sources AS own SET renewed = '-infinity'
    FROM least WHERE own.feed = least.feed";
/// Renews what this hub reads, and takes some of what has no reader. Waits for nobody: a row that
/// is held has a reader.
const CLAIM: &str = "
    WITH own AS (
        SELECT feed FROM spreadly_sources
        WHERE feed = ANY ($1) AND reader = $2
            AND renewed > clock_timestamp() - make_interval(secs => $3)
        FOR UPDATE SKIP LOCKED
    ), free AS (
        SELECT feed FROM spreadly_sources
        WHERE feed = ANY ($1) AND renewed <= clock_timestamp() - make_interval(secs => $3)
        ORDER BY reader = $2 DESC, feed LIMIT $4 FOR UPDATE SKIP LOCKED
    )
    UPDATE spreadly_sources AS claimed SET reader = $2, renewed = clock_timestamp()
    FROM (SELECT feed FROM own UNION SELECT feed FROM free) AS all_of_it
    WHERE claimed.feed = all_of_it.feed";
const CLAIMED: &str = "
    SELECT reader = $2 AND renewed > clock_timestamp() - make_interval(secs => $3),
        epoch, position, mark
    FROM unnest($1::text[]) WITH ORDINALITY AS asked (feed, place)
        LEFT JOIN spreadly_sources USING (feed)
    ORDER BY place";
const RELEASE: &str = "UPDATE spreadly_sources SET renewed = '-infinity' WHERE reader = $1";
const FILES: &str = "SELECT state::text FROM spreadly_files WHERE feed = $1 ORDER BY moved";
const PUT_FILE: &str = "
    INSERT INTO spreadly_files (feed, stream, state) VALUES ($1, $2, $3::text::json)
    ON CONFLICT (feed, stream)
        DO UPDATE SET state = EXCLUDED.state, moved = nextval('spreadly_moves')";
const FORGET_FILE: &str = "DELETE FROM spreadly_files WHERE feed = $1 AND stream = $2";
const PUT_POSITION: &str = "
    UPDATE spreadly_sources
    SET epoch = $2, position = $3, mark = $4, renewed = clock_timestamp()
    WHERE feed = $1";

#[derive(Debug, Error)]
pub(super) enum LeaseError {
    #[error("{0}")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("the table spreadly_files can't be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("another hub reads {0}: only one may, stop one of them")]
    TakenOver(String),
}

/// This hub among the readers.
pub(super) struct Leases {
    /// This process.
    reader: i64,
    /// Its machine, as the folders of others may have the same names.
    host: String,
    share: Mutex<Share>,
}

impl Leases {
    pub(super) fn new(reader: i64, host: String) -> Self {
        Self { reader, host, share: Mutex::default() }
    }

    /// Makes sure that nobody else writes for what this is the progress of, until the commit.
    pub(super) async fn hold(
        &self,
        transaction: &Transaction<'_>,
        progress: &[Progress],
    ) -> Result<(), LeaseError> {
        // In one order, so that two hubs never wait for one another.
        let sources: BTreeSet<String> = progress
            .iter()
            .map(|one| match one {
                Progress::File(file) => self.folder(&file.feed),
                Progress::Position(position) => position.feed.to_string(),
            })
            .collect();
        let hold = transaction.prepare_cached(HOLD).await?;
        for source in sources {
            if transaction.query_opt(&hold, &[&source, &self.reader]).await?.is_none() {
                return Err(LeaseError::TakenOver(source));
            }
        }
        Ok(())
    }

    pub(super) async fn put(
        &self,
        transaction: &Transaction<'_>,
        one: &Progress,
    ) -> Result<(), LeaseError> {
        match one {
            Progress::Position(FeedPosition { feed, epoch, position, mark }) => {
                let put = transaction.prepare_cached(PUT_POSITION).await?;
                let (epoch, position) = (epoch.cast_signed(), position.cast_signed());
                let mark = mark.map(u64::cast_signed);
                transaction.execute(&put, &[feed, &epoch, &position, &mark]).await?;
            }
            Progress::File(file) => {
                let (folder, stream) = (self.folder(&file.feed), file.stream.cast_signed());
                if file.forgotten {
                    let forget = transaction.prepare_cached(FORGET_FILE).await?;
                    transaction.execute(&forget, &[&folder, &stream]).await?;
                } else {
                    let put = transaction.prepare_cached(PUT_FILE).await?;
                    let state = handle::json(file);
                    transaction.execute(&put, &[&folder, &stream, &state]).await?;
                }
            }
        }
        Ok(())
    }

    /// Takes a folder over and gives how far each of its files is read.
    pub(super) async fn files(
        &self,
        connection: &mut Object,
        feed: &str,
    ) -> Result<Vec<FileProgress>, LeaseError> {
        let folder = self.folder(feed);
        let transaction = connection.transaction().await?;
        let take = transaction.prepare_cached(TAKE_OVER).await?;
        transaction.execute(&take, &[&folder, &self.reader]).await?;
        let files = transaction.prepare_cached(FILES).await?;
        let rows = transaction.query(&files, &[&folder]).await?;
        transaction.commit().await?;
        let file = |row: &Row| -> Result<FileProgress, LeaseError> {
            let file = serde_json::from_str(row.try_get(0)?)?;
            Ok(FileProgress { feed: feed.into(), ..file })
        };
        rows.iter().map(file).collect()
    }

    /// See [`handle::IngestHandle::claim`]. Each statement by itself: a hub that is stopped in
    /// between holds nothing. What it gives up is no longer its own in the answer: its feed asks
    /// between two batches, so nothing of that is under way.
    pub(super) async fn claim(
        &self,
        connection: &Object,
        feeds: &[Box<str>],
    ) -> Result<Vec<Lease>, LeaseError> {
        let make = connection.prepare_cached(MAKE).await?;
        connection.execute(&make, &[&feeds, &self.reader]).await?;
        let Step { takes, gives_up } = self.share_of(connection, feeds).await?;
        if gives_up > 0 {
            let give_up = connection.prepare_cached(GIVE_UP).await?;
            let given = count(gives_up);
            let given = connection.execute(&give_up, &[&feeds, &self.reader, &given]).await?;
            tracing::info!("this hub leaves {given} partitions of Kafka to other hubs");
        }
        let (lease, takes) = (LEASE.as_secs_f64(), count(takes));
        let claim = connection.prepare_cached(CLAIM).await?;
        connection.execute(&claim, &[&feeds, &self.reader, &lease, &takes]).await?;
        let claimed = connection.prepare_cached(CLAIMED).await?;
        let rows = connection.query(&claimed, &[&feeds, &self.reader, &lease]).await?;
        let one = |feed: &str, row: &Row| {
            let whole = |place| {
                let number: Option<i64> = row.try_get(place)?;
                Ok::<_, LeaseError>(number.map(i64::cast_unsigned))
            };
            let (known, mark) = (whole(1)?.zip(whole(2)?), whole(3)?);
            let feed = feed.into();
            let position =
                known.map(|(epoch, position)| FeedPosition { feed, epoch, position, mark });
            Ok(Lease { ours: row.try_get::<_, Option<bool>>(0)?.unwrap_or(false), position })
        };
        feeds.iter().zip(&rows).map(|(feed, row)| one(feed, row)).collect()
    }

    /// Says that this hub can read these, and looks how many of them it should read.
    async fn share_of(&self, connection: &Object, feeds: &[Box<str>]) -> Result<Step, LeaseError> {
        let mut names: Vec<&str> = feeds.iter().map(|feed| &**feed).collect();
        names.sort_unstable();
        let claims = topic_hash(&names.join("\n")).cast_signed();
        let can_read = connection.prepare_cached(CAN_READ).await?;
        connection.execute(&can_read, &[&self.reader, &claims]).await?;
        let claimers = connection.prepare_cached(CLAIMERS).await?;
        let lease = LEASE.as_secs_f64();
        let rows = connection.query(&claimers, &[&feeds, &self.reader, &lease, &claims]).await?;
        let claimer = |row: &Row| {
            let held: i64 = row.try_get(1)?;
            let held = usize::try_from(held).unwrap_or_default();
            Ok::<_, LeaseError>(Claimer { reader: row.try_get(0)?, held })
        };
        let all = rows.iter().map(claimer).collect::<Result<Vec<_>, _>>()?;
        let own = all.iter().find(|one| one.reader == self.reader).copied();
        let own = own.unwrap_or(Claimer { reader: self.reader, held: 0 });
        Ok(self.share.lock().look(feeds.len(), own, &all))
    }

    /// Lets others go on at once with what this hub has claimed.
    pub(super) async fn release(&self, connection: &Object) -> Result<(), LeaseError> {
        let release = connection.prepare_cached(RELEASE).await?;
        connection.execute(&release, &[&self.reader]).await?;
        Ok(())
    }

    /// A folder's name among the sources of all hubs.
    fn folder(&self, path: &str) -> String {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
        format!("{}:{}", self.host, absolute.display())
    }
}

/// As Postgres takes it.
fn count(many: usize) -> i64 {
    i64::try_from(many).unwrap_or(i64::MAX)
}
