//! `bench` needs the real hub to say anything; here is only what it does without one.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

#[test]
fn a_hub_that_ends_is_an_error_that_shows_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let hub = folder.path().join("hub");
    std::fs::write(&hub, "#!/bin/sh\necho \"$1 $2: line 3 is wrong\"\nexit 2\n").unwrap();
    std::fs::set_permissions(&hub, PermissionsExt::from_mode(0o700)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_spreadly-storm"))
        .args(["bench", "--hub", hub.to_str().unwrap(), "--scenario", "2x5", "--rounds", "1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("exit status: 2"), "{stderr}");
    assert!(stderr.contains("serve --config: line 3 is wrong"), "{stderr}");
}

#[test]
fn a_scenario_that_is_none_is_a_usage_fault() {
    let output = Command::new(env!("CARGO_BIN_EXE_spreadly-storm"))
        .args(["bench", "--hub", "x", "--scenario", "1000"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}
