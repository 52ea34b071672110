//! A log that was put back from an older copy: the hub begins a new epoch, so that a client which
//! saw what the copy does not have is not served as if nothing were missing.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::follower::{self, Applied};
use crate::harness::{Client, Follower, Hub, mark, market};

const MARKET: &str = "XBT-USD";
const FEED: &str = "book.ndjson";

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let name = entry.unwrap().file_name();
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

async fn follow_to(hub: &Hub, copy: &mut Follower, steps: u64) {
    let mut client = Client::knowing(hub.address(), MARKET).await;
    let query = follower::subscription(MARKET, 25, copy.cursor.as_deref());
    client.subscribe("book", &query).await;
    client.follow(copy, |copy| copy.bids == market::bids_after(steps)).await;
}

fn steps(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| market::step(MARKET, number)).collect()
}

/// A change of a level that no step touches, so that a copy which lacks it differs.
fn other(number: u64) -> String {
    market::delta(MARKET, &[("50.0", &format!("{}.00000000", 1 + number))], &[])
}

/// How a log is put back.
#[derive(Clone, Copy, Debug)]
struct How {
    /// The hub was killed before it, not stopped.
    killed: bool,
    /// The files are written over, so that they keep their inodes.
    in_place: bool,
    /// Its mark is made to fit, which nothing does but a snapshot of a whole disk.
    forged: bool,
}

/// A hub whose log was put back and has passed the cursors of before.
struct PutBack {
    hub: Hub,
    /// The book of a client that saw what the copy does not have.
    ahead: Follower,
    /// Of the same, the cursor of a generic topic.
    seen: Value,
    /// As it is now.
    now: Follower,
}

const TOPIC: &str = r#"subscription { events(topic: "t") { sequence cursor } }"#;

async fn put_back(how: How) -> PutBack {
    let mut hub = Hub::start_with(&["server.drain_ms=0"]);
    hub.append_lines(FEED, &market::beginning(MARKET));
    hub.append_lines(FEED, &steps(0..5));
    let mut ahead = Follower::new(1, 8);
    follow_to(&hub, &mut ahead, 5).await;
    assert!(hub.sigterm().success());
    let (data, kept) = (hub.folder().join("data"), hub.folder().join("kept"));
    copy(&data, &kept);
    let lines = std::fs::read(hub.feed(FEED)).unwrap();

    // The hub goes on, and clients see it.
    hub.restart();
    hub.append_lines(FEED, &steps(5..10));
    follow_to(&hub, &mut ahead, 10).await;
    assert_eq!(ahead.snapshots, 1, "a stop and a start are no new epoch");
    let mut client = Client::connected(hub.address()).await;
    client.subscribe("t", TOPIC).await;
    hub.query(r#"mutation { publish(topic: "t", data: 1) { sequence } }"#);
    client.message().await;
    let seen = client.message().await["payload"]["data"]["events"]["cursor"].clone();
    drop(client);
    match how.killed {
        true => hub.kill9(),
        false => assert!(hub.sigterm().success()),
    }

    // Then log and feed are put back, and others come until the old cursor is passed.
    if !how.in_place {
        std::fs::remove_dir_all(&data).unwrap();
    }
    copy(&kept, &data);
    if how.forged {
        mark::forge(&data.join("spreadly.db"));
    }
    std::fs::write(hub.feed(FEED), &lines).unwrap();
    hub.restart();
    let doubted = hub.log().contains("the log may be an older copy");
    assert_eq!(doubted, !how.forged, "{how:?}: {}", hub.log());
    hub.append_lines(FEED, &(0..40).map(other).collect::<Vec<_>>());
    hub.query(r#"mutation { publish(topic: "t", data: 2) { sequence } }"#);
    let mut now = Follower::new(1, 8);
    let mut client = Client::knowing(hub.address(), MARKET).await;
    client.subscribe("now", &follower::subscription(MARKET, 25, None)).await;
    let last = follower::units("40.00000000", 8);
    client.follow(&mut now, |copy| copy.bids.get(&500) == Some(&last)).await;
    let passed = ahead.position.as_ref().unwrap().1;
    assert!(now.position.as_ref().unwrap().1 > passed, "{how:?}: nothing is proven");
    PutBack { hub, ahead, seen, now }
}

#[tokio::test]
async fn a_client_that_saw_more_than_a_log_which_was_put_back_gets_a_new_epoch_and_a_right_book() {
    for (killed, in_place) in [(false, false), (false, true), (true, false), (true, true)] {
        let how = How { killed, in_place, forged: false };
        let PutBack { mut hub, mut ahead, seen, now } = put_back(how).await;
        let before = ahead.position.clone().unwrap().0;
        let mut client = Client::connected(hub.address()).await;
        let after = json!({"query": TOPIC, "extensions": {"after": seen}});
        client.subscribe_with("t", after).await;
        let refused = client.message().await;
        let code = &refused["payload"][0]["extensions"]["code"];
        assert_eq!(code, "RESYNC_REQUIRED", "{how:?}: {refused}");

        let query = follower::subscription(MARKET, 25, ahead.cursor.as_deref());
        client.subscribe("book", &query).await;
        // The follower computes each checksum.
        let first = ahead.apply(&client.message().await);
        assert_eq!(first, Applied::Snapshot { reason: "EPOCH_CHANGE".to_owned() }, "{how:?}");
        client.follow(&mut ahead, |copy| copy.bids == now.bids).await;
        assert_ne!(ahead.position.as_ref().unwrap().0, before, "{how:?}");
        drop(client);
        assert!(hub.sigterm().success());

        // The log has a mark of its own again, and its new epoch stays.
        hub.restart();
        let mut again = ahead.clone();
        follow_on(&hub, &mut again).await;
        assert_eq!(again.snapshots, ahead.snapshots, "{how:?}: resumed, not begun again");
    }
}

/// The negative control: what the mark is there for.
#[tokio::test]
#[should_panic(expected = "the copy differs at")]
async fn without_a_doubt_of_its_mark_a_client_of_a_log_that_was_put_back_holds_a_wrong_book() {
    let how = How { killed: false, in_place: true, forged: true };
    let PutBack { hub, mut ahead, .. } = put_back(how).await;
    follow_on(&hub, &mut ahead).await;
}

/// Resumes with a cursor that is at the end, and takes one more event.
async fn follow_on(hub: &Hub, copy: &mut Follower) {
    let mut client = Client::reconnected(hub.address()).await;
    client.subscribe("book", &follower::subscription(MARKET, 25, copy.cursor.as_deref())).await;
    hub.append_lines(FEED, &[other(99)]);
    let last = follower::units("100.00000000", 8);
    client.follow(copy, |copy| copy.bids.get(&500) == Some(&last)).await;
}
