//! A group: what one commit writes, and how batches are admitted into it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::epochs::begins_epochs;
use super::{Queue, Sequencer};
use crate::ingest::feed_status::FeedId;
use crate::ingest::handle::{
    Ack, Answer, Batch, Incoming, IngestError, Lease, Request, body, json, now,
};
use crate::ingest::losses::{Lost, Refused};
use crate::ingest::place::Place;
use crate::ingest::waiters::Watched;
use crate::market::admission::Admitted;
use crate::market::definition::MarketId;
use crate::market::effect::{Applied, Effect};
use crate::market::event::{Body, Event, OrderEvent, PlacedOrder, parse};
use crate::market::orders::Order;
use crate::market::ownership::Ownership;
use crate::market::refusal::Refusal;
use crate::market::time::Micros;
use crate::market::topic::Topic;
use crate::market::trade::MOST_AHEAD;
use crate::store::{EventId, NewEvent, NewTrade, Numbered, OrderRecord, Progress, StoreError};

/// Most events of one commit, unless a single batch has more: some 5 ms of work, which is how
/// long a mutation may wait for a file that is being read in.
pub const GROUP_EVENTS: usize = 2_048;

/// A delivery that is part of the group.
pub(super) struct Delivery {
    pub(super) feed: Option<FeedId>,
    pub(super) done: Answer<Ack>,
    pub(super) ack: Ack,
}

/// What the last group left, empty. Its memory is used again: allocated for each group it would be
/// given back to the system in between, and every page of it cleared once more.
#[derive(Default)]
pub(super) struct Buffers {
    pub(super) events: Vec<NewEvent>,
    pub(super) effects: Vec<(Option<usize>, Option<Micros>, Effect)>,
    pub(super) applied: Vec<Applied>,
}

/// What one commit writes.
#[derive(Default)]
pub(super) struct Group {
    pub(super) deliveries: Vec<Delivery>,
    pub(super) events: Vec<NewEvent>,
    /// Of each event: which delivery brought it, if one did, its time and what it does.
    pub(super) effects: Vec<(Option<usize>, Option<Micros>, Effect)>,
    pub(super) progress: Vec<Progress>,
    /// Where feeds brought those of the events from that have an id, by their places, which rise.
    pub(super) sources: Vec<(usize, Place)>,
    /// Those of the events that somebody waits for, by their places, which rise.
    pub(super) watched: Vec<(usize, Watched)>,
    /// What became of them, and of those that do not get so far.
    pub(super) outcomes: Vec<(Watched, Ack)>,
    /// Definitions and events of orders in this group that have an id: the place of each, see
    /// [`Sequencer::line_of_id`].
    ids: HashMap<IdKey, usize>,
    /// Orders that were placed in this group: the log does not know them yet.
    pub(super) placed: HashSet<Box<str>>,
}

/// An [`EventId`] of its own.
#[derive(PartialEq, Eq, Hash)]
struct IdKey {
    topic: Arc<str>,
    kind: &'static str,
    id: Box<str>,
}

impl Sequencer {
    /// An empty one.
    pub(super) fn group(&mut self) -> Group {
        let Buffers { events, effects, .. } = &mut self.buffers;
        let (events, effects) = (std::mem::take(events), std::mem::take(effects));
        Group { events, effects, ..Group::default() }
    }

