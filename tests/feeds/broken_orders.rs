//! A recorded day of a venue's orders with one line broken at random: no frame that says `LIVE` has
//! another book than the venue's. The source heals it, and another market never notices.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use super::broken_captures::{
    AT_ONCE, DEPTH, END, FAULTS, Fault, SEEDS_OF_SOAK, WIDE_LIMITS, append_bytes, follow_end,
    is_end,
};
use crate::api::orders::{Copy, Levels, Orders, following};
use crate::harness::client::PATIENCE;
use crate::harness::{Client, Hub, loud};

const SEEDS: u64 = 12;

/// One of the two markets of a trial. Both have the same orders, and a line of the first is broken.
struct Market {
    name: String,
    definition: String,
    /// What a source sends that knows all open orders.
    lines: Vec<String>,
    copy: Copy,
    /// The venue's book that the copy was last, by the number of lines.
    at: usize,
    is_live: bool,
    was_live: bool,
    /// It was live, and then it was not.
    fell: bool,
}

impl Market {
    fn new(orders: &Orders, name: String) -> Self {
        let own = |line: &str| line.replacen(&orders.market, &name, 1);
        // Orders of two markets can't have the same id.
        let id = format!("\"order\":\"{name}.");
        let mut lines = Vec::new();
        let mut known = BTreeSet::new();
        for (number, line) in orders.events.iter().enumerate() {
            let event: Value = serde_json::from_str(line).unwrap();
            let order = event["order"].as_str().unwrap().to_owned();
            // What was placed before the recording began, nobody knows.
            if event["kind"] == "order.placed" || known.contains(&order) {
                known.insert(order);
                let line = own(line).replacen("\"order\":\"", &id, 1);
                lines.push(line.replacen(",", &format!(",\"id\":\"{number}\","), 1));
            }
        }
        let definition = own(&orders.definition);
        let (copy, at) = (Copy::default(), 0);
        let (is_live, was_live, fell) = (false, false, false);
        Self { name, definition, lines, copy, at, is_live, was_live, fell }
    }
}

struct Trial<'a> {
    context: String,
    orders: &'a Orders,
    markets: [Market; 2],
    /// Both markets' lines in turn.
    lines: Vec<Vec<u8>>,
    /// The orders of the lines that were lost.
    lost: BTreeSet<String>,
    file: String,
    /// A topic that has an event after the last line.
    end: String,
    is_exact: bool,
    /// Its book was not live when all was read.
    in_doubt: bool,
}

impl<'a> Trial<'a> {
    fn new(seed: u64, orders: &'a Orders, faults: &[Fault]) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let markets = ["A", "B"].map(|side| Market::new(orders, format!("S{seed}{side}-USD")));
        let pairs = markets[0].lines.iter().zip(&markets[1].lines);
        let mut lines: Vec<Vec<u8>> = pairs
            .flat_map(|(one, other)| [one.clone().into_bytes(), other.clone().into_bytes()])
            .collect();
        let at = 2 * random.random_range(0..lines.len() / 2);
        let is_number = |fault: Fault| {
            matches!(fault, Fault::TooManyDecimals | Fault::NegativeSize | Fault::SizeAsNumber)
        };
        let has_numbers = markets[0].lines[at / 2].contains("\"price\"");
        let possible: Vec<_> =
            faults.iter().copied().filter(|fault| has_numbers || !is_number(*fault)).collect();
        let fault = *possible.choose(&mut random).unwrap();
        let broken = fault.breaks(&lines[at], &markets[0].name, &mut random);
        let shown = String::from_utf8_lossy(&broken[..broken.len().min(300)]).into_owned();
        let context = format!("seed {seed}, {fault:?} in line {at}: {shown}");
        let order = |line: &[u8]| {
            let event: Value = serde_json::from_slice(line).unwrap();
            event["order"].as_str().unwrap().to_owned()
        };
        let mut lost = BTreeSet::from([order(&lines[at])]);
        // Any book may miss an event of these kinds.
        let is_doubtful = ["source.gap", "block.reverted"].iter().any(|kind| shown.contains(kind));
        let is_exact = !is_doubtful && fault.is_exact(&broken, &markets[0].name);
        lines[at] = broken;
        if fault == Fault::Joined {
            let next = lines.remove(at + 1);
            lost.insert(order(&next));
            lines[at].extend(next);
        }
        let (file, end) = (format!("{seed}.ndjson"), format!("end of {seed}"));
        Self { context, orders, markets, lines, lost, file, end, is_exact, in_doubt: false }
    }

