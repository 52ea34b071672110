//! Several hubs on one log that all read the same topics of a real Kafka: each reads its share of
//! the partitions, others go on where it went, and each record is published once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::harness::client::PATIENCE;
use crate::harness::{Hub, Kafka, Listener, Postgres, loud, records, until};

/// Of the feed.
const NAME: &str = "kafka";
const PARTITIONS: i32 = 8;
/// Of a partition, while hubs come and go.
const BETWEEN_RECORDS: Duration = Duration::from_millis(25);

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
        reason.contains(&format!("other hubs read {count} of the {partitions} partitions"))
    };
    (1..=partitions).find(own).unwrap_or(0)
}

/// Until each of the hubs reads its share: as many as each other one, or one more. How many each
/// reads.
async fn shared(hubs: &[&Hub], partitions: i32) -> Vec<i32> {
    let mut reads = Vec::new();
    until("shares", async || {
        let status = |hub: &&Hub| hub.feed_status(NAME);
        let feeds: Vec<_> = hubs.iter().map(status).collect();
        let read = |feed: &Value| partitions - elsewhere(feed, partitions);
        reads = feeds.iter().map(read).collect();
        let (least, most) = (reads.iter().min().unwrap(), reads.iter().max().unwrap());
        let live = feeds.iter().all(|feed| feed["state"] == "LIVE");
        live && reads.iter().sum::<i32>() == partitions && most - least <= 1
    })
    .await;
    reads
}

