//! Feeds: what reads the outside world and hands events to the [`door`]. A feed is a function that
//! runs until it is told to stop.

pub mod door;
pub mod files;
pub mod recovery;
pub mod simulator;
pub mod status;

mod backoff;
