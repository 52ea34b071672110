//! Small requests of an operator and of another client, once in a while: whether they are answered
//! while the hub is flooded.

use super::http;
use super::markets::TOPIC;
use super::phase::{PHASES, PhaseNow};
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
    notes: Notes,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Clone)]
struct Notes {
    results: Arc<Mutex<[Probes; PHASES.len()]>>,
    phase: PhaseNow,
    stop: Arc<AtomicBool>,
}

impl Prober {
    /// The operator's probes have a thread of their own, so that slow lists don't hold them up.
    pub fn start(public: SocketAddr, admin: SocketAddr, phase: PhaseNow, publishes: bool) -> Self {
        let notes = Notes { results: Arc::default(), phase, stop: Arc::default() };
        let (operator, client) = (notes.clone(), notes.clone());
        let operator = thread::spawn(move || {
            let livez = format!("GET /livez HTTP/1.1\r\nHost: {admin}\r\n\r\n");
            operator.repeat(|_| operator.probe("livez", LIVEZ_TIMEOUT, livez.as_bytes(), admin));
        });
        let client = thread::spawn(move || {
            let mut cursor = None;
            client.repeat(|number| client.probe_as_client(public, number, publishes, &mut cursor));
        });
        Self { notes, threads: vec![operator, client] }
    }

    pub fn finish(self) -> [Probes; PHASES.len()] {
        self.notes.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // One that panicked has said so on stderr.
            let _ = thread.join();
        }
        self.notes.results.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Notes {
    fn repeat(&self, mut probe: impl FnMut(u64)) {
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let began = Instant::now();
            probe(number);
            thread::sleep(PROBE_EVERY.saturating_sub(began.elapsed()));
        }
    }

    /// Counts for the phase in which it began.
    fn probe(&self, name: &'static str, timeout: Duration, request: &[u8], address: SocketAddr) {
        let index = self.phase.get().index();
        let from = Instant::now();
        let answer = reply(address, request, timeout).map(drop);
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results[index].entry(name).or_default().note(from.elapsed(), answer);
    }

    fn probe_as_client(
        &self,
        public: SocketAddr,
        number: u64,
        publishes: bool,
        cursor: &mut Option<String>,
    ) {
        let probe = |name: &'static str, query: &str, accept: &str| {
            self.probe(name, LIST_TIMEOUT, &http::post(public, query, accept), public);
        };
        let list = format!("{{ events(topic: \"{TOPIC}\", first: 10) {{ nodes {{ time }} }} }}");
        probe("list", &list, "application/json");
        *cursor = cursor.take().or_else(|| first_cursor(public));
        if let Some(cursor) = cursor {
            let resume = format!(
                "subscription {{ events(topic: \"{TOPIC}\", after: \"{cursor}\") \
                 {{ events {{ time }} }} }}"
            );
            probe("resume", &resume, "text/event-stream");
        }
        if publishes {
            let publish =
                format!("mutation {{ publish(topic: \"calm-{number}\", data: 1) {{ sequence }} }}");
            probe("publish", &publish, "application/json");
        }
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

/// One request on a connection of its own. A reply is the body of a 200 without errors, or the
/// first event of a stream.
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
