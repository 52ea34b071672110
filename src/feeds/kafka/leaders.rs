//! Whether the brokers that lead the partitions answer, and where the partitions end. Each broker
//! is asked on a thread of its own: one that is gone says nothing until the deadline, and meanwhile
//! the records of the others are read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt as _};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use super::brokers::Consumer;
use super::partitions::{Partitions, PartitionsError, leaders};

/// Answers that wait to be heard.
const ANSWERS_IN_LINE: usize = 64;
/// A cluster that lost a broker gives its partitions to others within this time, or says that they
/// have no leader. If it still names a broker that is silent for so long, only this hub can't reach
/// that one: then another hub may read its partitions.
const CLUSTER_PATIENCE: Duration = Duration::from_secs(20);

/// Said of a broker that is not there.
pub(super) const UNREACHED: [RDKafkaErrorCode; 6] = [
    RDKafkaErrorCode::BrokerTransportFailure,
    RDKafkaErrorCode::AllBrokersDown,
    RDKafkaErrorCode::Resolve,
    RDKafkaErrorCode::Authentication,
    RDKafkaErrorCode::OperationTimedOut,
    RDKafkaErrorCode::RequestTimedOut,
];
/// A connection may have been closed for its idleness. So one that fails at once has to fail again.
const FAILURES: u32 = 2;

/// Where a partition ends.
pub(super) struct End {
    pub(super) place: usize,
    /// The next offset when it was asked.
    pub(super) next: u64,
    /// The offset after the newest record.
    pub(super) end: u64,
}

pub(super) enum Answer {
    Ends {
        leader: i32,
        ends: Result<Vec<End>, KafkaError>,
    },
    /// The leader of each partition, in the order of the topics.
    Leaders(Result<Vec<i32>, PartitionsError>),
}

/// See the module's text.
pub(super) struct Leaders {
    consumer: Arc<Consumer>,
    topics: Vec<String>,
    deadline: Duration,
    answer: mpsc::Sender<Answer>,
    answers: mpsc::Receiver<Answer>,
    /// Those that are being asked.
    asked: BTreeSet<i32>,
    are_topics_asked: bool,
    /// Those that did not answer the last question, and since when.
    silent: BTreeMap<i32, Instant>,
    /// Failures of each, one after the other.
    failures: BTreeMap<i32, u32>,
}

impl Leaders {
    pub(super) fn new(consumer: Arc<Consumer>, topics: Vec<String>, deadline: Duration) -> Self {
        let (answer, answers) = mpsc::channel(ANSWERS_IN_LINE);
        Self {
            consumer,
            topics,
            deadline,
            answer,
            answers,
            asked: BTreeSet::new(),
            are_topics_asked: false,
            silent: BTreeMap::new(),
            failures: BTreeMap::new(),
        }
    }

    /// Asks each leader that is not being asked already for the ends of its partitions.
    pub(super) fn ask(&mut self, partitions: &Partitions) -> Result<(), PartitionsError> {
        for (leader, places) in partitions.by_leader() {
            if !self.asked.insert(leader) {
                continue;
            }
            let mut list = TopicPartitionList::new();
            let mut at = HashMap::new();
            for place in places {
                let own = partitions.get(place);
                list.add_partition_offset(&own.topic, own.number, Offset::End)?;
                at.insert((own.topic.clone(), own.number), (place, own.next));
            }
            let (consumer, deadline) = (self.consumer.clone(), self.deadline);
            let answer = self.answer.clone();
            tokio::task::spawn_blocking(move || {
                let found = consumer.offsets_for_times(list, deadline);
                let ends = found.and_then(|list| ends(&list, &at));
                // A session that is over does not miss it.
                drop(answer.blocking_send(Answer::Ends { leader, ends }));
            });
        }
        Ok(())
    }

    /// Asks for the leaders of all partitions.
    pub(super) fn ask_topics(&mut self) {
        if std::mem::replace(&mut self.are_topics_asked, true) {
            return;
        }
        let (consumer, topics) = (self.consumer.clone(), self.topics.clone());
        let (answer, deadline) = (self.answer.clone(), self.deadline);
        tokio::task::spawn_blocking(move || {
            let found = topics.iter().map(|topic| leaders(&consumer, topic, deadline));
            let found = found.collect::<Result<Vec<_>, _>>().map(|all| all.concat());
            drop(answer.blocking_send(Answer::Leaders(found)));
        });
    }

