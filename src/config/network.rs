//! A block of addresses, as an operator writes one: `10.0.0.0/8`, `::1`, `192.0.2.7`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An IPv4 peer on a dual-stack listener shows up as `::ffff:a.b.c.d`; both sides are brought to
/// the short form first, so a rule for an IPv4 block holds whichever way the peer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error("is not an address or a block such as \"10.0.0.0/8\"")]
    Malformed,
    #[error("has a prefix longer than its address")]
    PrefixTooLong,
    #[error("has bits set after its prefix")]
    HostBits,
}

impl Network {
    pub fn contains(&self, peer: IpAddr) -> bool {
        match (self.address, peer.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(peer)) => {
                (own.to_bits() ^ peer.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(own), IpAddr::V6(peer)) => {
                (own.to_bits() ^ peer.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError::Malformed)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(text) => text.parse::<u8>().map_err(|_| NetworkError::Malformed)?,
            None => width,
        };
        if prefix > width {
            return Err(NetworkError::PrefixTooLong);
        }
        // Almost always a slip of the finger: 10.1.2.3/8 trusts sixteen million addresses.
        let trailing = match address {
            IpAddr::V4(address) => address.to_bits().trailing_zeros(),
            IpAddr::V6(address) => address.to_bits().trailing_zeros(),
        };
        if trailing < u32::from(width - prefix) {
            return Err(NetworkError::HostBits);
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_contains_its_addresses_and_no_others() {
        let block: Network = "10.0.0.0/8".parse().unwrap();
        assert!(block.contains("10.255.0.1".parse().unwrap()));
        assert!(block.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!block.contains("11.0.0.1".parse().unwrap()));
        assert!(!block.contains("::1".parse().unwrap()));
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("203.0.113.9".parse().unwrap()));
        let one: Network = "2001:db8::1".parse().unwrap();
        assert!(one.contains("2001:db8::1".parse().unwrap()));
        assert!(!one.contains("2001:db8::2".parse().unwrap()));
    }

    #[test]
    fn a_slip_in_a_block_is_named() {
        assert_eq!("10.0.0".parse::<Network>(), Err(NetworkError::Malformed));
        assert_eq!("10.0.0.0/x".parse::<Network>(), Err(NetworkError::Malformed));
        assert_eq!("10.0.0.0/33".parse::<Network>(), Err(NetworkError::PrefixTooLong));
        assert_eq!("10.1.2.3/8".parse::<Network>(), Err(NetworkError::HostBits));
    }
}
