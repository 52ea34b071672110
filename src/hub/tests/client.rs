//! A client of the middle tier: WebSocket frames by hand over a pipe. It reads only when it is
//! asked to, so a test decides who is slow.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWriteExt, DuplexStream, ReadBuf};

/// What the hub sent.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    Message(Value),
    Close(u16),
    /// The socket ended.
    Gone,
}

pub(super) struct Client {
    pipe: DuplexStream,
    received: Vec<u8>,
    pings: usize,
    is_gone: bool,
}

/// A masked frame with the mask 0, which leaves the payload readable.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

impl Client {
    pub(super) fn new(pipe: DuplexStream) -> Self {
        Self { pipe, received: Vec::new(), pings: 0, is_gone: false }
    }

    /// False if the socket has ended.
    pub(super) async fn say(&mut self, message: &Value) -> bool {
        self.pipe.write_all(&frame(0x81, message.to_string().as_bytes())).await.is_ok()
    }

    pub(super) async fn init(&mut self) {
        assert!(self.say(&json!({"type": "connection_init"})).await);
        let ack = self.hear().await;
        assert_eq!(ack, Heard::Message(json!({"type": "connection_ack"})));
    }

    pub(super) async fn subscribe(&mut self, id: &str, query: &str) {
        let payload = json!({"query": query});
        assert!(self.say(&json!({"type": "subscribe", "id": id, "payload": payload})).await);
    }

    /// The next message, however long it takes.
    pub(super) async fn hear(&mut self) -> Heard {
        loop {
            if let Some(heard) = self.take() {
                return heard;
            }
            if self.is_gone {
                return Heard::Gone;
            }
            let filled = self.received.len();
            std::future::poll_fn(|cx| match self.fill(cx) {
                Poll::Pending if self.received.len() == filled => Poll::Pending,
                _ => Poll::Ready(()),
            })
            .await;
        }
    }

    /// The payload of the next message, which is a result of this operation.
    pub(super) async fn next(&mut self, id: &str) -> Value {
        match self.hear().await {
            Heard::Message(message) => {
                assert_eq!((&message["type"], &message["id"]), (&json!("next"), &json!(id)));
                message["payload"].clone()
            }
            other => panic!("{other:?}"),
        }
    }

    /// What has come so far, with answers to the pings among it.
    pub(super) async fn read(&mut self) -> Vec<Heard> {
        // Whether there is room for more is for the caller: it asks again.
        let _ready = self.fill(&mut Context::from_waker(Waker::noop()));
        let mut heard: Vec<_> = std::iter::from_fn(|| self.take()).collect();
        heard.extend(self.is_gone.then_some(Heard::Gone));
        for _ in 0..std::mem::take(&mut self.pings) {
            let _is_open = self.pipe.write_all(&frame(0x8A, b"")).await.is_ok();
        }
        heard
    }

    /// Takes bytes out of the pipe until it is empty.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; 16 << 10];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.pipe).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.received.extend_from_slice(buffer.filled());
                }
                Poll::Ready(_) => {
                    self.is_gone = true;
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The next message of those that are complete.
    fn take(&mut self) -> Option<Heard> {
        loop {
            let (first, payload) = self.take_frame()?;
            match first {
                0x81 => return Some(Heard::Message(serde_json::from_slice(&payload).unwrap())),
                0x88 => return Some(Heard::Close(u16::from_be_bytes([payload[0], payload[1]]))),
                0x89 => self.pings += 1,
                0x8A => {}
                other => panic!("frame {other:#x}"),
            }
        }
    }

    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let bytes = &self.received;
        let (head, length) = match *bytes.get(1)? {
            126 => (4, u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()).into()),
            127 => {
                let length = u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap());
                (10, usize::try_from(length).unwrap())
            }
            short => (2, usize::from(short)),
        };
        let (first, payload) = (bytes[0], bytes.get(head..head + length)?.to_vec());
        self.received.drain(..head + length);
        Some((first, payload))
    }
}
