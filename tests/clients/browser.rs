//! The pages as a browser gets them: by hand, and in a real Chromium that can reach nothing else.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use crate::clients::stock::{Script, node};
use crate::harness::http::{self, Answer};
use crate::harness::{Client, Hub, market};
use serde_json::json;

const MARKET: &str = "XBT-USD";

fn get(hub: &Hub, path: &str, header: &str) -> Answer {
    http::send(hub.address(), &[&format!("GET {path}"), header], b"")
}

/// The page, from a hub that has it.
fn graphiql(hub: &Hub) -> Answer {
    let page = get(hub, "/graphiql", "Accept: text/html");
    assert_eq!(page.status, 200, "run web/graphiql/build.sh, then build again\n{}", page.body);
    page
}

#[test]
fn the_root_leads_to_graphiql_whose_policy_lets_no_other_origin_and_no_inline_script_in() {
    let hub = Hub::start();
    let root = get(&hub, "/", "Accept: text/html");
    assert_eq!((root.status, root.header("location")), (307, Some("/graphiql")));

    let page = graphiql(&hub);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(page.header("cache-control"), Some("no-cache"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
    assert!(!policy.contains("http") && !policy.contains('*'), "{policy}");
    assert!(!page.body.contains("://") && !page.body.contains("<script>"), "{}", page.body);
}

#[test]
fn a_file_of_graphiql_is_kept_by_browsers_and_sent_once_however_compressed() {
    let hub = Hub::start();
    let page = graphiql(&hub).body;
    let script = page.split("src=\"").nth(1).unwrap().split('"').next().unwrap();
    let plain = get(&hub, script, "Accept-Encoding: identity");
    assert_eq!(plain.status, 200);
    assert_eq!(plain.header("content-type"), Some("text/javascript; charset=utf-8"));
    assert_eq!(plain.header("content-encoding"), None);
    assert_eq!(plain.header("cache-control"), Some("public, max-age=31536000, immutable"));
    assert_eq!(plain.header("vary"), Some("accept-encoding"));

    let zipped = get(&hub, script, "Accept-Encoding: br, gzip");
    assert_eq!((zipped.status, zipped.header("content-encoding")), (200, Some("gzip")));
    let length = |answer: &Answer| answer.header("content-length").unwrap().parse::<u64>().unwrap();
    assert!(length(&zipped) < length(&plain) / 3, "{} of {}", length(&zipped), length(&plain));

    let etag = plain.header("etag").unwrap();
    let again = get(&hub, script, &format!("If-None-Match: \"x\", {etag}"));
    assert_eq!((again.status, again.header("etag"), again.body.len()), (304, Some(etag), 0));
}

/// `localhost` is another origin than 127.0.0.1, which a hub with a list does not let in by itself.
#[test]
fn a_page_of_a_listed_origin_reads_the_hub_in_a_browser_and_a_page_of_another_does_not() {
    let page = Pages::start();
    let hub = Hub::start_with(&[&format!("server.origins={}", page.origin("127.0.0.1"))]);
    let mut command = node("cors.mjs", "playwright-core");
    command.args([&page.origin("127.0.0.1"), &page.origin("localhost"), &hub.http_url()]);
    let mut script = Script::spawn(command);
    let listed = script.until("page").pop().unwrap();
    assert_eq!(listed["post"], json!({"data": {"__typename": "Query"}}), "{listed}");
    assert_eq!(listed["get"], json!({"data": {"__typename": "Query"}}), "{listed}");
    assert_eq!(listed["refused"], 400, "what is refused can be read: {listed}");
    assert_eq!(listed["events"]["data"]["feedStatus"]["name"], "files", "{listed}");
    let other = script.until("page").pop().unwrap();
    assert_eq!(other["post"], "TypeError: Failed to fetch", "{other}");
    assert_eq!(other["get"], "TypeError: Failed to fetch", "{other}");
    assert_eq!(other["events"], "error", "{other}");
    script.finish();
}

/// An empty page at any path, until the test ends.
struct Pages(SocketAddr);

impl Pages {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\
                      Connection: close\r\n\r\n",
                );
            }
        });
        Self(address)
    }

    fn origin(&self, host: &str) -> String {
        format!("http://{host}:{}", self.0.port())
    }
}

#[tokio::test]
async fn graphiql_without_internet_shows_live_frames_survives_a_restart_and_fits_a_phone() {
    let mut hub = Hub::start();
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    Client::knowing(hub.address(), MARKET).await;
    graphiql(&hub);

    let screenshot = std::env::var_os("SPREADLY_SCREENSHOT")
        .map_or_else(|| hub.folder().join("graphiql.png"), Into::into);
    let mut command = node("graphiql.mjs", "playwright-core");
    command.arg(format!("http://{}", hub.address())).arg(&screenshot);
    let mut script = Script::spawn(command);
    assert_eq!(script.until("loaded").pop().unwrap()["path"], "/graphiql");

    // The default document asks for a market that this hub has.
    let shows = |script: &mut Script, what: &[&str]| loop {
        let text = script.until("response").pop().unwrap()["text"].to_string();
        if what.iter().all(|one| text.contains(one)) {
            break;
        }
    };
    shows(&mut script, &["BookSnapshot", "INITIAL"]);
    hub.append_lines("book.ndjson", &[market::step(MARKET, 0)]);
    shows(&mut script, &["BookDelta", "2.00000000"]);
    hub.append_lines("book.ndjson", &[market::step(MARKET, 1)]);
    shows(&mut script, &["BookDelta", "3.00000000"]);

    hub.kill9();
    let status = script.until("status").pop().unwrap()["text"].to_string();
    assert!(status.contains("does not answer"), "{status}");
    hub.restart();
    let status = script.until("status").pop().unwrap()["text"].to_string();
    assert_eq!(status, "\"\"", "it is connected again");
    hub.append_lines("book.ndjson", &[market::step(MARKET, 2)]);
    shows(&mut script, &["BookDelta", "4.00000000"]);

    drop(script.child.stdin.take());
    let followed = script.until("followed").pop().unwrap();
    let sockets = followed["sockets"].as_array().unwrap();
    assert!(sockets.iter().all(|one| *one == hub.url()), "on the page's own origin: {sockets:?}");
    let queried = script.until("queried").pop().unwrap()["text"].to_string();
    assert!(queried.contains(MARKET) && queried.contains("lotSize"), "{queried}");
    let phone = script.until("phone").pop().unwrap();
    assert_eq!(phone["scrollWidth"], 390, "{phone}");
    let side = |part: &str, name: &str| phone["boxes"][part][name].as_f64().unwrap();
    for part in [".graphiql-query-editor", ".graphiql-response"] {
        assert!(side(part, "width") > 300.0 && side(part, "height") > 150.0, "{part}: {phone}");
        assert!(side(part, "x") + side(part, "width") <= 390.0, "{part}: {phone}");
        assert!(side(part, "y") + side(part, "height") <= 844.0, "{part}: {phone}");
    }
    let done = script.until("done").pop().unwrap();
    assert_eq!(done["foreign"], json!([]), "requests to elsewhere");
    script.finish();
    assert!(Path::new(&screenshot).exists());
}
