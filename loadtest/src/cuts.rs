//! `cuts`: all clients of a hub are cut off at once and come back at once, each with its cursor.
//! The limit is measured in the same run: as many bare handshakes with a server that knows nothing
//! else.

use crate::bench::feeder::{self, Feeder};
use crate::bench::median;
use crate::flood::socket::{PATH, Socket};
use crate::hub::{Hub, Settings};
use crate::process;
use crate::run::client::{self, string_after};
use crate::wire;
use clap::Args;
use serde_json::json;
use std::cell::Cell;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinSet, LocalSet};

/// Of the bare server; the system may allow less.
const BACKLOG: u32 = 4096;
const QUERY: &str = "subscription($market: ID!, $after: String) { \
    orderBook(market: $market, depth: 25, speed: RAW, after: $after) { __typename cursor } }";

/// Options of `cuts`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spreadly-storm cuts --hub target/release/spreadly
      ten cuts of 10,000 sockets, in turns with as many bare handshakes

A round is over when the last client has its first frame. The hub resumes a book when that frame is \
no snapshot. A SYN that finds the listen backlog full is sent again after a second: the system \
counts it in ListenOverflows.")]
pub struct CutsArgs {
    /// The hub's binary, built with --release
    #[arg(long, value_name = "PATH")]
    hub: PathBuf,
    /// Sockets that are cut and come back
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// How many times
    #[arg(long, default_value_t = 10)]
    cuts: usize,
    /// Events a second of the market that all of them follow
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
}

/// A client between two cuts.
#[derive(Default)]
struct Follower {
    cursor: Option<String>,
}

/// All clients from one cut to the next.
struct Crowd {
    began: Instant,
    /// Those that have no frame yet.
    missing: Cell<usize>,
    cut: watch::Sender<bool>,
}

impl Crowd {
    /// The last one cuts all of them.
    fn has_one_more(&self) {
        self.missing.set(self.missing.get() - 1);
        if self.missing.get() == 0 {
            self.cut.send_replace(true);
        }
    }
}

/// What one cut took, in seconds, and how many of the first frames were snapshots.
struct Round {
    median: f64,
    last: f64,
    snapshots: u64,
}

/// # Errors
/// When the hub doesn't start, or a client doesn't come back.
pub fn run(args: &CutsArgs) -> Result<(), String> {
    if args.connections == 0 || args.cuts == 0 {
        return Err("--connections and --cuts from 1".to_owned());
    }
    process::allow_sockets(args.connections)?;
    let hub = Hub::start(&args.hub, &Settings::default())?;
    let feeding = Feeder::open(&hub.feeds, 5)?.start(args.rate, false);
    let bare = BareServer::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let overflows = listen_overflows()?;
    let rounds = LocalSet::new().block_on(&runtime, async {
        let mut followers = first_frames(hub.public, args.connections).await?;
        let (mut resumed, mut handshakes) = (Vec::new(), Vec::new());
        for number in 1..=args.cuts {
            let bare = handshake_all(bare.address, args.connections).await?;
            let round;
            (round, followers) = resume_all(hub.public, followers).await?;
            println!(
                "cut {number}: the last of {} is back after {:.3} s, the median after {:.3} s; {} \
                 snapshots; bare handshakes {:.3} s",
                args.connections, round.last, round.median, round.snapshots, bare
            );
            resumed.push(round);
            handshakes.push(bare);
        }
        Ok::<_, String>((resumed, handshakes))
    });
    feeding.stop()?;
    let (resumed, handshakes) = rounds.map_err(|error| format!("{error}\n{}", hub.last_words()))?;
    let last: Vec<f64> = resumed.iter().map(|round| round.last).collect();
    let (middle, limit) = (median(&last), median(&handshakes));
    let worst = last.into_iter().fold(0.0, f64::max);
    println!(
        "all back: median {middle:.3} s, worst {worst:.3} s; bare handshakes: median {limit:.3} s; \
         ratio {:.2}; {} snapshots; ListenOverflows rose by {}",
        middle / limit,
        resumed.iter().map(|round| round.snapshots).sum::<u64>(),
        listen_overflows()? - overflows
    );
    Ok(())
}

/// Opens all sockets a few at a time, so that the first frames are no crowd's.
async fn first_frames(hub: SocketAddr, count: usize) -> Result<Vec<Follower>, String> {
    const AT_ONCE: usize = 500;
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let some = (0..AT_ONCE.min(count - all.len())).map(|_| Follower::default()).collect();
        let (_, some) = resume_all(hub, some).await?;
        all.extend(some);
    }
    Ok(all)
}

/// All come at once, and stay until each of them has its first frame.
async fn resume_all(
    hub: SocketAddr,
    followers: Vec<Follower>,
) -> Result<(Round, Vec<Follower>), String> {
    let crowd = Rc::new(Crowd {
        began: Instant::now(),
        missing: Cell::new(followers.len()),
        cut: watch::Sender::new(false),
    });
    let mut tasks = JoinSet::new();
    for follower in followers {
        tasks.spawn_local(follow(hub, follower, crowd.clone()));
    }
    let (mut delays, mut back, mut snapshots) = (Vec::new(), Vec::new(), 0);
    while let Some(ended) = tasks.join_next().await {
        let (delay, is_snapshot, follower) = ended.map_err(|error| error.to_string())??;
        delays.push(delay.as_secs_f64());
        snapshots += u64::from(is_snapshot);
        back.push(follower);
    }
    let last = delays.iter().copied().fold(0.0, f64::max);
    let round = Round { median: median(&delays), last, snapshots };
    Ok((round, back))
}

