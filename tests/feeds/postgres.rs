//! The table `events` of a real PostgreSQL: whatever writers, the network, the server or the hub
//! do, every committed row is published once, in the order in which rows were numbered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio_postgres::Client as Database;

use crate::harness::client::PATIENCE;
use crate::harness::postgres::BACK_TO_TWO_ROWS;
use crate::harness::{Client, Hub, Listener, Postgres, loud, until};

/// Of the feed.
const NAME: &str = "postgres";
/// One event, as text.
const INSERT: &str = "INSERT INTO events (payload) VALUES ($1::text::json)";
const TOPICS: u64 = 4;
const WRITERS: u64 = 8;
/// Half of them at each of two hubs.
const SUBSCRIBERS: usize = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// How much of a storm: `make test`'s, or `make soak`'s.
#[derive(Clone, Copy)]
struct Size {
    events: u64,
    server_kills: usize,
    hub_kills: usize,
}

fn size() -> Size {
    match std::env::var_os("SPREADLY_SOAK") {
        Some(_) => Size { events: 100_000, server_kills: 10, hub_kills: 20 },
        None => Size { events: 4_000, server_kills: 2, hub_kills: 3 },
    }
}

fn with_postgres(url: &str) -> Hub {
    Hub::start_with(&[&format!("feeds.postgres.url={url}")])
}

/// Waits until the hub has made its tables.
async fn ready(postgres: &Postgres) -> Database {
    let database = postgres.client().await;
    let began = Instant::now();
    let migrations = migrations::migrations::runner();
    let newest = migrations.get_migrations().iter().map(|one| one.version()).max().unwrap();
    let query = "SELECT FROM spreadly_migrations WHERE version = $1";
    while database.query_one(query, &[&newest]).await.is_err() {
        assert!(began.elapsed() < PATIENCE, "the hub never made its tables");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    database
}

fn message(topic: u64, id: &str) -> String {
    json!({"kind": "message", "topic": format!("t{topic}"), "id": id, "data": id}).to_string()
}

/// A transaction of some rows that commits late, or fails and is tried again under the same ids.
async fn write(postgres: &Postgres, writer: u64, rows: u64, seed: u64, late: &AtomicU64) {
    let mut random = StdRng::seed_from_u64(seed ^ (writer << 32));
    let mut database = postgres.client().await;
    let mut number = 0;
    while number < rows {
        let count = random.random_range(1..=4).min(rows - number);
        let transaction = async {
            database.batch_execute("BEGIN").await?;
            for id in number..number + count {
                let topic = (writer + id) % TOPICS;
                let line = message(topic, &format!("{writer} {id}"));
                database.execute(INSERT, &[&line]).await?;
            }
            // The first writer is slower than everyone else, so that its rows always commit after
            // some with higher ids.
            let most = if writer == 0 { 60 } else { 8 };
            tokio::time::sleep(Duration::from_millis(random.random_range(0..most))).await;
            if random.random_bool(0.05) {
                return database.batch_execute("ROLLBACK").await.map(|()| false);
            }
            database.batch_execute("COMMIT").await.map(|()| true)
        };
        match transaction.await {
            Ok(true) => {
                number += count;
                late.fetch_add(u64::from(writer == 0), Ordering::Relaxed);
            }
            Ok(false) => {}
            // It may have committed: the same ids again count once.
            Err(_) => database = postgres.client().await,
        }
    }
}

/// What happens to a storm besides its writers.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Each connection of the hub, five times a second.
    ListenerTerminated,
    ServerKilled,
    HubKilled,
}

