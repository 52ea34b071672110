//! The chain removes blocks while clients subscribe. Each client then has the state of a hub that
//! never received those blocks. So has a client that resumes later, or after a kill.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::harness::client::PATIENCE;
use crate::harness::events::Events;
use crate::harness::{Client, Hub, http, loud, market};

const BY_LEVELS: &str = "XBT-USD";
const BY_ORDERS: &str = "ERG-USD";
const ACCOUNT: &str = "9me";
const ME: &str = "identity.development_account=9me";
/// When all of it is over.
const AFTERWARDS: &str = "2026-01-01T04:00:00Z";
/// Of a block that is not the first.
const BLOCK_EVENTS: usize = 9;
/// The last block that stays.
const STANDING: u64 = 103;
/// Blocks after it that the rollback removes.
const UNDONE: u64 = 3;

/// A subscription by the name of its field.
const SUBSCRIPTIONS: [(&str, &str, &str); 11] = [
    ("orderBook", "raw", r#"orderBook(market: "XBT-USD", depth: 1000) { BOOK }"#),
    ("orderBook", "slow", r#"orderBook(market: "XBT-USD", depth: 1000, speed: MS_100) { BOOK }"#),
    ("orderBook", "orders", r#"orderBook(market: "ERG-USD", depth: 1000) { BOOK }"#),
    (
        "bestBidOffer",
        "offers",
        r#"bestBidOffer(markets: ["XBT-USD", "ERG-USD"]) { HEAD market
        bid { price size orders } ask { price size orders } }"#,
    ),
    (
        "candles",
        "candles",
        r#"candles(market: "XBT-USD", interval: M5) { HEAD market
        candles { CANDLE } }"#,
    ),
    (
        "tickers",
        "tickers",
        r#"tickers(markets: ["XBT-USD", "ERG-USD"]) { HEAD market
        ticker { TICKER } }"#,
    ),
    (
        "trades",
        "one market",
        r#"trades(markets: ["XBT-USD"]) { HEAD market items: trades { TRADE } }"#,
    ),
    (
        "trades",
        "two markets",
        r#"trades(markets: ["ERG-USD", "XBT-USD"]) { HEAD market
        items: trades { TRADE } }"#,
    ),
    ("orders", "all", r#"orders(market: "ERG-USD") { HEAD market items: orders { UPDATE } }"#),
    ("orders", "mine", r#"orders(account: "9me") { HEAD market items: orders { UPDATE } }"#),
    (
        "events",
        "news",
        r#"events(topic: "news") { HEAD market: topic items: events { id data sequence } }"#,
    ),
];

const BOOK: &str = "__typename market epoch sequence cursor
    ... on BookSnapshot { reason bids { price size orders } asks { price size orders } }
    ... on BookDelta { prevSequence bids { price size orders } asks { price size orders } }";
const HEAD: &str = "epoch sequence prevSequence cursor reason";
const CANDLE: &str = "start open high low close volume quoteVolume vwap count";
const TICKER: &str = "last lastSize lastTime lastSide open high low volume count
    bid { price size orders } ask { price size orders }";
const TRADE: &str = "id price size takerSide time sequence";
const ORDER: &str = "id account side price size openSize filledSize status boxId";

fn document(field: &str) -> String {
    let update = format!("event trade fillSize reason sequence order {{ {ORDER} }}");
    field
        .replace("BOOK", BOOK)
        .replace("HEAD", HEAD)
        .replace("CANDLE", CANDLE)
        .replace("TICKER", TICKER)
        .replace("TRADE", TRADE)
        .replace("UPDATE", &update)
}

/// What a client holds that knows nothing but the frames of one subscription.
#[derive(Clone, Default)]
struct Copy {
    /// Of each market or topic.
    position: BTreeMap<String, (String, u64)>,
    cursor: Option<String>,
    reasons: Vec<String>,
    /// Events published one by one, each with its position.
    items: Vec<(String, Value)>,
    /// What is published as a state: by market, and side and price or start.
    state: BTreeMap<(String, String), Value>,
}

impl Copy {
    fn apply(&mut self, field: &str, frame: &Value) {
        let of = frame["market"].as_str().unwrap_or("account").to_owned();
        let epoch = frame["epoch"].as_str().unwrap().to_owned();
        let number = |key: &str| frame[key].as_str().map(|text| text.parse::<u64>().unwrap());
        let sequence = number("sequence").unwrap();
        self.cursor = Some(frame["cursor"].as_str().unwrap().to_owned());
        let beats = frame["__typename"] == "BookHeartbeat";
        let restated = !beats && frame["prevSequence"].is_null();
        if restated {
            let reason = frame["reason"].as_str().unwrap_or_else(|| panic!("no reason: {frame}"));
            self.reasons.push(reason.to_owned());
            self.state.retain(|(own, _), _| *own != of);
            self.items.retain(|(own, item)| *own != of || item_sequence(item) <= sequence);
        } else {
            let previous = if beats { sequence } else { number("prevSequence").unwrap() };
            let expected = (epoch.clone(), previous);
            assert_eq!(self.position.get(&of), Some(&expected), "the chain broke: {frame}");
        }
        self.position.insert(of.clone(), (epoch, sequence));
        let mut put = |key: String, value: Value| self.state.insert((of.clone(), key), value);
        match field {
            "orderBook" => {
                for side in ["bids", "asks"] {
                    for level in frame[side].as_array().into_iter().flatten() {
                        put(format!("{side} {}", level["price"].as_str().unwrap()), level.clone());
                    }
                }
                let gone = |level: &Value| level["size"] == "0.00000000";
                self.state.retain(|_, level| !gone(level));
            }
            "candles" => {
                for candle in frame["candles"].as_array().unwrap() {
                    put(candle["start"].as_str().unwrap().to_owned(), candle.clone());
                }
            }
            "bestBidOffer" => {
                put(String::new(), json!({"bid": frame["bid"], "ask": frame["ask"]}));
            }
            "tickers" if !frame["ticker"].is_null() => {
                put(String::new(), frame["ticker"].clone());
            }
            "tickers" => {}
            _ => {
                let items = frame["items"].as_array().unwrap();
                self.items.extend(items.iter().map(|item| (of.clone(), item.clone())));
            }
        }
    }

    fn reorganisations(&self) -> usize {
        self.restatements("REORG")
    }

    fn restatements(&self, reason: &str) -> usize {
        self.reasons.iter().filter(|own| *own == reason).count()
    }
}

fn item_sequence(item: &Value) -> u64 {
    item["sequence"].as_str().unwrap().parse().unwrap()
}

/// One socket with every subscription, and what it holds of each.
struct Everything {
    client: Client,
    copies: Vec<Copy>,
}

impl Everything {
    /// Goes on with what was held of each before, if anything.
    async fn follow(hub: &Hub, held: &[Copy]) -> Self {
        let mut client = Client::reconnected(hub.address()).await;
        for (id, (_, _, field)) in SUBSCRIPTIONS.iter().enumerate() {
            let query = format!("subscription {{ {} }}", document(field));
            let mut payload = json!({ "query": query });
            if let Some(cursor) = held.get(id).and_then(|copy| copy.cursor.as_ref()) {
                payload["extensions"] = json!({ "after": cursor });
            }
            client.subscribe_with(&id.to_string(), payload).await;
        }
        let mut copies = held.to_vec();
        copies.resize_with(SUBSCRIPTIONS.len(), Copy::default);
        Self { client, copies }
    }

    /// Reads until each subscription is as awaited.
    async fn until(&mut self, awaited: impl Fn(&str, &Copy) -> bool) {
        let reading = async {
            loop {
                let waits = |(copy, (field, _, _)): (&Copy, &(&str, _, _))| !awaited(field, copy);
                if !self.copies.iter().zip(&SUBSCRIPTIONS).any(waits) {
                    return;
                }
                let message = self.client.message().await;
                assert_eq!(message["type"], "next", "{message}");
                assert!(message["payload"]["errors"].is_null(), "{message}");
                let id: usize = message["id"].as_str().unwrap().parse().unwrap();
                let (field, _, _) = SUBSCRIPTIONS[id];
                self.copies[id].apply(field, &message["payload"]["data"][field]);
            }
        };
        if tokio::time::timeout(PATIENCE, reading).await.is_err() {
            for (copy, (field, name, _)) in self.copies.iter().zip(SUBSCRIPTIONS) {
                if !awaited(field, copy) {
                    eprintln!(
                        "{field} {name}: {:?} {:?} {:?}",
                        copy.reasons, copy.state, copy.items
                    );
                }
            }
            panic!("what was awaited never came");
        }
    }

    /// Each copy is what a query answers.
    fn compare(&self, hub: &Hub) {
        let answers = answers(hub);
        for (copy, (field, name, _)) in self.copies.iter().zip(SUBSCRIPTIONS) {
            for ((market, key), value) in &copy.state {
                if field == "candles" && **key >= *AFTERWARDS {
                    continue; // The empty one that the clock is in.
                }
                let expected = match field {
                    "orderBook" => {
                        let (side, price) = key.split_once(' ').unwrap();
                        let levels = answers[market]["book"][side].as_array().unwrap();
                        levels.iter().find(|level| level["price"] == price)
                    }
                    "candles" => {
                        let candles = answers[market]["M5"].as_array().unwrap();
                        candles.iter().find(|candle| candle["start"] == **key)
                    }
                    "tickers" => Some(&answers[market]["ticker"]),
                    _ => Some(&answers[market]["best"]),
                };
                assert_eq!(expected, Some(value), "{field} {name} {market} {key}");
            }
            if field == "orderBook" {
                let market = copy.position.keys().next().unwrap();
                let levels = |side: &str| answers[market]["book"][side].as_array().unwrap().len();
                assert_eq!(copy.state.len(), levels("bids") + levels("asks"), "{field} {name}");
            }
            let held = |market: &str| -> Vec<Value> {
                let own = copy.items.iter().filter(|(own, _)| own == market);
                own.map(|(_, item)| without_sequence(item)).collect()
            };
            match field {
                "trades" => {
                    for market in copy.position.keys() {
                        assert_eq!(
                            json!(held(market)),
                            answers[market]["trades"],
                            "{name} {market}"
                        );
                    }
                }
                "events" => assert_eq!(json!(held("news")), answers["news"]),
                "orders" => {
                    let of = if name == "mine" { "account" } else { BY_ORDERS };
                    let mut last = BTreeMap::new();
                    for update in held(of) {
                        let order = update["order"].clone();
                        last.insert(order["id"].as_str().unwrap().to_owned(), order);
                    }
                    let orders = answers["orders"].as_array().unwrap().iter();
                    let orders = orders.filter(|one| name == "all" || one["account"] == ACCOUNT);
                    let expected: BTreeMap<_, _> = orders
                        .map(|one| (one["id"].as_str().unwrap().to_owned(), one.clone()))
                        .collect();
                    assert_eq!(last, expected, "{field} {name}");
                }
                _ => {}
            }
        }
    }
}

fn without_sequence(item: &Value) -> Value {
    let mut item = item.clone();
    item.as_object_mut().unwrap().remove("sequence");
    item
}

/// All that queries answer, but for positions.
fn answers(hub: &Hub) -> Value {
    let mut all = json!({});
    for market in [BY_LEVELS, BY_ORDERS] {
        let levels = "bids { price size orders } asks { price size orders }";
        let trade = TRADE.replace("sequence", "");
        let intervals = ["M1", "M5", "M15", "M30", "H1", "H4", "D1"].map(|interval| {
            format!(
                r#"{interval}: candles(market: "{market}", interval: {interval}, to: "{AFTERWARDS}")
                    {{ {CANDLE} }}"#
            )
        });
        let query = format!(
            r#"{{ market(id: "{market}") {{ status }}
                book: orderBook(market: "{market}", depth: 1000) {{ checksum {levels} }}
                top: orderBook(market: "{market}", depth: 1) {{ {levels} }}
                trades(market: "{market}", first: 1000) {{ nodes {{ {trade} }} }}
                ticker(market: "{market}") {{ {} }} {} }}"#,
            TICKER,
            intervals.join(" ")
        );
        let mut answer = hub.query(&query);
        let best = |side: &str| answer["top"][side][0].clone();
        answer["best"] = json!({"bid": best("bids"), "ask": best("asks")});
        answer["trades"] = answer["trades"]["nodes"].clone();
        all[market] = answer;
    }
    let query = format!(
        r#"{{ orders(first: 1000) {{ nodes {{ {ORDER} }} }}
            events(topic: "news", first: 1000) {{ nodes {{ id data }} }} }}"#
    );
    let answer = hub.query(&query);
    all["orders"] = answer["orders"]["nodes"].clone();
    all["news"] = answer["events"]["nodes"].clone();
    all
}

