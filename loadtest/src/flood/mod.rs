//! `spreadly-storm flood`: whether one client can make others pay. A hub of its own, two fed
//! markets, steady plain subscribers whose delays are measured, and an attack in a process of its
//! own; before, during and after it.

mod clients;
mod documents;
mod http;
mod markets;
mod phase;
mod plan;
mod probes;
mod report;
pub mod socket;
mod spec;
mod steady;
mod watch;

use crate::hub::{Hub, Settings};
use crate::process;
use clap::Args;
use clients::AttackReport;
pub use clients::{ClientsArgs, run as clients};
use markets::{Feeding, Market};
use phase::{Phase, PhaseNow};
use probes::{Prober, Probes};
use report::{Delays, FloodReport, PhaseReport, Ratios, Recovery, SlowSecond, SteadyTroubles};
use spec::{Attack, Kind, Sharing, Spec};
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};
use steady::{Group, Steady};
use tokio::signal::unix::{SignalKind, signal};
use watch::{Memory, Processor, Reading};

/// Until all steady subscribers have had a frame.
const WARM_TIMEOUT: Duration = Duration::from_secs(30);
/// After the last phase, for events that are on their way.
const LAST_EVENTS: Duration = Duration::from_secs(1);
/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// For the attackers' report, once they are to leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(15);
/// Where attackers come from with `--addresses` alone; the steady subscribers are 127.0.0.1.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spreadly-storm flood --hub target/release/spreadly --attack documents --from 127.0.0.2
      20 sockets of one address with 200 documents each, none like another
  spreadly-storm flood --hub target/release/spreadly --attack queries --addresses 50 --recovery 60
      50 addresses with one HTTP connection each; memory a minute after they left
  spreadly-storm flood --hub target/release/spreadly --plan loadtest/plans/documents.args

