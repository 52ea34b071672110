//! The live state as the sequencer sees it: what takes events in the log's order, says where a book
//! stands, and takes over what is left once blocks were undone.

use std::sync::Arc;

use crate::cache::OrderBooks;
use crate::live::{Encoders, Live, Reorganisation};
use crate::market::admission::Admission;
use crate::market::event::{Applied, MarketId};

/// Gets events in the log's order.
pub type Apply = Box<dyn FnMut(&[Applied]) + Send>;
/// The same; gives the memory back where nobody else has it.
pub type HandOn = Box<dyn FnMut(Vec<Applied>) -> Vec<Applied> + Send>;
/// Gets what is left after a rollback.
pub type Reorganise = Box<dyn FnMut(&Arc<Reorganisation>) + Send>;
/// A market's state with the sequence it stands at.
pub type TakeCheckpoint = Box<dyn FnMut(&str) -> Option<(u64, Vec<u8>)> + Send>;

/// Gets a market's name and its state as [`TakeCheckpoint`] gave it; whether it could read it.
pub type Restore = Box<dyn FnMut(&str, &[u8]) -> bool + Send>;

/// May take a market's state for the cache.
pub type Keep = Box<dyn FnMut(&Admission, &MarketId) + Send>;

/// See the module's text. All of it is called by the sequencer.
pub struct LiveSide {
    /// Gets every committed event, in the log's order.
    pub apply: HandOn,
    pub checkpoint: TakeCheckpoint,
    pub aside: MakeAside,
    /// Gets what is left of all that was touched by blocks that were undone.
    pub reorganise: Reorganise,
    pub keep: Keep,
}

/// A state beside the live one, in which one market is brought from a checkpoint to where it
/// stands.
pub struct Aside {
    pub apply: Apply,
    pub restore: Restore,
    pub checkpoint: TakeCheckpoint,
}

/// Makes one.
pub type MakeAside = Arc<dyn Fn() -> Aside + Send + Sync>;

impl LiveSide {
    pub fn of(encoders: &Arc<Encoders>, kept: &OrderBooks) -> Self {
        let live = encoders.live();
        let (kept, keeping) = (kept.clone(), live.clone());
        let (applying, asking) = (encoders.clone(), live.clone());
        let (beside, reorganising) = (live.clone(), encoders.clone());
        Self {
            apply: Box::new(move |events| applying.apply(events)),
            checkpoint: Box::new(move |market| asking.checkpoint(market)),
            aside: Arc::new(move || Aside::of(Arc::new(beside.aside()))),
            reorganise: Box::new(move |left| {
                if let Err(error) = reorganising.reorganise(left) {
                    // It was written a moment ago, so it is a bug.
                    debug_assert!(false, "{error}");
                    tracing::error!(%error, "a book is lost until a restart reads it from the log");
                }
            }),
            keep: Box::new(move |admission, market| kept.take(admission, market, &keeping)),
        }
    }
}

impl Aside {
    fn of(live: Arc<Live>) -> Self {
        let (applying, restoring) = (live.clone(), live.clone());
        Self {
            apply: Box::new(move |events| applying.apply(events)),
            restore: Box::new(move |market, state| restoring.restore(market, state).is_ok()),
            checkpoint: Box::new(move |market| live.checkpoint(market)),
        }
    }
}
