//! Which pages may talk to the hub. A browser lets any page open a WebSocket to any server and
//! leaves the decision to that server, by the `Origin` header it sends along.

use std::net::IpAddr;

/// The rule, in order: no `Origin` is no browser and is let in; the page this hub served itself
/// is let in; then the list. With an empty list on a loopback address pages from loopback are let
/// in too, whatever their port: that is a front end's dev server on the same machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins {
    /// Lower case, no trailing slash; `*` is among them when all are let in.
    listed: Vec<String>,
    /// The hub listens on a loopback address.
    on_loopback: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginsError {
    #[error("must begin with http:// or https://, or be \"*\"")]
    NoScheme,
    #[error("must end after the host and port: an origin has no path")]
    HasPath,
    #[error("names no host")]
    NoHost,
    #[error("may not hold \"*\" inside: list each origin, or \"*\" alone for all")]
    Wildcard,
}

impl Origins {
    /// The rule for `listed` entries on a hub that listens on `listen`.
    pub(super) fn new(listed: Vec<String>, listen: IpAddr) -> Self {
        Self { listed, on_loopback: listen.is_loopback() }
    }

    /// One entry as written, to the form it is compared in.
    pub(super) fn entry(text: &str) -> Result<String, OriginsError> {
        if text == "*" {
            return Ok(text.to_owned());
        }
        let lower = text.to_ascii_lowercase();
        let (_, authority) = split(&lower).ok_or(OriginsError::NoScheme)?;
        match authority {
            "" => Err(OriginsError::NoHost),
            _ if authority.contains('*') => Err(OriginsError::Wildcard),
            _ if authority.contains(['/', '?', '#', '@']) => Err(OriginsError::HasPath),
            _ => Ok(without_default_port(&lower).to_owned()),
        }
    }

    /// Whether a request with these two headers is let in.
    pub fn allow(&self, origin: Option<&str>, host: Option<&str>) -> bool {
        let Some(origin) = origin else { return true };
        let origin = origin.to_ascii_lowercase();
        if self.listed.iter().any(|one| one == "*" || *one == without_default_port(&origin)) {
            return true;
        }
        // "null" (a sandboxed frame, a file) and whatever else has no host.
        let Some((scheme, authority)) = split(&origin) else { return false };
        let default = if scheme == "https" { ":443" } else { ":80" };
        let bare = |text: &str| text.strip_suffix(default).unwrap_or(text).to_owned();
        if host.is_some_and(|host| bare(&host.to_ascii_lowercase()) == bare(authority)) {
            return true;
        }
        self.on_loopback && self.listed.is_empty() && is_loopback(authority)
    }

    /// Whether a request may name this host, with no proxy between. Anyone can let a name point to
    /// 127.0.0.1: a page from there is of one origin with a hub on loopback, and sends no `Origin`
    /// with a GET. A name without a dot is nobody's on the internet.
    pub fn allow_host(&self, host: Option<&str>) -> bool {
        let Some(host) = host.filter(|_| self.on_loopback) else { return true };
        let host = host.to_ascii_lowercase();
        let name = name_of(&host);
        let is_listed = |one: &String| {
            one == "*" || split(one).is_some_and(|(_, authority)| name_of(authority) == name)
        };
        !name.contains('.')
            || name.ends_with(".localhost")
            || name.parse::<IpAddr>().is_ok()
            || self.listed.iter().any(is_listed)
    }
}

/// Scheme and authority of an origin.
fn split(origin: &str) -> Option<(&str, &str)> {
    let (scheme, authority) = origin.split_once("://")?;
    matches!(scheme, "http" | "https").then_some((scheme, authority))
}

/// Browsers leave a scheme's own port out; a list written by hand may have it.
fn without_default_port(origin: &str) -> &str {
    match split(origin) {
        Some(("https", _)) => origin.strip_suffix(":443").unwrap_or(origin),
        Some(_) => origin.strip_suffix(":80").unwrap_or(origin),
        None => origin,
    }
}

/// Without the port and the brackets of IPv6: "[::1]:3000", "127.0.0.1:3000", "localhost".
fn name_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = name_of(authority);
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const PUBLIC: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

    fn origins(listed: &[&str], listen: IpAddr) -> Origins {
        Origins::new(listed.iter().map(|one| Origins::entry(one).unwrap()).collect(), listen)
    }

    #[test]
    fn a_request_without_an_origin_is_let_in() {
        assert!(origins(&["https://app.example"], PUBLIC).allow(None, Some("hub.example")));
    }

    #[test]
    fn the_hubs_own_page_is_let_in() {
        let none = origins(&[], PUBLIC);
        assert!(none.allow(Some("https://hub.example"), Some("hub.example")));
        assert!(none.allow(Some("https://hub.example"), Some("hub.example:443")));
        assert!(none.allow(Some("http://Hub.example:4000"), Some("hub.example:4000")));
        assert!(!none.allow(Some("http://hub.example:4001"), Some("hub.example:4000")));
    }

    #[test]
    fn a_foreign_page_is_refused_unless_it_is_listed() {
        let hub = Some("hub.example");
        for foreign in ["https://evil.example", "https://hub.example.evil", "null", "", "file://"] {
            assert!(!origins(&[], PUBLIC).allow(Some(foreign), hub), "{foreign:?}");
        }
        let listed = origins(&["https://App.example:443"], PUBLIC);
        assert!(listed.allow(Some("https://app.example"), hub));
        assert!(!listed.allow(Some("http://app.example"), hub));
        assert!(!listed.allow(Some("https://app.example.evil"), hub));
        assert!(origins(&["*"], PUBLIC).allow(Some("null"), hub));
    }

    #[test]
    fn a_dev_server_on_loopback_is_let_in_by_a_hub_on_loopback_without_a_list() {
        let hub = Some("127.0.0.1:4000");
        for page in ["http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:5173"] {
            assert!(origins(&[], LOOPBACK).allow(Some(page), hub), "{page}");
            assert!(!origins(&[], PUBLIC).allow(Some(page), Some("hub.example")), "{page}");
            assert!(!origins(&["https://app.example"], LOOPBACK).allow(Some(page), hub), "{page}");
        }
        assert!(!origins(&[], LOOPBACK).allow(Some("http://localhost.evil"), hub));
    }

    #[test]
    fn a_name_that_anyone_may_point_to_loopback_is_no_host_of_a_hub_there() {
        let (open, closed) = (origins(&["https://App.example"], LOOPBACK), origins(&[], LOOPBACK));
        for host in ["127.0.0.1:4000", "[::1]:4000", "localhost", "a.localhost:4000", "hub", ""] {
            assert!(closed.allow_host(Some(host)), "{host}");
        }
        for host in ["evil.example:4000", "127.0.0.1.evil.example", "App.example"] {
            assert!(!closed.allow_host(Some(host)), "{host}");
            assert!(origins(&[], PUBLIC).allow_host(Some(host)), "{host}");
            assert!(origins(&["*"], LOOPBACK).allow_host(Some(host)), "{host}");
        }
        assert!(open.allow_host(Some("app.example:8443")));
        assert!(!open.allow_host(Some("evil.example")));
        assert!(closed.allow_host(None), "HTTP/1.0 has none");
    }

    #[test]
    fn a_slip_in_an_entry_is_named() {
        assert_eq!(Origins::entry("app.example"), Err(OriginsError::NoScheme));
        assert_eq!(Origins::entry("https://app.example/"), Err(OriginsError::HasPath));
        assert_eq!(Origins::entry("https://"), Err(OriginsError::NoHost));
        assert_eq!(Origins::entry("https://*.example"), Err(OriginsError::Wildcard));
    }
}
