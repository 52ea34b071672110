//! `spreadly backup`: a copy of the log while the hub runs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::check_config::{environment, key_and_value, refuse};
use crate::config::{Config, Overrides};
use crate::store::{BackupStep, Copied, back_up};

pub(super) const EXAMPLES: &str = "\
Examples:
  spreadly backup /backups/monday.db                         the log of the hub in this folder
  spreadly backup --config spreadly.toml /backups/monday.db
  spreadly backup --set store.url=sqlite:/var/lib/spreadly/spreadly.db monday.db

The hub may run and write. The copy is checked, and no file is ever replaced.";

/// Lines about the progress, at most.
const REPORTS: i64 = 10;

#[derive(Args)]
pub(super) struct Backup {
    /// The file to make; its folder must be there
    to: PathBuf,
    /// The configuration of the hub, which names the log
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any key of the configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

impl Backup {
    pub(super) fn run(self) -> ExitCode {
        let overrides = Overrides { set: self.set, ..Overrides::default() };
        let config = match Config::load(self.config.as_deref(), environment(), overrides) {
            Ok(config) => config,
            Err(faults) => return refuse(&faults),
        };
        if config.store.shared.is_some() {
            eprintln!(
                "spreadly: the log is a Postgres database (store.url): back that up with the \
                 tools of Postgres, such as pg_dump"
            );
            return ExitCode::FAILURE;
        }
        let mut reported = 0;
        let report = |step| match step {
            BackupStep::Copied { pages, of } => {
                let part = i64::from(pages) * REPORTS / i64::from(of).max(1);
                if part > reported {
                    reported = part;
                    eprintln!("copied {pages} of {of} pages");
                }
            }
            BackupStep::Checking => eprintln!("copied; checking the copy"),
        };
        match back_up(&config.store.path, &self.to, report) {
            Ok(Copied { epoch, newest, bytes }) => {
                let (epoch, sequence) = (epoch.to_string(), newest.to_string());
                let line =
                    json!({"copy": self.to, "bytes": bytes, "epoch": epoch, "sequence": sequence});
                println!("{line}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("spreadly: {error}");
                ExitCode::FAILURE
            }
        }
    }
}
