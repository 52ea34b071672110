//! Orders that clients place and cancel, and who receives them: streams over kills of the hub,
//! pages while events arrive.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::client::PATIENCE;
use crate::harness::{Client, Hub, Seen, market, until};

const ME: &str = "identity.development_account=9me";
const ORDER: &str = "id market account clientId side type price size openSize filledSize status \
    boxId expiresAt";
const PLACED: &str = "epoch sequence cursor order { id status clientId openSize }";

fn frames(arguments: &str) -> String {
    format!(
        "subscription {{ orders({arguments}) {{ market account epoch sequence prevSequence cursor \
         state orders {{ event sequence fillSize fillPrice liquidity reason order {{ {ORDER} }} }} }} }}"
    )
}

/// Of a market with a tick of 0.1 and a lot of 0.01, at least 0.5.
fn definition(status: &str) -> String {
    market::definition("O-USD")
        .replace(r#""lotSize":"0.00000001""#, r#""lotSize":"0.01","minSize":"0.5""#)
        .replace("ACTIVE", status)
}

fn place(fields: &str) -> String {
    format!("mutation {{ placeOrder(input: {{ market: \"O-USD\", {fields} }}) {{ {PLACED} }} }}")
}

/// Asks once, over a socket: the payload of the result, or of the error.
async fn ask(client: &mut Client, query: &str) -> Value {
    client.subscribe("ask", query).await;
    let first = client.message().await;
    if first["type"] == "next" {
        assert_eq!(client.message().await["type"], "complete");
        return first["payload"].clone();
    }
    json!({ "errors": first["payload"] })
}

fn code(answer: &Value) -> &str {
    answer["errors"][0]["extensions"]["code"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

async fn placed(client: &mut Client, fields: &str) -> Value {
    let answer = ask(client, &place(fields)).await;
    assert!(answer["errors"].is_null(), "{answer}");
    answer["data"]["placeOrder"].clone()
}

async fn hub_with(settings: &[&str]) -> (Hub, Client) {
    let hub = Hub::start_with(settings);
    hub.append_lines("markets.ndjson", &[definition("ACTIVE")]);
    let client = Client::knowing(hub.address(), "O-USD").await;
    (hub, client)
}

/// A client's copy of a stream of orders: its chain and what it received.
#[derive(Default)]
struct Received {
    position: Option<(Value, Value)>,
    cursor: Option<String>,
    items: Vec<Value>,
}

impl Received {
    fn take(&mut self, message: &Value) {
        assert!(message["type"] == "next" && message["payload"]["errors"].is_null(), "{message}");
        let frame = &message["payload"]["data"]["orders"];
        let items = frame["orders"].as_array().unwrap();
        let previous = &frame["prevSequence"];
        match &self.position {
            Some((epoch, sequence)) => assert_eq!((epoch, sequence), (&frame["epoch"], previous)),
            None if self.cursor.is_none() => assert!(previous.is_null() && items.is_empty()),
            None => {}
        }
        self.position = Some((frame["epoch"].clone(), frame["sequence"].clone()));
        self.cursor = frame["cursor"].as_str().map(str::to_owned);
        self.items.extend(items.iter().cloned());
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

    async fn begun(hub: &Hub, arguments: &str) -> (Self, Client) {
        let mut client = Client::connected(hub.address()).await;
        client.subscribe("o", &frames(arguments)).await;
        let mut received = Self::default();
        received.take(&client.message().await);
        (received, client)
    }

    fn events(&self) -> Vec<(&str, &str)> {
        self.items
            .iter()
            .map(|one| (one["event"].as_str().unwrap(), one["order"]["status"].as_str().unwrap()))
            .collect()
    }
}

#[tokio::test]
async fn an_order_that_is_placed_is_received_at_the_position_of_the_answer() {
    let (mut hub, mut client) = hub_with(&[ME]).await;
    let (mut mine, mut my_socket) = Received::begun(&hub, r#"account: "9me""#).await;
    let (mut all, mut all_socket) = Received::begun(&hub, r#"market: "O-USD""#).await;
    let (mut both, mut both_socket) =
        Received::begun(&hub, r#"market: "O-USD", account: "9me""#).await;
    let fields = r#"side: BUY, price: "10.5", size: "2", clientId: "c1""#;
    let answer = placed(&mut client, fields).await;
    assert_eq!(
        (&answer["order"]["status"], &answer["order"]["clientId"]),
        (&json!("OPEN"), &json!("c1"))
    );
    mine.follow(&mut my_socket, 1).await;
    all.follow(&mut all_socket, 1).await;
    both.follow(&mut both_socket, 1).await;
    for (received, client_id) in [(&mine, json!("c1")), (&all, Value::Null), (&both, json!("c1"))] {
        let item = &received.items[0];
        assert_eq!((&item["event"], &item["sequence"]), (&json!("PLACED"), &answer["sequence"]));
        assert_eq!(item["order"]["id"], answer["order"]["id"]);
        assert_eq!(item["order"]["clientId"], client_id);
    }
    assert_eq!(mine.cursor.as_deref(), answer["cursor"].as_str(), "one's own stream is there");
    let level = json!([{"price": "10.5", "size": "2.00000000", "orders": 1}]);
    let book = r#"{ orderBook(market: "O-USD") { sequence bids { price size orders } } }"#;
    let book = hub.query(book)["orderBook"].clone();
    assert_eq!((&book["sequence"], &book["bids"]), (&answer["sequence"], &level));

    // The chain fills some of it, and moves its box.
    let order = answer["order"]["id"].as_str().unwrap().to_owned();
    let filled = json!({"kind": "order.filled", "order": order, "price": "10.5", "size": "0.5",
                        "liquidity": "MAKER", "boxId": "b2"});
    hub.append_lines("chain.ndjson", &[filled.to_string()]);
    mine.follow(&mut my_socket, 2).await;
    assert_eq!(mine.items[1]["fillSize"], "0.50000000");
    assert_eq!(
        (&mine.items[1]["order"]["boxId"], &mine.items[1]["order"]["openSize"]),
        (&json!("b2"), &json!("1.50000000"))
    );

    let cancel = format!(
        r#"mutation {{ cancelOrder(input: {{ order: "{order}", reason: "enough" }}) {{ {PLACED} }} }}"#
    );
    let canceled = ask(&mut client, &cancel).await["data"]["cancelOrder"].clone();
    assert_eq!(canceled["order"]["status"], "CANCELED");
    mine.follow(&mut my_socket, 3).await;
    assert_eq!(
        (&mine.items[2]["sequence"], &mine.items[2]["reason"]),
        (&canceled["sequence"], &json!("enough"))
    );
    let statuses = [("PLACED", "OPEN"), ("FILLED", "PARTIALLY_FILLED"), ("CANCELED", "CANCELED")];
    assert_eq!(mine.events(), statuses);
    assert_eq!(code(&ask(&mut client, &cancel).await), "CONFLICT", "it is canceled already");

    // After the answer's cursor, over a kill, from the log.
    hub.restart();
    let mut client = Client::reconnected(hub.address()).await;
    let after = answer["cursor"].as_str().unwrap().to_owned();
    client.subscribe("o", &frames(&format!(r#"account: "9me", after: "{after}""#))).await;
    let mut resumed = Received { cursor: Some(after), ..Received::default() };
    resumed.follow(&mut client, 2).await;
    assert_eq!(resumed.items, mine.items[1..]);
    let found = hub.query(&format!(
        r#"{{ order(id: "{order}") {{ {ORDER} }} none: order(id: "x") {{ id }} }}"#
    ));
    assert_eq!((&found["order"], &found["none"]), (&mine.items[2]["order"], &Value::Null));
}

#[tokio::test]
async fn an_order_that_breaks_a_rule_is_refused_with_the_rule_and_the_value() {
    let (hub, mut client) = hub_with(&[ME]).await;
    let broken = [
        (r#"side: BUY, price: "10.55", size: "1""#, "price", "10.55"),
        (r#"side: BUY, price: "0", size: "1""#, "tickSize", "0"),
        (r#"side: BUY, price: "10", size: "0.505""#, "lotSize", "0.505"),
        (r#"side: BUY, price: "10", size: "0.49""#, "minSize", "0.49"),
        (
            r#"side: BUY, price: "10", size: "1", expiresAt: "2020-01-01T00:00:00Z""#,
            "expiresAt",
            "2020-01-01T00:00:00.000000Z",
        ),
    ];
    for (fields, rule, value) in broken {
        let answer = ask(&mut client, &place(fields)).await;
        assert_eq!(code(&answer), "VALIDATION_FAILED");
        let error = &answer["errors"][0]["extensions"];
        assert_eq!((&error["rule"], &error["value"]), (&json!(rule), &json!(value)), "{answer}");
    }
    let unknown = place("side: SELL, price: \"10\", size: \"1\"").replace("O-USD", "X-USD");
    assert_eq!(code(&ask(&mut client, &unknown).await), "NOT_FOUND");
    let no_price = ask(&mut client, &place(r#"side: SELL, size: "1""#)).await;
    assert_eq!(code(&no_price), "VALIDATION_FAILED");
    let long = format!(r#"side: SELL, price: "1", size: "1", clientId: "{}""#, "x".repeat(49));
    let long = ask(&mut client, &place(&long)).await;
    assert_eq!(code(&long), "LIMIT_EXCEEDED");
    assert_eq!(long["errors"][0]["extensions"]["limit"], 48);

    hub.append_lines("markets.ndjson", &[definition("HALTED")]);
    let status = || hub.query(r#"{ market(id: "O-USD") { status minSize } }"#)["market"].clone();
    let began = std::time::Instant::now();
    while status()["status"] != "HALTED" {
        assert!(began.elapsed() < PATIENCE, "the market was never halted");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(status()["minSize"], "0.5");
    let answer = ask(&mut client, &place(r#"side: SELL, price: "10", size: "1""#)).await;
    assert_eq!(answer["errors"][0]["extensions"]["rule"], "status");
    assert_eq!(hub.query("{ orders { nodes { id } } }")["orders"]["nodes"], json!([]));

    hub.append_lines("markets.ndjson", &market::beginning("L-USD"));
    let mut client = Client::knowing(hub.address(), "L-USD").await;
    let levels = place(r#"side: SELL, price: "10", size: "1""#).replace("O-USD", "L-USD");
    let answer = ask(&mut client, &levels).await;
    assert_eq!(code(&answer), "CONFLICT", "its book comes from levels: {answer}");
}

#[tokio::test]
async fn the_same_client_id_is_the_same_order_and_another_content_is_a_conflict() {
    let (mut hub, mut client) = hub_with(&[ME]).await;
    let fields = r#"side: SELL, price: "10", size: "1", clientId: "once""#;
    // More at once than may read the log, on sockets of their own.
    let asking = (0..30).map(|_| {
        let address = hub.address();
        tokio::spawn(async move { placed(&mut Client::connected(address).await, fields).await })
    });
    let mut answers = Vec::new();
    for one in asking.collect::<Vec<_>>() {
        answers.push(one.await.unwrap());
    }
    answers.push(placed(&mut client, &fields.replace("\"1\"", "\"1.0\"")).await);
    let position = |answer: &Value| (answer["order"]["id"].clone(), answer["sequence"].clone());
    assert!(answers.iter().all(|one| position(one) == position(&answers[0])), "{answers:?}");
    let other = fields.replace("\"1\"", "\"2\"");
    assert_eq!(code(&ask(&mut client, &place(&other)).await), "CONFLICT");
    hub.restart();
    let mut client = Client::reconnected(hub.address()).await;
    assert_eq!(position(&placed(&mut client, fields).await), position(&answers[0]));
    assert_eq!(code(&ask(&mut client, &place(&other)).await), "CONFLICT");
    let all = hub.query("{ orders { nodes { id } } }");
    assert_eq!(all["orders"]["nodes"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_stranger_places_nothing_and_nobody_sees_or_cancels_for_another() {
    let (hub, mut stranger) = hub_with(&[]).await;
    let fine = place(r#"side: SELL, price: "10", size: "1""#);
    assert_eq!(code(&ask(&mut stranger, &fine).await), "UNAUTHENTICATED");
    for query in [
        frames(r#"account: "9me""#),
        "mutation { cancelAllOrders { canceled } }".to_owned(),
        r#"mutation { cancelOrder(input: { order: "x" }) { sequence } }"#.to_owned(),
        r#"{ orders(filter: { account: "9me" }) { nodes { id } } }"#.to_owned(),
    ] {
        assert_eq!(code(&ask(&mut stranger, &query).await), "UNAUTHENTICATED", "{query}");
    }
    assert_eq!(code(&ask(&mut stranger, &frames("after: null")).await), "VALIDATION_FAILED");
    drop(hub);

    let (hub, mut client) = hub_with(&[ME]).await;
    let theirs = r#"{"kind":"order.placed","market":"O-USD","order":"theirs","account":"9they","side":"BUY","price":"1","size":"1","clientId":"secret"}"#;
    let (mut received, mut socket) = Received::begun(&hub, r#"market: "O-USD""#).await;
    hub.append_lines("chain.ndjson", &[theirs]);
    received.follow(&mut socket, 1).await;
    for query in [
        frames(r#"account: "9they""#),
        r#"mutation { cancelOrder(input: { order: "theirs" }) { sequence } }"#.to_owned(),
        r#"{ orders(filter: { account: "9they" }) { nodes { id } } }"#.to_owned(),
    ] {
        assert_eq!(code(&ask(&mut client, &query).await), "FORBIDDEN", "{query}");
    }
    let unknown = r#"mutation { cancelOrder(input: { order: "x" }) { sequence } }"#;
    assert_eq!(code(&ask(&mut client, unknown).await), "NOT_FOUND");
    let seen = hub.query(r#"{ order(id: "theirs") { account clientId status } }"#);
    let public = json!({"account": "9they", "clientId": null, "status": "OPEN"});
    assert_eq!(seen["order"], public);
}

#[tokio::test]
async fn all_open_orders_of_mine_are_canceled_and_no_other() {
    let (hub, mut client) = hub_with(&[ME]).await;
    let other = market::definition("P-USD");
    let theirs = r#"{"kind":"order.placed","market":"O-USD","order":"theirs","account":"9they","side":"BUY","price":"1","size":"1"}"#;
    hub.append_lines("chain.ndjson", &[&other, theirs]);
    let mut knowing = Client::knowing(hub.address(), "P-USD").await;
    for number in 1..=5 {
        placed(&mut client, &format!(r#"side: SELL, price: "{number}", size: "1""#)).await;
    }
    let elsewhere = place(r#"side: SELL, price: "1", size: "1""#).replace("O-USD", "P-USD");
    assert!(ask(&mut knowing, &elsewhere).await["errors"].is_null());
    let all = |market: &str| {
        format!("mutation {{ cancelAllOrders{market} {{ canceled more sequence cursor }} }}")
    };
    let (mut mine, mut socket) = Received::begun(&hub, r#"account: "9me""#).await;
    let answer =
        ask(&mut client, &all("(market: \"O-USD\")")).await["data"]["cancelAllOrders"].clone();
    assert_eq!((&answer["canceled"], &answer["more"]), (&json!(5), &json!(false)));
    mine.follow(&mut socket, 5).await;
    assert_eq!(mine.items[4]["sequence"], answer["sequence"]);
    assert_eq!(mine.cursor.as_deref(), answer["cursor"].as_str());
    let canceled = ask(&mut client, &all("")).await["data"]["cancelAllOrders"]["canceled"].clone();
    assert_eq!(canceled, 1);
    let none = ask(&mut client, &all("")).await["data"]["cancelAllOrders"].clone();
    assert_eq!((&none["canceled"], &none["sequence"]), (&json!(0), &Value::Null));
    let open = hub.query("{ orders(filter: { open: true }) { nodes { id } } }");
    assert_eq!(open["orders"]["nodes"], json!([{"id": "theirs"}]));
    assert_eq!(code(&ask(&mut client, &all("(market: \"X-USD\")")).await), "NOT_FOUND");
}

#[tokio::test]
async fn one_request_cancels_a_thousand_orders_and_says_whether_there_are_more() {
    let (hub, mut client) = hub_with(&[ME]).await;
    let order = |number: u32| {
        let order = json!({
            "kind": "order.placed", "market": "O-USD", "order": number.to_string(),
            "account": "9me", "side": "BUY", "price": "1", "size": "1",
        });
        order.to_string()
    };
    hub.append_lines("chain.ndjson", &(0..1_001).map(order).collect::<Vec<_>>());
    let open = "{ orders(filter: { open: true }, first: 1000) { pageInfo { hasNextPage } } }";
    until("the orders", async || {
        hub.query(open)["orders"]["pageInfo"]["hasNextPage"] == json!(true)
    })
    .await;
    for expected in [json!([1_000, true]), json!([1, false]), json!([0, false])] {
        let answer = ask(&mut client, "mutation { cancelAllOrders { canceled more } }").await;
        let answer = &answer["data"]["cancelAllOrders"];
        assert_eq!(json!([answer["canceled"], answer["more"]]), expected);
    }
}

fn line(number: usize) -> String {
    let account = if number.is_multiple_of(3) { "9me" } else { "9they" };
    format!(
        r#"{{"kind":"order.placed","market":"O-USD","order":"{number}","account":"{account}","side":"SELL","price":"{}.5","size":"1"}}"#,
        number + 1
    )
}

#[tokio::test]
async fn pages_of_orders_neither_gap_nor_double_while_orders_arrive() {
    const ALL: usize = 600;
    let (hub, mut client) = hub_with(&[ME]).await;
    let file = hub.feed("chain.ndjson");
    let writer = std::thread::spawn(move || {
        for piece in (0..ALL).map(line).collect::<Vec<_>>().chunks(20) {
            crate::harness::hub::append(&file, piece);
            std::thread::sleep(std::time::Duration::from_millis(4));
        }
    });
    let (mut seen, mut after, mut short) = (Vec::new(), String::new(), 0);
    let began = std::time::Instant::now();
    while seen.len() < ALL {
        assert!(began.elapsed() < PATIENCE, "{} of {ALL} orders were listed", seen.len());
        let page = hub.query(&format!(
            "{{ orders(filter: {{ market: \"O-USD\" }}, first: 17{after}) {{ edges {{ cursor node {{ id }} }}
                pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }} }} }}"
        ));
        let edges = page["orders"]["edges"].as_array().unwrap().clone();
        let info = &page["orders"]["pageInfo"];
        assert_eq!(info["hasPreviousPage"], !after.is_empty());
        short += usize::from(info["hasNextPage"] == false);
        seen.extend(edges.iter().map(|edge| edge["node"]["id"].as_str().unwrap().to_owned()));
        let Some(last) = edges.last() else { continue };
        assert!(edges.len() == 17 || info["hasNextPage"] == false);
        assert_eq!(info["endCursor"], last["cursor"]);
        after = format!(", after: {}", last["cursor"]);
    }
    writer.join().unwrap();
    assert_eq!(seen, (0..ALL).map(|number| number.to_string()).collect::<Vec<_>>());
    assert!(short > 1, "no page was read at the end of a growing list: nothing is proven");
    let mine = hub.query(r#"{ orders(filter: { account: "9me", side: SELL, status: OPEN }, first: 1000) { nodes { id } } }"#);
    assert_eq!(mine["orders"]["nodes"].as_array().unwrap().len(), ALL / 3);
    for (first, expected) in [("1001", "LIMIT_EXCEEDED"), ("0", "VALIDATION_FAILED")] {
        let page = format!("{{ orders(first: {first}) {{ nodes {{ id }} }} }}");
        assert_eq!(code(&ask(&mut client, &page).await), expected);
    }
    let foreign = "{ orders(after: \"nonsense\") { nodes { id } } }";
    assert_eq!(code(&ask(&mut client, foreign).await), "BAD_REQUEST");
    // Another log, another numbering.
    let (other, mut elsewhere) = hub_with(&[ME]).await;
    let page = format!("{{ orders(first: 1{after}) {{ nodes {{ id }} }} }}");
    let answer = ask(&mut elsewhere, &page).await;
    assert_eq!(code(&answer), "RESYNC_REQUIRED");
    let epoch = other.query("{ hub { epoch } }")["hub"]["epoch"].clone();
    let error = &answer["errors"][0]["extensions"];
    assert_eq!(error["floor"], json!({"epoch": epoch, "sequence": "0"}));
    assert_ne!(error["requested"]["epoch"], epoch);
}

#[tokio::test]
async fn streams_of_orders_resume_over_kills_without_gap_or_double() {
    const ALL: usize = 300;
    const KILLS: usize = 4;
    let (mut hub, _) = hub_with(&[ME]).await;
    let address = hub.address();
    let follow = |arguments: &'static str, awaited: usize| {
        tokio::spawn(async move {
            let (mut received, mut resumed) = (Received::default(), 0);
            let mut client = Client::reconnected(address).await;
            client.try_subscribe("s", &frames(arguments)).await;
            while received.items.len() < awaited {
                match client.seen().await {
                    Seen::Message(message) if message["type"] == "ping" => {
                        client.try_send(json!({"type": "pong"})).await;
                    }
                    Seen::Message(message) => received.take(&message),
                    Seen::Closed(..) | Seen::Cut => {
                        client = Client::reconnected(address).await;
                        let after =
                            received.cursor.as_ref().map(|after| format!(", after: \"{after}\""));
                        let after = after.unwrap_or_default();
                        client.try_subscribe("s", &frames(&format!("{arguments}{after}"))).await;
                        resumed += 1;
                    }
                }
            }
            (received, resumed)
        })
    };
    let (mut begun, mut socket) = Received::begun(&hub, r#"market: "O-USD""#).await;
    let all = follow(r#"market: "O-USD""#, ALL);
    let mine = follow(r#"account: "9me""#, ALL / 3);
    // Both follow before the first order, so that none is of before their time.
    let mut client = Client::connected(address).await;
    let operations = "{ hub { operations } }";
    while ask(&mut client, operations).await["data"]["hub"]["operations"] != "3" {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let lines: Vec<_> = (0..ALL).map(line).collect();
    for (number, piece) in lines.chunks(ALL / (KILLS + 1)).enumerate() {
        hub.append_lines("chain.ndjson", piece);
        if number == 0 {
            begun.follow(&mut socket, 1).await;
        }
        if number < KILLS {
            hub.restart();
        }
    }
    let done = tokio::time::timeout(PATIENCE * 2, async { (all.await, mine.await) }).await;
    let (all, mine) = done.expect("every event came");
    let ((all, cuts), (mine, my_cuts)) = (all.unwrap(), mine.unwrap());
    assert!(cuts > 0 && my_cuts > 0, "nobody was cut off: nothing is proven");
    let ids = |received: &Received| -> Vec<usize> {
        let id = |item: &Value| item["order"]["id"].as_str().unwrap().parse().unwrap();
        received.items.iter().map(id).collect()
    };
    assert_eq!(ids(&all), (0..ALL).collect::<Vec<_>>());
    assert_eq!(ids(&mine), (0..ALL).step_by(3).collect::<Vec<_>>());
    let sequences: BTreeSet<_> = all.items.iter().map(|one| one["sequence"].to_string()).collect();
    assert_eq!(sequences.len(), ALL);
}
