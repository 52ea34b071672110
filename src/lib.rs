//! The hub: everything that knows the outside world. `ARCHITECTURE.md` has the map.

pub mod backoff;
pub mod budgets;
pub mod cache;
pub mod cli;
pub mod config;
pub mod descriptors;
pub mod feeds;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod graphql;
pub mod http;
pub mod hub;
pub mod ingest;
pub mod live;
pub mod market;
pub mod pool;
pub mod postgres;
pub mod recovery;
pub mod shared_log;
pub mod signals;
pub mod store;
pub mod telemetry;
