//! Tests of the schedule: its order, its paces and its budgets.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::adapt::CHECK_INTERVAL;
use super::portions::{MOST_PORTIONS, PORTION};
use super::ready_queue::OLDEST_EVERY;
use super::*;
use crate::owners::{EXEMPT, FREE_STREAMS};

const ALONE: Readership = Readership { readers: 1, shared: false };
/// More than any of these tests spends.
const RATE: u32 = 1_000_000;
const MICROS: Duration = Duration::from_micros(1);

fn crowd(readers: usize) -> Readership {
    Readership { readers, shared: true }
}

#[test]
fn the_most_readers_per_cost_go_first_and_equals_by_age() {
    let now = Instant::now();
    let mut schedule = Schedule::new(RATE, now);
    for id in 1..=4 {
        schedule.add(id, Pace::Raw, id, now);
    }
    // The third costs ten times as much as the others.
    for _ in 0..40 {
        schedule.served(3, FIRST_COST_NANOS * 10 * MICROS / 1_000, true, now);
    }
    schedule.ready(1, ALONE);
    schedule.ready(2, crowd(5));
    schedule.ready(3, crowd(20));
    schedule.ready(4, ALONE);
    schedule.ready(2, crowd(1));
    assert_eq!((schedule.waiting(), schedule.blocking()), (4, 4));
    let order: Vec<_> = std::iter::from_fn(|| schedule.pop()).collect();
    assert_eq!(order, [2, 3, 1, 4]);
    assert_eq!((schedule.waiting(), schedule.blocking()), (0, 0));
}

#[test]
fn a_further_stream_of_one_owner_takes_from_that_owner() {
    let now = Instant::now();
    let mut schedule = Schedule::new(RATE, now);
    (1..=100).for_each(|id| schedule.add(id, Pace::Raw, 7, now));
    schedule.add(101, Pace::Raw, 8, now);
    (1..=101).for_each(|id| schedule.ready(id, ALONE));
    assert_eq!(schedule.pop(), Some(101), "though it came last");
    // One that others read as well is not counted to its first owner.
    schedule.remove(50);
    schedule.ready(50, crowd(1));
    schedule.add(50, Pace::Raw, 7, now);
    schedule.ready(50, crowd(1));
    assert_eq!(schedule.pop(), Some(50));
}

#[test]
fn no_stream_starves() {
    let now = Instant::now();
    let mut schedule = Schedule::new(RATE, now);
    (1..=2).for_each(|id| schedule.add(id, Pace::Raw, id, now));
    schedule.ready(1, ALONE);
    let turns = (1..).find(|_| {
        schedule.ready(2, crowd(1_000));
        schedule.pop() == Some(1)
    });
    assert!(turns.is_some_and(|turns| turns <= OLDEST_EVERY));
}

#[test]
fn a_stream_that_waits_is_merged_step_by_step_and_recovers() {
    let begin = Instant::now();
    let mut schedule = Schedule::new(RATE, begin);
    (1..=2).for_each(|id| schedule.add(id, Pace::Raw, id, begin));
    schedule.ready(1, ALONE);
    let (mut now, mut slower) = (begin, Vec::new());
    for _ in 0..400 {
        // All of the time goes to the other one.
        now += MICROS * 10_000;
        schedule.served(2, MICROS * 10_000, true, now);
        slower.extend(schedule.adapt(now).into_iter().map(|paced| (paced.id, paced.pace)));
    }
    assert_eq!(slower, Pace::MERGING.map(|pace| (1, pace)));
    assert!(schedule.is_merged(1) && schedule.is_paced(1));
    assert_eq!((schedule.merged(), schedule.blocking()), ([0, 0, 1], 0));
    assert_eq!(schedule.pop(), Some(1));
    let mut faster = Vec::new();
    for _ in 0..60 {
        now += Duration::from_secs(1);
        schedule.ready(1, ALONE);
        assert_eq!(schedule.pop(), Some(1));
        faster.extend(schedule.adapt(now).into_iter().map(|paced| paced.pace));
    }
    assert_eq!(faster, [Pace::Ms250, Pace::Ms100, Pace::Raw]);
    assert_eq!((schedule.is_merged(1), schedule.merged()), (false, [0; 3]));
}

