//! `spreadly-storm`: Spreadly's load tester. Arguments and exit code; each command is a module. It
//! shares no code with the hub, so that a misreading of the protocol shows.

mod bench;
mod book;
mod ceiling;
mod check;
mod cuts;
mod decimal;
mod feed;
mod flood;
mod hub;
mod process;
mod run;
mod venues;
mod wire;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(
    name = "spreadly-storm",
    version,
    about,
    long_about = "\
Spreadly's load tester: feeds recorded venue captures to a hub, opens very many subscriptions, and \
measures the hub against the bare cost of write(2)."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Turn a recorded venue capture into events for a hub
    Feed(feed::FeedArgs),
    /// Open very many subscriptions and report what arrives and what it costs the hub
    Run(run::RunArgs),
    /// Follow one market or all and verify every frame; the verdict is the exit code
    Check(check::CheckArgs),
    /// Measure the limit: the bare cost of writing ready bytes to each socket
    Ceiling(ceiling::CeilingArgs),
    /// Start a real hub and compare what it costs with the ceiling, round by round
    Bench(bench::BenchArgs),
    /// Attack a hub and measure what its other clients pay for it
    Flood(flood::FloodArgs),
    /// Cut all clients of a hub off at once and measure how soon all of them are back
    Cuts(cuts::CutsArgs),
    #[command(hide = true)]
    AnswerHandshakes,
    #[command(hide = true)]
    FloodClients(flood::ClientsArgs),
    #[command(hide = true)]
    Receive(ceiling::ReceiveArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Feed(args) => feed::run(&args).map_err(|error| error.to_string()),
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Ceiling(args) => ceiling::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Flood(args) => flood::run(args),
        Command::Cuts(args) => cuts::run(&args),
        Command::AnswerHandshakes => cuts::answer_handshakes(),
        Command::FloodClients(args) => flood::clients(&args),
        Command::Receive(args) => ceiling::receive(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spreadly-storm: {error}");
            ExitCode::FAILURE
        }
    }
}
