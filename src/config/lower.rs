//! What was written -> what is checked. Every value is read, also behind a faulty one, so that
//! one run names all the faults. Each number has its range here, with the reason where it is not
//! plain.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::written::{Value, Written, may_hold_a_secret};
use super::{
    AdminConfig, CacheConfig, Config, ConfigFault, FeedsConfig, FilesFeedConfig, FilesMode,
    HttpStatus, IdentityConfig, KafkaFeedConfig, KafkaOwnedConfig, Limits, LogConfig, LogFormat,
    Network, Origins, PostgresFeedConfig, ServerConfig, SharedLogConfig, StoreConfig, Synchronous,
    WrittenIn,
};
use crate::market::definition::check_market;
use crate::market::event::check_topic;
use crate::market::ownership::ALL;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// An address of Ergo has about 51.
const MOST_ACCOUNT_BYTES: usize = 64;
/// A thousand cores' time, or a quarter of an hour of one.
const MOST_COST: u32 = 1_000_000_000;
/// A cursor holds at most 128 positions, one a market.
const MOST_MARKETS: usize = 128;
/// Fields of a level in a subscription that selects all of them: price, size and orders, of bids
/// and asks, of snapshot and delta.
const FIELDS_OF_A_LEVEL: usize = 12;
/// What a market costs in a subscribe that names it: an id of 64 with quotes and comma, and its
/// position in the cursor.
const BYTES_OF_A_MARKET: usize = 100;
/// Longer than any wait on a peer should be; keeps sums of durations far from overflow.
const HOUR_MS: u64 = 3_600_000;
/// A poll and a deadline are noticed within the 5 s in which clients are told.
pub(super) const POSTGRES_POLL: Duration = Duration::from_secs(1);
pub(super) const POSTGRES_DEADLINE: Duration = Duration::from_secs(3);
/// Far above what a Redis takes, far below what a start may wait for it.
pub(super) const CACHE_DEADLINE: Duration = Duration::from_millis(500);
/// What a start replays at most where the cache answers, and what keeping it costs.
pub(super) const CACHE_INTERVAL: Duration = Duration::from_secs(1);
/// Where a hub has its copy of a log that it shares.
pub(super) const REPLICA: &str = "data/replica.db";
pub(super) const KAFKA_DEADLINE: Duration = Duration::from_secs(3);
/// Settings of librdkafka on which it depends that each record counts once, is answered in time and
/// costs bounded memory.
const KAFKA_OURS: [&str; 14] = [
    "bootstrap.servers",
    "group.id",
    "auto.offset.reset",
    "enable.partition.eof",
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "transactional.id",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "queue.buffering.max.messages",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.ms",
    "linger.ms",
];
/// How much of a value a message repeats.
const SHOWN_CHARS: usize = 100;

pub(super) fn lower(written: Written, faults: &mut Vec<ConfigFault>) -> Config {
    let mut reader = Reader { written, places: BTreeMap::new(), faults };
    let log = reader.read("store.url", Log::File(StoreConfig::default().path), log_url);
    let config = Config {
        server: server(&mut reader),
        admin: AdminConfig {
            listen: reader.read("admin.listen", AdminConfig::default().listen, address),
        },
        store: store(&mut reader, &log),
        cache: cache(&mut reader),
        feeds: FeedsConfig {
            files: files(&mut reader),
            postgres: postgres(&mut reader, log),
            kafka: kafka(&mut reader),
        },
        identity: IdentityConfig {
            development_account: reader.read("identity.development_account", None, account),
        },
        limits: limits(&mut reader),
        log: logging(&mut reader),
    };
    assert!(reader.written.is_empty(), "every known key is read");
    together(&config, &mut reader);
    config
}

