//! The sequencer owns the log and what admission knows, so events have one order: the log's. It
//! takes what waits in the queue (group commit), admits it, writes it in one transaction, hands it
//! to the live state and only then answers the feeds.
//!
//! It has a thread, which serves the queue. A feed with a single batch may do the same work on its
//! own thread while the sequencer is idle ([`IngestHandle::try_write`]): a lock lets one thread in
//! at a time.
//!
//! A log that can't be written halts every feed with its reason; the same group is tried again
//! until it is in. Feeds wait for their answer meanwhile, so nothing piles up and nothing is lost:
//! their sources keep what was not acknowledged.

mod conflicts;
mod epochs;
mod group;
mod missed;
mod persist;
mod sources;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::feed_status::{FeedId, FeedStatuses};
use super::handle::{Ack, Batch, IngestError, IngestHandle, Request, WeakIngestHandle, now};
use super::projection::Projection;
use super::waiters::Waiters;
use crate::live::checkpoint::checkpoint;
use crate::market::admission::Admission;
use crate::market::definition::MarketId;
use crate::market::effect::{Applied, Effect};
use crate::market::ownership::Ownership;
use crate::market::refusal::Refusal;
use crate::recovery::Recovered;
use crate::store::{Appended, Store, Stored, TopicSource};
use conflicts::Conflicts;
use epochs::begins_epochs;
use group::{Buffers, Delivery, Group};

/// Events of a book between two checkpoints. A restart replays one to two such stretches of each
/// book, some 5 ms each.
pub const CHECKPOINT_EVENTS: u64 = 2_000;
/// A large checkpoint is followed by at least one event for each so many of its bytes, so that
/// checkpoints cost an event no more than encoding so many bytes. All events wait while one is
/// made.
const CHECKPOINT_BYTES_PER_EVENT: u64 = 256;

/// What the sequencer is started with.
#[derive(Clone, Debug)]
pub struct SequencerConfig {
    /// [`CHECKPOINT_EVENTS`]; fewer in tests.
    pub checkpoint_events: u64,
    /// What only Kafka's feed may bring. `None`: any feed, as where that is checked before
    /// it enters the log that this one is a replica of.
    pub ownership: Option<Arc<Ownership>>,
    /// Who waits for the outcome of an event, whichever feed delivers it.
    pub waiters: Arc<Waiters>,
    /// Ends a wait for a log that can't be written. The thread itself ends with the last
    /// [`IngestHandle`].
    pub shutdown: CancellationToken,
}

/// Starts the sequencer over a state that [`crate::recovery::recover`] brought up to date.
pub fn start(
    store: Store,
    admission: Admission,
    recovered: Recovered,
    statuses: FeedStatuses,
    live: Box<dyn Projection>,
    config: SequencerConfig,
) -> io::Result<(IngestHandle, JoinHandle<()>)> {
    let (ingest, service) = prepare(store, admission, recovered, statuses, live, config);
    let thread = thread::Builder::new().name("sequencer".into()).spawn(move || service.run())?;
    Ok((ingest, thread))
}

/// As [`start`], without its thread: nothing in the queue is served before the caller runs the
/// service.
pub(crate) fn prepare(
    store: Store,
    admission: Admission,
    recovered: Recovered,
    statuses: FeedStatuses,
    live: Box<dyn Projection>,
    config: SequencerConfig,
) -> (IngestHandle, Service) {
    let (ingest, requests) = IngestHandle::open();
    let since_checkpoint = recovered.since_checkpoint;
    let buffers = Buffers::default();
    let handles = ingest.downgrade();
    let sequencer = Sequencer {
        store,
        admission,
        statuses,
        live,
        config,
        handles,
        buffers,
        new_sources: Vec::new(),
        noted: HashMap::default(),
        doubted: HashMap::default(),
        since_checkpoint,
        checkpoint_interval: HashMap::default(),
    };
    let shared: Shared = Arc::new(Mutex::new(Some(Box::new(sequencer))));
    let service = Service { shared: shared.clone(), queue: Queue { requests, held: None } };
    (ingest.with_write_here(Arc::new(move |batch| write_here(&shared, batch))), service)
}

/// Empty while somebody works with it, and for good after a panic or once the thread has ended.
type Shared = Arc<Mutex<Option<Box<Sequencer>>>>;

/// What waits in the queue.
struct Queue {
    requests: mpsc::Receiver<Request>,
    /// Taken out of them, but its turn is after the group's.
    held: Option<Request>,
}

