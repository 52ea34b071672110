//! How many partitions of Kafka a hub reads, where several hubs share a log: as many as each other
//! hub, or one more. Hubs need not agree on it at one moment: a partition always has one reader,
//! whatever two of them take for their share.

/// A hub gives up what is beyond its share once it saw so at this many looks, about a second apart.
/// So one that comes and goes moves nothing.
pub(super) const LOOKS_BEFORE_GIVING_UP: u32 = 3;

/// A hub that can read the partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claimer {
    pub(super) reader: i64,
    /// Partitions that it reads.
    pub(super) held: usize,
}

/// What one hub does about its share.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Looks, one after the other, at which it had more than its share.
    looks_beyond: u32,
}

/// What a hub has to do now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Partitions without a reader that it may take, at most.
    pub(super) takes: usize,
    /// Partitions that it leaves to others.
    pub(super) gives_up: usize,
}

/// How many of the partitions are a hub's. Where they can't be divided, those that read the most
/// have one more: then the fewest move.
fn part(partitions: usize, own: Claimer, all: &[Claimer]) -> usize {
    let hubs = all.len().max(1);
    let before = |other: &&Claimer| {
        other.held > own.held || (other.held == own.held && other.reader < own.reader)
    };
    let rank = all.iter().filter(before).count();
    partitions / hubs + usize::from(rank < partitions % hubs)
}

impl Share {
    /// `all` has `own` too.
    pub(super) fn look(&mut self, partitions: usize, own: Claimer, all: &[Claimer]) -> Step {
        let part = part(partitions, own, all);
        if own.held <= part {
            self.looks_beyond = 0;
            return Step { takes: part - own.held, gives_up: 0 };
        }
        self.looks_beyond += 1;
        if self.looks_beyond < LOOKS_BEFORE_GIVING_UP {
            return Step::default();
        }
        self.looks_beyond = 0;
        Step { takes: 0, gives_up: own.held - part }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::seq::SliceRandom as _;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    /// Partitions and their readers, as the database has them.
    struct Table {
        readers: Vec<Option<i64>>,
        hubs: Vec<(i64, Share)>,
        /// Times that a partition got another reader than before.
        moves: usize,
        before: Vec<Option<i64>>,
    }

    impl Table {
        fn new(partitions: usize) -> Self {
            let none = vec![None; partitions];
            Self { readers: none.clone(), hubs: Vec::new(), moves: 0, before: none }
        }

        fn held(&self, reader: i64) -> usize {
            self.readers.iter().filter(|own| **own == Some(reader)).count()
        }

        /// Each hub looks once, in any order.
        fn round(&mut self, random: &mut SmallRng) {
            let mut order: Vec<_> = (0..self.hubs.len()).collect();
            order.shuffle(random);
            for hub in order {
                let claimer = |(reader, _): &(i64, Share)| Claimer {
                    reader: *reader,
                    held: self.held(*reader),
                };
                let all: Vec<_> = self.hubs.iter().map(claimer).collect();
                let partitions = self.readers.len();
                let (reader, share) = &mut self.hubs[hub];
                let reader = *reader;
                let Step { takes, gives_up } = share.look(partitions, all[hub], &all);
                let own = self.readers.iter_mut().rev().filter(|own| **own == Some(reader));
                own.take(gives_up).for_each(|own| *own = None);
                let free: Vec<_> =
                    (0..partitions).filter(|at| self.readers[*at].is_none()).collect();
                for at in free.into_iter().take(takes) {
                    self.readers[at] = Some(reader);
                    self.moves += usize::from(self.before[at].is_some_and(|old| old != reader));
                    self.before[at] = Some(reader);
                }
            }
        }

        fn come(&mut self, reader: i64) {
            self.hubs.push((reader, Share::default()));
        }

        fn go(&mut self, at: usize) -> i64 {
            let (gone, _) = self.hubs.remove(at);
            let own = self.readers.iter_mut().filter(|own| **own == Some(gone));
            own.for_each(|own| *own = None);
            gone
        }

        /// Until nothing moves any more.
        fn settle(&mut self, random: &mut SmallRng) {
            for _ in 0..4 * LOOKS_BEFORE_GIVING_UP {
                self.round(random);
            }
        }
    }

    #[test]
    fn every_partition_has_a_reader_hubs_read_alike_and_nothing_moves_without_need() {
        for seed in 0..500 {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut table = Table::new(random.random_range(1..40));
            let partitions = table.readers.len();
            let mut next = 0;
            for _ in 0..12 {
                let before = table.moves;
                let most = if table.hubs.is_empty() || random.random_bool(0.6) {
                    next += 1;
                    table.come(random.random_range(0..1 << 40) * 100 + next);
                    partitions.div_ceil(table.hubs.len())
                } else {
                    let at = random.random_range(0..table.hubs.len());
                    let lost = table.held(table.hubs[at].0);
                    table.go(at);
                    lost
                };
                table.settle(&mut random);
                let moved = table.moves - before;
                assert!(moved <= most, "{seed}: {moved} partitions moved, {most} had to at most");
                if table.hubs.is_empty() {
                    continue;
                }
                assert!(table.readers.iter().all(Option::is_some), "{seed}: one has no reader");
                let held: Vec<_> = table.hubs.iter().map(|(one, _)| table.held(*one)).collect();
                let (least, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
                assert!(most - least <= 1, "{seed}: {held:?}");
                let settled = table.moves;
                table.settle(&mut random);
                assert_eq!(table.moves, settled, "{seed}: partitions moved on without a reason");
            }
        }
    }

    #[test]
    fn a_hub_that_comes_and_goes_before_it_was_seen_often_enough_moves_nothing() {
        let mut random = SmallRng::seed_from_u64(1);
        let mut table = Table::new(8);
        table.come(1);
        table.settle(&mut random);
        for visitor in 2..50 {
            table.come(visitor);
            for _ in 1..LOOKS_BEFORE_GIVING_UP {
                table.round(&mut random);
            }
            table.go(1);
            table.round(&mut random);
            assert_eq!((table.moves, table.held(1)), (0, 8));
        }
    }
}
