//! Pages of other origins: the preflight request of a browser, and what lets it read an answer.

use serde_json::json;

use crate::harness::events::Events;
use crate::harness::http::{self, Answer};
use crate::harness::{Hub, client};

const PAGE: &str = "https://app.example";
const ALLOWED: &str = "access-control-allow-origin";

fn hub() -> Hub {
    Hub::start_with(&[&format!("server.origins={PAGE}")])
}

fn send(hub: &Hub, first: &str, origin: &str, body: &str) -> Answer {
    let origin = format!("Origin: {origin}");
    let head = [first, &origin, "Content-Type: application/json"];
    http::send(hub.address(), &head, body.as_bytes())
}

/// The names of a list in a header.
fn names(answer: &Answer, header: &str) -> Vec<String> {
    let values = answer.headers.iter().filter(|(name, _)| name == header);
    values.flat_map(|(_, value)| value.split(", ")).map(str::to_owned).collect()
}

fn assert_readable(answer: &Answer) {
    assert_eq!(answer.header(ALLOWED), Some(PAGE), "{answer:?}");
    assert!(names(answer, "vary").contains(&"origin".to_owned()), "{answer:?}");
    let exposed = names(answer, "access-control-expose-headers");
    assert!(exposed.contains(&"retry-after".to_owned()), "{answer:?}");
}

#[test]
fn a_listed_page_gets_a_preflight_answer_and_reads_what_it_posts_and_gets() {
    let hub = hub();
    let preflight = send(&hub, "OPTIONS /graphql", PAGE, "");
    assert_eq!((preflight.status, &*preflight.body), (204, ""), "{preflight:?}");
    assert_readable(&preflight);
    assert_eq!(names(&preflight, "access-control-allow-methods"), ["GET", "POST"]);
    let headers = names(&preflight, "access-control-allow-headers");
    for name in ["authorization", "content-type", "last-event-id"] {
        assert!(headers.contains(&name.to_owned()), "{headers:?}");
    }
    assert_eq!(preflight.header("access-control-max-age"), Some("7200"));
    assert_eq!(preflight.header("access-control-allow-credentials"), None);

    let body = json!({"query": "{__typename}"}).to_string();
    for answer in [
        send(&hub, "POST /graphql", PAGE, &body),
        send(&hub, "GET /graphql?query=%7B__typename%7D", PAGE, ""),
    ] {
        assert_eq!((answer.status, &answer.json()["data"]["__typename"]), (200, &json!("Query")));
        assert_readable(&answer);
    }
    // What is refused is for the page to read too.
    for (first, body, status) in
        [("POST /graphql", "[]", 400), ("PUT /graphql", "", 405), ("POST /graphql", "{", 400)]
    {
        let refused = send(&hub, first, PAGE, body);
        assert_eq!(refused.status, status, "{refused:?}");
        assert_readable(&refused);
    }
}

#[test]
fn a_listed_page_reads_a_stream_of_events() {
    let hub = hub();
    let request = json!({"query": "subscription {feedStatus {name}}"});
    let mut events = Events::open(hub.address(), &request, &[&format!("Origin: {PAGE}")]);
    assert_eq!((events.status, events.header(ALLOWED)), (200, Some(PAGE)));
    assert_eq!(events.header("vary"), Some("accept"));
    events.next();
}

#[test]
fn a_page_that_is_not_listed_gets_403_and_no_leave_to_read_it() {
    let hub = hub();
    let body = json!({"query": "{__typename}"}).to_string();
    for origin in ["https://evil.example", "null", "https://app.example.evil", "http://app.example"]
    {
        for (first, body) in [("OPTIONS /graphql", ""), ("POST /graphql", &*body)] {
            let refused = send(&hub, first, origin, body);
            assert_eq!((refused.status, refused.header(ALLOWED)), (403, None), "{refused:?}");
            assert!(names(&refused, "vary").contains(&"origin".to_owned()), "{refused:?}");
        }
    }
    let two = format!("Origin: {PAGE}\r\nOrigin: https://evil.example");
    let refused = http::send(hub.address(), &["OPTIONS /graphql", &two], b"");
    assert_eq!((refused.status, refused.header(ALLOWED)), (403, None), "{refused:?}");
}

#[test]
fn a_page_from_elsewhere_does_not_reach_a_hub_on_loopback_by_a_name_that_points_there() {
    let status = |hub: &Hub, path: &str, host: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        http::raw(hub.address(), head.as_bytes()).status
    };
    let open = hub();
    let trusting = Hub::start_with(&["server.trusted_proxies=127.0.0.1"]);
    for path in ["/graphql?query=%7B__typename%7D", "/graphiql"] {
        assert_eq!(status(&open, path, "evil.example:4000"), 403, "{path}");
        assert_eq!(status(&open, path, "app.example"), 200, "{path}");
        assert_eq!(status(&open, path, "localhost:4000"), 200, "{path}");
        assert_eq!(status(&trusting, path, "hub.example"), 200, "{path}");
    }
}

#[tokio::test]
async fn a_program_gets_no_leave_and_an_answer_that_no_cache_gives_to_a_page() {
    let hub = hub();
    let answer = http::post(hub.address(), &json!({"query": "{__typename}"}));
    assert_eq!((answer.status, answer.header(ALLOWED)), (200, None));
    assert_eq!(names(&answer, "vary"), ["accept", "origin"]);
    let headers = [("sec-websocket-protocol", client::MODERN), ("origin", PAGE)];
    assert!(client::open(hub.address(), &headers).await.is_ok());
}
