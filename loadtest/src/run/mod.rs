//! `spreadly-storm run`: very many subscriptions on one or two threads. It connects all, lets them
//! idle, subscribes all, and measures only once every operation has had its first result.

pub mod client;
pub mod follow;
pub mod latency;
pub mod meters;
mod report;
mod target;

use crate::process;
use clap::Args;
use client::{Phase, Plan};
pub use latency::LatencyFrom;
use meters::{Meters, Rare};
use report::reasons;
pub use report::{HubReport, Latency, Report};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
pub use target::Opening;
use target::Target;
use tokio::sync::{oneshot, watch};

/// All connected, or all with a first result: a hub that needs longer has failed.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// How often the thread that waits looks; it measures nothing meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(10);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spreadly-storm run --connections 1000 --market ERG-USD --duration 10 --hub-pid PID
      what a delivered message costs the hub, and what a connection weighs
  spreadly-storm run --connections 20 --market ERG-USD --market SPF-ERG --depth 10 --follow
      verify every frame: chain, book and checksum; exit code 1 if anything is wrong
  spreadly-storm run --connections 1000 --allow-failures 0.01
      exit code 1 if more than 10 sockets are refused or closed, or 10 operations end in errors
  spreadly-storm run --connections 15000 --ramp 2000 --json \\
      --query 'subscription { trades(markets: [\"ERG-USD\"]) { __typename } }'
  spreadly-storm run --url wss://hub.example/graphql --header 'origin: https://app.example' \\
      --init '{\"token\": \"…\"}'
      over TLS; SSL_CERT_FILE=ca.pem trusts an authority that the machine does not know")]
