//! Recorded captures of seven venues with one line broken at random: no frame that says `LIVE` has
//! another book than the venue's. The next snapshot heals it, and other markets never notice.
//!
//! The books of the venue are kept here, from the lines before one of them was broken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use super::capture::{converted_with, recorded};
use crate::harness::client::PATIENCE;
use crate::harness::{Client, Follower, Hub, follower, loud};

/// File and REST snapshot of each capture.
const CAPTURES: [(&str, Option<&str>); 7] = [
    ("kraken-2021/KRAKEN.ws.50.0", None),
    ("six-venues-2026/kraken_book.jsonl", None),
    ("six-venues-2026/okx_books.jsonl", None),
    ("six-venues-2026/coinbase_l2.jsonl", None),
    ("six-venues-2026/bybit_orderbook.jsonl", None),
    ("six-venues-2026/binance_us_depth.jsonl", Some("six-venues-2026/binance_us_snapshot.json")),
    ("six-venues-2026/bitstamp_diff.jsonl", Some("six-venues-2026/bitstamp_snapshot.json")),
];
const SEEDS: u64 = 21;
pub(super) const SEEDS_OF_SOAK: u64 = 1_000;
/// Seeds that one hub has at once: each is a file with markets of its own.
pub(super) const AT_ONCE: usize = 25;
/// All of them come from one address, and nobody shares their streams.
pub(super) const WIDE_LIMITS: [&str; 3] = [
    "limits.cost_rate=1000000000",
    "limits.cost_burst=1000000000",
    "limits.stream_cost_rate=1000000000",
];
/// Lines of a longer capture that one seed plays. The snapshots before them are the venue's books
/// at that point.
const LINES_PLAYED: usize = 400;
/// Deeper than any of these books.
pub(super) const DEPTH: u32 = 5_000;
/// Longer than the longest line that a hub takes.
const TOO_LONG: usize = 1 << 20;

/// Ids of operations that follow no book.
pub(super) const END: &str = "end";
const LOOK: &str = "look";

/// How a line is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    TooManyDecimals,
    NegativeSize,
    SizeAsNumber,
    Truncated,
    /// Its end is lost, with the newline: it becomes one line with the next one.
    Joined,
    Garbage,
    NotUtf8,
    MissingField,
    WrongKind,
    TooLong,
    /// The hub waits ten seconds for the definition, so this is for the soak.
    UnknownMarket,
}

pub(super) const FAULTS: [Fault; 11] = [
    Fault::TooManyDecimals,
    Fault::NegativeSize,
    Fault::SizeAsNumber,
    Fault::Truncated,
    Fault::Joined,
    Fault::Garbage,
    Fault::NotUtf8,
    Fault::MissingField,
    Fault::WrongKind,
    Fault::TooLong,
    Fault::UnknownMarket,
];

/// A capture as a hub reads it.
struct Capture {
    name: &'static str,
    definitions: Vec<String>,
    books: Vec<String>,
}

