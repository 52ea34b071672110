//! Topics of Kafka as a feed. A hub reads every partition itself, from the offset that is in
//! its log beside what the records before it brought: no group, no committed offset, so a record
//! counts once whatever is killed in between. A partition's records stay in order; partitions do
//! not wait for one another.
//!
//! Of hubs that share a log one reads a partition and brings it to all of them. Each reads its
//! share of the partitions. The log names the reader too, beside the offset, so that a reader that
//! was replaced brings nothing more.

mod brokers;
mod leaders;
mod loss;
mod partition;
mod partitions;
mod producer;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _};
use rdkafka::Message as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use self::brokers::Consumer;
use self::leaders::{Answer, Leaders, UNREACHED};
use self::loss::Loss;
use self::partition::{Gap, Met};
use self::partitions::{Partitions, PartitionsError};
pub use self::producer::{LONGEST_WRITE, Outgoing, ProduceError, Producer};
use super::session::{self, Remote};
use crate::ingest::feed_status::{FeedId, FeedStatuses};
use crate::ingest::handle::{self, Incoming, IngestHandle, Lease};
use crate::ingest::place::{At, Place};
use crate::market::event::{MOST_LINE_BYTES, begins_epochs};
use crate::market::refusal::Refusal;

/// Records of a batch, and bytes of their values but for the last one's.
const BATCH_RECORDS: usize = 1_024;
const BATCH_BYTES: usize = 1 << 20;
/// Of the reports of partitions that lack what was to be read of them: the newest.
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
    /// Passed on to librdkafka: TLS, SASL and whatever else it takes. A value may be a password.
    pub settings: Vec<(String, SecretString)>,
}

type Cut = session::Cut<PartitionsError>;

/// Runs until `shutdown`, or until the log is closed. Wants a thread of its own: looking after
/// brokers that do not answer holds it up.
pub async fn run(
    config: KafkaConfig,
    ingest: IngestHandle,
    statuses: FeedStatuses,
    feed: FeedId,
    shutdown: CancellationToken,
) {
    let remote = Remote { ingest, statuses: statuses.clone(), feed, source: "Kafka" };
    let own = Feed { config, remote, notes: RefCell::default(), asks_now: Cell::default() };
    let following = own.remote.follow(async |healthy: &mut bool| own.session(healthy).await);
    shutdown.run_until_cancelled(following).await;
    statuses.shutting_down(feed);
}

struct Feed {
    config: KafkaConfig,
    remote: Remote,
    notes: RefCell<Notes>,
    /// A broker was lost: which one is asked now.
    asks_now: Cell<bool>,
}

/// A record as it was received.
struct Record {
    /// Of its partition.
    place: usize,
    offset: u64,
    /// When it was written, since 1970.
    millis: Option<i64>,
    line: Result<Vec<u8>, Refusal>,
}

impl Record {
    /// `None` of one that is too long to be held.
    fn mark(&self) -> Option<u64> {
        self.line.as_deref().ok().map(|line| partition::mark(line, self.millis))
    }
}

/// Records on their way into one batch, of any partitions.
#[derive(Default)]
struct Records {
    lines: Vec<Incoming>,
    bytes: usize,
    /// Of each partition with a record among them, by its place.
    last: BTreeMap<usize, Last>,
}

/// The last record of a partition in a batch.
struct Last {
    offset: u64,
    millis: Option<i64>,
    /// Which of the batch's lines it is.
    line: usize,
}

impl Records {
    fn is_full(&self) -> bool {
        self.lines.len() >= BATCH_RECORDS || self.bytes >= BATCH_BYTES
    }

    fn add(&mut self, record: Record, partitions: &Partitions) {
        let Record { place, offset, millis, line } = record;
        self.bytes += line.as_ref().map_or(0, Vec::len);
        self.last.insert(place, Last { offset, millis, line: self.lines.len() });
        let source = partitions.get(place).source.clone();
        let place = Place { source, at: At::Offset(offset) };
        self.lines.push(Incoming { place, line, numbered: None });
    }
}

/// What there is to report of the partitions while the feed is live.
#[derive(Default)]
struct Notes {
    elsewhere: Option<String>,
    /// What was lost, the newest last.
    lost: VecDeque<String>,
}

impl Feed {
    /// Reads until it has to begin again. `healthy`: all that was there has been read.
    async fn session(&self, healthy: &mut bool) -> Result<Infallible, Cut> {
        let consumer = brokers::connect(&self.config).map_err(PartitionsError::from)?;
        let consumer = Arc::new(consumer);
        let ended = self.read(&consumer, healthy).await;
        brokers::listen(&consumer).await;
        ended.map_err(|cut| match cut {
            Cut::Source(error) => Cut::Source(error.heard(&consumer)),
            other => other,
        })
    }