/// Serves the queue until the last [`IngestHandle`] is dropped.
pub(crate) struct Service {
    shared: Shared,
    queue: Queue,
}

impl Service {
    /// The sequencer's thread.
    fn run(mut self) {
        while let Some(first) =
            self.queue.held.take().or_else(|| self.queue.requests.blocking_recv())
        {
            if !self.serve(first) {
                return;
            }
        }
        self.end();
    }

    /// The same as a task, for tests that have all parts of the hub on one thread.
    #[cfg(test)]
    pub(crate) async fn run_in_task(mut self) {
        loop {
            let first = match self.queue.held.take() {
                Some(held) => Some(held),
                None => self.queue.requests.recv().await,
            };
            let Some(first) = first else { break };
            if !self.serve(first) {
                return;
            }
        }
        self.end();
    }

    /// False after a panic elsewhere, which left a state that nobody knows: all handles close.
    fn serve(&mut self, first: Request) -> bool {
        let mut place = self.shared.lock();
        let Some(mut sequencer) = place.take() else { return false };
        // `None`: the hub shuts down while the log can't be written. What was taken is dropped
        // unanswered and nothing of it was kept, its sources still have it.
        let _dropped = sequencer.serve(first, &mut self.queue);
        *place = Some(sequencer);
        true
    }

    fn end(self) {
        let Some(mut sequencer) = self.shared.lock().take() else { return };
        // No last checkpoints: a restart begins at the older of two on purpose, so one taken now
        // would only shorten what it can replay to resuming clients.
        if let Err(error) = sequencer.store.tidy() {
            let kept = "the write-ahead log stays beside the store until the next start";
            tracing::warn!(%error, "{kept}");
        }
    }
}

/// See [`IngestHandle::try_write`].
fn write_here(shared: &Shared, batch: Batch) -> Result<Result<Ack, IngestError>, Batch> {
    if begins_epochs(&batch) {
        return Err(batch);
    }
    let Some(mut place) = shared.try_lock() else { return Err(batch) };
    let Some(mut sequencer) = place.take() else { return Err(batch) };
    let (done, mut answer) = oneshot::channel();
    let mut group = sequencer.group();
    let _dropped = sequencer.take(batch, done, &mut group).and_then(|()| sequencer.commit(group));
    *place = Some(sequencer);
    Ok(answer.try_recv().unwrap_or(Err(IngestError::Closed)))
}

impl Drop for Service {
    /// Closes the log where nobody serves the queue any more, though handles may be left.
    fn drop(&mut self) {
        drop(self.shared.lock().take());
    }
}

struct Sequencer {
    store: Store,
    admission: Admission,
    statuses: FeedStatuses,
    live: Box<dyn Projection>,
    config: SequencerConfig,
    handles: WeakIngestHandle,
    buffers: Buffers,
    /// Sources of topics that the log does not have yet.
    new_sources: Vec<TopicSource>,
    /// Of each topic, the source that was noted last.
    noted: HashMap<Arc<str>, (FeedId, Arc<str>)>,
    /// Sources that brought a line of an unknown market, and what was known then of books and
    /// sources, see [`Sequencer::in_doubt`].
    doubted: HashMap<(FeedId, Arc<str>), (u64, u64)>,
    since_checkpoint: HashMap<MarketId, u64>,
    /// Events between the last checkpoint of a market and its next one.
    checkpoint_interval: HashMap<MarketId, u64>,
}

impl Sequencer {
    fn serve(&mut self, first: Request, queue: &mut Queue) -> Option<()> {
        match first {
            Request::Deliver { batch, done } if begins_epochs(&batch) => {
                self.begin_epochs(batch, done)
            }
            first => self.gather(first, queue).and_then(|group| self.commit(group)),
        }
    }

