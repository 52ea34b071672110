//! Gaps of books for lines that this hub's feeds bring and that no hub can take. A row of the
//! shared log does not say its source, and has the number of one event only. So the gaps enter as
//! rows of their own, beside what caused them.

use std::sync::Arc;

use foldhash::HashMap;

use crate::ingest::losses::{Lost, gap_reason};
use crate::ingest::place::Place;
use crate::ingest::topic_sources::TopicSources;
use crate::live::Live;
use crate::market::book_gap::BookGap;
use crate::market::definition::MarketId;
use crate::market::event::{Body, Event};
use crate::market::ownership::Ownership;
use crate::market::refusal::Refusal;
use crate::market::topic::Topic;

/// What the lines of one batch lose.
pub(super) struct Losses<'a> {
    live: &'a Live,
    sources: &'a TopicSources,
    /// The feed that brings them.
    feed: Arc<str>,
    /// What only another feed may bring.
    foreign: Option<&'a Ownership>,
    /// What the batch changes until here: whether a market's book is whole, by the markets that
    /// it defines too.
    changed: HashMap<MarketId, Option<bool>>,
}

impl<'a> Losses<'a> {
    pub(super) fn new(
        live: &'a Live,
        sources: &'a TopicSources,
        feed: Arc<str>,
        foreign: Option<&'a Ownership>,
    ) -> Self {
        Self { live, sources, feed, foreign, changed: HashMap::default() }
    }

    /// The gaps that a line leaves which can't be read.
    pub(super) fn of_line(&mut self, line: &[u8], place: &Place, reason: &Refusal) -> Vec<String> {
        let lost = match Lost::of_line(line) {
            Lost::Book(market) if !self.is_defined(market) => Lost::undefined(market),
            lost => lost,
        };
        self.gaps(lost, place, reason)
    }

    /// Takes an event that enters. It leaves gaps if its market is not defined: the name may be a
    /// misspelt one.
    pub(super) fn of_event(&mut self, event: &Event<'_>, place: &Place) -> Vec<String> {
        let (market, is_whole) = match &event.body {
            Body::Market(definition) => {
                self.changed.entry(definition.market.clone()).or_default();
                return Vec::new();
            }
            Body::BookSnapshot { market, .. } => (&**market, Some(true)),
            Body::BookDelta { market, .. } => (&**market, None),
            Body::BookGap(gap) => (&*gap.market, Some(false)),
            _ => return Vec::new(),
        };
        if !self.is_defined(market) {
            let reason = Refusal::UnknownMarket(market.into());
            return self.gaps(Lost::of_event(event, &reason), place, &reason);
        }
        if is_whole.is_some() {
            self.changed.insert(market.into(), is_whole);
        }
        Vec::new()
    }

    fn is_defined(&self, market: &str) -> bool {
        self.changed.contains_key(market) || self.live.definition(market).is_some()
    }

    fn gaps(&mut self, lost: Lost<'_>, place: &Place, reason: &Refusal) -> Vec<String> {
        let mut whole = match lost {
            Lost::Nothing => return Vec::new(),
            Lost::Trades(market) => {
                if self.is_defined(market) {
                    self.sources.miss(Topic::Trades(market).name());
                }
                return Vec::new();
            }
            Lost::Book(market) => self.live.whole_book(market).into_iter().collect(),
            Lost::Undefined { market, by_snapshot }
                if self.sources.is_other_market(market, by_snapshot) =>
            {
                return Vec::new();
            }
            Lost::Undefined { .. } | Lost::Unknown => self.live.whole_books(),
        };
        let of_any = matches!(lost, Lost::Undefined { .. } | Lost::Unknown);
        whole.retain(|market| !matches!(self.changed.get(market), Some(Some(_))));
        let of_batch = self.changed.iter().filter(|(_, is_whole)| **is_whole == Some(true));
        let is_lost = |market: &str| of_any || lost == Lost::Book(market);
        whole.extend(of_batch.map(|(market, _)| market.clone()).filter(|market| is_lost(market)));
        whole.retain(|market| self.foreign.is_none_or(|own| !own.has_market(market)));
        if of_any {
            let topics: Vec<_> = whole
                .into_iter()
                .map(|market| (Topic::Book(&market).to_string(), market))
                .collect();
            let named = topics.iter().map(|(topic, market)| (market.clone(), topic.as_str()));
            whole = self.sources.brought((&self.feed, &place.source), named);
        }
        let gap = |market: &MarketId| BookGap {
            market: market.clone(),
            source: Some((*self.feed).into()),
            reason: gap_reason(place, reason),
        };
        let lines = whole.iter().map(|market| gap(market).line()).collect();
        self.changed.extend(whole.into_iter().map(|market| (market, Some(false))));
        lines
    }
}
