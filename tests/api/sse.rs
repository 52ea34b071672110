//! Server-sent events: the protocol of npm `graphql-sse` for distinct connections, and what a
//! stream of events shares with the WebSockets beside it.

use serde_json::{Value, json};

use crate::harness::client::{self, MODERN};
use crate::harness::events::{Event, Events};
use crate::harness::{Client, Follower, Hub, follower, loud, market};

const MARKET: &str = "XBT-USD";

const TAKEN: &str = "spreadly_feed_events_total{feed=\"files\"}";
const ADVANCED: &str = "spreadly_streams_advanced_total";

async fn hub_with(settings: &[&str]) -> Hub {
    let hub = Hub::start_with(settings);
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    Client::knowing(hub.address(), MARKET).await;
    hub
}

fn book() -> Value {
    json!({ "query": follower::subscription(MARKET, 25, None) })
}

fn open(hub: &Hub, headers: &[&str]) -> Events {
    let events = Events::open(hub.address(), &book(), headers);
    assert_eq!((events.status, &*events.content_type), (200, "text/event-stream; charset=utf-8"));
    events
}

/// A result as a WebSocket would bring it.
fn message(result: Value) -> Value {
    json!({"type": "next", "id": "book", "payload": result})
}

fn metric(hub: &Hub, name: &str) -> u64 {
    let (_, page) = hub.admin_page("/metrics");
    let line = page.lines().find(|line| line.split(' ').next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name}:\n{page}"))
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// Waits for a count that what happened before must bring about.
fn until(hub: &Hub, name: &str, count: u64) {
    let deadline = std::time::Instant::now() + client::PATIENCE;
    while metric(hub, name) != count {
        assert!(std::time::Instant::now() < deadline, "{name} never was {count}");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn each_result_is_an_event_with_its_cursor_and_the_last_id_resumes() {
    let hub = hub_with(&[]).await;
    let mut events = open(&hub, &[]);
    let mut copy = Follower::new(1, 8);
    assert_eq!(events.event(), Some(Event::Comment(String::new())));
    let (_, first) = events.next();
    copy.apply(&message(first));
    let mut seen = None;
    for number in 0..5 {
        hub.append_lines("book.ndjson", &[market::step(MARKET, number)]);
        let (id, result) = events.next();
        assert_eq!(Value::from(id.clone().unwrap()), result["extensions"]["cursor"]);
        copy.apply(&message(result));
        seen = id;
    }
    events.hang_up();
    hub.append_lines("book.ndjson", &[market::step(MARKET, 5)]);

    let last = format!("Last-Event-ID: {}", seen.unwrap());
    let mut events = open(&hub, &[&last]);
    while copy.bids != market::bids_after(6) {
        copy.apply(&message(events.next().1));
    }
    assert_eq!(copy.snapshots, 1, "resumed, not started again");

    // It wins over what the request says.
    let mut request = book();
    request["extensions"] = json!({"after": "nonsense"});
    let mut events = Events::open(hub.address(), &request, &[&last]);
    assert!(events.next().1["errors"].is_null());
    let mut events = Events::open(hub.address(), &request, &[]);
    let (id, refused) = events.next();
    assert_eq!(refused["errors"][0]["extensions"]["code"], "BAD_REQUEST");
    assert_eq!(id.as_deref(), Some("!done"));
    assert_eq!((events.event(), events.event()), (Some(Event::Complete), None));
}

#[tokio::test]
async fn a_query_and_a_refusal_are_one_event_and_complete() {
    let hub = Hub::start();
    let mut events = Events::open(hub.address(), &json!({"query": "{__typename}"}), &[]);
    let done = Some("!done".to_owned());
    assert_eq!(events.next(), (done, json!({"data": {"__typename": "Query"}})));
    assert_eq!((events.event(), events.event()), (Some(Event::Complete), None));
    for query in ["subscription {nothing}", "{"] {
        let mut events = Events::open(hub.address(), &json!({ "query": query }), &[]);
        assert_eq!(events.status, 200);
        assert!(events.next().1["errors"][0]["message"].is_string());
        assert_eq!((events.event(), events.event()), (Some(Event::Complete), None));
    }
    assert_eq!(Events::open(hub.address(), &json!({"qeury": 1}), &[]).status, 400);
}

#[tokio::test]
async fn a_stream_of_events_and_a_socket_share_what_is_encoded() {
    let hub = hub_with(&[]).await;
    let mut socket = Client::connected(hub.address()).await;
    let mut request = book();
    request["extensions"] = json!({"cursor": true});
    socket.subscribe_with("1", request).await;
    assert_eq!(socket.message().await["type"], "next");
    let mut events: Vec<_> = (0..5).map(|_| open(&hub, &[])).collect();
    for one in &mut events {
        one.next();
    }
    assert_eq!(metric(&hub, "spreadly_response_streams_open"), 1);
    assert_eq!(metric(&hub, "spreadly_readers_open"), 6);
    hub.append_lines("book.ndjson", &[market::step(MARKET, 0)]);
    let payload = socket.message().await["payload"].clone();
    for one in &mut events {
        assert_eq!(one.next().1, payload);
    }
    for one in &events {
        one.hang_up();
    }
    until(&hub, "spreadly_readers_open", 1);
}

#[tokio::test]
async fn a_stream_of_events_is_one_of_the_sockets_of_its_address() {
    let hub = hub_with(&["limits.sockets_per_address=2", "limits.exempt_loopback=false"]).await;
    until(&hub, "spreadly_websockets_open", 0);
    let mut first = open(&hub, &[]);
    first.next();
    let _second = open(&hub, &[]);
    assert_eq!(Events::open(hub.address(), &book(), &[]).status, 429);
    let refused = client::open(hub.address(), &[("sec-websocket-protocol", MODERN)]).await;
    assert_eq!(refused.err().unwrap().status(), 429);
    first.hang_up();
    until(&hub, "spreadly_websockets_open", 1);
    assert_eq!(open(&hub, &[]).status, 200);
}

#[tokio::test]
async fn a_quiet_stream_is_kept_alive_by_comments() {
    let hub = Hub::start_with(&["server.ping_interval_ms=1000"]);
    let request = json!({"query": "subscription {feedStatus {name}}"});
    let mut events = Events::open(hub.address(), &request, &[]);
    assert_eq!(events.event(), Some(Event::Comment(String::new())));
    events.next();
    assert_eq!(events.event(), Some(Event::Comment(String::new())));
}

#[tokio::test]
async fn draining_ends_a_stream_with_a_comment_and_the_hub_well() {
    let mut hub = hub_with(&["server.drain_ms=100"]).await;
    let mut events = open(&hub, &[]);
    events.next();
    hub.terminate();
    let mut said = Vec::new();
    while let Some(event) = events.event() {
        said.push(event);
    }
    let last = said.pop();
    assert_eq!(last, Some(Event::Comment("the hub restarts: come back and resume".to_owned())));
    assert!(hub.exited().success());
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_and_the_others_miss_nothing() {
    let hub = hub_with(&["limits.writer_stall_ms=300", "server.send_buffer_bytes=4096"]).await;
    let mut stopped = open(&hub, &[]);
    stopped.next();
    let mut socket = Client::connected(hub.address()).await;
    socket.subscribe("book", &follower::subscription(MARKET, 25, None)).await;
    let mut copy = Follower::new(1, 8);
    copy.apply(&socket.message().await);
    let mut steps = 0;
    while metric(&hub, "spreadly_readers_open") > 1 {
        assert!(steps < 1_000_000, "never cut");
        let lines: Vec<_> = (steps..steps + 500).map(|n| market::step(MARKET, n)).collect();
        hub.append_lines("book.ndjson", &lines);
        steps += 500;
        let awaited = market::bids_after(steps);
        socket.follow(&mut copy, |copy| copy.bids == awaited).await;
    }
    loud::say(&format!("cut after {steps} events that were not read"));
    assert_eq!(copy.snapshots, 1);
    until(&hub, "spreadly_event_streams_ended_total{reason=\"stalled\"}", 1);
}

#[tokio::test]
async fn a_stream_that_only_a_stalled_client_reads_is_not_encoded_and_then_comes_whole() {
    let hub = hub_with(&["server.send_buffer_bytes=4096"]).await;
    let mut events = open(&hub, &[]);
    let mut copy = Follower::new(1, 8);
    copy.apply(&message(events.next().1));
    let taken = metric(&hub, TAKEN);
    let (mut steps, mut encoded) = (0, 0);
    loop {
        let lines: Vec<_> = (steps..steps + 100).map(|n| market::step(MARKET, n)).collect();
        hub.append_lines("book.ndjson", &lines);
        steps += 100;
        until(&hub, TAKEN, taken + steps);
        let before = std::mem::replace(&mut encoded, metric(&hub, ADVANCED));
        if before == encoded {
            break;
        }
    }
    loud::say(&format!("{encoded} frames of {steps} events were encoded while nobody read"));
    let awaited = market::bids_after(steps);
    while copy.bids != awaited {
        copy.apply(&message(events.next().1));
    }
    hub.append_lines("book.ndjson", &[market::step(MARKET, steps)]);
    copy.apply(&message(events.next().1));
    assert_eq!(copy.bids, market::bids_after(steps + 1));
}

/// Connections of a browser's EventSource to one URL: it returns with its last id whenever a
/// response of 200 ends, and stops at any other status. What each received: a code, `data`, or the
/// status.
fn returns(hub: &Hub, request: &Value, mut last: Option<String>) -> Vec<String> {
    let mut received = Vec::new();
    for _ in 0..5 {
        let header = last.iter().map(|id| format!("Last-Event-ID: {id}")).collect::<Vec<_>>();
        let headers: Vec<_> = header.iter().map(String::as_str).collect();
        let mut events = Events::open(hub.address(), request, &headers);
        if events.status != 200 {
            received.push(events.status.to_string());
            break;
        }
        let (id, result) = events.next();
        let code = result["errors"][0]["extensions"]["code"].as_str().map(str::to_owned);
        let live = code.is_none();
        received.push(code.unwrap_or_else(|| "data".to_owned()));
        if live {
            break;
        }
        // An empty id is none, and an event without one changes nothing.
        last = id.or(last).filter(|id| !id.is_empty());
        assert_eq!((events.event(), events.event()), (Some(Event::Complete), None));
    }
    received
}

#[tokio::test]
async fn a_browser_whose_cursor_is_dead_begins_from_now_and_one_that_is_refused_stops() {
    let mut hub = hub_with(&[]).await;
    let topic = json!({"query": r#"subscription { events(topic: "t") { sequence } }"#});
    let mut events = Events::open(hub.address(), &topic, &[]);
    assert_eq!(events.cache_control, "no-store, no-transform");
    let (last, _) = events.next();
    assert!(last.is_some());
    hub.sigterm();
    std::fs::remove_dir_all(hub.folder().join("data")).unwrap();
    hub.restart();
    assert_eq!(returns(&hub, &topic, last.clone()), ["RESYNC_REQUIRED", "data"]);
    // Of another topic, or nothing that the hub gave out.
    let other = json!({"query": r#"subscription { events(topic: "o") { sequence } }"#});
    assert_eq!(returns(&hub, &other, last.clone()), ["BAD_REQUEST", "data"]);
    assert_eq!(returns(&hub, &other, Some("nonsense".to_owned())), ["BAD_REQUEST", "data"]);
    // A cursor in the URL is brought again each time.
    let after = last.clone().unwrap();
    let fixed = json!({"query": topic["query"], "extensions": {"after": after}});
    assert_eq!(returns(&hub, &fixed, None), ["RESYNC_REQUIRED", "204"]);
    assert_eq!(returns(&hub, &fixed, last.clone()), ["RESYNC_REQUIRED", "RESYNC_REQUIRED", "204"]);

    let missing = json!({"query": r#"subscription { orderBook(market: "NOPE") { sequence } }"#});
    assert_eq!(returns(&hub, &missing, None), ["NOT_FOUND", "204"]);
    assert_eq!(returns(&hub, &missing, last), ["NOT_FOUND", "NOT_FOUND", "204"]);
    let invalid = json!({"query": "subscription { nothing }"});
    assert_eq!(returns(&hub, &invalid, None), ["VALIDATION_FAILED", "204"]);
    let query = json!({"query": "{ __typename }"});
    assert_eq!(Events::open(hub.address(), &query, &["Last-Event-ID: !done"]).status, 204);
}
