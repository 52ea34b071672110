//! How mutations are submitted to the log, or to Kafka where that owns what they write to.

use std::sync::Arc;
use std::time::Duration;

use crate::feeds::kafka::{LONGEST_WRITE, Outgoing, ProduceError, Producer};
use crate::graphql::{MutationPort, WriteError, Written};
use crate::ingest::feed_status::FeedStatuses;
use crate::ingest::handle::{Ack, Batch, Incoming, IngestError, IngestHandle, WeakIngestHandle};
use crate::ingest::place::{At, Place};

/// How long a mutation waits for its turn and for the log. A commit takes milliseconds; a disk that
/// is full, or a queue in which too many wait, is reported to the client, which can ask again.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

const _: () = assert!(LONGEST_WRITE.as_secs() <= WRITE_DEADLINE.as_secs());

/// `kafka`: where what it owns is written.
pub fn writer(
    ingest: &IngestHandle,
    kafka: Option<Producer>,
    statuses: &FeedStatuses,
) -> MutationPort {
    writer_within(ingest, kafka, statuses, WRITE_DEADLINE)
}

fn writer_within(
    ingest: &IngestHandle,
    kafka: Option<Producer>,
    statuses: &FeedStatuses,
    deadline: Duration,
) -> MutationPort {
    let (ingest, kafka, statuses) = (ingest.downgrade(), kafka.map(Arc::new), statuses.clone());
    MutationPort::new(move |lines| {
        write(ingest.clone(), kafka.clone(), statuses.clone(), lines, deadline)
    })
}

async fn write(
    ingest: WeakIngestHandle,
    kafka: Option<Arc<Producer>>,
    statuses: FeedStatuses,
    lines: Vec<String>,
    deadline: Duration,
) -> Result<Written, WriteError> {
    // Without the log's sequencer nobody brings a record back.
    let ingest = ingest.upgrade().ok_or(WriteError::Closed)?;
    let (records, lines) = sorted(kafka.as_deref(), lines);
    if !lines.is_empty() && statuses.is_log_halted() {
        return Err(WriteError::Halted);
    }
    let produces = !records.is_empty();
    let writing = async {
        let mut ack = match &kafka {
            Some(kafka) if produces => kafka.write(&records).await.map_err(unproduced)?,
            _ => Ack::default(),
        };
        if !lines.is_empty() {
            let written = deliver(&ingest, lines).await;
            ack.add(written.map_err(|error| if produces { WriteError::Partly } else { error })?);
        }
        Ok(ack)
    };
    let ack = match tokio::time::timeout(deadline, writing).await {
        Ok(ack) => ack?,
        Err(_) if produces => return Err(WriteError::KafkaLate),
        Err(_) => return Err(WriteError::Late),
    };
    Ok(Written {
        accepted: ack.accepted,
        known: ack.known,
        refusal: ack.last_refusal.map(|refusal| refusal.reason),
        sequence: ack.last_sequence,
        order: ack.order,
    })
}

/// What goes to Kafka, and what to the log.
fn sorted(kafka: Option<&Producer>, lines: Vec<String>) -> (Vec<Outgoing>, Vec<String>) {
    let Some(kafka) = kafka else { return (Vec::new(), lines) };
    let (mut records, mut rest) = (Vec::new(), Vec::new());
    for line in lines {
        match kafka.outgoing(line) {
            Ok(record) => records.push(record),
            Err(line) => rest.push(line),
        }
    }
    (records, rest)
}

async fn deliver(ingest: &IngestHandle, lines: Vec<String>) -> Result<Ack, WriteError> {
    let place = Place { source: Arc::from("mutation"), at: At::Nowhere };
    let line = |line: String| Incoming {
        place: place.clone(),
        line: Ok(line.into_bytes()),
        numbered: None,
    };
    let lines = lines.into_iter().map(line).collect();
    let delivery = ingest.deliver(Batch { feed: None, lines, progress: Vec::new() });
    delivery.await.map_err(|error| match error {
        // A mutation is no source that anyone could take over.
        IngestError::Closed | IngestError::Store(_) | IngestError::TakenOver => WriteError::Closed,
        IngestError::Unreachable(_) => WriteError::Unreachable,
    })
}

fn unproduced(error: ProduceError) -> WriteError {
    match error {
        ProduceError::Away => WriteError::KafkaAway,
        ProduceError::Full => WriteError::KafkaFull,
        ProduceError::Refused(_) => WriteError::KafkaRefused,
        ProduceError::Unsure(_) => WriteError::KafkaLate,
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::ingest::feed_status::Cause;
    use crate::ingest::projection::{MakeAside, Projection};
    use crate::ingest::sequencer::{self, SequencerConfig};
    use crate::live::Rollback;
    use crate::market::admission::Admission;
    use crate::market::definition::MarketId;
    use crate::market::effect::Applied;
    use crate::recovery::Recovered;
    use crate::store::Store;

    /// Holds the sequencer with committed events until the test ends the wait.
    struct Held(std::sync::mpsc::Receiver<()>);

    impl Projection for Held {
        fn apply(&mut self, events: Vec<Applied>) -> Vec<Applied> {
            self.0.recv().unwrap_or_default();
            events
        }

        fn checkpoint(&mut self, _: &str) -> Option<(u64, Vec<u8>)> {
            None
        }

        fn aside(&self) -> MakeAside {
            unreachable!("no blocks are undone here")
        }

        fn roll_back(&mut self, _: &Arc<Rollback>) {
            unreachable!("no blocks are undone here")
        }

        fn keep(&mut self, _: &Admission, _: &MarketId) {}
    }

    #[test]
    fn a_mutation_waits_for_a_log_that_does_not_answer_no_longer_than_its_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("log.db")).unwrap();
        let (go, held) = std::sync::mpsc::sync_channel::<()>(1);
        let live = Box::new(Held(held));
        let config = SequencerConfig {
            checkpoint_events: 9,
            ownership: None,
            waiters: Arc::default(),
            shutdown: CancellationToken::new(),
        };
        let (statuses, recovered) = (FeedStatuses::new(), Recovered::default());
        let (ingest, thread) =
            sequencer::start(store, Admission::new(), recovered, statuses.clone(), live, config)
                .unwrap();
        let hasty = writer_within(&ingest, None, &statuses, Duration::ZERO);
        let writer = writer(&ingest, None, &statuses);
        let line = |number: u32| {
            vec![format!(r#"{{"kind":"message","topic":"t","id":"{number}","data":1}}"#)]
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut first = Box::pin(writer.write(line(1)));
            assert!(futures_util::poll!(&mut first).is_pending());
            assert_eq!(hasty.write(line(2)).await.unwrap_err(), WriteError::Late);
            drop(go);
            assert_eq!(first.await.unwrap().sequence, Some(1));
            // The same again counts once.
            let again = writer.write(line(1)).await.unwrap();
            assert_eq!((again.known, again.sequence), (1, None));
            statuses.halt_all(Cause::Store, "disk full");
            assert_eq!(writer.write(line(3)).await.unwrap_err(), WriteError::Halted);
            statuses.clear_all(Cause::Store);
            assert_eq!(writer.write(line(3)).await.unwrap().known, 0, "it was not written");
            drop(ingest);
            thread.join().unwrap();
            assert_eq!(writer.write(line(4)).await.unwrap_err(), WriteError::Closed);
        });
    }
}
