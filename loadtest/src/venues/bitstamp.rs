//! Bitstamp `diff_order_book_…`, anchored on the REST book by its `microtimestamp`: what isn't
//! newer than the snapshot is already in it. The venue numbers nothing, so a lost message can't be
//! told from a quiet moment.

use super::{Kind, Level, Link, Message, VenueError, VenueUpdate};
use serde::Deserialize;

#[derive(Debug, Default)]
pub struct Reader {
    /// A REST book doesn't say whose it is.
    symbol: Option<String>,
    /// A REST book that stands before the first difference.
    early: Option<Book>,
}

#[derive(Deserialize)]
struct Line {
    channel: Option<String>,
    event: Option<String>,
    data: Option<serde_json::Value>,
    #[serde(flatten)]
    rest: Option<Book>,
}

#[derive(Debug, Deserialize)]
struct Book {
    microtimestamp: String,
    bids: Vec<Level>,
    asks: Vec<Level>,
}

impl Reader {
    pub fn line(&mut self, line: &str) -> Result<Vec<Message>, VenueError> {
        let line: Line = serde_json::from_str(line)?;
        if let Some(book) = line.rest {
            return match self.symbol.clone() {
                Some(symbol) => Ok(vec![Message::Book(update(symbol, Kind::Snapshot, book)?)]),
                None => {
                    self.early = Some(book);
                    Ok(Vec::new())
                }
            };
        }
        let (Some(channel), Some("data"), Some(data)) =
            (line.channel, line.event.as_deref(), line.data)
        else {
            return Ok(Vec::new());
        };
        let Some(symbol) = channel.strip_prefix("diff_order_book_") else {
            return Ok(Vec::new());
        };
        self.symbol = Some(symbol.to_owned());
        let mut messages = Vec::with_capacity(2);
        if let Some(book) = self.early.take() {
            messages.push(Message::Book(update(symbol.to_owned(), Kind::Snapshot, book)?));
        }
        let book = serde_json::from_value(data)?;
        messages.push(Message::Book(update(symbol.to_owned(), Kind::Delta, book)?));
        Ok(messages)
    }
}

fn update(symbol: String, kind: Kind, book: Book) -> Result<VenueUpdate, VenueError> {
    let micros: u64 = book.microtimestamp.parse().map_err(|_| {
        VenueError::Meaning(format!("microtimestamp `{}` is no number", book.microtimestamp))
    })?;
    Ok(VenueUpdate {
        symbol,
        kind,
        depth: None,
        bids: book.bids,
        asks: book.asks,
        time: i64::try_from(micros).ok(),
        received: None,
        link: Link::Clock(micros),
        checksum: None,
    })
}
