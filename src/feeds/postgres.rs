//! The table `events` of a database as a feed. Writers insert rows in transactions of their own.
//! The hub numbers the committed rows and reads them by number. The position is written to the log
//! in the transaction that writes the events, so each row counts once, whatever is killed.
//!
//! A row that commits late gets a late number: it is never stepped over, and nobody waits for it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::session::{self, Remote};
use crate::ingest::feed_status::{FeedId, FeedStatuses};
use crate::ingest::handle::{Incoming, IngestHandle};
use crate::ingest::place::{At, Place};
use crate::market::event::begins_epochs;
use crate::postgres::{Numbering, Outbox, OutboxError, PostgresConfig, Row, Sleep};
use crate::shared_log::Reader;
use crate::store::{FeedPosition, Numbered};

/// Names the feed's progress in the log.
pub const NAME: &str = "postgres";
/// Without a row for so long the hub goes to sleep: writers ring from then on, which makes their
/// commits wait for one another, so not between two rows of a busy table.
const QUIET: Duration = Duration::from_millis(100);
/// A look that found fewer than many rows was early: numbering, reading and logging cost little
/// more for many than for few, so more gather before the next. A row is later by that at most: by
/// the shorter time where there are few, as then the looks cost little themselves.
const MANY_ROWS: u64 = 512;
const GATHER: Duration = Duration::from_millis(10);
const FEW_ROWS: u64 = 32;
const GATHER_FEW: Duration = Duration::from_millis(5);
/// Between two looks at a busy table, rising while nothing comes.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

type Cut = session::Cut<OutboxError>;

/// Runs until `shutdown`, or until the log is closed.
pub async fn run(
    config: PostgresConfig,
    shared: Option<Reader>,
    ingest: IngestHandle,
    statuses: FeedStatuses,
    feed: FeedId,
    shutdown: CancellationToken,
) {
    let remote = Remote { ingest, statuses: statuses.clone(), feed, source: "Postgres" };
    let own = Feed { config, shared, remote, place: "events".into() };
    let following = own.remote.follow(async |healthy: &mut bool| own.session(healthy).await);
    shutdown.run_until_cancelled(following).await;
    statuses.shutting_down(feed);
}

struct Feed {
    config: PostgresConfig,
    shared: Option<Reader>,
    remote: Remote,
    /// Of each row.
    place: Arc<str>,
}

impl Feed {
    /// Reads until it is cut off. `healthy`: all that was there has been read.
    async fn session(&self, healthy: &mut bool) -> Result<Infallible, Cut> {
        let outbox = Outbox::open(&self.config).await?;
        let numbering = outbox.numbering().await?;
        let mut position = self.begin(&numbering).await?;
        let mut newest = numbering.last;
        let mut rest = Rest::new();
        let mut busy = false;
        loop {
            let found = outbox.after(position, newest, busy).await?;
            newest = found.newest;
            busy = found.until != position;
            if !busy {
                self.remote.set_lag(0);
                self.remote.caught_up();
                *healthy = true;
                rest.wait(&outbox, self.config.poll_interval).await?;
                continue;
            }
            let lag = newest.saturating_sub(position);
            self.remote.set_lag(lag);
            let delivering = self.deliver(found.rows, numbering.epoch);
            let waiting = async || outbox.lag(position).await.ok();
            self.remote.counting(delivering, waiting).await?;
            position = found.until;
            rest.wake(&outbox).await?;
            if lag < MANY_ROWS {
                tokio::time::sleep(if lag < FEW_ROWS { GATHER_FEW } else { GATHER }).await;
            }
        }
    }

    /// After which number to read.
    async fn begin(&self, numbering: &Numbering) -> Result<u64, Cut> {
        let known = self.remote.position(NAME).await?;
        if let Some(shared) = &self.shared {
            let position = known.map_or(0, |known| known.position);
            if shared.has(numbering, position) {
                return Ok(position);
            }
            tracing::error!(
                "the table `events` is not the one that this hub's replica is of, or has lost its \
                 end: the hub starts with a new replica"
            );
            shared.set_replaced();
            return Err(Cut::Closed);
        }
        let Some(FeedPosition { epoch, position, .. }) = known else { return Ok(0) };
        if epoch != numbering.epoch {
            tracing::warn!(
                "the table `events` is another one than before: reading it from its start"
            );
            return Ok(0);
        }
        if position > numbering.last {
            let (was, now) = (position, numbering.last);
            tracing::warn!(
                was,
                now,
                "the table `events` has lost its end: going on from what is left"
            );
        }
        Ok(position.min(numbering.last))
    }

    /// Hands rows to the log.
    async fn deliver(&self, rows: Vec<Row>, epoch: u64) -> Result<(), Cut> {
        let mut runs: Vec<Run> = Vec::new();
        for row in rows {
            let awaited = self.awaited(&row);
            let origin = awaited.as_ref().map(|(origin, _)| *origin);
            let alone = row.line.as_deref().is_ok_and(begins_epochs);
            let place = match awaited {
                Some((_, place)) => place,
                None => Place { source: self.place.clone(), at: At::Row(row.id) },
            };
            let numbered = self
                .shared
                .is_some()
                .then_some(Numbered { sequence: row.position, received: row.inserted });
            let line = Incoming { place, line: row.line, numbered };
            match runs.last_mut().filter(|run| run.takes(origin, alone)) {
                Some(run) => {
                    run.lines.push(line);
                    run.position = row.position;
                }
                None => {
                    let (lines, position) = (vec![line], row.position);
                    runs.push(Run { lines, position, origin, alone });
                }
            }
        }
        let mut pending = Vec::with_capacity(runs.len());
        for Run { lines, position, origin, .. } in runs {
            let count = lines.len();
            let position = FeedPosition { feed: NAME.into(), epoch, position, mark: None };
            let batch = self.remote.submit(lines, std::iter::once(position)).await?;
            pending.push((origin, count, batch));
        }
        for (origin, count, batch) in pending {
            let ack = batch.acknowledged().await.map_err(|_| Cut::Closed)?;
            if let (Some(origin), Some(shared)) = (origin, &self.shared) {
                shared.settle(origin, count, ack);
            }
        }
        Ok(())
    }

    /// Which insertion a row is of that this hub waits for, and where it came from.
    fn awaited(&self, row: &Row) -> Option<(u64, Place)> {
        let (origin, line) = row.origin?;
        let place = self.shared.as_ref()?.place(origin, line)?;
        Some((origin, place))
    }
}

/// Rows that are handed in together: of one insertion that is waited for, or of none. What undoes
/// blocks goes by itself.
struct Run {
    lines: Vec<Incoming>,
    /// Of the last one.
    position: u64,
    origin: Option<u64>,
    alone: bool,
}

impl Run {
    fn takes(&self, origin: Option<u64>, alone: bool) -> bool {
        self.origin == origin && !self.alone && !alone
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
        if outbox.may_sleep() && !self.asleep && self.since.elapsed() >= QUIET {
            match outbox.sleep().await? {
                Sleep::Asleep => {
                    // A writer that did not ring has committed: look once more, and only then wait.
                    self.asleep = true;
                    return Ok(());
                }
                // It notifies us when it has numbered something.
                Sleep::AnotherSleeps => wait = poll_interval,
                Sleep::WritersBusy => {}
            }
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        outbox.rung(wait).await;
        Ok(())
    }
}
