//! The simulated market's task: writes its lines through the same door as every feed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::now;
use crate::feeds::door::{Batch, Door, Incoming};
use crate::feeds::simulator::{Simulator, SimulatorConfig};
use crate::feeds::status::{At, FeedId, Place};

/// Events that leave together; below this rate each leaves alone.
const TURN: Duration = Duration::from_millis(10);

pub async fn run(config: SimulatorConfig, door: Door, feed: FeedId, stop: CancellationToken) {
    let mut simulator = Simulator::new(config.seed, config.markets);
    let place = Place { source: Arc::from("simulator"), at: At::Nowhere };
    let batch = |lines: Vec<String>| Batch {
        feed: Some(feed),
        lines: lines
            .into_iter()
            .map(|line| Incoming { place: place.clone(), line: Ok(line.into_bytes()) })
            .collect(),
        progress: Vec::new(),
    };
    let first = batch(simulator.initial_lines(now()));
    if door.deliver(first).await.is_err() {
        return;
    }
    let period = Duration::from_secs(1) / config.events_per_second.max(1);
    let turns = TURN.as_nanos().div_ceil(period.as_nanos().max(1)).max(1) as u32;
    let mut interval = tokio::time::interval(period * turns);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        let lines = (0..turns).flat_map(|_| simulator.next_lines(now())).collect();
        if door.deliver(batch(lines)).await.is_err() {
            return;
        }
    }
}
