//! What levels were before events changed them: the journal of a book, oldest first, in blocks.

use std::collections::VecDeque;

use crate::market::fixed::Fixed;
use crate::market::levels::{LevelState, PriceKey, Side};

/// Touches of a block: just under 16 KiB, a size that the allocator wastes nothing for. In one
/// piece a journal would be copied each time that it doubles, into memory that is all new: in a hub
/// that reads a log from its start that is a third of what changing the books costs.
const BLOCK: usize = 340;

/// What one level was before one event changed it. Packed, as a hub has millions of these.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(Rust, packed(8))]
pub(super) struct Touch {
    pub(super) sequence: u64,
    pub(super) key: PriceKey,
    size: Fixed,
    orders: u32,
    pub(super) side: Side,
}

const _: () = assert!(size_of::<Touch>() == 48, "what a journal's limit says of memory");

impl Touch {
    pub(super) fn new(sequence: u64, side: Side, key: PriceKey, before: LevelState) -> Self {
        Self { sequence, key, size: before.size, orders: before.orders, side }
    }

    pub(super) fn before(self) -> LevelState {
        LevelState { size: self.size, orders: self.orders }
    }
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(super) struct Touches {
    /// All are full but for the last.
    blocks: VecDeque<Vec<Touch>>,
    /// Of the first block, how many have left.
    left: usize,
}

impl Touches {
    pub(super) fn len(&self) -> usize {
        match self.blocks.back() {
            Some(last) => (self.blocks.len() - 1) * BLOCK + last.len() - self.left,
            None => 0,
        }
    }

    /// After all others; sequences rise, equal within one event.
    pub(super) fn push(&mut self, touch: Touch) {
        match self.blocks.back_mut().filter(|last| last.len() < BLOCK) {
            Some(last) => last.push(touch),
            None => {
                let mut block = Vec::with_capacity(BLOCK);
                block.push(touch);
                self.blocks.push_back(block);
            }
        }
    }

    /// The oldest one leaves.
    pub(super) fn pop(&mut self) -> Option<Touch> {
        let touch = *self.blocks.front()?.get(self.left)?;
        self.left += 1;
        if self.left == BLOCK {
            self.blocks.pop_front();
            self.left = 0;
        }
        Some(touch)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// By its place among all, the oldest first.
    pub(super) fn get(&self, place: usize) -> Option<&Touch> {
        let place = self.left + place;
        self.blocks.get(place / BLOCK)?.get(place % BLOCK)
    }

    /// Those after this sequence, the newest first.
    pub(super) fn newest_after(&self, sequence: u64) -> impl Iterator<Item = &Touch> {
        let all = self.blocks.iter().rev().flat_map(|block| block.iter().rev());
        all.take(self.len()).take_while(move |touch| touch.sequence > sequence)
    }

    /// Those after this sequence, the oldest first.
    pub(super) fn after(&self, sequence: u64) -> impl Iterator<Item = &Touch> {
        let begin = self.len() - self.newest_after(sequence).count();
        (begin..self.len()).filter_map(|place| self.get(place))
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    #[test]
    fn blocks_hold_what_one_queue_holds() {
        let mut random = StdRng::seed_from_u64(1);
        let (mut touches, mut model) = (Touches::default(), VecDeque::new());
        let mut crossed = 0;
        for sequence in 1..=6_000 {
            for key in 0..random.random_range(0..3u128) {
                let touch = Touch::new(sequence, Side::Buy, key, LevelState::default());
                touches.push(touch);
                model.push_back(touch);
            }
            for _ in 0..random.random_range(0..if sequence < 3_000 { 2 } else { 5 }) {
                assert_eq!(touches.pop(), model.pop_front());
            }
            assert_eq!(touches.len(), model.len());
            crossed += usize::from(touches.blocks.len() > 3);
            let after = sequence.saturating_sub(random.random_range(0..900));
            let newer: Vec<_> = model.iter().filter(|one| one.sequence > after).collect();
            assert!(touches.after(after).eq(newer.iter().copied()));
            assert!(touches.newest_after(after).eq(newer.iter().rev().copied()));
            let place = random.random_range(0..=model.len());
            assert_eq!(touches.get(place), model.get(place));
        }
        assert!(crossed > 1_000, "{crossed}");
        touches.clear();
        assert_eq!((touches.len(), touches.pop(), touches.get(0)), (0, None, None));
    }
}
