//! What a line is about that can't be read, as far as it can be seen.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::fields::is_identifier;

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The book of this market.
    Book(&'a str),
    /// A single order, and the book of its market.
    Order { market: Option<&'a str>, order: Option<&'a str> },
    /// The trades of this market.
    Trades(&'a str),
    /// The book of some market, or nothing that can be seen.
    Unknown,
    /// No book, and no trades of a market that can be seen.
    Other,
}

const KIND: &str = "\"kind\"";
const MARKET: &str = "\"market\"";
const ORDER: &str = "\"order\"";
const TRADE: &str = "trade";
/// Fields that only books have.
const SIDES: [&str; 2] = ["\"bids\"", "\"asks\""];

/// Kinds that change no book.
const OTHERS: [&str; 5] = ["market", TRADE, "message", "block.applied", "orders.complete"];
/// Kinds of which any book may miss one.
const DOUBTFUL: [&str; 2] = ["block.reverted", "source.gap"];
/// The kind and the family of kinds that change books which are summed from orders.
const OF_ORDERS: &str = "orders.gap";
const ORDER_FAMILY: &str = "order.";

/// What is looked at of a line that is a JSON object.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    market: Option<&'a RawValue>,
    #[serde(borrow)]
    order: Option<&'a RawValue>,
    #[serde(borrow)]
    bids: Option<&'a RawValue>,
    #[serde(borrow)]
    asks: Option<&'a RawValue>,
}

/// Looks for the kind and the market of a line that is refused.
pub fn subject(line: &[u8]) -> Subject<'_> {
    match serde_json::from_slice(line) {
        Ok(fields) => subject_of_fields(&fields),
        Err(_) => subject_of_text(line),
    }
}

/// A book's line may have lost its kind. Then it still has its sides.
fn subject_of_fields<'a>(fields: &Fields<'a>) -> Subject<'a> {
    let text = |raw: Option<&'a RawValue>| {
        let text = raw?.get().strip_prefix('"')?.strip_suffix('"')?;
        (!text.contains('\\')).then_some(text)
    };
    let has_sides = fields.bids.is_some() || fields.asks.is_some();
    let (kind, market) = (text(fields.kind), text(fields.market));
    let order = text(fields.order).filter(|order| is_identifier(order));
    match kind.filter(|_| !has_sides) {
        Some(kind) if is_of_orders(kind) => Subject::Order { market, order },
        Some(kind) if DOUBTFUL.contains(&kind) => Subject::Unknown,
        kind if order.is_some() && !has_sides && kind != Some(TRADE) => {
            Subject::Order { market, order }
        }
        Some(kind) if is_other(kind) => other(kind, market),
        _ => market.map_or(Subject::Unknown, Subject::Book),
    }
}

/// Two lines may have become one, and the kind of one may stand beside the market of the other.
fn subject_of_text(line: &[u8]) -> Subject<'_> {
    let (kinds, markets) = (fields_named(line, KIND), fields_named(line, MARKET));
    let text = text_of(line);
    let has_sides = SIDES.iter().any(|side| fields_named(line, side) > 0);
    let (kind, market) = (text_after(text, KIND), text_after(text, MARKET));
    let is_order = |order: &&str| is_identifier(order) && !order.contains('\\');
    let order = text_after(text, ORDER).filter(is_order);
    let order = order.filter(|_| fields_named(line, ORDER) == 1);
    let known = kind.filter(|kind| is_other(kind) || is_of_orders(kind));
    match (known, market) {
        _ if kind.is_some_and(|kind| DOUBTFUL.contains(&kind)) => Subject::Unknown,
        _ if kinds > 1 || markets > 1 || (known.is_some() && has_sides) => Subject::Unknown,
        (Some(kind), _) if is_of_orders(kind) => Subject::Order { market, order },
        (Some(kind), market) => other(kind, market),
        (None, Some(market)) => Subject::Book(market),
        (None, None) => Subject::Unknown,
    }
}

