//! What the engine counts. Plain atomics: written on hot paths, read by the admin port.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::message::CloseCode;

/// One number that many threads add to.
#[derive(Debug, Default)]
pub struct Meter(AtomicU64);

impl Meter {
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub fn subtract(&self, amount: u64) {
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters since the start, and gauges where the text says "now".
#[derive(Debug, Default)]
pub struct Meters {
    /// WebSockets and readers of their own (event streams) open now.
    pub sockets_open: Meter,
    /// The same, ever opened.
    pub sockets_opened: Meter,
    /// Operations that read a stream now.
    pub readers_open: Meter,
    /// Response streams open now.
    pub streams_open: Meter,
    /// Text messages from clients.
    pub messages_received: Meter,
    /// Frames pushed into response streams, each encoded once.
    pub frames_published: Meter,
    /// Frames handed to sockets.
    pub frames_delivered: Meter,
    /// Bytes written to WebSockets.
    pub bytes_sent: Meter,
    /// Vectored writes of frames; `frames_delivered` over this is how many leave together.
    pub writes: Meter,
    /// Readers that the ring no longer served and that got a merged delta or a snapshot.
    pub catch_ups: Meter,
    /// Pages of a log that readers were given, on coming back or behind the ring.
    pub replayed_pages: Meter,
    /// Times that a ring was made smaller, as all rings together held too much.
    pub rings_shrunk: Meter,
    /// Peers dropped because nothing was heard for two ping intervals.
    pub dropped_silent: Meter,
    closes: [Meter; CloseCode::ALL.len()],
}

impl Meters {
    pub(crate) fn closed(&self, code: CloseCode) {
        if let Some(place) = CloseCode::ALL.iter().position(|one| *one == code) {
            self.closes[place].add(1);
        }
    }

    /// How often we closed with each code.
    pub fn closes(&self) -> impl Iterator<Item = (CloseCode, u64)> {
        CloseCode::ALL.into_iter().zip(self.closes.iter().map(Meter::get))
    }
}
