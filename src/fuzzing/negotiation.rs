//! The headers of a request: what a client takes and offers. RFC 9110, 5.3: several lines of one
//! header mean the same as one line with all their values.

use hyper::header::{
    ACCEPT, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use spreadly_subscriptions::Dialect;

use crate::config::HttpStatus;
use crate::http::negotiation::{Accepts, Media, check_content};
use crate::http::upgrade::{agreed, wants_websocket};

/// By the first byte of a line.
const HEADERS: [HeaderName; 6] =
    [ACCEPT, CONTENT_TYPE, CONTENT_ENCODING, CONNECTION, UPGRADE, SEC_WEBSOCKET_PROTOCOL];
/// Those that are lists.
const LISTS: [HeaderName; 4] = [ACCEPT, CONNECTION, UPGRADE, SEC_WEBSOCKET_PROTOCOL];

/// Takes a header in each line: a digit that chooses its name, and its value. Returns whether the
/// hub could serve the request: as a WebSocket, as an event stream, or as GraphQL over HTTP.
pub fn negotiation(data: &[u8]) -> bool {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some((first, value)) = line.split_first() else { continue };
        let name = &HEADERS[usize::from(*first) % HEADERS.len()];
        // Others are refused before the hub sees the request.
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        if headers.try_append(name.clone(), value).is_err() {
            break;
        }
    }
    let answers = Answers::to(&headers);
    assert_eq!(answers, Answers::to(&joined(&headers)), "{headers:?}");
    answers.check(&headers);
    answers.socket.is_some() || answers.accepts[0].events || answers.accepts[0].media.is_some()
}

/// All that the hub reads in the headers.
#[derive(Debug, PartialEq)]
struct Answers {
    /// By the status codes of the hub's two settings.
    accepts: [Accepts; 2],
    content: Result<(), &'static str>,
    wants_websocket: bool,
    socket: Option<(&'static str, Dialect)>,
}

impl Answers {
    fn to(headers: &HeaderMap) -> Self {
        Self {
            accepts: [HttpStatus::Audited, HttpStatus::Draft]
                .map(|codes| Accepts::of(headers, codes)),
            content: check_content(headers),
            wants_websocket: wants_websocket(headers),
            socket: agreed(headers),
        }
    }

    fn check(&self, headers: &HeaderMap) {
        let says = |name: &HeaderName, word: &str| {
            headers.get_all(name).iter().any(|value| {
                String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase().contains(word)
            })
        };
        let [audited, draft] = self.accepts;
        assert_eq!(audited.events, draft.events);
        assert_eq!(audited.media.is_some(), draft.media.is_some());
        assert!(!audited.events || says(&ACCEPT, "text/event-stream"));
        match audited.media {
            Some(_) if !headers.contains_key(ACCEPT) => {
                assert_eq!(
                    (audited.media, draft.media),
                    (Some(Media::Json), Some(Media::GraphqlResponse))
                );
            }
            Some(_) => assert!(says(&ACCEPT, "application/") || says(&ACCEPT, "*/*")),
            None => assert!(headers.contains_key(ACCEPT)),
        }
        assert!(self.content.is_err() || says(&CONTENT_TYPE, "application/json"));
        assert!(
            !self.wants_websocket || says(&UPGRADE, "websocket") && says(&CONNECTION, "upgrade")
        );
        let offered = |name: &str| {
            let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
            let mut texts = values.filter_map(|value| value.to_str().ok());
            texts.any(|text| text.split(',').any(|one| one.trim_matches([' ', '\t']) == name))
        };
        let expected = match (offered("graphql-transport-ws"), offered("graphql-ws")) {
            (true, _) => Some(Dialect::TransportWs),
            (false, true) => Some(Dialect::LegacyWs),
            (false, false) => None,
        };
        assert_eq!(self.socket.map(|(_, dialect)| dialect), expected);
    }
}

/// The same headers with one line for each list. A value that is no text counts as empty, as the
/// hub passes over it.
fn joined(headers: &HeaderMap) -> HeaderMap {
    let mut joined = headers.clone();
    for name in LISTS.iter().filter(|name| headers.contains_key(*name)) {
        let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default());
        let values = values.collect::<Vec<_>>().join(", ");
        let value = HeaderValue::from_str(&values).expect("a list of texts is a text");
        joined.insert(name, value);
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::seeds;

    #[test]
    fn each_seed_of_headers_is_understood() {
        for seed in seeds("negotiation") {
            assert!(negotiation(&seed), "{}", String::from_utf8_lossy(&seed));
        }
    }

    proptest! {
        #[test]
        fn headers_in_several_lines_mean_the_same_as_in_one(
            lines in prop::collection::vec(
                (
                    0..HEADERS.len(),
                    prop::collection::vec(
                        "(\\*/\\*|application/\\*|[Aa]pplication/json|text/event-stream\
                            |application/graphql-response\\+json|upgrade|WebSocket|graphql-ws\
                            |graphql-transport-ws|gzip)?\
                            ( ?; ?(q|Q|charset)=(0|1|0\\.[0-9]{1,4}|utf-8|\"UTF-8\"|nan|-1))?",
                        0..4,
                    ),
                ),
                0..6,
            ),
        ) {
            let line = |(name, values): (usize, Vec<String>)| format!("{name}{}", values.join(","));
            negotiation(lines.into_iter().map(line).collect::<Vec<_>>().join("\n").as_bytes());
        }

        #[test]
        fn any_bytes_are_headers_or_are_passed_over(
            data in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            negotiation(&data);
        }
    }
}
