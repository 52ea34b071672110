//! Seeded storms: thousands of clients that join, stall, reuse ids, resume and vanish, with the
//! clock paused. Each chain is always whole, and every client ends equal to the board.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use spreadly_subscriptions::{Dialect, Limits, Rank, StreamLimits};
use tokio::time::Instant;

use super::client::{Client, Follower, Heard, subscribe};
use super::{Hub, paused};

/// What happened, so that a storm in which nothing happened fails.
#[derive(Debug, Default)]
struct Tally {
    stalls: Cell<u64>,
    reuses: Cell<u64>,
    vanishings: Cell<u64>,
    resumes: Cell<u64>,
    too_slow: Cell<u64>,
    replayed: Cell<u64>,
    ended_equal: Cell<u64>,
}

fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

const STORM: Duration = Duration::from_secs(60);
const CLIENTS: u64 = 2_000;
/// Ids are few, so that they are reused.
const IDS: [&str; 3] = ["a", "b", "\"quoted\""];
/// Id of operations whose events are kept and never merged: late frames of an earlier operation
/// with this id have the same content.
const KEPT: &str = "kept";

#[test]
fn every_chain_is_whole_in_a_storm_of_clients() {
    for seed in [1, 7, 20_261_123] {
        println!("seed {seed}");
        paused(storm(seed));
    }
}

async fn storm(seed: u64) {
    let streams = StreamLimits { ring_bytes: 16 << 10, ..StreamLimits::default() };
    let limits = Limits { subscribe_rate: 1_000, ..Limits::default() };
    let hub = Rc::new(Hub::start(limits, streams));
    let elsewhere = !seed.is_multiple_of(7);
    hub.board.elsewhere.store(elsewhere, std::sync::atomic::Ordering::Relaxed);
    let tally = Rc::new(Tally::default());
    let end = Instant::now() + STORM;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let random = SmallRng::seed_from_u64(seed ^ (number << 20));
            tokio::task::spawn_local(client(hub.clone(), tally.clone(), random, end))
        })
        .collect();
    let mut random = SmallRng::seed_from_u64(seed);
    while Instant::now() < end {
        for _ in 0..random.random_range(0..20) {
            hub.board.set(random.random_range(0..50), random.random_range(0..1000), 200);
        }
        if random.random_bool(0.05) {
            hub.board.heartbeat();
        }
        if random.random_bool(0.02) {
            hub.board.invalidate();
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(1..500))).await;
    }
    for client in clients {
        client.await.unwrap();
    }
    let Ok(hub) = Rc::try_unwrap(hub) else { panic!("a client still holds the hub") };
    hub.is_clean().await;
    for happened in [&tally.stalls, &tally.reuses, &tally.vanishings, &tally.resumes] {
        assert!(happened.get() > 100, "the storm tested nothing: {tally:?}");
    }
    let board = &hub.board;
    for path in [&board.merged, &board.lagged, &board.too_slow, &board.pages] {
        assert!(path.load(std::sync::atomic::Ordering::Relaxed) > 0, "a path that no client took");
    }
    assert!(tally.too_slow.get() > 0, "{tally:?}");
    assert!(tally.replayed.get() > 100, "{tally:?}");
    assert_eq!(tally.ended_equal.get(), CLIENTS);
}

/// One operation as its client sees it.
struct Held {
    follower: Follower,
    query: &'static str,
    id: &'static str,
    /// It got no frame yet: frames with its id may be of an earlier operation.
    fresh: bool,
}

impl Default for Held {
    fn default() -> Self {
        Self { follower: Follower::default(), query: "fields", id: "a", fresh: false }
    }
}

/// Until the storm ends: connects, does random things, and comes back with its last position.
async fn client(hub: Rc<Hub>, tally: Rc<Tally>, random: SmallRng, end: Instant) {
    let random = RefCell::new(random);
    let roll = |most: u64| random.borrow_mut().random_range(0..most);
    let mut kept: Option<Held> = None;
    tokio::time::sleep(Duration::from_millis(roll(5_000))).await;
    while Instant::now() < end {
        let rank = [Rank::First, Rank::Last][roll(2) as usize];
        let mut client = hub.connect_ranked(rank, Dialect::TransportWs, 1 << (9 + roll(5)));
        client.init().await;
        let mut held = HashMap::new();
        if let Some(one) = kept.take() {
            count(&tally.resumes);
            if one.id == KEPT {
                count(&tally.replayed);
            }
            let after = one.follower.seen.map(|seen| seen.to_string());
            client.say(&subscribe(one.id, one.query, json!({"after": after}))).await;
            held.insert(one.id, one);
        }
        let leave = (Instant::now() + Duration::from_millis(roll(30_000))).min(end);
        let mut open = true;
        while open && Instant::now() < leave {
            match roll(100) {
                0..6 => {
                    open = begin(&mut client, &mut held, IDS[roll(3) as usize], &roll, &tally).await
                }
                6..8 => {
                    count(&tally.stalls);
                    tokio::time::sleep(Duration::from_millis(roll(15_000))).await;
                }
                8 => open = client.say(&json!({"type": "ping"})).await,
                _ => {
                    let patience = Duration::from_millis(roll(2_000));
                    // A cancelled read would lose bytes: only the first byte has a time-out.
                    match tokio::time::timeout(patience, client.first()).await {
                        Ok(first) => open = take(&mut client, first, &mut held, &tally).await,
                        Err(_) => continue,
                    }
                }
            }
        }
        count(&tally.vanishings);
        let mut resumable = |id| held.remove(id).filter(|one| one.query != "log" && !one.fresh);
        kept = resumable(KEPT).or_else(|| resumable("a"));
    }
    come_back(&hub, kept.unwrap_or_default(), &tally).await;
}