/// A block with an event of every kind; `fork` makes the contents of two of one height differ.
fn block(height: u64, fork: &str) -> Vec<String> {
    let n = height - 100;
    let time = format!("2026-01-01T00:{:02}:00Z", n * 2);
    let event = |kind: &str, fields: Value| {
        let mut event = json!({
            "kind": kind, "height": height, "block": format!("{fork}{height}"), "time": time,
            // The same on both forks, as the id of one that is undone is free again.
            "id": format!("{kind} {height} {}{}", fields["market"], fields["side"]),
        });
        event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        event.to_string()
    };
    // What differs between the forks.
    let size = if fork == "a" { 1 } else { 7 };
    let (bid, ask) = (format!("{}.0", 90 + n), format!("{}.5", 110 - n));
    let mut lines = vec![event("block.applied", json!({}))];
    for market in [BY_LEVELS, BY_ORDERS] {
        lines.push(event(
            "trade",
            json!({
                "market": market, "price": format!("{}.5", 100 + n), "size": format!("{size}"),
                "takerSide": "BUY",
            }),
        ));
    }
    let book = json!({"market": BY_LEVELS, "bids": [[bid, size.to_string()]],
        "asks": [[ask, "2"], ["100.5", "0"]]});
    lines.push(event("book.delta", book));
    if n > 1 {
        lines.push(event("order.canceled", json!({ "order": format!("SELL {}", height - 1) })));
        lines.push(event(
            "order.filled",
            json!({
                "order": format!("BUY {}", height - 1), "price": bid, "size": size.to_string(),
                "trade": format!("{fork} {height}"), "boxId": format!("{fork} {height} rest"),
            }),
        ));
    }
    // The one that is looked for comes last.
    for (account, side, price) in [("9you", "SELL", &ask), (ACCOUNT, "BUY", &bid)] {
        lines.push(event(
            "order.placed",
            json!({
                "market": BY_ORDERS, "order": format!("{side} {height}"), "account": account,
                "side": side, "price": price, "size": "9", "boxId": format!("{fork} {height}"),
            }),
        ));
    }
    lines.push(event("message", json!({"topic": "news", "data": format!("{fork} {height}")})));
    lines
}

