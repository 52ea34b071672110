//! The hub as a process, with clients that nobody here wrote the rules for.

// Outside the functions marked as tests clippy can't know that all of this is one.
#![allow(clippy::unwrap_used)]

mod api;
mod clients;
mod faults;
mod feeds;
mod harness;
mod log;
mod operations;
mod tidy;
