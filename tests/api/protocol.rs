//! The rules of graphql-transport-ws, message by message, over a raw socket. Where a test says
//! "nothing more", it has asked for a pong and seen it: a socket is one ordered stream.

use futures_util::SinkExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::harness::client::{self, LEGACY, MODERN};
use crate::harness::{Client, Hub, Seen, follower, market};

const MARKET: &str = "XBT-USD";
const TYPENAME: &str = "{ __typename }";

/// A hub with one market, once it answers for it.
async fn hub() -> Hub {
    hub_with(&[]).await
}

async fn hub_with(settings: &[&str]) -> Hub {
    let hub = Hub::start_with(settings);
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    Client::knowing(hub.address(), MARKET).await;
    hub
}

fn book() -> String {
    follower::subscription(MARKET, 25, None)
}

/// The code a connected client is closed with after this text.
async fn code_after(hub: &Hub, text: &str) -> u16 {
    let mut client = Client::connected(hub.address()).await;
    client.send_text(text).await;
    client.close_code().await
}

#[tokio::test]
async fn every_message_that_is_not_of_the_protocol_is_closed_with_4400() {
    let hub = Hub::start();
    let texts = [
        "",
        "not json",
        "null",
        "[]",
        "\"subscribe\"",
        "1",
        "{}",
        r#"{"type":null}"#,
        r#"{"type":1}"#,
        r#"{"type":"unknown"}"#,
        r#"{"type":"Subscribe","id":"1","payload":{"query":"{__typename}"}}"#,
        r#"{"type":"start","id":"1","payload":{"query":"{__typename}"}}"#,
        r#"{"type":"next","id":"1","payload":{}}"#,
        r#"{"type":"error","id":"1","payload":[]}"#,
        r#"{"type":"connection_ack"}"#,
        r#"{"type":"subscribe","payload":{"query":"{__typename}"}}"#,
        r#"{"type":"subscribe","id":"","payload":{"query":"{__typename}"}}"#,
        r#"{"type":"subscribe","id":1,"payload":{"query":"{__typename}"}}"#,
        r#"{"type":"subscribe","id":null,"payload":{"query":"{__typename}"}}"#,
        r#"{"type":"subscribe","id":"1"}"#,
        r#"{"type":"subscribe","id":"1","payload":null}"#,
        r#"{"type":"subscribe","id":"1","payload":"{__typename}"}"#,
        r#"{"type":"subscribe","id":"1","payload":[]}"#,
        r#"{"type":"subscribe","id":"1","payload":{}}"#,
        r#"{"type":"subscribe","id":"1","payload":{"query":null}}"#,
        r#"{"type":"subscribe","id":"1","payload":{"query":1}}"#,
        r#"{"type":"subscribe","id":"1","payload":{"query":["{__typename}"]}}"#,
        r#"{"type":"subscribe","id":"1","payload":{"query":"{__typename}","variables":[]}}"#,
        r#"{"type":"subscribe","id":"1","payload":{"query":"{__typename}","variables":"x"}}"#,
        r#"{"type":"subscribe","id":"1","payload":{"query":"{__typename}","operationName":1}}"#,
        r#"{"type":"subscribe","id":"1","payload":{"query":"{__typename}","extensions":1}}"#,
        r#"{"type":"complete"}"#,
        r#"{"type":"complete","id":""}"#,
        r#"{"type":"complete","id":1}"#,
        r#"{"type":"ping","payload":"text"}"#,
        r#"{"type":"ping","payload":[]}"#,
        r#"{"type":"pong","payload":1}"#,
    ];
    for text in texts {
        assert_eq!(code_after(&hub, text).await, 4400, "{text}");
    }
}

#[tokio::test]
async fn a_binary_message_is_closed_with_4400() {
    let hub = Hub::start();
    let mut client = Client::connected(hub.address()).await;
    client.send_raw(Message::binary(json!({"type": "ping"}).to_string())).await;
    assert_eq!(client.close_code().await, 4400);
}

#[tokio::test]
async fn a_message_of_no_protocol_before_the_ack_is_closed_with_4400() {
    let hub = Hub::start();
    for text in ["nonsense", "{}", r#"{"type":"connection_init","payload":"text"}"#] {
        let mut client = Client::opened(hub.address()).await;
        client.send_text(text).await;
        assert_eq!(client.close_code().await, 4400, "{text}");
    }
}

