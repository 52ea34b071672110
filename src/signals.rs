//! How the process that started us asks us to stop.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Ready at SIGTERM or SIGINT. They are listened for from this call on, not from the first poll:
/// one that comes in between must not end the process.
pub fn stopped() -> io::Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
