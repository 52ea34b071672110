//! Kraken WebSocket v2 `book`. Prices are JSON numbers whose digits the checksum needs as printed,
//! so they are kept as raw text and never become a double.

use super::{Kind, Level, Link, Message, VenueError, VenueUpdate, rfc3339};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashMap;

#[derive(Debug, Default)]
pub struct Reader {
    /// The subscribe reply alone says the depth; updates that push a level beyond it don't.
    depths: HashMap<String, usize>,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(default)]
    channel: Option<&'a str>,
    #[serde(default, rename = "type")]
    kind: Option<&'a str>,
    #[serde(default, borrow)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    result: Option<Subscribed>,
}

#[derive(Deserialize)]
struct Subscribed {
    channel: String,
    symbol: Option<String>,
    depth: Option<usize>,
}

#[derive(Deserialize)]
struct BookData<'a> {
    symbol: String,
    #[serde(borrow)]
    bids: Vec<Entry<'a>>,
    #[serde(borrow)]
    asks: Vec<Entry<'a>>,
    checksum: Option<u32>,
    timestamp: Option<String>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    price: &'a RawValue,
    #[serde(borrow)]
    qty: &'a RawValue,
}

impl Reader {
    pub fn line(&mut self, line: &str) -> Result<Vec<Message>, VenueError> {
        let line: Line<'_> = serde_json::from_str(line)?;
        if let Some(Subscribed { channel, symbol: Some(symbol), depth: Some(depth) }) = line.result
            && channel == "book"
        {
            self.depths.insert(symbol, depth);
        }
        let (Some("book"), Some(data)) = (line.channel, line.data) else {
            return Ok(Vec::new());
        };
        let kind = match line.kind {
            Some("snapshot") => Kind::Snapshot,
            Some("update") => Kind::Delta,
            other => return Err(VenueError::Meaning(format!("book message of type {other:?}"))),
        };
        let books: Vec<BookData<'_>> = serde_json::from_str(data.get())?;
        Ok(books.into_iter().map(|book| Message::Book(self.update(kind, book))).collect())
    }

    fn update(&self, kind: Kind, book: BookData<'_>) -> VenueUpdate {
        let time = book.timestamp.as_deref().and_then(rfc3339);
        VenueUpdate {
            kind,
            depth: self.depths.get(&book.symbol).copied(),
            symbol: book.symbol,
            bids: levels(&book.bids),
            asks: levels(&book.asks),
            time,
            received: None,
            link: Link::Unnumbered,
            checksum: book.checksum,
        }
    }
}

fn levels(entries: &[Entry<'_>]) -> Vec<Level> {
    entries.iter().map(|entry| (text(entry.price), text(entry.qty))).collect()
}

fn text(number: &RawValue) -> String {
    number.get().trim_matches('"').to_owned()
}
