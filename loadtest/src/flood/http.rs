//! As much of HTTP as a request of the flood needs: one POST, and a reply with its length.

use super::socket::PATH;
use serde_json::json;
use std::net::SocketAddr;

/// A GraphQL request over HTTP, as bytes to be written.
pub fn post(address: SocketAddr, query: &str, accept: &str) -> Vec<u8> {
    let body = json!({"query": query}).to_string();
    format!(
        "POST {PATH} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Accept: {accept}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The head of a reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub status: u16,
    /// Where the body begins.
    pub body: usize,
    /// Where it ends; without a length it ends with the connection.
    pub end: Option<usize>,
}

/// `None` until the head is complete, or when it is no HTTP.
pub fn head(bytes: &[u8]) -> Option<Head> {
    let body = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..body]).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let length: Option<usize> = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    Some(Head { status, body, end: length.map(|length| body + length) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_where_the_body_is() {
        let reply = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 3\r\n\r\nabc";
        let found = head(reply).unwrap();
        assert_eq!((found.status, found.end), (429, Some(reply.len())));
        assert_eq!(&reply[found.body..], b"abc");
        assert_eq!(head(b"HTTP/1.1 200 OK\r\ncontent-"), None);
    }
}
