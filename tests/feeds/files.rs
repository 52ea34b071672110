//! What a feed does when its source, or the disk below the hub, lets it down: it says so to
//! everyone who follows, and loses nothing.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::client::PATIENCE;
use crate::harness::follower::{self, Applied};
use crate::harness::{Client, Follower, Hub, loud, market};

const MARKET: &str = "XBT-USD";
const FILE: &str = "book.ndjson";
const FEED_FIELDS: &str = "name kind state reason eventsTotal refusedTotal \
    lastRefusal { source place reason }";

/// The one feed of the hub.
fn feed(hub: &Hub) -> Value {
    hub.query(&format!("{{ feeds {{ {FEED_FIELDS} }} }}"))["feeds"][0].clone()
}

/// The feed once it is as awaited.
fn feed_once(hub: &Hub, awaited: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let feed = feed(hub);
        if awaited(&feed) {
            return feed;
        }
        assert!(began.elapsed() < PATIENCE, "what was awaited never came; last: {feed}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A subscriber of `feedStatus`, up to the frame that is as awaited.
async fn status_where(client: &mut Client, awaited: impl Fn(&Value) -> bool) -> Value {
    let reading = async {
        loop {
            let message = client.message().await;
            assert_eq!(message["type"], "next", "{message}");
            let feed = &message["payload"]["data"]["feedStatus"];
            if awaited(feed) {
                return feed.clone();
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("feedStatus says it")
}

async fn feed_status(hub: &Hub) -> Client {
    let mut client = Client::connected(hub.address()).await;
    client.subscribe("feeds", &format!("subscription {{ feedStatus {{ {FEED_FIELDS} }} }}")).await;
    client
}

async fn follower_of(hub: &Hub) -> (Client, Follower) {
    let mut client = Client::knowing(hub.address(), MARKET).await;
    client.subscribe("book", &follower::subscription(MARKET, 25, None)).await;
    let mut copy = Follower::new(1, 8);
    let first = client.message().await;
    assert_eq!(copy.apply(&first), Applied::Snapshot { reason: "INITIAL".to_owned() });
    (client, copy)
}

/// Applies frames up to a heartbeat that says this state.
async fn heartbeat(client: &mut Client, copy: &mut Follower, state: &str) {
    let awaited = Applied::Heartbeat { state: state.to_owned() };
    let reading = async {
        loop {
            let message = client.message().await;
            if copy.apply(&message) == awaited {
                return;
            }
        }
    };
    let what = format!("a heartbeat says {state}");
    tokio::time::timeout(PATIENCE, reading).await.expect(&what);
}

fn steps(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| market::step(MARKET, number)).collect()
}

async fn follow(client: &mut Client, copy: &mut Follower, steps: u64) {
    let awaited = market::bids_after(steps);
    client.follow(copy, |copy| copy.bids == awaited).await;
}

#[tokio::test]
async fn a_malformed_line_is_counted_and_named_and_the_next_one_flows() {
    let hub = Hub::start();
    hub.append_lines(FILE, &market::beginning(MARKET));
    let (mut client, mut copy) = follower_of(&hub).await;
    let mut watcher = feed_status(&hub).await;
    assert_eq!(status_where(&mut watcher, |_| true).await["refusedTotal"], "0");

    let unknown_kind = format!(r#"{{"kind":"book.deltas","market":"{MARKET}"}}"#);
    let unknown_market = market::delta("ABC-USD", &[("1.0", "1.00000000")], &[]);
    let too_precise = market::delta(MARKET, &[("100.01", "1.00000000")], &[]);
    let negative = market::delta(MARKET, &[("100.0", "-1")], &[]);
    let faulty =
        ["not json", "{", "[]", "null", &unknown_kind, &unknown_market, &too_precise, &negative];
    let mut place = 2;
    for (number, line) in faulty.iter().enumerate() {
        let step = number as u64;
        let byte = fs::metadata(hub.feed(FILE)).unwrap().len();
        hub.append_lines(FILE, &[line, market::step(MARKET, step).as_str()]);
        follow(&mut client, &mut copy, step + 1).await;

        let refused = (step + 1).to_string();
        let named =
            status_where(&mut watcher, |feed| feed["refusedTotal"] == refused.as_str()).await;
        assert_eq!(named["state"], "LIVE", "{named}");
        assert_eq!(named["lastRefusal"]["source"], FILE, "{line}: {named}");
        let at = format!("line {} (byte {byte})", place + 1);
        assert_eq!(named["lastRefusal"]["place"], at, "{line}: {named}");
        assert!(
            named["lastRefusal"]["reason"].as_str().is_some_and(|why| why.len() > 5),
            "{named}"
        );
        place += 2;
    }
    let events = (2 + faulty.len()).to_string();
    let all = feed(&hub);
    assert_eq!(all["eventsTotal"], events.as_str(), "{all}");
    assert_eq!(copy.snapshots, 1);
}

#[tokio::test]
async fn a_folder_that_is_gone_halts_every_book_until_it_is_back() {
    let hub = Hub::start();
    hub.append_lines(FILE, &market::beginning(MARKET));
    let (mut client, mut copy) = follower_of(&hub).await;
    hub.append_lines(FILE, &steps(0..5));
    follow(&mut client, &mut copy, 5).await;

    let (feeds, away) = (hub.folder().join("feeds"), hub.folder().join("away"));
    fs::rename(&feeds, &away).unwrap();
    heartbeat(&mut client, &mut copy, "HALTED").await;
    let mut watcher = feed_status(&hub).await;
    let halted = status_where(&mut watcher, |feed| feed["state"] == "HALTED").await;
    let reason = halted["reason"].as_str().unwrap();
    assert!(reason.starts_with("the folder feeds can't be read"), "{reason}");
    let (status, rows) = hub.admin_page("/readyz");
    assert_eq!(status, 503, "{rows}");
    assert!(rows.contains("can't be read"), "{rows}");
    // A client that joins now receives it at once.
    let (mut late, mut late_copy) = follower_of(&hub).await;
    heartbeat(&mut late, &mut late_copy, "HALTED").await;

    // Written where nobody looks, and there when the folder is back.
    crate::harness::hub::append(&away.join(FILE), &steps(5..10));
    fs::rename(&away, &feeds).unwrap();
    heartbeat(&mut client, &mut copy, "LIVE").await;
    hub.append_lines(FILE, &steps(10..15));
    follow(&mut client, &mut copy, 15).await;
    follow(&mut late, &mut late_copy, 15).await;
    let events = (2 + 15).to_string();
    let feed = feed_once(&hub, |feed| feed["eventsTotal"] == events.as_str());
    assert_eq!((&feed["state"], &feed["reason"]), (&json!("LIVE"), &Value::Null), "{feed}");
    assert_eq!(hub.admin_page("/readyz").0, 200);
    assert_eq!((copy.snapshots, late_copy.snapshots), (1, 1));
}

/// Becomes a hub that a file's permissions stop though it is root's.
const WITHOUT_ROOTS_WAY: [&str; 5] = [
    "setpriv",
    "--bounding-set",
    "-dac_override,-dac_read_search",
    "--inh-caps",
    "-dac_override,-dac_read_search",
];

#[tokio::test]
async fn a_file_that_cant_be_read_halts_its_own_books_until_it_is_mended() {
    use std::os::unix::fs::PermissionsExt as _;

    const OTHER: &str = "ERG-USD";
    let aside = tempfile::tempdir().unwrap();
    let locked = aside.path().join("locked.ndjson");
    crate::harness::hub::append(&locked, &steps(0..5));
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    let root = File::open(&locked).is_ok();
    if root && Command::new("setpriv").arg("--version").output().is_err() {
        return loud::not_run("a file that can't be read: this is root, and setpriv is missing");
    }
    let starter = if root { &WITHOUT_ROOTS_WAY[..] } else { &[] };
    let mut hub = Hub::start_by(starter, &[]);
    hub.append_lines("other.ndjson", &market::beginning(OTHER));
    hub.append_lines(FILE, &market::beginning(MARKET));
    let (mut client, mut copy) = follower_of(&hub).await;
    let state_of = |hub: &Hub, market: &str| {
        let query = format!("{{ orderBook(market: \"{market}\") {{ state }} }}");
        hub.query(&query)["orderBook"]["state"].clone()
    };
    feed_once(&hub, |_| state_of(&hub, OTHER) == "LIVE");

    // Whole at once, as a program puts a file there.
    fs::rename(&locked, hub.feed(FILE)).unwrap();
    heartbeat(&mut client, &mut copy, "HALTED").await;
    let halted = feed_once(&hub, |feed| feed["state"] == "HALTED");
    assert!(halted["reason"].as_str().unwrap().contains(FILE), "{halted}");
    // What can be read goes on, and says so.
    let offer = market::delta(OTHER, &[], &[("101.0", "7.00000000")]);
    hub.append_lines("other.ndjson", &[offer]);
    let asks = "asks { size }";
    let query = format!("{{ orderBook(market: \"{OTHER}\", depth: 1) {{ state {asks} }} }}");
    let book = json!({ "state": "LIVE", "asks": [{ "size": "7.00000000" }] });
    feed_once(&hub, |_| hub.query(&query)["orderBook"] == book);
    assert_eq!(hub.admin_page("/readyz").0, 200);

    // A restart knows which file brings which book.
    hub.kill9();
    hub.restart();
    feed_once(&hub, |feed| feed["state"] == "HALTED");
    feed_once(&hub, |_| state_of(&hub, MARKET) == "HALTED");
    assert_eq!(state_of(&hub, OTHER), "LIVE");
    let mut client = Client::connected(hub.address()).await;
    let cursor = copy.cursor.clone();
    client.subscribe("book", &follower::subscription(MARKET, 25, cursor.as_deref())).await;
    heartbeat(&mut client, &mut copy, "HALTED").await;

    fs::set_permissions(hub.feed(FILE), fs::Permissions::from_mode(0o644)).unwrap();
    heartbeat(&mut client, &mut copy, "LIVE").await;
    follow(&mut client, &mut copy, 5).await;
    assert_eq!(copy.snapshots, 1);
}

#[tokio::test]
async fn a_log_that_is_deleted_halts_every_book_until_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log.db");
    let url = format!("sqlite:{}", log.display());
    let hub = Hub::start_with(&[&format!("store.url={url}")]);
    hub.append_lines(FILE, &market::beginning(MARKET));
    let (mut client, mut copy) = follower_of(&hub).await;
    hub.append_lines(FILE, &steps(0..5));
    follow(&mut client, &mut copy, 5).await;
    // Its content is there as long as the hub runs.
    let aside = folder.path().join("aside.db");
    fs::rename(&log, &aside).unwrap();
    // At once, though nothing is written.
    heartbeat(&mut client, &mut copy, "HALTED").await;
    let halted = feed_once(&hub, |feed| feed["state"] == "HALTED");
    let reason = halted["reason"].as_str().unwrap();
    assert!(reason.contains("log.db was deleted or replaced"), "{reason}");
    assert_eq!(hub.admin_page("/readyz").0, 503);
    hub.append_lines(FILE, &steps(5..10));
    fs::rename(&aside, &log).unwrap();
    heartbeat(&mut client, &mut copy, "LIVE").await;
    follow(&mut client, &mut copy, 10).await;
    assert_eq!((copy.snapshots, copy.merged_events), (1, 10));
    assert_eq!(hub.logged(&log, &format!("book:{MARKET}"))[1..], steps(0..10));
}

/// A file system of its own, as small as it is said; taken off at the end.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(folder.path())
            .output()
            .ok()?;
        mounted.status.success().then_some(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all that is left; gives the file to be removed.
    fn fill(&self) -> std::path::PathBuf {
        let filler = self.path().join("filler");
        let mut file = File::create(&filler).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the hub that a test declared later may still have its store open.
        drop(Command::new("umount").arg("--lazy").arg(self.path()).status());
    }
}

#[tokio::test]
async fn a_full_disk_halts_every_feed_and_nothing_is_lost_once_there_is_space() {
    let Some(disk) = SmallDisk::mount(4 * 1024 * 1024) else {
        return loud::not_run("a full disk: only root can mount a small one");
    };
    let store = disk.path().join("spreadly.db");
    let mut hub = Hub::start_with(&[&format!("store.url=sqlite:{}", store.display())]);
    hub.append_lines(FILE, &market::beginning(MARKET));
    let (mut client, mut copy) = follower_of(&hub).await;
    hub.append_lines(FILE, &steps(0..10));
    follow(&mut client, &mut copy, 10).await;

    // The log has some room of its own in its files, so more is written than that can hold.
    let filler = disk.fill();
    let mut written = 10;
    let began = Instant::now();
    while feed(&hub)["state"] != "HALTED" {
        assert!(began.elapsed() < PATIENCE, "{written} lines fit on a full disk");
        hub.append_lines(FILE, &steps(written..written + 500));
        written += 500;
        std::thread::sleep(Duration::from_millis(20));
    }
    heartbeat(&mut client, &mut copy, "HALTED").await;
    let halted = feed(&hub);
    let reason = halted["reason"].as_str().unwrap();
    assert!(reason.contains("can't be written") && reason.contains("full"), "{reason}");
    assert_eq!(hub.admin_page("/readyz").0, 503);
    hub.append_lines(FILE, &steps(written..written + 10));
    written += 10;

    fs::remove_file(filler).unwrap();
    heartbeat(&mut client, &mut copy, "LIVE").await;
    follow(&mut client, &mut copy, written).await;
    assert_eq!(copy.snapshots, 1);
    assert_eq!(copy.merged_events, written);
    assert_eq!(hub.logged(&store, &format!("book:{MARKET}"))[1..], steps(0..written));

    // Nor did the fault leave something that a restart would stumble over.
    hub.kill9();
    hub.restart();
    let cursor = copy.cursor.clone();
    let mut client = Client::connected(hub.address()).await;
    client.subscribe("book", &follower::subscription(MARKET, 25, cursor.as_deref())).await;
    hub.append_lines(FILE, &steps(written..written + 1));
    follow(&mut client, &mut copy, written + 1).await;
    assert_eq!(copy.snapshots, 1);
}

#[tokio::test]
async fn a_hub_killed_on_a_full_disk_goes_on_where_its_log_ends() {
    let Some(disk) = SmallDisk::mount(4 * 1024 * 1024) else {
        return loud::not_run("a kill on a full disk: only root can mount a small one");
    };
    let store = disk.path().join("spreadly.db");
    let mut hub = Hub::start_with(&[&format!("store.url=sqlite:{}", store.display())]);
    hub.append_lines(FILE, &market::beginning(MARKET));
    let (mut client, mut copy) = follower_of(&hub).await;
    let filler = disk.fill();
    let mut written = 0;
    let began = Instant::now();
    while feed(&hub)["state"] != "HALTED" {
        assert!(began.elapsed() < PATIENCE, "{written} lines fit on a full disk");
        hub.append_lines(FILE, &steps(written..written + 500));
        written += 500;
        std::thread::sleep(Duration::from_millis(20));
    }
    heartbeat(&mut client, &mut copy, "HALTED").await;
    hub.kill9();
    fs::remove_file(filler).unwrap();
    hub.restart();

    let cursor = copy.cursor.clone();
    let mut client = Client::connected(hub.address()).await;
    client.subscribe("book", &follower::subscription(MARKET, 25, cursor.as_deref())).await;
    follow(&mut client, &mut copy, written).await;
    assert_eq!(copy.snapshots, 1);
    assert_eq!(copy.merged_events, written);
    assert_eq!(hub.logged(&store, &format!("book:{MARKET}"))[1..], steps(0..written));
}
