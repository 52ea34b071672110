//! The hub itself.

use async_graphql::{ID, SimpleObject};

use super::feed::FeedState;
use super::scalars::{DateTime, UInt64};

/// This hub.
#[derive(SimpleObject)]
pub struct Hub {
    /// Version of the hub's program.
    pub version: String,
    /// The epoch of its sequences.
    pub epoch: ID,
    /// When it started, by its own clock.
    pub started_at: DateTime,
    /// Seconds since it started.
    pub uptime: i32,
    /// Connections open now.
    pub sockets: UInt64,
    /// Operations running now.
    pub operations: UInt64,
    /// Whether its data is up to date.
    pub state: FeedState,
}