    async fn read(&self, consumer: &Arc<Consumer>, healthy: &mut bool) -> Result<Infallible, Cut> {
        let mut partitions = Partitions::find(&self.config, consumer).await?;
        let KafkaConfig { topics, deadline, .. } = self.config.clone();
        let mut leaders = Leaders::new(consumer.clone(), topics, deadline);
        // A hub that can't read all of them claims none: another one may read them.
        leaders.ask(&partitions)?;
        leaders.all_answer().await?;
        let names = partitions.names();
        let mut claimed = Instant::now();
        let leases = self.remote.claim(&names).await?;
        let all = 0..leases.len();
        self.begin(all, &leases, &mut partitions, consumer).await?;
        let (mut looked, mut asked) = (Instant::now(), Instant::now());
        // One for all: each takes a lock when it begins and when it ends.
        let mut stream = consumer.stream();
        loop {
            let mut next = tokio::select! {
                received = stream.next() => received,
                answer = leaders.next() => {
                    self.hear(answer, &mut leaders, &mut partitions, consumer)?;
                    None
                }
                () = tokio::time::sleep(LOOK) => None,
            };
            let mut records = Records::default();
            while let Some(received) = next {
                if let Some(record) = self.record(received, &mut partitions)? {
                    self.take(record, &mut partitions, &mut records, consumer).await?;
                }
                next =
                    if records.is_full() { None } else { stream.next().now_or_never().flatten() };
            }
            self.send(records, &partitions, consumer).await?;
            // Also while records flow: those of other partitions, or fewer than are written. A
            // broker that is gone is no error to librdkafka, which tries for ever.
            if self.asks_now.take() || asked.elapsed() >= LOOK {
                asked = Instant::now();
                leaders.ask(&partitions)?;
                let Remote { statuses, feed, .. } = &self.remote;
                statuses.lags().set(*feed, partitions.lags(&statuses.lags().all()));
            }
            let answers = !partitions.are_silent();
            // Not while this hub can't read: then another may.
            if answers && !leaders.are_out_of_reach() && claimed.elapsed() >= CLAIM {
                claimed = Instant::now();
                // All that was read before is in the log.
                let leases = self.remote.claim(&names).await?;
                let Some(moved) = partitions.look_elsewhere(&leases) else {
                    return Err(Cut::Again);
                };
                if !moved.is_empty() {
                    partitions.leave(&moved.gone, consumer)?;
                    self.begin(moved.come, &leases, &mut partitions, consumer).await?;
                }
            }
            self.remote.set_lag(partitions.lag());
            let faults = partitions.faults();
            let is_whole = faults.is_empty();
            if answers {
                let Remote { statuses, feed, .. } = &self.remote;
                statuses.stale_sources(*feed, faults);
                if partitions.are_read() {
                    // What can be read is read.
                    statuses.stale(*feed, None);
                    *healthy = true;
                }
            }
            if looked.elapsed() >= if is_whole { METADATA } else { LOOK } {
                looked = Instant::now();
                leaders.ask_topics();
            }
        }
    }

    /// What a leader says, or that it says nothing.
    fn hear(
        &self,
        answer: Answer,
        leaders: &mut Leaders,
        partitions: &mut Partitions,
        consumer: &Consumer,
    ) -> Result<(), Cut> {
        match answer {
            // What is after each offset of its partitions has to be proven again.
            Answer::Ends { leader, ends: Ok(_) } if leaders.is_silent(leader) => Err(Cut::Again),
            Answer::Ends { ends: Ok(ends), .. } => Ok(partitions.set_ends(&ends)?),
            Answer::Ends { leader, ends: Err(error) } => {
                // It may lead nothing any more.
                leaders.ask_topics();
                if !leaders.failed(leader, &error) {
                    return Ok(());
                }
                let were_silent = partitions.are_silent();
                partitions.set_silent(leader);
                let error = PartitionsError::from(error).heard(consumer);
                match (were_silent, partitions.are_silent()) {
                    (false, true) => self.remote.cut_off(&error),
                    (true, true) => self.remote.still_cut_off(&error),
                    (_, false) => {}
                }
                Ok(())
            }
            Answer::Leaders(Ok(found)) if partitions.are_led_by(&found) => {
                leaders.keep(partitions);
                Ok(())
            }
            Answer::Leaders(Ok(_)) => Err(Cut::Again),
            // Who leads nothing is asked nothing else.
            Answer::Leaders(Err(error)) if partitions.by_leader().is_empty() => Err(error.into()),
            Answer::Leaders(Err(error)) => {
                tracing::debug!(%error, "who leads the partitions is not known");
                Ok(())
            }
        }
    }

    /// Begins to read those of these partitions that are this hub's.
    async fn begin(
        &self,
        places: impl IntoIterator<Item = usize>,
        leases: &[Lease],
        partitions: &mut Partitions,
        consumer: &Consumer,
    ) -> Result<(), Cut> {
        let places: Vec<_> = places.into_iter().collect();
        let mut gaps = Vec::new();
        for place in &places {
            gaps.extend(partitions.begin(*place, &leases[*place], consumer)?);
        }
        self.report_gaps(gaps, partitions).await?;
        partitions.assign(&places, consumer)?;
        self.notes.borrow_mut().elsewhere = partitions.elsewhere();
        self.show_notes();
        Ok(())
    }

