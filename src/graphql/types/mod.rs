//! The types of the schema, by what they are about.

pub mod book;
pub mod candle;
pub mod event;
pub mod feed;
pub mod head;
pub mod hub;
pub mod in_order;
pub mod market;
pub mod offer;
pub mod order;
pub mod scalars;
pub mod ticker;
pub mod trade;
