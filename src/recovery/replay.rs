//! From the log back to the state, before the first feed runs: what markets are, their older
//! checkpoints, and the events after each one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{CachedStates, WarmStart};
use crate::live::Live;
use crate::live::checkpoint::{book_market, put_back};
use crate::market::admission::{Admission, BookMode};
use crate::market::definition::{MarketDefinition, MarketId};
use crate::market::effect::Applied;
use crate::market::event::{Body, parse};
use crate::market::orders::MOST_OPEN_ORDERS;
use crate::market::ticker::LastTrade;
use crate::market::time::Micros;
use crate::market::topic::Topic;
use crate::market::trade::Trade;
use crate::store::{Checkpoint, MarketCandles, NewTrade, Store, StoreError, Stored, TopicPosition};

/// Events handed to the state at once.
const BATCH: usize = 256;
/// Rows kept read ahead, shared among the books that are replayed.
const READ_AHEAD: usize = 16_384;

/// What the sequencer goes on from.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Events replayed, definitions included.
    pub replayed: u64,
    /// Each book's events after its newest checkpoint.
    pub since_checkpoint: foldhash::HashMap<MarketId, u64>,
    /// The last events of the topics whose events are published one by one, and their times at
    /// its source, where that was read.
    pub topics: Vec<(TopicPosition, Option<Micros>)>,
    /// Topics of books that went on from the cache's state.
    pub warm: Vec<Box<str>>,
}

/// Brings the live state to the end of the log, candles and all; from where the cache has it, if
/// there is one.
pub fn recover_live(
    store: &mut Store,
    live: &Arc<Live>,
    warm: Option<WarmStart>,
) -> Result<(Admission, Recovered), StoreError> {
    // First, as they say how all that is read is numbered.
    live.restore_epochs(&store.epoch_changes()?);
    let states = warm.as_ref().map(|warm| warm.states(store, live)).transpose()?;
    let mut admission = Admission::default();
    admission.orders_mut().limit(usize::MAX);
    let mut recovered = recover(
        store,
        &mut admission,
        &mut |events| live.apply(events),
        &mut |market, sequence, state| live.restore(market, sequence, state).is_ok(),
        states.unwrap_or_default(),
    )?;
    admission.orders_mut().limit(MOST_OPEN_ORDERS);
    for topic in &recovered.warm {
        // Events before the cache's state were not replayed, but count towards the next checkpoint.
        let Some(market) = book_market(topic) else { continue };
        let newest = store.newest_checkpoint(topic)?.unwrap_or(0);
        let since = live.events_after(market, newest) as u64;
        recovered.since_checkpoint.insert(market.into(), since);
    }
    if let Some(warm) = &warm {
        warm.meters.restored.fetch_add(recovered.warm.len() as u64, Ordering::Relaxed);
    }
    recover_candles(store, &admission, live)?;
    live.restore_topics(std::mem::take(&mut recovered.topics));
    live.raise_to_epochs();
    // The cache is written from here on.
    drop(warm);
    Ok((admission, recovered))
}

