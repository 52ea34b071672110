//! A client of the engine's tests: WebSocket frames by hand, so that a test can split, stall and
//! break them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// What the server sent.
#[derive(Debug, PartialEq)]
pub enum Heard {
    Message(Value),
    Ping,
    Pong(Vec<u8>),
    Close(u16, String),
    /// The socket ended without a close frame.
    Gone,
}

pub struct Client {
    pipe: DuplexStream,
}

/// A masked frame with the mask 0, which leaves the payload readable.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length @ 126..=0xFFFF => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

pub fn text(message: &Value) -> Vec<u8> {
    frame(0x81, message.to_string().as_bytes())
}

pub fn subscribe(id: &str, query: &str, variables: Value) -> Value {
    json!({"type": "subscribe", "id": id, "payload": {"query": query, "variables": variables}})
}

impl Client {
    pub fn new(pipe: DuplexStream) -> Self {
        Self { pipe }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        self.pipe.write_all(bytes).await.is_ok()
    }

    pub async fn say(&mut self, message: &Value) -> bool {
        self.send(&text(message)).await
    }

    pub async fn init(&mut self) {
        assert!(self.say(&json!({"type": "connection_init"})).await);
        assert_eq!(self.hear().await, Heard::Message(json!({"type": "connection_ack"})));
    }

    pub async fn hear(&mut self) -> Heard {
        let first = self.first().await;
        self.rest(first).await
    }

    /// The first byte of a message; `None` at the end. Cancelling it loses nothing.
    pub async fn first(&mut self) -> Option<u8> {
        self.pipe.read_u8().await.ok()
    }

    /// The rest of a message whose first byte came.
    pub async fn rest(&mut self, first: Option<u8>) -> Heard {
        let Some(first) = first else { return Heard::Gone };
        let Ok(short) = self.pipe.read_u8().await else { return Heard::Gone };
        let length = match short {
            126 => self.pipe.read_u16().await.unwrap().into(),
            127 => self.pipe.read_u64().await.unwrap() as usize,
            short => short.into(),
        };
        let mut payload = vec![0; length];
        if self.pipe.read_exact(&mut payload).await.is_err() {
            return Heard::Gone;
        }
        match first {
            0x81 => Heard::Message(serde_json::from_slice(&payload).expect("whole JSON")),
            0x88 => {
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                Heard::Close(code, String::from_utf8(payload[2..].to_vec()).unwrap())
            }
            0x89 => Heard::Ping,
            0x8A => Heard::Pong(payload),
            other => panic!("frame {other:#x}"),
        }
    }
}

/// The copy of a board that a client keeps, following the chain to the letter.
#[derive(Debug, Default)]
pub struct Follower {
    pub seen: Option<u64>,
    pub fields: BTreeMap<u64, u64>,
    pub snapshots: u64,
    pub merged: u64,
}

impl Follower {
    /// The error is the break in the chain.
    pub fn take(&mut self, data: &Value) -> Result<(), String> {
        let number = |name: &str| data[name].as_u64();
        if let Some(sequence) = number("snapshot") {
            self.fields = serde_json::from_value::<Vec<(u64, u64)>>(data["fields"].clone())
                .map_err(|error| error.to_string())?
                .into_iter()
                .collect();
            self.seen = Some(sequence);
            self.snapshots += 1;
            return Ok(());
        }
        if let Some(sequence) = number("beat") {
            return match self.seen {
                Some(seen) if seen == sequence => Ok(()),
                seen => Err(format!("heartbeat at {sequence}, seen {seen:?}")),
            };
        }
        let (previous, sequence) = (number("previous"), number("sequence"));
        if previous != self.seen || sequence <= previous {
            return Err(format!("{previous:?} -> {sequence:?}, seen {:?}", self.seen));
        }
        self.seen = sequence;
        self.merged += u64::from(number("events") > Some(1));
        for pair in serde_json::from_value::<Vec<(u64, u64)>>(data["set"].clone())
            .map_err(|error| error.to_string())?
        {
            self.fields.insert(pair.0, pair.1);
        }
        Ok(())
    }
}
