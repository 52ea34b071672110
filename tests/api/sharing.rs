//! One execution for each event and operation key, whichever subscription it is: what is encoded
//! once is delivered to everyone who asked for the same.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::client::PATIENCE;
use crate::harness::{Client, Hub, market};

const MARKET: &str = "XBT-USD";
const BY_ORDERS: &str = "ERG-USD";
const CLIENTS: usize = 5;
const EVENTS: usize = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// A subscription, and the line of an event that it publishes.
type Case = (&'static str, &'static str, fn(usize) -> String);

const CASES: [Case; 9] = [
    ("orderBook", r#"orderBook(market: "XBT-USD") { __typename }"#, best_bid),
    ("orderBook by orders", r#"orderBook(market: "ERG-USD") { __typename }"#, order),
    ("bestBidOffer", r#"bestBidOffer(markets: ["XBT-USD"]) { sequence }"#, best_bid),
    ("trades", r#"trades(markets: ["XBT-USD"]) { sequence }"#, trade),
    ("candles", r#"candles(market: "XBT-USD", interval: M1) { sequence }"#, trade),
    ("tickers", r#"tickers(markets: ["XBT-USD"]) { sequence }"#, trade),
    ("orders", r#"orders(market: "ERG-USD") { sequence }"#, order),
    ("events", r#"events(topic: "news") { sequence }"#, message),
    ("feedStatus", "feedStatus { refusedTotal }", |_| "no event".to_owned()),
];

fn best_bid(number: usize) -> String {
    market::delta(MARKET, &[("100.0", &format!("{}.00000000", 2 + number))], &[])
}

fn trade(number: usize) -> String {
    json!({
        "kind": "trade", "market": MARKET, "price": format!("{}.5", 100 + number), "size": "1",
        "takerSide": "BUY", "time": market::TIME,
    })
    .to_string()
}

fn order(number: usize) -> String {
    json!({
        "kind": "order.placed", "market": BY_ORDERS, "order": format!("o{number}"), "side": "BUY",
        "price": "1.5", "size": "1", "time": market::TIME,
    })
    .to_string()
}

fn message(number: usize) -> String {
    json!({"kind": "message", "topic": "news", "data": number}).to_string()
}

/// Results encoded, and results handed to sockets.
fn counts(hub: &Hub) -> (usize, usize) {
    let (_, page) = hub.admin_page("/metrics");
    let count = |name: &str| {
        let line = page.lines().find(|line| line.starts_with(&format!("spreadly_{name}_total ")));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap()
    };
    (count("frames_published"), count("frames_delivered"))
}

#[tokio::test]
async fn every_subscription_is_executed_once_an_event_for_all_who_ask_for_the_same() {
    for (name, field, line) in CASES {
        let hub = Hub::start();
        hub.append_lines("markets.ndjson", &market::beginning(MARKET));
        hub.append_lines("markets.ndjson", &[market::definition(BY_ORDERS)]);
        Client::knowing(hub.address(), BY_ORDERS).await;
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = Client::connected(hub.address()).await;
            client.subscribe("1", &format!("subscription {{ {field} }}")).await;
            assert_eq!(client.message().await["type"], "next", "{name}");
            clients.push(client);
        }
        let lines: Vec<_> = (0..EVENTS).map(line).collect();
        hub.append_lines("events.ndjson", &lines);
        // How feeds do is published in steps, everything else event by event.
        let least = if name == "feedStatus" { 1 } else { EVENTS };
        let began = Instant::now();
        let published = loop {
            let (published, delivered) = counts(&hub);
            // Each had its first frame beside what was published.
            if published >= least && delivered == CLIENTS * (1 + published) {
                break published;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{name}: {published} results for {EVENTS} events, {delivered} delivered"
            );
            tokio::time::sleep(BETWEEN_LOOKS).await;
        };
        // Heartbeats are among them; one execution a client would be five times as many.
        assert!(published < 2 * EVENTS, "{name}: {published} results for {EVENTS} events");
    }
}
