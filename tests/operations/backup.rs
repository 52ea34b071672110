//! A copy of the log that is made while the hub writes, and a hub that begins with it.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::hub::append;
use crate::harness::{Hub, Postgres, until};

const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// In the hub's folder, as its operator would.
fn back_up(hub: &Hub, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spreadly"));
    command.current_dir(hub.folder()).arg("backup").args(arguments).output().unwrap()
}

fn wait_while(still: impl Fn() -> bool) {
    while still() {
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

fn line(number: usize) -> String {
    let padding = "x".repeat(1_000);
    json!({"kind": "message", "topic": "t", "data": number, "padding": padding}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_begins_with_a_copy_made_under_load_has_a_whole_part_of_the_log() {
    let hub = Hub::start();
    let first: Vec<_> = (0..5_000).map(line).collect();
    hub.append_lines("lines.ndjson", &first);
    let total = |hub: &Hub| -> usize {
        hub.feed_status("files")["eventsTotal"].as_str().unwrap().parse().unwrap()
    };
    until("the first lines", async || total(&hub) == first.len()).await;
    let over = AtomicBool::new(false);
    let file = hub.feed("lines.ndjson");
    let (copied, written) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = first.len();
            while !over.load(Ordering::Relaxed) {
                let lines: Vec<_> = (written..written + 200).map(line).collect();
                append(&file, &lines);
                written += lines.len();
                // As fast as the hub reads them, and no faster.
                wait_while(|| total(&hub) + 1_000 < written);
            }
            written
        });
        // The writer is under way, and goes on until the copy is there.
        wait_while(|| total(&hub) == first.len());
        let copied = back_up(&hub, &["copy.db"]);
        over.store(true, Ordering::Relaxed);
        (copied, writer.join().unwrap())
    });
    let said = String::from_utf8(copied.stderr).unwrap();
    assert!(copied.status.success(), "{said}");
    assert!(said.contains("pages\n") && said.contains("checking the copy"), "{said}");
    let said: Value = serde_json::from_slice(&copied.stdout).unwrap();
    let newest: usize = said["sequence"].as_str().unwrap().parse().unwrap();
    assert!(newest > first.len(), "{said}");
    until("all lines", async || total(&hub) == written).await;
    assert!(written > newest, "nothing was written while the copy was made: {said}");

    // A second copy to the same place is refused, and the first one stays.
    let refused = back_up(&hub, &["copy.db"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("copy.db is there already"), "{said}");

    let copy = hub.folder().join("copy.db");
    let restored = Hub::start_with(&[&format!("store.url=sqlite:{}", copy.display())]);
    let numbers: Vec<_> = (0..newest).map(|number| json!(number)).collect();
    assert_eq!(restored.published("t"), numbers);
    // Clients may have seen more.
    let epoch = |hub: &Hub| hub.query("{ hub { epoch } }")["hub"]["epoch"].clone();
    assert_ne!(epoch(&restored), epoch(&hub));
}

#[test]
fn a_shared_log_is_backed_up_by_the_tools_of_its_database() {
    let postgres = Postgres::start();
    let log = format!("store.url={}", postgres.url());
    let hub = Hub::start_with(&[&log]);
    let refused = back_up(&hub, &["--set", &log, "copy.db"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("pg_dump"), "{said}");
}
