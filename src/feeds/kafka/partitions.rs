//! Which partitions there are, from where each is read and how far it is. Where the log's offset is
//! not what the brokers have (a topic that was recreated, records that retention or compaction
//! removed before they were read) is found out here: a [`Gap`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt as _};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use spreadly_subscriptions::topic_hash;
use thiserror::Error;

use super::KafkaConfig;
use super::brokers::{self, Consumer};
use super::leaders::End;
use super::partition::{Gap, Met, Partition};
use crate::ingest::handle::Lease;
use crate::ingest::source_lags::{MOST_SOURCE_LAGS, SourceLag};

/// Far more often than a topic is ever recreated, far less than two clusters' epochs are apart.
const MOST_REMADE: u64 = 1 << 32;

const NO_TOPIC: &str = "does not exist (feeds.kafka.topics): make it, the hub goes on by itself";

#[derive(Debug, Error)]
pub(super) enum PartitionsError {
    #[error("{0}")]
    Kafka(#[from] KafkaError),
    #[error("topic {0:?} {NO_TOPIC}")]
    NoTopic(String),
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
            for (number, leader) in (0..).zip(leaders) {
                let source = format!("{topic}/{number}");
                let epoch = topic_hash(&format!("{cluster}/{source}"));
                all.push(Partition::new(topic, number, source, epoch, leader, compacted));
            }
        }
        match missing.pop_if(|_| all.is_empty()) {
            Some(topic) => Err(PartitionsError::NoTopic(topic)),
            None => Ok(Self { all, topics, missing, deadline }),
        }
    }

    /// Partitions that can't be read and topics that do not exist, with the reasons.
    pub(super) fn faults(&self) -> BTreeMap<Arc<str>, String> {
        let fault = |own: &Partition| Some((own.source.clone(), own.fault()?));
        let missing = self.missing.iter().map(|topic| (topic.as_str().into(), NO_TOPIC.to_owned()));
        self.all.iter().filter_map(fault).chain(missing).collect()
    }

    /// Those with a leader, by the leader: their places.
    pub(super) fn by_leader(&self) -> BTreeMap<i32, Vec<usize>> {
        let mut all = BTreeMap::<_, Vec<_>>::new();
        for (place, own) in self.all.iter().enumerate().filter(|(_, one)| !one.is_leaderless()) {
            all.entry(own.leader).or_default().push(place);
        }
        all
    }

    /// A leader answers, or does not.
    pub(super) fn set_silent(&mut self, leader: i32) {
        self.all.iter_mut().filter(|one| one.leader == leader).for_each(|one| one.silent = true);
    }

    /// Of all that have a leader, no leader answers.
    pub(super) fn are_silent(&self) -> bool {
        let mut led = self.all.iter().filter(|one| !one.is_leaderless()).peekable();
        led.peek().is_some() && led.all(|one| one.silent)
    }

    /// Where partitions end, as their leaders know it now.
    pub(super) fn set_ends(&mut self, ends: &[End]) -> Result<(), PartitionsError> {
        let now = Instant::now();
        for End { place, next, end } in ends {
            let own = &mut self.all[*place];
            if own.ours && end < next {
                return Err(PartitionsError::OffsetGone(own.source.to_string()));
            }
            // Records that came since it was asked are beyond it.
            (own.end, own.answered) = ((*end).max(own.next), Some(now));
        }
        Ok(())
    }

    /// What this hub lacks of each of its partitions, and how old that is. Of one whose leader said
    /// nothing in this session, what was known before.
    pub(super) fn lags(&self, before: &[SourceLag]) -> Vec<SourceLag> {
        let lag = |own: &Partition| match own.answered {
            Some(answered) => {
                let lag = own.end.saturating_sub(own.next);
                Some(SourceLag { source: own.source.clone(), lag, answered })
            }
            None => before.iter().find(|one| one.source == own.source).cloned(),
        };
        self.all.iter().filter(|one| one.ours).filter_map(lag).take(MOST_SOURCE_LAGS).collect()
    }

    /// Whether the topics have these leaders as before. Where another broker leads a partition now,
    /// and the one before answered, it is read on.
    pub(super) fn are_led_by(&mut self, leaders: &[i32]) -> bool {
        let same = |(own, leader): (&Partition, &i32)| {
            own.leader == *leader || !(own.is_leaderless() || *leader < 0 || own.silent)
        };
        if self.all.len() != leaders.len() || !self.all.iter().zip(leaders).all(same) {
            return false;
        }
        self.all.iter_mut().zip(leaders).for_each(|(own, leader)| own.leader = *leader);
        true
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
        if self.all[place].is_leaderless() {
            let own = &mut self.all[place];
            own.ours = claimed.ours;
            own.goes_on_elsewhere(claimed, 0);
            return Ok(None);
        }
        let (low, high) = self.watermarks(place, consumer)?;
        let own = &mut self.all[place];
        (own.low, own.end, own.ours) = (low, high, claimed.ours);
        own.answered = Some(Instant::now());
        if !own.ours {
            own.goes_on_elsewhere(claimed, low);
            return Ok(None);
        }
        let gap = match &claimed.position {
            None => {
                own.next = low;
                None
            }
            // Each time the topic is recreated the epoch rises by one.
            Some(known) if known.epoch.wrapping_sub(own.first_epoch) >= MOST_REMADE => {
                own.next = low;
                let reason = format!(
                    "{} is of another cluster than before: read from its start",
                    own.source
                );
                Some(own.gap(place, reason))
            }
            Some(known) if known.position > high => {
                own.epoch = known.epoch;
                Some(own.recreated(place))
            }
            Some(known) => {
                own.epoch = known.epoch;
                own.next = known.position.max(low);
                own.proof = known.mark.filter(|_| known.position > low);
                let lost = own.next - known.position;
                let source = &own.source;
                let reason =
                    || format!("retention took {lost} offsets of {source} before they were read");
                (lost > 0).then(|| own.gap(place, reason()))
            }
        };
        own.read = own.next >= own.end;
        Ok(gap)
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
        for own in all.filter(|one| one.ours && !one.is_leaderless()) {
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
        for own in places.iter().map(|place| &self.all[*place]).filter(|one| !one.is_leaderless()) {
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

    /// Whether the end of each was reached that can be read.
    pub(super) fn are_read(&self) -> bool {
        self.all.iter().all(|one| one.read || one.silent)
    }

    /// Records that are not read yet, as far as is known.
    pub(super) fn lag(&self) -> u64 {
        self.all.iter().map(|one| one.end.saturating_sub(one.next)).sum()
    }

    /// The same, as the brokers know it now. `None`: one does not say.
    pub(super) fn lag_now(&self, consumer: &Consumer) -> Option<u64> {
        let lag = |(place, own): (usize, &Partition)| {
            let asked = own.ours && !own.is_leaderless() && !own.silent;
            let end = if asked { self.watermarks(place, consumer).ok()?.1 } else { own.end };
            Some(end.saturating_sub(own.next))
        };
        self.all.iter().enumerate().map(lag).sum()
    }
}

/// The leader of each partition of a topic; below 0 if it has none. None of a topic that does not
/// exist.
pub(super) fn leaders(
    consumer: &Consumer,
    topic: &str,
    deadline: Duration,
) -> Result<Vec<i32>, PartitionsError> {
    let metadata = consumer.fetch_metadata(Some(topic), deadline)?;
    let found = metadata.topics().iter().find(|one| one.name() == topic);
    let mut all: Vec<_> = found
        .map_or(&[][..], |one| one.partitions())
        .iter()
        .map(|one| (one.id(), one.leader()))
        .collect();
    all.sort_unstable();
    Ok(all.into_iter().map(|(_, leader)| leader).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(count: usize) -> Partitions {
        let one = |number: i32| {
            let source = format!("t/{number}");
            Partition { ours: true, ..Partition::new("t", number, source, 7, 1, None) }
        };
        let all = (0..).map(one).take(count).collect();
        let topics = [("t".to_owned(), 0)].into_iter().collect();
        Partitions { all, topics, missing: vec![], deadline: Duration::from_secs(1) }
    }

    #[test]
    fn the_lag_of_a_partition_whose_leader_is_silent_stays_and_its_age_rises() {
        let mut own = partitions(2);
        assert_eq!(own.lags(&[]), []);
        let ends = [0, 1].map(|place| End { place, next: 0, end: 5 });
        own.set_ends(&ends).unwrap();
        let known = own.lags(&[]);
        assert_eq!(known.iter().map(|one| one.lag).collect::<Vec<_>>(), [5, 5]);
        // Another session, in which only one of them has answered.
        let mut next = partitions(2);
        next.set_ends(&ends[..1]).unwrap();
        let then = next.lags(&known);
        assert_eq!(then[1], known[1]);
        assert!(then[0].answered >= known[0].answered);
        next.all[1].ours = false;
        assert_eq!(next.lags(&known).len(), 1);
    }

    #[test]
    fn an_end_before_what_is_read_is_a_fault_and_one_that_records_have_passed_is_not() {
        let mut own = partitions(1);
        own.all[0].next = 9;
        own.set_ends(&[End { place: 0, next: 3, end: 4 }]).unwrap();
        assert_eq!(own.all[0].end, 9);
        assert!(own.set_ends(&[End { place: 0, next: 9, end: 8 }]).is_err());
    }

    #[test]
    fn a_leader_may_change_unless_it_was_silent_or_there_is_none() {
        let mut own = partitions(2);
        assert!(own.are_led_by(&[1, 2]) && !own.are_silent());
        own.set_silent(2);
        assert_eq!(own.faults().len(), 1);
        assert!(!own.are_silent() && !own.are_led_by(&[1, 1]));
        assert!(own.are_led_by(&[3, 2]));
        assert!(!own.are_led_by(&[3, -1]) && !own.are_led_by(&[3]));
        own.set_silent(3);
        assert!(own.are_silent());
    }

    #[test]
    fn a_thousand_partitions_have_a_lag_of_their_own() {
        let mut own = partitions(MOST_SOURCE_LAGS + 1);
        let ends: Vec<_> =
            (0..=MOST_SOURCE_LAGS).map(|place| End { place, next: 0, end: 1 }).collect();
        own.set_ends(&ends).unwrap();
        assert_eq!(own.lags(&[]).len(), MOST_SOURCE_LAGS);
    }
}
