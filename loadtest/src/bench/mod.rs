//! `spreadly-storm bench`: a real hub against the ceiling, scenario by scenario. Rounds of both
//! alternate, with the same connections, message size and rate, because a machine's speed drifts:
//! the ratio within a run can be trusted where the microseconds can't.

pub mod feeder;

use crate::ceiling::CeilingReport;
use crate::hub::{Hub, Settings};
use crate::run::{LatencyFrom, Opening, Report, Storm, follow};
use clap::Args;
use feeder::Feeder;
use serde::Serialize;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

/// What a book's frontend asks for.
const DEPTH: usize = 25;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spreadly-storm bench --hub target/release/spreadly
      the five standard scenarios, five rounds each, some ten minutes
  spreadly-storm bench --hub target/release/spreadly --scenario 1000x50 --rounds 3 --seconds 4 --json

The ratio is what counts: 1.0 is a hub that costs no more than write(2). Below 1 it wrote several
messages at once, which the column `of the rate` then explains (less than 100 %: it merged).")]
pub struct BenchArgs {
    /// The hub's binary, built with --release
    #[arg(long, value_name = "PATH")]
    hub: PathBuf,
    /// CONNECTIONSxEVENTS_PER_SECOND, repeatable. With `d` after it each connection is a dashboard:
    /// book, offer, ticker, trades and candles, which an event and a trade change six times
    #[arg(long = "scenario", value_name = "CxR[d]",
          default_values = ["1000x20", "1000x50", "15000x2", "1000x500", "1000x20d"])]
    scenarios: Vec<Scenario>,
    /// Rounds of hub and ceiling each; medians are taken over them
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds a round measures
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// Price levels each event changes: five make a message of about 450 bytes
    #[arg(long, default_value_t = 5)]
    levels: usize,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy)]
struct Scenario {
    connections: usize,
    rate: f64,
    dashboard: bool,
}

/// What a dashboard asks for beside the book.
const DASHBOARD: [&str; 4] = [
    "subscription($market: ID!) { bestBidOffer(markets: [$market]) { __typename epoch sequence \
     prevSequence cursor bid { price size } ask { price size } eventTime publishTime } }",
    "subscription($market: ID!) { tickers(markets: [$market]) { __typename epoch sequence \
     prevSequence cursor ticker { last open high low volume count bid { price } ask { price } } \
     eventTime publishTime } }",
    "subscription($market: ID!) { trades(markets: [$market]) { __typename epoch sequence \
     prevSequence cursor trades { id price size takerSide time } eventTime publishTime } }",
    "subscription($market: ID!) { candles(market: $market, interval: M1) { __typename epoch sequence \
     prevSequence cursor candles { start open high low close volume count } eventTime publishTime } }",
];
/// Messages that a delta of the best levels and a trade are to a dashboard: the ticker changes
/// twice.
const DASHBOARD_MESSAGES: f64 = 6.0;

impl Scenario {
    fn queries(&self) -> Vec<String> {
        let rest = if self.dashboard { &DASHBOARD[..] } else { &[] };
        [follow::QUERY].iter().chain(rest).map(|query| (*query).to_owned()).collect()
    }

    /// Messages a second to each connection.
    fn messages(&self) -> f64 {
        self.rate * if self.dashboard { DASHBOARD_MESSAGES } else { 1.0 }
    }