    /// Follows both markets while the file is read, then has it healed.
    async fn run(mut self, hub: &Hub) -> Self {
        let complete =
            |market: &str| json!({ "kind": "orders.complete", "market": market }).to_string();
        for market in &self.markets {
            hub.append_lines(&self.file, &[&market.definition, &complete(&market.name)]);
        }
        let mut client = Client::knowing(hub.address(), &self.markets[1].name).await;
        follow_end(&mut client, &self.end).await;
        for market in &self.markets {
            client.subscribe(&market.name, &following(&market.name, DEPTH)).await;
        }
        let mut unanswered = self.markets.len() + 1;
        while unanswered > 0 {
            let message = client.message().await;
            let frame = &message["payload"]["data"]["orderBook"];
            unanswered -=
                usize::from(message["id"] == END || frame["__typename"] == "BookSnapshot");
            self.take(&message);
        }
        self.append(hub, &self.lines);
        self.until_end(&mut client).await;
        self.in_doubt = !self.markets[0].is_live;
        let fell = self.markets[1].fell;
        // The source sends again what may be lost, of each order from its first event on.
        let of_lost = |line: &&String| {
            let event: Value = serde_json::from_str(line).unwrap();
            self.lost.contains(event["order"].as_str().unwrap())
        };
        let lines = self.markets.iter().flat_map(|market| &market.lines);
        let lines = lines.filter(of_lost).cloned();
        // Meanwhile the book has orders that were final before.
        let names = self.markets.iter().map(|market| &market.name);
        let begin = names.clone().map(|market| {
            json!({ "kind": "orders.gap", "market": market, "reason": "sent again" }).to_string()
        });
        let all = begin.chain(lines).chain(names.map(|market| complete(market)));
        let healing: Vec<_> = all.map(String::into_bytes).collect();
        self.append(hub, &healing);
        self.until_end(&mut client).await;
        for market in &self.markets {
            let is_last = market.copy.levels == *self.orders.books.last().unwrap();
            assert!(market.is_live && is_last, "{}: {} is not healed", self.context, market.name);
        }
        if self.is_exact {
            assert!(!fell, "{}: the other one missed nothing", self.context);
        }
        self
    }

    /// Appends lines, and an event of the topic at their end.
    fn append(&self, hub: &Hub, lines: &[Vec<u8>]) {
        let end = json!({ "kind": "message", "topic": self.end, "data": 1 }).to_string();
        let mut text = lines.join(&b'\n');
        text.push(b'\n');
        text.extend(end.into_bytes());
        text.push(b'\n');
        append_bytes(&hub.feed(&self.file), &text);
    }

    /// Takes what comes until the end of the file was read, and both books after it.
    async fn until_end(&mut self, client: &mut Client) {
        loop {
            let message = client.message().await;
            if is_end(&message) {
                break;
            }
            self.take(&message);
        }
        let names = self.markets.each_ref().map(|market| market.name.clone());
        for (place, name) in names.iter().enumerate() {
            let query = format!("{{ orderBook(market: \"{name}\") {{ sequence }} }}");
            client.subscribe("look", &query).await;
            let last = loop {
                let message = client.message().await;
                match message["id"] == "look" && message["type"] == "next" {
                    true => break message["payload"]["data"]["orderBook"]["sequence"].clone(),
                    false => self.take(&message),
                }
            };
            while self.markets[place].copy.sequence() != last {
                let message = client.message().await;
                self.take(&message);
            }
        }
    }

    /// A frame that says `LIVE` has a book of the venue, no older than the one before.
    fn take(&mut self, message: &Value) {
        let id = message["id"].as_str().unwrap_or_else(|| panic!("{}: {message}", self.context));
        let Some(own) = self.markets.iter_mut().find(|market| market.name == id) else { return };
        let frame = &message["payload"]["data"]["orderBook"];
        assert!(frame.is_object(), "{}: {message}", self.context);
        own.copy.apply(frame, self.orders.decimals());
        own.is_live = frame["state"] == "LIVE";
        own.was_live |= own.is_live;
        own.fell |= own.was_live && !own.is_live;
        if own.is_live {
            let is_own = |book: &Levels| *book == own.copy.levels;
            let found = self.orders.books[own.at..].iter().position(is_own);
            let Some(found) = found else {
                panic!("{}: {id} is LIVE with a book that its venue never had", self.context);
            };
            own.at += found;
        }
    }
}

#[tokio::test]
async fn a_venues_orders_with_a_line_broken_at_random_are_never_live_and_wrong() {
    let soak = std::env::var_os("SPREADLY_SOAK").is_some_and(|soak| soak == "1");
    let orders = Orders::load();
    let (seeds, faults) = match soak {
        true => (SEEDS_OF_SOAK, &FAULTS[..]),
        false => (SEEDS, &FAULTS[..FAULTS.len() - 1]),
    };
    let (mut exact, mut in_doubt) = (0, 0);
    let all: Vec<_> = (0..seeds).collect();
    for some in all.chunks(AT_ONCE) {
        let hub = Hub::start_with(&WIDE_LIMITS);
        let trials = some.iter().map(|seed| Trial::new(*seed, &orders, faults).run(&hub));
        let done = tokio::time::timeout(PATIENCE * 10, join_all(trials)).await;
        for trial in done.expect("every line is read, and every book is whole in the end") {
            exact += usize::from(trial.is_exact);
            in_doubt += usize::from(trial.in_doubt);
        }
    }
    loud::say(&format!(
        "{seeds} seeds: {exact} lines named their market, {in_doubt} books were in doubt at the end"
    ));
    assert!(exact > 0 && in_doubt > 0);
}
