//! Which feeds run, and on which threads. Each gets a thread of its own, so that what it reads and
//! checks keeps nobody else waiting; but for the simulator, which has next to nothing to do.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::feed_log::CONNECTING;
use super::shared_log::{self, SharedLog};
use super::{simulator, timers};
use crate::config::{FeedsConfig, FilesFeedConfig, FilesMode, KafkaFeedConfig, PostgresFeedConfig};
use crate::feeds::files::{self, FilesConfig};
use crate::feeds::kafka::{self, KafkaConfig};
use crate::feeds::postgres;
use crate::feeds::simulator::SimulatorConfig;
use crate::ingest::feed_status::{Cause, FeedId, FeedKind, FeedStatuses};
use crate::ingest::handle::IngestHandle;
use crate::live::Live;
use crate::store::LogReaders;

/// What every feed is given.
pub(super) struct Feeds {
    pub(super) ingest: IngestHandle,
    /// Where the log is shared: what reads it, what enters it, and the handle of the replica.
    pub(super) shared: Option<SharedLog>,
    pub(super) statuses: FeedStatuses,
    /// Knows which markets are defined.
    pub(super) live: Arc<Live>,
    /// Shutdown waits for what it tracks.
    pub(super) tracker: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl Feeds {
    /// Returns what says that the simulated markets are there, if any are asked for.
    pub(super) fn start(
        mut self,
        config: FeedsConfig,
        simulator: Option<(SimulatorConfig, Arc<LogReaders>)>,
    ) -> Option<oneshot::Receiver<()>> {
        let FeedsConfig { files, postgres, kafka } = config;
        if let Some(postgres) = postgres {
            self.postgres(postgres);
        }
        self.files(files);
        if let Some(kafka) = kafka {
            self.kafka(kafka);
        }
        let (simulator, log) = simulator?;
        let feed = self.statuses.register("simulator", FeedKind::Simulator);
        let (begun, begins) = oneshot::channel();
        let Self { ingest, tracker, stop, .. } = self;
        tracker.spawn(simulator::run(simulator, log, ingest, feed, begun, stop));
        Some(begins)
    }

    fn files(&self, written: FilesFeedConfig) {
        let feed = self.register("files", FeedKind::Files, written.is_required);
        let (live, in_log) = (self.live.clone(), Arc::<files::InLog>::default());
        let (path, watched) = (written.path.clone(), in_log.clone());
        let files = FilesConfig {
            path: written.path,
            mode: match written.mode {
                FilesMode::Watch => files::Mode::Watch,
                FilesMode::Poll => files::Mode::Poll,
            },
            poll_interval: written.poll_interval,
            is_defined: Arc::new(move |market| live.definition(market).is_some()),
            in_log,
        };
        self.on_own_thread("file", feed, move |ingest, statuses, stop| {
            files::run(files, ingest, statuses, feed, stop)
        });
        let (statuses, stop) = (self.statuses.clone(), self.stop.clone());
        self.tracker.spawn(files::watch_lag(path, watched, statuses, feed, stop));
        if let Some(after) = written.stale_after {
            let (statuses, stop) = (self.statuses.clone(), self.stop.clone());
            self.tracker.spawn(timers::watch_for_silence(statuses, feed, after, stop));
        }
    }

    fn postgres(&mut self, written: PostgresFeedConfig) {
        let feed = self.remote("postgres", FeedKind::Postgres, written.is_required);
        let config = shared_log::postgres(written);
        let Some(SharedLog { reader, writer, requests, replica }) = self.shared.take() else {
            return self.on_own_thread("Postgres", feed, move |ingest, statuses, stop| {
                postgres::run(config, None, ingest, statuses, feed, stop)
            });
        };
        self.on_own_thread("Postgres", feed, move |_, statuses, stop| {
            postgres::run(config, Some(reader), replica, statuses, feed, stop)
        });
        // Without the handle that it serves: it would never be closed.
        self.on_own_thread("shared log", feed, move |_, _, stop| writer.run(requests, stop));
    }

    fn kafka(&self, written: KafkaFeedConfig) {
        let feed = self.remote("kafka", FeedKind::Kafka, written.is_required);
        let config = kafka_config(&written);
        self.on_own_thread("Kafka", feed, move |ingest, statuses, stop| {
            kafka::run(config, ingest, statuses, feed, stop)
        });
    }

    /// A feed that is not live before it has reached its source and read all that was there.
    fn remote(&self, name: &str, kind: FeedKind, is_required: bool) -> FeedId {
        let feed = self.register(name, kind, is_required);
        self.statuses.stale(feed, Some(format!("{CONNECTING} to {kind:?}")));
        feed
    }

    fn register(&self, name: &str, kind: FeedKind, is_required: bool) -> FeedId {
        let feed = self.statuses.register(name, kind);
        if !is_required {
            self.statuses.make_optional(feed);
        }
        feed
    }

    fn on_own_thread<F: Future<Output = ()>>(
        &self,
        name: &'static str,
        feed: FeedId,
        follow: impl FnOnce(IngestHandle, FeedStatuses, CancellationToken) -> F + Send + 'static,
    ) {
        let (ingest, stop) = (self.ingest.clone(), self.stop.clone());
        let (statuses, broken) = (self.statuses.clone(), self.statuses.clone());
        let thread = self.tracker.spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            runtime.block_on(follow(ingest, statuses, stop));
            Ok::<_, String>(())
        });
        self.tracker.spawn(async move {
            // A bug of ours: the feed is over, the hub isn't.
            let ended = thread.await.map_err(|error| error.to_string()).and_then(|ended| ended);
            if let Err(error) = ended {
                tracing::error!(%error, "the {name} feed has ended");
                broken.halt(feed, Cause::Source, &error);
            }
        });
    }
}

/// As the feed and the producer of Kafka take it.
pub(super) fn kafka_config(written: &KafkaFeedConfig) -> KafkaConfig {
    let KafkaFeedConfig { brokers, topics, deadline, settings, .. } = written.clone();
    let settings = settings.into_iter().map(|setting| (setting.name, setting.value)).collect();
    KafkaConfig { brokers, topics, deadline, settings }
}