fn other<'a>(kind: &str, market: Option<&'a str>) -> Subject<'a> {
    match market {
        Some(market) if kind == TRADE => Subject::Trades(market),
        _ => Subject::Other,
    }
}

fn is_other(kind: &str) -> bool {
    OTHERS.contains(&kind)
}

fn is_of_orders(kind: &str) -> bool {
    kind == OF_ORDERS || kind.starts_with(ORDER_FAMILY)
}

/// How many fields of this name a line has, at whatever depth.
fn fields_named(line: &[u8], quoted: &str) -> usize {
    let is_field = |at: usize| {
        let rest = line.get(at..).and_then(|rest| rest.strip_prefix(quoted.as_bytes()));
        rest.is_some_and(|rest| rest.trim_ascii_start().starts_with(b":"))
    };
    let quotes = line.iter().enumerate().filter(|(_, byte)| **byte == b'"');
    quotes.filter(|(at, _)| is_field(*at)).count()
}

/// A market that a line names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named<'a> {
    Defined(&'a str),
    /// By an event that needs its definition.
    Used(&'a str),
}

/// The market that a line names, as far as it can be seen.
pub fn named_market(line: &[u8]) -> Option<Named<'_>> {
    let line = text_of(line);
    let kind = text_after(line, KIND)?;
    if ["message", "source.gap"].contains(&kind) || kind.starts_with("block.") {
        return None;
    }
    let market = text_after(line, MARKET)?;
    Some(if kind == "market" { Named::Defined(market) } else { Named::Used(market) })
}

/// As much of a line as is text.
fn text_of(line: &[u8]) -> &str {
    let valid = std::str::from_utf8(line).map_or_else(|error| error.valid_up_to(), str::len);
    std::str::from_utf8(&line[..valid]).unwrap_or_default()
}

