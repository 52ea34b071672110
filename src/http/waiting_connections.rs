//! The HTTP connections that wait for their clients: for the rest of a request, for the next one,
//! or until a reply is read. They give their file descriptors up when none is left for others: of
//! the address that has most HTTP connections the one that has waited longest.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::budgets::ClientAddress;

/// Addresses with so many connections or fewer count alike.
const FEW: usize = 4;
/// Until it has waited for so long a connection keeps its descriptor.
const LEAST_WAIT: Duration = Duration::from_millis(250);

/// See the module's text.
#[derive(Default)]
pub struct WaitingConnections {
    table: Mutex<Table>,
    /// A connection has ended.
    ended: Notify,
}

/// Who gives up a descriptor for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// A connection that waited and has to end.
    Waiting,
    /// The new one: its address has more than any that could give one up.
    New,
    /// Nobody can.
    Nobody,
}

#[derive(Default)]
struct Table {
    by_address: HashMap<ClientAddress, Connections>,
    next: u64,
}

/// Those of one address.
#[derive(Default)]
struct Connections {
    count: usize,
    /// Since when each of them waits, and how to end it; in the order in which they began to.
    waiting: BTreeMap<u64, (Instant, Arc<Notify>)>,
}

impl Connections {
    fn rank(&self) -> usize {
        self.count.max(FEW)
    }
}

impl WaitingConnections {
    /// Finds a descriptor for a new connection of this address; `None` where it is not known yet.
    pub fn make_room(&self, new: Option<IpAddr>) -> Victim {
        let (now, mut table) = (Instant::now(), self.table.lock());
        let own =
            new.and_then(|peer| table.by_address.get(&peer.into())).map_or(0, |own| own.count);
        let most = table
            .by_address
            .values_mut()
            .filter_map(|one| {
                let (place, _) = one.waiting.first_key_value()?;
                Some(((one.rank(), u64::MAX - place), one))
            })
            .max_by_key(|(rank, _)| *rank);
        let Some(((rank, _), connections)) = most else { return Victim::Nobody };
        if own > rank {
            return Victim::New;
        }
        match connections.waiting.first_entry() {
            Some(longest) if now - longest.get().0 >= LEAST_WAIT => {
                let (_, cut) = longest.remove();
                cut.notify_one();
                Victim::Waiting
            }
            _ => Victim::Nobody,
        }
    }

    /// Waits until a connection has ended and its descriptor is free.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }
}

/// One connection's place among them; dropped after the connection.
pub struct WaitingPlace {
    connections: Arc<WaitingConnections>,
    address: ClientAddress,
    cut: Arc<Notify>,
    since: Mutex<Option<u64>>,
}

impl WaitingPlace {
    /// Of a new connection, which waits for its turn on a shard.
    pub fn new(connections: Arc<WaitingConnections>, peer: IpAddr) -> Self {
        let (address, cut) = (ClientAddress::from(peer), Arc::default());
        connections.table.lock().by_address.entry(address).or_default().count += 1;
        Self { connections, address, cut, since: Mutex::new(None) }
    }

    /// The same connection, of which is known now whose it is.
    pub fn moved_to(self, address: IpAddr) -> Self {
        Self::new(self.connections.clone(), address)
    }

    /// Rung when the connection has to end, whatever is still to be sent on it.
    pub fn cut(&self) -> &Arc<Notify> {
        &self.cut
    }

    /// It waits for its client from now on.
    pub fn wait(&self) {
        self.leave();
        let mut table = self.connections.table.lock();
        let since = table.next;
        table.next += 1;
        if let Some(own) = table.by_address.get_mut(&self.address) {
            own.waiting.insert(since, (Instant::now(), self.cut.clone()));
        }
        *self.since.lock() = Some(since);
    }

    /// Whether it waits for its client.
    pub fn waits(&self) -> bool {
        self.since.lock().is_some()
    }

    /// It waits for its client no longer.
    pub fn leave(&self) {
        let mut table = self.connections.table.lock();
        if let Some(since) = self.since.lock().take()
            && let Some(own) = table.by_address.get_mut(&self.address)
        {
            own.waiting.remove(&since);
        }
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        self.leave();
        let mut table = self.connections.table.lock();
        if let Some(own) = table.by_address.get_mut(&self.address) {
            own.count -= 1;
            if own.count == 0 {
                table.by_address.remove(&self.address);
            }
        }
        drop(table);
        self.connections.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    fn place(connections: &Arc<WaitingConnections>, address: u8) -> WaitingPlace {
        let place = WaitingPlace::new(connections.clone(), IpAddr::from([10, 0, 0, address]));
        place.wait();
        place
    }

    async fn is_cut(place: &WaitingPlace) -> bool {
        timeout(Duration::ZERO, place.cut().notified()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_with_most_connections_loses_the_one_that_waited_longest() {
        let connections = Arc::new(WaitingConnections::default());
        assert_eq!(connections.make_room(None), Victim::Nobody);
        let one = place(&connections, 1);
        let mut many: Vec<_> = (0..FEW + 2).map(|_| place(&connections, 2)).collect();
        // The first has a request under way, then waits for the next one.
        many[0].leave();
        many[0].wait();
        assert_eq!(connections.make_room(None), Victim::Nobody, "none has waited for long");
        advance(LEAST_WAIT).await;
        for _ in 0..2 {
            assert_eq!(connections.make_room(None), Victim::Waiting);
            assert!(is_cut(&many.remove(1)).await);
        }
        // An address with few has no more than one with a single one: the longer wait decides.
        assert_eq!(connections.make_room(None), Victim::Waiting);
        assert!(is_cut(&one).await && !is_cut(&many[1]).await);
        drop(one);
        timeout(Duration::ZERO, connections.ended()).await.expect("one has ended");
        drop(many);
        assert!(connections.table.lock().by_address.is_empty());
        assert_eq!(connections.make_room(None), Victim::Nobody);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_a_request_under_way_is_not_cut() {
        let connections = Arc::new(WaitingConnections::default());
        let busy = place(&connections, 1);
        busy.leave();
        advance(LEAST_WAIT).await;
        assert_eq!(connections.make_room(None), Victim::Nobody);
        assert!(!is_cut(&busy).await);
    }
    #[tokio::test(start_paused = true)]
    async fn a_new_connection_takes_none_of_an_address_that_has_fewer() {
        let connections = Arc::new(WaitingConnections::default());
        let few = place(&connections, 1);
        let busy: Vec<_> = (0..FEW + 1).map(|_| place(&connections, 2)).collect();
        busy.iter().for_each(WaitingPlace::leave);
        let of = |address| connections.make_room(Some(IpAddr::from([10, 0, 0, address])));
        advance(LEAST_WAIT).await;
        assert_eq!(of(2), Victim::New);
        assert!(!is_cut(&few).await);
        assert_eq!(of(3), Victim::Waiting);
        assert!(is_cut(&few).await);
        assert_eq!((of(3), of(2)), (Victim::Nobody, Victim::Nobody));
    }
}
