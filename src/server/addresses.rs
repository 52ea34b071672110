//! How many sockets each client address has open, over all shards.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::HeaderMap;
use parking_lot::Mutex;

use crate::config::Network;

/// Sockets open per client address; an address without any takes no room.
#[derive(Debug, Default)]
pub struct Addresses(Mutex<HashMap<IpAddr, usize>>);

/// One socket's share of its address' limit; given back when dropped.
pub struct Place {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    /// Counts one in, or says how many there are.
    pub fn enter(self: &Arc<Self>, address: IpAddr, most: usize) -> Result<Place, usize> {
        let mut counts = self.0.lock();
        let count = counts.entry(address).or_insert(0);
        if *count >= most {
            return Err(*count);
        }
        *count += 1;
        Ok(Place { addresses: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// The client behind the proxies that are ours: the last address in `X-Forwarded-For` that no
/// trusted proxy has, as everything before it is the client's own word.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let is_trusted = |one: IpAddr| trusted.iter().any(|network| network.contains(one));
    if !is_trusted(peer) {
        return peer;
    }
    headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|one| one.trim().parse().ok())
        .rfind(|one| !is_trusted(*one))
        .unwrap_or(peer)
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

    #[test]
    fn a_closed_socket_gives_its_place_back() {
        let addresses = Arc::new(Addresses::default());
        let address = "203.0.113.7".parse().unwrap();
        let first = addresses.enter(address, 2).ok().unwrap();
        let _second = addresses.enter(address, 2).ok().unwrap();
        assert_eq!(addresses.enter(address, 2).err(), Some(2));
        drop(first);
        assert!(addresses.enter(address, 2).is_ok());
    }
}
