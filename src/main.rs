//! Arguments and the exit code; everything else is in the library.
//!
//! 0: stopped as asked. 1: could not run, or had to stop. 2: told something it does not accept.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde_json::{Map, Value};
use spreadly::client::{self, Endpoint};
use spreadly::config::{Config, ConfigFault, LogConfig, LogFormat, Overrides};
use spreadly::feeds::simulator::{MOST_MARKETS, MOST_RATE, SimulatorConfig};
use tracing_subscriber::EnvFilter;

/// Results are small, shared and dropped on another thread than the one that made them, which
/// costs the system's allocator a lock each. This one gives memory back on threads of its own.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const USAGE_FAULT: u8 = 2;
/// Whom `spreadly dev` takes everyone for where the configuration names nobody.
const DEVELOPMENT_ACCOUNT: &str = "9dev";

const EXAMPLES: &str = "\
Examples:
  spreadly dev                                    a simulated market on http://127.0.0.1:4000
  spreadly serve                                  reads feeds/, keeps data/, needs nothing else
  spreadly serve --config spreadly.toml --set limits.sockets_per_address=500
  SPREADLY__LOG__FORMAT=json spreadly serve       every key has a variable
  spreadly check-config spreadly.toml             every fault at once; else what would run
  spreadly schema > schema.graphql
  spreadly subscribe 'subscription { feedStatus { name state } }'
  spreadly publish news '{\"headline\": \"hello\"}'

Flags beat SPREADLY__SECTION__KEY variables, which beat the file, which beats the defaults.
config/spreadly.toml has every key with its unit and reason.
Exit codes: 0 stopped as asked, 1 could not run, 2 a fault in the arguments or the configuration.";

const SUBSCRIBE_EXAMPLES: &str = "\
Examples:
  spreadly subscribe 'subscription { orderBook(market: \"ERG-USD\", depth: 5) { __typename sequence
    ... on BookSnapshot { bids { price size } } ... on BookDelta { bids { price size } } } }'
  spreadly subscribe --variables '{\"markets\": [\"ERG-USD\"]}' \\
    'subscription ($markets: [ID!]!) { bestBidOffer(markets: $markets) { market bid { price } } }'
  spreadly subscribe --pretty '{ markets { id tickSize } hub { version } }'
  spreadly subscribe --count 100 '…' | jq -c .data

On stdout is nothing but results, a line of JSON each as the hub wrote it, heartbeats among them;
what happens meanwhile is on stderr. Each result of a stream that can be resumed has its cursor in
extensions.cursor. After a cut the client comes back, waiting 0.2 s at first and 10 s at most, and
resumes after the last cursor, without gaps or duplicates. Give a cursor to --after to go on where
an earlier run ended.

Exit codes: 0 complete, --count reached, or Ctrl-C; 1 the hub refused it, or closed the socket with
a code that trying again would only repeat; 2 a fault in the arguments.";

const PUBLISH_EXAMPLES: &str = "\
Examples:
  spreadly publish news '{\"headline\": \"hello\"}'
  spreadly publish --id 2026-11-24/1 news '\"the same id again counts once\"'
  spreadly subscribe 'subscription { events(topic: \"news\") { events { data } } }'
      tells it to whoever listens

Prints the hub's answer as a line of JSON: epoch, sequence and cursor of the event, which is in the log
then. It has one try: where no answer came, nobody can tell whether it took effect, so give it an --id
and publish it again.

Exit codes: 0 published; 1 refused, or no answer; 2 a fault in the arguments.";

