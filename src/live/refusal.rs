//! The errors that a reader gets instead of frames.

use bytes::Bytes;
use serde_json::json;
use spreadly_subscriptions::{CursorError, Epoch, Position};

/// A JSON array with one error.
fn error(message: &str, code: &str) -> Bytes {
    Bytes::from(json!([{ "message": message, "extensions": { "code": code } }]).to_string())
}

/// For a cursor that can't be used.
pub(super) fn bad_cursor(fault: CursorError) -> Bytes {
    error(&fault.to_string(), "BAD_REQUEST")
}

/// For a client that joins a stream whose market was removed after others opened it.
pub(super) fn gone() -> Bytes {
    error("there is no market of this id any more: blocks were undone", "NOT_FOUND")
}

/// For a reader that joins while the log can't be read.
pub(super) fn log_unavailable() -> Bytes {
    error("the log can't be read now: subscribe again with the same cursor", "UNAVAILABLE")
}

/// For a position that the hub can't resume from.
pub(super) fn resync_required(requested: Position, epoch: Epoch) -> Bytes {
    let position = |epoch: Epoch, sequence: u64| {
        let (epoch, sequence) = (epoch.to_string(), sequence.to_string());
        json!({ "epoch": epoch, "sequence": sequence })
    };
    let errors = json!([{
        "message": "this position is not of the hub's log: query what is missing, then subscribe \
                    without `after`",
        "extensions": {
            "code": "RESYNC_REQUIRED",
            "requested": position(requested.epoch, requested.sequence),
            // The log never removes a valid event.
            "floor": position(epoch, 0),
        },
    }]);
    Bytes::from(errors.to_string())
}
