//! Every setting under its key, in the order in which a reader looks for it. This list is also
//! what makes a key known: one that is not here can't be set.

use std::fmt::Write as _;
use std::time::Duration;

use super::table::{
    CACHE_DEADLINE, CACHE_INTERVAL, KAFKA_DEADLINE, POSTGRES_DEADLINE, POSTGRES_POLL, REPLICA,
};
use super::{Config, FilesMode, HttpStatus, KafkaFeedConfig, LogFormat, Synchronous};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Setting {
    Text(String),
    Whole(u64),
    Flag(bool),
    List(Vec<String>),
}

/// Settings of librdkafka that are printed; of others nothing is known, so they may hold a secret.
const SHOWN_KAFKA: [&str; 4] =
    ["security.protocol", "sasl.mechanism", "ssl.ca.location", "client.rack"];

pub(super) fn settings(config: &Config) -> Vec<(&'static str, Setting)> {
    let Config { server, admin, store, cache, feeds, identity, limits, log } = config;
    let (files, postgres, kafka) = (&feeds.files, feeds.postgres.as_ref(), feeds.kafka.as_ref());
    let (log_url, replica) = match (&store.shared, postgres) {
        (Some(_), Some(log)) => (log.shown(), store.path.display().to_string()),
        _ => (format!("sqlite:{}", store.path.display()), REPLICA.to_owned()),
    };
    let shared = store.shared.clone().unwrap_or_default();
    let owned = kafka.and_then(|kafka| kafka.owned.clone()).unwrap_or_default();
    let networks = server.trusted_proxies.iter().map(ToString::to_string).collect();
    let synchronous = match store.synchronous {
        Synchronous::Normal => "normal",
        Synchronous::Full => "full",
    };
    let http_status = match server.http_status {
        HttpStatus::Audited => "audited",
        HttpStatus::Draft => "draft",
    };
    let mode = match files.mode {
        FilesMode::Watch => "watch",
        FilesMode::Poll => "poll",
    };
    let format = match log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    vec![
        ("server.listen", text(server.listen)),
        ("server.origins", Setting::List(server.origins.listed().to_vec())),
        ("server.trusted_proxies", Setting::List(networks)),
        ("server.shards", size(server.shards)),
        ("server.ping_interval_ms", millis(server.ping_interval)),
        ("server.drain_ms", millis(server.drain)),
        ("server.send_buffer_bytes", size(server.send_buffer_bytes)),
        ("server.header_timeout_ms", millis(server.header_timeout)),
        ("server.header_bytes", size(server.header_bytes)),
        ("server.body_timeout_ms", millis(server.body_timeout)),
        ("server.http_status", text(http_status)),
        ("admin.listen", text(admin.listen)),
        ("store.url", text(log_url)),
        ("store.replica", text(replica)),
        ("store.synchronous", text(synchronous)),
        ("store.connections", size(shared.connections)),
        ("store.connection_wait_ms", millis(shared.connection_wait)),
        ("store.host", text(&shared.host)),
        ("cache.url", text(cache.as_ref().map(|one| one.shown()).unwrap_or_default())),
        ("cache.deadline_ms", millis(cache.as_ref().map_or(CACHE_DEADLINE, |one| one.deadline))),
        ("cache.interval_ms", millis(cache.as_ref().map_or(CACHE_INTERVAL, |one| one.interval))),
        ("feeds.files.path", text(files.path.display())),
        ("feeds.files.mode", text(mode)),
        ("feeds.files.poll_interval_ms", millis(files.poll_interval)),
        ("feeds.files.stale_after_ms", millis(files.stale_after.unwrap_or_default())),
        ("feeds.postgres.url", text(postgres.map(|one| one.shown()).unwrap_or_default())),
        (
            "feeds.postgres.poll_interval_ms",
            millis(postgres.map_or(POSTGRES_POLL, |one| one.poll_interval)),
        ),
        (
            "feeds.postgres.deadline_ms",
            millis(postgres.map_or(POSTGRES_DEADLINE, |one| one.deadline)),
        ),
        ("feeds.kafka.brokers", text(kafka.map(|one| one.brokers.clone()).unwrap_or_default())),
        (
            "feeds.kafka.topics",
            Setting::List(kafka.map(|one| one.topics.clone()).unwrap_or_default()),
        ),
        ("feeds.kafka.own_topics", Setting::List(owned.topics)),
        ("feeds.kafka.own_markets", Setting::List(owned.markets)),
        ("feeds.kafka.produce_to", text(owned.produce_to)),
        ("feeds.kafka.deadline_ms", millis(kafka.map_or(KAFKA_DEADLINE, |one| one.deadline))),
        ("feeds.kafka.settings", Setting::List(kafka.map(shown_settings).unwrap_or_default())),
        (
            "identity.development_account",
            text(identity.development_account.as_deref().unwrap_or_default()),
        ),
        ("limits.message_bytes", size(limits.message_bytes)),
        ("limits.message_bytes_before_ack", size(limits.message_bytes_before_ack)),
        ("limits.operations_per_socket", size(limits.operations_per_socket)),
        ("limits.pending_operations_per_socket", size(limits.pending_operations_per_socket)),
        ("limits.subscribe_rate", Setting::Whole(u64::from(limits.subscribe_rate))),
        ("limits.subscribe_burst", Setting::Whole(u64::from(limits.subscribe_burst))),
        ("limits.sockets_per_address", size(limits.sockets_per_address)),
        ("limits.connections_per_address", size(limits.connections_per_address)),
        ("limits.streams_per_socket", size(limits.streams_per_socket)),
        ("limits.streams_per_address", size(limits.streams_per_address)),
        ("limits.log_readers_per_address", size(limits.log_readers_per_address)),
        ("limits.reply_bytes_per_address", size(limits.reply_bytes_per_address)),
        ("limits.cost_rate", Setting::Whole(u64::from(limits.cost_rate))),
        ("limits.cost_burst", Setting::Whole(u64::from(limits.cost_burst))),
        ("limits.stream_cost_rate", Setting::Whole(u64::from(limits.stream_cost_rate))),
        ("limits.reserved_descriptors", size(limits.reserved_descriptors)),
        ("limits.exempt_loopback", Setting::Flag(limits.exempt_loopback)),
        ("limits.init_timeout_ms", millis(limits.init_timeout)),
        ("limits.query_depth", size(limits.query_depth)),
        ("limits.query_complexity", size(limits.query_complexity)),
        ("limits.query_aliases", size(limits.query_aliases)),
        ("limits.query_tokens", size(limits.query_tokens)),
        ("limits.query_level_fields", size(limits.query_level_fields)),
        ("limits.markets_per_subscription", size(limits.markets_per_subscription)),
        ("limits.book_depth", size(limits.book_depth)),
        ("limits.writer_stall_ms", millis(limits.writer_stall)),
        ("limits.ring_bytes_per_stream", size(limits.ring_bytes_per_stream)),
        ("limits.stream_linger_ms", millis(limits.stream_linger)),
        ("limits.streams", size(limits.streams)),
        ("limits.memory_bytes", size(limits.memory_bytes)),
        ("limits.journal_touches_per_market", size(limits.journal_touches_per_market)),
        ("log.format", text(format)),
        ("log.filter", text(&log.filter)),
    ]
}

