//! One life of the hub: what is constructed, in which order it starts and in which it stops.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use spreadly_subscriptions::{Meters, Streams};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accepting::Accepting;
use super::banner::{announce, announce_start};
use super::feeds::Feeds;
use super::limits::{account_limits, query_limits, socket_limits, stream_limits};
use super::readiness::{Readiness, Stage};
use super::shared_log::{Replica, SharedLog};
use super::{cache, feeds, memory, mutations, readiness, shared_log, timers};
use crate::budgets::{Accounts, HubShare};
use crate::cache::{CacheMeters, OrderBooks};
use crate::config::{Config, Synchronous};
use crate::feeds::kafka::Producer;
use crate::feeds::simulator::SimulatorConfig;
use crate::graphql::{GraphqlExecutor, HubView, MutationMeters, MutationPort, Principal};
use crate::http::connection_limits::DescriptorReserve;
use crate::http::listener::{self, Incoming};
use crate::http::proxy_protocol::ProxyProtocol;
use crate::http::responses::ResponseMeters;
use crate::http::routes::HttpConfig;
use crate::http::shards::{Parts, Shards};
use crate::http::{sse, unavailable};
use crate::ingest::feed_status::FeedStatuses;
use crate::ingest::handle::IngestHandle;
use crate::ingest::projection::LiveProjection;
use crate::ingest::sequencer::{self, SequencerConfig};
use crate::ingest::waiters::Waiters;
use crate::live::{Encoders, Live};
use crate::market::ownership::Ownership;
use crate::market::time::Micros;
use crate::pool::Pool;
use crate::recovery::{self, WarmStart};
use crate::shared_log::{OwnershipGuard, PostgresMeters};
use crate::signals::StopSignals;
use crate::store::{self, LogReaders, MOST_READERS, Store, StoreError};
use crate::telemetry::admin::{self, AdminSource};
use crate::telemetry::metrics::{self, Everything};

/// How long the last closes, the feeds and the log may take after the drain.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// How long `dev` waits for its markets before it announces itself without them.
const SIMULATOR_PATIENCE: Duration = Duration::from_secs(2);

