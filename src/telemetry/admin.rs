//! The admin port: `/livez`, `/readyz`, `/metrics`. Its own port, so that it is never open to the
//! public by mistake.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections that are served at once. Further ones wait in the kernel's backlog.
const ADMIN_CONNECTIONS: usize = 64;
/// Time for a connection's request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection, which serves one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// One dependency as `/readyz` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Dependency {
    pub name: String,
    pub ready: bool,
    /// Why not, or how it is.
    pub detail: String,
}

/// What the admin port asks the hub.
pub struct AdminSource {
    pub readiness: Box<dyn Fn() -> Vec<Dependency> + Send + Sync>,
    /// Prometheus text.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
}

pub async fn run(
    listener: TcpListener,
    source: Arc<AdminSource>,
    stop: CancellationToken,
    tracker: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
    loop {
        let accepting = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let accepted = tokio::select! {
            accepted = accepting => accepted,
            () = stop.cancelled() => return,
        };
        let (place, Ok((stream, _))) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (source, stop) = (source.clone(), stop.clone());
        tracker.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let reply = answer(request.uri().path(), &source);
                async move { Ok::<_, Infallible>(reply) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                served = tokio::time::timeout(REQUEST_TIMEOUT, served) => match served {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "admin connection ended"),
                    Err(_) => tracing::debug!("admin connection timed out"),
                },
                () = stop.cancelled() => {}
            }
            drop(place);
        });
    }
}

fn answer(path: &str, source: &AdminSource) -> Response<Full<Bytes>> {
    match path {
        "/livez" => reply(StatusCode::OK, "text/plain; charset=utf-8", "ok\n".to_owned()),
        "/readyz" => {
            let rows = (source.readiness)();
            let ready = rows.iter().all(|row| row.ready);
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let text = rows.iter().filter_map(|row| serde_json::to_string(row).ok());
            let text = text.collect::<Vec<_>>().join("\n") + "\n";
            reply(status, "application/x-ndjson", text)
        }
        "/metrics" => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            reply(StatusCode::OK, kind, (source.metrics)())
        }
        _ => {
            let text = "here are /livez, /readyz and /metrics\n".to_owned();
            reply(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", text)
        }
    }
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(Bytes::from(text)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::Instant;

    use super::*;

    /// The answer to a request that comes after `open` connections that send no request, and the
    /// time until it is there. The clock is tokio's own, which is paused.
    async fn asked_after(open: usize) -> (String, Duration) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let source = AdminSource { readiness: Box::new(Vec::new), metrics: Box::new(String::new) };
        let stop = CancellationToken::new();
        tokio::spawn(run(listener, Arc::new(source), stop.clone(), TaskTracker::new()));
        let mut silent = Vec::new();
        for _ in 0..open {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let began = Instant::now();
        let mut asking = TcpStream::connect(address).await.unwrap();
        asking.write_all(b"GET /livez HTTP/1.1\r\nhost: hub\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        stop.cancel();
        (answer, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_ask_nothing_keep_the_admin_port_from_nobody_for_long() {
        let (answer, waited) = asked_after(ADMIN_CONNECTIONS - 1).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(waited < HEADER_TIMEOUT, "{waited:?}");
        let (answer, waited) = asked_after(ADMIN_CONNECTIONS).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!((HEADER_TIMEOUT..REQUEST_TIMEOUT).contains(&waited), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_admin_reply_that_nobody_reads_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Box::new(|| "x".repeat(64 << 20));
        let source = AdminSource { readiness: Box::new(Vec::new), metrics };
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        tokio::spawn(run(listener, Arc::new(source), stop.clone(), tracker.clone()));
        let mut asking = TcpStream::connect(address).await.unwrap();
        asking.write_all(b"GET /metrics HTTP/1.1\r\nhost: hub\r\n\r\n").await.unwrap();
        asking.readable().await.unwrap();
        assert_eq!(tracker.len(), 1);
        tokio::time::sleep(REQUEST_TIMEOUT).await;
        tracker.close();
        tracker.wait().await;
    }
}
