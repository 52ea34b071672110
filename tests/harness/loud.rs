//! What must be seen though its test passed: libtest keeps back what passing tests print, but not
//! what is written to the stream itself.

use std::io::Write as _;

pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A test that runs on data of its own where a recorded capture is absent: those are not ours to
/// keep beside the code, so that is no fault of the machine.
pub fn without_capture(what: &str) {
    say(&format!("NOT ON RECORDED DATA: {what}"));
}

/// A test, or a part of it, that can't run here. Where everything should be there it fails.
pub fn not_run(what: &str) {
    say(&format!("NOT RUN: {what}"));
    assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "NOT RUN in CI: {what}");
}
