//! The HTTP connections that wait for their clients: for the rest of a request, for the next one,
//! or until a reply is read. They give their file descriptors up when none is left for others: of
//! the address that has most of them the one that has waited longest.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clients::ClientAddress;

/// See the module's text.
#[derive(Default)]
pub struct WaitingConnections {
    table: Mutex<Table>,
    /// A connection has ended.
    ended: Notify,
}

#[derive(Default)]
struct Table {
    /// How to cut each connection, by when it began to wait.
    by_address: HashMap<ClientAddress, BTreeMap<u64, Arc<Notify>>>,
    next: u64,
}

impl WaitingConnections {
    /// Cuts one; false if none waits.
    pub fn cut_one(&self) -> bool {
        let mut table = self.table.lock();
        let longest = |waiting: &BTreeMap<u64, _>| waiting.keys().next().copied();
        let most = table
            .by_address
            .iter()
            .filter_map(|(address, waiting)| {
                Some(((waiting.len(), u64::MAX - longest(waiting)?), *address))
            })
            .max_by_key(|(rank, _)| *rank);
        let Some((_, address)) = most else { return false };
        let Some(waiting) = table.by_address.get_mut(&address) else { return false };
        let cut = waiting.pop_first();
        if waiting.is_empty() {
            table.by_address.remove(&address);
        }
        if let Some((_, cut)) = &cut {
            cut.notify_one();
        }
        cut.is_some()
    }

    /// Waits until a connection has ended and its descriptor is free.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }

    fn enter(&self, address: ClientAddress, cut: Arc<Notify>) -> u64 {
        let mut table = self.table.lock();
        let since = table.next;
        table.next += 1;
        table.by_address.entry(address).or_default().insert(since, cut);
        since
    }

    fn leave(&self, address: ClientAddress, since: u64) {
        let mut table = self.table.lock();
        if let Some(waiting) = table.by_address.get_mut(&address) {
            waiting.remove(&since);
            if waiting.is_empty() {
                table.by_address.remove(&address);
            }
        }
    }
}

/// One connection's place among them; dropped after the connection.
pub struct WaitingPlace {
    connections: Arc<WaitingConnections>,
    address: ClientAddress,
    cut: Arc<Notify>,
    since: Cell<Option<u64>>,
}

impl WaitingPlace {
    /// Of a new connection, which waits for its first request.
    pub fn new(connections: Arc<WaitingConnections>, peer: IpAddr) -> Self {
        let (address, cut) = (ClientAddress::from(peer), Arc::default());
        let place = Self { connections, address, cut, since: Cell::new(None) };
        place.wait();
        place
    }

    /// Tells when the connection is to end, whatever is still to be sent on it.
    pub fn cut(&self) -> &Arc<Notify> {
        &self.cut
    }

    /// It waits for its client from now on.
    pub fn wait(&self) {
        self.leave();
        let since = self.connections.enter(self.address, self.cut.clone());
        self.since.set(Some(since));
    }

    /// It waits for its client no longer.
    pub fn leave(&self) {
        if let Some(since) = self.since.take() {
            self.connections.leave(self.address, since);
        }
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        self.leave();
        self.connections.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn place(connections: &Arc<WaitingConnections>, address: u8) -> WaitingPlace {
        WaitingPlace::new(connections.clone(), IpAddr::from([10, 0, 0, address]))
    }

    async fn is_cut(place: &WaitingPlace) -> bool {
        timeout(Duration::ZERO, place.cut().notified()).await.is_ok()
    }

    #[tokio::test]
    async fn the_address_with_most_connections_loses_the_one_that_waited_longest() {
        let connections = Arc::new(WaitingConnections::default());
        assert!(!connections.cut_one(), "there is none");
        let one = place(&connections, 1);
        let many = [place(&connections, 2), place(&connections, 2), place(&connections, 2)];
        // The first has a request under way, then waits for the next one.
        many[0].leave();
        many[0].wait();
        assert!(connections.cut_one());
        assert!(is_cut(&many[1]).await);
        assert!(connections.cut_one());
        assert!(is_cut(&many[2]).await && !is_cut(&many[0]).await);
        // With one each, the one that has waited longer.
        assert!(connections.cut_one());
        assert!(is_cut(&one).await && !is_cut(&many[0]).await);
        drop(one);
        timeout(Duration::ZERO, connections.ended()).await.expect("one has ended");
        drop(many);
        assert!(connections.table.lock().by_address.is_empty());
        assert!(!connections.cut_one());
    }

    #[tokio::test]
    async fn a_connection_with_a_request_under_way_is_not_cut() {
        let connections = Arc::new(WaitingConnections::default());
        let busy = place(&connections, 1);
        busy.leave();
        assert!(!connections.cut_one() && !is_cut(&busy).await);
    }
}
