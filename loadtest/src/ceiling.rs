//! `spreadly-storm ceiling`: what delivering costs when nothing is done but `write(2)` of ready
//! bytes to each socket. No hub that writes a message a socket can be cheaper, so it is what the
//! hub is compared with. The reader is another process: only the writer's time is wanted.

use crate::process;
use crate::wire::{self, Frames};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, ReadBuf};

/// The longest frame header, which `--bytes` counts too.
const HEADER_MAX: usize = 10;
const READ_BYTES: usize = 64 * 1024;
/// Between two looks for the next connection while there is none.
const ACCEPT_PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  spreadly-storm ceiling --connections 1000 --bytes 450 --rate 50 --duration 8
      µs of processor a written message, the floor for any hub on this machine")]
pub struct CeilingArgs {
    /// How many loopback sockets
    #[arg(long, default_value_t = 1000)]
    pub connections: usize,
    /// Bytes on the wire a message, WebSocket header included
    #[arg(long, default_value_t = 450)]
    pub bytes: usize,
    /// Events a second; each is one message to every socket
    #[arg(long, default_value_t = 50.0)]
    pub rate: f64,
    /// Seconds
    #[arg(long, default_value_t = 8.0)]
    pub duration: f64,
    /// Writing threads; the sockets are divided among them
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// The other process of `ceiling`; not for people.
#[derive(Debug, Args)]
pub struct ReceiveArgs {
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    connections: usize,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CeilingReport {
    pub connections: usize,
    pub bytes: usize,
    pub seconds: f64,
    pub events: u64,
    /// Messages that the kernel took, whole or in part.
    pub written: u64,
    /// Messages not written because the socket was full.
    pub would_block: u64,
    pub received: u64,
    pub messages_per_second: f64,
    /// User and system time of the writer over written messages.
    pub micros_per_message: f64,
}

#[derive(Debug, Default)]
struct Written {
    events: u64,
    messages: u64,
    would_block: u64,
}

/// # Errors
/// When sockets or the other process fail.
pub fn run(args: &CeilingArgs) -> Result<(), String> {
    let report = measure(args)?;
    if args.json {
        println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
    } else {
        println!(
            "{:.2} µs a message: {} written in {:.1} s ({:.0}/s), {} received, {} would have blocked",
            report.micros_per_message,
            report.written,
            report.seconds,
            report.messages_per_second,
            report.received,
            report.would_block
        );
    }
    Ok(())
}

fn measure(args: &CeilingArgs) -> Result<CeilingReport, String> {
    if args.connections == 0 || args.threads == 0 || args.rate.is_nan() || args.rate <= 0.0 {
        return Err("connections, threads and rate must be above 0".to_owned());
    }
    process::allow_sockets(args.connections)?;
    let duration = Duration::try_from_secs_f64(args.duration).map_err(|e| e.to_string())?;
    let as_text = |error: io::Error| error.to_string();
    let listener = TcpListener::bind("127.0.0.1:0").map_err(as_text)?;
    let address = listener.local_addr().map_err(as_text)?;
    let mut receiver = Command::new(std::env::current_exe().map_err(as_text)?)
        .args(["receive", "--address", &address.to_string()])
        .args(["--connections", &args.connections.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(as_text)?;
    let sockets = match accept_all(&listener, args.connections, &mut receiver) {
        Ok(sockets) => sockets,
        Err(error) => {
            // It may have ended already, which is then the error that is reported.
            let _ = receiver.kill();
            let _ = receiver.wait();
            return Err(error);
        }
    };
    let frame = ready_frame(args.bytes);
    let own = std::process::id();
    let spent_before = process::cpu_micros(own).ok_or("no /proc")?;
    let began = Instant::now();
    let written = write_all(sockets, args, &frame, began, duration);
    let seconds = began.elapsed().as_secs_f64();
    let spent = process::cpu_micros(own).ok_or("no /proc")? - spent_before;
    // The sockets are closed, which ends the receiver.
    let output = receiver.wait_with_output().map_err(as_text)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let received = text.trim().parse().map_err(|_| format!("the receiver said `{text}`"))?;
    Ok(CeilingReport {
        connections: args.connections,
        bytes: frame.len(),
        seconds,
        events: written.events,
        written: written.messages,
        would_block: written.would_block,
        received,
        messages_per_second: written.messages as f64 / seconds,
        micros_per_message: spent as f64 / (written.messages as f64).max(1.0),
    })
}

fn accept_all(
    listener: &TcpListener,
    connections: usize,
    receiver: &mut Child,
) -> Result<Vec<TcpStream>, String> {
    let as_text = |error: io::Error| error.to_string();
    listener.set_nonblocking(true).map_err(as_text)?;
    let mut sockets = Vec::with_capacity(connections);
    while sockets.len() < connections {
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(true).map_err(as_text)?;
                socket.set_nodelay(true).map_err(as_text)?;
                sockets.push(socket);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if let Some(status) = receiver.try_wait().map_err(as_text)? {
                    return Err(format!("the receiver ended before all connected: {status}"));
                }
                thread::sleep(ACCEPT_PAUSE);
            }
            Err(error) => return Err(as_text(error)),
        }
    }
    Ok(sockets)
}

/// A whole text frame of `bytes` bytes, or of the shortest message if that is longer.
fn ready_frame(bytes: usize) -> Vec<u8> {
    let envelope = br#"{"id":"0","type":"next","payload":""}"#;
    let length = bytes.saturating_sub(HEADER_MAX).max(envelope.len());
    let length = (length..=length + HEADER_MAX)
        .find(|length| wire::header(wire::TEXT, *length).len() + length >= bytes)
        .unwrap_or(length);
    let mut frame = wire::header(wire::TEXT, length);
    frame.extend_from_slice(&envelope[..envelope.len() - 2]);
    frame.resize(frame.len() + length - envelope.len(), b'x');
    frame.extend_from_slice(b"\"}");
    frame
}

fn write_all(
    sockets: Vec<TcpStream>,
    args: &CeilingArgs,
    frame: &[u8],
    began: Instant,
    duration: Duration,
) -> Written {
    let each = sockets.len().div_ceil(args.threads);
    let mut shares: Vec<Vec<TcpStream>> = Vec::with_capacity(args.threads);
    let mut sockets = sockets.into_iter();
    for _ in 0..args.threads {
        shares.push(sockets.by_ref().take(each).collect());
    }
    let mut total = Written::default();
    thread::scope(|scope| {
        let write = |share| paced_writes(share, frame, args.rate, began, duration);
        let first = shares.pop();
        let others: Vec<_> =
            shares.into_iter().map(|share| scope.spawn(move || write(share))).collect();
        let mine = first.map(write);
        let theirs = others.into_iter().filter_map(|thread| thread.join().ok());
        for written in theirs.chain(mine) {
            total.events = total.events.max(written.events);
            total.messages += written.messages;
            total.would_block += written.would_block;
        }
    });
    total
}

/// Absolute deadlines: an event that is late doesn't move those after it.
fn paced_writes(
    sockets: Vec<TcpStream>,
    frame: &[u8],
    rate: f64,
    began: Instant,
    duration: Duration,
) -> Written {
    let mut written = Written::default();
    // How much of its last message each socket has taken; a frame must never be left half-written.
    let mut sockets: Vec<(TcpStream, usize)> =
        sockets.into_iter().map(|socket| (socket, frame.len())).collect();
    loop {
        let due = Duration::from_secs_f64(written.events as f64 / rate);
        let now = began.elapsed();
        if due.max(now) >= duration {
            // The last event's share of the time belongs to the rate.
            thread::sleep(duration.saturating_sub(now));
            return written;
        }
        if due > now {
            thread::sleep(due - now);
        }
        for (socket, taken) in &mut sockets {
            if *taken < frame.len() {
                *taken += socket.write(&frame[*taken..]).unwrap_or(0);
            }
            if *taken < frame.len() {
                written.would_block += 1;
                continue;
            }
            match socket.write(frame) {
                Ok(bytes) => {
                    *taken = bytes;
                    written.messages += 1;
                }
                // Full, or gone: the count of received messages shows which.
                Err(_) => written.would_block += 1,
            }
        }
        written.events += 1;
    }
}

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// Connects, counts messages until the writer closes, prints the count.
///
/// # Errors
/// When a connection can't be opened.
pub fn receive(args: &ReceiveArgs) -> Result<(), String> {
    let as_text = |error: io::Error| error.to_string();
    process::allow_sockets(args.connections)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(as_text)?;
    let total = runtime.block_on(async {
        let mut readers = Vec::with_capacity(args.connections);
        for _ in 0..args.connections {
            let stream = tokio::net::TcpStream::connect(args.address).await.map_err(as_text)?;
            readers.push(tokio::spawn(count_messages(stream)));
        }
        let mut total = 0;
        for reader in readers {
            total += reader.await.map_err(|error| error.to_string())?;
        }
        Ok::<u64, String>(total)
    })?;
    println!("{total}");
    Ok(())
}

/// The storm's way of reading, without a protocol.
async fn count_messages(mut stream: tokio::net::TcpStream) -> u64 {
    let mut frames = Frames::default();
    let mut count = 0;
    poll_fn(|context| {
        BUFFER.with_borrow_mut(|buffer| {
            loop {
                let mut buffer = ReadBuf::new(buffer);
                match Pin::new(&mut stream).poll_read(context, &mut buffer) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                        if frames.feed(buffer.filled(), |_, _| count += 1).is_err() {
                            return Poll::Ready(());
                        }
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                }
            }
        })
    })
    .await;
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_frame_is_one_message_of_the_size_asked_for() {
        for bytes in [60, 127, 128, 130, 450, 65_535, 65_546, 70_000] {
            let frame = ready_frame(bytes);
            let mut payloads = Vec::new();
            Frames::default().feed(&frame, |_, payload| payloads.push(payload.to_vec())).unwrap();
            assert_eq!(payloads.len(), 1);
            serde_json::from_slice::<serde_json::Value>(&payloads[0]).unwrap();
            // A few sizes can't be met, where the header grows with the length.
            assert!(frame.len().abs_diff(bytes) <= HEADER_MAX, "{bytes}: {}", frame.len());
        }
        assert_eq!(ready_frame(450).len(), 450);
    }
}
