//! What a client of GraphQL over HTTP sends and takes: its `Content-Type`, its `Accept`, and which
//! status code belongs to which outcome.

use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{StatusCode, Version};
use spreadly_subscriptions::ErrorCode;

use crate::config::HttpStatus;

/// A media type in which results are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// `application/json`, the older type. A proxy may use it too, so a client can't know whose
    /// error it is.
    Json,
    /// `application/graphql-response+json`
    GraphqlResponse,
}

impl Media {
    /// The value of a `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json; charset=utf-8",
            Self::GraphqlResponse => "application/graphql-response+json; charset=utf-8",
        }
    }

    fn essence(self) -> (&'static str, &'static str) {
        match self {
            Self::Json => ("application", "json"),
            Self::GraphqlResponse => ("application", "graphql-response+json"),
        }
    }

    /// The type that the client prefers, and of equals the one that it lists first. It is the first
    /// of ours without an `Accept` header, or with `*/*`. `None` if the client takes neither.
    pub fn accepted(headers: &HeaderMap, codes: HttpStatus) -> Option<Self> {
        let ours = match codes {
            HttpStatus::Audited => [Self::Json, Self::GraphqlResponse],
            HttpStatus::Draft => [Self::GraphqlResponse, Self::Json],
        };
        if !headers.contains_key(header::ACCEPT) {
            return Some(ours[0]);
        }
        let ranges: Vec<Range<'_>> = elements(headers).filter_map(Range::parse).collect();
        let liked = ours.into_iter().filter_map(|media| {
            let weight = weight(&ranges, media).filter(|weight| weight.thousandths > 0)?;
            Some((media, weight))
        });
        // The first of those that nothing beats.
        let best = liked.reduce(|best, next| match next.1.beats(best.1) {
            true => next,
            false => best,
        });
        best.map(|(media, _)| media)
    }
}

/// The types of answers that a client takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepts {
    /// `None` if neither of the two is accepted.
    pub media: Option<Media>,
    /// Server-sent events, asked for by name.
    pub events: bool,
}

impl Accepts {
    pub fn of(headers: &HeaderMap, status: HttpStatus) -> Self {
        Self { media: Media::accepted(headers, status), events: takes_events(headers) }
    }
}

/// Whether the client asks for server-sent events by name. `*/*` does not count: such a client may
/// read only complete bodies.
fn takes_events(headers: &HeaderMap) -> bool {
    elements(headers)
        .filter_map(Range::parse)
        .any(|range| range.is("text", "event-stream") && range.thousandths > 0)
}

fn elements(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|one| !one.is_empty())
}

/// One range of an `Accept` (RFC 9110, 12.5.1); parameters other than `q` are passed over.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    thousandths: u16,
}

impl<'a> Range<'a> {
    fn parse(element: &'a str) -> Option<Self> {
        let mut parts = element.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let q = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("q").then(|| value.trim())
        });
        let q: f32 = q.map_or(Ok(1.0), str::parse).ok()?;
        let thousandths = (0.0..=1.0).contains(&q).then_some((q * 1_000.0) as u16)?;
        Some(Self { kind, subtype, thousandths })
    }

    /// How closely it names a media type; `None` if it doesn't.
    fn closeness(&self, media: Media) -> Option<u8> {
        let (kind, subtype) = media.essence();
        match (self.kind, self.subtype) {
            ("*", "*") => Some(0),
            (one, "*") if one.eq_ignore_ascii_case(kind) => Some(1),
            _ if self.is(kind, subtype) => Some(2),
            _ => None,
        }
    }

    fn is(&self, kind: &str, subtype: &str) -> bool {
        self.kind.eq_ignore_ascii_case(kind) && self.subtype.eq_ignore_ascii_case(subtype)
    }
}

#[derive(Clone, Copy)]
struct Weight {
    thousandths: u16,
    place: usize,
}

impl Weight {
    fn beats(self, other: Self) -> bool {
        (self.thousandths, other.place) > (other.thousandths, self.place)
    }
}

/// What the range says that names the type most closely.
fn weight(ranges: &[Range<'_>], media: Media) -> Option<Weight> {
    let named = ranges.iter().enumerate().filter_map(|(place, range)| {
        let weight = Weight { thousandths: range.thousandths, place };
        Some((range.closeness(media)?, weight))
    });
    named.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, weight)| weight)
}

