//! OKX v5 `books`: every message names its predecessor (`prevSeqId`). Since 2026 the checksum is
//! always 0, which is no checksum.

use super::{Kind, Level, Link, Message, VenueError, VenueUpdate};
use serde::Deserialize;

#[derive(Deserialize)]
struct Line {
    arg: Option<Argument>,
    action: Option<String>,
    #[serde(default)]
    data: Vec<Book>,
}

#[derive(Deserialize)]
struct Argument {
    channel: String,
    #[serde(rename = "instId")]
    instrument: Option<String>,
}

/// Price, size, a field that is deprecated, and the number of orders.
#[derive(Deserialize)]
struct Entry(String, String, #[allow(dead_code)] String, #[allow(dead_code)] String);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Book {
    asks: Vec<Entry>,
    bids: Vec<Entry>,
    ts: String,
    seq_id: i64,
    /// -1 on a snapshot.
    prev_seq_id: i64,
}

pub fn line(line: &str) -> Result<Vec<Message>, VenueError> {
    let line: Line = serde_json::from_str(line)?;
    let (Some(Argument { channel, instrument: Some(symbol) }), Some(action)) =
        (line.arg, line.action)
    else {
        return Ok(Vec::new());
    };
    if !channel.starts_with("books") {
        return Ok(Vec::new());
    }
    let kind = match action.as_str() {
        "snapshot" => Kind::Snapshot,
        "update" => Kind::Delta,
        other => return Err(VenueError::Meaning(format!("book action `{other}`"))),
    };
    line.data.into_iter().map(|book| update(kind, &symbol, book).map(Message::Book)).collect()
}

fn update(kind: Kind, symbol: &str, book: Book) -> Result<VenueUpdate, VenueError> {
    let last = u64::try_from(book.seq_id)
        .map_err(|_| VenueError::Meaning(format!("seqId {}", book.seq_id)))?;
    let time = book.ts.parse::<i64>().ok().and_then(|millis| millis.checked_mul(1_000));
    Ok(VenueUpdate {
        symbol: symbol.to_owned(),
        kind,
        depth: None,
        bids: levels(book.bids),
        asks: levels(book.asks),
        time,
        received: None,
        link: Link::After { previous: u64::try_from(book.prev_seq_id).unwrap_or(0), last },
        checksum: None,
    })
}

fn levels(entries: Vec<Entry>) -> Vec<Level> {
    entries.into_iter().map(|Entry(price, size, _, _)| (price, size)).collect()
}