fn server(reader: &mut Reader<'_>) -> ServerConfig {
    let default = ServerConfig::default();
    let listen = reader.read("server.listen", default.listen, address);
    let origins = reader.read("server.origins", Vec::new(), |value| {
        each(value, |entry| Origins::entry(entry).map_err(|error| format!("{entry:?} {error}")))
    });
    ServerConfig {
        listen,
        origins: Origins::new(origins, listen.ip()),
        trusted_proxies: reader.read("server.trusted_proxies", default.trusted_proxies, |value| {
            each(value, |entry| {
                entry.parse::<Network>().map_err(|error| format!("{entry:?} {error}"))
            })
        }),
        shards: reader.size("server.shards", default.shards, 0..=1024),
        // Under a second a hub with many sockets does nothing but ping.
        ping_interval: reader.millis(
            "server.ping_interval_ms",
            default.ping_interval,
            1_000..=HOUR_MS,
        ),
        drain: reader.millis("server.drain_ms", default.drain, 0..=HOUR_MS),
        send_buffer_bytes: reader.size(
            "server.send_buffer_bytes",
            default.send_buffer_bytes,
            4 * KIB..=64 * MIB,
        ),
        header_timeout: reader.millis(
            "server.header_timeout_ms",
            default.header_timeout,
            100..=HOUR_MS,
        ),
        // hyper refuses buffers under 8 KiB.
        header_bytes: reader.size("server.header_bytes", default.header_bytes, 8 * KIB..=MIB),
        body_timeout: reader.millis("server.body_timeout_ms", default.body_timeout, 100..=HOUR_MS),
        http_status: reader.read("server.http_status", default.http_status, |value| {
            one_of(value, &[("audited", HttpStatus::Audited), ("draft", HttpStatus::Draft)])
        }),
    }
}

/// Where the event log is.
#[derive(Clone)]
enum Log {
    File(PathBuf),
    /// A URL of Postgres.
    Shared(String),
}

fn store(reader: &mut Reader<'_>, log: &Log) -> StoreConfig {
    let (default, shared) = (StoreConfig::default(), SharedLogConfig::default());
    let replica = reader.read("store.replica", PathBuf::from(REPLICA), |value| {
        database_file(text(value)?, "\"data/replica.db\"")
    });
    let shared = SharedLogConfig {
        connections: reader.size("store.connections", shared.connections, 1..=1_000),
        // Within the 5 s that a mutation may take in all.
        connection_wait: reader.millis(
            "store.connection_wait_ms",
            shared.connection_wait,
            1..=4_000,
        ),
        host: reader.read("store.host", shared.host, |value| text(value).map(str::to_owned)),
    };
    let (path, shared) = match log {
        Log::File(path) => (path.clone(), None),
        Log::Shared(_) => (replica, Some(shared)),
    };
    StoreConfig {
        path,
        shared,
        synchronous: reader.read("store.synchronous", default.synchronous, |value| {
            one_of(value, &[("normal", Synchronous::Normal), ("full", Synchronous::Full)])
        }),
    }
}

fn cache(reader: &mut Reader<'_>) -> Option<CacheConfig> {
    let url = reader.read("cache.url", None, |value| match text(value)? {
        "" => Ok(None),
        url => redis_url(url).map(Some),
    });
    // A start waits for two deadlines.
    let deadline = reader.millis("cache.deadline_ms", CACHE_DEADLINE, 10..=5_000);
    let interval = reader.millis("cache.interval_ms", CACHE_INTERVAL, 10..=60_000);
    url.map(|url| CacheConfig { url, deadline, interval })
}

/// Says what is wrong with it without repeating it, as it may hold a password.
fn redis_url(url: &str) -> Result<String, String> {
    if url.starts_with("rediss") {
        return Err("asks for TLS, which is not built in: put a proxy of this machine in between"
            .to_owned());
    }
    let known = ["redis://", "redis-cluster://", "redis-sentinel://"];
    if !known.iter().any(|scheme| url.starts_with(scheme)) {
        return Err(
            "must be as in \"redis://127.0.0.1:6379\", \"redis-cluster://one:6379?node=two:6379\" \
                    or \"redis-sentinel://one:26379?sentinelServiceName=main&node=two:26379\""
                .to_owned(),
        );
    }
    match fred::types::config::Config::from_url(url) {
        Ok(_) => Ok(url.to_owned()),
        Err(error) => Err(format!("can't be read: {}", error.details())),
    }
}

