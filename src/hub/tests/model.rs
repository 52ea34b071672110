//! What the hub should say, worked out from the events alone: books, topics and trades after each
//! event, in each epoch. Shares no code with the hub. Only positions and the names of epochs are
//! the hub's own.

use std::collections::{BTreeMap, HashMap, HashSet, hash_map};
use std::ops::Bound::{Excluded, Included};
use std::rc::Rc;

use serde_json::{Value, json};

use crate::ingest::handle::Ack;

/// Levels a side that the checksum covers.
const CHECKSUM_LEVELS: usize = 10;

/// Sizes by price, both in tenths.
pub(super) type Levels = BTreeMap<u64, u64>;

#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    pub(super) bids: Levels,
    pub(super) asks: Levels,
    /// It had a snapshot.
    is_there: bool,
}

impl PartialEq for Book {
    fn eq(&self, other: &Self) -> bool {
        (&self.bids, &self.asks) == (&other.bids, &other.asks)
    }
}

impl Book {
    fn set(&mut self, levels: &[Level]) {
        for Level { buys, price, size } in levels {
            let side = if *buys { &mut self.bids } else { &mut self.asks };
            side.insert(*price, *size);
            side.retain(|_, size| *size > 0);
        }
    }

    /// The best levels of each side.
    pub(super) fn window(&self, depth: usize) -> Self {
        let bids = self.bids.iter().rev().take(depth).map(|(price, size)| (*price, *size));
        let asks = self.asks.iter().take(depth).map(|(price, size)| (*price, *size));
        Self { bids: bids.collect(), asks: asks.collect(), ..Self::default() }
    }

    /// As the protocol defines it (P-25).
    pub(super) fn checksum(&self) -> u32 {
        let asks = self.asks.iter().take(CHECKSUM_LEVELS);
        let bids = self.bids.iter().rev().take(CHECKSUM_LEVELS);
        let text: String = asks.chain(bids).map(|(price, size)| format!("{price}{size}")).collect();
        crc32(text.as_bytes())
    }
}

/// ISO 3309, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

/// A price or a size with one decimal, in tenths.
pub(super) fn tenths(text: &Value) -> Option<u64> {
    text.as_str()?.replace('.', "").parse().ok()
}

fn decimal(tenths: u64) -> String {
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[derive(Clone, Debug)]
pub(super) struct Level {
    pub(super) buys: bool,
    pub(super) price: u64,
    pub(super) size: u64,
}

/// What an event does.
#[derive(Clone, Debug)]
pub(super) enum What {
    Define {
        market: &'static str,
        status: &'static str,
    },
    Book {
        market: &'static str,
        replaces: bool,
        levels: Vec<Level>,
    },
    Trade {
        market: &'static str,
        price: u64,
        size: u64,
    },
    Message {
        topic: &'static str,
        data: Value,
    },
    /// A line that is refused.
    Nonsense(&'static str),
}

/// An event, or a line that is none.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) id: Option<String>,
    /// Of the block whose removal removes it.
    pub(super) height: Option<u64>,
    pub(super) what: What,
}

impl Event {
    /// By what it counts once.
    fn key(&self) -> Option<String> {
        let (kind, of) = match &self.what {
            What::Nonsense(_) => return None,
            What::Define { market, .. } => ("market", market),
            What::Book { market, replaces: true, .. } => ("book.snapshot", market),
            What::Book { market, replaces: false, .. } => ("book.delta", market),
            What::Trade { market, .. } => ("trade", market),
            What::Message { topic, .. } => ("message", topic),
        };
        Some(format!("{kind} {of} {}", self.id.as_ref()?))
    }

    /// As a feed writes it.
    pub(super) fn line(&self) -> String {
        let mut line = match &self.what {
            What::Nonsense(line) => return (*line).to_owned(),
            What::Define { market, status } => json!({
                "kind": "market", "market": market, "base": "A", "quote": "B",
                "priceDecimals": 1, "sizeDecimals": 1, "status": status,
            }),
            What::Book { market, replaces, levels } => {
                let side = |wanted: bool| -> Vec<_> {
                    let own = levels.iter().filter(|level| level.buys == wanted);
                    own.map(|level| [decimal(level.price), decimal(level.size)]).collect()
                };
                let kind = if *replaces { "book.snapshot" } else { "book.delta" };
                json!({"kind": kind, "market": market, "bids": side(true), "asks": side(false)})
            }
            What::Trade { market, price, size } => json!({
                "kind": "trade", "market": market, "price": decimal(*price), "size": decimal(*size),
            }),
            What::Message { topic, data } => {
                json!({"kind": "message", "topic": topic, "data": data})
            }
        };
        if let Some(id) = &self.id {
            line["id"] = json!(id);
        }
        if let Some(height) = self.height {
            line["height"] = json!(height);
        }
        line.to_string()
    }
}

/// What follows positions of its own: "book A-B", "trades A-B" or "events news".
pub(super) type Scope = String;

/// What a scope is after an event, or the event itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Entry {
    Book(Rc<Book>),
    Item(Rc<Value>),
}

/// All that happened in one epoch of a scope, by sequence.
pub(super) type History = BTreeMap<u64, Entry>;

struct Row {
    sequence: u64,
    event: Event,
}

/// What became of the lines of a batch.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) accepted: usize,
    pub(super) known: usize,
    pub(super) refused: usize,
}

impl Counts {
    pub(super) fn of(ack: &Ack) -> Self {
        Self { accepted: ack.accepted, known: ack.known, refused: ack.refused }
    }
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Model {
    rows: Vec<Row>,
    histories: HashMap<(Scope, String), History>,
    /// The epoch of each scope.
    epochs: BTreeMap<Scope, String>,
    /// Scopes that lost an event since their epochs were named.
    lost: HashSet<Scope>,
    /// Lines by their kinds, topics and ids.
    known: HashMap<String, String>,
}

impl Model {
    pub(super) fn history(&self, scope: &str, epoch: &str) -> Option<&History> {
        self.histories.get(&(scope.to_owned(), epoch.to_owned()))
    }

