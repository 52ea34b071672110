//! Which topics belong to Kafka, as the configuration says: their events come from there and from
//! no other log, so that they have one order. Knows no feed; who asks knows where an event came
//! from.

use std::collections::HashSet;
use std::sync::Arc;

use super::definition::MarketId;
use super::event::{Body, Event, OrderEvent};
use super::refusal::Refusal;

/// Means every name.
pub const ALL: &str = "*";

/// What Kafka owns.
#[derive(Debug)]
pub struct Ownership {
    topics: Names,
    markets: Names,
}

/// What an event belongs to that Kafka owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owned {
    /// A generic topic.
    Topic(Arc<str>),
    /// A market: its definition, book, orders and trades.
    Market(MarketId),
}

#[derive(Debug)]
struct Names {
    all: bool,
    named: HashSet<Box<str>>,
}

impl Ownership {
    /// Names of generic topics and of markets; [`ALL`] means every one.
    pub fn new(topics: &[String], markets: &[String]) -> Self {
        Self { topics: Names::new(topics), markets: Names::new(markets) }
    }

    /// What an event belongs to, if Kafka owns it. `market_of` is asked for an order whose event
    /// does not say its market.
    pub fn of(
        &self,
        event: &Event,
        market_of: impl FnOnce(&OrderEvent) -> Option<MarketId>,
    ) -> Option<Owned> {
        let market = match &event.body {
            Body::Message(message) => {
                let topic = &message.topic;
                return self.topics.has(topic).then(|| Owned::Topic(topic.clone()));
            }
            Body::Order(order) => match order.market() {
                Some(market) => &**market,
                None => &*market_of(order)?,
            },
            Body::Market(definition) => &*definition.market,
            Body::BookSnapshot { market, .. } | Body::BookDelta { market, .. } => market,
            Body::BookGap(gap) => &gap.market,
            Body::OrdersComplete(complete) => &complete.market,
            Body::Trade(trade) => &trade.market,
            // Of the chain or of a whole source, which is nobody's.
            Body::Reverted { .. } | Body::BlockApplied | Body::Gap { .. } => return None,
        };
        self.has_market(market).then(|| Owned::Market(market.into()))
    }

    /// Whether Kafka owns a market.
    pub fn has_market(&self, market: &str) -> bool {
        self.markets.has(market)
    }
}

impl Owned {
    /// The key of its records.
    pub fn key(&self) -> &str {
        match self {
            Self::Topic(name) | Self::Market(name) => name,
        }
    }

    /// Why an event of it is refused that comes from another log.
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Topic(topic) => Refusal::TopicOfKafka(topic),
            Self::Market(market) => Refusal::MarketOfKafka(market),
        }
    }
}

impl Names {
    fn new(names: &[String]) -> Self {
        let named = names.iter().map(|name| name.as_str().into()).collect();
        Self { all: names.iter().any(|name| name == ALL), named }
    }

    fn has(&self, name: &str) -> bool {
        self.all || self.named.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::parse;
    use super::*;

    fn owner(ownership: &Ownership, line: &str) -> Option<String> {
        let event = parse(line.as_bytes()).unwrap();
        let known = |_: &OrderEvent| Some("M-N".into());
        Some(ownership.of(&event, known)?.refusal().to_string())
    }

    #[test]
    fn an_event_belongs_to_kafka_by_its_topic_or_by_its_market_however_it_is_known() {
        let own = Ownership::new(&["news".to_owned()], &["M-N".to_owned()]);
        let message = |topic: &str| format!(r#"{{"kind":"message","topic":"{topic}","data":1}}"#);
        assert_eq!(
            owner(&own, &message("news")).as_deref(),
            Some("topic \"news\" belongs to Kafka (feeds.kafka.own_topics): send it there")
        );
        assert_eq!(owner(&own, &message("other")), None);
        let of_market = [
            r#"{"kind":"market","market":"M-N","base":"M","quote":"N","priceDecimals":1,"sizeDecimals":1}"#,
            r#"{"kind":"book.snapshot","market":"M-N","bids":[],"asks":[]}"#,
            r#"{"kind":"book.delta","market":"M-N","bids":[],"asks":[]}"#,
            r#"{"kind":"trade","market":"M-N","price":"1","size":"1"}"#,
            r#"{"kind":"order.placed","market":"M-N","order":"o","side":"BUY","price":"1","size":"1"}"#,
            r#"{"kind":"order.filled","market":"M-N","order":"o","price":"1","size":"1"}"#,
            r#"{"kind":"order.canceled","market":"M-N","order":"o"}"#,
        ];
        let reason = "market M-N belongs to Kafka (feeds.kafka.own_markets): send its events there";
        for line in of_market {
            assert_eq!(owner(&own, line).as_deref(), Some(reason), "{line}");
            assert_eq!(owner(&own, &line.replace("M-N", "X-Y")), None, "{line}");
            // Without its market, where it may be.
            let open = line.replace(r#""market":"M-N","order""#, r#""order""#);
            if !line.contains("placed") {
                assert_eq!(owner(&own, &open).as_deref(), Some(reason), "{open}");
            }
        }
        for line in [
            r#"{"kind":"block.applied","height":1,"block":"b"}"#,
            r#"{"kind":"block.reverted","height":1}"#,
        ] {
            assert_eq!(owner(&own, line), None, "{line}");
        }
        let all = Ownership::new(&[ALL.to_owned()], &[]);
        assert!(owner(&all, &message("any")).is_some());
        assert_eq!(owner(&all, of_market[0]), None);
    }
}
