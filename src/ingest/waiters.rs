//! Who waits for what becomes of an event that comes to the sequencer by way of somebody else: it
//! is known by its id, with its kind and what it is of. The sequencer says it of each such event,
//! whether it was accepted, known or refused.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::handle::Ack;
use crate::market::event::{Body, Event};

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
    by_key: HashMap<Box<str>, Vec<Waiter>>,
    /// Of all keys.
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
    key: Box<str>,
    number: u64,
    answer: oneshot::Receiver<Ack>,
}

/// An event at the sequencer that is awaited.
#[derive(Debug)]
pub(crate) struct Watched {
    key: Box<str>,
    hash: u64,
}

/// By what an event is awaited; `None` if it has no id. It comes from the line alone.
pub(crate) fn key(event: &Event<'_>) -> Option<Box<str>> {
    let id = event.id.as_deref()?;
    let topic = event.topic();
    let of = match &event.body {
        Body::Order(order) if topic.is_none() => order.order(),
        _ => topic.as_deref().unwrap_or_default(),
    };
    Some(format!("{}\n{of}\n{id}", event.kind()).into())
}

impl Waiters {
    /// From now on this line is looked out for. `None`: [`MOST_WAITERS`] are already.
    pub fn expect(self: &Arc<Self>, key: &str, line: &str) -> Option<Waiting> {
        let hash = self.lines.hash_one(line.as_bytes());
        let (done, answer) = oneshot::channel();
        let mut table = self.table.lock();
        if table.waiters >= MOST_WAITERS {
            return None;
        }
        let number = table.number;
        table.number += 1;
        table.waiters += 1;
        table.by_key.entry(key.into()).or_default().push(Waiter { number, hash, done });
        Some(Waiting { waiters: self.clone(), key: key.into(), number, answer })
    }

    /// Nobody waits for anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.lock().waiters == 0
    }

    /// An event came in; `None` if nobody waits for one of its key.
    pub(crate) fn watch(&self, event: &Event<'_>, line: &[u8]) -> Option<Watched> {
        let key = key(event)?;
        let awaited = self.table.lock().by_key.contains_key(&key);
        awaited.then(|| Watched { key, hash: self.lines.hash_one(line) })
    }

    /// What became of it, as an [`Ack`] of this one event.
    pub(crate) fn answer(&self, Watched { key, hash }: Watched, ack: &Ack) {
        // Once the id is in the log, no other line under it counts. One that was refused says
        // nothing of others.
        let settled = ack.accepted + ack.known > 0;
        let answered = self.table.lock().take(&key, |one| settled || one.hash == hash);
        for Waiter { hash: own, done, .. } in answered {
            let ack = if own == hash { ack.clone() } else { Ack::of_known() };
            // A client that has just given up gets no answer.
            drop(done.send(ack));
        }
    }
}

impl Table {
    /// Takes those of a key out that are meant.
    fn take(&mut self, key: &str, meant: impl Fn(&Waiter) -> bool) -> Vec<Waiter> {
        let Some(waiters) = self.by_key.get_mut(key) else { return Vec::new() };
        let taken: Vec<_> = waiters.extract_if(.., |one| meant(one)).collect();
        if waiters.is_empty() {
            self.by_key.remove(key);
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
        drop(self.waiters.table.lock().take(&self.key, |one| one.number == self.number));
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
        waiters.answer(waiters.watch(&event(id), line.as_bytes()).unwrap(), ack);
    }

    fn event(id: &str) -> Event<'static> {
        let body = Body::Reverted { height: 1 };
        Event { id: Some(id.into()), ..Event::new(body) }
    }

    fn key(id: &str) -> Box<str> {
        super::key(&event(id)).unwrap()
    }

    #[test]
    fn an_id_is_awaited_in_its_topic_and_kind() {
        let waiters = Arc::new(Waiters::default());
        let own = br#"{"kind":"message","topic":"a","data":1,"id":"1"}"#;
        let read = |line| crate::market::event::parse(line).unwrap();
        let line = std::str::from_utf8(own).unwrap();
        let mut waiting = waiters.expect(&super::key(&read(own)).unwrap(), line).unwrap();
        for other in [
            br#"{"kind":"message","topic":"b","data":1,"id":"1"}"#.as_slice(),
            br#"{"kind":"order.canceled","order":"a","id":"1"}"#,
            br#"{"kind":"message","topic":"a","data":1}"#,
        ] {
            assert!(waiters.watch(&read(other), other).is_none());
        }
        waiters.answer(waiters.watch(&read(own), own).unwrap(), &accepted(3));
        assert_eq!(waiting.outcome().now_or_never(), Some(accepted(3)));
    }

    #[test]
    fn one_waiter_too_many_is_refused_and_one_that_gives_up_frees_its_place() {
        let waiters = Arc::new(Waiters::default());
        let id = |number: usize| (number % 100).to_string();
        let mut all: Vec<_> = (0..MOST_WAITERS)
            .map(|number| waiters.expect(&key(&id(number)), "line").unwrap())
            .collect();
        assert!(waiters.expect(&key("more"), "line").is_none());
        drop(all.pop());
        let more = waiters.expect(&key("more"), "line").unwrap();
        assert!(waiters.expect(&key("still more"), "line").is_none());
        drop((all, more));
        assert!(waiters.is_empty());
        assert!(waiters.table.lock().by_key.is_empty());
        assert!(waiters.watch(&event("more"), b"line").is_none());
    }

    #[test]
    fn of_two_lines_under_one_id_the_other_is_known_once_one_is_in() {
        let waiters = Arc::new(Waiters::default());
        let mut first = waiters.expect(&key("id"), "first").unwrap();
        let mut other = waiters.expect(&key("id"), "other").unwrap();
        answer(&waiters, "id", "first", &accepted(7));
        assert_eq!(first.outcome().now_or_never(), Some(accepted(7)));
        assert_eq!(other.outcome().now_or_never(), Some(Ack::of_known()));
        assert!(waiters.is_empty());
    }

    #[test]
    fn a_line_of_somebody_else_that_is_refused_says_nothing_of_ones_own() {
        let waiters = Arc::new(Waiters::default());
        let mut own = waiters.expect(&key("id"), "own").unwrap();
        answer(&waiters, "id", "theirs", &Ack { refused: 1, ..Ack::default() });
        assert_eq!(own.outcome().now_or_never(), None);
        answer(&waiters, "id", "theirs", &Ack::of_known());
        assert_eq!(own.outcome().now_or_never(), Some(Ack::of_known()));
    }
}
