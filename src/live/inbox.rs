//! The bounded queue of a worker: events and other changes, in their order.

use std::collections::VecDeque;
use std::sync::Arc;

use super::feed_states::FeedStates;
use super::frame::FeedView;
use super::rollback::Rollback;
use crate::market::effect::{Applied, Effect};

/// Events that wait for a worker, and price levels in them: about 100 MB at most. A worker that
/// lags further copies the state again, and its streams are merged.
const MOST_WAITING_EVENTS: usize = 1 << 17;
const MOST_WAITING_LEVELS: usize = 1 << 20;

/// What is passed on to a worker.
pub(super) enum Change {
    Events(Arc<Vec<Applied>>),
    RolledBack(Arc<Rollback>),
    FeedStates(FeedStates),
    Feeds(Arc<Vec<FeedView>>),
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Inbox {
    changes: VecDeque<Change>,
    /// Events of the first change that were taken.
    taken: usize,
    events: usize,
    levels: usize,
    /// Some changes were dropped. Until the next copy, earlier ones are not needed.
    overrun: bool,
}

impl Inbox {
    pub(super) fn push(&mut self, change: Change) {
        if let Change::Events(events) = &change {
            self.events += events.len();
            self.levels += events.iter().map(levels).sum::<usize>();
        }
        self.changes.push_back(change);
        if self.events > MOST_WAITING_EVENTS || self.levels > MOST_WAITING_LEVELS {
            self.overrun();
        }
    }

    /// Drops the changes in it, as if there had been no room.
    pub(super) fn overrun(&mut self) {
        *self = Self { overrun: true, ..Self::default() };
    }

    /// Whether some changes were dropped since this was last asked. Then the rest is dropped too:
    /// the next copy has it.
    pub(super) fn take_overrun(&mut self) -> bool {
        let overrun = std::mem::take(&mut self.overrun);
        if overrun {
            *self = Self::default();
        }
        overrun
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Events that wait.
    pub(super) fn events(&self) -> usize {
        self.events
    }

    /// The market or topic of the next event; `None` where something else is next.
    pub(super) fn next_name(&self) -> Option<&Arc<str>> {
        match self.changes.front() {
            Some(Change::Events(events)) => events.get(self.taken).and_then(name),
            _ => None,
        }
    }

    /// The next change; of events only the one of this place among them.
    pub(super) fn take(&mut self) -> Option<(Change, usize)> {
        let Some(Change::Events(events)) = self.changes.front() else {
            return self.changes.pop_front().map(|change| (change, 0));
        };
        let (events, at) = (events.clone(), self.taken);
        self.taken += 1;
        self.events -= 1;
        self.levels -= levels(&events[at]);
        if self.taken == events.len() {
            self.changes.pop_front();
            self.taken = 0;
        }
        Some((Change::Events(events), at))
    }
}

/// The market or the generic topic of an event.
pub(super) fn name(event: &Applied) -> Option<&Arc<str>> {
    match &event.effect {
        Effect::Define(definition) => Some(&definition.market),
        Effect::Replace { market, .. }
        | Effect::Change { market, .. }
        | Effect::Complete { market, .. } => Some(market),
        Effect::Gap(gap) => Some(&gap.market),
        Effect::Order { update, .. } => Some(&update.order.market),
        Effect::Trade(trade) => Some(&trade.market),
        Effect::Message(message) => Some(&message.topic),
        Effect::None => None,
    }
}

/// About how much an event holds.
fn levels(event: &Applied) -> usize {
    match &event.effect {
        Effect::Replace { levels, .. }
        | Effect::Change { levels, .. }
        | Effect::Order { levels, .. } => levels.len(),
        Effect::Message(message) => message.data.len() / 64,
        Effect::Define(_)
        | Effect::Gap(_)
        | Effect::Complete { .. }
        | Effect::Trade(_)
        | Effect::None => 1,
    }
}
