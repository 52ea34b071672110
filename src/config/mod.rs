//! The checked configuration: what every part of the hub is handed. Nothing here reads a file or
//! knows how a value was written; `source` collects what was said, `table` turns it into these
//! types or into faults.
//!
//! Flags beat `SPREADLY__SECTION__KEY` variables, which beat the file, which beats the defaults.

mod fault;
mod network;
mod origins;
mod reference;
mod source;
mod table;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use fault::{ConfigFault, WrittenIn};
pub use network::{Network, NetworkError};
pub use origins::{Origins, OriginsError};

/// Everything the hub may be told. Each part gets its own field and never sees the others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    pub server: ServerConfig,
    pub admin: AdminConfig,
    pub store: StoreConfig,
    /// Absent: what a start goes on from is in the store alone.
    pub cache: Option<CacheConfig>,
    pub feeds: FeedsConfig,
    pub identity: IdentityConfig,
    pub limits: Limits,
    pub log: LogConfig,
}

/// Who clients are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IdentityConfig {
    /// Whom everyone is taken for; `None`: everyone is a stranger.
    pub development_account: Option<Arc<str>>,
}

/// The public port.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    /// Which pages of the web may open a socket or post a query.
    pub origins: Origins,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
    /// Threads that own sockets; 0 stands for one a core, less one for the feeds and the log.
    pub shards: usize,
    /// Between two pings to a peer; one that is silent for two of them is dropped.
    pub ping_interval: Duration,
    /// Over which a drain spreads its closes.
    pub drain: Duration,
    /// Of the kernel, per socket (`SO_SNDBUF`).
    pub send_buffer_bytes: usize,
    /// From accept to the end of a request's headers.
    pub header_timeout: Duration,
    pub header_bytes: usize,
    /// From a body's first byte to its last.
    pub body_timeout: Duration,
    pub http_status: HttpStatus,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 4000)),
            origins: Origins::default(),
            trusted_proxies: Vec::new(),
            shards: 0,
            ping_interval: Duration::from_secs(25),
            drain: Duration::from_secs(10),
            send_buffer_bytes: 256 * 1024,
            header_timeout: Duration::from_secs(10),
            header_bytes: 16 * 1024,
            body_timeout: Duration::from_secs(10),
            http_status: HttpStatus::default(),
        }
    }
}

/// Whose status codes a GraphQL response over HTTP has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpStatus {
    /// Of the npm package `graphql-http`, whose audits most servers are held to.
    #[default]
    Audited,
    /// Of the draft "GraphQL over HTTP" as it became its first edition: 422 for what is readable
    /// and not valid, 294 for data with errors beside it.
    Draft,
}

/// The port for operators: health and metrics, never for the public.
#[derive(Clone, Debug, PartialEq)]
pub struct AdminConfig {
    pub listen: SocketAddr,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 4001)) }
    }
}

/// The event log and what queries read.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreConfig {
    /// Of the SQLite database; its folder is made when it is missing. It is the log itself or,
    /// where that is shared, this hub's replica of it.
    pub path: PathBuf,
    pub synchronous: Synchronous,
    /// The log is the table that [`FeedsConfig::postgres`] reads, and the same for several hubs.
    pub shared: Option<SharedLogConfig>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        let path = PathBuf::from("data/spreadly.db");
        Self { path, synchronous: Synchronous::default(), shared: None }
    }
}

/// How a hub writes into a log that it shares.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedLogConfig {
    pub connections: usize,
    /// How long a mutation waits for one of them.
    pub connection_wait: Duration,
    /// Tells this hub's folders from those of the same name elsewhere; empty: the machine's name.
    pub host: String,
}

impl Default for SharedLogConfig {
    fn default() -> Self {
        let connection_wait = Duration::from_millis(250);
        Self { connections: 8, connection_wait, host: String::new() }
    }
}

/// How hard SQLite holds on to a commit (`PRAGMA synchronous` with a write-ahead log).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// Survives a killed process and a killed machine whole; the last commits before a power cut
    /// may be missing and come again from the feed.
    #[default]
    Normal,
    /// Every commit is on the disk before it counts; costs an fsync each.
    Full,
}

