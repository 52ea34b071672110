//! The simulated market's task: submits its lines as every feed does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::run::now;
use crate::feeds::simulator::{ACCOUNT, MOST_RESTING, Simulator, SimulatorConfig};
use crate::ingest::feed_status::FeedId;
use crate::ingest::handle::{Batch, Incoming, IngestHandle};
use crate::ingest::place::{At, Place};
use crate::market::orders::Order;
use crate::store::{LogReaders, OrderQuery};

/// Events that leave together; below this rate each leaves alone.
const TURN: Duration = Duration::from_millis(10);

/// How long it waits for its turn at the log, at the start.
const PATIENCE: Duration = Duration::from_secs(10);

pub async fn run(
    config: SimulatorConfig,
    log: Arc<LogReaders>,
    ingest: IngestHandle,
    feed: FeedId,
    begun: oneshot::Sender<()>,
    stop: CancellationToken,
) {
    let mut simulator = Simulator::new(config.seed, config.markets);
    let place = Place { source: Arc::from("simulator"), at: At::Nowhere };
    let batch = |lines: Vec<String>| Batch {
        feed: Some(feed),
        lines: lines
            .into_iter()
            .map(|line| Incoming {
                place: place.clone(),
                line: Ok(line.into_bytes()),
                numbered: None,
            })
            .collect(),
        progress: Vec::new(),
    };
    let first = batch(simulator.initial_lines(now(), &standing(log).await));
    if ingest.deliver(first).await.is_err() {
        return;
    }
    // Nobody waits any more where the log took long.
    let _ = begun.send(());
    let period = Duration::from_secs(1) / config.events_per_second.max(1);
    let turns = TURN.as_nanos().div_ceil(period.as_nanos().max(1)).max(1) as u32;
    let mut interval = tokio::time::interval(period * turns);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        let lines = (0..turns).flat_map(|_| simulator.next_lines(now())).collect();
        if ingest.deliver(batch(lines)).await.is_err() {
            return;
        }
    }
}

/// Ids of the orders that an earlier run left. Where they can't be read they stay in the book.
async fn standing(log: Arc<LogReaders>) -> Vec<String> {
    let query = OrderQuery {
        account: Some(ACCOUNT.into()),
        open: Some(true),
        most: MOST_RESTING,
        ..OrderQuery::default()
    };
    let orders = match log.soon(PATIENCE, move |log| log.orders(&query)).await {
        Ok(orders) => orders,
        Err(error) => {
            tracing::warn!(%error, "the simulator's earlier orders stay");
            return Vec::new();
        }
    };
    let id = |state: &str| Some(serde_json::from_str::<Order>(state).ok()?.id.to_string());
    orders.iter().filter_map(|order| id(&order.state)).collect()
}
