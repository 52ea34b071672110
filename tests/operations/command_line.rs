//! What the program says to a shell: exit codes, and which stream it says it on.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

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

#[test]
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

/// `spreadly dev` with free ports, once it listens; what it said on stderr comes with its end.
fn dev(folder: &Path, settings: &[&str]) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_spreadly"))
        .current_dir(folder)
        .args(["dev", "--set", "server.listen=127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .args(["--set", "server.drain_ms=0"])
        .args(settings)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("listening"), "{line}");
    child
}

fn stopped(child: Child) -> String {
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap()
}

#[test]
fn the_command_that_dev_proposes_runs_in_a_shell_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = dev(folder.path(), &[]);
    let lines = BufReader::new(child.stderr.as_mut().unwrap()).lines().map(Result::unwrap);
    let command = { lines }.find(|line| line.contains(" subscribe --url ")).unwrap();
    let shell = format!("{command} --count 1");
    let output = Command::new("sh").args(["-c", &shell]).current_dir("/").output().unwrap();
    assert!(output.status.success(), "{shell}\n{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("bestBidOffer"), "{shell}");
    stopped(child);
}

#[test]
fn an_account_of_everyone_on_a_public_address_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let loopback = stopped(dev(folder.path(), &[]));
    assert!(!loopback.contains("WARN"), "{loopback}");
    let public = stopped(dev(folder.path(), &["--set", "server.listen=0.0.0.0:0"]));
    assert!(public.contains("WARN"), "{public}");
    assert!(public.contains("identity.development_account is set"), "{public}");
}

#[test]
fn dev_says_nothing_but_json_where_the_log_is_json() {
    let folder = tempfile::tempdir().unwrap();
    let child = dev(folder.path(), &["--set", "log.format=json"]);
    let stderr = stopped(child);
    for line in stderr.lines() {
        let read = serde_json::from_str::<serde_json::Value>(line);
        assert!(read.is_ok(), "{line:?} of\n{stderr}");
    }
    assert!(stderr.contains("\"level\":\"INFO\""), "{stderr}");
}
