//! The hub on one thread: composed as [`crate::hub::run`] does it, without listener, shards'
//! threads and feeds. What a test feeds is committed on this thread, and so is all else.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use spreadly_subscriptions::{Dialect, Meters, Opening, Shard, Streams};
use tokio::io::DuplexStream;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::client::Client;
use crate::budgets::{Accounts, HubShare};
use crate::cache::OrderBooks;
use crate::config::{Config, Overrides};
use crate::graphql::GraphqlExecutor;
use crate::hub::{limits, mutations, run, timers};
use crate::ingest::feed_status::{FeedId, FeedKind, FeedStatuses};
use crate::ingest::handle::{Ack, Batch, Incoming, IngestError, IngestHandle};
use crate::ingest::place::{At, Place};
use crate::ingest::projection::LiveProjection;
use crate::ingest::sequencer::{self, SequencerConfig};
use crate::ingest::waiters::Waiters;
use crate::live::{Encoders, Live};
use crate::pool::Pool;
use crate::recovery::recover_live;
use crate::store::{LogReaders, MOST_READERS, Store};

/// When the clock of a test begins: 2026-01-01.
const BEGIN_MICROS: i64 = 1_767_225_600_000_000;

/// What a hub leaves to the next one.
pub(super) struct Home {
    folder: tempfile::TempDir,
    began: Instant,
    pub(super) config: Config,
    /// Events of a book between two checkpoints.
    pub(super) checkpoint_events: u64,
}

impl Home {
    /// `began` is when the test did.
    pub(super) fn new(began: Instant) -> Self {
        let config = Config::load(None, std::iter::empty(), Overrides::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self { folder, began, config, checkpoint_events: sequencer::CHECKPOINT_EVENTS }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log.db")
    }

    /// Starts a hub over the log as the last one left it.
    pub(super) fn start(&self) -> Hub {
        let (config, began) = (&self.config, self.began);
        let mut store = Store::open(&self.log()).unwrap();
        let failing_commits = store.failing_commits.clone();
        let log = LogReaders::new(&self.log(), MOST_READERS);
        let clock = move || BEGIN_MICROS + i64::try_from(began.elapsed().as_micros()).unwrap();
        let journal = config.limits.journal_touches_per_market;
        let live = Arc::new(Live::new(store.epoch(), Box::new(clock), journal, log));
        let (admission, recovered) = recover_live(&mut store, &live, None).unwrap();
        let log_files = store.files();
        let encoders = Arc::new(Encoders::new(live, 1, config.limits.stream_cost_rate));

        let (statuses, stop) = (FeedStatuses::new(), CancellationToken::new());
        let feed = statuses.register("test", FeedKind::Files);
        let side = Box::new(LiveProjection::new(encoders.clone(), OrderBooks::default()));
        let sequencing = SequencerConfig {
            checkpoint_events: self.checkpoint_events,
            ownership: None,
            waiters: Arc::<Waiters>::default(),
            shutdown: stop.clone(),
        };
        let (ingest, service) =
            sequencer::prepare(store, admission, recovered, statuses.clone(), side, sequencing);

        let meters = Arc::new(Meters::default());
        let streams = Arc::new(Streams::new(limits::stream_limits(&config.limits), meters.clone()));
        let pool = Pool::start(1).unwrap();
        let writer = mutations::writer(&ingest, None, &statuses);
        let executor = run::executor(config, &encoders, &streams, &pool, &meters, writer);
        let shard = Shard::new(executor, limits::socket_limits(config), meters.clone());
        let tracker = TaskTracker::new();
        timers::start(&encoders, &streams, &statuses, log_files, &tracker, &stop);
        let accounts =
            Accounts::new(limits::account_limits(&config.limits), HubShare::of_shards(1));
        let local = LocalSet::new();
        let sequencer = local.spawn_local(service.run_in_task());
        local.spawn_local(shard.clone().run(encoders.worker_here(0)));
        Hub {
            local,
            shard,
            sequencer,
            ingest,
            encoders,
            statuses,
            feed,
            accounts,
            pool,
            _ends: stop.clone().drop_guard(),
            stop,
            meters,
            failing_commits,
        }
    }
}

/// See the module's text. A hub that is dropped is one that was killed.
pub(super) struct Hub {
    local: LocalSet,
    shard: Rc<Shard<DuplexStream, GraphqlExecutor>>,
    sequencer: JoinHandle<()>,
    ingest: IngestHandle,
    pub(super) encoders: Arc<Encoders>,
    statuses: FeedStatuses,
    feed: FeedId,
    accounts: Accounts,
    pool: Arc<Pool>,
    stop: CancellationToken,
    _ends: DropGuard,
    pub(super) meters: Arc<Meters>,
    /// So many of the log's next commits fail.
    pub(super) failing_commits: Arc<AtomicU32>,
}

/// By which way a batch reaches the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the sequencer's queue.
    Queue,
    /// Written by its feed itself.
    Here,
}

