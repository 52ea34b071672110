//! The public port: which request goes where, and GraphQL over HTTP.

use std::cell::Cell;
use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use spreadly_subscriptions::{
    ErrorCode, Execution, Executor, Grant, OperationKind, Shard, SingleResult,
};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::arrival::Arrival;
use super::body::ReadFault;
use super::connection_limits::is_trusted;
use super::cors::{self, Asked};
use super::delivery::Delivery;
use super::forwarded::client_address;
use super::header_clock::HeaderClock;
use super::negotiation::{self, Accepts, Media, Outcome};
use super::proxy_protocol::ProxyProtocol;
use super::refusing::Refusing;
use super::response::{
    RATE_LIMITED_DELAY, Reply, bad_request, error_body, event_stream, limit_exceeded, no_content,
    not_allowed, rate_limited, refusal, reply, too_many, unread_replies,
};
use super::sse::{self, Back, Pace, Terms};
use super::stall_limit::StallLimited;
use super::upgrade::wants_websocket;
use super::waiting_connections::WaitingPlace;
use super::{assets, body};
use crate::budgets::{Accounts, ClientAccount, ConnectionPlace, ExceededLimit, Work};
use crate::config::{AddressHeader, HttpStatus, Network, Origins};

/// Most headers of one request; browsers send about twenty.
const MOST_HEADERS: usize = 64;
/// How long one of them has to say what it wants.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// What the public port keeps to, from the config.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    pub origins: Origins,
    /// Peers whose `address_header` is believed.
    pub trusted_proxies: Vec<Network>,
    pub address_header: AddressHeader,
    pub proxy_protocol: ProxyProtocol,
    /// From the first byte of a request to the end of its headers.
    pub header_timeout: Duration,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    pub header_bytes: usize,
    /// From the end of a request's headers to the end of its body.
    pub body_timeout: Duration,
    /// For the check of a request's credentials, as for those of a socket.
    pub init_timeout: Duration,
    pub message_bytes: usize,
    /// Of the client of a stream of events.
    pub pace: Pace,
    /// Whose status codes a GraphQL response has.
    pub status: HttpStatus,
    pub responses: Arc<super::responses::ResponseMeters>,
}

/// The public port as one shard serves it.
pub struct Http<E: Executor> {
    pub config: Arc<HttpConfig>,
    pub accounts: Arc<Accounts>,
    pub executor: Arc<E>,
    pub shard: Rc<Shard<TcpStream, E>>,
    /// Each answer is the last of its connection: the hub goes away.
    pub leaving: Cell<bool>,
    /// No further request is read from a connection.
    pub closing: CancellationToken,
    /// Connections that are kept only to be answered that their address has too many.
    pub refusing: Cell<usize>,
    /// Those that are WebSockets are the shard's and leave this soon.
    pub connections: TaskTracker,
}

/// The connection that a request came on.
struct Peer {
    address: IpAddr,
    /// By a proxy of ours, whatever the address.
    passed_on: bool,
    /// Of the address itself: the client's, unless the peer is a proxy of ours.
    account: Arc<ClientAccount>,
    /// How many connections the address has, where this one is too many.
    too_many: Option<usize>,
    /// Ends the connection, whatever is still to be sent on it.
    cut: Arc<Notify>,
    delivery: Arc<Delivery>,
}

