//! `spreadly dev`: the hub with simulated markets.

use std::process::ExitCode;

use clap::Args;

use super::serve::Serve;
use crate::feeds::simulator::{MOST_MARKETS, MOST_RATE, SimulatorConfig};

#[derive(Args)]
pub(super) struct Dev {
    #[command(flatten)]
    serve: Serve,
    /// How many markets move; each fourth, RSN-ERG the first, is sent order by order and takes
    /// orders of `placeOrder`
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MARKETS)))]
    markets: u32,
    /// Changes of a book a second, of all markets together; trades come on top
    #[arg(long, value_name = "EVENTS_PER_S", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_RATE)))]
    rate: u32,
    /// The same seed gives the same events
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Dev {
    pub(super) fn run(self) -> ExitCode {
        let Self { serve, markets, rate, seed } = self;
        serve.run(Some(SimulatorConfig { markets, events_per_second: rate, seed }))
    }
}
