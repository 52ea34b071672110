//! Which partitions there are, from where each is read and how far it is. Where the log's offset is
//! not what the brokers have (a topic that was recreated, records that retention or compaction
//! removed before they were read) is found out here: a [`Gap`].

use std::sync::Arc;
use std::time::Duration;

use foldhash::{HashMap, HashMapExt as _};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use spreadly_subscriptions::topic_hash;
use thiserror::Error;

use super::KafkaConfig;
use super::brokers::{self, Consumer};
use crate::ingest::feed_status::summary;
use crate::ingest::handle::Lease;
use crate::store::FeedPosition;

/// Far more often than a topic is ever recreated, far less than two clusters' epochs are apart.
const MOST_REMADE: u64 = 1 << 32;

#[derive(Debug, Error)]
pub(super) enum PartitionsError {
    #[error("{0}")]
    Kafka(#[from] KafkaError),
    #[error("topic {0:?} does not exist (feeds.kafka.topics): make it, the hub goes on by itself")]
    NoTopic(String),
    #[error("a topic has other partitions than before: looking at them")]
    OtherPartitions,
    #[error("the offset where {0} goes on is not there any more: looking where to go on")]
    OffsetGone(String),
    #[error("no broker answered within {} ms (feeds.kafka.deadline_ms)", .0.as_millis())]
    Silent(Duration),
    /// With what the library said of its connections meanwhile.
    #[error("{0}: {1}")]
    Heard(Box<Self>, String),
}

impl PartitionsError {
    /// Names what is wrong with the connections, where that may be why.
    pub(super) fn heard(self, consumer: &Consumer) -> Self {
        match (&self, consumer.context().heard()) {
            (Self::Silent(_) | Self::Kafka(_), Some(heard)) => Self::Heard(Box::new(self), heard),
            _ => self,
        }
    }
}

/// One partition, and how far it is read.
pub(super) struct Partition {
    topic: String,
    number: i32,
    /// Names its progress in the log.
    feed: Box<str>,
    /// Of each record's place.
    pub(super) source: Arc<str>,
    /// Of the cluster, the topic and how often it was recreated.
    epoch: u64,
    /// It has no leader now, so nobody can read it.
    leaderless: bool,
    /// This hub reads it. Where several share a log one of them does.
    ours: bool,
    /// The next offset.
    next: u64,
    /// The offset after its newest record, when that was last asked.
    end: u64,
    /// Its end was reached since the session began.
    read: bool,
    /// The oldest offset there was when it was begun.
    low: u64,
    /// The record before `next` has this [`mark`], if the topic is still the same; it is read once
    /// more.
    proof: Option<u64>,
    /// Whether compaction removes records; `None` where the brokers do not say.
    compacted: Option<bool>,
    /// It was reported in this session that offsets are missing.
    reported_missing: bool,
}

/// Records that are lost.
pub(super) struct Gap {
    pub(super) place: usize,
    /// The offset after it.
    pub(super) next: u64,
    /// For people.
    pub(super) reason: String,
}

/// What it means that a record was read.
pub(super) enum Met {
    /// It is the next one.
    Next,
    /// It is the last one of before, as it was.
    Known,
    /// It is the next one, after records that are lost.
    AfterGap(Gap),
    /// It is the next one, after some that may be lost; what to report of them, once a session.
    Unclear(String),
    /// It is not of the topic that was read before: that has to be read from its start.
    Other(Gap),
}

pub(super) struct Partitions {
    /// Those of a topic lie together, in the order of their numbers.
    all: Vec<Partition>,
    /// Where each topic's begin.
    topics: HashMap<String, usize>,
    /// Topics that do not exist.
    missing: Vec<String>,
    deadline: Duration,
    /// Whose turn it is to be looked after.
    turn: usize,
}

/// Of a record: its value, and when it was written in milliseconds since 1970. Two records of one
/// offset in two topics of one name have the same by chance alone.
pub(super) fn mark(value: &[u8], millis: Option<i64>) -> u64 {
    let millis = millis.unwrap_or(0).cast_unsigned();
    (millis << 32) | u64::from(crc32fast::hash(value))
}

impl Partitions {
    pub(super) async fn find(
        config: &KafkaConfig,
        consumer: &Consumer,
    ) -> Result<Self, PartitionsError> {
        let deadline = config.deadline;
        let silent = || PartitionsError::Silent(deadline);
        let cluster = consumer.client().fetch_cluster_id(deadline).ok_or_else(silent)?;
        let compacted = brokers::compacted(config).await;
        let (mut all, mut topics) = (Vec::new(), HashMap::new());
        let mut missing = Vec::new();
        for topic in &config.topics {
            let leaders = leaders(consumer, topic, deadline)?;
            if leaders.is_empty() {
                missing.push(topic.clone());
            }
            topics.insert(topic.clone(), all.len());
            let compacted = compacted.get(topic).copied();
            for (number, leaderless) in (0..).zip(leaders) {
                let source = format!("{topic}/{number}");
                all.push(Partition {
                    topic: topic.clone(),
                    number,
                    feed: format!("kafka:{source}").into(),
                    epoch: topic_hash(&format!("{cluster}/{source}")),
                    leaderless,
                    ours: false,
                    source: source.into(),
                    next: 0,
                    end: 0,
                    read: false,
                    low: 0,
                    proof: None,
                    compacted,
                    reported_missing: false,
                });
            }
        }
        match missing.pop_if(|_| all.is_empty()) {
            Some(topic) => Err(PartitionsError::NoTopic(topic)),
            None => Ok(Self { all, topics, missing, deadline, turn: 0 }),
        }
    }

