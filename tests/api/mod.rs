//! What clients send and receive: GraphQL over WebSocket, HTTP and event streams, and its limits.

mod accounts;
mod candles;
mod cors;
mod frames;
mod http;
mod limits;
mod mutations;
pub mod orders;
mod protocol;
mod race;
mod sharing;
mod sse;
mod topics;
