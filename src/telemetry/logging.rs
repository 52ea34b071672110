//! The lines that the hub writes about itself.

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// To stderr: stdout is for what scripts read.
pub fn start(log: &LogConfig) {
    // The configuration has checked the filter.
    let filter = EnvFilter::try_new(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => lines.with_ansi(false).init(),
        LogFormat::Json => lines.json().init(),
    }
}
