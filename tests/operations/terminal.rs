//! The terminal client as a process, against the hub as a process.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;

use serde_json::{Value, json};

use crate::harness::client::PATIENCE;
use crate::harness::follower::{self, Applied};
use crate::harness::{Client, Follower, Hub, ReservedPort, market};

const MARKET: &str = "XBT-USD";
/// More than a test ever writes before it looks.
const LINES_AHEAD: usize = 10_000;

fn command(hub: &Hub, document: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spreadly"));
    command.args(["subscribe", document, "--url", &hub.url()]).args(flags);
    command
}

fn run(hub: &Hub, document: &str, flags: &[&str]) -> Output {
    command(hub, document, flags).output().unwrap()
}

fn run_at(url: &str, document: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spreadly"));
    command.args(["subscribe", document, "--url", url]).output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn hub_with_a_book() -> Hub {
    let hub = Hub::start();
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    Client::knowing(hub.address(), MARKET).await;
    hub
}

/// One that runs while the test does other things.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(hub: &Hub, document: &str) -> Self {
        let mut child = command(hub, document, &[])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (said, lines) = mpsc::sync_channel(LINES_AHEAD);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if said.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    fn result(&mut self) -> Value {
        let line = self.lines.recv_timeout(PATIENCE).expect("the client prints something more");
        serde_json::from_str(&line).unwrap()
    }

    /// Applies what it prints until the copy has merged so many events.
    fn follow(&mut self, copy: &mut Follower, merged_events: u64) {
        while copy.merged_events < merged_events {
            let result = self.result();
            copy.apply(&json!({"type": "next", "payload": result}));
            let frame = &result["data"]["orderBook"];
            assert_eq!(result["extensions"]["cursor"], frame["cursor"], "{result}");
        }
        assert_eq!(copy.merged_events, merged_events);
    }

    /// Its exit code after a signal, and what it said on stderr.
    fn signalled(mut self, name: &str) -> (Option<i32>, String) {
        let kill = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(kill.unwrap().success());
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (self.child.wait().unwrap().code(), stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn steps(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| market::step(MARKET, number)).collect()
}

#[tokio::test]
async fn the_terminal_client_goes_on_without_gap_or_double_while_the_hub_is_killed() {
    const KILLS: u64 = 3;
    let mut hub = hub_with_a_book().await;
    let mut client = Running::start(&hub, &follower::subscription(MARKET, 25, None));
    let mut copy = Follower::new(1, 8);
    let first = copy.apply(&json!({"type": "next", "payload": client.result()}));
    assert_eq!(first, Applied::Snapshot { reason: "INITIAL".to_owned() });
    for kill in 0..KILLS {
        let from = kill * 20;
        hub.append_lines("book.ndjson", &steps(from..from + 10));
        client.follow(&mut copy, from + 10);
        hub.kill9();
        hub.append_lines("book.ndjson", &steps(from + 10..from + 20));
        hub.restart();
        client.follow(&mut copy, from + 20);
    }
    assert_eq!(copy.snapshots, 1, "resumed after its cursor, not started again");
    assert_eq!(copy.bids, market::bids_after(KILLS * 20));
    let (code, stderr) = client.signalled("-TERM");
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(
        stderr.matches("going on after the last cursor").count(),
        KILLS as usize,
        "{stderr}"
    );
}

#[tokio::test]
async fn ctrl_c_ends_it_well_and_leaves_nothing_at_the_hub() {
    let hub = hub_with_a_book().await;
    let mut client = Running::start(&hub, &follower::subscription(MARKET, 25, None));
    client.result();
    let (code, stderr) = client.signalled("-INT");
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(hub.log().lines().all(|line| !line.contains("WARN")), "{}", hub.log());
}

#[tokio::test]
async fn so_many_results_as_asked_and_the_next_run_goes_on_after_them() {
    let hub = hub_with_a_book().await;
    let first = run(&hub, &follower::subscription(MARKET, 25, None), &["--count", "1"]);
    assert_eq!(first.status.code(), Some(0));
    let first = lines(&first);
    assert_eq!(first.len(), 1);
    let mut copy = Follower::new(1, 8);
    copy.apply(&json!({"type": "next", "payload": first[0]}));

    hub.append_lines("book.ndjson", &steps(0..3));
    let cursor = first[0]["extensions"]["cursor"].as_str().unwrap();
    let mut rest = 0;
    while rest < 3 {
        let cursor = copy.cursor.clone().unwrap_or_else(|| cursor.to_owned());
        let flags = ["--count", "1", "--after", &cursor];
        let output = run(&hub, &follower::subscription(MARKET, 25, None), &flags);
        let result = lines(&output).pop().unwrap();
        if let Applied::Delta { merged_events } =
            copy.apply(&json!({"type": "next", "payload": result}))
        {
            rest += merged_events;
        }
    }
    assert_eq!((rest, copy.snapshots), (3, 1));
    assert_eq!(copy.bids, market::bids_after(3));
}

#[tokio::test]
async fn a_query_is_one_line_or_many_with_its_fields_in_order() {
    let hub = hub_with_a_book().await;
    let query = "query ($id: ID!) { market(id: $id) { quote id } }";
    let variables = ["--variables", r#"{"id": "XBT-USD"}"#];
    let output = run(&hub, query, &variables);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1);
    assert!(text.starts_with(r#"{"data":{"market":{"quote":"USD","id":"XBT-USD"}}"#), "{text}");

    let output = run(&hub, query, &[&variables[..], &["--pretty"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let expected =
        "    \"market\": {\n      \"quote\": \"USD\",\n      \"id\": \"XBT-USD\"\n    }\n";
    assert!(text.contains(expected), "{text}");
}

#[tokio::test]
async fn what_can_not_be_mended_is_printed_on_stderr_and_exits_with_1() {
    let hub = hub_with_a_book().await;
    let refused = |document: &str, expected: &str| {
        let output = run(&hub, document, &[]);
        let text = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(output.stdout, b"");
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(text.matches("spreadly: ").count(), 1, "reported once, tried once: {text}");
    };
    refused(
        r#"subscription { orderBook(market: "NO-SUCH") { cursor } }"#,
        "spreadly: NOT_FOUND: there is no market \"NO-SUCH\"",
    );
    refused("{ markets { id }", "spreadly: BAD_REQUEST: ");
}

#[tokio::test]
async fn a_close_code_that_is_final_is_not_tried_again() {
    let hub = Hub::start_with(&[
        "limits.message_bytes=2000",
        "limits.message_bytes_before_ack=2000",
        "limits.markets_per_subscription=20",
    ]);
    let long = format!("subscription {{ feedStatus {{ name }} }} #{}", "x".repeat(2_000));
    let output = run(&hub, &long, &[]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("spreadly: closed with 1009: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[tokio::test]
async fn a_reader_that_stops_reading_its_output_ends_it() {
    let hub = hub_with_a_book().await;
    let mut child = command(&hub, &follower::subscription(MARKET, 25, None), &[])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn publish(hub: &Hub, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spreadly"));
    command.arg("publish").args(words).args(["--url", &hub.url()]).output().unwrap()
}

#[tokio::test]
async fn what_a_terminal_publishes_is_received_under_the_position_it_printed() {
    let hub = Hub::start();
    let mut client = Client::connected(hub.address()).await;
    let query = r#"subscription { events(topic: "news") { sequence events { data } } }"#;
    client.subscribe("news", query).await;
    client.message().await;
    let output = publish(&hub, &["news", r#"{"a": [1, "\""]}"#]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let published = &lines(&output)[0]["data"]["publish"];
    let received = &client.message().await["payload"]["data"]["events"];
    assert_eq!(received["events"], json!([{"data": {"a": [1, "\""]}}]));
    assert_eq!(received["sequence"], published["sequence"]);
}

#[tokio::test]
async fn an_event_that_a_terminal_publishes_again_by_its_id_counts_once() {
    let hub = Hub::start();
    let sent = |data| publish(&hub, &["--id", "one", "news", data]);
    let first = lines(&sent("1")).remove(0);
    let again = lines(&sent("1")).remove(0);
    assert_eq!(first["data"]["publish"]["duplicate"], false);
    assert_eq!(again["data"]["publish"]["duplicate"], true);
    assert_eq!(again["data"]["publish"]["sequence"], first["data"]["publish"]["sequence"]);
}

#[tokio::test]
async fn a_topic_or_data_that_can_not_be_published_says_why() {
    let hub = Hub::start();
    let refused = publish(&hub, &["", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("1 to 128 characters"));
    let faulty = publish(&hub, &["news", "hello"]);
    assert_eq!(faulty.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&faulty.stderr).contains("double quotes"));
}

#[test]
fn faults_in_its_arguments_exit_with_2() {
    let code = |flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spreadly"));
        command.args(["subscribe", "{ hub { version } }"]).args(flags);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, stderr) = code(&["--url", "hub"]);
    assert_eq!(status, Some(2));
    assert!(stderr.contains("ws://HOST:PORT/graphql or wss://"), "{stderr}");
    assert_eq!(code(&["--header", "no colon"]).0, Some(2));
    assert_eq!(code(&["--init", "[]"]).0, Some(2));
    assert_eq!(code(&["--variables", "[]"]).0, Some(2));
    assert_eq!(code(&["--count", "0"]).0, Some(2));
}

#[test]
fn a_query_has_one_try_when_no_hub_is_there() {
    let port = ReservedPort::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_spreadly"));
    let url = format!("ws://127.0.0.1:{port}");
    let output =
        command.args(["subscribe", "{ hub { version } }", "--url", &url]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr.starts_with(&format!("spreadly: can't connect to 127.0.0.1:{port}: ")),
        "{stderr}"
    );
}

/// `spreadly dev` as a process, in a folder of its own.
struct Dev {
    child: Child,
    url: String,
    folder: tempfile::TempDir,
}

impl Dev {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(folder: tempfile::TempDir) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_spreadly"))
            .current_dir(folder.path())
            .args(["dev", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        let url = format!("ws://{}/graphql", ready["listening"].as_str().unwrap());
        Self { child, url, folder }
    }

    /// On the same data, after `kill -9`.
    fn again(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        Self::start_in(std::mem::replace(&mut self.folder, elsewhere))
    }

    fn ask(&self, document: &str) -> Value {
        lines(&run_at(&self.url, document)).remove(0)["data"].clone()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_simulated_market_trades_and_its_book_moves_in_a_terminal() {
    let dev = Dev::start();
    let follow = |document: &str, count: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_spreadly"))
            .args(["subscribe", document, "--url", &dev.url, "--count", count])
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        lines(&output)
    };
    // A client that reads the address finds them.
    assert_eq!(dev.ask("{ markets { id } }")["markets"].as_array().unwrap().len(), 4);
    let mut copy = Follower::new(4, 8);
    for result in follow(&follower::subscription("ERG-USD", 25, None), "10") {
        copy.apply(&json!({"type": "next", "payload": result}));
    }
    assert_eq!((copy.snapshots, copy.snapshots + copy.deltas), (1, 10));

    let trades = r#"subscription { trades(markets: ["ERG-USD", "SIGUSD-ERG", "SPF-ERG"]) {
        market trades { price size takerSide } } }"#;
    let traded = follow(trades, "20")
        .iter()
        .filter(|result| result["data"]["trades"]["trades"].as_array().unwrap().len() == 1)
        .count();
    assert_ne!(traded, 0);
}

#[test]
fn a_simulated_market_takes_orders_and_starts_again_after_a_kill() {
    const OPEN: &str = r#"{ orders(filter: {market: "RSN-ERG", open: true}, first: 1000) {
        nodes { id account price } } }"#;
    let accounts = |dev: &Dev| {
        let answer = dev.ask(OPEN);
        let orders = answer["orders"]["nodes"].as_array().unwrap().clone();
        let own = |order: &&Value| order["account"] != "simulator";
        let own: Vec<_> = orders.iter().filter(own).map(|order| order["id"].clone()).collect();
        (own, orders)
    };
    let dev = Dev::start();
    // Far from where the simulator's stand.
    let placed = dev.ask(
        r#"mutation { placeOrder(input: {market: "RSN-ERG", side: BUY, price: "0.001", size: "5"}) {
            order { id } sequence } }"#,
    );
    let id = placed["placeOrder"]["order"]["id"].clone();
    assert!(id.is_string(), "{placed}");
    let (own, before) = accounts(&dev);
    assert_eq!(own, std::slice::from_ref(&id));

    let dev = dev.again();
    let (own, after) = accounts(&dev);
    assert_eq!(own, [id], "an order of ours outlives the simulator's");
    assert!(after.len() > 20, "{after:?}");
    let remains = |order: &&Value| before.contains(order);
    assert_eq!(after.iter().filter(remains).count(), 1, "the simulator canceled its own");
}
