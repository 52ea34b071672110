//! What Linux says of a process: processor time, resident memory, open files. Read from /proc,
//! since the hub must be measured from outside and without its help.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::OnceLock;

/// Linux has used it on every architecture for decades; `getconf` is asked all the same.
const USUAL_TICKS_PER_SECOND: u64 = 100;
/// Sockets aren't all that a process has open.
const OTHER_FILES: u64 = 64;

fn ticks_per_second() -> u64 {
    static TICKS: OnceLock<u64> = OnceLock::new();
    *TICKS.get_or_init(|| {
        let output = Command::new("getconf").arg("CLK_TCK").output().ok();
        let text = output.and_then(|output| String::from_utf8(output.stdout).ok());
        text.and_then(|text| text.trim().parse().ok())
            .filter(|ticks| *ticks > 0)
            .unwrap_or(USUAL_TICKS_PER_SECOND)
    })
}

/// User and system time of the process so far, microseconds, all its threads. `None` when it's
/// gone.
pub fn cpu_micros(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat_of(&stat).map(|(_, micros)| micros)
}

/// The same of its threads, summed by their names.
pub fn cpu_micros_by_thread(pid: u32) -> BTreeMap<String, u64> {
    let mut threads = BTreeMap::new();
    let Ok(folder) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return threads;
    };
    for thread in folder.flatten() {
        // One that ended meanwhile has no file left.
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        if let Some((name, micros)) = stat_of(&stat) {
            *threads.entry(name.to_owned()).or_default() += micros;
        }
    }
    threads
}

/// Name and processor time in a line of `stat`.
fn stat_of(stat: &str) -> Option<(&str, u64)> {
    // The name in parentheses may hold anything, also blanks and parentheses.
    let (name, fields) = stat.rsplit_once(')')?;
    let (_, name) = name.split_once('(')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((name, (user + system) * 1_000_000 / ticks_per_second()))
}

/// What all processes of the machine took so far, microseconds, the kernel's own work with it.
pub fn machine_cpu_micros() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_ascii_whitespace().flat_map(str::parse).collect();
    // User, nice, system; then idle and waiting for disks; then interrupts of both kinds.
    let &[user, nice, system, _, _, hard, soft, ..] = fields.as_slice() else {
        return None;
    };
    Some((user + nice + system + hard + soft) * 1_000_000 / ticks_per_second())
}

/// Resident memory, KiB.
pub fn resident_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Makes room for `sockets` open sockets, here and in the processes started from here.
///
/// # Errors
/// When the hard limit is lower. Names the number and the way to raise it.
pub fn allow_sockets(sockets: usize) -> Result<(), String> {
    let needed = sockets as u64 + OTHER_FILES;
    let (soft, hard) = open_files_limit().unwrap_or((u64::MAX, u64::MAX));
    if soft >= needed {
        return Ok(());
    }
    if hard >= needed {
        // The standard library can't, and a system call of our own would be `unsafe`.
        let own = std::process::id().to_string();
        let limit = format!("--nofile={hard}:{hard}");
        let raised = Command::new("prlimit").args(["--pid", &own, &limit]).status();
        if raised.is_ok_and(|status| status.success()) {
            return Ok(());
        }
    }
    Err(format!(
        "{needed} open files needed, the limit is {soft} (hard {hard}): `ulimit -n {needed}`"
    ))
}

fn open_files_limit() -> Option<(u64, u64)> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut numbers = line.split_ascii_whitespace().map(|text| text.parse().unwrap_or(u64::MAX));
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_a_dead_one_has_nothing() {
        assert!(resident_kib(std::process::id()).unwrap() > 0);
        assert!(cpu_micros(std::process::id()).is_some());
        assert_eq!(cpu_micros(u32::MAX), None);
    }
}
