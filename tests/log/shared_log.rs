//! Several hubs on one log in a real PostgreSQL: they publish the same under the same
//! positions, whichever of them brought it in, and a client may come back to any of them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::hub::append;
use crate::harness::postgres::BACK_TO_TWO_ROWS;
use crate::harness::{
    Client, Follower, Hub, Listener, Postgres, Seen, follower, http, loud, market, until,
};

const TOPICS: u64 = 3;
const BOOK: &str = "HOP-USD";
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// How much of a storm: `make test`'s, or `make soak`'s.
#[derive(Clone, Copy)]
struct Size {
    clients: usize,
    /// Of all clients together, at least.
    hops: usize,
    events: u64,
    rounds: u64,
}

fn size() -> Size {
    match std::env::var_os("SPREADLY_SOAK") {
        Some(_) => Size { clients: 200, hops: 1_000, events: 3_000, rounds: 20 },
        None => Size { clients: 24, hops: 120, events: 450, rounds: 3 },
    }
}

fn on(postgres: &Postgres) -> Hub {
    Hub::start_with(&[&format!("store.url={}", postgres.url())])
}

fn message(topic: u64, id: &str) -> String {
    json!({"kind": "message", "topic": format!("t{topic}"), "data": id}).to_string()
}

async fn publish(hub: SocketAddr, topic: &str, data: &str) -> Value {
    let query = format!(
        r#"mutation {{ publish(topic: "{topic}", data: "{data}") {{ epoch sequence cursor }} }}"#
    );
    tokio::task::spawn_blocking(move || http::post(hub, &json!({ "query": query })).json())
        .await
        .unwrap()
}

