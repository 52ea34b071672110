//! A market that nobody trades on, for `spreadly dev`: seeded, pure, and written as the same
//! lines that every other feed brings, so that it goes through the same door. No clock, no task.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::market::event::{Micros, Side};
use crate::market::fixed;

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
/// What one task can write through the door without becoming a load test of the store alone.
pub const MOST_RATE: u32 = 100_000;

/// Levels a side at the start, and the fewest and the most there ever are.
const INITIAL: usize = 30;
const SHALLOWEST: usize = 10;
const DEEPEST: usize = 60;
/// Most levels that one event changes around the touch.
const MOST_CHANGES: u32 = 4;
/// The walk turns back at a quarter of its start price below and above.
const WALK_RANGE: u64 = 4;

/// Name, base, quote, decimals of price and size, start price in ticks of the last decimal, and
/// the typical size of a level in units of the last decimal.
type Listed = (&'static str, &'static str, &'static str, u8, u8, u64, u64);

const LISTED: [Listed; 3] = [
    ("ERG-USD", "ERG", "USD", 4, 8, 8_500, 25_000_000_000),
    ("SIGUSD-ERG", "SIGUSD", "ERG", 6, 2, 1_180_000, 50_000),
    ("SPF-ERG", "SPF", "ERG", 8, 6, 1_250_000, 4_000_000_000),
];

/// All markets; each call to [`Simulator::next_lines`] moves one of them.
pub struct Simulator {
    random: SmallRng,
    markets: Vec<Market>,
}

struct Market {
    name: String,
    base: String,
    quote: String,
    price_decimals: u8,
    size_decimals: u8,
    /// Where the walk began.
    start: u64,
    typical_size: u64,
    /// Best bid's highest place: bids stand at `touch` or below, asks above it. The one thing
    /// that keeps the book from crossing.
    touch: u64,
    /// Price -> size, both in units of the last decimal.
    bids: BTreeMap<u64, u64>,
    asks: BTreeMap<u64, u64>,
}

/// What one event sets: one size for each price, 0 removes.
#[derive(Default)]
struct Changes {
    bids: BTreeMap<u64, u64>,
    asks: BTreeMap<u64, u64>,
}

impl Simulator {
    pub fn new(seed: u64, markets: u32) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let markets = (0..markets).map(|number| Market::new(number, &mut random)).collect();
        Self { random, markets }
    }

    /// Defines every market and sets its book: a `market` and a `book.snapshot` event for each.
    pub fn initial_lines(&self, now: Micros) -> Vec<String> {
        let time = written_time(now);
        self.markets
            .iter()
            .flat_map(|market| [market.definition(&time), market.snapshot(&time)])
            .collect()
    }

    /// One `book.delta` of one market, chosen at random.
    pub fn next_lines(&mut self, now: Micros) -> Vec<String> {
        if self.markets.is_empty() {
            return Vec::new();
        }
        let chosen = self.random.random_range(0..self.markets.len());
        let market = &mut self.markets[chosen];
        let changes = market.step(&mut self.random);
        vec![market.levels("book.delta", &changes.bids, &changes.asks, &written_time(now))]
    }
}

impl Market {
    fn new(number: u32, random: &mut SmallRng) -> Self {
        let (name, base, quote, price_decimals, size_decimals, start, typical_size) =
            LISTED[number as usize % LISTED.len()];
        let (name, base) = match number as usize / LISTED.len() {
            0 => (name.to_owned(), base.to_owned()),
            round => (format!("{base}{round}-{quote}"), format!("{base}{round}")),
        };
        let mut market = Self {
            name,
            base,
            quote: quote.to_owned(),
            price_decimals,
            size_decimals,
            start,
            typical_size,
            touch: start,
            bids: BTreeMap::new(),
            asks: BTreeMap::new(),
        };
        for distance in 0..INITIAL as u64 {
            market.bids.insert(start - distance, size(typical_size, random));
            market.asks.insert(start + 1 + distance, size(typical_size, random));
        }
        market
    }

