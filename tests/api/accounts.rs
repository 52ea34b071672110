//! What each client address may hold and cost. Clients here have addresses of their own: a trusted
//! proxy names them, or they bind one of loopback's.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

use crate::harness::client::{self, MODERN, PATIENCE};
use crate::harness::http::{self, Answer};
use crate::harness::{Client, Hub, market, until};

const ONE: &str = "203.0.113.7";
const OTHER: &str = "203.0.113.8";
const PROXIED: &str = "server.trusted_proxies=127.0.0.0/8";

/// A POST of a client that a proxy names.
fn post_from(hub: &Hub, forwarded: &str, query: &str, accept: &str) -> Answer {
    let (accept, forwarded) =
        (format!("Accept: {accept}"), format!("X-Forwarded-For: {forwarded}"));
    let head = ["POST /graphql", "Content-Type: application/json", &accept, &forwarded];
    http::send(hub.address(), &head, json!({ "query": query }).to_string().as_bytes())
}

/// A socket of a client that a proxy names, with its `connection_ack`.
async fn connected_from(hub: &Hub, forwarded: &str) -> Client {
    let headers = [("sec-websocket-protocol", MODERN), ("x-forwarded-for", forwarded)];
    let mut client = client::open(hub.address(), &headers).await.ok().unwrap();
    client.send(json!({"type": "connection_init"})).await;
    assert_eq!(client.message().await["type"], "connection_ack");
    client
}

