//! Trades and generic topics: every event once, in order, for each client that follows, that
//! comes back over kills of the hub, or that reads too slowly.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::client::PATIENCE;
use crate::harness::http::get;
use crate::harness::{Client, Hub, Seen, loud, market};

const TRADES: &str = "market epoch sequence prevSequence cursor state lastEventAgeMs eventTime \
    publishTime trades { id market price size takerSide time sequence }";
const EVENTS: &str = "topic epoch sequence prevSequence cursor state lastEventAgeMs eventTime \
    publishTime events { id topic data time sequence }";

fn trades(markets: &[&str], after: Option<&str>) -> String {
    let markets = json!(markets);
    format!("subscription {{ trades(markets: {markets}{}) {{ {TRADES} }} }}", argument(after))
}

fn events(topic: &str, after: Option<&str>) -> String {
    let topic = json!(topic);
    format!("subscription {{ events(topic: {topic}{}) {{ {EVENTS} }} }}", argument(after))
}

fn argument(after: Option<&str>) -> String {
    after.map_or(String::new(), |cursor| format!(r#", after: "{cursor}""#))
}

fn trade(market: &str, number: u64) -> String {
    let side = if number.is_multiple_of(2) { "BUY" } else { "SELL" };
    format!(
        r#"{{"kind":"trade","market":"{market}","id":"{market}/{number}","price":"{}.5","size":"1","takerSide":"{side}","time":"{}"}}"#,
        number + 1,
        market::TIME
    )
}

fn message(topic: &str, number: u64) -> String {
    json!({"kind": "message", "topic": topic, "data": {"number": number}}).to_string()
}

/// A client's copy: a chain for each market or topic, and what was received in which order.
#[derive(Debug, Default)]
struct Received {
    chain: HashMap<String, (String, String)>,
    cursor: Option<String>,
    items: Vec<Value>,
    frames: u64,
    /// Most items in one frame.
    largest: usize,
    states: Vec<String>,
}

impl Received {
    /// Takes one frame; panics when it does not follow what came before of its topic.
    fn take(&mut self, message: &Value) {
        assert_eq!(message["type"], "next", "{message}");
        assert!(message["payload"]["errors"].is_null(), "{message}");
        let data = message["payload"]["data"].as_object().unwrap();
        let frame = data.values().next().unwrap();
        let text = |field: &str| frame[field].as_str().unwrap().to_owned();
        let name = frame["market"].as_str().or(frame["topic"].as_str()).unwrap().to_owned();
        let items = frame["trades"].as_array().or(frame["events"].as_array()).unwrap();
        let position = (text("epoch"), text("sequence"));
        match (frame["prevSequence"].as_str(), self.chain.get(&name)) {
            (Some(previous), Some((epoch, seen))) => {
                assert_eq!((epoch, &**seen), (&position.0, previous), "{frame}");
            }
            (Some(_), None) => panic!("a chain that begins in the middle: {frame}"),
            (None, known) => assert!(known.is_none() && items.is_empty(), "{frame}"),
        }
        if let Some(last) = items.last() {
            assert_eq!(last["sequence"], frame["sequence"], "{frame}");
            assert_eq!(last["time"], frame["eventTime"], "{frame}");
        } else {
            let follows = frame["prevSequence"].is_null() || frame["prevSequence"] == position.1;
            assert!(follows, "{frame}");
        }
        self.chain.insert(name, position);
        self.cursor = Some(text("cursor"));
        self.items.extend(items.iter().cloned());
        self.frames += 1;
        self.largest = self.largest.max(items.len());
        self.states.push(text("state"));
    }

    async fn follow(&mut self, client: &mut Client, awaited: usize) {
        let following = async {
            while self.items.len() < awaited {
                let message = client.message().await;
                self.take(&message);
            }
        };
        let done = tokio::time::timeout(PATIENCE, following).await;
        assert!(done.is_ok(), "{} of {awaited} items came", self.items.len());
    }

    fn ids(&self) -> Vec<&str> {
        self.items.iter().map(|item| item["id"].as_str().unwrap()).collect()
    }
}

/// A counter or gauge of `/metrics`.
fn metric(hub: &Hub, name: &str) -> u64 {
    let (_, page) = hub.admin_page("/metrics");
    let line = page.lines().find(|line| line.starts_with(&format!("spreadly_{name} ")));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap()
}

/// A hub that knows these markets.
async fn knowing(markets: &[&str], settings: &[&str]) -> Hub {
    let hub = Hub::start_with(settings);
    for market in markets {
        hub.append_lines("markets.ndjson", &market::beginning(market));
    }
    for market in markets {
        Client::knowing(hub.address(), market).await;
    }
    hub
}

#[tokio::test]
async fn trades_of_several_markets_come_on_one_operation_each_with_its_own_chain() {
    let hub = knowing(&["XBT-USD", "ERG-USD"], &[]).await;
    let mut client = Client::connected(hub.address()).await;
    client.subscribe("t", &trades(&["XBT-USD", "ERG-USD", "XBT-USD"], None)).await;
    let mut received = Received::default();
    for _ in 0..2 {
        received.take(&client.message().await);
    }
    assert_eq!(
        (received.chain.len(), received.items.len()),
        (2, 0),
        "the position of each market, once"
    );
    let lines: Vec<_> = (0..50).flat_map(|n| [trade("XBT-USD", n), trade("ERG-USD", n)]).collect();
    hub.append_lines("trades.ndjson", &lines);
    received.follow(&mut client, 100).await;
    let first = json!({
        "id": "XBT-USD/0", "market": "XBT-USD", "price": "1.5", "size": "1.00000000",
        "takerSide": "BUY", "time": "2026-01-01T00:00:00.000000Z",
        "sequence": received.items[0]["sequence"],
    });
    assert_eq!(received.items[0], first);
    let expected: Vec<_> =
        (0..50).flat_map(|n| [format!("XBT-USD/{n}"), format!("ERG-USD/{n}")]).collect();
    assert_eq!(received.ids(), expected);
}

#[tokio::test]
async fn an_event_is_resolved_and_encoded_once_for_all_who_ask_for_the_same() {
    let hub = knowing(&["XBT-USD"], &[]).await;
    let mut clients = Vec::new();
    for number in 0..40 {
        let mut client = Client::connected(hub.address()).await;
        // The same document laid out otherwise, half of them.
        let query = trades(&["XBT-USD"], None);
        let query = if number % 2 == 0 { query } else { query.replace(' ', "\n ") };
        client.subscribe("t", &query).await;
        let mut received = Received::default();
        received.take(&client.message().await);
        clients.push((client, received));
    }
    let before = metric(&hub, "frames_published_total");
    let lines: Vec<_> = (0..100).map(|n| trade("XBT-USD", n)).collect();
    hub.append_lines("trades.ndjson", &lines);
    for (client, received) in &mut clients {
        received.follow(client, 100).await;
    }
    let beats: u64 = clients.iter().map(|(_, received)| received.frames - 101).max().unwrap();
    let published = metric(&hub, "frames_published_total") - before;
    assert!((100..=100 + beats + 1).contains(&published), "{published} with {beats} heartbeats");
    assert_eq!(metric(&hub, "response_streams_open"), 1);
}

/// Follows after what it has `received`, over every cut, until it has `awaited` items; how often it
/// had to resume.
async fn follow_through(
    address: std::net::SocketAddr,
    query: impl Fn(Option<&str>) -> String,
    mut received: Received,
    awaited: usize,
) -> (Received, usize) {
    let mut resumed = 0;
    let mut client = Client::reconnected(address).await;
    client.try_subscribe("s", &query(received.cursor.as_deref())).await;
    while received.items.len() < awaited {
        match client.seen().await {
            Seen::Message(message) if message["type"] == "ping" => {
                client.try_send(json!({"type": "pong"})).await;
            }
            Seen::Message(message) => received.take(&message),
            Seen::Closed(..) | Seen::Cut => {
                client = Client::reconnected(address).await;
                client.try_subscribe("s", &query(received.cursor.as_deref())).await;
                resumed += 1;
            }
        }
    }
    (received, resumed)
}

const KILLS: usize = 5;
const STEPS: u64 = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trades_and_events_go_on_after_a_cursor_whenever_the_hub_is_killed() {
    let mut hub = knowing(&["XBT-USD", "ERG-USD"], &[]).await;
    let address = hub.address();
    let (one, both, news) = (STEPS as usize, 2 * STEPS as usize, STEPS as usize);
    let of_one = |after: Option<&str>| trades(&["XBT-USD"], after);
    let of_both = |after: Option<&str>| trades(&["ERG-USD", "XBT-USD"], after);
    let of_news = |after: Option<&str>| events("news", after);
    let following = [
        tokio::spawn(follow_through(address, of_one, Received::default(), one)),
        tokio::spawn(follow_through(address, of_both, Received::default(), both)),
        tokio::spawn(follow_through(address, of_news, Received::default(), news)),
    ];
    // One more begins now, leaves, and comes back when all is written.
    let (mut client, mut early) = (Client::reconnected(address).await, Received::default());
    client.try_subscribe("s", &of_one(None)).await;
    early.take(&client.message().await);
    drop(client);
    // Everyone is at the beginning before the first line is written.
    while metric(&hub, "readers_open") < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for part in 0..KILLS as u64 {
        let size = STEPS / KILLS as u64;
        let (half, end) = (part * size + size / 2, (part + 1) * size);
        let lines = |from, to| -> Vec<String> {
            (from..to)
                .flat_map(|n| [trade("XBT-USD", n), trade("ERG-USD", n), message("news", n)])
                .collect()
        };
        hub.append_lines("all.ndjson", &lines(part * size, half));
        tokio::time::sleep(Duration::from_millis(20 * part)).await;
        hub.kill9();
        hub.append_lines("all.ndjson", &lines(half, end));
        hub = tokio::task::spawn_blocking(move || {
            hub.restart();
            hub
        })
        .await
        .unwrap();
    }
    let mut resumes = 0;
    let mut all = Vec::new();
    for client in following {
        let done = tokio::time::timeout(PATIENCE, client).await.expect("it has it all").unwrap();
        resumes += done.1;
        all.push(done.0);
    }
    let xbt: Vec<_> = (0..STEPS).map(|n| format!("XBT-USD/{n}")).collect();
    assert_eq!(all[0].ids(), xbt);
    let each: Vec<_> =
        (0..STEPS).flat_map(|n| [format!("XBT-USD/{n}"), format!("ERG-USD/{n}")]).collect();
    assert_eq!(all[1].ids(), each);
    let numbers: Vec<_> = all[2].items.iter().map(|item| item["data"]["number"].as_u64()).collect();
    assert_eq!(numbers, (0..STEPS).map(Some).collect::<Vec<_>>());
    let (late, _) = follow_through(address, of_one, early, one).await;
    assert_eq!(late.ids(), xbt);
    let largest = late.largest;
    loud::say(&format!("{KILLS} kills, {resumes} resumes, up to {largest} items in a frame"));
    assert!(resumes >= 3, "nobody had to resume: this has proven nothing");
    assert!(largest > 1, "nothing was replayed: this has proven nothing");
}

#[tokio::test]
async fn a_reader_of_trades_that_sleeps_is_given_every_one_and_the_one_beside_it_too() {
    let settings = [
        "limits.ring_bytes_per_stream=65536",
        "server.send_buffer_bytes=65536",
        "limits.writer_stall_ms=60000",
    ];
    let hub = knowing(&["XBT-USD"], &settings).await;
    let mut sleeper = Client::connected(hub.address()).await;
    let mut reader = Client::connected(hub.address()).await;
    let (mut late, mut received) = (Received::default(), Received::default());
    for (client, received) in [(&mut sleeper, &mut late), (&mut reader, &mut received)] {
        client.subscribe("t", &trades(&["XBT-USD"], None)).await;
        received.take(&client.message().await);
    }
    let most = 20_000;
    for first in (0..most).step_by(500) {
        let lines: Vec<_> = (first..first + 500).map(|n| trade("XBT-USD", n)).collect();
        hub.append_lines("trades.ndjson", &lines);
        received.follow(&mut reader, first as usize + 500).await;
    }
    late.follow(&mut sleeper, most as usize).await;
    let expected: Vec<_> = (0..most).map(|n| format!("XBT-USD/{n}")).collect();
    assert_eq!(received.ids(), expected);
    assert_eq!(late.ids(), expected);
    let pages = metric(&hub, "replayed_pages_total");
    loud::say(&format!(
        "asleep for {most} trades: {pages} pages, up to {} in a frame",
        late.largest
    ));
    assert!(pages > 0 && late.largest > 1, "it never lagged: this has proven nothing");
}

#[tokio::test]
async fn faults_of_a_subscription_have_different_codes() {
    let hub = knowing(&["XBT-USD"], &[]).await;
    let mut client = Client::connected(hub.address()).await;
    let many: Vec<_> = (0..101).map(|n| format!("M-{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let cases = [
        (trades(&["NO-SUCH"], None), "NOT_FOUND"),
        (trades(&[], None), "VALIDATION_FAILED"),
        (trades(&many, None), "LIMIT_EXCEEDED"),
        (trades(&["XBT-USD"], Some("nonsense")), "BAD_REQUEST"),
        (events("", None), "VALIDATION_FAILED"),
        (events(&"x".repeat(129), None), "VALIDATION_FAILED"),
        (events("a\u{0}b", None), "VALIDATION_FAILED"),
    ];
    for (query, code) in cases {
        client.subscribe("x", &query).await;
        let error = client.message().await;
        assert_eq!(error["type"], "error", "{query}: {error}");
        assert_eq!(error["payload"][0]["extensions"]["code"], code, "{query}");
    }
    // A topic's name is data: whatever it holds, it is itself and nothing else.
    for name in ["it's", "a\"b", "a%_\\", "ünï—☃", "x; DROP TABLE events"] {
        client.subscribe("n", &events(name, None)).await;
        let mut received = Received::default();
        received.take(&client.message().await);
        hub.append_lines("names.ndjson", &[message(&format!("{name}!"), 1), message(name, 2)]);
        received.follow(&mut client, 1).await;
        assert_eq!(
            (&received.items[0]["topic"], &received.items[0]["data"]["number"]),
            (&json!(name), &json!(2))
        );
        client.send(json!({"type": "complete", "id": "n"})).await;
    }
}

/// The whole answer of an operation that ends by itself, over a socket.
async fn answer(client: &mut Client, query: &str) -> Value {
    client.subscribe("once", query).await;
    let answer = client.message().await;
    if answer["type"] == "next" {
        assert_eq!(client.message().await, json!({"type": "complete", "id": "once"}));
    }
    answer["payload"].clone()
}

fn publish(topic: &str, number: u64, id: Option<&str>) -> String {
    let id = id.map_or(String::new(), |id| format!(", id: {}", json!(id)));
    format!(
        r#"mutation {{ publish(topic: {}, data: {{ number: {number}, text: "ü\"", list: [1, null] }}{id})
            {{ topic epoch sequence cursor duplicate }} }}"#,
        json!(topic)
    )
}

#[tokio::test]
async fn what_is_published_has_a_position_that_outlives_a_kill() {
    let mut hub = Hub::start();
    let mut client = Client::connected(hub.address()).await;
    let mut follower = Client::connected(hub.address()).await;
    follower.subscribe("e", &events("news", None)).await;
    let mut received = Received::default();
    received.take(&follower.message().await);
    // Over the socket, over HTTP, and again under the same id.
    let first = answer(&mut client, &publish("news", 1, None)).await["data"]["publish"].clone();
    let second = hub.query(&publish("news", 2, Some("two")))["publish"].clone();
    let again = hub.query(&publish("news", 2, Some("two")))["publish"].clone();
    assert_eq!((&first["duplicate"], &second["duplicate"]), (&json!(false), &json!(false)));
    assert_eq!(again["duplicate"], true);
    for same in ["epoch", "sequence", "cursor", "topic"] {
        assert_eq!(again[same], second[same]);
    }
    received.follow(&mut follower, 2).await;
    let data = |number: u64| json!({"number": number, "text": "ü\"", "list": [1, null]});
    let sequences: Vec<_> = received.items.iter().map(|one| one["sequence"].clone()).collect();
    assert_eq!(sequences, [first["sequence"].clone(), second["sequence"].clone()]);
    assert_eq!((&received.items[0]["data"], &received.items[1]["data"]), (&data(1), &data(2)));
    assert_eq!(received.cursor.as_deref(), second["cursor"].as_str());
    // Another event under that id, and what is no event.
    for (query, code) in [
        (publish("news", 3, Some("two")), "CONFLICT"),
        (publish("", 1, None), "VALIDATION_FAILED"),
        (publish("a\nb", 1, None), "VALIDATION_FAILED"),
        (publish("news", 1, Some("")), "VALIDATION_FAILED"),
        (publish("news", 1, Some("a\u{7}b")), "VALIDATION_FAILED"),
    ] {
        let refused = answer(&mut client, &query).await;
        assert_eq!(refused["errors"][0]["extensions"]["code"], code, "{query}: {refused}");
    }
    // An id counts within its topic.
    let other = answer(&mut client, &publish("other", 2, Some("two"))).await;
    assert_eq!(other["data"]["publish"]["duplicate"], false, "{other}");
    // A page of another origin could make a browser send this: it publishes nothing.
    let by_get = get(hub.address(), &[("query", &publish("news", 9, None))], "application/json");
    assert_eq!(by_get.status, 405, "{by_get:?}");
    let store = hub.folder().join("data/spreadly.db");
    assert_eq!(hub.logged(&store, "message:news").len(), 2);
    // What was answered is in the log.
    hub.kill9();
    hub.restart();
    let mut again = Client::reconnected(hub.address()).await;
    again.subscribe("e", &events("news", first["cursor"].as_str())).await;
    let mut rest = Received::default();
    rest.chain.insert("news".to_owned(), (text(&first["epoch"]), text(&first["sequence"])));
    rest.follow(&mut again, 1).await;
    assert_eq!(rest.items[0], received.items[1]);
    let third = hub.query(&publish("news", 3, None))["publish"].clone();
    rest.follow(&mut again, 2).await;
    assert_eq!(rest.items[1]["sequence"], third["sequence"]);
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

#[tokio::test]
async fn pages_of_a_list_neither_gap_nor_double_while_events_arrive() {
    let hub = knowing(&["XBT-USD"], &[]).await;
    let mut client = Client::connected(hub.address()).await;
    let mut follower = Client::connected(hub.address()).await;
    follower.subscribe("t", &trades(&["XBT-USD"], None)).await;
    let mut received = Received::default();
    received.take(&follower.message().await);
    let add = |from: u64, to: u64| {
        let lines: Vec<_> =
            (from..to).flat_map(|n| [trade("XBT-USD", n), message("news", n)]).collect();
        hub.append_lines("all.ndjson", &lines);
    };
    add(0, 40);
    received.follow(&mut follower, 40).await;
    let (mut ids, mut numbers) = (Vec::new(), Vec::new());
    let (mut trades_after, mut events_after) = (Value::Null, Value::Null);
    for page in 0.. {
        let query = format!(
            r#"{{ trades(market: "XBT-USD", first: 7, after: {trades_after}) {{ edges {{ cursor node {{ id }} }}
                nodes {{ id sequence }} pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }} }}
              events(topic: "news", first: 7, after: {events_after}) {{ nodes {{ data }}
                edges {{ cursor }} pageInfo {{ hasNextPage endCursor }} }} }}"#
        );
        let data = answer(&mut client, &query).await["data"].clone();
        let (list, news) = (&data["trades"], &data["events"]);
        let edges = list["edges"].as_array().unwrap();
        ids.extend(edges.iter().map(|edge| text(&edge["node"]["id"])));
        numbers.extend(
            news["nodes"].as_array().unwrap().iter().map(|one| one["data"]["number"].clone()),
        );
        let info = &list["pageInfo"];
        assert_eq!(info["hasPreviousPage"], page > 0, "{info}");
        assert_eq!(info["startCursor"], edges[0]["cursor"]);
        assert_eq!(info["endCursor"], edges.last().unwrap()["cursor"]);
        (trades_after, events_after) =
            (info["endCursor"].clone(), news["pageInfo"]["endCursor"].clone());
        if info["hasNextPage"] == false {
            break;
        }
        if page < 5 {
            add(40 + page * 4, 44 + page * 4);
            received.follow(&mut follower, 44 + page as usize * 4).await;
        }
    }
    let expected: Vec<_> = (0..60).map(|n| format!("XBT-USD/{n}")).collect();
    assert_eq!(ids, expected);
    assert_eq!(numbers.len(), 60);
    assert!(numbers.iter().enumerate().all(|(place, number)| *number == place), "{numbers:?}");
    // A list's cursor is one of the subscription too: no race between the two.
    let mut resumed = Client::connected(hub.address()).await;
    resumed.subscribe("t", &trades(&["XBT-USD"], trades_after.as_str())).await;
    add(60, 61);
    let frame = resumed.message().await;
    let frame = &frame["payload"]["data"]["trades"];
    assert_eq!(frame["trades"][0]["id"], "XBT-USD/60");
    assert_eq!(frame["prevSequence"], received.items[59]["sequence"]);
}

