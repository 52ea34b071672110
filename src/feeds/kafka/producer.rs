//! The way of events into Kafka: what clients ask to be written to a topic that Kafka owns. It is
//! answered once the hub's own log has the record, which the feed brings back like any other; so
//! that a line is known again it has an id.
//!
//! The producer is idempotent, and gives a record up before its client receives that it did not get
//! through in time. One that is asked again under its id may stand in Kafka twice and counts once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use thiserror::Error;
use tokio_util::task::TaskTracker;

use super::KafkaConfig;
use super::brokers::{self, Connections};
use crate::ingest::feed_status::{FeedKind, FeedStatuses};
use crate::ingest::handle::Ack;
use crate::ingest::waiters::{self, MOST_WAITERS, Waiters, Waiting};
use crate::market::event::{self, Event};
use crate::market::ownership::Ownership;
use crate::store::{EventId, LogReaders};

/// How long a hub that is cut off from Kafka, or has only begun to read it, is waited for. Until
/// then nothing is handed over, so that it is certain that nothing was written.
const REACH_PATIENCE: Duration = Duration::from_secs(1);
/// After which librdkafka gives a record up; it looks once a second.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(3);
/// All that passes before [`Producer::write`] says that records did not get through.
pub const LONGEST_WRITE: Duration =
    Duration::from_secs(REACH_PATIENCE.as_secs() + DELIVERY_TIMEOUT.as_secs() + 1);
/// Bytes of records that are under way: 256 of the largest.
const MOST_KIB: usize = 64 * 1024;

/// An event that belongs into Kafka.
#[derive(Clone, Debug)]
pub struct Outgoing {
    key: String,
    id: Box<str>,
    kind: &'static str,
    /// Of the log; `None` where its line does not say it.
    topic: Option<Arc<str>>,
    /// By what it is awaited.
    awaited: Box<str>,
    line: String,
}

impl Outgoing {
    /// Of an event that has an id.
    fn new(key: String, event: &Event<'_>, line: String) -> Option<Self> {
        let (id, awaited) = (event.id.clone()?, waiters::key(event)?);
        Some(Self { key, id, kind: event.kind(), topic: event.topic(), awaited, line })
    }
}

/// Why it is not known that records were written.
#[derive(Debug, Error)]
pub enum ProduceError {
    /// Nothing was written.
    #[error("Kafka is not reached")]
    Away,
    /// Nothing was written.
    #[error("{MOST_WAITERS} records or {MOST_KIB} KiB of them are under way")]
    Full,
    /// Nothing was written, and it would be the same again.
    #[error("Kafka does not take it: {0}")]
    Refused(KafkaError),
    /// It may be written, or a part of it.
    #[error("not every record was acknowledged: {0}")]
    Unsure(KafkaError),
}

/// See the module's text.
pub struct Producer {
    config: ClientConfig,
    /// A topic of Kafka.
    to: String,
    ownership: Arc<Ownership>,
    waiters: Arc<Waiters>,
    statuses: FeedStatuses,
    /// Of the hub's log.
    readers: Arc<LogReaders>,
    tracker: TaskTracker,
    /// Made when first needed, and again where librdkafka gave it up.
    client: Mutex<Option<FutureProducer<Connections>>>,
    failing: AtomicBool,
}

impl Producer {
    /// Reaches for no broker yet.
    pub fn new(
        config: &KafkaConfig,
        to: String,
        ownership: Arc<Ownership>,
        waiters: Arc<Waiters>,
        statuses: FeedStatuses,
        readers: Arc<LogReaders>,
        tracker: TaskTracker,
    ) -> Self {
        let (client, failing) = (Mutex::default(), AtomicBool::new(false));
        let config = settings(config);
        Self { config, to, ownership, waiters, statuses, readers, tracker, client, failing }
    }

