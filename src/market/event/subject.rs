//! What a line is about that can't be read, as far as it can be seen.

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The book of this market.
    Book(&'a str),
    /// The book of some market, or nothing that can be seen.
    Unknown,
    /// No book of price levels.
    Other,
}

const KIND: &str = "\"kind\"";
const MARKET: &str = "\"market\"";

/// Kinds that change no book of price levels.
const OTHERS: [&str; 4] = ["market", "trade", "message", "source.gap"];
/// The same of families of kinds.
const OTHER_FAMILIES: [&str; 2] = ["order.", "block."];

/// Looks for the kind and the market of a line that is refused.
pub fn subject(line: &[u8]) -> Subject<'_> {
    let line = text_of(line);
    let kind = text_after(line, KIND);
    let is_other = |kind: &str| {
        OTHERS.contains(&kind) || OTHER_FAMILIES.iter().any(|family| kind.starts_with(family))
    };
    match (kind.is_some_and(is_other), text_after(line, MARKET)) {
        (true, _) => Subject::Other,
        (false, Some(market)) => Subject::Book(market),
        (false, None) => Subject::Unknown,
    }
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

    #[test]
    fn a_broken_line_shows_its_market_where_that_is_whole() {
        for (line, expected) in [
            (r#"{"kind":"book.delta","market":"A-B","bids":[["1","#, Subject::Book("A-B")),
            (r#"{ "market" : "A-B", "kind": "book.dxlta""#, Subject::Book("A-B")),
            (r#"{"kind":"book.delta","mxrket":"A-B","bids":[]}"#, Subject::Unknown),
            (r#"{"kind":"book.delta","market":"A-"#, Subject::Unknown),
            ("garbage", Subject::Unknown),
            (r#"{"kind":"message","topic":"t","data":{"market":"A-B"},"#, Subject::Other),
            (r#"{"kind":"trade","market":"A-B","price":"1"#, Subject::Other),
            (r#"{"kind":"order.placed","market":"A-B""#, Subject::Other),
            (r#"{"kind":"block.applied""#, Subject::Other),
        ] {
            assert_eq!(subject(line.as_bytes()), expected, "{line}");
        }
    }
}
