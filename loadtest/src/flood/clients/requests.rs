//! Attackers on HTTP connections that are kept alive: the next request as soon as the reply is
//! read. A reply's body is counted, and looked at only where it may be an error.

use super::{Client, RETRY_PAUSE, texts};
use crate::flood::http;
use crate::flood::spec::Attack;
use crate::run::client::local_socket;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const READ_BYTES: usize = 64 * 1024;

pub async fn ask(client: &Client) {
    loop {
        match connect(client).await {
            Ok(mut stream) => {
                client.counts.opened();
                let end = live(client, &mut stream).await;
                client.counts.closed(end.unwrap_or_else(|error| error.kind().to_string()));
            }
            Err(error) => client.counts.refused(error.kind().to_string()),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

pub async fn connect(client: &Client) -> std::io::Result<TcpStream> {
    let socket = local_socket(client.spec.address, client.spec.source(client.number))?;
    let stream = socket.connect(client.spec.address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn live(client: &Client, stream: &mut TcpStream) -> std::io::Result<String> {
    let mut buffer = Vec::with_capacity(READ_BYTES);
    loop {
        stream.write_all(&request(client)).await?;
        client.counts.asked();
        let Some(wait) = reply(client, stream, &mut buffer).await? else {
            return Ok("closed".to_owned());
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

fn request(client: &Client) -> Vec<u8> {
    let spec = &client.spec;
    let query = match spec.attack {
        Attack::Topics => texts::publish(spec.operations, || client.counts.serial()),
        _ => texts::query(spec.kind, &spec.market, client.counts.serial()),
    };
    http::post(spec.address, &query, "application/json")
}

/// Reads one reply; returns how long to wait before the next request. `None` is the end of the
/// connection.
async fn reply(
    client: &Client,
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<Duration>> {
    buffer.clear();
    let head = loop {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
        if let Some(head) = http::head(buffer) {
            break head;
        }
    };
    client.counts.status(head.status);
    // Only the beginning of a body is kept; what follows is counted.
    let mut read = buffer.len();
    let mut rest = buffer.split_off(head.body);
    let kept = rest.len();
    buffer.append(&mut rest);
    while head.end.is_none_or(|end| read < end) {
        buffer.truncate(head.body + kept);
        let more = stream.read_buf(buffer).await?;
        if more == 0 {
            return Ok(None);
        }
        read += more;
    }
    client.counts.bytes(read as u64);
    let body = buffer.get(head.body..).unwrap_or_default();
    match client.counts.error_in(body) {
        Some(wait) => Ok(Some(wait)),
        None if head.status == 429 || head.status == 503 => Ok(Some(RETRY_PAUSE)),
        None => {
            client.counts.answered();
            Ok(Some(Duration::ZERO))
        }
    }
}
