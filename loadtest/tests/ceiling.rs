//! `ceiling` as two processes.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use serde_json::{Value, json};
use std::process::Command;

#[test]
fn every_written_message_is_received_by_the_other_process() {
    for threads in ["1", "2"] {
        let output = Command::new(env!("CARGO_BIN_EXE_spreadly-storm"))
            .args(["ceiling", "--connections", "15", "--bytes", "450", "--rate", "200"])
            .args(["--duration", "0.2", "--threads", threads, "--json"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["wouldBlock"], 0);
        assert_eq!(report["bytes"], 450);
        assert_eq!(report["written"], report["received"]);
        assert_ne!(report["written"], json!(0));
    }
}
