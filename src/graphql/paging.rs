//! Pages of lists that are read from the log: their size, their cursors, what lies around them.
//! Oldest first and by position, so that pages never gap or double while events arrive.

use std::sync::Arc;

use async_graphql::{ErrorExtensions, Result, SimpleObject, Value};
use spreadly_subscriptions::{Epoch, Position};

use super::errors::{fault, limit_exceeded};
use super::scalars::Cursor;
use crate::live::{LogCursor, log_topics};

/// Nodes in a page: what a client can take in at once.
const MOST_PER_PAGE: usize = 1_000;
const DEFAULT_PER_PAGE: usize = 100;

/// What lies around a page.
#[derive(SimpleObject)]
pub struct PageInfo {
    /// More was there when the page was read, or was not looked at yet: ask behind `endCursor`.
    pub has_next_page: bool,
    /// The page does not begin with the oldest.
    pub has_previous_page: bool,
    /// Of the first in the page.
    pub start_cursor: Option<Cursor>,
    /// Where the next page begins.
    pub end_cursor: Option<Cursor>,
}

/// The argument `first`.
pub(super) fn checked_first(first: Option<i32>) -> Result<usize> {
    match first.map_or(Ok(DEFAULT_PER_PAGE), usize::try_from) {
        Ok(first) if first > MOST_PER_PAGE => Err(limit_exceeded("first", MOST_PER_PAGE, first)),
        Ok(first) if first > 0 => Ok(first),
        _ => Err(fault("VALIDATION_FAILED", "first must be at least 1")),
    }
}

/// The cursor of a place in the list of this topic.
pub(super) fn cursor(topic: &Arc<str>, epoch: Epoch, sequence: u64) -> Cursor {
    let topics = log_topics(std::slice::from_ref(topic));
    Cursor(LogCursor { topics, position: Position { epoch, sequence } }.encode())
}

/// The sequence behind which a page of this topic begins.
pub(super) fn behind(after: &Cursor, topic: &Arc<str>, epoch: Epoch) -> Result<u64> {
    let cursor = LogCursor::decode(&after.0, log_topics(std::slice::from_ref(topic)))
        .map_err(|error| fault("BAD_REQUEST", &error.to_string()))?;
    let requested = cursor.position;
    if requested.epoch == epoch {
        return Ok(requested.sequence);
    }
    let position = |epoch: Epoch, sequence: u64| {
        let place = serde_json::json!({
            "epoch": epoch.to_string(), "sequence": sequence.to_string(),
        });
        Value::from_json(place).unwrap_or_default()
    };
    let error = fault("RESYNC_REQUIRED", "the numbering began anew: list from the start");
    Err(error.extend_with(|_, values| {
        values.set("requested", position(requested.epoch, requested.sequence));
        values.set("floor", position(epoch, 0));
    }))
}
