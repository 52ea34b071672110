//! What a flood reports: a row a phase, what the attackers met, and the ratios that a verdict
//! needs.

use super::clients::AttackReport;
use super::phase::Phase;
use super::probes::Probes;
use super::spec::Spec;
use super::steady::{GroupSeen, Seen, Troubles};
use super::watch::{Memory, Processor};
use serde::Serialize;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FloodReport {
    pub spec: Spec,
    pub phases: Vec<PhaseReport>,
    pub ratios: Ratios,
    pub slowest: Vec<SlowSecond>,
    pub attack: AttackReport,
    pub steady: SteadyTroubles,
    /// Memory this long after the attackers left, where `--recovery` asked for it.
    pub recovery: Option<Recovery>,
    /// Why the attack was ended before its time.
    pub cut_short: Option<String>,
}

/// A second in which some event was late.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SlowSecond {
    /// From the attack's beginning.
    pub second: i64,
    pub attacked_market: bool,
    /// Microseconds, of the latest event.
    pub delay: u64,
}

/// Of these the report has the slowest.
const SLOW_SECONDS: usize = 12;

impl SlowSecond {
    /// The slowest seconds of both groups, in the order of time.
    pub fn all(attacked: &GroupSeen, other: &GroupSeen, begin: i64) -> Vec<Self> {
        let of = |seen: &GroupSeen, attacked_market| -> Vec<Self> {
            let seconds = seen.seconds.iter().map(|(second, delay)| Self {
                second: second - begin,
                attacked_market,
                delay: *delay,
            });
            seconds.collect()
        };
        let mut all = [of(attacked, true), of(other, false)].concat();
        all.sort_unstable_by_key(|one| std::cmp::Reverse(one.delay));
        all.truncate(SLOW_SECONDS);
        all.sort_unstable_by_key(|one| one.second);
        all
    }
}

#[derive(Debug, Serialize)]
pub struct SteadyTroubles {
    pub attacked: Troubles,
    pub other: Troubles,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    pub seconds: f64,
    pub resident_mib: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseReport {
    pub phase: Phase,
    pub seconds: f64,
    /// Steady subscribers of the attacked market.
    pub attacked: Delays,
    /// Steady subscribers of another market.
    pub other: Delays,
    pub memory: Memory,
    pub processor: Processor,
    pub probes: Probes,
}

/// Microseconds from an event's time to a socket, of every event for every socket.
#[derive(Debug, Default, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Delays {
    pub samples: u64,
    pub p50: Option<u64>,
    pub p99: Option<u64>,
    pub max: Option<u64>,
    pub frames: u64,
    pub merged: u64,
    pub not_live: u64,
    /// Events that hadn't come by the end of everything; the samples have them with their age then.
    pub missing: u64,
}

/// How much worse than before.
#[derive(Debug, Default, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ratios {
    pub attacked_p50_during: Option<f64>,
    pub attacked_p99_during: Option<f64>,
    pub attacked_p99_after: Option<f64>,
    pub other_p50_during: Option<f64>,
    pub other_p99_during: Option<f64>,
    pub other_p99_after: Option<f64>,
    pub resident_during: Option<f64>,
    pub resident_after: Option<f64>,
    pub resident_recovery: Option<f64>,
}

impl Delays {
    pub fn of(seen: &Seen) -> Self {
        let delays = &seen.delays;
        Self {
            samples: delays.samples,
            p50: delays.quantile(0.5),
            p99: delays.quantile(0.99),
            max: (delays.samples > 0).then_some(delays.max),
            frames: seen.frames,
            merged: seen.merged,
            not_live: seen.not_live,
            missing: seen.missing,
        }
    }

    fn print(&self) -> String {
        let ms = |micros: Option<u64>| {
            micros.map_or("–".to_owned(), |micros| format!("{:.2}", micros as f64 / 1000.0))
        };
        let mut text = format!("{} / {} / {}", ms(self.p50), ms(self.p99), ms(self.max));
        let notes =
            [(self.merged, "merged"), (self.missing, "missing"), (self.not_live, "not live")];
        for (count, what) in notes.iter().filter(|(count, _)| *count > 0) {
            text += &format!(" ({count} {what})");
        }
        text
    }
}

