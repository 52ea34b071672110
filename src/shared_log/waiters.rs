//! What this hub has inserted into the shared log and waits for: its own reader brings these rows
//! back with everyone's, and only then is known what came of them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::ingest::handle::Ack;
use crate::ingest::place::Place;

/// Insertions that are waited for, by their origin. As many as there are requests under way.
#[derive(Default)]
pub(super) struct Waiters(Mutex<HashMap<u64, Pending>>);

struct Pending {
    /// The place of each line at its source.
    places: Vec<Place>,
    /// Lines that did not come back yet.
    left: usize,
    ack: Ack,
    done: oneshot::Sender<Ack>,
}

/// Waits for the lines of one insertion; who drops it does not care any more.
pub(super) struct Waiting {
    waiters: Arc<Waiters>,
    pub(super) origin: u64,
    answer: oneshot::Receiver<Ack>,
}

impl Waiters {
    /// From now on its lines are looked out for; there is at least one.
    pub(super) fn expect(self: &Arc<Self>, places: Vec<Place>) -> Waiting {
        let (done, answer) = oneshot::channel();
        // Below the sign, as Postgres has no numbers without one.
        let origin = rand::random::<u64>() >> 1;
        let pending = Pending { left: places.len(), places, ack: Ack::default(), done };
        self.0.lock().insert(origin, pending);
        Waiting { waiters: self.clone(), origin, answer }
    }

    /// The place of a line at its source; `None` if nobody waits for it.
    pub(super) fn place(&self, origin: u64, line: usize) -> Option<Place> {
        self.0.lock().get(&origin)?.places.get(line).cloned()
    }

    /// So many lines came back.
    pub(super) fn settle(&self, origin: u64, lines: usize, ack: Ack) {
        let mut all = self.0.lock();
        let Some(pending) = all.get_mut(&origin) else { return };
        pending.ack.add(ack);
        pending.left = pending.left.saturating_sub(lines);
        if pending.left == 0
            && let Some(Pending { ack, done, .. }) = all.remove(&origin)
        {
            // One that has just given up gets nothing.
            drop(done.send(ack));
        }
    }
}

impl Waiting {
    /// When all of it is in the log and in the live state.
    pub(super) async fn settled(&mut self) -> Ack {
        match (&mut self.answer).await {
            Ok(ack) => ack,
            // It stays in the map as long as this is held.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.waiters.0.lock().remove(&self.origin);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::ingest::place::At;

    #[test]
    fn an_insertion_is_settled_once_its_last_line_is_back() {
        let waiters = Arc::new(Waiters::default());
        let place = |number| Place { source: "a".into(), at: At::Line { number, byte: 0 } };
        let mut waiting = waiters.expect(vec![place(1), place(2), place(3)]);
        let origin = waiting.origin;
        assert_eq!(waiters.place(origin, 1), Some(place(2)));
        assert_eq!((waiters.place(origin, 3), waiters.place(origin ^ 1, 0)), (None, None));
        let ack = |accepted, last| Ack { accepted, last_sequence: last, ..Ack::default() };
        waiters.settle(origin, 2, ack(1, Some(7)));
        assert_eq!(waiting.settled().now_or_never(), None);
        waiters.settle(origin, 1, ack(0, None));
        assert_eq!(waiting.settled().now_or_never(), Some(ack(1, Some(7))));
    }

    #[test]
    fn a_client_that_gives_up_leaves_no_entry() {
        let waiters = Arc::new(Waiters::default());
        drop(waiters.expect(vec![Place { source: "a".into(), at: At::Nowhere }]));
        assert!(waiters.0.lock().is_empty());
    }
}
