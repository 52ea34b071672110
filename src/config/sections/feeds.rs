//! `[feeds.…]`: where events come from.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use crate::config::SecretUrl;
use crate::config::kind::{flag, list, millis, one_of, text};
use crate::config::table::{HOUR_MS, Key, Table};
use crate::market::definition::check_market;
use crate::market::event::check_topic;
use crate::market::ownership::ALL;

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
/// Settings of librdkafka that are printed; any other may hold a secret.
const SHOWN_KAFKA: [&str; 4] =
    ["security.protocol", "sasl.mechanism", "ssl.ca.location", "client.rack"];
/// Why a poll and a deadline are short.
const SEEN_IN_TIME: &str = "A cut has to be noticed within the 5 s in which clients learn of it.";

#[derive(Clone, Debug, PartialEq)]
pub struct FeedsConfig {
    pub files: FilesFeedConfig,
    /// Absent: no such feed.
    pub postgres: Option<PostgresFeedConfig>,
    /// Absent: no such feed.
    pub kafka: Option<KafkaFeedConfig>,
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
    pub is_required: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilesMode {
    /// The kernel reports changes.
    Watch,
    /// For network file systems, on which the kernel hears of nothing.
    Poll,
}

/// The table `events` of a database, whose rows are read in the order they are numbered.
#[derive(Clone, Debug, PartialEq)]
pub struct PostgresFeedConfig {
    pub url: SecretUrl,
    /// Between two looks where nothing rang.
    pub poll_interval: Duration,
    pub doorbell: Doorbell,
    /// Of its tables; none: the first one of the role's search path.
    pub schema: Option<String>,
    /// For any answer of the database: then it counts as cut off.
    pub deadline: Duration,
    pub is_required: bool,
}

/// Whether writers notify an idle hub. A transaction that did can't be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// Unless the server allows prepared transactions.
    Auto,
    On,
    Off,
}

/// Topics of Kafka, whose partitions are read from where the log has them.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaFeedConfig {
    /// As librdkafka takes them: `host:port`, several with commas between.
    pub brokers: String,
    pub topics: Vec<String>,
    /// Absent: it owns nothing that the config names, and the hub writes nothing there.
    pub owned: Option<KafkaOwnedConfig>,
    /// For any answer of the brokers: then they count as cut off.
    pub deadline: Duration,
    pub settings: Vec<KafkaSetting>,
    pub is_required: bool,
}

/// What belongs to Kafka: mutations write it there, and its events are taken from nowhere else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KafkaOwnedConfig {
    /// Generic topics; `"*"` means all.
    pub topics: Vec<String>,
    /// Markets with all of their events; `"*"` means all.
    pub markets: Vec<String>,
    /// Which of [`KafkaFeedConfig::topics`] mutations write to.
    pub produce_to: String,
}

/// A setting of librdkafka. Its value may be a password.
#[derive(Clone, Debug)]
pub struct KafkaSetting {
    pub name: String,
    pub value: SecretString,
}

impl PartialEq for KafkaSetting {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.value.expose_secret() == other.value.expose_secret()
    }
}

pub(in crate::config) fn files(table: &mut Table<'_>) -> FilesFeedConfig {
    FilesFeedConfig {
        path: table.key(Key {
            name: "feeds.files.path",
            unit: "",
            takes: text("the path of a folder", folder, |path| path.display().to_string()),
            default: PathBuf::from("feeds"),
            does: "The folder whose `.ndjson` files are read line by line.",
            notes: "The hub creates it when it is missing.",
        }),
        mode: table.key(Key {
            name: "feeds.files.mode",
            unit: "",
            takes: one_of(&[("watch", FilesMode::Watch), ("poll", FilesMode::Poll)]),
            default: FilesMode::Watch,
            does: "How the hub learns of changes in the folder.",
            notes: "`watch`: the kernel reports them. `poll`: the hub looks for them. Use it on \
                    network file systems, where the kernel reports nothing.",
        }),
        poll_interval: table.key(Key {
            name: "feeds.files.poll_interval_ms",
            unit: "ms",
            takes: millis(10..=5_000)
                .because("A line must not come later than the heartbeat that is due after 5 s."),
            default: Duration::from_millis(250),
            does: "Time between two checks of the folder in mode `poll`.",
            notes: "In mode `watch` it is the fallback. 250 ms is invisible to people and free for \
                    a disk.",
        }),
        stale_after: table.key(Key {
            name: "feeds.files.stale_after_ms",
            unit: "ms",
            takes: millis(0..=24 * HOUR_MS).map(
                |after| Some(after).filter(|after| !after.is_zero()),
                |after| after.unwrap_or_default(),
            ),
            default: None,
            does: "Silence after which the feed's topics are `STALE`; 0 means never.",
            notes: "By default a folder without new lines is not stale: its writer may have \
                    nothing to write.",
        }),
        is_required: required(table, "feeds.files.required"),
    }
}

