//! The GraphQL of the attackers. A serial number in an alias makes a document like no other; what
//! the hub has to do for it is the same.

use super::markets::{DEEP_LEVELS, LARGE_TOPIC, ORDERS, REPLACED, TOPIC, quiet_markets};
use super::spec::Kind;
use serde_json::json;
use std::fmt::Write;

/// How often a document may select one place of its result (`query_repeats`).
const MOST_REPEATS: usize = 20;
/// How often a subscription to quiet markets selects each place: 43 fields of each of 100 markets.
const QUIET_REPEATS: usize = 3;
/// Every event changes some of the best 20 levels, so it concerns each of these depths.
const LEAST_DEPTH: u64 = 20;
const DEPTHS: u64 = 480;
/// Of a deep book: as many fresh depths, all near the deepest.
const DEEP_DEPTHS: u64 = 4000;
/// Deep enough to be expensive: an interface has several types, each of which has the interface.
const INTROSPECTION_NESTING: usize = 8;
const INTERVALS: [&str; 7] = ["M1", "M5", "M15", "M30", "H1", "H4", "D1"];
const LEVELS: &str = "bids { price size } asks { price size }";

fn depth(serial: u64) -> u64 {
    LEAST_DEPTH + serial % DEPTHS
}

fn deep(serial: u64) -> u64 {
    DEEP_LEVELS as u64 - serial % DEEP_DEPTHS
}

fn interval(serial: u64) -> &'static str {
    INTERVALS[usize::try_from(serial).unwrap_or(0) % INTERVALS.len()]
}

/// A subscription whose answer starts with `mergedEvents`, where it has that.
pub fn subscription(kind: Kind, market: &str, serial: u64) -> String {
    let kinds = [Kind::Book, Kind::Trades, Kind::Tickers, Kind::Candles, Kind::Offers];
    let kind = match kind {
        Kind::Mixed => kinds[usize::try_from(serial).unwrap_or(0) % kinds.len()],
        other => other,
    };
    let field = match kind {
        Kind::Trades => format!(
            "trades(markets: [\"{market}\"]) {{ sequence \
             trades {{ id price size takerSide time }} }}"
        ),
        Kind::Tickers => format!(
            "tickers(markets: [\"{market}\"]) {{ sequence ticker {{ last high low volume change \
             bid {{ price size }} ask {{ price size }} }} }}"
        ),
        Kind::Candles => format!(
            "candles(market: \"{market}\", interval: {}) {{ mergedEvents sequence \
             candles {{ start open high low close volume count }} }}",
            interval(serial)
        ),
        Kind::Offers => format!(
            "bestBidOffer(markets: [\"{market}\"]) {{ sequence bid {{ price size }} \
             ask {{ price size }} }}"
        ),
        Kind::Quiet => quiet(serial),
        Kind::Replaced => book(REPLACED, deep(serial)),
        _ => book(market, depth(serial)),
    };
    format!("subscription {{ a{serial}: {field} }}")
}

/// It has about as many fields of all markets together as it may (`stated_fields`).
fn quiet(serial: u64) -> String {
    let markets = serde_json::to_string(&quiet_markets(serial)).unwrap_or_default();
    let repeat = |fields: &str| format!("{fields} ").repeat(QUIET_REPEATS);
    let levels = repeat("price size orders");
    let fields = repeat("cursor epoch sequence prevSequence mergedEvents publishTime state");
    format!("bestBidOffer(markets: {markets}) {{ {fields} bid {{ {levels} }} ask {{ {levels} }} }}")
}

/// A subscription to a deep book.
pub fn deep_subscription(market: &str, serial: u64) -> String {
    format!("subscription {{ a{serial}: {} }}", book(market, deep(serial)))
}

fn book(market: &str, depth: u64) -> String {
    format!(
        "orderBook(market: \"{market}\", depth: {depth}) {{ ... on BookDelta {{ mergedEvents \
         prevSequence {LEVELS} }} ... on BookSnapshot {{ reason {LEVELS} }} sequence }}"
    )
}

/// A subscription to the cursors of the topic of large events.
pub fn cursors() -> String {
    format!("subscription {{ events(topic: \"{LARGE_TOPIC}\") {{ cursor }} }}")
}

