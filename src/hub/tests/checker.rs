//! What a client holds of one subscription, and whether each frame is right: it follows the one
//! before it, and what the client then holds is what the model holds at that position.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::document::{Document, Field};
use super::model::{Book, Entry, History, Levels, Model, Scope, between, book_at, tenths};

/// What a client holds of one scope.
#[derive(Clone, Debug, Default)]
struct Held {
    epoch: String,
    sequence: u64,
    /// Items up to this sequence came before the client did.
    begun: u64,
    book: Book,
    items: BTreeMap<u64, Value>,
}

/// How often something happened, so that a storm that left it out fails.
#[derive(Debug, Default)]
pub(super) struct Tally(pub(super) BTreeMap<String, usize>);

impl Tally {
    pub(super) fn add(&mut self, what: &str, times: usize) {
        *self.0.entry(what.to_owned()).or_default() += times;
    }
}

/// A subscription as its client sees it.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) document: Document,
    held: BTreeMap<Scope, Held>,
    pub(super) cursor: Option<String>,
    /// It began with a cursor, and no frame has come since.
    is_resumed: bool,
}

fn number(frame: &Value, name: &str) -> Option<u64> {
    frame[name].as_str()?.parse().ok()
}

/// As the error that names the fault.
fn check(holds: bool, fault: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(fault()) }
}

impl Operation {
    pub(super) fn new(document: Document) -> Self {
        Self { document, held: BTreeMap::new(), cursor: None, is_resumed: false }
    }

    /// Begins again, after its last frame where it can; what its client asks with.
    pub(super) fn resume(&mut self) -> Value {
        if !self.document.resumes() {
            self.cursor = None;
        }
        if self.cursor.is_none() {
            self.held.clear();
        }
        self.is_resumed = self.cursor.is_some();
        self.document.payload(self.cursor.as_deref())
    }

    /// Takes the payload of a `next`. The error says what is wrong with it.
    pub(super) fn take(
        &mut self,
        payload: &Value,
        model: &Model,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let frame = &payload["data"][self.document.name()];
        let fault = |what: String| format!("{what} in {payload}");
        check(payload.get("errors").is_none() && frame.is_object(), || fault("an error".into()))?;
        let field = self.document.field.clone();
        let scope = match &field {
            Field::Trades { .. } => format!("trades {}", frame["market"].as_str().unwrap()),
            Field::Offers { .. } => format!("book {}", frame["market"].as_str().unwrap()),
            _ => self.document.scopes().remove(0),
        };
        let epoch = frame["epoch"].as_str().unwrap();
        let history =
            model.history(&scope, epoch).ok_or_else(|| fault(format!("unknown epoch {epoch}")))?;
        tally.add("frames", 1);
        let mut held = self.held.get(&scope).cloned();
        self.check_chain(held.as_ref(), frame, tally).map_err(fault)?;
        let held_now = held.get_or_insert_default();
        match &field {
            Field::Book { depth, bids, asks, .. } => {
                held_now.take_book(frame, history, (*depth, *bids, *asks), tally)
            }
            Field::Offers { .. } => Held::check_offer(frame, history),
            Field::Trades { .. } | Field::Events { .. } => {
                held_now.take_items(frame, history, tally)
            }
        }
        .map_err(fault)?;
        held_now.epoch = epoch.to_owned();
        held_now.sequence = number(frame, "sequence").unwrap();
        self.held.extend([(scope, held.unwrap_or_default())]);
        self.cursor = frame["cursor"].as_str().map(str::to_owned);
        self.is_resumed = false;
        Ok(())
    }

    /// Follows the last frame, or says why not.
    fn check_chain(
        &self,
        held: Option<&Held>,
        frame: &Value,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let epoch = frame["epoch"].as_str().unwrap();
        let sequence = number(frame, "sequence").ok_or("no sequence")?;
        let same_epoch = held.is_some_and(|held| held.epoch == epoch);
        let last = held.map(|held| held.sequence);
        if frame["__typename"] == "BookHeartbeat" {
            return check(same_epoch && last == Some(sequence), || "a heartbeat moved".into());
        }
        let previous = number(frame, "prevSequence");
        if let Some(previous) = previous {
            // A cursor is of all markets, also of those of which no frame came yet.
            let is_first = held.is_none() && self.cursor.is_some();
            let follows = is_first || (same_epoch && last == Some(previous));
            return check(follows && previous <= sequence, || format!("after {last:?}: a break"));
        }
        let reason = frame["reason"].as_str().ok_or("no reason")?;
        tally.add(reason, 1);
        let right = match reason {
            "INITIAL" => held.is_none() && !self.is_resumed,
            "RESUME_TOO_OLD" => self.is_resumed,
            "LAGGED" => same_epoch && last <= Some(sequence),
            // A stream of several markets goes back in all of them.
            "REORG" => self.cursor.is_some(),
            "EPOCH_CHANGE" => self.cursor.is_some() && !same_epoch,
            _ => false,
        };
        check(right, || format!("after {last:?}: not {reason}"))
    }

    /// What it follows, and how far.
    pub(super) fn position(&self) -> String {
        let held = self.held.iter().map(|(scope, held)| (scope, &held.epoch, held.sequence));
        format!("{:?} at {:?}", self.document, held.collect::<Vec<_>>())
    }

