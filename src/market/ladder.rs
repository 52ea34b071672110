//! The price levels of one side of a book, best first, in shared blocks. Taking the best ones out
//! costs a reference for each block and no copy of a level. So it can be done under a lock that an
//! event waits for, and the levels are read after the lock is released. A change of a block that a
//! reader still has copies that block alone.

use std::sync::Arc;

use super::levels::{Level, LevelState, PriceKey, Side};

/// Levels of a block at most: 3 KiB, which a change of a shared block copies. Fewer make more
/// blocks, each of which costs a reader a reference.
const BLOCK: usize = 64;
/// A block that has become smaller joins its neighbour, where both together leave room for more.
const SMALL: usize = BLOCK / 4;
const JOINED: usize = BLOCK * 3 / 4;

type Entry = (PriceKey, LevelState);

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(super) struct Ladder {
    /// In order, and none is empty.
    blocks: Vec<Arc<Vec<Entry>>>,
    levels: usize,
}

impl Ladder {
    pub(super) fn len(&self) -> usize {
        self.levels
    }

    pub(super) fn get(&self, key: PriceKey) -> Option<LevelState> {
        let block = self.blocks.get(self.block_of(key))?;
        let place = place(block, key).ok()?;
        Some(block[place].1)
    }

    /// Returns the state before.
    pub(super) fn insert(&mut self, key: PriceKey, now: LevelState) -> Option<LevelState> {
        let at = self.block_of(key);
        let Some(shared) = self.blocks.get_mut(at) else {
            self.blocks.push(Arc::new(vec![(key, now)]));
            self.levels = 1;
            return None;
        };
        let place = match place(shared, key) {
            Ok(place) => {
                return Some(std::mem::replace(&mut Arc::make_mut(shared)[place].1, now));
            }
            Err(place) => place,
        };
        self.levels += 1;
        if shared.len() < BLOCK {
            let block = Arc::make_mut(shared);
            // `make_mut` copies without the room to grow.
            block.reserve_exact(BLOCK - block.len());
            block.insert(place, (key, now));
            return None;
        }
        let mut second = Vec::with_capacity(BLOCK);
        if place == BLOCK {
            // Levels that come in their order fill each block.
            second.push((key, now));
        } else {
            let first = Arc::make_mut(shared);
            second.extend(first.drain(BLOCK / 2..));
            match place.checked_sub(first.len()) {
                Some(place) => second.insert(place, (key, now)),
                None => first.insert(place, (key, now)),
            }
        }
        self.blocks.insert(at + 1, Arc::new(second));
        None
    }

    /// Returns the state before.
    pub(super) fn remove(&mut self, key: PriceKey) -> Option<LevelState> {
        let at = self.block_of(key);
        let shared = self.blocks.get_mut(at)?;
        let place = place(shared, key).ok()?;
        let block = Arc::make_mut(shared);
        let (_, removed) = block.remove(place);
        self.levels -= 1;
        if block.is_empty() {
            self.blocks.remove(at);
        } else if block.len() < SMALL {
            let joins = |other: &usize| self.blocks[*other].len() + self.blocks[at].len() <= JOINED;
            let neighbours =
                [at.checked_sub(1), Some(at + 1).filter(|one| *one < self.blocks.len())];
            if let Some(other) = neighbours.into_iter().flatten().find(joins) {
                let second = self.blocks.remove(at.max(other));
                let first = Arc::make_mut(&mut self.blocks[at.min(other)]);
                first.reserve_exact(BLOCK - first.len());
                first.extend_from_slice(&second);
            }
        }
        Some(removed)
    }

    /// Best first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Entry> + Clone {
        self.blocks.iter().flat_map(|block| block.iter().copied())
    }

    /// The key at this place, where 0 is the best.
    pub(super) fn key_at(&self, mut place: usize) -> Option<PriceKey> {
        for block in &self.blocks {
            if let Some((key, _)) = block.get(place) {
                return Some(*key);
            }
            place -= block.len();
        }
        None
    }

    /// Those of this key and worse ones, best first.
    pub(super) fn from(&self, key: PriceKey) -> impl Iterator<Item = Entry> {
        let at = self.block_of(key);
        let begins =
            self.blocks.get(at).map_or(0, |block| place(block, key).unwrap_or_else(|at| at));
        self.blocks.iter().skip(at).flat_map(|block| block.iter().copied()).skip(begins)
    }

    /// Those of this key and better ones, worst first.
    pub(super) fn back_from(&self, key: PriceKey) -> impl Iterator<Item = Entry> {
        let blocks = &self.blocks[..self.blocks.len().min(self.block_of(key) + 1)];
        let entries = blocks.iter().rev().flat_map(|block| block.iter().rev().copied());
        entries.skip_while(move |(one, _)| *one > key)
    }

    /// The best ones, so many at most.
    pub(super) fn top(&self, side: Side, most: usize) -> TopLevels {
        let mut levels = 0;
        let needed = self.blocks.iter().take_while(|block| {
            let begins = levels;
            levels += block.len();
            begins < most
        });
        let blocks = needed.cloned().collect();
        TopLevels { side, blocks, levels: self.levels.min(most) }
    }

    /// The block that has this key if any has it.
    fn block_of(&self, key: PriceKey) -> usize {
        self.blocks.partition_point(|block| block[0].0 <= key).saturating_sub(1)
    }
}

