//! `/metrics`: what was counted, as OpenMetrics text. Names carry their unit; labels are bounded.

mod process;
mod table;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use spreadly_subscriptions::{Meters, Pace, Streams};

pub use self::table::page;
use self::table::{Metric, find};
use crate::budgets::Accounts;
use crate::cache::CacheMeters;
use crate::graphql::MutationMeters;
use crate::http::proxy_protocol::ProxyHeaderMeters;
use crate::http::responses::ResponseMeters;
use crate::ingest::feed_status::{FeedState, FeedStatus, FeedStatuses};
use crate::ingest::source_lags::SourceLag;
use crate::live::{Encoders, Live};
use crate::pool::Pool;
use crate::shared_log::PostgresMeters;
use crate::store::StoreMeters;

/// What the page reports.
pub struct Everything {
    pub meters: Arc<Meters>,
    pub live: Arc<Live>,
    pub statuses: FeedStatuses,
    /// `None`: there is no cache.
    pub cache: Option<Arc<CacheMeters>>,
    pub streams: Arc<Streams>,
    /// Once the log is read.
    pub encoders: Arc<OnceLock<Arc<Encoders>>>,
    pub accounts: Arc<Accounts>,
    pub pool: Arc<Pool>,
    pub store: Arc<StoreMeters>,
    /// The file of the log, or of its replica.
    pub log: PathBuf,
    pub responses: Arc<ResponseMeters>,
    pub proxy_headers: Arc<ProxyHeaderMeters>,
    pub mutations: Arc<MutationMeters>,
    /// Of the connections to a shared log.
    pub postgres: Arc<PostgresMeters>,
}

impl fmt::Debug for Everything {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Everything")
    }
}

/// How far the hub is, from its start to its stop: the labels of `hub_stage`.
pub const STAGES: [&str; 4] = ["starting", "running", "leaving", "draining"];

/// One of `STAGES`, at each call.
pub type StageNow = Box<dyn Fn() -> &'static str + Send + Sync>;

/// What renders the page. Before the hub has a log, that is only what the process is.
pub fn text(
    everything: Arc<OnceLock<Everything>>,
    stage: StageNow,
) -> Box<dyn Fn() -> String + Send + Sync> {
    process::start();
    let mut registry = Registry::with_prefix("spreadly");
    registry.register_collector(Box::new(Metered { everything, stage }));
    Box::new(move || {
        let mut page = String::new();
        match prometheus_client::encoding::text::encode(&mut page, &registry) {
            Ok(()) => page,
            Err(error) => format!("# {error}\n"),
        }
    })
}

struct Metered {
    everything: Arc<OnceLock<Everything>>,
    stage: StageNow,
}

impl fmt::Debug for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metered")
    }
}

impl Collector for Metered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        process::encode(&mut encoder)?;
        let now = (self.stage)();
        let stages = STAGES.iter().map(|stage| (stage, u64::from(*stage == now)));
        by_label(&mut encoder, "hub_stage", stages)?;
        self.everything.get().map_or(Ok(()), |everything| everything.encode(&mut encoder))
    }
}

