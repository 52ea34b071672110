//! Kraken WebSocket v1 `book-N`: `[channel, {"as":…,"bs":…}, "book-1000", "XMR/USD"]` and updates
//! with "a", "b" and the checksum "c", recorded as `<unix time>: <json>`. An update that touches
//! both sides may come as two objects in one array; it is one update, and "c" is in the last.

use super::{Kind, Level, Link, Message, VenueError, VenueUpdate, unix_seconds};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Default)]
pub struct Reader {}

/// Price, volume, time, and "r" where Kraken republishes a level that came back into the window.
#[derive(Debug, Deserialize)]
struct Entry(String, String, String, #[serde(default)] Option<String>);

#[derive(Debug, Default, Deserialize)]
struct Part {
    #[serde(default, rename = "as")]
    ask_snapshot: Option<Vec<Entry>>,
    #[serde(default, rename = "bs")]
    bid_snapshot: Option<Vec<Entry>>,
    #[serde(default, rename = "a")]
    asks: Option<Vec<Entry>>,
    #[serde(default, rename = "b")]
    bids: Option<Vec<Entry>>,
    #[serde(default, rename = "c")]
    checksum: Option<String>,
}

impl Reader {
    pub fn line(&mut self, line: &str) -> Result<Vec<Message>, VenueError> {
        // `wss://… <- …` records what the client sent.
        let Some((received, json)) = line.split_once(": ").filter(|(head, _)| !head.contains(' '))
        else {
            return Ok(Vec::new());
        };
        if !json.starts_with('[') {
            return Ok(Vec::new());
        }
        let mut items: Vec<Value> = serde_json::from_str(json)?;
        let (Some(Value::String(symbol)), Some(Value::String(channel))) =
            (items.pop(), items.pop())
        else {
            return Err(VenueError::Meaning("a channel message without channel and pair".into()));
        };
        let Some(depth) = channel.strip_prefix("book-") else {
            return Ok(Vec::new());
        };
        let depth = depth
            .parse()
            .map_err(|_| VenueError::Meaning(format!("`{channel}` has no depth in its name")))?;
        let mut update = VenueUpdate {
            symbol,
            kind: Kind::Delta,
            depth: Some(depth),
            bids: Vec::new(),
            asks: Vec::new(),
            time: None,
            received: unix_seconds(received),
            link: Link::Unnumbered,
            checksum: None,
        };
        for item in items.into_iter().skip(1) {
            update.add(serde_json::from_value(item)?)?;
        }
        update.time = update.time.or(update.received);
        Ok(vec![Message::Book(update)])
    }
}

impl VenueUpdate {
    fn add(&mut self, part: Part) -> Result<(), VenueError> {
        if part.ask_snapshot.is_some() || part.bid_snapshot.is_some() {
            self.kind = Kind::Snapshot;
        }
        for entries in [part.ask_snapshot, part.asks].into_iter().flatten() {
            take_levels(&mut self.asks, &mut self.time, entries);
        }
        for entries in [part.bid_snapshot, part.bids].into_iter().flatten() {
            take_levels(&mut self.bids, &mut self.time, entries);
        }
        if let Some(checksum) = part.checksum {
            let number = checksum
                .parse()
                .map_err(|_| VenueError::Meaning(format!("`{checksum}` is no checksum")))?;
            self.checksum = Some(number);
        }
        Ok(())
    }
}

/// The update's time is its newest level's: republished levels carry the time they were first set.
fn take_levels(levels: &mut Vec<Level>, newest: &mut Option<i64>, entries: Vec<Entry>) {
    for Entry(price, size, time, _republished) in entries {
        *newest = (*newest).max(unix_seconds(&time));
        levels.push((price, size));
    }
}
