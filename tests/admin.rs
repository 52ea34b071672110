//! The operator's port, and the end of a hub that is asked to stop.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::harness::{Hub, client::PATIENCE};

/// Status and body.
fn get(hub: &Hub, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(hub.admin()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn a_hub_that_says_where_it_listens_is_live_and_ready() {
    let hub = Hub::start();
    assert_eq!(get(&hub, "/livez").0, 200);
    let (status, rows) = get(&hub, "/readyz");
    assert_eq!(status, 200, "{rows}");
    assert_eq!(get(&hub, "/nothing").0, 404);
}

#[test]
fn metrics_are_in_the_form_that_prometheus_reads() {
    let hub = Hub::start();
    let (status, body) = get(&hub, "/metrics");
    assert_eq!(status, 200);
    assert!(body.lines().any(|line| line.starts_with("# TYPE ")), "{body}");
}

#[test]
fn a_hub_without_clients_that_is_asked_to_stop_exits_with_0() {
    let mut hub = Hub::start();
    assert_eq!(hub.sigterm().code(), Some(0));
}
