//! One connection of a storm: upgrade, init, subscribe, then as little as possible a message. All
//! connections of a thread read into one buffer, so an idle one costs its socket and its task.

use super::follow::{Follower, NextMessage};
use super::latency::LatencyFrom;
use super::meters::Meters;
use super::target::{Stream, Target};
use crate::wire::{self, Frames, WireError};
use serde_json::json;
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

/// Sockets wait in the kernel's backlog while a hub accepts thousands, so this is generous.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Enough that one read takes all that a slow moment piled up.
const READ_BYTES: usize = 64 * 1024;
/// `type` and `id` come before the payload in every server we know; after it they aren't
/// looked for.
const ENVELOPE_BYTES: usize = 160;
/// One message in so many is timed: parsing a date costs more than counting.
const SAMPLE_EVERY: u64 = 64;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// What all connections do.
pub struct Plan {
    pub target: Target,
    /// Of a connection's operations, in turn.
    pub queries: Vec<String>,
    pub markets: Vec<String>,
    pub depth: usize,
    pub speed: String,
    pub operations: usize,
    pub sources: Vec<IpAddr>,
    pub follow: bool,
    pub latency_from: LatencyFrom,
}

impl Plan {
    fn subscribe(&self, connection: usize, operation: usize) -> String {
        let mut variables = serde_json::Map::new();
        let query = self.queries.get(operation % self.queries.len().max(1));
        let query = query.map_or("", String::as_str);
        // Documents of one connection that differ are about one market.
        let market = match self.queries.len() {
            0 | 1 => connection * self.operations + operation,
            _ => connection,
        };
        // Only what the document declares: servers may refuse the rest.
        if query.contains("$market") && !self.markets.is_empty() {
            let market = &self.markets[market % self.markets.len()];
            variables.insert("market".into(), json!(market));
        }
        if query.contains("$depth") {
            variables.insert("depth".into(), json!(self.depth));
        }
        if query.contains("$speed") {
            variables.insert("speed".into(), json!(self.speed));
        }
        json!({"id": operation.to_string(), "type": "subscribe",
               "payload": {"query": query, "variables": variables}})
        .to_string()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Connect,
    Subscribe,
}

/// The state of a socket.
struct Connection {
    meters: Arc<Meters>,
    frames: Frames,
    /// Answers that wait to be written.
    out: Vec<u8>,
    /// Operations without a first result; not looked at once it is empty.
    awaited: Vec<String>,
    followers: Option<HashMap<String, Follower>>,
    latency_from: LatencyFrom,
    acknowledged: bool,
    close: Option<String>,
}

/// Lives as long as the server lets it. Counts what happened in the meters.
pub async fn connection(
    plan: Arc<Plan>,
    meters: Arc<Meters>,
    number: usize,
    mut phase: watch::Receiver<Phase>,
) {
    let source = plan.sources.get(number % plan.sources.len().max(1)).copied();
    let opened = tokio::time::timeout(CONNECT_TIMEOUT, Box::pin(plan.target.open(source))).await;
    let (stream, first) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(reason)) => return refused(&meters, reason),
        Err(_) => return refused(&meters, "no answer in time".to_owned()),
    };
    let mut connection = Connection {
        meters: Arc::clone(&meters),
        frames: Frames::default(),
        out: Vec::new(),
        awaited: (0..plan.operations).map(|operation| operation.to_string()).collect(),
        followers: plan.follow.then(|| {
            let follower = |operation: usize| (operation.to_string(), Follower::new(plan.depth));
            (0..plan.operations).map(follower).collect()
        }),
        latency_from: plan.latency_from,
        acknowledged: false,
        close: None,
    };
    let end = live(&mut connection, stream, first, &plan, number, &mut phase).await;
    *meters.rare().closes.entry(end).or_default() += 1;
    if !connection.awaited.is_empty() {
        Meters::add(&meters.failed, 1);
    }
}

fn refused(meters: &Meters, reason: String) {
    *meters.rare().refusals.entry(reason).or_default() += 1;
    Meters::add(&meters.failed, 1);
}