/// Returns how many rows a reader would have missed that polls `id > last`.
async fn storm(fault: Fault) -> usize {
    let Size { events, server_kills, hub_kills } = size();
    let seed = 20_261_125;
    loud::say(&format!("seed {seed}"));
    let postgres = Arc::new(Postgres::start());
    let mut hub = with_postgres(&postgres.url());
    drop(ready(&postgres).await);
    let each = events / WRITERS;
    let of_topic = |topic: u64| {
        (0..WRITERS)
            .map(|writer| (0..each).filter(|id| (writer + id) % TOPICS == topic).count())
            .sum()
    };
    // The first may be killed, the other never is: both publish the same.
    let other = with_postgres(&postgres.url());
    let mut subscribers = Vec::new();
    for place in 0..SUBSCRIBERS {
        let topic = place as u64 % TOPICS;
        let address = if place < SUBSCRIBERS / 2 { hub.address() } else { other.address() };
        let mut subscriber = Listener::begin(&format!("t{topic}"), address).await;
        let enough: usize = of_topic(topic);
        subscribers.push(tokio::spawn(async move {
            subscriber.follow(address, enough).await;
            (subscriber, address)
        }));
    }
    let (over, late) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let naive = tokio::spawn(poll_by_id(postgres.clone(), over.clone()));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (postgres, late) = (postgres.clone(), late.clone());
            tokio::spawn(async move { write(&postgres, writer, each, seed, &late).await })
        })
        .collect();
    let done = || writers.iter().all(tokio::task::JoinHandle::is_finished);
    let mut faults = 0;
    let most = match fault {
        Fault::None => 0,
        Fault::ListenerTerminated => usize::MAX,
        Fault::ServerKilled => server_kills,
        Fault::HubKilled => hub_kills,
    };
    while !done() || (faults < most && fault != Fault::ListenerTerminated) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        if faults == most {
            continue;
        }
        match fault {
            Fault::None => continue,
            Fault::ListenerTerminated => {
                let database = postgres.client().await;
                let all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                           WHERE application_name = 'spreadly'";
                drop(database.query_one(all, &[]).await);
            }
            Fault::ServerKilled => {
                let postgres = postgres.clone();
                let restarting = move || {
                    postgres.kill9();
                    postgres.restart();
                };
                tokio::task::spawn_blocking(restarting).await.unwrap();
            }
            Fault::HubKilled => hub.restart(),
        }
        faults += 1;
    }
    assert!(faults > 0 || fault == Fault::None, "nothing was done to it");
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(late.load(Ordering::Relaxed) > 0);
    over.store(true, Ordering::Relaxed);
    let by_id = naive.await.unwrap();

    // In the order in which rows were numbered; of an id that was inserted twice the first counts.
    let patience = PATIENCE * if events > 10_000 { 10 } else { 1 };
    let mut finished = Vec::new();
    for subscriber in subscribers {
        let done = tokio::time::timeout(patience, subscriber).await;
        finished.push(done.expect("every row is published").unwrap());
    }
    let database = postgres.client().await;
    let all = "SELECT payload->>'topic', payload->>'id', id FROM spreadly_positions JOIN events USING (id)
        ORDER BY position";
    let mut order: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut known, mut rows) = (BTreeSet::new(), BTreeSet::new());
    for row in database.query(all, &[]).await.unwrap() {
        rows.insert(row.get::<_, i64>(2));
        let id: String = row.get(1);
        if known.insert(id.clone()) {
            order.entry(row.get(0)).or_default().push(id);
        }
    }
    assert_eq!(known.len() as u64, events);
    for (subscriber, address) in &mut finished {
        // Nothing comes after the last row.
        subscriber.rest(*address).await;
        assert_eq!(subscriber.received, order[subscriber.topic()]);
    }
    let missed = rows.difference(&by_id).count();
    loud::say(&format!(
        "{events} events by {WRITERS} writers to {SUBSCRIBERS} subscribers of two hubs, {faults} \
         faults; a reader by id would have missed {missed} rows"
    ));
    missed
}

