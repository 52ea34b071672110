//! What operators see: the log's lines, the admin port, the metrics.

pub mod admin;
pub mod logging;
pub mod metrics;