    fn commit(&mut self, group: Group) -> Option<()> {
        if group.deliveries.is_empty() && group.events.is_empty() {
            return Some(());
        }
        let now = now();
        let Group {
            mut deliveries,
            mut events,
            mut effects,
            progress,
            sources,
            watched,
            mut outcomes,
            ..
        } = group;
        let conflicts = Conflicts {
            events: &events,
            effects: &effects,
            sources: &sources,
            deliveries: &deliveries,
            statuses: self.statuses.clone(),
        };
        let mut appended = if events.is_empty() && progress.is_empty() {
            Appended::default()
        } else {
            // Not asked by anyone else meanwhile.
            let admission = std::mem::take(&mut self.admission);
            let written = self.persist(|store| {
                let instead = |place, stored: &dyn Fn() -> Option<Stored>| {
                    conflicts.instead(place, &admission, stored)
                };
                store.append_or(&events, &progress, now, instead)
            });
            self.admission = admission;
            written?
        };
        let gaps: Vec<_> = appended
            .replaced
            .iter()
            .filter_map(|place| Some((*place, Arc::new(conflicts.gap(*place)?))))
            .collect();
        let mut gaps_ahead = gaps.iter().peekable();
        let mut sources = sources.into_iter().peekable();
        let mut applied = std::mem::take(&mut self.buffers.applied);
        let mut due = BTreeSet::new();
        let mut watched = watched.into_iter().peekable();
        let written = appended.sequences.into_iter().zip(effects.drain(..)).enumerate();
        for (place, (sequence, (index, time, effect))) in written {
            let watched = watched.next_if(|(own, _)| *own == place).map(|(_, own)| own);
            let source = sources.next_if(|(own, _)| *own == place).map(|(_, own)| own);
            let gap = gaps_ahead.next_if(|(own, _)| *own == place).map(|(_, gap)| gap.clone());
            let (index, time, effect) = match (gap, index, source.as_ref()) {
                (Some(gap), Some(index), Some(source)) => {
                    let id = events[place].id.clone().unwrap_or_default();
                    deliveries[index].ack.refuse(source.clone(), Refusal::IdTaken(id));
                    (None, None, Effect::Gap(gap))
                }
                _ => (index, time, effect),
            };
            let mut unasked = Ack::default();
            let ack = match index {
                Some(index) => &mut deliveries[index].ack,
                None => &mut unasked,
            };
            let Some(sequence) = sequence else {
                match (source, &events[place].id) {
                    (Some(source), Some(id)) if self.is_taken(&events[place]) => {
                        self.miss_trade(&effect, &events[place]);
                        ack.refuse(source, Refusal::IdTaken(id.clone()));
                    }
                    _ => ack.known += 1,
                }
                outcomes.extend(watched.map(|own| (own, Ack::of_known())));
                continue;
            };
            ack.accepted += 1;
            ack.logged_only += usize::from(effect == Effect::None);
            ack.last_sequence = Some(sequence);
            let order = match &effect {
                Effect::Order { update, .. } => Some(update),
                _ => None,
            };
            if let Some(order) = order {
                ack.order = Some(order.clone());
            }
            outcomes.extend(watched.map(|own| (own, Ack::of_accepted(sequence, order))));
            if let Some(market) = effect.book() {
                let since = self.since_checkpoint.entry(market.clone()).or_default();
                *since += 1;
                let interval = self.checkpoint_interval.get(market).copied();
                if *since >= interval.unwrap_or(self.config.checkpoint_events) {
                    due.insert(market.clone());
                }
            }
            self.take_trade(&effect, &events[place]);
            let candles = appended.candles.remove(&sequence).unwrap_or_default();
            applied.push(Applied { sequence, time, effect, candles });
        }
        if !gaps.is_empty() {
            self.settle_gaps(&gaps, &applied);
        }
        let mut applied = self.live.apply(applied);
        applied.clear();
        events.clear();
        self.buffers = Buffers { events, effects, applied };
        for (watched, ack) in outcomes {
            self.config.waiters.answer(watched, &ack);
        }
        for Delivery { feed, done, ack } in deliveries {
            if let Some(feed) = feed {
                self.statuses.count(feed, ack.counts(), now);
            }
            // A feed that is gone reads its progress from the log when it is back.
            drop(done.send(Ok(ack)));
        }
        for market in due {
            self.checkpoint(&market);
        }
        self.save_sources();
        Some(())
    }

    /// One that fails is taken at the next turn: until then a restart only replays more.
    fn checkpoint(&mut self, market: &MarketId) {
        self.since_checkpoint.insert(market.clone(), 0);
        let Some((sequence, state)) = self.live.checkpoint(market) else { return };
        let (topic, state) = checkpoint(&self.admission, market, state);
        let by_size = state.len() as u64 / CHECKPOINT_BYTES_PER_EVENT;
        let interval = by_size.max(self.config.checkpoint_events);
        self.checkpoint_interval.insert(market.clone(), interval);
        if let Err(error) = self.store.save_checkpoint(&topic, sequence, &state) {
            tracing::warn!(%error, %market, "checkpoint not saved");
        }
        self.live.keep(&self.admission, market);
    }
}

#[cfg(test)]
pub(crate) mod tests;
