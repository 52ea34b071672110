//! The file descriptors that the process may have open.

use std::io;

use rustix::process::{Resource, getrlimit};

/// `RLIMIT_NOFILE` as it is in force.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::from(u32::MAX >> 1))
}

/// The process, or the whole system, has as many open as it may.
pub fn are_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}
