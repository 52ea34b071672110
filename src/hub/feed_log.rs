//! A line of the hub's log for each feed that goes down, and one when it is back.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ingest::feed_status::{FeedState, FeedStatus};

/// How the reason of a feed begins that has not reached its source yet.
pub(super) const CONNECTING: &str = "connecting";

/// What was logged of each feed.
#[derive(Default)]
pub(super) struct FeedLog(BTreeMap<Arc<str>, Logged>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logged {
    Up,
    Down,
}

impl FeedLog {
    /// Logs what has changed.
    pub(super) fn look(&mut self, feeds: &[FeedStatus]) {
        for feed in feeds {
            let name = &feed.name;
            match self.change(feed) {
                Some(Logged::Up) => tracing::info!(feed = %name, "the feed is live"),
                Some(Logged::Down) => {
                    let (state, reason) = (feed.state, feed.reason.as_deref().unwrap_or_default());
                    tracing::warn!(feed = %name, ?state, reason, "the feed is not live");
                }
                None => {}
            }
        }
    }

    /// What has to be logged now.
    fn change(&mut self, feed: &FeedStatus) -> Option<Logged> {
        let now = match feed.state {
            FeedState::Live => Logged::Up,
            // It was never up, and nothing is wrong yet.
            FeedState::Stale if is_connecting(feed) => return None,
            FeedState::Stale | FeedState::Halted => Logged::Down,
            FeedState::ShuttingDown => return None,
        };
        let before = self.0.insert(feed.name.clone(), now);
        (before != Some(now)).then_some(now)
    }
}

fn is_connecting(feed: &FeedStatus) -> bool {
    feed.cuts_total == 0 && feed.reason.as_deref().is_some_and(|own| own.starts_with(CONNECTING))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::feed_status::{Cause, FeedKind, FeedStatuses};

    #[test]
    fn a_feed_has_one_line_when_it_goes_down_and_one_when_it_is_back() {
        let statuses = FeedStatuses::new();
        let feed = statuses.register("kafka", FeedKind::Kafka);
        let mut log = FeedLog::default();
        let mut look = || log.change(&statuses.get(feed).unwrap());
        statuses.stale(feed, Some("connecting to Kafka".into()));
        assert_eq!(look(), None);
        statuses.stale(feed, None);
        assert_eq!([look(), look()], [Some(Logged::Up), None]);
        statuses.cut_off(feed, "cut off from Kafka: it is silent".into());
        assert_eq!([look(), look()], [Some(Logged::Down), None]);
        // Another reason, and still down.
        statuses.halt(feed, Cause::Store, "disk full");
        assert_eq!(look(), None);
        statuses.clear(feed, Cause::Store);
        statuses.stale(feed, None);
        assert_eq!(look(), Some(Logged::Up));
        statuses.shutting_down(feed);
        assert_eq!(look(), None);
    }
}
