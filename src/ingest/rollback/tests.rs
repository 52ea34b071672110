//! What is left after blocks are undone, compared with a hub that never received them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::cache::OrderBooks;
use crate::ingest::feed_status::FeedStatuses;
use crate::ingest::handle::{Ack, Batch, Incoming, IngestHandle};
use crate::ingest::place::{At, Place};
use crate::ingest::projection::LiveProjection;
use crate::ingest::sequencer::{self, SequencerConfig};
use crate::live::Encoders;
use crate::live::Live;
use crate::market::candles::Interval;
use crate::market::time::time_text;
use crate::recovery;
use crate::store::{CandleSpan, LogReader, LogReaders, OrderQuery, Span, Store};

/// Of all times in these tests, so that candles have buckets to be in.
const NOW: i64 = 1_800_000_000_000_000;
/// Small, so that undone events lie on both sides of a checkpoint.
const CHECKPOINT_EVENTS: u64 = 7;

/// A sequencer over a store of its own, without feeds.
struct Hub {
    folder: TempDir,
    live: std::sync::Arc<Live>,
    ingest: Option<IngestHandle>,
    thread: Option<JoinHandle<()>>,
    runtime: tokio::runtime::Runtime,
}

impl Hub {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (live, ingest, thread) = Self::open(folder.path());
        Self { folder, live, ingest: Some(ingest), thread: Some(thread), runtime }
    }

    fn path(folder: &Path) -> PathBuf {
        folder.join("log.db")
    }

    fn open(folder: &Path) -> (std::sync::Arc<Live>, IngestHandle, JoinHandle<()>) {
        let path = Self::path(folder);
        let mut store = Store::open(&path).unwrap();
        let log = LogReaders::new(&path, 2);
        let live = std::sync::Arc::new(Live::new(store.epoch(), Box::new(|| NOW), 64, log));
        let (admission, recovered) = recovery::recover_live(&mut store, &live, None).unwrap();
        let config = SequencerConfig {
            checkpoint_events: CHECKPOINT_EVENTS,
            ownership: None,
            waiters: Default::default(),
            shutdown: CancellationToken::new(),
        };
        let encoders = std::sync::Arc::new(Encoders::new(live.clone(), 0, 0));
        let side = LiveProjection::new(encoders, OrderBooks::default());
        let statuses = FeedStatuses::new();
        let (ingest, thread) =
            sequencer::start(store, admission, recovered, statuses, Box::new(side), config)
                .unwrap();
        (live, ingest, thread)
    }

    fn restart(&mut self) {
        self.ingest = None;
        self.thread.take().unwrap().join().unwrap();
        let (live, ingest, thread) = Self::open(self.folder.path());
        (self.live, self.ingest, self.thread) = (live, Some(ingest), Some(thread));
    }

    fn send(&self, line: &str) -> Ack {
        let place = Place { source: "test".into(), at: At::Nowhere };
        let lines =
            vec![Incoming { place, line: Ok(line.to_owned().into_bytes()), numbered: None }];
        let batch = Batch { feed: None, lines, progress: Vec::new() };
        self.runtime.block_on(self.ingest.as_ref().unwrap().deliver(batch)).unwrap()
    }

    fn take(&self, line: &str) -> u64 {
        let ack = self.send(line);
        ack.last_sequence.unwrap_or_else(|| panic!("{line}: {ack:?}"))
    }

    /// All that a client can ask for, but for positions.
    fn state(&self) -> Value {
        let log = LogReader::open(&Self::path(self.folder.path())).unwrap();
        let mut all = BTreeMap::new();
        for definition in self.live.definitions() {
            let market = &*definition.market;
            let book = self.live.snapshot(market, 1_000);
            let head = book.as_ref().map(|book| (book.head.checksum, book.head.event_time));
            let sides = book.map(|book| (book.bids, book.asks));
            let ticker = self.live.ticker(market).unwrap();
            let candles = |interval| {
                let (from, to) = (None, None);
                let span = CandleSpan { interval, from, to, most: 50, now: NOW };
                let candles = log.candles(market, &span).unwrap();
                let of = |one: &crate::market::candles::Candle| {
                    let prices = [one.open, one.high, one.low, one.close, one.volume];
                    format!("{} {prices:?} {} {}", one.start, one.notional, one.count)
                };
                candles.iter().map(of).collect::<Vec<_>>()
            };
            let candles: Vec<_> = Interval::ALL.map(candles).into();
            let value = json!({
                "definition": *definition, "book": format!("{head:?} {sides:?}"),
                "candles": candles,
                "ticker": format!("{:?}", (ticker.last, ticker.day, ticker.bid, ticker.ask)),
            });
            all.insert(market.to_owned(), value);
        }
        let every = OrderQuery { most: 10_000, ..OrderQuery::default() };
        let orders: Vec<_> = log.orders(&every).unwrap().into_iter().map(|one| one.state).collect();
        let topic = |name: &str| {
            let span = Span { after: 0, until: u64::MAX, most: 10_000, most_bytes: usize::MAX };
            let events = log.read_span(&[name.into()], &span).unwrap();
            events.into_iter().map(|one| (one.body, one.update)).collect::<Vec<_>>()
        };
        let names = ["trades:L-U", "trades:O-U", "orders:O-U", "message:t", "message:u"];
        let accounts = ["orders@one", "orders@two", "orders:O-U@one", "orders:O-U@two"];
        let topics: BTreeMap<_, _> =
            names.into_iter().chain(accounts).map(|name| (name, topic(name))).collect();
        json!({"markets": all, "orders": orders, "topics": topics})
    }

    /// Where each market and topic is, which is what a restart must leave as it is.
    fn positions(&self) -> Value {
        let markets = self.live.definitions().into_iter().map(|definition| {
            let market = &*definition.market;
            let head = self.live.snapshot(market, 1).map(|book| book.head);
            (market.to_owned(), head.map(|head| (head.epoch.to_string(), head.sequence)))
        });
        let topics = ["trades:L-U", "orders:O-U", "orders@one", "message:t"];
        let topics = topics.map(|topic| self.live.epochs(topic).epoch().to_string());
        json!({"markets": markets.collect::<BTreeMap<_, _>>(), "topics": topics})
    }
}

