//! How events enter the shared log. What this hub's feeds and clients bring is inserted into the
//! table `events`, together with how far each feed is read. The hub's own reader brings it back
//! with everyone's rows, in the one order that all hubs see, and then the answer is given.
//!
//! A feed's lines are tried until they are in, as with a log of its own. A mutation is tried once a
//! connection is free and is refused where none is: its client can ask again.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError,
    RecyclingMethod, Runtime, TimeoutType, Timeouts,
};
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinSet, LocalSet};
use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;

use super::hubs::{Agreed, Hubs, RENEWAL};
use super::leases::{LeaseError, Leases};
use super::losses::Losses;
use super::meters::PostgresMeters;
use super::ownership_guard::OwnershipGuard;
use super::waiters::Waiters;
use crate::ingest::backoff;
use crate::ingest::feed_status::{Cause, FeedId, FeedKind, FeedStatuses};
use crate::ingest::handle::{
    self, Ack, Answer, Batch, Incoming, IngestError, IngestHandle, Request,
};
use crate::ingest::place::Place;
use crate::live::Live;
use crate::market::event;
use crate::market::refusal::Refusal;
use crate::postgres::PostgresConfig;
use crate::postgres::{self, OutboxError};
use crate::store::Progress;

/// Requests that are under way at once: twice what waits at a handle, and each has at most a batch.
const MOST_UNDER_WAY: usize = 512;

/// Lines in order, or none of them where a commit of unknown outcome has brought them already.
const INSERT: &str = "
    WITH once AS (
        INSERT INTO spreadly_insertions (origin) VALUES ($1) ON CONFLICT DO NOTHING RETURNING origin
    )
    INSERT INTO events (payload, origin, line)
    SELECT payload::json, origin, place - 1
    FROM once, unnest($2::text[]) WITH ORDINALITY AS new (payload, place)
    ORDER BY place";

#[derive(Clone)]
pub struct WriterConfig {
    pub postgres: PostgresConfig,
    /// Connections beside the reader's.
    pub connections: usize,
    /// How long a mutation waits for one.
    pub connection_wait: Duration,
    /// Which machine this is: its folders are others than those of the same name elsewhere.
    pub host: String,
    /// What has to be the same on all hubs.
    pub agreed: Agreed,
    /// Absent: every feed may bring anything.
    pub ownership_guard: Option<OwnershipGuard>,
    /// As far as this hub has read the log.
    pub live: Arc<Live>,
    pub meters: Arc<PostgresMeters>,
}

#[derive(Debug, Error)]
enum WriterError {
    #[error(
        "all connections (store.connections) were busy for {} ms (store.connection_wait_ms)",
        .0.as_millis()
    )]
    Busy(Duration),
    /// Nothing of it got there.
    #[error("{0}")]
    Unreachable(OutboxError),
    #[error("{0}")]
    Pool(PoolError),
    /// It may be in.
    #[error("{0}")]
    Unsure(#[from] OutboxError),
    #[error("{0}")]
    Lease(LeaseError),
}

impl From<tokio_postgres::Error> for WriterError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Unsure(error.into())
    }
}

impl From<LeaseError> for WriterError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Postgres(error) => error.into(),
            other => Self::Lease(other),
        }
    }
}

/// What was asked of [`Writer`].
pub struct Requests(mpsc::Receiver<Request>);

/// The handle whose requests [`Writer::run`] answers.
pub fn handle() -> (IngestHandle, Requests) {
    let (ingest, requests) = IngestHandle::open();
    (ingest, Requests(requests))
}

/// See the module's text.
pub struct Writer {
    config: WriterConfig,
    pool: Pool,
    waiters: Arc<Waiters>,
    statuses: FeedStatuses,
    leases: Leases,
    hubs: Hubs,
}

impl Writer {
    pub(super) fn new(
        config: WriterConfig,
        waiters: Arc<Waiters>,
        statuses: FeedStatuses,
    ) -> Result<Self, OutboxError> {
        let deadline = config.postgres.deadline;
        let (settings, session) =
            (postgres::settings(&config.postgres)?, postgres::session(&config.postgres));
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(settings, NoTls, recycling);
        let pool = Pool::builder(manager)
            .max_size(config.connections)
            .create_timeout(Some(deadline))
            .recycle_timeout(Some(deadline))
            .post_create(Hook::async_fn(move |connection: &mut ClientWrapper, _| {
                let session = session.clone();
                Box::pin(async move {
                    connection.batch_execute(&session).await.map_err(HookError::Backend)
                })
            }))
            .runtime(Runtime::Tokio1)
            .build()?;
        let (reader, host) = (rand::random(), config.host.clone());
        let hubs = Hubs::new(reader, host.clone(), config.agreed.clone(), config.meters.clone());
        let leases = Leases::new(reader, host);
        Ok(Self { config, pool, waiters, statuses, leases, hubs })
    }

