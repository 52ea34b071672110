//! A row for each key: its name and unit, what it takes, its default, and what it does. The files
//! of `sections` have the rows, each in the place of the field that it fills.
//!
//! One pass over all rows reads a configuration. Every value is read, also after a faulty one, so
//! that one run names all faults. The pass also notes the rows, from which `reference` is written.

use std::collections::BTreeMap;

use super::kind::Kind;
use super::source::{Entry, Source};
use super::value::Value;
use super::{ConfigFault, WrittenIn};

/// Longer than any wait on a peer should be; keeps sums of durations far from overflow.
pub(super) const HOUR_MS: u64 = 3_600_000;
pub(super) const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;

/// A row of the table.
pub(super) struct Key<T> {
    /// As in a file, `section.key`.
    pub name: &'static str,
    /// What a number counts; empty for all else.
    pub unit: &'static str,
    pub takes: Kind<T>,
    pub default: T,
    /// One sentence.
    pub does: &'static str,
    /// What else an operator may want to know.
    pub notes: &'static str,
}

/// A row that was read, as text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub name: &'static str,
    pub unit: &'static str,
    pub range: String,
    pub reason: &'static str,
    pub does: &'static str,
    pub notes: &'static str,
    /// No message shows its value, and a file may hold it.
    pub is_secret: bool,
    pub default: Value,
    /// What is in force, without what may be a password.
    pub value: Value,
}

/// A pass over all rows.
pub(super) struct Table<'a> {
    source: Source,
    /// Where the value in force of a key was written.
    places: BTreeMap<&'static str, WrittenIn>,
    faults: &'a mut Vec<ConfigFault>,
    rows: Vec<Row>,
}

impl<'a> Table<'a> {
    pub(super) fn new(source: Source, faults: &'a mut Vec<ConfigFault>) -> Self {
        Self { source, places: BTreeMap::new(), faults, rows: Vec::new() }
    }

    /// The strongest value of a key. Weaker ones are read too, and their faults are reported.
    pub(super) fn key<T: 'static>(&mut self, key: Key<T>) -> T {
        let Key { name, unit, takes, default, does, notes } = key;
        let printed_default = takes.print(&default);
        let mut strongest = default;
        for Entry { value, written_in } in self.source.take(name) {
            self.places.insert(name, written_in);
            match takes.read(&value) {
                Ok(value) => strongest = value,
                Err(problem) => self.fault(name, Some(takes.shown(&value)), problem),
            }
        }
        self.rows.push(Row {
            name,
            unit,
            range: takes.range().to_owned(),
            reason: takes.reason(),
            does,
            notes,
            is_secret: takes.is_secret(),
            default: printed_default,
            value: takes.print(&strongest),
        });
        strongest
    }

    /// A fault of a key, where its value in force was written.
    pub(super) fn fault(&mut self, key: &'static str, given: Option<String>, problem: String) {
        let written_in = self.places.get(key).cloned().unwrap_or(WrittenIn::Default);
        self.faults.push(ConfigFault { key: key.to_owned(), written_in, given, problem });
    }

    /// The rows, once all were read.
    pub(super) fn into_rows(self) -> Vec<Row> {
        assert!(self.source.is_empty(), "every known key has a row that is read");
        self.rows
    }
}