fn required(table: &mut Table<'_>, name: &'static str) -> bool {
    table.key(Key {
        name,
        unit: "",
        takes: flag(),
        default: true,
        does: "Whether the hub is ready (`/readyz`) only while this feed is live.",
        notes: "Turn it off for a feed that the hub can do without. Its topics are `STALE` while \
                it is cut off. A single file that can't be read never takes the hub out of \
                `/readyz`.",
    })
}

fn folder(path: &str) -> Result<PathBuf, String> {
    match path {
        "" => Err("a folder's name may not be empty".to_owned()),
        path => Ok(PathBuf::from(path)),
    }
}

/// The URL is empty where there is no such feed.
pub(in crate::config) fn postgres(table: &mut Table<'_>) -> PostgresFeedConfig {
    PostgresFeedConfig {
        url: table.key(Key {
            name: "feeds.postgres.url",
            unit: "",
            takes: text(
                "a URL",
                |url| if url.is_empty() { Ok(SecretUrl::default()) } else { postgres_url(url) },
                SecretUrl::to_string,
            )
            .secret(),
            default: SecretUrl::default(),
            does: "A database whose table `events` is read; empty means none.",
            notes: "`postgres://user:password@host:5432/database`. Of several hosts, with commas \
                    between them, the hub uses the first one that takes writes. It creates the \
                    table, numbers its rows and never deletes one. Leave the key empty if \
                    `store.url` is a Postgres database, as its table is read already.",
        }),
        poll_interval: table.key(Key {
            name: "feeds.postgres.poll_interval_ms",
            unit: "ms",
            takes: millis(10..=2_000).because(SEEN_IN_TIME),
            default: Duration::from_secs(1),
            does: "Time between two checks of the table without a notification.",
            notes: "A row is at most this late where writers don't notify the hub.",
        }),
        doorbell: table.key(Key {
            name: "feeds.postgres.doorbell",
            unit: "",
            takes: one_of(&[
                ("auto", Doorbell::Auto),
                ("on", Doorbell::On),
                ("off", Doorbell::Off),
            ]),
            default: Doorbell::Auto,
            does: "Whether writers send a NOTIFY while the hub is idle.",
            notes: "Postgres refuses PREPARE TRANSACTION after a NOTIFY. `auto` means no NOTIFY on \
                    a server whose `max_prepared_transactions` is above 0: the hub looks every \
                    50 ms instead. Use `on` there if no writer prepares its transactions.",
        }),
        schema: table.key(Key {
            name: "feeds.postgres.schema",
            unit: "",
            takes: text("a name", schema, |schema: &Option<String>| {
                schema.clone().unwrap_or_default()
            }),
            default: None,
            does: "The schema of the hub's tables; empty means the first one of the role's search \
                   path.",
            notes: "Use one where the database has a table `events` of its own. The hub creates it \
                    when it is missing. Writers then insert into `SCHEMA.events`.",
        }),
        deadline: table.key(Key {
            name: "feeds.postgres.deadline_ms",
            unit: "ms",
            takes: millis(100..=3_000).because(SEEN_IN_TIME),
            default: Duration::from_secs(3),
            does: "Time for each answer of the database; then it counts as cut off.",
            notes: "The feed's topics are `STALE` then, and the hub connects again.",
        }),
        is_required: required(table, "feeds.postgres.required"),
    }
}

/// Written as it is into statements, so it is a plain name.
fn schema(name: &str) -> Result<Option<String>, String> {
    let is_plain = name.len() <= 63
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    match name {
        "" => Ok(None),
        name if is_plain => Ok(Some(name.to_owned())),
        _ => Err("must be a plain name: small letters, digits and underscores".to_owned()),
    }
}

/// Says what is wrong with it without repeating it, as it may hold a password.
pub(super) fn postgres_url(url: &str) -> Result<SecretUrl, String> {
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
        _ => Ok(SecretUrl::new(url)),
    }
}