/// The negative control: what plain polling by id sees.
async fn poll_by_id(postgres: Arc<Postgres>, over: Arc<AtomicBool>) -> BTreeSet<i64> {
    let (mut seen, mut last) = (BTreeSet::new(), 0);
    let mut database = postgres.client().await;
    loop {
        let ends = over.load(Ordering::Relaxed);
        match database.query("SELECT id FROM events WHERE id > $1 ORDER BY id", &[&last]).await {
            Ok(rows) => {
                for row in rows {
                    last = row.get(0);
                    seen.insert(last);
                }
                if ends {
                    return seen;
                }
            }
            Err(_) => database = postgres.client().await,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_commit_late_are_published_once_and_in_order_where_polling_by_id_misses_some() {
    let missed = storm(Fault::None).await;
    assert!(missed > 0, "the rows did not commit out of order: this has proven nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_is_terminated_five_times_a_second_loses_nothing() {
    storm(Fault::ListenerTerminated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_restarted_loses_nothing() {
    storm(Fault::ServerKilled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_is_killed_loses_no_row_and_publishes_none_twice() {
    storm(Fault::HubKilled).await;
}

#[tokio::test]
async fn a_row_that_is_no_event_is_named_and_counted_and_the_rest_flows() {
    let postgres = Postgres::start();
    let hub = with_postgres(&postgres.url());
    let database = ready(&postgres).await;
    let large = json!({"kind": "message", "topic": "t0", "data": "x".repeat(2 << 20)}).to_string();
    let faulty = [
        (r#"{"kind":"nonsense"}"#, "unknown kind \"nonsense\": use one of "),
        ("[1]", "not a JSON object: one line holds one event, {\"kind\":…}"),
        (&large, "the line is longer than 1048576 bytes: split it into several events"),
        (
            r#"{"kind":"trade","market":"NO-NE","price":"1","size":"1"}"#,
            "market NO-NE is not defined: send its `market` event first",
        ),
    ];
    for (number, (payload, reason)) in (1..).zip(faulty) {
        let insert = format!("{INSERT} RETURNING id");
        let id: i64 = database.query_one(&insert, &[&payload]).await.unwrap().get(0);
        let status =
            hub.until_feed(NAME, reason, |feed| feed["refusedTotal"] == *number.to_string()).await;
        let refusal = &status["lastRefusal"];
        assert_eq!(
            (&refusal["source"], &refusal["place"]),
            (&json!("events"), &json!(format!("row {id}")))
        );
        assert!(refusal["reason"].as_str().unwrap().starts_with(reason), "{refusal}");
    }
    // What is no JSON never gets into the table, and neither does what is not UTF-8.
    for bytes in ["'{'", "convert_from('\\xff', 'UTF8')::json"] {
        let insert = format!("INSERT INTO events (payload) VALUES ({bytes})");
        assert!(database.batch_execute(&insert).await.is_err(), "{bytes}");
    }
    let publish = "SELECT spreadly_publish('message', NULL, '{\"topic\":\"t0\",\"data\":\"ok\",\"id\":\"ok\"}')";
    database.batch_execute(publish).await.unwrap();
    hub.until_feed(NAME, "the good row", |feed| feed["eventsTotal"] == "1").await;
    let answer = hub.query(r#"{ events(topic: "t0") { nodes { id data } } }"#);
    assert_eq!(answer["events"]["nodes"], json!([{"id": "ok", "data": "ok"}]));
}

#[tokio::test]
async fn without_a_doorbell_rows_come_at_the_next_poll() {
    let postgres = Postgres::start();
    let hub = Hub::start_with(&[
        &format!("feeds.postgres.url={}", postgres.url()),
        "feeds.postgres.poll_interval_ms=100",
    ]);
    let database = ready(&postgres).await;
    database
        .batch_execute("ALTER TABLE events ALTER COLUMN xact SET DEFAULT pg_current_xact_id()")
        .await
        .unwrap();
    for number in 1..=3 {
        database.execute(INSERT, &[&message(0, &number.to_string())]).await.unwrap();
        hub.until_feed(NAME, "a row", |feed| feed["eventsTotal"] == *number.to_string()).await;
    }
}

#[tokio::test]
async fn an_open_transaction_keeps_no_row_of_others_back_and_its_own_come_last() {
    let postgres = Postgres::start();
    let hub = with_postgres(&postgres.url());
    let (early, other) = (ready(&postgres).await, postgres.client().await);
    early.batch_execute("BEGIN").await.unwrap();
    early.execute(INSERT, &[&message(0, "early")]).await.unwrap();
    for number in 1..=5 {
        other.execute(INSERT, &[&message(0, &number.to_string())]).await.unwrap();
    }
    hub.until_feed(NAME, "rows of others", |feed| feed["eventsTotal"] == "5").await;
    early.batch_execute("COMMIT").await.unwrap();
    hub.until_feed(NAME, "the early row", |feed| feed["eventsTotal"] == "6").await;
    let answer = hub.query(r#"{ events(topic: "t0") { nodes { id } } }"#);
    let ids: Vec<_> =
        answer["events"]["nodes"].as_array().unwrap().iter().map(|one| &one["id"]).collect();
    assert_eq!(ids, ["1", "2", "3", "4", "5", "early"]);
}

#[tokio::test]
async fn a_database_that_says_nothing_is_stale_until_it_speaks_again() {
    let postgres = Postgres::start();
    let hub = with_postgres(&postgres.url());
    let database = ready(&postgres).await;
    let mut client = Client::connected(hub.address()).await;
    client.subscribe("s", r#"subscription { events(topic: "t0") { state } }"#).await;
    let mut state = async |expected: &str| {
        let began = Instant::now();
        while client.message().await["payload"]["data"]["events"]["state"] != expected {
            assert!(began.elapsed() < PATIENCE, "{expected} never came");
        }
    };
    hub.until_feed(NAME, "the feed", |feed| feed["state"] == "LIVE").await;
    state("LIVE").await;
    postgres.signal_all("-STOP");
    state("STALE").await;
    let status = hub.feed_status(NAME);
    let reason =
        "cut off from Postgres: it did not answer within 3000 ms (feeds.postgres.deadline_ms)";
    assert_eq!(status["reason"], reason);
    postgres.signal_all("-CONT");
    state("LIVE").await;
    database.execute(INSERT, &[&message(0, "1")]).await.unwrap();
    hub.until_feed(NAME, "a row", |feed| feed["eventsTotal"] == "1").await;
}

#[tokio::test]
async fn a_hub_goes_on_at_the_address_that_the_database_failed_over_to() {
    let mut postgres = Postgres::start();
    let hub = with_postgres(&postgres.url_with_spare());
    ready(&postgres).await.execute(INSERT, &[&message(0, "1")]).await.unwrap();
    hub.until_feed(NAME, "a row", |feed| feed["eventsTotal"] == "1").await;
    let cuts = |hub: &Hub| {
        let (_, page) = hub.admin_page("/metrics");
        let line = page
            .lines()
            .find(|line| line.starts_with("spreadly_feed_cuts_total{feed=\"postgres\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap()
    };
    assert_eq!(cuts(&hub), 0);
    postgres.fail_over();
    postgres.client().await.execute(INSERT, &[&message(0, "2")]).await.unwrap();
    hub.until_feed(NAME, "a row after the failover", |feed| feed["eventsTotal"] == "2").await;
    assert!(cuts(&hub) > 0);
}

#[tokio::test]
async fn another_database_is_read_from_its_start_and_one_that_lost_its_end_from_what_is_left() {
    let postgres = Postgres::start();
    let hub = with_postgres(&postgres.url());
    let database = ready(&postgres).await;
    for number in 1..=4 {
        database.execute(INSERT, &[&message(0, &number.to_string())]).await.unwrap();
    }
    hub.until_feed(NAME, "rows", |feed| feed["eventsTotal"] == "4").await;
    let cut = |statement: &'static str| {
        format!(
            "BEGIN; {statement}
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'spreadly';
             COMMIT"
        )
    };
    database.batch_execute(&cut(BACK_TO_TWO_ROWS)).await.unwrap();
    database.execute(INSERT, &[&message(0, "5")]).await.unwrap();
    hub.until_feed(NAME, "a row after what is left", |feed| feed["eventsTotal"] == "5").await;
    // As another one, whose numbers start again: ids that are known count once.
    let another = "UPDATE spreadly_numbering SET epoch = epoch + 1;";
    database.batch_execute(&cut(another)).await.unwrap();
    database.execute(INSERT, &[&message(0, "6")]).await.unwrap();
    hub.until_feed(NAME, "a row of another table", |feed| feed["eventsTotal"] == "6").await;
    let answer = hub.query(r#"{ events(topic: "t0") { nodes { id } } }"#);
    let ids: Vec<_> =
        answer["events"]["nodes"].as_array().unwrap().iter().map(|one| &one["id"]).collect();
    assert_eq!(ids, ["1", "2", "3", "4", "5", "6"]);
}

#[tokio::test]
async fn many_rows_large_rows_and_blocks_that_are_undone_come_in_their_order() {
    let postgres = Postgres::start();
    let hub = with_postgres(&postgres.url());
    let database = ready(&postgres).await;
    // More than are numbered at once, then more bytes than are read at once.
    let many = r#"INSERT INTO events (payload) SELECT json_build_object('kind', 'message',
        'topic', 't0', 'data', number, 'height', number) FROM generate_series(1, 2500) AS number"#;
    let large = r#"INSERT INTO events (payload) SELECT json_build_object('kind', 'message',
        'topic', 't1', 'data', number, 'padding', repeat('x', 700000)) FROM generate_series(1, 7)
        AS number"#;
    // Undoes the last five of the many, though the large ones came in between.
    let undo = r#"INSERT INTO events (payload) VALUES ('{"kind":"block.reverted","height":2496}'),
        ('{"kind":"message","topic":"t0","data":"after"}')"#;
    database.batch_execute(&format!("BEGIN; {many}; {large}; {undo}; COMMIT")).await.unwrap();
    hub.until_feed(NAME, "all rows", |feed| feed["eventsTotal"] == "2509").await;
    let mut expected: Vec<_> = (1..=2495).map(|number| json!(number)).collect();
    expected.push(json!("after"));
    assert_eq!(hub.published("t0"), expected);
    assert_eq!(hub.published("t1"), (1..=7).map(|number| json!(number)).collect::<Vec<_>>());
}

/// Postgres prepares no transaction that has sent a NOTIFY.
const PREPARE: &str = "PREPARE TRANSACTION 'one'";
const OPEN: &str = "BEGIN; INSERT INTO events (payload)
    VALUES ('{\"kind\":\"message\",\"topic\":\"t0\",\"data\":\"prepared\"}');";

/// Looks at the database until a query says so.
async fn until_true(database: &Database, what: &str, query: &str) {
    let there = async || database.query_one(query, &[]).await.unwrap().get(0);
    until(what, there).await;
}

#[tokio::test]
async fn a_transaction_can_be_prepared_while_the_hub_is_idle_and_while_rows_flow() {
    let postgres = Postgres::start_for_two_phases();
    let hub = with_postgres(&postgres.url());
    let database = ready(&postgres).await;
    hub.until_feed(NAME, "the feed", |feed| feed["state"] == "LIVE").await;
    // More looks than an idle hub needs to go to sleep.
    let looks = "SELECT query_start::text FROM pg_stat_activity
        WHERE application_name = 'spreadly' AND query LIKE '%spreadly_take%'";
    let mut seen = BTreeSet::new();
    let looked = async || {
        let rows = database.query(looks, &[]).await.unwrap();
        seen.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        seen.len() > 20
    };
    until("looks of an idle hub", looked).await;
    let mut total = 0;
    for round in 0..10 {
        database.batch_execute(OPEN).await.unwrap();
        database.batch_execute(PREPARE).await.unwrap();
        // Others write before the second phase.
        for row in 0..round {
            insert(&database, &[&format!("{round} {row}")]).await;
        }
        total += round;
        let others = total.to_string();
        hub.until_feed(NAME, "rows of others", |feed| feed["eventsTotal"] == *others).await;
        database.batch_execute("COMMIT PREPARED 'one'").await.unwrap();
        total += 1;
        let all = total.to_string();
        hub.until_feed(NAME, "the prepared row", |feed| feed["eventsTotal"] == *all).await;
    }
}

/// The negative control of the test above, and what `on` and `off` are.
#[tokio::test]
async fn a_hub_sleeps_until_a_writer_notifies_it_only_where_the_doorbell_is_on() {
    let postgres = Postgres::start_for_two_phases();
    let with = |doorbell: &str| {
        let url = format!("feeds.postgres.url={}", postgres.url());
        Hub::start_with(&[&url, &format!("feeds.postgres.doorbell={doorbell}")])
    };
    let off = with("off");
    let (database, writer) = (ready(&postgres).await, postgres.client().await);
    writer.batch_execute(OPEN).await.unwrap();
    writer.batch_execute(PREPARE).await.unwrap();
    writer.batch_execute("COMMIT PREPARED 'one'").await.unwrap();
    off.until_feed(NAME, "the prepared row", |feed| feed["eventsTotal"] == "1").await;
    drop(off);
    let on = with("on");
    let asleep = "SELECT EXISTS (SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND objid = 1 AND mode = 'ExclusiveLock' AND granted)";
    until_true(&database, "a hub that sleeps", asleep).await;
    writer.batch_execute(OPEN).await.unwrap();
    let refused = writer.batch_execute(PREPARE).await.unwrap_err();
    let refused = refused.as_db_error().unwrap().message();
    assert!(refused.contains("NOTIFY"), "{refused}");
    insert(&writer, &["rings"]).await;
    on.until_feed(NAME, "a row", |feed| feed["eventsTotal"] == "2").await;
}

mod migrations {
    refinery::embed_migrations!("config/migrations/postgres");
}

/// What has a number, in the order of the numbers.
async fn numbered(database: &Database) -> Vec<String> {
    let query = "SELECT payload->>'data' FROM spreadly_positions JOIN events USING (id)
        ORDER BY position";
    let rows = database.query(query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// As a hub calls it that rarely finds rows.
const LOOK_FIRST: &str = "spreadly_take($1, 1000000, true)";
/// As a busy hub calls it.
const AT_ONCE: &str = "spreadly_take($1, 1000000, false)";

/// Gives the newest number.
async fn number(database: &Database, take: &str, most: i32) -> i64 {
    let query = format!("SELECT max(newest) FROM {take}");
    database.query_one(&query, &[&most]).await.unwrap().get(0)
}

async fn insert(database: &Database, names: &[&str]) {
    for name in names {
        database.execute(INSERT, &[&message(0, name)]).await.unwrap();
    }
}

/// Whatever commits between two of the calls that it takes to number what there is.
#[tokio::test]
async fn each_row_is_numbered_once_in_order_however_many_calls_it_takes() {
    for take in [LOOK_FIRST, AT_ONCE] {
        numbers_each_row_once(take).await;
    }
}

async fn numbers_each_row_once(take: &str) {
    let postgres = Postgres::start();
    let mut database = postgres.client().await;
    migrate(&mut database).await;
    let (late, later) = (postgres.client().await, postgres.client().await);
    late.batch_execute("BEGIN").await.unwrap();
    insert(&late, &["a1", "a2"]).await;
    insert(&database, &["b1", "b2", "b3", "b4", "b5", "b6", "b7"]).await;
    assert_eq!(number(&database, take, 3).await, 3);
    // They belong to the next round, though their transaction is an older one.
    late.batch_execute("COMMIT").await.unwrap();
    later.batch_execute("BEGIN").await.unwrap();
    insert(&later, &["d1", "d2", "d3", "d4", "d5"]).await;
    insert(&database, &["c1"]).await;
    let mut given = Vec::new();
    for _ in 0..4 {
        given.push(number(&database, take, 3).await);
    }
    assert_eq!(given, [6, 7, 10, 10]);
    later.batch_execute("COMMIT").await.unwrap();
    assert_eq!((number(&database, take, 3).await, number(&database, take, 3).await), (13, 15));
    let rolled_back = "BEGIN; INSERT INTO events (payload) VALUES ('{}'); ROLLBACK";
    database.batch_execute(rolled_back).await.unwrap();
    insert(&database, &["e1"]).await;
    assert_eq!((number(&database, take, 3).await, number(&database, take, 3).await), (16, 16));
    let expected = [
        "b1", "b2", "b3", "b4", "b5", "b6", "b7", "a1", "a2", "c1", "d1", "d2", "d3", "d4", "d5",
        "e1",
    ];
    assert_eq!(numbered(&database).await, expected);
    let forgot = database.query_one("SELECT spreadly_forget(14)", &[]).await.unwrap();
    assert_eq!(forgot.get::<_, i64>(0), 14);
    assert_eq!(numbered(&database).await, ["d5", "e1"]);
}

async fn migrate(database: &mut Database) {
    let mut runner = migrations::migrations::runner();
    runner.set_migration_table_name("spreadly_migrations");
    runner.run_async(database).await.unwrap();
}

/// A table that was cleared leaves more numbers without rows than are read at once.
#[tokio::test]
async fn what_comes_after_rows_that_were_deleted_is_published() {
    let postgres = Postgres::start();
    let mut database = postgres.client().await;
    migrate(&mut database).await;
    let many = r#"INSERT INTO events (payload) SELECT json_build_object('kind', 'message',
        'topic', 't0', 'data', number) FROM generate_series(1, 2500) AS number"#;
    database.batch_execute(many).await.unwrap();
    for newest in [1_000, 2_000, 2_500] {
        assert_eq!(number(&database, LOOK_FIRST, 1_000).await, newest);
    }
    database.batch_execute("DELETE FROM events WHERE id <> 7").await.unwrap();
    let hub = with_postgres(&postgres.url());
    insert(&database, &["after"]).await;
    hub.until_feed(NAME, "what is left", |feed| feed["eventsTotal"] == "2").await;
    assert_eq!(hub.published("t0"), [json!(7), json!("after")]);
    database.batch_execute("TRUNCATE events, spreadly_runs").await.unwrap();
    let other = with_postgres(&postgres.url());
    insert(&database, &["alone"]).await;
    other.until_feed(NAME, "what is there", |feed| feed["eventsTotal"] == "1").await;
    assert_eq!(other.published("t0"), ["alone"]);
}

/// A database whose dump is restored into another server, with the rows 1 and 2 numbered and a
/// third one that is not. Transactions are counted from the start there.
async fn restored() -> Postgres {
    let (first, second) = (Postgres::start(), Postgres::start());
    let mut database = first.client().await;
    migrate(&mut database).await;
    for _ in 0..2_000 {
        database.execute("SELECT pg_current_xact_id()", &[]).await.unwrap();
    }
    insert(&database, &["1", "2"]).await;
    assert_eq!(number(&database, LOOK_FIRST, 9).await, 2);
    insert(&database, &["3"]).await;
    first.copy_to(&second);
    second
}

#[tokio::test]
async fn a_dump_that_is_restored_into_another_server_goes_on_where_it_was() {
    let postgres = restored().await;
    let database = postgres.client().await;
    insert(&database, &["4"]).await;
    let hub = with_postgres(&postgres.url());
    hub.until_feed(NAME, "all", |feed| feed["eventsTotal"] == "4").await;
    insert(&database, &["5"]).await;
    hub.until_feed(NAME, "a new one", |feed| feed["eventsTotal"] == "5").await;
    assert_eq!(hub.published("t0"), ["1", "2", "3", "4", "5"]);
    assert_eq!(numbered(&database).await, ["1", "2", "3", "4", "5"]);
}

/// A writer waits no longer for the hub than the hub waits for the table's lock.
#[tokio::test]
async fn a_hub_that_needs_the_tables_lock_gives_way_to_writers_and_tries_again() {
    let postgres = restored().await;
    let (database, open) = (postgres.client().await, postgres.client().await);
    open.batch_execute("BEGIN").await.unwrap();
    insert(&open, &["open"]).await;
    let hub = with_postgres(&postgres.url());
    let late =
        |feed: &Value| feed["reason"].as_str().is_some_and(|own| own.contains("lock timeout"));
    hub.until_feed(NAME, "that a lock was not given", late).await;
    insert(&database, &["meanwhile"]).await;
    open.batch_execute("COMMIT").await.unwrap();
    hub.until_feed(NAME, "all", |feed| feed["eventsTotal"] == "5").await;
    assert_eq!(hub.published("t0"), ["1", "2", "3", "open", "meanwhile"]);
}
