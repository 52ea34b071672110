//! How whoever started us asks us to stop.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Returns at SIGTERM or SIGINT.
pub async fn stopped() -> io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
