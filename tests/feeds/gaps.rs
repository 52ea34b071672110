//! Books that missed an event, and books that had none yet: they say so, alone, until they are
//! whole.

use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::client::PATIENCE;
use crate::harness::{Client, Hub, market};

const FILE: &str = "books.ndjson";
pub(super) const FAULTY: &str = "XBT-USD";
pub(super) const WHOLE: &str = "ERG-USD";

fn books(fields: &str) -> String {
    format!(
        "subscription {{ orderBook(market: \"{FAULTY}\")
         {{ __typename sequence state stateReason {fields} }} }}"
    )
}

/// The frame of a message.
fn frame(message: &Value) -> &Value {
    &message["payload"]["data"]["orderBook"]
}

/// The next frame in this state.
async fn frame_in(client: &mut Client, state: &str) -> Value {
    loop {
        let message = client.message().await;
        assert_eq!(message["type"], "next", "{message}");
        if frame(&message)["state"] == state {
            return frame(&message).clone();
        }
    }
}

/// Follows the best bid and offer of both markets.
pub(super) async fn offers(hub: &Hub) -> Client {
    let mut client = Client::connected(hub.address()).await;
    let query = format!(
        "subscription {{ bestBidOffer(markets: [\"{FAULTY}\", \"{WHOLE}\"]) {{ market state }} }}"
    );
    client.subscribe("1", &query).await;
    client
}

/// The market of the first of them that is stale.
pub(super) async fn first_stale(offers: &mut Client) -> Value {
    loop {
        let message = offers.message().await;
        let offer = &message["payload"]["data"]["bestBidOffer"];
        if offer["state"] == "STALE" {
            return offer["market"].clone();
        }
    }
}

fn state_of(hub: &Hub, market: &str) -> Value {
    let query = format!("{{ orderBook(market: \"{market}\") {{ state stateReason }} }}");
    hub.query(&query)["orderBook"].clone()
}

fn gaps(hub: &Hub) -> Value {
    hub.query("{ feeds { gaps { market reason } } }")["feeds"][0]["gaps"].clone()
}

#[tokio::test]
async fn a_book_that_missed_an_event_says_so_alone_until_its_next_snapshot() {
    let mut hub = Hub::start();
    for name in [FAULTY, WHOLE] {
        hub.append_lines(FILE, &market::beginning(name));
    }
    let mut client = Client::knowing(hub.address(), WHOLE).await;
    client.subscribe("1", &books("")).await;
    frame_in(&mut client, "LIVE").await;
    let mut offers = offers(&hub).await;
    let faults = [
        market::delta(FAULTY, &[("100.05", "0")], &[]),
        market::delta(FAULTY, &[("100.0", "0")], &[]).replace("[[", "[[["),
        market::snapshot(FAULTY, &[("1.0", "1"), ("1.0", "2")], &[]),
        "\u{1}".to_owned() + &market::delta(FAULTY, &[("100.0", "0")], &[]),
    ];
    for (number, fault) in faults.iter().enumerate() {
        hub.append_lines(FILE, &[fault.as_str(), &market::step(FAULTY, 1)]);
        let stale = frame_in(&mut client, "STALE").await;
        let reason = stale["stateReason"].as_str().unwrap();
        assert!(reason.starts_with("books.ndjson line "), "{fault}: {reason}");
        let named = json!([{ "market": FAULTY, "reason": reason }]);
        hub.until_feed("files", "the gap", |_| gaps(&hub) == named).await;
        assert_eq!(state_of(&hub, WHOLE), json!({ "state": "LIVE", "stateReason": null }));
        let whole = json!({ "state": "STALE", "stateReason": reason });
        assert_eq!(state_of(&hub, FAULTY), whole);
        if number == 0 {
            hub.restart();
            assert_eq!(state_of(&hub, FAULTY), whole, "also after a restart");
            client = Client::knowing(hub.address(), WHOLE).await;
            client.subscribe("1", &books("")).await;
            let first = client.message().await;
            assert_eq!(frame(&first)["stateReason"], reason, "from the first frame on");
        }
        hub.append_lines(FILE, &[&market::beginning(FAULTY)[1]]);
        frame_in(&mut client, "LIVE").await;
        hub.until_feed("files", "its end", |_| gaps(&hub) == json!([])).await;
        assert_eq!(state_of(&hub, FAULTY)["state"], "LIVE");
    }
    assert_eq!(first_stale(&mut offers).await, FAULTY);
}

