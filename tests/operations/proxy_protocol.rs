//! The PROXY protocol on the public port, by hand and from real proxies.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::harness::client::PATIENCE;
use crate::harness::http::{self, Answer};
use crate::harness::{Client, Hub, Proxy, until};

const TRUSTED: &str = "server.trusted_proxies=127.0.0.1";
const SPOKEN: &str = "server.proxy_protocol=true";
const ONE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 8);

fn hub(settings: &[&str]) -> Hub {
    Hub::start_with(&[&[TRUSTED, SPOKEN], settings].concat())
}

/// Version 2, for a client with this address.
fn header(client: Ipv4Addr) -> Vec<u8> {
    let addresses = [&client.octets()[..], &[10, 0, 0, 1, 21, 179, 1, 187]].concat();
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &addresses].concat()
}

fn connected(hub: SocketAddr, begin: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(hub).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(begin).unwrap();
    stream
}

/// Of a query on a connection that begins so.
fn answer(hub: &Hub, begin: &[u8], headers: &str) -> Answer {
    let request = format!(
        "GET /graphql?query=%7B__typename%7D HTTP/1.1\r\nHost: hub.example\r\n\
         Connection: close\r\n{headers}\r\n"
    );
    http::raw(hub.address(), &[begin, request.as_bytes()].concat())
}

/// A stream of events on a connection, as far as its status.
fn events(mut stream: TcpStream, headers: &str) -> (u16, TcpStream) {
    let body = json!({"query": "subscription { feedStatus { name } }"}).to_string();
    let request = format!(
        "POST /graphql HTTP/1.1\r\nHost: hub\r\nContent-Type: application/json\r\n\
         Accept: text/event-stream\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    let status = std::str::from_utf8(&status).unwrap().strip_prefix("HTTP/1.1 ").unwrap();
    (status.parse().unwrap(), stream)
}

fn counted(hub: &Hub, outcome: &str) -> u64 {
    let (_, page) = hub.admin_page("/metrics");
    let name = format!("spreadly_proxy_headers_total{{outcome=\"{outcome}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
}

#[test]
fn the_address_in_the_header_counts_in_the_limits() {
    let hub = hub(&["limits.sockets_per_address=1"]);
    let from = |client| connected(hub.address(), &header(client));
    let (status, first) = events(from(ONE), "");
    assert_eq!(status, 200);
    assert_eq!(events(from(ONE), "").0, 429);
    assert_eq!(events(from(OTHER), "").0, 200);
    // A client's own word is not believed, and that of the proxy for a proxy is.
    assert_eq!(events(from(ONE), "X-Forwarded-For: 203.0.113.9\r\n").0, 429);
    let chained = "X-Forwarded-For: 203.0.113.7\r\n";
    assert_eq!(events(from(Ipv4Addr::LOCALHOST), chained).0, 429);
    let line = b"PROXY TCP4 203.0.113.7 10.0.0.1 5555 443\r\n";
    assert_eq!(events(connected(hub.address(), line), "").0, 429);
    drop(first);
}

#[test]
fn connections_of_an_address_that_the_header_names_are_limited() {
    let hub = hub(&["limits.sockets_per_address=1", "limits.connections_per_address=1"]);
    let kept = connected(hub.address(), &header(ONE));
    let mut silent = kept.try_clone().unwrap();
    silent.write_all(b"GET /graphql?query=%7B__typename%7D HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    silent.read_exact(&mut [0; 12]).unwrap();
    assert_eq!(answer(&hub, &header(ONE), "").status, 429);
    assert_eq!(answer(&hub, &header(OTHER), "").status, 200);
    drop(kept);
}

#[tokio::test]
async fn a_connection_of_the_proxy_without_a_header_is_closed_and_counted_by_reason() {
    let hub = hub(&["server.header_timeout_ms=300"]);
    let good = header(ONE);
    let garbage = [&good[..12], b"\x31\x11\0\0"].concat();
    let long = [&good[..12], b"\x21\x11\xff\xff"].concat();
    let begin_of_http = b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n";
    // The last one says nothing more.
    for (outcome, begin) in [
        ("missing", begin_of_http.as_slice()),
        ("malformed", &garbage),
        ("too_long", &long),
        ("late", &good[..20]),
    ] {
        let mut stream = connected(hub.address(), begin);
        let mut bytes = Vec::new();
        drop(stream.read_to_end(&mut bytes));
        assert_eq!((bytes.len(), counted(&hub, outcome)), (0, 1), "{outcome}");
    }
    drop(connected(hub.address(), &good[..20]));
    drop(connected(hub.address(), b""));
    until("both ends", async || counted(&hub, "cut") == 1 && counted(&hub, "nothing") == 1).await;
    assert_eq!(answer(&hub, &good, "").status, 200);
    assert_eq!(counted(&hub, "client"), 1);
    // A check by the proxy itself.
    let local = [&good[..12], b"\x20\0\0\0"].concat();
    assert_eq!(answer(&hub, &local, "").status, 200);
    assert_eq!(counted(&hub, "proxy"), 1);
    let log = hub.log();
    assert!(log.contains("it does not begin with a header of the PROXY protocol"), "{log}");
}

#[test]
fn only_trusted_proxies_begin_with_a_header() {
    let elsewhere = ["server.trusted_proxies=192.0.2.1", SPOKEN, "server.origins=*"];
    let hub = Hub::start_with(&elsewhere);
    assert_eq!(answer(&hub, b"", "").status, 200);
    assert_eq!(answer(&hub, &header(ONE), "").status, 400);
    assert!((counted(&hub, "client"), counted(&hub, "missing")) == (0, 0));
}

/// The same client twice, from an address of its own: the second one is one too many.
async fn assert_names_its_clients(hub: &Hub, proxy: &Proxy) {
    let from = |address: [u8; 4]| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
        socket.connect(&proxy.address().into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let (status, first) = events(from([127, 0, 0, 2]), "");
    assert_eq!(status, 200);
    assert_eq!(events(from([127, 0, 0, 2]), "").0, 429);
    assert_eq!(events(from([127, 0, 0, 3]), "").0, 200);
    drop(first);
    let mut client = Client::connected(proxy.address()).await;
    client.subscribe("1", "subscription { feedStatus { name } }").await;
    assert_eq!(client.message().await["type"], "next");
    assert!(counted(hub, "client") >= 4);
    let faults = ["missing", "malformed", "too_long", "cut", "late"];
    assert_eq!(faults.map(|fault| counted(hub, fault)), [0; 5]);
}

const COUNTED: [&str; 2] = ["limits.exempt_loopback=false", "limits.sockets_per_address=1"];

#[tokio::test]
async fn haproxy_names_its_clients_by_version_2() {
    let hub = hub(&COUNTED);
    assert_names_its_clients(&hub, &Proxy::haproxy_tcp(&hub)).await;
}

#[tokio::test]
async fn nginx_names_its_clients_by_version_1() {
    let hub = hub(&COUNTED);
    assert_names_its_clients(&hub, &Proxy::nginx_stream(&hub)).await;
}
