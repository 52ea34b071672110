//! `spreadly check-config`, and how every subcommand reports what is wrong with a configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::config::{Config, ConfigFault, Overrides};

const USAGE_FAULT: u8 = 2;

#[derive(Args)]
pub(super) struct CheckConfig {
    file: PathBuf,
}

impl CheckConfig {
    pub(super) fn run(self) -> ExitCode {
        match Config::effective(Some(&self.file), environment(), Overrides::default()) {
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
