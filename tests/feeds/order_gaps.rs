//! Books that are summed from orders and missed an event: they say so, alone, until the order is
//! final or the source says that its orders are complete.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::gaps::{FAULTY, WHOLE, first_stale, offers};
use crate::harness::{Client, Hub, market, until};

const FILE: &str = "orders.ndjson";

fn placed(market: &str, order: &str, price: &str) -> String {
    let line = format!(
        r#"{{"kind":"order.placed","market":"{market}","order":"{order}","side":"BUY",
        "price":"{price}","size":"2"}}"#
    );
    line.replace('\n', "")
}

fn filled(order: &str, size: &str) -> String {
    format!(r#"{{"kind":"order.filled","order":"{order}","price":"1","size":"{size}"}}"#)
}

fn canceled(order: &str) -> String {
    format!(r#"{{"kind":"order.canceled","order":"{order}"}}"#)
}

fn complete(market: &str) -> String {
    format!(r#"{{"kind":"orders.complete","market":"{market}"}}"#)
}

fn beginning(market: &str) -> [String; 3] {
    let order = |number: u32| placed(market, &format!("{market} {number}"), &format!("{number}.5"));
    [market::definition(market), order(1), order(2)]
}

/// Two whole books.
async fn begin(hub: &Hub) {
    for market in [FAULTY, WHOLE] {
        hub.append_lines(FILE, &beginning(market));
    }
    hub.until_feed("files", "all of it", |feed| feed["eventsTotal"] == "6").await;
    until_gaps(hub, &[]).await;
}

fn state_of(hub: &Hub, market: &str) -> Value {
    hub.query(&format!("{{ orderBook(market: \"{market}\") {{ state }} }}"))["orderBook"]["state"]
        .clone()
}

fn gaps(hub: &Hub) -> Vec<Value> {
    let feeds = hub.query("{ feeds { gaps { market order reason } } }");
    feeds["feeds"][0]["gaps"].as_array().unwrap().clone()
}

/// Waits until these books, and no others, have gaps.
async fn until_gaps(hub: &Hub, expected: &[(&str, Option<&str>)]) {
    let expected: Vec<_> = expected.iter().map(|(market, order)| json!([market, order])).collect();
    hub.until_feed("files", &format!("{expected:?}"), |_| {
        let found = gaps(hub);
        found.iter().map(|gap| json!([gap["market"], gap["order"]])).collect::<Vec<_>>() == expected
    })
    .await;
    for market in [FAULTY, WHOLE] {
        let has_gap = expected.iter().any(|gap| gap[0] == market);
        assert_eq!(state_of(hub, market), if has_gap { "STALE" } else { "LIVE" }, "{market}");
    }
}

#[tokio::test]
async fn a_book_that_missed_an_order_says_so_alone_until_that_order_is_final() {
    let mut hub = Hub::start();
    begin(&hub).await;
    let mut following = offers(&hub).await;
    let own = |number: u32| format!("{FAULTY} {number}");
    let faults = [
        // What is refused, its order, and what makes it final.
        (placed(FAULTY, "3", "1.55"), "3".to_owned(), canceled("3")),
        (filled(&own(1), "2.5"), own(1), canceled(&own(1))),
        (filled(&own(2), "1").replace("\"1\"}", "1}"), own(2), filled(&own(2), "2")),
        (placed(FAULTY, "4", "1").replace("BUY", "BOTH"), "4".to_owned(), canceled("4")),
        (placed(FAULTY, "5", "1").replace("placed", "plaxed"), "5".to_owned(), canceled("5")),
    ];
    for (number, (fault, order, end)) in faults.iter().enumerate() {
        hub.append_lines(FILE, &[fault.as_str(), &placed(FAULTY, &format!("good {number}"), "1")]);
        until_gaps(&hub, &[(FAULTY, Some(order))]).await;
        // Events of other orders end nothing.
        hub.append_lines(FILE, &[canceled(&format!("good {number}"))]);
        if number < 2 {
            hub.restart();
            until_gaps(&hub, &[(FAULTY, Some(order))]).await;
        }
        hub.append_lines(FILE, &[end]);
        until_gaps(&hub, &[]).await;
        if number == 0 {
            hub.restart();
            until_gaps(&hub, &[]).await;
            following = offers(&hub).await;
        }
    }
    assert_eq!(first_stale(&mut following).await, FAULTY);
}

#[tokio::test]
async fn a_line_that_names_no_order_is_a_gap_until_the_source_says_that_all_are_known() {
    let mut hub = Hub::start();
    begin(&hub).await;
    let unnamed = placed(FAULTY, "3", "1").replace("\"order\"", "\"xorder\"");
    hub.append_lines(FILE, &[unnamed]);
    until_gaps(&hub, &[(FAULTY, None)]).await;
    // Whatever it was: no order's end is enough.
    let own = [1, 2].map(|number| canceled(&format!("{FAULTY} {number}")));
    hub.append_lines(FILE, &own);
    hub.append_lines(FILE, &["garbage"]);
    until_gaps(&hub, &[(WHOLE, None), (FAULTY, None)]).await;
    hub.restart();
    until_gaps(&hub, &[(WHOLE, None), (FAULTY, None)]).await;
    hub.append_lines(FILE, &[complete(FAULTY)]);
    until_gaps(&hub, &[(WHOLE, None)]).await;
    hub.append_lines(FILE, &[complete(WHOLE)]);
    until_gaps(&hub, &[]).await;
    // From now on an order that was never placed says that something is missing.
    hub.append_lines(FILE, &[canceled("never placed").replace('}', &named(WHOLE))]);
    until_gaps(&hub, &[(WHOLE, None)]).await;
    hub.append_lines(FILE, &[complete(WHOLE), canceled(&format!("{WHOLE} 1"))]);
    until_gaps(&hub, &[]).await;
    // One that was, does not.
    hub.append_lines(FILE, &[canceled(&format!("{WHOLE} 1")).replace('}', &named(WHOLE))]);
    let refused = |feed: &Value| {
        feed["lastRefusal"]["reason"].as_str().is_some_and(|reason| reason.contains("ERG-USD 1"))
    };
    hub.until_feed("files", "the refusal", refused).await;
    until_gaps(&hub, &[]).await;
    // Nor does the end of one that was refused.
    hub.append_lines(FILE, &[placed(WHOLE, "7", "1.55")]);
    until_gaps(&hub, &[(WHOLE, Some("7"))]).await;
    hub.append_lines(FILE, &[canceled("7")]);
    until_gaps(&hub, &[]).await;
}

fn named(market: &str) -> String {
    format!(",\"market\":\"{market}\"}}")
}

#[tokio::test]
async fn who_follows_orders_sees_the_positions_of_gaps_and_no_orders() {
    let mut hub = Hub::start();
    hub.append_lines(FILE, &beginning(FAULTY));
    let query = format!(
        "{{ orders(market: \"{FAULTY}\") {{ sequence prevSequence cursor
         orders {{ order {{ id }} }} }} }}"
    );
    let mut client = Client::knowing(hub.address(), FAULTY).await;
    client.subscribe("1", &format!("subscription {query}")).await;
    let first = frame(&client.message().await);
    let lines = [
        placed(FAULTY, "3", "1"),
        placed(FAULTY, "4", "1.55"),
        canceled("4"),
        "garbage".to_owned(),
        complete(FAULTY),
        placed(FAULTY, "5", "1"),
    ];
    hub.append_lines(FILE, &lines);
    let live = until_order(&mut client, &first, "5").await;
    assert_eq!(live, ["3", "5"]);
    // The same from the log.
    hub.restart();
    let mut late = Client::connected(hub.address()).await;
    let after = query.replacen("\")", &format!("\", after: {})", first["cursor"]), 1);
    late.subscribe("1", &format!("subscription {after}")).await;
    assert_eq!(until_order(&mut late, &first, "5").await, live);
}

