//! The protocol's client side, as small as a test needs it. It knows nothing of the hub's code:
//! what it expects is what the protocol documents say.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue, Response};
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::Follower;

/// What is awaited comes at once or never; this only ends a test that would hang.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often and how soon a test looks whether a line it wrote has been read. Below the default
/// rate of subscribes a socket, so that looking is never refused.
const LOOKS: u32 = 600;
const BETWEEN_TRIES: Duration = Duration::from_millis(10);
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// What a close frame without a code means (RFC 6455, 7.1.5).
pub const NO_CODE: u16 = 1005;

pub const MODERN: &str = "graphql-transport-ws";
pub const LEGACY: &str = "graphql-ws";

/// What a peer can do to a test.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    Message(Value),
    /// Code and reason of a close frame.
    Closed(u16, String),
    /// The stream ended with no close frame.
    Cut,
}

pub struct Client {
    pub socket: WebSocketStream<TcpStream>,
}

/// Opens a socket with some headers; the HTTP answer when it is not the upgrade.
pub async fn open(
    address: SocketAddr,
    headers: &[(&str, &str)],
) -> Result<Client, Box<Response<Option<Vec<u8>>>>> {
    match try_open(address, headers).await {
        Ok(client) => Ok(client),
        Err(Error::Http(response)) => Err(response),
        Err(error) => panic!("the upgrade failed: {error}"),
    }
}

async fn try_open(address: SocketAddr, headers: &[(&str, &str)]) -> Result<Client, Error> {
    let mut request = format!("ws://{address}/graphql").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let opened = tokio_tungstenite::client_async(request, stream);
    let opened = tokio::time::timeout(PATIENCE, opened).await.expect("the hub answers the upgrade");
    opened.map(|(socket, _)| Client { socket })
}