/// A socket that isn't connected yet, bound to the local address where one is given.
///
/// # Errors
/// When no socket is left, or the local address is not this machine's.
pub fn local_socket(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    Ok(socket)
}

/// The upgraded stream and the bytes that came after the upgrade.
///
/// # Errors
/// Why there is none: the kind of the fault, or `HTTP` and the status.
pub async fn upgraded(
    socket: TcpSocket,
    host: &str,
    path: &str,
    address: SocketAddr,
) -> Result<(TcpStream, Vec<u8>), String> {
    let as_text = |error: io::Error| error.kind().to_string();
    let mut stream = socket.connect(address).await.map_err(as_text)?;
    stream.set_nodelay(true).map_err(as_text)?;
    let first = upgrade(&mut stream, &wire::upgrade_request(host, path, "")).await?;
    Ok((stream, first))
}

/// Sends the head of an upgrade. The bytes that came after the answer.
///
/// # Errors
/// As [`upgraded`].
pub async fn upgrade(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &str,
) -> Result<Vec<u8>, String> {
    let as_text = |error: io::Error| error.kind().to_string();
    stream.write_all(request.as_bytes()).await.map_err(as_text)?;
    // What TLS has gathered.
    stream.flush().await.map_err(as_text)?;
    let mut answer = Vec::with_capacity(512);
    loop {
        if stream.read_buf(&mut answer).await.map_err(as_text)? == 0 {
            return Err("closed before the upgrade".to_owned());
        }
        match wire::upgrade_answer(&answer) {
            Ok(Some(used)) => return Ok(answer.split_off(used)),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Returns why it ended: a close code, or how else.
async fn live(
    connection: &mut Connection,
    mut stream: Stream,
    first: Vec<u8>,
    plan: &Plan,
    number: usize,
    phase: &mut watch::Receiver<Phase>,
) -> String {
    connection.send(&plan.target.init);
    if let Err(error) = connection.received(&first) {
        return error.to_string();
    }
    drop(first);
    // Idle: pings are answered, the subscriptions wait for the word.
    while !(connection.acknowledged && *phase.borrow_and_update() == Phase::Subscribe) {
        if let Some(end) = connection.flush(&mut stream).await {
            return end;
        }
        tokio::select! {
            end = connection.read(&mut stream) => if let Some(end) = end { return end },
            changed = phase.changed() => if changed.is_err() { return "stopped".to_owned() },
        }
    }
    for operation in 0..plan.operations {
        connection.send(&plan.subscribe(number, operation));
    }
    loop {
        if let Some(end) = connection.flush(&mut stream).await {
            return end;
        }
        if let Some(end) = connection.read(&mut stream).await {
            return end;
        }
    }
}

impl Connection {
    fn send(&mut self, text: &str) {
        self.out.extend(wire::masked_frame(wire::TEXT, text.as_bytes()));
    }

    async fn flush(&mut self, stream: &mut Stream) -> Option<String> {
        if self.out.is_empty() {
            return None;
        }
        let out = std::mem::take(&mut self.out);
        let written = async {
            stream.write_all(&out).await?;
            stream.flush().await
        };
        written.await.err().map(|error| error.kind().to_string())
    }

    /// One read, and everything in it; `Some` is the end. May be dropped while it waits.
    async fn read(&mut self, stream: &mut Stream) -> Option<String> {
        poll_fn(|context| {
            BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                match Pin::new(&mut *stream).poll_read(context, &mut buffer) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Err(error)) => Poll::Ready(Some(error.kind().to_string())),
                    Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                        Poll::Ready(Some(self.close.take().unwrap_or("no close frame".to_owned())))
                    }
                    Poll::Ready(Ok(())) => Poll::Ready(match self.received(buffer.filled()) {
                        Ok(()) => self.close.take(),
                        Err(error) => Some(error.to_string()),
                    }),
                }
            })
        })
        .await
    }

    fn received(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        Meters::add(&self.meters.bytes, bytes.len() as u64);
        let mut frames = std::mem::take(&mut self.frames);
        let result = frames.feed(bytes, |opcode, payload| self.message(opcode, payload));
        self.frames = frames;
        result
    }

    fn message(&mut self, opcode: u8, payload: &[u8]) {
        match opcode {
            wire::TEXT => self.text(payload),
            wire::PING => {
                self.out.extend(wire::masked_frame(wire::PONG, payload));
            }
            wire::CLOSE => {
                let code = match payload {
                    [high, low, ..] => u16::from_be_bytes([*high, *low]),
                    _ => 1005,
                };
                self.close = Some(code.to_string());
            }
            _ => {}
        }
    }

    fn text(&mut self, message: &[u8]) {
        let envelope = &message[..message.len().min(ENVELOPE_BYTES)];
        match string_after(envelope, b"\"type\":\"") {
            Some(b"next") => self.next(message, envelope),
            Some(b"connection_ack") => {
                self.acknowledged = true;
                Meters::add(&self.meters.acknowledged, 1);
            }
            Some(b"ping") => self.send(r#"{"type":"pong"}"#),
            Some(b"error") => {
                Meters::add(&self.meters.errors, 1);
                let text = || String::from_utf8_lossy(message).into_owned();
                self.meters.rare().first_error.get_or_insert_with(text);
                self.no_longer_awaited(envelope);
            }
            Some(b"complete") => {
                Meters::add(&self.meters.completes, 1);
                self.no_longer_awaited(envelope);
            }
            _ => {}
        }
    }

    fn next(&mut self, message: &[u8], envelope: &[u8]) {
        let count = Meters::add(&self.meters.messages, 1);
        if !self.awaited.is_empty() {
            self.no_longer_awaited(envelope);
        }
        if is_sampled(count)
            && self.meters.measuring.load(Ordering::Relaxed)
            && let Some(micros) = self.latency_from.age_micros(message)
        {
            let mut rare = self.meters.rare();
            match u64::try_from(micros) {
                Ok(micros) => rare.latency.record(micros),
                Err(_) => rare.early += 1,
            }
        }
        if let Some(followers) = &mut self.followers {
            let counts = &mut self.meters.rare().follow;
            match serde_json::from_slice::<NextMessage>(message) {
                Ok(next) => match followers.get_mut(&next.id) {
                    Some(follower) => follower.next(next, counts),
                    None => counts.malformed += 1,
                },
                Err(_) => counts.malformed += 1,
            }
        }
    }

    fn no_longer_awaited(&mut self, envelope: &[u8]) {
        let id = string_after(envelope, b"\"id\":\"");
        let before = self.awaited.len();
        self.awaited.retain(|awaited| Some(awaited.as_bytes()) != id);
        if before != 0 && self.awaited.is_empty() {
            Meters::add(&self.meters.ready, 1);
        }
    }
}

/// The JSON string that follows `key`, if it has no escapes.
pub fn string_after<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let from = text.windows(key.len()).position(|window| window == key)? + key.len();
    let length = text[from..].iter().position(|byte| *byte == b'"')?;
    Some(&text[from..from + length])
}

/// One number in [`SAMPLE_EVERY`], spread as if by chance: at a fixed distance, the messages of the
/// same few connections would be timed each time.
fn is_sampled(count: u64) -> bool {
    // 2^64 over the golden ratio.
    let spread = count.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    spread < u64::MAX / SAMPLE_EVERY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_fall_on_each_of_the_connections_alike() {
        for connections in [1, 2, 50, 64, 100, 128, 1_000] {
            let mut timed = vec![0; connections];
            let messages = connections as u64 * SAMPLE_EVERY * 20;
            for count in (0..messages).filter(|count| is_sampled(*count)) {
                timed[usize::try_from(count).unwrap() % connections] += 1;
            }
            let least = timed.iter().min().unwrap();
            let most = timed.iter().max().unwrap();
            assert!(*least >= 10 && *most <= 30, "{connections}: {least} to {most}");
        }
    }
}
