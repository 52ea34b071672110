//! The counters of the engine. Plain atomics: written on hot paths, read by the admin port.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::close::CloseCode;

/// A number that many threads add to.
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
    /// WebSockets and event streams open now.
    pub sockets_open: Meter,
    /// WebSockets and event streams that were ever opened.
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
    /// Writes of frames; `frames_delivered` divided by this is how many frames leave in one write.
    pub writes: Meter,
    /// How often a reader needed frames that the ring no longer held, and asked the source.
    pub catch_ups: Meter,
    /// Pages of a log that readers were sent, as they had reconnected or the ring held too little.
    pub replayed_pages: Meter,
    /// How often a ring was shrunk, as all rings together held too much.
    pub rings_shrunk: Meter,
    /// Peers dropped because they were silent for two ping intervals.
    pub dropped_silent: Meter,
    closes: [Meter; CloseCode::ALL.len()],
    stream_ends: [Meter; EventStreamEnd::ALL.len()],
}

/// Why the hub ended a stream of server-sent events, which has no close code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventStreamEnd {
    /// The client took no byte for too long.
    Stalled,
    /// The credentials of the client are no longer valid.
    Expired,
    /// The source refused to continue.
    Refused,
    /// What the reader missed is no longer available.
    CannotContinue,
    /// The hub shuts down.
    Draining,
}

impl EventStreamEnd {
    pub const ALL: [Self; 5] =
        [Self::Stalled, Self::Expired, Self::Refused, Self::CannotContinue, Self::Draining];

    /// As metrics have it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::CannotContinue => "cannot_continue",
            Self::Draining => "draining",
        }
    }
}

impl Meters {
    pub(crate) fn closed(&self, code: CloseCode) {
        if let Some(index) = CloseCode::ALL.iter().position(|one| *one == code) {
            self.closes[index].add(1);
        }
    }

    pub fn event_stream_ended(&self, end: EventStreamEnd) {
        if let Some(index) = EventStreamEnd::ALL.iter().position(|one| *one == end) {
            self.stream_ends[index].add(1);
        }
    }

    /// How often event streams were ended for each reason.
    pub fn event_stream_ends(&self) -> impl Iterator<Item = (EventStreamEnd, u64)> {
        EventStreamEnd::ALL.into_iter().zip(self.stream_ends.iter().map(Meter::get))
    }

    /// How often connections were closed with each code.
    pub fn closes(&self) -> impl Iterator<Item = (CloseCode, u64)> {
        CloseCode::ALL.into_iter().zip(self.closes.iter().map(Meter::get))
    }
}
