//! Topics of Kafka as a feed. A hub reads every partition itself, from the offset that stands in its
//! log beside what the records before it brought: no group, no committed offset, so a record counts
//! once whatever is killed in between. A partition's records stay in order; partitions do not wait for
//! one another.
//!
//! Of hubs that share a log one reads a partition and brings it to all of them; the others stand by. Who
//! it is stands in the log too, beside the offset, so that one which was taken for dead brings nothing more.

mod partitions;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use rdkafka::Message as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use tokio_util::sync::CancellationToken;

use self::partitions::{Partition, Partitions, PartitionsError};
use super::door::{Door, Incoming};
use super::remote::{self, Remote};
use super::status::{At, FeedId, FeedStatuses, Place};
use crate::market::event::{MOST_LINE_BYTES, Refusal, reverts};
use crate::store::FeedPosition;

/// Records of a batch, and bytes of their values but for the last one's.
const BATCH_RECORDS: usize = 1_024;
const BATCH_BYTES: usize = 1 << 20;
/// Of what is told of partitions that lack what was to be read of them: the newest.
const MOST_NOTES: usize = 3;
/// Without a record for so long, whether the brokers still answer is looked after.
const LOOK: Duration = Duration::from_secs(1);
/// Between two times that this hub says that it reads its partitions, and looks how far others are.
const CLAIM: Duration = Duration::from_secs(1);
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

type Cut = remote::Cut<PartitionsError>;

/// Runs until told to stop, or until the door is closed. Wants a thread of its own: looking after
/// brokers that do not answer holds it up.
pub async fn run(
    config: KafkaConfig,
    door: Door,
    statuses: FeedStatuses,
    feed: FeedId,
    shutdown: CancellationToken,
) {
    let remote = Remote { door, statuses: statuses.clone(), feed, source: "Kafka" };
    let own = Feed { config, remote, notes: RefCell::default() };
    let following = own.remote.follow(async |healthy: &mut bool| own.session(healthy).await);
    shutdown.run_until_cancelled(following).await;
    statuses.shutting_down(feed);
}

struct Feed {
    config: KafkaConfig,
    remote: Remote,
    notes: RefCell<Notes>,
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

/// What there is to tell of the partitions while the feed is live.
#[derive(Default)]
struct Notes {
    elsewhere: Option<String>,
    /// What was lost, the newest last.
    lost: VecDeque<String>,
}

impl Feed {
    /// Reads until it has to begin anew. `healthy`: all that was there has been read.
    async fn session(&self, healthy: &mut bool) -> Result<Infallible, Cut> {
        let consumer = partitions::connect(&self.config)?;
        let mut partitions = Partitions::find(&self.config, &consumer)?;
        let names = partitions.names();
        let mut claimed = Instant::now();
        for (place, one) in self.remote.claim(&names).await?.iter().enumerate() {
            self.tell_lost(partitions.begin(place, one, &consumer)?);
        }
        self.tell_elsewhere(partitions.elsewhere());
        partitions.assign(&consumer)?;
        let mut looked = Instant::now();
        let mut answers = true;
        loop {
            let mut next = tokio::time::timeout(LOOK, consumer.recv()).await.ok();
            let quiet = next.is_none();
            let mut records = Records::default();
            while let Some(received) = next {
                let taken = self.take(received, &mut partitions, &mut records)?;
                if let Some(alone) = taken {
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
                        self.remote.cut_off(&error);
                    }
                }
            }
            // Not while this hub can't read: then another may.
            if answers && claimed.elapsed() >= CLAIM {
                claimed = Instant::now();
                let all = self.remote.claim(&names).await?;
                if !partitions.look_elsewhere(&all) {
                    return Err(Cut::Again);
                }
            }
            self.remote.behind(partitions.behind());
            if answers && partitions.are_read() {
                self.remote.caught_up();
                *healthy = true;
            }
            if answers && looked.elapsed() >= METADATA {
                looked = Instant::now();
                partitions.check(&self.config, &consumer)?;
            }
        }
    }

    fn tell_lost(&self, lost: Option<String>) {
        let Some(lost) = lost else { return };
        let mut notes = self.notes.borrow_mut();
        notes.lost.push_back(lost);
        if notes.lost.len() > MOST_NOTES {
            notes.lost.pop_front();
        }
        self.tell(&notes);
    }

    fn tell_elsewhere(&self, elsewhere: Option<String>) {
        let mut notes = self.notes.borrow_mut();
        notes.elsewhere = elsewhere;
        self.tell(&notes);
    }

    fn tell(&self, notes: &Notes) {
        let all: Vec<&str> =
            notes.elsewhere.iter().chain(&notes.lost).map(String::as_str).collect();
        let note = (!all.is_empty()).then(|| all.join("; "));
        self.remote.statuses.note(self.remote.feed, note);
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
            Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) => {
                return Err(PartitionsError::OffsetGone("a partition".to_owned()).into());
            }
            Err(error) => return Err(PartitionsError::from(error).into()),
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
        self.tell_lost(partitions.read(place, offset));
        let mut own = Records::default();
        let into = if alone { &mut own } else { records };
        into.bytes += value.len();
        into.lines.push(Incoming {
            place: Place { source, at: At::Offset(offset) },
            line,
            numbered: None,
        });
        into.next.insert(place, offset + 1);
        Ok(alone.then_some(own))
    }

    async fn send(&self, records: Records, partitions: &Partitions) -> Result<(), Cut> {
        let Records { lines, next, .. } = records;
        if lines.is_empty() {
            return Ok(());
        }
        let positions = next.into_iter().map(|(place, position)| {
            let Partition { feed, epoch, .. } = partitions.get(place);
            FeedPosition { feed: feed.clone(), epoch: *epoch, position }
        });
        self.remote.send(lines, positions).await
    }
}
