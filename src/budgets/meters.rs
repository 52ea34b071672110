//! What was refused to clients, by reason, and what was charged, by kind of work.

use std::sync::atomic::{AtomicU64, Ordering};

use super::prices::Work;

/// Why something was refused to a client. The names are those of the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExceededLimit {
    /// The last descriptors are kept for what runs.
    Descriptors,
    ConnectionsPerAddress,
    SocketsPerAddress,
    StreamsPerSocket,
    StreamsPerAddress,
    LogReadersPerAddress,
    ReplyBytesPerAddress,
    ReplyBytes,
    /// Queries of an address that wait for the pool.
    WaitingPerAddress,
    /// A query that waited too long for the pool.
    Pool,
    /// A reply of HTTP that its client did not read.
    UnreadReply,
}

impl ExceededLimit {
    pub const ALL: [Self; 11] = [
        Self::Descriptors,
        Self::ConnectionsPerAddress,
        Self::SocketsPerAddress,
        Self::StreamsPerSocket,
        Self::StreamsPerAddress,
        Self::LogReadersPerAddress,
        Self::ReplyBytesPerAddress,
        Self::ReplyBytes,
        Self::WaitingPerAddress,
        Self::Pool,
        Self::UnreadReply,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Descriptors => "reserved_descriptors",
            Self::ConnectionsPerAddress => "connections_per_address",
            Self::SocketsPerAddress => "sockets_per_address",
            Self::StreamsPerSocket => "streams_per_socket",
            Self::StreamsPerAddress => "streams_per_address",
            Self::LogReadersPerAddress => "log_readers_per_address",
            Self::ReplyBytesPerAddress => "reply_bytes_per_address",
            Self::ReplyBytes => "reply_bytes",
            Self::WaitingPerAddress => "waiting_per_address",
            Self::Pool => "pool",
            Self::UnreadReply => "writer_stall_ms",
        }
    }
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct ClientMeters {
    refused: [AtomicU64; ExceededLimit::ALL.len()],
    rate_limited: [AtomicU64; Work::ALL.len()],
    charged_nanos: [AtomicU64; Work::ALL.len()],
    /// Times that the public port stopped accepting for a while.
    pub accept_pauses: AtomicU64,
}

impl ClientMeters {
    pub fn refuse(&self, reason: ExceededLimit) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn rate_limit(&self, work: Work) {
        self.rate_limited[work as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn charge(&self, work: Work, nanos: u64) {
        self.charged_nanos[work as usize].fetch_add(nanos, Ordering::Relaxed);
    }

    /// How often each limit was tripped.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.refused.iter().map(|count| count.load(Ordering::Relaxed));
        ExceededLimit::ALL.into_iter().map(ExceededLimit::name).zip(counts)
    }

    /// How often each kind of work was refused for its rate.
    pub fn rate_limits(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.rate_limited.iter().map(|count| count.load(Ordering::Relaxed));
        Work::ALL.into_iter().map(Work::name).zip(counts)
    }

    /// Microseconds that were charged for each kind of work.
    pub fn charges(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.charged_nanos.iter().map(|count| count.load(Ordering::Relaxed) / 1_000);
        Work::ALL.into_iter().map(Work::name).zip(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_and_each_kind_of_work_has_a_counter_of_its_own() {
        let meters = ClientMeters::default();
        for (place, reason) in ExceededLimit::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
            meters.refuse(reason);
        }
        for (place, work) in Work::ALL.into_iter().enumerate() {
            assert_eq!(work as usize, place);
            meters.rate_limit(work);
            meters.charge(work, 1_000);
        }
        assert!(meters.refusals().all(|(_, count)| count == 1));
        assert!(meters.rate_limits().all(|(_, count)| count == 1));
        assert!(meters.charges().all(|(_, micros)| micros == 1));
    }
}
