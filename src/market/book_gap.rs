//! A book that missed an event: it is wrong until the next snapshot, and says so.

use serde::{Deserialize, Serialize};

use super::definition::MarketId;

/// A `book.gap` event: events of a market's book are missing. The hub writes one itself where it
/// refuses an event of a book; a source may send one, such as where it missed updates of its venue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BookGap {
    pub market: MarketId,
    /// The feed that brought what was refused; `None` where a source sent the event.
    pub source: Option<Box<str>>,
    /// For people.
    pub reason: Box<str>,
}

impl BookGap {
    /// The event as a line.
    pub fn line(&self) -> String {
        let Self { market, source, reason } = self;
        serde_json::json!({
            "kind": "book.gap", "market": market, "source": source, "reason": reason,
        })
        .to_string()
    }
}