#[tokio::test]
async fn before_its_first_snapshot_a_market_has_no_book_and_an_empty_one_is_another_thing() {
    let hub = Hub::start();
    hub.append_lines(FILE, &[market::definition(FAULTY)]);
    let mut early = Client::knowing(hub.address(), FAULTY).await;
    let fields = "... on BookSnapshot { bids { price } } ... on BookDelta { bids { price } }";
    early.subscribe("1", &books(fields)).await;
    let first = frame_in(&mut early, "STALE").await;
    assert_eq!(first["bids"], json!([]));
    assert!(first["stateReason"].as_str().unwrap().contains("no book yet"), "{first}");
    let deltas: Vec<_> = (0..5).map(|number| market::step(FAULTY, number)).collect();
    hub.append_lines(FILE, &deltas);
    hub.until_feed("files", "the deltas", |feed| feed["eventsTotal"] == "6").await;
    assert_eq!(state_of(&hub, FAULTY), Value::Null);
    let mut late = Client::connected(hub.address()).await;
    late.subscribe("1", &books(fields)).await;
    assert_eq!(frame(&late.message().await)["bids"], json!([]));
    hub.append_lines(FILE, &[market::snapshot(FAULTY, &[], &[])]);
    for client in [&mut early, &mut late] {
        let empty = frame_in(client, "LIVE").await;
        assert_eq!(empty["stateReason"], Value::Null);
    }
    assert_eq!(state_of(&hub, FAULTY), json!({ "state": "LIVE", "stateReason": null }));
    hub.append_lines(FILE, &[market::step(FAULTY, 0)]);
    loop {
        let message = early.message().await;
        if frame(&message)["bids"] == json!([{ "price": "100.0" }]) {
            break;
        }
    }
}

#[tokio::test]
async fn a_book_is_whole_whatever_the_file_with_its_definition_is_called() {
    let hub = Hub::start_with(&[]);
    let mut beginning = market::beginning(FAULTY);
    let definition = beginning.remove(0);
    let steps: Vec<_> = (0..3_000).map(|number| market::step(FAULTY, number)).collect();
    hub.append_lines("a.ndjson", &[beginning, steps].concat());
    hub.append_lines("markets.ndjson", &[definition]);
    let all = hub.until_feed("files", "all", |feed| feed["eventsTotal"] == "3002").await;
    assert_eq!((&all["refusedTotal"], &all["lag"]), (&json!("0"), &json!("0")), "{all}");
    let book =
        hub.query(&format!("{{ orderBook(market: \"{FAULTY}\") {{ state bids {{ price }} }} }}"));
    assert_eq!(book["orderBook"]["state"], "LIVE");
    assert_eq!(book["orderBook"]["bids"].as_array().unwrap().len(), 12);
}