fn files(reader: &mut Reader<'_>) -> FilesFeedConfig {
    let default = FilesFeedConfig::default();
    let stale_after = default.stale_after.unwrap_or_default();
    FilesFeedConfig {
        path: reader.read("feeds.files.path", default.path, |value| match text(value)? {
            "" => Err("a folder's name may not be empty".to_owned()),
            path => Ok(PathBuf::from(path)),
        }),
        mode: reader.read("feeds.files.mode", default.mode, |value| {
            one_of(value, &[("watch", FilesMode::Watch), ("poll", FilesMode::Poll)])
        }),
        // Beyond 5 s a line would come later than the contract lets a heartbeat.
        poll_interval: reader.millis(
            "feeds.files.poll_interval_ms",
            default.poll_interval,
            10..=5_000,
        ),
        stale_after: Some(reader.millis(
            "feeds.files.stale_after_ms",
            stale_after,
            0..=24 * HOUR_MS,
        ))
        .filter(|after| !after.is_zero()),
    }
}

fn postgres(reader: &mut Reader<'_>, log: Log) -> Option<PostgresFeedConfig> {
    let mut url = reader.read("feeds.postgres.url", None, |value| match text(value)? {
        "" => Ok(None),
        url => postgres_url(url).map(Some),
    });
    // Beyond 5 s in all a client would not be told in time that the feed is cut off.
    let poll_interval = reader.millis("feeds.postgres.poll_interval_ms", POSTGRES_POLL, 10..=2_000);
    let deadline = reader.millis("feeds.postgres.deadline_ms", POSTGRES_DEADLINE, 100..=3_000);
    if let Log::Shared(log) = log {
        if url.is_some_and(|url| url != log) {
            let problem = "store.url is another database, whose table `events` is read already: \
                           leave this one out";
            reader.fault("feeds.postgres.url", None, problem.to_owned());
        }
        url = Some(log);
    }
    url.map(|url| PostgresFeedConfig { url, poll_interval, deadline })
}

fn kafka(reader: &mut Reader<'_>) -> Option<KafkaFeedConfig> {
    let brokers = reader.read("feeds.kafka.brokers", None, |value| match text(value)? {
        "" => Ok(None),
        brokers => Ok(Some(brokers.to_owned())),
    });
    let mut topics = reader.read("feeds.kafka.topics", Vec::new(), |value| {
        each(value, |topic| match topic {
            "" => Err("a topic's name may not be empty".to_owned()),
            topic => Ok(topic.to_owned()),
        })
    });
    // One that is named twice is read once.
    let mut seen = HashSet::new();
    topics.retain(|topic| seen.insert(topic.clone()));
    // With the second between two looks this stays below the 5 s in which clients are told.
    let deadline = reader.millis("feeds.kafka.deadline_ms", KAFKA_DEADLINE, 100..=3_000);
    let settings =
        reader.read("feeds.kafka.settings", Vec::new(), |value| each(value, kafka_setting));
    let owned = kafka_owned(reader, brokers.is_some(), &topics);
    brokers.map(|brokers| KafkaFeedConfig { brokers, topics, deadline, settings, owned })
}

