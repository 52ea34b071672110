//! Which connections the public port takes: what is left of the process's file descriptors, and
//! whose a connection is. How many an address may have is for its account to say.

use std::io;
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::waiting_connections::{Victim, WaitingConnections, WaitingPlace};
use crate::budgets::{ClientMeters, ExceededLimit};
use crate::config::Network;
use crate::descriptors;

/// Pause while there are no descriptors to spare and none can be taken: sockets that are open live
/// on.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The last file descriptors of the process, which the public port leaves to what runs: the admin
/// port, the feeds' files, the log and the cache.
pub struct DescriptorReserve {
    /// The system gives out the lowest number that is free, so a connection of this number or above
    /// means that all below are taken.
    first_reserved: RawFd,
    /// The last connection that was accepted had to wait, as none could be taken from another.
    pub exhausted: AtomicBool,
    waiting: Arc<WaitingConnections>,
}

impl DescriptorReserve {
    /// Keeps `reserved` of the process's limit, at most half of it.
    pub fn new(reserved: usize) -> Self {
        let most = descriptors::limit();
        let reserved = (reserved as u64).min(most / 2);
        let first_reserved = RawFd::try_from(most - reserved).unwrap_or(RawFd::MAX);
        Self { first_reserved, exhausted: AtomicBool::new(false), waiting: Arc::default() }
    }

    /// Waits until a connection has a descriptor that is not of the reserve. Further ones wait in
    /// the kernel's backlog. `None`: its address has too many while they are short.
    pub async fn admit(
        &self,
        stream: TcpStream,
        peer: IpAddr,
        meters: &ClientMeters,
    ) -> Option<TcpStream> {
        let mut stream = stream;
        while stream.as_raw_fd() >= self.first_reserved {
            if self.make_room(Some(peer), meters).await == Victim::New {
                return None;
            }
            // Of the lowest number that is free now.
            stream = stream.try_clone().unwrap_or(stream);
        }
        self.exhausted.store(false, Ordering::Relaxed);
        Some(stream)
    }

    /// Of a new connection, which may have to give its descriptor up.
    pub fn waiting_place(&self, peer: IpAddr) -> WaitingPlace {
        WaitingPlace::new(self.waiting.clone(), peer)
    }

    /// Takes a descriptor from a connection that waits for its client. Where there is none, waits
    /// for a while.
    async fn make_room(&self, new: Option<IpAddr>, meters: &ClientMeters) -> Victim {
        let victim = self.waiting.make_room(new);
        if victim != Victim::Nobody {
            meters.refuse(ExceededLimit::Descriptors);
        }
        match victim {
            Victim::Nobody => self.pause_for_descriptors(meters).await,
            // The shard ends it at its next turn; should it be busy, another one is cut.
            Victim::Waiting => {
                drop(tokio::time::timeout(ACCEPT_PAUSE, self.waiting.ended()).await);
            }
            Victim::New => {}
        }
        victim
    }

    async fn pause_for_descriptors(&self, meters: &ClientMeters) {
        let warn = || {
            tracing::warn!(
                limit = descriptors::limit(),
                "the file descriptors for clients are used up: raise the limit (ulimit -n)"
            );
        };
        self.pause(meters, warn).await;
    }

    /// After a connection could not be accepted: for want of descriptors, of memory, or as its
    /// client has left.
    pub async fn after_error(&self, error: &io::Error, meters: &ClientMeters) {
        if descriptors::are_exhausted(error) {
            self.make_room(None, meters).await;
        } else if error.kind() != io::ErrorKind::ConnectionAborted {
            self.pause(meters, || tracing::warn!(%error, "can't accept connections")).await;
        }
    }

    /// Waits until something may have changed. Warns once, until a connection is accepted.
    async fn pause(&self, meters: &ClientMeters, warn: impl FnOnce()) {
        meters.accept_pauses.fetch_add(1, Ordering::Relaxed);
        if !self.exhausted.swap(true, Ordering::Relaxed) {
            warn();
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Whether a peer is a proxy of ours, whose connections are other clients'.
pub fn is_trusted(peer: IpAddr, trusted: &[Network]) -> bool {
    trusted.iter().any(|network| network.contains(peer))
}
