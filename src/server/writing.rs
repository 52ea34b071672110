//! How mutations come to the door of the feeds.

use std::sync::Arc;
use std::time::Duration;

use crate::feeds::door::{Batch, Door, DoorError, Incoming, WeakDoor};
use crate::feeds::status::{At, Place};
use crate::graphql::{WriteError, Writer, Written};

/// How long a mutation waits for its turn and for the log. A commit takes milliseconds; a disk that
/// is full, or a door behind which too many wait, is told to the client, which can ask again.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

pub fn writer(door: &Door) -> Writer {
    writer_within(door, WRITE_DEADLINE)
}

fn writer_within(door: &Door, deadline: Duration) -> Writer {
    let door = door.downgrade();
    Writer::new(move |lines| write(door.clone(), lines, deadline))
}

async fn write(
    door: WeakDoor,
    lines: Vec<String>,
    deadline: Duration,
) -> Result<Written, WriteError> {
    let door = door.upgrade().ok_or(WriteError::Closed)?;
    let place = Place { source: Arc::from("mutation"), at: At::Nowhere };
    let line = |line: String| Incoming {
        place: place.clone(),
        line: Ok(line.into_bytes()),
        numbered: None,
    };
    let lines = lines.into_iter().map(line).collect();
    let delivery = door.deliver(Batch { feed: None, lines, progress: Vec::new() });
    let ack = tokio::time::timeout(deadline, delivery).await;
    let ack = ack.map_err(|_| WriteError::Late)?.map_err(|error| match error {
        // A mutation is no source that anyone could take over.
        DoorError::Closed | DoorError::Store(_) | DoorError::TakenOver(_) => WriteError::Closed,
        DoorError::Unreachable(_) => WriteError::Unreachable,
    })?;
    Ok(Written {
        accepted: ack.accepted,
        known: ack.known,
        refusal: ack.last_refusal.map(|refusal| refusal.reason),
        sequence: ack.last_sequence,
        order: ack.order,
    })
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::feeds::door::{self, DoorConfig};
    use crate::feeds::live_side::LiveSide;
    use crate::feeds::recovery::Recovered;
    use crate::feeds::status::FeedStatuses;
    use crate::market::admission::Admission;
    use crate::store::Store;

    #[test]
    fn a_mutation_waits_for_a_log_that_does_not_answer_no_longer_than_its_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("log.db")).unwrap();
        // Whoever takes committed events in holds the sequencer until it is told to go on.
        let (go, held) = std::sync::mpsc::sync_channel::<()>(1);
        let live = LiveSide {
            apply: Box::new(move |_| held.recv().unwrap_or_default()),
            checkpoint: Box::new(|_| None),
            aside: Arc::new(|| unreachable!("no blocks are undone here")),
            reorganise: Box::new(|_| unreachable!("no blocks are undone here")),
            keep: Box::new(|_, _| {}),
        };
        let config = DoorConfig { checkpoint_events: 9, shutdown: CancellationToken::new() };
        let (statuses, recovered) = (FeedStatuses::new(), Recovered::default());
        let (door, thread) =
            door::start(store, Admission::new(), recovered, statuses, live, config).unwrap();
        let (hasty, writer) = (writer_within(&door, Duration::ZERO), writer(&door));
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
