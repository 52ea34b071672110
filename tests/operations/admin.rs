//! The operator's port, and the end of a hub that is asked to stop.

use std::collections::BTreeSet;

use crate::harness::Hub;

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
fn a_hub_without_clients_that_is_asked_to_stop_exits_with_0() {
    let mut hub = Hub::start();
    assert_eq!(hub.sigterm().code(), Some(0));
}