/// `topics`: those that are read, if there are brokers to read them from.
fn kafka_owned(
    reader: &mut Reader<'_>,
    has_brokers: bool,
    topics: &[String],
) -> Option<KafkaOwnedConfig> {
    const TOPICS: &str = "feeds.kafka.own_topics";
    const MARKETS: &str = "feeds.kafka.own_markets";
    const PRODUCE_TO: &str = "feeds.kafka.produce_to";
    fn names(value: &Value, check: fn(&str) -> Result<(), String>) -> Result<Vec<String>, String> {
        each(value, |name| match name {
            ALL => Ok(name.to_owned()),
            name => match check(name) {
                Ok(()) => Ok(name.to_owned()),
                Err(reason) => Err(format!("{name:?} {reason}, or be {ALL:?} for all")),
            },
        })
    }
    let owned = KafkaOwnedConfig {
        topics: reader.read(TOPICS, Vec::new(), |value| names(value, check_topic)),
        markets: reader.read(MARKETS, Vec::new(), |value| names(value, check_market)),
        produce_to: reader.read(PRODUCE_TO, String::new(), |value| text(value).map(str::to_owned)),
    };
    let named = [(TOPICS, &owned.topics), (MARKETS, &owned.markets)];
    let names = named.into_iter().find(|(_, names)| !names.is_empty()).map(|(key, _)| key);
    let to = &owned.produce_to;
    let fault = match (names, to.as_str()) {
        (None, "") => return None,
        (Some(key), _) if !has_brokers => {
            Some((key, "feeds.kafka.brokers is not set: say where Kafka is".to_owned()))
        }
        (Some(key), "") => {
            let problem =
                "feeds.kafka.produce_to is not set: say which topic of Kafka mutations write it to";
            Some((key, problem.to_owned()))
        }
        (None, _) => {
            let problem = format!("neither {TOPICS} nor {MARKETS} names what is written there");
            Some((PRODUCE_TO, problem))
        }
        (Some(_), to) if !topics.iter().any(|topic| topic == to) => {
            let problem =
                "it must be one of feeds.kafka.topics, as the hub reads back what it writes";
            Some((PRODUCE_TO, problem.to_owned()))
        }
        _ => None,
    };
    if let Some((key, problem)) = fault {
        let given = (key == PRODUCE_TO).then(|| format!("{to:?}"));
        reader.fault(key, given, problem);
    }
    Some(owned)
}

