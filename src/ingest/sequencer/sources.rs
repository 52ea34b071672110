//! Which source brings which topic, as the sequencer learns it.

use std::sync::Arc;

use super::Sequencer;
use crate::ingest::feed_status::FeedId;
use crate::ingest::losses::Lost;
use crate::ingest::place::Place;
use crate::ingest::topic_sources::MOST_TOPICS;
use crate::market::admission::BookMode;
use crate::market::book_gap::Missed;
use crate::market::definition::MarketId;
use crate::market::effect::Effect;
use crate::store::NewEvent;

impl Sequencer {
    /// A feed brought an event of a topic.
    pub(super) fn note_source(&mut self, topic: &Arc<str>, feed: FeedId, place: &Place) {
        // Nearly always it is the one before.
        if let Some((own, source)) = self.noted.get(topic)
            && *own == feed
            && Arc::ptr_eq(source, &place.source)
        {
            return;
        }
        if self.noted.len() >= MOST_TOPICS {
            self.noted.clear();
        }
        let Some(name) = self.statuses.name(feed) else { return };
        self.new_sources.extend(self.statuses.sources().note(topic, &name, &place.source));
        self.noted.insert(topic.clone(), (feed, place.source.clone()));
    }

    /// The books that may have lost an event which a source brought, and what they lost. Of lines
    /// that can't be read at all a source may have many: looks only if there may be further books
    /// since the last time.
    pub(super) fn in_doubt(
        &mut self,
        feed: FeedId,
        source: &Arc<str>,
        lost: Lost<'_>,
        height: Option<u64>,
    ) -> Vec<(MarketId, Missed)> {
        let sources = self.statuses.sources();
        if lost == Lost::Unknown {
            let now = (self.admission.made_whole(), sources.changes());
            if self.doubted.len() >= MOST_TOPICS {
                self.doubted.clear();
            }
            if self.doubted.insert((feed, source.clone()), now) == Some(now) {
                return Vec::new();
            }
            sources.lose_early(self.admission.without_book().map(|market| &**market));
        }
        let Some(name) = self.statuses.name(feed) else { return Vec::new() };
        let order = lost.order();
        let only_all = matches!(lost, Lost::UnknownOrder { .. });
        let may_lose = |market: &str, mode| {
            lost.is_of(mode) && (!only_all || self.admission.orders().knows_all(market))
        };
        let books = self.admission.losable_books(order, height);
        let books = books.filter(|(market, mode, _)| may_lose(market, *mode));
        let found = sources
            .brought((&name, source), books.map(|(market, mode, topic)| ((market, mode), topic)));
        let missed = |mode| match mode {
            BookMode::Levels => Missed::Levels,
            BookMode::Orders => Missed::of_order(order),
        };
        found.into_iter().map(|(market, mode)| (market.clone(), missed(mode))).collect()
    }

    /// An event is refused. If it is a trade, nothing brings it back.
    pub(super) fn miss_trade(&self, effect: &Effect, event: &NewEvent) {
        if let Effect::Trade(_) = effect {
            self.statuses.sources().miss(event.topic.clone());
        }
    }

    /// An event is in the log. If it is a trade, those of its market go on.
    pub(super) fn take_trade(&self, effect: &Effect, event: &NewEvent) {
        if let Effect::Trade(_) = effect {
            self.statuses.sources().goes_on(&event.topic);
        }
    }

    /// What could not be written is learned again after a restart.
    pub(super) fn save_sources(&mut self) {
        if self.new_sources.is_empty() {
            return;
        }
        if let Err(error) = self.store.save_topic_sources(&self.new_sources) {
            tracing::warn!(%error, "sources of topics not saved");
        }
        self.new_sources.clear();
    }
}
