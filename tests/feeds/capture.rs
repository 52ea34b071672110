//! A venue's recorded day against the hub: a client that knows only our frames has, after every
//! one of the venue's updates, the very checksum that the venue sent with it.
//!
//! A frame's `mergedEvents` says how many updates it has, so update k of a market is proven
//! by the frame that reaches it. Updates that a RAW frame skipped changed nothing in the window:
//! their checksum must be that of the book which the client held before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

use crate::harness::client::PATIENCE;
use crate::harness::follower::{self, Applied};
use crate::harness::{Client, Follower, Hub, loud, market};

/// Of the recording, as its README says.
const RECORDED_UPDATES: usize = 4_269;
const RECORDED_MARKETS: usize = 10;
const GENERATED_UPDATES: usize = 4_000;
/// Above all that the recording makes of one market, so that no reader lags: merging for a slow
/// reader is right, but then not every update is proven.
const WIDE_RINGS: &str = "limits.ring_bytes_per_stream=16777216";

/// Events of one feed and the checksum that must hold after each delta.
struct Recording {
    /// Definitions and first books.
    beginnings: Vec<String>,
    deltas: Vec<String>,
    /// By market, in the feed's order.
    checksums: BTreeMap<String, Vec<u32>>,
    /// By market: the book after everything.
    ends: BTreeMap<String, Follower>,
    decimals: BTreeMap<String, (usize, usize)>,
}

impl Recording {
    /// Of lines as a feed has them. `venueChecksum` is the venue's word; where there is none, the
    /// checksum is that of a book kept here.
    fn of(lines: Vec<String>) -> Self {
        let mut recording = Self {
            beginnings: Vec::new(),
            deltas: Vec::new(),
            checksums: BTreeMap::new(),
            ends: BTreeMap::new(),
            decimals: BTreeMap::new(),
        };
        for line in lines {
            let event: Value = serde_json::from_str(&line).unwrap();
            let market = event["market"].as_str().unwrap().to_owned();
            if event["kind"] == "market" {
                let decimals = |key: &str| usize::try_from(event[key].as_u64().unwrap()).unwrap();
                let decimals = (decimals("priceDecimals"), decimals("sizeDecimals"));
                recording.ends.insert(market.clone(), Follower::new(decimals.0, decimals.1));
                recording.decimals.insert(market, decimals);
                recording.beginnings.push(line);
                continue;
            }
            let book = recording.ends.get_mut(&market).unwrap();
            book.apply_event(&event);
            if event["kind"] == "book.delta" {
                let checksum = match &event["venueChecksum"] {
                    Value::Null => book.checksum(),
                    venues => u32::try_from(venues.as_u64().unwrap()).unwrap(),
                };
                recording.checksums.entry(market).or_default().push(checksum);
                recording.deltas.push(line);
            } else {
                recording.beginnings.push(line);
            }
        }
        recording
    }

    /// The venue's, through the converter that users have; else a generated one, said aloud.
    fn load() -> Self {
        let Some(capture) = recorded("kraken-2021/KRAKEN.ws.50.0") else {
            loud::without_capture(
                "the recorded capture kraken-2021/KRAKEN.ws.50.0 is absent: set SPREADLY_TEST_DATA \
                 to its folder. Running on generated data with a book kept by the test instead",
            );
            let recording = Self::of(generated(20_210_417));
            assert_eq!(recording.deltas.len(), GENERATED_UPDATES);
            return recording;
        };
        let recording = Self::of(converted(&capture));
        assert_eq!(recording.checksums.len(), RECORDED_MARKETS);
        assert_eq!(recording.deltas.len(), RECORDED_UPDATES);
        recording
    }
}

/// A file of the recorded data, where that is.
pub fn recorded(file: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("SPREADLY_TEST_DATA") {
        Some(root) => PathBuf::from(root),
        None => {
            let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
            let beside = checkout.ancestors().skip(1).map(|above| above.join("shared/data"));
            beside.into_iter().find(|root| root.exists())?
        }
    };
    Some(root.join(file)).filter(|file| file.exists())
}