    /// Notes what was lost, for as long as the hub runs or until more was.
    fn note(&self, lost: String) {
        let mut notes = self.notes.borrow_mut();
        notes.lost.push_back(lost);
        if notes.lost.len() > MOST_NOTES {
            notes.lost.pop_front();
        }
        drop(notes);
        self.show_notes();
    }

    fn show_notes(&self) {
        let notes = self.notes.borrow();
        let all: Vec<&str> =
            notes.elsewhere.iter().chain(&notes.lost).map(String::as_str).collect();
        let note = (!all.is_empty()).then(|| all.join("; "));
        self.remote.statuses.note(self.remote.feed, note);
    }

    /// What was received; `None` where it is no record to be read.
    fn record(
        &self,
        received: Result<BorrowedMessage<'_>, KafkaError>,
        partitions: &mut Partitions,
    ) -> Result<Option<Record>, Cut> {
        let message = match received {
            Ok(message) => message,
            Err(KafkaError::PartitionEOF(number)) => {
                partitions.ended(number);
                return Ok(None);
            }
            // One broker of several, which librdkafka tries to reach for ever: what it leads is
            // asked for at once.
            Err(KafkaError::MessageConsumption(code)) if UNREACHED.contains(&code) => {
                self.asks_now.set(true);
                return Ok(None);
            }
            Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) => {
                return Err(PartitionsError::OffsetGone("a partition".to_owned()).into());
            }
            Err(error) => return Err(PartitionsError::from(error).into()),
        };
        let value = message.payload().unwrap_or_default();
        let line = match value.len() > MOST_LINE_BYTES {
            true => Err(Refusal::TooLong),
            false => Ok(value.to_vec()),
        };
        let Some(place) = partitions.place(message.topic(), message.partition()) else {
            return Ok(None);
        };
        // Its broker came back: what is after the offset has to be proven again.
        if partitions.get(place).silent {
            return Err(Cut::Again);
        }
        Ok(Some(Record {
            place,
            offset: message.offset().cast_unsigned(),
            millis: message.timestamp().to_millis(),
            line,
        }))
    }

    /// Adds a record to those that are gathered. One that begins new epochs goes by itself, after
    /// all that came before it.
    async fn take(
        &self,
        record: Record,
        partitions: &mut Partitions,
        records: &mut Records,
        consumer: &Consumer,
    ) -> Result<(), Cut> {
        match partitions.meet(record.place, record.offset, || record.mark().unwrap_or(0)) {
            Met::Next => {}
            Met::Known => return Ok(()),
            Met::Unclear(note) => {
                tracing::warn!("{note}");
                self.note(note);
            }
            Met::AfterGap(gap) => {
                self.send(std::mem::take(records), partitions, consumer).await?;
                self.report_gaps(vec![gap], partitions).await?;
            }
            Met::Other(gap) => {
                self.send(std::mem::take(records), partitions, consumer).await?;
                self.report_gaps(vec![gap], partitions).await?;
                return Err(Cut::Again);
            }
        }
        if !record.line.as_deref().is_ok_and(begins_epochs) {
            records.add(record, partitions);
            return Ok(());
        }
        self.send(std::mem::take(records), partitions, consumer).await?;
        let mut alone = Records::default();
        alone.add(record, partitions);
        self.send(alone, partitions, consumer).await
    }

    async fn send(
        &self,
        records: Records,
        partitions: &Partitions,
        consumer: &Consumer,
    ) -> Result<(), Cut> {
        let Records { lines, last, .. } = records;
        if lines.is_empty() {
            return Ok(());
        }
        let positions: Vec<_> = last
            .into_iter()
            .map(|(place, Last { offset, millis, line })| {
                let line = lines[line].line.as_deref().ok();
                let mark = line.map(|line| partition::mark(line, millis));
                partitions.get(place).position(offset + 1, mark)
            })
            .collect();
        let under_way = lines.len() as u64;
        let lag = async || Some(partitions.lag_now(consumer)? + under_way);
        self.remote.counting(self.remote.send(lines, positions.into_iter()), lag).await
    }

    /// Publishes that records are lost, with the progress that goes over them.
    async fn report_gaps(&self, gaps: Vec<Gap>, partitions: &Partitions) -> Result<(), Cut> {
        let Some(Loss { reason, lines, event }) = Loss::of(&gaps, partitions, handle::now()) else {
            return Ok(());
        };
        tracing::warn!("{reason}");
        self.remote.send(lines, std::iter::empty()).await?;
        self.note(reason);
        let position = |gap: &Gap| partitions.get(gap.place).position(gap.next, None);
        self.remote.send(vec![event], gaps.iter().map(position)).await
    }
}
