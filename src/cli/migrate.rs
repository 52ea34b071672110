//! `spreadly migrate`: makes the tables in Postgres, for hubs whose own role may not.

use std::process::ExitCode;

use clap::Args;

use super::check_config::HubConfig;
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
    #[command(flatten)]
    hub: HubConfig,
}

impl Migrate {
    pub(super) fn run(self) -> ExitCode {
        let config = match self.hub.load() {
            Ok(config) => config,
            Err(code) => return code,
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
