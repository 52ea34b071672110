//! Pages of other origins: which may ask, and the headers by which their browser lets them read the
//! answer (the CORS protocol of the Fetch standard).

use http_body_util::{Either, Full};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use spreadly_subscriptions::ErrorCode;

use super::response::{Reply, not_allowed, refusal};
use super::routes::HttpConfig;
use crate::config::Origins;

/// The methods of `/graphql`, as `Allow` lists them.
const METHODS: &str = "GET, POST, OPTIONS";

/// Of a preflight request, which comes before a request that a form could not have sent.
///
/// `*` means every header but `Authorization`: clients add headers of their own, such as
/// `apollo-require-preflight`, which the hub ignores.
const PREFLIGHT: [(HeaderName, &str); 3] = [
    (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, last-event-id, *"),
    // Two hours: no browser but Firefox keeps it longer.
    (header::ACCESS_CONTROL_MAX_AGE, "7200"),
];

/// What a page may read besides the headers that every page may.
const EXPOSED: &str = "allow, retry-after";

/// Whether a request with these headers is answered.
pub fn allows(origins: &Origins, headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    let is_single = headers.get_all(header::ORIGIN).iter().nth(1).is_none();
    is_single && origins.allow(text(header::ORIGIN), text(header::HOST))
}

/// The answer to a request that names somebody else's host, unless a proxy of ours passes it on.
pub fn foreign_host(config: &HttpConfig, passed_on: bool, headers: &HeaderMap) -> Option<Reply> {
    let host = headers.get(header::HOST).map(|value| value.to_str().unwrap_or("unreadable."));
    if config.origins.allow_host(host) || passed_on {
        return None;
    }
    let message = "this Host is not allowed on loopback: add its origin to server.origins, or the \
                   address of the proxy to server.trusted_proxies";
    Some(refusal(StatusCode::FORBIDDEN, ErrorCode::Forbidden, message))
}

/// The answer to an OPTIONS of `/graphql` from an origin that is allowed.
pub fn options() -> Reply {
    let mut reply = Response::new(Either::Left(Full::default()));
    *reply.status_mut() = StatusCode::NO_CONTENT;
    let headers = reply.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static(METHODS));
    for (name, value) in PREFLIGHT {
        headers.insert(name, HeaderValue::from_static(value));
    }
    reply
}

pub fn wrong_method() -> Reply {
    not_allowed(METHODS, "GET or POST a GraphQL request here, or open a WebSocket")
}

pub fn foreign() -> Reply {
    let message = "this Origin is not allowed: add it to server.origins";
    refusal(StatusCode::FORBIDDEN, ErrorCode::Forbidden, message)
}

/// The page that asks for a result, kept until there is one.
pub struct Asked {
    /// `None`: no page of another origin may see this path, or the page is not allowed.
    origin: Option<HeaderValue>,
    is_graphql: bool,
}

impl Asked {
    pub fn of<B>(origins: &Origins, request: &Request<B>) -> Self {
        let (is_graphql, headers) = (request.uri().path() == "/graphql", request.headers());
        let origin = headers.get(header::ORIGIN);
        let origin = origin.filter(|_| is_graphql && allows(origins, headers)).cloned();
        Self { origin, is_graphql }
    }

    /// Lets the page read an answer, whatever it says: a refusal too is for the page.
    pub fn mark(self, reply: &mut Reply) {
        // A browser lets any page read a WebSocket.
        if !self.is_graphql || reply.status() == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        let headers = reply.headers_mut();
        // Also without an `Origin`: what is kept for one page is not for the next.
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        if let Some(origin) = self.origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            let exposed = HeaderValue::from_static(EXPOSED);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }
}
