//! One market's order book by price level, and the journal that tells what changed since any
//! sequence in its reach. That one structure serves the deltas of every depth and speed, what a
//! slow reader missed, and a resume. Knows no decimals, no clock and no stream.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::event::{LevelChange, Side};
use super::fixed::Fixed;
use super::ladder::{Ladder, TopLevels};
use super::touches::{Touch, Touches};

/// Touches that a journal keeps unless told otherwise. At 48 bytes each this is 1.5 MiB a market,
/// and at a busy market's 500 touches a second it reaches a minute back: longer than a reconnect
/// takes.
pub const JOURNAL_TOUCHES: usize = 32_768;

/// One price of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    pub price: Fixed,
    /// 0: the level is gone, or left the window.
    pub size: Fixed,
    /// Single orders that make up the size; 0 where the source tells levels only.
    pub orders: u32,
}

/// What stands at one price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) size: Fixed,
    pub(super) orders: u32,
}

/// No level: the orders of one that is gone are none.
const NOTHING: Standing = Standing { size: 0, orders: 0 };

impl Standing {
    pub(super) fn at(self, side: Side, key: Rank) -> Level {
        Level { price: rank(side, key), size: self.size, orders: self.orders }
    }
}

impl From<&LevelChange> for Standing {
    fn from(change: &LevelChange) -> Self {
        match change.size {
            0 => NOTHING,
            size => Self { size, orders: change.orders },
        }
    }
}

/// A price as its place on its side: the best one is the smallest, on both sides.
pub(super) type Rank = u128;

/// The rank behind every price: the edge of a window that holds the whole side.
const WORST: Rank = Rank::MAX;

/// Its own inverse.
fn rank(side: Side, price: u128) -> Rank {
    match side {
        Side::Buy => !price,
        Side::Sell => price,
    }
}

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
    /// The oldest sequence from which changes can still be told.
    floor: u64,
    /// And as many events: one that touches nothing costs 8 bytes but must still be counted by
    /// whoever merges over it.
    most_touches: usize,
}

impl Default for Book {
    fn default() -> Self {
        Self::with_journal(0, JOURNAL_TOUCHES)
    }
}

/// What a checkpoint holds. Numbers as text, as few JSON readers keep 128 bits.
#[derive(Serialize, Deserialize)]
struct Checkpoint {
    sequence: u64,
    bids: Vec<(String, String)>,
    asks: Vec<(String, String)>,
    /// Orders of each level, in the same order; empty where levels are all that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bid_orders: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ask_orders: Vec<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    journal: Option<Journal>,
}

/// The newest part of a book's journal as a checkpoint holds it.
#[derive(Serialize, Deserialize)]
struct Journal {
    floor: u64,
    events: Vec<u64>,
    /// Sequence, side and price; size and orders before.
    touches: Vec<(u64, Side, String, String, u32)>,
}

/// A book's levels with the newest part of its journal, taken out of it without being written yet:
/// taking costs a reference for each block of levels and a copy of that part of the journal,
/// writing a large book costs milliseconds.
#[derive(Clone, Debug)]
pub struct BookState {
    sequence: u64,
    bids: TopLevels,
    asks: TopLevels,
    floor: u64,
    events: Vec<u64>,
    touches: Vec<Touch>,
}

/// Why bytes are no checkpoint of ours.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("the checkpoint is not readable: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the checkpoint holds a level that is not a whole number")]
    Level(#[from] std::num::ParseIntError),
    #[error("the checkpoint's journal is not in order")]
    Journal,
}

