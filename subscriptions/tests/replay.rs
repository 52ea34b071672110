//! Readers of a stream that may not be merged, when the ring no longer reaches back: they get
//! pages, and reading a page takes a while. And what happens when the operation ends meanwhile.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use spreadly_subscriptions::limits::START_DEADLINE;
use spreadly_subscriptions::{Limits, StreamLimits};

use super::board::{PAGE, PAGE_TAKES};
use super::client::{Client, Follower, Heard, subscribe};
use super::{Hub, paused};

/// A ring that holds about ten events of 100 bytes.
fn shallow() -> Hub {
    let streams = StreamLimits { ring_bytes: 2 << 10, ..StreamLimits::default() };
    Hub::start(Limits::default(), streams)
}

async fn message(client: &mut Client) -> Value {
    match client.hear().await {
        Heard::Message(message) => message,
        other => panic!("expected a message, heard {other:?}"),
    }
}

/// Takes results, each with one event, until the copy has the board's last event.
async fn follow(hub: &Hub, client: &mut Client, follower: &mut Follower) {
    while follower.seen != Some(hub.board.fields().0) {
        let message = message(client).await;
        assert_eq!(message["type"], "next", "{message}");
        follower.take(&message["payload"]["data"]).unwrap();
    }
    assert_eq!(follower.fields, hub.board.fields().1);
    assert_eq!(follower.merged, 0, "nothing is merged away");
}

#[test]
fn a_client_that_comes_back_late_gets_every_event_page_by_page() {
    paused(async {
        let hub = shallow();
        for value in 0..100 {
            hub.board.set(value % 7, value, 100);
        }
        let mut late = hub.connect(1 << 20);
        late.init().await;
        late.say(&subscribe("a", "kept", json!({"after": "0"}))).await;
        let mut follower = Follower { seen: Some(0), ..Follower::default() };
        follow(&hub, &mut late, &mut follower).await;
        let pages = 100 / PAGE as u64;
        assert_eq!(hub.meters.replayed_pages.get(), pages);
        // From the ring again, without a gap.
        hub.board.set(1, 1, 0);
        follow(&hub, &mut late, &mut follower).await;
        assert_eq!(hub.meters.replayed_pages.get(), pages);
    });
}

#[test]
fn a_slow_reader_that_the_ring_overtook_gets_every_event_while_more_come() {
    paused(async {
        let hub = shallow();
        let mut client = hub.connect(1 << 10);
        client.init().await;
        client.say(&subscribe("a", "kept", json!({}))).await;
        let mut follower = Follower::default();
        follower.take(&message(&mut client).await["payload"]["data"]).unwrap();
        for value in 0..200 {
            hub.board.set(value % 7, value, 100);
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        for value in 0..200 {
            hub.board.set(value % 5, value, 100);
            follower.take(&message(&mut client).await["payload"]["data"]).unwrap();
        }
        follow(&hub, &mut client, &mut follower).await;
        assert_eq!((follower.snapshots, follower.merged), (1, 0));
        assert!(hub.meters.replayed_pages.get() > 0, "the ring never overtook it");
    });
}

#[test]
fn every_reader_of_an_invalidated_stream_asks_where_it_goes_on() {
    paused(async {
        let hub = Hub::start(Limits::default(), StreamLimits::default());
        let mut clients = [(); 3].map(|()| (hub.connect(1 << 20), Follower::default()));
        for (client, follower) in &mut clients {
            client.init().await;
            client.say(&subscribe("a", "kept", json!({}))).await;
            follower.take(&message(client).await["payload"]["data"]).unwrap();
        }
        hub.board.set(1, 1, 0);
        for (client, follower) in &mut clients {
            follow(&hub, client, follower).await;
        }
        assert_eq!(hub.meters.catch_ups.get(), 0);
        // Two invalidations in a row are as good as one. What is pushed after them is in the ring.
        hub.board.invalidate();
        hub.board.invalidate();
        hub.board.set(2, 2, 0);
        for (client, follower) in &mut clients {
            follow(&hub, client, follower).await;
        }
        assert_eq!(hub.meters.catch_ups.get(), 3);
    });
}

#[test]
fn an_answer_that_comes_after_complete_is_not_given_to_the_next_of_that_id() {
    paused(async {
        let hub = shallow();
        for value in 0..100 {
            hub.board.set(1, value, 100);
        }
        let mut client = hub.connect(1 << 20);
        client.init().await;
        client.say(&subscribe("a", "kept", json!({"after": "0"}))).await;
        tokio::time::sleep(PAGE_TAKES / 2).await;
        client.say(&json!({"type": "complete", "id": "a"})).await;
        client.say(&subscribe("a", "fields", json!({}))).await;
        let first = message(&mut client).await;
        assert_eq!(first["payload"]["data"]["snapshot"], hub.board.fields().0);
        tokio::time::sleep(PAGE_TAKES * 3).await;
        client.say(&json!({"type": "ping"})).await;
        assert_eq!(message(&mut client).await["type"], "pong", "nothing of the earlier operation");
        assert_eq!(hub.board.pages.load(Ordering::Relaxed), 0, "it was not even read");
        drop(client);
        hub.is_clean().await;
    });
}

#[test]
fn a_socket_that_closes_while_the_log_is_read_leaks_nothing() {
    paused(async {
        let hub = shallow();
        for value in 0..100 {
            hub.board.set(1, value, 100);
        }
        let mut client = hub.connect(1 << 20);
        client.init().await;
        client.say(&subscribe("a", "kept", json!({"after": "0"}))).await;
        tokio::time::sleep(PAGE_TAKES / 2).await;
        assert_eq!(hub.meters.readers_open.get(), 1);
        drop(client);
        hub.is_clean().await;
        tokio::time::sleep(PAGE_TAKES * 3).await;
        assert_eq!(hub.board.pages.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_log_that_never_answers_ends_with_1013_and_others_of_the_socket_go_on() {
    paused(async {
        let hub = shallow();
        for value in 0..100 {
            hub.board.set(1, value, 100);
        }
        hub.board.stuck.store(true, Ordering::Relaxed);
        let mut client = hub.connect(1 << 20);
        client.init().await;
        client.say(&subscribe("a", "kept", json!({"after": "0"}))).await;
        client.say(&subscribe("b", "fields", json!({}))).await;
        assert_eq!(message(&mut client).await["id"], "b");
        let asked = tokio::time::Instant::now();
        let closed = loop {
            match client.hear().await {
                Heard::Ping => {
                    client.send(&super::client::frame(0x8A, b"")).await;
                }
                other => break other,
            }
        };
        let Heard::Close(1013, _) = closed else { panic!("{closed:?}") };
        assert_eq!(asked.elapsed().as_secs(), START_DEADLINE.as_secs());
    });
}
