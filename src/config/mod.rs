//! The checked configuration: what every part of the hub gets. A key is a field of a struct in
//! `sections` and the row that fills it. `source` collects what was written, `table` reads each row
//! from it, `rules` checks what belongs together, and `reference` writes the rows as text.
//!
//! Flags beat `SPREADLY__SECTION__KEY` variables, which beat the file, which beats the defaults.

mod fault;
mod kind;
mod network;
mod origins;
mod reference;
mod rules;
mod secret;
mod sections;
mod source;
mod table;
mod value;

use std::path::Path;

pub use fault::{ConfigFault, WrittenIn};
pub use network::{Network, NetworkError};
pub use origins::{Origins, OriginsError};
pub use secret::SecretUrl;
pub use sections::admin::AdminConfig;
pub use sections::cache::CacheConfig;
pub use sections::feeds::{
    Doorbell, FeedsConfig, FilesFeedConfig, FilesMode, KafkaFeedConfig, KafkaOwnedConfig,
    KafkaSetting, PostgresFeedConfig,
};
pub use sections::identity::IdentityConfig;
pub use sections::limits::Limits;
pub use sections::log::{LogConfig, LogFormat};
pub use sections::server::{AddressHeader, HttpStatus, ServerConfig};
pub use sections::store::{SharedLogConfig, StoreConfig, Synchronous};

use self::sections::{admin, cache, feeds, identity, limits, log, server, store};
use self::source::Source;
use self::table::{Row, Table};

/// All that can be configured. Each part gets its own field and never sees the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub server: ServerConfig,
    pub admin: AdminConfig,
    pub store: StoreConfig,
    /// Absent: what a start goes on from is in the store alone.
    pub cache: Option<CacheConfig>,
    pub feeds: FeedsConfig,
    pub identity: IdentityConfig,
    pub limits: Limits,
    pub log: LogConfig,
}

/// What the command line says; as text, so that it is checked like everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--listen`
    pub listen: Option<String>,
    /// `--admin-listen`
    pub admin_listen: Option<String>,
    /// `--set section.key=value`, in the order given; a later one beats an earlier one.
    pub set: Vec<(String, String)>,
}

impl Config {
    /// Reads every source and checks everything: either a configuration without a fault, or all
    /// the faults there are. `env` may hold any variables; only `SPREADLY__…` are looked at.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: Overrides,
    ) -> Result<Self, Vec<ConfigFault>> {
        load(file, env, flags).map(|(config, _)| config)
    }

    /// What [`Self::load`] would return, as a file that reads back to the same. Passwords are left
    /// out.
    pub fn effective(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: Overrides,
    ) -> Result<String, Vec<ConfigFault>> {
        load(file, env, flags).map(|(_, rows)| reference::effective(&rows))
    }
}

/// A file with every key at its default, with unit, range and meaning.
pub fn documented_file() -> String {
    reference::documented(&default_rows())
}

/// The same as a page of the documents, in Markdown.
pub fn reference_page() -> String {
    reference::page(&default_rows())
}

fn load(
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
    flags: Overrides,
) -> Result<(Config, Vec<Row>), Vec<ConfigFault>> {
    let mut faults = Vec::new();
    let mut source = Source::of(&default_rows());
    if let Some(path) = file {
        source.add_file(path, &mut faults);
    }
    source.add_env(env, &mut faults);
    source.add_flags(flags, &mut faults);
    let read = read(source, &mut faults);
    if faults.is_empty() { Ok(read) } else { Err(faults) }
}

/// The rows where nothing is written.
fn default_rows() -> Vec<Row> {
    let mut faults = Vec::new();
    let (_, rows) = read(Source::default(), &mut faults);
    assert!(faults.is_empty(), "the defaults go together: {faults:?}");
    rows
}

/// Reads all rows, in the order in which they are printed, then checks the rules between them.
fn read(source: Source, faults: &mut Vec<ConfigFault>) -> (Config, Vec<Row>) {
    let mut table = Table::new(source, faults);
    let server = server::read(&mut table);
    let admin = admin::read(&mut table);
    let (log_url, store) = store::read(&mut table);
    let cache = cache::read(&mut table);
    let files = feeds::files(&mut table);
    let postgres = feeds::postgres(&mut table);
    let kafka = feeds::kafka(&mut table);
    let identity = identity::read(&mut table);
    let limits = limits::read(&mut table);
    let log = log::read(&mut table);

    let postgres = rules::shared_log(&mut table, log_url, postgres);
    rules::limits(&mut table, &limits);
    let kafka = rules::kafka(&mut table, kafka);
    rules::ports(&mut table, &server, &admin);
    rules::proxies(&mut table, &server);
    rules::idle(&mut table, &server);

    let feeds = FeedsConfig { files, postgres, kafka };
    let config = Config { server, admin, store, cache, feeds, identity, limits, log };
    (config, table.into_rows())
}

#[cfg(test)]
mod tests;
