//! How large a frame can be: stock clients close at a message above their limit, which is 1 MiB by
//! default in Python's `websockets`.

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::client::PATIENCE;
use crate::harness::{Client, Hub, loud};

const MOST_FRAME_BYTES: usize = 1 << 20;
/// Of a message's data as it is sent.
const MOST_DATA_BYTES: usize = 1_000_000;
const FIELDS: &str = "__typename topic epoch sequence prevSequence reason cursor eventTime publishTime \
    state events { __typename id topic data time sequence }";

fn line(topic: &str, id: &str, data: &str) -> String {
    let head = json!({"kind": "message", "topic": topic, "id": id, "time": "2026-01-01T00:00:00Z"});
    let head = head.to_string();
    format!("{},\"data\":{data}}}", head.strip_suffix('}').unwrap())
}

/// Reads frames until so many events came; the bytes of the largest frame, and the last cursor.
async fn read(client: &mut Client, mut events: usize) -> (usize, String) {
    let (mut largest, mut cursor) = (0, String::new());
    while events > 0 {
        let next = tokio::time::timeout(PATIENCE, client.socket.next()).await;
        let Message::Text(text) = next.expect("the events come").unwrap().unwrap() else {
            continue;
        };
        largest = largest.max(text.len());
        let message: Value = serde_json::from_str(&text).unwrap();
        let frame = &message["payload"]["data"]["events"];
        cursor = frame["cursor"].as_str().unwrap_or_else(|| panic!("{message}")).to_owned();
        events -= frame["events"].as_array().unwrap().len();
    }
    (largest, cursor)
}

#[tokio::test]
async fn no_line_that_is_taken_becomes_a_frame_that_a_stock_client_refuses() {
    let hub = Hub::start();
    // As long as each may be: what is around the data, and four bytes a character.
    let topic = "\u{1d54a}".repeat(128);
    let id = |number: usize| format!("{number:\"<128}");
    let operation = "o".repeat(128);
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    let numbers = |count: usize| format!("[{}]", vec!["1e15"; count].join(","));
    let taken = [
        text(MOST_DATA_BYTES),
        numbers((MOST_DATA_BYTES - 1) / 5),
        numbers(5_000),
        numbers(5_000),
        text(40_000),
        text(MOST_DATA_BYTES),
    ];
    let mut lines: Vec<_> =
        taken.iter().enumerate().map(|(number, data)| line(&topic, &id(number), data)).collect();
    // Many short ones fill frames too.
    lines.extend((100..300).map(|number| line(&topic, &id(number), &numbers(150))));
    let events = lines.len();
    let query = |after: Option<&str>| {
        let after = after.map_or(String::new(), |after| format!(", after: {}", json!(after)));
        let topic = json!(topic);
        format!("subscription {{ events(topic: {topic}{after}) {{ {FIELDS} }} }}")
    };
    let mut live = Client::connected(hub.address()).await;
    live.subscribe(&operation, &query(None)).await;
    let began = live.message().await["payload"]["data"]["events"]["cursor"].clone();
    hub.append_lines("messages.ndjson", &lines);
    let (largest, _) = read(&mut live, events).await;
    assert!(largest > MOST_DATA_BYTES && largest <= MOST_FRAME_BYTES, "{largest} as they came");

    let mut late = Client::connected(hub.address()).await;
    late.subscribe(&operation, &query(began.as_str())).await;
    let (largest, _) = read(&mut late, events).await;
    assert!(largest > MOST_DATA_BYTES && largest <= MOST_FRAME_BYTES, "{largest} from the log");

    let refused = [text(MOST_DATA_BYTES + 1), numbers(MOST_DATA_BYTES / 5 + 1)];
    for (number, data) in refused.iter().enumerate() {
        hub.append_lines("messages.ndjson", &[line(&topic, "more", data)]);
        let count = (number + 1).to_string();
        let feed =
            hub.until_feed("files", "the refusal", |feed| feed["refusedTotal"] == *count).await;
        let reason = feed["lastRefusal"]["reason"].as_str().unwrap();
        assert!(reason.contains("at most 1000000 fit: split it into several events"), "{reason}");
    }
}

const DEPTH: usize = 1_500;

/// A book of `DEPTH` levels a side, as long as numbers can be, and without a level that the other
/// one of these has.
fn book(kind: &str, other: bool) -> String {
    let level = |number: usize| {
        let price = format!("1{number:04}{:016}.{:018}", 0, usize::from(other) + 1);
        json!([price, format!("2{:020}.{number:018}", 0)])
    };
    let side = |first: usize| (first..first + DEPTH).map(level).collect::<Vec<_>>();
    json!({"kind": kind, "market": "L-L", "bids": side(1_000), "asks": side(5_000)}).to_string()
}

#[tokio::test]
async fn no_frame_of_a_book_to_a_depth_of_1500_is_one_that_a_stock_client_refuses() {
    let hub = Hub::start();
    let market = json!({
        "kind": "market", "market": "L-L", "base": "L", "quote": "L", "priceDecimals": 18,
        "sizeDecimals": 18,
    });
    hub.append_lines("book.ndjson", &[market.to_string(), book("book.snapshot", false)]);
    let mut client = Client::knowing(hub.address(), "L-L").await;
    // The market may be there before its book is.
    let has_book = r#"{ orderBook(market: "L-L", depth: 1) { bids { price } } }"#;
    while hub.query(has_book)["orderBook"]["bids"] == json!([]) {
        tokio::task::yield_now().await;
    }
    let levels = "{ __typename price size orders }";
    let sides = format!("bids {levels} asks {levels}");
    let query = format!(
        "subscription {{ orderBook(market: \"L-L\", depth: {DEPTH}) {{ __typename market epoch sequence \
         cursor checksum eventTime publishTime ... on BookSnapshot {{ reason depth {sides} }} \
         ... on BookDelta {{ prevSequence mergedEvents {sides} }} }} }}"
    );
    client.subscribe(&"o".repeat(128), &query).await;
    let mut next = async || loop {
        let next = tokio::time::timeout(PATIENCE, client.socket.next()).await;
        let Message::Text(text) = next.expect("a frame comes").unwrap().unwrap() else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        let frame = &message["payload"]["data"]["orderBook"];
        if frame["__typename"] != "BookHeartbeat" {
            break (text.len(), frame["bids"].as_array().unwrap().len());
        }
    };
    let snapshot = next().await;
    // Every level of the window leaves, and as many others come.
    hub.append_lines("book.ndjson", &[book("book.snapshot", true)]);
    let change = next().await;
    assert_eq!((snapshot.1, change.1), (DEPTH, 2 * DEPTH));
    loud::say(&format!("a book of {DEPTH} levels a side: {} and {} bytes", snapshot.0, change.0));
    assert!(snapshot.0.max(change.0) <= MOST_FRAME_BYTES);
}