#[tokio::test]
async fn a_change_of_the_market_and_a_crossed_book_reach_who_follows_it() {
    let hub = Hub::start();
    hub.append_lines(FILE, &market::beginning(FAULTY));
    let mut client = Client::knowing(hub.address(), FAULTY).await;
    client.subscribe("1", &books("crossed definition { status tickSize }")).await;
    let first = frame_in(&mut client, "LIVE").await;
    assert_eq!(
        (&first["crossed"], &first["definition"]["status"]),
        (&json!(false), &json!("ACTIVE"))
    );
    hub.append_lines(FILE, &[market::definition(FAULTY).replace("ACTIVE", "HALTED")]);
    let halted = frame_in(&mut client, "LIVE").await;
    assert_eq!(
        (&halted["__typename"], &halted["sequence"]),
        (&json!("BookHeartbeat"), &first["sequence"])
    );
    assert_eq!(halted["definition"]["status"], "HALTED");
    let crossed = market::snapshot(FAULTY, &[("101.0", "1")], &[("100.0", "1")]);
    hub.append_lines(FILE, &[crossed]);
    let crossed = frame_in(&mut client, "LIVE").await;
    assert_eq!(
        (&crossed["crossed"], &crossed["definition"]),
        (&json!(true), &halted["definition"])
    );
    let (_, metrics) = hub.admin_page("/metrics");
    assert!(metrics.contains("\nspreadly_crossed_books 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_change_of_the_market_reaches_who_follows_its_offers_tickers_or_candles() {
    let hub = Hub::start();
    for name in [FAULTY, WHOLE] {
        hub.append_lines(FILE, &market::beginning(name));
    }
    let mut client = Client::knowing(hub.address(), WHOLE).await;
    let fields = "market sequence prevSequence definition { status tickSize }";
    let operations = [
        ("bestBidOffer", format!("markets: [\"{FAULTY}\", \"{WHOLE}\"]")),
        ("tickers", format!("markets: [\"{FAULTY}\", \"{WHOLE}\"]")),
        ("candles", format!("market: \"{FAULTY}\", interval: M1")),
    ];
    for (name, arguments) in &operations {
        client
            .subscribe(name, &format!("subscription {{ {name}({arguments}) {{ {fields} }} }}"))
            .await;
    }
    // The first frames: of two markets, of two markets, and of one.
    for _ in 0..5 {
        client.message().await;
    }
    let changes = [("ACTIVE", "HALTED", "0.1"), ("\"0.1\"", "\"0.5\"", "0.5")];
    let mut line = market::definition(FAULTY);
    for (before, after, tick) in changes {
        line = line.replacen(before, after, 1);
        hub.append_lines(FILE, &[&line]);
        let mut missing: Vec<_> = operations.iter().map(|(name, _)| *name).collect();
        while !missing.is_empty() {
            let message = client.message().await;
            let name = message["id"].as_str().unwrap();
            let frame = &message["payload"]["data"][name];
            let changed = json!({ "status": "HALTED", "tickSize": tick });
            if frame["market"] == WHOLE {
                assert_eq!(frame["definition"]["status"], "ACTIVE", "{frame}");
            } else if frame["definition"] == changed {
                assert_eq!(frame["prevSequence"], frame["sequence"], "no event came: {frame}");
                missing.retain(|own| *own != name);
            }
        }
    }
}

#[tokio::test]
async fn a_trade_that_is_refused_makes_the_trades_of_its_market_stale_until_the_next_one() {
    let hub = Hub::start();
    for name in [FAULTY, WHOLE] {
        hub.append_lines(FILE, &market::beginning(name));
    }
    let mut client = Client::knowing(hub.address(), WHOLE).await;
    let markets = format!("markets: [\"{FAULTY}\", \"{WHOLE}\"]");
    let operations = [
        ("trades", markets.clone()),
        ("tickers", markets),
        ("candles", format!("market: \"{FAULTY}\", interval: M1")),
    ];
    for (name, arguments) in &operations {
        client
            .subscribe(name, &format!("subscription {{ {name}({arguments}) {{ market state }} }}"))
            .await;
    }
    client.subscribe("orderBook", &books("market")).await;
    let trade = |price: &str, id: u64| {
        let id = id.to_string();
        json!({ "kind": "trade", "market": FAULTY, "price": price, "size": "1", "id": id })
            .to_string()
    };
    let faults = [
        vec![trade("1.23", 1)],
        vec![trade("1.0", 2).replace("\"size\"", "\"sixe\"")],
        vec![trade("1.0", 3).replace('}', "")],
        // The same id with another price.
        vec![trade("1.0", 4), trade("2.0", 4)],
    ];
    for (fault, id) in faults.into_iter().zip(100..) {
        for (lines, state) in [(fault, "STALE"), (vec![trade("1.0", id)], "LIVE")] {
            hub.append_lines(FILE, &lines);
            let mut missing: Vec<_> = operations.iter().map(|(name, _)| *name).collect();
            let began = Instant::now();
            while !missing.is_empty() {
                assert!(began.elapsed() < PATIENCE, "{state} never came: {missing:?}");
                let message = client.message().await;
                let name = message["id"].as_str().unwrap();
                let frame = &message["payload"]["data"][name];
                if frame["market"] == WHOLE || name == "orderBook" {
                    assert_eq!(frame["state"], "LIVE", "{frame}");
                } else if frame["state"] == state {
                    missing.retain(|own| *own != name);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_book_is_stale_while_its_file_waits_for_the_definition_of_another_market() {
    const LATER: &str = "NEW-USD";
    let hub = Hub::start();
    hub.append_lines(FILE, &market::beginning(FAULTY));
    hub.append_lines("other.ndjson", &market::beginning(WHOLE));
    let mut client = Client::knowing(hub.address(), WHOLE).await;
    client.subscribe("1", &books("")).await;
    frame_in(&mut client, "LIVE").await;
    hub.append_lines(FILE, &[market::delta(LATER, &[("1.0", "1")], &[])]);
    frame_in(&mut client, "STALE").await;
    let reason = format!("{FILE}: waits for the definition of market {LATER}");
    hub.until_feed("files", "the wait", |feed| feed["reason"] == reason.as_str()).await;
    assert_eq!(state_of(&hub, WHOLE)["state"], "LIVE", "its file goes on");
    hub.append_lines("other.ndjson", &market::beginning(LATER));
    frame_in(&mut client, "LIVE").await;
    hub.until_feed("files", "the end of the wait", |feed| feed["state"] == "LIVE").await;
    assert_eq!(gaps(&hub), json!([]));
}
