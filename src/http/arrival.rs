//! A connection before its first request: whose it is.

use std::net::IpAddr;
use std::sync::Arc;

use spreadly_subscriptions::Executor;
use tokio::net::TcpStream;

use super::connection_limits::is_trusted;
use super::routes::Http;
use super::waiting_connections::WaitingPlace;
use crate::budgets::ClientAccount;

/// Whose a connection is.
pub(super) struct Arrival {
    /// Of the peer, or of the client that the peer names by the PROXY protocol.
    pub address: IpAddr,
    /// The peer is a proxy of ours.
    pub passed_on: bool,
    /// Among those of this address.
    pub waiting: WaitingPlace,
}

impl<E: Executor<Client = Arc<ClientAccount>>> Http<E> {
    /// `None`: the connection ends here.
    pub(super) async fn arrival(
        &self,
        waiting: WaitingPlace,
        mut stream: TcpStream,
        peer: IpAddr,
    ) -> Option<(TcpStream, Arrival)> {
        waiting.wait();
        let address = tokio::select! {
            address = self.config.proxy_protocol.client(&mut stream, peer) => address?,
            () = waiting.cut().notified() => return None,
        };
        waiting.leave();
        let waiting = if address == peer { waiting } else { waiting.moved_to(address) };
        let passed_on = is_trusted(peer, &self.config.trusted_proxies);
        Some((stream, Arrival { address, passed_on, waiting }))
    }
}
