//! Bitstamp `live_orders_…`, where each message names the one before, and
//! `diff_order_book_…`, anchored on the REST book by its `microtimestamp`: what isn't
//! newer than the snapshot is already in it. Differences have no numbers, so a lost one can't be
//! distinguished from a quiet moment.

use super::{Kind, Level, Link, Message, OrderStep, Side, VenueError, VenueOrder, VenueUpdate};
use serde::Deserialize;

#[derive(Debug, Default)]
pub struct Reader {
    /// A REST book doesn't say whose it is.
    symbol: Option<String>,
    /// A REST book that comes before the first difference.
    early: Option<Book>,
}

#[derive(Deserialize)]
struct Line {
    channel: Option<String>,
    event: Option<String>,
    data: Option<serde_json::Value>,
    event_id: Option<String>,
    pre_event_id: Option<String>,
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
        let (Some(channel), Some(event), Some(data)) = (line.channel, line.event, line.data) else {
            return Ok(Vec::new());
        };
        if let Some(symbol) = channel.strip_prefix("live_orders_") {
            let step = match event.as_str() {
                "order_created" => OrderStep::Created,
                "order_changed" => OrderStep::Changed,
                "order_deleted" => OrderStep::Deleted,
                _ => return Ok(Vec::new()),
            };
            let (Some(event), Some(previous)) = (line.event_id, line.pre_event_id) else {
                return Err(VenueError::Meaning("no event_id and pre_event_id".to_owned()));
            };
            let order: Order = serde_json::from_value(data)?;
            return Ok(vec![Message::Order(order.step(symbol, step, event, previous)?)]);
        }
        if event != "data" {
            return Ok(Vec::new());
        }
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

#[derive(Deserialize)]
struct Order {
    id_str: String,
    /// 0 buys, 1 sells.
    order_type: u8,
    microtimestamp: String,
    amount_str: String,
    amount_traded: String,
    price_str: String,
}

impl Order {
    fn step(
        self,
        symbol: &str,
        step: OrderStep,
        event: String,
        previous: String,
    ) -> Result<VenueOrder, VenueError> {
        let side = match self.order_type {
            0 => Side::Bid,
            1 => Side::Ask,
            other => return Err(VenueError::Meaning(format!("order_type {other} is no side"))),
        };
        Ok(VenueOrder {
            symbol: symbol.to_owned(),
            order: self.id_str,
            step,
            side,
            price: self.price_str,
            open: self.amount_str,
            traded: self.amount_traded,
            time: i64::try_from(micros(&self.microtimestamp)?).ok(),
            event,
            previous,
        })
    }
}

fn micros(text: &str) -> Result<u64, VenueError> {
    text.parse().map_err(|_| VenueError::Meaning(format!("microtimestamp `{text}` is no number")))
}

fn update(symbol: String, kind: Kind, book: Book) -> Result<VenueUpdate, VenueError> {
    let micros = micros(&book.microtimestamp)?;
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
