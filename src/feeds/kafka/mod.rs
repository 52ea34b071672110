//! Topics of Kafka as a feed. Each hub reads every partition itself, from the offset that stands in its
//! log beside what the records before it brought: no group, no committed offset, so a record counts
//! once whatever is killed in between. A partition's records stay in order; partitions do not wait for
//! one another.

mod partitions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use rdkafka::Message as _;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use tokio_util::sync::CancellationToken;

use self::partitions::{Partition, Partitions, PartitionsError};
use super::door::{Batch, Door, DoorError, Incoming};
use super::status::{At, FeedId, FeedStatuses, Place};
use crate::market::event::{MOST_LINE_BYTES, Refusal, reverts};
use crate::store::{FeedPosition, Progress};

/// Records of a batch, and bytes of their values but for the last one's.
const BATCH_RECORDS: usize = 1_024;
const BATCH_BYTES: usize = 1 << 20;
/// Of what is told of partitions that could not go on where they were.
const MOST_NOTES: usize = 3;
/// Without a record for so long, whether the brokers still answer is looked after.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks for partitions that were added.
const METADATA: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct KafkaConfig {
    pub brokers: String,
    pub topics: Vec<String>,
    /// For any answer.
    pub deadline: Duration,
    /// Passed on to librdkafka: TLS, SASL and whatever else it takes. May hold a password.
    pub settings: Vec<(String, String)>,
}

/// Why a session with the brokers ended.
enum Cut {
    /// The hub stops.
    Door,
    Kafka(PartitionsError),
}

impl From<PartitionsError> for Cut {
    fn from(error: PartitionsError) -> Self {
        Self::Kafka(error)
    }
}

impl From<KafkaError> for Cut {
    fn from(error: KafkaError) -> Self {
        Self::Kafka(error.into())
    }
}

/// Runs until told to stop, or until the door is closed. Wants a thread of its own: looking after
/// brokers that do not answer holds it up.
pub async fn run(
    config: KafkaConfig,
    door: Door,
    statuses: FeedStatuses,
    feed: FeedId,
    shutdown: CancellationToken,
) {
    let own = Feed { config, door, statuses: statuses.clone(), feed };
    shutdown.run_until_cancelled(own.follow()).await;
    statuses.shutting_down(feed);
}

struct Feed {
    config: KafkaConfig,
    door: Door,
    statuses: FeedStatuses,
    feed: FeedId,
}

/// Records on their way into one batch, of any partitions.
#[derive(Default)]
struct Records {
    lines: Vec<Incoming>,
    bytes: usize,
    /// Of each partition with a record among them, by its place: where to go on.
    next: BTreeMap<usize, u64>,
}

impl Records {
    fn is_full(&self) -> bool {
        self.lines.len() >= BATCH_RECORDS || self.bytes >= BATCH_BYTES
    }
}

impl Feed {
    /// Ends when the door is closed.
    async fn follow(self) {
        let mut backoff = super::backoff();
        let mut told = false;
        loop {
            let mut healthy = false;
            let Err(cut) = self.session(&mut healthy).await;
            let Cut::Kafka(error) = cut else { return };
            if healthy {
                backoff.reset();
                told = false;
            }
            if !told {
                tracing::warn!(%error, "cut off from Kafka: connecting anew");
                told = true;
            }
            self.cut_off(&error);
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    fn cut_off(&self, error: &PartitionsError) {
        self.statuses.cut_off(self.feed, format!("cut off from Kafka: {error}"));
    }

    /// Reads until it has to begin anew. `healthy`: all that was there has been read.
    async fn session(&self, healthy: &mut bool) -> Result<std::convert::Infallible, Cut> {
        let consumer = partitions::connect(&self.config)?;
        let mut partitions = Partitions::find(&self.config, &consumer)?;
        let mut notes = Vec::new();
        for place in 0..partitions.len() {
            let known = self.known(partitions.get(place)).await?;
            notes.extend(partitions.begin(place, known.as_ref(), &consumer)?);
        }
        if !notes.is_empty() {
            notes.truncate(MOST_NOTES);
            self.statuses.note(self.feed, Some(notes.join("; ")));
        }
        partitions.assign(&consumer)?;
        let mut looked = Instant::now();
        let mut answers = true;
        loop {
            let mut next = tokio::time::timeout(LOOK, consumer.recv()).await.ok();
            let quiet = next.is_none();
            let mut records = Records::default();
            while let Some(received) = next {
                if let Some(alone) = self.take(received, &mut partitions, &mut records)? {
                    // What undoes blocks goes by itself, behind all that came before it.
                    self.send(std::mem::take(&mut records), &partitions).await?;
                    self.send(alone, &partitions).await?;
                }
                next = if records.is_full() { None } else { consumer.recv().now_or_never() };
            }
            self.send(records, &partitions).await?;
            if quiet {
                // A broker that is gone is no error to librdkafka, which tries for ever.
                match partitions.look(&consumer) {
                    Ok(()) => answers = true,
                    Err(error @ PartitionsError::OffsetGone(_)) => return Err(error.into()),
                    Err(error) => {
                        answers = false;
                        self.cut_off(&error);
                    }
                }
            }
            self.statuses.behind(self.feed, partitions.behind());
            if answers && partitions.are_read() {
                self.statuses.stale(self.feed, None);
                *healthy = true;
            }
            if answers && looked.elapsed() >= METADATA {
                looked = Instant::now();
                partitions.check(&self.config, &consumer)?;
            }
        }
    }

    async fn known(&self, partition: &Partition) -> Result<Option<FeedPosition>, Cut> {
        loop {
            match self.door.feed_position(&partition.feed).await {
                Ok(known) => return Ok(known),
                Err(DoorError::Closed) => return Err(Cut::Door),
                // The log can't be read now, and every feed says so.
                Err(DoorError::Store(_)) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Takes a record in; or gives it back where it has to go by itself.
    fn take(
        &self,
        received: Result<BorrowedMessage<'_>, KafkaError>,
        partitions: &mut Partitions,
        records: &mut Records,
    ) -> Result<Option<Records>, Cut> {
        let message = match received {
            Ok(message) => message,
            Err(KafkaError::PartitionEOF(number)) => {
                partitions.ended(number);
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let offset = message.offset().cast_unsigned();
        let Some(place) = partitions.place(message.topic(), message.partition()) else {
            return Ok(None);
        };
        let value = message.payload().unwrap_or_default();
        let line = match value.len() > MOST_LINE_BYTES {
            true => Err(Refusal::TooLong),
            false => Ok(value.to_vec()),
        };
        let alone = line.as_deref().is_ok_and(reverts);
        let source: Arc<str> = partitions.get(place).source.clone();
        partitions.read(place, offset + 1);
        let mut own = Records::default();
        let into = if alone { &mut own } else { records };
        into.bytes += value.len();
        into.lines.push(Incoming { place: Place { source, at: At::Offset(offset) }, line });
        into.next.insert(place, offset + 1);
        Ok(alone.then_some(own))
    }

    async fn send(&self, records: Records, partitions: &Partitions) -> Result<(), Cut> {
        let Records { lines, next, .. } = records;
        if lines.is_empty() {
            return Ok(());
        }
        let progress = next.into_iter().map(|(place, position)| {
            let Partition { feed, epoch, .. } = partitions.get(place);
            Progress::Position(FeedPosition { feed: feed.clone(), epoch: *epoch, position })
        });
        let batch = Batch { feed: Some(self.feed), lines, progress: progress.collect() };
        self.door.deliver(batch).await.map(drop).map_err(|_| Cut::Door)
    }
}
