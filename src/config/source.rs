//! What was written, before anything is checked: each known key with every value that a source
//! gives it, weakest source first. The sources are a file, variables (or the files that they name)
//! and flags. Unknown keys are refused here, where their line is known.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::table::Row;
use super::value::Value;
use super::{ConfigFault, Overrides, WrittenIn};

/// Keys of later versions: known by name, so that setting one is a fault that says so. One that
/// ends in a dot means all keys below.
pub(super) const LATER: [&str; 2] = ["archive.url", "identity."];

const ENV_PREFIX: &str = "SPREADLY__";
/// A configuration is a few KiB; a file that is larger is another file.
const MOST_FILE_BYTES: u64 = 1024 * 1024;

pub(super) struct Entry {
    pub value: Value,
    pub written_in: WrittenIn,
}

/// What a source has to know of a key.
struct Known {
    name: &'static str,
    /// A variable with the suffix `_FILE` may name a file that has its value.
    is_secret: bool,
}

#[derive(Default)]
pub(super) struct Source {
    known: Vec<Known>,
    /// Weakest first. All are kept: a value that is overridden must be right too, as it runs on
    /// the day on which the variable is gone.
    entries: BTreeMap<String, Vec<Entry>>,
}

impl Source {
    /// Takes the keys of these rows.
    pub(super) fn of(rows: &[Row]) -> Self {
        let known = |row: &Row| Known { name: row.name, is_secret: row.is_secret };
        Self { known: rows.iter().map(known).collect(), entries: BTreeMap::new() }
    }