impl BookState {
    /// Of the last event.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    pub fn best(&self) -> (Option<Level>, Option<Level>) {
        (self.bids.best(), self.asks.best())
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let levels = |all: &TopLevels| {
            all.iter().map(|level| (level.price.to_string(), level.size.to_string())).collect()
        };
        let orders = |all: &TopLevels| match all.iter().any(|level| level.orders > 0) {
            true => all.iter().map(|level| level.orders).collect(),
            false => Vec::new(),
        };
        let touch = |touch: &Touch| {
            let (Touch { sequence, rank: key, side, .. }, before) = (*touch, touch.before());
            (sequence, side, rank(side, key).to_string(), before.size.to_string(), before.orders)
        };
        let journal = (self.floor < self.sequence).then(|| Journal {
            floor: self.floor,
            events: self.events.clone(),
            touches: self.touches.iter().map(touch).collect(),
        });
        let checkpoint = Checkpoint {
            sequence: self.sequence,
            bids: levels(&self.bids),
            asks: levels(&self.asks),
            bid_orders: orders(&self.bids),
            ask_orders: orders(&self.asks),
            journal,
        };
        serde_json::to_vec(&checkpoint).unwrap_or_default()
    }
}

impl Book {
    /// A book without levels that knows nothing from before `sequence`, and of what follows as many
    /// touches and events.
    pub fn with_journal(sequence: u64, most_touches: usize) -> Self {
        Self {
            bids: Ladder::default(),
            asks: Ladder::default(),
            sequence,
            touches: Touches::default(),
            events: VecDeque::new(),
            floor: sequence,
            most_touches,
        }
    }

    /// Sequence of the last event.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The oldest sequence from which [`Book::changes_since`] can tell.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Whether the book stood at this sequence, as far as its journal reaches. A power cut may have
    /// taken the event of a sequence that a client saw; the number is never used again.
    pub fn stood_at(&self, sequence: u64) -> bool {
        sequence == self.floor
            || (sequence > self.floor && self.events.binary_search(&sequence).is_ok())
    }

    /// The same levels in a numbering that begins with this event: from before it nothing can be
    /// told any more.
    pub fn begin_anew(&mut self, sequence: u64) {
        (self.sequence, self.floor) = (sequence, sequence);
        self.touches.clear();
        self.events.clear();
    }

