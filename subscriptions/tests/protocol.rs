//! The subprotocol `graphql-transport-ws`, at the engine.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use spreadly_subscriptions::{Limits, StreamLimits};

use super::client::{Client, Follower, Heard, frame, subscribe, text};
use super::{Hub, paused};

fn hub() -> Hub {
    Hub::start(Limits::default(), StreamLimits::default())
}

async fn data(client: &mut Client, id: &str) -> Value {
    match client.hear().await {
        Heard::Message(message) => {
            assert_eq!((&message["id"], &message["type"]), (&json!(id), &json!("next")));
            message["payload"]["data"].clone()
        }
        other => panic!("expected next, heard {other:?}"),
    }
}

#[test]
fn every_fault_has_its_code_and_a_close_frame_arrives() {
    let init = text(&json!({"type": "connection_init"}));
    let fields = || text(&subscribe("a", "fields", json!({})));
    let cases: Vec<(&str, Vec<Vec<u8>>, u16)> = vec![
        ("not JSON", vec![frame(0x81, b"{")], 4400),
        ("binary", vec![frame(0x82, b"{}")], 4400),
        ("unknown type", vec![text(&json!({"type": "start", "id": "1"}))], 4400),
        ("subscribe before the ack", vec![fields()], 4401),
        (
            "refused",
            vec![text(&json!({"type": "connection_init", "payload": {"refuse": 1}}))],
            4403,
        ),
        ("second init", vec![init.clone(), init.clone()], 4429),
        ("id in use, in one segment", vec![[init.clone(), fields(), fields()].concat()], 4409),
        (
            "id of a pending query",
            vec![init.clone(), text(&subscribe("a", "never", json!({}))), fields()],
            4409,
        ),
        ("too large before the ack", vec![frame(0x81, &vec![b' '; 17 << 10])], 1009),
        ("too large", vec![init.clone(), frame(0x81, &vec![b' '; 257 << 10])], 1009),
        ("not UTF-8", vec![frame(0x81, &[0xFF])], 1007),
        ("reserved bits", vec![frame(0xF1, b"")], 1002),
        ("silence", vec![], 4408),
    ];
    for (name, sends, code) in cases {
        paused(async {
            let hub = hub();
            let mut client = hub.connect(1 << 20);
            for bytes in sends {
                client.send(&bytes).await;
            }
            let closed = loop {
                match client.hear().await {
                    Heard::Message(message) if message["type"] != "error" => {}
                    other => break other,
                }
            };
            let Heard::Close(heard, reason) = closed else { panic!("{name}: {closed:?}") };
            assert_eq!(heard, code, "{name}");
            assert!(reason.len() <= 123 && !reason.is_empty(), "{name}: {reason:?}");
            client.send(&frame(0x88, &heard.to_be_bytes())).await;
            assert_eq!(client.hear().await, Heard::Gone, "{name}");
            drop(client);
            hub.is_clean().await;
        });
    }
}

#[test]
fn a_refused_operation_is_one_error_and_the_socket_lives() {
    paused(async {
        let hub = hub();
        let mut client = hub.connect(1 << 16);
        client.init().await;
        client.say(&subscribe("a", "nonsense", json!({}))).await;
        let error = json!({"id": "a", "type": "error", "payload": [{"message": "unknown"}]});
        assert_eq!(client.hear().await, Heard::Message(error));
        client.say(&subscribe("a", "ask", json!({}))).await;
        assert_eq!(data(&mut client, "a").await, json!({"ask": 0}));
        let complete = json!({"id": "a", "type": "complete"});
        assert_eq!(client.hear().await, Heard::Message(complete));
    });
}

#[test]
fn a_query_that_is_refused_late_is_one_error_unless_it_was_completed() {
    paused(async {
        let hub = hub();
        let mut client = hub.connect(1 << 16);
        client.init().await;
        client.say(&subscribe("a", "late", json!({}))).await;
        client.say(&subscribe("b", "late", json!({}))).await;
        client.say(&json!({"type": "complete", "id": "b"})).await;
        let error = json!({"id": "a", "type": "error", "payload": [{"message": "not valid"}]});
        assert_eq!(client.hear().await, Heard::Message(error));
        for id in ["a", "b"] {
            client.say(&subscribe(id, "ask", json!({}))).await;
            assert_eq!(data(&mut client, id).await, json!({"ask": 0}));
            let complete = json!({"id": id, "type": "complete"});
            assert_eq!(client.hear().await, Heard::Message(complete));
        }
        drop(client);
        hub.is_clean().await;
    });
}

#[test]
fn a_client_that_is_refused_on_and_on_is_read_less_often() {
    paused(async {
        let hub = hub();
        let mut client = hub.connect(1 << 20);
        client.init().await;
        let begin = tokio::time::Instant::now();
        for number in 0..300 {
            client.say(&subscribe(&number.to_string(), "nonsense", json!({}))).await;
        }
        let mut answers = Vec::new();
        for number in 0..300 {
            let Heard::Message(error) = client.hear().await else { panic!("{number}") };
            assert_eq!(
                (&error["type"], &error["id"]),
                (&json!("error"), &json!(number.to_string()))
            );
            answers.push(begin.elapsed().as_millis() / 250);
        }
        // 256 at once, then 16 at each check of the deadlines.
        let at_once = answers.iter().filter(|at| **at == answers[0]).count();
        assert_eq!(at_once, 256, "{answers:?}");
        assert_eq!(answers[299] - answers[0], 3, "{answers:?}");
        drop(client);
        hub.is_clean().await;
    });
}

