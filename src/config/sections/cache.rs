//! `[cache]`: a Redis that keeps what a hub can start from.

use std::time::Duration;

use crate::config::SecretUrl;
use crate::config::kind::{millis, text};
use crate::config::table::{Key, Table};

/// A Redis that keeps what a hub can start from.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheConfig {
    pub url: SecretUrl,
    /// For any answer: then it is left alone for a while.
    pub deadline: Duration,
    /// Between two looks at which markets moved.
    pub interval: Duration,
}

pub(in crate::config) fn read(table: &mut Table<'_>) -> Option<CacheConfig> {
    let cache = CacheConfig {
        url: table.key(Key {
            name: "cache.url",
            unit: "",
            takes: text("a URL", redis_url, SecretUrl::to_string).secret(),
            default: SecretUrl::default(),
            does: "A Redis that keeps each market's state, so that a hub starts faster; empty \
                   means none.",
            notes: "`redis://user:password@host:6379/0`, `redis-cluster://one:6379?node=two:6379` \
                    or `redis-sentinel://one:26379?sentinelServiceName=main&node=two:26379`. It \
                    also has each market's last trades and ticker, for other programs. Without it, \
                    a hub starts from its log alone: slower, never wrong. Hubs with different logs \
                    need a database (`/0`, `/1`) each.",
        }),
        deadline: table.key(Key {
            name: "cache.deadline_ms",
            unit: "ms",
            takes: millis(10..=5_000).because("A start waits for two of these at most."),
            default: Duration::from_millis(500),
            does: "Time for each answer of the cache; then the hub leaves it alone for up to 2 s.",
            notes: "",
        }),
        interval: table.key(Key {
            name: "cache.interval_ms",
            unit: "ms",
            takes: millis(10..=60_000),
            default: Duration::from_secs(1),
            does: "Time between two checks of which markets changed.",
            notes: "It bounds what a start replays, and how often the hub writes a busy market's \
                    whole state.",
        }),
    };
    Some(cache).filter(|cache| !cache.url.is_empty())
}

/// Says what is wrong with it without repeating it, as it may hold a password.
fn redis_url(url: &str) -> Result<SecretUrl, String> {
    if url.is_empty() {
        return Ok(SecretUrl::default());
    }
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
        Ok(_) => Ok(SecretUrl::new(url)),
        Err(error) => Err(format!("can't be read: {}", error.details())),
    }
}