fn frame(message: &Value) -> Value {
    let frame = message["payload"]["data"]["orders"].clone();
    assert!(frame.is_object(), "{message}");
    frame
}

/// The orders of the frames after this one, up to this order. Each frame follows the one before.
async fn until_order(client: &mut Client, first: &Value, last: &str) -> Vec<String> {
    let (mut found, mut seen) = (Vec::new(), first["sequence"].clone());
    while found.last().is_none_or(|order| order != last) {
        let frame = frame(&client.message().await);
        assert_eq!(frame["prevSequence"], seen, "{frame}");
        seen = frame["sequence"].clone();
        let updates = frame["orders"].as_array().unwrap();
        found.extend(updates.iter().map(|one| one["order"]["id"].as_str().unwrap().to_owned()));
    }
    found
}

/// A hub that has read some lines of one market, and whether its book is whole then. Also after a
/// restart.
async fn is_whole_after(lines: &[String]) -> bool {
    let mut hub = Hub::start();
    hub.append_lines(FILE, lines);
    let end = json!({ "kind": "message", "topic": "end", "data": 1 }).to_string();
    hub.append_lines(FILE, &[end]);
    let read = |hub: &Hub| !hub.published("end").is_empty();
    until("the end", async || read(&hub)).await;
    let state = state_of(&hub, FAULTY);
    hub.restart();
    assert_eq!(state_of(&hub, FAULTY), state, "a restart changes nothing");
    state == "LIVE"
}

fn with_field(line: &str, field: &str, value: &str) -> String {
    line.replacen('{', &format!("{{\"{field}\":{value},"), 1)
}