fn place(block: &[Entry], key: PriceKey) -> Result<usize, usize> {
    block.binary_search_by_key(&key, |(one, _)| *one)
}

/// The best levels of one side as they were at a moment, best first. Cheap to take, to clone and to
/// send to another thread.
#[derive(Clone)]
pub struct TopLevels {
    side: Side,
    blocks: Vec<Arc<Vec<Entry>>>,
    levels: usize,
}

impl TopLevels {
    pub fn len(&self) -> usize {
        self.levels
    }

    pub fn is_empty(&self) -> bool {
        self.levels == 0
    }

    /// Best first.
    pub fn iter(&self) -> impl Iterator<Item = Level> {
        let entries = self.blocks.iter().flat_map(|block| block.iter()).take(self.levels);
        entries.map(|(key, state)| state.at(self.side, *key))
    }

    pub fn best(&self) -> Option<Level> {
        self.iter().next()
    }
}

impl std::fmt::Debug for TopLevels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn state(size: u128) -> LevelState {
        LevelState { size, orders: 0 }
    }

    fn sound(ladder: &Ladder) {
        assert!(ladder.blocks.iter().all(|block| (1..=BLOCK).contains(&block.len())));
        assert_eq!(ladder.levels, ladder.blocks.iter().map(|block| block.len()).sum::<usize>());
    }

    proptest! {
        /// Against an ordered map, with many levels and few, and while others have parts of it.
        #[test]
        fn it_is_an_ordered_map_and_what_was_taken_out_stays(
            seed in any::<u64>(), range in prop_oneof![Just(20_u64), Just(1_000), Just(5_000)],
        ) {
            use rand::{Rng as _, SeedableRng as _};
            let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
            let (mut ladder, mut map) = (Ladder::default(), BTreeMap::new());
            let mut taken = Vec::new();
            for step in 0..3_000_u32 {
                let key = PriceKey::from(random.random_range(0..range));
                // It grows, then shrinks until it is nearly empty.
                if random.random_ratio(if step < 1_500 { 3 } else { 1 }, 8) {
                    let size = random.random_range(1..9);
                    prop_assert_eq!(ladder.insert(key, state(size)), map.insert(key, state(size)));
                } else if step < 1_500 {
                    prop_assert_eq!(ladder.remove(key), map.remove(&key));
                } else if let Some(first) = map.range(key..).next().map(|(first, _)| *first) {
                    prop_assert_eq!(ladder.remove(first), map.remove(&first));
                }
                sound(&ladder);
                if step % 100 == 0 {
                    let most = random.random_range(0..2_000);
                    let now: Vec<_> = map.iter().take(most)
                        .map(|(key, state)| state.at(Side::Buy, *key)).collect();
                    taken.push((ladder.top(Side::Buy, most), now));
                    prop_assert!(ladder.iter().eq(map.iter().map(|(key, one)| (*key, *one))));
                    prop_assert!(ladder.from(key).eq(map.range(key..).map(|(key, one)| (*key, *one))));
                    prop_assert!(ladder.back_from(key)
                        .eq(map.range(..=key).rev().map(|(key, one)| (*key, *one))));
                    let place = random.random_range(0..map.len() + 2);
                    prop_assert_eq!(ladder.key_at(place), map.keys().nth(place).copied());
                    prop_assert_eq!(ladder.get(key), map.get(&key).copied());
                }
            }
            for (top, was) in taken {
                prop_assert_eq!(top.len(), was.len());
                prop_assert!(top.iter().eq(was));
            }
        }
    }

    #[test]
    fn levels_that_come_in_their_order_fill_each_block() {
        let mut ladder = Ladder::default();
        for key in 0..1_000 {
            ladder.insert(key, state(1));
        }
        assert_eq!(ladder.blocks.len(), 1_000_usize.div_ceil(BLOCK));
    }

    #[test]
    fn a_change_copies_no_block_but_its_own() {
        let mut ladder = Ladder::default();
        for key in 0..1_000 {
            ladder.insert(key, state(1));
        }
        let top = ladder.top(Side::Sell, 300);
        assert_eq!(top.blocks.len(), 300_usize.div_ceil(BLOCK));
        ladder.insert(100, state(2));
        let shared = |at: usize| Arc::ptr_eq(&top.blocks[at], &ladder.blocks[at]);
        let copied: Vec<_> = (0..top.blocks.len()).filter(|at| !shared(*at)).collect();
        assert_eq!(copied, [100 / BLOCK]);
    }
}
