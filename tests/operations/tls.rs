//! The terminal client and the load tester over TLS, and what else begins a connection.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::{Client, Hub, TlsRelay, market};

const MARKET: &str = "XBT-USD";
const SPREADLY: &str = env!("CARGO_BIN_EXE_spreadly");

fn storm() -> PathBuf {
    let storm = Path::new(SPREADLY).with_file_name("spreadly-storm");
    assert!(storm.exists(), "the load tester is not built: cargo build --package spreadly-storm");
    storm
}

/// Off the runtime's thread, on which the relay runs.
async fn output(mut command: Command) -> (Option<i32>, String, String) {
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap());
    let Output { status, stdout, stderr } = ended.await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn command(program: impl AsRef<Path>, arguments: &[&str], trusted: &Path) -> Command {
    let mut command = Command::new(program.as_ref());
    command.args(arguments).env("SSL_CERT_FILE", trusted).env_remove("SSL_CERT_DIR");
    command
}

async fn hub_with_a_book() -> Hub {
    let hub = Hub::start();
    hub.append_lines("book.ndjson", &market::beginning(MARKET));
    Client::knowing(hub.address(), MARKET).await;
    hub
}

#[tokio::test]
async fn subscribe_publish_and_the_load_tester_speak_tls() {
    let hub = hub_with_a_book().await;
    let relay = TlsRelay::start(hub.address()).await;
    let (url, trusted) = (relay.url(), relay.certificate());
    let query = ["subscribe", "--url", &url, "{ markets { id } }"];
    let (code, stdout, stderr) = output(command(SPREADLY, &query, &trusted)).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains(MARKET), "{stdout}");
    let publish = ["publish", "--url", &url, "news", "1"];
    let (code, stdout, stderr) = output(command(SPREADLY, &publish, &trusted)).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("\"topic\":\"news\""), "{stdout}");
    let storm_run = ["run", "--url", &url, "--market", MARKET, "--connections", "3", "--json"];
    let storm_run = [&storm_run[..], &["--duration", "0.1", "--init", "{\"a\":1}"]].concat();
    let (code, stdout, stderr) = output(command(storm(), &storm_run, &trusted)).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("\"ready\":3"), "{stdout}");
}

#[tokio::test]
async fn a_certificate_that_nobody_trusts_is_refused_in_one_line() {
    let hub = hub_with_a_book().await;
    let (relay, other) =
        (TlsRelay::start(hub.address()).await, TlsRelay::start(hub.address()).await);
    let (url, trusted) = (relay.url(), other.certificate());
    let subscription = "subscription { feedStatus { name } }";
    let follow = ["subscribe", "--url", &url, subscription];
    let (code, _, stderr) = output(command(SPREADLY, &follow, &trusted)).await;
    assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("no TLS with the server: invalid peer certificate"), "{stderr}");
    let storm_run = ["run", "--url", &url, "--connections", "2"];
    let (code, _, stderr) = output(command(storm(), &storm_run, &trusted)).await;
    assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("nobody connected (TLS: invalid peer certificate"), "{stderr}");
}

#[tokio::test]
async fn a_header_of_the_upgrade_reaches_the_hub() {
    let hub = hub_with_a_book().await;
    let (url, foreign) = (hub.url(), ["--header", "origin: https://evil.example"]);
    let nowhere = Path::new("/dev/null");
    for arguments in [["subscribe", "{ __typename }"].as_slice(), &["publish", "news", "1"]] {
        let arguments = [arguments, &["--url", &url], &foreign].concat();
        let (code, _, stderr) = output(command(SPREADLY, &arguments, nowhere)).await;
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("403: FORBIDDEN: this Origin is not allowed"), "{stderr}");
    }
    let storm_run = [["run", "--url", &url, "--connections", "2"].as_slice(), &foreign].concat();
    let (code, _, stderr) = output(command(storm(), &storm_run, nowhere)).await;
    let expected = "spreadly-storm: nobody connected (HTTP 403: 2)\n";
    assert_eq!((code, &*stderr), (Some(1), expected));
}
