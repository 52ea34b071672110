//! How a start gets the state back, before the first feed runs: from the log, and from the cache
//! where the log confirms it.

mod replay;
mod warm_start;

pub use self::replay::{Recovered, newest_trades, recover, recover_live, standing};
pub use self::warm_start::{CachedStates, WarmStart};