/// Those that can't be a secret.
fn shown_settings(kafka: &KafkaFeedConfig) -> Vec<String> {
    let shown = kafka.settings.iter().filter(|(key, _)| SHOWN_KAFKA.contains(&&**key));
    shown.map(|(key, value)| format!("{key}={value}")).collect()
}

fn text(value: impl ToString) -> Setting {
    Setting::Text(value.to_string())
}

fn size(value: usize) -> Setting {
    Setting::Whole(value as u64)
}

fn millis(value: Duration) -> Setting {
    // Durations come from a key in milliseconds with a range, so they fit.
    Setting::Whole(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
}

pub(super) fn to_toml(config: &Config) -> String {
    let mut out = String::new();
    let mut current = "";
    for (key, setting) in settings(config) {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        if section != current {
            let gap = if current.is_empty() { "" } else { "\n" };
            let _ = writeln!(out, "{gap}[{section}]");
            current = section;
        }
        let value = match setting {
            Setting::Text(text) => toml::Value::String(text),
            Setting::Whole(number) => {
                toml::Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
            }
            Setting::Flag(flag) => toml::Value::Boolean(flag),
            Setting::List(all) => {
                toml::Value::Array(all.into_iter().map(toml::Value::String).collect())
            }
        };
        let _ = writeln!(out, "{name} = {value}");
    }
    out
}
