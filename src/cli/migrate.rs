//! `spreadly migrate`: makes the tables in Postgres, for hubs whose own role may not.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::check_config::{environment, key_and_value, refuse};
use crate::config::{Config, Overrides};
use crate::hub;
use crate::postgres::make_tables;

pub(super) const EXAMPLES: &str = "\
Examples:
  spreadly migrate --config spreadly.toml
  spreadly migrate --set store.url=postgres://owner:password@host:5432/database

Run it as a role that may create tables. Each hub then needs no more than
SELECT, INSERT, UPDATE and DELETE.";

#[derive(Args)]
pub(super) struct Migrate {
    /// The configuration of the hub, which names the database
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any key of the configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

impl Migrate {
    pub(super) fn run(self) -> ExitCode {
        let overrides = Overrides { set: self.set, ..Overrides::default() };
        let config = match Config::load(self.config.as_deref(), environment(), overrides) {
            Ok(config) => config,
            Err(faults) => return refuse(&faults),
        };
        let Some(postgres) = config.feeds.postgres else {
            eprintln!("spreadly: no database is named: set feeds.postgres.url or store.url");
            return ExitCode::FAILURE;
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let made = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
            let config = hub::postgres_config(postgres);
            let making = make_tables(&config);
            runtime.block_on(making).map_err(|error| format!("the database can't be used: {error}"))
        });
        match made {
            Ok(made) if made.is_empty() => println!("the tables are up to date"),
            Ok(made) => println!("the tables are made: {}", made.join(", ")),
            Err(error) => {
                eprintln!("spreadly: {error}");
                return ExitCode::FAILURE;
            }
        }
        ExitCode::SUCCESS
    }
}
