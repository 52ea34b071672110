//! The hub from outside while it is flooded: memory, and processor time by thread.

use crate::process;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// Threads with less than this share of a core aren't worth a place in the report.
const LEAST_SHARE: f64 = 0.5;
const MIB: f64 = 1024.0;

/// What the processes took up to a moment.
pub struct Reading {
    at: Instant,
    hub: Option<u64>,
    threads: BTreeMap<String, u64>,
    machine: Option<u64>,
    own: Option<u64>,
    attack: Option<u64>,
}

/// Shares of one core, in percent.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Processor {
    pub hub: f64,
    pub threads: BTreeMap<String, f64>,
    pub tester: f64,
    pub attack: f64,
    /// Everything else on the machine: much of it makes the delays worthless.
    pub others: f64,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    pub start_mib: f64,
    pub most_mib: f64,
    pub end_mib: f64,
}

impl Reading {
    pub fn now(hub: u32, attack: Option<u32>) -> Self {
        Self {
            at: Instant::now(),
            hub: process::cpu_micros(hub),
            threads: process::cpu_micros_by_thread(hub),
            machine: process::machine_cpu_micros(),
            own: process::cpu_micros(std::process::id()),
            attack: attack.and_then(process::cpu_micros),
        }
    }

    pub fn until(&self, later: &Self) -> Processor {
        let micros = later.at.duration_since(self.at).as_micros() as f64;
        let share = |from: Option<u64>, to: Option<u64>| {
            let spent = to.unwrap_or(0).saturating_sub(from.unwrap_or(0));
            (spent as f64 / micros * 1000.0).round() / 10.0
        };
        let threads = later.threads.iter().map(|(name, to)| {
            let from = self.threads.get(name).copied();
            (name.clone(), share(from.or(Some(0)), Some(*to)))
        });
        let hub = share(self.hub, later.hub);
        let tester = share(self.own, later.own);
        let attack = share(self.attack, later.attack);
        let machine = share(self.machine, later.machine);
        Processor {
            hub,
            threads: threads.filter(|(_, share)| *share >= LEAST_SHARE).collect(),
            tester,
            attack,
            others: (machine - hub - tester - attack).max(0.0),
        }
    }
}

impl Memory {
    pub fn note(&mut self, hub: u32) -> Result<(), String> {
        let kib = process::resident_kib(hub).ok_or("the hub is gone")?;
        let mib = (kib as f64 / MIB * 10.0).round() / 10.0;
        if self.start_mib == 0.0 {
            self.start_mib = mib;
        }
        self.most_mib = self.most_mib.max(mib);
        self.end_mib = mib;
        Ok(())
    }
}
