//! `spreadly-storm check`: is what this hub sends right? Follows one market or all of them for a
//! while and verifies every frame. The verdict is the exit code.

use crate::run::{LatencyFrom, Opening, Storm, follow};
use clap::Args;
use serde::Deserialize;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Below a hub's default burst of subscribes, and far below its 256 operations a socket.
const MARKETS_PER_SOCKET: usize = 50;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const MARKETS_QUERY: &str = r#"{"query":"{ markets { id } }"}"#;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spreadly-storm check
      every market of the hub on this machine, for ten seconds
  spreadly-storm check --market ERG-USD --depth 1000 --speed MS_100 --duration 600

Exit code 0 only if at least one frame came for every market and no frame had a fault.")]
pub struct CheckArgs {
    /// The hub's WebSocket
    #[arg(long, default_value = "ws://127.0.0.1:4000/graphql")]
    url: String,
    /// Markets to follow; repeatable [default: all that the hub lists]
    #[arg(long = "market", value_name = "M")]
    markets: Vec<String>,
    /// Price levels a side; below 10 checksums can't be verified
    #[arg(long, default_value_t = 25)]
    depth: usize,
    /// RAW, MS_100, MS_250 or S_1
    #[arg(long, default_value = "RAW")]
    speed: String,
    /// Seconds
    #[arg(long, default_value_t = 10.0, value_name = "S")]
    duration: f64,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When anything the hub sent is wrong, or it sent nothing.
pub fn run(args: &CheckArgs) -> Result<(), String> {
    let markets = if args.markets.is_empty() { list(&args.url)? } else { args.markets.clone() };
    if markets.is_empty() {
        return Err("the hub has no market".to_owned());
    }
    eprintln!("following {} markets", markets.len());
    let connections = markets.len().div_ceil(MARKETS_PER_SOCKET);
    let storm = Storm {
        url: args.url.clone(),
        opening: Opening::default(),
        connections,
        // Rounded up: a few markets may be followed twice, none is left out.
        operations: markets.len().div_ceil(connections),
        queries: vec![follow::QUERY.to_owned()],
        markets,
        depth: args.depth,
        speed: args.speed.clone(),
        duration: Duration::try_from_secs_f64(args.duration).map_err(|e| e.to_string())?,
        ramp: 100.0,
        hub_pid: None,
        follow: true,
        threads: 1,
        sources: Vec::new(),
        latency_from: LatencyFrom::Publish,
    };
    let report = storm.measure()?;
    report.show(args.json)?;
    let counts = report.follow.unwrap_or_default();
    let snapshots: u64 = counts.snapshots.values().sum();
    let wanted = (storm.connections * storm.operations) as u64;
    if counts.faults() > 0 {
        Err(format!("{} faults in what the hub sent", counts.faults()))
    } else if report.errors > 0 {
        Err(format!("{} subscriptions were refused", report.errors))
    } else if snapshots < wanted {
        Err(format!("{snapshots} snapshots for {wanted} subscriptions"))
    } else {
        Ok(())
    }
}

#[derive(Deserialize)]
struct Answer {
    data: Markets,
}

#[derive(Deserialize)]
struct Markets {
    markets: Vec<Market>,
}

#[derive(Deserialize)]
struct Market {
    id: String,
}

/// By HTTP/1.0, whose answers come in one piece.
fn list(url: &str) -> Result<Vec<String>, String> {
    let rest = url.strip_prefix("ws://").ok_or("write ws://HOST:PORT/PATH")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(host)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let length = MARKETS_QUERY.len();
        let head = format!(
            "POST /{path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Accept: application/json\r\nContent-Length: {length}\r\n\r\n{MARKETS_QUERY}"
        );
        stream.write_all(head.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| format!("{host}: {error}"))?;
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n").map(|end| end + 4);
    let body = &answer[body.unwrap_or(answer.len())..];
    let answer: Answer = serde_json::from_slice(body).map_err(|error| {
        format!("the hub's answer to `{MARKETS_QUERY}`: {error}: {}", String::from_utf8_lossy(body))
    })?;
    Ok(answer.data.markets.into_iter().map(|market| market.id).collect())
}
