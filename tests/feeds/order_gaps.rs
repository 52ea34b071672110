//! Books that are summed from orders and missed an event: they say so, alone, until the order is
//! final or the source says that its orders are complete.

use serde_json::{Value, json};

use crate::harness::{Client, Hub, market};

const FILE: &str = "orders.ndjson";
const FAULTY: &str = "XBT-USD";
const WHOLE: &str = "ERG-USD";

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
    let mut offers = Client::connected(hub.address()).await;
    let query = format!(
        "subscription {{ bestBidOffer(markets: [\"{FAULTY}\", \"{WHOLE}\"]) {{ market state }} }}"
    );
    offers.subscribe("1", &query).await;
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
            offers = Client::connected(hub.address()).await;
            offers.subscribe("1", &query).await;
        }
    }
    let mut stale = Vec::new();
    while stale.is_empty() {
        let message = offers.message().await;
        let offer = &message["payload"]["data"]["bestBidOffer"];
        stale.extend((offer["state"] == "STALE").then(|| offer["market"].clone()));
    }
    assert_eq!(stale, [FAULTY]);
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
