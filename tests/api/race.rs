//! An event that is published in the very instant of a subscribe is in the snapshot or comes after
//! it, once. Two threads over two sockets, round after round: the one that subscribes moves its
//! instant to where the outcome changes, so that nearly every round is a race.

use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Client, Follower, Hub, follower, loud, market};

const MARKET: &str = "O-USD";
const ROUNDS: u64 = 600;
/// Rounds whose outcome is another than that of the round before: the instant of the subscribe lay
/// within a step of that of the event.
const FEWEST_RACES: usize = 20;
/// By how much the subscriber moves its instant after a race; twice as much after each other round.
const STEP: Duration = Duration::from_micros(20);
const MOST_STEP: Duration = Duration::from_micros(320);
const MOST_DELAY: Duration = Duration::from_millis(20);

fn hub() -> Hub {
    Hub::start_with(&[
        "identity.development_account=9me",
        "limits.subscribe_rate=100000",
        "limits.subscribe_burst=100000",
        "limits.stream_linger_ms=0",
    ])
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Publishes one event each round, at once when the round begins; its sequence.
fn publisher(
    hub: &Hub,
    rounds: Arc<Barrier>,
    mutation: fn(u64) -> String,
    field: &'static str,
) -> mpsc::Receiver<u64> {
    let (sender, published) = mpsc::sync_channel(1);
    let address = hub.address();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let mut client = Client::connected(address).await;
            for round in 0..ROUNDS {
                let query = mutation(round);
                rounds.wait();
                client.subscribe("p", &query).await;
                let result = client.message().await;
                let sequence = &result["payload"]["data"][field]["sequence"];
                let sequence = sequence.as_str().unwrap_or_else(|| panic!("{result}")).parse();
                assert_eq!(client.message().await["type"], "complete");
                if sender.send(sequence.unwrap()).is_err() {
                    return;
                }
            }
        });
    });
    published
}

/// Subscribes each round, a little after it began. `check` says whether the event was in what came
/// first; it panics where the event is missing or comes twice.
async fn subscriber(
    hub: &Hub,
    rounds: Arc<Barrier>,
    published: mpsc::Receiver<u64>,
    query: impl Fn(u64) -> String,
    mut check: impl AsyncFnMut(&mut Client, &str, u64, Value, u64) -> bool,
) {
    let mut client = Client::connected(hub.address()).await;
    let (mut delay, mut step) = (Duration::ZERO, STEP);
    let (mut first, mut after, mut races, mut before) = (0, 0, 0, None);
    for round in 0..ROUNDS {
        let id = round.to_string();
        rounds.wait();
        let began = Instant::now();
        while began.elapsed() < delay {
            std::hint::spin_loop();
        }
        client.subscribe(&id, &query(round)).await;
        let snapshot = client.message().await;
        assert_eq!((&snapshot["type"], &snapshot["id"]), (&"next".into(), &id.clone().into()));
        let sequence = published.recv().unwrap();
        let was_first = check(&mut client, &id, round, snapshot, sequence).await;
        client.send(serde_json::json!({"type": "complete", "id": id})).await;
        client.until_pong().await;
        let race = before.replace(was_first).is_some_and(|one| one != was_first);
        races += usize::from(race);
        // Far from the instant in great steps, near to it in small ones.
        step = if race { STEP } else { (step * 2).min(MOST_STEP) };
        match was_first {
            true => (first, delay) = (first + 1, delay.saturating_sub(step)),
            false => (after, delay) = (after + 1, (delay + step).min(MOST_DELAY)),
        }
    }
    loud::say(&format!(
        "{ROUNDS} rounds: {first} events in the snapshot, {after} after it, {races} races"
    ));
    assert!(races >= FEWEST_RACES, "{races} races, {first} and {after}: this has proven nothing");
}

#[tokio::test]
async fn an_order_placed_in_the_instant_of_a_subscribe_is_in_the_snapshot_or_after_it() {
    let hub = hub();
    hub.append_lines("markets.ndjson", &[market::definition(MARKET)]);
    drop(Client::knowing(hub.address(), MARKET).await);
    // Each at a price of its own.
    let place = |round: u64| {
        let price = 1 + round;
        format!(
            "mutation {{ placeOrder(input: {{ market: \"{MARKET}\", side: BUY, price: \"{price}.0\", \
             size: \"1\" }}) {{ sequence }} }}"
        )
    };
    let rounds = Arc::new(Barrier::new(2));
    let published = publisher(&hub, rounds.clone(), place, "placeOrder");
    // Another depth each round, so that nobody before has made the snapshot.
    let query = |round: u64| follower::subscription(MARKET, 5_000 - round as u32, None);
    subscriber(&hub, rounds, published, query, async |client, id, round, snapshot, sequence| {
        let price = u128::from(1 + round) * 10;
        let mut copy = Follower::new(1, 8);
        copy.apply(&snapshot);
        let start = copy.position.as_ref().unwrap().1;
        assert_eq!(start >= sequence, copy.bids.contains_key(&price), "{snapshot}");
        let was_first = start >= sequence;
        while copy.position.as_ref().unwrap().1 < sequence {
            let message = client.message().await;
            assert_eq!(message["id"], id);
            copy.apply(&message);
        }
        assert_eq!(copy.bids.len() as u64, round + 1, "every order so far, and no other");
        assert!(copy.bids.contains_key(&price));
        was_first
    })
    .await;
}

#[tokio::test]
async fn an_event_published_in_the_instant_of_a_subscribe_is_before_its_first_frame_or_after_it() {
    let hub = hub();
    let publish =
        |round: u64| format!("mutation {{ publish(topic: \"t\", data: {round}) {{ sequence }} }}");
    let rounds = Arc::new(Barrier::new(2));
    let published = publisher(&hub, rounds.clone(), publish, "publish");
    let query = |_| {
        "subscription { events(topic: \"t\") { sequence prevSequence events { data } } }".to_owned()
    };
    subscriber(&hub, rounds, published, query, async |client, id, round, first, sequence| {
        let number = |frame: &Value, field: &str| -> Option<u64> {
            frame["payload"]["data"]["events"][field].as_str().map(|text| text.parse().unwrap())
        };
        let start = number(&first, "sequence").unwrap();
        assert_eq!(number(&first, "prevSequence"), None);
        if start >= sequence {
            assert_eq!(start, sequence, "the newest event there is");
            return true;
        }
        let frame = client.message().await;
        assert_eq!((&frame["id"], number(&frame, "prevSequence")), (&id.into(), Some(start)));
        assert_eq!(number(&frame, "sequence"), Some(sequence));
        let events = &frame["payload"]["data"]["events"]["events"];
        assert_eq!(events, &serde_json::json!([{ "data": round }]));
        false
    })
    .await;
}
