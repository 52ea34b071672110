//! Hubs on one log in a real PostgreSQL know each other: how many there are, and in what they
//! differ.

use crate::harness::{Hub, Postgres, until};

/// The value of a metric without a label.
fn metric(hub: &Hub, name: &str) -> i64 {
    let page = hub.admin_page("/metrics").1;
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("spreadly_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in\n{page}")).parse().unwrap()
}

async fn until_metric(hub: &Hub, name: &str, value: i64) {
    until(&format!("{name} {value}"), async || metric(hub, name) == value).await;
}

fn lines(hub: &Hub, text: &str) -> usize {
    hub.log().lines().filter(|line| line.contains(text)).count()
}

/// With topics of a Kafka that is not there: the settings are compared all the same.
fn on(postgres: &Postgres, topics: &str, own: &str) -> Hub {
    Hub::start_with(&[
        &format!("store.url={}", postgres.url()),
        "feeds.kafka.brokers=127.0.0.1:1",
        "feeds.kafka.required=false",
        &format!("feeds.kafka.topics={topics}"),
        &format!("feeds.kafka.own_topics={own}"),
        "feeds.kafka.produce_to=a",
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hubs_count_each_other_and_say_once_which_settings_differ() {
    let postgres = Postgres::start();
    let one = on(&postgres, "a,b", "news");
    let mut two = on(&postgres, "b,a", "news");
    for hub in [&one, &two] {
        until_metric(hub, "hubs_live", 2).await;
        assert_eq!(metric(hub, "hubs_different"), 0);
    }
    assert!(two.sigterm().success());
    until_metric(&one, "hubs_live", 1).await;
    assert_eq!(lines(&one, "another value of"), 0, "{}", one.log());

    let mut three = on(&postgres, "a", "news,more");
    let differs = "has another value of feeds.kafka.own_topics, feeds.kafka.topics: give all hubs";
    for hub in [&one, &three] {
        until_metric(hub, "hubs_different", 1).await;
        until("a warning", async || lines(hub, differs) == 1).await;
    }
    // One that is killed is gone too, if later.
    three.kill9();
    until_metric(&one, "hubs_live", 1).await;
    until_metric(&one, "hubs_different", 0).await;
    until("the end of it", async || lines(&one, "hubs of this log agree again") == 1).await;
    assert_eq!(lines(&one, differs), 1, "{}", one.log());

    // Its row is deleted in the end.
    let database = postgres.client().await;
    let age = "UPDATE spreadly_hubs SET seen = seen - interval '1 hour'
        WHERE seen < clock_timestamp() - interval '8 seconds'";
    assert_eq!(database.execute(age, &[]).await.unwrap(), 1);
    let rows = async || {
        let count = database.query_one("SELECT count(*) FROM spreadly_hubs", &[]).await.unwrap();
        count.get::<_, i64>(0)
    };
    until("one row", async || rows().await == 1).await;
}

#[tokio::test]
async fn a_hub_of_another_release_and_a_topic_that_nobody_reads_are_reported() {
    let postgres = Postgres::start();
    let hub = Hub::start_with(&[&format!("store.url={}", postgres.url())]);
    until_metric(&hub, "hubs_live", 1).await;
    let database = postgres.client().await;
    // As one of another release writes them, which lives for a while; and as one that has gone.
    let rows = "INSERT INTO spreadly_hubs (reader, host, release, settings, seen)
            VALUES (1, 'elsewhere', '0.0.1', '{}', clock_timestamp() + interval '1 hour');
        INSERT INTO spreadly_sources (feed, reader, epoch, position)
            VALUES ('kafka:old/0', 2, 1, 1), ('kafka:old/1', 2, 1, 1)";
    database.batch_execute(rows).await.unwrap();
    until_metric(&hub, "hubs_different", 1).await;
    until_metric(&hub, "kafka_topics_unread", 1).await;
    let release = "the hub on elsewhere is of release 0.0.1 and this one of ";
    until("a warning", async || lines(&hub, release) == 1).await;
    until("a warning", async || lines(&hub, "no hub reads the topic") == 1).await;
    database.batch_execute("DELETE FROM spreadly_sources").await.unwrap();
    until_metric(&hub, "kafka_topics_unread", 0).await;
    assert_eq!(lines(&hub, release), 1, "{}", hub.log());
    // Of more rows than any database has hubs, a part is looked at.
    let many = "INSERT INTO spreadly_hubs (reader, host, release, settings, seen)
        SELECT -reader, 'many', '0.0.1', '{}', clock_timestamp() + interval '1 hour'
        FROM generate_series(1, 1100) AS new (reader)";
    database.execute(many, &[]).await.unwrap();
    until_metric(&hub, "hubs_live", 1 + 1_000).await;
}

/// The database's clock is replaced for the hub's role, as a test can't change a machine's.
#[tokio::test]
async fn a_clock_that_differs_from_the_database_is_reported_and_measured() {
    let postgres = Postgres::start();
    let database = postgres.client().await;
    let slow = "CREATE SCHEMA clocks;
        CREATE FUNCTION clocks.clock_timestamp() RETURNS timestamptz LANGUAGE sql
            AS $$ SELECT pg_catalog.clock_timestamp() - interval '5 seconds' $$;
        CREATE ROLE hub LOGIN SUPERUSER;
        ALTER ROLE hub SET search_path = clocks, pg_catalog, public";
    database.batch_execute(slow).await.unwrap();
    let right = Hub::start_with(&[&format!("store.url={}", postgres.url())]);
    let url = postgres.url().replace("spreadly@", "hub@");
    let hub = Hub::start_with(&[&format!("store.url={url}")]);
    let off = |hub: &Hub| metric(hub, "clock_difference_microseconds");
    until("a difference", async || off(&hub) > 4_000_000).await;
    let warning = "ahead of the database's: let both take the time from one server";
    until("a warning", async || lines(&hub, warning) == 1).await;
    until_metric(&right, "hubs_live", 2).await;
    assert!(off(&right).abs() < 1_000_000, "{}", off(&right));
    assert_eq!(lines(&right, warning), 0, "{}", right.log());
    // What it measured is there for people.
    let measured = "SELECT count(*) FROM spreadly_hubs WHERE clock_micros > 4000000";
    until("its row", async || {
        database.query_one(measured, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    database.batch_execute("DROP FUNCTION clocks.clock_timestamp()").await.unwrap();
    until("the end of it", async || lines(&hub, "hubs of this log agree again") == 1).await;
}
