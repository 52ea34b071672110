//! A client of server-sent events, read by hand. It asks by HTTP/1.0, whose answers have no chunks.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::Value;

use super::client::PATIENCE;

pub struct Events {
    stream: BufReader<TcpStream>,
    pub status: u16,
    pub content_type: String,
    pub cache_control: String,
    /// The head of the answer, in lower case.
    headers: Vec<String>,
}

/// One event, or one comment.
#[derive(Debug, PartialEq)]
pub enum Event {
    Next { id: Option<String>, result: Value },
    Complete,
    Comment(String),
}

impl Events {
    /// Posts a request; `headers` are whole lines.
    pub fn open(address: SocketAddr, request: &Value, headers: &[&str]) -> Self {
        let body = request.to_string();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = format!(
            "POST /graphql HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Accept: text/event-stream\r\nContent-Length: {}\r\n",
            body.len()
        );
        for line in headers {
            head += &format!("{line}\r\n");
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
        let mut events = Self {
            stream: BufReader::new(stream),
            status: 0,
            content_type: String::new(),
            cache_control: String::new(),
            headers: Vec::new(),
        };
        let first = events.line().unwrap();
        events.status = first.split(' ').nth(1).unwrap().parse().unwrap();
        while let Some(line) = events.line().filter(|line| !line.is_empty()) {
            events.headers.push(line.to_lowercase());
        }
        events.content_type = events.header("content-type").unwrap_or_default().to_owned();
        events.cache_control = events.header("cache-control").unwrap_or_default().to_owned();
        events
    }

    /// The first of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let values = self.headers.iter().filter_map(|line| line.split_once(": "));
        values.filter(|(one, _)| *one == name).map(|(_, value)| value).next()
    }

    /// None at the end.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).unwrap();
        (read > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// None at the end.
    pub fn event(&mut self) -> Option<Event> {
        let (mut kind, mut id, mut data, mut comment) = (None, None, String::new(), None);
        loop {
            let line = self.line()?;
            match line.split_once(':') {
                None if line.is_empty() => break,
                Some(("", text)) => comment = Some(text.trim().to_owned()),
                Some(("event", text)) => kind = Some(text.trim().to_owned()),
                Some(("id", text)) => id = Some(text.trim().to_owned()),
                Some(("data", text)) => data += text.trim(),
                _ => panic!("no line of an event: {line:?}"),
            }
        }
        match (kind.as_deref(), comment) {
            (None, Some(text)) => Some(Event::Comment(text)),
            (Some("next"), None) => {
                Some(Event::Next { id, result: serde_json::from_str(&data).unwrap() })
            }
            (Some("complete"), None) => Some(Event::Complete),
            other => panic!("no event: {other:?}"),
        }
    }

    /// The next result with its id.
    pub fn next(&mut self) -> (Option<String>, Value) {
        loop {
            match self.event() {
                Some(Event::Next { id, result }) => return (id, result),
                Some(Event::Comment(_)) => {}
                other => panic!("expected a result, saw {other:?}"),
            }
        }
    }

    pub fn hang_up(&self) {
        self.stream.get_ref().shutdown(Shutdown::Both).unwrap();
    }
}