/// A setting of librdkafka that is not ours to make.
fn kafka_setting(written: &str) -> Result<(String, String), String> {
    let (key, value) =
        written.split_once('=').ok_or("each must be as in \"security.protocol=ssl\"")?;
    if KAFKA_OURS.contains(&key) || key.starts_with("enable.auto") {
        return Err(format!("{key} is set by the hub itself: leave it out"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Says what is wrong with it without repeating it, as it may hold a password.
fn postgres_url(url: &str) -> Result<String, String> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err("must be as in \"postgres://user@host:5432/database\"".to_owned());
    }
    let parsed: tokio_postgres::Config = url.parse().map_err(|error| format!("{error}"))?;
    match parsed.get_ssl_mode() {
        tokio_postgres::config::SslMode::Require => {
            Err("asks for sslmode=require: TLS to Postgres is not built yet, put a proxy of this \
                 machine in between"
                .to_owned())
        }
        _ => Ok(url.to_owned()),
    }
}

fn limits(reader: &mut Reader<'_>) -> Limits {
    let d = Limits::default();
    Limits {
        message_bytes: reader.size("limits.message_bytes", d.message_bytes, KIB..=16 * MIB),
        message_bytes_before_ack: reader.size(
            "limits.message_bytes_before_ack",
            d.message_bytes_before_ack,
            KIB..=16 * MIB,
        ),
        operations_per_socket: reader.size(
            "limits.operations_per_socket",
            d.operations_per_socket,
            1..=100_000,
        ),
        pending_subscribes_per_socket: reader.size(
            "limits.pending_subscribes_per_socket",
            d.pending_subscribes_per_socket,
            1..=100_000,
        ),
        subscribe_rate: reader.count("limits.subscribe_rate", d.subscribe_rate, 1..=1_000_000),
        subscribe_burst: reader.count("limits.subscribe_burst", d.subscribe_burst, 1..=1_000_000),
        sockets_per_address: reader.size(
            "limits.sockets_per_address",
            d.sockets_per_address,
            1..=10_000_000,
        ),
        connections_per_address: reader.size(
            "limits.connections_per_address",
            d.connections_per_address,
            1..=10_000_000,
        ),
        streams_per_socket: reader.size(
            "limits.streams_per_socket",
            d.streams_per_socket,
            1..=1_000_000,
        ),
        streams_per_address: reader.size(
            "limits.streams_per_address",
            d.streams_per_address,
            1..=100_000_000,
        ),
        log_readers_per_address: reader.size(
            "limits.log_readers_per_address",
            d.log_readers_per_address,
            1..=1_000,
        ),
        reply_bytes_per_address: reader.size(
            "limits.reply_bytes_per_address",
            d.reply_bytes_per_address,
            1 << 16..=1 << 40,
        ),
        cost_rate: reader.count("limits.cost_rate", d.cost_rate, 1..=MOST_COST),
        cost_burst: reader.count("limits.cost_burst", d.cost_burst, 1..=MOST_COST),
        stream_cost_rate: reader.count(
            "limits.stream_cost_rate",
            d.stream_cost_rate,
            1..=MOST_COST,
        ),
        reserved_descriptors: reader.size(
            "limits.reserved_descriptors",
            d.reserved_descriptors,
            0..=1_000_000,
        ),
        exempt_loopback: reader.read("limits.exempt_loopback", d.exempt_loopback, flag),
        init_timeout: reader.millis("limits.init_timeout_ms", d.init_timeout, 100..=HOUR_MS),
        query_depth: reader.size("limits.query_depth", d.query_depth, 2..=1_000),
        query_complexity: reader.size(
            "limits.query_complexity",
            d.query_complexity,
            1..=10_000_000,
        ),
        query_aliases: reader.size("limits.query_aliases", d.query_aliases, 0..=100_000),
        query_tokens: reader.size("limits.query_tokens", d.query_tokens, 10..=1_000_000),
        query_level_fields: reader.size(
            "limits.query_level_fields",
            d.query_level_fields,
            1_000..=1_000_000_000,
        ),
        markets_per_subscription: reader.size(
            "limits.markets_per_subscription",
            d.markets_per_subscription,
            1..=MOST_MARKETS,
        ),
        book_depth: reader.size("limits.book_depth", d.book_depth, 10..=1_000_000),
        writer_stall: reader.millis("limits.writer_stall_ms", d.writer_stall, 100..=HOUR_MS),
        // A ring that holds no whole frame would lag everybody all the time.
        ring_bytes_per_topic: reader.size(
            "limits.ring_bytes_per_topic",
            d.ring_bytes_per_topic,
            64 * KIB..=1024 * MIB,
        ),
        stream_linger: reader.millis("limits.stream_linger_ms", d.stream_linger, 0..=HOUR_MS),
        streams: reader.size("limits.streams", d.streams, 1..=100_000_000),
        memory_bytes: reader.size("limits.memory_bytes", d.memory_bytes, 0..=1 << 50),
        journal_touches_per_market: reader.size(
            "limits.journal_touches_per_market",
            d.journal_touches_per_market,
            16..=100_000_000,
        ),
    }
}

fn logging(reader: &mut Reader<'_>) -> LogConfig {
    let default = LogConfig::default();
    LogConfig {
        format: reader.read("log.format", default.format, |value| {
            one_of(value, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
        }),
        filter: reader.read("log.filter", default.filter, |value| {
            let text = text(value)?;
            EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| {
                format!("it must be a filter such as \"info,spreadly=debug\" ({error})")
            })
        }),
    }
}

/// What each value allows alone, but not both.
fn together(config: &Config, reader: &mut Reader<'_>) {
    limits_together(&config.limits, reader);
    if config.feeds.kafka.as_ref().is_some_and(|kafka| kafka.topics.is_empty()) {
        let problem = "it names none, but feeds.kafka.brokers is set: say what to read";
        reader.fault("feeds.kafka.topics", None, problem.to_owned());
    }
    // Port 0 asks the kernel for a free one, so two of them never meet.
    if config.admin.listen == config.server.listen && config.admin.listen.port() != 0 {
        reader.fault(
            "admin.listen",
            Some(format!("{:?}", config.admin.listen.to_string())),
            "it must differ from server.listen".to_owned(),
        );
    }
}

/// What one limit allows no other may take away. Each fault names both.
fn limits_together(limits: &Limits, reader: &mut Reader<'_>) {
    let operations = ("limits.operations_per_socket", limits.operations_per_socket);
    let burst = ("limits.subscribe_burst", limits.subscribe_burst as usize);
    let markets = ("limits.markets_per_subscription", limits.markets_per_subscription);
    let mut at_least =
        |(key, number): (&'static str, usize), (other, times): (&str, usize), each| {
            let least = times * each;
            if number < least {
                let of = match each {
                    1 => format!("{other}, which is {times}"),
                    _ => format!("{least}: {each} for each of {other}, which is {times}"),
                };
                reader.fault(key, Some(number.to_string()), format!("it may not be below {of}"));
            }
        };
    // What a client had open before a cut it opens again at once.
    at_least(burst, operations, 1);
    at_least(burst, ("limits.subscribe_rate", limits.subscribe_rate as usize), 1);
    // Nothing that one socket may hold open is more than the whole hub may have.
    at_least(("limits.streams", limits.streams), operations, 1);
    at_least(
        ("limits.query_level_fields", limits.query_level_fields),
        ("limits.book_depth", limits.book_depth),
        FIELDS_OF_A_LEVEL,
    );
    at_least(("limits.message_bytes", limits.message_bytes), markets, BYTES_OF_A_MARKET);
    let mut at_most = |(key, number): (&'static str, usize), (other, most): (&str, usize)| {
        if number > most {
            let problem = format!("it may not exceed {other}, which is {most}");
            reader.fault(key, Some(number.to_string()), problem);
        }
    };
    let before_ack = ("limits.message_bytes_before_ack", limits.message_bytes_before_ack);
    at_most(before_ack, ("limits.message_bytes", limits.message_bytes));
    let pending = ("limits.pending_subscribes_per_socket", limits.pending_subscribes_per_socket);
    at_most(pending, operations);
}

struct Reader<'a> {
    written: Written,
    /// Where the value in force of a key was written.
    places: BTreeMap<&'static str, WrittenIn>,
    faults: &'a mut Vec<ConfigFault>,
}

impl Reader<'_> {
    /// The strongest value of a key. Weaker ones are read too, and their faults told.
    fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> T {
        let mut strongest = default;
        for entry in self.written.take(key) {
            self.places.insert(key, entry.written_in);
            match parse(&entry.value) {
                Ok(value) => strongest = value,
                Err(problem) => self.fault(key, Some(shown(key, &entry.value)), problem),
            }
        }
        strongest
    }

    fn size(&mut self, key: &'static str, default: usize, range: RangeInclusive<usize>) -> usize {
        let range = *range.start() as u64..=*range.end() as u64;
        self.read(key, default, |value| {
            usize::try_from(whole(value, &range, "")?).map_err(|error| error.to_string())
        })
    }

    fn count(&mut self, key: &'static str, default: u32, range: RangeInclusive<u32>) -> u32 {
        let range = u64::from(*range.start())..=u64::from(*range.end());
        self.read(key, default, |value| {
            u32::try_from(whole(value, &range, "")?).map_err(|error| error.to_string())
        })
    }

    fn millis(
        &mut self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<u64>,
    ) -> Duration {
        self.read(key, default, |value| {
            whole(value, &range, " of milliseconds").map(Duration::from_millis)
        })
    }

    fn fault(&mut self, key: &'static str, given: Option<String>, problem: String) {
        let written_in = self.places.get(key).cloned().unwrap_or(WrittenIn::Default);
        self.faults.push(ConfigFault { key: key.to_owned(), written_in, given, problem });
    }
}