#[test]
fn at_one_check_256_streams_get_a_slower_pace_at_most_and_16_a_faster_one() {
    let mut now = Instant::now();
    let mut schedule = Schedule::new(RATE, now);
    (0..=300).for_each(|id| schedule.add(id, Pace::Raw, id, now));
    (1..=300).for_each(|id| schedule.ready(id, ALONE));
    let mut changed = Vec::new();
    while changed.iter().sum::<usize>() < 300 {
        // All of the time goes to another one.
        now += MICROS * 30_000;
        schedule.served(0, MICROS * 15_000, true, now);
        changed.extend(Some(schedule.adapt(now).len()).filter(|count| *count > 0));
    }
    assert_eq!(changed, [256, 44]);
    changed.clear();
    while schedule.merged() != [0; 3] {
        now += Duration::from_secs(1);
        (1..=300).for_each(|id| schedule.ready(id, ALONE));
        (1..=300).for_each(|_| assert!(schedule.pop().is_some()));
        changed.extend(Some(schedule.adapt(now).len()).filter(|count| *count > 0));
    }
    assert_eq!(changed.iter().max(), Some(&16), "{changed:?}");
}

#[test]
fn a_stream_that_is_merged_again_and_again_is_held_for_eight_seconds_at_most() {
    let mut now = Instant::now();
    let mut schedule = Schedule::new(RATE, now);
    (1..=2).for_each(|id| schedule.add(id, Pace::Raw, id, now));
    let mut held = Vec::new();
    for _ in 0..6 {
        schedule.ready(1, ALONE);
        while !schedule.is_merged(1) {
            now += MICROS * 30_000;
            schedule.served(2, MICROS * 10_000, true, now);
            schedule.adapt(now);
        }
        assert_eq!(schedule.pop(), Some(1));
        let merged = now;
        while schedule.is_merged(1) {
            now += MICROS * 250_000;
            schedule.ready(1, ALONE);
            assert_eq!(schedule.pop(), Some(1));
            schedule.adapt(now);
        }
        held.push((now - merged).as_secs());
    }
    assert_eq!(held, [1, 2, 4, 8, 8, 8]);
}

#[test]
fn a_thread_that_is_suspended_merges_nothing() {
    let begin = Instant::now();
    let mut schedule = Schedule::new(RATE, begin);
    schedule.add(1, Pace::Raw, 1, begin);
    schedule.ready(1, ALONE);
    assert_eq!(schedule.adapt(begin + Duration::from_secs(60)), []);
}

/// An event each 20 ms touches every stream, and each encoding takes 10 us. Returns what each
/// owner's streams took, in microseconds.
fn run(
    schedule: &mut Schedule,
    now: &mut Instant,
    seconds: u64,
    streams: &BTreeMap<u64, u64>,
) -> BTreeMap<u64, u64> {
    let (begin, mut took) = (*now, BTreeMap::new());
    for millis in 0..seconds * 1_000 {
        *now = begin + MICROS * 1_000 * millis as u32;
        if millis % 20 == 0 {
            let raw = streams.keys().filter(|id| !schedule.is_paced(**id));
            raw.copied().collect::<Vec<_>>().iter().for_each(|id| schedule.ready(*id, ALONE));
        }
        schedule.tick(*now).iter().for_each(|id| schedule.ready(*id, ALONE));
        while let Some(id) = schedule.pop() {
            schedule.served(id, 10 * MICROS, true, *now);
            *took.entry(streams[&id]).or_default() += 10;
        }
        schedule.adapt(*now);
    }
    took
}

fn with_streams(rate: u32, now: Instant, owners: &[(u64, u64)]) -> (Schedule, BTreeMap<u64, u64>) {
    let mut schedule = Schedule::new(rate, now);
    let streams = owners.iter().flat_map(|(owner, count)| (0..*count).map(|_| *owner));
    let streams: BTreeMap<u64, u64> = (1..).zip(streams).collect();
    streams.iter().for_each(|(id, owner)| schedule.add(*id, Pace::Raw, *owner, now));
    (schedule, streams)
}

#[test]
fn an_owner_beyond_its_budget_is_merged_though_there_is_time() {
    let mut now = Instant::now();
    // The first would take 100 ms a second, the second what few streams take.
    let owners = [(1, 200), (2, FREE_STREAMS as u64)];
    let (mut schedule, mut streams) = with_streams(20_000, now, &owners);
    let took = run(&mut schedule, &mut now, 20, &streams);
    // The rate of 20 seconds, and once the burst, which is what a second brings.
    assert!((20 * 7_000..=21 * 20_000).contains(&took[&1]), "{took:?}");
    let each = FREE_STREAMS as u64 * 50 * 10;
    assert_eq!(took[&2] / 20, each, "each event, at any cost");
    let merged =
        |owner| streams.iter().filter(|(id, of)| **of == owner && schedule.is_merged(**id)).count();
    assert!(merged(1) > 100 && merged(2) == 0, "{} {}", merged(1), merged(2));
    // Within its budget it gets its own pace back.
    streams.retain(|id, _| *id <= 20);
    (21..=200).for_each(|id| schedule.remove(id));
    run(&mut schedule, &mut now, 30, &streams);
    let took = run(&mut schedule, &mut now, 1, &streams);
    assert_eq!((took[&1], schedule.merged()), (20 * 50 * 10, [0; 3]));
}

