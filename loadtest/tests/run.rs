//! `run` as a process, against a small server whose faults are known. The server replaces a
//! hub only here: it proves that the tester notices faults.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]
#![allow(clippy::result_large_err, reason = "tungstenite's callback has that signature")]

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::Command;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

/// What the double does with a connection.
#[derive(Clone)]
enum Script {
    /// Sends these orderBook frames for every operation.
    Frames(Vec<Value>),
    /// Sends the frame only after its two pings, WebSocket's and the protocol's, are answered.
    PingsFirst(Value),
    /// Answers the upgrade with this status.
    Refuse(u16),
    /// Sends the frame, then closes with this code.
    Close(Value, u16),
}

/// A server on a port of its own, for as long as the test's process lives.
fn serve(script: Script) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, script.clone()));
            }
        });
    });
    address
}

async fn connection(mut stream: TcpStream, script: Script) {
    let mut first = [0; 4];
    while stream.peek(&mut first).await.unwrap() < first.len() {}
    if &first == b"POST" {
        return markets(&mut stream).await;
    }
    let refusal = if let Script::Refuse(status) = script { Some(status) } else { None };
    let upgrade = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        if let Some(status) = refusal {
            let mut refused = ErrorResponse::new(None);
            *refused.status_mut() = status.try_into().unwrap();
            return Err(refused);
        }
        let wanted = request.headers()["sec-websocket-protocol"].clone();
        response.headers_mut().insert("sec-websocket-protocol", wanted);
        Ok(response)
    };
    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, upgrade).await else { return };
    let mut pongs = 0;
    let mut waiting = None;
    while let Some(Ok(message)) = socket.next().await {
        let next = |id: &Value, frame: &Value| {
            let payload = json!({"data": {"orderBook": frame}});
            let id = id.as_str().unwrap();
            Message::text(format!("{{\"id\":\"{id}\",\"type\":\"next\",\"payload\":{payload}}}"))
        };
        let value: Value = match &message {
            Message::Text(text) => serde_json::from_str(text).unwrap(),
            Message::Pong(payload) => {
                assert_eq!(&payload[..], b"echo");
                json!({"type": "pong"})
            }
            _ => continue,
        };
        match value["type"].as_str().unwrap() {
            "connection_init" => {
                let ack = json!({"type": "connection_ack"}).to_string();
                socket.send(Message::text(ack)).await.unwrap();
            }
            "subscribe" => match &script {
                Script::Frames(frames) => {
                    for frame in frames {
                        socket.feed(next(&value["id"], frame)).await.unwrap();
                    }
                    socket.flush().await.unwrap();
                }
                Script::PingsFirst(frame) => {
                    waiting = Some(next(&value["id"], frame));
                    socket.feed(Message::Ping("echo".into())).await.unwrap();
                    let ping = json!({"type": "ping"}).to_string();
                    socket.send(Message::text(ping)).await.unwrap();
                }
                Script::Close(frame, code) => {
                    socket.send(next(&value["id"], frame)).await.unwrap();
                    let close = CloseFrame { code: (*code).into(), reason: "enough".into() };
                    socket.close(Some(close)).await.unwrap();
                    return;
                }
                Script::Refuse(_) => return,
            },
            "pong" => {
                pongs += 1;
                if pongs == 2 {
                    socket.send(waiting.take().unwrap()).await.unwrap();
                }
            }
            other => panic!("the tester sent {other}"),
        }
    }
}

/// Answers the list of markets: 60, more than one socket's share.
async fn markets(stream: &mut TcpStream) {
    let mut request = Vec::new();
    while !request.ends_with(b"}\"}") {
        stream.read_buf(&mut request).await.unwrap();
    }
    let markets: Vec<Value> = (0..60).map(|number| json!({"id": format!("M{number}")})).collect();
    let body = json!({"data": {"markets": markets}});
    let answer = format!("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.unwrap();
}

#[test]
fn check_follows_every_market_the_hub_lists() {
    for (script, faults) in [(stream(), 0), (stream().split_off(1), 1)] {
        let url = format!("ws://{}/graphql", serve(Script::Frames(script)));
        let output = Command::new(env!("CARGO_BIN_EXE_spreadly-storm"))
            .args(["check", "--url", &url, "--json", "--duration", "0.3"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(faults));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["ready"], 2);
        // Without the snapshot, the first delta of each of the 60 follows nothing.
        assert_eq!(report["follow"]["gaps"], 60 * faults);
    }
}

/// Exit code and report.
fn run(address: SocketAddr, more: &[&str]) -> (i32, Value) {
    let url = format!("ws://{address}/graphql");
    let output = Command::new(env!("CARGO_BIN_EXE_spreadly-storm"))
        .args(["run", "--url", &url, "--json", "--duration", "0.3"])
        .args(more)
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    eprintln!("{report} {}", String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), report)
}

