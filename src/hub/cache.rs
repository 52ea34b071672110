//! The cache's thread: apart from those that push, as writing a large book takes milliseconds.

use std::io;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::{Cache, CacheConfig, CacheMeters};
use crate::cache::{OrderBooks, Writer};
use crate::config;
use crate::live::Live;
use crate::recovery::WarmStart;

/// Starts it: what a start may go on from, and where the sequencer puts what only it can take.
pub(super) fn start(
    written: &config::CacheConfig,
    live: &Arc<Live>,
    meters: &Arc<CacheMeters>,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> io::Result<(WarmStart, OrderBooks)> {
    let config = CacheConfig { url: written.url.secret().clone(), deadline: written.deadline };
    // Its URL was checked with the rest of the configuration.
    let cache = Cache::new(config).map_err(io::Error::other)?;
    let (writer, lookup, taken) =
        Writer::new(cache, live.clone(), meters.clone(), written.interval);
    let stop = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tracker.spawn_blocking(move || runtime.block_on(writer.run(stop)));
    Ok((WarmStart { lookup, meters: meters.clone() }, taken))
}