    pub(super) fn current(&self, scope: &str) -> (&str, &History) {
        let epoch = &self.epochs[scope];
        (epoch, &self.histories[&(scope.to_owned(), epoch.clone())])
    }

    /// Takes a batch with what the hub answered: what became of its lines, and which sequence the
    /// last accepted event has.
    pub(super) fn take(&mut self, events: &[Event], answer: &Counts, last: Option<u64>) {
        let mut counts = Counts::default();
        let mut accepted = Vec::new();
        for event in events {
            if let What::Nonsense(_) = event.what {
                counts.refused += 1;
                continue;
            }
            let line = event.line();
            match event.key().map(|key| self.known.entry(key)) {
                Some(hash_map::Entry::Occupied(known)) if *known.get() == line => counts.known += 1,
                Some(hash_map::Entry::Occupied(_)) => counts.refused += 1,
                Some(hash_map::Entry::Vacant(new)) => {
                    new.insert(line);
                    accepted.push(event.clone());
                }
                None => accepted.push(event.clone()),
            }
        }
        counts.accepted = accepted.len();
        assert_eq!(*answer, counts, "{events:?}");
        let first = last.map_or(0, |last| last + 1 - accepted.len() as u64);
        for (sequence, event) in (first..).zip(accepted) {
            self.enter(Row { sequence, event });
        }
    }

    fn enter(&mut self, row: Row) {
        let last = self.rows.last().map_or(0, |row| row.sequence);
        assert!(row.sequence > last, "{} is given out after {last}", row.sequence);
        if let Some(scope) = scope(&row.event.what) {
            let key = (scope.clone(), self.epochs.get(&scope).cloned().unwrap_or_default());
            add(self.histories.entry(key).or_default(), &row);
        }
        self.rows.push(row);
    }

    /// Removes the events of blocks. Epochs are to be named again afterwards.
    pub(super) fn remove_blocks(&mut self, height: u64) -> usize {
        let is_removed = |row: &mut Row| row.event.height.is_some_and(|own| own >= height);
        let removed: Vec<_> = self.rows.extract_if(.., is_removed).collect();
        for row in &removed {
            self.lost.extend(scope(&row.event.what));
            if let Some(key) = row.event.key() {
                self.known.remove(&key);
            }
        }
        removed.len()
    }

    /// The epoch that a scope has now. One that lost an event has another one than before.
    pub(super) fn name_epoch(&mut self, scope: &str, epoch: &str) -> Result<(), String> {
        let key = |epoch: &str| (scope.to_owned(), epoch.to_owned());
        let before = self.epochs.insert(scope.to_owned(), epoch.to_owned());
        let lost = self.lost.remove(scope);
        if before.as_deref() == Some(epoch) {
            return if lost { Err(format!("{scope} keeps epoch {epoch}")) } else { Ok(()) };
        }
        let history = if lost {
            let mut history = History::new();
            for row in &self.rows {
                if self::scope(&row.event.what).as_deref() == Some(scope) {
                    add(&mut history, row);
                }
            }
            history
        } else {
            self.histories.get(&key(&before.unwrap_or_default())).cloned().unwrap_or_default()
        };
        match self.histories.insert(key(epoch), history) {
            Some(_) => Err(format!("{scope} goes back to epoch {epoch}")),
            None => Ok(()),
        }
    }
}

fn scope(what: &What) -> Option<Scope> {
    match what {
        What::Book { market, .. } => Some(format!("book {market}")),
        What::Trade { market, .. } => Some(format!("trades {market}")),
        What::Message { topic, .. } => Some(format!("events {topic}")),
        What::Define { .. } | What::Nonsense(_) => None,
    }
}

fn add(history: &mut History, row: &Row) {
    let entry = match &row.event.what {
        What::Book { replaces, levels, .. } => {
            let mut book = match history.last_key_value() {
                Some((_, Entry::Book(book))) if !replaces => Book::clone(book),
                _ => Book { is_there: *replaces, ..Book::default() },
            };
            // Changes before the first snapshot make no book.
            if book.is_there {
                book.set(levels);
            }
            Entry::Book(Rc::new(book))
        }
        What::Trade { price, size, .. } => {
            Entry::Item(Rc::new(json!({"price": decimal(*price), "size": decimal(*size)})))
        }
        What::Message { data, .. } => Entry::Item(Rc::new(data.clone())),
        What::Define { .. } | What::Nonsense(_) => return,
    };
    history.insert(row.sequence, entry);
}

/// The book after the last event up to this sequence.
pub(super) fn book_at(history: &History, sequence: u64) -> Rc<Book> {
    match history.range(..=sequence).next_back() {
        Some((_, Entry::Book(book))) => book.clone(),
        _ => Rc::default(),
    }
}

/// What happened after one sequence and up to another.
pub(super) fn between(
    history: &History,
    after: u64,
    until: u64,
) -> impl Iterator<Item = (&u64, &Entry)> {
    history.range((Excluded(after), Included(until.max(after))))
}

#[test]
fn the_checksum_is_that_of_the_standard() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    let mut book = Book::default();
    book.set(&[
        Level { buys: true, price: 5, size: 20 },
        Level { buys: true, price: 4, size: 1 },
        Level { buys: false, price: 6, size: 3 },
    ]);
    assert_eq!(book.checksum(), crc32(b"6352041"));
    book.set(&[Level { buys: true, price: 4, size: 0 }]);
    assert_eq!(book.window(1).bids, Levels::from([(5, 20)]));
}
