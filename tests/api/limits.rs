//! What one client may ask for: each limit is tripped over HTTP and over a socket, and answered by
//! its name and number.

use serde_json::{Value, json};

use crate::harness::http::{self, post};
use crate::harness::{Client, Hub, client};

/// No refusal has more bytes than this.
const MOST_REPLY_BYTES: usize = 16 << 10;

/// The errors of a refused document, which are the same on both transports.
async fn refused(hub: &Hub, socket: &mut Client, query: &str) -> Value {
    let answer = post(hub.address(), &json!({ "query": query }));
    assert!(answer.body.len() <= MOST_REPLY_BYTES, "{} bytes", answer.body.len());
    let errors = answer.json()["errors"].clone();
    assert!((1..=10).contains(&errors.as_array().unwrap().len()), "{errors}");
    socket.subscribe("1", query).await;
    let refusal = socket.message().await;
    assert_eq!((&refusal["type"], &refusal["payload"]), (&json!("error"), &errors));
    assert_eq!(socket.until_pong().await, Vec::<Value>::new(), "the socket lives");
    errors
}

#[tokio::test]
async fn each_limit_of_a_document_is_refused_by_name_and_number_on_both_transports() {
    let hub = Hub::start();
    let mut socket = Client::connected(hub.address()).await;
    let aliases =
        |count: usize| (0..count).map(|n| format!("a{n}:__typename ")).collect::<String>();
    let fragments: String = (0..60)
        .map(|n| format!("fragment F{n} on Query{{...F{0} ...F{0} ...F{0}}}", n + 1))
        .collect();
    for (query, name, limit) in [
        (format!("{}{}", "{a".repeat(13), "}".repeat(13)), "query_depth", 12),
        (format!("{}{}", "{a".repeat(200), "}".repeat(200)), "query_depth", 12),
        (
            format!("{{...F0}}{fragments}fragment F60 on Query{{__typename}}"),
            "query_complexity",
            2_000,
        ),
        (format!("{{{}}}", aliases(31)), "query_aliases", 30),
        (format!("{{{}}}", aliases(1_000)), "query_tokens", 2_000),
        (format!("{{__typename {}}}", "@a ".repeat(9_000)), "query_tokens", 2_000),
        (format!("{{__typename {}}}", "@a ".repeat(20_000)), "query_bytes", 32_768),
        (format!("query({}){{__typename}}", "$a:Int ".repeat(4_000)), "query_tokens", 2_000),
        (format!("query({}){{__typename}}", "$a:Int ".repeat(30_000)), "query_bytes", 32_768),
        (format!("{{a(b:{}{})}}", "[".repeat(900), "]".repeat(900)), "query_depth", 12),
        (format!("{{a(b:{}", "[".repeat(100_000)), "query_bytes", 32_768),
    ] {
        let errors = refused(&hub, &mut socket, &query).await;
        let extensions = &errors[0]["extensions"];
        assert_eq!(extensions["code"], "LIMIT_EXCEEDED", "{name} {errors}");
        assert_eq!((&extensions["name"], &extensions["limit"]), (&json!(name), &json!(limit)));
        assert!(extensions["current"].as_u64() > Some(limit), "{extensions}");
    }
}

#[tokio::test]
async fn json_that_is_nested_a_hundred_thousand_deep_is_refused_and_the_hub_lives() {
    let hub = Hub::start();
    let body = format!(r#"{{"query":"{{__typename}}","variables":{}"#, "[".repeat(100_000));
    let head = ["POST /graphql", "Content-Type: application/json"];
    assert_eq!(http::send(hub.address(), &head, body.as_bytes()).status, 400);
    let mut socket = Client::connected(hub.address()).await;
    socket.send_text(&format!(r#"{{"type":"ping","payload":{}"#, "[".repeat(100_000))).await;
    assert_eq!(socket.close_code().await, 4400);
    Client::connected(hub.address()).await;
}

#[tokio::test]
async fn a_subscribe_beyond_the_rate_is_refused_with_when_to_try_again() {
    let hub = Hub::start_with(&[
        "limits.subscribe_rate=1",
        "limits.subscribe_burst=3",
        "limits.operations_per_socket=3",
        "limits.pending_operations_per_socket=3",
    ]);
    let mut socket = Client::connected(hub.address()).await;
    for id in ["1", "2", "3"] {
        socket.subscribe(id, "{__typename}").await;
        assert_eq!(socket.message().await["type"], "next");
        assert_eq!(socket.message().await["type"], "complete");
    }
    socket.subscribe("4", "{__typename}").await;
    let refusal = socket.message().await;
    let extensions = &refusal["payload"][0]["extensions"];
    assert_eq!(extensions["code"], "RATE_LIMITED", "{refusal}");
    assert_eq!((&extensions["name"], &extensions["limit"]), (&json!("subscribe_rate"), &json!(1)));
    assert!(extensions["retryAfterMs"].as_u64().is_some_and(|ms| ms <= 1_000), "{refusal}");
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_forwarded_address_has_the_limit() {
    let hub =
        Hub::start_with(&["limits.sockets_per_address=1", "server.trusted_proxies=127.0.0.0/8"]);
    let open = async |forwarded: &str| {
        let headers = [("sec-websocket-protocol", client::MODERN), ("x-forwarded-for", forwarded)];
        client::open(hub.address(), &headers).await.map_err(|answer| answer.status().as_u16())
    };
    let first = open("203.0.113.7").await;
    assert!(first.is_ok());
    assert_eq!(open("203.0.113.7").await.err(), Some(429));
    // What the client says of itself comes before what the proxy adds.
    assert_eq!(open("198.51.100.1, 203.0.113.7").await.err(), Some(429));
    assert!(open("198.51.100.1").await.is_ok());
}

#[tokio::test]
async fn a_foreign_origin_gets_403_by_http_too() {
    let hub = Hub::start();
    let body = json!({"query": "{__typename}"}).to_string();
    let status = |origin: &str| {
        let head = ["POST /graphql", "Content-Type: application/json", origin];
        http::send(hub.address(), &head, body.as_bytes()).status
    };
    assert_eq!(status("Origin: https://evil.example"), 403);
    assert_eq!(status("X-None: 1"), 200);
}