/// A Redis that keeps what a hub can start from.
#[derive(Clone, PartialEq)]
pub struct CacheConfig {
    /// As written: it may hold a password, so it is never shown whole.
    pub url: String,
    /// For any answer: then it is left alone for a while.
    pub deadline: Duration,
    /// Between two looks at which markets moved.
    pub interval: Duration,
}

impl CacheConfig {
    /// The URL without what may be a password in it: of the user, and of the sentinels' user among
    /// its parameters.
    pub fn shown(&self) -> String {
        let shown = without_password(&self.url);
        let Some((place, parameters)) = shown.split_once('?') else { return shown };
        let kept: Vec<_> =
            parameters.split('&').filter(|one| !one.starts_with("sentinelPassword=")).collect();
        format!("{place}?{}", kept.join("&"))
    }
}

impl std::fmt::Debug for CacheConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { deadline, interval, .. } = self;
        f.debug_struct("CacheConfig")
            .field("url", &self.shown())
            .field("deadline", deadline)
            .field("interval", interval)
            .finish()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeedsConfig {
    pub files: FilesFeedConfig,
    /// Absent: no such feed.
    pub postgres: Option<PostgresFeedConfig>,
    /// Absent: no such feed.
    pub kafka: Option<KafkaFeedConfig>,
}

/// Topics of Kafka, whose partitions are read from where the log has them.
#[derive(Clone, PartialEq)]
pub struct KafkaFeedConfig {
    /// As librdkafka takes them: `host:port`, several with commas between.
    pub brokers: String,
    pub topics: Vec<String>,
    /// For any answer of the brokers: then they count as cut off.
    pub deadline: Duration,
    /// Settings of librdkafka, name and value. They may hold a password, so no value is ever shown.
    pub settings: Vec<(String, String)>,
    /// Absent: it owns nothing that the config names, and the hub writes nothing there.
    pub owned: Option<KafkaOwnedConfig>,
}

/// What belongs to Kafka: mutations write it there, and its events are taken from nowhere else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KafkaOwnedConfig {
    /// Generic topics; `"*"` stands for all.
    pub topics: Vec<String>,
    /// Markets with all of their events; `"*"` stands for all.
    pub markets: Vec<String>,
    /// Which of [`KafkaFeedConfig::topics`] mutations write to.
    pub produce_to: String,
}

impl std::fmt::Debug for KafkaFeedConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { brokers, topics, deadline, settings, owned } = self;
        f.debug_struct("KafkaFeedConfig")
            .field("brokers", brokers)
            .field("topics", topics)
            .field("deadline", deadline)
            .field("settings", &settings.iter().map(|(key, _)| key).collect::<Vec<_>>())
            .field("owned", owned)
            .finish()
    }
}

/// The table `events` of a database, whose rows are read in the order they are numbered.
#[derive(Clone, PartialEq)]
pub struct PostgresFeedConfig {
    /// As written: it may hold a password, so it is never shown whole.
    pub url: String,
    /// Between two looks where nothing rang.
    pub poll_interval: Duration,
    /// For any answer of the database: then it counts as cut off.
    pub deadline: Duration,
}

impl PostgresFeedConfig {
    /// The URL without what may be a password in it.
    pub fn shown(&self) -> String {
        without_password(&self.url)
    }
}

/// A URL without the password of its user.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let Some((user, place)) = rest.rsplit_once('@') else { return url.to_owned() };
    let user = user.split_once(':').map_or(user, |(user, _)| user);
    format!("{scheme}://{user}@{place}")
}

impl std::fmt::Debug for PostgresFeedConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { poll_interval, deadline, .. } = self;
        f.debug_struct("PostgresFeedConfig")
            .field("url", &self.shown())
            .field("poll_interval", poll_interval)
            .field("deadline", deadline)
            .finish()
    }
}

/// The folder whose `.ndjson` files are read line by line.
#[derive(Clone, Debug, PartialEq)]
pub struct FilesFeedConfig {
    /// Made when it is missing.
    pub path: PathBuf,
    pub mode: FilesMode,
    /// Between two looks at the folder when polling, and the fallback when watching.
    pub poll_interval: Duration,
    /// Silence after which its topics are `STALE`. None: a quiet folder is not stale.
    pub stale_after: Option<Duration>,
}

impl Default for FilesFeedConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::from("feeds"),
            mode: FilesMode::default(),
            poll_interval: Duration::from_millis(250),
            stale_after: None,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FilesMode {
    /// The kernel tells of changes.
    #[default]
    Watch,
    /// For network file systems, on which the kernel hears of nothing.
    Poll,
}

