//! `[store]`: the event log and what queries read.

use std::path::PathBuf;
use std::time::Duration;

use super::feeds::postgres_url;
use crate::config::SecretUrl;
use crate::config::kind::{millis, one_of, text, whole};
use crate::config::table::{Key, Table};

/// The event log and what queries read.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreConfig {
    /// Of the SQLite database; its folder is made when it is missing. It is the log itself or,
    /// where that is shared, this hub's replica of it.
    pub path: PathBuf,
    pub synchronous: Synchronous,
    /// The log is the table that [`super::feeds::FeedsConfig::postgres`] reads, and the same for
    /// several hubs.
    pub shared: Option<SharedLogConfig>,
}

/// How a hub writes into a log that it shares.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedLogConfig {
    pub connections: usize,
    /// How long a mutation waits for one of them.
    pub connection_wait: Duration,
    /// Distinguishes this hub's folders from those of the same name elsewhere; empty: the
    /// machine's name.
    pub host: String,
}

/// How hard SQLite holds on to a commit (`PRAGMA synchronous` with a write-ahead log).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synchronous {
    /// Survives a killed process and a killed machine whole; the last commits before a power cut
    /// may be missing and come again from the feed.
    Normal,
    /// Every commit is on the disk before it counts; costs an fsync each.
    Full,
}

/// Where the event log is.
#[derive(Clone)]
pub(in crate::config) enum Log {
    File(PathBuf),
    /// A database of Postgres.
    Shared(SecretUrl),
}

pub(in crate::config) fn read(table: &mut Table<'_>) -> (Log, StoreConfig) {
    let log = table.key(Key {
        name: "store.url",
        unit: "",
        takes: text("a URL", log_url, |log| match log {
            Log::File(path) => format!("sqlite:{}", path.display()),
            Log::Shared(url) => url.to_string(),
        })
        .secret(),
        default: Log::File(PathBuf::from("data/spreadly.db")),
        does: "The event log: a SQLite file, or a Postgres database that several hubs share.",
        notes: "`sqlite:PATH`: the hub creates the file and its folder when they are missing. \
                `postgres://user:password@host:5432/database`: all hubs on this log publish what \
                any of them accepts, under the same positions. The keys of `feeds.postgres`, \
                except its `url`, hold for that database too.",
    });
    let replica = table.key(Key {
        name: "store.replica",
        unit: "",
        takes: text(
            "the path of a file",
            |path| database_file(path, "\"data/replica.db\""),
            |path| path.display().to_string(),
        ),
        default: PathBuf::from("data/replica.db"),
        does: "This hub's copy of a shared log, which queries read and a restart begins with.",
        notes: "A lost replica is built again from the whole log.",
    });
    let shared = SharedLogConfig {
        connections: table.key(Key {
            name: "store.connections",
            unit: "connections",
            takes: whole(1..=1_000),
            default: 8,
            does: "Connections by which a hub writes into a shared log.",
            notes: "",
        }),
        connection_wait: table.key(Key {
            name: "store.connection_wait_ms",
            unit: "ms",
            takes: millis(1..=4_000).because("A mutation may take 5 s in all."),
            default: Duration::from_millis(250),
            does: "Time that a mutation waits for one of `store.connections`; then it is \
                   `UNAVAILABLE`.",
            notes: "",
        }),
        host: table.key(Key {
            name: "store.host",
            unit: "",
            takes: text("a name", |host| Ok(host.to_owned()), String::clone),
            default: String::new(),
            does: "Distinguishes this hub's folder in a shared log; empty means the machine's \
                   name.",
            notes: "Watched folders of several hubs may have the same name. Set it where the \
                    machine's name changes and the folder stays, as in containers. A folder under \
                    another name is read from its start.",
        }),
    };
    let synchronous = table.key(Key {
        name: "store.synchronous",
        unit: "",
        takes: one_of(&[("normal", Synchronous::Normal), ("full", Synchronous::Full)]),
        default: Synchronous::Normal,
        does: "When a commit counts as stored.",
        notes: "`normal`: a killed process loses nothing. A power cut may lose the last commits, \
                which feeds bring again. `full`: after an fsync for each commit.",
    });
    let (path, shared) = match &log {
        Log::File(path) => (path.clone(), None),
        Log::Shared(_) => (replica, Some(shared)),
    };
    (log, StoreConfig { path, synchronous, shared })
}

/// `sqlite:data/spreadly.db`, `sqlite:/var/lib/…`, and the same with the `//` of other tools; or a
/// database of Postgres.
fn log_url(url: &str) -> Result<Log, String> {
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
