//! Which streams get a slower or a faster pace. Part of [`Schedule`].

use std::time::Duration;

use tokio::time::Instant;

use super::ready_queue::Ticket;
use super::{FIRST_HOLD, PaceChange, Schedule, StreamState};
use crate::owners::FREE_STREAMS;
use crate::pace::Pace;

/// Short waits in a row before a stream gets a faster pace.
const SHORT_WAITS: u32 = 2;
/// How often the waits are checked.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_millis(25);
/// Longest hold of a stream that was merged again right after it had recovered.
const MOST_HOLD: Duration = Duration::from_secs(8);
/// Streams whose pace changes at one check: each change costs its worker a microsecond or two.
const CHANGES_AT_ONCE: usize = 256;
/// Of these, changes to a faster pace: few, so that their cost shows before it is too much.
const FASTER_AT_ONCE: usize = 16;
/// Merged streams of each pace that are checked at once whether they may get a faster one.
const CHECKED_AT_ONCE: usize = 256;
/// A stream that was slowed down for a budget is not slowed down again within this time: first
/// others are, and the effect shows.
const SETTLE_TIME: Duration = Duration::from_secs(1);

impl StreamState {
    /// Gives it the next slower pace, and returns the previous one with the change.
    fn slow_down(&mut self, id: u64, now: Instant) -> (Pace, PaceChange) {
        let before = self.pace;
        self.pace = before.slower();
        self.hold_until = Some(now + self.next_hold);
        self.next_hold = (self.next_hold * 2).min(MOST_HOLD);
        (self.slowed, self.short_waits, self.is_blocking) = (Some(now), 0, false);
        (before, PaceChange { id, pace: self.pace })
    }
}

impl Schedule {
    /// Checks the waits, and gives streams slower or faster paces. Returns the changes.
    pub fn adapt(&mut self, now: Instant) -> Vec<PaceChange> {
        let mut changed: Vec<(Pace, PaceChange)> = Vec::new();
        if now.saturating_duration_since(self.checked) >= CHECK_INTERVAL {
            self.checked = now;
            self.owners.check_debts(now);
            self.slow_down_overdue(now, &mut changed);
            self.slow_down_over_budget(now, &mut changed);
            self.speed_up(now, &mut changed);
        }
        self.apply(&changed);
        changed.into_iter().map(|(_, change)| change).collect()
    }

    /// Streams that have waited for longer than their pace allows.
    fn slow_down_overdue(&mut self, now: Instant, changed: &mut Vec<(Pace, PaceChange)>) {
        let spent = self.spent;
        for pace in Pace::SLOWABLE {
            // The streams after one that has not waited for too long have not either.
            while changed.len() < CHANGES_AT_ONCE
                && let Some(Ticket { id, wait }) =
                    self.queue.pop_overdue(pace, |since| spent - since > pace.patience())
            {
                let state = self.streams.get_mut(&id);
                let Some(state) = state.filter(|state| {
                    state.waits_since.is_some() && state.wait == wait && state.pace == pace
                }) else {
                    continue;
                };
                // It has waited for its old pace. For the new one it begins to wait.
                state.waits_since = Some(spent);
                self.blocking -= usize::from(state.is_blocking);
                changed.push(state.slow_down(id, now));
            }
        }
    }

    /// Streams that were served beyond a budget, while the budget is used up. Of these only the
    /// ones with the fewest readers, so that others keep their pace as long as possible. If only a
    /// few streams were served at all, they did not use up the budget: those that did have ended.
    fn slow_down_over_budget(&mut self, now: Instant, changed: &mut Vec<(Pace, PaceChange)>) {
        let over_budget = std::mem::take(&mut self.over_budget);
        let are_few = over_budget.len() <= FREE_STREAMS;
        let readers = |id: &u64| Some(self.streams.get(id)?.readership.readers);
        let fewest = over_budget.iter().filter_map(readers).min();
        for id in over_budget {
            let Some(state) = self.streams.get_mut(&id) else { continue };
            state.is_over_budget = false;
            let settles = state.slowed.is_some_and(|slowed| now < slowed + SETTLE_TIME);
            if are_few
                || settles
                || state.pace == Pace::S1
                || Some(state.readership.readers) != fewest
                || changed.len() >= CHANGES_AT_ONCE
                || !self.owners.is_over_budget(state.owner, state.readership)
            {
                continue;
            }
            self.blocking -= usize::from(state.is_blocking);
            changed.push(state.slow_down(id, now));
        }
    }

    fn speed_up(&mut self, now: Instant, changed: &mut Vec<(Pace, PaceChange)>) {
        let candidates: Vec<_> =
            self.merging.iter_mut().flat_map(|one| one.next_to_check(CHECKED_AT_ONCE)).collect();
        let most = (changed.len() + FASTER_AT_ONCE).min(CHANGES_AT_ONCE);
        for id in candidates {
            if changed.len() >= most {
                break;
            }
            let state = self.streams.get_mut(&id);
            let Some(state) = state.filter(|state| state.pace > state.requested) else {
                continue;
            };
            let is_held = state.hold_until.is_some_and(|until| now < until);
            if state.short_waits < SHORT_WAITS
                || is_held
                || !self.owners.has_room(state.owner, state.readership, now)
            {
                continue;
            }
            state.short_waits = 0;
            let before = state.pace;
            state.hold_until = Some(now + FIRST_HOLD);
            state.pace = before.faster().max(state.requested);
            if state.waits_since.is_some() && state.pace == Pace::Raw {
                state.is_blocking = true;
                self.blocking += 1;
            }
            changed.push((before, PaceChange { id, pace: state.pace }));
        }
    }

    /// Moves streams to the lists of their new paces.
    fn apply(&mut self, changed: &[(Pace, PaceChange)]) {
        for (before, PaceChange { id, pace }) in changed {
            self.remove_from_pace(*id, *before);
            self.add_to_pace(*id, *pace);
            if let Some(StreamState { waits_since: Some(since), wait, .. }) = self.streams.get(id) {
                self.queue.push_pace(Ticket { id: *id, wait: *wait }, *pace, *since);
            }
        }
    }
}