/// There are no brokers where there is no such feed.
pub(in crate::config) fn kafka(table: &mut Table<'_>) -> KafkaFeedConfig {
    KafkaFeedConfig {
        brokers: table.key(Key {
            name: "feeds.kafka.brokers",
            unit: "",
            takes: text("hosts and ports", |brokers| Ok(brokers.to_owned()), String::clone),
            default: String::new(),
            does: "Brokers of Kafka, as in `one:9092,two:9092`; empty means none.",
            notes: "",
        }),
        topics: table.key(Key {
            name: "feeds.kafka.topics",
            unit: "",
            takes: list("a list of topics of Kafka", kafka_topic, String::clone)
                .map(each_once, Vec::clone),
            default: Vec::new(),
            does: "Topics of Kafka whose records are events.",
            notes: "Every partition is read from where the log has it. Each hub with a log of its \
                    own reads it; of hubs that share a log, one does. They use no consumer group \
                    and commit no offset.",
        }),
        owned: Some(kafka_owned(table)).filter(|owned| *owned != KafkaOwnedConfig::default()),
        deadline: table.key(Key {
            name: "feeds.kafka.deadline_ms",
            unit: "ms",
            takes: millis(100..=3_000).because(SEEN_IN_TIME),
            default: Duration::from_secs(3),
            does: "Time for each answer of a broker; then the feed's topics are `STALE`.",
            notes: "",
        }),
        settings: table.key(Key {
            name: "feeds.kafka.settings",
            unit: "",
            takes: list("a list of `name=value`", kafka_setting, |KafkaSetting { name, value }| {
                format!("{name}={}", value.expose_secret())
            })
            .printing_only(|setting| SHOWN_KAFKA.contains(&&*setting.name))
            .secret(),
            default: Vec::new(),
            does: "Settings that are passed to librdkafka.",
            notes: "For example `security.protocol=sasl_ssl`, `sasl.mechanism=SCRAM-SHA-512`, \
                    `sasl.username=hub` and `sasl.password=…`. The hub refuses those on which it \
                    depends that a record counts once, such as `acks` and `group.id`: it sets them \
                    itself.",
        }),
        is_required: required(table, "feeds.kafka.required"),
    }
}

fn kafka_owned(table: &mut Table<'_>) -> KafkaOwnedConfig {
    KafkaOwnedConfig {
        topics: table.key(Key {
            name: "feeds.kafka.own_topics",
            unit: "",
            takes: list(
                "a list of generic topics",
                |name| name_or_all(name, check_topic),
                String::clone,
            ),
            default: Vec::new(),
            does: "Generic topics that belong to Kafka; `*` means all.",
            notes: "`publish` writes them there. The hub refuses their events from anywhere else, \
                    so that they have one order.",
        }),
        markets: table.key(Key {
            name: "feeds.kafka.own_markets",
            unit: "",
            takes: list("a list of markets", |name| name_or_all(name, check_market), String::clone),
            default: Vec::new(),
            does: "Markets that belong to Kafka, with definition, book, orders and trades; `*` \
                   means all.",
            notes: "`placeOrder`, `cancelOrder` and `cancelAllOrders` write there.",
        }),
        produce_to: table.key(Key {
            name: "feeds.kafka.produce_to",
            unit: "",
            takes: text("a topic of Kafka", |topic| Ok(topic.to_owned()), String::clone),
            default: String::new(),
            does: "Which of `feeds.kafka.topics` the hub writes to, for what belongs to Kafka.",
            notes: "The record's key is the market or the generic topic. The hub answers a \
                    mutation once it has read the record back. Empty means that the hub writes \
                    nothing there, and then nothing may belong to Kafka.",
        }),
    }
}

fn name_or_all(name: &str, check: fn(&str) -> Result<(), String>) -> Result<String, String> {
    if name != ALL {
        check(name).map_err(|reason| format!("{name:?} {reason}, or be {ALL:?} for all"))?;
    }
    Ok(name.to_owned())
}

fn kafka_topic(topic: &str) -> Result<String, String> {
    match topic {
        "" => Err("a topic's name may not be empty".to_owned()),
        topic => Ok(topic.to_owned()),
    }
}

/// A topic that is named twice is read once.
fn each_once(mut topics: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    topics.retain(|topic| seen.insert(topic.clone()));
    topics
}

/// A setting of librdkafka that is not ours to make.
fn kafka_setting(written: &str) -> Result<KafkaSetting, String> {
    let (name, value) =
        written.split_once('=').ok_or("each must be as in \"security.protocol=ssl\"")?;
    if KAFKA_OURS.contains(&name) || name.starts_with("enable.auto") {
        return Err(format!("{name} is set by the hub itself: leave it out"));
    }
    Ok(KafkaSetting { name: name.to_owned(), value: value.into() })
}
