//! The live state as the sequencer sees it: it takes events in the log's order, gives the states of
//! books, and takes over what a rollback left.

use std::sync::Arc;

use crate::cache::OrderBooks;
use crate::live::{Encoders, Live, Rollback};
use crate::market::admission::Admission;
use crate::market::definition::MarketId;
use crate::market::effect::Applied;

/// Makes a state beside the live one, in which one market is replayed from a checkpoint.
pub type MakeAside = Box<dyn Fn() -> Live>;

/// See the module's text. All of it is called by the sequencer.
pub trait Projection: Send {
    /// Takes every committed event, in the log's order. Gives the memory back where nobody else
    /// has it.
    fn apply(&mut self, events: Vec<Applied>) -> Vec<Applied>;

    /// A market's state, with the sequence of its last event.
    fn checkpoint(&mut self, market: &str) -> Option<(u64, Vec<u8>)>;

    /// For a rollback.
    fn aside(&self) -> MakeAside;

    /// Takes what is left of all that was touched by a rollback.
    fn roll_back(&mut self, left: &Arc<Rollback>);

    /// May take a market's state for the cache.
    fn keep(&mut self, admission: &Admission, market: &MarketId);
}

/// The projection that clients follow.
pub struct LiveProjection {
    encoders: Arc<Encoders>,
    kept: OrderBooks,
}

impl LiveProjection {
    pub fn new(encoders: Arc<Encoders>, kept: OrderBooks) -> Self {
        Self { encoders, kept }
    }
}

impl Projection for LiveProjection {
    fn apply(&mut self, events: Vec<Applied>) -> Vec<Applied> {
        self.encoders.apply(events)
    }

    fn checkpoint(&mut self, market: &str) -> Option<(u64, Vec<u8>)> {
        self.encoders.live().checkpoint(market)
    }

    fn aside(&self) -> MakeAside {
        let live = self.encoders.live().clone();
        Box::new(move || live.aside())
    }

    fn roll_back(&mut self, left: &Arc<Rollback>) {
        if let Err(error) = self.encoders.roll_back(left) {
            // It was written a moment ago, so it is a bug.
            debug_assert!(false, "{error}");
            tracing::error!(%error, "a book is lost until a restart reads it from the log");
        }
    }

    fn keep(&mut self, admission: &Admission, market: &MarketId) {
        self.kept.take(admission, market, self.encoders.live());
    }
}