/// A subscription that resumes there, and selects each event as often as it may.
pub fn resume(cursor: &str) -> String {
    let data = (0..MOST_REPEATS).fold(String::new(), |all, one| format!("{all} d{one}: data"));
    format!(
        "subscription {{ events(topic: \"{LARGE_TOPIC}\", after: \"{cursor}\") \
         {{ sequence events {{ {data} }} }} }}"
    )
}

pub fn deep_query(market: &str, serial: u64) -> String {
    format!(
        "{{ a{serial}: orderBook(market: \"{market}\", depth: {}) {{ sequence {LEVELS} }} }}",
        deep(serial)
    )
}

pub fn deepest_query(market: &str) -> String {
    format!("{{ orderBook(market: \"{market}\", depth: {DEEP_LEVELS}) {{ sequence {LEVELS} }} }}")
}

/// A query of HTTP.
pub fn query(kind: Kind, market: &str, serial: u64) -> String {
    let kinds =
        [Kind::Book, Kind::Candles, Kind::Trades, Kind::Orders, Kind::Events, Kind::Introspection];
    let kind = match kind {
        Kind::Mixed => kinds[usize::try_from(serial).unwrap_or(0) % kinds.len()],
        other => other,
    };
    let page = "pageInfo { hasNextPage endCursor }";
    let field = match kind {
        Kind::Candles => format!(
            "candles(market: \"{market}\", interval: {}, last: 500) {{ start open high low close \
             volume count }}",
            interval(serial)
        ),
        Kind::Trades | Kind::Tickers => format!(
            "trades(market: \"{market}\", first: 100) {{ nodes {{ id price size time }} {page} }}"
        ),
        Kind::Orders => format!(
            "orders(filter: {{ market: \"{ORDERS}\" }}, first: 100) {{ nodes {{ id side price size \
             status }} {page} }}"
        ),
        Kind::Events => {
            format!("events(topic: \"{TOPIC}\", first: 100) {{ nodes {{ data time }} {page} }}")
        }
        Kind::Introspection => introspection(),
        _ => {
            format!("orderBook(market: \"{market}\", depth: {DEEP_LEVELS}) {{ sequence {LEVELS} }}")
        }
    };
    format!("{{ a{serial}: {field} }}")
}

fn introspection() -> String {
    let nested = (0..INTROSPECTION_NESTING).fold("name".to_owned(), |inner, _| {
        format!("possibleTypes {{ interfaces {{ {inner} }} }}")
    });
    format!("__type(name: \"BookFrame\") {{ {nested} }}")
}

/// One mutation with `count` aliases, each of which publishes to a new topic.
pub fn publish(count: usize, mut serial: impl FnMut() -> u64) -> String {
    let mut text = "mutation {".to_owned();
    for alias in 0..count {
        let topic = serial();
        let written =
            write!(text, " a{alias}: publish(topic: \"flood-{topic}\", data: 1) {{ sequence }}");
        debug_assert!(written.is_ok(), "a String takes every write");
    }
    text + " }"
}

pub fn subscribe_message(id: u64, query: &str) -> String {
    json!({"id": id.to_string(), "type": "subscribe", "payload": {"query": query}}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_documents_are_alike() {
        let kinds =
            [Kind::Book, Kind::Trades, Kind::Candles, Kind::Mixed, Kind::Quiet, Kind::Replaced];
        for kind in kinds {
            let all: Vec<String> =
                (0..1000).map(|serial| subscription(kind, "A-B", serial)).collect();
            let mut different = all.clone();
            different.sort();
            different.dedup();
            assert_eq!(different.len(), all.len());
        }
        assert_ne!(deep_query("A-B", 1), deep_query("A-B", 1 + DEEP_DEPTHS));
    }

    #[test]
    fn a_mutation_publishes_to_as_many_topics_as_it_has_aliases() {
        let mut serial = 0;
        let text = publish(30, || {
            serial += 1;
            serial
        });
        assert_eq!(text.matches("publish(").count(), 30);
        assert!(text.contains("\"flood-30\""), "{text}");
    }
}