#[test]
fn streams_with_few_readers_together_leave_time_for_the_rest() {
    let mut now = Instant::now();
    // Nobody is beyond a budget of its own, and all of them would take 1.5 s a second.
    let owners: Vec<_> =
        (0..=30).map(|owner| (if owner == 0 { 7 | EXEMPT } else { owner }, 100)).collect();
    let (mut schedule, streams) = with_streams(1_000_000, now, &owners);
    run(&mut schedule, &mut now, 5, &streams);
    let took = run(&mut schedule, &mut now, 15, &streams);
    let all = took.values().sum::<u64>() / 15;
    assert!((200_000..450_000).contains(&all), "{all}");
}

#[test]
fn an_event_waits_for_no_stream_beyond_a_budget() {
    let now = Instant::now();
    let (mut schedule, streams) = with_streams(10, now, &[(1, 17), (2, 1)]);
    schedule.served(1, 12 * MICROS, true, now);
    streams.keys().for_each(|id| schedule.ready(*id, ALONE));
    assert_eq!((schedule.waiting(), schedule.blocking()), (18, 1));
}

#[test]
fn merged_streams_are_served_in_portions_and_each_once_a_period() {
    let begin = Instant::now();
    for count in [1_u64, 63, 64, 100, 2_000] {
        let mut schedule = Schedule::new(RATE, begin);
        (1..=count).for_each(|id| schedule.add(id, Pace::Ms100, id, begin));
        let (mut times, mut largest) = (BTreeMap::<u64, u32>::new(), 0);
        for millis in 0..2_000 {
            let due = schedule.tick(begin + MICROS * 1_000 * millis);
            largest = largest.max(due.len());
            due.iter().for_each(|id| *times.entry(*id).or_default() += 1);
        }
        assert_eq!(times.len() as u64, count);
        assert!(times.values().all(|times| (18..=20).contains(times)), "{count}: {times:?}");
        assert!(largest <= PORTION.max(count as usize / MOST_PORTIONS), "{largest}");
    }
}

#[test]
fn a_pace_that_had_no_streams_for_long_is_kept_from_its_first_portion_on() {
    let begin = Instant::now();
    let mut schedule = Schedule::new(RATE, begin);
    let late = begin + Duration::from_secs(60);
    schedule.add(1, Pace::Ms100, 1, late);
    let due = (0..1_000).filter(|millis| {
        let now = late + MICROS * 1_000 * *millis;
        !schedule.tick(now).is_empty()
    });
    assert_eq!(due.collect::<Vec<_>>(), (0..1_000).step_by(100).collect::<Vec<_>>());
}

/// Streams of one reader and of four, all beyond the budget that they share.
#[test]
fn beyond_a_budget_those_with_the_fewest_readers_give_way_alone() {
    let now = Instant::now();
    let (mut schedule, _) = with_streams(RATE, now, &[(1, 100), (2, 17)]);
    let (alone, fours) = (1..=100, 101..=117);
    // So much is used up that it lasts for the test.
    while schedule.spent < Duration::from_secs(2) {
        schedule.served(1, Duration::from_secs(1), true, now);
    }
    let check = |schedule: &mut Schedule, ids: &[u64], now: Instant| {
        for id in ids {
            let readers = if fours.contains(id) { 4 } else { 1 };
            schedule.ready(*id, Readership { readers, shared: false });
        }
        while let Some(id) = schedule.pop() {
            schedule.served(id, 10 * MICROS, true, now);
        }
        let mut changed: Vec<_> = schedule.adapt(now).iter().map(|one| one.id).collect();
        changed.sort_unstable();
        changed
    };
    let all: Vec<_> = alone.clone().chain(fours.clone()).collect();
    let changed = check(&mut schedule, &all, now + CHECK_INTERVAL);
    assert_eq!(changed, alone.collect::<Vec<_>>(), "at first all that are read alone");
    let one_and_fours: Vec<_> = [1].into_iter().chain(fours.clone()).collect();
    let changed = check(&mut schedule, &one_and_fours, now + CHECK_INTERVAL * 2);
    assert!(changed.is_empty(), "none of the others while there are such: {changed:?}");
    let changed = check(&mut schedule, &one_and_fours[1..17], now + CHECK_INTERVAL * 3);
    assert!(changed.is_empty(), "none where few are left: {changed:?}");
    let fours: Vec<_> = fours.clone().collect();
    assert_eq!(check(&mut schedule, &fours, now + CHECK_INTERVAL * 4), fours, "then others");
}

