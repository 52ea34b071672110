//! One fault of a configuration, with what an operator needs to put it right: where the value was
//! written, under which key, what was given, and what is taken.

use std::fmt;
use std::path::PathBuf;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WrittenIn {
    File {
        path: PathBuf,
        /// From 1; none when the fault is the file's as a whole.
        line: Option<usize>,
    },
    /// The variable's name.
    Env(String),
    /// As typed: `--listen`, `--set`.
    Flag(String),
    /// Nowhere: two values that don't go together, of which this one is a default.
    Default,
}

impl fmt::Display for WrittenIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Default => write!(f, "default"),
        }
    }
}

/// Never holds a secret: `given` of a key that may carry one is masked before it gets here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigFault {
    /// As in the file, `section.key`; empty when the fault is the file's as a whole.
    pub key: String,
    pub written_in: WrittenIn,
    /// What was given.
    pub given: Option<String>,
    /// What is wrong, and what is taken; a clause that goes on after "key: ".
    pub problem: String,
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.written_in)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        if let Some(given) = &self.given {
            write!(f, "given {given}, but ")?;
        }
        write!(f, "{}", self.problem)
    }
}
