//! Reads one line into an [`Event`]. A fault names the field and what is wrong with it.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::fields::{
    Fields, MOST_QUOTED, boxed, checked_identifier, checked_time, decimal, fault, identifier,
    optional, readable, required, time, without_place,
};
use super::{
    Body, CanceledOrder, Event, FilledOrder, MOST_DATA_BYTES, MOST_HEIGHT, MOST_LINE_BYTES,
    MOST_NESTING, MOST_REASON_BYTES, MOST_SOURCE_BYTES, MOST_TOPIC_CHARACTERS, Message, OrderEvent,
    OrderType, PlacedOrder, Text, WrittenLevel,
};
use crate::market::book_gap::{BookGap, Missed, OrdersComplete};
use crate::market::definition::{MarketDefinition, MarketId, MarketStatus, check_market};
use crate::market::fixed::{self, MOST_DECIMALS};
use crate::market::refusal::Refusal;
use crate::market::trade::WrittenTrade;

/// A book's line that has these fields only, all of them of their types: nearly all that a hub
/// reads are, and this reads each byte once. [`Fields`] reads all others, and says what is wrong.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BookLine<'a> {
    #[serde(borrow)]
    kind: Text<'a>,
    #[serde(borrow)]
    market: Text<'a>,
    #[serde(borrow)]
    bids: Vec<WrittenLevel<'a>>,
    #[serde(borrow)]
    asks: Vec<WrittenLevel<'a>>,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    time: Option<Text<'a>>,
    height: Option<u64>,
}

impl<'a> BookLine<'a> {
    /// `None`: not such a line, or one with a fault.
    fn read(text: &'a str) -> Option<Event<'a>> {
        // Another line would be read twice.
        if !begins_as_book(text.as_bytes()) {
            return None;
        }
        let Self { kind, market, bids, asks, id, time, height } =
            serde_json::from_str(text).ok()?;
        let market = checked_market(market).ok()?;
        let body = match &*kind {
            "book.snapshot" => Body::BookSnapshot { market, bids, asks },
            "book.delta" => Body::BookDelta { market, bids, asks },
            _ => return None,
        };
        let id = id.map(|id| checked_identifier(id, "id")).transpose().ok()?.map(Text::into_box);
        let time = time.map(|time| checked_time(&time, "time")).transpose().ok()?;
        let height = height.map(checked_height).transpose().ok()?;
        Some(Event { id, time, height, body })
    }
}

/// Reads one event. Unknown fields are ignored here and kept by the log, which stores the line.
pub fn parse(line: &[u8]) -> Result<Event<'_>, Refusal> {
    if line.len() > MOST_LINE_BYTES {
        return Err(Refusal::TooLong);
    }
    let text = std::str::from_utf8(line)
        .map_err(|error| Refusal::NotUtf8 { column: error.valid_up_to() + 1 })?;
    // Windows editors begin a file with it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match BookLine::read(text) {
        Some(event) => Ok(event),
        None => read_fields(text),
    }
}

fn read_fields(text: &str) -> Result<Event<'_>, Refusal> {
    if !text.trim_start().starts_with('{') && serde_json::from_str::<&RawValue>(text).is_ok() {
        return Err(Refusal::NotAnObject);
    }
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|error| Refusal::Malformed {
        column: error.column(),
        reason: without_place(&error),
    })?;
    if nested_too_deep(text) {
        return Err(Refusal::TooDeep);
    }
    let kind: Text<'_> = required(fields.kind, "kind")?;
    let body = match &*kind {
        "market" => Body::Market(definition(&fields)?),
        "book.snapshot" => {
            let (market, bids, asks) = book(&fields)?;
            Body::BookSnapshot { market, bids, asks }
        }
        "book.delta" => {
            let (market, bids, asks) = book(&fields)?;
            Body::BookDelta { market, bids, asks }
        }
        "book.gap" => book_gap(&fields, Missed::Levels)?,
        "orders.gap" => {
            let order = boxed(fields.order, "order")?;
            book_gap(&fields, Missed::of_order(order.as_deref()))?
        }
        "orders.complete" => Body::OrdersComplete(Box::new(OrdersComplete {
            market: market_id(&fields)?,
            order: boxed(fields.order, "order")?,
        })),
        "trade" => Body::Trade(trade(&fields)?),
        "order.placed" => order_placed(&fields)?,
        "order.filled" => order_filled(&fields)?,
        "order.canceled" => order_canceled(&fields)?,
        "block.applied" => {
            height(&fields)?.ok_or(Refusal::Missing("height"))?;
            identifier(fields.block, "block")?.ok_or(Refusal::Missing("block"))?;
            Body::BlockApplied
        }
        "block.reverted" => {
            Body::Reverted { height: height(&fields)?.ok_or(Refusal::Missing("height"))? }
        }
        "source.gap" => Body::Gap { source: source(&fields)? },
        "message" => Body::Message(message(&fields)?),
        other => return Err(Refusal::UnknownKind(other.chars().take(MOST_QUOTED).collect())),
    };
    identifier(fields.block, "block")?;
    identifier(fields.tx, "tx")?;
    let (id, height) = (boxed(fields.id, "id")?, height(&fields)?);
    Ok(Event { id, time: time(fields.time, "time")?, height, body })
}

