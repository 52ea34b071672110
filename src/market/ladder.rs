//! The price levels of one side of a book, best first, in blocks that are shared. Taking the best
//! ones out costs a reference for each block and no copy of a level, so it can be done under a lock
//! that an event waits for; they are read after it is given back. The next change of a block that
//! somebody still has copies that block alone.

use std::sync::Arc;

use super::book::{Level, Rank, Standing};
use super::event::Side;

/// Levels of a block at most: 3 KiB, which a change of a shared block copies. Fewer make more
/// blocks, each of which costs a reader a reference.
const BLOCK: usize = 64;
/// A block that has become smaller joins its neighbour, where both together leave room for more.
const SMALL: usize = BLOCK / 4;
const JOINED: usize = BLOCK * 3 / 4;

type Entry = (Rank, Standing);

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

    pub(super) fn get(&self, rank: Rank) -> Option<Standing> {
        let block = self.blocks.get(self.block_of(rank))?;
        let place = place(block, rank).ok()?;
        Some(block[place].1)
    }

    pub(super) fn contains(&self, rank: Rank) -> bool {
        self.get(rank).is_some()
    }

    /// What stood there before.
    pub(super) fn insert(&mut self, rank: Rank, now: Standing) -> Option<Standing> {
        let at = self.block_of(rank);
        let Some(shared) = self.blocks.get_mut(at) else {
            self.blocks.push(Arc::new(vec![(rank, now)]));
            self.levels = 1;
            return None;
        };
        let place = match place(shared, rank) {
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
            block.insert(place, (rank, now));
            return None;
        }
        let mut second = Vec::with_capacity(BLOCK);
        if place == BLOCK {
            // Levels that come in their order fill each block.
            second.push((rank, now));
        } else {
            let first = Arc::make_mut(shared);
            second.extend(first.drain(BLOCK / 2..));
            match place.checked_sub(first.len()) {
                Some(place) => second.insert(place, (rank, now)),
                None => first.insert(place, (rank, now)),
            }
        }
        self.blocks.insert(at + 1, Arc::new(second));
        None
    }

    /// What stood there.
    pub(super) fn remove(&mut self, rank: Rank) -> Option<Standing> {
        let at = self.block_of(rank);
        let shared = self.blocks.get_mut(at)?;
        let place = place(shared, rank).ok()?;
        let block = Arc::make_mut(shared);
        let (_, stood) = block.remove(place);
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
        Some(stood)
    }

    /// Best first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Entry> + Clone {
        self.blocks.iter().flat_map(|block| block.iter().copied())
    }

    /// The rank at this place, where 0 is the best.
    pub(super) fn rank_at(&self, mut place: usize) -> Option<Rank> {
        for block in &self.blocks {
            if let Some((rank, _)) = block.get(place) {
                return Some(*rank);
            }
            place -= block.len();
        }
        None
    }

    /// Those of this rank and worse ones, best first.
    pub(super) fn from(&self, rank: Rank) -> impl Iterator<Item = Entry> {
        let at = self.block_of(rank);
        let begins =
            self.blocks.get(at).map_or(0, |block| place(block, rank).unwrap_or_else(|at| at));
        self.blocks.iter().skip(at).flat_map(|block| block.iter().copied()).skip(begins)
    }

    /// Those of this rank and better ones, worst first.
    pub(super) fn back_from(&self, rank: Rank) -> impl Iterator<Item = Entry> {
        let blocks = &self.blocks[..self.blocks.len().min(self.block_of(rank) + 1)];
        let entries = blocks.iter().rev().flat_map(|block| block.iter().rev().copied());
        entries.skip_while(move |(one, _)| *one > rank)
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

    /// The block that has this rank if any has it.
    fn block_of(&self, rank: Rank) -> usize {
        self.blocks.partition_point(|block| block[0].0 <= rank).saturating_sub(1)
    }
}

fn place(block: &[Entry], rank: Rank) -> Result<usize, usize> {
    block.binary_search_by_key(&rank, |(one, _)| *one)
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
        entries.map(|(rank, standing)| standing.at(self.side, *rank))
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

    fn standing(size: u128) -> Standing {
        Standing { size, orders: 0 }
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
                let rank = Rank::from(random.random_range(0..range));
                // It grows, then shrinks until it is nearly empty.
                if random.random_ratio(if step < 1_500 { 3 } else { 1 }, 8) {
                    let size = random.random_range(1..9);
                    prop_assert_eq!(ladder.insert(rank, standing(size)), map.insert(rank, standing(size)));
                } else if step < 1_500 {
                    prop_assert_eq!(ladder.remove(rank), map.remove(&rank));
                } else if let Some(first) = map.range(rank..).next().map(|(first, _)| *first) {
                    prop_assert_eq!(ladder.remove(first), map.remove(&first));
                }
                sound(&ladder);
                if step % 100 == 0 {
                    let most = random.random_range(0..2_000);
                    let now: Vec<_> = map.iter().take(most)
                        .map(|(rank, standing)| standing.at(Side::Buy, *rank)).collect();
                    taken.push((ladder.top(Side::Buy, most), now));
                    prop_assert!(ladder.iter().eq(map.iter().map(|(rank, one)| (*rank, *one))));
                    prop_assert!(ladder.from(rank).eq(map.range(rank..).map(|(rank, one)| (*rank, *one))));
                    prop_assert!(ladder.back_from(rank)
                        .eq(map.range(..=rank).rev().map(|(rank, one)| (*rank, *one))));
                    let place = random.random_range(0..map.len() + 2);
                    prop_assert_eq!(ladder.rank_at(place), map.keys().nth(place).copied());
                    prop_assert_eq!(ladder.get(rank), map.get(&rank).copied());
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
        for rank in 0..1_000 {
            ladder.insert(rank, standing(1));
        }
        assert_eq!(ladder.blocks.len(), 1_000_usize.div_ceil(BLOCK));
    }

    #[test]
    fn a_change_copies_no_block_but_its_own() {
        let mut ladder = Ladder::default();
        for rank in 0..1_000 {
            ladder.insert(rank, standing(1));
        }
        let top = ladder.top(Side::Sell, 300);
        assert_eq!(top.blocks.len(), 300_usize.div_ceil(BLOCK));
        ladder.insert(100, standing(2));
        let shared = |at: usize| Arc::ptr_eq(&top.blocks[at], &ladder.blocks[at]);
        let copied: Vec<_> = (0..top.blocks.len()).filter(|at| !shared(*at)).collect();
        assert_eq!(copied, [100 / BLOCK]);
    }
}
