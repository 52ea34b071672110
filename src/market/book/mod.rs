//! One market's order book by price level, and the journal from which the changes since any recent
//! sequence are computed. That one structure serves the deltas of every depth and speed, slow
//! readers and resumes. It knows no decimals, no clock and no stream.

mod checkpoint;
mod journal;
mod window;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use checkpoint::{BookState, CheckpointError};
use journal::{Touch, Touches};
use window::{TouchedLevels, window_changes};

use super::ladder::{Ladder, TopLevels};
use super::levels::{Level, LevelChange, LevelState, PriceKey, Side, price_key};

/// Touches that a journal keeps by default. At 48 bytes each this is 1.5 MiB a market,
/// and at a busy market's 500 touches a second it reaches a minute back: longer than a reconnect
/// takes.
pub const JOURNAL_TOUCHES: usize = 32_768;

/// What happened to the top of a book since a sequence. Size 0: the level left the window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Events after that sequence, also those that changed nothing in the window.
    pub events: u32,
    /// Best first.
    pub bids: Vec<Level>,
    /// Best first.
    pub asks: Vec<Level>,
}

impl Changes {
    /// No level in the window changed.
    pub fn is_empty(&self) -> bool {
        self.bids.is_empty() && self.asks.is_empty()
    }
}

/// The levels of both sides that were touched since a sequence.
#[derive(Debug)]
struct Touched {
    bids: TouchedLevels,
    asks: TouchedLevels,
}

/// A book now, and what was touched since an earlier event: the changes of any window follow from
/// it. It is detached from the book, at the cost of a reference for each block of levels.
#[derive(Clone, Debug)]
pub struct Since {
    events: u32,
    bids: Ladder,
    asks: Ladder,
    touched: Arc<Touched>,
}

impl Since {
    /// See [`Book::changes_since`].
    pub fn changes(&self, depth: usize) -> Changes {
        changes((&self.bids, &self.asks), &self.touched, self.events, depth)
    }
}

