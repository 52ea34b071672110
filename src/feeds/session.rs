//! What feeds have in common whose source is reached over a network and numbers its events: they
//! are cut off and come back, and begin where the log has them.

use std::convert::Infallible;
use std::fmt::Display;
use std::pin::pin;
use std::time::Duration;

use crate::ingest::feed_status::{FeedId, FeedStatuses};
use crate::ingest::handle::{Batch, Incoming, IngestError, IngestHandle, Lease, PendingAck};
use crate::store::{FeedPosition, Progress};

/// While a feed waits for the log, between two looks at what its source has meanwhile.
const LAG_LOOK: Duration = Duration::from_secs(1);
/// Between two tries to read from the log how far a feed is.
const LOG_PAUSE: Duration = Duration::from_millis(50);

/// Why a session with a source ended.
pub(super) enum Cut<E> {
    /// The hub stops.
    Closed,
    /// Which hub reads what has changed: nothing is wrong.
    Again,
    Source(E),
}

impl<E> From<E> for Cut<E> {
    fn from(error: E) -> Self {
        Self::Source(error)
    }
}

/// The hub's side of such a feed.
pub(super) struct Remote {
    pub(super) ingest: IngestHandle,
    pub(super) statuses: FeedStatuses,
    pub(super) feed: FeedId,
    /// The source's name for people.
    pub(super) source: &'static str,
}

impl Remote {
    /// Runs one session after the other. A session reads until its connection ends. It sets its
    /// argument to `true` once it has read all there was. Returns when the log is closed.
    pub(super) async fn follow<E: Display>(
        &self,
        session: impl AsyncFn(&mut bool) -> Result<Infallible, Cut<E>>,
    ) {
        let mut backoff = crate::ingest::backoff();
        loop {
            let mut healthy = false;
            let Err(cut) = session(&mut healthy).await;
            if healthy {
                backoff.reset();
            }
            let error = match cut {
                Cut::Closed => return,
                Cut::Again => {
                    tokio::time::sleep(LOG_PAUSE).await;
                    continue;
                }
                Cut::Source(error) => error,
            };
            tracing::debug!(%error, "disconnected from {}: connecting again", self.source);
            self.cut_off(&error);
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    pub(super) fn cut_off(&self, error: &impl Display) {
        self.statuses.cut_off(self.feed, format!("cut off from {}: {error}", self.source));
    }

    /// It is cut off already, and this is why by now.
    pub(super) fn still_cut_off(&self, error: &impl Display) {
        let reason = format!("cut off from {}: {error}", self.source);
        self.statuses.stale(self.feed, Some(reason));
    }

    /// All that was there is read.
    pub(super) fn caught_up(&self) {
        self.statuses.stale(self.feed, None);
    }

    pub(super) fn set_lag(&self, lag: u64) {
        self.statuses.set_lag(self.feed, lag);
    }

    /// Waits for the log, and counts on what the source has meanwhile. `lag` is `None` where the
    /// source doesn't say.
    pub(super) async fn counting<T>(
        &self,
        waiting: impl Future<Output = T>,
        lag: impl AsyncFn() -> Option<u64>,
    ) -> T {
        let mut waiting = pin!(waiting);
        loop {
            match tokio::time::timeout(LAG_LOOK, &mut waiting).await {
                Ok(done) => return done,
                Err(_) => {
                    if let Some(lag) = lag().await {
                        self.set_lag(lag);
                    }
                }
            }
        }
    }

    /// How far the source is in the log, by its name there.
    pub(super) async fn position<E>(&self, name: &str) -> Result<Option<FeedPosition>, Cut<E>> {
        let claimed = self.claim(&[name.into()]).await?;
        Ok(claimed.into_iter().next().and_then(|one| one.position))
    }

    /// See [`IngestHandle::claim`].
    pub(super) async fn claim<E>(&self, names: &[Box<str>]) -> Result<Vec<Lease>, Cut<E>> {
        loop {
            match self.ingest.claim(names.to_vec()).await {
                Ok(claimed) => return Ok(claimed),
                Err(IngestError::Closed) => return Err(Cut::Closed),
                // The log can't be read now, and every feed says so.
                Err(
                    IngestError::Store(_) | IngestError::Unreachable(_) | IngestError::TakenOver,
                ) => tokio::time::sleep(LOG_PAUSE).await,
            }
        }
    }

    /// Hands over what was read, with how far that is; back when it is in the log.
    pub(super) async fn send<E>(
        &self,
        lines: Vec<Incoming>,
        positions: impl Iterator<Item = FeedPosition>,
    ) -> Result<(), Cut<E>> {
        let pending = self.submit(lines, positions).await?;
        pending.acknowledged().await.map(drop).map_err(|error| match error {
            IngestError::TakenOver => Cut::Again,
            _ => Cut::Closed,
        })
    }

    /// Hands over what was read, and does not wait for the answer.
    pub(super) async fn submit<E>(
        &self,
        lines: Vec<Incoming>,
        positions: impl Iterator<Item = FeedPosition>,
    ) -> Result<PendingAck, Cut<E>> {
        let progress = positions.map(Progress::Position).collect();
        let batch = Batch { feed: Some(self.feed), lines, progress };
        self.ingest.submit(batch).await.map_err(|_| Cut::Closed)
    }
}