/// Brings the state to the end of the log. `restore` gets each market's older checkpoint and says
/// whether it could read it; where not, that book is replayed from its first event. `apply` gets
/// every market's newest definition first (it may be before or after the checkpoints: decimals
/// can't change under a book), then the books' events in the log's order. What is in the log
/// was admitted; an event that this release can't read is an error, never left out in silence.
/// `states` are gone on from where they are newer than those of the store.
pub fn recover(
    store: &Store,
    admission: &mut Admission,
    apply: &mut dyn FnMut(&[Applied]),
    restore: &mut dyn FnMut(&str, u64, &[u8]) -> bool,
    states: CachedStates,
) -> Result<Recovered, StoreError> {
    let mut recovered = Recovered::default();
    let topics = store.topics()?;
    let mut definitions = Vec::new();
    for topic in
        topics.iter().filter(|topic| matches!(Topic::parse(&topic.name), Some(Topic::Market(_))))
    {
        definitions.extend(store.latest(&topic.name)?);
    }
    definitions.sort_by_key(|stored| stored.sequence);
    for batch in definitions.chunks(BATCH) {
        let batch: Vec<_> =
            batch.iter().map(|stored| replayed(admission, stored)).collect::<Result<_, _>>()?;
        recovered.replayed += batch.len() as u64;
        apply(&batch);
    }
    for topic in &topics {
        match Topic::parse(&topic.name) {
            Some(Topic::Book(market)) => admission.settle(market, BookMode::Levels),
            Some(Topic::Orders { market: Some(market), .. }) => {
                admission.settle(market, BookMode::Orders);
                recovered.topics.push((topic.clone(), None));
            }
            Some(Topic::Trades(market)) => {
                admission.settle_trades(market);
                // For the age of the last trade. A generic topic knows that from its next event.
                let latest = store.latest(&topic.name)?;
                let time = latest.and_then(|stored| parse(stored.body.as_bytes()).ok()?.time);
                recovered.topics.push((topic.clone(), time));
            }
            Some(Topic::Message(_)) => recovered.topics.push((topic.clone(), None)),
            _ => {}
        }
    }
    for topic in store.further_topics()? {
        if let Some(Topic::Orders { market: None, account: Some(account) }) =
            Topic::parse(&topic.name)
        {
            admission.settle_account(account);
        }
        recovered.topics.push((topic, None));
    }
    // Of each book from the oldest to the newest; the newest that can be read is gone on from.
    let mut candidates: BTreeMap<Box<str>, Vec<Checkpoint>> = BTreeMap::new();
    for checkpoint in store.older_checkpoints()? {
        candidates.entry(checkpoint.topic.clone()).or_default().push(checkpoint);
    }
    let mut warm = HashMap::new();
    for (topic, state) in states {
        let own = candidates.entry(topic.clone()).or_default();
        if own.last().is_none_or(|local| local.sequence < state.sequence) {
            warm.insert(topic, state.sequence);
            own.push(state);
        }
    }
    let mut restored = HashMap::new();
    for (topic, mut own) in candidates {
        let Some(market) = book_market(&topic) else { continue };
        while let Some(checkpoint) = own.pop() {
            if put_back(admission, restore, market, &checkpoint) {
                restored.insert(topic, checkpoint.sequence);
                break;
            }
            tracing::warn!(market, sequence = checkpoint.sequence, "a state can't be read");
        }
    }
    warm.retain(|topic, sequence| restored.get(topic) == Some(sequence));
    recovered.warm.extend(warm.into_keys());
    let mut books = Vec::new();
    for topic in topics.into_iter().filter(|topic| book_market(&topic.name).is_some()) {
        let after = restored.get(&topic.name).copied().unwrap_or(0);
        if topic.last > after {
            let newest = store.newest_checkpoint(&topic.name)?.unwrap_or(0);
            books.push(Tail { topic: topic.name, after, newest, ahead: VecDeque::new() });
        }
    }
    replay(store, admission, apply, books, &mut recovered)?;
    Ok(recovered)
}

/// Puts back every market's candles, after [`recover`]: what the store keeps of them, its latest
/// trade and the time of its newest. Where the store has none yet, they are made from the log
/// first, which costs every trade in it, once.
fn recover_candles(
    store: &mut Store,
    admission: &Admission,
    live: &Live,
) -> Result<(), StoreError> {
    let topics = store.topics()?;
    let traded = |topic: &TopicPosition| match Topic::parse(&topic.name) {
        Some(Topic::Trades(market)) => Some(MarketId::from(market)),
        _ => None,
    };
    let markets: Vec<MarketId> = topics.iter().filter_map(traded).collect();
    if store.candles_are_missing() {
        for market in &markets {
            let definition = admission.definition(market).cloned();
            let mut standing = |stored: &Stored| standing(stored, definition.as_deref());
            store.rebuild_candles(market, 0, &mut standing)?;
        }
        store.candles_are_whole()?;
    }
    for market in &markets {
        let known = store.market_candles(market, live.now())?;
        let definition = admission.definition(market).cloned();
        let (last, time) = newest_trades(&known, definition.as_deref());
        live.restore_candles(&known, last, time);
    }
    Ok(())
}