fn define(market: &str, status: &str, height: &str) -> String {
    format!(
        r#"{{"kind":"market","market":"{market}","base":"A","quote":"U","priceDecimals":1,"sizeDecimals":0,"status":"{status}"{height}}}"#
    )
}

fn at(height: Option<u64>) -> String {
    height.map(|height| format!(r#","height":{height}"#)).unwrap_or_default()
}

/// Whatever a chain may bring, most of it in blocks.
struct Chain {
    random: StdRng,
    height: u64,
    made: u64,
    orders: Vec<String>,
}

impl Chain {
    fn line(&mut self) -> (Option<u64>, String) {
        self.made += 1;
        let number = self.made;
        let random = &mut self.random;
        let height = random.random_bool(0.8).then_some(self.height);
        let place = at(height);
        let time = time_text(NOW - random.random_range(0..600) * 1_000_000);
        let time = format!(r#","time":"{time}""#);
        let (price, size) = (random.random_range(1..9), random.random_range(0..4));
        let order = match self.orders.len() {
            0 => "none".to_owned(),
            count => self.orders[random.random_range(count.saturating_sub(12)..count)].clone(),
        };
        let line = match random.random_range(0..12) {
            0 => define(
                if random.random_bool(0.5) { "L-U" } else { "O-U" },
                if random.random_bool(0.5) { "ACTIVE" } else { "HALTED" },
                &format!("{place}{time}"),
            ),
            1 => format!(
                r#"{{"kind":"book.snapshot","market":"L-U","bids":[["{price}","2"]],"asks":[["1{price}","3"]]{place}{time}}}"#
            ),
            2..=3 => format!(
                r#"{{"kind":"book.delta","market":"L-U","bids":[["{price}","{size}"]],"asks":[["1{price}","{size}"]]{place}{time}}}"#
            ),
            4..=5 => format!(
                r#"{{"kind":"trade","market":"{}","id":"t{number}","price":"{price}.5","size":"{}"{place}{time}}}"#,
                if random.random_bool(0.5) { "L-U" } else { "O-U" },
                size + 1,
            ),
            6 => format!(
                r#"{{"kind":"message","topic":"{}","data":{number}{place}{time}}}"#,
                if random.random_bool(0.5) { "t" } else { "u" },
            ),
            7..=8 => {
                self.orders.push(format!("o{number}"));
                let side = if random.random_bool(0.5) { "BUY" } else { "SELL" };
                let account =
                    ["", r#","account":"one""#, r#","account":"two""#][random.random_range(0..3)];
                format!(
                    r#"{{"kind":"order.placed","market":"O-U","order":"o{number}","side":"{side}","price":"{price}","size":"{}"{account}{place}{time}}}"#,
                    size + 3,
                )
            }
            9..=10 => format!(
                r#"{{"kind":"order.filled","order":"{order}","price":"{price}","size":"1","boxId":"b{number}"{place}{time}}}"#
            ),
            _ => format!(r#"{{"kind":"order.canceled","order":"{order}"{place}{time}}}"#),
        };
        (height, line)
    }
}

/// What happened on the way, so that a test that undid nothing fails.
#[derive(Debug, Default)]
struct Seen {
    undone: u64,
    fallen: u64,
    undone_definitions: u64,
    renumbers: u64,
}

/// A hub that receives blocks and their rollback, and one that receives only the valid events.
fn compare(seed: u64, steps: usize) -> Seen {
    let mut chain =
        Chain { random: StdRng::seed_from_u64(seed), height: 100, made: 0, orders: Vec::new() };
    let mut hub = Hub::start();
    let mut standing: Vec<(Option<u64>, String)> = Vec::new();
    let mut seen = Seen::default();
    for market in ["L-U", "O-U"] {
        let line = define(market, "ACTIVE", "");
        hub.take(&line);
        standing.push((None, line));
    }
    for step in 0..steps {
        match chain.random.random_range(0..40) {
            0..=2 => chain.height += 1,
            3 => {
                let from = chain.height.saturating_sub(chain.random.random_range(0..4));
                hub.take(&format!(r#"{{"kind":"block.reverted","height":{from}}}"#));
                let goes = |height: &Option<u64>| height.is_some_and(|height| height >= from);
                let undone = standing.iter().filter(|(height, _)| goes(height));
                seen.undone += undone.clone().count() as u64;
                let definitions = undone.filter(|(_, line)| line.contains(r#""kind":"market""#));
                seen.undone_definitions += definitions.count() as u64;
                seen.renumbers += 1;
                standing.retain(|(height, _)| !goes(height));
                chain.height = from;

                let plain = Hub::start();
                let before = standing.len();
                standing.retain(|(_, line)| plain.send(line).accepted == 1);
                seen.fallen += (before - standing.len()) as u64;
                let state = hub.state();
                assert_eq!(state, plain.state(), "seed {seed}, step {step}");
                // Otherwise it goes on with what it holds.
                if chain.random.random_bool(0.5) {
                    let positions = hub.positions();
                    hub.restart();
                    assert_eq!(hub.state(), state, "restarted; seed {seed}, step {step}");
                    assert_eq!(hub.positions(), positions, "restarted; seed {seed}, step {step}");
                }
            }
            _ => {
                let (height, line) = chain.line();
                if hub.send(&line).accepted == 1 {
                    standing.push((height, line));
                }
            }
        }
    }
    seen
}

#[test]
fn a_hub_that_undid_blocks_is_one_that_never_saw_them_also_after_a_restart() {
    let mut all = Seen::default();
    for seed in 0..8 {
        let seen = compare(seed, 400);
        all.undone += seen.undone;
        all.fallen += seen.fallen;
        all.undone_definitions += seen.undone_definitions;
        all.renumbers += seen.renumbers;
    }
    println!("{all:?}");
    assert!(all.undone > 100 && all.fallen > 10 && all.undone_definitions > 5, "{all:?}");
}

#[test]
fn a_market_whose_whole_book_was_undone_may_take_another_of_other_decimals() {
    let hub = Hub::start();
    let placed = |price: &str| {
        format!(
            r#"{{"kind":"order.placed","market":"L-U","order":"o","side":"BUY","price":"{price}","size":"1"}}"#
        )
    };
    let finer = define("L-U", "ACTIVE", "").replace(r#""priceDecimals":1"#, r#""priceDecimals":3"#);
    hub.take(&define("L-U", "ACTIVE", ""));
    for line in [
        r#"{"kind":"book.delta","market":"L-U","bids":[["1","2"]],"asks":[],"height":100}"#,
        r#"{"kind":"trade","market":"L-U","price":"1","size":"2","height":101}"#,
    ] {
        hub.take(line);
        assert_eq!(hub.send(&placed("1")).accepted, 0, "its book comes from levels");
        assert_eq!(hub.send(&finer).accepted, 0, "there are prices of its decimals");
    }
    hub.take(r#"{"kind":"block.reverted","height":100}"#);
    hub.take(&finer);
    hub.take(&placed("1.005"));
    let bids = hub.live.snapshot("L-U", 9).unwrap().bids;
    assert_eq!(bids.iter().map(|one| (one.price, one.orders)).collect::<Vec<_>>(), [(1_005, 1)]);
}
