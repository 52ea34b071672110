//! The hub from outside while it is flooded: memory, processor time by thread, and small requests of
//! an operator and of another client, once in a while.

use super::http;
use super::markets::TOPIC;
use super::phase::{PHASES, PhaseNow};
use crate::process;
use crate::run::client::string_after;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// An operator's probe that has no answer by then has failed.
const LIVEZ_TIMEOUT: Duration = Duration::from_secs(1);
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
const PROBE_EVERY: Duration = Duration::from_millis(500);
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

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answers {
    pub answered: u64,
    pub failed: u64,
    pub slowest_ms: u64,
    pub first_fault: Option<String>,
}

/// Answers to the probes of one phase, by name.
pub type Probes = BTreeMap<&'static str, Answers>;

pub struct Prober {
    results: Arc<Mutex<[Probes; PHASES.len()]>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Prober {
    pub fn start(public: SocketAddr, admin: SocketAddr, phase: PhaseNow, publishes: bool) -> Self {
        let results: Arc<Mutex<[Probes; PHASES.len()]>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (noted, stopped) = (Arc::clone(&results), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut number = 0;
            let mut cursor = None;
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                number += 1;
                let index = phase.get().index();
                let note = |name: &'static str, timeout, request: &[u8], address| {
                    let from = Instant::now();
                    let answer = answer(address, request, timeout);
                    let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                    noted[index].entry(name).or_default().note(from.elapsed(), answer);
                };
                let livez = format!("GET /livez HTTP/1.1\r\nHost: {admin}\r\n\r\n");
                note("livez", LIVEZ_TIMEOUT, livez.as_bytes(), admin);
                let list =
                    format!("{{ events(topic: \"{TOPIC}\", first: 10) {{ nodes {{ time }} }} }}");
                let list = http::post(public, &list, "application/json");
                note("list", LIST_TIMEOUT, &list, public);
                cursor = cursor.or_else(|| first_cursor(public));
                if let Some(cursor) = &cursor {
                    let text = format!(
                        "subscription {{ events(topic: \"{TOPIC}\", after: \"{cursor}\") \
                         {{ events {{ time }} }} }}"
                    );
                    let resume = http::post(public, &text, "text/event-stream");
                    note("resume", LIST_TIMEOUT, &resume, public);
                }
                if publishes {
                    let text = format!(
                        "mutation {{ publish(topic: \"calm-{number}\", data: 1) {{ sequence }} }}"
                    );
                    let publish = http::post(public, &text, "application/json");
                    note("publish", LIST_TIMEOUT, &publish, public);
                }
                thread::sleep(PROBE_EVERY.saturating_sub(began.elapsed()));
            }
        });
        Self { results, stop, thread }
    }

    pub fn finish(self) -> [Probes; PHASES.len()] {
        self.stop.store(true, Ordering::Relaxed);
        // One that panicked has said so on stderr.
        let _ = self.thread.join();
        self.results.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Answers {
    fn note(&mut self, took: Duration, answer: Result<(), String>) {
        self.slowest_ms = self.slowest_ms.max(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        match answer {
            Ok(()) => self.answered += 1,
            Err(fault) => {
                self.failed += 1;
                self.first_fault.get_or_insert(fault);
            }
        }
    }
}

/// Where the topic that is listed begins, once its events are there.
fn first_cursor(public: SocketAddr) -> Option<String> {
    let query = format!("{{ events(topic: \"{TOPIC}\", first: 1) {{ edges {{ cursor }} }} }}");
    let request = http::post(public, &query, "application/json");
    let body = reply(public, &request, LIST_TIMEOUT).ok()?;
    let cursor = string_after(body.as_bytes(), b"\"cursor\":\"")?;
    String::from_utf8(cursor.to_vec()).ok()
}

fn answer(address: SocketAddr, request: &[u8], timeout: Duration) -> Result<(), String> {
    reply(address, request, timeout).map(drop)
}

/// One request on a connection of its own. A reply is the body of a 200 without errors, or the first
/// event of a stream.
fn reply(address: SocketAddr, request: &[u8], timeout: Duration) -> Result<String, String> {
    let until = Instant::now() + timeout;
    let fault = |error: std::io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "no answer in time".to_owned(),
        kind => kind.to_string(),
    };
    let mut stream = TcpStream::connect_timeout(&address, timeout).map_err(fault)?;
    stream.write_all(request).map_err(fault)?;
    let mut reply = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Zero would mean to wait for ever.
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).map_err(fault)?;
        let read = stream.read(&mut bytes).map_err(fault)?;
        reply.extend_from_slice(&bytes[..read]);
        if let Some(head) = http::head(&reply) {
            let body = String::from_utf8_lossy(&reply[head.body..]);
            if head.end.map_or(body.contains("\ndata: {"), |end| reply.len() >= end) {
                return match (head.status, body.contains("\"errors\"")) {
                    (200, false) => Ok(body.into_owned()),
                    (status, _) => Err(format!("HTTP {status}: {body}")),
                };
            }
        }
        if read == 0 {
            return Err("closed without an answer".to_owned());
        }
    }
}
