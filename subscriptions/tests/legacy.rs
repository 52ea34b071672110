//! The older subprotocol `graphql-ws`, at the engine: its messages over the same session.

use serde_json::{Value, json};
use spreadly_subscriptions::{Dialect, Limits, StreamLimits};

use super::client::{Client, Heard};
use super::{Hub, paused};

fn hub() -> Hub {
    Hub::start(Limits::default(), StreamLimits::default())
}

fn start(id: &str, query: &str) -> Value {
    json!({"type": "start", "id": id, "payload": {"query": query}})
}

fn message(value: Value) -> Heard {
    Heard::Message(value)
}

async fn acknowledged(hub: &Hub) -> Client {
    let mut client = hub.connect_as(Dialect::LegacyWs, 1 << 16);
    client.say(&json!({"type": "connection_init", "payload": {}})).await;
    assert_eq!(client.hear().await, message(json!({"type": "connection_ack"})));
    assert_eq!(client.hear().await, message(json!({"type": "ka"})));
    client
}

#[test]
fn a_result_is_data_and_a_stop_is_answered_once() {
    paused(async {
        let hub = hub();
        let mut client = acknowledged(&hub).await;
        client.say(&start("1", "ask")).await;
        let data = json!({"id": "1", "type": "data", "payload": {"data": {"ask": 0}}});
        assert_eq!(client.hear().await, message(data));
        assert_eq!(client.hear().await, message(json!({"id": "1", "type": "complete"})));

        client.say(&start("2", "fields")).await;
        let Heard::Message(first) = client.hear().await else { panic!("no first result") };
        assert_eq!((&first["id"], &first["type"]), (&json!("2"), &json!("data")));
        for stop in ["2", "2", "never begun"] {
            client.say(&json!({"type": "stop", "id": stop})).await;
        }
        hub.board.set(1, 1, 0);
        client.say(&start("3", "ask")).await;
        // One answer to three stops, and nothing of what was stopped.
        assert_eq!(client.hear().await, message(json!({"id": "2", "type": "complete"})));
        let Heard::Message(next) = client.hear().await else { panic!("no result") };
        assert_eq!(next["id"], "3");
    });
}

#[test]
fn a_stream_goes_on_in_data_messages() {
    paused(async {
        let hub = hub();
        let mut client = acknowledged(&hub).await;
        client.say(&start("a", "fields")).await;
        client.hear().await;
        for value in 1..=3 {
            hub.board.set(1, value, 0);
            let Heard::Message(next) = client.hear().await else { panic!("no result") };
            assert_eq!((&next["id"], &next["type"]), (&json!("a"), &json!("data")));
        }
    });
}

#[test]
fn a_start_before_the_init_is_closed_with_4401() {
    paused(async {
        let hub = hub();
        let mut client = hub.connect_as(Dialect::LegacyWs, 1 << 16);
        client.say(&start("1", "ask")).await;
        assert!(matches!(client.hear().await, Heard::Close(4401, _)));
    });
}

#[test]
fn a_refused_operation_is_one_error_object_and_the_socket_lives() {
    paused(async {
        let hub = hub();
        let mut client = acknowledged(&hub).await;
        client.say(&start("1", "nonsense")).await;
        let payload = json!({"message": "unknown", "errors": [{"message": "unknown"}]});
        let error = json!({"id": "1", "type": "error", "payload": payload});
        assert_eq!(client.hear().await, message(error));
        client.say(&start("1", "ask")).await;
        let Heard::Message(next) = client.hear().await else { panic!("no result") };
        assert_eq!(next["type"], "data");
    });
}

#[test]
fn a_refused_client_gets_a_message_and_a_close_code() {
    paused(async {
        let hub = hub();
        let mut client = hub.connect_as(Dialect::LegacyWs, 1 << 16);
        client.say(&json!({"type": "connection_init", "payload": {"refuse": 1}})).await;
        let Heard::Message(refused) = client.hear().await else { panic!("no message") };
        assert_eq!(refused["type"], "connection_error");
        assert!(refused["payload"]["message"].is_string());
        assert!(matches!(client.hear().await, Heard::Close(4403, _)));
    });
}

#[test]
fn each_fault_has_the_code_it_has_in_the_newer_protocol() {
    let init = json!({"type": "connection_init"});
    let cases = [
        (vec![json!({"type": "subscribe", "id": "1", "payload": {"query": "ask"}})], 4400),
        (vec![json!({"type": "ping"})], 4400),
        (vec![init.clone(), init.clone()], 4429),
        (vec![init.clone(), start("1", "fields"), start("1", "fields")], 4409),
        (vec![init, json!({"type": "connection_terminate"})], 1000),
    ];
    for (says, code) in cases {
        paused(async {
            let hub = hub();
            let mut client = hub.connect_as(Dialect::LegacyWs, 1 << 16);
            for one in &says {
                client.say(one).await;
            }
            let closed = loop {
                match client.hear().await {
                    Heard::Message(_) => {}
                    other => break other,
                }
            };
            assert!(matches!(closed, Heard::Close(heard, _) if heard == code), "{closed:?}");
        });
    }
}

#[test]
fn a_quiet_socket_hears_ka_beside_each_ping() {
    paused(async {
        let hub = hub();
        let mut client = acknowledged(&hub).await;
        for _ in 0..3 {
            assert_eq!(client.hear().await, Heard::Ping);
            assert_eq!(client.hear().await, message(json!({"type": "ka"})));
            // The pong of a WebSocket: masked, without payload.
            client.send(&super::client::frame(0x8A, b"")).await;
        }
    });
}
