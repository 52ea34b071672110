//! Markets that nobody trades on, for `spreadly dev`: orders come, go and are filled, in bursts and
//! quiet spells, around a price that returns to where it began. Seeded, pure, and written as the
//! same lines that every other feed brings, so that it goes the same way. No clock, no task.

mod lines;
mod listed;
mod resting_orders;

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use self::listed::{LISTED, Listed};
use self::resting_orders::RestingOrders;
use crate::market::levels::Side;
use crate::market::time::{Micros, time_text};

pub use self::resting_orders::ACCOUNT;

/// What `spreadly dev` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimulatorConfig {
    /// 1 to [`MOST_MARKETS`].
    pub markets: u32,
    /// Of all markets together; 1 to [`MOST_RATE`].
    pub events_per_second: u32,
    pub seed: u64,
}

/// 1,000 books of 2 × [`DEEPEST`] levels are some 10 MB.
pub const MOST_MARKETS: u32 = 1_000;
/// What one task can submit without becoming a load test of the store alone.
pub const MOST_RATE: u32 = 100_000;

/// Levels a side at the start, and the fewest and the most there ever are.
const INITIAL: usize = 30;
const SHALLOWEST: usize = 10;
const DEEPEST: usize = 60;
/// Most levels that one event changes around the touch.
const MOST_CHANGES: u32 = 4;
/// The walk never leaves a quarter of its start price below and above, and the farther it is, the
/// likelier it returns.
const WALK_RANGE: u64 = 4;
/// One step of so many moves the price.
const STEPS_A_MOVE: u32 = 6;
/// One step of so many fills a part of the best level.
const STEPS_A_FILL: u32 = 5;
/// Steps of all markets that a mood lasts.
const MOOD_STEPS: std::ops::Range<u64> = 40..400;
/// A draw that meets only markets at rest takes the last of them.
const MOST_DRAWS: usize = 16;

/// Most orders that a run leaves open.
pub const MOST_RESTING: usize = 2 * DEEPEST * MOST_MARKETS as usize;

/// The tempo that moves at each draw of a burst.
const FASTEST: u64 = 6;

/// How busy a market is for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Quiet,
    Usual,
    Burst,
}

impl Mood {
    fn any(random: &mut SmallRng) -> Self {
        match random.random_range(0..6) {
            0 => Self::Burst,
            1 | 2 => Self::Quiet,
            _ => Self::Usual,
        }
    }

    /// Of so many draws one moves the market.
    fn draws_a_step(self) -> u64 {
        match self {
            Self::Quiet => 12,
            Self::Usual => 3,
            Self::Burst => 1,
        }
    }

    /// Ticks that one move goes at most.
    fn longest_move(self) -> u64 {
        match self {
            Self::Quiet | Self::Usual => 1,
            Self::Burst => 4,
        }
    }
}

/// All markets; each call to [`Simulator::next_lines`] moves one of them.
pub struct Simulator {
    random: SmallRng,
    markets: Vec<Market>,
    steps: u64,
    /// Trades of an earlier run on the same log have other ids than ours: the clock of the start is
    /// in them.
    started: Micros,
    trades: u64,
}

struct Market {
    listed: &'static Listed,
    name: String,
    base: String,
    mood: Mood,
    /// In steps of all markets.
    mood_ends: u64,
    /// Best bid's highest place: bids stand at `touch` or below, asks above it. The one thing
    /// that keeps the book from crossing.
    touch: u64,
    /// Price -> size.
    bids: BTreeMap<u64, u64>,
    asks: BTreeMap<u64, u64>,
    orders: Option<RestingOrders>,
}

/// What one step does.
#[derive(Default)]
struct Changes {
    /// What was filled, best price first.
    trades: Vec<Trade>,
    /// One size for each price, 0 removes.
    bids: BTreeMap<u64, u64>,
    asks: BTreeMap<u64, u64>,
}

