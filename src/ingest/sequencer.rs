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

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::feed_status::{Cause, FeedId, FeedStatuses};
use super::handle::{
    Ack, Answer, Batch, Incoming, IngestError, IngestHandle, Lease, Request, WeakIngestHandle,
    body, json, now,
};
use super::projection::Projection;
use super::rollback;
use super::waiters::{Waiters, Watched};
use crate::live::checkpoint::checkpoint;
use crate::market::admission::{Admission, Admitted};
use crate::market::definition::MarketId;
use crate::market::effect::{Applied, Effect};
use crate::market::event::{self, Body, Event, OrderEvent, PlacedOrder};
use crate::market::orders::Order;
use crate::market::ownership::Ownership;
use crate::market::refusal::Refusal;
use crate::market::time::Micros;
use crate::recovery::Recovered;
use crate::store::{
    Appended, NewEvent, NewTrade, OrderRecord, Progress, RollbackTransaction, Store, StoreError,
};

/// Most events of one commit, unless a single batch has more: some 5 ms of work, which is how
/// long a mutation may wait for a file that is being read in.
pub const GROUP_EVENTS: usize = 2_048;
/// Events of a book between two checkpoints. A restart replays one to two such stretches of each
/// book, some 5 ms each.
pub const CHECKPOINT_EVENTS: u64 = 2_000;
/// A large checkpoint is followed by at least one event for each so many of its bytes, so that
/// checkpoints cost an event no more than encoding so many bytes. All events wait while one is
/// made.
const CHECKPOINT_BYTES_PER_EVENT: u64 = 256;
/// How often a wait for the log looks whether the hub shuts down.
const LOOK: Duration = Duration::from_millis(20);

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
        since_checkpoint,
        checkpoint_interval: HashMap::default(),
    };
    let shared: Shared = Arc::new(Mutex::new(Some(Box::new(sequencer))));
    let own = shared.clone();
    let queue = Queue { requests, held: None };
    let thread = thread::Builder::new().name("sequencer".into()).spawn(move || run(&own, queue))?;
    Ok((ingest.with_write_here(Arc::new(move |batch| write_here(&shared, batch))), thread))
}

/// Empty while somebody works with it, and for good after a panic or once the thread has ended.
type Shared = Arc<Mutex<Option<Box<Sequencer>>>>;

/// What waits in the queue.
struct Queue {
    requests: mpsc::Receiver<Request>,
    /// Taken out of them, but its turn is after the group's.
    held: Option<Request>,
}