fn changes(
    (bids, asks): (&Ladder, &Ladder),
    touched: &Touched,
    events: u32,
    depth: usize,
) -> Changes {
    assert!(depth > 0, "a window holds at least one level");
    Changes {
        events,
        bids: window_changes(Side::Buy, bids, &touched.bids, depth),
        asks: window_changes(Side::Sell, asks, &touched.asks, depth),
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Book {
    bids: Ladder,
    asks: Ladder,
    /// Of the last event.
    sequence: u64,
    touches: Touches,
    /// Sequences of the events after `floor`, oldest first.
    events: VecDeque<u64>,
    /// The oldest sequence from which changes are known.
    floor: u64,
    /// What was touched since the sequence that was last asked for. Many streams ask for the same.
    touched: RefCell<Option<(u64, Arc<Touched>)>>,
    /// And as many events. One that touches nothing costs 8 bytes, but a merge over it must still
    /// count it.
    most_touches: usize,
}

impl Default for Book {
    fn default() -> Self {
        Self::with_journal(0, JOURNAL_TOUCHES)
    }
}

impl Book {
    /// A book without levels that knows nothing from before `sequence`. Of what follows it keeps as
    /// many touches and as many events.
    pub fn with_journal(sequence: u64, most_touches: usize) -> Self {
        Self {
            bids: Ladder::default(),
            asks: Ladder::default(),
            sequence,
            touches: Touches::default(),
            events: VecDeque::new(),
            floor: sequence,
            touched: RefCell::default(),
            most_touches,
        }
    }

    /// Sequence of the last event.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The oldest sequence from which [`Book::changes_since`] knows the changes.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Whether an event of this book has this sequence, as far as its journal reaches. A power cut
    /// may have taken the event of a sequence that a client saw; the number is never used again.
    pub fn has_sequence(&self, sequence: u64) -> bool {
        sequence == self.floor
            || (sequence > self.floor && self.events.binary_search(&sequence).is_ok())
    }

    /// The same levels in an epoch that begins with this event: changes since an earlier event are
    /// not known any more.
    pub fn begin_epoch(&mut self, sequence: u64) {
        (self.sequence, self.floor) = (sequence, sequence);
        self.touches.clear();
        self.events.clear();
        self.touched.take();
    }

    /// Counts an event that changed no level among the events of this book, as far as its journal
    /// reaches; also one that came before others.
    pub fn add_sequence(&mut self, sequence: u64) {
        if sequence > self.floor
            && let Err(place) = self.events.binary_search(&sequence)
        {
            self.events.insert(place, sequence);
            self.sequence = self.sequence.max(sequence);
        }
    }

    /// One event's levels: sizes are absolute and 0 removes. Removing an unknown level is no fault.
    pub fn apply(&mut self, sequence: u64, levels: &[LevelChange]) {
        self.begin(sequence);
        for change in levels {
            self.set(change.side, price_key(change.side, change.price), change.into());
        }
        self.forget();
    }

    /// One event that states the whole book. Only what differs enters the journal, so that readers
    /// of a source that repeats itself are sent nothing.
    pub fn replace(&mut self, sequence: u64, levels: &[LevelChange]) {
        self.begin(sequence);
        for side in [Side::Buy, Side::Sell] {
            let mut stated: BTreeMap<PriceKey, LevelState> = levels
                .iter()
                .filter(|level| level.side == side)
                .map(|level| (price_key(side, level.price), level.into()))
                .collect();
            stated.retain(|_, state| state.size > 0);
            let current = self.side(side).iter().map(|(key, _)| key);
            let gone: Vec<PriceKey> = current.filter(|key| !stated.contains_key(key)).collect();
            for key in gone {
                self.set(side, key, LevelState::NONE);
            }
            for (key, state) in stated {
                self.set(side, key, state);
            }
        }
        self.forget();
    }

    fn begin(&mut self, sequence: u64) {
        assert!(sequence > self.sequence, "events reach a book in the log's order");
        self.sequence = sequence;
        self.events.push_back(sequence);
        self.touched.take();
    }

    fn set(&mut self, side: Side, key: PriceKey, now: LevelState) {
        let levels = match side {
            Side::Buy => &mut self.bids,
            Side::Sell => &mut self.asks,
        };
        let before = if now.size == 0 { levels.remove(key) } else { levels.insert(key, now) };
        let before = before.unwrap_or(LevelState::NONE);
        if before != now {
            self.touches.push(Touch::new(self.sequence, side, key, before));
        }
    }

    /// Keeps the journal within its bounds. Whatever leaves takes the floor with it: a resume from
    /// before it could no longer be exact.
    fn forget(&mut self) {
        while self.touches.len() > self.most_touches {
            if let Some(touch) = self.touches.pop() {
                self.floor = self.floor.max(touch.sequence);
            }
        }
        while self.events.len() > self.most_touches {
            if let Some(sequence) = self.events.pop_front() {
                self.floor = self.floor.max(sequence);
            }
        }
    }

    fn side(&self, side: Side) -> &Ladder {
        match side {
            Side::Buy => &self.bids,
            Side::Sell => &self.asks,
        }
    }

    /// The best `depth` levels of a side, best first.
    pub fn levels(&self, side: Side, depth: usize) -> impl Iterator<Item = Level> {
        self.side(side).iter().take(depth).map(move |(key, state)| state.at(side, key))
    }

    /// The same, detached from the book. It costs nearly nothing, see [`TopLevels`].
    pub fn top(&self, side: Side, depth: usize) -> TopLevels {
        self.side(side).top(side, depth)
    }

    /// Best bid and best ask.
    pub fn best(&self) -> (Option<Level>, Option<Level>) {
        (self.levels(Side::Buy, 1).next(), self.levels(Side::Sell, 1).next())
    }

    /// Levels of both sides.
    pub fn len(&self) -> usize {
        self.len_within(usize::MAX)
    }

    /// Of the best `depth` levels of both sides, how many there are.
    pub fn len_within(&self, depth: usize) -> usize {
        self.bids.len().min(depth) + self.asks.len().min(depth)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether levels were touched more often than this since `from`.
    pub fn is_touched_more(&self, from: u64, most: usize) -> bool {
        self.touches.newest_after(from).nth(most).is_some()
    }

    /// The exact difference between the best `depth` levels as they were at `from` and as they are
    /// now. `None` if the journal doesn't reach there, or if the book has no such event. The first
    /// one who asks for what followed `from` pays for the touches since; all pay for the window.
    pub fn changes_since(&self, from: u64, depth: usize) -> Option<Changes> {
        let touched = self.touched_since(from)?;
        Some(changes((&self.bids, &self.asks), &touched, self.count_after(from), depth))
    }

    /// The same, to be computed without the book.
    pub fn since(&self, from: u64) -> Option<Since> {
        Some(Since {
            events: self.count_after(from),
            bids: self.bids.clone(),
            asks: self.asks.clone(),
            touched: self.touched_since(from)?,
        })
    }

    fn touched_since(&self, from: u64) -> Option<Arc<Touched>> {
        if !self.has_sequence(from) {
            return None;
        }
        let mut known = self.touched.borrow_mut();
        if let Some((_, touched)) = known.as_ref().filter(|(since, _)| *since == from) {
            return Some(touched.clone());
        }
        let (mut bids, mut asks) = (Vec::new(), Vec::new());
        for touch in self.touches.newest_after(from) {
            match touch.side {
                Side::Buy => bids.push((touch.key, touch.before())),
                Side::Sell => asks.push((touch.key, touch.before())),
            }
        }
        let touched = Arc::new(Touched {
            bids: TouchedLevels::new(&self.bids, bids),
            asks: TouchedLevels::new(&self.asks, asks),
        });
        *known = Some((from, touched.clone()));
        Some(touched)
    }

    fn count_after(&self, sequence: u64) -> u32 {
        u32::try_from(self.events_after(sequence)).unwrap_or(u32::MAX)
    }

    /// Events after this sequence, as far as the journal reaches.
    pub fn events_after(&self, sequence: u64) -> usize {
        self.events.len() - self.events.partition_point(|one| *one <= sequence)
    }
}

#[cfg(test)]
mod tests;