struct Trade {
    taker: Side,
    price: u64,
    size: u64,
}

impl Simulator {
    pub fn new(seed: u64, markets: u32) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let markets = (0..markets).map(|number| Market::new(number, &mut random)).collect();
        Self { random, markets, steps: 0, started: 0, trades: 0 }
    }

    /// Cancels what an earlier run on the same log left standing, then defines every market and
    /// sets its book: by a `book.snapshot` event, or by an `order.placed` for each price.
    pub fn initial_lines(&mut self, now: Micros, earlier: &[String]) -> Vec<String> {
        self.started = now;
        let (time, run) = (time_text(now), self.run());
        let mut lines: Vec<_> =
            earlier.iter().map(|id| resting_orders::canceled(id, &time)).collect();
        for market in &mut self.markets {
            lines.push(market.definition(&time));
            let book = Changes {
                trades: Vec::new(),
                bids: market.bids.clone(),
                asks: market.asks.clone(),
            };
            match market.orders.take() {
                Some(mut orders) => {
                    lines.extend(orders.follow(market, &book, &[], &run, &time));
                    market.orders = Some(orders);
                }
                None => lines.push(market.snapshot(&time)),
            }
        }
        lines
    }

    /// In the ids of this run.
    fn run(&self) -> String {
        format!("sim-{}", self.started)
    }

    /// One step of one market: a `book.delta` after the `trade` events that made it, or what
    /// happened to its orders.
    pub fn next_lines(&mut self, now: Micros) -> Vec<String> {
        let Some(chosen) = self.choose() else { return Vec::new() };
        let (time, run) = (time_text(now), self.run());
        let market = &mut self.markets[chosen];
        let changes = market.step(&mut self.random);
        let first = self.trades;
        self.trades += changes.trades.len() as u64;
        let trades: Vec<_> = (first..self.trades).map(|number| format!("{run}-{number}")).collect();
        if let Some(mut orders) = market.orders.take() {
            let lines = orders.follow(market, &changes, &trades, &run, &time);
            market.orders = Some(orders);
            return lines;
        }
        let trades = changes.trades.iter().zip(&trades);
        let mut lines: Vec<_> = trades.map(|(trade, id)| market.trade(id, trade, &time)).collect();
        lines.push(market.levels("book.delta", &changes.bids, &changes.asks, &time));
        lines
    }

    /// Whose turn it is: by tempo and mood, which is looked at only when a market is drawn.
    fn choose(&mut self) -> Option<usize> {
        self.steps += 1;
        let mut chosen = None;
        for _ in 0..MOST_DRAWS {
            if self.markets.is_empty() {
                break;
            }
            let drawn = self.random.random_range(0..self.markets.len());
            chosen = Some(drawn);
            let market = &mut self.markets[drawn];
            if self.steps >= market.mood_ends {
                market.mood = Mood::any(&mut self.random);
                market.mood_ends = self.steps + self.random.random_range(MOOD_STEPS);
            }
            let rest = market.mood.draws_a_step() * FASTEST / market.listed.tempo;
            if self.random.random_range(0..rest) == 0 {
                break;
            }
        }
        chosen
    }
}

impl Market {
    fn new(number: u32, random: &mut SmallRng) -> Self {
        let listed = &LISTED[number as usize % LISTED.len()];
        let base = match number as usize / LISTED.len() {
            0 => listed.base.to_owned(),
            round => format!("{}{round}", listed.base),
        };
        let mut market = Self {
            listed,
            name: format!("{base}-{}", listed.quote),
            base,
            mood: Mood::Usual,
            mood_ends: 0,
            touch: listed.start,
            bids: BTreeMap::new(),
            asks: BTreeMap::new(),
            orders: listed.by_orders.then(RestingOrders::default),
        };
        for distance in 0..INITIAL as u64 {
            market.bids.insert(listed.start - distance, size(listed.typical_size, random));
            market.asks.insert(listed.start + 1 + distance, size(listed.typical_size, random));
        }
        market
    }

