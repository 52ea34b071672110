//! `[limits]`: what a client, a query or a topic may cost.

use std::time::Duration;

use crate::config::kind::{flag, millis, whole};
use crate::config::table::{HOUR_MS, KIB, Key, MIB, Table};

/// A thousand cores' time, or a quarter of an hour of one.
const MOST_COST: u64 = 1_000_000_000;
/// A cursor holds at most 128 positions, one a market.
const MOST_MARKETS: u64 = 128;

/// What a client, a query or a topic may cost. All are answered by name and number.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub message_bytes: usize,
    pub message_bytes_before_ack: usize,
    pub operations_per_socket: usize,
    /// Queries and mutations until their result, subscriptions until they begin.
    pub pending_operations_per_socket: usize,
    /// Subscribes a second.
    pub subscribe_rate: u32,
    pub subscribe_burst: u32,
    pub sockets_per_address: usize,
    /// TCP connections that are no WebSockets, or not yet.
    pub connections_per_address: usize,
    /// Distinct response streams.
    pub streams_per_socket: usize,
    pub streams_per_address: usize,
    /// Reads of the log at once, for queries.
    pub log_readers_per_address: usize,
    /// Bytes of replies over HTTP that the clients of an address have not taken yet.
    pub reply_bytes_per_address: usize,
    /// The same of all addresses together.
    pub reply_bytes: usize,
    /// Microseconds of processor time a second, as estimated.
    pub cost_rate: u32,
    /// Microseconds of processor time that an address can save up.
    pub cost_burst: u32,
    /// Microseconds a second that each shard spends on streams that one address reads alone.
    pub stream_cost_rate: u32,
    /// File descriptors that the public port leaves to everything else.
    pub reserved_descriptors: usize,
    pub cost_measured: bool,
    pub exempt_loopback: bool,
    pub init_timeout: Duration,
    pub query_depth: usize,
    pub query_complexity: usize,
    pub query_aliases: usize,
    pub query_tokens: usize,
    /// Fields of price levels in one result.
    pub query_list_fields: usize,
    pub markets_per_subscription: usize,
    /// Levels a side that a client may ask for.
    pub book_depth: usize,
    pub writer_stall: Duration,
    pub ring_bytes_per_stream: usize,
    /// How long a response stream outlives its last reader.
    pub stream_linger: Duration,
    /// Response streams of the whole hub.
    pub streams: usize,
    /// Bytes of their rings, caches and documents; 0: a quarter of the machine's memory.
    pub memory_bytes: usize,
    pub journal_touches_per_market: usize,
}

