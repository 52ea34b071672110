//! What an attack is: its name, its size, and from where it comes. The child process that carries
//! it out gets it as one JSON object.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Attack {
    /// Sockets with many operations, none of which shares its document with another
    Documents,
    /// Sockets that subscribe and complete in a loop, with depths of their own
    Churn,
    /// Sockets that ask in a loop for snapshots of fresh depths of a deep book
    Snapshots,
    /// HTTP connections with book, candle, trade, list and introspection queries in a loop
    Queries,
    /// Sockets that subscribe and never read
    Silent,
    /// Sockets that resume far back in a topic of large events, and never read
    Resumes,
    /// Streams of server-sent events that are never read
    Sse,
    /// HTTP replies of a deep book that are never read
    Replies,
    /// Mutations that publish to a new topic each
    Topics,
    /// TCP connections with half a request
    HalfOpen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Book,
    Trades,
    Tickers,
    Candles,
    Offers,
    /// Offers of a hundred markets without events: what is sent are heartbeats
    Quiet,
    /// A book of 5,000 levels a side that is replaced as a whole each second
    Replaced,
    /// Only of `queries`
    Orders,
    /// Only of `queries`
    Events,
    /// Only of `queries`
    Introspection,
    /// All in turn
    Mixed,
}

/// Whether the readers that never read ask for the same document or for one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    Shared,
    Distinct,
    /// Every second one of either
    Both,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub attack: Attack,
    pub kind: Kind,
    pub sharing: Sharing,
    pub address: SocketAddr,
    pub sockets: usize,
    pub operations: usize,
    /// Dealt out in turn. Empty: the system chooses.
    pub sources: Vec<IpAddr>,
    pub market: String,
}

impl Attack {
    /// How many sockets, and how many operations each, where the command line says nothing.
    pub fn usual_size(self) -> (usize, usize) {
        match self {
            Self::Documents => (20, 200),
            Self::Churn => (5, 8),
            Self::Snapshots | Self::Queries => (50, 1),
            Self::Silent => (500, 8),
            // All that one address may have open.
            Self::Resumes => (100, 256),
            Self::Sse => (500, 1),
            Self::Replies => (1000, 1),
            // As many aliases as a document may have.
            Self::Topics => (20, 30),
            Self::HalfOpen => (2000, 1),
        }
    }

    /// Whether it needs a book of 5,000 levels a side.
    pub fn is_deep(self) -> bool {
        matches!(self, Self::Snapshots | Self::Queries | Self::Replies)
    }

    /// The hub's limit of open files, where the attack is on that.
    pub fn open_files(self) -> Option<u64> {
        (self == Self::HalfOpen).then_some(1024)
    }
}

impl Spec {
    pub fn source(&self, number: usize) -> Option<IpAddr> {
        self.sources.get(number % self.sources.len().max(1)).copied()
    }

    /// Whether the client of this number has a document of its own.
    pub fn is_distinct(&self, number: usize) -> bool {
        match self.sharing {
            Sharing::Shared => false,
            Sharing::Distinct => true,
            Sharing::Both => number % 2 == 1,
        }
    }
}

/// `count` addresses from `first` upwards.
///
/// # Errors
/// When they aren't all loopback addresses: no load is sent from or to anywhere else.
pub fn addresses(first: Ipv4Addr, count: usize) -> Result<Vec<IpAddr>, String> {
    let count = u32::try_from(count).map_err(|_| "--addresses is too large".to_owned())?;
    let last = u32::from(first).saturating_add(count.saturating_sub(1));
    if !first.is_loopback() || !Ipv4Addr::from(last).is_loopback() {
        return Err(format!("{first} and the {count} from there: write addresses in 127.0.0.0/8"));
    }
    Ok((u32::from(first)..=last).map(|one| IpAddr::V4(Ipv4Addr::from(one))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_count_upwards_and_stay_on_loopback() {
        let first = Ipv4Addr::new(127, 0, 0, 254);
        let found = addresses(first, 3).unwrap();
        let expected: Vec<IpAddr> =
            ["127.0.0.254", "127.0.0.255", "127.0.1.0"].map(|one| one.parse().unwrap()).to_vec();
        assert_eq!(found, expected);
        assert!(addresses(Ipv4Addr::new(10, 0, 0, 1), 1).is_err());
        assert!(addresses(Ipv4Addr::new(127, 255, 255, 255), 2).is_err());
    }
}
