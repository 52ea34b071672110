//! How the positions of a topic are numbered once blocks of the chain were undone, or events of a
//! source are lost: each time the topics that are touched begin a new epoch, made of the log's own
//! and of the event that says so, so it is the same after every restart. Knows no stream, no store.

use std::collections::VecDeque;

use spreadly_subscriptions::{Epoch, Position};

/// Undoings of a topic that are remembered: a client that comes back from an epoch before those is
/// told to begin anew. At a reorganisation an hour this reaches two days and a half back.
pub const MOST_UNDOINGS: usize = 64;

/// What an undoing means to a topic; a gap undoes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Undoing {
    /// Sequence of the event that undid the blocks.
    pub at: u64,
    /// The first event that it undid: all before it is still valid. After a gap that is all before
    /// `at`.
    pub first: u64,
}

impl Undoing {
    /// Something of the topic was told that does not stand any more.
    pub fn undid(&self) -> bool {
        self.first < self.at
    }
}

/// Where a client's position is in the numbering as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In today's epoch.
    Now,
    /// In an earlier one: what it was told up to and without `undone` still stands.
    Earlier { undone: u64 },
    /// In no epoch that is remembered.
    Unknown,
}

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbering {
    log: Epoch,
    /// Oldest first, at most [`MOST_UNDOINGS`].
    undoings: VecDeque<Undoing>,
    /// Older ones are forgotten: no position of the log's first epoch is known any more.
    forgot: bool,
}

impl Numbering {
    /// Of a topic of which nothing was undone yet.
    pub fn new(log: Epoch) -> Self {
        Self { log, undoings: VecDeque::new(), forgot: false }
    }

    /// Of several topics that one subscription follows: it begins a new epoch with each of them.
    pub fn union<'a>(log: Epoch, all: impl Iterator<Item = &'a Self>) -> Self {
        let mut union = Self::new(log);
        let mut undoings = Vec::new();
        for one in all {
            union.forgot |= one.forgot;
            undoings.extend(one.undoings.iter().copied());
        }
        // Of one event that undid something in several, the earliest counts.
        undoings.sort_unstable();
        undoings.dedup_by_key(|undoing| undoing.at);
        undoings.into_iter().for_each(|undoing| union.undo(undoing));
        union
    }

    /// Takes an undoing, later than those before.
    pub fn undo(&mut self, undoing: Undoing) {
        self.undoings.push_back(undoing);
        if self.undoings.len() > MOST_UNDOINGS {
            self.undoings.pop_front();
            self.forgot = true;
        }
    }

    /// As it is now.
    pub fn epoch(&self) -> Epoch {
        self.log.renewed_at(self.since())
    }

    /// Sequence of the event that began this epoch; 0 where it is the log's own.
    pub fn since(&self) -> u64 {
        self.undoings.back().map_or(0, |undoing| undoing.at)
    }

    /// Whether something was undone when this epoch began.
    pub fn undid(&self) -> bool {
        self.undoings.back().is_some_and(Undoing::undid)
    }

    /// Where a position stands that a client brought.
    pub fn standing(&self, position: &Position) -> Standing {
        if position.epoch == self.epoch() {
            return Standing::Now;
        }
        let first = (!self.forgot).then_some(0);
        let began = self.undoings.iter().map(|undoing| undoing.at);
        // The epoch before each undoing, with those from it on.
        let earlier = first
            .into_iter()
            .chain(began)
            .enumerate()
            .find(|(_, at)| self.log.renewed_at(*at) == position.epoch);
        let Some((place, _)) = earlier else { return Standing::Unknown };
        let place = place + usize::from(self.forgot);
        let undone = self.undoings.iter().skip(place).map(|undoing| undoing.first).min();
        undone.map_or(Standing::Unknown, |undone| Standing::Earlier { undone })
    }
}

