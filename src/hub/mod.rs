//! The hub as a process: composition only. It imports the other rooms and connects them; of these
//! only `cli` imports it.

mod accepting;
mod banner;
mod cache;
mod feed_log;
mod feeds;
mod limits;
mod memory;
mod mutations;
mod readiness;
mod run;
mod shared_log;
mod simulator;
mod timers;

pub use self::run::{ServeError, run};
pub use self::shared_log::postgres as postgres_config;

#[cfg(test)]
mod tests;
