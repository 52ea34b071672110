//! What the attackers count. One thread, so plain cells.

use crate::flood::socket::{Message, number_after};
use crate::run::client::string_after;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

/// An error's code is near its beginning; a result of many levels isn't searched.
const ERROR_BYTES: usize = 1024;
/// `mergedEvents` is the first field that the attackers' documents select.
const HEAD_BYTES: usize = 200;
/// What is kept of the first error.
const FIRST_ERROR_BYTES: usize = 400;

#[derive(Debug, Default)]
pub struct Counts {
    serial: Cell<u64>,
    opened: Cell<u64>,
    open: Cell<u64>,
    most_open: Cell<u64>,
    asked: Cell<u64>,
    answered: Cell<u64>,
    frames: Cell<u64>,
    merged: Cell<u64>,
    bytes: Cell<u64>,
    rare: RefCell<Rare>,
}

#[derive(Debug, Default)]
struct Rare {
    refusals: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    closes: BTreeMap<String, u64>,
    statuses: BTreeMap<String, u64>,
    first_error: Option<String>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AttackReport {
    /// Sockets that were opened, those that were opened again included.
    pub opened: u64,
    pub most_open: u64,
    /// Operations or requests sent.
    pub asked: u64,
    /// Of these, those with a first result or a reply.
    pub answered: u64,
    pub frames: u64,
    /// Frames with `mergedEvents` above 1.
    pub merged: u64,
    pub bytes: u64,
    /// Upgrades and connects that failed, by reason.
    pub refusals: BTreeMap<String, u64>,
    /// Errors by `extensions.code`.
    pub errors: BTreeMap<String, u64>,
    /// Ends of sockets by close code or how else.
    pub closes: BTreeMap<String, u64>,
    /// HTTP replies by status.
    pub statuses: BTreeMap<String, u64>,
    pub first_error: Option<String>,
    pub cpu_seconds: f64,
}

fn add(cell: &Cell<u64>, amount: u64) {
    cell.set(cell.get() + amount);
}

impl Counts {
    /// A number that was never given before: what is made of it is like nothing else.
    pub fn serial(&self) -> u64 {
        add(&self.serial, 1);
        self.serial.get()
    }

    pub fn opened(&self) {
        add(&self.opened, 1);
        add(&self.open, 1);
        self.most_open.set(self.most_open.get().max(self.open.get()));
    }

    /// Closed by us.
    pub fn left(&self) {
        self.open.set(self.open.get().saturating_sub(1));
    }

    pub fn closed(&self, how: String) {
        self.left();
        *self.rare.borrow_mut().closes.entry(how).or_default() += 1;
    }

    pub fn refused(&self, why: String) {
        *self.rare.borrow_mut().refusals.entry(why).or_default() += 1;
    }

    pub fn asked(&self) {
        add(&self.asked, 1);
    }

    pub fn answered(&self) {
        add(&self.answered, 1);
    }

    pub fn bytes(&self, bytes: u64) {
        add(&self.bytes, bytes);
    }

    pub fn frame(&self, message: &Message) {
        add(&self.frames, 1);
        let merged = number_after(message.text, b"\"mergedEvents\":", HEAD_BYTES);
        add(&self.merged, u64::from(merged.is_some_and(|events| events > 1)));
    }

    pub fn status(&self, status: u16) {
        *self.rare.borrow_mut().statuses.entry(status.to_string()).or_default() += 1;
    }

    /// Counts the error in this text, if there is one, and returns when to try again.
    pub fn error_in(&self, text: &[u8]) -> Option<Duration> {
        let head = &text[..text.len().min(ERROR_BYTES)];
        let code = string_after(head, b"\"code\":\"")?;
        let code = String::from_utf8_lossy(code).into_owned();
        let wait = number_after(text, b"\"retryAfterMs\":", text.len());
        let mut rare = self.rare.borrow_mut();
        *rare.errors.entry(code).or_default() += 1;
        rare.first_error.get_or_insert_with(|| {
            String::from_utf8_lossy(&text[..text.len().min(FIRST_ERROR_BYTES)]).into_owned()
        });
        Some(wait.map_or(super::RETRY_PAUSE, Duration::from_millis))
    }

    pub fn report(&self, cpu_micros: u64) -> AttackReport {
        let rare = self.rare.borrow();
        AttackReport {
            opened: self.opened.get(),
            most_open: self.most_open.get(),
            asked: self.asked.get(),
            answered: self.answered.get(),
            frames: self.frames.get(),
            merged: self.merged.get(),
            bytes: self.bytes.get(),
            refusals: rare.refusals.clone(),
            errors: rare.errors.clone(),
            closes: rare.closes.clone(),
            statuses: rare.statuses.clone(),
            first_error: rare.first_error.clone(),
            cpu_seconds: cpu_micros as f64 / 1e6,
        }
    }
}