    /// Moves the price now and then, which fills what it runs over, fills a part of the best level
    /// now and then, then places and cancels near the touch.
    fn step(&mut self, random: &mut SmallRng) -> Changes {
        let mut changes = Changes::default();
        if random.random_range(0..STEPS_A_MOVE) == 0 {
            self.walk(random);
            self.fill_crossed(&mut changes);
        }
        if random.random_range(0..STEPS_A_FILL) == 0 {
            self.fill_best(random, &mut changes);
        }
        for _ in 0..random.random_range(1..=MOST_CHANGES) {
            let side = if random.random() { Side::Buy } else { Side::Sell };
            // The product of two draws: mostly near the touch, sometimes far.
            let distance = random.random_range(0..8) * random.random_range(0..5);
            let price = match side {
                Side::Buy => self.touch - distance,
                Side::Sell => self.touch + 1 + distance,
            };
            let canceled = random.random_range(0..4) == 0 && self.side(side).len() > SHALLOWEST;
            let size = if canceled && self.side(side).contains_key(&price) {
                0
            } else {
                size(self.listed.typical_size, random)
            };
            self.set(side, price, size, &mut changes);
        }
        self.refill(random, &mut changes);
        changes
    }

    /// The likelier upwards the lower it is.
    fn walk(&mut self, random: &mut SmallRng) {
        let start = self.listed.start;
        let range = start / WALK_RANGE;
        let (lowest, highest) = (start - range, start + range);
        let ticks = random.random_range(1..=self.mood.longest_move());
        self.touch = if random.random_range(lowest..highest) >= self.touch {
            (self.touch + ticks).min(highest)
        } else {
            (self.touch - ticks).max(lowest)
        };
    }

    /// The move took all levels in its way.
    fn fill_crossed(&mut self, changes: &mut Changes) {
        let bids: Vec<_> = self.bids.range(self.touch + 1..).rev().map(both).collect();
        let asks: Vec<_> = self.asks.range(..=self.touch).map(both).collect();
        for (maker, taker, levels) in [(Side::Buy, Side::Sell, bids), (Side::Sell, Side::Buy, asks)]
        {
            for (price, size) in levels {
                changes.trades.push(Trade { taker, price, size });
                self.set(maker, price, 0, changes);
            }
        }
    }

    /// Leaves at least a lot, so that the touch stays.
    fn fill_best(&mut self, random: &mut SmallRng, changes: &mut Changes) {
        let (maker, taker, best) = if random.random() {
            (Side::Buy, Side::Sell, self.bids.iter().next_back().map(both))
        } else {
            (Side::Sell, Side::Buy, self.asks.iter().next().map(both))
        };
        let Some((price, standing)) = best.filter(|(_, standing)| *standing > 1) else { return };
        let size = random.random_range(1..standing);
        changes.trades.push(Trade { taker, price, size });
        self.set(maker, price, standing - size, changes);
    }

    /// Keeps each side between its fewest and its most levels: new ones go after the last,
    /// the last ones go.
    fn refill(&mut self, random: &mut SmallRng, changes: &mut Changes) {
        for side in [Side::Buy, Side::Sell] {
            while self.side(side).len() < SHALLOWEST {
                let price = match side {
                    Side::Buy => self.bids.keys().next().map_or(self.touch, |last| last - 1),
                    Side::Sell => {
                        self.asks.keys().next_back().map_or(self.touch + 1, |last| last + 1)
                    }
                };
                let size = size(self.listed.typical_size, random);
                self.set(side, price, size, changes);
            }
            while self.side(side).len() > DEEPEST {
                let last = match side {
                    Side::Buy => self.bids.keys().next(),
                    Side::Sell => self.asks.keys().next_back(),
                };
                let Some(&last) = last else { break };
                self.set(side, last, 0, changes);
            }
        }
    }

