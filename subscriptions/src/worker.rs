//! What a shard does between the turns of its sockets: a worker resolves and encodes the streams
//! that live on the shard, and pushes the results into their rings.

use tokio::sync::Notify;
use tokio::time::Instant;

/// How a worker's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Frames of an event that others wait for are not encoded yet. The next turn comes before the
    /// sockets' own work and before sockets of the last rank, a few times in a row.
    Urgent,
    /// There is more to do at once; the sockets have their turn first.
    Again,
    /// There is nothing to do until the worker is woken, or until `wake_at`.
    Done { wake_at: Option<Instant> },
}

/// See the module's text. Its turns run on one thread; any thread may wake it.
pub trait Worker: Send + Sync {
    /// Notified when there is something to do.
    fn wake(&self) -> &Notify;

    /// Works for a bounded time, well below a millisecond.
    fn turn(&self) -> Turn;
}
