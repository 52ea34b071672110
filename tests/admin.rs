//! The operator's port, and the end of a hub that is asked to stop.

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
fn a_hub_without_clients_that_is_asked_to_stop_exits_with_0() {
    let mut hub = Hub::start();
    assert_eq!(hub.sigterm().code(), Some(0));
}
