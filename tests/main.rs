//! The hub as a process, with clients that nobody here wrote the rules for.

// Outside the functions marked as tests clippy can't know that all of this is one.
#![allow(clippy::unwrap_used)]

mod harness;

mod accounts;
mod admin;
mod browser;
mod candles;
mod capture;
mod clients;
mod command_line;
mod events;
mod feed;
mod follow;
mod frames;
mod http;
mod kafka;
mod kafka_produce;
mod limits;
mod mutations;
mod orders;
mod postgres;
mod protocol;
mod put_back;
mod race;
mod redis;
mod reorganisation;
mod restart;
mod shared_kafka;
mod shared_log;
mod sharing;
mod slow;
mod terminal;
mod tidy;
mod topics;
