//! What a feed says of itself while not all is well: its lag goes on, and refusals leave traces.

use rdkafka::producer::FutureProducer;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::http::post;
use crate::harness::records::{producer, send};
use crate::harness::{Hub, Kafka, Postgres, until};

fn line(number: u64) -> String {
    json!({"kind": "message", "topic": "t", "data": number}).to_string()
}

/// Keeps the hub from its log, as a full disk would, until it is dropped.
fn hold(hub: &Hub) -> Connection {
    let log = Connection::open(hub.folder().join("data/spreadly.db")).unwrap();
    log.busy_timeout(std::time::Duration::from_secs(30)).unwrap();
    log.execute_batch("BEGIN IMMEDIATE").unwrap();
    log
}

fn lag(feed: &Value) -> u64 {
    feed["lag"].as_str().unwrap().parse().unwrap()
}

/// `write` writes an event and gives what that adds to the lag.
async fn counts_on(hub: &Hub, feed: &str, mut write: impl AsyncFnMut(u64) -> u64) {
    let live = |feed: &Value| feed["state"] == "LIVE" && lag(feed) == 0;
    hub.until_feed(feed, "the feed", live).await;
    write(0).await;
    hub.until_feed(feed, "the first", |feed| feed["eventsTotal"] == "1" && live(feed)).await;
    let held = hold(hub);
    let mut expected = write(1).await;
    hub.until_feed(feed, "that the log takes nothing", |feed| feed["state"] == "HALTED").await;
    for number in 2..5 {
        expected += write(number).await;
        let counted = |feed: &Value| feed["state"] == "HALTED" && lag(feed) == expected;
        hub.until_feed(feed, "all that waits", counted).await;
    }
    let (_, page) = hub.admin_page("/metrics");
    let metric = format!("spreadly_feed_lag{{feed=\"{feed}\"}} {expected}\n");
    assert!(page.contains(&metric), "{metric} is not in {page}");
    drop(held);
    hub.until_feed(feed, "the end", |feed| feed["eventsTotal"] == "5" && live(feed)).await;
    assert_eq!(hub.published("t"), [0, 1, 2, 3, 4].map(|number| json!(number)));
}

#[tokio::test]
async fn the_lag_of_a_folder_goes_on_while_the_log_takes_nothing() {
    let hub = Hub::start();
    counts_on(&hub, "files", async |number| {
        // Into an old file and into new ones.
        hub.append_lines(&format!("{}.ndjson", number / 2), &[line(number)]);
        line(number).len() as u64 + 1
    })
    .await;
}

#[tokio::test]
async fn the_lag_of_a_table_goes_on_while_the_log_takes_nothing() {
    let postgres = Postgres::start();
    let hub = Hub::start_with(&[&format!("feeds.postgres.url={}", postgres.url())]);
    hub.until_feed("postgres", "the table", |feed| feed["state"] == "LIVE").await;
    let database = postgres.client().await;
    counts_on(&hub, "postgres", async |number| {
        let insert = "INSERT INTO events (payload) VALUES ($1::text::json)";
        database.execute(insert, &[&line(number)]).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn of_a_table_that_waits_for_the_log_a_hundred_thousand_rows_without_a_number_are_counted() {
    let postgres = Postgres::start();
    let hub = Hub::start_with(&[&format!("feeds.postgres.url={}", postgres.url())]);
    hub.until_feed("postgres", "the table", |feed| feed["state"] == "LIVE").await;
    let held = hold(&hub);
    let many = r#"INSERT INTO events (payload) SELECT json_build_object('kind', 'message',
        'topic', 't', 'data', 1) FROM generate_series(1, 101100)"#;
    postgres.client().await.batch_execute(many).await.unwrap();
    // The first 1,024 have a number and are on their way.
    let counted = |feed: &Value| feed["state"] == "HALTED" && lag(feed) == 101_024;
    hub.until_feed("postgres", "all that are counted", counted).await;
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lag_of_a_topic_goes_on_while_the_log_takes_nothing() {
    let kafka = Kafka::start();
    kafka.make_topic("events", 2, &[]).await;
    let hub = Hub::start_with(&[
        &format!("feeds.kafka.brokers={}", kafka.brokers()),
        "feeds.kafka.topics=events",
    ]);
    let producer: FutureProducer = producer(&kafka);
    counts_on(&hub, "kafka", async |number| {
        send(&producer, "events", 0, line(number).as_bytes()).await;
        1
    })
    .await;
}

#[tokio::test]
async fn refused_events_are_named_newest_first_and_have_a_line_in_the_log() {
    let hub = Hub::start();
    let bad: Vec<_> = (0..25).map(|number| format!(r#"{{"kind":"k{number}"}}"#)).collect();
    hub.append_lines("bad.ndjson", &bad);
    hub.until_feed("files", "all refusals", |feed| feed["refusedTotal"] == "25").await;
    let query = "{ feeds { lastRefusal { place } refusals { source place reason } } }";
    let feed = hub.query(query)["feeds"][0].clone();
    let named = feed["refusals"].as_array().unwrap();
    assert_eq!(named.len(), 20, "{feed}");
    for (refusal, number) in named.iter().zip((5..25).rev()) {
        assert_eq!(refusal["source"], "bad.ndjson");
        let reason = refusal["reason"].as_str().unwrap();
        assert!(reason.starts_with(&format!("unknown kind \"k{number}\"")), "{refusal}");
    }
    assert_eq!(feed["lastRefusal"]["place"], named[0]["place"]);
    until("a line of the log", async || hub.log().contains("events were refused")).await;
    assert!(hub.log().contains("total=25"), "{}", hub.log());
}

#[tokio::test]
async fn a_publish_into_a_log_that_is_known_to_take_nothing_is_refused_and_never_written() {
    let hub = Hub::start();
    let live = |feed: &Value| feed["state"] == "LIVE";
    hub.until_feed("files", "the folder", live).await;
    let held = hold(&hub);
    hub.append_lines("one.ndjson", &[line(0)]);
    hub.until_feed("files", "the halt", |feed| feed["state"] == "HALTED").await;
    let publish = json!({"query": "mutation { publish(topic: \"t\", data: 1) { sequence } }"});
    let answer = post(hub.address(), &publish).json();
    let error = &answer["errors"][0];
    assert_eq!(error["extensions"]["code"], "UNAVAILABLE", "{answer}");
    assert!(error["message"].as_str().unwrap().contains("nothing was written"), "{answer}");
    drop(held);
    hub.until_feed("files", "the end of the halt", live).await;
    let answer = post(hub.address(), &publish).json();
    assert!(answer["data"]["publish"]["sequence"].is_string(), "{answer}");
    assert_eq!(hub.published("t"), [json!(0), json!(1)], "the refused one is not there");
}