impl Everything {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let meters = &self.meters;
        let memory = self.streams.memory();
        value(encoder, "websockets_open", meters.sockets_open.get())?;
        value(encoder, "readers_open", meters.readers_open.get())?;
        value(encoder, "response_streams_open", meters.streams_open.get())?;
        value(encoder, "stream_memory_bytes", memory.used() as u64)?;
        value(encoder, "stream_memory_limit_bytes", memory.budget() as u64)?;
        value(encoder, "websockets_opened", meters.sockets_opened.get())?;
        value(encoder, "messages_received", meters.messages_received.get())?;
        value(encoder, "frames_published", meters.frames_published.get())?;
        value(encoder, "frames_delivered", meters.frames_delivered.get())?;
        value(encoder, "sent_bytes", meters.bytes_sent.get())?;
        value(encoder, "writes", meters.writes.get())?;
        value(encoder, "catch_ups", meters.catch_ups.get())?;
        value(encoder, "replayed_pages", meters.replayed_pages.get())?;
        value(encoder, "rings_shrunk", meters.rings_shrunk.get())?;
        value(encoder, "silent_peers_dropped", meters.dropped_silent.get())?;
        value(encoder, "snapshot_encodings", load(&self.live.snapshot_encodings))?;
        value(encoder, "reorganisations", load(&self.live.reorganisations))?;
        value(encoder, "events_undone", load(&self.live.events_undone))?;
        value(encoder, "book_gaps", self.live.book_gaps().len() as u64)?;
        value(encoder, "crossed_books", self.live.crossed_books() as u64)?;
        value(encoder, "source_gaps", load(&self.live.gaps))?;
        let closes = meters.closes().map(|(code, count)| (code.number().to_string(), count));
        by_label(encoder, "closes", closes)?;
        let ends = meters.event_stream_ends();
        let ends = ends.map(|(end, count)| (end.reason().to_owned(), count));
        by_label(encoder, "event_streams_ended", ends)?;
        self.encoding(encoder)?;
        self.pool(encoder)?;
        self.cache(encoder)?;
        self.clients(encoder)?;
        self.log(encoder)?;
        self.feeds(encoder)
    }

    fn encoding(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(encoders) = self.encoders.get() else { return Ok(()) };
        let mut slowed_now = [0; 3];
        let (mut advanced, mut slowed, mut copied, mut nanos) = (0, 0, 0, 0);
        for (meters, merged) in encoders.workers() {
            slowed_now.iter_mut().zip(merged).for_each(|(sum, own)| *sum += own as u64);
            advanced += load(&meters.advanced);
            slowed += load(&meters.slowed);
            copied += load(&meters.copied_again);
            nanos += load(&meters.nanos);
        }
        let paces = Pace::MERGING.iter().map(|pace| pace.period().as_millis().to_string());
        by_label(encoder, "response_streams_slowed", paces.zip(slowed_now))?;
        value(encoder, "streams_advanced", advanced)?;
        value(encoder, "streams_slowed", slowed)?;
        value(encoder, "state_copies", copied)?;
        value(encoder, "encoding_microseconds", nanos / 1_000)
    }

    fn log(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Self { store, postgres, .. } = self;
        value(encoder, "log_sequence", load(&store.newest))?;
        by_label(encoder, "log_epoch", [(self.live.epoch().to_string(), 1)])?;
        value(encoder, "log_commits", load(&store.commits))?;
        value(encoder, "log_commit_microseconds", load(&store.commit_nanos) / 1_000)?;
        value(encoder, "log_commit_failures", load(&store.commit_failures))?;
        by_label(encoder, "log_events", store.topics().counts())?;
        process::encode_disk(encoder, &self.log)?;
        value(encoder, "postgres_connections_taken", load(&postgres.taken))?;
        value(
            encoder,
            "postgres_connection_wait_microseconds",
            load(&postgres.waited_nanos) / 1_000,
        )?;
        value(encoder, "postgres_connection_failures", load(&postgres.failed))?;
        value(encoder, "hubs_live", load(&postgres.hubs_live))?;
        value(encoder, "hubs_different", load(&postgres.hubs_different))?;
        value(encoder, "kafka_topics_unread", load(&postgres.topics_unread))?;
        let clock = postgres.clock_micros.load(Ordering::Relaxed);
        signed(encoder, "clock_difference_microseconds", clock)?;
        by_label(encoder, "http_responses", self.responses.counts())?;
        by_label(encoder, "proxy_headers", self.proxy_headers.counts())?;
        by_label(encoder, "mutations", self.mutations.counts())
    }

    fn pool(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let meters = self.pool.meters();
        value(encoder, "pool_queued", self.pool.queued() as u64)?;
        value(encoder, "pool_running", load(&meters.running))?;
        value(encoder, "pool_jobs", load(&meters.jobs))?;
        value(encoder, "pool_wait_microseconds", load(&meters.waited_nanos) / 1_000)?;
        value(encoder, "pool_run_microseconds", load(&meters.run_nanos) / 1_000)
    }

    fn cache(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(cache) = &self.cache else { return Ok(()) };
        value(encoder, "cache_up", u64::from(cache.up.load(Ordering::Relaxed)))?;
        value(encoder, "cache_writes", load(&cache.written))?;
        value(encoder, "cache_writes_older", load(&cache.older))?;
        value(encoder, "cache_failures", load(&cache.failed))?;
        value(encoder, "cache_states_restored", load(&cache.restored))?;
        value(encoder, "cache_states_refused", load(&cache.refused))
    }

    fn clients(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let meters = self.accounts.meters();
        value(encoder, "client_addresses", self.accounts.len() as u64)?;
        value(encoder, "price_factor", self.accounts.price_factor())?;
        value(encoder, "accept_pauses", load(&meters.accept_pauses))?;
        by_label(encoder, "refused", meters.refusals())?;
        by_label(encoder, "rate_limited", meters.rate_limits())?;
        by_label(encoder, "charged_microseconds", meters.charges())
    }

    fn feeds(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let feeds = self.statuses.snapshot();
        type Column = (&'static str, fn(&FeedStatus) -> u64);
        let columns: [Column; 6] = [
            ("feed_events", |feed| feed.events_total),
            ("feed_events_known", |feed| feed.known_total),
            ("feed_events_refused", |feed| feed.refused_total),
            ("feed_cuts", |feed| feed.cuts_total),
            ("feed_live", |feed| u64::from(feed.state == FeedState::Live)),
            ("feed_lag", |feed| feed.lag),
        ];
        for (name, of) in columns {
            by_label(encoder, name, feeds.iter().map(|feed| (&*feed.name, of(feed))))?;
        }
        let lags = self.statuses.lags().all();
        by_label(encoder, "source_lag", lags.iter().map(|one| (&*one.source, one.lag)))?;
        let age = |one: &SourceLag| (one.source.clone(), one.answered.elapsed().as_secs());
        by_label(encoder, "source_answer_age_seconds", lags.iter().map(age))
    }
}

fn load(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

/// Sends a metric without a label.
fn value(encoder: &mut DescriptorEncoder<'_>, name: &str, value: u64) -> fmt::Result {
    let metric = find(name).ok_or(fmt::Error)?;
    let family = encoder.encode_descriptor(metric.name, metric.help, None, metric.kind)?;
    encode(metric, value, family)
}

/// Sends a gauge that may be below 0.
fn signed(encoder: &mut DescriptorEncoder<'_>, name: &str, value: i64) -> fmt::Result {
    let metric = find(name).ok_or(fmt::Error)?;
    let family = encoder.encode_descriptor(metric.name, metric.help, None, metric.kind)?;
    ConstGauge::new(value).encode(family)
}

/// Sends a metric with a value for each of some labels.
fn by_label<L: AsRef<str>>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    values: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let metric = find(name).ok_or(fmt::Error)?;
    let label = metric.label.ok_or(fmt::Error)?;
    let mut family = encoder.encode_descriptor(metric.name, metric.help, None, metric.kind)?;
    for (of, value) in values {
        encode(metric, value, family.encode_family(&[(label, of.as_ref())])?)?;
    }
    Ok(())
}

fn encode(metric: &Metric, value: u64, into: MetricEncoder<'_>) -> fmt::Result {
    match metric.kind {
        MetricType::Counter => ConstCounter::new(value).encode(into),
        _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(into),
    }
}
