//! `feed` as a process: captures in, events out, checked with a book that shares no code with the
//! converter. Recorded captures aren't ours to ship: where they are absent that is said aloud, and
//! a small generated capture is checked all the same.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn storm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spreadly-storm")).args(arguments).output().unwrap()
}

/// Runs `feed … --speed max` into a fresh folder; returns the summary and the events.
fn fed(input: &Path, more: &[&str]) -> (Value, Vec<Value>) {
    let folder = tempfile::tempdir().unwrap();
    let to = format!("folder:{}", folder.path().display());
    let mut arguments = vec!["feed", input.to_str().unwrap(), "--to", &to, "--speed", "max"];
    arguments.extend(["--file", "out.ndjson"]);
    arguments.extend(more);
    let output = storm(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = serde_json::from_slice(&output.stdout).unwrap();
    let text = std::fs::read_to_string(folder.path().join("out.ndjson")).unwrap();
    (summary, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A recorded file, or `None` said aloud. In CI a test that can't run fails.
fn recorded(path: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("SPREADLY_TEST_DATA") {
        Some(root) => PathBuf::from(root),
        None => {
            let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
            let roots = workspace.ancestors().skip(1).map(|above| above.join("shared/data"));
            roots.into_iter().find(|root| root.exists()).unwrap_or_default()
        }
    };
    let file = root.join(path);
    if file.exists() {
        return Some(file);
    }
    eprintln!("SKIPPED: recorded data is absent ({path}); set SPREADLY_TEST_DATA to its folder");
    assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "recorded data is absent in CI");
    None
}

/// Text prices compared as text: padded to the same decimals, longer is larger.
#[derive(Default)]
struct TextBook {
    bids: HashMap<String, String>,
    asks: HashMap<String, String>,
}

fn padded(text: &str, decimals: usize) -> String {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}.{fraction:0<decimals$}")
}

fn digits(text: &str) -> String {
    text.replace('.', "").trim_start_matches('0').to_owned()
}

impl TextBook {
    fn apply(&mut self, event: &Value, price_decimals: usize, size_decimals: usize) {
        if event["kind"] == "book.snapshot" {
            *self = Self::default();
        }
        for (side, levels) in [("bids", &mut self.bids), ("asks", &mut self.asks)] {
            for level in event[side].as_array().unwrap() {
                let price = padded(level[0].as_str().unwrap(), price_decimals);
                match level[1].as_str().unwrap() {
                    "0" => levels.remove(&price),
                    size => levels.insert(price, padded(size, size_decimals)),
                };
            }
        }
    }

    fn checksum(&self) -> u32 {
        let sorted = |levels: &HashMap<String, String>| {
            let mut levels: Vec<_> = levels.iter().map(|(p, s)| (p.clone(), s.clone())).collect();
            levels.sort_by_key(|(price, _)| (price.len(), price.clone()));
            levels
        };
        let asks = sorted(&self.asks);
        let mut bids = sorted(&self.bids);
        bids.reverse();
        let top = asks.iter().take(10).chain(bids.iter().take(10));
        crc32(top.map(|(price, size)| digits(price) + &digits(size)).collect::<String>().as_bytes())
    }
}

/// ISO 3309, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// (checksums that match, checksums that don't, largest number of levels a side)
fn verified(events: &[Value]) -> (u64, u64, usize) {
    let mut markets: HashMap<String, (usize, usize, TextBook)> = HashMap::new();
    let (mut matched, mut failed, mut deepest) = (0, 0, 0);
    for event in events {
        let market = event["market"].as_str().unwrap().to_owned();
        if event["kind"] == "market" {
            let decimals = |key: &str| usize::try_from(event[key].as_u64().unwrap()).unwrap();
            let facts = (decimals("priceDecimals"), decimals("sizeDecimals"), TextBook::default());
            assert!(markets.insert(market, facts).is_none());
            continue;
        }
        let (price_decimals, size_decimals, book) = markets.get_mut(&market).unwrap();
        book.apply(event, *price_decimals, *size_decimals);
        deepest = deepest.max(book.bids.len()).max(book.asks.len());
        if let Some(expected) = event["venueChecksum"].as_u64() {
            if u64::from(book.checksum()) == expected { matched += 1 } else { failed += 1 }
        }
    }
    (matched, failed, deepest)
}

#[test]
fn all_4269_kraken_checksums_of_the_recorded_capture_match() {
    let Some(input) = recorded("kraken-2021/KRAKEN.ws.50.0") else { return };
    let (summary, events) = fed(&input, &[]);
    assert_eq!(summary["format"], "kraken-v1");
    assert_eq!(summary["markets"], 10);
    assert_eq!(summary["snapshots"], 10);
    assert_eq!(summary["deltas"], 4269);
    assert_eq!(summary["checksumsMatched"], 4269);
    assert_eq!(verified(&events), (4269, 0, 853));
}

/// Updates here: a replaced level, one price twice, a removal, both sides in one message, and a
/// level pushed out of a depth of two, which must come back only when it is sent again.
#[test]
fn a_generated_kraken_capture_keeps_depth_and_checksums() {
    let head = r#"1.0: [7,{"as":[["2.00","1.000","0.5"],["3.00","1.000","0.5"]],"#;
    let mut capture = format!(
        "{head}\"bs\":[[\"1.00\",\"1.000\",\"0.5\"],[\"0.90\",\"1.000\",\"0.5\"]]}},\
         \"book-2\",\"A/USD\"]\n"
    );
    let mut book = TextBook::default();
    book.apply(
        &json!({"kind": "book.snapshot", "bids": [["1.00", "1.000"], ["0.90", "1.000"]],
                "asks": [["2.00", "1.000"], ["3.00", "1.000"]]}),
        2,
        3,
    );
    let steps = [
        (r#"{"b":[["0.95","2.000","1.1"]]"#, json!([["0.95", "2.000"], ["0.90", "0"]]), json!([])),
        (
            r#"{"a":[["2.50","1.000","1.2"],["2.50","4.000","1.2"]]},{"b":[["1.00","0.000","1.2"]]"#,
            json!([["1.00", "0"]]),
            json!([["2.50", "4.000"], ["3.00", "0"]]),
        ),
        (r#"{"b":[["0.90","1.000","0.5","r"]]"#, json!([["0.90", "1.000"]]), json!([])),
    ];
    for (number, (part, bids, asks)) in steps.iter().enumerate() {
        book.apply(&json!({"kind": "book.delta", "bids": bids, "asks": asks}), 2, 3);
        let (second, sum) = (number + 2, book.checksum());
        capture += &format!("{second}.5: [7,{part},\"c\":\"{sum}\"}},\"book-2\",\"A/USD\"]\n");
    }
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("capture");
    std::fs::write(&input, capture).unwrap();
    let (summary, events) = fed(&input, &["--ids", "--format", "kraken-v1"]);
    assert_eq!(summary["checksumsMatched"], 3);
    assert_eq!(summary["truncatedLevels"], 2);
    assert_eq!(verified(&events), (3, 0, 2));
    assert_eq!(events[3]["id"], "kraken-v1/capture/3/A-USD");
    assert_eq!(events[3]["time"], "1970-01-01T00:00:01.200000Z");
}

#[test]
fn kraken_v2_numbers_keep_their_digits_and_checksums() {
    let Some(input) = recorded("six-venues-2026/kraken_book.jsonl") else { return };
    let (summary, events) = fed(&input, &[]);
    assert_eq!(summary["format"], "kraken-v2");
    assert_eq!(summary["checksumFaults"], 0);
    assert_eq!(verified(&events), (4, 0, 10));
}

#[test]
fn every_venues_capture_is_guessed_and_has_no_gap() {
    let cases = [
        ("okx_books.jsonl", None, "okx", 6, 0),
        ("coinbase_l2.jsonl", None, "coinbase", 6, 0),
        ("bybit_orderbook.jsonl", None, "bybit", 8, 0),
        ("bitstamp_diff.jsonl", Some("bitstamp_snapshot.json"), "bitstamp", 3, 8),
        ("binance_us_depth.jsonl", Some("binance_us_snapshot.json"), "binance", 16, 9),
    ];
    for (file, snapshot, format, deltas, stale) in cases {
        let Some(input) = recorded(&format!("six-venues-2026/{file}")) else { return };
        let snapshot = snapshot.and_then(|name| recorded(&format!("six-venues-2026/{name}")));
        let more: Vec<&str> =
            snapshot.iter().flat_map(|path| ["--snapshot", path.to_str().unwrap()]).collect();
        let (summary, _) = fed(&input, &more);
        eprintln!("{summary}");
        assert_eq!(summary["format"], format);
        assert_eq!(summary["snapshots"], 1);
        assert_eq!((&summary["deltas"], &summary["stale"]), (&json!(deltas), &json!(stale)));
        assert_eq!(summary["gaps"], 0);
        assert_eq!(summary["unanchored"], 0);
        assert_eq!(summary["refusedLines"], 0);
    }
}

#[test]
fn every_order_of_the_bitstamp_capture_becomes_an_event_and_its_chain_is_whole() {
    let Some(input) = recorded("six-venues-2026/bitstamp_live_orders.jsonl") else { return };
    let (summary, events) = fed(&input, &["--ids"]);
    let counts = ["created", "changed", "deleted", "gaps", "orderFaults", "refusedLines"];
    assert_eq!(counts.map(|key| summary[key].as_u64().unwrap()), [248, 2, 250, 0, 0, 0]);
    // 98 of the 250 were placed before the recording began; one of them was changed too.
    assert_eq!((&summary["earlierOrders"], &summary["ofEarlierOrders"]), (&json!(98), &json!(99)));
    let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
    assert_eq!((of("order.placed"), of("order.filled"), of("order.canceled")), (248, 4, 248));
    assert_eq!(events[0]["market"], "BTC-USD");
    assert_eq!(events[1]["id"], "bitstamp/bitstamp_live_orders.jsonl/2/BTC-USD");
}

fn live_order(event: &str, number: u64, order: u64, amount: &str, traded: &str) -> Value {
    json!({"event": event, "channel": "live_orders_ausd", "event_id": format!("e{number}"),
           "pre_event_id": format!("e{}", number - 1),
           "data": {"id_str": order.to_string(), "order_type": order % 2, "price_str": "2.50",
                    "microtimestamp": "1000000", "amount_str": amount, "amount_traded": traded}})
}

#[test]
fn orders_are_placed_filled_and_canceled_and_what_does_not_fit_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("capture");
    let capture = [
        live_order("order_created", 1, 7, "3.0", "0"),
        live_order("order_changed", 2, 7, "2.0", "1.0"),
        live_order("order_deleted", 3, 7, "1.5", "0.5"),
        live_order("order_created", 4, 8, "1.0", "0"),
        // One message is missing, more is gone than was traded, and 9 was never placed.
        live_order("order_changed", 6, 8, "0.5", "0.2"),
        live_order("order_deleted", 7, 9, "4.0", "0"),
    ];
    std::fs::write(&input, capture.map(|line| line.to_string()).join("\n")).unwrap();
    let (summary, events) = fed(&input, &[]);
    let counts = ["created", "changed", "deleted", "gaps", "orderFaults", "earlierOrders"];
    assert_eq!(counts.map(|key| summary[key].as_u64().unwrap()), [2, 2, 2, 1, 1, 1]);
    let described = |event: &Value| {
        let text = |key: &str| event[key].as_str().unwrap_or("-").to_owned();
        [text("kind"), text("order"), text("side"), text("size")].join(" ")
    };
    let described: Vec<_> = events[1..].iter().map(described).collect();
    assert_eq!(
        described,
        [
            "order.placed 7 SELL 3.0",
            "order.filled 7 - 1.0",
            "order.filled 7 - 0.5",
            "order.canceled 7 - -",
            "order.placed 8 BUY 1.0",
            "order.filled 8 - 0.2",
            "order.canceled 9 - -",
        ]
    );
}

#[test]
fn a_removed_line_of_a_numbered_venue_is_one_gap() {
    let line = |previous: i64, this: i64, action: &str| {
        json!({"arg": {"channel": "books", "instId": "A-USD"}, "action": action, "data": [{
            "asks": [["2", "1", "0", "1"]], "bids": [], "ts": "1", "checksum": 0,
            "seqId": this, "prevSeqId": previous}]})
        .to_string()
    };
    let capture = [line(-1, 5, "snapshot"), line(5, 9, "update"), line(11, 12, "update")];
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("capture");
    std::fs::write(&input, capture.join("\n")).unwrap();
    let (summary, _) = fed(&input, &[]);
    assert_eq!((&summary["gaps"], &summary["deltas"]), (&json!(1), &json!(2)));
}

#[test]
fn a_line_that_is_not_the_venues_is_reported_and_what_follows_still_flows() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("capture");
    let good = r#"{"e":"depthUpdate","E":1,"s":"AUSDT","U":2,"u":2,"b":[["1.0","1"]],"a":[]}"#;
    let rest = r#"{"stream":"ausdt@book","data":{"lastUpdateId":1,"bids":[],"asks":[]}}"#;
    std::fs::write(&input, format!("{rest}\n{{broken\n{good}\n")).unwrap();
    let (summary, events) = fed(&input, &["--format", "binance"]);
    assert_eq!((&summary["refusedLines"], &summary["deltas"]), (&json!(1), &json!(1)));
    assert_eq!(events[0]["market"], "A-USDT");
}

#[test]
fn a_limit_counts_book_events() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("capture");
    let mut capture = r#"{"lastUpdateId":1,"bids":[],"asks":[]}"#.to_owned();
    for id in 2..9 {
        capture += &format!(
            "\n{{\"e\":\"depthUpdate\",\"E\":1,\"s\":\"AUSDT\",\"U\":{id},\"u\":{id},\
             \"b\":[[\"1.0\",\"{id}\"]],\"a\":[]}}"
        );
    }
    std::fs::write(&input, capture).unwrap();
    let (summary, events) = fed(&input, &["--limit", "3"]);
    assert_eq!(summary["events"], 4);
    assert_eq!(events.len(), 4);
}
