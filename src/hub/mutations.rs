//! How mutations come to the door of the feeds, or into Kafka where that owns what they write to.

use std::sync::Arc;
use std::time::Duration;

use crate::feeds::kafka::{LONGEST_WRITE, Outgoing, ProduceError, Producer};
use crate::graphql::{WriteError, Writer, Written};
use crate::ingest::feed_status::{At, Place};
use crate::ingest::handle::{Ack, Batch, Door, DoorError, Incoming, WeakDoor};

/// How long a mutation waits for its turn and for the log. A commit takes milliseconds; a disk that
/// is full, or a door behind which too many wait, is told to the client, which can ask again.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

const _: () = assert!(LONGEST_WRITE.as_secs() <= WRITE_DEADLINE.as_secs());

/// `kafka`: where what it owns is written.
pub fn writer(door: &Door, kafka: Option<Producer>) -> Writer {
    writer_within(door, kafka, WRITE_DEADLINE)
}

fn writer_within(door: &Door, kafka: Option<Producer>, deadline: Duration) -> Writer {
    let (door, kafka) = (door.downgrade(), kafka.map(Arc::new));
    Writer::new(move |lines| write(door.clone(), kafka.clone(), lines, deadline))
}

async fn write(
    door: WeakDoor,
    kafka: Option<Arc<Producer>>,
    lines: Vec<String>,
    deadline: Duration,
) -> Result<Written, WriteError> {
    // Without the log's sequencer nobody brings a record back.
    let door = door.upgrade().ok_or(WriteError::Closed)?;
    let (records, lines) = sorted(kafka.as_deref(), lines);
    let produces = !records.is_empty();
    let writing = async {
        let mut ack = match &kafka {
            Some(kafka) if produces => kafka.write(&records).await.map_err(unproduced)?,
            _ => Ack::default(),
        };
        if !lines.is_empty() {
            let written = deliver(&door, lines).await;
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

/// What goes to Kafka, and what to the door.
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

async fn deliver(door: &Door, lines: Vec<String>) -> Result<Ack, WriteError> {
    let place = Place { source: Arc::from("mutation"), at: At::Nowhere };
    let line = |line: String| Incoming {
        place: place.clone(),
        line: Ok(line.into_bytes()),
        numbered: None,
    };
    let lines = lines.into_iter().map(line).collect();
    let delivery = door.deliver(Batch { feed: None, lines, progress: Vec::new() });
    delivery.await.map_err(|error| match error {
        // A mutation is no source that anyone could take over.
        DoorError::Closed | DoorError::Store(_) | DoorError::TakenOver => WriteError::Closed,
        DoorError::Unreachable(_) => WriteError::Unreachable,
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
    use crate::ingest::feed_status::FeedStatuses;
    use crate::ingest::projection::LiveSide;
    use crate::ingest::sequencer::{self, SequencerConfig};
    use crate::market::admission::Admission;
    use crate::recovery::Recovered;
    use crate::store::Store;

    #[test]
    fn a_mutation_waits_for_a_log_that_does_not_answer_no_longer_than_its_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("log.db")).unwrap();
        // Whoever takes committed events in holds the sequencer until it is told to go on.
        let (go, held) = std::sync::mpsc::sync_channel::<()>(1);
        let live = LiveSide {
            apply: Box::new(move |events| {
                held.recv().unwrap_or_default();
                events
            }),
            checkpoint: Box::new(|_| None),
            aside: Arc::new(|| unreachable!("no blocks are undone here")),
            reorganise: Box::new(|_| unreachable!("no blocks are undone here")),
            keep: Box::new(|_, _| {}),
        };
        let config = SequencerConfig {
            checkpoint_events: 9,
            ownership: None,
            outcomes: Arc::default(),
            shutdown: CancellationToken::new(),
        };
        let (statuses, recovered) = (FeedStatuses::new(), Recovered::default());
        let (door, thread) =
            sequencer::start(store, Admission::new(), recovered, statuses, live, config).unwrap();
        let (hasty, writer) = (writer_within(&door, None, Duration::ZERO), writer(&door, None));
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
            drop(door);
            thread.join().unwrap();
            assert_eq!(writer.write(line(3)).await.unwrap_err(), WriteError::Closed);
        });
    }
}