    /// Answers until the last handle is dropped, or until `stop`. Wants a thread of its own: it
    /// reads and checks each line.
    pub async fn run(self, Requests(mut requests): Requests, stop: CancellationToken) {
        let own = Rc::new(self);
        let leaving = own.clone();
        let turns = Arc::new(Semaphore::new(MOST_UNDER_WAY));
        let mut under_way = JoinSet::new();
        let taking = async {
            loop {
                let Ok(turn) = turns.clone().acquire_owned().await else { return };
                let Some(request) = requests.recv().await else { return };
                while under_way.try_join_next().is_some() {}
                let own = own.clone();
                under_way.spawn_local(async move {
                    own.answer(request).await;
                    drop(turn);
                });
            }
        };
        let serving = async {
            tokio::select! {
                () = taking => {}
                () = leaving.renew() => {}
            }
        };
        // Requests that still wait are answered with `Closed`.
        LocalSet::new().run_until(stop.run_until_cancelled(serving)).await;
        let wait = leaving.config.connection_wait;
        let release = async |connection: &mut Object| {
            leaving.hubs.leave(connection).await?;
            Ok(leaving.leases.release(connection).await?)
        };
        if let Err(error) = leaving.with_connection(wait, release).await {
            tracing::debug!(%error, "other hubs go on only once they have waited for this one");
        }
    }

    /// Shows other hubs that this one is there, and looks at them.
    async fn renew(&self) {
        loop {
            let renew = async |connection: &mut Object| Ok(self.hubs.renew(connection).await?);
            if let Err(error) = self.with_connection(self.config.postgres.deadline, renew).await {
                tracing::debug!(%error, "other hubs were not looked at");
            }
            tokio::time::sleep(RENEWAL).await;
        }
    }

    async fn answer(&self, request: Request) {
        let deadline = self.config.postgres.deadline;
        match request {
            Request::Deliver { batch, mut done } => {
                tokio::select! {
                    // The client has given up.
                    () = done.closed() => {}
                    answer = self.deliver(batch) => drop(done.send(answer)),
                }
            }
            Request::Files { feed, done } => {
                let files = async |connection: &mut Object| {
                    Ok(self.leases.files(connection, &feed).await?)
                };
                self.give(done, self.with_connection(deadline, files).await);
            }
            Request::Claim { feeds, done } => {
                let claim = async |connection: &mut Object| {
                    Ok(self.leases.claim(connection, &feeds).await?)
                };
                self.give(done, self.with_connection(deadline, claim).await);
            }
        }
    }

    fn give<T>(&self, done: Answer<T>, answer: Result<T, WriterError>) {
        // A feed that is gone doesn't miss it.
        drop(done.send(answer.map_err(|error| IngestError::Unreachable(error.to_string()))));
    }

    /// What of a batch enters. What no hub would take is refused here, and leaves gaps.
    async fn admit(&self, feed: Option<FeedId>, lines: Vec<Incoming>) -> Entering {
        let mut entering = Entering::default();
        let guard = self.config.ownership_guard.as_ref().filter(|_| !self.statuses.is_kafka(feed));
        // What a feed brings comes back through the reader of the log.
        let log = self.statuses.first_of(FeedKind::Postgres);
        let name = feed.and_then(|feed| self.statuses.name(feed));
        let sources = self.statuses.sources();
        // The client of a mutation gets the refusal as its answer.
        let mut losses = name.clone().map(|name| {
            let foreign = guard.map(|guard| &*guard.ownership);
            Losses::new(&self.config.live, sources, name, foreign)
        });
        for Incoming { place, line, .. } in lines {
            let read = line.as_deref().map_err(Refusal::clone).and_then(event::parse);
            let event = match read {
                Ok(event) => event,
                Err(reason) => {
                    let line = line.as_deref().unwrap_or_default();
                    let gaps = losses.as_mut().map(|own| own.of_line(line, &place, &reason));
                    entering.add_gaps(gaps.unwrap_or_default(), &place);
                    entering.refused.refuse(place, reason);
                    continue;
                }
            };
            if let Some(guard) = guard
                && let Some(refusal) = guard.refusal(&event).await
            {
                entering.refused.refuse(place, refusal);
                continue;
            }
            if let (Some(feed), Some(topic)) = (&name, event.topic()) {
                for feed in std::iter::once(feed).chain(&log) {
                    sources.note(&topic, feed, &place.source);
                }
            }
            let gaps = losses.as_mut().map(|own| own.of_event(&event, &place));
            drop(event);
            entering.bodies.push(line.map(handle::body).unwrap_or_default());
            entering.places.push(place.clone());
            entering.add_gaps(gaps.unwrap_or_default(), &place);
        }
        entering
    }