fn beginning() -> Vec<String> {
    let book = json!({"kind": "book.snapshot", "market": BY_LEVELS, "bids": [["40.0", "1"]],
        "asks": [["200.0", "1"]]});
    vec![market::definition(BY_LEVELS), market::definition(BY_ORDERS), book.to_string()]
}

/// An event that is in no block, after the first removed one. The rollback keeps it if it can.
fn off_chain() -> Vec<String> {
    let lines = [
        json!({"kind": "trade", "market": BY_LEVELS, "id": "off", "price": "99.5", "size": "3",
            "time": "2026-01-01T00:09:30Z"}),
        json!({"kind": "book.delta", "market": BY_LEVELS, "bids": [["50.0", "5"]], "asks": []}),
        json!({"kind": "order.placed", "market": BY_ORDERS, "order": "off", "account": ACCOUNT,
            "side": "BUY", "price": "80.0", "size": "4"}),
        json!({"kind": "message", "topic": "news", "data": "off the chain", "id": "off message"}),
        // Of an order whose placing is undone: this can't be without it.
        json!({"kind": "order.canceled", "order": format!("BUY {}", STANDING + 1)}),
    ];
    lines.map(|line| line.to_string()).into()
}

/// What the newest event of every topic says.
fn has_seen(fork: &str, height: u64) -> impl Fn(&str, &Copy) -> bool {
    let price = format!("{}.5", height);
    let (bid, news) = (format!("{}.0", height - 10), format!("{fork} {height}"));
    let size = if fork == "a" { "1" } else { "7" };
    let size = format!("{size}.00000000");
    move |field, copy| {
        let of_levels = |value: &Value| value["bid"]["price"] == bid.as_str();
        match field {
            "orderBook" => copy.state.iter().any(|((market, key), level)| {
                let expected = if market == BY_LEVELS { &size } else { "9.00000000" };
                *key == format!("bids {bid}") && level["size"] == *expected
            }),
            "bestBidOffer" | "tickers" => {
                let both = copy.state.values().filter(|value| of_levels(value)).count() == 2;
                let traded = |value: &Value| {
                    value["last"] == price.as_str() && value["lastSize"] == size.as_str()
                };
                both && (field == "bestBidOffer" || copy.state.values().all(traded))
            }
            "candles" => copy.state.values().any(|candle| candle["close"] == price.as_str()),
            "trades" => copy.position.keys().all(|market| {
                copy.items.iter().any(|(own, item)| {
                    own == market
                        && item["price"] == price.as_str()
                        && item["size"] == size.as_str()
                })
            }),
            "orders" => copy.items.iter().any(|(_, item)| {
                let order = &item["order"];
                item["event"] == "PLACED"
                    && order["account"] == ACCOUNT
                    && order["boxId"] == news.as_str()
            }),
            _ => copy.items.iter().any(|(_, item)| item["data"] == news.as_str()),
        }
    }
}

