//! How a start asks the cache for states.

use tokio::sync::{mpsc, oneshot};

use super::entry::Found;
use crate::market::definition::MarketId;

/// What a start asks the cache for: the states of some markets.
pub(super) struct Question {
    pub(super) markets: Vec<MarketId>,
    pub(super) answer: oneshot::Sender<Vec<(String, Found)>>,
}

/// A start's side. Once it is dropped the writer begins: the live state is at the log's
/// end.
pub struct SnapshotLookup(pub(super) mpsc::Sender<Question>);

impl SnapshotLookup {
    /// Waits for two deadlines of the cache at most; none where it does not answer.
    pub fn states(&self, markets: Vec<MarketId>) -> Vec<(String, Found)> {
        let (answer, answered) = oneshot::channel();
        if self.0.blocking_send(Question { markets, answer }).is_err() {
            return Vec::new();
        }
        answered.blocking_recv().unwrap_or_default()
    }
}
