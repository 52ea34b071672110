//! Several hubs on one log that all read the same topics of a real Kafka: one of them
//! reads a partition, another goes on where it went, and each record is published once.

use serde_json::Value;
use std::net::SocketAddr;

use crate::harness::client::PATIENCE;
use crate::harness::{Hub, Kafka, Listener, Postgres, loud, records, until};

/// Of the feed.
const NAME: &str = "kafka";
const PARTITIONS: i32 = 8;

/// How much of a storm: `make test`'s, or `make soak`'s.
struct Size {
    events: u64,
    clients: usize,
    /// Of each of these: the hub that reads is killed, the broker is killed, all hubs are
    /// restarted.
    rounds: usize,
}

fn size() -> Size {
    match std::env::var_os("SPREADLY_SOAK") {
        Some(_) => Size { events: 200_000, clients: 48, rounds: 5 },
        None => Size { events: 8_000, clients: 16, rounds: 1 },
    }
}

fn on(postgres: &Postgres, kafka: &Kafka) -> Hub {
    Hub::start_with(&[
        &format!("store.url={}", postgres.url()),
        &format!("feeds.kafka.brokers={}", kafka.brokers()),
        "feeds.kafka.topics=events",
        "server.drain_ms=300",
    ])
}

/// How many of so many partitions a hub leaves to others.
fn elsewhere(feed: &Value, partitions: i32) -> i32 {
    let reason = feed["reason"].as_str().unwrap_or_default();
    let own = |count: &i32| {
        reason.contains(&format!("another hub reads {count} of the {partitions} partitions"))
    };
    (1..=partitions).find(own).unwrap_or(0)
}

