//! The handle by which feeds and mutations submit events: what they ask and what is answered. What
//! answers is the [sequencer](super::sequencer), or the writer of a shared log.

use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::feed_status::{Counts, FeedId, LastRefusal};
use super::place::Place;
use super::refusals::Refusals;
use crate::market::orders::OrderUpdate;
use crate::market::refusal::Refusal;
use crate::market::time::Micros;
use crate::store::{FeedPosition, FileProgress, Numbered, Progress, StoreError};

/// Batches that may wait for the sequencer. Each feed has one at a time; mutations, one event
/// each, share the rest.
pub const MOST_WAITING: usize = 256;
/// One event as a feed brings it.
#[derive(Debug)]
pub struct Incoming {
    pub place: Place,
    /// What the feed itself had to refuse (a line too long to be held) is counted like the rest.
    pub line: Result<Vec<u8>, Refusal>,
    /// Where the store is a replica of the log that the feed reads.
    pub numbered: Option<Numbered>,
}

/// What enters the log together, with the feed's progress after it. An event that begins new epochs
/// (see [`crate::market::event::begins_epochs`]) comes by itself.
#[derive(Debug)]
pub struct Batch {
    /// `None`: a mutation, whose client gets the refusal as its answer.
    pub feed: Option<FeedId>,
    pub lines: Vec<Incoming>,
    pub progress: Vec<Progress>,
}

/// The batch is in the log and in the live state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    pub accepted: usize,
    /// Of these, events that change nothing a client can see yet.
    pub logged_only: usize,
    /// Their ids were in the log before.
    pub known: usize,
    pub refused: usize,
    /// Of the last accepted event.
    pub last_sequence: Option<u64>,
    pub last_refusal: Option<LastRefusal>,
    /// The newest, `last_refusal` among them.
    pub refusals: Refusals,
    /// The last order that was changed.
    pub order: Option<Arc<OrderUpdate>>,
}

#[derive(Debug, Error)]
pub enum IngestError {
    #[error("the hub is shutting down: the events were not taken, send them again")]
    Closed,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the shared log takes nothing now ({0}): nothing was written, send it again")]
    Unreachable(String),
    /// Nothing of the batch is in the log, or all of it is with its progress.
    #[error("another hub reads the source now")]
    TakenOver,
}

/// A source of which one hub at a time is the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// This hub is.
    pub ours: bool,
    /// How far it is in the log, by any reader.
    pub position: Option<FeedPosition>,
}

/// What is asked by a handle.
pub(crate) enum Request {
    Deliver { batch: Batch, done: Answer<Ack> },
    Files { feed: Box<str>, done: Answer<Vec<FileProgress>> },
    Claim { feeds: Vec<Box<str>>, done: Answer<Vec<Lease>> },
}

pub(crate) type Answer<T> = oneshot::Sender<Result<T, IngestError>>;

/// Writes a batch on the calling thread; see [`IngestHandle::try_write`].
pub(crate) type WriteHere =
    Arc<dyn Fn(Batch) -> Result<Result<Ack, IngestError>, Batch> + Send + Sync>;

/// A feed's side. The sequencer ends once every clone is dropped.
#[derive(Clone)]
pub struct IngestHandle {
    requests: mpsc::Sender<Request>,
    /// None where somebody else than the sequencer answers.
    write_here: Option<WriteHere>,
}

impl IngestHandle {
    /// Waits until the batch is in the log; as long as it takes. [`IngestError::Closed`] means that
    /// none of it is in the log, unless the process ended in between.
    pub async fn deliver(&self, batch: Batch) -> Result<Ack, IngestError> {
        self.submit(batch).await?.acknowledged().await
    }

    /// Writes a batch on the calling thread, with the same outcome as [`Self::deliver`]. Gives the
    /// batch back if the sequencer is busy, or if the batch has to go through its queue.
    ///
    /// Two switches between threads cost more than the commit of one event. The call blocks until
    /// the batch is in the log, so only the thread of a feed may make it.
    pub fn try_write(&self, batch: Batch) -> Result<Result<Ack, IngestError>, Batch> {
        match &self.write_here {
            Some(write) => write(batch),
            None => Err(batch),
        }
    }

    /// As [`Self::try_write`], or through the queue.
    pub async fn write(&self, batch: Batch) -> Result<Ack, IngestError> {
        match self.try_write(batch) {
            Ok(done) => done,
            Err(batch) => self.deliver(batch).await,
        }
    }

    /// Waits for its turn alone: batches that are handed in one after the other keep their order.
    pub async fn submit(&self, batch: Batch) -> Result<PendingAck, IngestError> {
        let (done, answer) = oneshot::channel();
        let request = Request::Deliver { batch, done };
        self.requests.send(request).await.map_err(|_| IngestError::Closed)?;
        Ok(PendingAck(answer))
    }

    pub fn downgrade(&self) -> WeakIngestHandle {
        let write_here = self.write_here.clone();
        WeakIngestHandle { requests: self.requests.downgrade(), write_here }
    }

    /// How far each file of a feed is in the log.
    pub async fn file_progress(&self, feed: &str) -> Result<Vec<FileProgress>, IngestError> {
        self.ask(|done| Request::Files { feed: feed.into(), done }).await
    }

