//! The cache: a Redis (or a cluster of them, or one that sentinels watch) that holds each market's
//! state with its position, its last trades and its ticker. Knows Redis, not what a state means,
//! and who asks must do without an answer: each question has a deadline, and after one that failed
//! nothing is asked until a wait is over.

pub(crate) mod entry;
mod lookup;
mod writer;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike, HashesInterface, LuaInterface};
use fred::types::config::Config;
use fred::types::{Builder, ConnectHandle, Value};
use futures_util::stream::{self, StreamExt as _};
use secrecy::{ExposeSecret as _, SecretString};
use thiserror::Error;
use tokio::time::{Instant, timeout, timeout_at};

pub use self::entry::{CachedState, Found, Recent};
pub use self::lookup::SnapshotLookup;
pub use self::writer::{OrderBooks, Writer};
use crate::backoff::Backoff;

/// The compare-and-set on the position.
const PUT: &str = include_str!("put.lua");
const REMOVE: &str = "return redis.call('DEL', KEYS[1])";
/// Most passing faults (a failover's last step, a slow fork) pass within it.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// A Redis that is back is noticed within this and a deadline.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Questions that are on their way at once while a hub starts.
const MOST_ASKED: usize = 64;
/// Redirections of a cluster that is being resharded.
const MOST_REDIRECTIONS: u32 = 3;

/// Where the cache is.
#[derive(Clone)]
pub struct CacheConfig {
    /// As fred takes it.
    pub url: SecretString,
    /// Of each question, connecting included.
    pub deadline: Duration,
}

/// What was counted, for `/metrics`.
#[derive(Debug, Default)]
pub struct CacheMeters {
    /// It answered when it was asked last.
    pub up: AtomicBool,
    /// Writes that were taken, and those that were refused because a later position was stored.
    pub written: AtomicU64,
    pub older: AtomicU64,
    /// Questions that failed.
    pub failed: AtomicU64,
    /// States that a start went on from, and those that it would not.
    pub restored: AtomicU64,
    pub refused: AtomicU64,
}

/// Why the cache did not answer.
#[derive(Debug, Error)]
pub enum CacheError {
    #[error("it did not answer in time (cache.deadline_ms is {})", .0.as_millis())]
    Late(Duration),
    #[error(transparent)]
    Redis(#[from] fred::error::Error),
}

/// See the module's text.
pub struct Cache {
    config: CacheConfig,
    redis: Config,
    /// `None` before the first question and after one that failed: the next one connects again, so
    /// that a master that became a replica is asked no more.
    link: Option<Link>,
    backoff: Backoff,
    /// Nothing is asked before this.
    rests_until: Instant,
}

/// A connection, or several to a cluster; it ends when it is dropped.
struct Link {
    client: Client,
    task: ConnectHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cache {
    /// Connects at the first question.
    ///
    /// # Errors
    /// When fred can't read the URL.
    pub fn new(config: CacheConfig) -> Result<Self, CacheError> {
        let redis = Config::from_url(config.url.expose_secret())?;
        let backoff = Backoff::between(FIRST_WAIT, LONGEST_WAIT);
        Ok(Self { config, redis, link: None, backoff, rests_until: Instant::now() })
    }

    /// Until when nothing is asked, as it did not answer.
    pub fn rests_until(&self) -> Instant {
        self.rests_until
    }

    /// Keeps a market's state; `false` where the same or a later position of its log is stored.
    pub async fn put_state(
        &mut self,
        market: &str,
        state: &CachedState,
    ) -> Result<bool, CacheError> {
        self.put(entry::state_key(market), state.fields()).await
    }

    /// Keeps a market's last trades and its ticker, likewise.
    pub async fn put_recent(&mut self, market: &str, recent: &Recent) -> Result<bool, CacheError> {
        self.put(entry::recent_key(market), recent.fields()).await
    }

    /// Removes what is no state, as it may claim a position that none ever reaches.
    pub async fn remove_state(&mut self, market: &str) -> Result<(), CacheError> {
        self.run(REMOVE, entry::state_key(market), Vec::new()).await.map(drop)
    }

    async fn put(&mut self, key: String, fields: Vec<Bytes>) -> Result<bool, CacheError> {
        self.run(PUT, key, fields).await.map(|written| written == 1)
    }

    async fn run(
        &mut self,
        script: &'static str,
        key: String,
        arguments: Vec<Bytes>,
    ) -> Result<i64, CacheError> {
        let deadline = self.config.deadline;
        let done = timeout(deadline, async {
            let client = self.client().await?;
            let arguments: Vec<Value> = arguments.into_iter().map(Value::Bytes).collect();
            Ok(client.eval(script, key, arguments).await?)
        });
        let done = done.await.unwrap_or(Err(CacheError::Late(deadline)));
        self.judge(done.is_ok());
        done
    }

    /// The states of these markets, as far as they come within two deadlines in all.
    pub async fn states(&mut self, markets: &[&str]) -> Result<Vec<(String, Found)>, CacheError> {
        let deadline = self.config.deadline;
        let until = Instant::now() + 2 * deadline;
        let mut found = Vec::new();
        let read = timeout_at(until, async {
            let client = self.client().await?;
            let mut answers = stream::iter(markets)
                .map(|market| async {
                    let fields = Vec::from(entry::STATE_FIELDS);
                    let read =
                        client.hmget::<Vec<Option<Bytes>>, _, _>(entry::state_key(market), fields);
                    ((*market).to_owned(), read.await)
                })
                .buffer_unordered(MOST_ASKED);
            while let Some((market, answer)) = answers.next().await {
                match answer {
                    Ok(fields) => found.push((market, Found::read(&fields))),
                    // Not a hash: an answer, too.
                    Err(error) if error.details().starts_with("WRONGTYPE") => {
                        found.push((market, Found::Unreadable));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        });
        let read = read.await.unwrap_or(Err(CacheError::Late(deadline)));
        self.judge(read.is_ok());
        match read {
            Err(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    async fn client(&mut self) -> Result<Client, fred::error::Error> {
        if let Some(link) = &self.link {
            return Ok(link.client.clone());
        }
        let deadline = self.config.deadline;
        let mut builder = Builder::from_config(self.redis.clone());
        builder.with_connection_config(|connection| {
            connection.connection_timeout = deadline;
            connection.internal_command_timeout = deadline;
            // What was cut off is asked again by us, with what is newest then.
            connection.max_command_attempts = 1;
            connection.max_redirections = MOST_REDIRECTIONS;
            connection.max_command_buffer_len = MOST_ASKED;
        });
        builder.with_performance_config(|performance| {
            performance.default_command_timeout = 2 * deadline;
        });
        // No policy: it does not reconnect by itself, as we do.
        let client = builder.build()?;
        // Kept at once, so that it ends also where this is given up.
        let task = client.connect();
        self.link = Some(Link { client: client.clone(), task });
        client.wait_for_connect().await?;
        Ok(client)
    }

    /// Whether it is healthy decides when it is asked again.
    fn judge(&mut self, healthy: bool) {
        if healthy {
            self.backoff.reset();
        } else {
            self.link = None;
            self.rests_until = Instant::now() + self.backoff.wait();
        }
    }
}

impl CacheMeters {
    /// Counts what became of a write; `None`: it failed.
    pub fn count(&self, written: Option<bool>) {
        match written {
            Some(true) => self.written.fetch_add(1, Ordering::Relaxed),
            Some(false) => self.older.fetch_add(1, Ordering::Relaxed),
            None => self.failed.fetch_add(1, Ordering::Relaxed),
        };
        self.up.store(written.is_some(), Ordering::Relaxed);
    }
}