    /// Counts an event that changed no level among those that the book stood at, as far as its
    /// journal reaches; also one that came before others.
    pub fn stand_at(&mut self, sequence: u64) {
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
            self.set(change.side, rank(change.side, change.price), change.into());
        }
        self.forget();
    }

    /// One event that states the whole book. Only what differs enters the journal, so that readers
    /// of a source that repeats itself are sent nothing.
    pub fn replace(&mut self, sequence: u64, levels: &[LevelChange]) {
        self.begin(sequence);
        for side in [Side::Buy, Side::Sell] {
            let mut stated: BTreeMap<Rank, Standing> = levels
                .iter()
                .filter(|level| level.side == side)
                .map(|level| (rank(side, level.price), level.into()))
                .collect();
            stated.retain(|_, standing| standing.size > 0);
            let standing = self.side(side).iter().map(|(rank, _)| rank);
            let gone: Vec<Rank> = standing.filter(|rank| !stated.contains_key(rank)).collect();
            for rank in gone {
                self.set(side, rank, NOTHING);
            }
            for (rank, standing) in stated {
                self.set(side, rank, standing);
            }
        }
        self.forget();
    }

    fn begin(&mut self, sequence: u64) {
        assert!(sequence > self.sequence, "events reach a book in the log's order");
        self.sequence = sequence;
        self.events.push_back(sequence);
    }

    fn set(&mut self, side: Side, rank: Rank, now: Standing) {
        let levels = match side {
            Side::Buy => &mut self.bids,
            Side::Sell => &mut self.asks,
        };
        let before = if now.size == 0 { levels.remove(rank) } else { levels.insert(rank, now) };
        let before = before.unwrap_or(NOTHING);
        if before != now {
            self.touches.push(Touch::new(self.sequence, side, rank, before));
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
        self.side(side).iter().take(depth).map(move |(key, standing)| standing.at(side, key))
    }

    /// The same to take along: it costs nearly nothing, see [`TopLevels`].
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
        self.touches.newest_behind(from).nth(most).is_some()
    }

    /// The exact difference between the best `depth` levels as they were at `from` and as they are
    /// now; `None` if the journal doesn't reach there, or if the book never stood there. Costs the
    /// touches since `from` and one walk to the edge of the window.
    pub fn changes_since(&self, from: u64, depth: usize) -> Option<Changes> {
        assert!(depth > 0, "a window holds at least one level");
        if !self.stood_at(from) {
            return None;
        }
        let (mut bids, mut asks) = (BTreeMap::new(), BTreeMap::new());
        // From the newest back, so that the oldest value after `from` is the one that stays.
        for touch in self.touches.newest_behind(from) {
            match touch.side {
                Side::Buy => bids.insert(touch.rank, touch.before()),
                Side::Sell => asks.insert(touch.rank, touch.before()),
            };
        }
        Some(Changes {
            events: u32::try_from(self.events_behind(from)).unwrap_or(u32::MAX),
            bids: window_changes(Side::Buy, &self.bids, &bids, depth),
            asks: window_changes(Side::Sell, &self.asks, &asks, depth),
        })
    }

    /// The levels and the sequence, without the journal: a book that was restored can tell changes
    /// from that sequence on.
    pub fn to_checkpoint(&self) -> Vec<u8> {
        self.state(0).to_bytes()
    }

    /// All levels and, of the journal, what the newest events left: as many events and as many
    /// touches as `journal` at most.
    pub fn state(&self, journal: usize) -> BookState {
        let oldest = |kept: usize, most: usize| kept.checked_sub(most + 1);
        // The newest event that is left out, by either bound.
        let events = oldest(self.events.len(), journal).map(|place| self.events[place]);
        let touches = oldest(self.touches.len(), journal)
            .and_then(|place| Some(self.touches.get(place)?.sequence));
        let floor = events.into_iter().chain(touches).fold(self.floor, u64::max);
        let event = self.events.partition_point(|sequence| *sequence <= floor);
        BookState {
            sequence: self.sequence,
            bids: self.top(Side::Buy, usize::MAX),
            asks: self.top(Side::Sell, usize::MAX),
            floor,
            events: self.events.range(event..).copied().collect(),
            touches: self.touches.behind(floor).copied().collect(),
        }
    }

    /// Events behind this sequence, as far as the journal reaches.
    pub fn events_behind(&self, sequence: u64) -> usize {
        self.events.len() - self.events.partition_point(|one| *one <= sequence)
    }

    /// With a journal of this size, see [`Book::with_journal`].
    pub fn from_checkpoint(bytes: &[u8], most_touches: usize) -> Result<Self, CheckpointError> {
        let checkpoint: Checkpoint = serde_json::from_slice(bytes)?;
        let mut book = Self::with_journal(checkpoint.sequence, most_touches);
        let sides = [
            (Side::Buy, &mut book.bids, checkpoint.bids, checkpoint.bid_orders),
            (Side::Sell, &mut book.asks, checkpoint.asks, checkpoint.ask_orders),
        ];
        for (side, levels, written, orders) in sides {
            let orders = orders.into_iter().chain(std::iter::repeat(0));
            for ((price, size), orders) in written.into_iter().zip(orders) {
                let standing = Standing { size: size.parse()?, orders };
                levels.insert(rank(side, price.parse()?), standing);
            }
        }
        if let Some(journal) = checkpoint.journal {
            book.take_journal(journal)?;
        }
        Ok(book)
    }

    fn take_journal(&mut self, journal: Journal) -> Result<(), CheckpointError> {
        let Journal { floor, events, touches } = journal;
        let within = |sequence: u64| floor < sequence && sequence <= self.sequence;
        let ordered = events.is_sorted_by(|one, next| one < next)
            && touches.is_sorted_by_key(|touch| touch.0)
            && events.iter().chain(touches.iter().map(|touch| &touch.0)).all(|one| within(*one));
        if !ordered {
            return Err(CheckpointError::Journal);
        }
        self.events = events.into();
        for (sequence, side, price, size, orders) in touches {
            let before = Standing { size: size.parse()?, orders };
            self.touches.push(Touch::new(sequence, side, rank(side, price.parse()?), before));
        }
        self.floor = floor;
        self.forget();
        Ok(())
    }
}