Without --from and --addresses the attackers are on 127.0.0.1, which the hub doesn't count by
default. All load goes to loopback. A hub above --memory-mib ends the attack early.")]
pub struct FloodArgs {
    /// The hub's binary, built with --release
    #[arg(long, value_name = "PATH")]
    hub: PathBuf,
    /// A file of arguments, one or more a line, `#` for comments; what the command line says wins
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    #[arg(long, value_enum, required_unless_present = "plan")]
    attack: Option<Attack>,
    /// What `documents`, `churn`, `silent` and `sse` subscribe to, and what `queries` asks for
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Whether `silent` and `sse` share one document
    #[arg(long, value_enum)]
    sharing: Option<Sharing>,
    /// The attack's sockets [default: by attack]
    #[arg(long)]
    sockets: Option<usize>,
    /// Operations on each of them; aliases of a mutation with `topics` [default: by attack]
    #[arg(long)]
    operations: Option<usize>,
    /// The attack's first address in 127.0.0.0/8; the hub then counts loopback addresses
    #[arg(long, value_name = "ADDRESS")]
    from: Option<Ipv4Addr>,
    /// How many addresses the attack comes from [default: 1; from 127.0.0.2 unless --from says]
    #[arg(long, value_name = "N")]
    addresses: Option<usize>,
    /// Events a second of each market
    #[arg(long)]
    rate: Option<f64>,
    /// The attacked market has 5,000 levels a side; so it has for snapshots, queries and replies
    #[arg(long)]
    deep: bool,
    /// Steady subscribers of each market
    #[arg(long, value_name = "N")]
    steady: Option<usize>,
    /// Seconds measured before the attack
    #[arg(long, value_name = "S")]
    before: Option<f64>,
    /// Seconds of attack
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Seconds the hub has to recover once the attackers left; measured as `leaving`
    #[arg(long, value_name = "S")]
    settle: Option<f64>,
    /// Seconds measured after that
    #[arg(long, value_name = "S")]
    after: Option<f64>,
    /// Seconds from the attackers' leaving to a last look at memory
    #[arg(long, value_name = "S")]
    recovery: Option<f64>,
    /// MiB of the hub at which the attack ends early
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<f64>,
    /// The attackers' nice value: they are no part of what a hub's machine does
    #[arg(long)]
    nice: Option<u8>,
    /// Settings of the hub, as `spreadly serve --set`; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// The arguments with their defaults.
struct Flood {
    hub: PathBuf,
    settings: Settings,
    spec: Spec,
    rate: f64,
    deep: bool,
    steady: usize,
    before: Duration,
    seconds: Duration,
    settle: Duration,
    after: Duration,
    recovery: Option<Duration>,
    memory_mib: f64,
    nice: u8,
}

/// # Errors
/// When the hub doesn't start, nothing can be measured, or a signal ends it.
pub fn run(args: FloodArgs) -> Result<(), String> {
    let args = match &args.plan {
        Some(file) => plan::merged(&args, &plan::read(file)?)?,
        None => args,
    };
    let flood = Flood::of(&args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let report = runtime.block_on(async {
        // The hub and the attackers must not outlive us: what is dropped here ends them.
        let fault = |error: std::io::Error| error.to_string();
        let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
        tokio::select! {
            report = flood.measure() => report,
            _ = terminate.recv() => Err("ended by a signal".to_owned()),
            _ = interrupt.recv() => Err("ended by a signal".to_owned()),
        }
    })?;
    report.show(args.json)
}

fn seconds(value: Option<f64>, usual: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(value.unwrap_or(usual)).map_err(|error| error.to_string())
}

impl Flood {
    fn of(args: &FloodArgs) -> Result<Self, String> {
        let attack = args.attack.ok_or("the plan names no --attack")?;
        let (sockets, operations) = attack.usual_size();
        let counted = args.from.is_some() || args.addresses.is_some();
        let count = args.addresses.unwrap_or(1);
        let sources = match counted {
            true => spec::addresses(args.from.unwrap_or(FIRST_ADDRESS), count)?,
            false => Vec::new(),
        };
        let mut set = args.set.clone();
        if counted {
            set.insert(0, "limits.exempt_loopback=false".to_owned());
        }
        let flood = Self {
            hub: args.hub.clone(),
            settings: Settings { set, open_files: attack.open_files() },
            spec: Spec {
                attack,
                kind: args.kind.unwrap_or(match attack {
                    Attack::Queries => Kind::Mixed,
                    _ => Kind::Book,
                }),
                sharing: args.sharing.unwrap_or(Sharing::Both),
                // Known once the hub runs.
                address: (Ipv4Addr::LOCALHOST, 0).into(),
                sockets: args.sockets.unwrap_or(sockets),
                operations: args.operations.unwrap_or(operations),
                sources,
                market: markets::ATTACKED.to_owned(),
            },
            rate: args.rate.unwrap_or(20.0),
            deep: args.deep || attack.is_deep(),
            steady: args.steady.unwrap_or(4),
            before: seconds(args.before, 10.0)?,
            seconds: seconds(args.seconds, 30.0)?,
            settle: seconds(args.settle, 10.0)?,
            after: seconds(args.after, 10.0)?,
            recovery: args.recovery.map(|value| seconds(Some(value), 0.0)).transpose()?,
            memory_mib: args.memory_mib.unwrap_or(6144.0),
            nice: args.nice.unwrap_or(10),
        };
        if flood.spec.sockets == 0 || flood.spec.operations == 0 || flood.steady == 0 || count == 0
        {
            return Err("--sockets, --operations, --steady and --addresses from 1".to_owned());
        }
        if !flood.rate.is_finite() || flood.rate <= 0.0 {
            return Err("--rate must be above 0".to_owned());
        }
        Ok(flood)
    }

    async fn measure(&self) -> Result<FloodReport, String> {
        process::allow_sockets(self.spec.sockets)?;
        let hub = Hub::start(&self.hub, &self.settings)?;
        let result = self.against(&hub).await;
        result.map_err(|error| format!("{error}\n{}", hub.last_words()))
    }

    async fn against(&self, hub: &Hub) -> Result<FloodReport, String> {
        let spec = Spec { address: hub.public, ..self.spec.clone() };
        let phase = PhaseNow::default();
        markets::write_history(&hub.feeds)?;
        let attacked = Feeding::start(&hub.feeds, self.market(markets::ATTACKED), phase.clone())?;
        let other = Feeding::start(&hub.feeds, self.market(markets::OTHER), phase.clone())?;
        let third = match spec.attack {
            Attack::Documents if spec.kind == Kind::Quiet => {
                Feeding::quiet_markets(&hub.feeds)?;
                None
            }
            Attack::Documents if spec.kind == Kind::Replaced => {
                Some(Feeding::replaced_book(&hub.feeds, phase.clone())?)
            }
            Attack::Resumes => Some(Feeding::large_events(&hub.feeds, phase.clone())?),
            _ => None,
        };
        let groups = [(markets::ATTACKED, &attacked), (markets::OTHER, &other)];
        let groups = groups.map(|(market, feeding)| Group {
            market,
            sockets: self.steady,
            timeline: feeding.timeline.clone(),
        });
        let steady = Steady::start(hub.public, groups.to_vec());
        let publishes = spec.attack == Attack::Topics;
        let prober = Prober::start(hub.public, hub.admin, phase.clone(), publishes);
        let began = Instant::now();
        while !steady.is_ready() {
            if began.elapsed() > WARM_TIMEOUT {
                return Err("the steady subscribers had no frame".to_owned());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        tokio::time::sleep(LAST_EVENTS).await;
        let mut windows = Vec::new();
        windows.push(self.window(hub, &phase, Phase::Before, self.before, None).await?);
        let begin = jiff::Timestamp::now().as_second();
        let attackers = Attackers::start(&spec, self.nice)?;
        let during =
            self.window(hub, &phase, Phase::During, self.seconds, Some(&attackers)).await?;
        let cut_short = during.cut_short.clone();
        windows.push(during);
        let left = Instant::now();
        let leaving = self.window(hub, &phase, Phase::Leaving, self.settle, None);
        let (attack, leaving) = tokio::join!(attackers.leave(), leaving);
        windows.push(leaving?);
        windows.push(self.window(hub, &phase, Phase::After, self.after, None).await?);
        phase.set(Phase::Recovery);
        let recovery = match self.recovery {
            Some(time) => Some(recovered(hub, left, time).await?),
            None => None,
        };
        tokio::time::sleep(LAST_EVENTS).await;
        let probes = prober.finish();
        let seen = steady.finish()?;
        attacked.stop()?;
        other.stop()?;
        third.map_or(Ok(()), Feeding::stop)?;
        let [attacked, other] = seen.as_slice() else {
            return Err("the steady subscribers reported nothing".to_owned());
        };
        let phases: Vec<PhaseReport> = windows
            .into_iter()
            .map(|window| {
                let index = window.phase.index();
                let (attacked, other) = (&attacked.phases[index], &other.phases[index]);
                window.report(Delays::of(attacked), Delays::of(other), probes[index].clone())
            })
            .collect();
        Ok(FloodReport {
            spec,
            ratios: Ratios::of(&phases, recovery),
            phases,
            slowest: SlowSecond::all(attacked, other, begin),
            attack: attack?,
            steady: SteadyTroubles {
                attacked: attacked.troubles.clone(),
                other: other.troubles.clone(),
            },
            recovery,
            cut_short,
        })
    }

    fn market(&self, name: &'static str) -> Market {
        let is_attacked = name == markets::ATTACKED;
        let deep = is_attacked && self.deep;
        let books = [Kind::Book, Kind::Offers];
        Market {
            name,
            levels: if deep { markets::DEEP_LEVELS } else { crate::bench::feeder::LEVELS },
            rate: self.rate,
            trades: is_attacked && !books.contains(&self.spec.kind),
            offset: match is_attacked {
                true => Duration::ZERO,
                false => Duration::from_secs_f64(0.5 / self.rate),
            },
        }
    }

    async fn window(
        &self,
        hub: &Hub,
        now: &PhaseNow,
        phase: Phase,
        length: Duration,
        attackers: Option<&Attackers>,
    ) -> Result<Window, String> {
        let pid = attackers.map(Attackers::pid);
        let from = Reading::now(hub.pid(), pid);
        let began = Instant::now();
        now.set(phase);
        let mut memory = Memory::default();
        let mut cut_short = None;
        loop {
            memory.note(hub.pid())?;
            if attackers.is_some() && memory.end_mib > self.memory_mib {
                cut_short = Some(format!("the hub has {} MiB", memory.end_mib));
            }
            let left = length.saturating_sub(began.elapsed());
            if left.is_zero() || cut_short.is_some() {
                break;
            }
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
        let processor = from.until(&Reading::now(hub.pid(), pid));
        let seconds = began.elapsed().as_secs_f64();
        Ok(Window { phase, seconds, memory, processor, cut_short })
    }
}

async fn recovered(hub: &Hub, left: Instant, time: Duration) -> Result<Recovery, String> {
    tokio::time::sleep(time.saturating_sub(left.elapsed())).await;
    let mut memory = Memory::default();
    memory.note(hub.pid())?;
    Ok(Recovery { seconds: left.elapsed().as_secs_f64(), resident_mib: memory.end_mib })
}

struct Window {
    phase: Phase,
    seconds: f64,
    memory: Memory,
    processor: Processor,
    cut_short: Option<String>,
}

impl Window {
    fn report(self, attacked: Delays, other: Delays, probes: Probes) -> PhaseReport {
        PhaseReport {
            phase: self.phase,
            seconds: self.seconds,
            attacked,
            other,
            memory: self.memory,
            processor: self.processor,
            probes,
        }
    }
}

/// The child process. It leaves when its standard input is closed, so also when we end.
struct Attackers {
    process: Child,
    input: Option<ChildStdin>,
}

impl Attackers {
    fn start(spec: &Spec, nice: u8) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let spec = serde_json::to_string(spec).map_err(|error| error.to_string())?;
        let mut process = Command::new("nice")
            .args(["-n", &nice.to_string()])
            .arg(own)
            .args(["flood-clients", "--spec", &spec])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("nice: {error}"))?;
        let input = process.stdin.take();
        Ok(Self { process, input })
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    async fn leave(mut self) -> Result<AttackReport, String> {
        drop(self.input.take());
        let began = Instant::now();
        while self.process.try_wait().map_err(|error| error.to_string())?.is_none() {
            if began.elapsed() > LEAVE_TIMEOUT {
                return Err("the attackers didn't leave".to_owned());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let mut text = String::new();
        if let Some(output) = &mut self.process.stdout {
            output.read_to_string(&mut text).map_err(|error| error.to_string())?;
        }
        serde_json::from_str(&text).map_err(|error| format!("the attackers failed: {error}"))
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
