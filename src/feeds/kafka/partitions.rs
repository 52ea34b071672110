//! Which partitions there are, from where each is read and how far it is. Where the log's offset is
//! not what the brokers have (a topic that was recreated, records that retention or compaction
//! removed before they were read) is found out here: a [`Gap`].

use std::time::Duration;

use foldhash::{HashMap, HashMapExt as _};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use spreadly_subscriptions::topic_hash;
use thiserror::Error;

use super::KafkaConfig;
use super::brokers::{self, Consumer};
use super::partition::{Gap, Met, Partition};
use crate::ingest::feed_status::summary;
use crate::ingest::handle::Lease;

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

/// Partitions that changed their reader.
#[derive(Default)]
pub(super) struct Moved {
    /// To this hub.
    pub(super) come: Vec<usize>,
    /// To another one.
    pub(super) gone: Vec<usize>,
}

impl Moved {
    pub(super) fn is_empty(&self) -> bool {
        self.come.is_empty() && self.gone.is_empty()
    }
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
                let epoch = topic_hash(&format!("{cluster}/{source}"));
                all.push(Partition::new(topic, number, source, epoch, leaderless, compacted));
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
        // One that was added since is not read yet, and of one that was left some may still come.
        self.all.get(place).filter(|one| one.topic == topic && one.ours).map(|_| place)
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

    /// Looks how far other hubs are, and which partitions have changed their reader. `None`: one
    /// came back, and a consumer may still hold records of before. It takes another one.
    pub(super) fn look_elsewhere(&mut self, claimed: &[Lease]) -> Option<Moved> {
        let mut moved = Moved::default();
        for (place, (own, claimed)) in self.all.iter_mut().zip(claimed).enumerate() {
            match (own.ours, claimed.ours) {
                (false, true) if own.left => return None,
                (false, true) => moved.come.push(place),
                (true, false) => {
                    (own.ours, own.left, own.proof) = (false, true, None);
                    moved.gone.push(place);
                }
                (true, true) | (false, false) => {}
            }
            if !claimed.ours {
                own.goes_on_elsewhere(claimed, own.next);
            }
        }
        Some(moved)
    }

    /// What an operator may wonder about.
    pub(super) fn elsewhere(&self) -> Option<String> {
        let others = self.all.iter().filter(|one| !one.ours).count();
        (others > 0)
            .then(|| format!("other hubs read {others} of the {} partitions", self.all.len()))
    }

    /// The oldest offset there is, and the one after the newest.
    fn watermarks(&self, place: usize, consumer: &Consumer) -> Result<(u64, u64), PartitionsError> {
        let own = &self.all[place];
        let (low, high) = consumer.fetch_watermarks(&own.topic, own.number, self.deadline)?;
        Ok((low.cast_unsigned(), high.cast_unsigned()))
    }

    /// Begins to read those of these that are this hub's.
    pub(super) fn assign(
        &self,
        places: &[usize],
        consumer: &Consumer,
    ) -> Result<(), PartitionsError> {
        let mut list = TopicPartitionList::new();
        let all = places.iter().map(|place| &self.all[*place]);
        for own in all.filter(|one| one.ours && !one.leaderless) {
            let again = u64::from(own.proof.is_some());
            let offset = Offset::Offset((own.next - again).cast_signed());
            list.add_partition_offset(&own.topic, own.number, offset)?;
        }
        Ok(consumer.incremental_assign(&list)?)
    }

    /// Reads no more of these.
    pub(super) fn leave(
        &self,
        places: &[usize],
        consumer: &Consumer,
    ) -> Result<(), PartitionsError> {
        let mut list = TopicPartitionList::new();
        for own in places.iter().map(|place| &self.all[*place]).filter(|one| !one.leaderless) {
            list.add_partition(&own.topic, own.number);
        }
        Ok(consumer.incremental_unassign(&list)?)
    }

    /// A record was read; see [`Met`].
    pub(super) fn meet(&mut self, place: usize, offset: u64, mark: impl FnOnce() -> u64) -> Met {
        self.all[place].meet(place, offset, mark)
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
