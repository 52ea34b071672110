//! How far single sources of the feeds are, such as partitions of Kafka, for the metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::feed_status::FeedId;

/// Most sources of a feed whose lag is reported.
pub const MOST_SOURCE_LAGS: usize = 1_000;

/// How far one source of a feed is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLag {
    pub source: Arc<str>,
    /// As the source last said. Nothing is known of what it got since then.
    pub lag: u64,
    pub answered: Instant,
}

/// See the module's text. Clones share it.
#[derive(Clone, Default)]
pub struct SourceLags(Arc<Mutex<BTreeMap<FeedId, Vec<SourceLag>>>>);

impl SourceLags {
    pub fn set(&self, feed: FeedId, lags: Vec<SourceLag>) {
        self.0.lock().insert(feed, lags);
    }

    /// Of all feeds.
    pub fn all(&self) -> Vec<SourceLag> {
        self.0.lock().values().flatten().cloned().collect()
    }
}