pub struct RunArgs {
    /// The hub's WebSocket, ws:// or wss://
    #[arg(long, default_value = "ws://127.0.0.1:4000/graphql")]
    url: String,
    #[command(flatten)]
    opening: Opening,
    /// How many sockets
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// Subscriptions on each socket
    #[arg(long, default_value_t = 1, value_name = "K")]
    operations_per_connection: usize,
    /// The subscription; $market, $depth and $speed are filled in where it declares them
    /// [default: orderBook with everything --follow needs]
    #[arg(long, conflicts_with = "follow")]
    query: Option<String>,
    /// Markets, dealt out in turn; repeatable
    #[arg(long = "market", value_name = "M", default_value = "ERG-USD")]
    markets: Vec<String>,
    /// Price levels a side
    #[arg(long, default_value_t = 25)]
    depth: usize,
    /// RAW, MS_100, MS_250 or S_1
    #[arg(long, default_value = "RAW")]
    speed: String,
    /// Seconds measured, after every operation has had its first result
    #[arg(long, default_value_t = 10.0, value_name = "S")]
    duration: f64,
    /// New connections a second
    #[arg(long, default_value_t = 2000.0, value_name = "CONNECTS_PER_SECOND")]
    ramp: f64,
    /// The hub's process, for its processor time and memory
    #[arg(long, value_name = "PID")]
    hub_pid: Option<u32>,
    /// Parse every frame and verify chain, book and checksum (orderBook only; costs this side a
    /// lot)
    #[arg(long)]
    follow: bool,
    /// Threads of the tester; one leaves the hub the other core
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Local addresses to connect from, in turn: one address has some 28,000 ports
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS,…")]
    source_addresses: Vec<IpAddr>,
    /// Share of sockets that may be refused or closed, and of operations that may end in errors,
    /// before the run counts as failed (exit code 1)
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    allow_failures: f64,
    /// What latencies count from; `event` needs `prevSequence sequence eventTime` in the query
    #[arg(long, value_enum, default_value_t = LatencyFrom::Publish)]
    latency_from: LatencyFrom,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What `run` and `bench` ask for.
#[derive(Debug)]
pub struct Storm {
    pub url: String,
    pub opening: Opening,
    pub connections: usize,
    pub operations: usize,
    /// Of a connection's operations, in turn.
    pub queries: Vec<String>,
    pub markets: Vec<String>,
    pub depth: usize,
    pub speed: String,
    pub duration: Duration,
    pub ramp: f64,
    pub hub_pid: Option<u32>,
    pub follow: bool,
    pub threads: usize,
    pub sources: Vec<IpAddr>,
    pub latency_from: LatencyFrom,
}

/// It selects what `--follow` needs, and the time that latencies begin with.
fn default_query(latency_from: LatencyFrom) -> String {
    match latency_from {
        LatencyFrom::Publish => follow::QUERY.to_owned(),
        LatencyFrom::Event => follow::QUERY.replace(" publishTime ", " publishTime eventTime "),
    }
}

/// # Errors
/// When nothing could be measured, `--follow` found a fault, or more failed than is allowed.
pub fn run(args: &RunArgs) -> Result<(), String> {
    let storm = Storm {
        url: args.url.clone(),
        opening: args.opening.clone(),
        connections: args.connections,
        operations: args.operations_per_connection,
        queries: vec![args.query.clone().unwrap_or_else(|| default_query(args.latency_from))],
        markets: args.markets.clone(),
        depth: args.depth,
        speed: args.speed.clone(),
        duration: Duration::try_from_secs_f64(args.duration).map_err(|e| e.to_string())?,
        ramp: args.ramp,
        hub_pid: args.hub_pid,
        follow: args.follow,
        threads: args.threads,
        sources: args.source_addresses.clone(),
        latency_from: args.latency_from,
    };
    let report = storm.measure()?;
    report.show(args.json)?;
    match &report.follow {
        Some(counts) if counts.faults() > 0 => {
            Err(format!("{} faults in what the hub sent", counts.faults()))
        }
        // Following nothing proves nothing.
        Some(_) if report.ready == 0 => Err("no operation had a result".to_owned()),
        _ => report.check_failures(args.operations_per_connection, args.allow_failures),
    }
}

/// The word to stop, and what stops by it.
type StormThread = (oneshot::Sender<()>, JoinHandle<()>);

impl Storm {
    /// # Errors
    /// When the address is wrong, sockets run out or nobody connects.
    pub fn measure(&self) -> Result<Report, String> {
        if self.connections == 0 || self.operations == 0 || self.threads == 0 {
            return Err("connections, operations and threads must be above 0".to_owned());
        }
        if self.ramp.is_nan() || self.ramp <= 0.0 {
            return Err("--ramp must be above 0".to_owned());
        }
        process::allow_sockets(self.connections)?;
        let plan = Arc::new(self.plan()?);
        let meters = Arc::new(Meters::default());
        let before = self.resident()?;
        let (phase, phases) = watch::channel(Phase::Connect);
        let threads = self.start_threads(&plan, &meters, &phases)?;
        let all = self.connections as u64;
        let done = |counter: &AtomicU64| Meters::get(counter) + Meters::get(&meters.failed);
        wait_until("connected", all, || done(&meters.acknowledged))?;
        let idle = self.resident()?;
        if Meters::get(&meters.acknowledged) == 0 {
            return Err(nobody(&meters.rare()));
        }
        let _ = phase.send(Phase::Subscribe);
        wait_until("with a first result", all, || done(&meters.ready))?;
        let mut report = self.window(&meters)?;
        if let (Some(hub), Some(before), Some(idle)) = (&mut report.hub, before, idle) {
            hub.resident_kib_before = before;
            hub.resident_kib_idle = idle;
            hub.idle_kib_per_connection = (idle as f64 - before as f64) / self.connections as f64;
        }
        for (stop, thread) in threads {
            let _ = stop.send(());
            // A thread that panicked has said so on stderr.
            let _ = thread.join();
        }
        Ok(report)
    }

