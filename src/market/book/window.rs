//! What changed in a window, the best levels of one side, between two moments.

use crate::market::ladder::Ladder;
use crate::market::levels::{Level, LevelState, PriceKey, Side, WORST};

/// A level that an event touched.
#[derive(Clone, Copy, Debug)]
struct Touched {
    key: PriceKey,
    then: LevelState,
    now: LevelState,
}

/// The levels of one side that were touched since a moment. The changes of a window follow from
/// them and from the side as it is now, at the cost of the window and not of all that was touched.
#[derive(Debug)]
pub(super) struct TouchedLevels {
    /// Best first.
    levels: Vec<Touched>,
    /// Of the whole side, how many levels there were then.
    levels_then: usize,
}

impl TouchedLevels {
    /// `touches`: what each level was before an event touched it, the newest first.
    pub(super) fn new(live: &Ladder, touches: Vec<(PriceKey, LevelState)>) -> Self {
        let mut levels: Vec<Touched> = touches
            .into_iter()
            // The oldest state of a level stays.
            .rev()
            .map(|(key, then)| Touched { key, then, now: LevelState::NONE })
            .collect();
        levels.sort_by_key(|one| one.key);
        levels.dedup_by_key(|one| one.key);
        for one in &mut levels {
            one.now = live.get(one.key).unwrap_or(LevelState::NONE);
        }
        let levels_then = levels.iter().map(Touched::left).sum();
        let levels_then = live.len().saturating_add_signed(levels_then);
        Self { levels, levels_then }
    }

    /// Those up to a key.
    fn until(&self, key: PriceKey) -> &[Touched] {
        &self.levels[..self.levels.partition_point(|one| one.key <= key)]
    }

    fn contains(&self, key: PriceKey) -> bool {
        self.levels.binary_search_by_key(&key, |one| one.key).is_ok()
    }
}

impl Touched {
    /// 1 if it left the side, -1 if it came.
    fn left(&self) -> isize {
        match (self.then.size > 0, self.now.size > 0) {
            (true, false) => 1,
            (false, true) => -1,
            _ => 0,
        }
    }
}

/// What changed among the best `depth` levels of one side, best first. `live` is the side now.
///
/// Only the edges of the two windows are looked for. Beyond both nothing matters, within both only
/// touched levels differ, and between them untouched levels were pushed out or let in.
pub(super) fn window_changes(
    side: Side,
    live: &Ladder,
    touched: &TouchedLevels,
    depth: usize,
) -> Vec<Level> {
    if touched.levels.is_empty() {
        return Vec::new();
    }
    let edge_now = match live.len() > depth {
        true => live.key_at(depth - 1).unwrap_or(WORST),
        false => WORST,
    };
    let edge_then = earlier_edge(live, touched, depth, edge_now);
    let within = |edge: PriceKey, key: PriceKey, one: LevelState| {
        if key <= edge { one } else { LevelState::NONE }
    };
    let (inner, outer) = (edge_now.min(edge_then), edge_now.max(edge_then));
    let mut changes: Vec<(PriceKey, LevelState)> = touched
        .until(outer)
        .iter()
        .filter_map(|one| {
            let now = within(edge_now, one.key, one.now);
            (within(edge_then, one.key, one.then) != now).then_some((one.key, now))
        })
        .collect();
    if inner < outer {
        let between = live.from(inner + 1).take_while(|(key, _)| *key <= outer);
        let untouched = between.filter(|(key, _)| !touched.contains(*key));
        changes.extend(untouched.map(|(key, one)| (key, within(edge_now, key, one))));
        changes.sort_unstable_by_key(|(key, _)| *key);
    }
    changes.into_iter().map(|(key, state)| state.at(side, key)).collect()
}

/// The worst key in the window as it was before, found from where the edge is now.
fn earlier_edge(
    live: &Ladder,
    touched: &TouchedLevels,
    depth: usize,
    edge_now: PriceKey,
) -> PriceKey {
    if touched.levels_then <= depth {
        return WORST;
    }
    // Levels then, up to today's edge: today's plus those that left less those that came.
    let (near, beyond) = touched.levels.split_at(touched.until(edge_now).len());
    let left: isize = near.iter().map(Touched::left).sum();
    let inside = live.len().min(depth).saturating_add_signed(left);
    // The earlier levels near today's edge: untouched ones from `live`, and touched ones.
    let untouched = |key: &PriceKey| !touched.contains(*key);
    let existed = |one: &&Touched| one.then.size > 0;
    if inside > depth {
        let steps = inside - depth;
        let kept = live.back_from(edge_now).map(|(key, _)| key).filter(untouched);
        let left = near.iter().rev().filter(existed).map(|one| one.key);
        let mut near: Vec<PriceKey> = kept.take(steps).chain(left.take(steps)).collect();
        near.sort_unstable_by(|a, b| b.cmp(a));
        // At least one level is better than this one, so its key is not 0.
        near[steps - 1] - 1
    } else if inside < depth {
        let steps = depth - inside;
        let kept = live.from(edge_now.saturating_add(1)).map(|(key, _)| key).filter(untouched);
        let left = beyond.iter().filter(existed).map(|one| one.key);
        let mut near: Vec<PriceKey> = kept.take(steps).chain(left.take(steps)).collect();
        near.sort_unstable();
        near[steps - 1]
    } else {
        edge_now
    }
}
