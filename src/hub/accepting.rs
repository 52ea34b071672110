//! From the first client to the drain: how long the hub takes new clients in.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::maybe_done;
use tokio_util::sync::CancellationToken;

use super::readiness::{Readiness, Stage};
use crate::config::ServerConfig;
use crate::signals::StopSignals;

/// What ends the time in which the hub accepts clients.
pub(super) struct Accepting<'a> {
    pub(super) server: &'a ServerConfig,
    pub(super) signals: &'a mut StopSignals,
    /// The log is another one: this hub ends at once.
    pub(super) replaced: &'a CancellationToken,
    pub(super) readiness: &'a Readiness,
}

impl Accepting<'_> {
    /// Runs what accepts until the hub drains, and stops it then. Over what time the drain spreads
    /// its closes.
    pub(super) async fn run(
        self,
        accepts: impl Future<Output = ()>,
        stop: CancellationToken,
    ) -> Duration {
        let Self { server, signals, replaced, readiness } = self;
        let mut accepts = pin!(maybe_done(accepts));
        tokio::select! {
            () = &mut accepts => {}
            () = signals.next() => {}
            () = replaced.cancelled() => {}
        }
        let mut spread = server.drain;
        if !replaced.is_cancelled() && !server.drain_delay.is_zero() {
            // A balancer sends clients here until it has seen that the hub is not ready.
            tracing::info!(
                delay_ms = server.drain_delay.as_millis(),
                "not ready from now on; new connections are still served for the delay"
            );
            readiness.set(Stage::Leaving);
            tokio::select! {
                () = &mut accepts => {}
                () = tokio::time::sleep(server.drain_delay) => {}
                () = signals.next() => spread = Duration::ZERO,
            }
        }
        tracing::info!("draining");
        readiness.set(Stage::Draining);
        stop.cancel();
        accepts.await;
        spread
    }
}
