//! What a proxy needs of a hub's connections, and what docs/how-to/proxies.md says of both.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::json;

use crate::harness::Hub;
use crate::harness::client::PATIENCE;
use crate::harness::http;

const REQUEST: &str = "GET /graphql?query=%7B__typename%7D HTTP/1.1\r\nHost: hub\r\n\r\n";

fn connected(hub: &Hub) -> TcpStream {
    let stream = TcpStream::connect(hub.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(kept: &mut TcpStream) {
    kept.write_all(REQUEST.as_bytes()).unwrap();
    let mut bytes = [0; 4096];
    let read = kept.read(&mut bytes).unwrap();
    let answer = String::from_utf8_lossy(&bytes[..read]);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
}

/// Reads until the hub closes; what came.
fn rest(mut stream: TcpStream) -> String {
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    rest
}

#[test]
fn a_connection_may_be_idle_for_longer_than_headers_may_take() {
    let hub = Hub::start_with(&["server.header_timeout_ms=300", "server.idle_timeout_ms=3600000"]);
    let mut kept = connected(&hub);
    let (mut slow, mut pipelined) = (connected(&hub), connected(&hub));
    for stream in [&mut kept, &mut slow, &mut pipelined] {
        ask(stream);
    }
    // Later than those, and closed after its time for headers.
    assert_eq!(rest(connected(&hub)), "");
    ask(&mut kept);
    // From their first byte on, headers have as long as ever.
    slow.write_all(b"GET /graphql HTTP/1.1\r\nHos").unwrap();
    assert_eq!(rest(slow), "");
    ask(&mut kept);
    pipelined.write_all([REQUEST, REQUEST, "GET"].concat().as_bytes()).unwrap();
    let mut answers = [0; 4096];
    assert!(pipelined.read(&mut answers).unwrap() > 0);
    pipelined.write_all(b" /").unwrap();
    rest(pipelined);
    ask(&mut kept);
}

#[test]
fn a_connection_that_is_idle_for_too_long_is_closed() {
    let hub = Hub::start_with(&["server.header_timeout_ms=300", "server.idle_timeout_ms=300"]);
    let mut kept = connected(&hub);
    ask(&mut kept);
    assert_eq!(rest(kept), "");
}

/// The proxy reads the one header that it is said to write, with all that may be in it.
#[test]
fn the_header_in_which_a_proxy_names_its_client_is_a_setting() {
    let trusted = ["server.trusted_proxies=127.0.0.1", "limits.sockets_per_address=1"];
    let forwarded = [&trusted[..], &["server.address_header=forwarded"]].concat();
    let query = json!({"query": "subscription { feedStatus { name } }"}).to_string();
    for (settings, one, other) in [
        (&trusted[..], "X-Forwarded-For: 6.6.6.6, 203.0.113.7:55", "Forwarded: for=203.0.113.7"),
        (&forwarded, "Forwarded: for=6.6.6.6, for=\"203.0.113.7:55\"", "X-Forwarded-For: 6.6.6.6"),
    ] {
        let hub = Hub::start_with(settings);
        let head = |headers: &str| {
            format!(
                "POST /graphql HTTP/1.1\r\nHost: hub\r\nContent-Type: application/json\r\n\
                 Accept: text/event-stream\r\nContent-Length: {}\r\n{headers}\r\n\r\n{query}",
                query.len()
            )
        };
        let mut first = connected(&hub);
        first.write_all(head(one).as_bytes()).unwrap();
        let mut status = [0; 12];
        first.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
        let again =
            http::raw(hub.address(), head(&format!("{one}\r\nConnection: close")).as_bytes());
        assert_eq!(again.status, 429, "{again:?}");
        // Whatever the client has put into the other header.
        let both = format!("{other}\r\n{one}\r\nConnection: close");
        let again = http::raw(hub.address(), head(&both).as_bytes());
        assert_eq!(again.status, 429, "{again:?}");
    }
}

#[test]
fn the_files_of_the_page_close_idle_connections_before_a_hub_does_that_runs_or_stops() {
    let read = |name: &str| {
        std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    let (page, config) = (read("docs/how-to/proxies.md"), read("config/spreadly.toml"));
    let default = |key: &str| -> u64 {
        let line = config.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
        line.unwrap_or_else(|| panic!("no {key}")).parse().unwrap()
    };
    let seconds = |block: &str, key: &str| -> u64 {
        let (_, block) = page.split_once(&format!("```{block}\n")).unwrap();
        let (block, _) = block.split_once("```").unwrap();
        let (_, value) = block.split_once(key).unwrap_or_else(|| panic!("no {key} in {block}"));
        let digits = value.trim_start().split('s').next().unwrap();
        digits.parse().unwrap_or_else(|_| panic!("{key} of {block}"))
    };
    let (idle, drain) = (default("idle_timeout_ms"), default("drain_ms"));
    let quiet = 2 * default("ping_interval_ms");
    for (block, key) in
        [("nginx", "keepalive_timeout"), ("haproxy", "pool-purge-delay"), ("caddy", "keepalive")]
    {
        let kept = 1_000 * seconds(block, key);
        assert!(kept < drain && drain < idle, "{block}: {kept}, {drain}, {idle}");
    }
    // A socket is quiet for so long at most, with a pong that got lost.
    for (block, key) in [
        ("nginx", "proxy_read_timeout"),
        ("haproxy", "timeout tunnel"),
        ("haproxy-tcp", "timeout server"),
        ("nginx-stream", "proxy_timeout"),
    ] {
        assert!(1_000 * seconds(block, key) > quiet, "{block}: {key}");
    }
}