/// A value as a message repeats it: short, and without what may be a secret.
fn shown(key: &str, value: &Value) -> String {
    if may_hold_a_secret(key) {
        let text = match value {
            Value::Text(text) | Value::Untyped(text) => text,
            Value::List(_) => return "[…]".to_owned(),
            other => return other.to_string(),
        };
        let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
        return format!("\"{scheme}:…\"");
    }
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn whole(value: &Value, range: &RangeInclusive<u64>, unit: &str) -> Result<u64, String> {
    let number = match value {
        Value::Whole(number) => u64::try_from(*number).ok(),
        Value::Untyped(text) => text.replace('_', "").parse().ok(),
        _ => None,
    };
    number.filter(|number| range.contains(number)).ok_or_else(|| {
        format!("it must be a whole number{unit} from {} to {}", range.start(), range.end())
    })
}

fn text(value: &Value) -> Result<&str, String> {
    match value {
        Value::Text(text) | Value::Untyped(text) => Ok(text),
        _ => Err("it must be a text in quotes".to_owned()),
    }
}

fn flag(value: &Value) -> Result<bool, String> {
    match value {
        Value::Flag(flag) => Ok(*flag),
        Value::Untyped(text) if text == "true" => Ok(true),
        Value::Untyped(text) if text == "false" => Ok(false),
        _ => Err("it must be true or false".to_owned()),
    }
}

fn one_of<T: Copy>(value: &Value, all: &[(&str, T)]) -> Result<T, String> {
    let found = text(value).ok().and_then(|text| all.iter().find(|(name, _)| *name == text));
    found.map(|(_, one)| *one).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|(name, _)| format!("{name:?}")).collect();
        format!("it must be one of {}", names.join(", "))
    })
}

