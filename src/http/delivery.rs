//! What one HTTP connection has to deliver: whether it waits for its client, and how many bytes of
//! a reply have not left yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::header_clock::HeaderClock;
use super::waiting_connections::WaitingPlace;
use crate::budgets::UnreadPlace;

/// See the module's text. Dropped after the connection.
pub struct Delivery {
    /// `None` for a proxy's connection, which may have clients that do not wait.
    waiting: Option<WaitingPlace>,
    unsent: Mutex<Option<UnreadPlace>>,
    stalled: Arc<AtomicBool>,
    pub headers: HeaderClock,
}

impl Delivery {
    pub fn new(waiting: Option<WaitingPlace>, headers: HeaderClock) -> Self {
        Self { waiting, unsent: Mutex::new(None), stalled: Arc::default(), headers }
    }

    /// A request is there as a whole: from now on its client waits for the hub.
    pub fn work(&self) {
        self.waiting.iter().for_each(WaitingPlace::leave);
    }

    /// It has its first turn, or a reply as a whole: from now on the hub waits for the client.
    pub fn wait(&self) {
        self.waiting.iter().for_each(WaitingPlace::wait);
    }

    /// A reply is about to be sent, whose bytes have this place.
    pub fn begin_reply(&self, place: UnreadPlace) {
        *self.unsent.lock() = Some(place);
    }

    /// The client has taken bytes that waited for it: it waits from now on, not since before.
    pub fn moved(&self) {
        self.waiting.iter().filter(|place| place.waits()).for_each(WaitingPlace::wait);
    }

    /// The client has taken nothing for too long: the connection ends.
    pub fn stall(&self) {
        self.stalled.store(true, Ordering::Relaxed);
    }

    /// Whether it did, to be read after the connection.
    pub fn stalled(&self) -> Arc<AtomicBool> {
        self.stalled.clone()
    }

    /// All bytes have left.
    pub fn sent(&self) {
        *self.unsent.lock() = None;
    }
}
