//! `[server]`: the public port.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::config::kind::{address, flag, list, millis, one_of, whole};
use crate::config::table::{HOUR_MS, KIB, Key, MIB, Table};
use crate::config::{Network, Origins};

/// The public port.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    /// Which pages of the web may open a socket or post a query.
    pub origins: Origins,
    /// Peers whose `address_header` is believed.
    pub trusted_proxies: Vec<Network>,
    pub address_header: AddressHeader,
    /// Their connections begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Threads that own sockets; 0 means one a core, less one for the feeds and the log.
    pub shards: usize,
    /// Between two pings to a peer; one that is silent for two of them is dropped.
    pub ping_interval: Duration,
    /// From the request to stop to the drain: new connections are still served.
    pub drain_delay: Duration,
    /// Over which a drain spreads its closes.
    pub drain: Duration,
    /// Of the kernel, per socket (`SO_SNDBUF`).
    pub send_buffer_bytes: usize,
    /// From accept to the end of a request's headers.
    pub header_timeout: Duration,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    pub header_bytes: usize,
    /// From the end of a request's headers to the end of its body.
    pub body_timeout: Duration,
    pub http_status: HttpStatus,
}

/// In which header a trusted proxy names its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressHeader {
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

impl AddressHeader {
    /// In lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        }
    }
}

/// Whose status codes a GraphQL response over HTTP has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpStatus {
    /// Of the npm package `graphql-http`, whose audits most servers are held to.
    Audited,
    /// Of the draft "GraphQL over HTTP" as it became its first edition: 422 for what is readable
    /// and not valid, 294 for data with errors beside it.
    Draft,
}