fn checksum(text: &str) -> u32 {
    let mut crc = u32::MAX;
    for byte in text.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// A book whose only level is one bid at 1.5.
fn frame(kind: &str, sequence: u64, previous: u64, size: u64) -> Value {
    json!({"__typename": kind, "epoch": "e", "sequence": sequence.to_string(),
           "prevSequence": previous.to_string(), "checksum": checksum(&format!("15{size}")),
           "publishTime": "2026-01-01T00:00:00.000000Z", "reason": "INITIAL", "mergedEvents": 1,
           "bids": [{"price": "1.5", "size": size.to_string()}], "asks": []})
}

fn stream() -> Vec<Value> {
    let mut frames = vec![frame("BookSnapshot", 10, 0, 1)];
    frames.extend((1..=50).map(|step| frame("BookDelta", 10 + step, 9 + step, step)));
    frames
}

#[test]
fn every_message_of_every_operation_is_counted_and_followed() {
    let address = serve(Script::Frames(stream()));
    let more = ["--connections", "20", "--operations-per-connection", "3", "--follow"];
    let (code, report) = run(address, &more);
    assert_eq!(code, 0);
    assert_eq!((&report["connected"], &report["ready"]), (&json!(20), &json!(20)));
    assert_eq!(report["follow"]["deltas"], 20 * 3 * 50);
    assert_eq!(report["follow"]["snapshots"]["INITIAL"], 20 * 3);
    assert_eq!(report["follow"]["checksumsMatched"], 20 * 3 * 51);
}

#[test]
fn a_dropped_frame_fails_the_run() {
    let mut frames = stream();
    frames.remove(20);
    let (code, report) = run(serve(Script::Frames(frames)), &["--connections", "2", "--follow"]);
    assert_eq!(code, 1);
    assert_eq!(report["follow"]["gaps"], 2);
    assert_eq!(report["follow"]["doubles"], 0);
}

#[test]
fn a_doubled_frame_fails_the_run() {
    let mut frames = stream();
    frames.insert(20, frames[20].clone());
    let (code, report) = run(serve(Script::Frames(frames)), &["--connections", "2", "--follow"]);
    assert_eq!(code, 1);
    assert_eq!((&report["follow"]["gaps"], &report["follow"]["doubles"]), (&json!(0), &json!(2)));
}

#[test]
fn a_wrong_checksum_fails_the_run() {
    let mut frames = stream();
    frames[20]["checksum"] = json!(1);
    let (code, report) = run(serve(Script::Frames(frames)), &["--connections", "1", "--follow"]);
    assert_eq!(code, 1);
    assert_eq!(report["follow"]["checksumFaults"], 1);
}

#[test]
fn both_kinds_of_ping_are_answered() {
    let script = Script::PingsFirst(frame("BookSnapshot", 1, 0, 1));
    let (code, report) = run(serve(script), &["--connections", "5", "--threads", "2"]);
    assert_eq!((code, &report["ready"]), (0, &json!(5)));
}

#[test]
fn a_refusal_is_counted_by_its_status_and_nobody_connected_is_an_error() {
    let address = serve(Script::Refuse(429));
    let url = format!("ws://{address}/graphql");
    let output = Command::new(env!("CARGO_BIN_EXE_spreadly-storm"))
        .args(["run", "--url", &url, "--connections", "3"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, "spreadly-storm: nobody connected (HTTP 429: 3)\n");
}

#[test]
fn close_codes_are_counted() {
    let script = Script::Close(frame("BookSnapshot", 1, 0, 1), 1013);
    let address = serve(script);
    let (code, report) = run(address, &["--connections", "4"]);
    assert_eq!((code, &report["closes"]), (1, &json!({"1013": 4})));
    let (code, _) = run(address, &["--connections", "4", "--allow-failures", "1"]);
    assert_eq!(code, 0, "as many as are allowed");
}