    /// Inserts a batch and waits until this hub has it too.
    async fn deliver(&self, batch: Batch) -> Result<Ack, IngestError> {
        let Batch { feed, lines, progress } = batch;
        let Entering { bodies, places, gaps, mut refused } = self.admit(feed, lines).await;
        let insertion = Insertion { bodies, progress };
        let mut ack = Ack::default();
        if !insertion.bodies.is_empty() {
            let mut waiting = self.waiters.expect(places);
            self.enter(feed, waiting.origin, &insertion).await?;
            ack = waiting.settled().await;
            // They are no events of the feed.
            ack.accepted = ack.accepted.saturating_sub(gaps);
        } else if !insertion.progress.is_empty() {
            self.enter(feed, 0, &insertion).await?;
        }
        refused.add(ack);
        if let Some(feed) = feed {
            self.statuses.count(feed, refused.counts(), handle::now());
        }
        Ok(refused)
    }

    /// Tries until it is in. Gives up for a mutation of which nothing can be in, and for a
    /// partition that another hub reads by now.
    async fn enter(
        &self,
        feed: Option<FeedId>,
        origin: u64,
        insertion: &Insertion,
    ) -> Result<(), IngestError> {
        let mut backoff = backoff();
        let mut halted = false;
        let mut sure = true;
        while let Err(error) = self.write(feed, origin, insertion).await {
            let taken_over = matches!(error, WriterError::Lease(LeaseError::TakenOver(_)));
            if taken_over && insertion.is_of_partitions() {
                if let Some(feed) = feed.filter(|_| halted) {
                    self.statuses.clear(feed, Cause::SharedLog);
                }
                return Err(IngestError::TakenOver);
            }
            if taken_over {
                tracing::error!(%error, "the feed has ended");
            } else if !halted {
                tracing::warn!(%error, "the shared log takes nothing: trying until it does");
            }
            halted = true;
            sure &= !matches!(error, WriterError::Unsure(_));
            match feed {
                Some(feed) => self.statuses.halt(feed, Cause::SharedLog, &error.to_string()),
                None if sure => return Err(IngestError::Unreachable(error.to_string())),
                None => {}
            }
            if taken_over {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(backoff.wait()).await;
        }
        if let Some(feed) = feed.filter(|_| halted) {
            self.statuses.clear(feed, Cause::SharedLog);
        }
        Ok(())
    }

    /// All of it or nothing, in one transaction.
    async fn write(
        &self,
        feed: Option<FeedId>,
        origin: u64,
        insertion: &Insertion,
    ) -> Result<(), WriterError> {
        let Insertion { bodies, progress } = insertion;
        let origin = origin.cast_signed();
        let wait = match feed {
            Some(_) => self.config.postgres.deadline,
            None => self.config.connection_wait,
        };
        self.with_connection(wait, async |connection| {
            if progress.is_empty() {
                let insert = connection.prepare_cached(INSERT).await?;
                connection.execute(&insert, &[&origin, bodies]).await?;
                return Ok(());
            }
            let transaction = connection.transaction().await?;
            self.leases.hold(&transaction, progress).await?;
            if !bodies.is_empty() {
                let insert = transaction.prepare_cached(INSERT).await?;
                transaction.execute(&insert, &[&origin, bodies]).await?;
            }
            for one in progress {
                self.leases.put(&transaction, one).await?;
            }
            Ok(transaction.commit().await?)
        })
        .await
    }

    /// Does something within the deadline. A connection on which it failed is not used again: what
    /// was asked may still be under way.
    async fn with_connection<T>(
        &self,
        wait: Duration,
        act: impl AsyncFnOnce(&mut Object) -> Result<T, WriterError>,
    ) -> Result<T, WriterError> {
        let deadline = self.config.postgres.deadline;
        let timeouts = Timeouts { wait: Some(wait), ..self.pool.timeouts() };
        let began = Instant::now();
        let taken = self.pool.timeout_get(&timeouts).await;
        self.config.meters.take(began, taken.is_ok());
        let mut connection = match taken {
            Ok(connection) => connection,
            Err(PoolError::Timeout(TimeoutType::Wait)) => return Err(WriterError::Busy(wait)),
            Err(PoolError::Timeout(_)) => {
                return Err(WriterError::Unreachable(OutboxError::Late(deadline)));
            }
            Err(PoolError::Backend(error)) => return Err(WriterError::Unreachable(error.into())),
            Err(error) => return Err(WriterError::Pool(error)),
        };
        let acted = tokio::time::timeout(deadline, act(&mut connection)).await;
        let acted = acted.unwrap_or(Err(OutboxError::Late(deadline).into()));
        if acted.is_err() {
            drop(Object::take(connection));
        }
        acted
    }
}

/// What of a batch enters.
#[derive(Default)]
struct Entering {
    bodies: Vec<Box<str>>,
    places: Vec<Place>,
    /// How many of them are gaps.
    gaps: usize,
    refused: Ack,
}

impl Entering {
    fn add_gaps(&mut self, lines: Vec<String>, place: &Place) {
        self.gaps += lines.len();
        self.places.extend(lines.iter().map(|_| place.clone()));
        self.bodies.extend(lines.into_iter().map(Box::from));
    }
}

/// What one transaction brings in.
struct Insertion {
    bodies: Vec<Box<str>>,
    progress: Vec<Progress>,
}

impl Insertion {
    /// Those have one reader after the other; a folder has one.
    fn is_of_partitions(&self) -> bool {
        self.progress.iter().any(|one| matches!(one, Progress::Position(_)))
    }
}

#[cfg(test)]
mod tests {
    use spreadly_subscriptions::Epoch;

