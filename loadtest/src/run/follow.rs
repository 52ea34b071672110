//! A client that trusts nothing: it follows `orderBook` frame by frame, holds the chain of
//! positions to its word, rebuilds the book and recomputes the checksum. A pure state; frames in,
//! counts out.

use crate::book::{Book, CHECKSUM_LEVELS, Side};
use crate::decimal::{decimals_of, scaled};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What every followed operation needs to be asked for.
pub const QUERY: &str = "subscription($market: ID!, $depth: Int, $speed: BookSpeed) { \
    orderBook(market: $market, depth: $depth, speed: $speed) { \
    __typename epoch sequence checksum publishTime \
    ... on BookSnapshot { reason bids { price size } asks { price size } } \
    ... on BookDelta { prevSequence mergedEvents bids { price size } asks { price size } } \
    ... on BookHeartbeat { state lastEventAgeMs } } }";

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FollowCounts {
    /// Snapshots by reason.
    pub snapshots: BTreeMap<String, u64>,
    pub deltas: u64,
    pub heartbeats: u64,
    pub merged_events: u64,
    pub checksums_matched: u64,
    /// Frames that don't follow the last one seen: something was lost.
    pub gaps: u64,
    /// Frames at or before the last position.
    pub doubles: u64,
    pub checksum_faults: u64,
    /// More levels than the depth that was asked for.
    pub window_faults: u64,
    pub malformed: u64,
}

impl FollowCounts {
    pub fn faults(&self) -> u64 {
        self.gaps + self.doubles + self.checksum_faults + self.window_faults + self.malformed
    }
}

#[derive(Deserialize)]
pub struct NextMessage {
    pub id: String,
    payload: Payload,
}

#[derive(Deserialize)]
struct Payload {
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "orderBook")]
    order_book: Frame,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Frame {
    #[serde(rename = "__typename")]
    kind: String,
    epoch: String,
    sequence: String,
    checksum: u32,
    prev_sequence: Option<String>,
    merged_events: Option<u64>,
    reason: Option<String>,
    #[serde(default)]
    bids: Vec<PriceLevel>,
    #[serde(default)]
    asks: Vec<PriceLevel>,
}

#[derive(Deserialize)]
struct PriceLevel {
    price: String,
    size: String,
}

#[derive(Debug)]
pub struct Follower {
    depth: usize,
    position: Option<(String, u64)>,
    /// `None` until a frame has shown the market's decimals.
    book: Option<Book>,
    /// False after a gap, where the book is known to be wrong: one loss is one fault, not a
    /// thousand.
    trusted: bool,
}

impl Follower {
    pub fn new(depth: usize) -> Self {
        Self { depth, position: None, book: None, trusted: false }
    }

    pub fn next(&mut self, message: NextMessage, counts: &mut FollowCounts) {
        let Some(Data { order_book: frame }) = message.payload.data else {
            counts.malformed += 1;
            return;
        };
        let Ok(sequence) = frame.sequence.parse::<u64>() else {
            counts.malformed += 1;
            return;
        };
        match frame.kind.as_str() {
            "BookSnapshot" => self.snapshot(&frame, sequence, counts),
            "BookDelta" => self.delta(&frame, sequence, counts),
            "BookHeartbeat" => self.heartbeat(&frame, sequence, counts),
            _ => counts.malformed += 1,
        }
    }

    fn snapshot(&mut self, frame: &Frame, sequence: u64, counts: &mut FollowCounts) {
        let reason = frame.reason.clone().unwrap_or_else(|| "?".to_owned());
        *counts.snapshots.entry(reason).or_default() += 1;
        if let Some((epoch, last)) = &self.position
            && *epoch == frame.epoch
            && sequence < *last
        {
            counts.doubles += 1;
        }
        if let Some(book) = &mut self.book {
            book.clear();
        }
        self.trusted = true;
        self.position = Some((frame.epoch.clone(), sequence));
        self.apply(frame, counts);
        self.check(frame, counts);
    }

    fn delta(&mut self, frame: &Frame, sequence: u64, counts: &mut FollowCounts) {
        counts.deltas += 1;
        counts.merged_events += frame.merged_events.unwrap_or(1).saturating_sub(1);
        let Some(Ok(previous)) = frame.prev_sequence.as_deref().map(str::parse::<u64>) else {
            counts.malformed += 1;
            return;
        };
        match &self.position {
            Some((epoch, last)) if *epoch == frame.epoch && *last == previous => {}
            Some((epoch, last)) if *epoch == frame.epoch && sequence <= *last => {
                counts.doubles += 1;
                return;
            }
            _ => {
                counts.gaps += 1;
                self.trusted = false;
            }
        }
        self.position = Some((frame.epoch.clone(), sequence));
        self.apply(frame, counts);
        self.check(frame, counts);
    }

    fn heartbeat(&mut self, frame: &Frame, sequence: u64, counts: &mut FollowCounts) {
        counts.heartbeats += 1;
        let follows = self
            .position
            .as_ref()
            .is_some_and(|(epoch, last)| *epoch == frame.epoch && *last == sequence);
        if !follows {
            counts.gaps += 1;
            self.trusted = false;
            self.position = Some((frame.epoch.clone(), sequence));
        }
        self.check(frame, counts);
    }

