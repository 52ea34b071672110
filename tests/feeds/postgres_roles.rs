//! Databases as their owners run them: roles with few rights, tables of others, poolers.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::pgbouncer::PgBouncer;
use crate::harness::{Hub, Postgres, http, until};

const NAME: &str = "postgres";

fn row(topic: &str) -> String {
    json!({"kind": "message", "topic": topic, "data": 1}).to_string()
}

fn migrate(url: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spreadly"));
    let folder = tempfile::tempdir().unwrap();
    command.current_dir(folder.path());
    command.args(["migrate", "--set", &format!("store.url={url}")]).output().unwrap()
}

/// The statements that the page has for the owner of the database.
fn documented_grants() -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/how-to/feed-postgres.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, part) = page.split_once("## Roles with few rights").unwrap();
    part.split_once("```sql\n").unwrap().1.split_once("```").unwrap().0.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_whose_role_may_make_no_table_works_on_ready_made_ones() {
    let postgres = Postgres::start();
    let owner = postgres.client().await;
    owner.batch_execute("CREATE ROLE hub LOGIN; CREATE ROLE writer LOGIN").await.unwrap();
    let url = |role: &str| postgres.url().replace("spreadly@", &format!("{role}@"));
    let log = format!("store.url={}", url("hub"));

    // Without tables it waits and says what to do.
    let early = Hub::start_waiting(&[&log]).await;
    let advised = async || early.admin_page("/readyz").1.contains("run `spreadly migrate` once");
    until("what to do", advised).await;

    let made = migrate(&postgres.url());
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(String::from_utf8_lossy(&made.stdout).contains("the tables are made: V1"));
    let again = migrate(&postgres.url());
    assert_eq!(String::from_utf8_lossy(&again.stdout), "the tables are up to date\n");
    owner.batch_execute(&documented_grants()).await.unwrap();
    until("a ready hub", async || early.admin_page("/readyz").0 == 200).await;
    drop(early);

    let mut hub = Hub::start_with(&[&log]);
    for round in 1..=2 {
        hub.append_lines("lines.ndjson", &[row("lines")]);
        let query = r#"mutation { publish(topic: "mutations", data: 1) { sequence } }"#;
        let published = http::post(hub.address(), &json!({"query": query})).json();
        assert!(published["errors"].is_null(), "{published}");
        let (writer, connection) =
            tokio_postgres::connect(&url("writer"), tokio_postgres::NoTls).await.unwrap();
        let driving = tokio::spawn(connection);
        let insert = "INSERT INTO events (payload) VALUES ($1::text::json)";
        writer.execute(insert, &[&row("rows")]).await.unwrap();
        for topic in ["lines", "mutations", "rows"] {
            until(topic, async || hub.published(topic).len() == round).await;
        }
        driving.abort();
        hub.restart();
    }
    let log = hub.log();
    assert!(!log.contains("migration") && !log.contains("brought up to date"), "{log}");
}

#[tokio::test]
async fn a_table_events_of_somebody_else_is_named_and_a_schema_of_the_hub_is_the_remedy() {
    let postgres = Postgres::start();
    let database = postgres.client().await;
    database.batch_execute("CREATE TABLE events (what text)").await.unwrap();
    let url = format!("feeds.postgres.url={}", postgres.url());
    let hub = Hub::start_with(&[&url]);
    let advised = |feed: &Value| {
        feed["reason"].as_str().is_some_and(|own| own.contains("feeds.postgres.schema"))
    };
    hub.until_feed(NAME, "what to do", advised).await;
    drop(hub);
    let hub = Hub::start_with(&[&url, "feeds.postgres.schema=spreadly"]);
    hub.until_feed(NAME, "the feed", |feed| feed["state"] == "LIVE").await;
    let insert = "INSERT INTO spreadly.events (payload) VALUES ($1::text::json)";
    database.execute(insert, &[&row("t")]).await.unwrap();
    hub.until_feed(NAME, "the row", |feed| feed["eventsTotal"] == "1").await;
    let theirs = database.query_one("SELECT count(*) FROM public.events", &[]).await.unwrap();
    assert_eq!(theirs.get::<_, i64>(0), 0);
}

#[tokio::test]
async fn a_pooler_that_shares_sessions_is_refused_by_name_and_one_that_does_not_works() {
    let postgres = Postgres::start();
    let database = postgres.client().await;
    let pooler = PgBouncer::start(&postgres, "transaction").await;
    let hub = Hub::start_with(&[&format!("feeds.postgres.url={}", pooler.url())]);
    let refused = |feed: &Value| {
        feed["reason"].as_str().is_some_and(|own| own.contains("pool_mode = session"))
    };
    hub.until_feed(NAME, "the refusal", refused).await;
    drop(hub);
    let pooler = PgBouncer::start(&postgres, "session").await;
    let hub = Hub::start_with(&[&format!("feeds.postgres.url={}", pooler.url())]);
    hub.until_feed(NAME, "the feed", |feed| feed["state"] == "LIVE").await;
    let insert = "INSERT INTO events (payload) VALUES ($1::text::json)";
    database.execute(insert, &[&row("t")]).await.unwrap();
    hub.until_feed(NAME, "the row", |feed| feed["eventsTotal"] == "1").await;
}

/// One line each, and nothing of a migration.
#[tokio::test]
async fn a_database_that_goes_away_and_comes_back_is_two_lines_of_the_log() {
    let postgres = Postgres::start();
    let hub = Hub::start_with(&[&format!("feeds.postgres.url={}", postgres.url())]);
    hub.until_feed(NAME, "the feed", |feed| feed["state"] == "LIVE").await;
    let lines = |text: &str| hub.log().lines().filter(|line| line.contains(text)).count();
    until("the first line", async || lines("the feed is live feed=postgres") == 1).await;
    postgres.kill9();
    until("a line", async || lines("the feed is not live feed=postgres") == 1).await;
    postgres.restart();
    until("a line", async || lines("the feed is live feed=postgres") == 2).await;
    assert_eq!(lines("the feed is not live"), 1, "{}", hub.log());
    assert_eq!(lines("brought up to date"), 1, "{}", hub.log());
    assert_eq!(lines("the hub starts"), 1, "{}", hub.log());
}
