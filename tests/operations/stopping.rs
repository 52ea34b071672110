//! The end of a hub that is asked to stop: what it still serves, and until when.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::json;

use crate::harness::client::PATIENCE;
use crate::harness::{Client, Hub, http, until};

const FOLLOW: &str = "subscription { feedStatus { state } }";
const FOREVER: &str = "3600000";
const REQUEST: &str = "GET /graphql?query=%7B__typename%7D HTTP/1.1\r\nHost: hub\r\n\r\n";

fn hub(delay: &str, drain: &str) -> Hub {
    let (delay, drain) =
        (format!("server.drain_delay_ms={delay}"), format!("server.drain_ms={drain}"));
    Hub::start_with(&[&delay, &drain, "server.shards=1"])
}

/// What the hub is doing, by its metrics.
fn stage(hub: &Hub) -> String {
    let (_, page) = hub.admin_page("/metrics");
    let mut stages = page.lines().filter_map(|line| {
        let (stage, value) =
            line.strip_prefix("spreadly_hub_stage{stage=\"")?.split_once("\"} ")?;
        (value == "1").then(|| stage.to_owned())
    });
    let stage = stages.next().unwrap_or_else(|| panic!("no stage in {page}"));
    assert_eq!(stages.next(), None, "two stages in {page}");
    stage
}

fn answered(hub: &Hub) -> bool {
    http::post(hub.address(), &json!({"query": "{ __typename }"})).status == 200
}

/// A connection that has had an answer, as a proxy keeps it.
fn kept(hub: &Hub) -> TcpStream {
    let mut kept = TcpStream::connect(hub.address()).unwrap();
    kept.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(answer(&mut kept).starts_with("HTTP/1.1 200"));
    kept
}

/// What comes next on a kept connection.
fn answer(kept: &mut TcpStream) -> String {
    kept.write_all(REQUEST.as_bytes()).unwrap();
    let mut bytes = [0; 4096];
    let read = kept.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

/// A client that has the first frame of what it follows.
async fn following(hub: &Hub) -> Client {
    let mut client = Client::connected(hub.address()).await;
    client.subscribe("1", FOLLOW).await;
    assert_eq!(client.message().await["type"], "next");
    client
}

#[tokio::test]
async fn a_hub_that_leaves_serves_new_clients_until_its_delay_is_over() {
    let mut hub = hub(FOREVER, FOREVER);
    assert_eq!((hub.admin_page("/readyz").0, &*stage(&hub)), (200, "running"));
    let mut kept = kept(&hub);
    let mut before = [following(&hub).await, following(&hub).await];
    hub.terminate();
    until("a hub that is not ready", async || hub.admin_page("/readyz").0 == 503).await;
    assert!(hub.admin_page("/readyz").1.contains("new connections are served"));
    assert_eq!((hub.admin_page("/livez").0, &*stage(&hub)), (200, "leaving"));
    assert!(hub.log().contains("new connections are still served"), "{}", hub.log());
    assert!(answered(&hub));
    let answer = answer(&mut kept).to_lowercase();
    assert!(answer.starts_with("http/1.1 200") && !answer.contains("connection: close"));
    drop(kept);
    let mut after = following(&hub).await;
    // Nobody was sent away: those of before have heard nothing but that their feed lives.
    for client in &mut before {
        let frames = client.until_pong().await;
        assert!(frames.iter().all(|frame| frame["type"] == "next"), "{frames:?}");
    }

    hub.terminate();
    for client in before.iter_mut().chain([&mut after]) {
        assert_eq!(client.close_code().await, 1012);
    }
    assert_eq!(hub.exited().code(), Some(0));
    assert!(TcpStream::connect(hub.address()).is_err());
}

#[tokio::test]
async fn after_its_delay_a_hub_accepts_nobody_and_a_second_signal_ends_its_drain() {
    let mut hub = hub("1", FOREVER);
    // The first closes at once, the others are spread over an hour.
    let mut clients = [
        following(&hub).await,
        following(&hub).await,
        following(&hub).await,
        following(&hub).await,
    ];
    hub.terminate();
    let last = &mut clients[3];
    while last.message().await["payload"]["data"]["feedStatus"]["state"] != "SHUTTING_DOWN" {}
    assert!(TcpStream::connect(hub.address()).is_err(), "it still accepts");
    assert_eq!((hub.admin_page("/readyz").0, &*stage(&hub)), (503, "draining"));
    assert!(last.until_pong().await.iter().all(|frame| frame["type"] == "next"));
    hub.terminate();
    for client in &mut clients {
        assert_eq!(client.close_code().await, 1012);
    }
    assert_eq!(hub.exited().code(), Some(0));
}

/// A proxy sends an upgrade into a connection that it has kept, also while the hub drains.
#[tokio::test]
async fn a_websocket_that_comes_while_the_hub_drains_is_closed_with_1012() {
    let mut hub = hub("0", "60000");
    let mut kept = kept(&hub);
    hub.terminate();
    until("the drain", async || stage(&hub) == "draining").await;
    let upgrade = "GET /graphql HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n";
    kept.write_all(upgrade.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let frame = loop {
        let mut bytes = [0; 4096];
        let read = kept.read(&mut bytes).unwrap();
        assert!(read > 0, "no close frame in {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&bytes[..read]);
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some([kind, _, high, low, ..]) = head.map(|head| &answer[head + 4..]) {
            break (*kind, u16::from_be_bytes([*high, *low]));
        }
    };
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    assert_eq!(frame, (0x88, 1012));
    drop(kept);
    assert_eq!(hub.exited().code(), Some(0));
}
