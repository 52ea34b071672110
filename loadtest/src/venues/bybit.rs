//! Bybit v5 `orderbook.N`: update ids `u` are dense. A second snapshot (also `u` = 1 after a
//! restart of the service) replaces the book.

use super::{Kind, Level, Link, Message, VenueError, VenueUpdate};
use serde::Deserialize;

#[derive(Deserialize)]
struct Line {
    topic: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    ts: Option<i64>,
    /// The matching engine's clock, milliseconds; nearer to the event than `ts`.
    cts: Option<i64>,
    data: Option<Book>,
}

#[derive(Deserialize)]
struct Book {
    s: String,
    b: Vec<Level>,
    a: Vec<Level>,
    u: u64,
}

pub fn line(line: &str) -> Result<Vec<Message>, VenueError> {
    let line: Line = serde_json::from_str(line)?;
    let (Some(topic), Some(data)) = (line.topic, line.data) else {
        return Ok(Vec::new());
    };
    if !topic.starts_with("orderbook.") {
        return Ok(Vec::new());
    }
    let kind = match line.kind.as_deref() {
        Some("snapshot") => Kind::Snapshot,
        Some("delta") => Kind::Delta,
        other => return Err(VenueError::Meaning(format!("book message of type {other:?}"))),
    };
    let millis = line.cts.or(line.ts);
    Ok(vec![Message::Book(VenueUpdate {
        symbol: data.s,
        kind,
        depth: None,
        bids: data.b,
        asks: data.a,
        time: millis.and_then(|millis| millis.checked_mul(1_000)),
        received: line.ts.and_then(|millis| millis.checked_mul(1_000)),
        link: Link::Range { first: data.u, last: data.u },
        checksum: None,
    })])
}
