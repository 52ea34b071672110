//! A market whose book is summed from single orders: a venue's recorded day of orders, or a
//! generated one, against the hub. A client that knows only our frames has, after every event, the
//! size and the number of orders at each price that a plain list of the orders gives.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

use crate::feeds::capture::{converted, recorded, until_read};
use crate::harness::client::PATIENCE;
use crate::harness::follower::units;
use crate::harness::{Client, Hub, loud};

const CAPTURE: &str = "six-venues-2026/bitstamp_live_orders.jsonl";
/// Of the recording: as many were created and changed, and of those deleted 98 were placed before
/// it began, as was one of the changed. Nothing says what these were, so the hub refuses them.
const CREATED: usize = 248;
const OF_EARLIER_ORDERS: usize = 99;

/// Of `lines`, the definition first.
pub struct Orders {
    pub market: String,
    pub definition: String,
    pub events: Vec<String>,
    /// The levels after each event that a hub takes, from none at all on.
    pub books: Vec<Levels>,
    refused: usize,
}

/// Side and price to size and number of orders.
pub type Levels = BTreeMap<(String, u128), (u128, u64)>;

impl Orders {
    pub fn load() -> Self {
        let Some(capture) = recorded(CAPTURE) else {
            loud::without_capture(&format!(
                "the recorded capture {CAPTURE} is absent: set SPREADLY_TEST_DATA to its folder. \
                 Running on generated orders instead"
            ));
            return Self::of(generated(20_260_824));
        };
        let orders = Self::of(converted(&capture));
        let of = |kind: &str| orders.events.iter().filter(|line| line.contains(kind)).count();
        // 250 deleted: 248 with something left, two filled to the end; and two filled in part.
        assert_eq!(["placed", "canceled", "filled"].map(of), [CREATED, 248, 4]);
        assert_eq!(orders.refused, OF_EARLIER_ORDERS);
        orders
    }

    fn of(mut lines: Vec<String>) -> Self {
        let definition = lines.remove(0);
        let event: Value = serde_json::from_str(&definition).unwrap();
        let market = event["market"].as_str().unwrap().to_owned();
        let decimals = decimals(&definition);
        let mut open = BTreeMap::<String, (String, u128, u128)>::new();
        let (mut books, mut refused) = (vec![Levels::new()], 0);
        for line in &lines {
            let event: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| event[key].as_str().unwrap().to_owned();
            let size = || units(&text("size"), decimals.1);
            let order = text("order");
            let known = open.contains_key(&order);
            match event["kind"].as_str().unwrap() {
                "order.placed" => {
                    let side = if text("side") == "BUY" { "bids" } else { "asks" };
                    let price = units(&text("price"), decimals.0);
                    open.insert(order, (side.to_owned(), price, size()));
                }
                _ if !known => {
                    refused += 1;
                    continue;
                }
                "order.filled" => {
                    let left = open.get_mut(&order).unwrap();
                    left.2 -= size();
                    if left.2 == 0 {
                        open.remove(&order);
                    }
                }
                _ => drop(open.remove(&order)),
            }
            let mut book = Levels::new();
            for (side, price, size) in open.values() {
                let level = book.entry((side.clone(), *price)).or_default();
                *level = (level.0 + size, level.1 + 1);
            }
            books.push(book);
        }
        Self { market, definition, events: lines, books, refused }
    }

    /// Of prices and of sizes.
    pub fn decimals(&self) -> (usize, usize) {
        decimals(&self.definition)
    }
}

fn decimals(definition: &str) -> (usize, usize) {
    let definition: Value = serde_json::from_str(definition).unwrap();
    let decimals = |key: &str| usize::try_from(definition[key].as_u64().unwrap()).unwrap();
    (decimals("priceDecimals"), decimals("sizeDecimals"))
}

