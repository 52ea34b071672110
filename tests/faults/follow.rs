//! A book followed over sockets and processes that end: every event once, in order.

use serde_json::json;

use crate::harness::follower::{self, Applied};
use crate::harness::{Client, Follower, Hub, market};

const MARKET: &str = "XBT-USD";

/// Applies frames until the copy is the book after this many steps, however they were merged.
async fn follow(client: &mut Client, follower: &mut Follower, steps: u64) {
    let awaited = market::bids_after(steps);
    client.follow(follower, |copy| copy.bids == awaited).await;
}

fn steps(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| market::step(MARKET, number)).collect()
}

/// A client on a hub that knows the market, and the first frame of its subscription.
async fn joined(hub: &Hub, query: &str) -> (Client, serde_json::Value) {
    let mut client = Client::knowing(hub.address(), MARKET).await;
    client.subscribe("book", query).await;
    let first = client.message().await;
    (client, first)
}

#[tokio::test]
async fn the_first_frame_is_a_snapshot_and_the_next_delta_follows_it() {
    let hub = Hub::start();
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    let (mut client, first) = joined(&hub, &follower::subscription(MARKET, 25, None)).await;
    let mut copy = Follower::new(1, 8);
    assert_eq!(copy.apply(&first), Applied::Snapshot { reason: "INITIAL".to_owned() });
    assert_eq!(copy.bids, market::bids_after(0));

    hub.append_lines("book.ndjson", &steps(0..100));
    follow(&mut client, &mut copy, 100).await;
    assert_eq!(copy.snapshots, 1);
}

#[tokio::test]
async fn a_client_that_was_cut_off_resumes_after_its_cursor_without_gap_or_double() {
    let hub = Hub::start();
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    let query = follower::subscription(MARKET, 25, None);
    let (mut client, first) = joined(&hub, &query).await;
    let mut copy = Follower::new(1, 8);
    copy.apply(&first);
    hub.append_lines("book.ndjson", &steps(0..10));
    follow(&mut client, &mut copy, 10).await;
    drop(client);

    hub.append_lines("book.ndjson", &steps(10..30));
    let mut client = Client::connected(hub.address()).await;
    let query = follower::subscription(MARKET, 25, copy.cursor.as_deref());
    client.subscribe("again", &query).await;
    hub.append_lines("book.ndjson", &steps(30..40));
    follow(&mut client, &mut copy, 40).await;
    assert_eq!(copy.snapshots, 1);
}

#[tokio::test]
async fn a_client_resumes_from_its_cursor_after_the_hub_was_killed() {
    let mut hub = Hub::start();
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    let (mut client, first) = joined(&hub, &follower::subscription(MARKET, 25, None)).await;
    let mut copy = Follower::new(1, 8);
    copy.apply(&first);
    hub.append_lines("book.ndjson", &steps(0..10));
    follow(&mut client, &mut copy, 10).await;

    hub.kill9();
    hub.append_lines("book.ndjson", &steps(10..20));
    hub.restart();
    let query = follower::subscription(MARKET, 25, copy.cursor.as_deref());
    let (mut client, first) = joined(&hub, &query).await;
    copy.apply(&first);
    follow(&mut client, &mut copy, 20).await;
    assert_eq!(copy.snapshots, 1, "a resume, not a new beginning");
}

#[tokio::test]
async fn a_cursor_older_than_the_journal_is_answered_by_a_snapshot_that_says_so() {
    let mut hub = Hub::start_with(&[
        "limits.ring_bytes_per_stream=65536",
        "limits.journal_touches_per_market=100",
        "limits.stream_linger_ms=0",
    ]);
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    let (client, first) = joined(&hub, &follower::subscription(MARKET, 25, None)).await;
    let mut copy = Follower::new(1, 8);
    copy.apply(&first);
    drop(client);
    hub.append_lines("book.ndjson", &steps(0..1_000));
    let mut reader = Client::connected(hub.address()).await;
    reader.subscribe("reader", &follower::subscription(MARKET, 25, None)).await;
    follow(&mut reader, &mut Follower::new(1, 8), 1_000).await;

    // A restart keeps no ring, and replays no more than the journal holds.
    hub.kill9();
    hub.restart();
    let query = follower::subscription(MARKET, 25, copy.cursor.as_deref());
    let (_, first) = joined(&hub, &query).await;
    assert_eq!(copy.apply(&first), Applied::Snapshot { reason: "RESUME_TOO_OLD".to_owned() });
    assert_eq!(copy.bids, market::bids_after(1_000));
}

#[tokio::test]
async fn a_cursor_of_another_log_is_answered_by_a_snapshot_of_the_new_epoch() {
    let mut hub = Hub::start();
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    let query = follower::subscription(MARKET, 25, None);
    let (_, first) = joined(&hub, &query).await;
    let mut copy = Follower::new(1, 8);
    copy.apply(&first);
    let old = copy.position.clone().unwrap();

    hub.kill9();
    std::fs::remove_dir_all(hub.folder().join("data")).unwrap();
    hub.restart();
    let query = follower::subscription(MARKET, 25, copy.cursor.as_deref());
    let (_, first) = joined(&hub, &query).await;
    assert_eq!(copy.apply(&first), Applied::Snapshot { reason: "EPOCH_CHANGE".to_owned() });
    assert_ne!(copy.position.unwrap().0, old.0);
}

#[tokio::test]
async fn the_cursor_in_extensions_wins_over_the_argument() {
    let hub = Hub::start();
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    let query = follower::subscription(MARKET, 25, None);
    let (mut client, first) = joined(&hub, &query).await;
    let mut copy = Follower::new(1, 8);
    copy.apply(&first);
    let older = copy.cursor.clone().unwrap();
    hub.append_lines("book.ndjson", &steps(0..10));
    follow(&mut client, &mut copy, 10).await;

    let mut client = Client::connected(hub.address()).await;
    let payload = json!({
        "query": follower::subscription(MARKET, 25, Some(&older)),
        "extensions": {"after": copy.cursor, "cursor": true},
    });
    client.subscribe_with("1", payload).await;
    hub.append_lines("book.ndjson", &steps(10..11));
    let mut expected = copy.clone();
    while expected.bids != market::bids_after(11) {
        let next = client.message().await;
        expected.apply(&next);
        let frame = &next["payload"]["data"]["orderBook"];
        assert_eq!(next["payload"]["extensions"]["cursor"], frame["cursor"]);
    }
    assert_eq!(expected.snapshots, 1);
}

#[tokio::test]
async fn a_drained_hub_says_1012_and_exits_with_0() {
    let mut hub = Hub::start_with(&["server.drain_ms=100"]);
    let mut client = Client::connected(hub.address()).await;
    hub.terminate();
    assert_eq!(client.close_code().await, 1012);
    assert_eq!(hub.exited().code(), Some(0));
}
