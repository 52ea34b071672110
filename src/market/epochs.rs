//! The epochs of a topic. A rollback, or a gap in a source, begins a new epoch of each topic that it
//! touches. An epoch is made of the log's own and of the event that began it, so it is the same after
//! every restart. Knows no stream, no store.

use std::collections::VecDeque;

use spreadly_subscriptions::{Epoch, Position};

/// Epoch changes of a topic that are remembered. A client with a cursor of an older epoch starts
/// again. At a reorganisation an hour this reaches two days and a half back.
pub const MOST_EPOCH_CHANGES: usize = 64;

/// What began a new epoch of a topic: a rollback, or a gap, which removes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EpochChange {
    /// Sequence of the event that reports it.
    pub at: u64,
    /// The first event that it removed: all before it is still valid. After a gap it is `at`.
    pub first: u64,
}

impl EpochChange {
    /// Events of the topic that were published are not valid any more.
    pub fn removed_events(&self) -> bool {
        self.first < self.at
    }
}

/// Of which epoch a client's cursor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CursorEpoch {
    /// Of the current epoch.
    Current,
    /// Of an earlier one: events before `undone` are still valid.
    Superseded { undone: u64 },
    /// Of no epoch that is remembered.
    Unknown,
}

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochHistory {
    log: Epoch,
    /// Oldest first, at most [`MOST_EPOCH_CHANGES`].
    changes: VecDeque<EpochChange>,
    /// Older ones are forgotten: no position of the log's first epoch is known any more.
    forgot: bool,
}

impl EpochHistory {
    /// Of a topic that is still in the log's own epoch.
    pub fn new(log: Epoch) -> Self {
        Self { log, changes: VecDeque::new(), forgot: false }
    }

    /// Of several topics that one subscription follows: it begins a new epoch with each of them.
    pub fn union<'a>(log: Epoch, all: impl Iterator<Item = &'a Self>) -> Self {
        let mut union = Self::new(log);
        let mut changes = Vec::new();
        for one in all {
            union.forgot |= one.forgot;
            changes.extend(one.changes.iter().copied());
        }
        // Of one event that changed several, the earliest removed event counts.
        changes.sort_unstable();
        changes.dedup_by_key(|change| change.at);
        changes.into_iter().for_each(|change| union.begin(change));
        union
    }

    /// Begins an epoch, later than those before.
    pub fn begin(&mut self, change: EpochChange) {
        self.changes.push_back(change);
        if self.changes.len() > MOST_EPOCH_CHANGES {
            self.changes.pop_front();
            self.forgot = true;
        }
    }

    /// The current epoch.
    pub fn epoch(&self) -> Epoch {
        self.log.renewed_at(self.since())
    }

    /// Sequence of the event that began this epoch; 0 where it is the log's own.
    pub fn since(&self) -> u64 {
        self.changes.back().map_or(0, |change| change.at)
    }

    /// Whether events were removed when this epoch began.
    pub fn removed_events(&self) -> bool {
        self.changes.back().is_some_and(EpochChange::removed_events)
    }

    /// Of which epoch a client's position is.
    pub fn cursor_epoch(&self, position: &Position) -> CursorEpoch {
        if position.epoch == self.epoch() {
            return CursorEpoch::Current;
        }
        let first = (!self.forgot).then_some(0);
        let began = self.changes.iter().map(|change| change.at);
        // The epoch before each change, with those from it on.
        let earlier = first
            .into_iter()
            .chain(began)
            .enumerate()
            .find(|(_, at)| self.log.renewed_at(*at) == position.epoch);
        let Some((place, _)) = earlier else { return CursorEpoch::Unknown };
        let place = place + usize::from(self.forgot);
        let undone = self.changes.iter().skip(place).map(|change| change.first).min();
        undone.map_or(CursorEpoch::Unknown, |undone| CursorEpoch::Superseded { undone })
    }
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
        let mut history = EpochHistory::new(log);
        assert_eq!((history.epoch(), history.since()), (log, 0));
        history.begin(EpochChange { at: 20, first: 15 });
        let one = history.epoch();
        history.begin(EpochChange { at: 40, first: 12 });
        let two = history.epoch();
        assert!(log != one && one != two && log != two);
        let mut again = EpochHistory::new(log);
        again.begin(EpochChange { at: 20, first: 15 });
        again.begin(EpochChange { at: 40, first: 12 });
        assert_eq!(again.epoch(), two);
        assert_ne!(Epoch(8).renewed_at(40), two);
        assert_eq!(history.cursor_epoch(&at(two, 99)), CursorEpoch::Current);
        assert_eq!(history.cursor_epoch(&at(one, 30)), CursorEpoch::Superseded { undone: 12 });
        assert_eq!(history.cursor_epoch(&at(log, 30)), CursorEpoch::Superseded { undone: 12 });
        history.begin(EpochChange { at: 60, first: 50 });
        assert_eq!(history.cursor_epoch(&at(two, 55)), CursorEpoch::Superseded { undone: 50 });
        assert_eq!(history.cursor_epoch(&at(one, 55)), CursorEpoch::Superseded { undone: 12 });
        assert_eq!(history.cursor_epoch(&at(Epoch(9), 55)), CursorEpoch::Unknown);
    }

    #[test]
    fn an_undoing_too_many_is_remembered_at_the_cost_of_the_oldest_epoch() {
        let log = Epoch(7);
        let mut history = EpochHistory::new(log);
        let change = |number: u64| EpochChange { at: number * 10, first: number * 10 - 5 };
        (1..=MOST_EPOCH_CHANGES as u64).for_each(|number| history.begin(change(number)));
        assert_eq!(history.cursor_epoch(&at(log, 3)), CursorEpoch::Superseded { undone: 5 });
        history.begin(change(MOST_EPOCH_CHANGES as u64 + 1));
        assert_eq!(history.cursor_epoch(&at(log, 3)), CursorEpoch::Unknown);
        // Nor is the one that the forgotten change began.
        assert_eq!(history.cursor_epoch(&at(log.renewed_at(10), 3)), CursorEpoch::Unknown);
        let second = log.renewed_at(20);
        assert_eq!(history.cursor_epoch(&at(second, 22)), CursorEpoch::Superseded { undone: 25 });
    }

    #[test]
    fn a_subscription_to_several_topics_begins_an_epoch_with_each() {
        let log = Epoch(7);
        let (mut one, mut two) = (EpochHistory::new(log), EpochHistory::new(log));
        one.begin(EpochChange { at: 20, first: 15 });
        two.begin(EpochChange { at: 20, first: 11 });
        two.begin(EpochChange { at: 30, first: 25 });
        let union = EpochHistory::union(log, [&one, &two].into_iter());
        assert_eq!(union.epoch(), two.epoch());
        assert_eq!(union.cursor_epoch(&at(log, 30)), CursorEpoch::Superseded { undone: 11 });
        assert_eq!(
            union.cursor_epoch(&at(one.epoch(), 30)),
            CursorEpoch::Superseded { undone: 25 }
        );
    }
}
