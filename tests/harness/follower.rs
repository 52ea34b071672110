//! A client's copy of one book, kept by the rules of positions alone: the chain decides what
//! follows, the checksum is computed here, from the wire's own text. Any breach is a panic.

use std::collections::BTreeMap;

use serde_json::Value;

/// Levels a side that the checksum covers.
const CHECKSUM_LEVELS: usize = 10;

/// What every follower asks for.
pub const FIELDS: &str = "__typename market epoch sequence cursor checksum eventTime publishTime \
    ... on BookSnapshot { reason depth bids { price size } asks { price size } } \
    ... on BookDelta { prevSequence mergedEvents bids { price size } asks { price size } } \
    ... on BookHeartbeat { state lastEventAgeMs }";

/// A subscription to a book from its beginning, or after a cursor.
pub fn subscription(market: &str, depth: u32, after: Option<&str>) -> String {
    subscription_at("RAW", market, depth, after)
}

/// The same at a speed.
pub fn subscription_at(speed: &str, market: &str, depth: u32, after: Option<&str>) -> String {
    let after = after.map_or(String::new(), |cursor| format!(r#", after: "{cursor}""#));
    format!(
        r#"subscription {{ orderBook(market: "{market}", depth: {depth}, speed: {speed}{after})
            {{ {FIELDS} }} }}"#
    )
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    Snapshot { reason: String },
    Delta { merged_events: u64 },
    Heartbeat { state: String },
}

pub type Levels = BTreeMap<u128, u128>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Follower {
    price_decimals: usize,
    size_decimals: usize,
    pub position: Option<(String, u64)>,
    pub cursor: Option<String>,
    /// In units of the market's last decimal.
    pub bids: Levels,
    pub asks: Levels,
    pub snapshots: u64,
    pub deltas: u64,
    pub merged_events: u64,
}

impl Follower {
    pub fn new(price_decimals: usize, size_decimals: usize) -> Self {
        Self { price_decimals, size_decimals, ..Self::default() }
    }

    /// Takes one `next` message's frame; panics when it does not follow what came before.
    pub fn apply(&mut self, next: &Value) -> Applied {
        assert_eq!(next["type"], "next", "{next}");
        assert!(next["payload"]["errors"].is_null(), "{next}");
        let frame = &next["payload"]["data"]["orderBook"];
        let text = |key: &str| frame[key].as_str().unwrap_or_else(|| panic!("{key} of {frame}"));
        let epoch = text("epoch").to_owned();
        let sequence: u64 = text("sequence").parse().unwrap();
        let applied = match text("__typename") {
            "BookSnapshot" => {
                self.apply_snapshot(frame);
                self.snapshots += 1;
                Applied::Snapshot { reason: text("reason").to_owned() }
            }
            "BookDelta" => {
                let previous: u64 = text("prevSequence").parse().unwrap();
                let expected = (epoch.clone(), previous);
                assert_eq!(self.position.as_ref(), Some(&expected), "the chain broke at {frame}");
                assert!(sequence > previous, "{frame}");
                self.set_levels(frame);
                let merged_events = frame["mergedEvents"].as_u64().unwrap();
                self.deltas += 1;
                self.merged_events += merged_events;
                Applied::Delta { merged_events }
            }
            "BookHeartbeat" => {
                let expected = (epoch.clone(), sequence);
                assert_eq!(self.position.as_ref(), Some(&expected), "a heartbeat moved: {frame}");
                Applied::Heartbeat { state: text("state").to_owned() }
            }
            other => panic!("no frame of a book: {other}"),
        };
        if !matches!(applied, Applied::Heartbeat { .. }) {
            let checksum = frame["checksum"].as_u64().unwrap();
            assert_eq!(u64::from(self.checksum()), checksum, "the copy differs at {frame}");
        }
        self.position = Some((epoch, sequence));
        self.cursor = Some(text("cursor").to_owned());
        applied
    }

    /// Takes the levels of a snapshot, wherever it was said.
    pub fn apply_snapshot(&mut self, snapshot: &Value) {
        self.bids.clear();
        self.asks.clear();
        self.set_levels(snapshot);
    }

    fn set_levels(&mut self, frame: &Value) {
        for side in ["bids", "asks"] {
            for level in frame[side].as_array().unwrap() {
                self.set(side, level["price"].as_str().unwrap(), level["size"].as_str().unwrap());
            }
        }
    }

    fn set(&mut self, side: &str, price: &str, size: &str) {
        let levels = if side == "bids" { &mut self.bids } else { &mut self.asks };
        let price = units(price, self.price_decimals);
        match units(size, self.size_decimals) {
            0 => levels.remove(&price),
            size => levels.insert(price, size),
        };
    }

    /// Takes an event as a feed writes it: the book that a hub should have.
    pub fn apply_event(&mut self, event: &Value) {
        match event["kind"].as_str().unwrap() {
            "book.snapshot" => (self.bids, self.asks) = Default::default(),
            "book.delta" => {}
            other => panic!("no event of a book: {other}"),
        }
        for side in ["bids", "asks"] {
            for level in event[side].as_array().unwrap() {
                self.set(side, level[0].as_str().unwrap(), level[1].as_str().unwrap());
            }
        }
    }

    /// The best levels alone, as (bids, asks).
    pub fn window(&self, depth: usize) -> (Levels, Levels) {
        let bids = self.bids.iter().rev().take(depth).map(|(price, size)| (*price, *size));
        let asks = self.asks.iter().take(depth).map(|(price, size)| (*price, *size));
        (bids.collect(), asks.collect())
    }

    /// As Kraken's second version defines it. Whole units without a dot are just what it wants:
    /// the digits without leading zeros.
    pub fn checksum(&self) -> u32 {
        let asks = self.asks.iter().take(CHECKSUM_LEVELS);
        let bids = self.bids.iter().rev().take(CHECKSUM_LEVELS);
        let text: String = asks.chain(bids).map(|(price, size)| format!("{price}{size}")).collect();
        crc32(text.as_bytes())
    }
}

/// A decimal of at most `decimals` places in units of the last one.
pub fn units(text: &str, decimals: usize) -> u128 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    assert!(fraction.len() <= decimals, "{text} has more than {decimals} decimals");
    format!("{whole}{fraction:0<decimals$}").parse().unwrap()
}

/// ISO 3309, bit by bit: slow, and nobody's library.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

#[test]
fn the_followers_checksum_is_that_of_krakens_example() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    let mut follower = Follower::new(1, 8);
    let asks = [
        ("45285.2", "0.00100000"),
        ("45286.4", "1.54571953"),
        ("45286.6", "1.54571109"),
        ("45289.6", "1.54560911"),
        ("45290.2", "0.15890660"),
        ("45291.8", "1.54553491"),
        ("45294.7", "0.04454749"),
        ("45296.1", "0.35380000"),
        ("45297.5", "0.09945542"),
        ("45299.5", "0.18772827"),
    ];
    let bids = [
        ("45283.5", "0.10000000"),
        ("45283.4", "1.54582015"),
        ("45282.1", "0.10000000"),
        ("45281.0", "0.10000000"),
        ("45280.3", "1.54592586"),
        ("45279.0", "0.07990000"),
        ("45277.6", "0.03310103"),
        ("45277.5", "0.30000000"),
        ("45277.3", "1.54602737"),
        ("45276.6", "0.15445238"),
    ];
    for (price, size) in asks {
        follower.asks.insert(units(price, 1), units(size, 8));
    }
    for (price, size) in bids {
        follower.bids.insert(units(price, 1), units(size, 8));
    }
    assert_eq!(follower.checksum(), 3_310_070_434);
}
