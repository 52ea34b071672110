//! The streams that wait for their turn, in three orders: by score, by age, and by age within a
//! pace. An entry stays in the other orders when its stream is served by one of them. Such a stale
//! entry is recognised by its ticket.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use crate::pace::Pace;

/// Every so many turns the stream that has waited longest goes first, so that none starves.
pub(super) const OLDEST_EVERY: u32 = 4;

/// A stream in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) id: u64,
    /// Distinguishes this wait of the stream from its earlier ones.
    pub(super) wait: u64,
}

#[derive(Debug)]
struct Scored {
    score: f64,
    ticket: Ticket,
}

impl Ord for Scored {
    fn cmp(&self, other: &Self) -> Ordering {
        // Of equal scores the one that has waited longer.
        let by_age = || other.ticket.wait.cmp(&self.ticket.wait);
        self.score.total_cmp(&other.score).then_with(by_age)
    }
}

impl PartialOrd for Scored {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scored {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scored {}

#[derive(Clone, Copy, Debug)]
struct Aged {
    ticket: Ticket,
    since: Duration,
}

/// In which order the next stream is taken.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Score,
    Age,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct ReadyQueue {
    by_score: BinaryHeap<Scored>,
    by_age: VecDeque<Aged>,
    /// By age, of the paces that have a slower one.
    by_pace: [VecDeque<Aged>; Pace::SLOWABLE.len()],
    turns: u32,
    waits: u64,
}

impl ReadyQueue {
    /// A stream begins to wait. Returns the number of its wait.
    pub(super) fn push(&mut self, id: u64, score: f64, pace: Pace, since: Duration) -> u64 {
        self.waits += 1;
        let ticket = Ticket { id, wait: self.waits };
        self.by_score.push(Scored { score, ticket });
        self.by_age.push_back(Aged { ticket, since });
        self.push_pace(ticket, pace, since);
        self.waits
    }

    /// Adds a stream that waits to the order of its pace.
    pub(super) fn push_pace(&mut self, ticket: Ticket, pace: Pace, since: Duration) {
        if let Some(index) = pace.slowable_index() {
            self.by_pace[index].push_back(Aged { ticket, since });
        }
    }

    /// Begins the next turn.
    pub(super) fn next_order(&mut self) -> Order {
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(OLDEST_EVERY) { Order::Age } else { Order::Score }
    }

    /// The first in this order; it may be stale.
    pub(super) fn pop(&mut self, order: Order) -> Option<Ticket> {
        match order {
            Order::Score => self.by_score.pop().map(|scored| scored.ticket),
            Order::Age => self.by_age.pop_front().map(|aged| aged.ticket),
        }
    }

    /// The stream of this pace that has waited longest, if it began to wait before this time; it
    /// may be stale.
    pub(super) fn pop_overdue(
        &mut self,
        pace: Pace,
        is_overdue: impl Fn(Duration) -> bool,
    ) -> Option<Ticket> {
        let queue = &mut self.by_pace[pace.slowable_index()?];
        is_overdue(queue.front()?.since).then(|| queue.pop_front().map(|aged| aged.ticket))?
    }

    /// Drops stale entries from orders that have more than `most`.
    pub(super) fn sweep_stale(&mut self, most: usize, is_current: impl Fn(Ticket) -> bool) {
        if self.by_score.len() > most {
            self.by_score.retain(|scored| is_current(scored.ticket));
        }
        for queue in std::iter::once(&mut self.by_age).chain(&mut self.by_pace) {
            if queue.len() > most {
                queue.retain(|aged| is_current(aged.ticket));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_score.len()
    }
}
