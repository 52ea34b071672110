//! Pure state of the markets: no clock, no task, no input or output.

pub mod admission;
pub mod event;
pub mod fixed;