#[tokio::test]
async fn nulls_where_the_protocol_lets_a_value_be_absent_are_let_through() {
    let hub = Hub::start();
    let mut client = Client::opened(hub.address()).await;
    client.send(json!({"type": "connection_init", "payload": null})).await;
    assert_eq!(client.message().await["type"], "connection_ack");
    let payload = json!({
        "query": TYPENAME, "operationName": null, "variables": null, "extensions": null,
    });
    client.subscribe_with("1", payload).await;
    assert_eq!(client.message().await["payload"]["data"]["__typename"], "Query");
    assert_eq!(client.message().await, json!({"type": "complete", "id": "1"}));
}

#[tokio::test]
async fn a_subscribe_before_the_ack_is_closed_with_4401() {
    let hub = Hub::start();
    let mut client = Client::opened(hub.address()).await;
    client.subscribe("1", TYPENAME).await;
    assert_eq!(client.close_code().await, 4401);
}

#[tokio::test]
async fn a_socket_with_no_common_protocol_is_accepted_and_closed_with_4406() {
    let hub = Hub::start();
    for offered in [None, Some("mqtt"), Some("")] {
        let mut client = client::open_without_protocol(hub.address(), offered).await;
        assert_eq!(client.close_code().await, 4406);
    }
}

#[tokio::test]
async fn the_newer_protocol_is_chosen_when_both_are_offered() {
    let hub = Hub::start();
    let both = format!("{LEGACY}, {MODERN}");
    let Ok(mut client) = client::open(hub.address(), &[("sec-websocket-protocol", &both)]).await
    else {
        panic!("refused");
    };
    client.send(json!({"type": "connection_init"})).await;
    assert_eq!(client.message().await["type"], "connection_ack");
    assert_eq!(client.until_pong().await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_socket_without_an_init_in_time_is_closed_with_4408() {
    let hub = Hub::start_with(&["limits.init_timeout_ms=100"]);
    let mut client = Client::opened(hub.address()).await;
    assert_eq!(client.close_code().await, 4408);
}

#[tokio::test]
async fn a_doubled_id_is_closed_with_4409() {
    let hub = hub().await;
    let mut client = Client::connected(hub.address()).await;
    client.subscribe("1", &book()).await;
    assert_eq!(client.message().await["type"], "next");
    client.subscribe("1", TYPENAME).await;
    assert_eq!(client.close_code().await, 4409);
}

#[tokio::test]
async fn a_doubled_id_within_one_segment_is_closed_with_4409() {
    let hub = hub().await;
    let mut client = Client::connected(hub.address()).await;
    let message = json!({"type": "subscribe", "id": "1", "payload": {"query": book()}});
    client.send_together(&[message.clone(), message]).await;
    assert_eq!(client.close_code().await, 4409);
}

#[tokio::test]
async fn a_second_init_is_closed_with_4429() {
    let hub = Hub::start();
    let mut client = Client::connected(hub.address()).await;
    client.send(json!({"type": "connection_init"})).await;
    assert_eq!(client.close_code().await, 4429);

    let mut client = Client::opened(hub.address()).await;
    let init = json!({"type": "connection_init"});
    client.send_together(&[init.clone(), init]).await;
    assert_eq!(client.close_code().await, 4429);
}

#[tokio::test]
async fn a_message_above_its_limit_is_closed_with_1009() {
    let hub = Hub::start_with(&[
        "limits.message_bytes=4096",
        "limits.message_bytes_before_ack=2048",
        "limits.markets_per_subscription=20",
    ]);
    let padded = |bytes: usize| {
        let empty = json!({"type": "ping", "payload": {"pad": ""}}).to_string().len();
        json!({"type": "ping", "payload": {"pad": "x".repeat(bytes - empty)}})
    };
    let mut client = Client::connected(hub.address()).await;
    client.send(padded(4096)).await;
    assert_eq!(client.message().await["type"], "pong");
    client.send(padded(4097)).await;
    assert_eq!(client.close_code().await, 1009);

    let mut client = Client::opened(hub.address()).await;
    client.send(padded(2048)).await;
    assert_eq!(client.message().await["type"], "pong");
    client.send(padded(2049)).await;
    assert_eq!(client.close_code().await, 1009);
}

#[tokio::test]
async fn a_foreign_origin_gets_403_before_the_upgrade() {
    let hub = Hub::start_with(&["server.origins=https://app.example"]);
    let status = async |origin: &str| {
        let headers = [("sec-websocket-protocol", MODERN), ("origin", origin)];
        match client::open(hub.address(), &headers).await {
            Ok(_) => 101,
            Err(response) => response.status().as_u16(),
        }
    };
    assert_eq!(status("https://evil.example").await, 403);
    assert_eq!(status("null").await, 403);
    assert_eq!(status("https://app.example").await, 101);
    assert_eq!(status(&format!("http://{}", hub.address())).await, 101);
}

#[tokio::test]
async fn one_socket_too_many_from_an_address_gets_429() {
    let hub = Hub::start_with(&["limits.sockets_per_address=2", "limits.exempt_loopback=false"]);
    let first = Client::connected(hub.address()).await;
    let _second = Client::connected(hub.address()).await;
    let headers = [("sec-websocket-protocol", MODERN)];
    let Err(response) = client::open(hub.address(), &headers).await else {
        panic!("a third socket was let in");
    };
    assert_eq!(response.status(), 429);
    drop(first);
}

#[tokio::test]
async fn a_validation_or_syntax_error_is_one_error_and_the_socket_lives() {
    let hub = Hub::start();
    let mut client = Client::connected(hub.address()).await;
    let faulty = [
        "subscription {",
        "{ nothing }",
        "subscription { nothing }",
        "",
        "query A {a} query B {b}",
    ];
    for (number, query) in faulty.into_iter().enumerate() {
        let id = number.to_string();
        client.subscribe(&id, query).await;
        let answer = client.message().await;
        assert_eq!((&answer["type"], &answer["id"]), (&json!("error"), &json!(id)), "{answer}");
        assert!(answer["payload"].as_array().is_some_and(|all| !all.is_empty()), "{answer}");
        let code = &answer["payload"][0]["extensions"]["code"];
        assert!(code == "VALIDATION_FAILED" || code == "BAD_REQUEST", "{answer}");
        assert_eq!(client.until_pong().await, Vec::<Value>::new(), "{query}");
    }
    client.subscribe("live", TYPENAME).await;
    assert_eq!(client.message().await["payload"]["data"]["__typename"], "Query");
}

#[tokio::test]
async fn a_complete_is_never_answered() {
    let hub = hub().await;
    let mut client = Client::connected(hub.address()).await;
    client.subscribe("1", &book()).await;
    assert_eq!(client.message().await["type"], "next");
    client.send(json!({"type": "complete", "id": "1"})).await;
    client.send(json!({"type": "complete", "id": "1"})).await;
    client.send(json!({"type": "complete", "id": "never-used"})).await;
    assert_eq!(client.until_pong().await, Vec::<Value>::new());
}

#[tokio::test]
async fn nothing_is_sent_for_an_operation_after_its_complete() {
    let hub = hub().await;
    let mut watcher = Client::connected(hub.address()).await;
    watcher.subscribe("w", &book()).await;
    let mut copy = follower::Follower::new(1, 8);
    copy.apply(&watcher.message().await);

    let mut client = Client::connected(hub.address()).await;
    client.subscribe("1", &book()).await;
    assert_eq!(client.message().await["type"], "next");
    client.send(json!({"type": "complete", "id": "1"})).await;
    assert_eq!(client.until_pong().await, Vec::<Value>::new());

    let lines: Vec<_> = (0..20).map(|number| market::step(MARKET, number)).collect();
    hub.append_lines("book.ndjson", &lines);
    let awaited = market::bids_after(20);
    watcher.follow(&mut copy, |copy| copy.bids == awaited).await;
    // The other listener has everything, so this one's share would have been sent by now.
    assert_eq!(client.until_pong().await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_reused_id_does_not_revive_its_predecessor() {
    let hub = hub().await;
    let mut client = Client::connected(hub.address()).await;
    for _ in 0..50 {
        client
            .send_together(&[
                json!({"type": "subscribe", "id": "1", "payload": {"query": book()}}),
                json!({"type": "complete", "id": "1"}),
            ])
            .await;
    }
    client.subscribe("1", TYPENAME).await;
    // Snapshots of the ended ones may have left before their complete was read; after the
    // first answer to the last one there is its complete and nothing else.
    loop {
        let message = client.message().await;
        assert_eq!(message["type"], "next", "{message}");
        if message["payload"]["data"]["__typename"] == "Query" {
            break;
        }
    }
    assert_eq!(client.message().await, json!({"type": "complete", "id": "1"}));
    assert_eq!(client.until_pong().await, Vec::<Value>::new());
}

#[tokio::test]
async fn an_id_is_free_again_after_the_servers_complete_and_after_an_error() {
    let hub = Hub::start();
    let mut client = Client::connected(hub.address()).await;
    for query in [TYPENAME, "{ nothing }", TYPENAME] {
        client.subscribe("1", query).await;
        if client.message().await["type"] == "next" {
            assert_eq!(client.message().await, json!({"type": "complete", "id": "1"}));
        }
    }
    assert_eq!(client.until_pong().await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_ping_is_answered_with_its_payload_before_and_after_the_init() {
    let hub = Hub::start();
    let mut client = Client::opened(hub.address()).await;
    let ping = json!({"type": "ping", "payload": {"deep": [1, {"text": "\u{e9}\u{1f600}"}]}});
    let pong = json!({"type": "pong", "payload": {"deep": [1, {"text": "\u{e9}\u{1f600}"}]}});
    client.send(ping.clone()).await;
    assert_eq!(client.message().await, pong);
    client.send(json!({"type": "connection_init"})).await;
    assert_eq!(client.message().await["type"], "connection_ack");
    client.send(ping).await;
    assert_eq!(client.message().await, pong);
    client.send(json!({"type": "ping"})).await;
    assert_eq!(client.message().await, json!({"type": "pong"}));
    client.send(json!({"type": "pong"})).await;
    client.send(json!({"type": "pong", "payload": {"unasked": true}})).await;
    assert_eq!(client.until_pong().await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_websocket_ping_is_answered_with_its_payload() {
    let hub = Hub::start();
    let mut client = Client::opened(hub.address()).await;
    client.send_raw(Message::Ping("frame".into())).await;
    loop {
        match futures_util::StreamExt::next(&mut client.socket).await.unwrap().unwrap() {
            Message::Pong(payload) => break assert_eq!(&payload[..], b"frame"),
            other => assert!(matches!(other, Message::Text(_) | Message::Ping(_)), "{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_subscribe_beyond_the_operations_of_a_socket_is_refused_with_the_limit() {
    let hub =
        hub_with(&["limits.operations_per_socket=2", "limits.pending_operations_per_socket=2"])
            .await;
    let mut client = Client::connected(hub.address()).await;
    for id in ["1", "2"] {
        client.subscribe(id, &book()).await;
        assert_eq!(client.message().await["id"], id);
    }
    client.subscribe("3", &book()).await;
    let answer = client.message().await;
    assert_eq!((&answer["type"], &answer["id"]), (&json!("error"), &json!("3")), "{answer}");
    let extensions = &answer["payload"][0]["extensions"];
    assert_eq!(extensions["code"], "LIMIT_EXCEEDED", "{answer}");
    assert_eq!((&extensions["limit"], &extensions["current"]), (&json!(2), &json!(2)), "{answer}");
    assert_eq!(client.until_pong().await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_clients_close_is_answered_with_its_code() {
    let hub = Hub::start();
    let mut client = Client::connected(hub.address()).await;
    let frame = CloseFrame { code: CloseCode::Library(4999), reason: "done".into() };
    client.socket.send(Message::Close(Some(frame))).await.unwrap();
    assert!(matches!(client.seen().await, Seen::Closed(4999, _)));

    let mut client = Client::connected(hub.address()).await;
    client.socket.send(Message::Close(None)).await.unwrap();
    assert_eq!(client.seen().await, Seen::Closed(client::NO_CODE, String::new()));
}

#[tokio::test]
async fn a_request_that_is_no_websocket_does_not_end_the_hub() {
    let hub = Hub::start();
    let requests: [&[u8]; 3] = [
        b"GET /graphql HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /graphql HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Version: 7\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    ];
    for request in requests {
        let mut stream = TcpStream::connect(hub.address()).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = [0; 12];
        let read = stream.read(&mut answer).await.unwrap_or(0);
        assert!(read == 0 || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    }
    Client::connected(hub.address()).await;
}

#[tokio::test]
async fn a_client_of_the_legacy_protocol_alone_is_served_in_it() {
    let hub = Hub::start();
    let mut client = Client::opened_as(hub.address(), LEGACY).await;
    client.send(json!({"type": "connection_init"})).await;
    assert_eq!(client.message().await["type"], "connection_ack");
    assert_eq!(client.message().await["type"], "ka");
    let payload = json!({"query": TYPENAME});
    client.send(json!({"type": "start", "id": "1", "payload": payload})).await;
    assert_eq!(client.message().await["type"], "data");
    assert_eq!(client.message().await["type"], "complete");
}
