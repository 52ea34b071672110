//! Where a hub is, as a person writes it. Nothing is looked up here.

use std::str::FromStr;

use tokio_tungstenite::tungstenite::http::Uri;

const DEFAULT_PATH: &str = "/graphql";

/// `ws://HOST[:PORT][/PATH]`, or `wss://` for TLS. `http://` and `https://` mean the same, and no
/// path means `/graphql`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address, without the brackets of IPv6.
    pub host: String,
    pub port: u16,
    /// As the upgrade asks for it: `wss://` where TLS is spoken.
    pub url: String,
}

/// What is wrong with a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointFault {
    #[error("write it as ws://HOST:PORT/graphql or wss://HOST:PORT/graphql")]
    Form,
}

impl FromStr for Endpoint {
    type Err = EndpointFault;

    fn from_str(text: &str) -> Result<Self, EndpointFault> {
        let uri: Uri = text.parse().map_err(|_| EndpointFault::Form)?;
        let (scheme, default_port) = match uri.scheme_str() {
            Some("ws" | "http") => ("ws", 80),
            Some("wss" | "https") => ("wss", 443),
            _ => return Err(EndpointFault::Form),
        };
        let authority = uri.authority().ok_or(EndpointFault::Form)?;
        // A password in a URL would end in logs.
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(EndpointFault::Form);
        }
        let path = match uri.path_and_query().map(|path| path.as_str()) {
            None | Some("/") => DEFAULT_PATH,
            Some(path) => path,
        };
        Ok(Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(default_port),
            url: format!("{scheme}://{authority}{path}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_needs_no_more_than_its_host() {
        let read = |text: &str| text.parse::<Endpoint>().map(|it| (it.host, it.port, it.url));
        let is = |host: &str, port, url: &str| Ok((host.to_owned(), port, url.to_owned()));
        let local = is("127.0.0.1", 4000, "ws://127.0.0.1:4000/graphql");
        assert_eq!(read("ws://127.0.0.1:4000/graphql"), local);
        assert_eq!(read("http://127.0.0.1:4000"), local);
        assert_eq!(read("ws://hub/"), is("hub", 80, "ws://hub/graphql"));
        assert_eq!(read("https://hub"), is("hub", 443, "wss://hub/graphql"));
        assert_eq!(read("ws://[::1]:4000/x?y=1"), is("::1", 4000, "ws://[::1]:4000/x?y=1"));
    }

    #[test]
    fn what_can_not_be_a_hub_is_refused() {
        for text in
            ["127.0.0.1:4000", "hub", "ftp://hub/", "ws://", "ws://me:word@hub/", "ws://:1/"]
        {
            assert_eq!(text.parse::<Endpoint>(), Err(EndpointFault::Form), "{text}");
        }
    }
}