/// Follows the book at one hub after the other until it is as these steps leave it; how often it
/// went.
async fn hop_in_the_book(hubs: [SocketAddr; 2], steps: u64) -> usize {
    let mut copy = Follower::new(1, 8);
    let wanted = market::bids_after(steps);
    let mut hops = 0;
    while copy.bids != wanted {
        let mut client = Client::reconnected(hubs[hops % 2]).await;
        let query = follower::subscription(BOOK, 25, copy.cursor.as_deref());
        client.try_subscribe("book", &query).await;
        for _ in 0..1 + hops % 7 {
            match client.seen().await {
                Seen::Message(message) => drop(copy.apply(&message)),
                Seen::Closed(1012 | 1013, _) | Seen::Cut => break,
                Seen::Closed(code, reason) => panic!("{code} {reason}"),
            }
            if copy.bids == wanted {
                break;
            }
        }
        hops += 1;
    }
    assert_eq!(copy.snapshots, 1, "a hub could not go on after another's cursor");
    hops
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_hop_between_hubs_miss_nothing_while_all_of_them_are_restarted() {
    let Size { clients, hops, events, .. } = size();
    let postgres = Postgres::start();
    let log = format!("store.url={}", postgres.url());
    let begin = || Hub::start_with(&[&log, "server.drain_ms=300"]);
    let (mut one, mut two) = (begin(), begin());
    let hubs = [one.address(), two.address()];
    one.append_lines("book.ndjson", &market::beginning(BOOK));
    drop(Client::knowing(two.address(), BOOK).await);
    // Of each topic; as many lines of a file as rows of somebody else.
    let each = events / TOPICS / 2;
    let enough = usize::try_from(each * 2).unwrap();
    let mut listeners = Vec::new();
    for client in 0..clients {
        let topic = format!("t{}", client as u64 % TOPICS);
        let mut listener = Listener::begin(&topic, hubs[client % 2]).await;
        let hops = hops.div_ceil(clients);
        listeners.push(tokio::spawn(async move {
            let hopped = listener.hop(&hubs, enough, hops, client as u64).await;
            (listener, hopped)
        }));
    }
    let book = tokio::spawn(hop_in_the_book(hubs, each));
    let (lines, steps) = (one.feed("lines.ndjson"), one.feed("book.ndjson"));
    let database = postgres.client().await;
    let writing = tokio::spawn(async move {
        for number in 0..each {
            for topic in 0..TOPICS {
                let line = message(topic, &format!("row {number}"));
                let insert = "INSERT INTO events (payload) VALUES ($1::text::json)";
                database.execute(insert, &[&line]).await.unwrap();
                append(&lines, &[message(topic, &format!("line {number}"))]);
            }
            append(&steps, &[market::step(BOOK, number)]);
            // So that hubs go in the middle of it.
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    });
    for hub in [&mut one, &mut two] {
        let there = hub.published("t0").len();
        let goes_on = async || writing.is_finished() || hub.published("t0").len() > there + 4;
        until("more", goes_on).await;
        assert!(hub.sigterm().success());
        hub.restart();
    }
    writing.await.unwrap();
    let mut hopped = 0;
    for listener in listeners {
        let (listener, own) = listener.await.unwrap();
        hopped += own;
        let received: BTreeSet<&str> =
            listener.received.iter().map(|data| data.as_str().unwrap()).collect();
        assert_eq!((received.len(), listener.received.len()), (enough, enough));
    }
    let in_the_book = book.await.unwrap();
    loud::say(&format!("{hopped} hops of {clients} clients, {in_the_book} in the book: each once"));
    assert!(hopped >= hops);
    for topic in 0..TOPICS {
        let topic = format!("t{topic}");
        assert_eq!(one.positions(&topic), two.positions(&topic));
    }
}

/// What one hub is asked to write, all hubs publish under the same position.
#[tokio::test]
async fn a_mutation_is_answered_with_the_position_that_every_hub_gives_it() {
    let postgres = Postgres::start();
    let (one, two) = (on(&postgres), on(&postgres));
    let mut listener = Listener::begin("news", two.address()).await;
    let mut given = Vec::new();
    for (number, hub) in [&one, &two, &one].into_iter().enumerate() {
        let answer = publish(hub.address(), "news", &format!("{number}")).await;
        given.push(answer["data"]["publish"].clone());
    }
    listener.follow(two.address(), 3).await;
    assert_eq!(listener.received, ["0", "1", "2"]);
    let known = one.positions("news");
    assert_eq!(known, two.positions("news"));
    for (event, given) in known.0.iter().zip(&given) {
        assert_eq!(event["sequence"], given["sequence"], "{given}");
    }
    // A bad line of a file names its place there, whichever hub refused it.
    one.append_lines("bad.ndjson", &["{", &market::step("NO-USD", 1)]);
    let feed = one.until_feed("files", "both refusals", |feed| feed["refusedTotal"] == "2").await;
    assert_eq!(feed["lastRefusal"]["source"], "bad.ndjson", "{feed}");
    assert!(feed["lastRefusal"]["place"].as_str().unwrap().contains("line 2"), "{feed}");
}

/// Whatever is killed on the way from a file into the log, each line is there once.
#[tokio::test]
async fn lines_of_a_file_count_once_over_kills_of_the_hub_and_of_the_database() {
    let Size { rounds, .. } = size();
    let postgres = Postgres::start();
    let (mut one, two) = (on(&postgres), on(&postgres));
    const LINES: u64 = 500;
    for round in 0..rounds {
        // Without ids: a line that came twice would be published twice.
        let line = |number| {
            let data = round * LINES + number;
            json!({"kind": "message", "topic": "lines", "data": data}).to_string()
        };
        let there = two.published("lines").len();
        for number in 0..LINES {
            one.append_lines("lines.ndjson", &[line(number)]);
        }
        until("some of them", async || two.published("lines").len() > there).await;
        match round % 3 {
            0 => one.restart(),
            1 => {
                postgres.kill9();
                postgres.restart();
            }
            _ => {
                postgres.kill9();
                one.kill9();
                postgres.restart();
                one.restart();
            }
        }
    }
    let all = usize::try_from(rounds * LINES).unwrap();
    for hub in [&one, &two] {
        until("all of them", async || hub.published("lines").len() >= all).await;
        let published: Vec<u64> =
            hub.published("lines").iter().map(|data| data.as_u64().unwrap()).collect();
        assert!(published.iter().copied().eq(0..rounds * LINES), "lost, doubled or out of order");
    }
}

/// A database that says nothing costs its clients' mutations a clear answer and nobody else
/// anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutation_is_unavailable_at_once_where_no_connection_is_free() {
    let postgres = Postgres::start();
    let log = format!("store.url={}", postgres.url());
    let mut hub =
        Hub::start_with(&[&log, "store.connections=1", "feeds.postgres.deadline_ms=3000"]);
    publish(hub.address(), "news", "before").await;
    until("the first", async || hub.published("news").len() == 1).await;
    postgres.signal_all("-STOP");
    // Takes the only connection, which does not answer.
    let first = tokio::spawn(publish(hub.address(), "news", "first"));
    // One of these may be before it.
    let mut tries = 0;
    let refused = loop {
        let data = format!("try {tries}");
        let answer = publish(hub.address(), "news", &data).await;
        let message = answer["errors"][0]["message"].as_str().unwrap_or_default();
        if message.contains("nothing was written") {
            assert_eq!(answer["errors"][0]["extensions"]["code"], "UNAVAILABLE");
            break data;
        }
        tries += 1;
        assert!(tries < 10, "{answer}");
    };
    hub.until_feed("postgres", "stale", |feed| feed["state"] == "STALE").await;
    // What the replica has is still answered, also by a hub that starts now.
    assert_eq!(hub.published("news"), ["before"]);
    drop(first.await.unwrap());
    hub.restart();
    assert_eq!(hub.published("news"), ["before"]);
    postgres.signal_all("-CONT");
    hub.until_feed("postgres", "live again", |feed| feed["state"] == "LIVE").await;
    publish(hub.address(), "news", "after").await;
    until("the last", async || hub.published("news").last() == Some(&json!("after"))).await;
    let published = hub.published("news");
    // The first may have come through or not; its answer said that it may.
    let first = published.iter().filter(|data| **data == "first").count();
    assert!(first <= 1 && !published.contains(&json!(refused)), "{published:?}");
}

/// A database that was put back from a copy has other rows under the same numbers: a new epoch.
#[tokio::test]
async fn a_hub_whose_log_lost_its_end_begins_a_new_epoch_with_what_is_left() {
    let postgres = Postgres::start();
    let hub = on(&postgres);
    for number in 0..3 {
        publish(hub.address(), "news", &format!("{number}")).await;
    }
    let epoch = hub.query("{ hub { epoch } }")["hub"]["epoch"].clone();
    let database = postgres.client().await;
    let cut = format!(
        "{BACK_TO_TWO_ROWS}
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE application_name = 'spreadly' AND pid <> pg_backend_pid()"
    );
    database.batch_execute(&cut).await.unwrap();
    let replaced = async || {
        let answer = tokio::task::spawn_blocking({
            let address = hub.address();
            move || std::net::TcpStream::connect(address).is_ok()
        });
        answer.await.unwrap() && hub.log().contains("set aside")
    };
    until("a new replica", replaced).await;
    drop(Client::reconnected(hub.address()).await);
    until("what is left", async || hub.published("news") == ["0", "1"]).await;
    assert_ne!(hub.query("{ hub { epoch } }")["hub"]["epoch"], epoch);
    publish(hub.address(), "news", "more").await;
    assert_eq!(hub.published("news"), ["0", "1", "more"]);
    // What was lost is still in the replica that was set aside.
    let aside = std::fs::read_dir(hub.folder().join("data")).unwrap().flatten();
    let aside: Vec<PathBuf> = aside
        .map(|file| file.path())
        .filter(|path| path.to_string_lossy().contains(".of-"))
        .collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(hub.logged(&aside[0], "message:news").len(), 3);
}

/// Going on after a position that it does not have would publish the past again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_lags_its_client_sends_it_elsewhere_and_serves_it_once_it_caught_up() {
    let postgres = Postgres::start();
    let (one, mut two) = (on(&postgres), on(&postgres));
    let mut listener = Listener::begin("news", two.address()).await;
    two.kill9();
    publish(one.address(), "news", "meanwhile").await;
    listener.follow(one.address(), 1).await;
    postgres.signal_all("-STOP");
    // Begins with its replica, which is older than what the client has seen.
    two.restart();
    assert_eq!(two.published("news"), [] as [&str; 0]);
    assert_eq!(listener.connect(two.address()).await.close_code().await, 1013);
    postgres.signal_all("-CONT");
    publish(one.address(), "news", "after").await;
    // Waits at most, however far the hub is by now.
    listener.follow(two.address(), 2).await;
    assert_eq!(listener.received, ["meanwhile", "after"]);
}