    pub(super) fn take(&mut self, key: &str) -> Vec<Entry> {
        self.entries.remove(key).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn add_file(&mut self, path: &Path, faults: &mut Vec<ConfigFault>) {
        let whole = |problem: String| ConfigFault {
            key: String::new(),
            written_in: WrittenIn::File { path: path.to_owned(), line: None },
            given: None,
            problem,
        };
        let text = match read(path, MOST_FILE_BYTES) {
            Ok(text) => text,
            Err(problem) => return faults.push(whole(problem)),
        };
        let at = |span: Range<usize>| WrittenIn::File {
            path: path.to_owned(),
            line: Some(line_of(&text, span.start)),
        };
        let (table, errors) = DeTable::parse_recoverable(&text);
        faults.extend(errors.iter().map(|error| ConfigFault {
            key: String::new(),
            written_in: match error.span() {
                Some(span) => at(span),
                None => WrittenIn::File { path: path.to_owned(), line: None },
            },
            given: None,
            problem: error.message().to_owned(),
        }));
        self.add_table("", table.get_ref(), &at, faults);
    }

    fn add_table(
        &mut self,
        section: &str,
        table: &DeTable<'_>,
        at: &dyn Fn(Range<usize>) -> WrittenIn,
        faults: &mut Vec<ConfigFault>,
    ) {
        for (name, value) in table {
            let name: &Spanned<_> = name;
            let key = match section {
                "" => name.get_ref().to_string(),
                _ => format!("{section}.{}", name.get_ref()),
            };
            match value.get_ref() {
                DeValue::Table(inner) if self.known(&key).is_none() => {
                    if !self.is_section(&key)
                        && let Some(nearest) = self.nearest_section(&key)
                    {
                        // One fault, whatever is below.
                        let problem = format!("is not a known section; the nearest is {nearest}");
                        let written_in = at(name.span());
                        faults.push(ConfigFault { key, written_in, given: None, problem });
                    } else if inner.is_empty() && !self.is_section(&key) {
                        self.add(key, Value::Other("section".to_owned()), at(name.span()), faults);
                    } else {
                        self.add_table(&key, inner, at, faults);
                    }
                }
                value => self.add(key, Value::from_toml(value), at(name.span()), faults),
            }
        }
    }

    pub(super) fn add_env(
        &mut self,
        env: impl Iterator<Item = (String, String)>,
        faults: &mut Vec<ConfigFault>,
    ) {
        // Sorted: an environment has no order, and a fault should read the same twice.
        let ours: BTreeMap<_, _> = env.filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
        for (name, value) in &ours {
            let key = name[ENV_PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            let written_in = WrittenIn::Env(name.clone());
            let secret_in_file = key
                .strip_suffix("_file")
                .filter(|bare| !self.is_known(&key) && self.is_known(bare));
            let Some(bare) = secret_in_file else {
                self.add(key, Value::Untyped(value.clone()), written_in, faults);
                continue;
            };
            let plain = name.strip_suffix("_FILE").filter(|plain| ours.contains_key(*plain));
            let problem = if !self.may_be_secret(bare) {
                "is no secret: set it directly, without _FILE".to_owned()
            } else if let Some(plain) = plain {
                format!("is also given by {plain}: keep one of the two")
            } else {
                match read(Path::new(value), MOST_FILE_BYTES) {
                    Ok(text) => {
                        let text = text.trim_end_matches(['\r', '\n']).to_owned();
                        self.add(bare.to_owned(), Value::Untyped(text), written_in, faults);
                        continue;
                    }
                    Err(problem) => format!("the file {value:?} {problem}"),
                }
            };
            faults.push(ConfigFault { key: bare.to_owned(), written_in, given: None, problem });
        }
    }

    pub(super) fn add_flags(&mut self, flags: Overrides, faults: &mut Vec<ConfigFault>) {
        for (key, value) in flags.set {
            let written_in = WrittenIn::Flag("--set".to_owned());
            self.add(key, Value::Untyped(value), written_in, faults);
        }
        let own = [
            ("server.listen", "--listen", flags.listen),
            ("admin.listen", "--admin-listen", flags.admin_listen),
        ];
        for (key, flag, value) in own {
            if let Some(value) = value {
                let written_in = WrittenIn::Flag(flag.to_owned());
                self.add(key.to_owned(), Value::Untyped(value), written_in, faults);
            }
        }
    }

    fn add(
        &mut self,
        key: String,
        value: Value,
        written_in: WrittenIn,
        faults: &mut Vec<ConfigFault>,
    ) {
        if self.known(&key).is_some() {
            self.entries.entry(key).or_default().push(Entry { value, written_in });
            return;
        }
        let problem = if is_later(&key) {
            "is not supported yet by this version: leave it out".to_owned()
        } else if self.is_section(&key) {
            format!("is a section: its keys are written [{key}] and below, or {key}.… = …")
        } else if let Some(section) = self.nearest_section(&key).filter(|_| !key.contains('.')) {
            format!("is not a known key; the nearest section is {section}")
        } else {
            format!("is not a known key; the nearest is {}", self.nearest(&key))
        };
        faults.push(ConfigFault { key, written_in, given: None, problem });
    }

    fn known(&self, key: &str) -> Option<&Known> {
        self.known.iter().find(|known| known.name == key)
    }

    fn is_known(&self, key: &str) -> bool {
        self.known(key).is_some() || is_later(key)
    }

    /// Of keys of later versions nothing is known yet.
    fn may_be_secret(&self, key: &str) -> bool {
        self.known(key).is_none_or(|known| known.is_secret)
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.known.iter().map(|known| known.name).chain(LATER)
    }

    fn is_section(&self, key: &str) -> bool {
        self.names().any(|known| known.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    }

    /// A section whose name a slip makes this one.
    fn nearest_section(&self, name: &str) -> Option<&'static str> {
        let sections = self.known.iter().filter_map(|known| Some(known.name.rsplit_once('.')?.0));
        let near = sections.map(|section| (strsim::osa_distance(name, section), section)).min()?;
        (near.0 * 3 <= name.len()).then_some(near.1)
    }

    /// By the edits of section and name; a right name in the wrong section is near, however
    /// unlike the two sections are.
    fn nearest(&self, key: &str) -> &'static str {
        let halves = |key: &str| {
            let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
            (section.to_owned(), name.to_owned())
        };
        let (section, name) = halves(key);
        let edits = |known: &str| {
            let (known_section, known_name) = halves(known);
            let of_name = strsim::osa_distance(&name, &known_name);
            let of_section = strsim::osa_distance(&section, &known_section);
            if of_name * 3 <= name.len() {
                of_name + of_section.min(2)
            } else {
                of_name + of_section
            }
        };
        let all = self.names().filter(|known| !known.ends_with('.'));
        all.min_by_key(|known| (edits(known), *known)).unwrap_or_default()
    }
}

/// The variable that has a key's value.
pub(super) fn variable(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"))
}

fn is_later(key: &str) -> bool {
    LATER.iter().any(|later| key == *later || (later.ends_with('.') && key.starts_with(later)))
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn read(path: &Path, most: u64) -> Result<String, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| format!("can't be read: {error}"))?;
    let read = file.take(most + 1).read_to_string(&mut text);
    match read.map_err(|error| format!("can't be read: {error}"))? {
        bytes if bytes as u64 > most => Err(format!("is larger than {most} bytes")),
        _ => Ok(text),
    }
}