pub(in crate::config) fn read(table: &mut Table<'_>) -> Limits {
    Limits {
        message_bytes: table.key(Key {
            name: "limits.message_bytes",
            unit: "bytes",
            takes: whole(KIB..=16 * MIB),
            default: 256 * 1024,
            does: "Size of one message of a client, or of a POST body; a larger one gets 1009 or \
                   HTTP 413.",
            notes: "At least 100 for each of `limits.markets_per_subscription`, which a \
                    subscription names one by one.",
        }),
        message_bytes_before_ack: table.key(Key {
            name: "limits.message_bytes_before_ack",
            unit: "bytes",
            takes: whole(KIB..=16 * MIB),
            default: 16 * 1024,
            does: "Size of a message before `connection_ack`.",
            notes: "A client has nothing to send but a token then. At most `limits.message_bytes`.",
        }),
        operations_per_socket: table.key(Key {
            name: "limits.operations_per_socket",
            unit: "operations",
            takes: whole(1..=100_000),
            default: 256,
            does: "Operations that are open at once on a socket.",
            notes: "",
        }),
        pending_operations_per_socket: table.key(Key {
            name: "limits.pending_operations_per_socket",
            unit: "operations",
            takes: whole(1..=100_000),
            default: 32,
            does: "Operations of a socket that the hub prepares at once.",
            notes: "Queries and mutations count until their result is ready, subscriptions until \
                    they begin. At most `limits.operations_per_socket`.",
        }),
        subscribe_rate: table.key(Key {
            name: "limits.subscribe_rate",
            unit: "messages/s",
            takes: whole(1..=1_000_000),
            default: 50,
            does: "`subscribe` messages of a socket in a second, on average.",
            notes: "Queries and mutations count too. Beyond it: `RATE_LIMITED`.",
        }),
        subscribe_burst: table.key(Key {
            name: "limits.subscribe_burst",
            unit: "messages",
            takes: whole(1..=1_000_000),
            default: 300,
            does: "`subscribe` messages that a socket may save up.",
            notes: "After a cut, a client opens again at once all that it had. So it is at least \
                    `limits.operations_per_socket` and `limits.subscribe_rate`.",
        }),
        sockets_per_address: table.key(Key {
            name: "limits.sockets_per_address",
            unit: "sockets",
            takes: whole(1..=10_000_000),
            default: 100,
            does: "Sockets of one address; more get HTTP 429.",
            notes: "Of a trusted proxy, the address in `X-Forwarded-For` counts.",
        }),
        connections_per_address: table.key(Key {
            name: "limits.connections_per_address",
            unit: "connections",
            takes: whole(1..=10_000_000),
            default: 128,
            does: "TCP connections of one address that are not WebSockets, or not yet; more get \
                   HTTP 429.",
            notes: "They are event streams, HTTP, and connections that have not sent a request \
                    yet. It is never below `limits.sockets_per_address`, as sockets begin so. \
                    Connections of a trusted proxy are not counted. In all limits of an address, \
                    an IPv6 address counts as its /64, and an IPv4-mapped one as IPv4.",
        }),
        streams_per_socket: table.key(Key {
            name: "limits.streams_per_socket",
            unit: "streams",
            takes: whole(1..=1_000_000),
            default: 256,
            does: "Different streams (document, variables and audience) that a socket reads.",
            notes: "",
        }),
        streams_per_address: table.key(Key {
            name: "limits.streams_per_address",
            unit: "streams",
            takes: whole(1..=100_000_000),
            default: 4_096,
            does: "Different streams that all sockets of an address read together.",
            notes: "Each stream is resolved and encoded for itself, so this bounds what one client \
                    makes an event cost. A stream that the address reads already is not counted \
                    again.",
        }),
        log_readers_per_address: table.key(Key {
            name: "limits.log_readers_per_address",
            unit: "reads",
            takes: whole(1..=1_000),
            default: 2,
            does: "Reads of the log (lists, orders, candles) that an address may have at once.",
            notes: "The next one waits for half a second; then it is `UNAVAILABLE`. All addresses \
                    together have six.",
        }),
        reply_bytes_per_address: table.key(Key {
            name: "limits.reply_bytes_per_address",
            unit: "bytes",
            takes: whole(1 << 16..=1 << 40),
            default: 16 << 20,
            does: "HTTP replies, and answers to resumes, that the clients of an address have not \
                   read yet.",
            notes: "Above it, a further reply of more than 16 KiB gets 429, and a page of the log \
                    or a long snapshot waits. A client without unread replies gets a reply of any \
                    size.",
        }),
        reply_bytes: table.key(Key {
            name: "limits.reply_bytes",
            unit: "bytes",
            takes: whole(1 << 16..=1 << 40),
            default: 256 << 20,
            does: "The same of all addresses.",
            notes: "At least `limits.reply_bytes_per_address`. An address may hold no more than \
                    the bytes that are still free, so each gets a share. Its first reply is always \
                    sent.",
        }),
        cost_rate: table.key(Key {
            name: "limits.cost_rate",
            unit: "µs/s",
            takes: whole(1..=MOST_COST),
            default: 50_000,
            does: "Processor time that the requests of an address may take.",
            notes: "Costs are estimates with fixed prices. A query of a book of 25 levels costs \
                    some 40 µs. A subscription of its own costs some 600 µs, one that others share \
                    20 µs. Beyond it: `RATE_LIMITED`, or HTTP 429. 50,000 µs/s is a twentieth of a \
                    core, some 1,000 small queries a second.",
        }),
        cost_burst: table.key(Key {
            name: "limits.cost_burst",
            unit: "µs",
            takes: whole(1..=MOST_COST),
            default: 1_000_000,
            does: "Processor time that an address may save up.",
            notes: "",
        }),
        stream_cost_rate: table.key(Key {
            name: "limits.stream_cost_rate",
            unit: "µs/s",
            takes: whole(1..=MOST_COST),
            default: 100_000,
            does: "Encoding of the streams that one address reads alone, on each shard.",
            notes: "As much may be saved up. Beyond it, these streams are merged: `slowedTo` says \
                    `MS_100`, `MS_250` or `S_1`, and `mergedEvents` how many events a frame has. \
                    Up to 16 such streams are never merged for this. 100,000 µs/s is a tenth of a \
                    core, some 20,000 frames a second.",
        }),
        reserved_descriptors: table.key(Key {
            name: "limits.reserved_descriptors",
            unit: "descriptors",
            takes: whole(0..=1_000_000),
            default: 128,
            does: "File descriptors (`RLIMIT_NOFILE`) that the public port leaves to everything \
                   else.",
            notes: "That is the admin port, the feeds, the log and the cache. While no other is \
                    free, a new connection takes that of an HTTP connection that waits for its \
                    client. Where there is none either, it waits. At most half of the system's \
                    limit is reserved.",
        }),
        cost_measured: table.key(Key {
            name: "limits.cost_measured",
            unit: "",
            takes: flag(),
            default: true,
            does: "Whether a request that takes longer than its prices is charged what it took.",
            notes: "Turn it off on a machine on which all work takes longer than the prices, which \
                    are those of a release build.",
        }),
        exempt_loopback: table.key(Key {
            name: "limits.exempt_loopback",
            unit: "",
            takes: flag(),
            default: true,
            does: "Whether the limits of an address never refuse loopback.",
            notes: "Its addresses are counted and charged all the same. Tests and load testers run \
                    there.",
        }),
        init_timeout: table.key(Key {
            name: "limits.init_timeout_ms",
            unit: "ms",
            takes: millis(100..=HOUR_MS),
            default: Duration::from_secs(5),
            does: "Time that a client has for `connection_init`; then the socket is closed with \
                   4408.",
            notes: "",
        }),
        query_depth: table.key(Key {
            name: "limits.query_depth",
            unit: "levels",
            takes: whole(2..=1_000),
            default: 12,
            does: "Nesting of fields in a document.",
            notes: "Below `__schema` and `__type` it is 20 instead, for GraphiQL's introspection.",
        }),
        query_complexity: table.key(Key {
            name: "limits.query_complexity",
            unit: "selections",
            takes: whole(1..=10_000_000),
            default: 2_000,
            does: "Selections of a document, with its fragments expanded.",
            notes: "They are fields, fragment spreads and inline fragments. Directives and the \
                    values of arguments count as well.",
        }),
        query_aliases: table.key(Key {
            name: "limits.query_aliases",
            unit: "aliases",
            takes: whole(0..=100_000),
            default: 30,
            does: "Aliases of a document.",
            notes: "",
        }),
        query_tokens: table.key(Key {
            name: "limits.query_tokens",
            unit: "tokens",
            takes: whole(10..=1_000_000),
            default: 2_000,
            does: "Lexical tokens of a document.",
            notes: "They are counted first, as parsing is what costs. GraphiQL's introspection, \
                    the largest honest query, fits.",
        }),
        query_list_fields: table.key(Key {
            name: "limits.query_list_fields",
            unit: "fields",
            takes: whole(1_000..=1_000_000_000),
            default: 100_000,
            does: "Fields of list items in one result.",
            notes: "For a book, it is the depth times the fields selected below bids and asks, of \
                    snapshot and delta. For candles, it is their number times the fields of each. \
                    For a page, it is `first` times the fields selected below; for `markets`, the \
                    number of markets times these. \
                    100,000 is some 4 MB; a book of 5,000 levels with every field takes 60,000. At \
                    least 12 for each of `limits.book_depth`: all fields of a level, on both \
                    sides, of snapshot and delta.",
        }),
        markets_per_subscription: table.key(Key {
            name: "limits.markets_per_subscription",
            unit: "markets",
            takes: whole(1..=MOST_MARKETS)
                .because("A cursor holds at most 128 positions, one for each market."),
            default: 100,
            does: "Markets that one subscription may name.",
            notes: "",
        }),
        book_depth: table.key(Key {
            name: "limits.book_depth",
            unit: "levels",
            takes: whole(10..=1_000_000),
            default: 5_000,
            does: "Levels a side that a client may ask for.",
            notes: "A snapshot of 5,000 is some 500 KB. Above 1,500, a frame may exceed the 1 MiB \
                    that some clients take by default. That needs the longest numbers and all \
                    levels replaced at once.",
        }),
        writer_stall: table.key(Key {
            name: "limits.writer_stall_ms",
            unit: "ms",
            takes: millis(100..=HOUR_MS),
            default: Duration::from_secs(10),
            does: "Time in which a socket may take no byte; then it is closed with 1013.",
            notes: "Until then, a stalled reader costs its kernel buffer and an index into a ring.",
        }),
        ring_bytes_per_stream: table.key(Key {
            name: "limits.ring_bytes_per_stream",
            unit: "bytes",
            takes: whole(64 * KIB..=1024 * MIB)
                .because("A ring that holds no whole frame would make every reader lag."),
            default: 1024 * 1024,
            does: "Encoded frames that each response stream keeps.",
            notes: "It bounds how far a reader may lag, and how far back a resume is served from \
                    memory. 1 MiB is some 2,000 frames of a book at depth 25. A topic has a stream \
                    for each different document, depth and speed; `limits.memory_bytes` bounds \
                    them all.",
        }),
        stream_linger: table.key(Key {
            name: "limits.stream_linger_ms",
            unit: "ms",
            takes: millis(0..=HOUR_MS),
            default: Duration::from_secs(30),
            does: "Time for which a stream lives on without a reader.",
            notes: "So a crowd that reconnects finds it still there.",
        }),
        streams: table.key(Key {
            name: "limits.streams",
            unit: "streams",
            takes: whole(1..=100_000_000),
            default: 100_000,
            does: "Different streams of the whole hub at once.",
            notes: "At least `limits.operations_per_socket`.",
        }),
        memory_bytes: table.key(Key {
            name: "limits.memory_bytes",
            unit: "bytes",
            takes: whole(0..=1 << 50),
            default: 0,
            does: "Rings, cached frames and documents of all streams; 0 means a quarter of the \
                   memory.",
            notes: "That is the memory of the machine or of its control group. Where the \
                    streams take more, rings shrink: first those of streams without readers, then \
                    those with the fewest readers.",
        }),
        journal_touches_per_market: table.key(Key {
            name: "limits.journal_touches_per_market",
            unit: "changes",
            takes: whole(16..=100_000_000),
            default: 32_768,
            does: "Changes of price levels that the hub remembers for each market, of 48 bytes \
                   each.",
            notes: "They bound how far back the merged delta of a book reaches. A reader that \
                    missed more gets a snapshot.",
        }),
    }
}