/// The events of a capture, through the converter that users have.
pub fn converted(capture: &Path) -> Vec<String> {
    converted_with(capture, None)
}

/// The same with the REST book that its differences belong to. Cargo names the programs of this
/// package alone to a test; the load tester's is built beside it.
pub fn converted_with(capture: &Path, snapshot: Option<&Path>) -> Vec<String> {
    let storm = Path::new(env!("CARGO_BIN_EXE_spreadly")).with_file_name("spreadly-storm");
    assert!(storm.exists(), "the load tester is not built: cargo build --package spreadly-storm");
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(storm)
        .arg("feed")
        .arg(capture)
        .args(["--to", &format!("folder:{}", folder.path().display())])
        .args(["--file", "capture.ndjson", "--speed", "max"])
        .args(snapshot.iter().flat_map(|own| ["--snapshot".as_ref(), own.as_os_str()]))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(folder.path().join("capture.ndjson")).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Ten markets whose levels come, change and go on both sides of every window's edge.
fn generated(seed: u64) -> Vec<String> {
    loud::say(&format!("seed {seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let markets: Vec<_> = (0..10).map(|number| format!("G{number}-USD")).collect();
    let mut lines: Vec<_> = markets.iter().flat_map(|market| market::beginning(market)).collect();
    for _ in 0..GENERATED_UPDATES {
        let market = &markets[random.random_range(0..markets.len())];
        let bid = random.random_bool(0.5);
        let from_best = random.random_range(0..400);
        let price = if bid { 1_000 - from_best } else { 1_010 + from_best };
        let price = format!("{}.{}", price / 10, price % 10);
        let size = if random.random_bool(0.3) { 0 } else { random.random_range(1..1_000_u32) };
        let level = [(price.as_str(), &*format!("{size}.00000000"))];
        let (bids, asks) = if bid { (&level[..], &[][..]) } else { (&[][..], &level[..]) };
        lines.push(market::delta(market, bids, asks));
    }
    lines
}

/// What one market's client has and how far it is proven.
struct Proof {
    copy: Follower,
    updates: usize,
    matched: usize,
    frames: usize,
}

impl Proof {
    /// `every_update`: the speed is RAW, so updates that were skipped are proven too.
    fn take(&mut self, next: &Value, expected: &[u32], depth: usize, every_update: bool) {
        let held = self.copy.checksum();
        let Applied::Delta { merged_events } = self.copy.apply(next) else { return };
        let reached = self.updates + usize::try_from(merged_events).unwrap();
        let (last, skipped) = expected[self.updates..reached].split_last().unwrap();
        if every_update {
            for (number, checksum) in skipped.iter().enumerate() {
                let number = self.updates + number;
                assert_eq!(held, *checksum, "skipped update {number} before {next}");
            }
            self.matched += skipped.len();
        }
        // The frame's own checksum was compared with the copy's when it was applied.
        assert_eq!(self.copy.checksum(), *last, "update {reached} by {next}");
        assert!(
            self.copy.bids.len() <= depth && self.copy.asks.len() <= depth,
            "beyond the window"
        );
        self.matched += 1;
        self.updates = reached;
        self.frames += 1;
    }
}

/// Follows every market on one socket while the recording plays; how many updates were proven, and
/// by how many frames.
async fn follow_all(speed: &str, depth: u32) -> (Recording, usize, usize) {
    let recording = Recording::load();
    let hub = Hub::start_with(&[WIDE_RINGS]);
    hub.append_lines("capture.ndjson", &recording.beginnings);
    let last = recording.decimals.keys().next_back().unwrap();
    let mut client = Client::knowing(hub.address(), last).await;
    until_read(&hub, recording.beginnings.len());

    let depth_levels = usize::try_from(depth).unwrap();
    let mut proofs = BTreeMap::new();
    for (market, (price, size)) in &recording.decimals {
        let query = follower::subscription_at(speed, market, depth, None);
        client.subscribe(market, &query).await;
        let mut copy = Follower::new(*price, *size);
        let first = client.message().await;
        assert_eq!(copy.apply(&first), Applied::Snapshot { reason: "INITIAL".to_owned() });
        proofs.insert(market.clone(), Proof { copy, updates: 0, matched: 0, frames: 0 });
    }

    let file = hub.feed("capture.ndjson");
    let lines = recording.deltas.clone();
    // At its own pace beside the client, in pieces, so that merged speeds have several frames.
    let writer = std::thread::spawn(move || {
        for piece in lines.chunks(20) {
            crate::harness::hub::append(&file, piece);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    let all = recording.deltas.len();
    let playing = async {
        while proofs.values().map(|proof: &Proof| proof.updates).sum::<usize>() < all {
            let next = client.message().await;
            let market = next["id"].as_str().unwrap();
            let proof = proofs.get_mut(market).unwrap();
            proof.take(&next, &recording.checksums[market], depth_levels, speed == "RAW");
        }
    };
    tokio::time::timeout(PATIENCE * 2, playing).await.expect("every update is covered by a frame");
    writer.join().unwrap();

    for (market, proof) in &proofs {
        let (bids, asks) = recording.ends[market].window(depth_levels);
        assert_eq!((&proof.copy.bids, &proof.copy.asks), (&bids, &asks), "{market}");
        assert_eq!(proof.copy.snapshots, 1, "{market}");
        let asked = hub.query(&format!(
            r#"{{ orderBook(market: "{market}", depth: {depth}) {{ sequence checksum }} }}"#
        ));
        let sequence = proof.copy.position.as_ref().unwrap().1.to_string();
        assert_eq!(asked["orderBook"]["sequence"], sequence, "{market}");
        assert_eq!(asked["orderBook"]["checksum"], proof.copy.checksum(), "{market}");
    }
    let matched = proofs.values().map(|proof| proof.matched).sum();
    let frames = proofs.values().map(|proof| proof.frames).sum();
    loud::say(&format!("{speed} at depth {depth}: {matched} of {all} updates by {frames} frames"));
    (recording, matched, frames)
}

/// Waits until the feed has taken this many events.
pub fn until_read(hub: &Hub, events: usize) {
    let began = std::time::Instant::now();
    let all = events.to_string();
    while hub.query("{ feeds { eventsTotal } }")["feeds"][0]["eventsTotal"] != all.as_str() {
        assert!(began.elapsed() < PATIENCE, "the feed never took {events} events");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[tokio::test]
async fn at_depth_1000_every_update_of_the_venue_has_the_venues_checksum() {
    let (recording, matched, _) = follow_all("RAW", 1_000).await;
    assert_eq!(matched, recording.deltas.len());
}

#[tokio::test]
async fn at_depth_10_every_update_of_the_venue_has_the_venues_checksum() {
    let (recording, matched, frames) = follow_all("RAW", 10).await;
    assert_eq!(matched, recording.deltas.len());
    assert!(frames < matched, "no update was outside of the window: this has proven nothing");
}

#[tokio::test]
async fn merged_frames_end_at_the_venues_checksum() {
    let (recording, matched, frames) = follow_all("MS_100", 25).await;
    assert_eq!(matched, frames, "one proven update a frame");
    assert!(frames < recording.deltas.len() / 2, "nothing was merged: this has proven nothing");
}

#[tokio::test]
async fn merged_frames_at_depth_1000_end_at_the_venues_checksum() {
    let (recording, matched, frames) = follow_all("MS_100", 1_000).await;
    assert_eq!(matched, frames, "one proven update a frame");
    assert!(frames < recording.deltas.len() / 2, "nothing was merged: this has proven nothing");
}