/// Why the hub could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("can't listen on {key} = {address}: {source}")]
    Listen { key: &'static str, address: SocketAddr, source: io::Error },
    #[error("the store can't be used: {0}")]
    Store(#[from] StoreError),
    #[error("the system refused a thread or a timer: {0}")]
    System(#[from] io::Error),
    #[error("not everything had stopped {} s after the drain", STOP_DEADLINE.as_secs())]
    Stuck,
    #[error("a third signal came before everything had stopped")]
    Cut,
}

/// Runs the hub until SIGTERM or SIGINT, on this thread and those it starts. With a simulator it
/// is `spreadly dev`.
pub fn run(config: Config, simulator: Option<SimulatorConfig>) -> Result<(), ServeError> {
    memory::refuse_huge_pages();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut config = config;
    let ended = loop {
        match runtime.block_on(serve(config.clone(), simulator.clone())) {
            Ok(Ended::LogReplaced { public, admin }) => {
                // Where its clients look for it.
                (config.server.listen, config.admin.listen) = (public, admin);
            }
            ended => break ended.map(|_| ()),
        }
    };
    // A thread that was not waited for ends with the process.
    runtime.shutdown_background();
    ended
}

/// Why a hub stopped.
enum Ended {
    Asked,
    /// The shared log is another one than before: to be served from its start, at these addresses.
    LogReplaced {
        public: SocketAddr,
        admin: SocketAddr,
    },
}

async fn serve(config: Config, simulator: Option<SimulatorConfig>) -> Result<Ended, ServeError> {
    // Listening before the log is read: a port in use is reported at once, probes get an answer,
    // and clients that come early wait in the backlog.
    let public = listen("server.listen", config.server.listen)?;
    let admin = listen("admin.listen", config.admin.listen)?;
    let addresses = (public.local_addr()?, admin.local_addr()?);
    announce_start(&config, addresses);

    // From now on: SIGTERM is a clean end also while the hub waits for its log.
    let mut signals = StopSignals::listen()?;

    let proxy_protocol = proxy_protocol(&config);
    let stop = CancellationToken::new();
    let tracker = TaskTracker::new();
    let readiness = Arc::new(Readiness::default());
    let reserve = Arc::new(DescriptorReserve::new(config.limits.reserved_descriptors));
    let threads = shard_count(&config);
    let share = HubShare::of_shards(threads);
    let accounts = Arc::new(Accounts::new(account_limits(&config.limits), share));
    let statuses = FeedStatuses::new();
    let meters = Arc::new(Meters::default());

    let metered = Arc::<OnceLock<_>>::default();
    let source = AdminSource {
        readiness: readiness::rows(readiness.clone(), statuses.clone(), reserve.clone()),
        metrics: metrics::text(metered.clone(), readiness::stage(readiness.clone())),
    };
    let admin_stop = CancellationToken::new();
    let admin = tokio::net::TcpListener::from_std(admin)?;
    tracker.spawn(admin::run(admin, Arc::new(source), admin_stop.clone(), tracker.clone()));

    let shared_log = config.store.shared.as_ref().zip(config.feeds.postgres.as_ref());
    let store = match shared_log {
        Some((_, log)) => {
            let opening = shared_log::open_replica(&config.store, log, &readiness);
            let answering = async {
                readiness.waits_for_log().await;
                unavailable::answer(&public, config.server.http_status, &proxy_protocol).await
            };
            let store = tokio::select! {
                store = opening => Some(store?),
                Err(error) = answering => return Err(error.into()),
                () = signals.next() => None,
            };
            let Some(store) = store else {
                admin_stop.cancel();
                tracker.close();
                tracker.wait().await;
                return Ok(Ended::Asked);
            };
            store
        }
        None => Store::open_with(&config.store.path, synchronous(config.store.synchronous))?,
    };
    statuses.sources().restore(&store.topic_sources()?);
    let log_files = store.files();
    let journal = config.limits.journal_touches_per_market;
    let log = LogReaders::new(&config.store.path, MOST_READERS);
    let live = Arc::new(Live::new(store.epoch(), Box::new(now), journal, log.clone()));
    if shared_log.is_some() {
        live.share(store.last());
    }

    let cache_meters = Arc::new(CacheMeters::default());
    let cache = config.cache.as_ref();
    let cache = cache
        .map(|cache| cache::start(cache, &live, &cache_meters, &tracker, &stop))
        .transpose()?;
    let cached = cache.is_some().then_some(cache_meters);

    let streams = Arc::new(Streams::new(stream_limits(&config.limits), meters.clone()));
    let encoding = Arc::<OnceLock<_>>::default();
    // As many threads as shards: half of what these have is for requests, see `HubShare`.
    let pool = Pool::start(threads)?;
    let responses = Arc::<ResponseMeters>::default();
    let (mutated, postgres) = (Arc::<MutationMeters>::default(), Arc::<PostgresMeters>::default());
    let everything = Everything {
        meters: meters.clone(),
        live: live.clone(),
        statuses: statuses.clone(),
        cache: cached,
        streams: streams.clone(),
        encoders: encoding.clone(),
        accounts: accounts.clone(),
        pool: pool.clone(),
        store: store.meters(),
        log: config.store.path.clone(),
        responses: responses.clone(),
        proxy_headers: proxy_protocol.meters.clone(),
        mutations: mutated.clone(),
        postgres: postgres.clone(),
    };
    metered.get_or_init(|| everything);

    let (ownership, waiters) = (ownership(&config), Arc::<Waiters>::default());
    let sequencer_config = SequencerConfig {
        checkpoint_events: sequencer::CHECKPOINT_EVENTS,
        // A row of a shared log does not say where it came from.
        ownership: ownership.clone().filter(|_| shared_log.is_none()),
        waiters: waiters.clone(),
        shutdown: stop.clone(),
    };
    let cost = config.limits.stream_cost_rate;
    let new_encoders = |live| Encoders::new(live, threads, cost);
    let (ingest, sequencer, encoders) =
        start_ingest(store, &live, &statuses, cache, sequencer_config, new_encoders).await?;
    encoding.get_or_init(|| encoders.clone());
    let replaced = CancellationToken::new();
    let (shared, ingest) = match shared_log {
        Some((shared, log_of_all)) => {
            let guard = ownership.clone();
            let guard = guard.map(|ownership| OwnershipGuard { ownership, replica: log.clone() });
            let feeds = (log_of_all, config.feeds.kafka.as_ref());
            let replica = Replica { ingest, epoch: live.epoch(), replaced: replaced.clone() };
            let (shared_log, ingest) =
                SharedLog::new(shared, feeds, replica, &statuses, guard, live.clone(), postgres)?;
            (Some(shared_log), ingest)
        }
        None => (None, ingest),
    };

    let producer = producer(&config, ownership, waiters, &statuses, &log, &tracker);
    let writer = mutations::writer(&ingest, producer, &statuses).counting(mutated);
    let executor = executor(&config, &encoders, &streams, &pool, &meters, writer);
    let shards = Shards::start(
        threads,
        &Parts {
            executor,
            encoders: encoders.clone(),
            limits: socket_limits(&config),
            meters,
            http: Arc::new(http_config(&config, responses, proxy_protocol)),
            accounts,
            send_buffer_bytes: config.server.send_buffer_bytes,
        },
    )?;
    let simulator = simulator.map(|simulator| (simulator, log));
    let simulated = simulator.is_some();
    let watched = tracker.clone();
    let feeds = Feeds {
        ingest,
        shared,
        statuses: statuses.clone(),
        live: encoders.live().clone(),
        tracker: watched,
        stop: stop.clone(),
    };
    let begun = feeds.start(config.feeds.clone(), simulator);
    timers::start(&encoders, &streams, &statuses, log_files, &tracker, &stop);

    if let Some(begun) = begun {
        // A program that reads the announcement finds the simulated markets.
        drop(tokio::time::timeout(SIMULATOR_PATIENCE, begun).await);
    }
    readiness.set(Stage::Running);
    announce(addresses, simulated, config.log.format);

    let accepting = Accepting {
        server: &config.server,
        signals: &mut signals,
        replaced: &replaced,
        readiness: &readiness,
    };
    let (incoming, no_more) = (Incoming::new(public)?, CancellationToken::new());
    let spread = accepting.run(shards.accept(incoming, no_more.clone(), &reserve), no_more).await;
    // Stops in this order: no new sockets; feedStatus says it; sockets closed over the drain while
    // feeds still flow; feeds; the log, which then has everything that was acknowledged.
    timers::shut_down(&encoders, &statuses);
    shards.drain(spread, signals.next()).await;
    let ended = async {
        // No client is left that waits for its work.
        drop(tokio::task::spawn_blocking(move || pool.stop()).await);
        stop.cancel();
        admin_stop.cancel();
        tracker.close();
        let ended = async {
            tracker.wait().await;
            tokio::task::spawn_blocking(move || sequencer.join()).await
        };
        tokio::time::timeout(STOP_DEADLINE, ended).await
    };
    let ended = tokio::select! {
        ended = ended => ended,
        () = signals.next() => return Err(ServeError::Cut),
    };
    match ended {
        Ok(Ok(Ok(()))) if replaced.is_cancelled() => {
            let (public, admin) = addresses;
            Ok(Ended::LogReplaced { public, admin })
        }
        Ok(Ok(Ok(()))) => {
            tracing::info!("the hub has stopped");
            Ok(Ended::Asked)
        }
        _ => Err(ServeError::Stuck),
    }
}

/// Brings the state to the end of the log and starts the sequencer for the feeds.
async fn start_ingest(
    mut store: Store,
    live: &Arc<Live>,
    statuses: &FeedStatuses,
    cache: Option<(WarmStart, OrderBooks)>,
    config: SequencerConfig,
    encoders: impl FnOnce(Arc<Live>) -> Encoders,
) -> Result<(IngestHandle, std::thread::JoinHandle<()>, Arc<Encoders>), ServeError> {
    let reading = live.clone();
    let (warm, order_books) = cache.unzip();
    let (store, admission, recovered) = tokio::task::spawn_blocking(move || {
        let (admission, recovered) = recovery::recover_live(&mut store, &reading, warm)?;
        Ok::<_, StoreError>((store, admission, recovered))
    })
    .await
    .map_err(io::Error::other)??;
    let from_cache = recovered.warm.len();
    tracing::info!(replayed = recovered.replayed, from_cache, "the log is read");
    // Copies of what is read now, before the first event changes it.
    let encoders = Arc::new(encoders(live.clone()));
    let side = LiveProjection::new(encoders.clone(), order_books.unwrap_or_default());
    let (ingest, sequencer) =
        sequencer::start(store, admission, recovered, statuses.clone(), Box::new(side), config)?;
    Ok((ingest, sequencer, encoders))
}

/// What the config gives to Kafka.
fn ownership(config: &Config) -> Option<Arc<Ownership>> {
    let owned = config.feeds.kafka.as_ref()?.owned.as_ref()?;
    Some(Arc::new(Ownership::new(&owned.topics, &owned.markets)))
}

/// By which mutations get into Kafka.
fn producer(
    config: &Config,
    ownership: Option<Arc<Ownership>>,
    waiters: Arc<Waiters>,
    statuses: &FeedStatuses,
    readers: &Arc<LogReaders>,
    tracker: &TaskTracker,
) -> Option<Producer> {
    let kafka = config.feeds.kafka.as_ref()?;
    let (to, config) = (kafka.owned.as_ref()?.produce_to.clone(), feeds::kafka_config(kafka));
    let (statuses, readers, tracker) = (statuses.clone(), readers.clone(), tracker.clone());
    Some(Producer::new(&config, to, ownership?, waiters, statuses, readers, tracker))
}

pub(super) fn executor(
    config: &Config,
    encoders: &Arc<Encoders>,
    streams: &Arc<Streams>,
    pool: &Arc<Pool>,
    meters: &Arc<Meters>,
    writer: MutationPort,
) -> Arc<GraphqlExecutor> {
    let (sockets, operations) = (meters.clone(), meters.clone());
    let view = HubView {
        started: now(),
        sockets: Box::new(move || sockets.sockets_open.get()),
        operations: Box::new(move || operations.readers_open.get()),
    };
    let limits = query_limits(&config.limits);
    let everyone = Principal { account: config.identity.development_account.clone() };
    let (encoders, streams, pool) = (encoders.clone(), streams.clone(), pool.clone());
    Arc::new(GraphqlExecutor::new(encoders, streams, pool, view, limits, writer, everyone))
}

fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    listener::bind(address).map_err(|source| ServeError::Listen { key, address, source })
}

fn proxy_protocol(config: &Config) -> ProxyProtocol {
    let server = &config.server;
    ProxyProtocol {
        from: if server.proxy_protocol { server.trusted_proxies.clone() } else { Vec::new() },
        timeout: server.header_timeout,
        meters: Arc::default(),
    }
}

fn http_config(
    config: &Config,
    responses: Arc<ResponseMeters>,
    proxy_protocol: ProxyProtocol,
) -> HttpConfig {
    HttpConfig {
        origins: config.server.origins.clone(),
        trusted_proxies: config.server.trusted_proxies.clone(),
        address_header: config.server.address_header,
        proxy_protocol,
        header_timeout: config.server.header_timeout,
        idle_timeout: config.server.idle_timeout,
        header_bytes: config.server.header_bytes,
        body_timeout: config.server.body_timeout,
        init_timeout: config.limits.init_timeout,
        message_bytes: config.limits.message_bytes,
        pace: sse::Pace {
            comment_interval: config.server.ping_interval,
            stall: config.limits.writer_stall,
        },
        status: config.server.http_status,
        responses,
    }
}

fn shard_count(config: &Config) -> usize {
    match config.server.shards {
        0 => std::thread::available_parallelism().map_or(1, |cores| (cores.get() - 1).max(1)),
        count => count,
    }
}

pub(super) fn synchronous(written: Synchronous) -> store::Synchronous {
    match written {
        Synchronous::Full => store::Synchronous::Full,
        Synchronous::Normal => store::Synchronous::Normal,
    }
}

pub(super) fn now() -> Micros {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Micros::try_from(since.as_micros()).unwrap_or(Micros::MAX)
}
