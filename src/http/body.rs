//! A GraphQL request as HTTP brings it: a body of JSON, or the query of a URL.

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value};
use spreadly_subscriptions::{MOST_JSON_VALUES, Request, has_too_many_values};

use super::negotiation::Outcome;
use crate::budgets::{ClientAccount, RateLimited, Work};

/// Why there is no request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the body is not UTF-8")]
    NotUtf8,
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    #[error("the body has more than {MOST_JSON_VALUES} JSON values: send less at once")]
    TooManyValues,
    #[error("batches are off: send one request at a time")]
    Batch,
    #[error("not a GraphQL request: {0}")]
    Malformed(String),
}

impl RequestError {
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotUtf8 | Self::NotJson(_) => Outcome::NotJson,
            Self::TooManyValues | Self::Batch | Self::Malformed(_) => Outcome::Malformed,
        }
    }
}

/// Why a body was not read to its end.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadFault {
    /// It is too large, or its client broke off.
    TooLarge,
    RateLimited(RateLimited),
}

/// Reads at most so many bytes. Each piece after the first one costs as much as a request.
pub async fn read(
    body: Incoming,
    most_bytes: usize,
    account: &ClientAccount,
) -> Result<Bytes, ReadFault> {
    let mut body = Limited::new(body, most_bytes);
    let mut bytes = BytesMut::new();
    while let Some(piece) = body.frame().await {
        let piece = piece.map_err(|_| ReadFault::TooLarge)?.into_data().unwrap_or_default();
        if !bytes.is_empty() {
            account.admit(Work::Request, 1).map_err(ReadFault::RateLimited)?;
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

fn malformed(reason: &str) -> RequestError {
    RequestError::Malformed(reason.to_owned())
}

/// From the body of a POST.
pub fn from_body(body: &[u8]) -> Result<Request, RequestError> {
    let text = std::str::from_utf8(body).map_err(|_| RequestError::NotUtf8)?;
    if has_too_many_values(text) {
        return Err(RequestError::TooManyValues);
    }
    let value =
        serde_json::from_str(text).map_err(|fault| RequestError::NotJson(fault.to_string()));
    match value? {
        Value::Object(fields) => from_fields(fields),
        Value::Array(_) => Err(RequestError::Batch),
        _ => Err(malformed("the body must be a JSON object")),
    }
}

/// From what follows the `?` of a GET: `query` and `operationName` as they are, `variables`
/// and `extensions` as JSON. Other names are not ours.
pub fn from_url(query: &str) -> Result<Request, RequestError> {
    let mut fields = Map::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let value = match &*name {
            "operationName" if value.is_empty() => Value::Null,
            "query" | "operationName" => Value::String(value.into_owned()),
            "variables" | "extensions" if value.is_empty() => Value::Null,
            "variables" | "extensions" => serde_json::from_str(&value)
                .map_err(|fault| malformed(&format!("'{name}' must be JSON: {fault}")))?,
            _ => continue,
        };
        if fields.insert(name.to_string(), value).is_some() {
            return Err(malformed(&format!("'{name}' is given twice")));
        }
    }
    from_fields(fields)
}

fn from_fields(fields: Map<String, Value>) -> Result<Request, RequestError> {
    Request::from_fields(fields).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_url_says_what_a_body_says() {
        let url = "query=query%20A(%24x%3AInt)+%7B__typename%7D&operationName=A\
                   &variables=%7B%22x%22%3A1%7D&extensions=%7B%22e%22%3Anull%7D&other=%FF";
        let body = json!({
            "query": "query A($x:Int) {__typename}", "operationName": "A",
            "variables": {"x": 1}, "extensions": {"e": null}, "other": 1,
        });
        let (url, body) = (from_url(url).unwrap(), from_body(body.to_string().as_bytes()).unwrap());
        assert_eq!(format!("{url:?}"), format!("{body:?}"));
        let by_hash = from_url("extensions=%7B%22persistedQuery%22%3A%7B%7D%7D").unwrap();
        assert_eq!(by_hash.query, "");
    }

    #[test]
    fn each_fault_is_named() {
        for (body, expected) in [
            (b"\xFF".as_slice(), "not UTF-8"),
            (b"", "not JSON"),
            (b"{\"query\":", "not JSON"),
            (b"[]", "batches are off"),
            (b"[{\"query\":\"{__typename}\"}]", "batches are off"),
            (b"1", "must be a JSON object"),
            (b"{}", "'query'"),
            (b"{\"query\":null}", "'query'"),
            (b"{\"query\":\"\",\"variables\":[]}", "'variables'"),
            (b"{\"query\":\"\",\"extensions\":0}", "'extensions'"),
            (b"{\"query\":\"\",\"operationName\":false}", "'operationName'"),
        ] {
            let fault = from_body(body).unwrap_err().to_string();
            assert!(fault.contains(expected), "{fault}");
        }
        for (url, expected) in [
            ("", "'query'"),
            ("query=a&query=b", "is given twice"),
            ("query=a&variables=%7B", "'variables' must be JSON"),
            ("query=a&variables=1", "'variables'"),
        ] {
            let fault = from_url(url).unwrap_err().to_string();
            assert!(fault.contains(expected), "{fault}");
        }
    }

    #[test]
    fn a_body_of_too_many_values_is_refused_before_it_is_read() {
        let refused = |nested: usize| {
            let body = format!("{{\"query\":\"\",\"variables\":{}", "[".repeat(nested));
            from_body(body.as_bytes()).unwrap_err()
        };
        // Neither overflows the stack.
        assert!(matches!(refused(9_000), RequestError::NotJson(_)));
        assert_eq!(refused(100_000), RequestError::TooManyValues);
        let expected = "the body has more than 10000 JSON values: send less at once";
        assert_eq!(refused(100_000).to_string(), expected);
    }
}
