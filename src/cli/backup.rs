//! `spreadly backup`: a copy of the log while the hub runs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::check_config::HubConfig;
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
    #[command(flatten)]
    hub: HubConfig,
}

impl Backup {
    pub(super) fn run(self) -> ExitCode {
        let config = match self.hub.load() {
            Ok(config) => config,
            Err(code) => return code,
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