impl Capture {
    fn load((name, snapshot): (&'static str, Option<&str>)) -> Option<Self> {
        let file = recorded(name)?;
        let snapshot = snapshot.map(|snapshot| recorded(snapshot).unwrap());
        let lines = converted_with(&file, snapshot.as_deref());
        let (definitions, books): (Vec<_>, Vec<_>) =
            lines.into_iter().partition(|line| line.starts_with(r#"{"kind":"market""#));
        assert!(!definitions.is_empty() && books.len() > definitions.len(), "{name}");
        Some(Self { name, definitions, books })
    }
}

/// A venue's market: its book after the lines so far, what follows, and a client's copy.
struct Market {
    decimals: (usize, usize),
    venue: Follower,
    ahead: VecDeque<Value>,
    /// After all of it.
    last: Follower,
    copy: Follower,
    is_live: bool,
    was_live: bool,
    /// It was live, and then it was not.
    fell: bool,
}

impl Market {
    fn new(definition: &Value) -> Self {
        let number = |key: &str| usize::try_from(definition[key].as_u64().unwrap()).unwrap();
        let decimals = (number("priceDecimals"), number("sizeDecimals"));
        let venue = Follower::new(decimals.0, decimals.1);
        Self {
            decimals,
            venue: venue.clone(),
            ahead: VecDeque::new(),
            last: venue.clone(),
            copy: venue,
            is_live: false,
            was_live: false,
            fell: false,
        }
    }

    /// The venue's last book as an event.
    fn snapshot(&self, name: &str) -> String {
        let (price, size) = self.decimals;
        let side = |levels: &follower::Levels| -> Vec<[String; 2]> {
            levels
                .iter()
                .map(|(own, units)| [printed(*own, price), printed(*units, size)])
                .collect()
        };
        let (bids, asks) = (side(&self.last.bids), side(&self.last.asks));
        json!({ "kind": "book.snapshot", "market": name, "bids": bids, "asks": asks }).to_string()
    }
}

fn is_same(one: &Follower, other: &Follower) -> bool {
    (&one.bids, &one.asks) == (&other.bids, &other.asks)
}

fn printed(units: u128, decimals: usize) -> String {
    let text = format!("{units:0>width$}", width = decimals + 1);
    let (whole, fraction) = text.split_at(text.len() - decimals);
    if decimals == 0 { whole.to_owned() } else { format!("{whole}.{fraction}") }
}

fn market_of(line: &str) -> String {
    let event: Value = serde_json::from_str(line).unwrap();
    event["market"].as_str().unwrap().to_owned()
}

/// One seed.
struct Trial {
    context: String,
    file: String,
    /// A topic that has an event after the last line.
    end: String,
    definitions: Vec<String>,
    lines: Vec<Vec<u8>>,
    markets: BTreeMap<String, Market>,
    broken: String,
    /// The books that are not LIVE after the last line.
    in_doubt: BTreeSet<String>,
    /// The line still says which market it was of.
    is_exact: bool,
}

impl Trial {
    fn new(seed: u64, capture: &Capture, faults: &[Fault]) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        // Markets of its own in each trial of a hub.
        let own = format!("\"market\":\"S{seed}.");
        let renamed = |line: &String| line.replacen("\"market\":\"", &own, 1);
        let definitions: Vec<_> = capture.definitions.iter().map(renamed).collect();
        let mut markets: BTreeMap<_, _> = definitions
            .iter()
            .map(|line| (market_of(line), Market::new(&serde_json::from_str(line).unwrap())))
            .collect();

        let at = random.random_range(0..capture.books.len());
        let begin = match capture.books.len() {
            ..=LINES_PLAYED => 0,
            _ => at.saturating_sub(random.random_range(0..LINES_PLAYED)),
        };
        let end = capture.books.len().min(begin + LINES_PLAYED);
        let mut begun = BTreeSet::new();
        for line in capture.books[..begin].iter().map(renamed) {
            let name = market_of(&line);
            let event = serde_json::from_str(&line).unwrap();
            markets.get_mut(&name).unwrap().last.apply_event(&event);
            begun.insert(name);
        }
        let earlier = begun.iter().map(|name| markets[name].snapshot(name));
        let lines: Vec<_> = earlier.chain(capture.books[begin..end].iter().map(renamed)).collect();
        let at = begun.len() + at - begin;
        for line in &lines {
            let event = serde_json::from_str(line).unwrap();
            let own = markets.get_mut(&market_of(line)).unwrap();
            own.last.apply_event(&event);
            own.ahead.push_back(event);
        }

        let broken = market_of(&lines[at]);
        let mut lines: Vec<_> = lines.into_iter().map(String::into_bytes).collect();
        let fault = *faults.choose(&mut random).unwrap();
        let fault = match lines.get(at + 1) {
            None if fault == Fault::Joined => Fault::Truncated,
            _ => fault,
        };
        let line = fault.breaks(&lines[at], &broken, &mut random);
        let shown = String::from_utf8_lossy(&line[..line.len().min(300)]).into_owned();
        let context = format!("seed {seed}, {}, {fault:?} in line {at}: {shown}", capture.name);
        let is_exact = fault.is_exact(&line, &broken);
        lines[at] = line;
        if fault == Fault::Joined {
            let next = lines.remove(at + 1);
            lines[at].extend(next);
        }
        let (file, end) = (format!("{seed}.ndjson"), format!("end of {seed}"));
        let in_doubt = BTreeSet::new();
        Self { context, file, end, definitions, lines, markets, broken, in_doubt, is_exact }
    }

    /// Follows every market while the file is read, then has it healed.
    async fn run(mut self, hub: &Hub) -> Self {
        hub.append_lines(&self.file, &self.definitions);
        let last = market_of(self.definitions.last().unwrap());
        let mut client = Client::knowing(hub.address(), &last).await;
        follow_end(&mut client, &self.end).await;
        for name in self.markets.keys() {
            let fields = follower::FIELDS;
            let query = format!(
                "subscription {{ orderBook(market: \"{name}\", depth: {DEPTH})
                 {{ state {fields} }} }}"
            );
            client.subscribe(name, &query).await;
        }
        let mut unanswered = self.markets.len() + 1;
        while unanswered > 0 {
            let message = client.message().await;
            let frame = &message["payload"]["data"]["orderBook"];
            let is_first = message["id"] == END || frame["__typename"] == "BookSnapshot";
            unanswered -= usize::from(is_first);
            self.take(&message);
        }
        let end = json!({ "kind": "message", "topic": self.end, "data": 1 }).to_string();
        self.lines.push(end.into_bytes());
        let mut text = self.lines.join(&b'\n');
        text.push(b'\n');
        append_bytes(&hub.feed(&self.file), &text);
        loop {
            let message = client.message().await;
            if is_end(&message) {
                break;
            }
            self.take(&message);
        }
        let names: Vec<_> = self.markets.keys().cloned().collect();
        for name in names {
            self.check_at_end(&name, &mut client).await;
        }
        self.heal(hub, &mut client).await;
        self
    }

