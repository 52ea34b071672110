//! Lines that are broken at random places: a client's book is as its source meant it, or it is not
//! LIVE.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use super::client::{Client, Heard};
use super::one_thread::{Home, Hub};
use super::paused;

const SEEDS: u64 = 100;
const STEPS: usize = 60;
const MARKETS: [&str; 2] = ["A-B", "C-D"];

type Levels = BTreeMap<String, String>;

/// A market as its source means it, and as a client has it.
struct Market {
    name: &'static str,
    meant: Levels,
    client: Client,
    book: Levels,
    state: String,
}

fn line(kind: &str, name: &str, levels: &[(String, String)]) -> String {
    json!({ "kind": kind, "market": name, "bids": levels, "asks": [] }).to_string()
}

fn apply(book: &mut Levels, levels: &[(String, String)]) {
    for (price, size) in levels {
        book.insert(price.clone(), size.clone());
    }
    book.retain(|_, size| size != "0.0");
}

impl Market {
    async fn new(hub: &Hub, name: &'static str) -> Self {
        let definition = json!({ "kind": "market", "market": name, "base": "A", "quote": "B",
                                 "priceDecimals": 1, "sizeDecimals": 1 });
        hub.feed(&[definition.to_string(), line("book.snapshot", name, &[])]).await;
        let mut client = hub.connect(1 << 16).await;
        let levels = "bids { price size }";
        let query = format!(
            "subscription {{ orderBook(market: \"{name}\", depth: 100) {{ state
             ... on BookSnapshot {{ reason {levels} }} ... on BookDelta {{ {levels} }} }} }}"
        );
        hub.during(client.subscribe("s", &query)).await;
        let (meant, book) = (Levels::new(), Levels::new());
        Self { name, meant, client, book, state: String::new() }
    }

    /// Its source's next event.
    fn event(&mut self, random: &mut StdRng) -> String {
        let levels: Vec<_> = (0..random.random_range(1..4))
            .map(|_| {
                let (price, size) = (random.random_range(1..30), random.random_range(0..4));
                (format!("{price}.5"), format!("{size}.0"))
            })
            .collect();
        if random.random_bool(0.1) {
            let once: Levels = levels.into_iter().filter(|(_, size)| size != "0.0").collect();
            self.meant = once.clone();
            return line("book.snapshot", self.name, &Vec::from_iter(once));
        }
        apply(&mut self.meant, &levels);
        line("book.delta", self.name, &levels)
    }

    async fn read(&mut self, hub: &Hub) {
        hub.settle().await;
        for heard in hub.during(self.client.read()).await {
            let Heard::Message(message) = heard else { panic!("{heard:?}") };
            let frame = &message["payload"]["data"]["orderBook"];
            self.state = frame["state"].as_str().unwrap().to_owned();
            let Ok(levels) =
                serde_json::from_value::<Vec<BTreeMap<String, String>>>(frame["bids"].clone())
            else {
                continue;
            };
            if frame["reason"] != Value::Null {
                self.book.clear();
            }
            let pair = |level: &Levels| (level["price"].clone(), level["size"].clone());
            apply(&mut self.book, &levels.iter().map(pair).collect::<Vec<_>>());
        }
    }
}

/// A line that can't be read, whatever it was.
fn broken(text: &str, random: &mut StdRng) -> String {
    let at = random.random_range(1..text.len());
    match random.random_range(0..7) {
        0 => text[..at].to_owned(),
        1 => format!("{}\u{1}{}", &text[..at], &text[at..]),
        2 => text.replace(".5\"", ".55\""),
        3 => text.replace("\"book.", "\"bock."),
        4 => text.replace("book.snapshot", "trade").replace("book.delta", "trade"),
        5 => {
            let name = format!("-X{}\"", random.random::<u64>());
            text.replace("-B\"", &name).replace("-D\"", &name)
        }
        _ => text.replace("\"bids\"", "\"bid\""),
    }
}

#[test]
fn after_a_line_that_was_broken_at_random_no_book_is_live_and_wrong() {
    let mut stale = 0;
    for seed in 0..SEEDS {
        let found = std::rc::Rc::new(std::cell::Cell::new(0));
        let counted = found.clone();
        paused(|began| async move {
            let mut random = StdRng::seed_from_u64(seed);
            let home = Home::new(began);
            let hub = home.start();
            let mut markets = Vec::new();
            for name in MARKETS {
                markets.push(Market::new(&hub, name).await);
            }
            for step in 0..STEPS {
                let place = *[0, 1].choose(&mut random).unwrap();
                let line = markets[place].event(&mut random);
                let is_snapshot = line.contains("book.snapshot");
                let breaks = random.random_bool(0.05);
                let written = if breaks { broken(&line, &mut random) } else { line };
                let other_before = markets[1 - place].state.clone();
                hub.feed(std::slice::from_ref(&written)).await;
                for market in &mut markets {
                    market.read(&hub).await;
                    let is_right = market.book == market.meant;
                    let context =
                        format!("seed {seed}, step {step}: {} after {written}", market.name);
                    assert!(is_right || market.state != "LIVE", "{context}");
                    counted.set(counted.get() + usize::from(market.state != "LIVE"));
                }
                let own = &markets[place];
                if is_snapshot && !breaks {
                    assert_eq!((own.state.as_str(), &own.book), ("LIVE", &own.meant));
                }
                if written.contains(&format!("\"market\":\"{}\"", own.name))
                    && other_before == "LIVE"
                {
                    assert_eq!(markets[1 - place].state, "LIVE", "seed {seed}, step {step}");
                }
            }
        });
        stale += found.get();
    }
    assert!(stale > SEEDS as usize, "lines were broken: {stale}");
}