/// What a client, a query or a topic may cost. All are answered by name and number.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub message_bytes: usize,
    pub message_bytes_before_ack: usize,
    pub operations_per_socket: usize,
    pub pending_operations_per_socket: usize,
    /// Subscribes a second.
    pub subscribe_rate: u32,
    pub subscribe_burst: u32,
    pub sockets_per_address: usize,
    /// TCP connections that are no WebSockets, or not yet.
    pub connections_per_address: usize,
    /// Distinct response streams.
    pub streams_per_socket: usize,
    pub streams_per_address: usize,
    /// Reads of the log at once, for queries.
    pub log_readers_per_address: usize,
    /// Bytes of replies over HTTP that the clients of an address have not taken yet.
    pub reply_bytes_per_address: usize,
    /// Microseconds of processor time a second, as estimated.
    pub cost_rate: u32,
    /// Microseconds of processor time that an address can save up.
    pub cost_burst: u32,
    /// Microseconds a second that each shard spends on streams that one address reads alone.
    pub stream_cost_rate: u32,
    /// File descriptors that the public port leaves to everything else.
    pub reserved_descriptors: usize,
    pub exempt_loopback: bool,
    pub init_timeout: Duration,
    pub query_depth: usize,
    pub query_complexity: usize,
    pub query_aliases: usize,
    pub query_tokens: usize,
    /// Fields of price levels in one result.
    pub query_level_fields: usize,
    pub markets_per_subscription: usize,
    /// Levels a side that a client may ask for.
    pub book_depth: usize,
    pub writer_stall: Duration,
    pub ring_bytes_per_stream: usize,
    /// How long a response stream outlives its last reader.
    pub stream_linger: Duration,
    /// Response streams of the whole hub.
    pub streams: usize,
    /// Bytes of their rings, caches and documents; 0: a quarter of the machine's memory.
    pub memory_bytes: usize,
    pub journal_touches_per_market: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 256 * 1024,
            message_bytes_before_ack: 16 * 1024,
            operations_per_socket: 256,
            pending_operations_per_socket: 32,
            subscribe_rate: 50,
            subscribe_burst: 300,
            sockets_per_address: 100,
            connections_per_address: 128,
            streams_per_socket: 256,
            streams_per_address: 4_096,
            log_readers_per_address: 2,
            reply_bytes_per_address: 16 << 20,
            cost_rate: 50_000,
            cost_burst: 1_000_000,
            stream_cost_rate: 100_000,
            reserved_descriptors: 128,
            exempt_loopback: true,
            init_timeout: Duration::from_secs(5),
            query_depth: 12,
            query_complexity: 2_000,
            query_aliases: 30,
            query_tokens: 2_000,
            query_level_fields: 100_000,
            markets_per_subscription: 100,
            book_depth: 5_000,
            writer_stall: Duration::from_secs(10),
            ring_bytes_per_stream: 1024 * 1024,
            stream_linger: Duration::from_secs(30),
            streams: 100_000,
            memory_bytes: 0,
            journal_touches_per_market: 32_768,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    pub format: LogFormat,
    /// As `RUST_LOG` is written; checked when read.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::default(), filter: "info".to_owned() }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// What the command line says; as text, so that it is checked like everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--listen`
    pub listen: Option<String>,
    /// `--admin-listen`
    pub admin_listen: Option<String>,
    /// `--set section.key=value`, in the order given; a later one beats an earlier one.
    pub set: Vec<(String, String)>,
}

impl Config {
    /// Reads every source and checks everything: either a configuration without a fault, or all
    /// the faults there are. `env` may hold any variables; only `SPREADLY__…` are looked at.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: Overrides,
    ) -> Result<Self, Vec<ConfigFault>> {
        let mut faults = Vec::new();
        let mut written = source::Written::default();
        if let Some(path) = file {
            written.add_file(path, &mut faults);
        }
        written.add_env(env, &mut faults);
        written.add_flags(flags, &mut faults);
        let config = table::lower(written, &mut faults);
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }

    /// The effective configuration as a file that reads back to the same. Secrets are left out.
    pub fn to_toml(&self) -> String {
        reference::to_toml(self)
    }
}

#[cfg(test)]
mod tests;
