//! What the program says to a shell: exit codes, and which stream it says it on.

use std::path::Path;
use std::process::{Command, Output};

fn spreadly(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spreadly")).args(arguments).output().unwrap()
}

fn written(config: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config).unwrap();
    file
}

#[test]
fn all_faults_of_a_file_are_printed_and_it_exits_with_2() {
    let file = written("server.shards = -1\nlimits.mesage_bytes = 2\n");
    let output = spreadly(&["check-config", file.path().to_str().unwrap()]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr.lines().count(), 3, "{stderr}");
    assert!(stderr.contains(":1: server.shards: given -1"), "{stderr}");
    assert!(stderr.contains("the nearest is limits.message_bytes"), "{stderr}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn a_sound_file_is_printed_as_it_would_run() {
    let file = written("server.shards = 3\n");
    let output = spreadly(&["check-config", file.path().to_str().unwrap()]);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(printed.contains("shards = 3\n"), "{printed}");
    assert!(printed.contains("url = \"sqlite:data/spreadly.db\"\n"), "{printed}");
}

#[test]
#[test]
fn a_configuration_is_checked_without_a_file_and_with_keys_of_flags() {
    let output = spreadly(&["check-config", "--set", "limits.book_depth=100"]);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(printed.contains("book_depth = 100\n"), "{printed}");
    let output = spreadly(&["check-config", "--set", "limts.book_depth=100"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.contains("--set: limts.book_depth: is not a known key"), "{stderr}");
    assert!(stderr.contains("the nearest is limits.book_depth"), "{stderr}");
}

fn a_fault_in_a_flag_exits_with_2_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_spreadly"))
        .current_dir(folder.path())
        .args(["serve", "--listen", "nowhere"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.starts_with("--listen: server.listen: given \"nowhere\""), "{stderr}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_unknown_command_exits_with_2() {
    assert_eq!(spreadly(&["sevre"]).status.code(), Some(2));
    assert_eq!(spreadly(&["serve", "--set", "no-equals-sign"]).status.code(), Some(2));
    assert_eq!(spreadly(&["dev", "--markets", "0"]).status.code(), Some(2));
}

#[test]
fn more_markets_or_events_than_are_simulated_exit_with_2() {
    for (flag, number) in [("--markets", "1001"), ("--rate", "100001")] {
        assert_eq!(spreadly(&["dev", flag, number]).status.code(), Some(2), "{flag}");
    }
}

#[test]
fn the_committed_schema_is_what_the_program_prints() {
    let output = spreadly(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let printed = String::from_utf8(output.stdout).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/schema.graphql");
    let committed = std::fs::read_to_string(path).unwrap();
    assert_eq!(printed, committed, "make schema writes it");
}

#[test]
fn the_committed_reference_pages_and_the_documented_file_are_what_the_program_prints() {
    for (arguments, path) in [
        (&["config", "--reference"][..], "docs/reference/configuration.md"),
        (&["config"], "config/spreadly.toml"),
        (&["errors"], "docs/reference/errors.md"),
        (&["metrics"], "docs/reference/metrics.md"),
    ] {
        let output = spreadly(arguments);
        assert_eq!(output.status.code(), Some(0));
        let printed = String::from_utf8(output.stdout).unwrap();
        let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let committed = std::fs::read_to_string(committed).unwrap();
        assert_eq!(printed, committed, "make reference writes {path}");
    }
}
