//! A log that several hubs share: the table `events` of one Postgres. Each hub inserts what its
//! feeds and clients bring, and each has a replica, which it reads from the table.

mod hubs;
mod leases;
mod losses;
mod meters;
mod ownership_guard;
mod reader;
mod share;
mod waiters;
mod writer;

pub use self::hubs::{Agreed, TOPICS};
pub use self::leases::LEASE;
pub use self::meters::PostgresMeters;
pub use self::ownership_guard::OwnershipGuard;
pub use self::reader::{Reader, numbering, open};
pub use self::writer::{Requests, Writer, WriterConfig, handle};