/// What changed among the best `depth` levels of one side. `live` is the side now; `before` has
/// what stood earlier at each level that was touched since.
///
/// Only the edges of the two windows are looked for. Behind both nothing matters, before both only
/// touched levels differ, and between them untouched levels were pushed out or let in.
fn window_changes(
    side: Side,
    live: &Ladder,
    before: &BTreeMap<Rank, Standing>,
    depth: usize,
) -> Vec<Level> {
    if before.is_empty() {
        return Vec::new();
    }
    let edge_now = match live.len() > depth {
        true => live.rank_at(depth - 1).unwrap_or(WORST),
        false => WORST,
    };
    let edge_then = earlier_edge(live, before, depth, edge_now);
    let within = |edge: Rank, rank: Rank, one: Standing| if rank <= edge { one } else { NOTHING };
    let mut changes: Vec<(Rank, Standing)> = Vec::with_capacity(before.len());
    for (rank, earlier) in before {
        let now = within(edge_now, *rank, live.get(*rank).unwrap_or(NOTHING));
        if within(edge_then, *rank, *earlier) != now {
            changes.push((*rank, now));
        }
    }
    let (inner, outer) = (edge_now.min(edge_then), edge_now.max(edge_then));
    if inner < outer {
        let between = live.from(inner + 1).take_while(|(rank, _)| *rank <= outer);
        let untouched = between.filter(|(rank, _)| !before.contains_key(rank));
        changes.extend(untouched.map(|(rank, one)| (rank, within(edge_now, rank, one))));
        changes.sort_unstable_by_key(|(rank, _)| *rank);
    }
    changes.into_iter().map(|(key, standing)| standing.at(side, key)).collect()
}