    /// Why not all is read, while the rest is.
    pub(super) fn lacks(&self) -> Option<String> {
        let missing =
            self.missing.iter().map(|topic| PartitionsError::NoTopic(topic.clone()).to_string());
        let leaderless = self.all.iter().filter(|one| one.leaderless);
        let leaderless =
            leaderless.map(|one| format!("{} has no leader: start its brokers", one.source));
        let all: Vec<_> = missing.chain(leaderless).collect();
        let count = all.len();
        Some(format!("{}; the rest is read", summary(all.into_iter(), count)?))
    }

    /// Their names in the log.
    pub(super) fn names(&self) -> Vec<Box<str>> {
        self.all.iter().map(|one| one.feed.clone()).collect()
    }

    pub(super) fn get(&self, place: usize) -> &Partition {
        &self.all[place]
    }

    pub(super) fn place(&self, topic: &str, number: i32) -> Option<usize> {
        let place = self.topics.get(topic)? + usize::try_from(number).ok()?;
        // One that was added since is not read yet.
        self.all.get(place).filter(|one| one.topic == topic).map(|_| place)
    }

    /// Decides where a partition is read on that is this hub's to read.
    pub(super) fn begin(
        &mut self,
        place: usize,
        claimed: &Lease,
        consumer: &Consumer,
    ) -> Result<Option<Gap>, PartitionsError> {
        if self.all[place].leaderless {
            let own = &mut self.all[place];
            own.ours = claimed.ours;
            own.goes_on_elsewhere(claimed, 0);
            return Ok(None);
        }
        let (low, high) = self.watermarks(place, consumer)?;
        let own = &mut self.all[place];
        (own.low, own.end, own.ours) = (low, high, claimed.ours);
        if !own.ours {
            own.goes_on_elsewhere(claimed, low);
            return Ok(None);
        }
        let reason = match &claimed.position {
            None => {
                own.next = low;
                None
            }
            // Each time the topic is recreated the epoch rises by one.
            Some(known) if known.epoch.wrapping_sub(own.epoch) >= MOST_REMADE => {
                own.next = low;
                Some(format!(
                    "{} is of another cluster than before: read from its start",
                    own.source
                ))
            }
            Some(known) if known.position > high => {
                own.epoch = known.epoch;
                Some(own.recreated())
            }
            Some(known) => {
                own.epoch = known.epoch;
                own.next = known.position.max(low);
                own.proof = known.mark.filter(|_| known.position > low);
                let lost = own.next - known.position;
                (lost > 0).then(|| {
                    format!("retention took {lost} offsets of {} before they were read", own.source)
                })
            }
        };
        own.read = own.next >= own.end;
        Ok(reason.map(|reason| Gap { place, next: own.next, reason }))
    }

    /// Looks how far other hubs are; whether the same partitions are this hub's as before.
    pub(super) fn look_elsewhere(&mut self, claimed: &[Lease]) -> bool {
        for (own, claimed) in self.all.iter_mut().zip(claimed) {
            if own.ours != claimed.ours {
                return false;
            }
            if !own.ours {
                own.goes_on_elsewhere(claimed, own.next);
            }
        }
        true
    }

    /// What an operator may wonder about.
    pub(super) fn elsewhere(&self) -> Option<String> {
        let others = self.all.iter().filter(|one| !one.ours).count();
        (others > 0)
            .then(|| format!("another hub reads {others} of the {} partitions", self.all.len()))
    }

    /// The oldest offset there is, and the one after the newest.
    fn watermarks(&self, place: usize, consumer: &Consumer) -> Result<(u64, u64), PartitionsError> {
        let own = &self.all[place];
        let (low, high) = consumer.fetch_watermarks(&own.topic, own.number, self.deadline)?;
        Ok((low.cast_unsigned(), high.cast_unsigned()))
    }

    /// Begins to read.
    pub(super) fn assign(&self, consumer: &Consumer) -> Result<(), PartitionsError> {
        let mut list = TopicPartitionList::new();
        for own in self.all.iter().filter(|one| one.ours && !one.leaderless) {
            let again = u64::from(own.proof.is_some());
            let offset = Offset::Offset((own.next - again).cast_signed());
            list.add_partition_offset(&own.topic, own.number, offset)?;
        }
        Ok(consumer.assign(&list)?)
    }

