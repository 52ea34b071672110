//! A rollout: hubs on one log are replaced one after the other, with nginx before them as the
//! documents have it. No client may meet a failure, and nothing is lost or doubled.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval_at};

use crate::harness::client::{self, MODERN, PATIENCE};
use crate::harness::{
    Client, Follower, Hub, Listener, Postgres, Proxy, Seen, follower, loud, market, until,
};

const TOPICS: usize = 3;
const BOOK: &str = "HOP-USD";
const BETWEEN_EVENTS: Duration = Duration::from_millis(20);
const END: &str = "end";

#[derive(Clone, Copy)]
struct Size {
    clients: usize,
    connections: u32,
    queries_per_second: u32,
    /// In each, both hubs are replaced.
    rounds: usize,
}

fn size() -> Size {
    match std::env::var_os("SPREADLY_SOAK") {
        Some(_) => Size { clients: 200, connections: 50, queries_per_second: 500, rounds: 5 },
        None => Size { clients: 24, connections: 10, queries_per_second: 50, rounds: 1 },
    }
}

/// What the clients met, all together.
#[derive(Default)]
struct Met {
    opened: AtomicUsize,
    restarts: AtomicUsize,
    sent_elsewhere: AtomicUsize,
}

impl Met {
    /// Whether a client has to come back. Any end but that of a hub that says so is a failure.
    fn ends(&self, seen: &Seen) -> bool {
        match seen {
            Seen::Message(_) => return false,
            Seen::Closed(1012, _) => self.restarts.fetch_add(1, Ordering::Relaxed),
            Seen::Closed(1013, _) => self.sent_elsewhere.fetch_add(1, Ordering::Relaxed),
            end => panic!("a client met {end:?}"),
        };
        true
    }

    /// A socket that has its `connection_ack`. The first upgrade has to be answered by one.
    async fn connected(&self, proxy: SocketAddr) -> Client {
        loop {
            let opened = client::open(proxy, &[("sec-websocket-protocol", MODERN)]).await;
            let mut client = opened.unwrap_or_else(|refused| panic!("refused: {refused:?}"));
            self.opened.fetch_add(1, Ordering::Relaxed);
            client.try_send(json!({"type": "connection_init"})).await;
            let seen = client.seen().await;
            if !self.ends(&seen) {
                return client;
            }
        }
    }
}

/// Follows a topic until its last event.
async fn listen(proxy: SocketAddr, topic: String, met: Arc<Met>) -> Listener {
    let mut listener = Listener::of(&topic);
    loop {
        let mut client = met.connected(proxy).await;
        listener.subscribe(&mut client).await;
        loop {
            let seen = client.seen().await;
            if met.ends(&seen) {
                break;
            }
            if let Seen::Message(message) = seen {
                listener.take(&message);
            }
            if listener.received.last().is_some_and(|last| last == END) {
                return listener;
            }
        }
    }
}

/// Follows the book until it is as all steps leave it.
async fn follow(proxy: SocketAddr, steps: watch::Receiver<Option<u64>>, met: Arc<Met>) -> Follower {
    let mut copy = Follower::new(1, 8);
    loop {
        let mut client = met.connected(proxy).await;
        let query = follower::subscription(BOOK, 25, copy.cursor.as_deref());
        client.try_subscribe("book", &query).await;
        loop {
            let seen = client.seen().await;
            if met.ends(&seen) {
                break;
            }
            if let Seen::Message(message) = seen {
                copy.apply(&message);
            }
            let steps = *steps.borrow();
            if steps.is_some_and(|steps| copy.bids == market::bids_after(steps)) {
                return copy;
            }
        }
    }
}

/// A kept connection that asks for lists at a steady pace, as long as it may. How long each answer
/// took.
async fn ask(
    proxy: SocketAddr,
    first: Instant,
    pace: Duration,
    over: watch::Receiver<Option<u64>>,
) -> Vec<Duration> {
    let lists = [
        "{ markets { id status } }",
        "{ events(topic: \"t0\", first: 100) { nodes { sequence data } } }",
        "{ trades(market: \"HOP-USD\", first: 100) { nodes { id price } } }",
        "{ orders(first: 100) { nodes { id } } }",
        "{ feeds { name state } }",
    ];
    let mut ticks = interval_at(first.into(), pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut stream, mut took) = (TcpStream::connect(proxy).await.unwrap(), Vec::new());
    while over.borrow().is_none() {
        ticks.tick().await;
        let began = Instant::now();
        let body = json!({"query": lists[took.len() % lists.len()]}).to_string();
        let request = format!(
            "POST /graphql HTTP/1.1\r\nHost: hub.example\r\nContent-Type: application/json\r\n\
             Accept: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let (head, answer) = tokio::time::timeout(PATIENCE, answer(&mut stream)).await.unwrap();
        assert!(head.starts_with("http/1.1 200 "), "{head}\n{answer}");
        let is_whole = answer.starts_with("{\"data\":{") && !answer.contains("\"errors\"");
        assert!(is_whole, "{answer}");
        took.push(began.elapsed());
        if head.contains("\r\nconnection: close") {
            // nginx ends a connection after a thousand requests.
            stream = TcpStream::connect(proxy).await.unwrap();
        }
    }
    took
}

/// Head, in lower case, and body of an answer on a connection that goes on.
async fn answer(stream: &mut TcpStream) -> (String, String) {
    let mut bytes = Vec::new();
    loop {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "cut after {bytes:?}");
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize =
            length.unwrap_or_else(|| panic!("no length in {head}")).parse().unwrap();
        if bytes.len() == end + 4 + length {
            return (head, String::from_utf8(bytes.split_off(end + 4)).unwrap());
        }
    }
}

