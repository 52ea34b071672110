//! Where events come from: files, Postgres and Kafka.

mod broken_captures;
mod broken_orders;
pub mod capture;
mod files;
mod gaps;
mod health;
mod kafka;
mod kafka_produce;
mod order_gaps;
mod postgres;
mod postgres_roles;
mod shared_kafka;
