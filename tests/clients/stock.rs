//! Stock clients, unchanged, against the hub as a process: npm `graphql-ws`, Apollo Client, urql
//! and Python `gql`. Each is a script beside this file that prints what it saw. The tests check
//! what it printed.

use std::io::{BufRead as _, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Client, Hub, market};

const MARKET: &str = "XBT-USD";
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// Where `tests/setup/clients.sh` put what the scripts need.
fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache"),
        PathBuf::from,
    );
    base.join("spreadly")
}

/// A test that can't run says so aloud: it fails, and names the line to type.
fn installed(path: &Path) {
    assert!(path.exists(), "{} is missing: run tests/setup/clients.sh", path.display());
}

/// A script, and the package that it is there for.
pub fn node(script: &str, package: &str) -> Command {
    let folder = cache().join("clients");
    installed(&folder.join("node_modules").join(package));
    // Modules are looked for beside the script, so it runs from a folder beside them; one of its
    // own, as tests run side by side.
    let own = folder.join(format!("run-{}", script.replace('.', "-")));
    std::fs::create_dir_all(&own).unwrap();
    for file in [script, "following.mjs"] {
        std::fs::copy(Path::new(SCRIPTS).join(file), own.join(file)).unwrap();
    }
    let mut command = Command::new("node");
    command.arg(own.join(script));
    command
}

fn python() -> Command {
    let python = cache().join("python/bin/python");
    installed(&python);
    let mut command = Command::new(python);
    command.arg(Path::new(SCRIPTS).join("gql_client.py"));
    command
}

pub struct Script {
    pub child: Child,
    facts: Lines<BufReader<ChildStdout>>,
}

impl Script {
    /// Ends well once step `last` of the market is seen.
    fn start(mut command: Command, url: &str, last: u64) -> Self {
        let size = format!("{}.00000000", 2 + last);
        command.args([url, MARKET, &size]);
        Self::spawn(command)
    }

    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let facts = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, facts }
    }

    /// The next fact; the script's own end is one that no test awaits.
    pub fn fact(&mut self) -> Value {
        let line = self.facts.next().expect("the script says something more").unwrap();
        let fact: Value = serde_json::from_str(&line).unwrap();
        assert_ne!(fact["fact"], "broken", "{fact}");
        fact
    }

    /// Reads on until a fact of this name.
    pub fn until(&mut self, name: &str) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let fact = self.fact();
            let found = fact["fact"] == name;
            all.push(fact);
            if found {
                return all;
            }
        }
    }

    pub fn finish(mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn steps(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| market::step(MARKET, number)).collect()
}

/// A snapshot, deltas, a hub that is killed while lines go on coming, and the rest of the chain.
async fn a_cut_is_survived_with_a_whole_chain(command: Command) {
    let mut hub = Hub::start();
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    Client::knowing(hub.address(), MARKET).await;

    let mut script = Script::start(command, &hub.url(), 29);
    let first = script.until("BookSnapshot").pop().unwrap();
    assert_eq!(first["reason"], "INITIAL");
    hub.append_lines("book.ndjson", &steps(0..10));
    let seen = |fact: &Value, step: u64| {
        let size = format!("{}.00000000", 2 + step);
        fact["sizes"].as_array().is_some_and(|all| all.iter().any(|one| *one == size))
    };
    while !seen(&script.until("BookDelta").pop().unwrap(), 9) {}

    hub.kill9();
    hub.append_lines("book.ndjson", &steps(10..20));
    hub.restart();
    script.until("closed");
    script.until("connected");
    hub.append_lines("book.ndjson", &steps(20..30));
    let rest = script.until("done");
    let snapshots = rest.iter().filter(|fact| fact["fact"] == "BookSnapshot").count();
    assert_eq!(snapshots, 0, "resumed after its cursor, not started again: {rest:#?}");
    script.finish();
}

#[tokio::test]
async fn the_stock_npm_client_resumes_by_itself_after_the_hub_was_killed() {
    a_cut_is_survived_with_a_whole_chain(node("graphql_ws.mjs", "graphql-ws")).await;
}

#[tokio::test]
async fn the_stock_client_of_server_sent_events_resumes_after_the_hub_was_killed() {
    a_cut_is_survived_with_a_whole_chain(node("graphql_sse.mjs", "graphql-sse")).await;
}

/// 61 audits: MUST, SHOULD and MAY alike.
#[tokio::test]
async fn every_audit_of_npm_graphql_http_passes() {
    let hub = Hub::start();
    let mut command = node("graphql_http.mjs", "graphql-http");
    command.arg(hub.http_url());
    let mut script = Script::spawn(command);
    let mut audits = script.until("done");
    audits.pop();
    let failed: Vec<_> = audits.iter().filter(|audit| audit["status"] != "ok").collect();
    assert_eq!(failed, Vec::<&Value>::new());
    assert_eq!(audits.len(), 61);
    script.finish();
}

#[tokio::test]
async fn apollo_client_queries_over_http_and_resumes_by_itself_after_the_hub_was_killed() {
    a_cut_is_survived_with_a_whole_chain(node("apollo_client.mjs", "@apollo/client")).await;
}

#[tokio::test]
async fn urql_queries_over_http_and_resumes_by_itself_after_the_hub_was_killed() {
    a_cut_is_survived_with_a_whole_chain(node("urql.mjs", "@urql/core")).await;
}

#[tokio::test]
async fn the_stock_python_client_resumes_after_the_hub_was_killed() {
    a_cut_is_survived_with_a_whole_chain(python()).await;
}

#[tokio::test]
async fn the_client_of_the_older_protocol_resumes_after_the_hub_was_killed() {
    let script = node("subscriptions_transport_ws.mjs", "subscriptions-transport-ws");
    a_cut_is_survived_with_a_whole_chain(script).await;
}

#[tokio::test]
async fn the_stock_npm_client_opens_all_its_250_operations_again_after_the_hub_was_killed() {
    let mut hub = Hub::start();
    let mut command = node("many_operations.mjs", "graphql-ws");
    command.args([&hub.url(), "250"]);
    let mut script = Script::spawn(command);
    assert_eq!(script.until("open").pop().unwrap()["count"], 250);
    hub.restart();
    // One that is refused ends the script with its reason.
    script.until("again");
    let event = |number| {
        json!({"kind": "message", "topic": format!("t{number}"), "data": number}).to_string()
    };
    hub.append_lines("messages.ndjson", &(0..250).map(event).collect::<Vec<_>>());
    script.until("live");
    script.finish();
}