    fn name(&self) -> String {
        let dashboard = if self.dashboard { "d" } else { "" };
        format!("{}x{}{dashboard}", self.connections, self.rate)
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}`: write CONNECTIONSxEVENTS_PER_SECOND, as 1000x50 or 1000x20d");
        let (text, dashboard) = match text.strip_suffix('d') {
            Some(text) => (text, true),
            None => (text, false),
        };
        let (connections, rate) = text.split_once('x').ok_or_else(wrong)?;
        let connections = connections.parse().map_err(|_| wrong())?;
        let rate: f64 = rate.parse().map_err(|_| wrong())?;
        if connections == 0 || !rate.is_finite() || rate <= 0.0 {
            return Err(wrong());
        }
        Ok(Self { connections, rate, dashboard })
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ScenarioReport {
    name: String,
    connections: usize,
    rate: f64,
    bytes_per_message: f64,
    hub_micros: Vec<f64>,
    ceiling_micros: Vec<f64>,
    hub_median: f64,
    ceiling_median: f64,
    ratio: f64,
    /// Delivered messages over connections × rate, median: below 1 the hub merged or lagged.
    delivered_of_rate: f64,
    /// The ceiling's too: below 1 the machine can't do it at all.
    ceiling_of_rate: f64,
    latency_p50: f64,
    latency_p99: f64,
    /// Of the first round: a fresh hub, before any memory is reused.
    idle_kib_per_connection: f64,
    end_kib_per_connection: f64,
}

/// # Errors
/// When the hub doesn't start, doesn't deliver, or the ceiling can't be measured.
pub fn run(args: &BenchArgs) -> Result<(), String> {
    if args.rounds == 0 || args.levels == 0 || args.levels > feeder::LEVELS {
        return Err(format!("--rounds and --levels from 1, --levels to {}", feeder::LEVELS));
    }
    let mut reports = Vec::with_capacity(args.scenarios.len());
    for scenario in &args.scenarios {
        let report = measure(args, *scenario)?;
        if !args.json {
            report.print();
        }
        reports.push(report);
    }
    if args.json {
        println!("{}", serde_json::to_string(&reports).map_err(|error| error.to_string())?);
    }
    Ok(())
}

fn measure(args: &BenchArgs, scenario: Scenario) -> Result<ScenarioReport, String> {
    crate::process::allow_sockets(scenario.connections)?;
    let most = format!("limits.sockets_per_address={}", scenario.connections + 100);
    let settings = Settings { set: vec![most], open_files: None };
    let hub = Hub::start(&args.hub, &settings)?;
    let feeder = Feeder::open(&hub.feeds, args.levels)?;
    let mut hubs = Vec::with_capacity(args.rounds);
    let mut ceilings = Vec::with_capacity(args.rounds);
    for round in 1..=args.rounds {
        let report = hub_round(args, scenario, &hub, &feeder)?;
        let bytes = report.bytes_per_message;
        let ceiling = ceiling_round(args, scenario, bytes)?;
        eprintln!(
            "{} round {round}: hub {:.2} µs, ceiling {:.2} µs, {bytes:.0} bytes",
            scenario.name(),
            hub_micros(&report),
            ceiling.micros_per_message
        );
        hubs.push(report);
        ceilings.push(ceiling);
    }
    Ok(summary(scenario, &hubs, &ceilings))
}

fn hub_round(
    args: &BenchArgs,
    scenario: Scenario,
    hub: &Hub,
    feeder: &Feeder,
) -> Result<Report, String> {
    let feeding = feeder.start(scenario.rate, scenario.dashboard);
    let storm = Storm {
        url: hub.url.clone(),
        opening: Opening::default(),
        connections: scenario.connections,
        operations: scenario.queries().len(),
        queries: scenario.queries(),
        markets: vec![feeder::MARKET.to_owned()],
        depth: DEPTH,
        speed: "RAW".to_owned(),
        duration: Duration::try_from_secs_f64(args.seconds).map_err(|e| e.to_string())?,
        ramp: 4000.0,
        hub_pid: Some(hub.pid()),
        follow: false,
        threads: 1,
        sources: Vec::new(),
        latency_from: LatencyFrom::Publish,
    };
    let report = storm.measure();
    feeding.stop()?;
    let report = report.map_err(|error| format!("{error}\n{}", hub.last_words()))?;
    if report.ready != scenario.connections as u64 || report.messages == 0 {
        return Err(format!(
            "{} of {} subscribed, {} messages, first error {:?}\n{}",
            report.ready,
            scenario.connections,
            report.messages,
            report.first_error,
            hub.last_words()
        ));
    }
    Ok(report)
}

/// In a process of its own, since this one has the feeder's and the subscribers' time in it.
fn ceiling_round(
    args: &BenchArgs,
    scenario: Scenario,
    bytes: f64,
) -> Result<CeilingReport, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(own)
        .args(["ceiling", "--json", "--connections", &scenario.connections.to_string()])
        .args(["--bytes", &format!("{bytes:.0}"), "--rate", &scenario.messages().to_string()])
        .args(["--duration", &args.seconds.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&output.stdout).map_err(|error| format!("the ceiling failed: {error}"))
}

fn hub_micros(report: &Report) -> f64 {
    report.hub.as_ref().and_then(|hub| hub.micros_per_message).unwrap_or(f64::NAN)
}

fn summary(scenario: Scenario, hubs: &[Report], ceilings: &[CeilingReport]) -> ScenarioReport {
    let wanted = scenario.connections as f64 * scenario.messages();
    let of_hubs = |value: fn(&Report) -> f64| hubs.iter().map(value).collect::<Vec<f64>>();
    let micros = |value: Option<u64>| value.map_or(f64::NAN, |micros| micros as f64);
    let hub_micros = of_hubs(hub_micros);
    let ceiling_micros: Vec<f64> =
        ceilings.iter().map(|ceiling| ceiling.micros_per_message).collect();
    let hub_median = median(&hub_micros);
    let ceiling_median = median(&ceiling_micros);
    let rates: Vec<f64> = ceilings.iter().map(|ceiling| ceiling.messages_per_second).collect();
    let memory = hubs.first().and_then(|report| report.hub.as_ref());
    ScenarioReport {
        name: scenario.name(),
        connections: scenario.connections,
        rate: scenario.rate,
        bytes_per_message: median(&of_hubs(|report| report.bytes_per_message)),
        ratio: hub_median / ceiling_median,
        hub_micros,
        ceiling_micros,
        hub_median,
        ceiling_median,
        delivered_of_rate: median(&of_hubs(|report| report.messages_per_second)) / wanted,
        ceiling_of_rate: median(&rates) / wanted,
        latency_p50: median(&hubs.iter().map(|r| micros(r.latency.p50)).collect::<Vec<f64>>()),
        latency_p99: median(&hubs.iter().map(|r| micros(r.latency.p99)).collect::<Vec<f64>>()),
        idle_kib_per_connection: memory.map_or(f64::NAN, |hub| hub.idle_kib_per_connection),
        end_kib_per_connection: memory.map_or(f64::NAN, |hub| {
            (hub.resident_kib_end as f64 - hub.resident_kib_before as f64)
                / scenario.connections as f64
        }),
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

impl ScenarioReport {
    fn print(&self) {
        println!(
            "{}: hub {:.2} µs/message, ceiling {:.2}, ratio {:.2}; {:.0} % of the rate \
             (ceiling {:.0} %); {:.0} bytes; latency p50 {:.0} p99 {:.0} µs; KiB a connection \
             {:.2} idle, {:.2} subscribed",
            self.name,
            self.hub_median,
            self.ceiling_median,
            self.ratio,
            self.delivered_of_rate * 100.0,
            self.ceiling_of_rate * 100.0,
            self.bytes_per_message,
            self.latency_p50,
            self.latency_p99,
            self.idle_kib_per_connection,
            self.end_kib_per_connection
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_whatever_the_order() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_scenario_is_connections_by_rate() {
        let scenario: Scenario = "15000x2".parse().unwrap();
        assert_eq!((scenario.connections, scenario.queries().len()), (15_000, 1));
        let dashboard: Scenario = "1000x20d".parse().unwrap();
        assert_eq!((dashboard.name().as_str(), dashboard.queries().len()), ("1000x20d", 5));
        assert!((dashboard.messages() - 120.0).abs() < f64::EPSILON);
        for wrong in ["1000", "0x5", "5x0", "5x-1", "ax1", "1xNaN"] {
            assert!(wrong.parse::<Scenario>().is_err(), "{wrong}");
        }
    }
}
