//! Attackers that never read, and those that never finish a request. When they leave they look at
//! what waits for them, so that the report says how the hub ended them.

use super::requests::connect;
use super::{Client, RETRY_PAUSE, texts};
use crate::flood::http;
use crate::flood::socket::Socket;
use crate::flood::spec::Attack;
use crate::run::client::{local_socket, string_after};
use std::borrow::Cow;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

/// The kernel's receive buffer: as little as it allows, so that the hub's side fills first.
const RECEIVE_BUFFER: u32 = 4096;
/// What is read at the end from each socket: more than the hub's send buffer and ours hold.
const LAST_BYTES: u64 = 1024 * 1024;
/// How often a reply that isn't read is looked at, for whether the hub cut it.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How many places in a topic the operations of a socket resume at. Each has a page of its own.
const CURSORS: usize = 30;
/// Half of a request: no empty line ends it.
const HALF: &[u8] = b"POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: appli";

/// Subscribes, and then reads nothing until the attack ends.
pub async fn sockets(client: &Client) {
    let spec = &client.spec;
    let source = spec.source(client.number);
    let mut socket = match Socket::open(spec.address, source, Some(RECEIVE_BUFFER)).await {
        Ok(socket) => socket,
        Err(reason) => return client.counts.refused(reason),
    };
    client.counts.opened();
    let mut acknowledged = false;
    let wanted = if spec.attack == Attack::Resumes { CURSORS } else { 0 };
    let mut cursors = Vec::new();
    if wanted > 0 {
        socket.send(&texts::subscribe_message(spec.operations as u64, &texts::cursors()));
    }
    while !acknowledged || cursors.len() < wanted {
        let turn = socket.turn(|message| {
            acknowledged |= message.kind == b"connection_ack";
            let cursor = string_after(message.text, b"\"cursor\":\"").map(String::from_utf8_lossy);
            cursors.extend(cursor.map(Cow::into_owned));
        });
        if let Err(end) = turn.await {
            return client.counts.closed(end);
        }
    }
    for operation in 0..spec.operations {
        let serial = match client.is_distinct() {
            true => client.counts.serial(),
            false => operation as u64,
        };
        let query = match cursors.get(operation % wanted.max(1)) {
            Some(cursor) => texts::resume(cursor),
            None => texts::subscription(spec.kind, &spec.market, serial),
        };
        socket.send(&texts::subscribe_message(operation as u64, &query));
        client.counts.asked();
    }
    let mut stopped = client.stopped.clone();
    let writing = async {
        match socket.write().await {
            Ok(()) => std::future::pending().await,
            Err(end) => end,
        }
    };
    tokio::select! {
        end = writing => return client.counts.closed(end),
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    let before = socket.bytes;
    let mut answered = vec![false; spec.operations];
    let end = socket.drain(LAST_BYTES, |message| {
        if message.kind == b"next" {
            client.counts.frame(&message);
            let id = std::str::from_utf8(message.id).ok().and_then(|id| id.parse::<usize>().ok());
            if let Some(first) = id.and_then(|id| answered.get_mut(id)) {
                *first = true;
            }
        }
        if message.kind == b"error" {
            client.counts.error_in(message.text);
        }
    });
    client.counts.bytes(socket.bytes - before);
    answered.iter().filter(|first| **first).for_each(|_| client.counts.answered());
    if let Err(end) = end {
        client.counts.closed(end);
    }
}

/// Asks over HTTP for a stream of events or a large reply, and reads neither; asks again once the
/// hub has cut it.
pub async fn replies(client: &Client) {
    let mut stopped = client.stopped.clone();
    while !*stopped.borrow() {
        match reply(client).await {
            Ok(()) => {}
            Err(error) => client.counts.refused(error.kind().to_string()),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_PAUSE) => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    }
}

async fn reply(client: &Client) -> io::Result<()> {
    let spec = &client.spec;
    let socket = local_socket(spec.address, spec.source(client.number))?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    let mut stream = socket.connect(spec.address).await?;
    client.counts.opened();
    let serial = if client.is_distinct() { client.counts.serial() } else { 0 };
    let request = match spec.attack {
        Attack::Sse => {
            let query = texts::subscription(spec.kind, &spec.market, serial);
            http::post(spec.address, &query, "text/event-stream")
        }
        _ => http::post(spec.address, &texts::deepest_query(&spec.market), "application/json"),
    };
    let end = wait_unread(client, &mut stream, &request).await;
    count_end(client, &mut stream, end);
    Ok(())
}

/// Until the attack ends or the connection is cut, which the socket shows without a read.
async fn wait_unread(client: &Client, stream: &mut TcpStream, request: &[u8]) -> io::Result<()> {
    let mut stopped = client.stopped.clone();
    stream.write_all(request).await?;
    client.counts.asked();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
        }
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        // Never waits, as there is always room to write.
        let ready = stream.ready(Interest::READABLE | Interest::WRITABLE).await?;
        if ready.is_read_closed() || ready.is_write_closed() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    }
}

fn count_end(client: &Client, stream: &mut TcpStream, end: io::Result<()>) {
    let mut bytes = vec![0; 64 * 1024];
    let mut read = 0;
    let mut ended = end.err().map(|error| error.kind().to_string());
    while read < LAST_BYTES {
        match stream.try_read(&mut bytes) {
            Ok(0) => {
                ended.get_or_insert_with(|| "closed".to_owned());
                break;
            }
            Ok(some) => {
                if read == 0
                    && let Some(head) = http::head(&bytes[..some])
                {
                    client.counts.status(head.status);
                    match client.counts.error_in(&bytes[..some]) {
                        None => client.counts.answered(),
                        Some(_) => {
                            ended.get_or_insert_with(|| "refused".to_owned());
                        }
                    }
                }
                read += some as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => {
                ended.get_or_insert_with(|| error.kind().to_string());
                break;
            }
        }
    }
    client.counts.bytes(read);
    match ended {
        Some(how) => client.counts.closed(how),
        None => client.counts.left(),
    }
}

/// Begins a request and never ends it; begins another once the hub has closed.
pub async fn half_open(client: &Client) {
    loop {
        match connect(client).await {
            Ok(mut stream) => {
                client.counts.opened();
                let end = begin(client, &mut stream).await;
                client.counts.closed(end.unwrap_or_else(|error| error.kind().to_string()));
            }
            Err(error) => client.counts.refused(error.kind().to_string()),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn begin(client: &Client, stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(HALF).await?;
    client.counts.asked();
    let mut reply = Vec::new();
    while stream.read_buf(&mut reply).await? > 0 {}
    client.counts.bytes(reply.len() as u64);
    Ok(match http::head(&reply) {
        Some(head) => {
            client.counts.status(head.status);
            format!("HTTP {}", head.status)
        }
        None => "closed".to_owned(),
    })
}

impl Client {
    fn is_distinct(&self) -> bool {
        self.spec.is_distinct(self.number)
    }
}
