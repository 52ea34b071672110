//! The public port: connections, HTTP, upgrades to WebSocket, and the threads that serve them.
//! Knows no protocol state and no schema.

mod arrival;
mod assets;
mod body;
pub mod connection_limits;
mod cors;
mod credentials;
mod delivery;
mod forwarded;
mod header_clock;
pub mod listener;
pub(crate) mod negotiation;
pub mod proxy_protocol;
mod refusing;
mod response;
pub mod responses;
pub mod routes;
pub mod shards;
pub mod sse;
mod stall_limit;
pub mod unavailable;
pub(crate) mod upgrade;
mod waiting_connections;