/// Whether a line begins new epochs: a `block.reverted` or `source.gap` event. A feed asks, as such
/// an event is delivered by itself: what comes before it has to be in the log. Costs a search, not
/// a parse.
pub fn begins_epochs(line: &[u8]) -> bool {
    // No line has two kinds. One may be written with escapes, which hide it.
    let kinds = ["block.reverted", "source.gap", "\\u00"];
    !begins_as_book(line)
        && std::str::from_utf8(line).is_ok_and(|text| kinds.iter().any(|kind| text.contains(kind)))
        && parse(line)
            .is_ok_and(|event| matches!(event.body, Body::Reverted { .. } | Body::Gap { .. }))
}

/// For people.
fn source(fields: &Fields<'_>) -> Result<Box<str>, Refusal> {
    let source: String = required(fields.source, "source")?;
    if source.is_empty() || source.len() > MOST_SOURCE_BYTES {
        return Err(fault("source", format!("must have 1 to {MOST_SOURCE_BYTES} bytes")));
    }
    Ok(source.into())
}

/// As most lines of books do.
fn begins_as_book(line: &[u8]) -> bool {
    ["{", "\"kind\"", ":", "\"book."]
        .iter()
        .try_fold(line, |rest, word| rest.trim_ascii_start().strip_prefix(word.as_bytes()))
        .is_some()
}

fn height(fields: &Fields<'_>) -> Result<Option<u64>, Refusal> {
    optional(fields.height, "height")?.map(checked_height).transpose()
}

fn checked_height(height: u64) -> Result<u64, Refusal> {
    match height > MOST_HEIGHT {
        true => Err(fault("height", format!("must be at most {MOST_HEIGHT}"))),
        false => Ok(height),
    }
}

fn definition(fields: &Fields<'_>) -> Result<MarketDefinition, Refusal> {
    let decimals = |raw, field| {
        required::<u8>(raw, field).ok().filter(|count| *count <= MOST_DECIMALS).ok_or_else(|| {
            match raw {
                None => Refusal::Missing(field),
                Some(_) => fault(field, format!("must be a whole number up to {MOST_DECIMALS}")),
            }
        })
    };
    let price_decimals = decimals(fields.price_decimals, "priceDecimals")?;
    let size_decimals = decimals(fields.size_decimals, "sizeDecimals")?;
    // A step that isn't given is the smallest the precision allows.
    let step = |raw, field, decimals| match optional::<String>(raw, field)? {
        None => Ok(fixed::format(1, decimals)),
        Some(text) => match fixed::parse(&text, decimals) {
            Ok(0) => Err(fault(field, "must be above 0".into())),
            Ok(_) => Ok(text),
            Err(error) => Err(fault(field, error.to_string())),
        },
    };
    Ok(MarketDefinition {
        market: market_id(fields)?,
        base: identifier(fields.base, "base")?.ok_or(Refusal::Missing("base"))?.0.into_owned(),
        quote: identifier(fields.quote, "quote")?.ok_or(Refusal::Missing("quote"))?.0.into_owned(),
        price_decimals,
        size_decimals,
        tick_size: step(fields.tick_size, "tickSize", price_decimals)?,
        min_size: match fields.min_size {
            Some(_) => step(fields.min_size, "minSize", size_decimals)?,
            None => step(fields.lot_size, "lotSize", size_decimals)?,
        },
        lot_size: step(fields.lot_size, "lotSize", size_decimals)?,
        status: optional(fields.status, "status")?.unwrap_or(MarketStatus::Active),
        time: time(fields.time, "time")?,
    })
}

type WrittenBook<'a> = (Text<'a>, Vec<WrittenLevel<'a>>, Vec<WrittenLevel<'a>>);

fn book<'a>(fields: &Fields<'a>) -> Result<WrittenBook<'a>, Refusal> {
    Ok((market(fields)?, required(fields.bids, "bids")?, required(fields.asks, "asks")?))
}