    /// Makes this hub the reader of each of these sources, which number their events, where no
    /// other hub is; where hubs share a log, for as long as it is said again in time. What became
    /// of each, in their order.
    pub async fn claim(&self, feeds: Vec<Box<str>>) -> Result<Vec<Lease>, IngestError> {
        self.ask(|done| Request::Claim { feeds, done }).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, IngestError> {
        let (done, answer) = oneshot::channel();
        self.requests.send(request(done)).await.map_err(|_| IngestError::Closed)?;
        answer.await.map_err(|_| IngestError::Closed)?
    }

    /// One that is answered by who takes what is asked.
    pub(crate) fn open() -> (Self, mpsc::Receiver<Request>) {
        let (requests, asked) = mpsc::channel(MOST_WAITING);
        (Self { requests, write_here: None }, asked)
    }

    /// The same handle, by which a feed may also write batches on its own thread.
    pub(crate) fn with_write_here(self, write_here: WriteHere) -> Self {
        Self { write_here: Some(write_here), ..self }
    }
}

/// A batch whose answer is not awaited yet.
pub struct PendingAck(oneshot::Receiver<Result<Ack, IngestError>>);

impl PendingAck {
    /// As [`IngestHandle::deliver`] ends.
    pub async fn acknowledged(self) -> Result<Ack, IngestError> {
        self.0.await.map_err(|_| IngestError::Closed)?
    }
}

/// Does not keep the sequencer from ending, as a [`IngestHandle`] does.
#[derive(Clone)]
pub struct WeakIngestHandle {
    requests: mpsc::WeakSender<Request>,
    write_here: Option<WriteHere>,
}

impl WeakIngestHandle {
    /// `None`: the sequencer ends or has ended.
    pub fn upgrade(&self) -> Option<IngestHandle> {
        let requests = self.requests.upgrade()?;
        Some(IngestHandle { requests, write_here: self.write_here.clone() })
    }

    /// No handle is left.
    pub(crate) fn is_closed(&self) -> bool {
        self.requests.strong_count() == 0
    }
}

impl Ack {
    /// Of one event.
    pub(crate) fn of_accepted(sequence: u64, order: Option<&Arc<OrderUpdate>>) -> Self {
        let (last_sequence, order) = (Some(sequence), order.cloned());
        Self { accepted: 1, last_sequence, order, ..Self::default() }
    }

    /// Of one event.
    pub(crate) fn of_known() -> Self {
        Self { known: 1, ..Self::default() }
    }

    /// Of one event.
    pub(crate) fn of_refused(place: Place, reason: Refusal) -> Self {
        let mut ack = Self::default();
        ack.refuse(place, reason);
        ack
    }

    /// Adds the results of further lines of the same request.
    pub fn add(&mut self, further: Self) {
        let Self {
            accepted,
            logged_only,
            known,
            refused,
            last_sequence,
            last_refusal,
            refusals,
            order,
        } = further;
        self.accepted += accepted;
        self.logged_only += logged_only;
        self.known += known;
        self.refused += refused;
        self.last_sequence = last_sequence.max(self.last_sequence);
        self.last_refusal = last_refusal.or(self.last_refusal.take());
        self.refusals.add(refusals);
        self.order = order.or(self.order.take());
    }

    pub(crate) fn refuse(&mut self, place: Place, reason: Refusal) {
        self.refused += 1;
        let refusal = LastRefusal { place, reason };
        self.refusals.push(refusal.clone());
        self.last_refusal = Some(refusal);
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            accepted: self.accepted as u64,
            logged_only: self.logged_only as u64,
            known: self.known as u64,
            refused: self.refused as u64,
            last_refusal: self.last_refusal.clone(),
            refusals: self.refusals.clone(),
        }
    }
}

/// An order, or what happened to it, as the store keeps it.
pub(crate) fn json(value: &impl Serialize) -> Box<str> {
    // Strings and whole numbers always become JSON.
    serde_json::to_string(value).unwrap_or_default().into()
}

/// The line as it is kept: without a byte order mark and without spaces around it, so that every
/// reader of the log gets plain JSON.
pub(crate) fn body(line: Vec<u8>) -> Box<str> {
    // Parsed before, so it is UTF-8 and nothing is replaced.
    let text = String::from_utf8(line)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    let kept = text.trim_start_matches('\u{feff}').trim();
    if kept.len() == text.len() { text.into_boxed_str() } else { kept.into() }
}

pub(crate) fn now() -> Micros {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Micros::try_from(since.as_micros()).unwrap_or(Micros::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_batch_too_many_waits_until_the_sequencer_takes_one() {
        let (handle, mut asked) = IngestHandle::open();
        let batch = || Batch { feed: None, lines: vec![], progress: vec![] };
        let mut waiting = Vec::new();
        for _ in 0..MOST_WAITING {
            waiting.push(handle.submit(batch()).await.unwrap());
        }
        // So that this task's turn is not what ends.
        tokio::task::yield_now().await;
        let mut further = Box::pin(handle.submit(batch()));
        assert!(futures_util::poll!(&mut further).is_pending());
        assert!(asked.recv().await.is_some());
        assert!(further.await.is_ok());
    }
}
