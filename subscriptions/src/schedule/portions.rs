//! The streams of one merging pace. They are served in portions, each stream once a period: served
//! all at once, they would hold the thread, and with it the processor, for too long.

use std::collections::BTreeSet;

use tokio::time::Instant;

use crate::pace::Pace;

/// Streams of one pace that are served at once where there are few.
pub(super) const PORTION: usize = 64;
/// Into how many portions a period is divided where there are many.
pub(super) const MOST_PORTIONS: usize = 20;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Portions {
    pub(super) pace: Pace,
    pub(super) ids: BTreeSet<u64>,
    /// When the next portion is due.
    next: Instant,
    /// The stream with which the next portion begins.
    first: u64,
    /// The stream with which the next check of their waits begins.
    checked: u64,
}

impl Portions {
    pub(super) fn new(pace: Pace, now: Instant) -> Self {
        Self { pace, ids: BTreeSet::new(), next: now + pace.period(), first: 0, checked: 0 }
    }

    /// The next portion, if it is due. Missed portions are not made up for.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<u64> {
        if now < self.next || self.ids.is_empty() {
            return Vec::new();
        }
        let portions = self.ids.len().div_ceil(PORTION).min(MOST_PORTIONS);
        let step = self.pace.period() / portions as u32;
        self.next = if now < self.next + step { self.next + step } else { now + step };
        take_from(&self.ids, &mut self.first, self.ids.len().div_ceil(portions))
    }

    /// At most so many streams to check, in turn.
    pub(super) fn next_to_check(&mut self, most: usize) -> Vec<u64> {
        take_from(&self.ids, &mut self.checked, most)
    }

    /// When the next portion is due; `None` without streams.
    pub(super) fn next_due(&self) -> Option<Instant> {
        (!self.ids.is_empty()).then_some(self.next)
    }
}

/// At most so many of them from `first` on. `first` moves on, and begins again after the last.
fn take_from(ids: &BTreeSet<u64>, first: &mut u64, most: usize) -> Vec<u64> {
    let taken: Vec<_> = ids.range(*first..).take(most).copied().collect();
    let next = taken.last().and_then(|last| ids.range(last + 1..).next());
    *first = next.copied().unwrap_or(0);
    taken
}
