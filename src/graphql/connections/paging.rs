//! Pages of lists that are read from the log: their size, their cursors, what lies around them.
//! Oldest first and by position, so that pages never gap or double while events arrive.

use std::sync::Arc;

use async_graphql::{Result, SimpleObject};
use spreadly_subscriptions::{Epoch, GraphqlError, Position};

use crate::graphql::errors::{ErrorCode, fault, limit_exceeded, of_resolver};
use crate::graphql::types::scalars::Cursor;
use crate::live::{LogCursor, log_topics};
use crate::market::epochs::{EpochHistory, ResumeFrom};

/// Nodes in a page: what a client can take in at once.
pub const MOST_PER_PAGE: usize = 1_000;
pub const DEFAULT_PER_PAGE: usize = 100;

/// The position of a page in its list.
#[derive(SimpleObject)]
pub struct PageInfo {
    /// More entries follow, or the hub has not searched further yet. Pass `endCursor` as `after`.
    pub has_next_page: bool,
    /// Older entries come before this page.
    pub has_previous_page: bool,
    /// Cursor of the first entry.
    pub start_cursor: Option<Cursor>,
    /// Pass this as `after` for the next page.
    pub end_cursor: Option<Cursor>,
}

/// The argument `first`.
pub fn checked_first(first: Option<i32>) -> Result<usize> {
    match first.map_or(Ok(DEFAULT_PER_PAGE), usize::try_from) {
        Ok(first) if first > MOST_PER_PAGE => Err(limit_exceeded("first", MOST_PER_PAGE, first)),
        Ok(first) if first > 0 => Ok(first),
        _ => Err(fault(ErrorCode::ValidationFailed, "first must be at least 1")),
    }
}

/// A topic as a list: what its cursors are.
pub struct List {
    topics: u64,
    epochs: EpochHistory,
}

impl List {
    /// Make it before the list is read: events that a rollback removes meanwhile then count as
    /// seen.
    pub fn new(topic: &Arc<str>, epochs: EpochHistory) -> Self {
        Self { topics: log_topics(std::slice::from_ref(topic)), epochs }
    }

    /// Of its positions.
    pub fn epoch(&self) -> Epoch {
        self.epochs.epoch()
    }

    /// The cursor of a place in it.
    pub fn cursor(&self, sequence: u64) -> Cursor {
        let position = Position { epoch: self.epoch(), sequence };
        Cursor(LogCursor { topics: self.topics, position }.encode())
    }

    /// The sequence after which a page begins.
    ///
    /// # Errors
    /// `RESYNC_REQUIRED` where a rollback removed events up to there, with the last position that
    /// is valid; or where the epoch of the position is unknown.
    pub fn begin_after(&self, after: &Cursor) -> Result<u64> {
        let requested = LogCursor::decode(&after.0, self.topics)
            .map_err(|error| fault(ErrorCode::BadRequest, &error.to_string()))?
            .position;
        // A page may begin after the last event: it is empty.
        let (message, floor) = match self.epochs.resume(&requested, u64::MAX) {
            ResumeFrom::After(sequence) => return Ok(sequence),
            ResumeFrom::RolledBack { valid } if valid == requested.sequence => return Ok(valid),
            ResumeFrom::RolledBack { valid } => {
                ("blocks were removed: discard what is after `floor`, and list from there", valid)
            }
            ResumeFrom::Start => ("the epoch is new: list from the start", 0),
        };
        let cursor = self.cursor(floor);
        let floor = Position { epoch: self.epoch(), sequence: floor };
        let error = GraphqlError::resync_required(requested, floor, message);
        Err(of_resolver(error.with("cursor", cursor.0)))
    }
}
