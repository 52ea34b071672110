//! Pure state of the markets: no clock, no task, no input or output.

pub mod admission;
pub mod bbo;
pub mod book;
pub mod book_gap;
pub mod candles;
pub mod checksum;
pub mod definition;
pub mod effect;
pub mod epochs;
pub mod event;
pub mod fixed;
pub mod ladder;
pub mod levels;
pub mod orders;
pub mod ownership;
pub mod refusal;
pub mod rules;
pub mod ticker;
pub mod time;
pub mod topic;
pub mod trade;
