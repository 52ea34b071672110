//! What the process is, what it uses, and what its host has left, where they say it.

use std::fmt;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::DescriptorEncoder;

use super::{by_label, value};
use crate::descriptors;

/// In seconds since 1970.
static STARTED: LazyLock<u64> = LazyLock::new(|| {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
});

/// The process starts now.
pub(super) fn start() {
    LazyLock::force(&STARTED);
}

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    by_label(encoder, "build_info", [(env!("CARGO_PKG_VERSION"), 1)])?;
    value(encoder, "start_time_seconds", *STARTED)?;
    if let Some(bytes) = resident_bytes() {
        value(encoder, "resident_memory_bytes", bytes)?;
    }
    value(encoder, "file_descriptors_limit", descriptors::limit())?;
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them is the folder itself.
        let open = (open.count() as u64).saturating_sub(1);
        value(encoder, "file_descriptors_open", open)?;
    }
    let Ok(netstat) = std::fs::read_to_string("/proc/net/netstat") else { return Ok(()) };
    for (field, name) in
        [("ListenOverflows", "host_listen_overflows"), ("ListenDrops", "host_listen_drops")]
    {
        if let Some(count) = extended(&netstat, field) {
            value(encoder, name, count)?;
        }
    }
    Ok(())
}

/// Of the log's file, and of the disk that it is on.
pub(super) fn encode_disk(encoder: &mut DescriptorEncoder<'_>, log: &PathBuf) -> fmt::Result {
    let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |file| file.len());
    let mut wal = log.clone().into_os_string();
    wal.push("-wal");
    value(encoder, "log_bytes", size(log) + size(&wal.into()))?;
    if let Ok(disk) = rustix::fs::statvfs(log) {
        value(encoder, "log_disk_free_bytes", disk.f_bavail.saturating_mul(disk.f_frsize))?;
        value(encoder, "log_disk_bytes", disk.f_blocks.saturating_mul(disk.f_frsize))?;
    }
    Ok(())
}

fn resident_bytes() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// A field of the kernel's `TcpExt`: a line of names, then a line of numbers.
fn extended(netstat: &str, field: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|name| name == field)?;
    numbers.split_whitespace().nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_the_kernels_counters_is_found_by_its_name() {
        let netstat = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 22 333\n\
                       IpExt: ListenDrops\nIpExt: 4\n";
        assert_eq!(extended(netstat, "ListenOverflows"), Some(22));
        assert_eq!(extended(netstat, "ListenDrops"), Some(333));
        assert_eq!(extended(netstat, "Nothing"), None);
    }
}
