//! `[log]`: what the hub writes on stderr.

use tracing_subscriber::EnvFilter;

use crate::config::kind::{one_of, text};
use crate::config::table::{Key, Table};

#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    pub format: LogFormat,
    /// As `RUST_LOG` is written; checked when read.
    pub filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

pub(in crate::config) fn read(table: &mut Table<'_>) -> LogConfig {
    LogConfig {
        format: table.key(Key {
            name: "log.format",
            unit: "",
            takes: one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)]),
            default: LogFormat::Text,
            does: "Form of the messages on stderr: `text` for people, `json` for collectors.",
            notes: "",
        }),
        filter: table.key(Key {
            name: "log.filter",
            unit: "",
            takes: text("a filter", filter, String::clone),
            default: "info".to_owned(),
            does: "What is logged, as `RUST_LOG` is written: `info,spreadly=debug`.",
            notes: "",
        }),
    }
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| format!("it must be a filter such as \"info,spreadly=debug\" ({error})"))
}
