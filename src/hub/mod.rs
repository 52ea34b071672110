//! The hub as a process: composition only. It imports the other rooms and connects them; of these
//! only `cli` imports it.

mod banner;
mod cache;
mod feeds;
mod limits;
mod memory;
mod mutations;
mod run;
mod shared_log;
mod simulator;
mod timers;

pub use self::run::{ServeError, run};

#[cfg(test)]
mod tests;
