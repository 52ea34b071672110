//! From which cached states a start may go on: only from those that the log confirms. The market
//! of any other state is read from the log.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use thiserror::Error;

use crate::cache::{CacheMeters, CachedState, Found, SnapshotLookup};
use crate::live::Live;
use crate::live::checkpoint::book_market;
use crate::market::definition::MarketId;
use crate::market::topic::Topic;
use crate::store::{Checkpoint, Store, StoreError};

/// Where a start may get states from, beside the log.
pub struct WarmStart {
    pub lookup: SnapshotLookup,
    pub meters: Arc<CacheMeters>,
}

/// Why a state is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
enum RejectReason {
    #[error("it is not what a hub wrote")]
    Unreadable,
    #[error("it is of another epoch: from before blocks were undone, or of another log")]
    OtherEpoch,
    #[error("it is ahead of the log, which may have lost its end")]
    Ahead,
    #[error("the log does not have its last event")]
    Unknown,
}

/// By the topic of the events that follow each.
pub type CachedStates = HashMap<Box<str>, Checkpoint>;

impl WarmStart {
    /// Asks the cache for all books of the log.
    pub(super) fn states(&self, store: &Store, live: &Live) -> Result<CachedStates, StoreError> {
        let topics: HashMap<Box<str>, u64> =
            store.topics()?.into_iter().map(|topic| (topic.name, topic.last)).collect();
        let markets = topics.keys().filter_map(|topic| book_market(topic)).map(MarketId::from);
        let mut states = CachedStates::new();
        let mut rejected: BTreeMap<RejectReason, (u64, String)> = BTreeMap::new();
        for (market, found) in self.lookup.states(markets.collect()) {
            let checked = match found {
                Found::Nothing => continue,
                Found::Unreadable => Err(RejectReason::Unreadable),
                Found::State(kept) => check(kept, &market, &topics, store, live)?,
            };
            match checked {
                Ok(state) => drop(states.insert(state.topic.clone(), state)),
                Err(reason) => rejected.entry(reason).or_insert((0, market)).0 += 1,
            }
        }
        for (reason, (count, market)) in rejected {
            tracing::warn!(count, market, "states in the cache are not used: {reason}");
            self.meters.refused.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(states)
    }
}

fn check(
    kept: CachedState,
    market: &str,
    topics: &HashMap<Box<str>, u64>,
    store: &Store,
    live: &Live,
) -> Result<Result<Checkpoint, RejectReason>, StoreError> {
    let CachedState { epoch, sequence, topic, state, .. } = kept;
    let epochs = live.epochs(&Topic::Market(market).to_string());
    // Made of the log's own epoch, so it distinguishes logs as well.
    if epoch != epochs.epoch() {
        return Ok(Err(RejectReason::OtherEpoch));
    }
    let Some(last) = topics.get(&*topic).filter(|_| book_market(&topic) == Some(market)) else {
        return Ok(Err(RejectReason::Unknown));
    };
    let checkpoint = Checkpoint { topic: topic.as_str().into(), sequence, state: state.to_vec() };
    // A market without an event since its epoch began has that sequence.
    if sequence == epochs.since() {
        return Ok(Ok(checkpoint));
    }
    if sequence > *last {
        return Ok(Err(RejectReason::Ahead));
    }
    // A power cut may have taken its event, and others followed it under later numbers.
    let event = store.read_topic(&topic, sequence.saturating_sub(1), 1)?;
    let there = event.first().is_some_and(|event| event.sequence == sequence);
    Ok(if there { Ok(checkpoint) } else { Err(RejectReason::Unknown) })
}
