//! The traces of refused events: the newest ones of each feed, and when they go to the log.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::feed_status::LastRefusal;
use crate::live::MOST_REFUSALS;

/// Between two lines of the hub's log about refusals of one feed. Each has the count since the
/// last one.
const REFUSAL_LOG_PAUSE: Duration = Duration::from_secs(10);

/// At most [`MOST_REFUSALS`], the newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals(VecDeque<LastRefusal>);

impl Refusals {
    pub fn push(&mut self, refusal: LastRefusal) {
        if self.0.len() == MOST_REFUSALS {
            self.0.pop_front();
        }
        self.0.push_back(refusal);
    }

    pub fn add(&mut self, newer: Self) {
        newer.0.into_iter().for_each(|refusal| self.push(refusal));
    }

    pub fn newest_first(&self) -> impl Iterator<Item = &LastRefusal> {
        self.0.iter().rev()
    }
}

/// What was logged of one feed's refusals.
#[derive(Debug, Default)]
pub(super) struct Logged {
    total: u64,
    at: Option<Instant>,
}

impl Logged {
    /// How many were refused since the last line, if a line is due. It counts as logged then.
    pub(super) fn due(&mut self, total: u64, now: Instant) -> Option<u64> {
        let new = total.saturating_sub(self.total);
        let rests = self.at.is_some_and(|at| now.duration_since(at) < REFUSAL_LOG_PAUSE);
        if new == 0 || rests {
            return None;
        }
        *self = Self { total, at: Some(now) };
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::place::{At, Place};
    use crate::market::refusal::Refusal;

    #[test]
    fn the_newest_twenty_refusals_are_named_newest_first() {
        let refusal = |row| LastRefusal {
            place: Place { source: "events".into(), at: At::Row(row) },
            reason: Refusal::NotAnObject,
        };
        let (mut all, mut newer) = (Refusals::default(), Refusals::default());
        (0..15).for_each(|row| all.push(refusal(row)));
        (15..25).for_each(|row| newer.push(refusal(row)));
        all.add(newer);
        let rows: Vec<_> = all.newest_first().map(|one| one.place.at).collect();
        assert_eq!(rows.len(), MOST_REFUSALS);
        assert_eq!((rows[0], rows[MOST_REFUSALS - 1]), (At::Row(24), At::Row(5)));
    }

    #[test]
    fn refusals_have_a_line_at_once_and_then_one_in_ten_seconds_with_the_count_of_all() {
        let (mut logged, begin) = (Logged::default(), Instant::now());
        assert_eq!(logged.due(0, begin), None);
        assert_eq!(logged.due(3, begin), Some(3));
        assert_eq!(logged.due(9, begin + REFUSAL_LOG_PAUSE / 2), None);
        assert_eq!(logged.due(9, begin + REFUSAL_LOG_PAUSE), Some(6));
        assert_eq!(logged.due(9, begin + REFUSAL_LOG_PAUSE * 3), None);
    }
}
