//! A storm over the whole hub: random events, faults of the log, rollbacks, restarts, and clients
//! that come, stall, vanish and resume. Each frame that any client gets is checked. A seed repeats
//! its steps; names of epochs and the order of hash maps are not in it.

mod clients;
mod events;

use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use self::clients::Peer;
use super::checker::{Operation, Tally};
use super::model::{Event, Model, What};
use super::one_thread::{Home, Hub};
use super::paused;

const STEPS: usize = 1_600;
const MARKETS: [&str; 2] = ["A-B", "C-D"];
const TOPICS: [&str; 2] = ["news", "chat"];

/// What happens in the three storms together, and how often at least: about a third of how often it
/// does.
const HAPPENS: [(&str, usize); 24] = [
    ("events", 3_000),
    ("known events", 200),
    ("refused lines", 100),
    ("failed commits", 20),
    ("published", 30),
    ("published twice", 10),
    ("rollbacks", 15),
    ("removed events", 80),
    ("gaps", 5),
    ("kills", 3),
    ("stops", 3),
    ("shutdowns at a fault", 3),
    ("cuts", 30),
    ("resumes", 400),
    ("stalls", 50),
    ("closed sockets", 1),
    ("frames", 5_000),
    ("merged frames", 500),
    ("frames of several items", 60),
    ("INITIAL", 200),
    ("LAGGED", 80),
    ("RESUME_TOO_OLD", 10),
    ("REORG", 200),
    ("EPOCH_CHANGE", 100),
];

struct Storm {
    random: SmallRng,
    home: Home,
    hub: Option<Hub>,
    model: Model,
    peers: Vec<Peer>,
    /// What clients followed that are not connected, with their cursors.
    away: Vec<Operation>,
    step: usize,
    height: u64,
    ids: u64,
    /// The last events that have an id.
    with_ids: VecDeque<Event>,
    /// The last batch that was taken.
    last: Vec<Event>,
    /// Messages that were published under an id, with their positions.
    published: Vec<(String, &'static str, u64)>,
    tally: Tally,
}

#[test]
fn every_client_holds_the_truth_in_a_storm_over_the_whole_hub() {
    let mut tally = Tally::default();
    for seed in [1, 7, 20_261_130] {
        println!("seed {seed}");
        paused(|began| storm(seed, began, &mut tally));
    }
    println!("{tally:?}");
    for (what, least) in HAPPENS {
        let times = tally.0.get(what).copied().unwrap_or_default();
        assert!(times >= least, "{times} {what}: the storms did too little");
    }
}

async fn storm(seed: u64, began: Instant, tally: &mut Tally) {
    let mut storm = Storm::new(seed, began).await;
    for step in 0..STEPS {
        storm.step = step;
        storm.step().await;
        storm.hub().settle().await;
        for peer in 0..storm.peers.len() {
            if storm.peers[peer].reads_from <= step && storm.random.random_bool(0.5) {
                storm.read(peer).await;
            }
        }
        storm.clear_away();
        storm.forget_some();
    }
    storm.end().await;
    storm.tally.0.into_iter().for_each(|(what, times)| tally.add(&what, times));
}

impl Storm {
    async fn new(seed: u64, began: Instant) -> Self {
        let mut home = Home::new(began);
        home.checkpoint_events = 40;
        // So little that slow clients and late cursors exceed it.
        home.config.limits.journal_touches_per_market = 60;
        home.config.limits.ring_bytes_per_stream = 8 << 10;
        let hub = Some(home.start());
        let mut storm = Self {
            random: SmallRng::seed_from_u64(seed),
            home,
            hub,
            model: Model::default(),
            peers: Vec::new(),
            away: Vec::new(),
            step: 0,
            height: 10,
            ids: 0,
            with_ids: VecDeque::new(),
            last: Vec::new(),
            published: Vec::new(),
            tally: Tally::default(),
        };
        let define = |market| Event {
            id: Some(format!("define {market}")),
            height: None,
            what: What::Define { market, status: "ACTIVE" },
        };
        storm.feed(MARKETS.map(define).to_vec()).await;
        storm.name_epochs().await;
        storm
    }

    fn hub(&self) -> &Hub {
        self.hub.as_ref().unwrap()
    }

    async fn step(&mut self) {
        match self.random.random_range(0..1_000) {
            0..480 => {
                let events = self.events();
                self.feed(events).await;
            }
            480..500 => self.feed_together().await,
            500..530 => self.publish().await,
            530..537 => {
                self.fail_commits();
                let events = self.events();
                self.feed(events).await;
                self.mend_commits();
            }
            537..547 => self.remove_blocks().await,
            547..551 => self.lose_events_of_a_source().await,
            551..559 => self.restart().await,
            559..634 => self.connect().await,
            634..720 => self.subscribe().await,
            720..750 => self.complete().await,
            750..770 => self.cut(),
            770..850 => self.resume().await,
            850..880 => self.stall(),
            880..998 => {
                let millis = self.random.random_range(1..400);
                self.hub().advance(Duration::from_millis(millis)).await;
            }
            _ => self.hub().advance(Duration::from_secs(11)).await,
        }
    }
}