    fn window(&self, meters: &Meters) -> Result<Report, String> {
        let reading = || {
            let hub = self.hub_pid.and_then(process::cpu_micros);
            let own = process::cpu_micros(std::process::id());
            (Instant::now(), Meters::get(&meters.messages), Meters::get(&meters.bytes), hub, own)
        };
        meters.measuring.store(true, Ordering::Relaxed);
        let from = reading();
        std::thread::sleep(self.duration);
        let to = reading();
        meters.measuring.store(false, Ordering::Relaxed);
        let end = self.resident()?;
        let seconds = (to.0 - from.0).as_secs_f64();
        let (messages, bytes) = (to.1 - from.1, to.2 - from.2);
        let each = |micros: u64| (messages > 0).then(|| micros as f64 / messages as f64);
        let spent = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?));
        let hub = spent(from.3, to.3).zip(end).map(|(micros, end)| HubReport {
            cpu_seconds: micros as f64 / 1e6,
            micros_per_message: each(micros),
            resident_kib_before: 0,
            resident_kib_idle: 0,
            resident_kib_end: end,
            idle_kib_per_connection: 0.0,
        });
        let rare = meters.rare();
        let latency = Latency {
            from: self.latency_from.field(),
            samples: rare.latency.samples,
            negative: rare.early,
            p50: rare.latency.quantile(0.5),
            p99: rare.latency.quantile(0.99),
            max: (rare.latency.samples > 0).then_some(rare.latency.max),
        };
        Ok(Report {
            connections: self.connections,
            connected: Meters::get(&meters.acknowledged),
            ready: Meters::get(&meters.ready),
            refused: rare.refusals.clone(),
            closes: rare.closes.clone(),
            errors: Meters::get(&meters.errors),
            first_error: rare.first_error.clone(),
            completes: Meters::get(&meters.completes),
            seconds,
            messages,
            bytes,
            messages_per_second: messages as f64 / seconds,
            bytes_per_message: bytes as f64 / (messages as f64).max(1.0),
            latency,
            hub,
            own_micros_per_message: spent(from.4, to.4).and_then(each),
            follow: self.follow.then(|| rare.follow.clone()),
        })
    }

    fn resident(&self) -> Result<Option<u64>, String> {
        let Some(pid) = self.hub_pid else { return Ok(None) };
        let resident = process::resident_kib(pid);
        resident.map(Some).ok_or_else(|| format!("process {pid} is gone"))
    }

    fn plan(&self) -> Result<Plan, String> {
        Ok(Plan {
            target: Target::new(&self.url, &self.opening)?,
            queries: self.queries.clone(),
            markets: self.markets.clone(),
            depth: self.depth,
            speed: self.speed.clone(),
            operations: self.operations,
            sources: self.sources.clone(),
            follow: self.follow,
            latency_from: self.latency_from,
        })
    }

    fn start_threads(
        &self,
        plan: &Arc<Plan>,
        meters: &Arc<Meters>,
        phases: &watch::Receiver<Phase>,
    ) -> Result<Vec<StormThread>, String> {
        let mut threads = Vec::with_capacity(self.threads);
        for thread in 0..self.threads {
            let (stop, stopped) = oneshot::channel::<()>();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| error.to_string())?;
            let (plan, meters, phases) = (Arc::clone(plan), Arc::clone(meters), phases.clone());
            let numbers = (thread..self.connections).step_by(self.threads);
            let ramp = self.ramp;
            let handle = std::thread::spawn(move || {
                runtime.block_on(async {
                    let spawner = spawn_all(plan, meters, phases, numbers, ramp);
                    // What still lives when the word comes is dropped with the runtime.
                    tokio::select! {
                        _ = stopped => {}
                        () = async { spawner.await; std::future::pending::<()>().await } => {}
                    }
                });
            });
            threads.push((stop, handle));
        }
        Ok(threads)
    }
}

/// Why: each reason with its count, on one line.
fn nobody(rare: &Rare) -> String {
    let mut why = rare.refusals.clone();
    for (code, count) in &rare.closes {
        why.insert(format!("closed before connection_ack, {code}"), *count);
    }
    format!("nobody connected ({})", reasons(&why))
}

async fn spawn_all(
    plan: Arc<Plan>,
    meters: Arc<Meters>,
    phases: watch::Receiver<Phase>,
    numbers: impl Iterator<Item = usize>,
    ramp: f64,
) {
    let began = tokio::time::Instant::now();
    for number in numbers {
        tokio::time::sleep_until(began + Duration::from_secs_f64(number as f64 / ramp)).await;
        let connection =
            client::connection(Arc::clone(&plan), Arc::clone(&meters), number, phases.clone());
        tokio::spawn(connection);
    }
}

fn wait_until(what: &str, wanted: u64, reached: impl Fn() -> u64) -> Result<(), String> {
    let began = Instant::now();
    let mut last = (0, began);
    while reached() < wanted {
        let now = reached();
        if now != last.0 {
            last = (now, Instant::now());
        }
        // Measured from the last progress, so that a slow ramp is no failure.
        if last.1.elapsed() > STEP_TIMEOUT {
            return Err(format!("only {now} of {wanted} {what} and no progress"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