    /// A frame that says `LIVE` has a book of the venue, no older than the one before.
    fn take(&mut self, message: &Value) {
        let id = message["id"].as_str().unwrap_or_else(|| panic!("{}: {message}", self.context));
        if [END, LOOK].contains(&id) {
            return;
        }
        let own = self.markets.get_mut(id).unwrap();
        own.copy.apply(message);
        own.is_live = message["payload"]["data"]["orderBook"]["state"] == "LIVE";
        own.was_live |= own.is_live;
        own.fell |= own.was_live && !own.is_live;
        while own.is_live && !is_same(&own.copy, &own.venue) {
            let Some(event) = own.ahead.pop_front() else {
                panic!("{}: {id} is LIVE with a book that its venue never had", self.context);
            };
            own.venue.apply_event(&event);
        }
    }

    /// After the last line the book that a query gives is LIVE only if it is the venue's last one.
    async fn check_at_end(&mut self, name: &str, client: &mut Client) {
        let query = format!(
            "{{ orderBook(market: \"{name}\", depth: {DEPTH})
             {{ state bids {{ price size }} asks {{ price size }} }} }}"
        );
        client.subscribe(LOOK, &query).await;
        let mut found = None;
        loop {
            let message = client.message().await;
            match message["id"].as_str() {
                Some(LOOK) if message["type"] == "complete" => break,
                Some(LOOK) => {
                    assert_eq!(message["type"], "next", "{}: {message}", self.context);
                    found = Some(message["payload"]["data"]["orderBook"].clone());
                }
                _ => self.take(&message),
            }
        }
        let found = found.unwrap();
        let own = &self.markets[name];
        let is_live = found["state"] == "LIVE";
        if is_live {
            let mut said = Follower::new(own.decimals.0, own.decimals.1);
            said.apply_snapshot(&found);
            let context = &self.context;
            assert!(is_same(&said, &own.last), "{context}: {name} is LIVE and not the venue's");
        } else {
            self.in_doubt.insert(name.to_owned());
        }
    }

    /// A snapshot of each book that is in doubt makes it whole.
    async fn heal(&mut self, hub: &Hub, client: &mut Client) {
        let lines: Vec<_> =
            self.in_doubt.iter().map(|name| self.markets[name].snapshot(name)).collect();
        hub.append_lines(&self.file, &lines);
        while !self.markets.values().all(|own| own.is_live && is_same(&own.copy, &own.last)) {
            let message = client.message().await;
            self.take(&message);
        }
        let context = &self.context;
        assert!(self.in_doubt.contains(&self.broken), "{context}: it missed a line");
        if self.is_exact {
            assert_eq!(self.in_doubt.len(), 1, "{context}: {:?}", self.in_doubt);
            let mut others = self.markets.iter().filter(|(name, _)| **name != self.broken);
            assert!(others.all(|(_, own)| !own.fell), "{context}: others missed nothing");
        }
    }
}

/// Follows a topic that has an event after the last line of a file.
pub(super) async fn follow_end(client: &mut Client, topic: &str) {
    let topic = json!(topic);
    let query = format!("subscription {{ events(topic: {topic}) {{ events {{ data }} }} }}");
    client.subscribe(END, &query).await;
}

/// Whether that event is in a message.
pub(super) fn is_end(message: &Value) -> bool {
    let events = &message["payload"]["data"]["events"]["events"];
    events.as_array().is_some_and(|events| !events.is_empty())
}