#[tokio::test]
async fn a_reorganisation_of_three_blocks_reaches_everyone_and_leaves_what_was_not_undone() {
    let mut hub = Hub::start_with(&[ME]);
    let mut standing = beginning();
    hub.append_lines("chain.ndjson", &standing);
    Client::knowing(hub.address(), BY_ORDERS).await;
    let mut here = Everything::follow(&hub, &[]).await;
    let mut away = Everything::follow(&hub, &[]).await;
    // Each has its first frames, so that all that follows comes as changes.
    for one in [&mut here, &mut away] {
        one.until(|_, copy| !copy.reasons.is_empty()).await;
    }

    let blocks: Vec<_> = (101..=STANDING).flat_map(|height| block(height, "a")).collect();
    hub.append_lines("chain.ndjson", &blocks);
    standing.extend(blocks);
    let last = STANDING + UNDONE;
    hub.append_lines("chain.ndjson", &block(STANDING + 1, "a"));
    hub.append_lines("chain.ndjson", &off_chain());
    (STANDING + 2..=last).for_each(|height| hub.append_lines("chain.ndjson", &block(height, "a")));
    for one in [&mut here, &mut away] {
        one.until(has_seen("a", last)).await;
        assert!(one.copies.iter().all(|copy| copy.reorganisations() == 0));
    }
    // But for the fill of the order that was canceled off the chain.
    let accepted = standing.len() + off_chain().len() + UNDONE as usize * BLOCK_EVENTS - 1;
    crate::feeds::capture::until_read(&hub, accepted);
    let old = away.copies.clone();
    drop(away);

    // Newest first, as a chain does it.
    let reverts: Vec<_> = (STANDING + 1..=last)
        .rev()
        .map(|height| json!({"kind": "block.reverted", "height": height}).to_string())
        .collect();
    let fork: Vec<_> = (STANDING + 1..=last + 1).flat_map(|height| block(height, "b")).collect();
    hub.append_lines("chain.ndjson", &[&reverts[..], &fork[..]].concat());
    here.until(has_seen("b", last + 1)).await;
    for (copy, (field, name, _)) in here.copies.iter().zip(SUBSCRIPTIONS) {
        assert!(copy.reorganisations() > 0, "{field} {name}: {:?}", copy.reasons);
    }
    here.compare(&hub);

    // A hub that never saw what was undone.
    let plain = Hub::start_with(&[ME]);
    standing.extend(off_chain());
    standing.extend(fork);
    plain.append_lines("chain.ndjson", &standing);
    Client::knowing(plain.address(), BY_ORDERS).await;
    crate::feeds::capture::until_read(&plain, standing.len() - 1);
    assert_eq!(answers(&hub), answers(&plain));

    // Who comes back with a cursor from before, now and after a kill.
    for killed in [false, true] {
        if killed {
            hub.restart();
        }
        let mut back = Everything::follow(&hub, &old).await;
        back.until(has_seen("b", last + 1)).await;
        for (copy, (field, name, _)) in back.copies.iter().zip(SUBSCRIPTIONS) {
            // The best bid and offer have no cursor to come back with.
            let reorganised = field == "bestBidOffer" || copy.reorganisations() > 0;
            assert!(reorganised, "{field} {name}: {:?}", copy.reasons);
        }
        back.compare(&hub);
        assert_eq!(answers(&hub), answers(&plain), "killed: {killed}");
    }

    // And with one from after it: nothing is stated again.
    let mut on = Everything::follow(&hub, &here.copies).await;
    hub.append_lines("chain.ndjson", &block(last + 2, "b"));
    let before: Vec<_> = on.copies.iter().map(|copy| copy.reasons.len()).collect();
    on.until(has_seen("b", last + 2)).await;
    on.compare(&hub);
    for ((copy, before), (field, name, _)) in on.copies.iter().zip(before).zip(SUBSCRIPTIONS) {
        let restated = match field {
            "bestBidOffer" => 2,
            // One of the two goes on after its cursor.
            "tickers" => 1,
            _ => 0,
        };
        assert_eq!(copy.reasons.len() - before, restated, "{field} {name}: {:?}", copy.reasons);
    }
}