/// The text of the first field of this name, in quotes, that is not in an object of another field.
fn text_after<'a>(line: &'a str, quoted: &str) -> Option<&'a str> {
    let (mut depth, mut rest) = (0, line);
    loop {
        let (before, after) = rest.split_once(quoted)?;
        for byte in before.bytes() {
            depth += i32::from(byte == b'{') - i32::from(byte == b'}');
        }
        rest = after;
        // The kind of a definition is a text like this too.
        if let Some(value) = after.trim_ascii_start().strip_prefix(':')
            && depth <= 1
        {
            return Some(value.trim_ascii_start().strip_prefix('"')?.split_once('"')?.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_market_of_a_line_is_seen_without_reading_it() {
        for (line, expected) in [
            (r#"{"kind":"market","market":"A-B","base":"A"}"#, Some(Named::Defined("A-B"))),
            (r#"{"market":"A-B","kind":"market"}"#, Some(Named::Defined("A-B"))),
            (r#"{"kind":"book.delta","market":"A-B","bids":[]}"#, Some(Named::Used("A-B"))),
            (r#"{"kind":"order.placed","market":"A-B"}"#, Some(Named::Used("A-B"))),
            (r#"{"kind":"order.filled","order":"1"}"#, None),
            (r#"{"kind":"message","topic":"t","data":{"market":"A-B"}}"#, None),
            (r#"{"kind":"block.applied","market":"A-B"}"#, None),
            (r#"{"of":{"market":"Z"},"kind":"trade","market":"A-B"}"#, Some(Named::Used("A-B"))),
            ("garbage", None),
        ] {
            assert_eq!(named_market(line.as_bytes()), expected, "{line}");
        }
    }

    fn of_order<'a>(market: Option<&'a str>, order: Option<&'a str>) -> Subject<'a> {
        Subject::Order { market, order }
    }

    #[test]
    fn a_broken_line_shows_its_market_where_that_is_whole() {
        for (line, expected) in [
            (r#"{"kind":"book.delta","market":"A-B","bids":[["1","#, Subject::Book("A-B")),
            (r#"{ "market" : "A-B", "kind": "book.dxlta""#, Subject::Book("A-B")),
            (r#"{"kind":"book.delta","mxrket":"A-B","bids":[]}"#, Subject::Unknown),
            (r#"{"kind":"book.delta","market":"A-"#, Subject::Unknown),
            ("garbage", Subject::Unknown),
            (r#"{"kind":"book.dxlta","market":"A-B","bids":[]}"#, Subject::Book("A-B")),
            (r#"{"kind":"trade","market":"A-B","bids":[],"asks":[]}"#, Subject::Book("A-B")),
            (r#"{"kind":"trade","market":"A-B","pri"bids":[],"asks":[]}"#, Subject::Unknown),
            (r#"{"of":{"market":"Z"},"kind":1,"market":"A-B"}"#, Subject::Book("A-B")),
            (r#"{"kind":"book.delta","market":"A\u002dB","bids":1}"#, Subject::Unknown),
            (r#"{"kind":"book.delta","market":7}"#, Subject::Unknown),
            (r#"{"kind":"message","topic":"t","data":{"market":"A-B"},"#, Subject::Other),
            (r#"{"kind":"trade","market":"A-B","price":"1"#, Subject::Trades("A-B")),
            (r#"{"kind":"trade","market":"A-B","price":1}"#, Subject::Trades("A-B")),
            (r#"{"kind":"trade","price":1}"#, Subject::Other),
            (r#"{"kind":"order.placed","market":"A-B""#, of_order(Some("A-B"), None)),
            (r#"{"kind":"order.filled","order":"o1","price":1}"#, of_order(None, Some("o1"))),
            (r#"{"kind":"order.filled","order":"o1","pri"#, of_order(None, Some("o1"))),
            (r#"{"kind":"order.filled","order":"o1"#, of_order(None, None)),
            (r#"{"kind":"order.filled","order":"o1","order":"o2"#, of_order(None, None)),
            (
                r#"{"kind":"order.x","market":"A-B","order":"o1"}"#,
                of_order(Some("A-B"), Some("o1")),
            ),
            (r#"{"kind":"x","market":"A-B","order":"o1"}"#, of_order(Some("A-B"), Some("o1"))),
            (
                r#"{"kind":"message","market":"A-B","order":"o1"}"#,
                of_order(Some("A-B"), Some("o1")),
            ),
            (r#"{"kind":"orders.gap","market":"A-B"}"#, of_order(Some("A-B"), None)),
            (r#"{"kind":"orders.complete","market":7}"#, Subject::Other),
            (r#"{"kind":"trade","market":"A-B","order":"o1"}"#, Subject::Trades("A-B")),
            (r#"{"kind":"block.applied""#, Subject::Other),
            (r#"{"kind":"block.reverted","height":"1"}"#, Subject::Unknown),
            (r#"{"kind":"source.gap"}"#, Subject::Unknown),
            (r#"{"kind":"order.filled","order":"a\"b","pri"#, of_order(None, None)),
            (r#"{"kind":"order.filled","order":"","price":1}"#, of_order(None, None)),
        ] {
            assert_eq!(subject(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn of_two_lines_that_became_one_no_market_is_believed() {
        let (one, two) = (
            r#"{"kind":"book.delta","market":"A-B","bids":[],"asks":[]}"#,
            r#"{"kind":"book.delta","market":"C-D","bids":[],"asks":[]}"#,
        );
        for end in 1..one.len() {
            let line = format!("{}{two}", &one[..end]);
            assert_eq!(subject(line.as_bytes()), Subject::Unknown, "{line}");
            let mut line = one.as_bytes()[..end].to_vec();
            line.extend([0xff]);
            line.extend(two.as_bytes());
            assert_eq!(subject(&line), Subject::Unknown, "{line:?}");
        }
    }
}
