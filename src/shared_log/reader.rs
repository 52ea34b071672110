//! What the reader of the shared log has beside a feed of its own table.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::waiters::Waiters;
use super::writer::{Writer, WriterConfig};
use crate::ingest::feed_status::FeedStatuses;
use crate::ingest::handle::Ack;
use crate::ingest::place::Place;
use crate::postgres::{Numbering, Outbox, OutboxError, PostgresConfig};
use crate::store::FeedPosition;

/// Where the table is the log itself, and the hub's store its replica: each row has the number
/// there that it has here.
pub struct Reader {
    waiters: Arc<Waiters>,
    /// Of the replica.
    epoch: u64,
    /// Cancelled when the replica is not of this log any more.
    replaced: CancellationToken,
}

impl Reader {
    /// Whether the replica is of this numbering, as far as the position.
    pub fn has(&self, numbering: &Numbering, position: u64) -> bool {
        numbering.has(self.epoch, position)
    }

    /// The table is another one, or has lost its end.
    pub fn set_replaced(&self) {
        self.replaced.cancel();
    }

    /// Where a line was at its source; `None` if nobody waits for it.
    pub fn place(&self, origin: u64, line: usize) -> Option<Place> {
        self.waiters.place(origin, line)
    }

    /// So many lines came back.
    pub fn settle(&self, origin: u64, lines: usize, ack: Ack) {
        self.waiters.settle(origin, lines, ack);
    }
}

/// The reader of the shared log and what writes into it. `replaced` ends when the table is another
/// one than the replica's.
pub fn open(
    config: WriterConfig,
    statuses: FeedStatuses,
    epoch: u64,
    replaced: CancellationToken,
) -> Result<(Reader, Writer), OutboxError> {
    let waiters = Arc::new(Waiters::default());
    let writer = Writer::new(config, waiters.clone(), statuses)?;
    Ok((Reader { waiters, epoch, replaced }, writer))
}

/// How the table is numbered, to who keeps a replica of it. Where the replica is ahead of the
/// table, which lost its end, the table begins a new numbering first.
pub async fn numbering(
    config: &PostgresConfig,
    replica: Option<&FeedPosition>,
) -> Result<Numbering, OutboxError> {
    let outbox = Outbox::open(config).await?;
    outbox.is_utf8().await?;
    let found = outbox.numbering().await?;
    let ahead = |own: &&FeedPosition| own.epoch == found.epoch && own.position > found.last;
    match replica.filter(ahead) {
        None => Ok(found),
        Some(_) => {
            outbox.renumber(found.epoch).await?;
            outbox.numbering().await
        }
    }
}