impl Hub {
    /// Lets the hub work until this is done. All that a client awaits has to be in it.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        self.local.run_until(work).await
    }

    /// Until all tasks wait for the clock or for somebody outside.
    pub(super) async fn settle(&self) {
        self.advance(Duration::from_millis(1)).await;
    }

    pub(super) async fn advance(&self, time: Duration) {
        self.during(tokio::time::sleep(time)).await;
    }

    /// `window` is how many bytes the pipe holds in each direction: a socket's buffers.
    pub(super) async fn connect(&self, window: usize) -> Client {
        let (ours, theirs) = tokio::io::duplex(window);
        let account = self.accounts.of([127, 0, 0, 1].into());
        let rank = account.socket_rank();
        let adopted = async {
            let opening = Opening::Accept(Dialect::TransportWs);
            self.shard.adopt(ours, opening, &[], account, rank, None);
        };
        self.during(adopted).await;
        let mut client = Client::new(theirs);
        self.during(client.init()).await;
        client
    }

    fn batch(&self, lines: &[String]) -> Batch {
        self.batch_from("test", lines)
    }

    fn batch_from(&self, source: &str, lines: &[String]) -> Batch {
        let lines = lines.iter().zip(1..).map(|(line, number)| Incoming {
            place: Place { source: source.into(), at: At::Line { number, byte: 0 } },
            line: Ok(line.clone().into_bytes()),
            numbered: None,
        });
        Batch { feed: Some(self.feed), lines: lines.collect(), progress: Vec::new() }
    }

    pub(super) async fn feed(&self, lines: &[String]) -> Ack {
        self.feed_by(Way::Queue, lines).await.unwrap()
    }

    /// What another source of the same feed brings.
    pub(super) async fn feed_from(&self, source: &str, lines: &[String]) -> Ack {
        self.during(self.ingest.deliver(self.batch_from(source, lines))).await.unwrap()
    }

    pub(super) async fn feed_by(&self, way: Way, lines: &[String]) -> Result<Ack, IngestError> {
        let batch = self.batch(lines);
        match way {
            Way::Queue => self.during(self.ingest.deliver(batch)).await,
            Way::Here => self.during(async { self.ingest.try_write(batch) }).await.unwrap(),
        }
    }

    /// Batches that wait in the queue together, so that one commit has all of them.
    pub(super) async fn feed_together(&self, batches: &[Vec<String>]) -> Vec<Ack> {
        let all = batches.iter().map(|lines| self.ingest.deliver(self.batch(lines)));
        let all = self.during(futures_util::future::join_all(all)).await;
        all.into_iter().map(Result::unwrap).collect()
    }

    /// The hub shuts down while the log can't be written: what is fed is not taken.
    pub(super) async fn refuse_at_shutdown(&self, way: Way, lines: &[String]) {
        self.stop.cancel();
        self.failing_commits.store(1, SeqCst);
        let refused = self.feed_by(way, lines).await;
        assert!(matches!(refused, Err(IngestError::Closed)), "{refused:?}");
    }

    /// Jobs that went to another thread, whose time is not the test's.
    pub(super) fn jobs_elsewhere(&self) -> u64 {
        self.pool.meters().jobs.load(SeqCst)
    }

    /// Ends as an operator's stop does: sockets are closed, then the log.
    pub(super) async fn stop(self) {
        timers::shut_down(&self.encoders, &self.statuses);
        self.during(async { self.shard.drain(Duration::ZERO) }).await;
        self.settle().await;
        self.stop.cancel();
        let Self { local, ingest, sequencer, .. } = self;
        drop(ingest);
        local.run_until(sequencer).await.unwrap();
    }
}