    use super::*;
    use crate::ingest::handle::MOST_WAITING;
    use crate::ingest::place::At;
    use crate::postgres::Doorbell;
    use crate::store::LogReaders;

    #[tokio::test(start_paused = true)]
    async fn a_request_beyond_those_under_way_and_those_in_line_waits() {
        let statuses = FeedStatuses::new();
        let feed = statuses.register("feed", FeedKind::Files);
        let postgres = PostgresConfig {
            // Nobody is there, so no request ends.
            url: "postgres://127.0.0.1:1/none".into(),
            poll_interval: Duration::from_secs(1),
            doorbell: Doorbell::Auto,
            schema: None,
            deadline: Duration::from_secs(1),
        };
        let config = WriterConfig {
            postgres,
            connections: 1,
            connection_wait: Duration::from_secs(1),
            host: "host".to_owned(),
            agreed: Agreed::default(),
            ownership_guard: None,
            live: Arc::new(Live::new(
                Epoch(1),
                Box::new(|| 0),
                1,
                LogReaders::new("none".as_ref(), 0),
            )),
            meters: Arc::default(),
        };
        let writer = Writer::new(config, Arc::default(), statuses).unwrap();
        let batch = || Batch {
            feed: Some(feed),
            lines: vec![Incoming {
                place: Place { source: "feed".into(), at: At::Line { number: 1, byte: 0 } },
                line: Ok(br#"{"kind":"message","topic":"t","data":1}"#.to_vec()),
                numbered: None,
            }],
            progress: vec![],
        };
        let (ingest, requests) = handle();
        let filled = async {
            let mut taken = Vec::new();
            for _ in 0..MOST_UNDER_WAY + MOST_WAITING {
                taken.push(ingest.submit(batch()).await.unwrap());
            }
            let further = ingest.submit(batch());
            tokio::time::timeout(Duration::from_secs(10), further).await.is_err()
        };
        tokio::select! {
            () = writer.run(requests, CancellationToken::new()) => unreachable!(),
            waits = filled => assert!(waits),
        }
    }
}
