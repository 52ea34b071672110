//! GraphQL over HTTP, request by request, over a raw socket.

use std::io::Write as _;
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::harness::events::Events;
use crate::harness::http::{self, Answer, get, post, post_accepting};
use crate::harness::{Client, Hub};

const TYPENAME: &str = "{__typename}";
/// Of the line above, by `sha256sum`.
const TYPENAME_SHA256: &str = "ecf4edb46db40b5132295c0291d62fb65d6759a9eedfa4d5d612dd5ec54a6b38";
const METHODS: &str = "GET, POST, OPTIONS";
const JSON: &str = "application/json";
const GRAPHQL: &str = "application/graphql-response+json";

fn data(answer: &Answer) -> Value {
    assert_eq!((answer.status, &answer.json()["errors"]), (200, &Value::Null), "{answer:?}");
    answer.json()["data"].clone()
}

fn status_and_code(answer: &Answer) -> (u16, String) {
    (answer.status, answer.error()["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_query_is_answered_by_post_and_by_get_in_what_is_accepted() {
    let hub = Hub::start();
    for accept in [JSON, GRAPHQL] {
        let answer = post_accepting(hub.address(), &json!({ "query": TYPENAME }), accept);
        assert_eq!(data(&answer), json!({"__typename": "Query"}));
        assert_eq!(answer.header("content-type"), Some(&*format!("{accept}; charset=utf-8")));
        let answer = get(hub.address(), &[("query", TYPENAME)], accept);
        assert_eq!(data(&answer), json!({"__typename": "Query"}));
        assert_eq!(answer.header("content-type"), Some(&*format!("{accept}; charset=utf-8")));
    }
    let named = [
        ("query", "query A($id: ID!) {market(id: $id) {id}} query B {a: __typename}"),
        ("operationName", "A"),
        ("variables", r#"{"id": "none"}"#),
    ];
    assert_eq!(data(&get(hub.address(), &named, JSON)), json!({"market": null}));
    let refused = post_accepting(hub.address(), &json!({ "query": TYPENAME }), "text/html");
    assert_eq!(status_and_code(&refused), (406, "BAD_REQUEST".to_owned()));
}

#[tokio::test]
async fn a_mutation_by_get_and_other_methods_get_405_and_the_methods_that_are_allowed() {
    let hub = Hub::start();
    let answer = get(hub.address(), &[("query", "mutation {__typename}")], GRAPHQL);
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{answer:?}");
    let two = "query A {__typename} mutation B {__typename}";
    let answer = get(hub.address(), &[("query", two), ("operationName", "B")], JSON);
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{answer:?}");
    for method in ["PUT", "DELETE", "PATCH"] {
        let answer = http::send(hub.address(), &[&format!("{method} /graphql")], b"");
        assert_eq!((answer.status, answer.header("allow")), (405, Some(METHODS)), "{answer:?}");
    }
}

#[tokio::test]
async fn a_request_that_names_no_host_or_two_gets_400() {
    let hub = Hub::start();
    let status = |hosts: &str| {
        let request = format!("GET / HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        http::raw(hub.address(), request.as_bytes()).status
    };
    assert_eq!(status(""), 400);
    assert_eq!(status("Host: hub\r\nHost: hub\r\n"), 400);
    assert_eq!(status("Host: hub\r\n"), 307);
}

#[test]
fn a_hub_that_stops_answers_on_a_connection_that_a_proxy_kept_and_then_closes_it() {
    let mut hub = Hub::start_with(&["server.drain_ms=60000", "server.shards=1"]);
    let follow = json!({"query": "subscription {feedStatus {name}}"});
    let mut events = Events::open(hub.address(), &follow, &[]);
    events.next();
    let request = "GET /graphql?query=%7B__typename%7D HTTP/1.1\r\nHost: hub\r\n\r\n";
    let mut kept = TcpStream::connect(hub.address()).unwrap();
    kept.write_all(request.as_bytes()).unwrap();
    let mut first = [0; 1024];
    let read = std::io::Read::read(&mut kept, &mut first).unwrap();
    assert!(String::from_utf8_lossy(&first[..read]).starts_with("HTTP/1.1 200"));
    hub.terminate();
    // Its shard drains.
    while events.event().is_some() {}
    kept.write_all(request.as_bytes()).unwrap();
    let answer = http::read(&mut kept);
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{answer:?}");
    drop(kept);
    assert!(hub.exited().success());
}

#[tokio::test]
async fn a_body_that_is_not_json_in_utf8_is_refused_before_it_is_read() {
    let hub = Hub::start();
    let body = json!({ "query": TYPENAME }).to_string();
    for content in [
        "Content-Type: text/plain",
        "Content-Type: multipart/form-data; boundary=x",
        "Content-Type: application/x-www-form-urlencoded",
        "Content-Type: application/graphql",
        "Content-Type: application/json; charset=utf-16",
        "X-None: 1",
    ] {
        let answer = http::send(hub.address(), &["POST /graphql", content], body.as_bytes());
        assert_eq!(status_and_code(&answer), (415, "BAD_REQUEST".to_owned()), "{content}");
    }
    let compressed = ["POST /graphql", "Content-Type: application/json", "Content-Encoding: gzip"];
    assert_eq!(http::send(hub.address(), &compressed, body.as_bytes()).status, 415);
    let head = ["POST /graphql", "Content-Type: application/json"];
    let answer = http::send(hub.address(), &head, b"{\"query\":\"{__typename}\xFF\"}");
    assert_eq!(status_and_code(&answer), (400, "BAD_REQUEST".to_owned()));
}

#[tokio::test]
async fn batches_are_off_and_say_so() {
    let hub = Hub::start();
    let answer = post(hub.address(), &json!([{ "query": TYPENAME }, { "query": TYPENAME }]));
    assert_eq!(status_and_code(&answer), (400, "BAD_REQUEST".to_owned()));
    let message = &answer.json()["errors"][0]["message"];
    assert_eq!(message, "batches are off: send one request at a time");
}

#[tokio::test]
async fn a_subscription_needs_a_transport_that_streams() {
    let hub = Hub::start();
    let query = "subscription {feedStatus {name}}";
    assert_eq!(post(hub.address(), &json!({ "query": query })).status, 406);
    assert_eq!(get(hub.address(), &[("query", query)], GRAPHQL).status, 406);
}

#[tokio::test]
async fn the_codes_of_the_draft_are_a_setting() {
    let audited = Hub::start();
    let draft = Hub::start_with(&["server.http_status=draft"]);
    let partial = r#"{__typename orderBook(market: "none", depth: 0) {sequence}}"#;
    for (body, by_audits, by_draft) in [
        (json!({ "query": TYPENAME }), 200, 200),
        (json!({ "query": partial }), 200, 294),
        (json!({ "query": "{" }), 400, 400),
        (json!({ "query": "{nothing}" }), 400, 422),
        (
            json!({"query": "query A($id: ID!) {market(id: $id) {id}}", "variables": {"id": null}}),
            400,
            422,
        ),
        (json!({ "qeury": TYPENAME }), 400, 422),
    ] {
        for (hub, accept, status) in
            [(&audited, GRAPHQL, by_audits), (&draft, GRAPHQL, by_draft), (&draft, "*/*", by_draft)]
        {
            let answer = post_accepting(hub.address(), &body, accept);
            assert_eq!(answer.status, status, "{body} {answer:?}");
            assert_eq!(answer.header("content-type"), Some(&*format!("{GRAPHQL}; charset=utf-8")));
        }
    }
    // A client that takes nothing else gets an error in a type that only GraphQL's servers use.
    let answer = post(draft.address(), &json!({ "query": "{nothing}" }));
    assert_eq!(answer.status, 422);
    assert_eq!(answer.header("content-type"), Some(&*format!("{GRAPHQL}; charset=utf-8")));
}

#[tokio::test]
async fn a_document_is_brought_once_and_then_named_by_its_hash_on_every_transport() {
    let hub = Hub::start();
    let named = json!({"persistedQuery": {"version": 1, "sha256Hash": TYPENAME_SHA256}});
    let by_hash = json!({ "extensions": named });
    let unknown = post(hub.address(), &by_hash);
    assert_eq!(unknown.status, 200, "{unknown:?}");
    assert_eq!(unknown.json()["errors"][0]["message"], "PersistedQueryNotFound");
    assert_eq!(unknown.error()["code"], "PERSISTED_QUERY_NOT_FOUND");
    let parameters = [("extensions", &*named.to_string())];
    assert_eq!(get(hub.address(), &parameters, GRAPHQL).status, 400);
    let wrong = json!({"query": "{other: __typename}", "extensions": named});
    assert_eq!(post(hub.address(), &wrong).error()["code"], "BAD_REQUEST");
    // A wrong pair has put nothing under the hash.
    assert_eq!(post(hub.address(), &by_hash).error()["code"], "PERSISTED_QUERY_NOT_FOUND");

    let mut client = Client::connected(hub.address()).await;
    client.subscribe_with("1", by_hash.clone()).await;
    let answer = client.message().await;
    assert_eq!(answer["type"], "error");
    assert_eq!(answer["payload"][0]["extensions"]["code"], "PERSISTED_QUERY_NOT_FOUND");
    let brought = json!({"query": TYPENAME, "extensions": named});
    client.subscribe_with("2", brought).await;
    assert_eq!(client.message().await["payload"]["data"]["__typename"], "Query");

    assert_eq!(data(&post(hub.address(), &by_hash)), json!({"__typename": "Query"}));
    assert_eq!(data(&get(hub.address(), &parameters, JSON)), json!({"__typename": "Query"}));
}

#[tokio::test]
async fn a_mutation_named_by_its_hash_is_not_run_by_get_either() {
    let hub = Hub::start();
    // Of `mutation{__typename}`, by `sha256sum`.
    let sha256 = "8381739c98af5c2efeb0ad7daa79712b40611c2ba297a5ef17e380ac90fb2154";
    let named = json!({"persistedQuery": {"version": 1, "sha256Hash": sha256}});
    post(hub.address(), &json!({"query": "mutation{__typename}", "extensions": named}));
    let answer = get(hub.address(), &[("extensions", &named.to_string())], JSON);
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{answer:?}");
}

#[tokio::test]
async fn a_body_above_its_limit_gets_413_and_one_at_it_is_read() {
    let hub = Hub::start_with(&[
        "limits.message_bytes=4096",
        "limits.message_bytes_before_ack=4096",
        "limits.markets_per_subscription=20",
    ]);
    let padded = |bytes: usize| {
        let empty = json!({"query": TYPENAME, "operationName": null, "pad": ""}).to_string().len();
        json!({"query": TYPENAME, "operationName": null, "pad": "x".repeat(bytes - empty)})
    };
    assert_eq!(post(hub.address(), &padded(4096)).status, 200);
    let answer = post(hub.address(), &padded(4097));
    assert_eq!(answer.status, 413);
    let error = answer.error();
    assert_eq!((&error["limit"], &error["current"]), (&json!(4096), &json!(4097)), "{error}");
    let mut chunked = b"POST /graphql HTTP/1.1\r\nHost: hub\r\nContent-Type: application/json\r\n\
        Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        .to_vec();
    for _ in 0..5 {
        chunked.extend_from_slice(&[b"400\r\n".as_slice(), &[b' '; 1024], b"\r\n"].concat());
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(http::raw(hub.address(), &chunked).status, 413);
}

#[tokio::test]
async fn headers_above_their_limit_are_refused() {
    let hub = Hub::start();
    let long = format!("X-Long: {}", "x".repeat(16 << 10));
    assert_eq!(http::send(hub.address(), &["GET /graphql", &long], b"").status, 431);
    let many: Vec<_> = (0..70).map(|number| format!("X-{number}: 1")).collect();
    let many: Vec<_> =
        ["GET /graphql"].into_iter().chain(many.iter().map(String::as_str)).collect();
    assert_eq!(http::send(hub.address(), &many, b"").status, 431);
    Client::connected(hub.address()).await;
}

#[tokio::test]
async fn headers_and_bodies_that_dribble_are_cut() {
    let hub = Hub::start_with(&["server.header_timeout_ms=100", "server.body_timeout_ms=100"]);
    let mut slow = TcpStream::connect(hub.address()).unwrap();
    slow.write_all(b"GET /graphql HTTP/1.1\r\nHost: hub\r\nX-Slow: ").unwrap();
    let mut end = Vec::new();
    std::io::Read::read_to_end(&mut slow, &mut end).unwrap();
    let mut slow = TcpStream::connect(hub.address()).unwrap();
    slow.write_all(
        b"POST /graphql HTTP/1.1\r\nHost: hub\r\nContent-Type: application/json\r\n\
          Content-Length: 100\r\n\r\n{\"query\":",
    )
    .unwrap();
    let answer = http::read(&mut slow);
    assert_eq!(status_and_code(&answer), (408, "BAD_REQUEST".to_owned()));
}
