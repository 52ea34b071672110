//! Topics: the ordered streams of events, and the only place that writes and reads their names. A
//! name is stored in the log and hashed into cursors, so its text never changes.

use std::fmt;
use std::sync::Arc;

use spreadly_subscriptions::topic_hash;

use super::candles::Interval;

/// The name of [`Topic::Blocks`].
const BLOCKS: &str = "blocks";

/// One ordered stream of events. `Display` writes its name and [`Topic::parse`] reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic<'a> {
    /// What defines a market. It is also the scope of all topics of the market.
    Market(&'a str),
    /// A market's book, where it comes as price levels.
    Book(&'a str),
    Trades(&'a str),
    /// The orders of a market, of an account, or of an account in a market. At least one of them
    /// is given. A market's id has no `@` in it.
    Orders {
        market: Option<&'a str>,
        account: Option<&'a str>,
    },
    /// A generic topic.
    Message(&'a str),
    /// What happened to the chain itself, or to a source.
    Blocks,
    /// Best bids and offers of a market; in cursors only.
    Bbo(&'a str),
    /// Candles of a market; in cursors only.
    Candles(&'a str, Interval),
    /// In cursors only.
    Ticker(&'a str),
}

impl<'a> Topic<'a> {
    /// The orders of a market, of all accounts.
    pub fn orders_of(market: &'a str) -> Self {
        Self::Orders { market: Some(market), account: None }
    }

    /// Reads a name; `None` if no topic has it.
    pub fn parse(name: &'a str) -> Option<Self> {
        if name == BLOCKS {
            return Some(Self::Blocks);
        }
        if let Some(rest) = name.strip_prefix("orders") {
            let (market, account) = match rest.split_once('@') {
                Some((market, account)) => (market, Some(account)),
                None => (rest, None),
            };
            let market = match market {
                "" => None,
                market => Some(market.strip_prefix(':')?),
            };
            return Some(Self::Orders { market, account });
        }
        let (kind, rest) = name.split_once(':')?;
        Some(match kind {
            "market" => Self::Market(rest),
            "book" => Self::Book(rest),
            "trades" => Self::Trades(rest),
            "message" => Self::Message(rest),
            "bbo" => Self::Bbo(rest),
            "candles" => {
                let (market, name) = rest.rsplit_once(':')?;
                let interval = Interval::ALL.into_iter().find(|one| one.name() == name)?;
                Self::Candles(market, interval)
            }
            "ticker" => Self::Ticker(rest),
            _ => return None,
        })
    }

    /// Its name, to be shared.
    pub fn name(self) -> Arc<str> {
        self.to_string().into()
    }

    /// What a cursor contains in place of its name.
    pub fn cursor_hash(self) -> u64 {
        topic_hash(&self.to_string())
    }

    /// The market it belongs to, if any.
    pub fn market(self) -> Option<&'a str> {
        match self {
            Self::Market(market)
            | Self::Book(market)
            | Self::Trades(market)
            | Self::Bbo(market)
            | Self::Candles(market, _)
            | Self::Ticker(market) => Some(market),
            Self::Orders { market, .. } => market,
            Self::Message(_) | Self::Blocks => None,
        }
    }

    /// The market whose book its events make up.
    pub fn book_market(self) -> Option<&'a str> {
        match self {
            Self::Book(market) | Self::Orders { market: Some(market), account: None } => {
                Some(market)
            }
            _ => None,
        }
    }

    /// What begins a new epoch together: all topics of a market, otherwise a topic by itself.
    pub fn scope(self) -> Self {
        self.market().map_or(self, Self::Market)
    }
}

impl fmt::Display for Topic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Market(market) => write!(f, "market:{market}"),
            Self::Book(market) => write!(f, "book:{market}"),
            Self::Trades(market) => write!(f, "trades:{market}"),
            Self::Orders { market, account } => {
                f.write_str("orders")?;
                if let Some(market) = market {
                    write!(f, ":{market}")?;
                }
                if let Some(account) = account {
                    write!(f, "@{account}")?;
                }
                Ok(())
            }
            Self::Message(name) => write!(f, "message:{name}"),
            Self::Blocks => f.write_str(BLOCKS),
            Self::Bbo(market) => write!(f, "bbo:{market}"),
            Self::Candles(market, interval) => write!(f, "candles:{market}:{}", interval.name()),
            Self::Ticker(market) => write!(f, "ticker:{market}"),
        }
    }
}

/// The name of the scope of a topic, see [`Topic::scope`]. A name that no topic has is a scope of
/// its own.
pub fn scope_of(name: &str) -> String {
    Topic::parse(name).map_or_else(|| name.to_owned(), |topic| topic.scope().to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The names are stored in logs and cursors: each is written out here and never changes.
    #[test]
    fn each_topic_has_the_name_that_logs_and_cursors_contain() {
        let orders = |market, account| Topic::Orders { market, account };
        let all = [
            (Topic::Market("A-B"), "market:A-B", "market:A-B"),
            (Topic::Book("A-B"), "book:A-B", "market:A-B"),
            (Topic::Trades("A-B"), "trades:A-B", "market:A-B"),
            (Topic::orders_of("A-B"), "orders:A-B", "market:A-B"),
            (orders(Some("A-B"), Some("9g")), "orders:A-B@9g", "market:A-B"),
            (orders(Some("A-B"), Some("9@g:")), "orders:A-B@9@g:", "market:A-B"),
            (orders(None, Some("9g")), "orders@9g", "orders@9g"),
            (Topic::Message("news"), "message:news", "message:news"),
            (Topic::Message("trades:A-B"), "message:trades:A-B", "message:trades:A-B"),
            (Topic::Blocks, "blocks", "blocks"),
            (Topic::Bbo("A-B"), "bbo:A-B", "market:A-B"),
            (Topic::Candles("A-B", Interval::M15), "candles:A-B:M15", "market:A-B"),
            (Topic::Ticker("A-B"), "ticker:A-B", "market:A-B"),
        ];
        for (topic, name, scope) in all {
            assert_eq!(topic.to_string(), name);
            assert_eq!(topic.name().as_ref(), name);
            assert_eq!(topic.cursor_hash(), topic_hash(name));
            assert_eq!(Topic::parse(name), Some(topic));
            assert_eq!(scope_of(name), scope);
        }
        for name in
            ["", "book", "ordersA-B", "candles:A-B", "candles:A-B:M2", "depth:A-B", "Book:A"]
        {
            assert_eq!(Topic::parse(name), None, "{name}");
            assert_eq!(scope_of(name), name);
        }
    }

    #[test]
    fn only_levels_and_all_orders_of_a_market_make_up_its_book() {
        let all = ["book:A-B", "orders:A-B", "orders:A-B@9g", "orders@9g", "trades:A-B", "blocks"];
        let markets = all.map(|name| Topic::parse(name).and_then(Topic::book_market));
        assert_eq!(markets, [Some("A-B"), Some("A-B"), None, None, None, None]);
    }

    proptest! {
        #[test]
        fn a_topic_is_read_from_its_name_as_it_was_written(
            market in "[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
            text in "[^\\p{Cc}]{1,64}",
            interval in 0..Interval::ALL.len(),
        ) {
            let all = [
                Topic::Market(&market),
                Topic::Book(&market),
                Topic::Trades(&market),
                Topic::orders_of(&market),
                Topic::Orders { market: Some(&market), account: Some(&text) },
                Topic::Orders { market: None, account: Some(&text) },
                Topic::Message(&text),
                Topic::Blocks,
                Topic::Bbo(&market),
                Topic::Candles(&market, Interval::ALL[interval]),
                Topic::Ticker(&market),
            ];
            for topic in all {
                let name = topic.to_string();
                prop_assert_eq!(Topic::parse(&name), Some(topic));
                prop_assert_eq!(topic.scope().scope(), topic.scope());
            }
        }

        #[test]
        fn a_name_that_is_read_is_written_the_same(
            name in "(orders|book|candles|message|blocks)?[:@]?.{0,12}",
        ) {
            if let Some(topic) = Topic::parse(&name) {
                prop_assert_eq!(topic.to_string(), name);
            }
        }
    }
}
