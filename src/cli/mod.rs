//! The command line: its subcommands, what they take, and the exit code.
//!
//! 0: stopped as asked. 1: could not run, or had to stop. 2: wrong arguments or configuration.

mod backup;
mod check_config;
mod dev;
mod errors;
mod migrate;
mod publish;
mod serve;
mod subscribe;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde_json::{Map, Value};

use self::backup::Backup;
use self::check_config::CheckConfig;
use self::dev::Dev;
use self::migrate::Migrate;
use self::publish::Publish;
use self::serve::Serve;
use self::subscribe::{ClientError, Endpoint, Header, Opening, Subscribe};
use crate::config;
use crate::graphql;
use crate::telemetry::metrics;

const EXAMPLES: &str = "\
Examples:
  spreadly dev                                    four simulated markets on http://127.0.0.1:4000
  spreadly serve                                  reads feeds/, keeps data/, needs nothing else
  spreadly serve --config spreadly.toml --set limits.sockets_per_address=500
  SPREADLY__LOG__FORMAT=json spreadly serve       every key has a variable
  spreadly check-config spreadly.toml             every fault at once; else what would run
  spreadly check-config --set limits.book_depth=100
  spreadly config > spreadly.toml                 every key at its default, with its meaning
  spreadly schema > schema.graphql
  spreadly errors                                 error codes and close codes, with their remedies
  spreadly metrics                                what /metrics counts
  spreadly subscribe 'subscription { feedStatus { name state } }'
  spreadly backup monday.db                       a copy of the log, while the hub runs
  spreadly migrate                                the tables in Postgres, for roles that may
  spreadly publish news '{\"headline\": \"hello\"}'

Flags beat SPREADLY__SECTION__KEY variables, which beat the file, which beats the defaults.
Exit codes: 0 stopped as asked, 1 could not run, 2 a fault in the arguments or the configuration.";

/// Where `spreadly serve` listens by itself.
const DEFAULT_URL: &str = "ws://127.0.0.1:4000/graphql";

/// The streaming hub of a decentralised exchange: takes events from feeds, keeps each market's
/// state and pushes it to very many clients as GraphQL subscriptions.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the hub
    Serve(Serve),
    /// Run the hub with four simulated markets, for trying it out and for load tests
    Dev(Dev),
    /// Check a configuration as `serve` would read it: a file, the environment and `--set`
    ///
    /// Prints every fault with its key and exits with 2, or prints the effective configuration.
    CheckConfig(CheckConfig),
    /// Print a configuration file with every key at its default, its unit, range and meaning
    Config {
        /// Print the same as a page in Markdown
        #[arg(long)]
        reference: bool,
    },
    /// Print the GraphQL schema
    Schema,
    /// Print every error code, HTTP status and close code, and what a client does then
    Errors,
    /// Print every metric, with its type and meaning
    Metrics,
    /// Follow a GraphQL subscription, or run a query, and print each result as a line of JSON
    #[command(after_help = subscribe::EXAMPLES)]
    Subscribe(Subscribe),
    /// Copy the log of a hub, which may run, to a new file
    #[command(after_help = backup::EXAMPLES)]
    Backup(Backup),
    /// Make the hub's tables in Postgres, or bring them up to date
    #[command(after_help = migrate::EXAMPLES)]
    Migrate(Migrate),
    /// Publish one event to a generic topic
    #[command(after_help = publish::EXAMPLES)]
    Publish(Publish),
}

#[derive(Args)]
struct Hub {
    /// The hub's GraphQL address; wss:// is TLS
    #[arg(long, value_name = "URL", default_value = DEFAULT_URL)]
    url: Endpoint,
    /// A header of the upgrade to a WebSocket; may be repeated
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = subscribe::header)]
    headers: Vec<Header>,
    /// The payload of `connection_init`: a JSON object
    #[arg(long, value_name = "JSON", value_parser = subscribe::object)]
    init: Option<Map<String, Value>>,
}

impl Hub {
    fn opening(self) -> Opening {
        Opening { endpoint: self.url, headers: self.headers, init: self.init }
    }
}

/// Runs what the arguments of this process ask for.
pub fn run() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve(serve) => serve.run(None),
        Command::Dev(dev) => dev.run(),
        Command::CheckConfig(check) => check.run(),
        Command::Backup(backup) => backup.run(),
        Command::Migrate(migrate) => migrate.run(),
        Command::Config { reference } => {
            let text = if reference { config::reference_page() } else { config::documented_file() };
            print!("{text}");
            ExitCode::SUCCESS
        }
        Command::Schema => {
            print!("{}", graphql::sdl());
            ExitCode::SUCCESS
        }
        Command::Errors => {
            print!("{}", errors::page());
            ExitCode::SUCCESS
        }
        Command::Metrics => {
            print!("{}", metrics::page());
            ExitCode::SUCCESS
        }
        Command::Subscribe(subscribe) => exit_code(subscribe.run()),
        Command::Publish(publish) => exit_code(publish.run()),
    }
}

fn exit_code(outcome: Result<(), ClientError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spreadly: {error}");
            ExitCode::FAILURE
        }
    }
}
