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
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

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
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
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
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                served = served => {
                    if let Err(error) = served {
                        tracing::debug!(%error, "admin connection ended");
                    }
                }
                () = stop.cancelled() => {}
            }
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
