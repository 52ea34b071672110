//! The markets that a flood feeds: the attacked one and another. Every event is noted with the
//! moment it was written and the phase it belongs to, so that a frame's delay counts for the right
//! phase.

use super::phase::{Phase, PhaseNow};
use crate::bench::feeder::{self, printed_time};
use jiff::Timestamp;
use serde_json::json;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub const ATTACKED: &str = "FLOOD-USD";
pub const OTHER: &str = "CALM-USD";
/// Has orders, for the lists that `queries` asks for.
pub const ORDERS: &str = "ORDERS-USD";
pub const TOPIC: &str = "flood-news";
/// Has large events, for `resumes`.
pub const LARGE_TOPIC: &str = "flood-large";
/// Whose book is replaced as a whole again and again.
pub const REPLACED: &str = "REPLACED-USD";
/// Times a second.
const REPLACED_RATE: f64 = 1.0;
/// What a client may ask for at most by default.
pub const DEEP_LEVELS: usize = 5000;
/// Price levels that each event changes: a message of some 450 bytes, as in `bench`.
const CHANGED_LEVELS: usize = 5;
/// Markets without events: as many as a subscription may have.
const QUIET: u64 = 100;
/// Trades, orders and messages to be listed: several pages of each.
const HISTORY: usize = 2000;
/// Large events a second, and their bytes.
const LARGE_RATE: f64 = 10.0;
const LARGE_BYTES: usize = 100 * 1024;

#[derive(Debug, Clone, Copy)]
pub struct Written {
    /// Microseconds since 1970, as in the event; rises from event to event.
    pub time: i64,
    pub phase: Phase,
}

/// All events of a market so far, in order.
#[derive(Debug, Default)]
pub struct Timeline {
    events: Mutex<Vec<Written>>,
}

impl Timeline {
    pub fn events(&self) -> MutexGuard<'_, Vec<Written>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an event of now, and returns its time.
    fn note(&self, phase: Phase) -> Timestamp {
        let mut events = self.events();
        let after = events.last().map_or(0, |last| last.time + 1);
        let time = Timestamp::now().as_microsecond().max(after);
        events.push(Written { time, phase });
        Timestamp::from_microsecond(time).unwrap_or_default()
    }
}

/// What a feeder writes.
#[derive(Debug, Clone)]
pub struct Market {
    pub name: &'static str,
    pub levels: usize,
    pub rate: f64,
    /// A trade with each change of the book.
    pub trades: bool,
    /// Before the first event, so that two markets don't write at the same moment.
    pub offset: Duration,
}

/// The markets without events, in an order that is the serial number's own.
pub fn quiet_markets(serial: u64) -> Vec<String> {
    let first = serial % QUIET;
    (0..QUIET).map(|one| format!("QUIET{}-USD", (first + one) % QUIET)).collect()
}

