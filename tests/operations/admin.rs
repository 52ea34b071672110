//! The operator's port, and the end of a hub that is asked to stop.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::{Hub, Postgres, http, until};

#[test]
fn a_hub_that_says_where_it_listens_is_live_and_ready() {
    let hub = Hub::start();
    assert_eq!(hub.admin_page("/livez").0, 200);
    let (status, rows) = hub.admin_page("/readyz");
    assert_eq!(status, 200, "{rows}");
    assert_eq!(hub.admin_page("/nothing").0, 404);
}

#[test]
fn metrics_are_in_the_form_that_prometheus_reads() {
    let hub = Hub::start();
    let (status, body) = hub.admin_page("/metrics");
    assert_eq!(status, 200);
    assert!(body.lines().any(|line| line.starts_with("# TYPE ")), "{body}");
}

#[test]
fn the_metrics_of_a_hub_are_those_of_the_reference_with_their_types() {
    // Those of the cache are sent if there is one. Nothing listens there.
    let hub = Hub::start_with(&["cache.url=redis://127.0.0.1:1"]);
    let (status, body) = hub.admin_page("/metrics");
    assert_eq!(status, 200);
    let sent = body.lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        let ending = if kind == "counter" { "_total" } else { "" };
        Some((format!("{name}{ending}"), kind.to_owned()))
    });
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    let documented = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `spreadly_")?.split('|').map(str::trim);
        let name = cells.next()?.trim_end_matches('`');
        Some((format!("spreadly_{name}"), cells.next()?.to_owned()))
    });
    let (sent, documented) = (BTreeSet::from_iter(sent), BTreeSet::from_iter(documented));
    let missing: Vec<_> = sent.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&sent).collect();
    assert!(missing.is_empty(), "docs/reference/metrics.md has no row for {missing:?}");
    assert!(gone.is_empty(), "no hub sends {gone:?} of docs/reference/metrics.md");
    assert!(sent.len() > 50, "{sent:?}");
}

#[test]
fn metrics_say_what_the_process_and_its_log_are_and_what_came_of_requests() {
    let hub = Hub::start();
    let publish = |topic: &str, data: &str, id: &str| {
        let call = format!(r#"publish(topic: "{topic}", data: "{data}", id: "{id}")"#);
        http::post(
            hub.address(),
            &json!({"query": format!("mutation {{ {call} {{ sequence }} }}")}),
        )
    };
    assert_eq!(publish("t", "a", "1").status, 200);
    assert_eq!(publish("t", "a", "1").status, 200);
    assert_eq!(
        http::raw(hub.address(), b"GET /nowhere HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            .status,
        404
    );
    let (_, page) = hub.admin_page("/metrics");
    let value = |name: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("spreadly_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
    };
    assert_eq!(value("mutations_total{outcome=\"accepted\"}"), 1.0);
    assert_eq!(value("mutations_total{outcome=\"known\"}"), 1.0);
    assert_eq!(value("http_responses_total{status=\"404\"}"), 1.0);
    assert_eq!(value("http_responses_total{status=\"200\"}"), 2.0);
    assert_eq!(value("http_responses_total{status=\"429\"}"), 0.0);
    assert_eq!(value("log_sequence"), 1.0);
    assert!(value("log_commits_total") >= 1.0);
    assert!(value("log_bytes") > 0.0);
    assert!(value("log_disk_free_bytes") < value("log_disk_bytes"));
    assert!(value("resident_memory_bytes") > 1e6);
    assert!(value("start_time_seconds") > 1e9);
    let epoch = hub.query("{ hub { epoch } }")["hub"]["epoch"].as_str().unwrap().to_owned();
    assert_eq!(value(&format!("log_epoch{{epoch=\"{epoch}\"}}")), 1.0);
    assert_eq!(value(concat!("build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}")), 1.0);
}

#[test]
fn a_hub_without_clients_that_is_asked_to_stop_exits_with_0() {
    let mut hub = Hub::start();
    assert_eq!(hub.sigterm().code(), Some(0));
}

/// Clients and probes get an answer, whatever the database does.
#[tokio::test]
async fn a_hub_that_waits_for_its_log_answers_on_both_ports_and_stops_when_asked() {
    let postgres = Postgres::start();
    postgres.signal_all("-STOP");
    let log = format!("store.url={}", postgres.url());
    let settings = [&*log, "feeds.postgres.deadline_ms=500"];
    let mut hub = Hub::start_waiting(&settings).await;
    assert_eq!(hub.admin_page("/livez").0, 200);
    let waits = async || hub.admin_page("/readyz").1.contains("\"shared log\"");
    until("the row of the log", waits).await;
    let (status, rows) = hub.admin_page("/readyz");
    assert_eq!(status, 503, "{rows}");
    assert!(rows.contains("did not answer within 500 ms"), "{rows}");
    let (status, metrics) = hub.admin_page("/metrics");
    assert_eq!(status, 200);
    assert!(metrics.contains("spreadly_file_descriptors_open"), "{metrics}");
    let query = json!({"query": "{ hub { epoch } }"});
    let refused = http::post(hub.address(), &query);
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.error()["code"], "UNAVAILABLE");
    assert_eq!(refused.header("retry-after"), Some("1"));
    // A browser's EventSource comes back after an event, and never after an error's status.
    let stream = http::get(hub.address(), &[("query", "{ a }")], "text/event-stream");
    assert_eq!(stream.status, 200, "{stream:?}");
    assert!(stream.body.contains("UNAVAILABLE"), "{stream:?}");
    assert_eq!(hub.sigterm().code(), Some(0));

    let hub = Hub::start_waiting(&settings).await;
    until("the refusal", async || http::post(hub.address(), &query).status == 503).await;
    postgres.signal_all("-CONT");
    until("a ready hub", async || hub.admin_page("/readyz").0 == 200).await;
    assert_eq!(http::post(hub.address(), &query).status, 200);
}
