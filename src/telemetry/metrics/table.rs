//! Every metric: its name, type and label, and what it counts. `/metrics` sends these texts, and
//! the reference page has them.

use std::fmt::Write as _;

use prometheus_client::metrics::MetricType;

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    /// Without the prefix `spreadly_`, and of a counter without `_total`.
    pub(super) name: &'static str,
    pub(super) kind: MetricType,
    /// The label by which it has several values, if it has several.
    pub(super) label: Option<&'static str>,
    pub(super) help: &'static str,
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: MetricType::Gauge, label: None, help }
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: MetricType::Counter, label: None, help }
}

impl Metric {
    const fn by(self, label: &'static str) -> Self {
        Self { label: Some(label), ..self }
    }
}

pub(super) const METRICS: [Metric; 80] = [
    gauge("websockets_open", "WebSockets and event streams that are open"),
    gauge("readers_open", "operations that read a stream"),
    gauge("response_streams_open", "response streams that are open"),
    gauge(
        "stream_memory_bytes",
        "bytes of rings, cached frames and documents of all response streams",
    ),
    gauge("stream_memory_limit_bytes", "the budget of these bytes (`limits.memory_bytes`)"),
    counter("websockets_opened", "WebSockets and event streams that were opened"),
    counter("messages_received", "messages from clients"),
    counter("frames_published", "results that were encoded; a shared result counts once"),
    counter("frames_delivered", "results that were handed to sockets"),
    counter("sent_bytes", "bytes that were written to WebSockets"),
    counter("writes", "writes of results"),
    counter("catch_ups", "times that a reader needed a frame that its ring no longer had"),
    counter("replayed_pages", "pages of the log that readers received"),
    counter("rings_shrunk", "rings that shrank because memory was short"),
    counter("silent_peers_dropped", "peers that were silent for two pings"),
    counter("snapshot_encodings", "snapshots that were encoded because none could be shared"),
    counter("reorganisations", "times that blocks of the chain were removed"),
    counter("events_undone", "events that were removed with blocks"),
    gauge("book_gaps", "books that missed an event and are not whole again"),
    gauge("crossed_books", "books whose best bid is at the best ask or above"),
    counter("source_gaps", "times that events of a source were lost"),
    counter("closes", "sockets that the hub closed, by close code").by("code"),
    counter("event_streams_ended", "streams of server-sent events that the hub ended, by reason")
        .by("reason"),
    gauge(
        "response_streams_slowed",
        "response streams that are merged because they can't keep their own pace",
    )
    .by("pace_ms"),
    counter("streams_advanced", "times that a response stream was brought up to date"),
    counter("streams_slowed", "times that a response stream got a slower pace"),
    counter(
        "state_copies",
        "times that a worker's queue of events overflowed, so that it copied the state",
    ),
    counter("encoding_microseconds", "processor time for resolving and encoding results"),
    gauge("pool_queued", "jobs that wait for a thread of the pool"),
    gauge("pool_running", "jobs that the pool runs"),
    counter("pool_jobs", "jobs that the pool ran"),
    counter("pool_wait_microseconds", "time that jobs waited"),
    counter("pool_run_microseconds", "time that jobs ran"),
    gauge("cache_up", "1 while the cache answers; only with `cache.url`"),
    counter("cache_writes", "values that the cache accepted"),
    counter("cache_writes_older", "values that the cache refused because it had a newer one"),
    counter("cache_failures", "requests to the cache that failed"),
    counter("cache_states_restored", "cached states that the last start used"),
    counter("cache_states_refused", "cached states that the last start did not use"),
    gauge("client_addresses", "client addresses that are known"),
    gauge(
        "price_factor",
        "factor of all prices; above 1 while all clients together ask for too much",
    ),
    counter(
        "accept_pauses",
        "times that no connection was accepted because no file descriptor was left",
    ),
    counter("refused", "refused connections, sockets, streams and reads, by limit").by("limit"),
    counter(
        "rate_limited",
        "requests and fields that were refused because the address was in debt, by kind of work",
    )
    .by("work"),
    counter(
        "charged_microseconds",
        "estimated microseconds that clients were charged, by kind of work",
    )
    .by("work"),
    gauge("build_info", "1, with the hub's release").by("version"),
    gauge("hub_stage", "1 for what the hub is doing: starting, running, leaving or draining")
        .by("stage"),
    gauge("start_time_seconds", "when the process started, in seconds since 1970"),
    gauge("resident_memory_bytes", "memory of the process that is in RAM"),
    gauge("file_descriptors_limit", "file descriptors that the process may have"),
    gauge("file_descriptors_open", "file descriptors that the process has open"),
    counter("host_listen_overflows", "connections of the host that found a full backlog"),
    counter("host_listen_drops", "SYNs of the host that were dropped"),
    gauge("log_sequence", "sequence of the newest event of the log, or of this hub's replica"),
    gauge("log_epoch", "1, with the epoch of the log").by("epoch"),
    counter("log_commits", "transactions that wrote events or feeds' progress to the log"),
    counter("log_commit_microseconds", "time that these took, fsyncs included"),
    counter("log_commit_failures", "transactions of the log that failed and were tried again"),
    counter(
        "log_events",
        "events that entered the log; generic topics are one, those beyond the first 300 another",
    )
    .by("topic"),
    gauge("log_bytes", "size of the log's file and of its write-ahead log"),
    gauge("log_disk_free_bytes", "bytes that the hub may still write on the log's disk"),
    gauge("log_disk_bytes", "size of the log's disk"),
    counter(
        "postgres_connections_taken",
        "times that a write to a shared log got one of `store.connections`",
    ),
    counter("postgres_connection_wait_microseconds", "time that these writes waited for it"),
    counter("postgres_connection_failures", "times that a write to a shared log got none"),
    gauge("hubs_live", "hubs that share the log, this one included; 0 without a shared log"),
    gauge("hubs_different", "other hubs of the log whose release or `feeds.kafka` differs"),
    gauge(
        "kafka_topics_unread",
        "topics of Kafka that a hub of the log has read and none reads now",
    ),
    gauge(
        "clock_difference_microseconds",
        "how far this hub's clock is ahead of the clock of the shared log's database",
    ),
    counter("http_responses", "answers of the public port to requests of HTTP").by("status"),
    counter(
        "proxy_headers",
        "connections that should begin with a header of the PROXY protocol, by what came of it",
    )
    .by("outcome"),
    counter("mutations", "writes of mutations, by what came of them").by("outcome"),
    counter("feed_events", "events that entered the log").by("feed"),
    counter("feed_events_known", "events whose `id` was known").by("feed"),
    counter("feed_events_refused", "events that were refused").by("feed"),
    counter("feed_cuts", "times that the feed lost its source").by("feed"),
    gauge("feed_live", "1 while the feed is live").by("feed"),
    gauge("feed_lag", "lag: bytes, rows or records at the source that are not in the log yet")
        .by("feed"),
    gauge(
        "source_lag",
        "records of a partition of Kafka that are not in the log yet, as its broker last said: \
         only at the hub that reads it",
    )
    .by("source"),
    gauge("source_answer_age_seconds", "how long ago the partition's broker last said it")
        .by("source"),
];

pub(super) fn find(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

const HEAD: &str = "\
<!-- `make reference` writes this page from the table of metrics. -->

# Metrics

`GET /metrics` on the admin port answers in OpenMetrics text. All names start with `spreadly_`. A
counter starts at 0 with each start of the hub. [Alarms](../operations/alarms.md) says which of
them to watch.

| name | type | label | meaning |
|---|---|---|---|
";

/// The reference page, in Markdown.
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    for Metric { name, kind, label, help } in &METRICS {
        let kind = kind.as_str();
        let total = if kind == "counter" { "_total" } else { "" };
        let label = match label {
            None => String::new(),
            Some("code") => "[`code`](errors.md#close-codes)".to_owned(),
            Some("limit") => "[`limit`](limits.md)".to_owned(),
            Some(label) => format!("`{label}`"),
        };
        let _ = writeln!(page, "| `spreadly_{name}{total}` | {kind} | {label} | {help} |");
    }
    page
}
