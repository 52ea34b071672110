//! Whether topics are up to date, as far as their feeds decide it.

use std::sync::Arc;

use foldhash::HashMap;

use super::frame::FeedState;
use crate::market::topic::Topic;

/// The state of each topic. A clone shares it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedStates {
    /// Of a topic without a known source: any feed may bring it.
    others: FeedState,
    /// Of topics with known sources. Empty where all topics have one state.
    known: Arc<HashMap<Arc<str>, FeedState>>,
}

impl FeedStates {
    /// One state of all topics.
    pub fn all(state: FeedState) -> Self {
        Self { others: state, known: Arc::default() }
    }

    /// The state of each topic with a known source, and of all others.
    pub fn new(known: HashMap<Arc<str>, FeedState>, others: FeedState) -> Self {
        Self { others, known: Arc::new(known) }
    }

    /// Of a topic without a known source.
    pub fn others(&self) -> FeedState {
        self.others
    }

    /// Of the book of a market, and of what follows it.
    pub fn of_book(&self, market: &str) -> FeedState {
        self.of(&[Topic::Book(market), Topic::orders_of(market)])
    }

    /// Of the trades of a market, and of its candles.
    pub fn of_trades(&self, market: &str) -> FeedState {
        self.of(&[Topic::Trades(market)])
    }

    /// Of what follows both the book and the trades of a market.
    pub fn of_market(&self, market: &str) -> FeedState {
        self.of(&[Topic::Book(market), Topic::orders_of(market), Topic::Trades(market)])
    }

    /// Of a topic by its name.
    pub fn of_topic(&self, name: &str) -> FeedState {
        if self.known.is_empty() {
            return self.others;
        }
        match Topic::parse(name) {
            // The orders of an account in a market are among those of the market.
            Some(Topic::Orders { market: Some(market), account: Some(_) }) => {
                self.of(&[Topic::orders_of(market)])
            }
            _ => self.known.get(name).copied().unwrap_or(self.others),
        }
    }

    /// The worst of these topics that have known sources.
    fn of(&self, topics: &[Topic<'_>]) -> FeedState {
        if self.known.is_empty() {
            return self.others;
        }
        let known = topics.iter().filter_map(|topic| self.known.get(&*topic.to_string()));
        known.max().copied().unwrap_or(self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_the_state_of_its_sources_and_without_one_that_of_all_others() {
        let known = [
            ("book:A-B", FeedState::Live),
            ("trades:A-B", FeedState::Stale),
            ("orders:C-D", FeedState::Live),
        ];
        let known = known.map(|(topic, state)| (Arc::from(topic), state)).into_iter().collect();
        let states = FeedStates::new(known, FeedState::Halted);
        assert_eq!(Topic::Book("A-B").to_string(), "book:A-B");
        assert_eq!(states.of_book("A-B"), FeedState::Live);
        assert_eq!(states.of_trades("A-B"), FeedState::Stale);
        assert_eq!(states.of_market("A-B"), FeedState::Stale);
        assert_eq!(states.of_book("C-D"), FeedState::Live);
        assert_eq!(states.of_trades("C-D"), FeedState::Halted);
        assert_eq!(states.of_topic("trades:A-B"), FeedState::Stale);
        assert_eq!(states.of_topic("orders:C-D@me"), FeedState::Live);
        assert_eq!(states.of_topic("orders@me"), FeedState::Halted);
        assert_eq!(FeedStates::all(FeedState::Stale).of_book("A-B"), FeedState::Stale);
    }
}
