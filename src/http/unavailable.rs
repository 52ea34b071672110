//! The public port of a hub that has no state yet: it says so instead of letting clients wait.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use spreadly_subscriptions::{ErrorCode, GraphqlError};
use tokio::sync::Semaphore;

use super::negotiation::Accepts;
use super::proxy_protocol::ProxyProtocol;
use super::response::{Reply, event_stream, refusal};
use super::sse;
use crate::config::HttpStatus;

/// Connections that are answered at once; others wait in the kernel's backlog.
const MOST_ANSWERED: usize = 64;
/// How long one of them may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// When the client should ask again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const MESSAGE: &str = "the hub has no state yet, as its log can't be used: ask again";

/// Answers every request that it is unavailable, until it is dropped. Clients that are connected
/// then still get their answer.
pub async fn answer(
    listener: &TcpListener,
    status: HttpStatus,
    proxy_protocol: &ProxyProtocol,
) -> io::Result<Infallible> {
    let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
    let places = Arc::new(Semaphore::new(MOST_ANSWERED));
    loop {
        let place = places.clone().acquire_owned().await;
        let Ok((mut stream, peer)) = listener.accept().await else {
            // Of descriptors that are missing, for example.
            tokio::time::sleep(ANSWER_TIMEOUT).await;
            continue;
        };
        let proxy_protocol = proxy_protocol.clone();
        tokio::spawn(async move {
            let begun = proxy_protocol.client(&mut stream, peer.ip());
            let Ok(Some(_)) = tokio::time::timeout(ANSWER_TIMEOUT, begun).await else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                let reply = unavailable(Accepts::of(request.headers(), status), &request);
                async move { Ok::<_, Infallible>(reply) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(ANSWER_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Who takes no answer in time is gone.
            drop(tokio::time::timeout(ANSWER_TIMEOUT, served).await);
            drop(place);
        });
    }
}

fn unavailable(accepts: Accepts, request: &Request<Incoming>) -> Reply {
    if accepts.media.is_none() && accepts.events {
        // A browser comes back after this, and never after a status of an error.
        let errors = GraphqlError::new(ErrorCode::Unavailable, MESSAGE)
            .retry_after(RETRY_AFTER)
            .into_list_bytes();
        let resumed = sse::last_event_id(request.headers()).is_some();
        return event_stream(Either::Left(Full::new(sse::refusal(&errors, resumed))));
    }
    let mut reply = refusal(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, MESSAGE);
    let headers = reply.headers_mut();
    headers.insert(header::RETRY_AFTER, RETRY_AFTER.as_secs().into());
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    reply
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::Instant;

    use super::*;
    use crate::http::listener::bind;

    /// The answer to a request that comes after `open` connections that send no request, and the
    /// time until it is there. The clock is tokio's own, which is paused.
    async fn asked_after(open: usize) -> (String, Duration) {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let answering = tokio::spawn(async move {
            answer(&listener, HttpStatus::Audited, &ProxyProtocol::default()).await
        });
        let mut silent = Vec::new();
        for _ in 0..open {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let began = Instant::now();
        let mut asking = TcpStream::connect(address).await.unwrap();
        asking.write_all(b"GET /graphql HTTP/1.1\r\nhost: hub\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        answering.abort();
        (answer, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_ask_nothing_delay_the_answer_that_there_is_no_state_by_a_second() {
        let (answer, waited) = asked_after(MOST_ANSWERED - 1).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(waited < ANSWER_TIMEOUT, "{waited:?}");
        let (answer, waited) = asked_after(MOST_ANSWERED).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(waited >= ANSWER_TIMEOUT, "{waited:?}");
    }
}