impl<E: Executor<Client = Arc<ClientAccount>>> Http<E> {
    /// Serves one TCP connection until it ends or becomes a WebSocket.
    pub async fn serve(self: Rc<Self>, waiting: WaitingPlace, stream: TcpStream, peer: SocketAddr) {
        let http = self.clone();
        let Some((stream, arrival)) = self.arrival(waiting, stream, peer.ip()).await else {
            return;
        };
        let Arrival { address, passed_on, waiting } = arrival;
        let account = self.accounts.of(address);
        // A proxy's connections are those of its clients.
        let proxied = is_trusted(address, &self.config.trusted_proxies);
        if !proxied {
            account.spend(Work::Connection, 1);
        }
        let (_place, too_many) = match (!proxied).then(|| account.enter_connection()).transpose() {
            Ok(place) => (place, None),
            Err(current) => (None, Some(current)),
        };
        let _refusing = match too_many.map(|_| Refusing::begin(&self)) {
            Some(None) => return,
            refusing => refusing,
        };
        let header_timeout = match too_many {
            Some(_) => self.config.header_timeout.min(REFUSAL_TIMEOUT),
            None => self.config.header_timeout,
        };
        let payer = account.clone();
        let cut = waiting.cut().clone();
        // Dropped after the connection, as it says then that a descriptor is free.
        let headers = HeaderClock::new(header_timeout);
        let delivery = Arc::new(Delivery::new((!proxied).then_some(waiting), headers));
        let caller = Peer {
            address,
            passed_on,
            account,
            too_many,
            cut: cut.clone(),
            delivery: delivery.clone(),
        };
        let caller = Rc::new(caller);
        let service = service_fn(move |request| {
            let (http, caller) = (http.clone(), caller.clone());
            async move {
                caller.delivery.headers.request();
                let asked = Asked::of(&http.config.origins, &request);
                let mut reply = http.clone().answer(request, &caller).await;
                http.config.responses.count(reply.status());
                asked.mark(&mut reply);
                if http.leaving.get() && reply.status() != StatusCode::SWITCHING_PROTOCOLS {
                    let close = HeaderValue::from_static("close");
                    reply.headers_mut().insert(header::CONNECTION, close);
                }
                // A stream of events ends later.
                if let Either::Left(_) = reply.body() {
                    caller.delivery.wait();
                    caller.delivery.headers.answered();
                }
                Ok::<_, Infallible>(reply)
            }
        });
        let stream = StallLimited::new(stream, self.config.pace.stall, delivery.clone());
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            // Also between two requests. The delivery's clock has the shorter time for headers.
            .header_read_timeout(self.config.idle_timeout)
            .max_buf_size(self.config.header_bytes)
            .max_headers(MOST_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let begun = async {
            // From its first turn on it waits for its client.
            delivery.wait();
            connection.as_mut().await
        };
        let served = tokio::select! {
            served = self.shard.in_turn(&payer, begun) => served,
            () = cut.notified() => return,
            () = self.closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    served = self.shard.in_turn(&payer, connection) => served,
                    () = cut.notified() => return,
                }
            }
        };
        if let Err(error) = served {
            let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
            if cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut) {
                self.accounts.meters().refuse(ExceededLimit::UnreadReply);
            }
            tracing::debug!(%peer, %error, "connection ended");
        }
    }

    async fn answer(self: Rc<Self>, request: Request<Incoming>, caller: &Peer) -> Reply {
        if let Some(current) = caller.too_many {
            let limit = self.accounts.limits().connections();
            let mut reply = too_many("connections_per_address", limit, current);
            reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return reply;
        }
        // Before anything is read of a body.
        let account = self.account(request.headers(), caller);
        let work = match wants_websocket(request.headers()) {
            true => Work::Connection,
            false => Work::Request,
        };
        if let Err(limited) = account.admit(work, 1) {
            return rate_limited(limited).await;
        }
        if let Err(fault) = negotiation::check_host(request.version(), request.headers()) {
            return bad_request(fault);
        }
        if let Some(refused) = cors::foreign_host(&self.config, caller.passed_on, request.headers())
        {
            return refused;
        }
        if let Some(page) =
            assets::answer(request.method(), request.uri().path(), request.headers())
        {
            return page.map(Either::Left);
        }
        match (request.method(), request.uri().path()) {
            // This holds for POST too: a browser sends some POSTs of another origin without a
            // preflight request.
            (_, "/graphql") if !cors::allows(&self.config.origins, request.headers()) => {
                cors::foreign()
            }
            (&Method::GET, "/graphql") if wants_websocket(request.headers()) => {
                self.upgrade(request, account)
            }
            (&Method::GET | &Method::POST, "/graphql") => {
                let accepts = Accepts::of(request.headers(), self.config.status);
                if accepts == (Accepts { media: None, events: false }) {
                    return refusal(
                        StatusCode::NOT_ACCEPTABLE,
                        ErrorCode::BadRequest,
                        "Accept must allow application/graphql-response+json or application/json",
                    );
                }
                self.graphql(request, accepts, caller, account)
                    .await
                    .unwrap_or_else(|refused| *refused)
            }
            (&Method::OPTIONS, "/graphql") => cors::options(),
            (_, "/graphql") => cors::wrong_method(),
            _ => refusal(
                StatusCode::NOT_FOUND,
                ErrorCode::NotFound,
                "nothing is here: GraphQL is at /graphql, over WebSocket, POST or GET",
            ),
        }
    }

    /// The account that pays for a request.
    fn account(&self, headers: &HeaderMap, peer: &Peer) -> Arc<ClientAccount> {
        let HttpConfig { address_header, trusted_proxies, .. } = &*self.config;
        let client = client_address(peer.address, headers, *address_header, trusted_proxies);
        match client == peer.address {
            true => peer.account.clone(),
            false => self.accounts.of(client),
        }
    }

    /// A place among the sockets of an address, or the answer that there is none.
    pub(super) fn place(
        &self,
        account: &Arc<ClientAccount>,
    ) -> Result<ConnectionPlace, Box<Reply>> {
        let limit = self.accounts.limits().sockets_per_address;
        let full = |current| Box::new(too_many("sockets_per_address", limit, current));
        account.enter_socket().map_err(full)
    }

    // ---- GraphQL over HTTP ----

    /// The error is an answer too: it says what is wrong with the request.
    async fn graphql(
        &self,
        request: Request<Incoming>,
        accepts: Accepts,
        caller: &Peer,
        account: Arc<ClientAccount>,
    ) -> Result<Reply, Box<Reply>> {
        let media = accepts.media.unwrap_or(Media::Json);
        let headers = request.headers().clone();
        let by_get = request.method() == Method::GET;
        let parsed = if by_get {
            body::from_url(request.uri().query().unwrap_or_default())
        } else {
            negotiation::check_content(&headers).map_err(|reason| {
                Box::new(refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, ErrorCode::BadRequest, reason))
            })?;
            let body = self.body(request, &account).await?;
            account.spend(Work::Kib, body.len() >> 10);
            account.measure(|| body::from_body(&body))
        };
        caller.delivery.work();
        let mut request = parsed.map_err(|fault| {
            let body = error_body(ErrorCode::BadRequest, &fault.to_string());
            Box::new(self.response(media, fault.outcome(), body))
        })?;
        let Grant { principal, expires_at } = self.authenticate(&headers, &account).await?;
        let (mut place, mut resumed) = (None, false);
        match account.measure(|| self.executor.kind(&request, &principal)) {
            // A GET is what a link or an image of any page can cause.
            Some(OperationKind::Mutation) if by_get => {
                return Err(Box::new(not_allowed("POST", "a mutation is not run by GET: POST it")));
            }
            Some(OperationKind::Query | OperationKind::Subscription)
                if accepts.events && sse::is_done(&headers) =>
            {
                return Ok(no_content());
            }
            Some(OperationKind::Subscription) if !accepts.events => {
                return Err(Box::new(refusal(
                    StatusCode::NOT_ACCEPTABLE,
                    ErrorCode::BadRequest,
                    "a subscription is sent as text/event-stream: accept it, or open a WebSocket",
                )));
            }
            Some(OperationKind::Subscription) => {
                place = Some(self.place(&account)?);
                let extensions = request.extensions.get_or_insert_default();
                // What an event's id is made of.
                extensions.insert("cursor".to_owned(), true.into());
                if let Some(id) = sse::last_event_id(&headers) {
                    resumed = true;
                    extensions.insert("after".to_owned(), id.into());
                }
            }
            _ => {}
        }
        let execution = account.measure(|| self.executor.execute(request, &principal));
        Ok(match (execution, place) {
            (Execution::Single(result), _) => match result.await {
                Ok(result) => {
                    let place = account.enter_reply(result.json.len()).map_err(unread_replies)?;
                    caller.delivery.begin_reply(place);
                    self.ran(accepts, result)
                }
                Err(errors) => self.refused(accepts, &errors, resumed).await,
            },
            (Execution::Refused(errors), _) => self.refused(accepts, &errors, resumed).await,
            (Execution::Stream { stream, after, permit }, Some(place)) => {
                let reader = self.shard.read(stream, after, permit);
                let (cut, delivery) = (caller.cut.clone(), caller.delivery.clone());
                let pace = self.config.pace;
                let terms = Terms { pace, expires_at, resumed };
                let events = sse::start(reader, terms, cut, place, delivery);
                event_stream(Either::Right(events))
            }
            (Execution::Stream { stream, .. }, None) => {
                debug_assert!(false, "the kind of a request is what its execution is");
                self.shard.release(&stream);
                bad_request("a subscription is a text/event-stream")
            }
        })
    }

    /// The result of a query or mutation.
    fn ran(&self, accepts: Accepts, result: SingleResult) -> Reply {
        match accepts.media {
            Some(media) => {
                let errors = result.has_errors;
                self.response(media, Outcome::Ran { errors }, result.json)
            }
            None => {
                let event = sse::whole(&result.json, Back::Done);
                event_stream(Either::Left(Full::new(event)))
            }
        }
    }

    /// Errors from before anything ran; `resumed` where the client came back to a stream.
    async fn refused(&self, accepts: Accepts, errors: &[u8], resumed: bool) -> Reply {
        let code = ErrorCode::of_first(errors).unwrap_or(ErrorCode::Internal);
        if code == ErrorCode::RateLimited {
            tokio::time::sleep(RATE_LIMITED_DELAY).await;
        } else if accepts.media.is_none() {
            let refusal = sse::refusal(errors, resumed);
            return event_stream(Either::Left(Full::new(refusal)));
        }
        let media = accepts.media.unwrap_or(Media::Json);
        let body = [b"{\"errors\":".as_slice(), errors, b"}"].concat();
        let mut reply = self.response(media, Outcome::Refused(code), body.into());
        if let Some(wait) = negotiation::retry_after(errors) {
            reply.headers_mut().insert(header::RETRY_AFTER, wait.into());
        }
        reply
    }

    /// The body of a POST. The error is an answer.
    async fn body(
        &self,
        request: Request<Incoming>,
        account: &ClientAccount,
    ) -> Result<Bytes, Box<Reply>> {
        let most = self.config.message_bytes;
        // As announced; a body in chunks is only known to be longer than the limit.
        let announced = request.body().size_hint().lower();
        let read = body::read(request.into_body(), most, account);
        match tokio::time::timeout(self.config.body_timeout, read).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(ReadFault::RateLimited(limited))) => Err(Box::new(rate_limited(limited).await)),
            Ok(Err(ReadFault::TooLarge)) => {
                let current = usize::try_from(announced).unwrap_or(usize::MAX).max(most + 1);
                let message = format!("limit message_bytes is {most}: send less at once");
                let status = StatusCode::PAYLOAD_TOO_LARGE;
                Err(Box::new(limit_exceeded(status, "message_bytes", most, current, &message)))
            }
            Err(_) => Err(Box::new(refusal(
                StatusCode::REQUEST_TIMEOUT,
                ErrorCode::BadRequest,
                &format!("the body did not end in {} ms", self.config.body_timeout.as_millis()),
            ))),
        }
    }

    fn response(&self, media: Media, outcome: Outcome, body: Bytes) -> Reply {
        let (status, media) = negotiation::status(self.config.status, media, outcome);
        reply(status, media, body)
    }
}
