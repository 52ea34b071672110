//! `spreadly serve`, and what `spreadly dev` has in common with it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::check_config::{environment, key_and_value, refuse};
use crate::config::{Config, Overrides};
use crate::feeds::simulator::SimulatorConfig;
use crate::hub;
use crate::telemetry::logging;

/// The account of every client of `spreadly dev`, unless the configuration names another.
const DEVELOPMENT_ACCOUNT: &str = "9dev";

#[derive(Args)]
pub(super) struct Serve {
    /// A file such as config/spreadly.toml; without it every key has its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where clients connect, as server.listen
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Where operators look, as admin.listen
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin_listen: Option<String>,
    /// Any key of the configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

impl Serve {
    pub(super) fn run(self, simulator: Option<SimulatorConfig>) -> ExitCode {
        let Self { config, listen, admin_listen, set } = self;
        let overrides = Overrides { listen, admin_listen, set };
        let mut config = match Config::load(config.as_deref(), environment(), overrides) {
            Ok(config) => config,
            Err(faults) => return refuse(&faults),
        };
        if simulator.is_some() {
            config.identity.development_account.get_or_insert(DEVELOPMENT_ACCOUNT.into());
        }
        logging::start(&config.log);
        match hub::run(config, simulator) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(%error, "the hub stopped");
                ExitCode::FAILURE
            }
        }
    }
}
