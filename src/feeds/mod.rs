//! Feeds: what reads the outside world and hands events to the [`door`]. A feed is a function that
//! runs until it is told to stop.

pub mod door;
pub mod files;
pub mod kafka;
pub mod keeper;
pub mod live_side;
pub mod outcomes;
pub mod postgres;
pub mod recovery;
mod remote;
pub mod reorganisation;
pub mod sequencer;
pub mod simulator;
pub mod status;
pub mod warm;

use std::time::Duration;

use crate::backoff::Backoff;

/// Most faults that pass at all (a lock, a rename in progress) pass within it.
const FIRST_WAIT: Duration = Duration::from_millis(10);
/// A mended disk is noticed within a second.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Between two tries of a feed or of the log.
fn backoff() -> Backoff {
    Backoff::between(FIRST_WAIT, LONGEST_WAIT)
}
