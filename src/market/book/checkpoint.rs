//! A book as bytes: all its levels, and the newest part of its journal.

use serde::{Deserialize, Serialize};

use super::Book;
use super::journal::Touch;
use crate::market::ladder::TopLevels;
use crate::market::levels::{Level, LevelState, Side, price_key};

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
    journal: Option<JournalCheckpoint>,
}

/// The newest part of a book's journal as a checkpoint holds it.
#[derive(Serialize, Deserialize)]
struct JournalCheckpoint {
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

/// Why bytes are not a readable checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("the checkpoint is not readable: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the checkpoint holds a level that is not a whole number")]
    Level(#[from] std::num::ParseIntError),
    #[error("the checkpoint holds a level without a size")]
    Empty,
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
            let (Touch { sequence, key, side, .. }, before) = (*touch, touch.before());
            (
                sequence,
                side,
                price_key(side, key).to_string(),
                before.size.to_string(),
                before.orders,
            )
        };
        let journal = (self.floor < self.sequence).then(|| JournalCheckpoint {
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
    /// The levels and the sequence, without the journal: a restored book knows the changes
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
            touches: self.touches.after(floor).copied().collect(),
        }
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
                let state = LevelState { size: size.parse()?, orders };
                if state.size == 0 {
                    return Err(CheckpointError::Empty);
                }
                levels.insert(price_key(side, price.parse()?), state);
            }
        }
        if let Some(journal) = checkpoint.journal {
            book.take_journal(journal)?;
        }
        Ok(book)
    }

    fn take_journal(&mut self, journal: JournalCheckpoint) -> Result<(), CheckpointError> {
        let JournalCheckpoint { floor, events, touches } = journal;
        let within = |sequence: u64| floor < sequence && sequence <= self.sequence;
        let ordered = floor <= self.sequence
            && events.is_sorted_by(|one, next| one < next)
            && touches.is_sorted_by_key(|touch| touch.0)
            && events.iter().chain(touches.iter().map(|touch| &touch.0)).all(|one| within(*one));
        if !ordered {
            return Err(CheckpointError::Journal);
        }
        self.events = events.into();
        for (sequence, side, price, size, orders) in touches {
            let before = LevelState { size: size.parse()?, orders };
            self.touches.push(Touch::new(sequence, side, price_key(side, price.parse()?), before));
        }
        self.floor = floor;
        self.forget();
        Ok(())
    }
}