#[tokio::test]
async fn faults_of_a_list_have_different_codes() {
    let hub = knowing(&["XBT-USD"], &[]).await;
    let line = |n: u64, time: &str| trade("XBT-USD", n).replace(market::TIME, time);
    let times = ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"];
    let lines: Vec<_> = (0..).zip(times).map(|(n, time)| line(n, time)).collect();
    let mut client = Client::connected(hub.address()).await;
    client.subscribe("t", &trades(&["XBT-USD"], None)).await;
    let mut received = Received::default();
    received.take(&client.message().await);
    hub.append_lines("trades.ndjson", &lines);
    received.follow(&mut client, 3).await;
    let mut asking = Client::connected(hub.address()).await;
    let within = r#"{ trades(market: "XBT-USD", from: "2026-01-02T00:00:00Z", to: "2026-01-03T00:00:00Z")
        { nodes { id } pageInfo { hasNextPage } } }"#;
    let found = answer(&mut asking, within).await;
    let one = json!({"nodes": [{"id": "XBT-USD/1"}], "pageInfo": {"hasNextPage": false}});
    assert_eq!(found["data"]["trades"], one);
    let list = |arguments: &str| format!("{{ trades({arguments}) {{ nodes {{ id }} }} }}");
    // A cursor of a hub with another log.
    let other = knowing(&["XBT-USD"], &[]).await;
    let mut elsewhere = Client::connected(other.address()).await;
    elsewhere.subscribe("t", &trades(&["XBT-USD"], None)).await;
    let foreign = elsewhere.message().await["payload"]["data"]["trades"]["cursor"].to_string();
    for (query, code) in [
        (list(r#"market: "NO-SUCH""#), "NOT_FOUND"),
        (list(r#"market: "XBT-USD", first: 0"#), "VALIDATION_FAILED"),
        (list(r#"market: "XBT-USD", first: 1001"#), "LIMIT_EXCEEDED"),
        (list(r#"market: "XBT-USD", after: "nonsense""#), "BAD_REQUEST"),
        (list(&format!(r#"market: "XBT-USD", after: {foreign}"#)), "RESYNC_REQUIRED"),
        (
            list(r#"market: "XBT-USD", from: "2026-01-02T00:00:00Z", to: "2026-01-01T00:00:00Z""#),
            "VALIDATION_FAILED",
        ),
    ] {
        let refused = answer(&mut asking, &query).await;
        let extensions = &refused["errors"][0]["extensions"];
        assert_eq!(extensions["code"], code, "{query}: {refused}");
        if code == "LIMIT_EXCEEDED" {
            assert_eq!(
                (&extensions["limit"], &extensions["current"]),
                (&json!(1_000), &json!(1_001))
            );
        }
        if code == "RESYNC_REQUIRED" {
            assert_eq!(extensions["floor"]["sequence"], "0", "{refused}");
        }
    }
    let refused = trades(&["XBT-USD"], Some(foreign.trim_matches('"')));
    asking.subscribe("x", &refused).await;
    let error = asking.message().await;
    assert_eq!(error["payload"][0]["extensions"]["code"], "RESYNC_REQUIRED", "{error}");
}

#[tokio::test]
async fn a_long_page_of_the_log_is_encoded_on_the_pool_and_a_short_one_is_not() {
    let hub = Hub::start();
    let mut client = Client::connected(hub.address()).await;
    let lines: Vec<_> = (1..=300).map(|number| message("long", number)).collect();
    hub.append_lines("events.ndjson", &lines);
    hub.until_feed("files", "300 events", |status| status["eventsTotal"] == "300").await;
    let numbers = |first: usize| -> Vec<Value> {
        let page = hub.query(&format!(
            r#"{{ events(topic: "long", first: {first}) {{ nodes {{ data }} }} }}"#
        ));
        let nodes = page["events"]["nodes"].as_array().unwrap();
        nodes.iter().map(|node| node["data"]["number"].clone()).collect()
    };
    let expected = |first: u64| (1..=first).map(Value::from).collect::<Vec<_>>();
    assert_eq!(numbers(100), expected(100));
    assert_eq!(metric(&hub, "pool_jobs_total"), 0);
    assert_eq!(numbers(300), expected(300));
    assert_eq!(metric(&hub, "pool_jobs_total"), 1);
    client.subscribe("q", r#"{ events(topic: "long", first: 300) { nodes { sequence } } }"#).await;
    let next = client.message().await;
    assert_eq!((&next["type"], &next["id"]), (&json!("next"), &json!("q")));
    assert_eq!(next["payload"]["data"]["events"]["nodes"].as_array().unwrap().len(), 300);
    assert_eq!(client.message().await, json!({"type": "complete", "id": "q"}));
    assert_eq!(metric(&hub, "pool_jobs_total"), 2);
    assert_eq!(metric(&hub, "pool_queued"), 0);
}