    fn apply(&mut self, frame: &Frame, counts: &mut FollowCounts) {
        let sides = [(Side::Bid, &frame.bids), (Side::Ask, &frame.asks)];
        for (side, level) in
            sides.iter().flat_map(|(side, levels)| levels.iter().map(|level| (*side, level)))
        {
            if self.book.is_none() {
                // A removal may be a bare "0" and shows no decimals; there is nothing to remove
                // yet.
                if scaled(&level.size, decimals_of(&level.size)) == Ok(0) {
                    continue;
                }
                let decimals = (decimals_of(&level.price), decimals_of(&level.size));
                self.book = Some(Book::new(decimals.0, decimals.1));
            }
            if let Some(book) = &mut self.book
                && book.set(side, &level.price, &level.size).is_err()
            {
                counts.malformed += 1;
                self.trusted = false;
            }
        }
    }

    /// The checksum is over the whole book's top ten, so a narrower window can't be checked.
    fn check(&mut self, frame: &Frame, counts: &mut FollowCounts) {
        if !self.trusted {
            return;
        }
        // The CRC32 of nothing is 0, and a book without a level has no known decimals.
        let (checksum, deepest) = self
            .book
            .as_ref()
            .map_or((0, 0), |book| (book.checksum(), book.bids.len().max(book.asks.len())));
        if deepest > self.depth {
            counts.window_faults += 1;
            self.trusted = false;
        } else if self.depth >= CHECKSUM_LEVELS {
            if checksum == frame.checksum {
                counts.checksums_matched += 1;
            } else {
                counts.checksum_faults += 1;
                self.trusted = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn follow(frames: &[Value]) -> FollowCounts {
        let mut follower = Follower::new(25);
        let mut counts = FollowCounts::default();
        for frame in frames {
            let message = json!({"id": "1", "payload": {"data": {"orderBook": frame}}});
            follower.next(serde_json::from_value(message).unwrap(), &mut counts);
        }
        counts
    }

    /// A book whose only level is one bid at 1.5.
    fn frame(kind: &str, sequence: u64, previous: u64, size: &str) -> Value {
        let digits = size.replace('.', "");
        let checksum = crc32fast::hash(format!("15{}", digits.trim_start_matches('0')).as_bytes());
        json!({"__typename": kind, "epoch": "e", "sequence": sequence.to_string(),
               "prevSequence": previous.to_string(), "checksum": checksum, "reason": "INITIAL",
               "bids": [{"price": "1.5", "size": size}], "asks": []})
    }

    fn heartbeat(sequence: u64) -> Value {
        let mut frame = frame("BookHeartbeat", sequence, 0, "0.30");
        frame["bids"] = json!([]);
        frame
    }

    #[test]
    fn a_whole_stream_has_no_fault() {
        let counts = follow(&[
            frame("BookSnapshot", 5, 0, "0.10"),
            frame("BookDelta", 9, 5, "0.20"),
            frame("BookDelta", 10, 9, "0.30"),
            heartbeat(10),
        ]);
        assert_eq!((counts.faults(), counts.checksums_matched), (0, 4));
    }

    #[test]
    fn a_dropped_frame_is_noticed_at_the_next_one() {
        let snapshot = frame("BookSnapshot", 5, 0, "0.10");
        let counts = follow(&[snapshot.clone(), frame("BookDelta", 10, 9, "0.30")]);
        assert_eq!((counts.gaps, counts.faults()), (1, 1));
        let counts = follow(&[snapshot, heartbeat(10)]);
        assert_eq!((counts.gaps, counts.faults()), (1, 1));
    }

    #[test]
    fn a_doubled_frame_is_noticed_and_changes_nothing() {
        let delta = frame("BookDelta", 9, 5, "0.20");
        let counts = follow(&[frame("BookSnapshot", 5, 0, "0.10"), delta.clone(), delta]);
        assert_eq!((counts.doubles, counts.faults()), (1, 1));
    }

    #[test]
    fn swapped_frames_are_noticed() {
        let counts = follow(&[
            frame("BookSnapshot", 5, 0, "0.10"),
            frame("BookDelta", 10, 9, "0.30"),
            frame("BookDelta", 9, 5, "0.20"),
        ]);
        assert_eq!((counts.gaps, counts.doubles), (1, 1));
    }

    #[test]
    fn a_wrong_size_is_a_checksum_fault() {
        let mut delta = frame("BookDelta", 9, 5, "0.20");
        delta["bids"][0]["size"] = json!("0.21");
        let counts = follow(&[frame("BookSnapshot", 5, 0, "0.10"), delta]);
        assert_eq!((counts.checksum_faults, counts.faults()), (1, 1));
    }

    #[test]
    fn another_epoch_without_a_snapshot_is_a_gap() {
        let mut delta = frame("BookDelta", 9, 5, "0.20");
        delta["epoch"] = json!("f");
        let counts = follow(&[frame("BookSnapshot", 5, 0, "0.10"), delta]);
        assert_eq!((counts.gaps, counts.faults()), (1, 1));
    }

    #[test]
    fn a_level_too_many_is_a_window_fault() {
        let mut follower = Follower::new(1);
        let mut counts = FollowCounts::default();
        let mut snapshot = frame("BookSnapshot", 5, 0, "0.10");
        snapshot["bids"] =
            json!([{"price": "1.5", "size": "0.10"}, {"price": "1.4", "size": "0.10"}]);
        let message = json!({"id": "1", "payload": {"data": {"orderBook": snapshot}}});
        follower.next(serde_json::from_value(message).unwrap(), &mut counts);
        assert_eq!((counts.window_faults, counts.faults()), (1, 1));
    }
}
