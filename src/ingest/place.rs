//! Where an event came from.

use std::fmt;
use std::sync::Arc;

/// The place of an event at its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A file's name, a table, a topic's partition.
    pub source: Arc<str>,
    pub at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Counted from 1, with the byte of the file where the line begins.
    Line {
        number: u64,
        byte: u64,
    },
    /// Its id, as its writer knows it.
    Row(u64),
    /// A partition's offset.
    Offset(u64),
    Nowhere,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { number, byte } => write!(f, "line {number} (byte {byte})"),
            Self::Row(row) => write!(f, "row {row}"),
            Self::Offset(offset) => write!(f, "offset {offset}"),
            Self::Nowhere => f.write_str("no place"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            At::Nowhere => f.write_str(&self.source),
            at => write!(f, "{} {at}", self.source),
        }
    }
}
