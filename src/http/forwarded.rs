//! The client on the far side of our proxies, as they name it: by `X-Forwarded-For`, or by
//! `Forwarded` (RFC 7239).

use std::net::{IpAddr, SocketAddr};

use hyper::header::HeaderMap;

use super::connection_limits::is_trusted;
use crate::config::{AddressHeader, Network};

/// The last address in the header that no trusted proxy has, as everything before it is the
/// client's own word. Where an entry can't be read, it is the proxy that wrote it.
pub fn client_address(
    peer: IpAddr,
    headers: &HeaderMap,
    by: AddressHeader,
    trusted: &[Network],
) -> IpAddr {
    let values = headers.get_all(by.name()).iter().rev();
    let mut entries = values.flat_map(|value| {
        let value = value.to_str().unwrap_or_default();
        LastFirst { rest: Some(value), between: ',' }
    });
    let address = |entry: &str| match by {
        AddressHeader::XForwardedFor => entry_address(entry),
        AddressHeader::Forwarded => element_address(entry),
    };
    let mut client = peer;
    while is_trusted(client, trusted)
        && let Some(named) = entries.next().and_then(|entry| address(entry.trim()))
    {
        client = named;
    }
    client
}

/// The address of an entry, which may have a port, and brackets around an IPv6 address.
fn entry_address(entry: &str) -> Option<IpAddr> {
    let bare = || entry.parse().ok();
    let with_port = || entry.parse().ok().map(|address: SocketAddr| address.ip());
    let in_brackets = || entry.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    bare().or_else(with_port).or_else(in_brackets)
}

/// The address of an element of `Forwarded`: its one parameter `for`, which may be in quotes.
fn element_address(element: &str) -> Option<IpAddr> {
    let mut found = None;
    for pair in (LastFirst { rest: Some(element), between: ';' }) {
        let (name, value) = pair.split_once('=')?;
        if name.trim().eq_ignore_ascii_case("for") {
            let value = value.trim();
            let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            // Doubled, it would be for the reader to choose.
            if found.replace(entry_address(quoted.unwrap_or(value))?).is_some() {
                return None;
            }
        }
    }
    found
}

/// Parts of a text, but for what is in quotes. From its end on, where the proxy has written: a
/// quote that the client left open is of the client's part alone.
struct LastFirst<'a> {
    rest: Option<&'a str>,
    between: char,
}