const PUBLISH: &str = "mutation ($topic: String!, $data: JSON!, $id: ID) {
  publish(topic: $topic, data: $data, id: $id) { topic epoch sequence cursor duplicate }
}";

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
    Serve(Settings),
    /// Run the hub with a simulated market, for trying it out and for load tests
    Dev {
        #[command(flatten)]
        settings: Settings,
        /// How many markets move; each fourth, RSN-ERG the first, is told order by order and takes
        /// orders of `placeOrder`
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MARKETS)))]
        markets: u32,
        /// Changes of a book a second, of all markets together; trades come on top
        #[arg(long, value_name = "EVENTS_PER_S", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_RATE)))]
        rate: u32,
        /// The same seed gives the same events
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Check a configuration file as `serve` would read it, with the environment
    ///
    /// Prints every fault with its key and exits with 2, or prints the effective configuration.
    CheckConfig { file: PathBuf },
    /// Print the GraphQL schema
    Schema,
    /// Follow a GraphQL subscription, or run a query, and print each result as a line of JSON
    #[command(after_help = SUBSCRIBE_EXAMPLES)]
    Subscribe {
        /// A GraphQL document with one operation
        document: String,
        #[command(flatten)]
        hub: HubUrl,
        /// A JSON object
        #[arg(long, value_name = "JSON", default_value = "{}", value_parser = variables)]
        variables: Map<String, Value>,
        /// Begin behind this position instead of anew
        #[arg(long, value_name = "CURSOR")]
        after: Option<String>,
        /// End after so many results
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
        /// Indent the results, for people
        #[arg(long)]
        pretty: bool,
    },
    /// Publish one event to a generic topic
    #[command(after_help = PUBLISH_EXAMPLES)]
    Publish {
        /// 1 to 128 characters
        topic: String,
        /// What to publish: any JSON
        #[arg(value_name = "JSON", value_parser = json)]
        data: Value,
        #[command(flatten)]
        hub: HubUrl,
        /// Makes it count once, however often it is published
        #[arg(long)]
        id: Option<String>,
    },
}

#[derive(Args)]
struct HubUrl {
    /// The hub's GraphQL address
    #[arg(long, value_name = "URL", default_value = DEFAULT_URL)]
    url: Endpoint,
}

#[derive(Args)]
struct Settings {
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

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as section.key=value")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

fn variables(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("write it as a JSON object: {error}"))
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text)
        .map_err(|error| format!("write it as JSON, text in double quotes: {error}"))
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve(settings) => serve(settings, None),
        Command::Dev { settings, markets, rate, seed } => {
            serve(settings, Some(SimulatorConfig { markets, events_per_second: rate, seed }))
        }
        Command::CheckConfig { file } => check(&file),
        Command::Schema => {
            print!("{}", spreadly::graphql::sdl());
            ExitCode::SUCCESS
        }
        Command::Subscribe { document, hub, variables, after, count, pretty } => {
            let endpoint = hub.url;
            let asked = client::Subscribe { endpoint, document, variables, after, count, pretty };
            told(client::subscribe(asked))
        }
        Command::Publish { topic, data, hub, id } => {
            let variables = [("topic", topic.into()), ("data", data), ("id", id.into())];
            told(client::subscribe(client::Subscribe {
                endpoint: hub.url,
                document: PUBLISH.to_owned(),
                variables: variables
                    .map(|(name, value)| (name.to_owned(), value))
                    .into_iter()
                    .collect(),
                after: None,
                count: None,
                pretty: false,
            }))
        }
    }
}

fn told(outcome: Result<(), client::ClientError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spreadly: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(settings: Settings, simulator: Option<SimulatorConfig>) -> ExitCode {
    let Settings { config, listen, admin_listen, set } = settings;
    let overrides = Overrides { listen, admin_listen, set };
    let mut config = match Config::load(config.as_deref(), environment(), overrides) {
        Ok(config) => config,
        Err(faults) => return refuse(&faults),
    };
    if simulator.is_some() {
        config.identity.development_account.get_or_insert(DEVELOPMENT_ACCOUNT.into());
    }
    start_logging(&config.log);
    match spreadly::server::run(config, simulator) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the hub stopped");
            ExitCode::FAILURE
        }
    }
}

fn check(file: &Path) -> ExitCode {
    match Config::load(Some(file), environment(), Overrides::default()) {
        Ok(config) => {
            print!("{}", config.to_toml());
            ExitCode::SUCCESS
        }
        Err(faults) => refuse(&faults),
    }
}

fn refuse(faults: &[ConfigFault]) -> ExitCode {
    for fault in faults {
        eprintln!("{fault}");
    }
    let what = if faults.len() == 1 { "fault" } else { "faults" };
    eprintln!("spreadly: {} {what} in the configuration", faults.len());
    ExitCode::from(USAGE_FAULT)
}

/// A variable that is not UTF-8 is none of ours.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// To stderr: stdout is for what scripts read.
fn start_logging(log: &LogConfig) {
    // The configuration has checked the filter.
    let filter = EnvFilter::try_new(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => lines.with_ansi(false).init(),
        LogFormat::Json => lines.json().init(),
    }
}
