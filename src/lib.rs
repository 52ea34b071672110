//! The hub: everything that knows the outside world. `ARCHITECTURE.md` has the map.

pub mod backoff;
pub mod cache;
pub mod client;
pub mod clients;
pub mod config;
pub mod descriptors;
pub mod feeds;
pub mod graphql;
pub mod live;
pub mod market;
pub mod pool;
pub mod server;
pub mod signals;
pub mod store;
