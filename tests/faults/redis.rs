//! A real Redis as the hub's cache, and all that can happen to it: it is killed, stopped, emptied
//! and made to lie. A start from it is a start from the log, only faster, and no push waits for it.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::client::PATIENCE;
use crate::harness::follower::{self, Applied};
use crate::harness::redis::{RedisCluster, Watched};
use crate::harness::{Client, Follower, Hub, Redis, mark, market};

const MARKET: &str = "XBT-USD";
const FILE: &str = "book.ndjson";
const DEPTH: u32 = 1_000;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

fn with_cache(url: &str) -> Hub {
    let cache = format!("cache.url={url}");
    Hub::start_with(&[&cache, "cache.interval_ms=20", "cache.deadline_ms=500"])
}

/// The market with so many steps.
async fn with_steps(url: &str, steps: u64) -> Hub {
    let hub = with_cache(url);
    hub.append_lines(FILE, &market::beginning(MARKET));
    step(&hub, 0..steps).await;
    hub
}

/// Writes steps and waits until the hub has them.
async fn step(hub: &Hub, steps: std::ops::Range<u64>) {
    let lines: Vec<_> = steps.clone().map(|number| market::step(MARKET, number)).collect();
    hub.append_lines(FILE, &lines);
    let began = Instant::now();
    while book(hub).bids != market::bids_after(steps.end) {
        assert!(began.elapsed() < PATIENCE, "the steps never came");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// The book as a query answers it, with its checksum held against it; empty where there is none.
fn book(hub: &Hub) -> Follower {
    let query = format!(
        r#"{{ orderBook(market: "{MARKET}", depth: {DEPTH}) {{ checksum
            bids {{ price size }} asks {{ price size }} }} }}"#
    );
    let book = hub.query(&query)["orderBook"].clone();
    let mut copy = Follower::new(1, 8);
    if !book.is_null() {
        copy.apply_snapshot(&book);
        assert_eq!(book["checksum"], copy.checksum());
    }
    copy
}

/// Epoch and sequence of the market's book.
fn position(hub: &Hub) -> (String, String) {
    let query = format!(r#"{{ orderBook(market: "{MARKET}") {{ epoch sequence }} }}"#);
    let book = hub.query(&query)["orderBook"].clone();
    let text = |key: &str| book[key].as_str().unwrap().to_owned();
    (text("epoch"), text("sequence"))
}

/// The book is what so many steps make of it.
fn assert_book(hub: &Hub, steps: u64) {
    assert_eq!(book(hub).bids, market::bids_after(steps));
}

/// A number of `/metrics` by its whole name.
fn metric(hub: &Hub, name: &str) -> u64 {
    let (_, page) = hub.admin_page("/metrics");
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}: {page}")).parse().unwrap()
}

