//! What enters the log where records of partitions are lost. Several partitions that lost some at
//! once, as those of a topic that was created again, are one gap, also where several hubs read
//! them.

use serde_json::json;
use spreadly_subscriptions::topic_hash;

use super::partition::Gap;
use super::partitions::Partitions;
use crate::ingest::handle::Incoming;
use crate::ingest::place::{At, Place};
use crate::ingest::summary::summary;
use crate::market::refusal::Refusal;
use crate::market::time::{Micros, time_text};

/// Hubs that share a topic which is created again notice it within this time, in microseconds.
/// Mostly: a gap more only costs clients a snapshot more.
const ONE_GAP: Micros = 300_000_000;

/// See the module's text.
pub(super) struct Loss {
    /// For people.
    pub(super) reason: String,
    /// One for each partition: by them, the books that it may bring have gaps.
    pub(super) lines: Vec<Incoming>,
    /// The `source.gap` event, to enter after them.
    pub(super) event: Incoming,
}

impl Loss {
    /// `None` if nothing was lost.
    pub(super) fn of(gaps: &[Gap], partitions: &Partitions, now: Micros) -> Option<Self> {
        let first = gaps.first()?;
        let reason = summary(gaps.iter().map(|gap| gap.reason.clone()), gaps.len())?;
        let place = |gap: &Gap| {
            let source = partitions.get(gap.place).source.clone();
            Place { source, at: At::Offset(gap.next) }
        };
        let line = |gap: &Gap| Incoming {
            place: place(gap),
            line: Err(Refusal::EventsLost(gap.reason.as_str().into())),
            numbered: None,
        };
        let mut event = json!({
            "kind": "source.gap", "source": &*partitions.get(first.place).source, "reason": reason,
            "time": time_text(now),
        });
        if let Some(remade) = first.remade {
            // The name of a topic may be too long for an id.
            let topic = topic_hash(&partitions.get(first.place).topic);
            event["id"] = format!("{topic:016x}/{remade}/{}", now / ONE_GAP).into();
        }
        let lines = gaps.iter().map(line).collect();
        let place = place(first);
        let event = Incoming { place, line: Ok(event.to_string().into_bytes()), numbered: None };
        Some(Self { reason, lines, event })
    }
}