/// The worst rank in the window as it was before, found from where the edge is now.
fn earlier_edge(
    live: &Ladder,
    before: &BTreeMap<Rank, Standing>,
    depth: usize,
    edge_now: Rank,
) -> Rank {
    // Levels then, in all and up to today's edge: today's plus those that left less those that
    // came.
    let (mut all, mut inside) = (live.len(), live.len().min(depth));
    for (rank, earlier) in before {
        let step = match (earlier.size > 0, live.contains(*rank)) {
            (true, false) => 1isize,
            (false, true) => -1,
            _ => continue,
        };
        all = all.saturating_add_signed(step);
        if *rank <= edge_now {
            inside = inside.saturating_add_signed(step);
        }
    }
    if all <= depth {
        return WORST;
    }
    // The earlier levels near today's edge: untouched ones from `live`, touched ones from `before`.
    let untouched = |rank: &Rank| !before.contains_key(rank);
    let existed = |(_, earlier): &(&Rank, &Standing)| earlier.size > 0;
    if inside > depth {
        let steps = inside - depth;
        let kept = live.back_from(edge_now).map(|(rank, _)| rank).filter(untouched);
        let left = before.range(..=edge_now).rev().filter(existed).map(|(rank, _)| *rank);
        let mut near: Vec<Rank> = kept.take(steps).chain(left.take(steps)).collect();
        near.sort_unstable_by(|a, b| b.cmp(a));
        // At least one level is better than this one, so its rank is not 0.
        near[steps - 1] - 1
    } else if inside < depth {
        let steps = depth - inside;
        let beyond = edge_now.saturating_add(1);
        let kept = live.from(beyond).map(|(rank, _)| rank).filter(untouched);
        let left = before.range(beyond..).filter(existed).map(|(rank, _)| *rank);
        let mut near: Vec<Rank> = kept.take(steps).chain(left.take(steps)).collect();
        near.sort_unstable();
        near[steps - 1]
    } else {
        edge_now
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change(side: Side, price: Fixed, size: Fixed) -> LevelChange {
        LevelChange { side, price, size, orders: 0 }
    }

    /// Price and size.
    type Pair = (Fixed, Fixed);

    fn pairs(levels: &[Level]) -> Vec<Pair> {
        levels.iter().map(|level| (level.price, level.size)).collect()
    }

    /// The slow way, sharing nothing with the book: plain sorted vectors.
    #[derive(Clone, Default, Debug, PartialEq)]
    struct Naive {
        bids: Vec<Pair>,
        asks: Vec<Pair>,
    }

    impl Naive {
        fn set(&mut self, side: Side, price: Fixed, size: Fixed) {
            let levels = if side == Side::Buy { &mut self.bids } else { &mut self.asks };
            levels.retain(|level| level.0 != price);
            if size > 0 {
                levels.push((price, size));
            }
            levels.sort_unstable();
            if side == Side::Buy {
                levels.reverse();
            }
        }

        fn top(&self, depth: usize) -> Self {
            let cut = |levels: &[Pair]| levels.iter().take(depth).copied().collect();
            Self { bids: cut(&self.bids), asks: cut(&self.asks) }
        }

        fn follow(&mut self, changes: &Changes) {
            for (side, levels) in [(Side::Buy, &changes.bids), (Side::Sell, &changes.asks)] {
                for level in levels {
                    self.set(side, level.price, level.size);
                }
            }
        }
    }

    fn levels() -> impl Strategy<Value = Vec<LevelChange>> {
        let side = prop_oneof![Just(Side::Buy), Just(Side::Sell)];
        let level =
            (side, 0u128..24, 0u128..4).prop_map(|(side, price, size)| change(side, price, size));
        prop::collection::vec(level, 0..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn whoever_applies_the_changes_since_any_past_sequence_holds_the_window(
            events in prop::collection::vec((any::<bool>(), 1u64..4, levels()), 1..40),
            depth in 1usize..14,
            most_touches in 1usize..80,
        ) {
            let mut book = Book::with_journal(0, most_touches);
            let mut naive = Naive::default();
            let mut past = vec![(0, naive.clone())];
            for (replace, step, levels) in events {
                let sequence = book.sequence() + step;
                if replace && levels.len() > 3 {
                    naive = Naive::default();
                    book.replace(sequence, &levels);
                } else {
                    book.apply(sequence, &levels);
                }
                for level in &levels {
                    naive.set(level.side, level.price, level.size);
                }
                past.push((sequence, naive.clone()));
                for (index, (from, then)) in past.iter().enumerate() {
                    let changes = book.changes_since(*from, depth);
                    prop_assert_eq!(changes.is_some(), *from >= book.floor());
                    prop_assert_eq!(changes.is_some(), book.stood_at(*from));
                    let Some(changes) = changes else { continue };
                    prop_assert_eq!(changes.events as usize, past.len() - 1 - index);
                    let mut client = then.top(depth);
                    let unchanged = client == naive.top(depth);
                    client.follow(&changes);
                    prop_assert_eq!(&client, &naive.top(depth));
                    prop_assert_eq!(changes.is_empty(), unchanged);
                }
            }
            for lost in 0..=book.sequence() + 1 {
                let was = lost >= book.floor() && past.iter().any(|(one, _)| *one == lost);
                prop_assert_eq!(book.stood_at(lost), was);
            }
            prop_assert!(book.touches.len() <= most_touches);
            prop_assert_eq!(book.changes_since(book.sequence() + 1, depth), None);
        }

        #[test]
        fn a_checkpoint_holds_the_book(events in prop::collection::vec(levels(), 1..20)) {
            let mut book = Book::default();
            for (index, levels) in events.iter().enumerate() {
                book.apply(index as u64 + 1, levels);
            }
            let restored = Book::from_checkpoint(&book.to_checkpoint(), 9).unwrap();
            prop_assert!(restored.bids.iter().eq(book.bids.iter()));
            prop_assert!(restored.asks.iter().eq(book.asks.iter()));
            prop_assert_eq!((restored.sequence(), restored.floor()), (book.sequence(), book.sequence()));
            prop_assert_eq!(restored.most_touches, 9);
        }

        #[test]
        fn a_state_with_its_journal_tells_what_the_book_tells_as_far_as_it_reaches(
            events in prop::collection::vec(levels(), 1..30),
            journal in 0usize..40,
            depth in 1usize..9,
        ) {
            let mut book = Book::default();
            for (index, levels) in events.iter().enumerate() {
                book.apply(index as u64 + 1, levels);
            }
            let state = book.state(journal);
            let mut restored = Book::from_checkpoint(&state.to_bytes(), 100).unwrap();
            prop_assert!(restored.events.len() <= journal && restored.touches.len() <= journal);
            for more in 0..2 {
                for from in 0..=book.sequence() {
                    let told = restored.changes_since(from, depth);
                    prop_assert_eq!(told.is_some(), from >= restored.floor());
                    if told.is_some() {
                        prop_assert_eq!(told, book.changes_since(from, depth));
                    }
                }
                let next = book.sequence() + 1;
                for one in [&mut book, &mut restored] {
                    one.apply(next, &[change(Side::Buy, 3, more)]);
                }
            }
        }
    }

    #[test]
    fn a_level_that_others_push_out_of_the_window_is_told_and_so_is_its_return() {
        let mut book = Book::default();
        book.apply(1, &[change(Side::Sell, 10, 1), change(Side::Sell, 11, 1)]);
        book.apply(2, &[change(Side::Sell, 9, 5)]);
        assert_eq!(pairs(&book.changes_since(1, 2).unwrap().asks), [(9, 5), (11, 0)]);
        book.apply(3, &[change(Side::Sell, 9, 0)]);
        assert_eq!(pairs(&book.changes_since(2, 2).unwrap().asks), [(9, 0), (11, 1)]);
        assert!(book.changes_since(1, 2).unwrap().is_empty());
    }

    #[test]
    fn a_level_whose_orders_alone_changed_is_told_and_survives_a_checkpoint() {
        let orders = |orders| LevelChange { orders, ..change(Side::Buy, 7, 10) };
        let mut book = Book::default();
        book.apply(1, &[orders(1), change(Side::Sell, 9, 1)]);
        book.apply(2, &[orders(2)]);
        let changes = book.changes_since(1, 5).unwrap();
        assert_eq!(changes.bids, [Level { price: 7, size: 10, orders: 2 }]);
        assert!(changes.asks.is_empty());
        let restored = Book::from_checkpoint(&book.to_checkpoint(), 9).unwrap();
        assert_eq!(restored.best(), book.best());
        book.apply(3, &[change(Side::Buy, 7, 0)]);
        let gone = Level { price: 7, size: 0, orders: 0 };
        assert_eq!(book.changes_since(2, 5).unwrap().bids, [gone]);
    }

    #[test]
    fn removing_an_unknown_level_changes_nothing_but_counts() {
        let mut book = Book::default();
        book.apply(4, &[change(Side::Buy, 7, 0)]);
        let changes = book.changes_since(0, 5).unwrap();
        assert_eq!((changes.events, changes.is_empty(), book.touches.len()), (1, true, 0));
    }

    #[test]
    fn a_replacement_larger_than_the_journal_leaves_no_false_reach() {
        let mut book = Book::with_journal(0, 3);
        let levels: Vec<_> = (1..=5).map(|price| change(Side::Buy, price, 1)).collect();
        book.replace(6, &levels);
        assert_eq!((book.floor(), book.changes_since(0, 5)), (6, None));
        assert!(book.changes_since(6, 5).unwrap().is_empty());
    }

    #[test]
    fn events_that_leave_the_journal_take_the_floor_along_even_if_they_touched_nothing() {
        let mut book = Book::default();
        let all = JOURNAL_TOUCHES as u64 + 5;
        (1..=all).for_each(|sequence| book.apply(sequence, &[]));
        assert_eq!((book.floor(), book.changes_since(4, 1)), (5, None));
        assert_eq!(book.changes_since(5, 1).unwrap().events as usize, JOURNAL_TOUCHES);
    }

    #[test]
    fn bytes_that_are_no_checkpoint_are_refused() {
        assert!(Book::from_checkpoint(b"{}", 9).is_err());
        assert!(
            Book::from_checkpoint(br#"{"sequence":1,"bids":[["x","1"]],"asks":[]}"#, 9).is_err()
        );
        for (floor, events, whole) in [(3, "[4,5]", true), (3, "[5,4]", false), (4, "[4]", false)] {
            let journal = format!(r#"{{"floor":{floor},"events":{events},"touches":[]}}"#);
            let text = format!(r#"{{"sequence":5,"bids":[],"asks":[],"journal":{journal}}}"#);
            assert_eq!(Book::from_checkpoint(text.as_bytes(), 9).is_ok(), whole, "{text}");
        }
    }
}
