//! Work on the store that is tried until it succeeds. Feeds are halted meanwhile.

use std::thread;
use std::time::{Duration, Instant};

use super::Sequencer;
use crate::ingest::feed_status::Cause;
use crate::store::{Store, StoreError};

/// How often a wait for the log looks whether the hub shuts down.
const LOOK: Duration = Duration::from_millis(20);

impl Sequencer {
    /// Does it until it works. `None`: the hub shuts down before that.
    pub(super) fn persist<T>(
        &mut self,
        mut work: impl FnMut(&mut Store) -> Result<T, StoreError>,
    ) -> Option<T> {
        let mut result = work(&mut self.store);
        let mut backoff = crate::ingest::backoff();
        let mut halted = false;
        loop {
            let error = match result {
                Ok(value) => {
                    if halted {
                        self.statuses.clear_all(Cause::Store);
                        tracing::warn!("the store takes events again");
                    }
                    return Some(value);
                }
                Err(error) => error,
            };
            self.statuses.halt_all(Cause::Store, &error.to_string());
            if !halted && error.is_retryable() {
                tracing::warn!(%error, "feeds are halted until the store takes events again");
            } else if !halted {
                tracing::error!(%error, "feeds are halted: the store needs an operator");
            }
            halted = true;
            if !self.pause(backoff.wait()) {
                return None;
            }
            result = self.store.reopen().and_then(|()| work(&mut self.store));
        }
    }

    /// Whether the hub still runs after it.
    fn pause(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        while !self.config.shutdown.is_cancelled() && !self.handles.is_closed() {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return true;
            }
            thread::sleep(rest.min(LOOK));
        }
        false
    }
}
