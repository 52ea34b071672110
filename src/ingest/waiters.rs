//! Who waits for what becomes of an event that comes to the sequencer by way of somebody else: it
//! is known by its id. The sequencer says it of each such event, whether it was accepted, known or
//! refused.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::handle::Ack;

/// Waiters at once: 5 s, which a mutation waits at most, of 2,000 a second. Each costs some 300
/// bytes.
pub const MOST_WAITERS: usize = 10_000;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Waiters {
    table: Mutex<Table>,
    /// Distinguishes a line from others under the same id, at 8 bytes a waiter.
    lines: RandomState,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<Box<str>, Vec<Waiter>>,
    /// Of all ids.
    waiters: usize,
    /// The next one's.
    number: u64,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    /// Of its line.
    hash: u64,
    done: oneshot::Sender<Ack>,
}

/// Waits for one event; who drops it does not care any more.
#[derive(Debug)]
pub struct Waiting {
    waiters: Arc<Waiters>,
    id: Box<str>,
    number: u64,
    answer: oneshot::Receiver<Ack>,
}

/// An event at the sequencer whose id is awaited.
#[derive(Debug)]
pub(crate) struct Watched {
    id: Box<str>,
    hash: u64,
}

impl Waiters {
    /// From now on this line is looked out for. `None`: [`MOST_WAITERS`] are already.
    pub fn expect(self: &Arc<Self>, id: &str, line: &str) -> Option<Waiting> {
        let hash = self.lines.hash_one(line.as_bytes());
        let (done, answer) = oneshot::channel();
        let mut table = self.table.lock();
        if table.waiters >= MOST_WAITERS {
            return None;
        }
        let number = table.number;
        table.number += 1;
        table.waiters += 1;
        table.by_id.entry(id.into()).or_default().push(Waiter { number, hash, done });
        Some(Waiting { waiters: self.clone(), id: id.into(), number, answer })
    }

    /// Nobody waits for anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.lock().waiters == 0
    }

    /// An event came in; `None` if nobody waits for its id.
    pub(crate) fn watch(&self, id: &str, line: &[u8]) -> Option<Watched> {
        let awaited = self.table.lock().by_id.contains_key(id);
        awaited.then(|| Watched { id: id.into(), hash: self.lines.hash_one(line) })
    }

    /// What became of it, as an [`Ack`] of this one event.
    pub(crate) fn answer(&self, Watched { id, hash }: Watched, ack: &Ack) {
        // Once the id is in the log, no other line under it counts. One that was refused says
        // nothing of others.
        let settled = ack.accepted + ack.known > 0;
        let answered = self.table.lock().take(&id, |one| settled || one.hash == hash);
        for Waiter { hash: own, done, .. } in answered {
            let ack = if own == hash { ack.clone() } else { Ack::of_known() };
            // A client that has just given up gets no answer.
            drop(done.send(ack));
        }
    }
}

impl Table {
    /// Takes those of an id out that are meant.
    fn take(&mut self, id: &str, meant: impl Fn(&Waiter) -> bool) -> Vec<Waiter> {
        let Some(waiters) = self.by_id.get_mut(id) else { return Vec::new() };
        let taken: Vec<_> = waiters.extract_if(.., |one| meant(one)).collect();
        if waiters.is_empty() {
            self.by_id.remove(id);
        }
        self.waiters -= taken.len();
        taken
    }
}

impl Waiting {
    /// Once the event is in the log and in the live state, or refused.
    pub async fn outcome(&mut self) -> Ack {
        match (&mut self.answer).await {
            Ok(ack) => ack,
            // It stays in the table as long as this is held.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.waiters.table.lock().take(&self.id, |one| one.number == self.number));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn accepted(sequence: u64) -> Ack {
        Ack { accepted: 1, last_sequence: Some(sequence), ..Ack::default() }
    }

    fn answer(waiters: &Waiters, id: &str, line: &str, ack: &Ack) {
        waiters.answer(waiters.watch(id, line.as_bytes()).unwrap(), ack);
    }

    #[test]
    fn one_waiter_too_many_is_refused_and_one_that_gives_up_frees_its_place() {
        let waiters = Arc::new(Waiters::default());
        let id = |number: usize| (number % 100).to_string();
        let mut all: Vec<_> =
            (0..MOST_WAITERS).map(|number| waiters.expect(&id(number), "line").unwrap()).collect();
        assert!(waiters.expect("more", "line").is_none());
        drop(all.pop());
        let more = waiters.expect("more", "line").unwrap();
        assert!(waiters.expect("still more", "line").is_none());
        drop((all, more));
        assert!(waiters.is_empty());
        assert!(waiters.table.lock().by_id.is_empty());
        assert!(waiters.watch("more", b"line").is_none());
    }

    #[test]
    fn of_two_lines_under_one_id_the_other_is_known_once_one_is_in() {
        let waiters = Arc::new(Waiters::default());
        let mut first = waiters.expect("id", "first").unwrap();
        let mut other = waiters.expect("id", "other").unwrap();
        answer(&waiters, "id", "first", &accepted(7));
        assert_eq!(first.outcome().now_or_never(), Some(accepted(7)));
        assert_eq!(other.outcome().now_or_never(), Some(Ack::of_known()));
        assert!(waiters.is_empty());
    }

    #[test]
    fn a_line_of_somebody_else_that_is_refused_says_nothing_of_ones_own() {
        let waiters = Arc::new(Waiters::default());
        let mut own = waiters.expect("id", "own").unwrap();
        answer(&waiters, "id", "theirs", &Ack { refused: 1, ..Ack::default() });
        assert_eq!(own.outcome().now_or_never(), None);
        answer(&waiters, "id", "theirs", &Ack::of_known());
        assert_eq!(own.outcome().now_or_never(), Some(Ack::of_known()));
    }
}
