//! The streams without readers, in the order in which their last readers left. A stream enters
//! once, however often readers come and go, so the list is no longer than the table of streams.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::stream::ResponseStream;

/// How long a stream without readers is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linger {
    pub shared: Duration,
    /// If one owner alone ever read it.
    pub alone: Duration,
}

impl Linger {
    /// To make room at once.
    pub(crate) const NONE: Self = Self { shared: Duration::ZERO, alone: Duration::ZERO };

    pub(crate) fn of(self, shared: bool) -> Duration {
        if shared { self.shared } else { self.alone }
    }
}

struct Entry {
    since: Instant,
    stream: Weak<ResponseStream>,
}

/// Two queues, as streams that several owners read are kept for longer.
#[derive(Default)]
struct Queues {
    alone: VecDeque<Entry>,
    shared: VecDeque<Entry>,
}

impl Queues {
    fn of(&mut self, shared: bool) -> &mut VecDeque<Entry> {
        if shared { &mut self.shared } else { &mut self.alone }
    }
}

#[derive(Default)]
pub(crate) struct IdleStreams(Mutex<Queues>);

impl IdleStreams {
    /// Adds a stream that is not in the list.
    pub(crate) fn add(&self, stream: &Arc<ResponseStream>, since: Instant) {
        let entry = Entry { since, stream: Arc::downgrade(stream) };
        self.0.lock().of(stream.is_shared()).push_back(entry);
    }

    /// Takes the streams whose linger time has passed since they entered the list, among at most
    /// `most` entries. They may have had readers since. The second value says whether further
    /// entries are due.
    pub(crate) fn take_due(
        &self,
        linger: Linger,
        most: usize,
        now: Instant,
    ) -> (Vec<Arc<ResponseStream>>, bool) {
        let mut queues = self.0.lock();
        let mut taken = Vec::new();
        let mut left = most;
        for shared in [false, true] {
            let queue = queues.of(shared);
            let is_due =
                |entry: &Entry| now.saturating_duration_since(entry.since) >= linger.of(shared);
            while queue.front().is_some_and(is_due) {
                if left == 0 {
                    return (taken, true);
                }
                left -= 1;
                let stream = queue.pop_front().and_then(|entry| entry.stream.upgrade());
                taken.extend(stream.inspect(|stream| stream.leave_idle_list()));
            }
        }
        (taken, false)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        let queues = self.0.lock();
        queues.alone.len() + queues.shared.len()
    }
}