    /// Moves the touch by a tick at most, clears what it ran over, then changes levels near it.
    fn step(&mut self, random: &mut SmallRng) -> Changes {
        let mut changes = Changes::default();
        let (lowest, highest) =
            (self.start - self.start / WALK_RANGE, self.start + self.start / WALK_RANGE);
        match random.random_range(0..8) {
            0 => self.touch = (self.touch - 1).max(lowest),
            1 => self.touch = (self.touch + 1).min(highest),
            _ => {}
        }
        let crossed_bids: Vec<_> =
            self.bids.range(self.touch + 1..).map(|(price, _)| *price).collect();
        let crossed_asks: Vec<_> =
            self.asks.range(..=self.touch).map(|(price, _)| *price).collect();
        for price in crossed_bids {
            self.set(Side::Buy, price, 0, &mut changes);
        }
        for price in crossed_asks {
            self.set(Side::Sell, price, 0, &mut changes);
        }
        for _ in 0..random.random_range(1..=MOST_CHANGES) {
            let side = if random.random() { Side::Buy } else { Side::Sell };
            // The sum of two coins' runs: mostly near the touch, sometimes far.
            let distance = random.random_range(0..8) * random.random_range(0..5);
            let price = match side {
                Side::Buy => self.touch - distance,
                Side::Sell => self.touch + 1 + distance,
            };
            let taken = random.random_range(0..4) == 0 && self.side(side).len() > SHALLOWEST;
            let size = if taken && self.side(side).contains_key(&price) {
                0
            } else {
                size(self.typical_size, random)
            };
            self.set(side, price, size, &mut changes);
        }
        self.refill(random, &mut changes);
        changes
    }

    /// Keeps each side between its fewest and its most levels: new ones go behind the last,
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
                let size = size(self.typical_size, random);
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

    fn definition(&self, time: &str) -> String {
        let Self { name, base, quote, price_decimals, size_decimals, .. } = self;
        let tick = fixed::format(1, *price_decimals);
        let lot = fixed::format(1, *size_decimals);
        format!(
            r#"{{"kind":"market","market":"{name}","base":"{base}","quote":"{quote}","priceDecimals":{price_decimals},"sizeDecimals":{size_decimals},"tickSize":"{tick}","lotSize":"{lot}","status":"ACTIVE","time":"{time}"}}"#
        )
    }

    fn snapshot(&self, time: &str) -> String {
        self.levels("book.snapshot", &self.bids, &self.asks, time)
    }

