//! Mutations that are written into a real Kafka, because it owns their topic: answered with the
//! place in the hub's log that the record gets there, once, whatever happens to the broker in
//! between. And what comes from another log is refused.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::harness::client::PATIENCE;
use crate::harness::{Client, Hub, Kafka, Listener, Postgres, Seen, http, loud, market};

/// Of Kafka.
const TOPIC: &str = "events";
const PARTITIONS: i32 = 3;
const MARKET: &str = "O-USD";
const OF_TOPIC: &str = "topic \"news\" belongs to Kafka (feeds.kafka.own_topics): send it there";
const OF_MARKET: &str =
    "market O-USD belongs to Kafka (feeds.kafka.own_markets): send its events there";
/// A mutation's own deadline, and a second for a loaded machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// How much of a storm: `make test`'s, or `make soak`'s.
fn size() -> (u64, usize) {
    match std::env::var_os("SPREADLY_SOAK") {
        Some(_) => (4_000, 5),
        None => (400, 1),
    }
}

async fn kafka() -> Kafka {
    let kafka = tokio::task::spawn_blocking(Kafka::start).await.unwrap();
    kafka.make_topic(TOPIC, PARTITIONS, &[]).await;
    kafka
}

/// Which has read all that is there.
async fn owning(kafka: &Kafka, settings: &[&str]) -> Hub {
    let brokers = format!("feeds.kafka.brokers={}", kafka.brokers());
    let own = [
        brokers.as_str(),
        "feeds.kafka.topics=events",
        "feeds.kafka.own_topics=news",
        "feeds.kafka.own_markets=O-USD",
        "feeds.kafka.produce_to=events",
        "identity.development_account=9me",
    ];
    let hub = Hub::start_with(&[&own, settings].concat());
    hub.until_feed("kafka", "Kafka", |feed| feed["state"] == "LIVE").await;
    hub
}

async fn ask(hub: SocketAddr, query: &str) -> Value {
    let body = json!({ "query": query });
    tokio::task::spawn_blocking(move || http::post(hub, &body).json()).await.unwrap()
}

fn publication(topic: &str, data: &str, id: Option<&str>) -> String {
    let id = id.map(|id| format!(r#", id: "{id}""#)).unwrap_or_default();
    format!(
        r#"mutation {{ publish(topic: "{topic}", data: {data}{id}) {{ epoch sequence cursor duplicate }} }}"#
    )
}

async fn published(hub: SocketAddr, topic: &str, data: &str, id: Option<&str>) -> Value {
    let answer = ask(hub, &publication(topic, data, id)).await;
    assert!(answer["errors"].is_null(), "{answer}");
    answer["data"]["publish"].clone()
}

fn placement(fields: &str) -> String {
    format!(
        r#"mutation {{ placeOrder(input: {{ market: "{MARKET}", {fields} }})
            {{ epoch sequence order {{ id status }} }} }}"#
    )
}

/// The code of the first error, and its message.
fn fault(answer: &Value) -> (&str, &str) {
    let error = &answer["errors"][0];
    let code = error["extensions"]["code"].as_str().unwrap_or_else(|| panic!("{answer}"));
    (code, error["message"].as_str().unwrap())
}

/// Partition, key and value of each record there is now.
async fn records(kafka: &Kafka) -> Vec<(i32, String, Value)> {
    let mut client = kafka.client();
    client.set("group.id", "looking").set("enable.partition.eof", "true");
    let consumer: StreamConsumer = client.create().unwrap();
    let mut from_start = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        from_start.add_partition_offset(TOPIC, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&from_start).unwrap();
    let (mut all, mut ended) = (Vec::new(), BTreeSet::new());
    while ended.len() < usize::try_from(PARTITIONS).unwrap() {
        match consumer.recv().await {
            Ok(message) => {
                let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec());
                let value = serde_json::from_slice(message.payload().unwrap()).unwrap();
                all.push((message.partition(), text(message.key()).unwrap(), value));
            }
            Err(KafkaError::PartitionEOF(partition)) => {
                ended.insert(partition);
            }
            Err(error) => panic!("{error}"),
        }
    }
    all
}

