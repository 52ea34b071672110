//! The write pipeline: what feeds and mutations bring gets its order, enters the log and then the
//! live state. Knows no source.

pub mod feed_status;
pub mod handle;
pub mod losses;
pub mod place;
pub mod projection;
pub mod refusals;
pub mod rollback;
pub mod sequencer;
pub mod source_lags;
pub mod summary;
pub mod topic_sources;
pub mod waiters;

use std::time::Duration;

use crate::backoff::Backoff;

/// Most faults that pass at all (a lock, a rename in progress) pass within it.
const FIRST_WAIT: Duration = Duration::from_millis(10);
/// A mended disk is noticed within a second.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Between two tries of a feed or of the log.
pub fn backoff() -> Backoff {
    Backoff::between(FIRST_WAIT, LONGEST_WAIT)
}