    /// The line as a record, if it is of what Kafka owns; otherwise the line.
    pub fn outgoing(&self, line: String) -> Result<Outgoing, String> {
        // What can't be read is refused by the sequencer.
        let Ok(mut event) = event::parse(line.as_bytes()) else { return Err(line) };
        let Some(owned) = self.ownership.of(&event, |_| None) else { return Err(line) };
        let key = owned.key().to_owned();
        let named = match &event.id {
            Some(_) => line.clone(),
            None => {
                let id = format!("{:032x}", rand::random::<u128>());
                // All else stays as it is written, to the last digit.
                let fields = line.trim_start().strip_prefix('{').unwrap_or_default();
                let named = format!(r#"{{"id":"{id}",{fields}"#);
                event.id = Some(id.into());
                named
            }
        };
        Outgoing::new(key, &event, named).ok_or(line)
    }

    /// Back once all of them are in the hub's log, or refused there.
    pub async fn write(&self, records: &[Outgoing]) -> Result<Ack, ProduceError> {
        let written = match self.reached().await {
            Ok(()) => self.produce(records).await,
            // Asked again, of what got there before Kafka was gone.
            Err(_) if self.are_known(records).await => {
                return Ok(Ack { known: records.len(), ..Ack::default() });
            }
            Err(error) => Err(error),
        };
        self.log(written.as_ref().err());
        written
    }

    async fn produce(&self, records: &[Outgoing]) -> Result<Ack, ProduceError> {
        let expect = |one: &Outgoing| self.waiters.expect(&one.awaited, &one.line);
        let awaited: Option<Vec<_>> = records.iter().map(expect).collect();
        let awaited = awaited.ok_or(ProduceError::Full)?;
        let deliveries = self.hand_over(records)?;
        tokio::select! {
            biased;
            ack = settled(awaited) => Ok(ack),
            error = failed(deliveries) => Err(unwritten(error, records.len())),
        }
    }

    /// Whether all of them are in the log already.
    async fn are_known(&self, records: &[Outgoing]) -> bool {
        let ids: Vec<_> =
            records.iter().map(|one| (one.topic.clone(), one.kind, one.id.clone())).collect();
        let known = self.readers.clone().now(move |log| {
            for (topic, kind, id) in &ids {
                let Some(topic) = topic else { return Ok(false) };
                if log.find(EventId { topic, kind, id })?.is_none() {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        known.await.unwrap_or(false)
    }

    async fn reached(&self) -> Result<(), ProduceError> {
        let mut changes = self.statuses.changes();
        let reached = async {
            while self.statuses.is_any_stale(FeedKind::Kafka) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let reached = tokio::time::timeout(REACH_PATIENCE, reached).await;
        reached.map_err(|_| ProduceError::Away)
    }

    /// Puts records into the producer's queue, and does not wait.
    fn hand_over(&self, records: &[Outgoing]) -> Result<Vec<DeliveryFuture>, ProduceError> {
        let client = self.client().map_err(ProduceError::Refused)?;
        let mut deliveries = Vec::with_capacity(records.len());
        for Outgoing { key, line, .. } in records {
            let record = FutureRecord::to(&self.to).key(key).payload(line);
            match client.send_result(record) {
                Ok(delivery) => deliveries.push(delivery),
                Err((error, _)) if deliveries.is_empty() => return Err(unqueued(error)),
                Err((error, _)) => return Err(ProduceError::Unsure(error)),
            }
        }
        Ok(deliveries)
    }

    fn client(&self) -> Result<FutureProducer<Connections>, KafkaError> {
        let mut client = self.client.lock();
        if let Some(own) = &*client {
            let Some((code, reason)) = own.client().fatal_error() else { return Ok(own.clone()) };
            tracing::warn!(%code, reason, "the Kafka producer is created again");
            let given_up = client.take();
            // Ending it takes a moment.
            self.tracker.spawn_blocking(move || drop(given_up));
        }
        Ok(client.insert(self.config.create_with_context(Connections::default())?).clone())
    }

    /// Once, until one gets through.
    fn log(&self, error: Option<&ProduceError>) {
        let failing = error.is_some();
        let failed = self.failing.swap(failing, Ordering::Relaxed);
        match error {
            Some(error) if !failed => tracing::warn!(%error, "records do not get into Kafka"),
            None if failed => tracing::info!("records get into Kafka again"),
            _ => {}
        }
    }
}

/// What is passed on, and what makes each record count once, within its time, in bounded memory.
fn settings(config: &KafkaConfig) -> ClientConfig {
    let mut client = brokers::client(config);
    // As Java's clients do, so that a market's records are in one partition for every writer.
    if client.get("partitioner").is_none() {
        client.set("partitioner", "murmur2_random");
    }
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string())
        .set("queue.buffering.max.messages", MOST_WAITERS.to_string())
        .set("queue.buffering.max.kbytes", MOST_KIB.to_string())
        // A client waits for each: what comes meanwhile leaves together anyway.
        .set("linger.ms", "0");
    client
}

async fn settled(awaited: Vec<Waiting>) -> Ack {
    let mut all = Ack::default();
    for mut one in awaited {
        all.add(one.outcome().await);
    }
    all
}

/// Ends once one of them failed.
async fn failed(deliveries: Vec<DeliveryFuture>) -> KafkaError {
    for delivery in deliveries {
        match delivery.await {
            Ok(Ok(_)) => {}
            Ok(Err((error, _))) => return error,
            Err(_) => return KafkaError::Canceled,
        }
    }
    std::future::pending().await
}

/// Of a record that did not get into the queue.
fn unqueued(error: KafkaError) -> ProduceError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::QueueFull) => ProduceError::Full,
        _ => ProduceError::Refused(error),
    }
}

/// Of one of so many that got into it. A broker that refuses a record has not written it; any other
/// failure leaves that open, and of several the others may be written.
fn unwritten(error: KafkaError, records: usize) -> ProduceError {
    use RDKafkaErrorCode::{
        ClusterAuthorizationFailed, InvalidRecord, MessageSizeTooLarge, PolicyViolation,
        TopicAuthorizationFailed,
    };
    match error.rdkafka_error_code() {
        Some(
            ClusterAuthorizationFailed
            | InvalidRecord
            | MessageSizeTooLarge
            | PolicyViolation
            | TopicAuthorizationFailed,
        ) if records == 1 => ProduceError::Refused(error),
        _ => ProduceError::Unsure(error),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    fn unreachable() -> Producer {
        with(Vec::new())
    }

    fn with(settings: Vec<(String, String)>) -> Producer {
        let config = KafkaConfig {
            brokers: "127.0.0.1:1".to_owned(),
            topics: vec!["events".to_owned()],
            deadline: Duration::from_secs(3),
            settings: settings.into_iter().map(|(name, value)| (name, value.into())).collect(),
        };
        let ownership = Arc::new(Ownership::new(&["news".to_owned()], &[]));
        let (waiters, statuses) = (Arc::default(), FeedStatuses::new());
        let to = "events".to_owned();
        let readers = LogReaders::new(Path::new("nowhere.db"), 1);
        Producer::new(&config, to, ownership, waiters, statuses, readers, TaskTracker::new())
    }

    #[test]
    fn a_line_without_an_id_gets_one_and_is_otherwise_as_it_was() {
        let producer = unreachable();
        let line = r#"{"kind":"message","topic":"news","data":0.10}"#.to_owned();
        let record = producer.outgoing(line.clone()).unwrap();
        assert_eq!(record.key, "news");
        let id = record.id.clone();
        assert_eq!(record.line, line.replacen('{', &format!(r#"{{"id":"{id}","#), 1));
        assert_eq!(event::parse(record.line.as_bytes()).unwrap().id, Some(id));
        let named = line.replacen('{', r#"{"id":"own","#, 1);
        let record = producer.outgoing(named.clone()).unwrap();
        assert_eq!((&*record.id, record.line), ("own", named));
        for other in [line.replace("news", "other"), "{".to_owned()] {
            assert_eq!(producer.outgoing(other.clone()).unwrap_err(), other);
        }
    }

    /// How many of them are taken.
    fn taken(producer: &Producer, record: &Outgoing) -> usize {
        let mut waiting = Vec::new();
        loop {
            match producer.hand_over(std::slice::from_ref(record)) {
                Ok(deliveries) => waiting.extend(deliveries),
                Err(ProduceError::Full) => return waiting.len(),
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn a_queue_that_is_full_of_records_or_of_bytes_takes_no_more_and_says_so_at_once() {
        let line = r#"{"kind":"message","topic":"news","data":1}"#;
        let producer = unreachable();
        let record = producer.outgoing(line.to_owned()).unwrap();
        assert_eq!(taken(&producer, &record), MOST_WAITERS);
        let producer = unreachable();
        let large = format!("\"{}\"", "x".repeat(256 * 1024));
        let record = producer.outgoing(line.replace('1', &large)).unwrap();
        let most = MOST_KIB * 1024 / record.line.len();
        assert!(most.abs_diff(taken(&producer, &record)) <= 1);
    }

    #[tokio::test]
    async fn what_no_broker_takes_is_given_up_within_its_time() {
        let producer = unreachable();
        let line = r#"{"kind":"message","topic":"news","data":1}"#.to_owned();
        let record = producer.outgoing(line).unwrap();
        let written = tokio::time::timeout(LONGEST_WRITE, producer.write(&[record])).await;
        assert!(matches!(written, Ok(Err(ProduceError::Unsure(_)))), "{written:?}");
        assert!(producer.waiters.is_empty(), "a client that gave up leaves no waiter");
    }

    /// No real broker can be made to say what ends a producer: it would be a bug of either.
    #[tokio::test]
    async fn a_producer_that_librdkafka_gave_up_is_replaced() {
        let producer = with(vec![("test.mock.num.brokers".to_owned(), "1".to_owned())]);
        let client = producer.client().unwrap();
        let brokers = client.client().mock_cluster().unwrap();
        brokers.request_errors(
            RDKafkaApiKey::Produce,
            &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER],
        );
        let line = r#"{"kind":"message","topic":"news","data":1}"#.to_owned();
        let record = producer.outgoing(line).unwrap();
        let written = producer.write(std::slice::from_ref(&record)).await;
        assert!(matches!(written, Err(ProduceError::Unsure(_))), "{written:?}");
        assert!(client.client().fatal_error().is_some());
        assert!(producer.client().unwrap().client().fatal_error().is_none());
        producer.tracker.close();
        producer.tracker.wait().await;
    }

    #[tokio::test]
    async fn nothing_is_handed_over_while_the_feed_is_cut_off() {
        let producer = unreachable();
        let feed = producer.statuses.register("kafka", FeedKind::Kafka);
        producer.statuses.stale(feed, Some("cut off".to_owned()));
        let line = r#"{"kind":"message","topic":"news","data":1}"#.to_owned();
        let record = producer.outgoing(line).unwrap();
        let written = producer.write(&[record]).await;
        assert!(matches!(written, Err(ProduceError::Away)), "{written:?}");
        assert!(producer.client.lock().is_none());
    }
}