impl Ratios {
    pub fn of(phases: &[PhaseReport], recovery: Option<Recovery>) -> Self {
        let phase = |wanted: Phase| phases.iter().find(|phase| phase.phase == wanted);
        let Some(before) = phase(Phase::Before) else {
            return Self::default();
        };
        let delay = |wanted: Phase, which: fn(&PhaseReport) -> Option<u64>| {
            Some(ratio(which(phase(wanted)?)? as f64, which(before)? as f64))
        };
        let attacked: fn(&PhaseReport) -> Option<u64> = |phase| phase.attacked.p99;
        let other: fn(&PhaseReport) -> Option<u64> = |phase| phase.other.p99;
        let start = before.memory.end_mib;
        Self {
            attacked_p50_during: delay(Phase::During, |phase| phase.attacked.p50),
            attacked_p99_during: delay(Phase::During, attacked),
            attacked_p99_after: delay(Phase::After, attacked),
            other_p50_during: delay(Phase::During, |phase| phase.other.p50),
            other_p99_during: delay(Phase::During, other),
            other_p99_after: delay(Phase::After, other),
            resident_during: phase(Phase::During).map(|one| ratio(one.memory.most_mib, start)),
            resident_after: phase(Phase::After).map(|one| ratio(one.memory.end_mib, start)),
            resident_recovery: recovery.map(|one| ratio(one.resident_mib, start)),
        }
    }
}

fn ratio(value: f64, base: f64) -> f64 {
    (value / base.max(f64::MIN_POSITIVE) * 100.0).round() / 100.0
}

impl FloodReport {
    /// # Errors
    /// Never, as far as JSON goes.
    pub fn show(&self, json: bool) -> Result<(), String> {
        if json {
            println!("{}", serde_json::to_string(self).map_err(|error| error.to_string())?);
        } else {
            self.print();
        }
        Ok(())
    }

    fn print(&self) {
        println!(
            "from event to socket, ms: p50 / p99 / max of every event for every steady socket"
        );
        println!("{:8} {:>5}  {:34} {:34} memory MiB", "", "s", "attacked market", "other market");
        for phase in &self.phases {
            println!(
                "{:8} {:5.1}  {:34} {:34} {} → {} (most {})",
                phase.phase.name(),
                phase.seconds,
                phase.attacked.print(),
                phase.other.print(),
                phase.memory.start_mib,
                phase.memory.end_mib,
                phase.memory.most_mib
            );
        }
        if let Some(recovery) = self.recovery {
            println!("{:.0} s after the attack: {} MiB", recovery.seconds, recovery.resident_mib);
        }
        let slowest = self.slowest.iter().map(|one| {
            let market = if one.attacked_market { "attacked" } else { "other" };
            format!("{} s {market} {:.2}", one.second, one.delay as f64 / 1000.0)
        });
        let slowest: Vec<_> = slowest.collect();
        println!("slowest seconds from the attack's beginning, ms: {}", slowest.join(", "));
        for phase in &self.phases {
            let processor = &phase.processor;
            println!(
                "{:8} % of a core: hub {} {:?}, attack {}, tester {}, rest of the machine {:.1}",
                phase.phase.name(),
                processor.hub,
                processor.threads,
                processor.attack,
                processor.tester,
                processor.others
            );
        }
        for phase in &self.phases {
            for (name, answers) in &phase.probes {
                let fault = answers.first_fault.as_deref().unwrap_or("");
                println!(
                    "{:8} {name}: {} answered, {} failed, slowest {} ms {fault}",
                    phase.phase.name(),
                    answers.answered,
                    answers.failed,
                    answers.slowest_ms
                );
            }
        }
        self.print_attack();
        let text =
            |ratio: Option<f64>| ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        let ratios = &self.ratios;
        println!(
            "against before: p99 of the attacked market {} during, {} after; of the other {} \
             during, {} after; memory {} during, {} after, {} at the end",
            text(ratios.attacked_p99_during),
            text(ratios.attacked_p99_after),
            text(ratios.other_p99_during),
            text(ratios.other_p99_after),
            text(ratios.resident_during),
            text(ratios.resident_after),
            text(ratios.resident_recovery)
        );
    }

    fn print_attack(&self) {
        let attack = &self.attack;
        println!(
            "attack: {} sockets opened (most at once {}), {} asked, {} answered, {} frames \
             ({} merged), {:.1} MiB",
            attack.opened,
            attack.most_open,
            attack.asked,
            attack.answered,
            attack.frames,
            attack.merged,
            attack.bytes as f64 / 1024.0 / 1024.0
        );
        let counts = [
            ("refused", &attack.refusals),
            ("errors", &attack.errors),
            ("ended", &attack.closes),
            ("HTTP", &attack.statuses),
        ];
        for (what, counts) in counts.iter().filter(|(_, counts)| !counts.is_empty()) {
            println!("attack, {what}: {counts:?}");
        }
        if let Some(error) = &attack.first_error {
            println!("attack, the first error: {error}");
        }
        for (name, troubles) in [("attacked", &self.steady.attacked), ("other", &self.steady.other)]
        {
            if troubles.errors > 0 || !troubles.closes.is_empty() || !troubles.refusals.is_empty() {
                println!("steady subscribers of the {name} market had troubles: {troubles:?}");
            }
        }
        if let Some(reason) = &self.cut_short {
            println!("the attack was ended early: {reason}");
        }
    }
}