fn book_gap(fields: &Fields<'_>, missed: Missed) -> Result<Body<'static>, Refusal> {
    Ok(Body::BookGap(Box::new(BookGap {
        market: market_id(fields)?,
        missed,
        height: height(fields)?,
        source: fields.source.map(|_| source(fields)).transpose()?,
        reason: reason(fields)?.ok_or(Refusal::Missing("reason"))?,
    })))
}

fn trade(fields: &Fields<'_>) -> Result<WrittenTrade, Refusal> {
    Ok(WrittenTrade {
        market: market_id(fields)?,
        id: boxed(fields.id, "id")?,
        price: decimal(fields.price, "price")?,
        size: decimal(fields.size, "size")?,
        taker_side: optional(fields.taker_side, "takerSide")?,
    })
}

fn order_placed(fields: &Fields<'_>) -> Result<Body<'static>, Refusal> {
    let order_type = optional(fields.order_type, "type")?.unwrap_or(OrderType::Limit);
    // Only an order that rests in the book must have a price.
    let price = match order_type == OrderType::Limit || fields.price.is_some() {
        true => Some(decimal(fields.price, "price")?),
        false => None,
    };
    Ok(order(OrderEvent::Placed(PlacedOrder {
        market: market_id(fields)?,
        order: order_id(fields)?,
        account: boxed(fields.account, "account")?,
        side: required(fields.side, "side")?,
        order_type,
        price,
        size: decimal(fields.size, "size")?,
        client_id: boxed(fields.client_id, "clientId")?,
        metadata_cid: boxed(fields.metadata_cid, "metadataCid")?,
        box_id: boxed(fields.box_id, "boxId")?,
        expires_at: time(fields.expires_at, "expiresAt")?,
        requested: requested(fields)?,
    })))
}

fn order_filled(fields: &Fields<'_>) -> Result<Body<'static>, Refusal> {
    Ok(order(OrderEvent::Filled(FilledOrder {
        market: fields.market.map(|_| market_id(fields)).transpose()?,
        order: order_id(fields)?,
        trade: boxed(fields.trade, "trade")?,
        price: decimal(fields.price, "price")?,
        size: decimal(fields.size, "size")?,
        liquidity: optional(fields.liquidity, "liquidity")?,
        box_id: boxed(fields.box_id, "boxId")?,
    })))
}

fn order_canceled(fields: &Fields<'_>) -> Result<Body<'static>, Refusal> {
    Ok(order(OrderEvent::Canceled(CanceledOrder {
        market: fields.market.map(|_| market_id(fields)).transpose()?,
        order: order_id(fields)?,
        reason: reason(fields)?,
        requested: requested(fields)?,
    })))
}

fn requested(fields: &Fields<'_>) -> Result<bool, Refusal> {
    Ok(optional(fields.requested, "requested")?.unwrap_or(false))
}

fn order(event: OrderEvent) -> Body<'static> {
    Body::Order(Box::new(event))
}

fn order_id(fields: &Fields<'_>) -> Result<Box<str>, Refusal> {
    boxed(fields.order, "order")?.ok_or(Refusal::Missing("order"))
}

fn message(fields: &Fields<'_>) -> Result<Message, Refusal> {
    let topic: String = required(fields.topic, "topic")?;
    check_topic(&topic).map_err(|reason| fault("topic", reason))?;
    let data = fields.data.ok_or(Refusal::Missing("data"))?;
    let bytes = data.get().len();
    if bytes > MOST_DATA_BYTES {
        let reason = format!(
            "has {bytes} bytes, at most {MOST_DATA_BYTES} fit: split it into several events"
        );
        return Err(fault("data", reason));
    }
    readable(data, "data")?;
    let id = boxed(fields.id, "id")?;
    Ok(Message { id, topic: topic.into(), data: data.get().into() })
}

/// Why something happened, for people.
fn reason(fields: &Fields<'_>) -> Result<Option<Box<str>>, Refusal> {
    let reason: Option<Box<str>> = optional(fields.reason, "reason")?;
    match reason {
        Some(reason) if reason.len() > MOST_REASON_BYTES => {
            Err(fault("reason", format!("must have at most {MOST_REASON_BYTES} bytes")))
        }
        reason => Ok(reason),
    }
}

/// Whether a generic topic may have this name; the error is what it must be.
pub fn check_topic(name: &str) -> Result<(), String> {
    if name.is_empty() || name.chars().count() > MOST_TOPIC_CHARACTERS {
        return Err(format!("must have 1 to {MOST_TOPIC_CHARACTERS} characters"));
    }
    if name.chars().any(char::is_control) {
        return Err("must be without control characters".to_owned());
    }
    Ok(())
}

fn market_id(fields: &Fields<'_>) -> Result<MarketId, Refusal> {
    market(fields).map(|id| MarketId::from(&*id))
}

fn market<'a>(fields: &Fields<'a>) -> Result<Text<'a>, Refusal> {
    checked_market(required(fields.market, "market")?)
}

fn checked_market(id: Text<'_>) -> Result<Text<'_>, Refusal> {
    check_market(&id).map_err(|reason| fault("market", reason))?;
    Ok(id)
}

/// Of text that is known to be JSON.
fn nested_too_deep(text: &str) -> bool {
    // Counted in a moment, and most lines have no more in all.
    if text.bytes().filter(|byte| matches!(byte, b'{' | b'[')).count() <= MOST_NESTING {
        return false;
    }
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => {
                depth += 1;
                if depth > MOST_NESTING {
                    return true;
                }
            }
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
