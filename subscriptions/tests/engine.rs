//! The engine over in-memory pipes with paused time: what a client may rely on, one fact a test.

#![expect(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod board;
mod client;
mod fan_out;
mod legacy;
mod limits;
mod protocol;
mod readers;
mod replay;
mod simulation;
mod slow;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use spreadly_subscriptions::{Dialect, Limits, Meters, Opening, Rank, Shard, StreamLimits};
use tokio::io::DuplexStream;
use tokio::task::LocalSet;

use board::{Board, BoardExecutor};
use client::Client;

/// One shard with its hub, on this thread.
struct Hub {
    shard: Rc<Shard<DuplexStream, BoardExecutor>>,
    board: Arc<Board>,
    executor: Arc<BoardExecutor>,
    meters: Arc<Meters>,
}

impl Hub {
    fn start(limits: Limits, streams: StreamLimits) -> Self {
        let (executor, meters) = BoardExecutor::new(streams);

        let shard = Shard::new(executor.clone(), limits, meters.clone());
        tokio::task::spawn_local(shard.clone().run(None));
        Self { shard, board: executor.board.clone(), executor, meters }
    }

    /// `window` is how many bytes the pipe holds in each direction: a socket's buffers.
    fn connect(&self, window: usize) -> Client {
        self.connect_as(Dialect::TransportWs, window)
    }

    fn connect_as(&self, dialect: Dialect, window: usize) -> Client {
        self.connect_ranked(Rank::First, dialect, window)
    }

    fn connect_ranked(&self, rank: Rank, dialect: Dialect, window: usize) -> Client {
        let (ours, theirs) = tokio::io::duplex(window);
        self.shard.adopt(ours, Opening::Accept(dialect), &[], (), rank, None);
        Client::new(theirs)
    }

    /// Waits until all clients have left: every count is back at zero.
    async fn is_clean(&self) {
        while self.meters.sockets_open.get() > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(self.meters.readers_open.get(), 0, "readers were leaked");
        let later = tokio::time::Instant::now() + Duration::from_secs(3600);
        let streams = &self.executor.streams;
        streams.forget_idle(usize::MAX, later);
        assert!(self.executor.streams.is_empty(), "streams were leaked");
        assert_eq!(self.meters.streams_open.get(), 0);
    }
}

/// Runs a test on one thread with the clock paused: it jumps when all tasks wait.
fn paused(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}