async fn send(kafka: &Kafka, key: &str, line: &str) {
    let mut client = kafka.client();
    client.set("partitioner", "murmur2_random");
    let producer: FutureProducer = client.create().unwrap();
    let record = FutureRecord::to(TOPIC).key(key).payload(line);
    producer.send(record, Duration::from_secs(60)).await.unwrap();
}

/// `events` lists each of them under the sequence that the mutation was answered with.
fn sequences(hub: &Hub, topic: &str) -> Vec<Value> {
    let query = format!(r#"{{ events(topic: "{topic}") {{ nodes {{ sequence }} }} }}"#);
    let nodes = hub.query(&query)["events"]["nodes"].as_array().unwrap().clone();
    nodes.into_iter().map(|node| node["sequence"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_is_a_record_and_is_received_once_at_the_position_of_the_answer() {
    let kafka = kafka().await;
    let (hub, other) = (owning(&kafka, &[]).await, owning(&kafka, &[]).await);
    let mut here = Listener::begin("news", hub.address()).await;
    let mut there = Listener::begin("news", other.address()).await;

    let first = published(hub.address(), "news", "1", None).await;
    let second = published(hub.address(), "news", "2", Some("two")).await;
    assert_eq!(first["duplicate"], false);
    let again = published(hub.address(), "news", "2", Some("two")).await;
    assert_eq!((&again["duplicate"], &again["sequence"]), (&json!(true), &second["sequence"]));
    // At the other hub, whose numbers are its own.
    let elsewhere = published(other.address(), "news", "2", Some("two")).await;
    assert_eq!(elsewhere["duplicate"], true);
    let conflict = ask(other.address(), &publication("news", "3", Some("two"))).await;
    assert_eq!(fault(&conflict).0, "CONFLICT");
    let unowned = published(hub.address(), "other", "4", None).await;
    assert_eq!(unowned["duplicate"], false);
    published(other.address(), "news", "5", None).await;

    for (listener, hub) in [(&mut here, &hub), (&mut there, &other)] {
        listener.follow(hub.address(), 3).await;
        listener.rest(hub.address()).await;
        assert_eq!(listener.received, [1, 2, 5]);
    }
    assert_eq!(
        sequences(&hub, "news")[..2],
        [first["sequence"].clone(), second["sequence"].clone()]
    );
    assert_eq!(sequences(&hub, "other"), [unowned["sequence"].clone()]);

    let records = records(&kafka).await;
    let partition = records[0].0;
    let data: Vec<&Value> = records.iter().map(|(_, _, value)| &value["data"]).collect();
    assert_eq!(data, [1, 2, 2, 2, 3, 5]);
    for (own, key, value) in &records {
        assert_eq!((*own, key.as_str(), &value["topic"]), (partition, "news", &json!("news")));
        assert!(!value["id"].as_str().unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_is_placed_through_kafka_is_one_order_at_every_hub_and_can_be_canceled() {
    let kafka = kafka().await;
    let (hub, other) = (owning(&kafka, &[]).await, owning(&kafka, &[]).await);
    send(&kafka, MARKET, &market::definition(MARKET)).await;
    for hub in [&hub, &other] {
        drop(Client::knowing(hub.address(), MARKET).await);
    }
    let mut follower = Client::connected(hub.address()).await;
    let frames =
        r#"subscription { orders(account: "9me") { orders { event sequence order { id } } } }"#;
    follower.subscribe("o", frames).await;
    assert_eq!(follower.message().await["type"], "next");

    // Many at once under one name: one order, answered to all of them.
    let fields = r#"side: BUY, price: "10.5", size: "2", clientId: "once""#;
    let address = hub.address();
    let asking: Vec<_> = (0..20)
        .map(|_| tokio::spawn(async move { ask(address, &placement(fields)).await }))
        .collect();
    let mut answers = Vec::new();
    for one in asking {
        answers.push(one.await.unwrap());
    }
    answers.push(ask(address, &placement(fields)).await);
    let placed = answers[0]["data"]["placeOrder"].clone();
    assert_eq!(placed["order"]["status"], "OPEN", "{}", answers[0]);
    assert!(answers.iter().all(|one| one["data"]["placeOrder"] == placed), "{answers:?}");
    let conflict = ask(address, &placement(&fields.replace("\"2\"", "\"3\""))).await;
    assert_eq!(fault(&conflict).0, "CONFLICT");

    let order = placed["order"]["id"].as_str().unwrap();
    let cancel = format!(
        r#"mutation {{ cancelOrder(input: {{ order: "{order}" }}) {{ sequence order {{ status }} }} }}"#
    );
    let canceled = ask(address, &cancel).await["data"]["cancelOrder"].clone();
    assert_eq!(canceled["order"]["status"], "CANCELED");
    // Refused where the record comes back, as without Kafka where the line comes in.
    let twice = ask(address, &cancel).await;
    let reason = format!(
        "order \"{order}\" is not open: it was never placed, or is filled or canceled already"
    );
    assert_eq!(fault(&twice), ("CONFLICT", reason.as_str()));
    for price in 1..=3 {
        let fields = format!(r#"side: BUY, price: "{price}", size: "1""#);
        assert!(ask(address, &placement(&fields)).await["errors"].is_null());
    }
    // One of a market that Kafka does not own is canceled along with them.
    hub.append_lines("markets.ndjson", &[market::definition("P-USD")]);
    drop(Client::knowing(address, "P-USD").await);
    let elsewhere = placement(r#"side: BUY, price: "1", size: "1""#).replace(MARKET, "P-USD");
    assert!(ask(address, &elsewhere).await["errors"].is_null());
    let all = "mutation { cancelAllOrders { canceled more sequence } }";
    let all = ask(address, all).await["data"]["cancelAllOrders"].clone();
    assert_eq!((&all["canceled"], &all["more"]), (&json!(4), &json!(false)));

    let mut received = Vec::new();
    while received.len() < 10 {
        let message = follower.message().await;
        let items = message["payload"]["data"]["orders"]["orders"].as_array().unwrap().clone();
        received.extend(items);
    }
    let events: Vec<&str> = received.iter().map(|one| one["event"].as_str().unwrap()).collect();
    assert_eq!(events, [&["PLACED", "CANCELED"][..], &["PLACED"; 4], &["CANCELED"; 4]].concat());
    assert_eq!(received[0]["sequence"], placed["sequence"]);
    assert_eq!(received[1]["sequence"], canceled["sequence"]);
    assert_eq!(received[9]["sequence"], all["sequence"]);

    // The other hub has the same of it.
    let list = r#"{ orders(filter: { market: "O-USD" }) { nodes { id status } } }"#;
    let began = Instant::now();
    while other.query(list) != hub.query(list) {
        assert!(began.elapsed() < PATIENCE, "{}\n{}", other.query(list), hub.query(list));
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
    let records = records(&kafka).await;
    assert!(records.iter().all(|(_, key, value)| key == MARKET && value["market"] == MARKET));
    let partitions: BTreeSet<i32> = records.iter().map(|(partition, ..)| *partition).collect();
    assert_eq!(partitions.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_refused_as_without_kafka() {
    let kafka = kafka().await;
    let owning = owning(&kafka, &[]).await;
    let plain = Hub::start_with(&["identity.development_account=9me"]);
    let lines = market::beginning(MARKET);
    for line in &lines {
        send(&kafka, MARKET, line).await;
    }
    plain.append_lines("market.ndjson", &lines);
    for hub in [&owning, &plain] {
        drop(Client::knowing(hub.address(), MARKET).await);
    }
    let deep = format!("{}1{}", "[".repeat(80), "]".repeat(80));
    let refused = [
        (placement(r#"side: BUY, price: "10.55", size: "1""#), "VALIDATION_FAILED"),
        // Its book comes from levels, which only the log knows.
        (placement(r#"side: BUY, price: "10.5", size: "1""#), "CONFLICT"),
        (placement(r#"side: BUY, price: "1", size: "1", metadataCid: """#), "VALIDATION_FAILED"),
        (publication("news", &deep, None), "LIMIT_EXCEEDED"),
        (publication("", "1", None), "VALIDATION_FAILED"),
    ];
    for (query, code) in refused {
        let answer = ask(owning.address(), &query).await;
        assert_eq!(fault(&answer).0, code);
        let without = ask(plain.address(), &query).await;
        assert_eq!(answer["errors"], without["errors"]);
    }
    // Only the one that the log alone could refuse.
    assert_eq!(records(&kafka).await.len(), lines.len() + 1);

    // What Kafka itself does not take.
    kafka.make_topic("small", 1, &[("max.message.bytes", "1000")]).await;
    let small = ["feeds.kafka.topics=events,small", "feeds.kafka.produce_to=small"];
    let small = self::owning(&kafka, &small).await;
    let large = format!("{:?}", "x".repeat(2_000));
    let answer = ask(small.address(), &publication("news", &large, None)).await;
    let message = "Kafka refused it: nothing was written, and the hub's log has the reason";
    assert_eq!(fault(&answer), ("UNAVAILABLE", message));
    assert!(small.log().contains("records do not get into Kafka"), "{}", small.log());
    published(small.address(), "news", "1", None).await;
    assert_eq!(small.published("news"), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_says_nothing_is_reported_in_time_and_what_is_asked_again_counts_once() {
    let kafka = kafka().await;
    let mut hub = owning(&kafka, &["server.drain_ms=100"]).await;
    let address = hub.address();
    let mut listener = Listener::begin("news", address).await;
    published(address, "news", "0", Some("0")).await;

    kafka.signal("-STOP");
    let began = Instant::now();
    let late = ask(address, &publication("news", "1", Some("1"))).await;
    assert!(began.elapsed() < ANSWER_WITHIN, "{:?}", began.elapsed());
    let (code, message) = fault(&late);
    assert_eq!(code, "UNAVAILABLE");
    assert!(message.contains("it may be written later, ask again with the same id"), "{message}");
    // From then on the hub knows that it is cut off, and hands nothing over.
    hub.until_feed("kafka", "STALE", |feed| feed["state"] == "STALE").await;
    let began = Instant::now();
    let away = ask(address, &publication("news", "never", Some("never"))).await;
    assert!(began.elapsed() < ANSWER_WITHIN, "{:?}", began.elapsed());
    assert_eq!(
        fault(&away),
        ("UNAVAILABLE", "Kafka can't be reached now: nothing was written, ask again")
    );
    let known = published(address, "news", "0", Some("0")).await;
    assert_eq!(known["duplicate"], true, "what is in the log is known there");
    let unowned = published(address, "other", "1", None).await;
    assert_eq!(unowned["duplicate"], false, "what Kafka does not own goes on");

    kafka.signal("-CONT");
    hub.until_feed("kafka", "LIVE", |feed| feed["state"] == "LIVE").await;
    let again = published(address, "news", "1", Some("1")).await;
    published(address, "news", "2", Some("2")).await;
    listener.follow(address, 3).await;
    listener.rest(address).await;
    assert_eq!(listener.received, [0, 1, 2]);
    assert_eq!(sequences(&hub, "news")[1], again["sequence"]);
    let never = records(&kafka).await.iter().any(|(_, _, value)| value["data"] == "never");
    assert!(!never, "it was said that nothing was written");
    assert!(hub.sigterm().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_created_again_takes_mutations() {
    let kafka = kafka().await;
    let hub = owning(&kafka, &[]).await;
    let address = hub.address();
    for number in 0..3 {
        published(address, "news", &number.to_string(), None).await;
    }
    kafka.remove_topic(TOPIC).await;
    hub.until_feed("kafka", "STALE", |feed| feed["state"] == "STALE").await;
    kafka.make_topic(TOPIC, PARTITIONS, &[]).await;
    hub.until_feed("kafka", "LIVE", |feed| feed["state"] == "LIVE").await;
    let began = Instant::now();
    let query = publication("news", "3", Some("three"));
    loop {
        let answer = ask(address, &query).await;
        if answer["errors"].is_null() {
            break;
        }
        assert_eq!(fault(&answer).0, "UNAVAILABLE", "{answer}");
        assert!(began.elapsed() < PATIENCE, "{answer}");
    }
    assert_eq!(hub.published("news"), [0, 1, 2, 3]);
}

/// One that asks until it is answered.
struct Insistent {
    hub: SocketAddr,
    client: Client,
    refused: u64,
    cut: u64,
}

impl Insistent {
    async fn begin(hub: SocketAddr) -> Self {
        Self { hub, client: Client::connected(hub).await, refused: 0, cut: 0 }
    }

    async fn ask(&mut self, query: &str) {
        let began = Instant::now();
        while !self.is_answered(query).await {
            assert!(began.elapsed() < PATIENCE * 4, "never answered: {query}");
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }

    async fn is_answered(&mut self, query: &str) -> bool {
        self.client.try_subscribe("m", query).await;
        let mut answered = false;
        loop {
            match self.client.seen().await {
                Seen::Message(message) if message["type"] == "next" => {
                    let answer = &message["payload"];
                    answered = answer["errors"].is_null();
                    if !answered {
                        assert_eq!(fault(answer).0, "UNAVAILABLE", "{answer}");
                        self.refused += 1;
                    }
                }
                Seen::Message(message) if message["type"] == "complete" => return answered,
                Seen::Message(_) => {}
                Seen::Closed(1012 | 1013, _) | Seen::Cut => {
                    self.cut += 1;
                    self.client = Client::reconnected(self.hub).await;
                    return answered;
                }
                Seen::Closed(code, reason) => panic!("{code} {reason}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mutation_that_is_asked_until_it_is_answered_counts_once_over_kills_of_broker_and_hub()
{
    const CLIENTS: u64 = 8;
    let (mutations, kills) = size();
    let all = usize::try_from(mutations).unwrap();
    let mut kafka = kafka().await;
    let mut hub = owning(&kafka, &[]).await;
    let address = hub.address();
    let mut listener = Listener::begin("news", address).await;
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let mut own = Insistent::begin(address).await;
        clients.push(tokio::spawn(async move {
            for number in (client..mutations).step_by(CLIENTS as usize) {
                let data = number.to_string();
                own.ask(&publication("news", &data, Some(&data))).await;
            }
            own
        }));
    }
    let killed = 2 * kills;
    for kill in 0..killed {
        listener.follow(address, all * (kill + 1) / (killed + 2)).await;
        if kill % 2 == 1 {
            hub.restart();
            continue;
        }
        kafka.kill9();
        hub.until_feed("kafka", "STALE", |feed| feed["state"] == "STALE").await;
        kafka = kafka.restarted().await;
    }
    let (mut refused, mut cut) = (0, 0);
    for client in clients {
        let own = client.await.unwrap();
        refused += own.refused;
        cut += own.cut;
    }
    listener.follow(address, all).await;
    listener.rest(address).await;
    let mut received: Vec<u64> =
        listener.received.iter().map(|data| data.as_u64().unwrap()).collect();
    received.sort_unstable();
    assert!(received.iter().copied().eq(0..mutations), "lost or doubled: {received:?}");
    assert!(refused > 0 && cut > 0, "no mutation met a kill: nothing is proven");
    let records = records(&kafka).await.len();
    loud::say(&format!(
        "{mutations} mutations, {kills} kills of the broker and of the hub, {refused} answers \
         UNAVAILABLE, {cut} cuts: each counts once, of {records} records"
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_kafka_is_refused_from_elsewhere_and_named() {
    let kafka = kafka().await;
    let hub = owning(&kafka, &[]).await;
    send(&kafka, MARKET, &market::definition(MARKET)).await;
    drop(Client::knowing(hub.address(), MARKET).await);
    let order = r#"{"kind":"order.placed","market":"O-USD","order":"o","side":"BUY","price":"1","size":"1"}"#;
    send(&kafka, MARKET, order).await;
    send(&kafka, "news", r#"{"kind":"message","topic":"news","data":1}"#).await;
    hub.until_feed("kafka", "all of it", |feed| feed["eventsTotal"] == "3").await;

    let foreign = [
        (r#"{"kind":"message","topic":"news","data":2}"#.to_owned(), OF_TOPIC),
        (market::definition(MARKET), OF_MARKET),
        (order.replace(r#""o""#, r#""other""#), OF_MARKET),
        // The log knows of which market it is.
        (r#"{"kind":"order.canceled","order":"o"}"#.to_owned(), OF_MARKET),
        (format!(r#"{{"kind":"trade","market":"{MARKET}","price":"1","size":"1"}}"#), OF_MARKET),
    ];
    for (number, (line, reason)) in (1..).zip(&foreign) {
        hub.append_lines("lines.ndjson", &[line]);
        let count = number.to_string();
        let status = hub.until_feed("files", reason, |feed| feed["refusedTotal"] == *count).await;
        assert_eq!(status["lastRefusal"]["reason"], *reason, "{line}");
        assert_eq!(status["lastRefusal"]["source"], "lines.ndjson");
    }
    hub.append_lines("lines.ndjson", &[r#"{"kind":"message","topic":"other","data":1}"#]);
    hub.until_feed("files", "what nobody owns", |feed| feed["eventsTotal"] == "1").await;
    assert_eq!(hub.published("news"), [1]);
    let open = hub.query("{ orders(filter: { open: true }) { nodes { id } } }");
    assert_eq!(open["orders"]["nodes"], json!([{"id": "o"}]));
}

/// Whichever of them reads the partition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hubs_of_a_log_are_answered_whichever_reads_the_record_and_keep_other_sources_out() {
    let kafka = kafka().await;
    let postgres = Postgres::start();
    let log = format!("store.url={}", postgres.url());
    let one = owning(&kafka, &[&log]).await;
    let two = owning(&kafka, &[&log]).await;
    let mut listener = Listener::begin("news", two.address()).await;
    let first = published(one.address(), "news", "1", Some("first")).await;
    let second = published(two.address(), "news", "2", None).await;
    let again = published(two.address(), "news", "1", Some("first")).await;
    assert_eq!((&again["duplicate"], &again["sequence"]), (&json!(true), &first["sequence"]));
    listener.follow(two.address(), 2).await;
    listener.rest(two.address()).await;
    assert_eq!(listener.received, [1, 2]);
    for hub in [&one, &two] {
        let began = Instant::now();
        let expected = [first["sequence"].clone(), second["sequence"].clone()];
        while sequences(hub, "news") != expected {
            assert!(began.elapsed() < PATIENCE, "{:?}", sequences(hub, "news"));
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }
    send(&kafka, MARKET, &market::definition(MARKET)).await;
    drop(Client::knowing(one.address(), MARKET).await);
    let fields = r#"side: BUY, price: "10", size: "2", clientId: "c""#;
    let placed = ask(one.address(), &placement(fields)).await["data"]["placeOrder"].clone();
    assert_eq!(placed["order"]["status"], "OPEN");
    assert_eq!(ask(two.address(), &placement(fields)).await["data"]["placeOrder"], placed);
    // Refused at admission, which each hub's replica does for itself.
    let order = placed["order"]["id"].as_str().unwrap();
    let cancel =
        format!(r#"mutation {{ cancelOrder(input: {{ order: "{order}" }}) {{ sequence }} }}"#);
    let cancels = [&one, &two, &one, &two].map(|hub| hub.address());
    let cancels = cancels.map(|hub| {
        tokio::spawn({
            let cancel = cancel.clone();
            async move { ask(hub, &cancel).await }
        })
    });
    let mut canceled = 0;
    for answer in cancels {
        let answer = answer.await.unwrap();
        match answer["errors"].is_null() {
            true => canceled += 1,
            false => assert_eq!(fault(&answer).0, "CONFLICT", "{answer}"),
        }
    }
    assert_eq!(canceled, 1);

    let foreign = [
        (r#"{"kind":"message","topic":"news","data":3}"#.to_owned(), OF_TOPIC),
        // The replica knows of which market it is.
        (format!(r#"{{"kind":"order.canceled","order":"{order}"}}"#), OF_MARKET),
    ];
    for (number, (line, reason)) in (1..).zip(foreign) {
        two.append_lines("lines.ndjson", &[&line]);
        let count = number.to_string();
        let status = two.until_feed("files", reason, |feed| feed["refusedTotal"] == *count).await;
        assert_eq!(status["lastRefusal"]["reason"], reason, "{line}");
    }
}