/// A connection from an address of loopback's own, with a small window of what it takes in.
fn connect_from(local: &str, hub: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let local: SocketAddr = format!("{local}:0").parse().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.bind(&local.into()).unwrap();
    socket.connect(&hub.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn get_from(local: &str, hub: SocketAddr) -> Answer {
    get_on(connect_from(local, hub), hub)
}

/// The last request of a connection.
fn get_on(mut stream: TcpStream, hub: SocketAddr) -> Answer {
    let request = format!(
        "GET /graphql?query=%7B__typename%7D HTTP/1.1\r\nHost: {hub}\r\nConnection: close\r\n\r\n"
    );
    let _ = stream.write_all(request.as_bytes());
    http::read(&mut stream)
}

/// Opens WebSockets that say nothing after their upgrade until the hub has no descriptor for more.
async fn use_up_descriptors(hub: &Hub) -> Vec<TcpStream> {
    let upgrade = format!(
        "GET /graphql HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {MODERN}\r\n\r\n",
        hub.address()
    );
    let open = |_| {
        let mut stream = TcpStream::connect(hub.address()).unwrap();
        stream.write_all(upgrade.as_bytes()).unwrap();
        stream
    };
    let mut sockets = Vec::new();
    // While earlier ones are not upgraded yet, later ones take their descriptors.
    until("the last descriptor", async || {
        sockets.extend((0..50).map(open));
        hub.log().contains("the file descriptors for clients are used up")
    })
    .await;
    sockets
}

/// A number of `/metrics`, by its name and labels.
fn metric(hub: &Hub, name: &str) -> u64 {
    let (_, page) = hub.admin_page("/metrics");
    let found = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
}

fn extensions(errors: &Value) -> &Value {
    &errors[0]["extensions"]
}

#[tokio::test]
async fn an_address_in_debt_learns_when_to_try_again_on_each_transport_and_others_go_on() {
    // 1 ms of work, and no more for a thousand seconds.
    let hub = Hub::start_with(&[PROXIED, "limits.cost_rate=1", "limits.cost_burst=1000"]);
    let mut socket = connected_from(&hub, ONE).await;
    let mut answered = 0;
    let refused = loop {
        let answer = post_from(&hub, ONE, "{__typename}", "application/json");
        if answer.status != 200 {
            break answer;
        }
        answered += 1;
        assert!(answered < 100, "never refused");
    };
    assert!(answered > 0, "a client with nothing spent is served");
    assert_eq!(refused.status, 429, "{refused:?}");
    let error = refused.error();
    assert_eq!((&error["code"], &error["name"]), (&json!("RATE_LIMITED"), &json!("cost_rate")));
    assert_eq!(error["limit"], 1);
    let wait = error["retryAfterMs"].as_u64().unwrap();
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert_eq!(seconds, wait.div_ceil(1_000));

    let events = post_from(&hub, ONE, "subscription{feedStatus{name}}", "text/event-stream");
    assert_eq!((events.status, &events.error()["code"]), (429, &json!("RATE_LIMITED")));
    assert!(events.header("retry-after").is_some());

    socket.subscribe("1", "subscription{feedStatus{name}}").await;
    let reply = socket.message().await;
    assert_eq!(reply["type"], "error");
    assert_eq!(extensions(&reply["payload"])["code"], "RATE_LIMITED", "{reply}");
    assert_eq!(extensions(&reply["payload"])["name"], "cost_rate");
    assert_eq!(socket.until_pong().await, Vec::<Value>::new(), "the socket lives");

    let headers = [("sec-websocket-protocol", MODERN), ("x-forwarded-for", ONE)];
    let upgrade = client::open(hub.address(), &headers).await.err().unwrap();
    assert_eq!(upgrade.status(), 429);
    assert!(upgrade.headers().contains_key("retry-after"));
    let page = http::send(hub.address(), &["GET /", &format!("X-Forwarded-For: {ONE}")], b"");
    assert_eq!((page.status, &page.error()["code"]), (429, &json!("RATE_LIMITED")));

    assert_eq!(post_from(&hub, OTHER, "{__typename}", "application/json").status, 200);
    // Loopback is charged and never refused.
    assert_eq!(hub.query("{__typename}")["__typename"], "Query");
    assert_eq!(metric(&hub, "spreadly_rate_limited_total{work=\"request\"}"), 4);
    assert_eq!(metric(&hub, "spreadly_rate_limited_total{work=\"connection\"}"), 1);
}

#[tokio::test]
async fn addresses_of_one_ipv6_network_of_64_bits_are_one_client() {
    let hub = Hub::start_with(&[PROXIED, "limits.sockets_per_address=1"]);
    let open = async |forwarded: &str| {
        let headers = [("sec-websocket-protocol", MODERN), ("x-forwarded-for", forwarded)];
        client::open(hub.address(), &headers).await.map_err(|answer| answer.status().as_u16())
    };
    let _first = open("2001:db8:1:2::1").await.ok().unwrap();
    assert_eq!(open("2001:db8:1:2:ffff::9").await.err(), Some(429));
    let _second = open("2001:db8:1:3::1").await.ok().unwrap();
    let _third = open("::ffff:203.0.113.7").await.ok().unwrap();
    assert_eq!(open(ONE).await.err(), Some(429));
    assert_eq!(metric(&hub, "spreadly_refused_total{limit=\"sockets_per_address\"}"), 2);
}

#[tokio::test]
async fn a_stream_too_many_of_an_address_is_refused_until_one_ends() {
    let settings = ["limits.streams_per_address=3", "limits.streams_per_socket=2"];
    let hub = Hub::start_with(&[PROXIED, settings[0], settings[1]]);
    let stream = |number: usize| format!("subscription{{events(topic:\"t{number}\"){{sequence}}}}");
    let (mut one, mut two) = (connected_from(&hub, ONE).await, connected_from(&hub, ONE).await);
    let refusal = async |socket: &mut Client, id: &str, number: usize| {
        socket.subscribe(id, &stream(number)).await;
        let mut reply = socket.message().await;
        while reply["id"] != id {
            reply = socket.message().await;
        }
        match reply {
            reply if reply["type"] == "error" => {
                let error = extensions(&reply["payload"]);
                assert_eq!(error["code"], "LIMIT_EXCEEDED");
                Some((error["name"].clone(), error["limit"].clone(), error["current"].clone()))
            }
            reply => {
                assert_eq!(reply["type"], "next", "{reply}");
                None
            }
        }
    };
    let limit = |name: &str, number: usize| Some((json!(name), json!(number), json!(number)));
    assert_eq!(refusal(&mut one, "1", 1).await, None);
    assert_eq!(refusal(&mut one, "2", 2).await, None);
    assert_eq!(refusal(&mut one, "3", 1).await, None, "a stream that is read counts once");
    assert_eq!(refusal(&mut one, "4", 3).await, limit("streams_per_socket", 2));
    assert_eq!(refusal(&mut two, "1", 1).await, None);
    assert_eq!(refusal(&mut two, "2", 3).await, None);
    let mut three = connected_from(&hub, ONE).await;
    assert_eq!(refusal(&mut three, "1", 4).await, limit("streams_per_address", 3));
    assert_eq!(refusal(&mut three, "2", 2).await, None, "the address reads it already");
    let mut other = connected_from(&hub, OTHER).await;
    assert_eq!(refusal(&mut other, "1", 4).await, None);

    // Of stream 1 a reader is left on each socket; stream 3 has had its last.
    one.send(json!({"type": "complete", "id": "1"})).await;
    two.send(json!({"type": "complete", "id": "2"})).await;
    one.until_pong().await;
    two.until_pong().await;
    assert_eq!(refusal(&mut three, "3", 4).await, None);
    assert_eq!(refusal(&mut two, "5", 5).await, limit("streams_per_address", 3));
    // A socket that ends gives back what it held.
    drop(three);
    drop(two);
    let mut four = connected_from(&hub, ONE).await;
    let mut number = 5;
    until("the places of sockets that ended", async || {
        number += 1;
        refusal(&mut four, &number.to_string(), number).await.is_none()
    })
    .await;
    assert_eq!(metric(&hub, "spreadly_refused_total{limit=\"streams_per_socket\"}"), 1);
}

#[tokio::test]
async fn a_page_that_opens_two_hundred_streams_of_its_own_at_once_is_not_refused() {
    let hub = Hub::start_with(&[PROXIED]);
    hub.append_lines("a.ndjson", &market::beginning("ERG-USD"));
    let mut socket = connected_from(&hub, ONE).await;
    until("the market", async || !hub.query("{market(id:\"ERG-USD\"){id}}")["market"].is_null())
        .await;
    for number in 0..200 {
        let query = format!(
            "subscription{{orderBook(market:\"ERG-USD\",depth:{}){{sequence}}}}",
            number + 1
        );
        socket.subscribe(&number.to_string(), &query).await;
        assert_eq!(socket.message().await["type"], "next");
    }
}

#[tokio::test]
async fn a_connection_too_many_of_an_address_is_answered_429_and_others_are_served() {
    let settings = ["limits.connections_per_address=2", "limits.sockets_per_address=1"];
    let hub = Hub::start_with(&["limits.exempt_loopback=false", settings[0], settings[1]]);
    let address = hub.address();
    // They say nothing, so they are known by their connection alone.
    let silent: Vec<_> = (0..2).map(|_| connect_from("127.0.0.2", address)).collect();
    let mut answer = None;
    until("both to be taken in", async || {
        answer = Some(get_from("127.0.0.2", address));
        answer.as_ref().is_some_and(|answer| answer.status == 429)
    })
    .await;
    let error = answer.unwrap().error();
    assert_eq!(error["name"], "connections_per_address");
    assert_eq!((&error["code"], &error["limit"]), (&json!("LIMIT_EXCEEDED"), &json!(2)));
    assert_eq!(get_from("127.0.0.3", address).status, 200);
    assert!(metric(&hub, "spreadly_refused_total{limit=\"connections_per_address\"}") > 0);
    drop(silent);
    until("their places", async || get_from("127.0.0.2", address).status == 200).await;
}

#[tokio::test]
async fn of_connections_too_many_64_get_an_answer_and_each_has_a_second_to_ask() {
    let hub = Hub::start_with(&[
        "limits.exempt_loopback=false",
        "limits.connections_per_address=1",
        "limits.sockets_per_address=1",
        "server.header_timeout_ms=3600000",
        "server.idle_timeout_ms=3600000",
        "server.shards=1",
    ]);
    let address = hub.address();
    let _only = connect_from("127.0.0.2", address);
    until("its place", async || get_from("127.0.0.2", address).status == 429).await;
    let rest_of = |mut stream: TcpStream| {
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        (rest, end)
    };
    let (_, end) = rest_of(connect_from("127.0.0.2", address));
    assert!(end.is_ok(), "one that says nothing is closed long before an hour: {end:?}");
    // Those have a second, and opening so many may take longer: then again.
    until("one that gets no answer", async || {
        let silent: Vec<_> = (0..64).map(|_| connect_from("127.0.0.2", address)).collect();
        let mut further = connect_from("127.0.0.2", address);
        let _ = write!(further, "GET /graphql HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let unanswered = rest_of(further).0.is_empty();
        drop(silent);
        unanswered
    })
    .await;
}

#[tokio::test]
async fn a_reply_over_http_that_nobody_reads_is_cut() {
    let settings = ["limits.writer_stall_ms=200", "server.send_buffer_bytes=4096"];
    let hub = Hub::start_with(&settings);
    let levels: Vec<_> = (1..=5_000).map(|n| (format!("{n}.0"), "1.00000000".to_owned())).collect();
    let levels: Vec<_> = levels.iter().map(|(p, s)| (p.as_str(), s.as_str())).collect();
    let lines = [market::definition("ERG-USD"), market::snapshot("ERG-USD", &levels, &[])];
    hub.append_lines("a.ndjson", &lines);
    let query = "{orderBook(market:\"ERG-USD\",depth:5000){bids{price size}}}";
    until("the book", async || {
        hub.query(query)["orderBook"]["bids"].as_array().is_some_and(|all| all.len() == 5_000)
    })
    .await;
    let mut stream = connect_from("127.0.0.2", hub.address());
    let body = json!({ "query": query }).to_string();
    let request = format!(
        "POST /graphql HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        hub.address(),
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    until("the cut", async || {
        metric(&hub, "spreadly_refused_total{limit=\"writer_stall_ms\"}") == 1
    })
    .await;
    let mut got = Vec::new();
    let _cut = stream.read_to_end(&mut got);
    assert!(got.starts_with(b"HTTP/1.1 200 "), "it had begun");
    assert!(got.len() < 200_000, "and did not end: {} bytes", got.len());
}

#[tokio::test]
async fn clients_can_not_take_the_descriptors_of_the_admin_port_and_of_the_feeds() {
    let starter = &["prlimit", "--nofile=200:200"];
    let hub = Hub::start_by(starter, &["limits.reserved_descriptors=80"]);
    hub.append_lines("a.ndjson", &market::beginning("ERG-USD"));
    let events = "spreadly_feed_events_total{feed=\"files\"}";
    until("the first lines", async || metric(&hub, events) == 2).await;
    assert_eq!(metric(&hub, "spreadly_file_descriptors_limit"), 200);
    let sockets = use_up_descriptors(&hub).await;
    let open = metric(&hub, "spreadly_file_descriptors_open");
    assert!(open < 140, "{open}");
    assert_eq!(hub.admin_page("/livez").0, 200);
    let (status, rows) = hub.admin_page("/readyz");
    assert_eq!(status, 503);
    assert!(rows.contains("\"open files\",\"ready\":false"), "{rows}");
    // A new file is read, and its feed stays live.
    hub.append_lines("b.ndjson", &[market::definition("XBT-USD")]);
    until("the line of another file", async || metric(&hub, events) == 3).await;
    assert_eq!(metric(&hub, "spreadly_feed_live{feed=\"files\"}"), 1);
    drop(sockets);
    until("the public port", async || hub.admin_page("/readyz").0 == 200).await;
    assert_eq!(hub.query("{__typename}")["__typename"], "Query");
}

/// Requests that are not finished, or whose stream of events has ended.
#[tokio::test]
async fn connections_that_wait_give_their_descriptors_up_to_clients_of_other_addresses() {
    let ended = "GET /graphql?query=subscription%7BorderBook(market:%22ERG-USD%22)\
                 %7B__typename%7D%7D \
                 HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\nLast-Event-ID: none\r\n\r\n";
    for request in ["POST /graphql HTTP/1.1\r\nHost: ", ended] {
        let starter = &["prlimit", "--nofile=200:200"];
        let hub = Hub::start_by(starter, &["limits.reserved_descriptors=80"]);
        hub.append_lines("a.ndjson", &market::beginning("ERG-USD"));
        drop(Client::knowing(hub.address(), "ERG-USD").await);
        let kept = connect_from("127.0.0.2", hub.address());
        // Of ten addresses, together several times what the process has descriptors.
        let mut waiting: Vec<_> = (0..500)
            .map(|number| {
                let local = format!("127.0.0.{}", 10 + number % 10);
                let mut stream = connect_from(&local, hub.address());
                stream.write_all(request.as_bytes()).unwrap();
                stream
            })
            .collect();
        if request == ended {
            // Some are cut before this thread reads their answers.
            let is_answered = |stream: &mut TcpStream| {
                let mut got = [0; 12];
                stream.read_exact(&mut got).is_ok() && &got == b"HTTP/1.1 200"
            };
            assert!(waiting.iter_mut().rev().any(is_answered));
        }
        assert_eq!(get_from("127.0.0.3", hub.address()).status, 200);
        assert!(metric(&hub, "spreadly_refused_total{limit=\"reserved_descriptors\"}") > 300);
        until("the port", async || hub.admin_page("/readyz").0 == 200).await;
        // An address with one connection keeps it, though it waited longer than any other.
        assert_eq!(get_on(kept, hub.address()).status, 200);
    }
}

#[tokio::test]
async fn a_body_in_thousands_of_pieces_costs_its_client_until_it_is_refused() {
    let hub = Hub::start_with(&[
        "limits.exempt_loopback=false",
        "limits.cost_rate=1000",
        "limits.cost_burst=100000",
    ]);
    let host = hub.address();
    let ask = |local, pieces: usize| {
        let head = format!(
            "POST /graphql HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        );
        let query = r#"{"query":"{ __typename }"}"#;
        let blanks = "1\r\n \r\n".repeat(pieces);
        let body = format!("{blanks}{:x}\r\n{query}\r\n0\r\n\r\n", query.len());
        let mut stream = connect_from(local, hub.address());
        // The hub may answer and close before it has read all.
        drop(stream.write_all((head + &body).as_bytes()));
        http::read(&mut stream)
    };
    assert_eq!(ask("127.0.0.2", 100).status, 200);
    let refused = ask("127.0.0.3", 9_000);
    assert_eq!(refused.status, 429);
    assert_eq!(refused.error()["name"], "cost_rate");
    assert_eq!(ask("127.0.0.2", 100).status, 200, "another address has its own budget");
}

#[tokio::test]
async fn replies_over_http_that_an_address_does_not_read_are_limited_by_their_bytes() {
    let hub = Hub::start_with(&[
        "limits.exempt_loopback=false",
        "limits.reply_bytes_per_address=65536",
        "server.send_buffer_bytes=4096",
    ]);
    let levels: Vec<_> = (1..=5_000).map(|price| json!([format!("{price}.0000"), "1"])).collect();
    let book = json!({"kind": "book.snapshot", "market": "ERG-USD", "bids": levels, "asks": []});
    hub.append_lines("a.ndjson", &[market::definition("ERG-USD"), book.to_string()]);
    drop(Client::knowing(hub.address(), "ERG-USD").await);
    let path =
        "/graphql?query=%7BorderBook(market:%22ERG-USD%22,depth:5000)%7Bbids%7Bprice%7D%7D%7D";
    let host = hub.address();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let ask = |local| {
        let mut stream = connect_from(local, hub.address());
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let mut unread = ask("127.0.0.2");
    let mut status = [0; 12];
    unread.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    let refused = http::read(&mut ask("127.0.0.2"));
    assert_eq!(refused.status, 429);
    let error = refused.error();
    assert_eq!((&error["code"], &error["limit"]), (&json!("LIMIT_EXCEEDED"), &json!(65_536)));
    assert_eq!(error["name"], "reply_bytes_per_address");
    assert_eq!(get_from("127.0.0.2", hub.address()).status, 200, "a small one is sent");
    assert_eq!(http::read(&mut ask("127.0.0.3")).status, 200, "another address has its own");
    // What was read counts no longer.
    drop(unread);
    until("the place", async || http::read(&mut ask("127.0.0.2")).status == 200).await;
}

#[tokio::test]
async fn a_short_question_about_the_schema_with_a_long_answer_is_refused_by_name() {
    let hub = Hub::start();
    let query = format!(
        "{{__schema{{types{{{}name{}}}}}}}",
        "possibleTypes{interfaces{".repeat(8),
        "}}".repeat(8)
    );
    let answer = http::post(hub.address(), &json!({ "query": query }));
    let error = answer.error();
    assert_eq!((&error["code"], &error["limit"]), (&json!("LIMIT_EXCEEDED"), &json!(15_000)));
    assert_eq!(error["name"], "introspection_fields");
    let mut socket = Client::connected(hub.address()).await;
    socket.subscribe("1", &query).await;
    let refused = socket.message().await;
    assert_eq!(extensions(&refused["payload"]), &error, "{refused}");
}

#[tokio::test]
async fn a_feed_without_descriptors_is_not_halted_and_reads_on_when_there_are_some() {
    // Clients may take all there are.
    let hub = Hub::start_by(&["prlimit", "--nofile=160:160"], &["limits.reserved_descriptors=0"]);
    hub.append_lines("a.ndjson", &market::beginning("ERG-USD"));
    let mut socket = Client::knowing(hub.address(), "ERG-USD").await;
    socket.subscribe("feeds", "subscription{feedStatus{name state reason}}").await;
    let sockets = use_up_descriptors(&hub).await;
    let reason = "no file descriptor is left to read the feed";
    let mut files = 0;
    until("the feed to find none", async || {
        hub.append_lines(
            &format!("b{files}.ndjson"),
            &[market::definition(&format!("X{files}-USD"))],
        );
        files += 1;
        hub.log().contains(reason)
    })
    .await;
    drop(sockets);
    let all = format!("spreadly_feed_events_total{{feed=\"files\"}} {}\n", 2 + files);
    until("the lines", async || hub.admin_page("/metrics").1.contains(&all)).await;
    for frame in socket.until_pong().await {
        assert_ne!(frame["payload"]["data"]["feedStatus"]["state"], "HALTED", "{frame}");
    }
}