/// A socket whose upgrade was accepted with no subprotocol, whatever was offered. By hand: a
/// client's library gives up at such an answer, while a browser reads on to the close frame.
pub async fn open_without_protocol(address: SocketAddr, offered: Option<&str>) -> Client {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let offered =
        offered.map_or(String::new(), |protocol| format!("Sec-WebSocket-Protocol: {protocol}\r\n"));
    let request = format!(
        "GET /graphql HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offered}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(PATIENCE, stream.read_u8()).await;
        answer.push(byte.expect("the hub answers the upgrade").unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "a browser can't read {answer}");
    assert!(!answer.contains("sec-websocket-protocol"), "{answer}");
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    Client { socket }
}

impl Client {
    /// A socket on the preferred protocol, before its `connection_init`.
    pub async fn opened(address: SocketAddr) -> Self {
        Self::opened_as(address, MODERN).await
    }

    pub async fn opened_as(address: SocketAddr, protocol: &str) -> Self {
        match open(address, &[("sec-websocket-protocol", protocol)]).await {
            Ok(client) => client,
            Err(response) => panic!("refused: {}", response.status()),
        }
    }

    /// A socket that has its `connection_ack`.
    pub async fn connected(address: SocketAddr) -> Self {
        let mut client = Self::opened(address).await;
        client.send(json!({"type": "connection_init"})).await;
        assert_eq!(client.message().await["type"], "connection_ack");
        client
    }

    /// The same on a hub that may be down, or go down at any moment: tried until it is up.
    pub async fn reconnected(address: SocketAddr) -> Self {
        let trying = async {
            loop {
                if let Ok(client) = Self::try_connected(address).await {
                    return client;
                }
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
        };
        tokio::time::timeout(PATIENCE, trying).await.expect("the hub comes back")
    }

    async fn try_connected(address: SocketAddr) -> Result<Self, Error> {
        let mut client = try_open(address, &[("sec-websocket-protocol", MODERN)]).await?;
        client.socket.send(Message::text(r#"{"type":"connection_init"}"#)).await?;
        match client.seen().await {
            Seen::Message(message) if message["type"] == "connection_ack" => Ok(client),
            _ => Err(Error::ConnectionClosed),
        }
    }

    /// A socket that has its `connection_ack`, on a hub that has read the market from its feed.
    pub async fn knowing(address: SocketAddr, market: &str) -> Self {
        let mut client = Self::connected(address).await;
        let query = format!(r#"{{ market(id: "{market}") {{ id }} }}"#);
        for number in 0..LOOKS {
            client.subscribe(&format!("look {number}"), &query).await;
            let mut known = false;
            loop {
                let message = client.message().await;
                match message["type"].as_str() {
                    Some("next") => known = !message["payload"]["data"]["market"].is_null(),
                    _ => break,
                }
            }
            if known {
                return client;
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        panic!("the hub never knew {market}");
    }

    pub async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.send_raw(Message::text(text)).await;
    }

    pub async fn send_raw(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    /// Puts all messages into one write, so that the hub reads them at once.
    pub async fn send_together(&mut self, messages: &[Value]) {
        for message in messages {
            self.socket.feed(Message::text(message.to_string())).await.unwrap();
        }
        self.socket.flush().await.unwrap();
    }

    pub async fn subscribe(&mut self, id: &str, query: &str) {
        self.subscribe_with(id, json!({"query": query})).await;
    }

    /// The same, on a socket that may be cut at any moment: then the next look at it says so.
    pub async fn try_subscribe(&mut self, id: &str, query: &str) {
        let payload = json!({ "query": query });
        self.try_send(json!({"type": "subscribe", "id": id, "payload": payload})).await;
    }

    pub async fn try_send(&mut self, message: Value) {
        drop(self.socket.send(Message::text(message.to_string())).await);
    }

    pub async fn subscribe_with(&mut self, id: &str, payload: Value) {
        self.send(json!({"type": "subscribe", "id": id, "payload": payload})).await;
    }

    /// The next thing the hub does, WebSocket pings apart.
    pub async fn seen(&mut self) -> Seen {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.socket.next());
            match next.await.expect("the hub says something") {
                Some(Ok(Message::Text(text))) => {
                    return Seen::Message(serde_json::from_str(&text).unwrap());
                }
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Seen::Closed(frame.code.into(), frame.reason.to_string());
                }
                Some(Ok(Message::Close(None))) => return Seen::Closed(NO_CODE, String::new()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(other)) => panic!("unexpected frame {other:?}"),
                Some(Err(_)) | None => return Seen::Cut,
            }
        }
    }

    /// The next message of the protocol; the hub's own pings are answered and passed over.
    pub async fn message(&mut self) -> Value {
        loop {
            match self.seen().await {
                Seen::Message(message) if message["type"] == "ping" => {
                    self.send(json!({"type": "pong"})).await;
                }
                Seen::Message(message) => return message,
                other => panic!("expected a message, saw {other:?}"),
            }
        }
    }

    /// Applies frames of a book until the copy is as awaited, however they were merged.
    pub async fn follow(&mut self, copy: &mut Follower, awaited: impl Fn(&Follower) -> bool) {
        let following = async {
            while !awaited(copy) {
                let message = self.message().await;
                copy.apply(&message);
            }
        };
        if tokio::time::timeout(PATIENCE, following).await.is_err() {
            panic!("what was awaited never came; last: {copy:?}");
        }
    }

    /// The close code, once everything before it is read.
    pub async fn close_code(&mut self) -> u16 {
        loop {
            match self.seen().await {
                Seen::Message(_) => {}
                Seen::Closed(code, reason) => {
                    assert!(reason.len() <= 123, "a control frame's reason: {reason:?}");
                    assert!(!reason.is_empty(), "{code} closed without a reason");
                    return code;
                }
                Seen::Cut => panic!("the hub cut the connection without a close frame"),
            }
        }
    }

    /// What has come until the answer to a ping of ours: an end to wait for instead of a time.
    /// A socket is one ordered stream, so whatever was sent before the pong has come.
    pub async fn until_pong(&mut self) -> Vec<Value> {
        let mark = json!({"mark": "until_pong"});
        self.send(json!({"type": "ping", "payload": mark})).await;
        let mut before = Vec::new();
        loop {
            let message = self.message().await;
            if message["type"] == "pong" && message["payload"] == mark {
                return before;
            }
            before.push(message);
        }
    }
}
