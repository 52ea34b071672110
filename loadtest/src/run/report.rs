//! What a storm found, as JSON for scripts and as text for people.

use super::follow::FollowCounts;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub connections: usize,
    pub connected: u64,
    pub ready: u64,
    pub refused: BTreeMap<String, u64>,
    pub closes: BTreeMap<String, u64>,
    pub errors: u64,
    pub first_error: Option<String>,
    pub completes: u64,
    /// Of the measured window, like all that follows.
    pub seconds: f64,
    pub messages: u64,
    pub bytes: u64,
    pub messages_per_second: f64,
    pub bytes_per_message: f64,
    pub latency: Latency,
    pub hub: Option<HubReport>,
    /// What the tester itself used a message: high means that it was the limit.
    pub own_micros_per_message: Option<f64>,
    pub follow: Option<FollowCounts>,
}

/// Microseconds from a time that a message has to here, of one message in 64.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// The field of that time.
    pub from: &'static str,
    pub samples: u64,
    /// Further samples that came before they were published: the two clocks differ.
    pub negative: u64,
    pub p50: Option<u64>,
    pub p99: Option<u64>,
    pub max: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HubReport {
    pub cpu_seconds: f64,
    /// User and system time over delivered messages, both of the window.
    pub micros_per_message: Option<f64>,
    pub resident_kib_before: u64,
    pub resident_kib_idle: u64,
    pub resident_kib_end: u64,
    pub idle_kib_per_connection: f64,
}

/// Each reason with its count.
pub fn reasons(counts: &BTreeMap<String, u64>) -> String {
    let each: Vec<_> = counts.iter().map(|(reason, count)| format!("{reason}: {count}")).collect();
    each.join(", ")
}

impl Report {
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

    /// # Errors
    /// What failed, where it is more than `allowed`, a share of all.
    pub fn check_failures(&self, operations: usize, allowed: f64) -> Result<(), String> {
        let sockets = self.connections as u64;
        let all = sockets.saturating_mul(operations as u64);
        let refused = self.refused.values().sum();
        let closed = self.closes.values().sum();
        let (refusals, closes) = (reasons(&self.refused), reasons(&self.closes));
        let mut faults = Vec::new();
        for (failed, of, what) in [
            (refused, sockets, format!("sockets were refused ({refusals})")),
            (closed, sockets, format!("sockets were closed ({closes})")),
            (self.errors, all, "operations ended in errors".to_owned()),
        ] {
            if failed as f64 > of as f64 * allowed {
                faults.push(format!("{failed} of {of} {what}"));
            }
        }
        match faults.is_empty() {
            true => Ok(()),
            false => Err(format!("{}: more than --allow-failures {allowed}", faults.join(", "))),
        }
    }

    fn print(&self) {
        println!("connected {} of {}, ready {}", self.connected, self.connections, self.ready);
        for (reason, count) in &self.refused {
            println!("refused {count}: {reason}");
        }
        for (code, count) in &self.closes {
            println!("closed {count}: {code}");
        }
        if let Some(error) = &self.first_error {
            println!("errors {}, the first: {error}", self.errors);
        }
        println!(
            "{} messages in {:.1} s: {:.0}/s, {:.0} bytes each",
            self.messages, self.seconds, self.messages_per_second, self.bytes_per_message
        );
        if let (Some(p50), Some(p99), Some(max)) =
            (self.latency.p50, self.latency.p99, self.latency.max)
        {
            let samples = self.latency.samples;
            let from = self.latency.from;
            println!("latency from {from} µs: p50 {p50}, p99 {p99}, max {max} ({samples} samples)");
        } else if self.messages > 0 {
            println!("latency: no sampled message had an event and its {}", self.latency.from);
        }
        if self.latency.negative > 0 {
            let (negative, samples) = (self.latency.negative, self.latency.samples);
            let all = negative + samples;
            println!("negative latency: {negative} of {all} samples, so the clocks differ");
        }
        if let Some(micros) = self.own_micros_per_message {
            println!("tester: {micros:.2} µs a message");
        }
        if let Some(hub) = &self.hub {
            let micros = hub.micros_per_message.map_or("–".to_owned(), |us| format!("{us:.2}"));
            println!(
                "hub: {micros} µs a delivered message ({:.2} s of processor)",
                hub.cpu_seconds
            );
            println!(
                "hub memory KiB: {} before, {} idle ({:.2} a connection), {} at the end",
                hub.resident_kib_before,
                hub.resident_kib_idle,
                hub.idle_kib_per_connection,
                hub.resident_kib_end
            );
        }
        if let Some(follow) = &self.follow {
            println!(
                "followed: {} deltas, {:?} snapshots, {} heartbeats, {} merged, {} checksums right",
                follow.deltas,
                follow.snapshots,
                follow.heartbeats,
                follow.merged_events,
                follow.checksums_matched
            );
            println!(
                "faults: {} gaps, {} doubles, {} checksums, {} windows, {} malformed",
                follow.gaps,
                follow.doubles,
                follow.checksum_faults,
                follow.window_faults,
                follow.malformed
            );
        }
    }
}