/// Writes events until it may stop. How many of each topic, and as many steps of the book.
async fn write(postgres: Arc<Postgres>, over: watch::Receiver<bool>) -> u64 {
    let database = postgres.client().await;
    let insert = "INSERT INTO events (payload) VALUES ($1::text::json)";
    let message = |topic: usize, data: &str| {
        json!({"kind": "message", "topic": format!("t{topic}"), "data": data}).to_string()
    };
    let mut number = 0;
    while !*over.borrow() {
        for topic in 0..TOPICS {
            database.execute(insert, &[&message(topic, &number.to_string())]).await.unwrap();
        }
        database.execute(insert, &[&market::step(BOOK, number)]).await.unwrap();
        number += 1;
        tokio::time::sleep(BETWEEN_EVENTS).await;
    }
    for topic in 0..TOPICS {
        database.execute(insert, &[&message(topic, END)]).await.unwrap();
    }
    number
}

/// Replaces hubs with these settings before this proxy. What the proxy has logged.
async fn roll(settings: &[&str], proxied: fn(&[&Hub]) -> Proxy) -> String {
    let Size { clients, connections, queries_per_second, rounds } = size();
    let postgres = Arc::new(Postgres::start());
    let log = format!("store.url={}", postgres.url());
    let begin = || {
        // The drain is longer than the proxies keep an idle connection.
        let own = [&*log, "server.trusted_proxies=127.0.0.1", "server.drain_ms=6500"];
        Hub::start_with(&[&own, settings].concat())
    };
    let mut hubs = [begin(), begin()];
    hubs[0].append_lines("book.ndjson", &market::beginning(BOOK));
    for hub in &hubs {
        drop(Client::knowing(hub.address(), BOOK).await);
    }
    let before = proxied(&[&hubs[0], &hubs[1]]);
    let proxy = before.address();

    let met = Arc::<Met>::default();
    let (stop_writing, stopped) = watch::channel(false);
    let (said_steps, steps) = watch::channel(None);
    let (mut listeners, mut followers, mut asking) = (Vec::new(), Vec::new(), Vec::new());
    for client in 0..clients {
        let met = met.clone();
        match client % (TOPICS + 1) {
            TOPICS => followers.push(tokio::spawn(follow(proxy, steps.clone(), met))),
            topic => listeners.push(tokio::spawn(listen(proxy, format!("t{topic}"), met))),
        }
    }
    until("all clients", async || met.opened.load(Ordering::Relaxed) >= clients).await;
    let began = Instant::now();
    let pace = Duration::from_secs(1) * connections / queries_per_second;
    for number in 0..connections {
        let first = began + pace * number / connections;
        asking.push(tokio::spawn(ask(proxy, first, pace, steps.clone())));
    }
    let writing = tokio::spawn(write(postgres.clone(), stopped));

    for round in 0..rounds {
        for hub in &mut hubs {
            assert!(hub.sigterm().success(), "{}", hub.log());
            hub.restart();
            until("a ready hub", async || hub.admin_page("/readyz").0 == 200).await;
        }
        loud::say(&format!("round {} of {rounds}: both hubs were replaced", round + 1));
    }

    stop_writing.send_replace(true);
    let events = writing.await.unwrap();
    said_steps.send_replace(Some(events));
    let mut took = Vec::new();
    for one in asking {
        took.extend(one.await.unwrap());
    }
    let seconds = began.elapsed().as_secs_f64();
    let expected: Vec<_> =
        (0..events).map(|number| number.to_string()).chain([END.into()]).collect();
    for listener in listeners {
        let listener = listener.await.unwrap();
        // It may have begun after the first of them.
        let begin = expected.len() - listener.received.len();
        assert_eq!(listener.received, expected[begin..], "lost, doubled or out of order");
        assert_eq!(listener.reasons.len(), 1, "{:?}", listener.reasons);
    }
    for follower in followers {
        let copy = follower.await.unwrap();
        assert_eq!(copy.snapshots, 1, "a hub could not go on after another's cursor");
    }
    took.sort_unstable();
    let at = |part: usize| took[(took.len() - 1) * part / 1_000].as_millis();
    loud::say(&format!(
        "{} queries in {seconds:.0} s, {:.0} a second, each 200: median {} ms, 99 % {} ms, \
         99.9 % {} ms, longest {} ms; {clients} clients, {events} events of each topic; \
         {} sockets opened, {} closed with 1012, {} with 1013",
        took.len(),
        took.len() as f64 / seconds,
        at(500),
        at(990),
        at(999),
        at(1_000),
        met.opened.load(Ordering::Relaxed),
        met.restarts.load(Ordering::Relaxed),
        met.sent_elsewhere.load(Ordering::Relaxed),
    ));
    assert!(met.restarts.load(Ordering::Relaxed) >= clients, "the clients were not sent away");
    before.log()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_with_nginx_before_two_hubs_loses_no_query_no_client_and_no_event() {
    let log = roll(&[], Proxy::nginx).await;
    // That a port is closed is all that nginx may say: it goes on to the other hub.
    let faults: Vec<_> = log
        .lines()
        .filter(|line| line.contains("[error]") || line.contains("[crit]"))
        .filter(|line| !line.contains("(111: Connection refused) while connecting to upstream"))
        .collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

/// It asks each hub each second, and sends nobody to one that has said three times that it leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_with_haproxy_that_asks_for_readiness_loses_nothing_either() {
    let log = roll(&["server.drain_delay_ms=5000"], Proxy::haproxy).await;
    let down: Vec<_> = log.lines().filter(|line| line.contains(" is DOWN")).collect();
    assert_eq!(down.len(), 2 * size().rounds, "{log}");
    // Not as its port was closed.
    assert!(down.iter().all(|line| line.contains("code: 503")), "{down:#?}");
}
