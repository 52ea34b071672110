//! Postgres as feeds and the shared log use it: how it is reached, its tables, and the table
//! `events`.

mod client;
mod config;
mod outbox;

pub use self::client::{OutboxError, make_tables, session, settings};
pub use self::config::{Doorbell, PostgresConfig};
pub use self::outbox::{Numbering, Outbox, Row, Rows, Sleep};