/// The sequencer's thread.
fn run(shared: &Shared, mut queue: Queue) {
    while let Some(first) = queue.held.take().or_else(|| queue.requests.blocking_recv()) {
        let mut place = shared.lock();
        // Empty: a panic elsewhere left a state that nobody knows. All handles close.
        let Some(mut sequencer) = place.take() else { return };
        // `None`: the hub shuts down while the log can't be written. What was taken is dropped
        // unanswered and nothing of it was kept, its sources still have it.
        let _dropped = sequencer.serve(first, &mut queue);
        *place = Some(sequencer);
    }
    let Some(mut sequencer) = shared.lock().take() else { return };
    // No last checkpoints: a restart begins at the older of two on purpose, so one taken now
    // would only shorten what it can replay to resuming clients.
    if let Err(error) = sequencer.store.tidy() {
        tracing::warn!(%error, "the write-ahead log stays beside the store until the next start");
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

struct Sequencer {
    store: Store,
    admission: Admission,
    statuses: FeedStatuses,
    live: Box<dyn Projection>,
    config: SequencerConfig,
    handles: WeakIngestHandle,
    buffers: Buffers,
    since_checkpoint: HashMap<MarketId, u64>,
    /// Events between the last checkpoint of a market and its next one.
    checkpoint_interval: HashMap<MarketId, u64>,
}

/// A delivery that is part of the group.
struct Delivery {
    feed: Option<FeedId>,
    done: Answer<Ack>,
    ack: Ack,
}

/// What the last group left, empty. Its memory is used again: allocated for each group it would be
/// given back to the system in between, and every page of it cleared once more.
#[derive(Default)]
struct Buffers {
    events: Vec<NewEvent>,
    effects: Vec<(usize, Option<Micros>, Effect)>,
    applied: Vec<Applied>,
}

/// What one commit writes.
#[derive(Default)]
struct Group {
    deliveries: Vec<Delivery>,
    events: Vec<NewEvent>,
    /// Of each event: which delivery brought it, its time and what it does.
    effects: Vec<(usize, Option<Micros>, Effect)>,
    progress: Vec<Progress>,
    /// Those of the events that somebody waits for, by their places, which rise.
    watched: Vec<(usize, Watched)>,
    /// What became of them, and of those that do not get so far.
    outcomes: Vec<(Watched, Ack)>,
    /// Ids of the events in this group, see [`Sequencer::is_known`].
    ids: HashSet<Box<str>>,
    /// Orders that were placed in this group: the log does not know them yet.
    placed: HashSet<Box<str>>,
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

    /// An empty one.
    fn group(&mut self) -> Group {
        let Buffers { events, effects, .. } = &mut self.buffers;
        let (events, effects) = (std::mem::take(events), std::mem::take(effects));
        Group { events, effects, ..Group::default() }
    }

    /// Takes what waits, up to [`GROUP_EVENTS`] and to what begins new epochs: that wants all
    /// before it in the log.
    fn gather(&mut self, first: Request, queue: &mut Queue) -> Option<Group> {
        let mut group = self.group();
        let mut lines = 0;
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                // The client already received that the hub is too late: nothing of it is written.
                Request::Deliver { batch, done } if batch.feed.is_none() && done.is_closed() => {
                    drop((batch, done));
                }
                Request::Deliver { batch, done } if begins_epochs(&batch) => {
                    queue.held = Some(Request::Deliver { batch, done });
                    break;
                }
                Request::Deliver { batch, done } => {
                    lines += batch.lines.len();
                    self.take(batch, done, &mut group)?;
                }
                // A feed that is gone doesn't miss the answer.
                Request::Files { feed, done } => {
                    drop(done.send(self.store.file_progress(&feed).map_err(IngestError::Store)));
                }
                Request::Claim { feeds, done } => {
                    // There is no other hub at this log.
                    let claimed = |feed: &str| {
                        let position = self.store.feed_position(feed)?;
                        Ok(Lease { ours: true, position })
                    };
                    let all: Result<_, StoreError> =
                        feeds.iter().map(|feed| claimed(feed)).collect();
                    drop(done.send(all.map_err(IngestError::Store)));
                }
            }
            next = if lines < GROUP_EVENTS { queue.requests.try_recv().ok() } else { None };
        }
        Some(group)
    }

    /// Admits a batch into the group. `None`: shut down while the log could not be read.
    fn take(&mut self, batch: Batch, done: Answer<Ack>, group: &mut Group) -> Option<()> {
        let index = group.deliveries.len();
        let foreign = self.config.ownership.clone().filter(|_| !self.statuses.is_kafka(batch.feed));
        let watching = !self.config.waiters.is_empty();
        group.progress.extend(batch.progress);
        // Grown step by step a large group would touch several times its memory, all of it new.
        group.events.reserve(batch.lines.len());
        group.effects.reserve(batch.lines.len());
        group.deliveries.push(Delivery { feed: batch.feed, done, ack: Ack::default() });
        for Incoming { place, line, numbered } in batch.lines {
            let read = line.as_deref().map_err(Refusal::clone).and_then(event::parse);
            let event = match read {
                Ok(event) => event,
                Err(reason) => {
                    group.deliveries[index].ack.refuse(place, reason);
                    continue;
                }
            };
            if let Body::Reverted { .. } | Body::Gap { .. } = event.body {
                debug_assert!(false, "a feed delivers what begins new epochs by itself");
                group.deliveries[index].ack.refuse(place, Refusal::NotAlone);
                continue;
            }
            if let Some(refusal) = foreign.as_ref().and_then(|owner| self.owned(owner, &event)) {
                group.deliveries[index].ack.refuse(place, refusal);
                continue;
            }
            let watched = match &event.id {
                Some(id) if watching => {
                    self.config.waiters.watch(id, line.as_deref().unwrap_or_default())
                }
                _ => None,
            };
            if matches!(event.body, Body::Market(_) | Body::Order(_))
                && let Some(id) = &event.id
                && self.is_known(id, group)?
            {
                group.deliveries[index].ack.known += 1;
                group.outcomes.extend(watched.map(|own| (own, Ack::of_known())));
                continue;
            }
            match self.check_order(&event, group)?.and_then(|()| self.admission.admit(&event)) {
                Ok(Admitted { topic, effect }) => {
                    group.ids.extend(event.id.clone());
                    if let Effect::Order { update, .. } = &effect {
                        group.placed.insert((&*update.order.id).into());
                    }
                    let trade = match &effect {
                        Effect::Trade(trade) => {
                            Some(NewTrade { trade: trade.clone(), time: event.time })
                        }
                        _ => None,
                    };
                    let Event { id, time, height, body: read } = event;
                    // It is made of the line.
                    drop(read);
                    let (order, body) = (record(&effect), line.map(body).unwrap_or_default());
                    let new = NewEvent { topic, id, body, height, order, trade, numbered };
                    group.watched.extend(watched.map(|own| (group.events.len(), own)));
                    group.events.push(new);
                    group.effects.push((index, time, effect));
                }
                Err(reason) => {
                    let refused = || Ack::of_refused(place.clone(), reason.clone());
                    group.outcomes.extend(watched.map(|own| (own, refused())));
                    group.deliveries[index].ack.refuse(place, reason);
                }
            }
        }
        Some(())
    }

    /// Why an event of another log is refused, if Kafka owns what it belongs to.
    fn owned(&self, ownership: &Ownership, event: &Event) -> Option<Refusal> {
        let market_of = |order: &OrderEvent| self.admission.orders().market_of(order).ok();
        Some(ownership.of(event, market_of)?.refusal())
    }

    /// A definition that is sent again must not undo a newer one, and an order's event must not
    /// count twice, so these are looked up before they are admitted. With other events the log's
    /// own check, while writing, is early enough.
    fn is_known(&mut self, id: &str, group: &Group) -> Option<bool> {
        Some(group.ids.contains(id) || self.persist(|store| store.knows(id))?)
    }

    /// Whether an order that is placed is a new one: those that are final are known to the log
    /// alone.
    fn check_order(&mut self, event: &Event, group: &mut Group) -> Option<Result<(), Refusal>> {
        let Body::Order(order) = &event.body else { return Some(Ok(())) };
        let OrderEvent::Placed(PlacedOrder { order: id, .. }) = &**order else {
            return Some(Ok(()));
        };
        if group.placed.contains(id) || self.persist(|store| store.knows_order(id))? {
            return Some(Err(Refusal::DoubledOrder(id.clone())));
        }
        Some(Ok(()))
    }

    /// Takes what begins new epochs: one transaction by itself.
    fn begin_epochs(&mut self, batch: Batch, done: Answer<Ack>) -> Option<()> {
        let Batch { feed, lines, progress } = batch;
        let mut ack = Ack::default();
        for Incoming { place, line, numbered } in lines {
            let read = line.as_deref().map_err(Refusal::clone).and_then(event::parse);
            let admitted = read.and_then(|event| Ok((self.admission.admit(&event)?.topic, event)));
            let (topic, event) = match admitted {
                Ok(admitted) => admitted,
                Err(reason) => {
                    ack.refuse(place, reason);
                    continue;
                }
            };
            let Event { id, body: what, .. } = event;
            let (height, source) = match what {
                Body::Reverted { height } => (Some(height), None),
                Body::Gap { source } => (None, Some(source)),
                // Not what [`begins_epochs`] found.
                _ => continue,
            };
            // Of no height itself: it stays whatever is undone later.
            let body = line.map(body).unwrap_or_default();
            let new = NewEvent { topic, id, body, numbered, ..NewEvent::default() };
            let now = now();
            // Not asked by anyone else meanwhile.
            let admission = std::mem::take(&mut self.admission);
            let aside = self.live.aside();
            let written = self.persist(|store| {
                let work = |log: &RollbackTransaction<'_>| match height {
                    Some(height) => rollback::remove_blocks(log, height, now, &admission, &aside),
                    None => rollback::begin_epochs(log, now, &admission),
                };
                store.roll_back(&new, &progress, now, work)
            });
            self.admission = admission;
            match written? {
                None => ack.known += 1,
                Some((sequence, left)) => {
                    left.settle(&mut self.admission);
                    let rolled_back = Arc::new(left.rollback);
                    self.live.roll_back(&rolled_back);
                    for touched in &rolled_back.markets {
                        self.live.keep(&self.admission, &touched.market);
                    }
                    let (undone, fallen) = (rolled_back.undone, left.fallen);
                    match source {
                        Some(source) => tracing::warn!(
                            source,
                            sequence,
                            "events of a source are lost: every topic begins a new epoch"
                        ),
                        None => {
                            tracing::info!(height, sequence, undone, fallen, "blocks were undone");
                        }
                    }
                    ack.accepted += 1;
                    ack.last_sequence = Some(sequence);
                }
            }
        }
        if let Some(feed) = feed {
            self.statuses.count(feed, ack.counts(), now());
        }
        drop(done.send(Ok(ack)));
        Some(())
    }

    fn commit(&mut self, group: Group) -> Option<()> {
        if group.deliveries.is_empty() {
            return Some(());
        }
        let now = now();
        let Group {
            mut deliveries, mut events, mut effects, progress, watched, mut outcomes, ..
        } = group;
        let mut appended = if events.is_empty() && progress.is_empty() {
            Appended::default()
        } else {
            self.persist(|store| store.append(&events, &progress, now))?
        };
        events.clear();
        let mut applied = std::mem::take(&mut self.buffers.applied);
        let mut due = BTreeSet::new();
        let mut watched = watched.into_iter().peekable();
        let written = appended.sequences.into_iter().zip(effects.drain(..)).enumerate();
        for (place, (sequence, (index, time, effect))) in written {
            let watched = watched.next_if(|(own, _)| *own == place).map(|(_, own)| own);
            let ack = &mut deliveries[index].ack;
            let Some(sequence) = sequence else {
                ack.known += 1;
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
            let candles = appended.candles.remove(&sequence).unwrap_or_default();
            applied.push(Applied { sequence, time, effect, candles });
        }
        let mut applied = self.live.apply(applied);
        applied.clear();
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

    /// Does it until it works. `None`: the hub shuts down before that.
    fn persist<T>(
        &mut self,
        mut work: impl FnMut(&mut Store) -> Result<T, StoreError>,
    ) -> Option<T> {
        let mut result = work(&mut self.store);
        let mut backoff = super::backoff();
        let mut halted = false;
        loop {
            let error = match result {
                Ok(value) => {
                    if halted {
                        self.statuses.clear_all(Cause::Store);
                        tracing::warn!("the store takes events again");
                    }
                    return Some(value);
                }
                Err(error) => error,
            };
            self.statuses.halt_all(Cause::Store, &error.to_string());
            if !halted && error.is_retryable() {
                tracing::warn!(%error, "feeds are halted until the store takes events again");
            } else if !halted {
                tracing::error!(%error, "feeds are halted: the store needs an operator");
            }
            halted = true;
            if !self.pause(backoff.wait()) {
                return None;
            }
            result = self.store.reopen().and_then(|()| work(&mut self.store));
        }
    }

    /// Whether the hub still runs after it.
    fn pause(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        while !self.config.shutdown.is_cancelled() && !self.handles.is_closed() {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return true;
            }
            thread::sleep(rest.min(LOOK));
        }
        false
    }
}

/// Whether a batch is an event that begins new epochs.
fn begins_epochs(batch: &Batch) -> bool {
    matches!(&batch.lines[..], [Incoming { line: Ok(line), .. }] if event::begins_epochs(line))
}

/// What queries read of the order that an event changed.
fn record(effect: &Effect) -> Option<OrderRecord> {
    let Effect::Order { update, .. } = effect else { return None };
    let Order { id, market, account, side, status, .. } = &update.order;
    Some(OrderRecord {
        id: id.clone(),
        market: market.clone(),
        account: account.clone(),
        side: side.name(),
        status: status.name(),
        open: !status.is_final(),
        state: json(&update.order),
        update: json(&**update),
        topics: update.order.account_topics(),
    })
}

#[cfg(test)]
pub(crate) mod tests;