pub(in crate::config) fn read(table: &mut Table<'_>) -> ServerConfig {
    let listen = table.key(Key {
        name: "server.listen",
        unit: "",
        takes: address(),
        default: SocketAddr::from((Ipv4Addr::LOCALHOST, 4000)),
        does: "The public address and port.",
        notes: "Port 0 takes a free port, which the hub prints on stdout. The default is loopback, \
                so that a hub becomes public on purpose only.",
    });
    let origins = table.key(Key {
        name: "server.origins",
        unit: "",
        takes: list(
            "a list of origins",
            |entry| Origins::entry(entry).map_err(|error| format!("{entry:?} {error}")),
            String::clone,
        ),
        default: Vec::new(),
        does: "Pages that may connect: origins such as `https://app.example`, or `*` for all.",
        notes: "The hub's own pages are always let in, and so are programs, which send no Origin. \
                Any other Origin gets 403. This holds for WebSocket, POST, GET and server-sent \
                events. With an empty list, a hub on a loopback address also lets in pages from \
                loopback, so that a front end's dev server works.",
    });
    ServerConfig {
        listen,
        origins: Origins::new(origins, listen.ip()),
        trusted_proxies: table.key(Key {
            name: "server.trusted_proxies",
            unit: "",
            takes: list(
                "a list of addresses or blocks",
                |entry| entry.parse().map_err(|error| format!("{entry:?} {error}")),
                Network::to_string,
            ),
            default: Vec::new(),
            does: "Addresses or blocks (`10.0.0.0/8`) of proxies whose word for the address of \
                   a client is believed.",
            notes: "The limits of an address then count the address that the proxy names. Any \
                    client could name any address, so the hub trusts no proxy by default.",
        }),
        address_header: table.key(Key {
            name: "server.address_header",
            unit: "",
            takes: one_of(&[
                ("x-forwarded-for", AddressHeader::XForwardedFor),
                ("forwarded", AddressHeader::Forwarded),
            ]),
            default: AddressHeader::XForwardedFor,
            does: "In which header these proxies name the client.",
            notes: "The hub reads this one alone: a proxy passes the other one on as the client \
                    sent it. `forwarded` is the header of RFC 7239.",
        }),
        proxy_protocol: table.key(Key {
            name: "server.proxy_protocol",
            unit: "",
            takes: flag(),
            default: false,
            does: "Whether connections of `server.trusted_proxies` begin with a header of the \
                   PROXY protocol, version 1 or 2.",
            notes: "For a proxy that passes TCP on and no HTTP, so that it can't add \
                    `X-Forwarded-For`. The address in the header counts as the client's. A \
                    connection of such a proxy without a header is closed, and counted by reason \
                    in `spreadly_proxy_headers_total`. Other peers send none.",
        }),
        shards: table.key(Key {
            name: "server.shards",
            unit: "threads",
            takes: whole(0..=1024),
            default: 0,
            does: "Threads that own sockets; 0 means one a core, less one.",
            notes: "The spare core is for the feeds, the log and the kernel. On two cores, one \
                    thread sends a message 4 to 16 % cheaper than two threads.",
        }),
        ping_interval: table.key(Key {
            name: "server.ping_interval_ms",
            unit: "ms",
            takes: millis(1_000..=HOUR_MS)
                .because("Below a second, a hub with many sockets does nothing but ping."),
            default: Duration::from_secs(25),
            does: "Time between two pings; a peer that is silent for two of them is dropped.",
            notes: "25 s is below the 30 s and 60 s after which common proxies and NATs forget a \
                    quiet connection. A slow peer that still takes bytes has twelve intervals to \
                    answer; then the hub closes it with 1013.",
        }),
        drain_delay: table.key(Key {
            name: "server.drain_delay_ms",
            unit: "ms",
            takes: millis(0..=HOUR_MS),
            default: Duration::ZERO,
            does: "Time from the request to stop to the drain, in which `/readyz` is 503 and new \
                   connections are still served.",
            notes: "A balancer sends clients to the hub until it has seen the 503. Use twice the \
                    time that it takes to see it, such as 5,000. Without a balancer the delay \
                    helps nobody, so the default is 0. A second SIGTERM or SIGINT ends the delay \
                    and the drain at once.",
        }),
        drain: table.key(Key {
            name: "server.drain_ms",
            unit: "ms",
            takes: millis(0..=HOUR_MS),
            default: Duration::from_secs(10),
            does: "Time over which a stop spreads its closes (1012); 0 closes all at once.",
            notes: "So clients don't all reconnect elsewhere at the same moment.",
        }),
        send_buffer_bytes: table.key(Key {
            name: "server.send_buffer_bytes",
            unit: "bytes",
            takes: whole(4 * KIB..=64 * MIB),
            default: 256 * 1024,
            does: "The kernel's send buffer of each socket (`SO_SNDBUF`).",
            notes: "A slow reader can hold this much beyond the hub's own rings. 10,000 stalled \
                    sockets at the default take at most 2.6 GB of kernel memory.",
        }),
        header_timeout: table.key(Key {
            name: "server.header_timeout_ms",
            unit: "ms",
            takes: millis(100..=HOUR_MS),
            default: Duration::from_secs(10),
            does: "Time from accept to the end of a request's headers; then the connection is \
                   closed.",
            notes: "",
        }),
        idle_timeout: table.key(Key {
            name: "server.idle_timeout_ms",
            unit: "ms",
            takes: millis(100..=HOUR_MS),
            default: Duration::from_secs(75),
            does: "Time that a connection of HTTP may be idle between two requests; then it is \
                   closed. It is not below `server.header_timeout_ms`.",
            notes: "A proxy must close an idle connection before the hub does: it can't send a \
                    POST again that met a close, and answers 502. The default is above the 60 s \
                    of nginx and of the balancers of AWS. Those of Google keep them for 600 s, so \
                    they need 620,000. Where file descriptors are short, idle connections are \
                    closed earlier.",
        }),
        header_bytes: table.key(Key {
            name: "server.header_bytes",
            unit: "bytes",
            takes: whole(8 * KIB..=MIB).because("hyper refuses smaller buffers."),
            default: 16 * 1024,
            does: "Size of a request's headers.",
            notes: "Browsers with many cookies send up to 8 KiB.",
        }),
        body_timeout: table.key(Key {
            name: "server.body_timeout_ms",
            unit: "ms",
            takes: millis(100..=HOUR_MS),
            default: Duration::from_secs(10),
            does: "Time from the end of a request's headers to the end of its body; then 408 and \
                   a close.",
            notes: "",
        }),
        http_status: table.key(Key {
            name: "server.http_status",
            unit: "",
            takes: one_of(&[("audited", HttpStatus::Audited), ("draft", HttpStatus::Draft)]),
            default: HttpStatus::Audited,
            does: "Which status codes GraphQL over HTTP has.",
            notes: "`audited`: 200 or 400, as the audits of npm `graphql-http` expect and most \
                    clients know. `draft`: those of the draft that became the first edition. It \
                    has 422 for a readable but invalid document, and 294 for data with errors. \
                    With it, an absent Accept means `application/graphql-response+json`.",
        }),
    }
}
