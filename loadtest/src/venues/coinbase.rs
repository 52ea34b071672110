//! Coinbase Advanced Trade `level2`. Its `sequence_num` numbers every message of the connection,
//! acks too, so it is checked for the connection and not for a market.

use super::{Kind, Link, Message, VenueError, VenueUpdate, rfc3339};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Line {
    channel: Option<String>,
    timestamp: Option<String>,
    sequence_num: Option<u64>,
    #[serde(default)]
    events: Vec<Value>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    product_id: String,
    updates: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    side: String,
    price_level: String,
    new_quantity: String,
}

pub fn line(line: &str) -> Result<Vec<Message>, VenueError> {
    let line: Line = serde_json::from_str(line)?;
    let mut messages: Vec<Message> =
        line.sequence_num.map(Message::ConnectionSequence).into_iter().collect();
    if line.channel.as_deref() != Some("l2_data") {
        return Ok(messages);
    }
    let time = line.timestamp.as_deref().and_then(rfc3339);
    for event in line.events {
        let event: Event = serde_json::from_value(event)?;
        messages.push(Message::Book(update(event, time)?));
    }
    Ok(messages)
}

fn update(event: Event, time: Option<i64>) -> Result<VenueUpdate, VenueError> {
    let kind = match event.kind.as_str() {
        "snapshot" => Kind::Snapshot,
        "update" => Kind::Delta,
        other => return Err(VenueError::Meaning(format!("event type `{other}`"))),
    };
    let (mut bids, mut asks) = (Vec::new(), Vec::new());
    for entry in event.updates {
        let levels = match entry.side.as_str() {
            "bid" => &mut bids,
            "offer" => &mut asks,
            other => return Err(VenueError::Meaning(format!("side `{other}`"))),
        };
        levels.push((entry.price_level, entry.new_quantity));
    }
    let (symbol, link) = (event.product_id, Link::Unnumbered);
    Ok(VenueUpdate {
        symbol,
        kind,
        depth: None,
        bids,
        asks,
        time,
        received: None,
        link,
        checksum: None,
    })
}