fn each<T>(value: &Value, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let read;
    let all = match value {
        Value::List(all) => all,
        Value::Untyped(text) => {
            read = Value::list_from_text(text);
            match &read {
                Value::List(all) => all,
                _ => return Err("it must be a list".to_owned()),
            }
        }
        _ => return Err("it must be a list of texts, such as [\"…\"]".to_owned()),
    };
    all.iter().map(|one| parse(text(one)?)).collect()
}

fn address(value: &Value) -> Result<SocketAddr, String> {
    text(value).ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        "it must be an address and a port, such as \"127.0.0.1:4000\" or \"[::]:4000\"".to_owned()
    })
}

/// Empty: none. No `/`, as an account is part of ids that have one behind it.
fn account(value: &Value) -> Result<Option<Arc<str>>, String> {
    let account = text(value)?;
    if account.len() > MOST_ACCOUNT_BYTES
        || account.chars().any(|one| one.is_control() || one == '/')
    {
        return Err(format!("it must have at most {MOST_ACCOUNT_BYTES} bytes, without / in it"));
    }
    Ok((!account.is_empty()).then(|| account.into()))
}

/// `sqlite:data/spreadly.db`, `sqlite:/var/lib/…`, and the same with the `//` of other tools; or a
/// database of Postgres.
fn log_url(value: &Value) -> Result<Log, String> {
    let url = text(value)?;
    if url.starts_with("postgres:") || url.starts_with("postgresql:") {
        return postgres_url(url).map(Log::Shared);
    }
    let path = url.strip_prefix("sqlite:").ok_or(
        "it must be a file, as in \"sqlite:data/spreadly.db\", or \"postgres://…\"".to_owned(),
    )?;
    let path = path.strip_prefix("//").unwrap_or(path);
    database_file(path, "\"sqlite:data/spreadly.db\"").map(Log::File)
}

/// A store in memory would forget its positions, which clients hold on to over restarts.
fn database_file(path: &str, such_as: &str) -> Result<PathBuf, String> {
    if path.is_empty() || path == ":memory:" || path.ends_with('/') || path.contains('?') {
        return Err(format!("it must be a file, as in {such_as}"));
    }
    Ok(PathBuf::from(path))
}
