//! Feeds, and how they do.

use std::sync::Arc;

use async_graphql::{Enum, ID, SimpleObject};

use super::scalars::{DateTime, UInt64};
use crate::live::{self, FeedView};
use crate::market::book_gap;

/// Whether the hub's data is up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "live::FeedState")]
pub enum FeedState {
    /// The data is up to date.
    Live,
    /// The source is disconnected or late.
    Stale,
    /// The hub can't take all events of this feed. It continues by itself after the repair.
    Halted,
    /// The hub is about to close its connections.
    ShuttingDown,
}

/// An event that a feed brought and the hub did not take.
#[derive(SimpleObject)]
pub struct Refusal {
    /// The file, topic or table that the event came from.
    source: String,
    /// Where in the source: a line, an offset, a row.
    place: String,
    /// What was wrong with it.
    reason: String,
}

/// A book that missed an event, and is not whole again.
#[derive(SimpleObject)]
pub struct BookGap {
    /// The market's id, `BASE-QUOTE`.
    market: ID,
    /// The order that the event was of, if the book is summed from orders and the order is known.
    order: Option<ID>,
    /// What was refused, or what its source reports.
    reason: String,
}

/// The state of one feed.
#[derive(SimpleObject)]
pub struct FeedStatus {
    /// As the configuration names it.
    name: String,
    /// What it reads: FILES, POSTGRES, KAFKA or SIMULATOR. LOCAL is the mutations.
    kind: String,
    /// Whether it is up to date.
    state: FeedState,
    /// Why it is not live, or what a live feed skips or only logs.
    reason: Option<String>,
    /// Events taken since the hub started.
    events_total: UInt64,
    /// Events whose `id` was in the log already, since the hub started. They count once.
    known_total: UInt64,
    /// Events refused since the hub started.
    refused_total: UInt64,
    /// The newest refused event.
    last_refusal: Option<Refusal>,
    /// The newest refused events, newest first. At most 20 are named.
    refusals: Vec<Refusal>,
    /// When the newest event was written to the log, by the hub's clock.
    last_event_time: Option<DateTime>,
    /// Consumer lag: what its source has and the log does not have yet. In bytes of files, rows of
    /// Postgres or records of Kafka; 0 when it has caught up. It goes on counting while the feed is
    /// not live, as long as the source can be asked.
    lag: Option<UInt64>,
    /// Books that missed an event of this feed. They are STALE until their next `book.snapshot`, or
    /// until the orders that they are summed from are complete. At most 100 are named.
    gaps: Vec<BookGap>,
}

impl From<FeedView> for FeedStatus {
    fn from(view: FeedView) -> Self {
        let refusal = |one: live::RefusedEvent| Refusal {
            source: one.source,
            place: one.place,
            reason: one.reason,
        };
        let gap = |one: &Arc<book_gap::BookGap>| BookGap {
            market: ID(one.market.to_string()),
            order: one.order().map(ID::from),
            reason: one.reason.to_string(),
        };
        Self {
            name: view.name,
            kind: view.kind,
            state: view.state.into(),
            reason: view.reason,
            events_total: UInt64(view.events_total),
            known_total: UInt64(view.known_total),
            refused_total: UInt64(view.refused_total),
            last_refusal: view.last_refusal.map(refusal),
            refusals: view.refusals.into_iter().map(refusal).collect(),
            last_event_time: view.last_event_time.map(DateTime),
            lag: view.lag.map(UInt64),
            gaps: view.gaps.iter().map(gap).collect(),
        }
    }
}
