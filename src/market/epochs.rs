//! The epochs of a topic, and where a client resumes. A rollback, or a gap in a source, begins a new
//! epoch of each topic that it touches. An epoch is made of the log's own and of the event that
//! began it, so it is the same after every restart. Knows no stream, no store.

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

/// Where a client continues that has received everything up to a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeFrom {
    /// After this sequence: all that the client has is valid.
    After(u64),
    /// A later epoch began. The client discards what is after this sequence, and continues there
    /// in the current epoch.
    RolledBack { valid: u64 },
    /// From the start. The position is of no epoch that is remembered, or of the current one and
    /// after the last event: then the log has lost its end.
    Start,
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

    /// The one before the current epoch; the same where there was none.
    pub fn previous(&self) -> Epoch {
        self.log.renewed_at(self.changes.iter().rev().nth(1).map_or(0, |change| change.at))
    }

    /// Sequence of the event that began this epoch; 0 where it is the log's own.
    pub fn since(&self) -> u64 {
        self.changes.back().map_or(0, |change| change.at)
    }

    /// Whether events were removed when this epoch began.
    pub fn removed_events(&self) -> bool {
        self.changes.back().is_some_and(EpochChange::removed_events)
    }

    /// Where a client continues. `last` is the last event of the stream that it follows. This is
    /// the one rule for every stream and every list.
    pub fn resume(&self, position: &Position, last: u64) -> ResumeFrom {
        let Position { epoch, sequence } = *position;
        if epoch == self.epoch() {
            return if sequence <= last { ResumeFrom::After(sequence) } else { ResumeFrom::Start };
        }
        match self.first_removed_since(epoch) {
            Some(first) => ResumeFrom::RolledBack { valid: sequence.min(first.saturating_sub(1)) },
            None => ResumeFrom::Start,
        }
    }

    /// The first event that is not valid any more for a reader of this epoch. `None` if the epoch
    /// is the current one, or is not remembered.
    pub fn first_removed_since(&self, epoch: Epoch) -> Option<u64> {
        if epoch == self.epoch() {
            return None;
        }
        let first = (!self.forgot).then_some(0);
        let began = self.changes.iter().map(|change| change.at);
        // The epoch before each change, with those from it on.
        let (place, _) = first
            .into_iter()
            .chain(began)
            .enumerate()
            .find(|(_, at)| self.log.renewed_at(*at) == epoch)?;
        let place = place + usize::from(self.forgot);
        self.changes.iter().skip(place).map(|change| change.first).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rollback_begins_an_epoch_that_follows_from_the_log_alone() {
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
        assert_eq!(history.first_removed_since(two), None);
        assert_eq!(history.first_removed_since(one), Some(12));
        assert_eq!(history.first_removed_since(log), Some(12));
        history.begin(EpochChange { at: 60, first: 50 });
        assert_eq!(history.first_removed_since(two), Some(50));
        assert_eq!(history.first_removed_since(one), Some(12));
        assert_eq!(history.first_removed_since(Epoch(9)), None);
    }

    #[test]
    fn one_epoch_change_more_than_is_kept_replaces_the_oldest_one() {
        let log = Epoch(7);
        let mut history = EpochHistory::new(log);
        let change = |number: u64| EpochChange { at: number * 10, first: number * 10 - 5 };
        (1..=MOST_EPOCH_CHANGES as u64).for_each(|number| history.begin(change(number)));
        assert_eq!(history.first_removed_since(log), Some(5));
        history.begin(change(MOST_EPOCH_CHANGES as u64 + 1));
        assert_eq!(history.first_removed_since(log), None);
        // Nor is the one that the forgotten change began.
        assert_eq!(history.first_removed_since(log.renewed_at(10)), None);
        let second = log.renewed_at(20);
        assert_eq!(history.first_removed_since(second), Some(25));
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
        assert_eq!(union.first_removed_since(log), Some(11));
        assert_eq!(union.first_removed_since(one.epoch()), Some(25));
    }

    #[test]
    fn a_position_is_resumed_exactly_rolled_back_or_refused() {
        use ResumeFrom::{After, RolledBack, Start};
        let log = Epoch(7);
        let mut history = EpochHistory::new(log);
        history.begin(EpochChange { at: 20, first: 15 });
        let first = history.epoch();
        // A gap: it removes nothing.
        history.begin(EpochChange { at: 30, first: 30 });
        let current = history.epoch();
        let cases = [
            // Of the current epoch, up to the last event.
            (current, 0, After(0)),
            (current, 31, After(31)),
            (current, 40, After(40)),
            // After the last event: the log has lost its end.
            (current, 41, Start),
            // Of an earlier epoch: what was removed since then is not valid.
            (first, 22, RolledBack { valid: 22 }),
            (first, 29, RolledBack { valid: 29 }),
            (first, 41, RolledBack { valid: 29 }),
            (log, 14, RolledBack { valid: 14 }),
            (log, 15, RolledBack { valid: 14 }),
            (log, 41, RolledBack { valid: 14 }),
            // Of another log.
            (Epoch(8), 1, Start),
        ];
        for (epoch, sequence, expected) in cases {
            let position = Position { epoch, sequence };
            assert_eq!(history.resume(&position, 40), expected, "{position:?}");
        }
        let untouched = EpochHistory::new(log);
        assert_eq!(untouched.resume(&Position { epoch: log, sequence: 0 }, 0), After(0));
        assert_eq!(untouched.resume(&Position { epoch: current, sequence: 0 }, 0), Start);
    }
}