    /// Best first on both sides, as a person reads a book.
    fn levels(
        &self,
        kind: &str,
        bids: &BTreeMap<u64, u64>,
        asks: &BTreeMap<u64, u64>,
        time: &str,
    ) -> String {
        let mut line = format!(r#"{{"kind":"{kind}","market":"{}","bids":["#, self.name);
        self.write_levels(&mut line, bids.iter().rev());
        line.push_str(r#"],"asks":["#);
        self.write_levels(&mut line, asks.iter());
        let _ = write!(line, r#"],"time":"{time}"}}"#);
        line
    }

    fn write_levels<'a>(
        &self,
        line: &mut String,
        levels: impl Iterator<Item = (&'a u64, &'a u64)>,
    ) {
        for (place, (price, size)) in levels.enumerate() {
            let comma = if place == 0 { "" } else { "," };
            let price = fixed::format(u128::from(*price), self.price_decimals);
            let size = fixed::format(u128::from(*size), self.size_decimals);
            let _ = write!(line, r#"{comma}["{price}","{size}"]"#);
        }
    }
}

/// Never 0, which would remove the level.
fn size(typical: u64, random: &mut SmallRng) -> u64 {
    random.random_range(typical / 20..typical * 2).max(1)
}

/// RFC 3339 in UTC. A clock outside the years that can be written stands still at 1970: a
/// simulated event is no reason to stop a hub.
fn written_time(now: Micros) -> String {
    let time = Timestamp::from_microsecond(now).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{time:.6}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const NOW: Micros = 1_700_000_000_000_000;

    /// A book rebuilt from the lines alone, with no look at the simulator's own.
    #[derive(Default)]
    struct Rebuilt {
        decimals: (u8, u8),
        bids: BTreeMap<u128, u128>,
        asks: BTreeMap<u128, u128>,
    }

    fn apply(books: &mut BTreeMap<String, Rebuilt>, line: &str) {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        let book = books.entry(event["market"].as_str().unwrap().to_owned()).or_default();
        if event["kind"] == "market" {
            let decimals = |key: &str| u8::try_from(event[key].as_u64().unwrap()).unwrap();
            book.decimals = (decimals("priceDecimals"), decimals("sizeDecimals"));
            return;
        }
        for (name, levels) in [("bids", &mut book.bids), ("asks", &mut book.asks)] {
            for level in event[name].as_array().unwrap() {
                let number = |place: usize, decimals: u8| {
                    let text = level[place].as_str().unwrap();
                    assert_eq!(text.split_once('.').unwrap().1.len(), usize::from(decimals));
                    fixed::parse(text, decimals).unwrap()
                };
                let (price, size) = (number(0, book.decimals.0), number(1, book.decimals.1));
                match size {
                    0 => levels.remove(&price),
                    _ => levels.insert(price, size),
                };
            }
        }
    }

    #[test]
    fn a_hundred_thousand_steps_never_cross_a_book_and_keep_it_bounded() {
        let mut simulator = Simulator::new(7, 5);
        let mut books = BTreeMap::new();
        for line in simulator.initial_lines(NOW) {
            apply(&mut books, &line);
        }
        let names: Vec<_> = books.keys().map(String::as_str).collect();
        assert_eq!(names, ["ERG-USD", "ERG1-USD", "SIGUSD-ERG", "SIGUSD1-ERG", "SPF-ERG"]);
        for step in 0..100_000 {
            for line in simulator.next_lines(NOW + step) {
                apply(&mut books, &line);
            }
            for (name, book) in &books {
                let bid = book.bids.keys().next_back().unwrap();
                let ask = book.asks.keys().next().unwrap();
                assert!(bid < ask, "{name} at step {step}: {bid} {ask}");
                for side in [&book.bids, &book.asks] {
                    assert!((SHALLOWEST..=DEEPEST).contains(&side.len()), "{name} at step {step}");
                }
            }
        }
        for market in &simulator.markets {
            let same = |own: &BTreeMap<u64, u64>, rebuilt: &BTreeMap<u128, u128>| {
                own.iter()
                    .map(|(price, size)| (u128::from(*price), u128::from(*size)))
                    .eq(rebuilt.iter().map(|(price, size)| (*price, *size)))
            };
            let book = &books[&market.name];
            assert!(same(&market.bids, &book.bids) && same(&market.asks, &book.asks));
            assert_ne!(market.touch, market.start, "{} never moved", market.name);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_lines() {
        let run = |seed| {
            let mut simulator = Simulator::new(seed, 3);
            let mut lines = simulator.initial_lines(NOW);
            lines.extend((0..1_000).flat_map(|step| simulator.next_lines(NOW + step)));
            lines
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn a_line_is_an_event_as_the_contract_writes_it() {
        let lines = Simulator::new(1, 1).initial_lines(NOW);
        assert_eq!(
            lines[0],
            r#"{"kind":"market","market":"ERG-USD","base":"ERG","quote":"USD","priceDecimals":4,"sizeDecimals":8,"tickSize":"0.0001","lotSize":"0.00000001","status":"ACTIVE","time":"2023-11-14T22:13:20.000000Z"}"#
        );
        assert!(
            lines[1]
                .starts_with(r#"{"kind":"book.snapshot","market":"ERG-USD","bids":[["0.8500","#)
        );
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn a_simulator_without_markets_is_silent() {
        let mut simulator = Simulator::new(1, 0);
        assert_eq!(simulator.initial_lines(NOW).len() + simulator.next_lines(NOW).len(), 0);
    }
}
