//! One WebSocket with one operation on it, as graphql-transport-ws has it from the client's side.
//! Decides nothing: what a close or an error means is the caller's.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Response, header};
use tokio_tungstenite::tungstenite::{self, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::endpoint::Endpoint;
use super::fault::{ClientError, GraphqlErrors};
use super::{Opening, tls};

const PROTOCOL: &str = "graphql-transport-ws";
/// The socket has one operation, so any name does.
const OPERATION: &str = "1";
/// For the connection, the upgrade and the ack, each.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// A silent hub is asked whether it lives, and given up after as much again. It pings every 25 s
/// and repeats itself every 5 s, so that this is rare.
const SILENCE: Duration = Duration::from_secs(15);
/// What a close frame without a code means (RFC 6455, 7.1.5).
const NO_CODE: u16 = 1005;

/// What the hub says of the operation.
pub enum Message {
    Next(Box<RawValue>),
    Error(GraphqlErrors),
    Complete,
}

#[derive(Deserialize)]
struct Incoming {
    #[serde(rename = "type")]
    kind: String,
    payload: Option<Box<RawValue>>,
}

pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Socket {
    /// Connected, upgraded and acknowledged.
    pub async fn open(opening: &Opening) -> Result<Self, ClientError> {
        let Opening { endpoint: Endpoint { host, port, url }, headers, init } = opening;
        let connector = tls::connector(url)?;
        let failed = |source| ClientError::Connect { address: format!("{host}:{port}"), source };
        let tcp = in_time(TcpStream::connect((host.as_str(), *port))).await?.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let mut request = url.as_str().into_client_request().map_err(refusal)?;
        let protocol = HeaderValue::from_static(PROTOCOL);
        request.headers_mut().extend(headers.iter().cloned());
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        let upgrading =
            tokio_tungstenite::client_async_tls_with_config(request, tcp, None, Some(connector));
        let upgraded = in_time(Box::pin(upgrading)).await?;
        let (stream, _) = upgraded.map_err(refusal)?;
        let mut socket = Self { stream };
        let mut message = json!({"type": "connection_init"});
        if let Some(payload) = init {
            message["payload"] = payload.clone().into();
        }
        socket.send(message).await?;
        let acknowledged = async {
            loop {
                let message = socket.incoming().await?;
                if message.kind == "connection_ack" {
                    return Ok(());
                }
                socket.answer(message).await?;
            }
        };
        in_time(acknowledged).await??;
        Ok(socket)
    }

    /// Asks for a cursor on each result, and to begin after one.
    pub async fn subscribe(
        &mut self,
        document: &str,
        variables: &Map<String, Value>,
        after: Option<&str>,
    ) -> Result<(), ClientError> {
        self.send(json!({
            "type": "subscribe",
            "id": OPERATION,
            "payload": {
                "query": document,
                "variables": variables,
                "extensions": {"cursor": true, "after": after},
            },
        }))
        .await
    }

    /// The next word about the operation. May be dropped at any moment: nothing is lost.
    pub async fn message(&mut self) -> Result<Message, ClientError> {
        loop {
            let message = self.incoming().await?;
            let payload = || message.payload.as_deref().map_or("null", RawValue::get);
            match message.kind.as_str() {
                "next" => {
                    let missing = || ClientError::Protocol("a result without payload".to_owned());
                    return Ok(Message::Next(message.payload.ok_or_else(missing)?));
                }
                "error" => {
                    let errors = serde_json::from_str(payload()).map_err(unreadable)?;
                    return Ok(Message::Error(errors));
                }
                "complete" => return Ok(Message::Complete),
                _ => self.answer(message).await?,
            }
        }
    }

    /// Ends the operation and the socket, as far as the hub still listens.
    pub async fn goodbye(&mut self) {
        if self.send(json!({"type": "complete", "id": OPERATION})).await.is_ok() {
            // Whether the hub hears it makes no difference to anyone any more.
            drop(self.stream.close(None).await);
        }
    }

    /// To what is no word about the operation.
    async fn answer(&mut self, message: Incoming) -> Result<(), ClientError> {
        match message.kind.as_str() {
            "ping" => self.send(json!({"type": "pong", "payload": message.payload})).await,
            "pong" => Ok(()),
            other => Err(ClientError::Protocol(format!("a message of type {other:?}"))),
        }
    }

    async fn send(&mut self, message: Value) -> Result<(), ClientError> {
        let sent = self.stream.send(tungstenite::Message::text(message.to_string()));
        in_time(sent).await?.map_err(cut)
    }

    async fn incoming(&mut self) -> Result<Incoming, ClientError> {
        loop {
            let frame = match tokio::time::timeout(SILENCE, self.stream.next()).await {
                Ok(frame) => frame,
                Err(_) => {
                    let ping = tungstenite::Message::Ping(Default::default());
                    in_time(self.stream.send(ping)).await?.map_err(cut)?;
                    let again = tokio::time::timeout(SILENCE, self.stream.next()).await;
                    again.map_err(|_| ClientError::Late(SILENCE * 2))?
                }
            };
            match frame {
                Some(Ok(tungstenite::Message::Text(text))) => return read(&text),
                Some(Ok(tungstenite::Message::Close(frame))) => {
                    let (code, reason) = frame.map_or((NO_CODE, String::new()), |frame| {
                        (frame.code.into(), frame.reason.to_string())
                    });
                    return Err(ClientError::Closed { code, reason });
                }
                // Pings are answered by the library.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(cut(error)),
                None => return Err(ClientError::Cut("without a close frame".to_owned())),
            }
        }
    }
}

/// A result's cursor and errors, where it has them.
pub fn read_result(
    result: &RawValue,
) -> Result<(Option<String>, Option<GraphqlErrors>), ClientError> {
    #[derive(Deserialize)]
    struct Extensions {
        cursor: Option<String>,
    }
    #[derive(Deserialize)]
    struct Parts {
        errors: Option<GraphqlErrors>,
        extensions: Option<Extensions>,
    }
    let parts: Parts = serde_json::from_str(result.get()).map_err(unreadable)?;
    Ok((parts.extensions.and_then(|extensions| extensions.cursor), parts.errors))
}

fn read(text: &Utf8Bytes) -> Result<Incoming, ClientError> {
    serde_json::from_str(text).map_err(unreadable)
}

fn unreadable(error: serde_json::Error) -> ClientError {
    ClientError::Protocol(format!("what it says can't be read: {error}"))
}

async fn in_time<T>(answer: impl Future<Output = T>) -> Result<T, ClientError> {
    let late = |_| ClientError::Late(ANSWER_DEADLINE);
    tokio::time::timeout(ANSWER_DEADLINE, answer).await.map_err(late)
}

/// A socket that breaks is one that was cut, whatever broke it.
fn cut(error: tungstenite::Error) -> ClientError {
    ClientError::Cut(error.to_string())
}

/// Why there is no WebSocket.
fn refusal(error: tungstenite::Error) -> ClientError {
    match error {
        tungstenite::Error::Http(response) => {
            let status = response.status().as_u16();
            ClientError::NoUpgrade { status, detail: detail(&response).unwrap_or_default() }
        }
        tungstenite::Error::Io(error) if tls::is_fault(&error) => {
            ClientError::Tls(error.to_string())
        }
        tungstenite::Error::Io(_) => cut(error),
        tungstenite::Error::Protocol(tungstenite::error::ProtocolError::HandshakeIncomplete) => {
            cut(error)
        }
        other => ClientError::Protocol(other.to_string()),
    }
}

/// What the hub's own refusals say.
fn detail(response: &Response<Option<Vec<u8>>>) -> Option<String> {
    #[derive(Deserialize)]
    struct Refusal {
        errors: GraphqlErrors,
    }
    let refusal: Refusal = serde_json::from_slice(response.body().as_deref()?).ok()?;
    Some(refusal.errors.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::time::Instant;
    use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

    use super::*;

    async fn listening() -> (TcpListener, Opening) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let endpoint = url.parse().unwrap();
        (listener, Opening { endpoint, headers: Vec::new(), init: None })
    }

    /// The hub's side, upgraded.
    async fn upgraded(listener: &TcpListener) -> WebSocketStream<TcpStream> {
        #[expect(clippy::result_large_err, reason = "the library's own type")]
        let speak = |_: &Request, mut response: Response| {
            let protocol = HeaderValue::from_static(PROTOCOL);
            response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
            Ok(response)
        };
        let (tcp, _) = listener.accept().await.unwrap();
        let mut hub = tokio_tungstenite::accept_hdr_async(tcp, speak).await.unwrap();
        let init = hub.next().await.unwrap().unwrap();
        assert!(init.to_text().unwrap().contains("connection_init"), "{init}");
        hub
    }

    #[tokio::test]
    async fn a_hub_that_answers_no_upgrade_or_no_init_is_given_up_after_ten_seconds() {
        let (listener, opening) = listening().await;
        let upgraded = async {
            let hub = upgraded(&listener).await;
            tokio::time::pause();
            std::future::pending::<()>().await;
            drop(hub);
        };
        tokio::select! {
            () = upgraded => unreachable!(),
            opened = Socket::open(&opening) => {
                assert!(matches!(opened, Err(ClientError::Late(ANSWER_DEADLINE))));
            }
        }
        // Now nobody takes the connection, which the kernel accepts.
        let began = Instant::now();
        let opened = Socket::open(&opening).await;
        assert!(matches!(opened, Err(ClientError::Late(ANSWER_DEADLINE))));
        assert_eq!(began.elapsed().as_secs(), ANSWER_DEADLINE.as_secs());
    }

    #[tokio::test]
    async fn the_upgrade_has_the_headers_and_the_first_message_the_payload_that_were_given() {
        let (listener, mut opening) = listening().await;
        let header = super::super::header("x-key: a:b").unwrap();
        opening.headers.push(header.clone());
        opening.init = super::super::object(r#"{"token": "x"}"#).ok();
        let hub = async {
            #[expect(clippy::result_large_err, reason = "the library's own type")]
            let speak = |request: &Request, mut response: Response| {
                assert_eq!(request.headers()[&header.0], header.1);
                let protocol = HeaderValue::from_static(PROTOCOL);
                response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
                Ok(response)
            };
            let (tcp, _) = listener.accept().await.unwrap();
            let mut hub = tokio_tungstenite::accept_hdr_async(tcp, speak).await.unwrap();
            let init = hub.next().await.unwrap().unwrap();
            serde_json::from_str::<Value>(init.to_text().unwrap()).unwrap()
        };
        let (init, _) = tokio::join!(hub, Socket::open(&opening));
        assert_eq!(init, json!({"type": "connection_init", "payload": {"token": "x"}}));
    }

    #[tokio::test]
    async fn a_hub_that_is_silent_is_pinged_and_given_up_after_thirty_seconds() {
        let (listener, opening) = listening().await;
        let acknowledged = async {
            let mut hub = upgraded(&listener).await;
            let ack = json!({"type": "connection_ack"}).to_string();
            hub.send(tungstenite::Message::text(ack)).await.unwrap();
            hub
        };
        let (mut hub, opened) = tokio::join!(acknowledged, Socket::open(&opening));
        let mut socket = opened.unwrap();
        tokio::time::pause();
        let began = Instant::now();
        let heard = socket.message().await;
        assert!(matches!(heard, Err(ClientError::Late(late)) if late == 2 * SILENCE));
        assert_eq!(began.elapsed().as_secs(), 2 * SILENCE.as_secs());
        let ping = hub.next().await.unwrap().unwrap();
        assert!(matches!(ping, tungstenite::Message::Ping(_)), "{ping}");
    }
}