pub struct Feeding {
    pub timeline: Arc<Timeline>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Feeding {
    /// Writes the market and its book, then events until stopped.
    ///
    /// # Errors
    /// When the folder can't be written to.
    pub fn start(feeds: &Path, market: Market, phase: PhaseNow) -> Result<Self, String> {
        let beginning = feeder::beginning(market.name, market.levels, Timestamp::now());
        let Market { name, rate, offset, trades, .. } = market;
        Self::write(feeds, name, &beginning, (rate, offset), phase, move |number, time| {
            let delta = feeder::delta(name, number, CHANGED_LEVELS, time);
            if trades { delta + &trade(name, number, time) } else { delta }
        })
    }

    /// Writes markets that have no further events.
    ///
    /// # Errors
    /// As [`Feeding::start`].
    pub fn quiet_markets(feeds: &Path) -> Result<(), String> {
        let path = feeds.join("quiet.ndjson");
        let names = quiet_markets(0);
        let beginning = |name: &String| feeder::beginning(name, 1, Timestamp::now());
        let lines: String = names.iter().map(beginning).collect();
        std::fs::write(&path, lines).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Replaces a deep book as a whole, until stopped.
    ///
    /// # Errors
    /// As [`Feeding::start`].
    pub fn replaced_book(feeds: &Path, phase: PhaseNow) -> Result<Self, String> {
        let beginning = feeder::beginning(REPLACED, DEEP_LEVELS, Timestamp::now());
        let line = move |number, time| {
            feeder::snapshot(REPLACED, DEEP_LEVELS, 1 + u128::from(number), time)
        };
        Self::write(feeds, REPLACED, &beginning, (REPLACED_RATE, Duration::ZERO), phase, line)
    }

    /// Writes large events to a topic until stopped.
    ///
    /// # Errors
    /// As [`Feeding::start`].
    pub fn large_events(feeds: &Path, phase: PhaseNow) -> Result<Self, String> {
        let data = "x".repeat(LARGE_BYTES);
        let line = move |_, time| {
            let event = json!({"kind": "message", "topic": LARGE_TOPIC, "data": data,
                "time": printed_time(time)});
            format!("{event}\n")
        };
        Self::write(feeds, LARGE_TOPIC, "", (LARGE_RATE, Duration::ZERO), phase, line)
    }

    fn write(
        feeds: &Path,
        name: &str,
        beginning: &str,
        (rate, offset): (f64, Duration),
        phase: PhaseNow,
        lines: impl Fn(u64, Timestamp) -> String + Send + 'static,
    ) -> Result<Self, String> {
        let path = feeds.join(format!("{name}.ndjson"));
        let fault = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(fault)?;
        file.write_all(beginning.as_bytes()).map_err(fault)?;
        let timeline = Arc::new(Timeline::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (noted, stopped) = (Arc::clone(&timeline), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let began = Instant::now() + offset;
            for number in 1_u64.. {
                // From the beginning, so that a late event doesn't move those after it.
                let due = began + Duration::from_secs_f64(number as f64 / rate);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let time = noted.note(phase.get());
                file.write_all(lines(number, time).as_bytes())?;
            }
            Ok(())
        });
        Ok(Self { timeline, stop, thread })
    }

    /// # Errors
    /// When an event couldn't be written, which makes the measurement worthless.
    pub fn stop(self) -> Result<(), String> {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.join().map_err(|_| "the feeder panicked".to_owned())?;
        result.map_err(|error| format!("the feeder: {error}"))
    }
}

fn trade(market: &str, number: u64, time: Timestamp) -> String {
    let side = if number.is_multiple_of(2) { "BUY" } else { "SELL" };
    let event = json!({"kind": "trade", "market": market, "id": format!("trade-{number}"),
        "price": format!("1.23{:02}", number % 100), "size": "1.00000000", "takerSide": side,
        "time": printed_time(time)});
    format!("{event}\n")
}

/// Trades of the attacked market, orders of a market of their own, and messages of a topic.
///
/// # Errors
/// When the folder can't be written to.
pub fn write_history(feeds: &Path) -> Result<(), String> {
    let now = Timestamp::now();
    let mut lines = json!({"kind": "market", "market": ORDERS, "base": "ORDERS", "quote": "USD",
        "priceDecimals": 4, "sizeDecimals": 8, "tickSize": "0.0001", "lotSize": "0.00000001",
        "status": "ACTIVE", "time": printed_time(now)})
    .to_string();
    lines.push('\n');
    for number in 0..HISTORY {
        let order = json!({"kind": "order.placed", "market": ORDERS, "type": "LIMIT",
            "order": format!("order-{number}"), "account": format!("account-{}", number % 50),
            "side": "BUY", "price": format!("1.{:04}", 1 + number % 1000), "size": "1.00000000",
            "time": printed_time(now)});
        let message = json!({"kind": "message", "topic": TOPIC, "data": {"number": number},
            "time": printed_time(now)});
        lines += &format!("{order}\n{message}\n");
    }
    let path = feeds.join("history.ndjson");
    std::fs::write(&path, lines).map_err(|error| format!("{}: {error}", path.display()))
}