#[test]
fn a_client_that_has_exceeded_its_budget_is_read_less_often_by_what_it_sends() {
    paused(async {
        let hub = hub();
        let mut client = hub.connect(1 << 20);
        client.init().await;
        // Beside a pong, whose payload the hub ignores.
        let pong = json!({"type": "pong", "payload": {"fill": "x".repeat(64 << 10)}});
        for within in [true, false] {
            let budget = if within { usize::MAX } else { 0 };
            hub.executor.message_bytes.store(budget, Ordering::Relaxed);
            let begin = tokio::time::Instant::now();
            for _ in 0..8 {
                client.say(&pong).await;
            }
            client.say(&json!({"type": "ping"})).await;
            let Heard::Message(answer) = client.hear().await else { panic!("no answer") };
            assert_eq!(answer["type"], "pong");
            // Four of them at once, then 16 KiB at each check of the deadlines.
            let checks = begin.elapsed().as_millis() / 250;
            assert_eq!(checks >= 4 * 65 / 16, !within, "{checks}");
        }
        drop(client);
        hub.is_clean().await;
    });
}

#[test]
fn messages_of_one_segment_are_all_handled_though_the_first_takes_a_whole_turn() {
    paused(async {
        let hub = hub();
        let mut client = hub.connect(1 << 16);
        client.init().await;
        let messages = [
            subscribe("a", "slow", json!({})),
            subscribe("b", "slow", json!({})),
            json!({"type": "ping"}),
        ];
        // Short enough that the codec holds all of them at once.
        let segment: Vec<u8> = messages.iter().flat_map(text).collect();
        client.send(&segment).await;
        let mut heard = Vec::new();
        for _ in 0..5 {
            let Heard::Message(message) = client.hear().await else { panic!("{heard:?}") };
            heard.push(message["type"].as_str().unwrap().to_owned());
        }
        heard.sort_unstable();
        assert_eq!(heard, ["complete", "complete", "next", "next", "pong"]);
        // No bytes are left that would count as an unfinished message.
        tokio::time::sleep(Duration::from_secs(15)).await;
        client.say(&json!({"type": "ping"})).await;
        assert_eq!(client.hear().await, Heard::Message(json!({"type": "pong"})));
    });
}

#[test]
fn ping_is_answered_with_its_payload_before_and_after_the_ack() {
    paused(async {
        let hub = hub();
        let mut client = hub.connect(1 << 16);
        let pong = json!({"type": "pong", "payload": {"n": 1}});
        client.say(&json!({"type": "ping", "payload": {"n": 1}})).await;
        assert_eq!(client.hear().await, Heard::Message(pong.clone()));
        client.init().await;
        client.say(&json!({"type": "ping"})).await;
        assert_eq!(client.hear().await, Heard::Message(json!({"type": "pong"})));
        client.send(&frame(0x89, b"hello")).await;
        assert_eq!(client.hear().await, Heard::Pong(b"hello".to_vec()));
    });
}

#[test]
fn complete_is_never_answered_and_ends_the_operation_at_once() {
    paused(async {
        let hub = hub();
        let mut client = hub.connect(1 << 16);
        client.init().await;
        client.say(&subscribe("a", "fields", json!({}))).await;
        assert_eq!(data(&mut client, "a").await["reason"], "INITIAL");
        client.say(&json!({"type": "complete", "id": "a"})).await;
        client.say(&json!({"type": "complete", "id": "a"})).await;
        client.say(&json!({"type": "ping"})).await;
        assert_eq!(client.hear().await, Heard::Message(json!({"type": "pong"})));
        hub.board.set(1, 1, 0);
        client.say(&json!({"type": "ping"})).await;
        assert_eq!(client.hear().await, Heard::Message(json!({"type": "pong"})));
        assert_eq!(hub.meters.readers_open.get(), 0);
    });
}

#[test]
fn a_message_in_one_byte_pieces_is_read_and_one_that_never_ends_is_closed() {
    paused(async {
        let hub = hub();
        let mut client = hub.connect(1 << 16);
        for byte in text(&json!({"type": "connection_init"})) {
            client.send(&[byte]).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(client.hear().await, Heard::Message(json!({"type": "connection_ack"})));
        client.send(&frame(0x01, b"{")).await;
        for _ in 0..9 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            client.send(&frame(0x00, b" ")).await;
        }
        assert!(matches!(client.hear().await, Heard::Close(1002, _)));
    });
}