/// One client from its handshake to the next cut: how long its first frame took, and whether that
/// was a snapshot.
async fn follow(
    hub: SocketAddr,
    mut follower: Follower,
    crowd: Rc<Crowd>,
) -> Result<(Duration, bool, Follower), String> {
    let mut cut = crowd.cut.subscribe();
    let mut socket = Socket::open(hub, None, None).await?;
    let variables = match &follower.cursor {
        None => json!({ "market": feeder::MARKET }),
        Some(cursor) => json!({ "market": feeder::MARKET, "after": cursor }),
    };
    let payload = json!({ "query": QUERY, "variables": variables });
    let subscribe = json!({ "id": "1", "type": "subscribe", "payload": payload }).to_string();
    let mut first = None;
    loop {
        let (mut is_acknowledged, mut refusal) = (false, None);
        let turn = socket.turn(|message| match message.kind {
            b"connection_ack" => is_acknowledged = true,
            b"next" => {
                if let Some(cursor) = string_after(message.text, b"\"cursor\":\"") {
                    follower.cursor = Some(String::from_utf8_lossy(cursor).into_owned());
                }
                first.get_or_insert_with(|| {
                    crowd.has_one_more();
                    let name = string_after(message.text, b"\"__typename\":\"");
                    (crowd.began.elapsed(), name == Some(b"BookSnapshot"))
                });
            }
            b"error" | b"complete" => {
                refusal = Some(String::from_utf8_lossy(message.text).into_owned());
            }
            _ => {}
        });
        tokio::select! {
            turned = turn => turned?,
            _ = cut.wait_for(|cut| *cut) => break,
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        if is_acknowledged {
            socket.send(&subscribe);
        }
    }
    let (took, is_snapshot) = first.ok_or("cut before the first frame")?;
    Ok((took, is_snapshot, follower))
}

/// All come at once; seconds until the last one has its answer.
async fn handshake_all(server: SocketAddr, count: usize) -> Result<f64, String> {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        tasks.spawn_local(async move {
            let socket = client::local_socket(server, None).map_err(|e| e.kind().to_string())?;
            client::upgraded(socket, "bare", PATH, server).await
        });
    }
    // They stay until all have theirs, as a hub's clients do.
    let mut open = Vec::with_capacity(count);
    while let Some(one) = tasks.join_next().await {
        open.push(one.map_err(|error| error.to_string())??);
    }
    Ok(began.elapsed().as_secs_f64())
}

/// Answers each request with the same bytes, in a process of its own, as it has as many sockets
/// open as the clients.
struct BareServer {
    address: SocketAddr,
    process: Child,
}

impl BareServer {
    fn start() -> Result<Self, String> {
        let as_text = |error: io::Error| error.to_string();
        let mut process = Command::new(std::env::current_exe().map_err(as_text)?)
            .arg("answer-handshakes")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(as_text)?;
        let stdout = process.stdout.take().map(BufReader::new);
        let line = stdout.and_then(|mut stdout| {
            let mut line = String::new();
            stdout.read_line(&mut line).ok().map(|_| line)
        });
        let address = line.and_then(|line| line.trim().parse().ok());
        match address {
            Some(address) => Ok(Self { address, process }),
            None => Err(format!("no bare server: {:?}", process.wait())),
        }
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        // Its end of input is its end.
        drop(self.process.stdin.take());
        if let Err(error) = self.process.wait() {
            eprintln!("spreadly-storm: the bare server: {error}");
        }
    }
}

/// The bare server's process: says where it listens, and serves until its input ends.
///
/// # Errors
/// When it can't listen.
pub fn answer_handshakes() -> Result<(), String> {
    let as_text = |error: io::Error| error.to_string();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(as_text)?;
    let (stop, stopped) = oneshot::channel();
    thread::spawn(move || {
        let ended = io::stdin().read_to_end(&mut Vec::new());
        stop.send(ended)
    });
    LocalSet::new().block_on(&runtime, async {
        let socket = TcpSocket::new_v4().map_err(as_text)?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).map_err(as_text)?;
        let listener = socket.listen(BACKLOG).map_err(as_text)?;
        println!("{}", listener.local_addr().map_err(as_text)?);
        let serving = async {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(answer(stream));
            }
        };
        tokio::select! {
            () = serving => Err("no more connections can be accepted".to_owned()),
            _ = stopped => Ok(()),
        }
    })
}

/// Answers when a request is whole, and reads until its client is gone.
async fn answer(mut stream: TcpStream) {
    let mut request = Vec::with_capacity(1024);
    while let Ok(1..) = stream.read_buf(&mut request).await {
        if request.ends_with(b"\r\n\r\n") {
            let answer = wire::accepted_upgrade();
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            request.clear();
        }
    }
}

/// SYNs that found a listen backlog full, of this machine, since it started.
fn listen_overflows() -> Result<u64, String> {
    let path = "/proc/net/netstat";
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let column = names.split(' ').position(|name| name == "ListenOverflows");
    let value = column.and_then(|column| values.split(' ').nth(column)?.parse().ok());
    value.ok_or_else(|| format!("{path} has no ListenOverflows"))
}
