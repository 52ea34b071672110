//! A client that reads slowly, over paused time: its path is full of our frames, so it gets our
//! pings late. It is not silent.

use std::time::Duration;

use serde_json::json;
use spreadly_subscriptions::{Limits, StreamLimits};
use tokio::time::{Instant, sleep};

use super::client::{Client, Follower, Heard, frame, subscribe};
use super::{Hub, paused};

/// From a feed that sends this much ten times a second.
const PADDING: usize = 1_000;
const EVERY: Duration = Duration::from_millis(100);

/// A hub whose feed never pauses.
fn busy() -> Hub {
    // The ring reaches back over fewer events than the board remembers, so that they are merged.
    let streams = StreamLimits { ring_bytes: 64 << 10, ..StreamLimits::default() };
    let hub = Hub::start(Limits::default(), streams);
    let board = hub.board.clone();
    tokio::task::spawn_local(async move {
        for value in 0.. {
            board.set(value % 7, value, PADDING);
            sleep(EVERY).await;
        }
    });
    hub
}

async fn joined(hub: &Hub, window: usize) -> Client {
    let mut client = hub.connect(window);
    client.init().await;
    client.say(&subscribe("a", "fields", json!({}))).await;
    client
}

/// Reads a message every `pause` for 20 minutes and answers pings as it comes to them; the longest
/// time in which it had no ping to answer.
async fn read_slowly(client: &mut Client, pause: Duration) -> (Follower, Duration) {
    let (began, mut copy) = (Instant::now(), Follower::default());
    let (mut answered, mut longest) = (began, Duration::ZERO);
    while began.elapsed() < Duration::from_secs(1_200) {
        match client.hear().await {
            Heard::Message(message) => copy.take(&message["payload"]["data"]).unwrap(),
            Heard::Ping => {
                assert!(client.send(&frame(0x8A, b"")).await);
                longest = longest.max(answered.elapsed());
                answered = Instant::now();
            }
            other => panic!("after {:?}: {other:?}", began.elapsed()),
        }
        sleep(pause).await;
    }
    (copy, longest)
}

#[test]
fn a_client_that_is_slow_but_moving_is_merged_and_not_dropped_as_silent() {
    paused(async {
        // Its path is full within half a minute, and each ping waits for 200 KB to be read.
        let hub = busy();
        let mut client = joined(&hub, 200 << 10).await;
        let (copy, longest) = read_slowly(&mut client, EVERY * 10).await;
        assert!(longest > Duration::from_secs(50), "it answered in time, so this proves nothing");
        assert_eq!((hub.meters.dropped_silent.get(), copy.snapshots), (0, 1));
        assert!(copy.merged > 0, "it kept up, so this proves nothing");
    });
}

#[test]
fn a_slow_client_whose_path_never_fills_is_not_dropped_as_silent() {
    paused(async {
        let hub = busy();
        let mut client = joined(&hub, 64 << 20).await;
        let (copy, longest) = read_slowly(&mut client, EVERY * 3).await;
        assert!(longest > Duration::from_secs(50), "it answered in time, so this proves nothing");
        assert_eq!((hub.meters.dropped_silent.get(), copy.snapshots), (0, 1));
    });
}

#[test]
fn a_slow_client_that_answers_no_ping_is_closed_with_1013_and_a_reason() {
    paused(async {
        let hub = busy();
        let mut client = joined(&hub, 64 << 10).await;
        let began = Instant::now();
        let (code, reason) = loop {
            match client.hear().await {
                Heard::Close(code, reason) => break (code, reason),
                Heard::Gone => panic!("dropped after {:?}", began.elapsed()),
                _ => sleep(EVERY).await,
            }
        };
        assert_eq!(code, 1013);
        assert_eq!(reason, "Too slow: no answer to a ping for 300000 ms (12 ping_interval_ms)");
        assert_eq!(hub.meters.dropped_silent.get(), 0);
    });
}

#[test]
fn a_silent_client_that_is_sent_little_is_dropped_after_two_intervals() {
    paused(async {
        let hub = Hub::start(Limits::default(), StreamLimits::default());
        let board = hub.board.clone();
        tokio::task::spawn_local(async move {
            loop {
                board.heartbeat();
                sleep(Duration::from_secs(4)).await;
            }
        });
        let mut client = joined(&hub, 64 << 10).await;
        let began = Instant::now();
        while client.hear().await != Heard::Gone {}
        assert_eq!(hub.meters.dropped_silent.get(), 1);
        assert_eq!(began.elapsed().as_secs() / 10, 5);
    });
}