#[test]
fn a_silent_peer_is_pinged_and_then_dropped() {
    paused(async {
        let hub = hub();
        let mut client = hub.connect(1 << 16);
        client.init().await;
        assert_eq!(client.hear().await, Heard::Ping);
        assert_eq!(client.hear().await, Heard::Gone);
        assert_eq!(hub.meters.dropped_silent.get(), 1);
        hub.is_clean().await;
    });
}

#[test]
fn a_reader_that_stops_is_closed_with_1013_and_the_others_notice_nothing() {
    paused(async {
        let hub = Hub::start(Limits::default(), StreamLimits::default());
        let mut stopped = hub.connect(4 << 10);
        let mut other = hub.connect(4 << 10);
        for client in [&mut stopped, &mut other] {
            client.init().await;
            client.say(&subscribe("a", "fields", json!({}))).await;
            data(client, "a").await;
        }
        let mut follower = Follower { seen: Some(0), ..Follower::default() };
        for value in 0..2_000 {
            hub.board.set(value % 7, value, 100);
            tokio::time::sleep(Duration::from_millis(10)).await;
            follower.take(&data(&mut other, "a").await).unwrap();
        }
        assert_eq!((follower.snapshots, follower.merged), (0, 0));
        assert_eq!(
            hub.meters.closes().find(|(code, _)| code.number() == 1013).map(|it| it.1),
            Some(1)
        );
    });
}

#[test]
fn a_reader_that_pauses_gets_one_merged_delta_and_ends_equal() {
    paused(async {
        let streams = StreamLimits { ring_bytes: 8 << 10, ..StreamLimits::default() };
        let hub = Hub::start(Limits::default(), streams);
        let mut client = hub.connect(4 << 10);
        client.init().await;
        client.say(&subscribe("a", "fields", json!({}))).await;
        let mut follower = Follower::default();
        follower.take(&data(&mut client, "a").await).unwrap();
        for value in 0..300 {
            hub.board.set(value % 7, value, 100);
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        let (sequence, fields) = hub.board.fields();
        while follower.seen != Some(sequence) {
            follower.take(&data(&mut client, "a").await).unwrap();
        }
        assert_eq!(follower.fields, fields);
        assert_eq!((follower.snapshots, follower.merged), (1, 1));
    });
}

#[test]
fn draining_closes_everyone_with_1012_spread_over_time() {
    paused(async {
        let hub = hub();
        let mut clients = Vec::new();
        for _ in 0..10 {
            let mut client = hub.connect(1 << 12);
            client.init().await;
            clients.push(client);
        }
        let start = tokio::time::Instant::now();
        hub.shard.drain(Duration::from_secs(10));
        let mut when = Vec::new();
        for client in &mut clients {
            let Heard::Close(1012, _) = client.hear().await else { panic!("expected 1012") };
            when.push(start.elapsed().as_secs());
            client.send(&frame(0x88, &1012u16.to_be_bytes())).await;
        }
        assert_eq!(when, (0..10).collect::<Vec<_>>());
        hub.is_clean().await;
    });
}

fn init(payload: serde_json::Value) -> serde_json::Value {
    json!({"type": "connection_init", "payload": payload})
}

#[test]
fn credentials_that_take_time_to_check_hold_back_what_was_sent_with_them() {
    for sent_at_once in [true, false] {
        paused(async {
            let hub = hub();
            let mut client = hub.connect(1 << 16);
            let messages = [init(json!({"delayMs": 500})), subscribe("a", "fields", json!({}))];
            if sent_at_once {
                client.send(&messages.each_ref().map(text).concat()).await;
            } else {
                for message in &messages {
                    client.say(message).await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            let begin = tokio::time::Instant::now();
            assert_eq!(client.hear().await, Heard::Message(json!({"type": "connection_ack"})));
            assert!(begin.elapsed() >= Duration::from_millis(300));
            assert_eq!(data(&mut client, "a").await["reason"], "INITIAL");
        });
    }
}

#[test]
fn credentials_that_are_not_checked_in_time_or_refused_late_close_the_socket() {
    paused(async {
        let hub = hub();
        for (payload, code) in
            [(json!({"delayMs": 60_000}), 4408), (json!({"delayMs": 500, "refuse": 1}), 4403)]
        {
            let mut client = hub.connect(1 << 16);
            client.say(&init(payload)).await;
            let heard = client.hear().await;
            assert!(matches!(heard, Heard::Close(found, _) if found == code), "{heard:?}");
        }
    });
}

#[test]
fn a_socket_is_closed_when_its_credentials_expire() {
    paused(async {
        let hub = hub();
        let mut client = hub.connect(1 << 16);
        client.say(&init(json!({"lifetimeMs": 3_000}))).await;
        assert_eq!(client.hear().await, Heard::Message(json!({"type": "connection_ack"})));
        client.say(&subscribe("a", "fields", json!({}))).await;
        assert_eq!(data(&mut client, "a").await["reason"], "INITIAL");
        let begin = tokio::time::Instant::now();
        let heard = client.hear().await;
        assert!(matches!(&heard, Heard::Close(4403, reason) if reason.contains("sign in again")));
        assert!(begin.elapsed() <= Duration::from_millis(3_500));
        drop(client);
        hub.is_clean().await;
    });
}