/// After the storm: comes back once more with the last position, and must end equal to the board.
async fn come_back(hub: &Hub, held: Held, tally: &Tally) {
    let Held { mut follower, query, .. } = held;
    let mut client = hub.connect(1 << 12);
    client.init().await;
    let after = follower.seen.map(|seen| seen.to_string());
    client.say(&subscribe("last", query, json!({"after": after}))).await;
    let (sequence, fields) = hub.board.fields();
    while follower.seen != Some(sequence) {
        match client.hear().await {
            Heard::Message(message) => follower.take(&message["payload"]["data"]).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(follower.fields, fields);
    count(&tally.ended_equal);
}

/// Completes the operation with this id, if any, and subscribes again. False if the connection has
/// ended.
async fn begin(
    client: &mut Client,
    held: &mut HashMap<&'static str, Held>,
    id: &'static str,
    roll: &impl Fn(u64) -> u64,
    tally: &Tally,
) -> bool {
    let query = ["log", "kept", "fields", "fields"][roll(4) as usize];
    let id = if query == "kept" { KEPT } else { id };
    if held.remove(id).is_some() {
        count(&tally.reuses);
        if !client.say(&json!({"type": "complete", "id": id})).await {
            return false;
        }
    }
    // A few keys that are not shared: streams that open and close.
    let own = if roll(10) == 0 { roll(5) } else { 99 };
    held.insert(id, Held { follower: Follower::default(), query, id, fresh: true });
    client.say(&subscribe(id, query, json!({"own": own}))).await
}

/// Reads one message whose first byte came. False if the connection has ended.
async fn take(
    client: &mut Client,
    first: Option<u8>,
    held: &mut HashMap<&'static str, Held>,
    tally: &Tally,
) -> bool {
    match client.rest(first).await {
        Heard::Message(message) => {
            if message["type"] == "pong" {
                return true;
            }
            assert_eq!(message["type"], "next", "{message}");
            let id = message["id"].as_str().unwrap();
            let Some(held) = held.get_mut(id) else { panic!("a result for {id}, which never ran") };
            let data = &message["payload"]["data"];
            if held.fresh && data.get("snapshot").is_none() {
                return true; // Sent before our `complete` was read.
            }
            held.fresh = false;
            held.follower.take(data).unwrap();
            if id == KEPT {
                let lagged = data["reason"] == "LAGGED";
                assert!(
                    !lagged && held.follower.merged == 0,
                    "events that are kept are never skipped"
                );
            }
            true
        }
        Heard::Ping => client.send(&super::client::frame(0x8A, b"")).await,
        Heard::Close(code, _) => {
            assert_eq!(code, 1013);
            count(&tally.too_slow);
            false
        }
        Heard::Gone => false,
        Heard::Pong(_) => true,
    }
}

#[test]
fn a_crowd_that_comes_back_at_once_costs_one_snapshot() {
    paused(async {
        let hub = Hub::start(Limits::default(), StreamLimits::default());
        hub.board.set(1, 1, 0);
        let mut clients = Vec::new();
        for _ in 0..10_000 {
            let mut client = hub.connect(1 << 10);
            client.init().await;
            client.say(&subscribe("a", "fields", json!({}))).await;
            clients.push(client);
        }
        for client in &mut clients {
            assert!(matches!(client.hear().await, Heard::Message(_)));
        }
        let encoded = &hub.board.snapshots_encoded;
        assert_eq!(encoded.load(std::sync::atomic::Ordering::Relaxed), 1);
        hub.board.set(1, 2, 0);
        for client in &mut clients {
            assert!(matches!(client.hear().await, Heard::Message(_)));
        }
        assert_eq!(hub.meters.frames_published.get(), 1);
        assert_eq!(hub.meters.frames_delivered.get(), 20_000);
    });
}
