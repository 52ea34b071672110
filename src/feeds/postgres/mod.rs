//! The table `events` of a database as a feed. Whoever writes events inserts rows in transactions of
//! their own; the hub numbers the rows that are committed and reads them by number. How far it is
//! read stands in the log, in the transaction that wrote what it brought, so each row counts once
//! whatever is killed in between.
//!
//! A row that commits late gets a late number: it is never stepped over, and nobody waits for it.

mod outbox;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use self::outbox::{Numbered, Outbox, OutboxError, Row, Sleep};
use super::door::{Door, Incoming};
use super::remote::{self, Remote};
use super::status::{At, FeedId, FeedStatuses, Place};
use crate::market::event::reverts;
use crate::store::FeedPosition;

/// Names the feed's progress in the log.
const NAME: &str = "postgres";
/// Without a row for so long the hub goes to sleep: writers ring from then on, which makes their
/// commits wait for one another, so not between two rows of a busy table.
const QUIET: Duration = Duration::from_millis(100);
/// A look that found fewer rows was early: numbering, reading and logging cost as much for few rows as
/// for many, so more gather before the next. A row is later by this at most.
const FEW_ROWS: usize = 256;
const GATHER: Duration = Duration::from_millis(5);
/// Between two looks at a busy table, rising while nothing comes.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

#[derive(Clone)]
pub struct PostgresConfig {
    /// May hold a password.
    pub url: String,
    /// Between two looks where nothing rang.
    pub poll_interval: Duration,
    /// For any answer.
    pub deadline: Duration,
}

type Cut = remote::Cut<OutboxError>;

/// Runs until told to stop, or until the door is closed.
pub async fn run(
    config: PostgresConfig,
    door: Door,
    statuses: FeedStatuses,
    feed: FeedId,
    shutdown: CancellationToken,
) {
    let remote = Remote { door, statuses: statuses.clone(), feed, source: "Postgres" };
    let own = Feed { config, remote, place: "events".into() };
    let following = own.remote.follow(async |healthy: &mut bool| own.session(healthy).await);
    shutdown.run_until_cancelled(following).await;
    statuses.shutting_down(feed);
}

struct Feed {
    config: PostgresConfig,
    remote: Remote,
    /// Of each row.
    place: Arc<str>,
}

impl Feed {
    /// Reads until it is cut off. `healthy`: all that was there has been read.
    async fn session(&self, healthy: &mut bool) -> Result<Infallible, Cut> {
        let outbox = Outbox::open(&self.config).await?;
        let numbered = outbox.numbered().await?;
        let mut position = self.begin(&numbered).await?;
        let mut rest = Rest::new();
        loop {
            let last = outbox.number().await?;
            let rows = outbox.read(position).await?;
            if rows.is_empty() {
                self.remote.behind(0);
                self.remote.caught_up();
                *healthy = true;
                rest.wait(&outbox, self.config.poll_interval).await?;
                continue;
            }
            self.remote.behind(last.saturating_sub(position));
            let few = rows.len() < FEW_ROWS;
            position = self.deliver(rows, numbered.epoch).await?;
            rest.wake(&outbox).await?;
            if few {
                tokio::time::sleep(GATHER).await;
            }
        }
    }

    /// Behind which number to read.
    async fn begin(&self, numbered: &Numbered) -> Result<u64, Cut> {
        let known = self.remote.position(NAME).await?;
        let Some(FeedPosition { epoch, position, .. }) = known else { return Ok(0) };
        if epoch != numbered.epoch {
            tracing::warn!(
                "the table `events` is another one than before: reading it from its start"
            );
            return Ok(0);
        }
        if position > numbered.last {
            let (was, now) = (position, numbered.last);
            tracing::warn!(
                was,
                now,
                "the table `events` has lost its end: going on from what is left"
            );
        }
        Ok(position.min(numbered.last))
    }

    /// Hands rows to the log; gives the last one's number. What undoes blocks goes by itself.
    async fn deliver(&self, rows: Vec<Row>, epoch: u64) -> Result<u64, Cut> {
        let mut lines = Vec::with_capacity(rows.len());
        let mut position = 0;
        for row in rows {
            let alone = row.line.as_deref().is_ok_and(reverts);
            if alone && !lines.is_empty() {
                self.send(std::mem::take(&mut lines), epoch, position).await?;
            }
            let place = Place { source: self.place.clone(), at: At::Row(row.id) };
            lines.push(Incoming { place, line: row.line });
            position = row.position;
            if alone {
                self.send(std::mem::take(&mut lines), epoch, position).await?;
            }
        }
        if !lines.is_empty() {
            self.send(lines, epoch, position).await?;
        }
        Ok(position)
    }

    async fn send(&self, lines: Vec<Incoming>, epoch: u64, position: u64) -> Result<(), Cut> {
        let position = FeedPosition { feed: NAME.into(), epoch, position };
        self.remote.send(lines, std::iter::once(position)).await
    }
}

/// How long to wait before the next look, and whether writers ring.
struct Rest {
    /// We hold the lock that makes writers ring.
    asleep: bool,
    since: Instant,
    pause: Duration,
}

impl Rest {
    fn new() -> Self {
        Self { asleep: false, since: Instant::now(), pause: FIRST_PAUSE }
    }

    /// Rows came.
    async fn wake(&mut self, outbox: &Outbox) -> Result<(), OutboxError> {
        if std::mem::take(&mut self.asleep) {
            outbox.wake().await?;
        }
        (self.since, self.pause) = (Instant::now(), FIRST_PAUSE);
        Ok(())
    }

    /// Until there may be something to read.
    async fn wait(&mut self, outbox: &Outbox, poll_interval: Duration) -> Result<(), OutboxError> {
        let mut wait = if self.asleep { poll_interval } else { self.pause.min(poll_interval) };
        if !self.asleep && self.since.elapsed() >= QUIET {
            match outbox.sleep().await? {
                Sleep::Asleep => {
                    // Whoever did not ring has committed: look once more, and only then wait.
                    self.asleep = true;
                    return Ok(());
                }
                // It tells us when it has numbered something.
                Sleep::AnotherSleeps => wait = poll_interval,
                Sleep::WritersBusy => {}
            }
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        outbox.rung(wait).await;
        Ok(())
    }
}