impl<'a> Iterator for LastFirst<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.rest.take()?;
        let mut in_quotes = false;
        let border = rest.rfind(|one| {
            in_quotes ^= one == '"';
            one == self.between && !in_quotes
        });
        let Some(border) = border else { return Some(rest) };
        self.rest = Some(&rest[..border]);
        Some(&rest[border + self.between.len_utf8()..])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn found(by: AddressHeader, values: &[&str]) -> String {
        let trusted: [Network; 1] = ["10.0.0.0/8".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(by.name(), value.parse().unwrap());
        }
        client_address(PROXY.parse().unwrap(), &headers, by, &trusted).to_string()
    }

    #[test]
    fn of_an_entry_the_address_counts_and_nothing_before_one_that_can_not_be_read() {
        for (entries, client) in [
            ("6.6.6.6, 203.0.113.7:5555", "203.0.113.7"),
            ("6.6.6.6,[2001:db8::1]:5555", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("6.6.6.6, 203.0.113.7, 10.0.0.9:80", "203.0.113.7"),
            ("6.6.6.6, unknown", PROXY),
            ("6.6.6.6, unknown, 10.0.0.9", "10.0.0.9"),
            ("6.6.6.6, [203.0.113.7]", PROXY),
            ("6.6.6.6, 203.0.113.7:", PROXY),
            ("6.6.6.6, 203.0.113.7:99999", PROXY),
            ("6.6.6.6, 203.0.113.007", PROXY),
            ("6.6.6.6, [2001:db8::1", PROXY),
            ("6.6.6.6, for=203.0.113.7", PROXY),
            ("6.6.6.6, \"203.0.113.7\"", PROXY),
            ("6.6.6.6, \u{e4}", PROXY),
            ("6.6.6.6,", PROXY),
            ("", PROXY),
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ] {
            assert_eq!(found(AddressHeader::XForwardedFor, &[entries]), client, "{entries}");
        }
        // A quote that the client left open does not hide what the proxy has added.
        let open = "\"6.6.6.6, 203.0.113.7";
        assert_eq!(found(AddressHeader::XForwardedFor, &[open]), "203.0.113.7");
    }

    #[test]
    fn of_an_element_of_forwarded_its_one_for_counts() {
        for (elements, client) in [
            ("for=6.6.6.6, for=203.0.113.7", "203.0.113.7"),
            ("for=6.6.6.6, For=203.0.113.7;proto=https;by=10.0.0.1", "203.0.113.7"),
            ("for=6.6.6.6,proto=https; for=\"203.0.113.7:5555\"", "203.0.113.7"),
            ("for=\"[2001:db8::1]:5555\"", "2001:db8::1"),
            ("for=\"[2001:db8::1]\";host=\"a,b;for=6.6.6.6\"", "2001:db8::1"),
            ("for=203.0.113.7, for=10.0.0.9", "203.0.113.7"),
            ("for=6.6.6.6, for=unknown", PROXY),
            ("for=6.6.6.6, for=_hidden", PROXY),
            ("for=6.6.6.6, for=unknown, for=10.0.0.9", "10.0.0.9"),
            ("for=6.6.6.6, proto=https", PROXY),
            ("for=6.6.6.6, for=203.0.113.7;for=203.0.113.8", PROXY),
            ("for=6.6.6.6, for", PROXY),
            ("for=6.6.6.6, for=203.0.113.7;https", PROXY),
            ("for=6.6.6.6, 203.0.113.7", PROXY),
            ("for=6.6.6.6, for=\"203.0.113.7", PROXY),
            ("for=\"6.6.6.6, for=203.0.113.7", "203.0.113.7"),
            ("for=\"6.6.6.6, for=\"203.0.113.7\"", "203.0.113.7"),
            ("", PROXY),
        ] {
            assert_eq!(found(AddressHeader::Forwarded, &[elements]), client, "{elements}");
        }
    }

    #[test]
    fn the_last_line_of_a_header_comes_first_and_the_other_header_is_the_clients_word() {
        let both = |by, values: [&str; 2]| found(by, &values);
        assert_eq!(both(AddressHeader::XForwardedFor, ["6.6.6.6", "203.0.113.7"]), "203.0.113.7");
        let lines = ["for=203.0.113.7", "for=10.0.0.2"];
        assert_eq!(both(AddressHeader::Forwarded, lines), "203.0.113.7");
        let trusted: [Network; 1] = ["10.0.0.0/8".parse().unwrap()];
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "203.0.113.7".parse().unwrap());
        headers.append("forwarded", "for=203.0.113.8".parse().unwrap());
        let of = |peer: &str, by| {
            client_address(peer.parse().unwrap(), &headers, by, &trusted).to_string()
        };
        assert_eq!(of(PROXY, AddressHeader::XForwardedFor), "203.0.113.7");
        assert_eq!(of(PROXY, AddressHeader::Forwarded), "203.0.113.8");
        assert_eq!(of("203.0.113.9", AddressHeader::XForwardedFor), "203.0.113.9");
        assert_eq!(of("203.0.113.9", AddressHeader::Forwarded), "203.0.113.9");
    }

    proptest! {
        /// Whatever a client sends, what the proxy adds to it counts.
        #[test]
        fn nothing_that_a_client_sends_hides_what_the_proxy_adds(sent in "[ -~]{0,60}") {
            let plain = format!("{sent}, 203.0.113.7:5555");
            prop_assert_eq!(found(AddressHeader::XForwardedFor, &[&plain]), "203.0.113.7");
            for added in ["for=203.0.113.7", "for=\"203.0.113.7:5555\";proto=https"] {
                let elements = format!("{sent}, {added}");
                prop_assert_eq!(found(AddressHeader::Forwarded, &[&elements]), "203.0.113.7");
            }
        }
    }
}
