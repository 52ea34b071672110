//! Which connections the public port takes: what is left of the process's file descriptors, and whose
//! a connection is. How many an address may have is for its account to say.

use std::io;
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::header::HeaderMap;
use rustix::process::{Resource, getrlimit};

use crate::clients::{ClientMeters, Refusal};
use crate::config::Network;

/// Pause while there are no descriptors to spare: sockets that are open live on.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The last file descriptors of the process, which the public port leaves to what runs: the admin
/// port, the feeds' files, the log and the cache.
pub struct DescriptorReserve {
    /// The system gives out the lowest number that is free, so a connection of this number or above
    /// means that all below are taken.
    first_reserved: RawFd,
    /// The last connection that was accepted had to wait for one.
    pub exhausted: AtomicBool,
}

impl DescriptorReserve {
    /// Keeps `reserved` of the process's limit, at most half of it.
    pub fn new(reserved: usize) -> Self {
        let most = descriptor_limit();
        let reserved = (reserved as u64).min(most / 2);
        let first_reserved = RawFd::try_from(most - reserved).unwrap_or(RawFd::MAX);
        Self { first_reserved, exhausted: AtomicBool::new(false) }
    }

    /// Waits until a connection has a descriptor that is not of the reserve. Further ones wait in
    /// the kernel's backlog.
    pub async fn admit(&self, stream: TcpStream, meters: &ClientMeters) -> TcpStream {
        if stream.as_raw_fd() < self.first_reserved {
            self.exhausted.store(false, Ordering::Relaxed);
            return stream;
        }
        meters.refuse(Refusal::Descriptors);
        self.note_exhausted(meters, None);
        loop {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            // Of the lowest number that is free now.
            if let Ok(lower) = stream.try_clone()
                && lower.as_raw_fd() < self.first_reserved
            {
                self.exhausted.store(false, Ordering::Relaxed);
                return lower;
            }
        }
    }

    /// Says once that nothing can be accepted, until something was.
    pub fn note_exhausted(&self, meters: &ClientMeters, error: Option<&io::Error>) {
        meters.accept_pauses.fetch_add(1, Ordering::Relaxed);
        if !self.exhausted.swap(true, Ordering::Relaxed) {
            let limit = descriptor_limit();
            match error {
                Some(error) => tracing::warn!(%error, limit, "can't accept connections"),
                None => tracing::warn!(
                    limit,
                    "the file descriptors for clients are used up: raise the limit (ulimit -n)"
                ),
            }
        }
    }
}

/// `RLIMIT_NOFILE` as it is in force.
pub fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::from(u32::MAX >> 1))
}

/// The client on the far side of our proxies: the last address in `X-Forwarded-For` that no
/// trusted proxy has, as everything before it is the client's own word.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    if !is_trusted(peer, trusted) {
        return peer;
    }
    headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|one| one.trim().parse().ok())
        .rfind(|one| !is_trusted(*one, trusted))
        .unwrap_or(peer)
}

/// Whether a peer is a proxy of ours, whose connections are other clients'.
pub fn is_trusted(peer: IpAddr, trusted: &[Network]) -> bool {
    trusted.iter().any(|network| network.contains(peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forwarded_address_counts_only_from_a_trusted_proxy() {
        let proxy: IpAddr = "10.0.0.1".parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "6.6.6.6, 203.0.113.7".parse().unwrap());
        headers.append("x-forwarded-for", "10.0.0.1".parse().unwrap());
        let client: IpAddr = "203.0.113.7".parse().unwrap();
        let trusted: [Network; 1] = ["10.0.0.0/8".parse().unwrap()];
        assert_eq!(client_address(proxy, &headers, &trusted), client);
        assert_eq!(client_address(client, &headers, &trusted), client);
        assert_eq!(client_address(proxy, &HeaderMap::new(), &trusted), proxy);
    }
}
