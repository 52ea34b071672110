//! What bounds a single socket, apart from the protocol: its replies, its turns, its close.

use std::time::Duration;

use serde_json::json;
use spreadly_subscriptions::{Limits, StreamLimits};
use tokio::task::{unconstrained, yield_now};
use tokio::time::{Instant, sleep, timeout};

use super::client::{Heard, frame, subscribe, text};
use super::{Hub, paused};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_client_that_does_not_answer_a_close_is_dropped_after_ten_seconds() {
    paused(async {
        let hub = Hub::start(Limits::default(), StreamLimits::default());
        let mut client = hub.connect(1 << 16);
        client.send(&frame(0x81, b"{")).await;
        assert!(matches!(client.hear().await, Heard::Close(4400, _)));
        let (closed, mut left) = (Instant::now(), 0);
        while hub.meters.sockets_open.get() > 0 && closed.elapsed() < 100 * SECOND {
            left += 1;
            sleep(SECOND / 10).await;
        }
        // Deadlines are checked four times a second.
        assert!((100..=103).contains(&left), "{left} tenths of a second");
    });
}

#[test]
fn a_client_that_takes_no_replies_is_not_read_beyond_64_kib_of_them() {
    paused(async {
        let hub = Hub::start(Limits::default(), StreamLimits::default());
        let mut client = hub.connect(4 << 10);
        client.init().await;
        // One ping and its pong have about 1 KiB each.
        let ping = text(&json!({"type": "ping", "payload": {"x": "x".repeat(1_000)}}));
        let mut sent = 0;
        while sent < 1_000 && timeout(SECOND, client.send(&ping)).await.is_ok() {
            sent += 1;
        }
        // Those that wait, those of one read, and what the pipe holds in each direction.
        assert!((62..=64 + 16 + 8).contains(&sent), "{sent} pings were read");
    });
}

/// A result of about 2 KiB, and how many of them there are of each operation.
const RESULT_BYTES: usize = 2_000;
const RESULTS: u64 = 700;

#[test]
fn an_operation_with_much_to_send_lets_the_other_one_have_its_turn() {
    paused(async {
        let streams = StreamLimits { ring_bytes: 4 << 20, ..StreamLimits::default() };
        let hub = Hub::start(Limits::default(), streams);
        let mut client = hub.connect(1 << 20);
        // A ring that another owner reads too may hold all of it.
        let mut other = hub.connect(64 << 20);
        for (owner, client) in [(1, &mut client), (2, &mut other)] {
            client.init().await;
            for id in ["a", "b"] {
                let variables = json!({ "own": id, "owner": owner });
                client.say(&subscribe(id, "fields", variables)).await;
                assert!(matches!(client.hear().await, Heard::Message(_)), "a snapshot");
            }
        }
        for value in 0..RESULTS {
            hub.board.set(1, value, RESULT_BYTES);
            yield_now().await;
        }
        // The pipe is full. It is read to its end before the hub has its turn again, so that all
        // that follows fits at once.
        let order = unconstrained(async {
            let mut order = Vec::new();
            while order.len() < 2 * RESULTS as usize {
                match client.hear().await {
                    Heard::Message(message) => order.push(message["id"].to_string()),
                    other => panic!("{other:?} after {}", order.len()),
                }
            }
            order
        });
        let order = order.await;
        let longest = order.chunk_by(|one, next| one == next).map(<[_]>::len).max().unwrap();
        // 128 KiB, and the write of 32 results in which they are reached.
        assert!(longest > 32, "{longest} at once, so this proves nothing");
        assert!(longest <= (128 << 10) / RESULT_BYTES + 32, "{longest} at once");
    });
}
