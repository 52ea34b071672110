//! `spreadly check-config`, and how every subcommand reports what is wrong with a configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::config::{Config, ConfigFault, Overrides};

const USAGE_FAULT: u8 = 2;

#[derive(Args)]
pub(super) struct CheckConfig {
    /// A file such as config/spreadly.toml; without it, the environment and `--set` alone
    file: Option<PathBuf>,
    /// Any key of the configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

/// How a subcommand beside a hub finds that hub's configuration.
#[derive(Args)]
pub(super) struct HubConfig {
    /// The configuration of the hub
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any key of the configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

impl HubConfig {
    /// # Errors
    /// How the program ends: what is wrong was printed.
    pub(super) fn load(self) -> Result<Config, ExitCode> {
        let overrides = Overrides { set: self.set, ..Overrides::default() };
        let loaded = Config::load(self.config.as_deref(), environment(), overrides);
        loaded.map_err(|faults| refuse(&faults))
    }
}

pub(super) fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as section.key=value")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl CheckConfig {
    pub(super) fn run(self) -> ExitCode {
        let overrides = Overrides { set: self.set, ..Overrides::default() };
        match Config::effective(self.file.as_deref(), environment(), overrides) {
            Ok(effective) => {
                print!("{effective}");
                ExitCode::SUCCESS
            }
            Err(faults) => refuse(&faults),
        }
    }
}

pub(super) fn refuse(faults: &[ConfigFault]) -> ExitCode {
    for fault in faults {
        eprintln!("{fault}");
    }
    let what = if faults.len() == 1 { "fault" } else { "faults" };
    eprintln!("spreadly: {} {what} in the configuration", faults.len());
    ExitCode::from(USAGE_FAULT)
}

/// A variable that is not UTF-8 is none of ours.
pub(super) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}
