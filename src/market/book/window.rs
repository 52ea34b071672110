//! What changed in a window, the best levels of one side, between two moments.

use std::collections::BTreeMap;

use crate::market::ladder::Ladder;
use crate::market::levels::{Level, LevelState, PriceKey, Side, WORST};

/// What changed among the best `depth` levels of one side. `live` is the side now; `before` has
/// the earlier state of each level that was touched since.
///
/// Only the edges of the two windows are looked for. Beyond both nothing matters, within both only
/// touched levels differ, and between them untouched levels were pushed out or let in.
pub(super) fn window_changes(
    side: Side,
    live: &Ladder,
    before: &BTreeMap<PriceKey, LevelState>,
    depth: usize,
) -> Vec<Level> {
    if before.is_empty() {
        return Vec::new();
    }
    let edge_now = match live.len() > depth {
        true => live.key_at(depth - 1).unwrap_or(WORST),
        false => WORST,
    };
    let edge_then = earlier_edge(live, before, depth, edge_now);
    let within = |edge: PriceKey, key: PriceKey, one: LevelState| {
        if key <= edge { one } else { LevelState::NONE }
    };
    let mut changes: Vec<(PriceKey, LevelState)> = Vec::with_capacity(before.len());
    for (key, earlier) in before {
        let now = within(edge_now, *key, live.get(*key).unwrap_or(LevelState::NONE));
        if within(edge_then, *key, *earlier) != now {
            changes.push((*key, now));
        }
    }
    let (inner, outer) = (edge_now.min(edge_then), edge_now.max(edge_then));
    if inner < outer {
        let between = live.from(inner + 1).take_while(|(key, _)| *key <= outer);
        let untouched = between.filter(|(key, _)| !before.contains_key(key));
        changes.extend(untouched.map(|(key, one)| (key, within(edge_now, key, one))));
        changes.sort_unstable_by_key(|(key, _)| *key);
    }
    changes.into_iter().map(|(key, state)| state.at(side, key)).collect()
}

/// The worst key in the window as it was before, found from where the edge is now.
fn earlier_edge(
    live: &Ladder,
    before: &BTreeMap<PriceKey, LevelState>,
    depth: usize,
    edge_now: PriceKey,
) -> PriceKey {
    // Levels then, in all and up to today's edge: today's plus those that left less those that
    // came.
    let (mut all, mut inside) = (live.len(), live.len().min(depth));
    for (key, earlier) in before {
        let step = match (earlier.size > 0, live.contains(*key)) {
            (true, false) => 1isize,
            (false, true) => -1,
            _ => continue,
        };
        all = all.saturating_add_signed(step);
        if *key <= edge_now {
            inside = inside.saturating_add_signed(step);
        }
    }
    if all <= depth {
        return WORST;
    }
    // The earlier levels near today's edge: untouched ones from `live`, touched ones from `before`.
    let untouched = |key: &PriceKey| !before.contains_key(key);
    let existed = |(_, earlier): &(&PriceKey, &LevelState)| earlier.size > 0;
    if inside > depth {
        let steps = inside - depth;
        let kept = live.back_from(edge_now).map(|(key, _)| key).filter(untouched);
        let left = before.range(..=edge_now).rev().filter(existed).map(|(key, _)| *key);
        let mut near: Vec<PriceKey> = kept.take(steps).chain(left.take(steps)).collect();
        near.sort_unstable_by(|a, b| b.cmp(a));
        // At least one level is better than this one, so its key is not 0.
        near[steps - 1] - 1
    } else if inside < depth {
        let steps = depth - inside;
        let beyond = edge_now.saturating_add(1);
        let kept = live.from(beyond).map(|(key, _)| key).filter(untouched);
        let left = before.range(beyond..).filter(existed).map(|(key, _)| *key);
        let mut near: Vec<PriceKey> = kept.take(steps).chain(left.take(steps)).collect();
        near.sort_unstable();
        near[steps - 1]
    } else {
        edge_now
    }
}