/// A market's latest trade by its own time, and the time of the newest one in the log.
pub fn newest_trades(
    known: &MarketCandles,
    definition: Option<&MarketDefinition>,
) -> (Option<LastTrade>, Option<Micros>) {
    let last = known.last.as_ref().and_then(|stored| {
        let NewTrade { trade, time } = standing(stored, definition)?;
        let time = time.unwrap_or(stored.received);
        let Trade { price, size, taker_side, .. } = *trade;
        Some(LastTrade { time, price, size, taker_side })
    });
    let newest = known.newest.as_ref();
    (last, newest.and_then(|stored| parse(stored.body.as_bytes()).ok()?.time))
}

/// A trade of the log as candles count it: earlier releases also let in some that do not fit their
/// market, which no candle can count.
pub fn standing(stored: &Stored, definition: Option<&MarketDefinition>) -> Option<NewTrade> {
    let event = parse(stored.body.as_bytes()).ok()?;
    let Body::Trade(written) = &event.body else { return None };
    let trade = Trade::admit(written, definition?).ok()?;
    Some(NewTrade { trade: Arc::new(trade), time: event.time })
}

/// One book's events that are still to be replayed.
struct Tail {
    topic: Box<str>,
    /// The last one read.
    after: u64,
    /// Its newest checkpoint.
    newest: u64,
    ahead: VecDeque<Stored>,
}

impl Tail {
    fn next(&mut self, store: &Store, page: usize) -> Result<Option<Stored>, StoreError> {
        if self.ahead.is_empty() {
            self.ahead = store.read_topic(&self.topic, self.after, page)?.into();
        }
        let next = self.ahead.pop_front();
        self.after = next.as_ref().map_or(self.after, |stored| stored.sequence);
        Ok(next)
    }
}

/// Merges the books' tails into the log's order. Each is read by its own index, so a quiet market
/// whose tail begins long ago doesn't cost the whole log since.
fn replay(
    store: &Store,
    admission: &mut Admission,
    apply: &mut dyn FnMut(&[Applied]),
    mut books: Vec<Tail>,
    recovered: &mut Recovered,
) -> Result<(), StoreError> {
    let page = (READ_AHEAD / books.len().max(1)).clamp(4, BATCH);
    let mut due = BinaryHeap::new();
    let mut waiting = HashMap::new();
    for (place, book) in books.iter_mut().enumerate() {
        if let Some(stored) = book.next(store, page)? {
            due.push(Reverse(stored.sequence));
            waiting.insert(stored.sequence, (place, stored));
        }
    }
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(Reverse(sequence)) = due.pop() {
        let Some((place, stored)) = waiting.remove(&sequence) else { continue };
        let book = &mut books[place];
        batch.push(replayed(admission, &stored)?);
        if let Some(market) = book_market(&book.topic).filter(|_| sequence > book.newest) {
            *recovered.since_checkpoint.entry(market.into()).or_default() += 1;
        }
        if let Some(stored) = book.next(store, page)? {
            due.push(Reverse(stored.sequence));
            waiting.insert(stored.sequence, (place, stored));
        }
        if batch.len() == BATCH || due.is_empty() {
            recovered.replayed += batch.len() as u64;
            apply(&batch);
            batch.clear();
        }
    }
    Ok(())
}

fn replayed(admission: &mut Admission, stored: &Stored) -> Result<Applied, StoreError> {
    let unreadable =
        |reason: String| StoreError::Unreplayable { sequence: stored.sequence, reason };
    let event = parse(stored.body.as_bytes()).map_err(|refusal| unreadable(refusal.to_string()))?;
    let admitted = admission.admit(&event).map_err(|refusal| unreadable(refusal.to_string()))?;
    Ok(Applied {
        sequence: stored.sequence,
        time: event.time,
        effect: admitted.effect,
        candles: Vec::new(),
    })
}
