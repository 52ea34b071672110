//! The end of one log topic: its last event, and the newest events for streams that push several.

use std::collections::{BTreeSet, VecDeque};

use crate::live::frame::Item;
use crate::market::time::Micros;

/// Events of a topic that are kept for streams which push several at once. What is older is read
/// from the log.
pub(super) const MOST_RECENT: usize = 64;
/// Bytes of their bodies.
const MOST_RECENT_BYTES: usize = 256 << 10;

/// The end of a topic.
#[derive(Default)]
pub(super) struct Topic {
    /// Sequence of its last event; 0 if there is none yet.
    pub(super) last: u64,
    pub(super) event_time: Option<Micros>,
    /// The newest events, each with the sequence of the one before; none where nobody follows.
    recent: VecDeque<(u64, Item)>,
    recent_bytes: usize,
    /// Streams that follow it, and those of them that push each event.
    pub(super) followers: usize,
    pub(super) raw: BTreeSet<u64>,
    /// The newest rollback that its end was taken over after.
    pub(super) undone_at: u64,
    /// It is followed, and may have events in the log of which nothing is known here.
    pub(super) is_forgotten: bool,
}

impl Topic {
    pub(super) fn keep(&mut self, previous: u64, item: &Item) {
        if self.followers == 0 {
            return;
        }
        self.recent_bytes += item.bytes();
        self.recent.push_back((previous, item.clone()));
        while self.recent.len() > MOST_RECENT
            || (self.recent_bytes > MOST_RECENT_BYTES && self.recent.len() > 1)
        {
            if let Some((_, oldest)) = self.recent.pop_front() {
                self.recent_bytes -= oldest.bytes();
            }
        }
    }

    pub(super) fn forget_recent(&mut self) {
        self.recent = VecDeque::new();
        self.recent_bytes = 0;
    }

    /// The events after `seen`; `None` if some of them are not kept.
    pub(super) fn after(&self, seen: u64) -> Option<impl Iterator<Item = &(u64, Item)>> {
        let first = self.recent.partition_point(|(_, item)| item.sequence <= seen);
        let whole = match self.recent.get(first) {
            Some((previous, _)) => *previous <= seen,
            None => self.last <= seen,
        };
        whole.then(|| self.recent.range(first..))
    }
}
