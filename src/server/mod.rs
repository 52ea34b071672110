//! The hub as a process: what is constructed, in which order it starts and in which it stops.

pub mod admin;
pub mod http;
pub mod origin;
pub mod shards;
