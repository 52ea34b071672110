//! The answers of the public port: their status, their headers, and what is wrong in words.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use spreadly_subscriptions::{ErrorCode, GraphqlError, millis};

use super::negotiation::Media;
use super::sse::Events;
use crate::budgets::{RateLimited, UnreadReplies};

/// How long an address in debt waits for the answer that says so. A refusal costs the hub as much
/// as a small answer, so a client that asks again at once must not get the next one at once.
pub const RATE_LIMITED_DELAY: Duration = Duration::from_millis(250);

/// A whole body, or one that comes piece by piece.
pub type Reply = Response<Either<Full<Bytes>, Events>>;

pub fn too_many(name: &str, limit: usize, current: usize) -> Reply {
    let message = format!("limit {name} is {limit}: close one before the next");
    let status = StatusCode::TOO_MANY_REQUESTS;
    limit_exceeded(status, name, limit, current, &message)
}

pub fn unread_replies(unread: UnreadReplies) -> Box<Reply> {
    let UnreadReplies { name, limit, current } = unread;
    let message = format!(
        "limit {name} is {limit}: read the replies that are on their way first, or ask for less"
    );
    Box::new(limit_exceeded(StatusCode::TOO_MANY_REQUESTS, name, limit, current, &message))
}

pub async fn rate_limited(limited: RateLimited) -> Reply {
    tokio::time::sleep(RATE_LIMITED_DELAY).await;
    let wait = millis(limited.retry_after);
    let body = limited.error().into_result_bytes();
    let mut reply = reply(StatusCode::TOO_MANY_REQUESTS, Media::Json, body);
    reply.headers_mut().insert(header::RETRY_AFTER, wait.div_ceil(1_000).max(1).into());
    reply
}

pub fn limit_exceeded(
    status: StatusCode,
    name: &str,
    limit: usize,
    current: usize,
    message: &str,
) -> Reply {
    let error = GraphqlError::limit_exceeded(name, limit, current, message);
    reply(status, Media::Json, error.into_result_bytes())
}

pub fn bad_request(message: &str) -> Reply {
    refusal(StatusCode::BAD_REQUEST, ErrorCode::BadRequest, message)
}

pub fn not_allowed(allow: &'static str, message: &str) -> Reply {
    let mut reply = refusal(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::BadRequest, message);
    reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    reply
}

pub fn refusal(status: StatusCode, code: ErrorCode, message: &str) -> Reply {
    reply(status, Media::Json, error_body(code, message))
}

pub fn error_body(code: ErrorCode, message: &str) -> Bytes {
    GraphqlError::new(code, message).into_result_bytes()
}

pub fn reply(status: StatusCode, media: Media, body: Bytes) -> Reply {
    let mut reply = of_type(media.content_type(), Either::Left(Full::new(body)));
    *reply.status_mut() = status;
    reply
}

pub fn event_stream(body: Either<Full<Bytes>, Events>) -> Reply {
    let mut reply = of_type("text/event-stream; charset=utf-8", body);
    let headers = reply.headers_mut();
    // Proxies that gather an answer before they pass it on (nginx) don't do so then, nor those that
    // compress it.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    let uncompressed = HeaderValue::from_static("no-store, no-transform");
    headers.insert(header::CACHE_CONTROL, uncompressed);
    reply
}

/// To a browser that returns although nothing follows: it stops.
pub fn no_content() -> Reply {
    let mut reply = Response::new(Either::Left(Full::default()));
    *reply.status_mut() = StatusCode::NO_CONTENT;
    let headers = reply.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

fn of_type(content: &'static str, body: Either<Full<Bytes>, Events>) -> Reply {
    let mut reply = Response::new(body);
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    // Each event may change the result, and the `Accept` header chooses its form (`negotiation`).
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    reply
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_in_debt_gets_its_429_a_quarter_of_a_second_late() {
        let began = Instant::now();
        let reply = rate_limited(RateLimited { rate: 1, retry_after: Duration::ZERO }).await;
        assert_eq!(began.elapsed(), RATE_LIMITED_DELAY);
        assert_eq!(reply.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(reply.headers()[header::RETRY_AFTER], "1");
    }
}
