//! Feeds: what reads the outside world and hands events to [`crate::ingest`]. A feed is a function
//! that runs until its hub stops.

pub mod files;
pub mod kafka;
pub mod postgres;
mod session;
pub mod simulator;
