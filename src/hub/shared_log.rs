//! A log that several hubs share: how a hub's replica of it is opened, and what it needs beside a
//! hub that has a log of its own.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use spreadly_subscriptions::Epoch;
use tokio_util::sync::CancellationToken;

use super::readiness::{Readiness, Stage};
use super::run::{ServeError, synchronous};
use crate::backoff::Backoff;
use crate::config::{self, KafkaFeedConfig, PostgresFeedConfig, SharedLogConfig, StoreConfig};
use crate::feeds::postgres;
use crate::ingest::feed_status::FeedStatuses;
use crate::ingest::handle::IngestHandle;
use crate::live::Live;
use crate::postgres::{Doorbell, PostgresConfig};
use crate::shared_log::{
    self, Agreed, OwnershipGuard, PostgresMeters, Reader, Requests, TOPICS, Writer, WriterConfig,
};
use crate::store::{self, Store, StoreError};

/// Between two looks for the database, before there is a replica.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// See [`super::feeds::Feeds`].
pub(super) struct SharedLog {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) requests: Requests,
    pub(super) replica: IngestHandle,
}

/// This hub's copy of the log.
pub(super) struct Replica {
    pub(super) ingest: IngestHandle,
    pub(super) epoch: Epoch,
    /// Ends once the log is another one than this one's.
    pub(super) replaced: CancellationToken,
}

impl SharedLog {
    /// Gives the handle of the shared log too, which feeds and mutations use.
    pub(super) fn new(
        shared: &SharedLogConfig,
        feeds: (&PostgresFeedConfig, Option<&KafkaFeedConfig>),
        replica: Replica,
        statuses: &FeedStatuses,
        ownership_guard: Option<OwnershipGuard>,
        live: Arc<Live>,
        meters: Arc<PostgresMeters>,
    ) -> Result<(Self, IngestHandle), ServeError> {
        let Replica { ingest: replica, epoch, replaced } = replica;
        let SharedLogConfig { connections, connection_wait, host } = shared.clone();
        let host = if host.is_empty() {
            whoami::hostname().map_err(|error| io::Error::other(error.to_string()))?
        } else {
            host
        };
        let (log, kafka) = feeds;
        let config = WriterConfig {
            postgres: postgres(log.clone()),
            connections,
            connection_wait,
            host,
            agreed: kafka.map(agreed).unwrap_or_default(),
            ownership_guard,
            live,
            meters,
        };
        let (reader, writer) = shared_log::open(config, statuses.clone(), epoch.0, replaced)
            .map_err(io::Error::other)?;
        let (ingest, requests) = shared_log::handle();
        Ok((Self { reader, writer, requests, replica }, ingest))
    }
}

/// What has to be the same on all hubs. The order of the values means nothing.
fn agreed(kafka: &KafkaFeedConfig) -> Agreed {
    let owned = kafka.owned.clone().unwrap_or_default();
    let brokers = kafka.brokers.split(',').map(|broker| broker.trim().to_owned()).collect();
    let all = [
        ("feeds.kafka.brokers", brokers),
        (TOPICS, kafka.topics.clone()),
        ("feeds.kafka.own_topics", owned.topics),
        ("feeds.kafka.own_markets", owned.markets),
        ("feeds.kafka.produce_to", vec![owned.produce_to]),
    ];
    all.into_iter().map(|(key, values)| (key.to_owned(), values.into_iter().collect())).collect()
}

pub fn postgres(written: PostgresFeedConfig) -> PostgresConfig {
    let PostgresFeedConfig { url, poll_interval, doorbell, schema, deadline, .. } = written;
    let doorbell = match doorbell {
        config::Doorbell::Auto => Doorbell::Auto,
        config::Doorbell::On => Doorbell::On,
        config::Doorbell::Off => Doorbell::Off,
    };
    PostgresConfig { url: url.secret().clone(), poll_interval, doorbell, schema, deadline }
}

/// Opens the replica. Where the database does not answer and there is a replica, with what that
/// has; otherwise waits for the database, as long as it takes.
pub(super) async fn open_replica(
    store: &StoreConfig,
    log: &PostgresFeedConfig,
    readiness: &Readiness,
) -> Result<Store, ServeError> {
    let config = postgres(log.clone());
    let mut backoff = Backoff::between(FIRST_WAIT, LONGEST_WAIT);
    let mut is_reported = false;
    loop {
        let there = blocking(store, Store::existing_replica).await?;
        let known = there.as_ref().map_or(Ok(None), |own| own.feed_position(postgres::NAME))?;
        let numbering = shared_log::numbering(&config, known.as_ref()).await;
        if numbering.is_ok() {
            readiness.set(Stage::Starting);
        }
        match (numbering, there) {
            (Ok(numbering), Some(replica)) if replica.epoch().0 == numbering.epoch => {
                return Ok(replica);
            }
            (Ok(numbering), other) => {
                // So that it can be set aside.
                drop(other);
                let epoch = Epoch(numbering.epoch);
                return blocking(store, move |path, synchronous| {
                    Store::open_replica(path, synchronous, epoch)
                })
                .await;
            }
            (Err(error), Some(replica)) => {
                tracing::warn!(%error, "the shared log does not answer: beginning with what the replica has");
                return Ok(replica);
            }
            (Err(error), None) => {
                if !std::mem::replace(&mut is_reported, true) {
                    tracing::warn!(%error, "the shared log can't be used, and there is no replica yet: waiting");
                }
                readiness.set(Stage::WaitingForLog(error.to_string()));
                tokio::time::sleep(backoff.wait()).await;
            }
        }
    }
}

/// Opening a database may wait for the disk.
async fn blocking<T: Send + 'static>(
    store: &StoreConfig,
    open: impl FnOnce(&Path, store::Synchronous) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ServeError> {
    let (path, synchronous) = (store.path.clone(), synchronous(store.synchronous));
    let opening = tokio::task::spawn_blocking(move || open(&path, synchronous));
    Ok(opening.await.map_err(io::Error::other)??)
}
