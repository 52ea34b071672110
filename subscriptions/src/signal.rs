//! How a stream notifies the shards that have readers of it, and a shard the readers that are no
//! WebSockets. A signal carries no frame: its receiver reads the ring.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A shard's list of streams with news.
#[derive(Default)]
pub(crate) struct Doorbell {
    streams: Mutex<Vec<usize>>,
    notify: Notify,
}

impl Doorbell {
    pub(crate) async fn rung(&self) {
        self.notify.notified().await;
    }

    /// Moves the indices of streams with news into `into`. Their number is bounded by the shard's
    /// streams, as each listener rings once until it is reset.
    pub(crate) fn take(&self, into: &mut Vec<usize>) {
        into.append(&mut self.streams.lock());
    }

    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }
}

/// A stream's connection to one shard: the shard's doorbell with the stream's index in that shard.
/// So a push costs one flag for each shard, for any number of readers.
pub(crate) struct Listener {
    doorbell: Arc<Doorbell>,
    /// Index of the stream in the shard.
    index: usize,
    /// Rung and not yet reset: further pushes need not ring again.
    rung: AtomicBool,
}

impl Listener {
    pub(crate) fn new(doorbell: Arc<Doorbell>, index: usize) -> Self {
        Self { doorbell, index, rung: AtomicBool::new(false) }
    }

    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.doorbell.streams.lock().push(self.index);
            self.doorbell.wake();
        }
    }

    /// Must come before the ring is read, or a push in between would be missed.
    pub(crate) fn reset(&self) {
        self.rung.store(false, Ordering::Release);
    }
}

/// A shard's signal to a reader that is no WebSocket: its stream has news, or it has to end.
#[derive(Default)]
pub(crate) struct ReaderSignal {
    notify: Notify,
    drain_at: Cell<Option<Instant>>,
}

impl ReaderSignal {
    pub(crate) fn notify(&self) {
        self.notify.notify_one();
    }

    pub(crate) fn drain_at(&self, when: Instant) {
        self.drain_at.set(Some(when));
        self.notify();
    }

    /// Whether the time to end has come.
    pub(crate) fn is_draining(&self) -> bool {
        self.drain_at.get().is_some_and(|when| Instant::now() >= when)
    }

    /// Until there is news, or the time to end has come.
    pub(crate) async fn notified(&self) {
        let notified = self.notify.notified();
        match self.drain_at.get() {
            // The caller checks for both.
            Some(when) => drop(tokio::time::timeout_at(when, notified).await),
            None => notified.await,
        }
    }
}
