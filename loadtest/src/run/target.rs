//! Where the sockets of a storm go, and what each says first: the address, TLS, headers of its own
//! and the payload of its `connection_init`.

use super::client;
use crate::wire;
use clap::Args;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const FORM: &str = "write ws://HOST:PORT/PATH or wss://HOST:PORT/PATH";

/// How a connection begins, as arguments.
#[derive(Clone, Debug, Default, Args)]
pub struct Opening {
    /// A header of each upgrade; may be repeated
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<String>,
    /// The payload of `connection_init`: a JSON object
    #[arg(long, value_name = "JSON", value_parser = payload)]
    init: Option<Value>,
}

/// A line of a request's head.
fn header(text: &str) -> Result<String, String> {
    let (name, value) = text.split_once(':').ok_or("write it as 'name: value'")?;
    let (name, value) = (name.trim_end(), value.trim());
    let is_token =
        |letter: char| letter.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(letter);
    if name.is_empty() || !name.chars().all(is_token) {
        return Err(format!("{name:?} is no name of a header"));
    }
    if value.chars().any(char::is_control) {
        return Err("a value has no line breaks".to_owned());
    }
    Ok(format!("{name}: {value}\r\n"))
}

fn payload(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(Value::Object(fields)),
        Ok(_) => Err("write it as a JSON object".to_owned()),
        Err(error) => Err(format!("write it as a JSON object: {error}")),
    }
}

impl Opening {
    /// The message that begins a connection.
    fn init(&self) -> String {
        let mut message = serde_json::json!({"type": "connection_init"});
        if let Some(payload) = &self.init {
            message["payload"] = payload.clone();
        }
        message.to_string()
    }
}

pub struct Target {
    address: SocketAddr,
    /// The head of the upgrade.
    request: String,
    /// The first message after it.
    pub init: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Target {
    /// # Errors
    /// What is wrong with the URL, or why there is no TLS.
    pub fn new(url: &str, opening: &Opening) -> Result<Self, String> {
        let wrong = || format!("`{url}`: {FORM}");
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let port = match scheme {
            "ws" => 80,
            "wss" => 443,
            _ => return Err(wrong()),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        // "[::1]", "[::1]:4000", "hub", "hub:4000"
        let (name, port) = match host.rsplit_once(':') {
            Some((name, digits)) if !digits.ends_with(']') => {
                (name, digits.parse().map_err(|_| wrong())?)
            }
            _ => (host, port),
        };
        let name = name.trim_matches(['[', ']']);
        let mut addresses = (name, port).to_socket_addrs().map_err(|e| format!("{host}: {e}"))?;
        let address = addresses.next().ok_or_else(wrong)?;
        let tls = match scheme {
            "wss" => {
                let name = ServerName::try_from(name.to_owned()).map_err(|_| wrong())?;
                Some((TlsConnector::from(Arc::new(config()?)), name))
            }
            _ => None,
        };
        let request = wire::upgrade_request(host, &format!("/{path}"), &opening.headers.concat());
        Ok(Self { address, request, init: opening.init(), tls })
    }

    /// The upgraded stream and the bytes that came after the upgrade.
    ///
    /// # Errors
    /// Why there is none: the kind of the fault, or `HTTP` and the status.
    pub async fn open(&self, source: Option<IpAddr>) -> Result<(Stream, Vec<u8>), String> {
        let as_text = |error: io::Error| error.kind().to_string();
        let socket = client::local_socket(self.address, source).map_err(as_text)?;
        let tcp = socket.connect(self.address).await.map_err(as_text)?;
        tcp.set_nodelay(true).map_err(as_text)?;
        let mut stream = match &self.tls {
            None => Stream::Plain(tcp),
            Some((connector, name)) => {
                let opened = connector.connect(name.clone(), tcp).await;
                Stream::Tls(Box::new(opened.map_err(|error| format!("TLS: {error}"))?))
            }
        };
        let first = client::upgrade(&mut stream, &self.request).await?;
        Ok((stream, first))
    }
}

/// Trusts what the machine trusts.
fn config() -> Result<ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(
            "the machine has no root certificates: install ca-certificates, or name a file \
                    by SSL_CERT_FILE"
                .to_owned(),
        );
    }
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// To the hub, or to what ends TLS before it.
#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_needs_a_scheme_and_a_host_and_has_the_port_of_its_scheme() {
        let target = |url: &str| Target::new(url, &Opening::default());
        let request = |url: &str| target(url).unwrap().request;
        assert!(request("ws://127.0.0.1:4000/graphql").starts_with("GET /graphql HTTP/1.1\r\n"));
        assert!(request("ws://[::1]/x").contains("\r\nHost: [::1]\r\n"));
        assert_eq!(target("ws://[::1]/x").unwrap().address.port(), 80);
        for wrong in ["127.0.0.1:4000", "http://127.0.0.1", "ws://127.0.0.1:x/", "ws://"] {
            let fault = target(wrong).err().unwrap();
            assert!(fault.contains(FORM) || fault.contains(':'), "{fault}");
        }
    }

    #[test]
    fn a_header_is_one_line_and_an_init_payload_is_an_object() {
        assert_eq!(header("X-Key:  a:b "), Ok("X-Key: a:b\r\n".to_owned()));
        for wrong in ["X-Key", ": x", "X Key: x", "X-Key: a\r\nY: b"] {
            assert!(header(wrong).is_err(), "{wrong:?}");
        }
        assert!(payload("[]").is_err() && payload("{").is_err());
        let opening = Opening { headers: Vec::new(), init: payload(r#"{"token":"x"}"#).ok() };
        let message: Value = serde_json::from_str(&opening.init()).unwrap();
        assert_eq!(message["payload"]["token"], "x");
        assert_eq!(Opening::default().init(), r#"{"type":"connection_init"}"#);
    }
}