/// What begins a new epoch together: all topics of a market, otherwise a topic by itself. By the
/// log's names: `market:` before a market's id, or the topic.
pub fn scope_of(topic: &str) -> String {
    let market = ["book:", "orders:", "trades:", "market:"]
        .into_iter()
        .find_map(|kind| topic.strip_prefix(kind))
        // An account's orders in a market; no market's id has an `@` in it.
        .map(|rest| rest.split_once('@').map_or(rest, |(market, _)| market));
    market.map_or_else(|| topic.to_owned(), market_scope)
}

/// The scope of a market's topics.
pub fn market_scope(market: &str) -> String {
    format!("market:{market}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: Epoch, sequence: u64) -> Position {
        Position { epoch, sequence }
    }

    #[test]
    fn each_undoing_begins_an_epoch_that_follows_from_the_log_alone() {
        let log = Epoch(7);
        let mut numbering = Numbering::new(log);
        assert_eq!((numbering.epoch(), numbering.since()), (log, 0));
        numbering.undo(Undoing { at: 20, first: 15 });
        let one = numbering.epoch();
        numbering.undo(Undoing { at: 40, first: 12 });
        let two = numbering.epoch();
        assert!(log != one && one != two && log != two);
        let mut again = Numbering::new(log);
        again.undo(Undoing { at: 20, first: 15 });
        again.undo(Undoing { at: 40, first: 12 });
        assert_eq!(again.epoch(), two);
        assert_ne!(Epoch(8).renewed_at(40), two);
        assert_eq!(numbering.standing(&at(two, 99)), Standing::Now);
        assert_eq!(numbering.standing(&at(one, 30)), Standing::Earlier { undone: 12 });
        assert_eq!(numbering.standing(&at(log, 30)), Standing::Earlier { undone: 12 });
        numbering.undo(Undoing { at: 60, first: 50 });
        assert_eq!(numbering.standing(&at(two, 55)), Standing::Earlier { undone: 50 });
        assert_eq!(numbering.standing(&at(one, 55)), Standing::Earlier { undone: 12 });
        assert_eq!(numbering.standing(&at(Epoch(9), 55)), Standing::Unknown);
    }

    #[test]
    fn an_undoing_too_many_is_remembered_at_the_cost_of_the_oldest_epoch() {
        let log = Epoch(7);
        let mut numbering = Numbering::new(log);
        let undoing = |number: u64| Undoing { at: number * 10, first: number * 10 - 5 };
        (1..=MOST_UNDOINGS as u64).for_each(|number| numbering.undo(undoing(number)));
        assert_eq!(numbering.standing(&at(log, 3)), Standing::Earlier { undone: 5 });
        numbering.undo(undoing(MOST_UNDOINGS as u64 + 1));
        assert_eq!(numbering.standing(&at(log, 3)), Standing::Unknown);
        // Nor is the one that the forgotten undoing began.
        assert_eq!(numbering.standing(&at(log.renewed_at(10), 3)), Standing::Unknown);
        let second = log.renewed_at(20);
        assert_eq!(numbering.standing(&at(second, 22)), Standing::Earlier { undone: 25 });
    }

    #[test]
    fn a_subscription_to_several_topics_begins_an_epoch_with_each() {
        let log = Epoch(7);
        let (mut one, mut two) = (Numbering::new(log), Numbering::new(log));
        one.undo(Undoing { at: 20, first: 15 });
        two.undo(Undoing { at: 20, first: 11 });
        two.undo(Undoing { at: 30, first: 25 });
        let union = Numbering::union(log, [&one, &two].into_iter());
        assert_eq!(union.epoch(), two.epoch());
        assert_eq!(union.standing(&at(log, 30)), Standing::Earlier { undone: 11 });
        assert_eq!(union.standing(&at(one.epoch(), 30)), Standing::Earlier { undone: 25 });
    }

    #[test]
    fn topics_of_a_market_are_one_scope() {
        for topic in ["book:A-B", "trades:A-B", "orders:A-B", "orders:A-B@9g", "market:A-B"] {
            assert_eq!(scope_of(topic), "market:A-B");
        }
        for topic in ["orders@9g", "message:trades:A-B", "message:news", "blocks"] {
            assert_eq!(scope_of(topic), topic);
        }
    }
}
