//! The public port: which request goes where, and the upgrade to a WebSocket.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use serde_json::json;
use spreadly_subscriptions::dialect::GRAPHQL_WS;
use spreadly_subscriptions::protocol::GRAPHQL_TRANSPORT_WS;
use spreadly_subscriptions::{CloseCode, Dialect, Execution, Executor, Opening, Shard};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::config::{Network, Origins};

/// Most headers of one request; browsers send about twenty.
const MOST_HEADERS: usize = 64;
/// A request body may take this long from its first byte to its last.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What the public port keeps to, from the config.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    pub origins: Origins,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
    pub sockets_per_address: usize,
    pub exempt_loopback: bool,
    /// From the first byte of a request to the end of its headers.
    pub header_timeout: Duration,
    pub header_bytes: usize,
    pub message_bytes: usize,
}

/// WebSockets open per client address, over all shards.
#[derive(Debug, Default)]
pub struct Addresses(Mutex<HashMap<IpAddr, usize>>);

/// One WebSocket's share of its address' limit; given back when dropped.
struct Place {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    /// Counts one in, or says how many there are.
    fn enter(self: &Arc<Self>, address: IpAddr, most: usize) -> Result<Place, usize> {
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

/// The public port as one shard serves it.
pub struct Http<E: Executor> {
    pub config: Arc<HttpConfig>,
    pub addresses: Arc<Addresses>,
    pub executor: Arc<E>,
    pub shard: Rc<Shard<TcpStream, E>>,
}

type Reply = Response<Full<Bytes>>;

impl<E: Executor> Http<E> {
    /// Serves one TCP connection until it ends or becomes a WebSocket.
    pub async fn serve(self: Rc<Self>, stream: TcpStream, peer: SocketAddr) {
        let http = self.clone();
        let service = service_fn(move |request| {
            let http = http.clone();
            async move { Ok::<_, Infallible>(http.answer(request, peer.ip()).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.config.header_timeout)
            .max_buf_size(self.config.header_bytes)
            .max_headers(MOST_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }

    async fn answer(self: Rc<Self>, request: Request<Incoming>, peer: IpAddr) -> Reply {
        match (request.method(), request.uri().path()) {
            // Also of a POST: a page of another origin can send one that its browser asks nobody
            // about, though it could not read the answer.
            (_, "/graphql") if !self.allows(request.headers()) => refusal(
                StatusCode::FORBIDDEN,
                "FORBIDDEN",
                "this Origin is not allowed: add it to server.origins",
            ),
            (&Method::GET, "/graphql") if wants_websocket(request.headers()) => {
                self.upgrade(request, peer)
            }
            (&Method::POST, "/graphql") => self.execute(request).await,
            (_, "/graphql") => {
                let mut reply = refusal(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "BAD_REQUEST",
                    "POST a GraphQL request here, or open a WebSocket",
                );
                reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
                reply
            }
            _ => refusal(
                StatusCode::NOT_FOUND,
                "NOT_FOUND",
                "nothing is here: GraphQL is at /graphql, over WebSocket or POST",
            ),
        }
    }

    fn allows(&self, headers: &HeaderMap) -> bool {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
        self.config.origins.allow(text(header::ORIGIN), text(header::HOST))
    }

    // ---- WebSocket ----

    fn upgrade(self: Rc<Self>, mut request: Request<Incoming>, peer: IpAddr) -> Reply {
        let headers = request.headers();
        let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY).cloned() else {
            return bad_request("Sec-WebSocket-Key is missing");
        };
        if headers.get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes) != Some(b"13") {
            let mut reply = refusal(
                StatusCode::UPGRADE_REQUIRED,
                "BAD_REQUEST",
                "Sec-WebSocket-Version must be 13",
            );
            let version = HeaderValue::from_static("13");
            reply.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, version);
            return reply;
        }
        let address = client_address(peer, headers, &self.config.trusted_proxies);
        let exempt = self.config.exempt_loopback && address.is_loopback();
        let most = if exempt { usize::MAX } else { self.config.sockets_per_address };
        let place = match self.addresses.enter(address, most) {
            Ok(place) => place,
            Err(current) => return too_many_sockets(self.config.sockets_per_address, current),
        };
        let agreed =
            [(GRAPHQL_TRANSPORT_WS, Dialect::TransportWs), (GRAPHQL_WS, Dialect::LegacyWs)]
                .into_iter()
                .find(|(name, _)| offers(headers, name));
        let opening = match agreed {
            Some((_, dialect)) => Opening::Speak(dialect),
            None => Opening::Refuse {
                code: CloseCode::NoSubprotocol,
                reason: "Subprotocol not acceptable: offer graphql-transport-ws",
            },
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let http = self.clone();
        // Ends at the latest with the connection, which the header timeout bounds.
        tokio::task::spawn_local(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else {
                tracing::error!("an upgraded connection is no TCP stream");
                return;
            };
            let socket = parts.io.into_inner();
            http.shard.adopt(socket, opening, &parts.read_buf, Some(Box::new(place)));
        });
        let mut reply = Response::new(Full::default());
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = reply.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = derive_accept_key(key.as_bytes()).try_into() {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some((name, _)) = agreed {
            let name = HeaderValue::from_static(name);
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, name);
        }
        reply
    }

    // ---- POST ----

    async fn execute(&self, request: Request<Incoming>) -> Reply {
        let json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        if !json {
            return refusal(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "BAD_REQUEST",
                "Content-Type must be application/json",
            );
        }
        // As announced; a body in chunks is only known to be longer than the limit.
        let announced = request.body().size_hint().lower();
        let body = Limited::new(request.into_body(), self.config.message_bytes).collect();
        let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => {
                let most = self.config.message_bytes;
                let current = usize::try_from(announced).unwrap_or(usize::MAX).max(most + 1);
                let message = format!("limit message_bytes is {most}: send less at once");
                let status = StatusCode::PAYLOAD_TOO_LARGE;
                return limit_exceeded(status, "message_bytes", most, current, &message);
            }
            Err(_) => {
                return refusal(
                    StatusCode::REQUEST_TIMEOUT,
                    "BAD_REQUEST",
                    "the body did not end within 10 s",
                );
            }
        };
        let request = match serde_json::from_slice(&body) {
            Ok(request) => request,
            Err(error) => return bad_request(&format!("the body is no GraphQL request: {error}")),
        };
        let principal = match self.executor.init(None) {
            Ok(principal) => principal,
            Err(refused) => {
                return refusal(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", &refused.reason);
            }
        };
        match self.executor.execute(request, &principal) {
            Execution::Single(result) => reply(StatusCode::OK, result.await),
            Execution::Refused(errors) => {
                let body = [b"{\"errors\":".as_slice(), &errors, b"}"].concat();
                reply(StatusCode::BAD_REQUEST, body.into())
            }
            Execution::Stream { stream, .. } => {
                self.shard.give_back(&stream);
                bad_request("a subscription needs a WebSocket: open one at this address")
            }
        }
    }
}

/// The client behind the proxies that are ours: the last address in `X-Forwarded-For` that no
/// trusted proxy has, as everything before it is the client's own word.
fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
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

fn wants_websocket(headers: &HeaderMap) -> bool {
    let has = |name, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value: &HeaderValue| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|one| one.trim().eq_ignore_ascii_case(word))
    };
    has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "websocket")
}

fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|one| one.trim() == protocol)
}

fn too_many_sockets(limit: usize, current: usize) -> Reply {
    let message = format!("limit sockets_per_address is {limit}: close one before the next");
    let status = StatusCode::TOO_MANY_REQUESTS;
    limit_exceeded(status, "sockets_per_address", limit, current, &message)
}

fn limit_exceeded(
    status: StatusCode,
    name: &str,
    limit: usize,
    current: usize,
    message: &str,
) -> Reply {
    let error = json!({"errors": [{
        "message": message,
        "extensions": {
            "code": "LIMIT_EXCEEDED", "name": name, "limit": limit, "current": current,
        },
    }]});
    reply(status, error.to_string().into())
}

fn bad_request(message: &str) -> Reply {
    refusal(StatusCode::BAD_REQUEST, "BAD_REQUEST", message)
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Reply {
    let error = json!({"errors": [{"message": message, "extensions": {"code": code}}]});
    reply(status, error.to_string().into())
}

fn reply(status: StatusCode, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    reply.headers_mut().insert(header::CONTENT_TYPE, json);
    reply
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
