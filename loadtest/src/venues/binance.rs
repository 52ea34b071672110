//! Binance differences (`depthUpdate`, ids `U`..=`u`; of futures `pu` names the id before), spliced
//! onto the REST book whose `lastUpdateId` falls inside them. Read plain or as combined streams
//! (`{"stream":"btcusdt@depth","data":…}`), the REST book as a line among them or as its own file.

use super::{Kind, Level, Link, Message, VenueError, VenueUpdate};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Default)]
pub struct Reader {
    /// A REST book doesn't say whose it is: the stream's name, else the symbol last seen.
    symbol: Option<String>,
    /// A REST book that comes before the first difference.
    early: Option<Book>,
}

#[derive(Deserialize)]
struct Difference {
    #[serde(rename = "E")]
    time: i64,
    s: String,
    #[serde(rename = "U")]
    first: u64,
    #[serde(rename = "u")]
    last: u64,
    /// Of futures alone.
    #[serde(rename = "pu")]
    previous: Option<u64>,
    b: Vec<Level>,
    a: Vec<Level>,
}

impl Difference {
    fn link(&self) -> Link {
        let Self { first, last, .. } = *self;
        match self.previous {
            Some(previous) => Link::Leaping { first, last, previous },
            None => Link::Range { first, last },
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Book {
    last_update_id: u64,
    bids: Vec<Level>,
    asks: Vec<Level>,
}

impl Reader {
    pub fn line(&mut self, line: &str) -> Result<Vec<Message>, VenueError> {
        let mut value: Value = serde_json::from_str(line)?;
        let stream = value
            .get("stream")
            .and_then(Value::as_str)
            .and_then(|stream| stream.split('@').next())
            .map(str::to_ascii_uppercase);
        if let Some(data) = value.get_mut("data") {
            value = data.take();
        }
        if value.get("lastUpdateId").is_some() {
            let book: Book = serde_json::from_value(value)?;
            return match stream.or_else(|| self.symbol.clone()) {
                Some(symbol) => Ok(vec![snapshot(symbol, book)]),
                None => {
                    self.early = Some(book);
                    Ok(Vec::new())
                }
            };
        }
        if value.get("e").and_then(Value::as_str) != Some("depthUpdate") {
            return Ok(Vec::new());
        }
        let difference: Difference = serde_json::from_value(value)?;
        self.symbol = Some(difference.s.clone());
        let mut messages = Vec::with_capacity(2);
        if let Some(book) = self.early.take() {
            messages.push(snapshot(difference.s.clone(), book));
        }
        let link = difference.link();
        messages.push(Message::Book(VenueUpdate {
            symbol: difference.s,
            kind: Kind::Delta,
            depth: None,
            bids: difference.b,
            asks: difference.a,
            time: difference.time.checked_mul(1_000),
            received: None,
            link,
            checksum: None,
        }));
        Ok(messages)
    }
}

fn snapshot(symbol: String, book: Book) -> Message {
    Message::Book(VenueUpdate {
        symbol,
        kind: Kind::Snapshot,
        depth: None,
        bids: book.bids,
        asks: book.asks,
        time: None,
        received: None,
        link: Link::Range { first: book.last_update_id, last: book.last_update_id },
        checksum: None,
    })
}
