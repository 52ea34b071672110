//! The program `spreadly`; everything else is in the library.

use std::process::ExitCode;

/// Results are small, shared and dropped on another thread than the one that made them, which
/// costs the system's allocator a lock each. This one gives memory back on threads of its own.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    spreadly::cli::run()
}
