//! The errors that a reader gets instead of frames.

use bytes::Bytes;
use spreadly_subscriptions::{CursorError, Epoch, ErrorCode, GraphqlError, Position};

/// A JSON array with one error.
fn error(code: ErrorCode, message: &str) -> Bytes {
    GraphqlError::new(code, message).into_list_bytes()
}

/// For a cursor that can't be used.
pub(super) fn bad_cursor(fault: CursorError) -> Bytes {
    error(ErrorCode::BadRequest, &fault.to_string())
}

/// For a client that joins a stream whose market was removed after others opened it.
pub(super) fn gone() -> Bytes {
    error(ErrorCode::NotFound, "there is no market of this id any more: blocks were undone")
}

/// For a reader that joins while the log can't be read.
pub(super) fn log_unavailable() -> Bytes {
    error(ErrorCode::Unavailable, "the log can't be read now: subscribe again with the same cursor")
}

/// For a position that the hub can't resume from.
pub(super) fn resync_required(requested: Position, epoch: Epoch) -> Bytes {
    let message = "this position is not of the hub's log: query what is missing, then subscribe \
                   without `after`";
    // The log never removes a valid event.
    let floor = Position { epoch, sequence: 0 };
    GraphqlError::resync_required(requested, floor, message).into_list_bytes()
}