/// The place of the one that reads everything.
async fn reader(hubs: [&Hub; 2], partitions: i32) -> usize {
    let mut reads = 0;
    until("one that reads everything", async || {
        let all = hubs.map(|hub| elsewhere(&hub.feed_status(NAME), partitions));
        let found = all.iter().position(|others| *others == 0);
        reads = found.unwrap_or(reads);
        found.is_some_and(|place| all[1 - place] == partitions)
    })
    .await;
    reads
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_is_published_once_at_every_hub_whichever_of_them_reads_and_is_killed() {
    let Size { events, clients, rounds } = size();
    let postgres = Postgres::start();
    let mut kafka = Kafka::start();
    kafka.make_topic("events", PARTITIONS, &[]).await;
    let mut hubs = [on(&postgres, &kafka), on(&postgres, &kafka)];
    let addresses: [SocketAddr; 2] = [hubs[0].address(), hubs[1].address()];
    let each = events / PARTITIONS as u64;
    let mut listeners = Vec::new();
    for client in 0..clients {
        let topic = records::topic_of(client as i32 % PARTITIONS);
        let mut listener = Listener::begin(&topic, addresses[client % 2]).await;
        listeners.push(tokio::spawn(async move {
            let hopped = listener.hop(&addresses, each as usize, 10, client as u64).await;
            (listener, hopped)
        }));
    }
    let producer = records::producer(&kafka);
    let mut replaced = 0;
    for round in 0..rounds as u64 {
        let part = each / rounds as u64;
        let end = if round + 1 == rounds as u64 { each } else { (round + 1) * part };
        let producers = records::storm(&producer, PARTITIONS, round * part..end);
        let [one, two] = &hubs;
        let reads = reader([one, two], PARTITIONS).await;
        // It is back before the other takes it for dead, or after that.
        hubs[reads].kill9();
        let [one, two] = &hubs;
        let other = if reads == 0 { two } else { one };
        if round % 2 == 0 {
            let all = |feed: &Value| elsewhere(feed, PARTITIONS) == 0;
            other.until_feed(NAME, "a takeover", all).await;
            replaced += 1;
        }
        hubs[reads].restart();
        kafka.kill9();
        kafka = kafka.restarted().await;
        for hub in &mut hubs {
            assert!(hub.sigterm().success());
            hub.restart();
        }
        for one in producers {
            one.await.unwrap();
        }
    }
    let expected: Vec<u64> = (0..each).collect();
    let mut hopped = 0;
    for listener in listeners {
        let done = tokio::time::timeout(PATIENCE * 4, listener).await;
        let (mut listener, own) = done.expect("all published").unwrap();
        hopped += own;
        for address in addresses {
            listener.rest(address).await;
        }
        assert_eq!(listener.received, expected, "{}", listener.topic());
    }
    for partition in 0..PARTITIONS {
        let topic = records::topic_of(partition);
        assert_eq!(hubs[0].positions(&topic), hubs[1].positions(&topic));
    }
    let database = postgres.client().await;
    let rows: i64 = database.query_one("SELECT count(*) FROM events", &[]).await.unwrap().get(0);
    assert_eq!(rows.cast_unsigned(), each * PARTITIONS as u64);
    for hub in &hubs {
        hub.until_feed(NAME, "LIVE", |feed| feed["state"] == "LIVE" && feed["lag"] == "0").await;
    }
    loud::say(&format!(
        "{events} records of {PARTITIONS} partitions to {clients} clients of two hubs on one log, \
         {hopped} hops, {rounds} rounds of kills, {replaced} readers replaced: each once"
    ));
}

/// Also who follows at a hub that did not read the topic has to see that something is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_created_again_begins_the_same_epoch_at_every_hub() {
    let postgres = Postgres::start();
    let kafka = Kafka::start();
    kafka.make_topic("events", 1, &[]).await;
    let hubs = [on(&postgres, &kafka), on(&postgres, &kafka)];
    let producer = records::producer(&kafka);
    let topic = records::topic_of(0);
    let mut listeners = Vec::new();
    for hub in &hubs {
        listeners.push(Listener::begin(&topic, hub.address()).await);
    }
    records::send(&producer, "events", 0, records::message(0, 0).as_bytes()).await;
    for (listener, hub) in listeners.iter_mut().zip(&hubs) {
        listener.follow(hub.address(), 1).await;
    }
    kafka.remove_topic("events").await;
    kafka.make_topic("events", 1, &[]).await;
    let noticed = |hub: &Hub| {
        let feed = hub.feed_status(NAME);
        feed["reason"].as_str().is_some_and(|reason| reason.contains("was created again"))
    };
    until("a hub that noticed", async || hubs.iter().any(noticed)).await;
    for number in 1..4 {
        records::send(&producer, "events", 0, records::message(0, number).as_bytes()).await;
    }
    // The cursor that one hub gave from there on is good at the other.
    for place in [0, 1, 0] {
        for (listener, hub) in listeners.iter_mut().zip([&hubs[place], &hubs[1 - place]]) {
            listener.follow(hub.address(), 4).await;
            listener.rest(hub.address()).await;
        }
    }
    for listener in &listeners {
        assert_eq!(listener.received, [0, 1, 2, 3]);
        assert_eq!(listener.reasons, ["INITIAL", "EPOCH_CHANGE"]);
    }
}

/// One that is taken for dead may wake up in the middle of what it was doing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_stopped_is_replaced_and_brings_nothing_more_when_it_wakes() {
    let postgres = Postgres::start();
    let kafka = Kafka::start();
    kafka.make_topic("events", 1, &[]).await;
    let hubs = [on(&postgres, &kafka), on(&postgres, &kafka)];
    let [one, two] = &hubs;
    let producer = records::producer(&kafka);
    let topic = records::topic_of(0);
    let first = reader([one, two], 1).await;
    let (stopped, other) = (&hubs[first], &hubs[1 - first]);
    let sending = records::storm(&producer, 1, 0..500);
    let some = async |hub: &Hub, enough: usize| {
        until("enough", async || hub.published(&topic).len() >= enough).await;
    };
    some(other, 1).await;
    stopped.signal("-STOP");
    for one in sending {
        one.await.unwrap();
    }
    some(other, 500).await;
    other.until_feed(NAME, "a takeover", |feed| elsewhere(feed, 1) == 0).await;
    stopped.signal("-CONT");
    records::send(&producer, "events", 0, records::message(0, 500).as_bytes()).await;
    for hub in &hubs {
        some(hub, 501).await;
        let published: Vec<u64> =
            hub.published(&topic).iter().map(|data| data.as_u64().unwrap()).collect();
        assert_eq!(published, (0..=500).collect::<Vec<_>>());
        hub.until_feed(NAME, "LIVE", |feed| feed["state"] == "LIVE" && feed["lag"] == "0").await;
    }
    assert_eq!(reader([one, two], 1).await, 1 - first);
}
