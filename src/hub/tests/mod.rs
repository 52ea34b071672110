//! The middle tier of tests: sequencer, SQLite log, live state, workers, GraphQL and the engine,
//! all on one thread with its clock paused. Clients are pipes in memory. Between the unit tests and
//! those that start the hub as a process: as real as the latter but for sockets, threads and feeds,
//! and fast enough for a storm of thousands of steps.

mod broken_lines;
mod checker;
mod client;
mod document;
mod model;
mod one_thread;
mod storm;
mod twins;

use tokio::time::Instant;

/// Runs a test on one thread with the clock paused: it jumps when all tasks wait.
fn paused<F: Future<Output = ()>>(test: impl FnOnce(Instant) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async { test(Instant::now()).await });
}