async fn until_metric(hub: &Hub, name: &str, what: impl Fn(u64) -> bool) {
    let began = Instant::now();
    while !what(metric(hub, name)) {
        assert!(began.elapsed() < PATIENCE, "{name} is {}", metric(hub, name));
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// States that the last start went on from, and those that it would not.
fn start_from(hub: &Hub) -> (u64, u64) {
    let restored = metric(hub, "spreadly_cache_states_restored_total");
    (restored, metric(hub, "spreadly_cache_states_refused_total"))
}

/// A client that follows the book, with its first snapshot.
async fn following(hub: &Hub) -> (Client, Follower) {
    let mut client = Client::knowing(hub.address(), MARKET).await;
    client.subscribe("book", &follower::subscription(MARKET, DEPTH, None)).await;
    let mut copy = Follower::new(1, 8);
    copy.apply(&client.message().await);
    (client, copy)
}

/// Takes frames until the copy holds so many steps.
async fn until_steps(client: &mut Client, copy: &mut Follower, steps: u64) {
    while copy.bids != market::bids_after(steps) {
        copy.apply(&client.message().await);
    }
}

/// Comes back to a hub after the copy's cursor, whose chain stays whole.
async fn resume(hub: &Hub, copy: &mut Follower, steps: u64) {
    let mut client = Client::knowing(hub.address(), MARKET).await;
    let query = follower::subscription(MARKET, DEPTH, copy.cursor.as_deref());
    client.subscribe("book", &query).await;
    let first = copy.apply(&client.message().await);
    assert!(matches!(first, Applied::Delta { .. }), "{first:?}");
    until_steps(&mut client, copy, steps).await;
    assert_eq!(copy.snapshots, 1);
}

/// How often the hub said so in its log.
fn said(hub: &Hub, what: &str) -> usize {
    hub.log().matches(what).count()
}

const GONE: &str = "the cache does not answer: a start would be slower";

#[tokio::test]
async fn a_hub_goes_on_from_the_cache_and_who_comes_back_from_before_it_has_its_chain_whole() {
    let redis = Redis::start();
    let mut hub = with_steps(&redis.url(), 10).await;
    let (client, mut copy) = following(&hub).await;
    drop(client);
    step(&hub, 10..400).await;
    let (epoch, sequence) = position(&hub);
    redis.until_kept(MARKET, &sequence);
    assert_eq!(redis.kept(MARKET, "state", "epoch"), epoch);
    hub.restart();
    assert_eq!(start_from(&hub), (1, 0));
    // Nothing but the market's definition.
    assert!(hub.log().contains("replayed=1 from_cache=1"), "{}", hub.log());
    assert_eq!(position(&hub), (epoch, sequence));
    assert_book(&hub, 400);
    resume(&hub, &mut copy, 400).await;
}

#[tokio::test]
async fn what_the_log_has_after_the_cache_is_read_from_it() {
    let redis = Redis::start();
    let mut hub = with_steps(&redis.url(), 10).await;
    let old = position(&hub).1;
    redis.until_kept(MARKET, &old);
    let (client, mut copy) = following(&hub).await;
    drop(client);
    let state = format!("spreadly:{{{MARKET}}}:state");
    let kept_old = format!("spreadly:{{{MARKET}}}:old");
    redis.ask(&["copy", &state, &kept_old]);
    step(&hub, 10..30).await;
    redis.until_kept(MARKET, &position(&hub).1);
    hub.kill9();
    // It lies: an older position.
    redis.ask(&["copy", &kept_old, &state, "replace"]);
    hub.restart();
    assert_eq!(start_from(&hub), (1, 0));
    assert!(hub.log().contains("replayed=21 from_cache=1"), "{}", hub.log());
    assert_book(&hub, 30);
    resume(&hub, &mut copy, 30).await;
    redis.until_kept(MARKET, &position(&hub).1);
}

#[tokio::test]
async fn a_value_that_was_altered_or_is_no_value_of_ours_is_not_used_and_the_next_event_mends_it() {
    let redis = Redis::start();
    let mut hub = with_steps(&redis.url(), 10).await;
    let key = format!("spreadly:{{{MARKET}}}:state");
    let alter = |field: &'static str, to: &'static str| {
        vec!["hset".to_owned(), key.clone(), field.to_owned(), to.to_owned()]
    };
    let lies = [
        vec![alter("state", "{}")],
        vec![alter("sequence", "3")],
        vec![alter("sequence", "999999999999")],
        vec![alter("sequence", "no number")],
        vec![alter("epoch", "0000000000000001")],
        vec![alter("log", "0000000000000001")],
        vec![alter("topic", "book:ERG-USD")],
        vec![vec!["hdel".to_owned(), key.clone(), "fingerprint".to_owned()]],
        vec![
            vec!["del".to_owned(), key.clone()],
            vec!["set".to_owned(), key.clone(), "1".to_owned()],
        ],
    ];
    for (steps, lie) in (10..).zip(&lies) {
        redis.until_kept(MARKET, &position(&hub).1);
        hub.kill9();
        for command in lie {
            let command: Vec<_> = command.iter().map(String::as_str).collect();
            redis.ask(&command);
        }
        hub.restart();
        assert_eq!(start_from(&hub), (0, 1), "{lie:?}");
        assert_book(&hub, steps);
        step(&hub, steps..steps + 1).await;
    }
    redis.until_kept(MARKET, &position(&hub).1);
}

/// Copies a stopped hub's log and its feed into the folder of another hub that is stopped. What is
/// left there goes first: SQLite would apply its write-ahead log to the copy.
fn copy_log(from: &Path, to: &Path) {
    std::fs::remove_dir_all(to.join("data")).unwrap();
    std::fs::create_dir_all(to.join("data")).unwrap();
    for folder in ["data", "feeds"] {
        for file in std::fs::read_dir(from.join(folder)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(folder).join(file.file_name())).unwrap();
        }
    }
    mark::forge(&to.join("data/spreadly.db"));
}

#[tokio::test]
async fn hubs_of_one_log_share_it_and_an_older_position_never_overwrites_a_newer_one() {
    let redis = Redis::start();
    let mut one = with_steps(&redis.url(), 10).await;
    one.sigterm();
    let mut other = with_cache(&redis.url());
    other.kill9();
    copy_log(one.folder(), other.folder());
    one.restart();
    step(&one, 10..30).await;
    let newest = position(&one).1;
    redis.until_kept(MARKET, &newest);
    one.kill9();
    // The other's log ends where the first one's was when it was copied.
    other.restart();
    assert_eq!(start_from(&other), (0, 1));
    assert_eq!(said(&other, "it is ahead of the log"), 1);
    assert_book(&other, 10);
    until_metric(&other, "spreadly_cache_writes_older_total", |older| older > 0).await;
    assert_eq!(redis.kept(MARKET, "state", "sequence"), newest);
    // With the whole log it starts from what the first one kept.
    other.kill9();
    copy_log(one.folder(), other.folder());
    other.restart();
    assert_eq!(start_from(&other), (1, 0));
    assert_book(&other, 30);
}

#[tokio::test]
async fn a_state_whose_last_event_the_log_lost_is_not_used() {
    let redis = Redis::start();
    let mut hub = with_steps(&redis.url(), 10).await;
    redis.until_kept(MARKET, &position(&hub).1);
    let state = format!("spreadly:{{{MARKET}}}:state");
    let kept_ahead = format!("spreadly:{{{MARKET}}}:ahead");
    redis.ask(&["copy", &state, &kept_ahead]);
    hub.kill9();
    // As a power cut does. The file's progress stays, so the line does not come again.
    let log = rusqlite::Connection::open(hub.folder().join("data/spreadly.db")).unwrap();
    let newest = "DELETE FROM events WHERE sequence = (SELECT max(sequence) FROM events)";
    assert_eq!(log.execute(newest, []).unwrap(), 1);
    drop(log);
    mark::forge(&hub.folder().join("data/spreadly.db"));
    hub.restart();
    assert_eq!(start_from(&hub), (0, 1));
    assert_eq!(said(&hub, "it is ahead of the log"), 1);
    assert_book(&hub, 9);
    // Then others come after it, under later numbers.
    hub.append_lines(FILE, &[market::delta(MARKET, &[("1.0", "1")], &[])]);
    let began = Instant::now();
    while book(&hub).bids.len() < 13 {
        assert!(began.elapsed() < PATIENCE, "the change never came");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    let before = book(&hub);
    redis.until_kept(MARKET, &position(&hub).1);
    hub.kill9();
    redis.ask(&["copy", &kept_ahead, &state, "replace"]);
    hub.restart();
    assert_eq!(start_from(&hub), (0, 1));
    assert_eq!(said(&hub, "the log does not have its last event"), 1);
    assert_eq!(book(&hub), before);
}

#[tokio::test]
async fn a_state_of_another_log_is_not_used() {
    let redis = Redis::start();
    let mut one = with_steps(&redis.url(), 10).await;
    redis.until_kept(MARKET, &position(&one).1);
    one.kill9();
    // Its last event has a number that the first one's log has as well.
    let other = with_steps(&redis.url(), 5).await;
    redis.until(&position(&other).0, &["hget", &format!("spreadly:{{{MARKET}}}:state"), "epoch"]);
    redis.until_kept(MARKET, &position(&other).1);
    drop(other);
    one.restart();
    assert_eq!(start_from(&one), (0, 1));
    assert_book(&one, 10);
}

#[tokio::test]
async fn pushes_do_not_wait_for_a_cache_that_is_stopped_killed_or_emptied() {
    let mut redis = Redis::start();
    let hub = with_steps(&redis.url(), 1).await;
    let (mut client, mut copy) = following(&hub).await;
    redis.until_kept(MARKET, &position(&hub).1);
    assert_eq!(said(&hub, GONE), 0);

    redis.signal("-STOP");
    for steps in 1..40 {
        step(&hub, steps..steps + 1).await;
        until_steps(&mut client, &mut copy, steps + 1).await;
    }
    until_metric(&hub, "spreadly_cache_up", |up| up == 0).await;
    until_metric(&hub, "spreadly_cache_failures_total", |failures| failures > 3).await;
    assert_eq!(said(&hub, GONE), 1, "once an outage");
    assert_eq!(hub.admin_page("/readyz").0, 200);
    step(&hub, 40..41).await;
    until_steps(&mut client, &mut copy, 41).await;
    redis.signal("-CONT");
    let began = Instant::now();
    while said(&hub, "the cache answers again") == 0 {
        assert!(began.elapsed() < PATIENCE, "it never came back");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    assert_eq!(metric(&hub, "spreadly_cache_up"), 1);
    redis.until_kept(MARKET, &position(&hub).1);
    // Those of before are closed; one is redis-cli's own.
    let connections = || redis.ask(&["client", "list"]).lines().count();
    let began = Instant::now();
    while connections() != 2 {
        assert!(began.elapsed() < PATIENCE, "{} connections", connections());
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }

    redis.kill9();
    step(&hub, 41..42).await;
    until_steps(&mut client, &mut copy, 42).await;
    until_metric(&hub, "spreadly_cache_up", |up| up == 0).await;
    step(&hub, 42..43).await;
    until_steps(&mut client, &mut copy, 43).await;
    redis.restart();
    redis.until_kept(MARKET, &position(&hub).1);
    assert_eq!(said(&hub, GONE), 2);

    redis.ask(&["flushall"]);
    step(&hub, 43..44).await;
    until_steps(&mut client, &mut copy, 44).await;
    redis.until_kept(MARKET, &position(&hub).1);
    assert_eq!(copy.snapshots, 1);
}

#[tokio::test]
async fn a_hub_starts_without_a_cache_that_is_empty_stopped_or_dead() {
    let mut redis = Redis::start();
    let mut hub = with_steps(&redis.url(), 30).await;
    let sequence = position(&hub).1;
    redis.until_kept(MARKET, &sequence);
    hub.kill9();
    redis.ask(&["flushall"]);
    hub.restart();
    assert_eq!(start_from(&hub), (0, 0));
    assert_book(&hub, 30);
    let alone = "starting from the log alone";
    assert_eq!(said(&hub, alone), 0);

    hub.kill9();
    redis.signal("-STOP");
    hub.restart();
    assert_book(&hub, 30);
    assert_eq!(said(&hub, alone), 1);
    redis.signal("-CONT");
    until_metric(&hub, "spreadly_cache_up", |up| up == 1).await;

    hub.kill9();
    redis.kill9();
    hub.restart();
    assert_book(&hub, 30);
    assert_eq!(said(&hub, alone), 2);
    redis.restart();
    redis.until_kept(MARKET, &sequence);
}

#[tokio::test]
async fn a_state_from_before_blocks_were_undone_is_not_used_and_what_is_left_is_kept() {
    let redis = Redis::start();
    let mut hub = with_steps(&redis.url(), 10).await;
    let at_height = market::step(MARKET, 10).replacen('{', r#"{"height":7,"#, 1);
    // It is in no block, so no rollback removes it.
    hub.append_lines(FILE, &[at_height, market::step(MARKET, 11)]);
    hub.until_feed("files", "the block", |feed| feed["eventsTotal"] == "14").await;
    let before = position(&hub);
    redis.until_kept(MARKET, &before.1);
    let state = format!("spreadly:{{{MARKET}}}:state");
    let kept_before = format!("spreadly:{{{MARKET}}}:before");
    redis.ask(&["copy", &state, &kept_before]);
    hub.append_lines(FILE, &[r#"{"kind":"block.reverted","height":7}"#]);
    hub.until_feed("files", "the undoing", |feed| feed["eventsTotal"] == "15").await;
    let left = book(&hub);
    assert!(left.bids != market::bids_after(12) && left.bids != market::bids_after(10));
    let after = position(&hub);
    assert_ne!(after.0, before.0);
    // Its content went back, its position did not.
    redis.until_kept(MARKET, &after.1);
    assert_eq!(redis.kept(MARKET, "state", "epoch"), after.0);
    hub.restart();
    assert_eq!(start_from(&hub), (1, 0));
    assert_eq!(position(&hub), after);
    assert_eq!(book(&hub), left);

    hub.kill9();
    redis.ask(&["copy", &kept_before, &state, "replace"]);
    hub.restart();
    assert_eq!(start_from(&hub), (0, 1));
    assert_eq!(position(&hub), after);
    assert_eq!(book(&hub), left);
    redis.until_kept(MARKET, &after.1);
}

#[tokio::test]
async fn a_book_of_single_orders_is_kept_with_its_orders() {
    let redis = Redis::start();
    let mut hub = with_cache(&redis.url());
    let order = |number: usize| {
        let price = 100 + number % 50;
        format!(
            r#"{{"kind":"order.placed","market":"{MARKET}","order":"o{number}","account":"9a","side":"BUY","type":"LIMIT","price":"{price}.0","size":"1"}}"#
        )
    };
    hub.append_lines(FILE, &[market::definition(MARKET)]);
    // A checkpoint is made of 2,000 events and more.
    let lines: Vec<_> = (0..1_990).map(order).collect();
    hub.append_lines(FILE, &lines);
    hub.until_feed("files", "the orders", |feed| feed["eventsTotal"] == "1991").await;
    let (client, mut copy) = following(&hub).await;
    drop(client);
    let lines: Vec<_> = (1_990..2_100).map(order).collect();
    hub.append_lines(FILE, &lines);
    hub.until_feed("files", "all orders", |feed| feed["eventsTotal"] == "2101").await;
    redis.until("orders:XBT-USD", &["hget", &format!("spreadly:{{{MARKET}}}:state"), "topic"]);
    let cancel = r#"{"kind":"order.canceled","order":"o5"}"#;
    let book = |hub: &Hub| {
        let query = format!(
            r#"{{ orderBook(market: "{MARKET}", depth: 100) {{ sequence checksum bids {{ price size orders }} }} }}"#
        );
        hub.query(&query)["orderBook"].clone()
    };
    let before = book(&hub);
    hub.restart();
    assert_eq!(start_from(&hub), (1, 0));
    assert_eq!(book(&hub), before);
    let mut client = Client::knowing(hub.address(), MARKET).await;
    let query = follower::subscription(MARKET, DEPTH, copy.cursor.as_deref());
    client.subscribe("book", &query).await;
    let first = copy.apply(&client.message().await);
    assert_eq!(first, Applied::Delta { merged_events: 110 });
    // The order is known: it can be canceled.
    hub.append_lines(FILE, &[cancel]);
    assert_eq!(copy.apply(&client.message().await), Applied::Delta { merged_events: 1 });
    assert_eq!(hub.feed_status("files")["refusedTotal"], "0");
}

#[tokio::test]
async fn other_programs_find_the_last_trades_and_the_ticker_with_their_position() {
    let redis = Redis::start();
    let hub = with_steps(&redis.url(), 1).await;
    let trades: Vec<_> = (1..=105)
        .map(|number| {
            format!(
                r#"{{"kind":"trade","market":"{MARKET}","id":"t{number}","price":"100.5","size":"{number}","takerSide":"BUY"}}"#
            )
        })
        .collect();
    hub.append_lines(FILE, &trades);
    hub.until_feed("files", "the trades", |feed| feed["eventsTotal"] == "108").await;
    let query =
        format!(r#"{{ trades(market: "{MARKET}", first: 1000) {{ nodes {{ id sequence }} }} }}"#);
    let nodes = hub.query(&query)["trades"]["nodes"].as_array().unwrap().clone();
    let last = nodes[104]["sequence"].as_str().unwrap();
    redis.until(last, &["hget", &format!("spreadly:{{{MARKET}}}:recent"), "sequence"]);
    assert_eq!(redis.kept(MARKET, "recent", "epoch"), position(&hub).0);
    let kept: Value = serde_json::from_str(&redis.kept(MARKET, "recent", "trades")).unwrap();
    let cached: Vec<_> = kept
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (&one["event"]["id"], &one["sequence"]))
        .collect();
    let expected: Vec<_> = nodes[5..].iter().map(|one| (&one["id"], &one["sequence"])).collect();
    assert_eq!(cached, expected);
    let ticker: Value = serde_json::from_str(&redis.kept(MARKET, "recent", "ticker")).unwrap();
    assert_eq!(ticker["last"]["price"], "100.5");
    assert_eq!(ticker["last"]["size"], "105.00000000");
    assert_eq!(ticker["trades"], 105);
    assert_eq!(ticker["ask"], json!({ "price": "101.0", "size": "1.00000000" }));
}

#[tokio::test]
async fn markets_are_spread_over_a_cluster_a_start_finds_them_all_and_a_node_may_go_and_come() {
    let mut cluster = RedisCluster::start();
    let mut hub = with_cache(&cluster.url());
    let markets: Vec<_> = (0..12).map(|number| format!("M{number}-USD")).collect();
    for market in &markets {
        hub.append_lines(&format!("{market}.ndjson"), &market::beginning(market));
    }
    hub.until_feed("files", "all markets", |feed| feed["eventsTotal"] == "24").await;
    let asked = |hub: &Hub, market: &str| {
        let query = format!(
            r#"{{ orderBook(market: "{market}") {{ sequence checksum bids {{ price size }} }} }}"#
        );
        hub.query(&query)["orderBook"].clone()
    };
    let before: Vec<_> = markets.iter().map(|market| asked(&hub, market)).collect();
    for (market, book) in markets.iter().zip(&before) {
        cluster.nodes[0].until_kept(market, book["sequence"].as_str().unwrap());
    }
    let sizes: Vec<_> = cluster.nodes.iter().map(|node| node.ask(&["dbsize"])).collect();
    assert!(sizes.iter().all(|size| size != "0"), "{sizes:?}");
    hub.restart();
    assert_eq!(start_from(&hub), (12, 0));
    let after: Vec<_> = markets.iter().map(|market| asked(&hub, market)).collect();
    assert_eq!(after, before);

    cluster.nodes[1].kill9();
    for market in &markets {
        hub.append_lines(&format!("{market}.ndjson"), &[market::step(market, 0)]);
    }
    hub.until_feed("files", "all steps", |feed| feed["eventsTotal"] == "12").await;
    until_metric(&hub, "spreadly_cache_up", |up| up == 0).await;
    cluster.nodes[1].restart();
    for market in &markets {
        let sequence = asked(&hub, market)["sequence"].as_str().unwrap().to_owned();
        cluster.nodes[0].until_kept(market, &sequence);
    }
}

#[tokio::test]
async fn a_hub_goes_on_with_the_server_that_sentinels_made_the_master() {
    let mut watched = Watched::start();
    let mut hub = with_steps(&watched.url(), 10).await;
    watched.master.until_kept(MARKET, &position(&hub).1);
    let (mut client, mut copy) = following(&hub).await;
    watched.master.kill9();
    step(&hub, 10..20).await;
    until_steps(&mut client, &mut copy, 20).await;
    watched.until_failed_over();
    step(&hub, 20..30).await;
    until_steps(&mut client, &mut copy, 30).await;
    watched.replica.until_kept(MARKET, &position(&hub).1);
    assert_eq!(metric(&hub, "spreadly_cache_up"), 1);
    hub.restart();
    assert_eq!(start_from(&hub), (1, 0));
    assert_book(&hub, 30);
}

#[test]
fn a_password_is_used_and_never_shown() {
    let redis = Redis::start_with(&["--requirepass", "secret"]);
    let url = redis.url().replace("//", "//:secret@");
    let hub = with_cache(&url);
    hub.append_lines(FILE, &market::beginning(MARKET));
    let began = Instant::now();
    while metric(&hub, "spreadly_cache_writes_total") == 0 {
        assert!(began.elapsed() < PATIENCE, "nothing was written");
    }
    assert!(!hub.log().contains("secret"), "{}", hub.log());
    let (_, page) = hub.admin_page("/metrics");
    assert!(!page.contains("secret"));
}