/// Whether a request names its host as it must (RFC 9112, 3.2); if not, the reason of a 400.
pub fn check_host(version: Version, headers: &HeaderMap) -> Result<(), &'static str> {
    let is_readable = |host: &HeaderValue| {
        let host = host.to_str().ok().filter(|host| !host.contains('@'));
        host.is_some_and(|host| host.is_empty() || host.parse::<Authority>().is_ok())
    };
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err("there are two Host headers: send one"),
        (None, None) if version >= Version::HTTP_11 => {
            Err("the header Host is missing: send the host and port of the URL")
        }
        (Some(host), None) if !is_readable(host) => {
            Err("the header Host must be a host, with a port or without one")
        }
        _ => Ok(()),
    }
}

/// Whether a body is JSON in UTF-8, uncompressed; if not, the reason of a 415.
pub fn check_content(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(content), None) = (types.next(), types.next()) else {
        return Err("one Content-Type is needed, application/json");
    };
    let mut parts = content.to_str().unwrap_or_default().split(';').map(str::trim);
    if !parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        return Err("Content-Type must be application/json");
    }
    let utf8 = parts.filter_map(|part| part.split_once('=')).all(|(name, value)| {
        !name.trim().eq_ignore_ascii_case("charset")
            || value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    if !utf8 {
        return Err("the charset must be utf-8");
    }
    match headers.get(header::CONTENT_ENCODING).map(|coding| coding.as_bytes()) {
        None | Some(b"identity") => Ok(()),
        Some(_) => Err("a compressed body is not taken: leave Content-Encoding out"),
    }
}

/// What became of a request that was understood as one of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran, maybe with errors beside its data.
    Ran { errors: bool },
    /// The body is no JSON.
    NotJson,
    /// It is JSON, and no GraphQL request: a field is missing or of the wrong type.
    Malformed,
    /// Refused before it ran, with the code of its first error.
    Refused(ErrorCode),
}

/// The seconds of a `Retry-After`, rounded up, where the first of some errors says when to try
/// again.
pub fn retry_after(errors: &[u8]) -> Option<u64> {
    let errors: serde_json::Value = serde_json::from_slice(errors).ok()?;
    let millis = errors[0]["extensions"]["retryAfterMs"].as_u64()?;
    Some(millis.div_ceil(1_000).max(1))
}

/// Data came, and errors with it. Not registered; a client that doesn't know it takes it for 200.
const PARTIAL_SUCCESS: u16 = 294;

/// The status of a request that was refused before it ran, in GraphQL's own media type.
pub fn refusal_status(code: ErrorCode) -> u16 {
    status(HttpStatus::Audited, Media::GraphqlResponse, Outcome::Refused(code)).0.as_u16()
}

