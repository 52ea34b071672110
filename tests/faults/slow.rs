//! A client that does not read: it costs the others nothing, and what it sees when it reads again
//! is a whole chain, or says openly that it is not.

use crate::harness::client::PATIENCE;
use crate::harness::follower::{self, Applied};
use crate::harness::{Client, Follower, Hub, Seen, loud, market};

const MARKET: &str = "XBT-USD";
const STEPS: u64 = 20_000;
/// Lines a piece: the reader that keeps up has taken one before the next is written.
const PIECE: u64 = 500;

async fn joined(hub: &Hub) -> (Client, Follower) {
    let mut client = Client::knowing(hub.address(), MARKET).await;
    client.subscribe("book", &follower::subscription(MARKET, 25, None)).await;
    let mut copy = Follower::new(1, 8);
    let first = client.message().await;
    assert_eq!(copy.apply(&first), Applied::Snapshot { reason: "INITIAL".to_owned() });
    (client, copy)
}

/// Plays every step; `reader` follows them all.
async fn play(hub: &Hub, reader: &mut Client, copy: &mut Follower) {
    for first in (0..STEPS).step_by(PIECE as usize) {
        let lines: Vec<_> = (first..first + PIECE).map(|n| market::step(MARKET, n)).collect();
        hub.append_lines("book.ndjson", &lines);
        let awaited = market::bids_after(first + PIECE);
        reader.follow(copy, |copy| copy.bids == awaited).await;
    }
    assert_eq!((copy.snapshots, copy.merged_events), (1, STEPS));
}

#[tokio::test]
async fn a_reader_that_sleeps_has_the_book_again_and_the_one_beside_it_missed_nothing() {
    // A ring and a kernel's buffer that are soon full; stalls are forgiven.
    let hub = Hub::start_with(&[
        "limits.ring_bytes_per_stream=65536",
        "server.send_buffer_bytes=65536",
        "limits.writer_stall_ms=60000",
    ]);
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    let (mut sleeper, mut late) = joined(&hub).await;
    let (mut reader, mut copy) = joined(&hub).await;
    play(&hub, &mut reader, &mut copy).await;

    let mut merged = 0;
    let mut restated = Vec::new();
    let reading = async {
        while late.bids != copy.bids {
            let message = sleeper.message().await;
            match late.apply(&message) {
                Applied::Delta { merged_events } => merged += u64::from(merged_events > 1),
                Applied::Snapshot { reason } => restated.push(reason),
                Applied::Heartbeat { .. } => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("it wakes up");
    loud::say(&format!(
        "asleep for {STEPS} events: {merged} merged deltas, {} LAGGED",
        restated.len()
    ));
    assert_eq!(late.position, copy.position);
    assert!(merged > 0 || !restated.is_empty(), "it never lagged: this has proven nothing");
    assert!(restated.iter().all(|reason| reason == "LAGGED"), "{restated:?}");
    if restated.is_empty() {
        assert_eq!(late.merged_events, STEPS, "merged, not lost");
    }
}

#[tokio::test]
async fn a_reader_that_takes_nothing_for_too_long_is_closed_and_the_one_beside_it_missed_nothing() {
    // A ring that holds all: what is merged might fit into the kernel's buffers.
    let hub = Hub::start_with(&[
        "limits.ring_bytes_per_stream=8388608",
        "server.send_buffer_bytes=65536",
        "limits.writer_stall_ms=500",
    ]);
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    let (mut sleeper, mut late) = joined(&hub).await;
    let (mut reader, mut copy) = joined(&hub).await;
    play(&hub, &mut reader, &mut copy).await;
    let closed = async {
        while !hub
            .admin_page("/metrics")
            .1
            .lines()
            .any(|line| line.starts_with("spreadly_websockets_open ") && line.ends_with(" 1"))
        {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("it is closed");
    // What the kernel held still comes, and it is a whole chain; a close frame may not fit.
    loop {
        match sleeper.seen().await {
            Seen::Message(message) => drop(late.apply(&message)),
            Seen::Closed(code, reason) => break assert_eq!(code, 1013, "{reason}"),
            Seen::Cut => break,
        }
    }
    assert_ne!(late.position, copy.position, "it had everything: this has proven nothing");
    // A bot comes back after its cursor.
    let mut again = Client::connected(hub.address()).await;
    let query = follower::subscription(MARKET, 25, late.cursor.as_deref());
    again.subscribe("again", &query).await;
    again.follow(&mut late, |late| late.bids == copy.bids).await;
    assert_eq!((late.snapshots, late.merged_events), (1, STEPS));
}
