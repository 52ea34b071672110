//! One request over a connection of its own, written and read by hand, so that a test can send
//! what no client's library would.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::client::PATIENCE;

/// What a server said until it closed the connection.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Of what is no text, with marks in place of what can't be read.
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(one, _)| one == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The `extensions` of the first error.
    pub fn error(&self) -> Value {
        self.json()["errors"][0]["extensions"].clone()
    }
}

/// Sends one request with `Connection: close`; `head` is its first line, then lines of headers.
pub fn send(address: SocketAddr, head: &[&str], body: &[u8]) -> Answer {
    let mut lines = head.iter();
    let first = lines.next().unwrap();
    let mut request = format!("{first} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for line in lines {
        request += &format!("{line}\r\n");
    }
    if !body.is_empty() {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    request += "\r\n";
    raw(address, &[request.as_bytes(), body].concat())
}

/// Sends these bytes and reads until the other side closes.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // A refusal may come, and the connection end, before all is sent.
    let _ = stream.write_all(bytes);
    read(&mut stream)
}

/// Reads an answer until the other side closes.
pub fn read(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    // What came before an error counts; signals are none.
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert!(!bytes.is_empty(), "no answer: {error}");
    }
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    Answer { status, headers, body: body.to_owned() }
}

/// A POST of a JSON body.
pub fn post(address: SocketAddr, body: &Value) -> Answer {
    post_accepting(address, body, "application/json")
}

pub fn post_accepting(address: SocketAddr, body: &Value, accept: &str) -> Answer {
    let accept = format!("Accept: {accept}");
    let head = ["POST /graphql", "Content-Type: application/json", &accept];
    send(address, &head, body.to_string().as_bytes())
}

/// A GET with these parameters in its URL.
pub fn get(address: SocketAddr, parameters: &[(&str, &str)], accept: &str) -> Answer {
    let query: Vec<_> =
        parameters.iter().map(|(name, text)| format!("{name}={}", escaped(text))).collect();
    let first = format!("GET /graphql?{}", query.join("&"));
    send(address, &[&first, &format!("Accept: {accept}")], b"")
}

fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