/// The place of the one that reads the only partition.
async fn reader(hubs: [&Hub; 2]) -> usize {
    let reads = shared(&hubs, 1).await;
    reads.iter().position(|own| *own == 1).unwrap()
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
        let reads = round as usize % 2;
        assert_eq!(shared(&[one, two], PARTITIONS).await, [PARTITIONS / 2; 2]);
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

/// Counts the times that a partition gets another reader.
const COUNTED: &str = "
    CREATE TABLE moves (feed text);
    CREATE FUNCTION moved() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO moves VALUES (NEW.feed); RETURN NULL; END $$;
    CREATE TRIGGER moved AFTER UPDATE ON spreadly_sources
        FOR EACH ROW WHEN (OLD.reader <> NEW.reader) EXECUTE FUNCTION moved()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_spread_over_the_hubs_that_come_and_go_and_each_record_counts_once() {
    let Size { events, .. } = size();
    let each = events / PARTITIONS as u64;
    let postgres = Postgres::start();
    let kafka = Kafka::start();
    kafka.make_topic("events", PARTITIONS, &[]).await;
    let one = on(&postgres, &kafka);
    assert_eq!(shared(&[&one], PARTITIONS).await, [PARTITIONS]);
    let database = postgres.client().await;
    database.batch_execute(COUNTED).await.unwrap();
    let moves = async || -> i64 {
        database.query_one("SELECT count(*) FROM moves", &[]).await.unwrap().get(0)
    };
    let mut listeners = Vec::new();
    for partition in 0..PARTITIONS {
        let (mut listener, hub) =
            (Listener::begin(&records::topic_of(partition), one.address()).await, one.address());
        listeners.push(tokio::spawn(async move {
            listener.follow(hub, each as usize).await;
            listener
        }));
    }
    let producer = records::producer(&kafka);
    // They flow while partitions move, and no longer.
    let hurry = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for partition in 0..PARTITIONS {
        let (producer, hurry) = (producer.clone(), hurry.clone());
        writers.push(tokio::spawn(async move {
            for number in 0..each {
                let line = records::message(partition, number);
                records::send(&producer, "events", partition, line.as_bytes()).await;
                if !hurry.load(Ordering::Relaxed) {
                    tokio::time::sleep(BETWEEN_RECORDS).await;
                }
            }
        }));
    }
    let mut two = on(&postgres, &kafka);
    assert_eq!(shared(&[&one, &two], PARTITIONS).await, [4, 4]);
    let three = on(&postgres, &kafka);
    let mut reads = shared(&[&one, &two, &three], PARTITIONS).await;
    reads.sort_unstable();
    assert_eq!(reads, [2, 3, 3]);
    two.kill9();
    assert_eq!(shared(&[&one, &three], PARTITIONS).await, [4, 4]);
    two.restart();
    shared(&[&one, &two, &three], PARTITIONS).await;
    // One that stops gives back what it reads.
    assert!(two.sigterm().success());
    assert_eq!(shared(&[&one, &three], PARTITIONS).await, [4, 4]);
    hurry.store(true, Ordering::Relaxed);
    for one in writers {
        one.await.unwrap();
    }
    let expected: Vec<u64> = (0..each).collect();
    for listener in listeners {
        let done = tokio::time::timeout(PATIENCE * 4, listener).await;
        let mut listener = done.expect("all published").unwrap();
        listener.rest(one.address()).await;
        assert_eq!(listener.received, expected, "{}", listener.topic());
        assert_eq!(listener.reasons, ["INITIAL"], "{}", listener.topic());
    }
    for partition in 0..PARTITIONS {
        let topic = records::topic_of(partition);
        until("the other's", async || three.published(&topic).len() == each as usize).await;
        assert_eq!(one.positions(&topic), three.positions(&topic));
    }
    let rows: i64 = database.query_one("SELECT count(*) FROM events", &[]).await.unwrap().get(0);
    assert_eq!(rows.cast_unsigned(), each * PARTITIONS as u64);
    // To the second hub four, to the third two. Of the one that went and came, three at most each
    // time; and for a machine that was too busy, as many again.
    let moved = moves().await;
    let needed = 4 + 2 + 3 * 3;
    assert!((4 + 2..=needed * 2).contains(&moved), "{moved} moves, {needed} were needed at most");
    loud::say(&format!("{events} records while hubs came and went: {moved} moves, each once"));
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

/// Hubs that notice it within such a time give it one id, in seconds.
const ONE_GAP: u64 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_of_several_readers_that_is_created_again_begins_one_epoch() {
    const COUNT: i32 = 4;
    let postgres = Postgres::start();
    let kafka = Kafka::start();
    kafka.make_topic("events", COUNT, &[]).await;
    let hubs = [on(&postgres, &kafka), on(&postgres, &kafka)];
    let [one, two] = &hubs;
    assert_eq!(shared(&[one, two], COUNT).await, [COUNT / 2; 2]);
    let producer = records::producer(&kafka);
    for partition in 0..COUNT {
        let line = records::message(partition, 0);
        records::send(&producer, "events", partition, line.as_bytes()).await;
    }
    let all_published = async |count: usize| {
        for (hub, partition) in hubs.iter().flat_map(|hub| (0..COUNT).map(move |own| (hub, own))) {
            let topic = records::topic_of(partition);
            until("its records", async || hub.published(&topic).len() == count).await;
        }
    };
    all_published(1).await;
    let period = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_secs() / ONE_GAP
    };
    let before = period();
    kafka.remove_topic("events").await;
    kafka.make_topic("events", COUNT, &[]).await;
    for hub in &hubs {
        let noticed = |feed: &Value| {
            feed["reason"].as_str().is_some_and(|reason| reason.contains("was created again"))
        };
        hub.until_feed(NAME, "that it is another topic", noticed).await;
    }
    for partition in 0..COUNT {
        let line = records::message(partition, 1);
        records::send(&producer, "events", partition, line.as_bytes()).await;
    }
    all_published(2).await;
    for hub in &hubs {
        if period() != before {
            return loud::say("the period ended meanwhile: it may be two gaps");
        }
        let page = hub.admin_page("/metrics").1;
        assert!(page.contains("spreadly_source_gaps_total 1\n"), "{page}");
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
    let first = reader([one, two]).await;
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
    assert_eq!(reader([one, two]).await, 1 - first);
}