/// Orders that are placed, filled in part, filled and canceled, some of them unknown.
fn generated(seed: u64) -> Vec<String> {
    loud::say(&format!("seed {seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let mut lines = vec![crate::harness::market::definition("G-USD")];
    let mut open = BTreeMap::<u32, u32>::new();
    for number in 0..600u32 {
        let chosen = open.keys().nth(random.random_range(0..open.len().max(1))).copied();
        lines.push(match (random.random_range(0..5), chosen) {
            (0, Some(order)) => {
                open.remove(&order);
                format!(r#"{{"kind":"order.canceled","order":"{order}"}}"#)
            }
            (1 | 2, Some(order)) => {
                let left = open[&order];
                let size = random.random_range(1..=left);
                open.insert(order, left - size);
                open.retain(|_, left| *left > 0);
                format!(r#"{{"kind":"order.filled","order":"{order}","price":"1","size":"{size}"}}"#)
            }
            (3, _) => format!(r#"{{"kind":"order.canceled","order":"unknown {number}"}}"#),
            _ => {
                let (side, price) = match random.random_bool(0.5) {
                    true => ("BUY", random.random_range(80..100)),
                    false => ("SELL", random.random_range(95..120)),
                };
                let size = random.random_range(1..9);
                open.insert(number, size);
                format!(
                    r#"{{"kind":"order.placed","market":"G-USD","order":"{number}","side":"{side}","price":"{price}.5","size":"{size}"}}"#
                )
            }
        });
    }
    lines
}

/// What a client holds that knows nothing but frames.
#[derive(Default)]
pub struct Copy {
    pub levels: Levels,
    position: Option<(String, String)>,
    events: usize,
}

impl Copy {
    pub fn sequence(&self) -> Value {
        self.position.as_ref().map_or(Value::Null, |(_, sequence)| sequence.as_str().into())
    }

    pub fn apply(&mut self, frame: &Value, decimals: (usize, usize)) {
        let position = |key: &str| {
            (frame["epoch"].as_str().unwrap().into(), frame[key].as_str().unwrap().into())
        };
        match frame["__typename"].as_str().unwrap() {
            "BookSnapshot" => self.levels.clear(),
            "BookDelta" => {
                assert_eq!(self.position, Some(position("prevSequence")), "{frame}");
                self.events += usize::try_from(frame["mergedEvents"].as_u64().unwrap()).unwrap();
            }
            _ => return assert_eq!(self.position, Some(position("sequence")), "{frame}"),
        }
        self.position = Some(position("sequence"));
        for side in ["bids", "asks"] {
            for level in frame[side].as_array().unwrap() {
                let price = units(level["price"].as_str().unwrap(), decimals.0);
                let size = units(level["size"].as_str().unwrap(), decimals.1);
                let key = (side.to_owned(), price);
                match level["orders"].as_u64() {
                    Some(orders) => drop(self.levels.insert(key, (size, orders))),
                    None => {
                        assert_eq!(size, 0, "a level without its orders: {frame}");
                        assert!(self.levels.remove(&key).is_some(), "{frame}");
                    }
                }
            }
        }
    }
}

const LEVELS: &str = "bids { price size orders } asks { price size orders }";

/// The subscription that a [`Copy`] follows.
pub fn following(market: &str, depth: u32) -> String {
    format!(
        r#"subscription {{ orderBook(market: "{market}", depth: {depth}) {{
            __typename epoch sequence state
            ... on BookSnapshot {{ {LEVELS} }}
            ... on BookDelta {{ prevSequence mergedEvents {LEVELS} }} }} }}"#
    )
}

#[tokio::test]
async fn each_order_of_the_venue_moves_the_size_and_the_count_of_its_level() {
    let orders = Orders::load();
    let hub = Hub::start();
    hub.append_lines("orders.ndjson", &[&orders.definition]);
    let mut client = Client::knowing(hub.address(), &orders.market).await;
    let decimals = orders.decimals();
    client.subscribe("book", &following(&orders.market, 1_000)).await;
    let mut copy = Copy::default();
    copy.apply(&client.message().await["payload"]["data"]["orderBook"], decimals);
    for piece in orders.events.chunks(40) {
        hub.append_lines("orders.ndjson", piece);
    }
    // A window that holds every level changes with every event but those of orders that never rest.
    let all = orders.books.len() - 1;
    let following = async {
        while copy.events < all {
            let message = client.message().await;
            copy.apply(&message["payload"]["data"]["orderBook"], decimals);
            assert_eq!(copy.levels, orders.books[copy.events], "after {} events", copy.events);
        }
    };
    tokio::time::timeout(PATIENCE, following).await.expect("every event is covered by a frame");

    until_read(&hub, all + 1);
    let feeds = hub.query("{ feeds { refusedTotal lastRefusal { place reason } } }");
    assert_eq!(feeds["feeds"][0]["refusedTotal"], orders.refused.to_string());
    let reason = feeds["feeds"][0]["lastRefusal"]["reason"].as_str().unwrap();
    assert!(
        reason.ends_with("is not open: it was never placed, or is filled or canceled already"),
        "{reason}"
    );
    loud::say(&format!("{all} events taken, {} refused, each frame compared", orders.refused));
}
