//! The workers that resolve and encode the response streams, one for each shard. An event costs the
//! sequencer the same for any number of streams: it changes the state and passes the event on, once
//! to each worker.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use spreadly_subscriptions::Worker;

use super::Live;
use super::book_checkpoint::RestoreError;
use super::encode_worker::{EncodeMeters, EncodeWorker};
use super::feed_states::FeedStates;
use super::frame::FeedView;
use super::inbox::Change;
use super::rollback::Rollback;
use crate::market::effect::Applied;

thread_local! {
    /// The worker of the shard that this thread runs.
    static HERE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// See the module's text.
pub struct Encoders {
    live: Arc<Live>,
    workers: Vec<Arc<EncodeWorker>>,
}

impl Encoders {
    /// With no workers, streams follow the state itself and are advanced with each event.
    ///
    /// The streams of one owner may cost each worker `stream_cost_rate` microseconds a second.
    pub fn new(live: Arc<Live>, workers: usize, stream_cost_rate: u32) -> Self {
        let new = |_| Arc::new(EncodeWorker::new(&live, stream_cost_rate));
        let workers = (0..workers).map(new).collect();
        Self { live, workers }
    }

    /// The state that queries read and the sequencer changes.
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// For the shard of this number, whose thread this is.
    pub fn worker_here(&self, shard: usize) -> Option<Arc<dyn Worker>> {
        let worker = self.workers.get(shard)?.clone();
        HERE.set(Some(shard));
        Some(worker)
    }

    /// The state that a stream follows which is opened on this thread.
    pub fn here(&self) -> &Arc<Live> {
        let here = HERE.get().unwrap_or_default();
        self.workers.get(here).or(self.workers.first()).map_or(&self.live, |worker| worker.live())
    }

    #[cfg(test)]
    pub(super) fn worker(&self, number: usize) -> &EncodeWorker {
        &self.workers[number]
    }

    #[cfg(test)]
    pub(super) fn state_of(&self, number: usize) -> &Arc<Live> {
        self.workers[number].live()
    }

    /// What the workers did, and how many streams they merge, by pace.
    pub fn workers(&self) -> impl Iterator<Item = (&EncodeMeters, [usize; 3])> {
        self.workers.iter().map(|own| (own.meters(), own.live().schedule.lock().merged()))
    }

    /// Takes events as [`Live::apply`] does, and passes them on. Gives the memory back where
    /// nothing else holds it.
    pub fn apply(&self, events: Vec<Applied>) -> Vec<Applied> {
        self.live.apply(&events);
        let Some(last) = events.last().map(|event| event.sequence) else { return events };
        let mut events = Arc::new(events);
        for worker in &self.workers {
            if worker.live().following.load(Ordering::SeqCst) > 0 {
                worker.pass_on(Change::Events(events.clone()));
            } else {
                worker.live().applied.raise_to(last);
            }
        }
        Arc::get_mut(&mut events).map(std::mem::take).unwrap_or_default()
    }

    /// Takes what is left after a rollback, as [`Live::roll_back`] does, and passes it on.
    ///
    /// # Errors
    /// When a book is not readable.
    pub fn roll_back(&self, left: &Arc<Rollback>) -> Result<(), RestoreError> {
        let done = self.live.roll_back(left);
        self.pass_on(|| Change::RolledBack(left.clone()));
        done
    }

    /// Whether what every stream says is up to date.
    pub fn set_feed_states(&self, states: FeedStates) {
        if self.live.feed_states() != states {
            self.live.set_feed_states(states.clone());
            self.pass_on(|| Change::FeedStates(states.clone()));
        }
    }

    /// Takes the feeds as they are now.
    pub fn set_feeds(&self, views: Vec<FeedView>) {
        let passed = Arc::new(views.clone());
        self.live.set_feeds(views);
        self.pass_on(|| Change::Feeds(passed.clone()));
    }

    fn pass_on(&self, change: impl Fn() -> Change) {
        self.workers.iter().for_each(|worker| worker.pass_on(change()));
    }
}
