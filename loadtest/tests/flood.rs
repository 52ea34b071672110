//! `flood` against a real hub, at sizes that hurt nobody: that its report has every number, and
//! that each attack does what it says. How long anything takes is no matter here.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn storm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spreadly-storm"))
        .arg("flood")
        .args(arguments)
        .output()
        .unwrap()
}

/// Cargo names the programs of this package alone to a test; the hub is built beside it.
fn hub() -> PathBuf {
    let hub = Path::new(env!("CARGO_BIN_EXE_spreadly-storm")).with_file_name("spreadly");
    assert!(hub.exists(), "the hub is not built: cargo build --package spreadly");
    hub
}

/// The report of a small flood of this attack.
fn flood(attack: &str, more: &[&str]) -> Value {
    let hub = hub();
    let mut arguments = vec!["--hub", hub.to_str().unwrap(), "--attack", attack, "--json"];
    arguments.extend("--sockets 2 --before 1 --seconds 3 --settle 1 --after 1".split(' '));
    arguments.extend(more);
    let output = storm(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_flood_reports_delays_memory_and_processor_time_of_every_phase() {
    let report = flood("documents", &["--operations", "5", "--from", "127.0.0.2"]);
    let phases = report["phases"].as_array().unwrap();
    let names: Vec<&str> = phases.iter().map(|phase| phase["phase"].as_str().unwrap()).collect();
    assert_eq!(names, ["before", "during", "leaving", "after"]);
    for phase in phases {
        for market in ["attacked", "other"] {
            let delays = &phase[market];
            assert!(delays["samples"].as_u64().unwrap() > 0, "{phase}");
            assert!(delays["p50"].as_u64() <= delays["p99"].as_u64(), "{phase}");
            assert!(delays["p99"].as_u64() <= delays["max"].as_u64(), "{phase}");
            assert_eq!(delays["missing"], 0, "{phase}");
        }
        assert!(phase["memory"]["mostMib"].as_f64().unwrap() > 0.0, "{phase}");
        assert!(phase["processor"]["threads"].is_object(), "{phase}");
        for probe in ["livez", "list", "resume"] {
            assert!(phase["probes"][probe]["answered"].as_u64().unwrap() > 0, "{phase}");
        }
    }
    for ratio in ["attackedP99During", "otherP99After", "residentDuring", "residentAfter"] {
        assert!(report["ratios"][ratio].as_f64().unwrap() > 0.0, "{report}");
    }
    let attack = &report["attack"];
    assert_eq!((&attack["mostOpen"], &attack["answered"]), (&2.into(), &10.into()), "{report}");
    assert!(attack["frames"].as_u64().unwrap() > 10, "{report}");
    assert_eq!(report["steady"]["other"]["closes"], serde_json::json!({}), "{report}");
}

#[test]
fn every_attack_opens_its_sockets_and_asks() {
    let attacks =
        ["churn", "snapshots", "queries", "silent", "sse", "replies", "topics", "halfopen"];
    // Each has a hub of its own, and mostly waits.
    let reports = std::thread::scope(|scope| {
        let run = |attack| scope.spawn(move || flood(attack, &["--operations=2", "--addresses=2"]));
        let running = attacks.map(run);
        running.map(|one| one.join().unwrap())
    });
    for (attack, report) in attacks.iter().zip(reports) {
        let counts = &report["attack"];
        assert_eq!(counts["mostOpen"], 2, "{attack}: {report}");
        assert!(counts["asked"].as_u64().unwrap() >= 2, "{attack}: {report}");
        assert_eq!(counts["refusals"], serde_json::json!({}), "{attack}: {report}");
        // Half a request has no answer; all others have.
        let answered = counts["answered"].as_u64().unwrap();
        assert_eq!(answered > 0, *attack != "halfopen", "{attack}: {report}");
    }
}

#[test]
fn a_flood_of_each_kind_of_subscription_is_answered() {
    let report = flood("documents", &["--kind", "mixed", "--operations", "10"]);
    assert_eq!(report["attack"]["answered"], 20, "{report}");
    assert_eq!(report["attack"]["errors"], serde_json::json!({}), "{report}");
}

#[test]
fn a_plan_gives_what_the_command_line_leaves_open() {
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan.args");
    std::fs::write(&plan, "# Small.\n--attack queries --before 1 --after 1 # both\n").unwrap();
    let hub = hub();
    let output = storm(&[
        "--hub",
        hub.to_str().unwrap(),
        "--plan",
        plan.to_str().unwrap(),
        "--sockets=1",
        "--seconds=1",
        "--settle=0",
        "--recovery=1",
        "--json",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["spec"]["attack"], "queries");
    assert_eq!(report["spec"]["sockets"], 1);
    assert!(report["recovery"]["residentMib"].as_f64().unwrap() > 0.0, "{report}");
}

#[test]
fn an_attack_from_outside_loopback_is_refused() {
    let output = storm(&["--hub", "x", "--attack", "churn", "--from", "10.0.0.1"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("write addresses in 127.0.0.0/8"), "{text}");
}

#[test]
fn a_hub_that_ends_is_an_error_that_shows_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let hub = folder.path().join("hub");
    std::fs::write(&hub, "#!/bin/sh\necho \"$3: $4\"\nexit 2\n").unwrap();
    std::fs::set_permissions(&hub, PermissionsExt::from_mode(0o700)).unwrap();
    let hub = hub.to_str().unwrap();
    let output = storm(&["--hub", hub, "--attack", "churn", "--set", "limits.streams=1"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("exit status: 2"), "{text}");
    assert!(text.contains("spreadly.toml: --set"), "{text}");
}