impl Fault {
    /// A line that is broken this way. What follows a line that is joined is left to the caller.
    pub(super) fn breaks(self, line: &[u8], market: &str, random: &mut StdRng) -> Vec<u8> {
        let text = std::str::from_utf8(line).unwrap();
        let at = random.random_range(1..text.len());
        let spliced = |insert: &[u8]| [&line[..at], insert, &line[at..]].concat();
        let broken = match self {
            Self::TooManyDecimals => replace_number(text, 0, |price| match price.contains('.') {
                true => format!("\"{price}000000000000000000001\""),
                false => format!("\"{price}.000000000000000000001\""),
            }),
            Self::NegativeSize => replace_number(text, 1, |_| "\"-1\"".to_owned()),
            Self::SizeAsNumber => replace_number(text, 1, |_| "1".to_owned()),
            Self::Truncated | Self::Joined => text[..at].to_owned(),
            Self::Garbage => {
                let length = random.random_range(1..200);
                let bytes = (0..length).map(|_| random.random_range(0x21..=0xff_u8));
                return bytes.collect();
            }
            Self::NotUtf8 => return spliced(&[0xff]),
            Self::MissingField => {
                let fields = ["kind", "market", "bids", "asks", "order", "side", "price"];
                let fields = fields.map(|name| format!("\"{name}\""));
                let there: Vec<_> = fields.iter().filter(|field| text.contains(*field)).collect();
                let field = there.choose(random).unwrap();
                text.replacen(field.as_str(), &field.replacen('"', "\"x", 1), 1)
            }
            Self::WrongKind => {
                let (begin, end) = text.split_at(text.find(',').unwrap());
                // Some lines of orders are whole with one of these kinds too.
                let is_whole = |kind: &str| match kind {
                    "trade" => text.contains("\"order\""),
                    "order.canceled" => begin.contains("order.") && !begin.contains("placed"),
                    other => begin.contains(&format!("\"{other}\"")),
                };
                let kinds = [
                    "book.dleta",
                    "trade",
                    "market",
                    "message",
                    "order.placed",
                    "order.canceled",
                    "block.applied",
                    "block.reverted",
                    "source.gap",
                    "",
                ];
                let kinds: Vec<_> = kinds.into_iter().filter(|kind| !is_whole(kind)).collect();
                format!("{{\"kind\":\"{}\"{end}", kinds.choose(random).unwrap())
            }
            Self::TooLong => return spliced(&vec![b' '; TOO_LONG]),
            Self::UnknownMarket => text.replacen(market, &format!("{market}X"), 1),
        };
        assert_ne!(broken, text, "{self:?}");
        broken.into_bytes()
    }

    /// Whether a line that was broken this way says which market it was of, and no other may be.
    pub(super) fn is_exact(self, line: &[u8], market: &str) -> bool {
        let named = format!("\"market\":\"{market}\"");
        let has_name = |part: &[u8]| part.windows(named.len()).any(|own| own == named.as_bytes());
        match self {
            Self::Joined | Self::TooLong => false,
            Self::NotUtf8 => has_name(line.split(|byte| *byte == 0xff).next().unwrap()),
            _ => has_name(line),
        }
    }
}

/// A line with another text in place of its first price (0) or size (1).
fn replace_number(line: &str, number: usize, other: impl Fn(&str) -> String) -> String {
    // Of a book's level, else of an order.
    let (begin, skipped) = match line.find("[[\"") {
        Some(levels) => (levels, 2 * number),
        None => (line.find(["\"price\":", "\"size\":"][number]).unwrap(), 2),
    };
    let mut quotes = line[begin..].match_indices('"').map(|(at, _)| begin + at).skip(skipped);
    let (from, to) = (quotes.next().unwrap(), quotes.next().unwrap());
    format!("{}{}{}", &line[..from], other(&line[from + 1..to]), &line[to + 1..])
}

pub(super) fn append_bytes(file: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(file).unwrap();
    file.write_all(bytes).unwrap();
}

#[tokio::test]
async fn a_venues_book_with_a_line_broken_at_random_is_never_live_and_wrong() {
    let soak = std::env::var_os("SPREADLY_SOAK").is_some_and(|soak| soak == "1");
    let captures: Vec<_> = CAPTURES.into_iter().filter_map(Capture::load).collect();
    if captures.len() < CAPTURES.len() {
        let found = captures.len();
        loud::without_capture(&format!("{found} of {} captures are there", CAPTURES.len()));
    }
    if captures.is_empty() {
        return;
    }
    let (seeds, faults) = match soak {
        true => (SEEDS_OF_SOAK, &FAULTS[..]),
        false => (SEEDS, &FAULTS[..FAULTS.len() - 1]),
    };
    let (mut exact, mut in_doubt) = (0, 0);
    let all: Vec<_> = (0..seeds).zip(captures.iter().cycle()).collect();
    for some in all.chunks(AT_ONCE) {
        let hub = Hub::start_with(&WIDE_LIMITS);
        let trials =
            some.iter().map(|(seed, capture)| Trial::new(*seed, capture, faults).run(&hub));
        let done = tokio::time::timeout(PATIENCE * 10, join_all(trials)).await;
        for trial in done.expect("every line is read, and every book is whole in the end") {
            *(if trial.is_exact { &mut exact } else { &mut in_doubt }) += 1;
        }
    }
    loud::say(&format!(
        "{seeds} seeds over {} captures: {exact} lines named their market, {in_doubt} did not",
        captures.len()
    ));
    assert!(exact > 0 && in_doubt > 0);
}