/// The status of an answer, and its media type.
pub fn status(codes: HttpStatus, media: Media, outcome: Outcome) -> (StatusCode, Media) {
    let status = match (codes, outcome) {
        (HttpStatus::Draft, Outcome::Ran { errors: true }) => {
            StatusCode::from_u16(PARTIAL_SUCCESS).unwrap_or(StatusCode::OK)
        }
        (_, Outcome::Ran { .. }) => StatusCode::OK,
        (_, Outcome::NotJson) => StatusCode::BAD_REQUEST,
        // Also in JSON: what retries by itself looks at nothing but this.
        (_, Outcome::Refused(ErrorCode::RateLimited)) => StatusCode::TOO_MANY_REQUESTS,
        // A well-formed request gets 200: its client can't know who made an error in JSON.
        (HttpStatus::Audited, Outcome::Refused(_)) if media == Media::Json => StatusCode::OK,
        (_, Outcome::Refused(ErrorCode::Unauthenticated)) => StatusCode::UNAUTHORIZED,
        (_, Outcome::Refused(ErrorCode::Forbidden)) => StatusCode::FORBIDDEN,
        (_, Outcome::Refused(ErrorCode::Internal)) => StatusCode::INTERNAL_SERVER_ERROR,
        (_, Outcome::Refused(ErrorCode::Unavailable)) => StatusCode::SERVICE_UNAVAILABLE,
        (HttpStatus::Audited, Outcome::Malformed | Outcome::Refused(_))
        | (_, Outcome::Refused(ErrorCode::BadRequest)) => StatusCode::BAD_REQUEST,
        (HttpStatus::Draft, Outcome::Malformed | Outcome::Refused(_)) => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
    };
    // The draft: what is no success is sent in GraphQL's own media type, whatever was asked for.
    let own = codes == HttpStatus::Draft && !status.is_success();
    (status, if own { Media::GraphqlResponse } else { media })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(accept: &[&str], codes: HttpStatus) -> Option<Media> {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, value.parse().unwrap());
        }
        Media::accepted(&headers, codes)
    }

    #[test]
    fn the_client_is_answered_in_what_it_likes_most() {
        let (json, own) = (Some(Media::Json), Some(Media::GraphqlResponse));
        for (accept, audited, draft) in [
            (vec![], json, own),
            (vec!["*/*"], json, own),
            (vec!["application/*"], json, own),
            (vec!["application/json"], json, json),
            (vec!["Application/JSON; charset=utf-8"], json, json),
            (vec!["application/graphql-response+json"], own, own),
            (vec!["application/graphql-response+json, application/json"], own, own),
            (vec!["application/json, application/graphql-response+json"], json, json),
            (vec!["application/json;q=0.8", "application/graphql-response+json;q=0.9"], own, own),
            (vec!["application/json;q=0.5, */*;q=0.1"], json, json),
            (vec!["*/*, application/json;q=0"], own, own),
            (vec!["application/graphql-response+json;q=0, */*;q=0.001"], json, json),
            (vec!["text/html"], None, None),
            (vec!["application/json;q=0"], None, None),
            (vec!["application/json;q=no"], None, None),
            (vec![""], None, None),
        ] {
            assert_eq!(accepted(&accept, HttpStatus::Audited), audited, "{accept:?}");
            assert_eq!(accepted(&accept, HttpStatus::Draft), draft, "{accept:?}");
        }
    }

    #[test]
    fn a_request_names_one_host() {
        let check = |version: Version, hosts: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, HeaderValue::from_static(host));
            }
            check_host(version, &headers)
        };
        for host in ["hub.example", "hub.example:4000", "127.0.0.1:4000", "[::1]:4000", ""] {
            assert_eq!(check(Version::HTTP_11, &[host]), Ok(()), "{host}");
        }
        for host in ["hub example", "hub.example/", "user@hub.example", "[::1"] {
            let fault = check(Version::HTTP_11, &[host]).unwrap_err();
            assert!(fault.contains("must be a host"), "{host}: {fault}");
        }
        assert!(check(Version::HTTP_11, &[]).unwrap_err().contains("is missing"));
        assert!(check(Version::HTTP_11, &["a", "a"]).unwrap_err().contains("two Host headers"));
        // A balancer's check of health may speak the older version, which has no such header.
        assert_eq!(check(Version::HTTP_10, &[]), Ok(()));
    }

    #[test]
    fn only_json_in_utf8_is_taken() {
        let check = |content: &str, coding: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.append(header::CONTENT_TYPE, content.parse().unwrap());
            if let Some(coding) = coding {
                headers.append(header::CONTENT_ENCODING, coding.parse().unwrap());
            }
            check_content(&headers).is_ok()
        };
        for good in ["application/json", "Application/JSON;charset=\"UTF-8\"", "application/json;a"]
        {
            assert!(check(good, None), "{good}");
        }
        for bad in [
            "text/plain",
            "multipart/form-data; boundary=x",
            "application/x-www-form-urlencoded",
            "application/json; charset=latin1",
            "application/jsonp",
            "",
        ] {
            assert!(!check(bad, None), "{bad}");
        }
        assert!(!check("application/json", Some("gzip")));
        assert!(check("application/json", Some("identity")));
        assert!(check_content(&HeaderMap::new()).is_err());
    }

    #[test]
    fn each_outcome_has_its_code() {
        let refused = |code| Outcome::Refused(code);
        for (outcome, json, own, draft) in [
            (Outcome::Ran { errors: false }, 200, 200, 200),
            (Outcome::Ran { errors: true }, 200, 200, 294),
            (Outcome::NotJson, 400, 400, 400),
            (Outcome::Malformed, 400, 400, 422),
            (refused(ErrorCode::BadRequest), 200, 400, 400),
            (refused(ErrorCode::NotFound), 200, 400, 422),
            (refused(ErrorCode::Unauthenticated), 200, 401, 401),
            (refused(ErrorCode::Forbidden), 200, 403, 403),
            (refused(ErrorCode::RateLimited), 429, 429, 429),
            (refused(ErrorCode::Internal), 200, 500, 500),
            (refused(ErrorCode::Unavailable), 200, 503, 503),
        ] {
            let answered = |codes, media| {
                let (status, media) = status(codes, media, outcome);
                (status.as_u16(), media)
            };
            assert_eq!(answered(HttpStatus::Audited, Media::Json), (json, Media::Json));
            let media = Media::GraphqlResponse;
            assert_eq!(answered(HttpStatus::Audited, media), (own, media));
            assert_eq!(answered(HttpStatus::Draft, media), (draft, media));
            let expected = if draft < 300 { Media::Json } else { media };
            assert_eq!(answered(HttpStatus::Draft, Media::Json), (draft, expected));
        }
    }
}