    /// Each of those that were asked has to answer.
    pub(super) async fn all_answer(&mut self) -> Result<(), PartitionsError> {
        while !self.asked.is_empty() {
            if let Answer::Ends { ends, .. } = self.next().await {
                ends?;
            }
        }
        Ok(())
    }

    /// The next answer, whenever it comes.
    pub(super) async fn next(&mut self) -> Answer {
        let Some(answer) = self.answers.recv().await else {
            // It can't be closed, as one sender is ours.
            return std::future::pending().await;
        };
        match &answer {
            Answer::Ends { leader, ends } => {
                self.asked.remove(leader);
                if ends.is_ok() {
                    self.failures.remove(leader);
                }
            }
            Answer::Leaders(_) => self.are_topics_asked = false,
        }
        answer
    }

    /// A leader did not answer. Whether it counts as silent by now.
    pub(super) fn failed(&mut self, leader: i32, error: &KafkaError) -> bool {
        let failures = self.failures.entry(leader).or_default();
        *failures += 1;
        let late = error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut);
        let is_silent = late || *failures >= FAILURES;
        if is_silent {
            self.silent.entry(leader).or_insert_with(Instant::now);
        }
        is_silent
    }

    pub(super) fn is_silent(&self, leader: i32) -> bool {
        self.silent.contains_key(&leader)
    }

    /// Whether a broker is silent that the cluster still takes for one of its own.
    pub(super) fn are_out_of_reach(&self) -> bool {
        self.silent.values().any(|since| since.elapsed() >= CLUSTER_PATIENCE)
    }

    /// Only those that lead partitions count.
    pub(super) fn keep(&mut self, partitions: &Partitions) {
        let leading = partitions.by_leader();
        self.silent.retain(|leader, _| leading.contains_key(leader));
    }
}

/// Of the partitions of which the leader knows it. `at`: their places, and the next offsets. An
/// error if the leader was not reached.
fn ends(
    list: &TopicPartitionList,
    at: &HashMap<(String, i32), (usize, u64)>,
) -> Result<Vec<End>, KafkaError> {
    let mut ends = Vec::new();
    for own in list.elements() {
        match own.error() {
            Ok(()) => {}
            Err(error)
                if error.rdkafka_error_code().is_some_and(|code| UNREACHED.contains(&code)) =>
            {
                return Err(error);
            }
            // The topic has changed, which its metadata show.
            Err(_) => continue,
        }
        let known = at.get(&(own.topic().to_owned(), own.partition()));
        if let (Offset::Offset(end), Some((place, next))) = (own.offset(), known) {
            ends.push(End { place: *place, next: *next, end: end.cast_unsigned() });
        }
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::super::{KafkaConfig, brokers};
    use super::*;

    // The consumer wants a runtime.
    #[tokio::test]
    async fn a_broker_that_is_silent_longer_than_a_cluster_waits_is_out_of_reach() {
        let config = KafkaConfig {
            brokers: "127.0.0.1:1".to_owned(),
            topics: vec![],
            deadline: Duration::from_secs(1),
            settings: vec![],
        };
        let consumer = Arc::new(brokers::connect(&config).unwrap());
        let mut leaders = Leaders::new(consumer, vec![], config.deadline);
        let late = KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);
        let cut = KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerTransportFailure);
        assert!(leaders.failed(1, &late) && leaders.is_silent(1));
        assert!(!leaders.failed(3, &cut) && !leaders.is_silent(3));
        assert!(leaders.failed(3, &cut) && leaders.is_silent(3));
        assert!(!leaders.are_out_of_reach());
        let before = Instant::now().checked_sub(CLUSTER_PATIENCE).unwrap();
        leaders.silent.insert(2, before);
        assert!(leaders.failed(2, &late));
        assert!(leaders.are_out_of_reach());
    }
}