#[test]
fn beyond_a_budget_the_slowest_pace_is_left_out_three_times_in_a_row_at_most() {
    let now = Instant::now();
    let mut schedule = Schedule::new(10, now);
    (1..=17).for_each(|id| schedule.add(id, Pace::S1, 1, now));
    schedule.served(1, 12 * MICROS, true, now);
    for _ in 0..3 {
        for _ in 0..MOST_SKIPPED {
            schedule.ready(2, ALONE);
            assert_eq!(schedule.pop(), None);
        }
        schedule.ready(2, ALONE);
        assert_eq!(schedule.pop(), Some(2));
    }
}

/// A worker that has more to do than it can for two thirds of the time.
#[test]
fn under_overload_the_least_shared_give_way_and_all_recover() {
    for seed in [1, 7, 20_261_128] {
        println!("seed {seed}");
        storm(&mut SmallRng::seed_from_u64(seed));
    }
}

/// Crowds are never merged, the others are and recover, each is served in bounded time, and
/// what the schedule counts is what there is.
fn storm(random: &mut SmallRng) {
    let begin = Instant::now();
    let (mut now, mut schedule) = (begin, Schedule::new(RATE, begin));
    let mut alive: BTreeMap<u64, (Readership, Pace)> = BTreeMap::new();
    let mut waits: HashMap<u64, Instant> = HashMap::new();
    let (mut next_id, mut merged, mut served) = (1, 0, 0);
    let (mut longest, mut crowd_merged) = (Duration::ZERO, 0);
    while now - begin < Duration::from_secs(30) {
        let overload = now - begin < Duration::from_secs(15);
        let most = if overload { 2_000 } else { 100 };
        if alive.len() < most {
            let readership = if random.random_bool(0.005) { crowd(500) } else { ALONE };
            let own = match random.random_range(0..4) {
                0 => Pace::MERGING[random.random_range(0..3)],
                _ => Pace::Raw,
            };
            schedule.add(next_id, own, random.random_range(1..5), now);
            alive.insert(next_id, (readership, own));
            next_id += 1;
        } else if random.random_bool(0.01) || alive.len() > most {
            let id = *alive
                .range(random.random_range(0..next_id)..)
                .next()
                .unwrap_or_else(|| alive.first_key_value().unwrap())
                .0;
            alive.remove(&id);
            schedule.remove(id);
            waits.remove(&id);
        }
        let mut ready = Vec::new();
        // An event touches the streams that push each event.
        if random.random_bool(0.02) {
            ready.extend(alive.keys().filter(|id| !schedule.is_paced(**id)));
        }
        ready.extend(schedule.tick(now));
        for id in ready {
            schedule.ready(id, alive[&id].0);
            waits.entry(id).or_insert(now);
        }
        for _ in 0..8 {
            let Some(id) = schedule.pop() else {
                now += MICROS * 500;
                break;
            };
            let took = MICROS * random.random_range(4..20);
            now += took;
            let since = waits.remove(&id).expect("a stream that waits was made ready");
            longest = longest.max(now - since);
            schedule.served(id, took, true, now);
            served += 1;
        }
        for PaceChange { id, pace } in schedule.adapt(now) {
            let (readership, own) = alive[&id];
            assert!(pace >= own, "nobody is served faster than it asked for");
            merged += usize::from(pace > own);
            crowd_merged += usize::from(readership.readers > 1 && pace > own);
        }
        assert_eq!(schedule.waiting(), waits.len());
    }
    assert!(served > 10_000 && merged > 1_000, "{served} {merged}");
    assert_eq!(crowd_merged, 0, "crowds keep their pace");
    assert!(longest < Duration::from_secs(4), "{longest:?}");
    assert_eq!(schedule.merged(), [0; 3], "all have their own pace again");
    assert!(schedule.queue.len() <= 2 * alive.len() + 65);
    alive.keys().for_each(|id| schedule.remove(*id));
    assert_eq!((schedule.waiting(), schedule.blocking()), (0, 0));
    assert!(schedule.streams.is_empty() && schedule.owners.is_empty());
}