    fn side(&self, side: Side) -> &BTreeMap<u64, u64> {
        match side {
            Side::Buy => &self.bids,
            Side::Sell => &self.asks,
        }
    }

    fn set(&mut self, side: Side, price: u64, size: u64, changes: &mut Changes) {
        let (levels, changed) = match side {
            Side::Buy => (&mut self.bids, &mut changes.bids),
            Side::Sell => (&mut self.asks, &mut changes.asks),
        };
        match size {
            0 => levels.remove(&price),
            _ => levels.insert(price, size),
        };
        changed.insert(price, size);
    }
}

fn both((price, size): (&u64, &u64)) -> (u64, u64) {
    (*price, *size)
}

/// Never 0, which would remove the level.
fn size(typical: u64, random: &mut SmallRng) -> u64 {
    random.random_range(typical / 20..typical * 2).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::market::fixed;

    const NOW: Micros = 1_700_000_000_000_000;

    /// A book rebuilt from the lines alone, with no look at the simulator's own.
    #[derive(Default)]
    struct Rebuilt {
        decimals: (u8, u8),
        tick: u128,
        lot: u128,
        bids: BTreeMap<u128, u128>,
        asks: BTreeMap<u128, u128>,
        /// By id: side, price and what is left, where it is published order by order.
        orders: BTreeMap<String, (bool, u128, u128)>,
        trades: u64,
        lowest: u128,
        highest: u128,
    }

    impl Rebuilt {
        fn number(&self, text: &serde_json::Value, decimals: u8, step: u128) -> u128 {
            let text = text.as_str().unwrap();
            assert_eq!(text.split_once('.').unwrap().1.len(), usize::from(decimals));
            let number = fixed::parse(text, decimals).unwrap();
            assert_eq!(number % step.max(1), 0, "{text} lies between two steps");
            number
        }

        fn define(&mut self, event: &serde_json::Value) {
            let decimals = |key: &str| u8::try_from(event[key].as_u64().unwrap()).unwrap();
            self.decimals = (decimals("priceDecimals"), decimals("sizeDecimals"));
            self.tick = self.number(&event["tickSize"], self.decimals.0, 1);
            self.lot = self.number(&event["lotSize"], self.decimals.1, 1);
        }

        /// A trade is at the maker's best price and takes no more than its size.
        fn trade(&mut self, event: &serde_json::Value) {
            let price = self.number(&event["price"], self.decimals.0, self.tick);
            let size = self.number(&event["size"], self.decimals.1, self.lot);
            let (makers, best) = match event["takerSide"].as_str().unwrap() {
                "BUY" => {
                    let best = *self.asks.keys().next().unwrap();
                    (&mut self.asks, best)
                }
                _ => {
                    let best = *self.bids.keys().next_back().unwrap();
                    (&mut self.bids, best)
                }
            };
            assert_eq!(price, best, "{event}");
            let left = makers[&price].checked_sub(size).unwrap_or_else(|| panic!("{event}"));
            assert_ne!(size, 0);
            match left {
                0 => makers.remove(&price),
                _ => makers.insert(price, left),
            };
            self.trades += 1;
        }

        fn set(&mut self, event: &serde_json::Value) {
            for name in ["bids", "asks"] {
                for level in event[name].as_array().unwrap() {
                    let price = self.number(&level[0], self.decimals.0, self.tick);
                    let size = self.number(&level[1], self.decimals.1, self.lot);
                    let levels = if name == "bids" { &mut self.bids } else { &mut self.asks };
                    match size {
                        0 => levels.remove(&price),
                        _ => levels.insert(price, size),
                    };
                }
            }
            self.is_not_crossed(event);
            for side in [&self.bids, &self.asks] {
                assert!((SHALLOWEST..=DEEPEST).contains(&side.len()), "{event}");
            }
        }

        fn is_not_crossed(&mut self, event: &serde_json::Value) {
            let (bid, ask) = (self.bids.keys().next_back(), self.asks.keys().next());
            let (Some(&bid), Some(&ask)) = (bid, ask) else { return };
            assert!(bid < ask, "crossed by {event}");
            self.lowest = if self.lowest == 0 { bid } else { self.lowest.min(bid) };
            self.highest = self.highest.max(bid);
        }

        /// One order a price, and a fill after its trade, which has taken the level down already.
        fn order(&mut self, event: &serde_json::Value) {
            let id = event["order"].as_str().unwrap().to_owned();
            let number = |field: &str, decimals, step| self.number(&event[field], decimals, step);
            match event["kind"].as_str().unwrap() {
                "order.placed" => {
                    let price = number("price", self.decimals.0, self.tick);
                    let size = number("size", self.decimals.1, self.lot);
                    let bid = event["side"] == "BUY";
                    let levels = if bid { &mut self.bids } else { &mut self.asks };
                    assert!(size > 0 && levels.insert(price, size).is_none(), "{event}");
                    assert!(self.orders.insert(id, (bid, price, size)).is_none(), "{event}");
                }
                "order.filled" => {
                    let price = number("price", self.decimals.0, self.tick);
                    let size = number("size", self.decimals.1, self.lot);
                    let order = self.orders.get_mut(&id).unwrap_or_else(|| panic!("{event}"));
                    assert_eq!(order.1, price, "{event}");
                    order.2 = order.2.checked_sub(size).unwrap_or_else(|| panic!("{event}"));
                    let levels = if order.0 { &self.bids } else { &self.asks };
                    assert_eq!(levels.get(&price).copied().unwrap_or(0), order.2, "{event}");
                    if order.2 == 0 {
                        self.orders.remove(&id);
                    }
                }
                _ => {
                    let (bid, price, left) = self.orders.remove(&id).unwrap();
                    let levels = if bid { &mut self.bids } else { &mut self.asks };
                    assert_eq!(levels.remove(&price), Some(left), "{event}");
                }
            }
            self.is_not_crossed(event);
        }
    }

    fn apply(books: &mut BTreeMap<String, Rebuilt>, line: &str) {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        let kind = event["kind"].as_str().unwrap();
        if kind == "order.canceled" {
            let order = event["order"].as_str().unwrap();
            let mut known = books.values_mut().filter(|book| book.orders.contains_key(order));
            return known.next().unwrap_or_else(|| panic!("{event}")).order(&event);
        }
        let book = books.entry(event["market"].as_str().unwrap().to_owned()).or_default();
        match kind {
            "market" => book.define(&event),
            "trade" => book.trade(&event),
            "order.placed" | "order.filled" => book.order(&event),
            _ => book.set(&event),
        }
    }

    #[test]
    fn a_hundred_thousand_steps_never_cross_a_book_and_every_trade_fits_it() {
        let mut simulator = Simulator::new(7, 5);
        let mut books = BTreeMap::new();
        for line in simulator.initial_lines(NOW, &[]) {
            apply(&mut books, &line);
        }
        let names: Vec<_> = books.keys().map(String::as_str).collect();
        assert_eq!(names, ["ERG-USD", "ERG1-USD", "RSN-ERG", "SIGUSD-ERG", "SPF-ERG"]);
        for step in 0..100_000 {
            for line in simulator.next_lines(NOW + step) {
                apply(&mut books, &line);
            }
        }
        let mut trades = 0;
        for market in &simulator.markets {
            let Listed { tick, lot, start, .. } = *market.listed;
            let same = |own: &BTreeMap<u64, u64>, rebuilt: &BTreeMap<u128, u128>| {
                own.iter()
                    .map(|(price, size)| (u128::from(*price * tick), u128::from(*size * lot)))
                    .eq(rebuilt.iter().map(|(price, size)| (*price, *size)))
            };
            let book = &books[&market.name];
            assert!(same(&market.bids, &book.bids) && same(&market.asks, &book.asks));
            let start = u128::from(start * tick);
            assert!(book.lowest < start && start < book.highest, "{} comes back", market.name);
            trades += book.trades;
        }
        assert_eq!(trades, simulator.trades);
        assert_ne!(trades, 0);
    }

    proptest! {
        #[test]
        fn no_seed_crosses_a_book_or_leaves_tick_and_lot(seed: u64, markets in 1..8_u32) {
            let mut simulator = Simulator::new(seed, markets);
            let mut books = BTreeMap::new();
            let mut lines = simulator.initial_lines(NOW, &[]);
            lines.extend((0..300).flat_map(|step| simulator.next_lines(NOW + step)));
            lines.iter().for_each(|line| apply(&mut books, line));
        }

        #[test]
        fn the_same_seed_gives_the_same_lines_and_another_seed_others(seed: u64) {
            let run = |seed| {
                let mut simulator = Simulator::new(seed, 3);
                let mut lines = simulator.initial_lines(NOW, &[]);
                lines.extend((0..200).flat_map(|step| simulator.next_lines(NOW + step)));
                lines
            };
            prop_assert_eq!(run(seed), run(seed));
            prop_assert_ne!(run(seed), run(seed.wrapping_add(1)));
        }
    }

    #[test]
    fn markets_have_a_tempo_of_their_own_with_bursts_and_quiet_spells() {
        const STEPS: usize = 20_000;
        const SPELL: usize = 100;
        let mut simulator = Simulator::new(3, 3);
        let turns: Vec<_> = (0..STEPS).map(|_| simulator.choose().unwrap()).collect();
        let shares = |turns: &[usize]| {
            [0, 1, 2].map(|market| turns.iter().filter(|turn| **turn == market).count())
        };
        let [fast, middle, slow] = shares(&turns);
        assert!(fast > middle && middle > slow && slow > 0, "{fast} {middle} {slow}");
        let spells: Vec<_> = turns.chunks(SPELL).map(|spell| shares(spell)[0]).collect();
        let (least, most) = (spells.iter().min().unwrap(), spells.iter().max().unwrap());
        assert!(*most > SPELL * 9 / 10 && *least < SPELL / 3, "from {least} to {most} of {SPELL}");
    }

    #[test]
    fn a_line_is_an_event_as_the_contract_writes_it() {
        let lines = Simulator::new(1, 1).initial_lines(NOW, &[]);
        assert_eq!(
            lines[0],
            r#"{"kind":"market","market":"ERG-USD","base":"ERG","quote":"USD","priceDecimals":4,"sizeDecimals":8,"tickSize":"0.0001","lotSize":"0.01000000","status":"ACTIVE","time":"2023-11-14T22:13:20.000000Z"}"#
        );
        assert!(
            lines[1]
                .starts_with(r#"{"kind":"book.snapshot","market":"ERG-USD","bids":[["0.8500","#)
        );
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn what_an_earlier_run_left_standing_is_canceled_first() {
        let mut books = BTreeMap::new();
        let mut first = Simulator::new(1, 4);
        first.initial_lines(NOW, &[]).iter().for_each(|line| apply(&mut books, line));
        let earlier: Vec<_> = books["RSN-ERG"].orders.keys().cloned().collect();
        assert_eq!(earlier.len(), 2 * INITIAL);
        let mut again = Simulator::new(1, 4);
        again.initial_lines(NOW + 1, &earlier).iter().for_each(|line| apply(&mut books, line));
        assert_eq!(books["RSN-ERG"].orders.len(), 2 * INITIAL);
        assert!(earlier.iter().all(|id| !books["RSN-ERG"].orders.contains_key(id)));
    }

    #[test]
    fn a_simulator_without_markets_is_silent() {
        let mut simulator = Simulator::new(1, 0);
        assert_eq!(simulator.initial_lines(NOW, &[]).len() + simulator.next_lines(NOW).len(), 0);
    }
}