/// Two that read one folder would publish its lines twice.
#[tokio::test]
async fn a_folder_that_another_hub_takes_over_is_halted_at_the_first_and_its_lines_count_once() {
    let postgres = Postgres::start();
    let folder = tempfile::tempdir().unwrap();
    let log = format!("store.url={}", postgres.url());
    let watched = format!("feeds.files.path={}", folder.path().display());
    let begin = || Hub::start_with(&[&log, &watched]);
    let file = folder.path().join("lines.ndjson");
    let one = begin();
    append(&file, &[message(0, "first")]);
    until("the first", async || one.published("t0").len() == 1).await;
    let two = begin();
    // The first may still read what comes before the second has taken over.
    let mut lines = vec!["first".to_owned()];
    let halted = loop {
        let line = format!("line {}", lines.len());
        append(&file, &[message(0, &line)]);
        lines.push(line);
        until("it", async || two.published("t0").len() >= lines.len()).await;
        let feed = one.feed_status("files");
        if feed["state"] == "HALTED" {
            break feed;
        }
        assert!(lines.len() < 1_000, "{feed}");
    };
    assert!(halted["reason"].as_str().unwrap().contains("another hub reads"), "{halted}");
    for hub in [&one, &two] {
        until("all", async || hub.published("t0").len() >= lines.len()).await;
        assert_eq!(hub.published("t0"), lines);
    }
}