    /// Whether nothing happened that the client does not hold.
    pub(super) fn is_up_to_date(&self, model: &Model) -> bool {
        self.document.scopes().iter().all(|scope| {
            let (epoch, history) = model.current(scope);
            self.held.get(scope).is_some_and(|held| {
                let later = match self.document.field {
                    Field::Offers { .. } => offers(history, held.sequence, u64::MAX) > 0,
                    _ => between(history, held.sequence, u64::MAX).next().is_some(),
                };
                held.epoch == epoch && !later
            })
        })
    }
}

impl Held {
    fn take_book(
        &mut self,
        frame: &Value,
        history: &History,
        (depth, bids, asks): (usize, bool, bool),
        tally: &mut Tally,
    ) -> Result<(), String> {
        let sequence = number(frame, "sequence").unwrap_or_default();
        let previous = number(frame, "prevSequence");
        if frame["__typename"] == "BookSnapshot" {
            self.book = Book::default();
        }
        for (name, side) in [("bids", &mut self.book.bids), ("asks", &mut self.book.asks)] {
            set(side, &frame[name])?;
        }
        if let (Some(previous), Some(merged)) = (previous, frame["mergedEvents"].as_u64()) {
            let events = between(history, previous, sequence).count() as u64;
            check(events == merged, || format!("{events} events"))?;
            tally.add("merged frames", usize::from(merged > 1));
        }
        let book = book_at(history, sequence);
        let window = book.window(depth);
        let right =
            (!bids || self.book.bids == window.bids) && (!asks || self.book.asks == window.asks);
        check(right, || format!("{:?} instead of {window:?}", self.book))?;
        let checksum = frame["checksum"].as_u64();
        check(checksum.is_none_or(|own| own == u64::from(book.checksum())), || "checksum".into())
    }

    fn check_offer(frame: &Value, history: &History) -> Result<(), String> {
        let sequence = number(frame, "sequence").unwrap_or_default();
        let top = book_at(history, sequence).window(1);
        for (name, side) in [("bid", &top.bids), ("ask", &top.asks)] {
            let mut own = Levels::new();
            if !frame[name].is_null() {
                set(&mut own, &json!([frame[name]]))?;
            }
            check(own == *side, || format!("{name} instead of {top:?}"))?;
        }
        match (number(frame, "prevSequence"), frame["mergedEvents"].as_u64()) {
            (Some(previous), Some(merged)) => {
                let changes = offers(history, previous, sequence);
                check(changes == merged, || format!("{changes} changes"))
            }
            _ => Ok(()),
        }
    }

    fn take_items(
        &mut self,
        frame: &Value,
        history: &History,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let sequence = number(frame, "sequence").unwrap_or_default();
        let items = frame["items"].as_array().ok_or("no items")?;
        tally.add("frames of several items", usize::from(items.len() > 1));
        let mut own = BTreeMap::new();
        for item in items {
            let mut item = item.clone();
            let at = number(&item, "sequence").ok_or("no sequence")?;
            let fields = item.as_object_mut().ok_or("no item")?;
            fields.remove("sequence");
            let item = fields.remove("data").unwrap_or(item);
            check(own.insert(at, item).is_none(), || format!("{at} twice"))?;
        }
        let from = match number(frame, "prevSequence") {
            Some(previous) => {
                if self.epoch.is_empty() {
                    self.begun = previous;
                }
                previous
            }
            None => {
                if self.epoch.is_empty() {
                    self.begun = sequence;
                }
                // Goes back; what stays must be valid in the new epoch.
                self.begun = self.begun.min(sequence);
                self.items.split_off(&(sequence + 1));
                let valid = between(history, self.begun, sequence);
                check(same(&self.items, valid), || format!("{:?} is held", self.items))?;
                sequence
            }
        };
        check(same(&own, between(history, from, sequence)), || "other events".into())?;
        self.items.extend(own);
        Ok(())
    }
}

fn same<'a>(
    items: &BTreeMap<u64, Value>,
    entries: impl Iterator<Item = (&'a u64, &'a Entry)>,
) -> bool {
    let entries = entries.filter_map(|(sequence, entry)| match entry {
        Entry::Item(item) => Some((sequence, &**item)),
        Entry::Book(_) => None,
    });
    items.iter().eq(entries)
}

/// Changes of the best levels.
fn offers(history: &History, after: u64, until: u64) -> u64 {
    let mut top = book_at(history, after).window(1);
    let mut changes = 0;
    for (_, entry) in between(history, after, until) {
        let Entry::Book(book) = entry else { continue };
        let own = book.window(1);
        changes += u64::from(own != top);
        top = own;
    }
    changes
}

/// Sets levels as a frame has them; null where they were not asked for.
fn set(side: &mut Levels, levels: &Value) -> Result<(), String> {
    for level in levels.as_array().into_iter().flatten() {
        let price = tenths(&level["price"]).ok_or("no price")?;
        match tenths(&level["size"]).ok_or("no size")? {
            0 => drop(side.remove(&price)),
            size => drop(side.insert(price, size)),
        }
    }
    Ok(())
}
