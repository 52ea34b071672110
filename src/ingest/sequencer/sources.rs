//! Which source brings which topic, as the sequencer learns it.

use std::sync::Arc;

use super::Sequencer;
use crate::ingest::feed_status::FeedId;
use crate::ingest::place::Place;
use crate::ingest::topic_sources::MOST_TOPICS;

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
