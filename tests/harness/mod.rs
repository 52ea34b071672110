//! What tests share: the hub as a process, a client of the protocol, a client's copy of a book.
//! Nothing here uses the hub's own code, so that both can't be wrong in the same way.

pub mod client;
pub mod events;
pub mod follower;
pub mod http;
pub mod hub;
pub mod kafka;
pub mod listener;
pub mod loud;
pub mod mark;
pub mod market;
pub mod pgbouncer;
pub mod postgres;
pub mod proxy;
pub mod records;
pub mod redis;
pub mod reserved_port;
pub mod tls;

pub use client::{Client, Seen};
pub use follower::Follower;
pub use hub::Hub;
pub use kafka::Kafka;
pub use listener::Listener;
pub use postgres::Postgres;
pub use proxy::Proxy;
pub use redis::Redis;
pub use reserved_port::ReservedPort;
pub use tls::TlsRelay;

use std::time::{Duration, Instant};

const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Looks until something is there.
pub async fn until(what: &str, mut there: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !there().await {
        assert!(began.elapsed() < client::PATIENCE, "{what} never came");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}
