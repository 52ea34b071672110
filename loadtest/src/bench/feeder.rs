//! Writes one market's events into a folder at an even pace. Every event changes levels inside the
//! window that subscribers see, so each one is a message to each of them, and of the same size.

use crate::decimal::printed;
use jiff::Timestamp;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub const MARKET: &str = "STORM-USD";
/// Levels a side, all inside a window of 25.
pub const LEVELS: usize = 20;
const PRICE_DECIMALS: usize = 4;
const SIZE_DECIMALS: usize = 8;
/// The best bid, in units of 10^-4; asks begin one tick above.
const BEST_BID: u128 = 12_345;

pub struct Feeder {
    file: File,
    levels: usize,
    /// Goes on from round to round, so that no event repeats the one before it.
    number: Arc<AtomicU64>,
}

pub struct Feeding {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Feeder {
    /// Opens the file and writes the market and its snapshot.
    ///
    /// # Errors
    /// When the folder can't be written to.
    pub fn open(feeds: &Path, levels: usize) -> Result<Self, String> {
        let path = feeds.join("storm.ndjson");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let mut file = file.map_err(|error| format!("{}: {error}", path.display()))?;
        let text = beginning(MARKET, LEVELS, Timestamp::now());
        file.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
        Ok(Self { file, levels, number: Arc::new(AtomicU64::new(1)) })
    }

    /// Writes `rate` events a second until stopped; for a `dashboard` each is a change of the best
    /// levels and a trade, in one piece.
    pub fn start(&self, rate: f64, dashboard: bool) -> Feeding {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, number, levels) = (Arc::clone(&stop), Arc::clone(&self.number), self.levels);
        let file = self.file.try_clone();
        let thread = thread::spawn(move || {
            let mut file = file?;
            let began = Instant::now();
            for step in 1_u64.. {
                // From the beginning, so that a late event doesn't move those after it.
                let due = began + Duration::from_secs_f64(step as f64 / rate);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let number = number.fetch_add(1, Ordering::Relaxed);
                let now = Timestamp::now();
                let lines = match dashboard {
                    true => best_and_trade(MARKET, number, now),
                    false => delta(MARKET, number, levels, now),
                };
                file.write_all(lines.as_bytes())?;
            }
            Ok(())
        });
        Feeding { stop, thread }
    }
}

impl Feeding {
    /// # Errors
    /// When an event couldn't be written, which makes the round worthless.
    pub fn stop(self) -> Result<(), String> {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.join().map_err(|_| "the feeder panicked".to_owned())?;
        result.map_err(|error| format!("the feeder: {error}"))
    }
}

/// The definition of a market and its first book, with so many levels a side.
pub fn beginning(market: &str, levels: usize, time: Timestamp) -> String {
    let (base, quote) = market.split_once('-').unwrap_or((market, "USD"));
    let definition = json!({"kind": "market", "market": market, "base": base, "quote": quote,
        "priceDecimals": PRICE_DECIMALS, "sizeDecimals": SIZE_DECIMALS, "tickSize": "0.0001",
        "lotSize": "0.00000001", "status": "ACTIVE", "time": printed_time(time)});
    format!("{definition}\n{}", snapshot(market, levels, 1, time))
}

/// A line that replaces a book by `levels` a side, all of the same size.
pub fn snapshot(market: &str, levels: usize, size: u128, time: Timestamp) -> String {
    let all: Vec<usize> = (0..levels).collect();
    let book = json!({"kind": "book.snapshot", "market": market, "bids": bids(&all, size),
        "asks": asks(&all, size), "time": printed_time(time)});
    format!("{book}\n")
}

/// A line that gives `levels` of the best 20 levels a side a size they didn't have.
pub fn delta(market: &str, number: u64, levels: usize, time: Timestamp) -> String {
    // Over the whole book in turn, bids and asks by turns.
    let touched = |side: usize| -> Vec<usize> {
        let first = usize::try_from(number).unwrap_or(0);
        (0..levels)
            .filter(|level| level % 2 == side)
            .map(|level| (first + level) % LEVELS)
            .collect()
    };
    let size = u128::from(number) + 1;
    let event = json!({"kind": "book.delta", "market": market, "bids": bids(&touched(0), size),
                       "asks": asks(&touched(1), size), "time": printed_time(time)});
    format!("{event}\n")
}

/// A line that changes the best level of either side, and a line of a trade.
fn best_and_trade(market: &str, number: u64, time: Timestamp) -> String {
    let (best, size) = ([0], u128::from(number) + 1);
    let time = printed_time(time);
    let delta = json!({"kind": "book.delta", "market": market, "bids": bids(&best, size),
                       "asks": asks(&best, size), "time": time});
    let (price, size) = entry(BEST_BID, size);
    let side = if number.is_multiple_of(2) { "BUY" } else { "SELL" };
    let trade = json!({"kind": "trade", "market": market, "price": price, "size": size,
                       "takerSide": side, "time": time});
    format!("{delta}\n{trade}\n")
}

fn bids(levels: &[usize], size: u128) -> Vec<(String, String)> {
    levels.iter().map(|level| entry(BEST_BID - *level as u128, size)).collect()
}

fn asks(levels: &[usize], size: u128) -> Vec<(String, String)> {
    levels.iter().map(|level| entry(BEST_BID + 1 + *level as u128, size)).collect()
}

/// Sizes from 100, so that all have the same number of digits.
fn entry(price: u128, size: u128) -> (String, String) {
    let size = 100 * 10_u128.pow(8) + size % 10_u128.pow(8);
    (printed(price, PRICE_DECIMALS), printed(size, SIZE_DECIMALS))
}

pub fn printed_time(time: Timestamp) -> String {
    format!("{time:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn consecutive_events_never_repeat_a_levels_size_and_have_one_length() {
        let first = delta(MARKET, 1, 5, Timestamp::now());
        for number in 2..200 {
            let line = delta(MARKET, number, 5, Timestamp::now());
            assert_eq!(line.len(), first.len());
            let event: Value = serde_json::from_str(&line).unwrap();
            let count = |side: &str| event[side].as_array().unwrap().len();
            assert_eq!((count("bids"), count("asks")), (3, 2));
            assert_eq!(
                event["bids"][0][1],
                printed(100 * 10_u128.pow(8) + u128::from(number) + 1, 8)
            );
        }
    }
}