    /// Takes what waits, up to [`GROUP_EVENTS`] and to what begins new epochs: that wants all
    /// before it in the log.
    pub(super) fn gather(&mut self, first: Request, queue: &mut Queue) -> Option<Group> {
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
    pub(super) fn take(
        &mut self,
        batch: Batch,
        done: Answer<Ack>,
        group: &mut Group,
    ) -> Option<()> {
        let index = group.deliveries.len();
        let foreign = self.foreign(batch.feed);
        let watching = !self.config.waiters.is_empty();
        group.progress.extend(batch.progress);
        // Grown step by step a large group would touch several times its memory, all of it new.
        group.events.reserve(batch.lines.len());
        group.effects.reserve(batch.lines.len());
        group.deliveries.push(Delivery { feed: batch.feed, done, ack: Ack::default() });
        for Incoming { place, line, numbered } in batch.lines {
            let read = line.as_deref().map_err(Refusal::clone).and_then(parse);
            let event = match read {
                Ok(event) => event,
                Err(reason) => {
                    let is_defined = |market: &str| self.admission.definition(market).is_some();
                    let line = line.as_deref().unwrap_or_default();
                    let lost = Lost::of_line(line, is_defined);
                    let refused = Refused { place, reason, height: None, numbered };
                    self.refuse(index, lost, refused, group)?;
                    continue;
                }
            };
            let height = event.height;
            if let Body::Reverted { .. } | Body::Gap { .. } = event.body {
                debug_assert!(false, "a feed delivers what begins new epochs by itself");
                group.deliveries[index].ack.refuse(place, Refusal::NotAlone);
                continue;
            }
            let owned = foreign.as_ref().and_then(|owner| self.owned(owner, &event));
            if let Some(refusal) = owned {
                group.deliveries[index].ack.refuse(place, refusal);
                continue;
            }
            if let Some(reason) = too_far_ahead(&event, numbered) {
                let lost = Lost::of_event(&event, &reason);
                self.refuse(index, lost, Refused { place, reason, height, numbered }, group)?;
                continue;
            }
            let watched = match watching {
                true => self.config.waiters.watch(&event, line.as_deref().unwrap_or_default()),
                false => None,
            };
            let key = self.id_key(&event)?;
            if let Some(key) = &key
                && let Some(known) = self.line_of_id(key, group)?
            {
                let is_taken = !is_same(known.as_bytes(), line.as_deref().unwrap_or_default());
                if is_taken && batch.feed.is_some() {
                    let reason = Refusal::IdTaken(key.id.clone());
                    let lost = Lost::of_event(&event, &reason);
                    self.refuse(index, lost, Refused { place, reason, height, numbered }, group)?;
                } else {
                    group.deliveries[index].ack.known += 1;
                }
                group.outcomes.extend(watched.map(|own| (own, Ack::of_known())));
                continue;
            }
            let begins = match &event.body {
                Body::Order(order) => order
                    .market()
                    .filter(|market| numbered.is_none() && self.admission.mode(market).is_none()),
                _ => None,
            };
            let begins = begins.map(|market| (market.clone(), place.clone()));
            match self.check_order(&event, group)?.and_then(|()| self.admission.admit(&event)) {
                Ok(Admitted { topic, effect }) => {
                    let at = group.events.len();
                    group.ids.extend(key.map(|key| (key, at)));
                    if let Effect::Order { update, .. } = &effect {
                        group.placed.insert((&*update.order.id).into());
                    }
                    let trade = match &effect {
                        Effect::Trade(trade) => {
                            Some(NewTrade { trade: trade.clone(), time: event.time })
                        }
                        _ => None,
                    };
                    let kind = event.kind();
                    let Event { id, time, height, body: read } = event;
                    // It is made of the line.
                    drop(read);
                    let (order, body) = (record(&effect), line.map(body).unwrap_or_default());
                    let new = NewEvent { topic, id, kind, body, height, order, trade, numbered };
                    group.watched.extend(watched.map(|own| (at, own)));
                    if let Some(feed) = batch.feed {
                        // A row of a shared log does not say which source it came from.
                        if numbered.is_none() {
                            self.note_source(&new.topic, feed, &place);
                        }
                        group.sources.extend(new.id.is_some().then_some((at, place)));
                    }
                    group.events.push(new);
                    group.effects.push((Some(index), time, effect));
                    if let Some((market, place)) = begins {
                        self.lose_earlier(batch.feed, market, &place, group);
                    }
                }
                Err(reason) => {
                    let lost = self.lost_by(batch.feed, &event, &reason, numbered, group)?;
                    let refused = || Ack::of_refused(place.clone(), reason.clone());
                    group.outcomes.extend(watched.map(|own| (own, refused())));
                    self.refuse(index, lost, Refused { place, reason, height, numbered }, group)?;
                }
            }
        }
        Some(())
    }

    /// What Kafka owns, for events of other feeds.
    pub(super) fn foreign(&self, feed: Option<FeedId>) -> Option<Arc<Ownership>> {
        self.config.ownership.clone().filter(|_| !self.statuses.is_kafka(feed))
    }

    /// Why an event of another log is refused, if Kafka owns what it belongs to.
    fn owned(&self, ownership: &Ownership, event: &Event) -> Option<Refusal> {
        let market_of = |order: &OrderEvent| self.admission.orders().market_of(order).ok();
        Some(ownership.of(event, market_of)?.refusal())
    }

    /// By what an event is looked up before it is admitted: a definition that is sent again must
    /// not undo a newer one, an order's event must not count twice, and a gap must not be another
    /// one or end one again. With other events the log's own check, while writing, is early enough.
    fn id_key(&mut self, event: &Event<'_>) -> Option<Option<IdKey>> {
        let Some(id) = &event.id else { return Some(None) };
        let topic = match &event.body {
            Body::Market(_) | Body::BookGap(_) | Body::OrdersComplete(_) => event.topic(),
            Body::Order(order) => match event.topic() {
                Some(topic) => Some(topic),
                None => {
                    let market = match self.admission.orders().market_of(order) {
                        Ok(market) => Some(market),
                        // One that is final is known to the log alone.
                        Err(_) => self
                            .persist(|store| store.market_of_order(order.order()))?
                            .map(MarketId::from),
                    };
                    market.map(|market| Topic::orders_of(&market).name())
                }
            },
            _ => None,
        };
        Some(topic.map(|topic| IdKey { topic, kind: event.kind(), id: id.clone() }))
    }

    /// The line under an id, of this group or of the log.
    fn line_of_id(&mut self, key: &IdKey, group: &Group) -> Option<Option<Box<str>>> {
        if let Some(own) = group.ids.get(key) {
            return Some(Some(group.events[*own].body.clone()));
        }
        let IdKey { topic, kind, id } = key;
        let stored = self.persist(|store| store.find(EventId { topic, kind, id }))?;
        Some(stored.map(|stored| stored.body))
    }

    /// Whether the log has other content under the id of an event. One that can't be read now says
    /// no.
    pub(super) fn is_taken(&self, event: &NewEvent) -> bool {
        let NewEvent { topic, id, kind, body, .. } = event;
        let Some(id) = id else { return false };
        let stored = self.store.find(EventId { topic, kind, id });
        stored.is_ok_and(|stored| {
            stored.is_some_and(|stored| !is_same(stored.body.as_bytes(), body.as_bytes()))
        })
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
}

/// Whether two lines say the same.
pub(super) fn is_same(one: &[u8], other: &[u8]) -> bool {
    let value = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).ok();
    one == other || value(one) == value(other)
}

/// Why a trade is refused whose time is still to come. On a shared log the clock is the log's, so
/// that all hubs refuse the same trades.
fn too_far_ahead(event: &Event<'_>, numbered: Option<Numbered>) -> Option<Refusal> {
    let (Body::Trade(_), Some(time)) = (&event.body, event.time) else { return None };
    let ahead = time.saturating_sub(numbered.map_or_else(now, |own| own.received));
    let most = Micros::try_from(MOST_AHEAD.as_micros()).unwrap_or(Micros::MAX);
    (ahead > most).then_some(Refusal::TooFarAhead { seconds: ahead / 1_000_000 })
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