    /// A record was read; see [`Met`].
    pub(super) fn meet(&mut self, place: usize, offset: u64, mark: impl FnOnce() -> u64) -> Met {
        let own = &mut self.all[place];
        if let Some(proof) = own.proof.take().filter(|_| offset < own.next) {
            if mark() == proof {
                return Met::Known;
            }
            let reason = own.recreated();
            return Met::Other(Gap { place, next: own.next, reason });
        }
        let missing = offset.saturating_sub(own.next);
        let next = offset + 1;
        own.next = next;
        own.end = own.end.max(next);
        own.read |= next >= own.end;
        // Without compaction they mark transactions.
        if missing == 0 || own.compacted == Some(false) {
            return Met::Next;
        }
        let (first, last, source) = (offset - missing, offset - 1, &own.source);
        if own.compacted.is_some() {
            let reason = format!(
                "compaction took offsets {first} to {last} of {source} before they were read"
            );
            return Met::AfterGap(Gap { place, next: offset, reason });
        }
        if std::mem::replace(&mut own.reported_missing, true) {
            return Met::Next;
        }
        Met::Unclear(format!(
            "{source} has no offsets {first} to {last}: they mark transactions, or compaction took them \
             before they were read, which the brokers do not say"
        ))
    }

    /// The end of a partition was reached. Which topic's is not said; and where the last offsets
    /// are a transaction's marks nothing else shows.
    pub(super) fn ended(&mut self, number: i32) {
        self.all.iter_mut().filter(|one| one.number == number).for_each(|one| one.read = true);
    }

    /// Whether the end of each was reached.
    pub(super) fn are_read(&self) -> bool {
        self.all.iter().all(|one| one.read)
    }

    /// Records that are not read yet, as far as is known.
    pub(super) fn lag(&self) -> u64 {
        self.all.iter().map(|one| one.end.saturating_sub(one.next)).sum()
    }

    /// The same, as the brokers know it now. `None`: one does not say.
    pub(super) fn lag_now(&self, consumer: &Consumer) -> Option<u64> {
        let lag = |(place, own): (usize, &Partition)| {
            let asked = own.ours && !own.leaderless;
            let end = if asked { self.watermarks(place, consumer).ok()?.1 } else { own.end };
            Some(end.saturating_sub(own.next))
        };
        self.all.iter().enumerate().map(lag).sum()
    }

    /// Whether the brokers answer: asks for one partition after the other.
    pub(super) fn look(&mut self, consumer: &Consumer) -> Result<(), PartitionsError> {
        if self.all.is_empty() {
            return Ok(());
        }
        self.turn = (self.turn + 1) % self.all.len();
        if self.all[self.turn].leaderless {
            return Ok(());
        }
        let (_, high) = self.watermarks(self.turn, consumer)?;
        let own = &mut self.all[self.turn];
        if own.ours && high < own.next {
            return Err(PartitionsError::OffsetGone(own.source.to_string()));
        }
        own.end = high;
        Ok(())
    }

    /// Whether the topics are as they were.
    pub(super) fn check(
        &self,
        config: &KafkaConfig,
        consumer: &Consumer,
    ) -> Result<(), PartitionsError> {
        let mut there = Vec::with_capacity(self.all.len());
        for topic in &config.topics {
            there.extend(leaders(consumer, topic, self.deadline)?);
        }
        let known = self.all.iter().map(|one| one.leaderless);
        if there.into_iter().eq(known) { Ok(()) } else { Err(PartitionsError::OtherPartitions) }
    }
}

impl Partition {
    /// As the log contains it when all before `next` is read.
    pub(super) fn position(&self, next: u64, mark: Option<u64>) -> FeedPosition {
        FeedPosition { feed: self.feed.clone(), epoch: self.epoch, position: next, mark }
    }

    /// Goes on with the topic of this name that there is now; what an operator has to know.
    fn recreated(&mut self) -> String {
        self.epoch = self.epoch.wrapping_add(1);
        (self.next, self.proof) = (self.low, None);
        format!("{} was created again, or lost its end: read from its start", self.source)
    }

    /// Whether its end is reached is for its reader to say.
    fn goes_on_elsewhere(&mut self, claimed: &Lease, otherwise: u64) {
        self.next = claimed.position.as_ref().map_or(otherwise, |known| known.position);
        self.end = self.end.max(self.next);
        self.read = true;
    }
}

/// Of each partition of a topic, whether it has no leader. None of a topic that does not exist.
fn leaders(
    consumer: &Consumer,
    topic: &str,
    deadline: Duration,
) -> Result<Vec<bool>, PartitionsError> {
    let metadata = consumer.fetch_metadata(Some(topic), deadline)?;
    let found = metadata.topics().iter().find(|one| one.name() == topic);
    let mut all: Vec<_> = found
        .map_or(&[][..], |one| one.partitions())
        .iter()
        .map(|one| (one.id(), one.leader() < 0))
        .collect();
    all.sort_unstable();
    Ok(all.into_iter().map(|(_, leaderless)| leaderless).collect())
}
