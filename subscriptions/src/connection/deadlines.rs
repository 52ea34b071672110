//! What ends or pings a connection by the clock.

use std::time::Duration;

use tokio::time::Instant;

use super::Connection;
use crate::close::{self, CloseCode};
use crate::context::ShardContext;
use crate::executor::Executor;
use crate::framing;
use crate::limits::{
    MESSAGE_TIMEOUT, PONG_INTERVALS, REFUSALS_AT_ONCE, REFUSALS_PER_SWEEP, SILENT_INTERVALS,
    STALLED_READER, UNHEARD_BYTES,
};
use crate::socket::Socket;

impl<S: Socket, E: Executor> Connection<S, E> {
    /// Sets when this connection is closed in a drain, which spreads the closes over time.
    pub(crate) fn drain_at(&mut self, when: Instant) {
        self.drain_at = Some(when);
    }

    /// Checks the deadlines; called every `SWEEP_INTERVAL`.
    pub(crate) fn sweep(&mut self, now: Instant, context: &ShardContext<Self, E>) {
        let limits = &context.limits;
        if self.refusals_left <= 0 {
            self.wake();
        }
        self.refusals_left = (self.refusals_left + REFUSALS_PER_SWEEP).min(REFUSALS_AT_ONCE);
        let passed = |since: Instant, most: Duration| now.saturating_duration_since(since) >= most;
        if self.stalled_since.is_some_and(|since| passed(since, STALLED_READER)) {
            self.stall_streams();
        }
        // Each branch but the last queues something, so the task that flushes it is woken.
        let expires_at = self.grant.as_ref().and_then(|grant| grant.expires_at);
        if let Some(deadline) = self.closing {
            self.dead = now >= deadline;
        } else if self.is_silent(now, limits.ping_interval * SILENT_INTERVALS) {
            context.meters.dropped_silent.add(1);
            self.dead = true;
        } else if passed(self.heard, limits.ping_interval * PONG_INTERVALS) {
            let reason = close::pings_unanswered(limits.ping_interval);
            self.close(CloseCode::TryAgainLater, &reason, context);
        } else if self.drain_at.is_some_and(|when| now >= when) {
            self.close(CloseCode::Restarting, close::RESTARTING, context);
        } else if self.session.awaits_ack() && passed(self.opened, limits.init_timeout) {
            self.close(CloseCode::InitTimeout, close::INIT_TIMEOUT, context);
        } else if expires_at.is_some_and(|when| now >= when) {
            self.close(CloseCode::Forbidden, close::EXPIRED, context);
        } else if self.stalled_since.is_some_and(|since| passed(since, limits.writer_stall)) {
            let reason = close::writer_stalled(limits.writer_stall);
            self.close(CloseCode::TryAgainLater, &reason, context);
        } else if self.codec.unfinished_since.is_some_and(|since| passed(since, MESSAGE_TIMEOUT)) {
            let reason = close::unfinished_message(MESSAGE_TIMEOUT);
            self.close(CloseCode::ProtocolError, &reason, context);
        } else if passed(self.pinged, limits.ping_interval) {
            self.pinged = now;
            self.replies.extend_from_slice(framing::PING_FRAME);
            if self.grant.is_some() {
                self.keep_alive();
            }
        } else {
            return;
        }
        self.can_write_inline = false;
        self.wake();
    }

    /// Nothing was read, and the peer is not a slow reader that gets our ping late. A full socket
    /// is left to `writer_stall`, and one that was full has taken something since.
    fn is_silent(&self, now: Instant, most: Duration) -> bool {
        let last = self.heard.max(self.unblocked);
        now.saturating_duration_since(last) >= most
            && self.stalled_since.is_none()
            && self.unheard_bytes < UNHEARD_BYTES
    }
}
