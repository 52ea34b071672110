//! The upgrade of an HTTP request to a WebSocket, up to its handing over to the shard.

use std::rc::Rc;
use std::sync::Arc;

use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use spreadly_subscriptions::dialect::{GRAPHQL_TRANSPORT_WS, GRAPHQL_WS};
use spreadly_subscriptions::{CloseCode, Dialect, ErrorCode, Executor, Opening};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::response::{Reply, bad_request, refusal};
use super::routes::Http;
use super::stall_limit::StallLimited;
use crate::budgets::ClientAccount;

impl<E: Executor<Client = Arc<ClientAccount>>> Http<E> {
    pub(super) fn upgrade(
        self: Rc<Self>,
        mut request: Request<Incoming>,
        account: Arc<ClientAccount>,
    ) -> Reply {
        let headers = request.headers();
        let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY).cloned() else {
            return bad_request("Sec-WebSocket-Key is missing");
        };
        if headers.get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes) != Some(b"13") {
            let mut reply = refusal(
                StatusCode::UPGRADE_REQUIRED,
                ErrorCode::BadRequest,
                "Sec-WebSocket-Version must be 13",
            );
            let version = HeaderValue::from_static("13");
            reply.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, version);
            return reply;
        }
        let place = match self.place(&account) {
            Ok(place) => place,
            Err(refused) => return *refused,
        };
        let agreed = agreed(headers);
        let opening = match agreed {
            Some((_, dialect)) => Opening::Accept(dialect),
            None => Opening::Refuse {
                code: CloseCode::NoSubprotocol,
                reason: "Subprotocol not acceptable: offer graphql-transport-ws",
            },
        };
        let rank = account.socket_rank();
        let upgrade = hyper::upgrade::on(&mut request);
        let http = self.clone();
        // Ends at the latest with the connection, which the header timeout bounds.
        self.connections.spawn_local(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let Ok(parts) = upgraded.downcast::<TokioIo<StallLimited>>() else {
                tracing::error!("an upgraded connection is no TCP stream");
                return;
            };
            let (socket, guard) = (parts.io.into_inner().into_inner(), Some(Box::new(place) as _));
            http.shard.adopt(socket, opening, &parts.read_buf, account, rank, guard);
        });
        let mut reply = Response::new(Either::Left(Full::default()));
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
}

pub fn wants_websocket(headers: &HeaderMap) -> bool {
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

/// The subprotocol that both sides know, with its name: of two the one that we prefer.
pub(crate) fn agreed(headers: &HeaderMap) -> Option<(&'static str, Dialect)> {
    [(GRAPHQL_TRANSPORT_WS, Dialect::TransportWs), (GRAPHQL_WS, Dialect::LegacyWs)]
        .into_iter()
        .find(|(name, _)| offers(headers, name))
}

fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|one| one.trim() == protocol)
}