fn reverted(height: u32) -> String {
    format!(r#"{{"kind":"block.reverted","height":{height}}}"#)
}

fn gap(order: &str) -> String {
    let kind = r#""kind":"orders.gap""#;
    format!(r#"{{{kind},"market":"{FAULTY}","order":"{order}","reason":"it says so"}}"#)
}

#[tokio::test]
async fn no_line_leaves_a_book_live_that_lacks_an_order() {
    let [define, one, two] = beginning(FAULTY);
    let (bad, good) = (placed(FAULTY, "x", "1.55"), placed(FAULTY, "x", "1.5"));
    let at = |line: &str, height: u32| with_field(line, "height", &height.to_string());
    let id = |line: &str, id: &str| with_field(line, "id", &format!("\"{id}\""));
    let long = placed(FAULTY, &"9".repeat(200), "1");
    let truncated = placed(FAULTY, "x", "1").replace("\"size\":\"2\"}", "");
    let other = placed(FAULTY, &format!("{FAULTY} 1"), "7");
    let snapshot = market::snapshot(FAULTY, &[("1.0", "1")], &[]);
    let garbage = || "garbage".to_owned();
    let all: [(&str, Vec<String>); 16] = [
        ("an id that is too long", vec![long]),
        ("no id", vec![placed(FAULTY, "", "1")]),
        ("cut", vec![truncated]),
        ("another order of the same id", vec![other.clone()]),
        (
            "the id of an order of another market",
            vec![market::definition(WHOLE), placed(WHOLE, "x", "1"), good.clone()],
        ),
        (
            "a gap once more",
            vec![id(&gap("y"), "g"), complete(FAULTY), id(&gap("y"), "g"), bad.clone()],
        ),
        ("a taken id of a gap", vec![id(&gap("y"), "g"), complete(FAULTY), id(&gap("z"), "g")]),
        (
            "an end once more",
            vec![
                id(&complete(FAULTY), "c"),
                bad.clone(),
                id(&complete(FAULTY), "c"),
                placed(FAULTY, "z", "1"),
            ],
        ),
        ("an end that a rollback removes", vec![bad.clone(), at(&canceled("x"), 9), reverted(9)]),
        ("a gap that a rollback removes", vec![at(&gap("x"), 9), bad.clone(), reverted(9)]),
        (
            "a gap of an order that a rollback removes",
            vec![at(&gap("y"), 9), garbage(), reverted(9)],
        ),
        ("a rollback that is refused", vec![at(&good, 9), reverted(9).replace('9', "\"9\"")]),
        ("a snapshot of a book of orders", vec![snapshot]),
        ("what came before the first order", vec![]),
        (
            "the end of a gap that is the first event",
            vec![at(&good, 9), reverted(9), complete(FAULTY), garbage()],
        ),
        (
            "an order that nobody knows of a market that nobody knows",
            vec![complete(FAULTY), with_field(&canceled("never placed"), "market", "\"XBT-EUR\"")],
        ),
    ];
    let mut trials = Vec::new();
    for (what, lines) in all {
        let mut begin = match what {
            "what came before the first order" => vec![define.clone(), garbage(), one.clone()],
            _ => vec![define.clone(), one.clone(), two.clone()],
        };
        begin.extend(lines);
        trials.push(async move { (what, is_whole_after(&begin).await) });
    }
    let live: Vec<_> = join_all(trials).await.into_iter().filter(|(_, live)| *live).collect();
    assert_eq!(live, []);
}

#[tokio::test]
async fn what_a_book_has_anyway_leaves_no_gap() {
    let [define, one, two] = beginning(FAULTY);
    let own = format!("{FAULTY} 1");
    let at = |line: &str, height: u32| with_field(line, "height", &height.to_string());
    let unreadable = filled(&own, "1").replace("\"1\"}", "1}");
    let all: [(&str, Vec<String>); 5] = [
        ("an order once more", vec![one.clone(), canceled(&own), one.clone()]),
        ("what is final", vec![canceled(&own), unreadable]),
        (
            "a gap of a block that a rollback removes",
            vec![at(&placed(FAULTY, "x", "1.55"), 9), reverted(9)],
        ),
        (
            "a client that is refused",
            vec![with_field(&placed(FAULTY, "x", "1.55"), "requested", "true")],
        ),
        ("an order of before", vec![canceled("never placed")]),
    ];
    let mut trials = Vec::new();
    for (what, lines) in all {
        let begin = [vec![define.clone(), one.clone(), two.clone()], lines].concat();
        trials.push(async move { (what, is_whole_after(&begin).await) });
    }
    let stale: Vec<_> = join_all(trials).await.into_iter().filter(|(_, live)| !*live).collect();
    assert_eq!(stale, []);
}
