//! Topics of a real Kafka: whatever happens to the broker or the hub, every record is published
//! once, in the order of its partition; and what can't be read is named.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::harness::client::PATIENCE;
use crate::harness::records::{self, message, producer, send};
use crate::harness::{Hub, Kafka, Listener, kafka, loud, market, until};

/// Of the feed.
const NAME: &str = "kafka";
const PARTITIONS: i32 = 8;
/// Half of them at each of two hubs.
const SUBSCRIBERS: usize = 16;
const CREATED_AGAIN: &str = "events/0 was created again, or lost its end: read from its start";
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// How much of a storm: `make test`'s, or `make soak`'s.
fn size() -> (u64, usize, usize) {
    match std::env::var_os("SPREADLY_SOAK") {
        Some(_) => (200_000, 5, 5),
        None => (8_000, 1, 2),
    }
}

fn with_kafka(kafka: &Kafka, topics: &[&str]) -> Hub {
    Hub::start_with(&[
        &format!("feeds.kafka.brokers={}", kafka.brokers()),
        &format!("feeds.kafka.topics={}", topics.join(",")),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_is_published_once_and_in_order_while_broker_and_hub_are_killed() {
    let (events, broker_kills, hub_kills) = size();
    let mut kafka = Kafka::start();
    kafka.make_topic("events", PARTITIONS, &[]).await;
    // The first is killed now and then, the other never: both publish the same.
    let mut hub = with_kafka(&kafka, &["events"]);
    let other = with_kafka(&kafka, &["events"]);
    let each = events / PARTITIONS as u64;
    let mut subscribers = Vec::new();
    for place in 0..SUBSCRIBERS {
        let topic = records::topic_of(place as i32 % PARTITIONS);
        let address = if place < SUBSCRIBERS / 2 { hub.address() } else { other.address() };
        let mut one = Listener::begin(&topic, address).await;
        subscribers.push(tokio::spawn(async move {
            one.follow(address, each as usize).await;
            (one, address)
        }));
    }
    let producer = producer(&kafka);
    let producers = records::storm(&producer, PARTITIONS, 0..each);
    for kill in 0..broker_kills.max(hub_kills) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        if kill < hub_kills {
            hub.restart();
        }
        if kill < broker_kills {
            kafka.kill9();
            kafka = kafka.restarted().await;
        }
    }
    for one in producers {
        one.await.unwrap();
    }
    let expected: Vec<u64> = (0..each).collect();
    for one in subscribers {
        let done = tokio::time::timeout(PATIENCE * 4, one).await;
        let (mut one, address) = done.expect("all published").unwrap();
        one.rest(address).await;
        assert_eq!(one.received, expected, "{}", one.topic());
    }
    loud::say(&format!(
        "{events} records of {PARTITIONS} partitions to {SUBSCRIBERS} subscribers of two hubs, \
         {broker_kills} kills of the broker, {hub_kills} of a hub"
    ));
}

fn published(hub: &Hub, topic: &str) -> Vec<u64> {
    hub.published(topic).iter().map(|data| data.as_u64().unwrap()).collect()
}

fn caught_up(feed: &Value) -> bool {
    feed["state"] == "LIVE" && feed["lag"] == "0"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_records_lost_ones_and_topics_created_again_are_reported_and_the_rest_flows() {
    let kafka = Kafka::start();
    let hub = with_kafka(&kafka, &["events"]);
    // The topic comes after the hub.
    let missing = "topic \"events\" does not exist";
    let has =
        |feed: &Value, text: &str| feed["reason"].as_str().is_some_and(|own| own.contains(text));
    hub.until_feed(NAME, missing, |feed| feed["state"] == "STALE" && has(feed, missing)).await;
    kafka.make_topic("events", 1, &[]).await;
    hub.until_feed(NAME, "the topic", |feed| feed["state"] == "LIVE").await;

    let producer = producer(&kafka);
    let large = json!({"kind": "message", "topic": "p0", "data": "x".repeat(2 << 20)}).to_string();
    let faulty: [(&[u8], &str); 5] = [
        (b"{\"kind\":\"nonsense\"}", "unknown kind \"nonsense\": use one of "),
        (b"\xff", "byte 1 is not UTF-8: write events in UTF-8"),
        (b"", "malformed JSON at column 0: EOF while parsing a value"),
        (large.as_bytes(), "the line is longer than 1048576 bytes: split it into several events"),
        (
            br#"{"kind":"trade","market":"NO-NE","price":"1","size":"1"}"#,
            "market NO-NE is not defined: send its `market` event first",
        ),
    ];
    let mut large_producer = kafka.client();
    large_producer.set("message.max.bytes", "3000000");
    let large_producer: FutureProducer = large_producer.create().unwrap();
    for (number, (value, reason)) in (0..).zip(faulty) {
        send(&large_producer, "events", 0, value).await;
        let count = (number + 1).to_string();
        let status = hub.until_feed(NAME, reason, |feed| feed["refusedTotal"] == *count).await;
        let refusal = &status["lastRefusal"];
        let place = (&refusal["source"], &refusal["place"]);
        assert_eq!(place, (&json!("events/0"), &json!(format!("offset {number}"))));
        assert!(refusal["reason"].as_str().unwrap().starts_with(reason), "{refusal}");
    }
    send(&producer, "events", 0, message(0, 1).as_bytes()).await;
    hub.until_feed(NAME, "the good one", |feed| feed["eventsTotal"] == "1").await;
    // A block is undone in its place, by itself.
    let block = json!({"kind": "message", "topic": "p0", "data": 2, "height": 7}).to_string();
    for line in [&block, r#"{"kind":"block.reverted","height":7}"#, &message(0, 3)] {
        send(&producer, "events", 0, line.as_bytes()).await;
    }
    hub.until_feed(NAME, "what follows the block", |feed| feed["eventsTotal"] == "4").await;
    assert_eq!(published(&hub, "p0"), [1, 3]);

    // Created again: what is in it now is published, whatever offset is in the log.
    let mut listener = Listener::begin("p0", hub.address()).await;
    kafka.remove_topic("events").await;
    kafka.make_topic("events", 1, &[]).await;
    send(&producer, "events", 0, message(0, 4).as_bytes()).await;
    // With the one that says so.
    let read = |feed: &Value| feed["eventsTotal"] == "6" && feed["state"] == "LIVE";
    let status = hub.until_feed(NAME, "the topic created again", read).await;
    assert!(status["reason"].as_str().unwrap().contains(CREATED_AGAIN), "{status}");
    assert_eq!(published(&hub, "p0"), [1, 3, 4]);
    listener.follow(hub.address(), 1).await;
    assert_eq!(listener.reasons, ["INITIAL", "EPOCH_CHANGE"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_created_again_with_three_partitions_begins_one_epoch() {
    const COUNT: i32 = 3;
    let kafka = Kafka::start();
    kafka.make_topic("events", COUNT, &[]).await;
    let hub = with_kafka(&kafka, &["events"]);
    let producer = producer(&kafka);
    let mut listeners = Vec::new();
    for partition in 0..COUNT {
        for number in 0..3 {
            send(&producer, "events", partition, message(partition, number).as_bytes()).await;
        }
    }
    hub.until_feed(NAME, "all", |feed| feed["eventsTotal"] == "9" && caught_up(feed)).await;
    for partition in 0..COUNT {
        listeners.push(Listener::begin(&records::topic_of(partition), hub.address()).await);
    }
    kafka.remove_topic("events").await;
    kafka.make_topic("events", COUNT, &[]).await;
    let noticed = |feed: &Value| {
        feed["reason"].as_str().is_some_and(|reason| reason.contains("was created again"))
    };
    hub.until_feed(NAME, "that it is another one", noticed).await;
    for partition in 0..COUNT {
        send(&producer, "events", partition, message(partition, 3).as_bytes()).await;
    }
    for (partition, listener) in (0..).zip(&mut listeners) {
        let topic = records::topic_of(partition);
        until("its record", async || published(&hub, &topic) == [0, 1, 2, 3]).await;
        listener.follow(hub.address(), 1).await;
        assert_eq!(listener.received, [3]);
        assert_eq!(listener.reasons, ["INITIAL", "EPOCH_CHANGE"]);
    }
    let status = hub.until_feed(NAME, "LIVE", caught_up).await;
    for partition in 0..COUNT {
        let again = format!("events/{partition} was created again");
        assert!(status["reason"].as_str().unwrap().contains(&again), "{status}");
    }
    let page = hub.admin_page("/metrics").1;
    assert!(page.contains("spreadly_source_gaps_total 1\n"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_book_of_a_partition_that_lost_records_is_stale_until_its_snapshot() {
    let kafka = Kafka::start();
    kafka.make_topic("events", 2, &[]).await;
    let hub = with_kafka(&kafka, &["events"]);
    let producer = producer(&kafka);
    let names = ["A-USD", "B-USD"];
    for (partition, name) in (0..).zip(names) {
        for line in market::beginning(name) {
            send(&producer, "events", partition, line.as_bytes()).await;
        }
    }
    // Of another feed, which lost nothing.
    hub.append_lines("books.ndjson", &market::beginning("C-USD"));
    let states = |hub: &Hub| {
        ["A-USD", "B-USD", "C-USD"].map(|name| {
            let query = format!("{{ orderBook(market: \"{name}\") {{ state stateReason }} }}");
            hub.query(&query)["orderBook"].clone()
        })
    };
    let are = |hub: &Hub, expected: [&str; 3]| {
        states(hub).iter().zip(expected).all(|(book, state)| book["state"] == state)
    };
    until("three books", async || are(&hub, ["LIVE"; 3])).await;
    kafka.remove_topic("events").await;
    kafka.make_topic("events", 2, &[]).await;
    until("two gaps", async || are(&hub, ["STALE", "STALE", "LIVE"])).await;
    hub.until_feed(NAME, "LIVE", caught_up).await;
    assert!(are(&hub, ["STALE", "STALE", "LIVE"]), "{:?}", states(&hub));
    for (partition, book) in states(&hub).iter().take(2).enumerate() {
        let reason = format!("events/{partition} was created again");
        assert!(book["stateReason"].as_str().unwrap().contains(&reason), "{book}");
    }
    for (partition, name) in (0..).zip(names) {
        send(&producer, "events", partition, market::beginning(name)[1].as_bytes()).await;
    }
    until("three whole books", async || are(&hub, ["LIVE"; 3])).await;
}

/// By its offsets alone it would be taken for the old one, and what is in it before them never be
/// published.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_created_again_is_noticed_also_where_it_has_more_records_than_were_read() {
    let kafka = Kafka::start();
    kafka.make_topic("events", 1, &[]).await;
    let mut hub = with_kafka(&kafka, &["events"]);
    let producer = producer(&kafka);
    for number in 0..5 {
        send(&producer, "events", 0, message(0, number).as_bytes()).await;
    }
    hub.until_feed(NAME, "all", |feed| feed["eventsTotal"] == "5").await;
    let mut listener = Listener::begin("p0", hub.address()).await;
    // Nothing has happened to it yet.
    hub.restart();
    send(&producer, "events", 0, message(0, 5).as_bytes()).await;
    listener.follow(hub.address(), 1).await;
    assert_eq!(listener.reasons, ["INITIAL"]);

    hub.kill9();
    kafka.remove_topic("events").await;
    kafka.make_topic("events", 1, &[]).await;
    for number in 10..20 {
        send(&producer, "events", 0, message(0, number).as_bytes()).await;
    }
    hub.restart();
    listener.follow(hub.address(), 11).await;
    let status = hub.until_feed(NAME, "the rest", caught_up).await;
    assert!(status["reason"].as_str().unwrap().contains(CREATED_AGAIN), "{status}");
    assert_eq!(published(&hub, "p0"), (0..6).chain(10..20).collect::<Vec<_>>());
    assert_eq!(listener.reasons, ["INITIAL", "EPOCH_CHANGE"]);
}

/// As README and the configuration's example have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_reads_over_tls_as_the_configured_user_and_is_stale_with_another_password() {
    let kafka = Kafka::start();
    kafka.make_topic("events", 1, &[]).await;
    send(&producer(&kafka), "events", 0, message(0, 7).as_bytes()).await;
    let with_password = |password: &str| {
        let settings = [
            "security.protocol=sasl_ssl".to_owned(),
            "sasl.mechanism=SCRAM-SHA-512".to_owned(),
            format!("sasl.username={}", kafka::USER),
            format!("sasl.password={password}"),
            format!("ssl.ca.location={}", kafka.certificate().display()),
        ];
        Hub::start_with(&[
            &format!("feeds.kafka.brokers={}", kafka.secured()),
            "feeds.kafka.topics=events",
            &format!("feeds.kafka.settings={}", settings.join(",")),
        ])
    };
    let hub = with_password(kafka::PASSWORD);
    hub.until_feed(NAME, "LIVE", caught_up).await;
    assert_eq!(published(&hub, "p0"), [7]);
    let stranger = with_password("another one");
    let refused = |feed: &Value| {
        let reason = feed["reason"].as_str().unwrap_or_default();
        feed["state"] == "STALE" && reason.contains("SASL authentication error")
    };
    stranger.until_feed(NAME, "a reason", refused).await;
    assert!(!stranger.log().contains("another one"));
    // It is cut off for good, and says so.
    assert_eq!(stranger.admin_page("/readyz").0, 503);
}

/// They leave offsets without records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_of_a_writer_are_no_gaps() {
    let kafka = Kafka::start();
    kafka.make_topic("events", 1, &[]).await;
    let hub = with_kafka(&kafka, &["events"]);
    let mut client = kafka.client();
    let producer: FutureProducer = client.set("transactional.id", "t").create().unwrap();
    let deadline = Duration::from_secs(30);
    let act = |act: fn(&FutureProducer, Duration) -> Result<(), KafkaError>| {
        let producer = producer.clone();
        async move {
            tokio::task::spawn_blocking(move || act(&producer, deadline)).await.unwrap().unwrap();
        }
    };
    act(|producer, deadline| producer.init_transactions(deadline)).await;
    let mut listener = Listener::begin("p0", hub.address()).await;
    for number in 0..6 {
        act(|producer, _| producer.begin_transaction()).await;
        send(&producer, "events", 0, message(0, number).as_bytes()).await;
        if number % 3 == 2 {
            act(|producer, deadline| producer.abort_transaction(deadline)).await;
        } else {
            act(|producer, deadline| producer.commit_transaction(deadline)).await;
        }
    }
    listener.follow(hub.address(), 4).await;
    assert_eq!(published(&hub, "p0"), [0, 1, 3, 4]);
    assert_eq!(listener.reasons, ["INITIAL"]);
    let status = hub.until_feed(NAME, "LIVE", |feed| feed["state"] == "LIVE").await;
    assert_eq!(status["reason"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_retention_took_is_reported_and_a_broker_that_says_nothing_is_stale() {
    let kafka = Kafka::start();
    let small = [("segment.bytes", "1048576"), ("retention.bytes", "1048576")];
    kafka.make_topic("events", 1, &small).await;
    let mut hub = with_kafka(&kafka, &["events"]);
    let producer = producer(&kafka);
    send(&producer, "events", 0, message(0, 0).as_bytes()).await;
    hub.until_feed(NAME, "the first", |feed| feed["eventsTotal"] == "1").await;
    let mut listener = Listener::begin("p0", hub.address()).await;

    // While no hub reads, more comes than is kept.
    hub.kill9();
    let padding = "x".repeat(100_000);
    for number in 1..=60u64 {
        let line = json!({"kind": "message", "topic": "p0", "data": number, "padding": padding});
        send(&producer, "events", 0, line.to_string().as_bytes()).await;
    }
    let consumer: BaseConsumer = kafka.client().create().unwrap();
    let began = Instant::now();
    let low = loop {
        let (low, high) = consumer.fetch_watermarks("events", 0, Duration::from_secs(5)).unwrap();
        assert_eq!(high, 61);
        if low > 1 {
            break low.cast_unsigned();
        }
        assert!(began.elapsed() < PATIENCE * 2, "nothing was removed");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    };
    hub.restart();
    let status = hub.until_feed(NAME, "the rest", caught_up).await;
    let all = published(&hub, "p0");
    let from = *all.get(1).unwrap_or_else(|| panic!("{status}"));
    assert!(from >= low && from > 1, "{from}, {low}");
    assert_eq!(all[1..], (from..=60).collect::<Vec<_>>());
    let expected = format!("retention took {} offsets of events/0 before they were read", from - 1);
    assert!(status["reason"].as_str().unwrap().contains(&expected), "{status}");
    listener.follow(hub.address(), all.len() - 1).await;
    assert_eq!(listener.reasons, ["INITIAL", "EPOCH_CHANGE"]);

    kafka.signal("-STOP");
    hub.until_feed(NAME, "STALE", |feed| feed["state"] == "STALE").await;
    kafka.signal("-CONT");
    hub.until_feed(NAME, "LIVE", |feed| feed["state"] == "LIVE").await;
    send(&producer, "events", 0, message(0, 61).as_bytes()).await;
    until("what comes after", async || published(&hub, "p0").last() == Some(&61)).await;
    let mut once = BTreeMap::new();
    published(&hub, "p0").into_iter().for_each(|one| *once.entry(one).or_insert(0) += 1);
    assert!(once.values().all(|count| *count == 1), "{once:?}");
}

/// Offsets of the records that a partition has now.
async fn offsets(kafka: &Kafka, topic: &str) -> Vec<i64> {
    let mut client = kafka.client();
    client.set("group.id", "looking").set("enable.partition.eof", "true");
    let consumer: StreamConsumer = client.create().unwrap();
    let mut from_start = TopicPartitionList::new();
    from_start.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&from_start).unwrap();
    let mut all = Vec::new();
    let began = Instant::now();
    loop {
        match consumer.recv().await {
            Ok(message) => all.push(message.offset()),
            Err(KafkaError::PartitionEOF(_)) => return all,
            // A busy broker may not be reached at once; librdkafka goes on by itself.
            Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure,
            )) if began.elapsed() < PATIENCE => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_compaction_took_is_reported_and_what_it_left_is_read_once() {
    let kafka = Kafka::start();
    let compacted = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("max.compaction.lag.ms", "100"),
    ];
    kafka.make_topic("events", 1, &compacted).await;
    let mut hub = with_kafka(&kafka, &["events"]);
    let producer = producer(&kafka);
    let send_under = async |key: &str, number: u64| {
        let line = message(0, number);
        let record = FutureRecord::to("events").partition(0).key(key).payload(&line);
        producer.send(record, Duration::from_secs(120)).await.unwrap();
    };
    send_under("first", 0).await;
    hub.until_feed(NAME, "the first", |feed| feed["eventsTotal"] == "1").await;
    let mut listener = Listener::begin("p0", hub.address()).await;

    // While no hub reads, all but the newest record of a key is removed.
    hub.kill9();
    for number in 1..=20 {
        send_under("same", number).await;
    }
    let began = Instant::now();
    // The newest segment is never compacted, and a new one begins with a record.
    let mut sent = 20;
    let left = loop {
        sent += 1;
        send_under(&sent.to_string(), sent).await;
        let left = offsets(&kafka, "events").await;
        // Only the newest of the key is left.
        if left.starts_with(&[0, 20]) {
            break left;
        }
        assert!(began.elapsed() < PATIENCE * 4, "nothing was compacted: {left:?}");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    };
    hub.restart();
    let status = hub.until_feed(NAME, "the rest", caught_up).await;
    let expected = "compaction took offsets 1 to 19 of events/0 before they were read";
    assert!(status["reason"].as_str().unwrap().contains(expected), "{status}");
    // Each record's offset is its number here.
    let expected: Vec<u64> = std::iter::once(0).chain(20..=sent).collect();
    assert_eq!(published(&hub, "p0"), expected);
    assert_eq!(
        published(&hub, "p0"),
        left.iter().map(|one| one.cast_unsigned()).collect::<Vec<_>>()
    );
    listener.follow(hub.address(), left.len() - 1).await;
    assert_eq!(listener.reasons, ["INITIAL", "EPOCH_CHANGE"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_does_not_exist_keeps_no_other_from_being_read() {
    let kafka = Kafka::start();
    kafka.make_topic("events", 1, &[]).await;
    let hub = with_kafka(&kafka, &["later", "events"]);
    let producer = producer(&kafka);
    send(&producer, "events", 0, message(0, 1).as_bytes()).await;
    let named = |feed: &Value| {
        let reason = feed["reason"].as_str().unwrap_or_default();
        feed["state"] == "STALE" && reason.starts_with("later: does not exist")
    };
    hub.until_feed(NAME, "the record", |feed| feed["eventsTotal"] == "1" && named(feed)).await;
    kafka.make_topic("later", 1, &[]).await;
    hub.until_feed(NAME, "the topic", |feed| feed["state"] == "LIVE").await;
    for topic in ["later", "events"] {
        send(&producer, topic, 0, message(0, 2).as_bytes()).await;
    }
    hub.until_feed(NAME, "both", |feed| feed["eventsTotal"] == "3").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_without_a_leader_keeps_no_other_from_being_read() {
    let kafka = Kafka::start();
    let mut second = kafka.start_second();
    kafka.make_spread_topic("events").await;
    let hub = with_kafka(&kafka, &["events"]);
    hub.until_feed(NAME, "both partitions", caught_up).await;
    let producer = producer(&kafka);
    for partition in [0, 1] {
        send(&producer, "events", partition, message(partition, 1).as_bytes()).await;
    }
    hub.until_feed(NAME, "both records", |feed| feed["eventsTotal"] == "2").await;
    second.kill9();
    let leaderless = |feed: &Value| {
        let reason = feed["reason"].as_str().unwrap_or_default();
        feed["state"] == "STALE" && reason.starts_with("events/1: it has no leader")
    };
    hub.until_feed(NAME, "the partition", leaderless).await;
    send(&producer, "events", 0, message(0, 2).as_bytes()).await;
    let read = |feed: &Value| feed["eventsTotal"] == "3" && leaderless(feed);
    hub.until_feed(NAME, "a record of the other one", read).await;
    second.restart(&kafka);
    hub.until_feed(NAME, "the partition again", |feed| feed["state"] == "LIVE").await;
    send(&producer, "events", 1, message(1, 2).as_bytes()).await;
    hub.until_feed(NAME, "its record", |feed| feed["eventsTotal"] == "4").await;
}

/// The state of a market's book.
fn state_of(hub: &Hub, market: &str) -> Value {
    hub.query(&format!("{{ orderBook(market: \"{market}\") {{ state }} }}"))["orderBook"]["state"]
        .clone()
}

/// The value of a metric of a partition.
fn of_partition(hub: &Hub, name: &str, source: &str) -> Option<u64> {
    let page = hub.admin_page("/metrics").1;
    let begin = format!("spreadly_{name}{{source=\"{source}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&begin)?.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_makes_its_own_topics_stale_and_holds_no_other_up() {
    const MARKETS: [&str; 2] = ["A-USD", "B-USD"];
    const RECORDS: u64 = 600;
    let kafka = Kafka::start();
    let mut second = kafka.start_second();
    kafka.make_spread_topic("events").await;
    let hub = with_kafka(&kafka, &["events"]);
    let producer = producer(&kafka);
    for (partition, market) in (0..).zip(MARKETS) {
        for line in market::beginning(market) {
            send(&producer, "events", partition, line.as_bytes()).await;
        }
        until("the book", async || state_of(&hub, market) == "LIVE").await;
    }
    hub.until_feed(NAME, "all", caught_up).await;
    // A part of it while the broker is dead, and the cluster does not know it yet.
    let mut listener = Listener::begin("p0", hub.address()).await;
    let address = hub.address();
    let following = tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        let mut client = listener.connect(address).await;
        let mut before = Instant::now();
        while listener.received.len() < usize::try_from(RECORDS).unwrap() {
            let there = listener.received.len();
            listener.take(&client.message().await);
            if listener.received.len() > there {
                longest = longest.max(std::mem::replace(&mut before, Instant::now()).elapsed());
            }
        }
        (listener, longest)
    });
    let sending = tokio::spawn(async move {
        for number in 0..RECORDS {
            send(&producer, "events", 0, message(0, number).as_bytes()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        producer
    });
    until("some of them", async || hub.published("p0").len() > 20).await;
    second.kill9();
    let began = Instant::now();
    let silent = |feed: &Value| {
        let reason = feed["reason"].as_str().unwrap_or_default();
        feed["state"] == "STALE" && reason.starts_with("events/1: its broker 2 does not answer")
    };
    hub.until_feed(NAME, "that it is silent", silent).await;
    let noticed = began.elapsed();
    until("its book", async || state_of(&hub, MARKETS[1]) == "STALE").await;
    assert_eq!(state_of(&hub, MARKETS[0]), "LIVE");
    assert_eq!(hub.admin_page("/readyz").0, 200);
    let leaderless = |feed: &Value| {
        feed["state"] == "STALE" && feed["reason"].as_str().unwrap().contains("it has no leader")
    };
    hub.until_feed(NAME, "that it has no leader", leaderless).await;
    assert_eq!(state_of(&hub, MARKETS[0]), "LIVE");
    assert_eq!(state_of(&hub, MARKETS[1]), "STALE");
    let producer = sending.await.unwrap();
    let (listener, longest) = following.await.unwrap();
    assert_eq!(listener.received, (0..RECORDS).collect::<Vec<_>>());
    assert_eq!(listener.reasons, ["INITIAL"]);
    // Of the partition that nobody can ask, the last that was known, and how old that is.
    let age = |source: &str| of_partition(&hub, "source_answer_age_seconds", source);
    until("an age", async || age("events/1").is_some_and(|age| age > 5)).await;
    until("an answer", async || age("events/0").is_some_and(|age| age < 3)).await;
    assert_eq!(of_partition(&hub, "source_lag", "events/1"), Some(0));
    loud::say(&format!(
        "a broker that was killed was noticed after {} ms; a record of the other one each 20 ms, \
         the longest pause between two of them {} ms",
        noticed.as_millis(),
        longest.as_millis()
    ));

    second.restart(&kafka);
    hub.until_feed(NAME, "the partition again", |feed| feed["state"] == "LIVE").await;
    send(&producer, "events", 1, market::step(MARKETS[1], 0).as_bytes()).await;
    hub.until_feed(NAME, "its record", caught_up).await;
    until("its book", async || state_of(&hub, MARKETS[1]) == "LIVE").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_every_compression_are_read() {
    let kafka = Kafka::start();
    kafka.make_topic("events", 1, &[]).await;
    let hub = with_kafka(&kafka, &["events"]);
    let mut expected = Vec::new();
    for compression in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let mut client = kafka.client();
        client.set("compression.type", compression).set("linger.ms", "50");
        let producer: FutureProducer = client.create().unwrap();
        // Together in one batch, and alike, so that it is worth to compress it.
        let padding = "x".repeat(1_000);
        let lines = (0..20).map(|number| {
            let data = format!("{compression} {number}");
            json!({"kind": "message", "topic": "p0", "data": data, "padding": padding}).to_string()
        });
        let lines: Vec<_> = lines.collect();
        let sent = lines.iter().map(|line| send(&producer, "events", 0, line.as_bytes()));
        futures_util::future::join_all(sent).await;
        expected.extend((0..20).map(|number| json!(format!("{compression} {number}"))));
        let total = expected.len().to_string();
        hub.until_feed(NAME, compression, |feed| feed["eventsTotal"] == *total).await;
    }
    assert_eq!(hub.published("p0"), expected);
}
