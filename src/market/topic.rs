//! Topics: the names of the ordered streams of events, as the log and the cursors write them.

use std::sync::Arc;

/// The log's name of what happened to the chain itself, or to a source.
pub const BLOCKS: &str = "blocks";

/// The log's name of what defines a market.
pub fn market_topic(market: &str) -> Arc<str> {
    format!("market:{market}").into()
}

/// The log's name of a market's trades.
pub fn trades_topic(market: &str) -> Arc<str> {
    format!("trades:{market}").into()
}

/// What the log's names of generic topics begin with.
pub const MESSAGE: &str = "message:";

/// The log's name of a generic topic.
pub fn message_topic(name: &str) -> Arc<str> {
    format!("{MESSAGE}{name}").into()
}

/// The log's name of the orders of a market, of an account, of an account in a market. A market's
/// id has no `@` in it.
pub fn orders_topic(market: Option<&str>, account: Option<&str>) -> Arc<str> {
    let market = market.map(|market| format!(":{market}")).unwrap_or_default();
    let account = account.map(|account| format!("@{account}")).unwrap_or_default();
    format!("orders{market}{account}").into()
}

/// What begins a new epoch together: all topics of a market, otherwise a topic by itself. By the
/// log's names: `market:` before a market's id, or the topic.
pub fn scope_of(topic: &str) -> String {
    let market = ["book:", "orders:", "trades:", "market:"]
        .into_iter()
        .find_map(|kind| topic.strip_prefix(kind))
        // An account's orders in a market; no market's id has an `@` in it.
        .map(|rest| rest.split_once('@').map_or(rest, |(market, _)| market));
    market.map_or_else(|| topic.to_owned(), market_scope)
}

/// The scope of a market's topics.
pub fn market_scope(market: &str) -> String {
    format!("market:{market}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_a_market_are_one_scope() {
        for topic in ["book:A-B", "trades:A-B", "orders:A-B", "orders:A-B@9g", "market:A-B"] {
            assert_eq!(scope_of(topic), "market:A-B");
        }
        for topic in ["orders@9g", "message:trades:A-B", "message:news", "blocks"] {
            assert_eq!(scope_of(topic), topic);
        }
    }
}