#[tokio::test]
async fn a_line_of_no_known_market_leaves_the_books_of_its_file_in_doubt_at_every_hub() {
    let postgres = Postgres::start();
    let mut hubs = [on(&postgres), on(&postgres)];
    let (own, other) = (["OWN-A", "OWN-B"], "OTHER-C");
    for market in own {
        hubs[0].append_lines("own.ndjson", &market::beginning(market));
    }
    hubs[0].append_lines("other.ndjson", &market::beginning(other));
    let until_states = async |hubs: &[Hub; 2], expected: [&str; 3]| {
        for hub in hubs {
            let state = |market: &str| {
                let query = format!("{{ orderBook(market: \"{market}\") {{ state }} }}");
                hub.query(&query)["orderBook"]["state"].clone()
            };
            let states = async || [own[0], own[1], other].map(state) == expected.map(Value::from);
            until("the states of the books", states).await;
        }
    };
    let whole = ["LIVE"; 3];
    drop(Client::knowing(hubs[1].address(), other).await);
    drop(Client::knowing(hubs[1].address(), own[1]).await);
    until_states(&hubs, whole).await;
    let step = market::step(own[0], 0);
    // The last one is whole but for its market, whose definition the hub waits for first.
    let faults = ["garbage".to_owned(), step.replace("market", "mxrket"), step.replace("-A", "-X")];
    for fault in &faults {
        hubs[0].append_lines("own.ndjson", &[fault, &market::step(own[1], 1)]);
        until_states(&hubs, ["STALE", "STALE", "LIVE"]).await;
        hubs[1].restart();
        until_states(&hubs, ["STALE", "STALE", "LIVE"]).await;
        let snapshots = own.map(|market| market::beginning(market).remove(1));
        hubs[0].append_lines("own.ndjson", &snapshots);
        until_states(&hubs, whole).await;
    }
    // A line that shows its market concerns that one alone.
    hubs[0].append_lines("own.ndjson", &[step.replace("[[", "[[[")]);
    until_states(&hubs, ["STALE", "LIVE", "LIVE"]).await;
    // The gaps are no events of the feed.
    let counted = |feed: &Value| feed["eventsTotal"] == "15" && feed["refusedTotal"] == "4";
    hubs[0].until_feed("files", "all lines", counted).await;
}
