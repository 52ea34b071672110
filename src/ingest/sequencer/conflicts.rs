//! Events of a book whose ids the log has for others. They are refused while they are written, and
//! the gap of the book takes their place.

use std::sync::Arc;

use super::Sequencer;
use super::group::{Delivery, is_same};
use crate::ingest::feed_status::FeedStatuses;
use crate::ingest::losses::gap_reason;
use crate::ingest::place::Place;
use crate::market::admission::Admission;
use crate::market::book_gap::{BookGap, Missed};
use crate::market::effect::{Applied, Effect};
use crate::market::event::{Body, Event};
use crate::market::refusal::Refusal;
use crate::market::time::Micros;
use crate::store::{NewEvent, Stored};

/// What a group writes, as far as conflicts need it.
pub(super) struct Conflicts<'a> {
    pub(super) events: &'a [NewEvent],
    pub(super) effects: &'a [(Option<usize>, Option<Micros>, Effect)],
    pub(super) sources: &'a [(usize, Place)],
    pub(super) deliveries: &'a [Delivery],
    pub(super) statuses: FeedStatuses,
}

impl Conflicts<'_> {
    /// The gap that an event leaves if its id is taken; `None` if it is of no book.
    pub(super) fn gap(&self, place: usize) -> Option<BookGap> {
        let (Some(index), _, effect) = &self.effects[place] else { return None };
        let (Effect::Replace { market, .. } | Effect::Change { market, .. }) = effect else {
            return None;
        };
        let id = self.events[place].id.clone()?;
        let at = self.sources.binary_search_by_key(&place, |(own, _)| *own).ok()?;
        let source = self.statuses.name(self.deliveries[*index].feed?);
        Some(BookGap {
            market: market.clone(),
            missed: Missed::Levels,
            height: self.events[place].height,
            source: source.as_deref().map(Box::from),
            reason: gap_reason(&self.sources[at].1, &Refusal::IdTaken(id)),
        })
    }

    /// What is written in the place of an event whose id is known: nothing if it says the same.
    pub(super) fn instead(
        &self,
        place: usize,
        admission: &Admission,
        stored: &dyn Fn() -> Option<Stored>,
    ) -> Option<NewEvent> {
        let gap = self.gap(place).filter(|gap| self.may_lose(gap, admission))?;
        let NewEvent { topic, body, height, numbered, .. } = &self.events[place];
        let is_known = is_same(stored()?.body.as_bytes(), body.as_bytes());
        (!is_known).then(|| NewEvent {
            topic: topic.clone(),
            body: gap.line().into(),
            height: *height,
            numbered: *numbered,
            ..NewEvent::default()
        })
    }

    /// Whether a book is not known to have such a gap before all of the group.
    fn may_lose(&self, lost: &BookGap, admission: &Admission) -> bool {
        let is_gap =
            |effect: &Effect| matches!(effect, Effect::Gap(gap) if gap.market == lost.market);
        admission.may_lose_levels(&lost.market, lost.height)
            || self.effects.iter().any(|(_, _, effect)| is_gap(effect))
    }
}

impl Sequencer {
    /// Settles the gaps that took the places of events, unless a snapshot after them ended them.
    pub(super) fn settle_gaps(&mut self, gaps: &[(usize, Arc<BookGap>)], applied: &[Applied]) {
        for (_, gap) in gaps {
            let is_of = |event: &&Applied| event.effect.book() == Some(&gap.market);
            let mut later = applied.iter().rev().filter(is_of);
            let last =
                later.find(|event| matches!(event.effect, Effect::Replace { .. } | Effect::Gap(_)));
            if last.is_some_and(|event| matches!(event.effect, Effect::Gap(_))) {
                let event = Event::new(Body::BookGap(Box::new(BookGap::clone(gap))));
                // Its market is defined, and has a book of price levels.
                drop(self.admission.admit(&event));
            }
        }
    }
}