fn trade(number: u64, height: u64) -> String {
    json!({
        "kind": "trade", "market": BY_LEVELS, "id": number.to_string(), "price": "1", "size": "1",
        "height": height,
    })
    .to_string()
}

#[test]
fn a_client_of_server_sent_events_goes_back_too() {
    let hub = Hub::start();
    hub.append_lines("chain.ndjson", &beginning());
    let query = format!(
        r#"subscription {{ trades(markets: ["{BY_LEVELS}"]) {{ epoch sequence prevSequence reason
            trades {{ id }} }} }}"#
    );
    let request = json!({ "query": query });
    crate::feeds::capture::until_read(&hub, 3);
    let mut events = Events::open(hub.address(), &request, &[]);
    let mut next = || {
        let (id, result) = events.next();
        (id.unwrap(), result["data"]["trades"].clone())
    };
    let (_, begin) = next();
    assert_eq!((&begin["reason"], &begin["sequence"]), (&json!("INITIAL"), &json!("0")));
    hub.append_lines("chain.ndjson", &[trade(1, 100), trade(2, 101), trade(3, 101)]);
    let received: Vec<_> = (1..=3).map(|_| next()).collect();
    for (number, (_, frame)) in (1..).zip(&received) {
        assert_eq!(frame["trades"], json!([{"id": number.to_string()}]));
        assert_eq!((&frame["epoch"], &frame["reason"]), (&begin["epoch"], &Value::Null));
    }
    hub.append_lines("chain.ndjson", &[r#"{"kind":"block.reverted","height":101}"#]);
    let (_, back) = next();
    assert_eq!((&back["reason"], &back["prevSequence"]), (&json!("REORG"), &Value::Null));
    assert_eq!((&back["sequence"], &back["trades"]), (&received[0].1["sequence"], &json!([])));
    assert_ne!(back["epoch"], begin["epoch"]);
    hub.append_lines("chain.ndjson", &[trade(2, 101)]);
    let (_, again) = next();
    assert_eq!(again["trades"], json!([{"id": "2"}]));
    assert_eq!((&again["prevSequence"], &again["epoch"]), (&back["sequence"], &back["epoch"]));

    // One client resumes after the removed events, and one after those that stay.
    for (place, (id, _)) in received.iter().enumerate() {
        let header = format!("Last-Event-ID: {id}");
        let mut events = Events::open(hub.address(), &request, &[&header]);
        let frames = [events.next().1, events.next().1].map(|one| one["data"]["trades"].clone());
        assert_eq!(frames[0]["reason"], "REORG", "{place}");
        assert_eq!(frames[0]["sequence"], back["sequence"], "{place}");
        assert_eq!(frames[1], again, "{place}");
    }
    let list = |after: &str| {
        let query = format!(
            r#"{{ trades(market: "{BY_LEVELS}", after: "{after}") {{ nodes {{ id }} }} }}"#
        );
        http::post(hub.address(), &json!({ "query": query })).json()
    };
    assert_eq!(list(&received[0].0)["data"]["trades"]["nodes"], json!([{"id": "2"}]));
    let refused = list(&received[2].0)["errors"][0]["extensions"].clone();
    assert_eq!(refused["code"], "RESYNC_REQUIRED");
    assert_eq!(refused["floor"]["epoch"], back["epoch"]);
    let floor = list(refused["cursor"].as_str().unwrap());
    assert_eq!(floor["data"]["trades"]["nodes"], json!([{"id": "2"}]));
}

#[tokio::test]
async fn a_market_that_a_block_defined_goes_with_it_and_may_come_back_another_one() {
    let mut hub = Hub::start();
    let define = |decimals: u8| {
        json!({
            "kind": "market", "market": "NEW-USD", "base": "NEW", "quote": "USD", "height": 200,
            "priceDecimals": decimals, "sizeDecimals": 0,
        })
        .to_string()
    };
    let book =
        json!({"kind": "book.delta", "market": "NEW-USD", "bids": [["1.5", "3"]], "asks": []});
    // Off the chain, yet nothing without its market.
    hub.append_lines("chain.ndjson", &[define(1), book.to_string()]);
    let mut client = Client::knowing(hub.address(), "NEW-USD").await;
    let query = format!(r#"subscription {{ orderBook(market: "NEW-USD") {{ {BOOK} }} }}"#);
    client.subscribe("book", &query).await;
    let mut frame = async || client.message().await["payload"]["data"]["orderBook"].clone();
    while frame().await["bids"] == json!([]) {}

    hub.append_lines("chain.ndjson", &[r#"{"kind":"block.reverted","height":200}"#]);
    let mut gone = frame().await;
    while gone["__typename"] == "BookHeartbeat" {
        gone = frame().await;
    }
    assert_eq!((&gone["reason"], &gone["bids"]), (&json!("REORG"), &json!([])));
    for killed in [false, true] {
        if killed {
            hub.restart();
        }
        let data = hub.query(
            r#"{ market(id: "NEW-USD") { id } markets { id }
            orderBook(market: "NEW-USD") { sequence } ticker(market: "NEW-USD") { last } }"#,
        );
        let nothing = json!({"market": null, "markets": [], "orderBook": null, "ticker": null});
        assert_eq!(data, nothing, "killed: {killed}");
        let mut other = Client::connected(hub.address()).await;
        other.subscribe("book", &query).await;
        let refused = other.message().await;
        assert_eq!(refused["payload"][0]["extensions"]["code"], "NOT_FOUND", "{refused}");
    }

    let placed = json!({
        "kind": "order.placed", "market": "NEW-USD", "order": "o", "side": "BUY",
        "price": "1.505", "size": "2", "height": 200,
    });
    hub.append_lines("chain.ndjson", &[define(3), placed.to_string()]);
    let mut client = Client::knowing(hub.address(), "NEW-USD").await;
    client.subscribe("book", &query).await;
    let bids = json!([{"price": "1.505", "size": "2", "orders": 1}]);
    let mut frame = client.message().await["payload"]["data"]["orderBook"].clone();
    while frame["bids"] != bids {
        frame = client.message().await["payload"]["data"]["orderBook"].clone();
    }
    assert_eq!(frame["epoch"], gone["epoch"], "its numbering went on");
}

/// Each time the hub is killed while a block comes, is undone and another one takes its place.
const KILLS: u64 = 8;

#[tokio::test]
async fn a_client_of_a_hub_that_was_killed_while_blocks_were_undone_holds_what_was_not_undone() {
    let mut hub = Hub::start_with(&[ME]);
    let mut standing = beginning();
    hub.append_lines("chain.ndjson", &standing);
    Client::knowing(hub.address(), BY_ORDERS).await;
    let seed = 20_261_125;
    loud::say(&format!("seed {seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let mut all = Everything::follow(&hub, &[]).await;
    all.until(|_, copy| !copy.reasons.is_empty()).await;
    for height in 101..101 + KILLS {
        let fork = block(height, "b");
        let revert = json!({"kind": "block.reverted", "height": height}).to_string();
        let mut lines = block(height, "a");
        lines.push(revert);
        lines.extend(fork.clone());
        standing.extend(fork);
        hub.append_lines("chain.ndjson", &lines);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..25))).await;
        hub.restart();
        all = Everything::follow(&hub, &all.copies).await;
        all.until(has_seen("b", height)).await;
        all.compare(&hub);
    }
    let plain = Hub::start_with(&[ME]);
    plain.append_lines("chain.ndjson", &standing);
    crate::feeds::capture::until_read(&plain, standing.len());
    assert_eq!(answers(&hub), answers(&plain));
}

/// A client that trusts the chain of frames must see that something is missing before it.
#[tokio::test]
async fn a_gap_of_a_source_begins_a_new_epoch_everywhere_and_takes_nothing() {
    let mut hub = Hub::start_with(&[ME]);
    hub.append_lines("chain.ndjson", &beginning());
    Client::knowing(hub.address(), BY_ORDERS).await;
    let mut here = Everything::follow(&hub, &[]).await;
    let mut away = Everything::follow(&hub, &[]).await;
    for one in [&mut here, &mut away] {
        one.until(|_, copy| !copy.reasons.is_empty()).await;
    }
    (101..=STANDING).for_each(|height| hub.append_lines("chain.ndjson", &block(height, "a")));
    for one in [&mut here, &mut away] {
        one.until(has_seen("a", STANDING)).await;
    }
    let old = away.copies.clone();
    drop(away);

    let gap = json!({"kind": "source.gap", "source": "a test", "reason": "nobody knows"});
    hub.append_lines("chain.ndjson", &[gap.to_string()]);
    here.until(|_, copy| copy.restatements("EPOCH_CHANGE") > 0).await;
    here.compare(&hub);
    let epoch = |copy: &Copy| copy.position.values().next().unwrap().0.clone();
    for (now, before) in here.copies.iter().zip(&old) {
        assert_ne!(epoch(now), epoch(before));
    }
    // Comes back with the cursors of the epoch before, also to a hub that was killed meanwhile.
    for _ in 0..2 {
        let mut back = Everything::follow(&hub, &old).await;
        // The best bid and offer have no cursor to come back with.
        let reason = |field: &str| if field == "bestBidOffer" { "INITIAL" } else { "EPOCH_CHANGE" };
        back.until(|field, copy| copy.restatements(reason(field)) > 0).await;
        back.compare(&hub);
        for (back, here) in back.copies.iter().zip(&here.copies) {
            assert_eq!(epoch(back), epoch(here));
            assert_eq!((&back.items, back.reorganisations()), (&here.items, 0));
        }
        hub.restart();
    }
    let mut after = Everything::follow(&hub, &here.copies).await;
    hub.append_lines("chain.ndjson", &block(STANDING + 1, "a"));
    after.until(has_seen("a", STANDING + 1)).await;
    after.compare(&hub);
    for (copy, (field, name, _)) in after.copies.iter().zip(SUBSCRIPTIONS) {
        assert_eq!(copy.reorganisations(), 0, "{field} {name}");
    }
    let metrics = hub.admin_page("/metrics").1;
    assert!(metrics.contains("spreadly_reorganisations_total 0"), "{metrics}");
}
