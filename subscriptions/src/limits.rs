//! The limits of sockets, and the constants of reading and writing them. The hub's configuration
//! overrides [`Limits`]; the constants are fixed.

use std::time::Duration;

/// Limits of one socket.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest message after the ack, in bytes; a larger one closes with 1009.
    pub message_bytes: usize,
    /// The same before the ack: less for a client that is not authenticated.
    pub message_bytes_before_ack: usize,
    /// Operations alive on one socket.
    pub operations_per_socket: usize,
    /// Of these, queries and mutations without a result and subscriptions that have not begun.
    pub pending_operations_per_socket: usize,
    /// `subscribe` messages a second, on average.
    pub subscribe_rate: u32,
    /// `subscribe` messages at once. At least `operations_per_socket`: after a reconnect a client
    /// opens all its operations again at once.
    pub subscribe_burst: u32,
    /// From the upgrade to `connection_init`; then the hub closes with 4408.
    pub init_timeout: Duration,
    /// How long bytes may wait without one of them leaving; then the hub closes with 1013.
    pub writer_stall: Duration,
    /// Between two pings of ours. Silent peers are dropped after [`SILENT_INTERVALS`].
    pub ping_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 256 << 10,
            message_bytes_before_ack: 16 << 10,
            operations_per_socket: 256,
            pending_operations_per_socket: 32,
            subscribe_rate: 50,
            subscribe_burst: 300,
            init_timeout: Duration::from_secs(5),
            writer_stall: Duration::from_secs(10),
            ping_interval: Duration::from_secs(25),
        }
    }
}

/// Longest id of an operation in bytes: it is repeated in every message to the client.
pub const OPERATION_ID_BYTES: usize = 128;

/// Longest reason of a close frame: 125 bytes of a control frame's payload less the code.
pub const CLOSE_REASON_BYTES: usize = 123;

/// Bytes of replies (acks, pongs, errors, results of queries) that may wait for one socket. Beyond
/// that we stop reading from it.
pub(crate) const REPLY_BACKLOG_BYTES: usize = 64 << 10;

/// Frames that leave in one `writev`. 32 frames are 64 slices, well below the kernel's 1,024.
/// Beyond 16 frames the cost per message hardly falls.
pub(crate) const FRAMES_PER_WRITE: usize = 32;

/// Largest frame that is copied after its prefix and leaves in a plain write. A copy of 450 bytes
/// once per event costs next to nothing, and `send` saves the kernel 0.5 µs of 6 a message over
/// `writev`. Far above this size the copy is no longer cheap.
pub(crate) const CONTIGUOUS_BYTES: usize = 16 << 10;

/// Payload bytes that one operation writes before the next operation has its turn.
pub(crate) const BYTES_PER_TURN: usize = 128 << 10;

/// Writes between two yields of a fan-out, about a millisecond: pings are answered in between.
pub(crate) const WRITES_PER_YIELD: usize = 256;

/// Longest time spent on sockets of the last rank before sockets of the first rank get newer events.
/// The clock is read after each [`WRITES_PER_LOOK`] writes.
pub(crate) const LAST_SLICE: Duration = Duration::from_micros(250);
pub(crate) const WRITES_PER_LOOK: usize = 8;

/// Reads from one socket, or writes to it, before the others have their turn.
pub(crate) const STEPS_PER_TURN: usize = 32;

/// Time that one turn of a socket may take before the others have theirs. A request or a snapshot
/// that was begun is finished, so this bounds how many of them follow one another.
pub(crate) const TIME_PER_TURN: Duration = Duration::from_micros(150);

/// Time that the turns of all connections of a shard may take before the fan-out has its turn.
pub(crate) const TIME_PER_ROUND: Duration = Duration::from_micros(250);

/// Operations of one socket that may be refused at once. Then its messages wait, and each sweep
/// allows [`REFUSALS_PER_SWEEP`] more. A refusal costs some 10 µs, which no other limit counts.
pub(crate) const REFUSALS_AT_ONCE: i32 = 256;
pub(crate) const REFUSALS_PER_SWEEP: i32 = 16;
/// A message of a client beyond its budget counts as one refusal for each so many bytes.
pub(crate) const BYTES_OF_A_REFUSAL: usize = 1 << 10;

/// How often the deadlines of sockets are checked.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// How long a socket may be full before its operations do not count among the readers of their
/// streams. A stream on which nobody else counts is not encoded until the socket takes bytes again.
pub const STALLED_READER: Duration = Duration::from_secs(1);

/// Ping intervals without a byte from the peer after which it counts as silent. One ping may be
/// late by chance, two are not.
pub const SILENT_INTERVALS: u32 = 2;

/// If so many bytes left since the last read, the peer counts as slow instead of silent: our ping
/// may be queued after them. Over two intervals of 25 s this is 1.3 KB/s, and every connection that
/// is alive is faster.
pub const UNHEARD_BYTES: usize = 64 << 10;

/// Ping intervals for which a slow peer may leave all pings unanswered; then the hub closes with
/// 1013. Five minutes at 25 s: in this time a client at 21 KB/s reads 6 MiB, the largest receive
/// buffer by the defaults of Linux.
pub const PONG_INTERVALS: u32 = 12;

/// How long a close frame of ours may take to leave and to be answered.
pub(crate) const CLOSE_LINGER: Duration = Duration::from_secs(10);

/// How long one message may take from its first byte to its last.
pub(crate) const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a source may take to answer where a reader goes on. A reader that waits costs a task.
/// Reading the log has a shorter deadline of its own, so this ends only what hangs.
pub const START_DEADLINE: Duration = Duration::from_secs(30);

const _: () = assert!(PONG_INTERVALS > SILENT_INTERVALS, "slow peers have longer than silent ones");
const _: () = assert!(FRAMES_PER_WRITE * 2 <= 1024, "IOV_MAX");
const _: () = assert!(SWEEP_INTERVAL.as_millis() * 4 <= CLOSE_LINGER.as_millis());
