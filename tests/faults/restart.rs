//! A hub that is killed again and again while lines keep coming: a client of a book goes on after
//! its cursor, and every line counts once. `make soak` does it for longer.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tokio::sync::watch;

use crate::harness::client::PATIENCE;
use crate::harness::follower::{self, Applied};
use crate::harness::{Client, Follower, Hub, Redis, Seen, loud, market};

const KILLS: usize = 8;
const SOAK_KILLS: usize = 50;
/// Every so manyth time it is killed once more while it starts.
const KILLED_WHILE_STARTING: usize = 3;
const MARKETS: [&str; 2] = ["XBT-USD", "ERG-USD"];
/// One connection each.
const FOLLOWED: [(&str, &str, u32); 5] = [
    ("XBT-USD", "RAW", 25),
    ("XBT-USD", "RAW", 1_000),
    ("XBT-USD", "MS_100", 25),
    ("ERG-USD", "RAW", 25),
    ("ERG-USD", "RAW", 10),
];

/// What a writer wrote after the beginning, and the book that makes.
struct Written {
    lines: Vec<String>,
    book: Follower,
}

/// Appends changes of one market to its own file until asked to stop, some lines in two halves.
fn write_on(file: PathBuf, market: &'static str, seed: u64, stop: Arc<AtomicBool>) -> Written {
    let mut random = StdRng::seed_from_u64(seed);
    let mut book = Follower::new(1, 8);
    book.apply_event(&serde_json::from_str(&market::beginning(market)[1]).unwrap());
    let mut written = Written { lines: Vec::new(), book };
    let mut file = OpenOptions::new().append(true).open(file).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let count = random.random_range(1..=4);
        let lines: Vec<_> = (0..count).map(|_| change(market, &mut random)).collect();
        let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
        let cut = if random.random_bool(0.1) { random.random_range(0..text.len()) } else { 0 };
        file.write_all(&text.as_bytes()[..cut]).unwrap();
        std::thread::sleep(Duration::from_micros(random.random_range(500..4_000)));
        file.write_all(&text.as_bytes()[cut..]).unwrap();
        for line in lines {
            written.book.apply_event(&serde_json::from_str(&line).unwrap());
            written.lines.push(line);
        }
    }
    written
}

/// Levels come, change and go on both sides of every window's edge.
fn change(market: &str, random: &mut StdRng) -> String {
    let bid = random.random_bool(0.5);
    let from_best = random.random_range(0..300);
    let price = if bid { 1_000 - from_best } else { 1_010 + from_best };
    let price = format!("{}.{}", price / 10, price % 10);
    let gone = random.random_bool(0.3);
    let size = if gone { 0 } else { random.random_range(1..1_000_000_u32) };
    let level = [(price.as_str(), &*format!("0.{size:08}"))];
    let (bids, asks) = if bid { (&level[..], &[][..]) } else { (&[][..], &level[..]) };
    market::delta(market, bids, asks)
}

/// A client with its first snapshot.
async fn joined(hub: &Hub, (market, speed, depth): (&str, &str, u32)) -> (Client, Follower) {
    let mut client = Client::knowing(hub.address(), market).await;
    client.subscribe("book", &follower::subscription_at(speed, market, depth, None)).await;
    let mut copy = Follower::new(1, 8);
    let first = client.message().await;
    assert_eq!(copy.apply(&first), Applied::Snapshot { reason: "INITIAL".to_owned() });
    (client, copy)
}

/// Follows through every cut until as many events were merged as `goal` says once it is known.
/// The copy at the end, and how often it resumed.
async fn follow_through(
    hub: std::net::SocketAddr,
    (market, speed, depth): (&'static str, &'static str, u32),
    (mut client, mut copy): (Client, Follower),
    mut goal: watch::Receiver<Option<u64>>,
) -> (Follower, usize) {
    let epoch = copy.position.clone().unwrap().0;
    let mut resumed = 0;
    let mut resuming = false;
    loop {
        if goal.borrow_and_update().is_some_and(|events| copy.merged_events >= events) {
            return (copy, resumed);
        }
        let seen = tokio::select! {
            seen = client.seen() => seen,
            changed = goal.changed() => { changed.unwrap(); continue }
        };
        match seen {
            Seen::Message(message) if message["type"] == "ping" => {
                client.try_send(json!({"type": "pong"})).await;
            }
            Seen::Message(message) => {
                let before = copy.position.clone();
                let applied = copy.apply(&message);
                let whole = !matches!(applied, Applied::Snapshot { .. });
                assert!(whole, "{market} {speed} {depth} had {before:?}, then {message}");
                assert_eq!(copy.position.as_ref().unwrap().0, epoch);
                resumed += usize::from(std::mem::take(&mut resuming));
            }
            Seen::Closed(..) | Seen::Cut => {
                client = Client::reconnected(hub).await;
                let cursor = copy.cursor.as_deref();
                let query = follower::subscription_at(speed, market, depth, cursor);
                client.try_subscribe("book", &query).await;
                resuming = true;
            }
        }
    }
}

/// Something happens to the cache.
fn strike(redis: &mut Redis, random: &mut StdRng) {
    match random.random_range(0..4) {
        0 => drop(redis.ask(&["flushall"])),
        1 => redis.signal("-STOP"),
        2 => {
            redis.kill9();
            redis.restart();
        }
        _ => {}
    }
}

/// Waits until each market's state was written to the cache a few times.
fn wait_for_cached_states(hub: &Hub) {
    let began = Instant::now();
    let written = || {
        let metrics = hub.admin_page("/metrics").1;
        let mut lines = metrics.lines();
        let line = lines.find_map(|line| line.strip_prefix("spreadly_cache_writes_total "));
        line.map_or(0, |count| count.trim().parse::<usize>().unwrap())
    };
    while written() < 4 * MARKETS.len() {
        assert!(began.elapsed() < PATIENCE, "nothing is written to the cache");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills and restarts; how long each restart took until it was ready.
fn torment(
    hub: &mut Hub,
    mut redis: Option<Redis>,
    kills: usize,
    random: &mut StdRng,
) -> Vec<Duration> {
    let mut times = Vec::new();
    for number in 1..=kills {
        std::thread::sleep(Duration::from_millis(random.random_range(0..800)));
        if let Some(redis) = &mut redis {
            redis.signal("-CONT");
            match number {
                // At least one start finds a cache that nothing has happened to.
                1 => wait_for_cached_states(hub),
                _ => strike(redis, random),
            }
        }
        hub.kill9();
        if number % KILLED_WHILE_STARTING == 0 {
            let after = Duration::from_millis(random.random_range(0..60));
            hub.kill9_while_starting(after);
        }
        let began = Instant::now();
        hub.restart();
        while hub.admin_page("/readyz").0 != 200 {
            assert!(began.elapsed() < PATIENCE, "never ready:\n{}", hub.admin_page("/readyz").1);
            std::thread::sleep(Duration::from_millis(5));
        }
        times.push(began.elapsed());
    }
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_killed_at_random_moments_loses_and_doubles_nothing() {
    killed_at_random_moments(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_killed_at_random_moments_with_a_cache_in_any_state_loses_and_doubles_nothing() {
    killed_at_random_moments(Some(Redis::start())).await;
}

async fn killed_at_random_moments(redis: Option<Redis>) {
    let soak = std::env::var_os("SPREADLY_SOAK").is_some_and(|soak| soak == "1");
    let kills = if soak { SOAK_KILLS } else { KILLS };
    let seed = std::env::var("SPREADLY_SEED")
        .map_or_else(|_| rand::rng().random_range(0..1_000_000), |seed| seed.parse().unwrap());
    loud::say(&format!("{kills} kills, SPREADLY_SEED={seed}"));
    let mut random = StdRng::seed_from_u64(seed);

    let cache = redis.as_ref().map(|redis| format!("cache.url={}", redis.url()));
    let settings: Vec<_> = cache.as_deref().into_iter().chain(["cache.interval_ms=20"]).collect();
    let mut hub = Hub::start_with(&settings);
    for market in MARKETS {
        hub.append_lines(&format!("{market}.ndjson"), &market::beginning(market));
    }
    let (know, goals): (Vec<_>, Vec<_>) = MARKETS.map(|_| watch::channel(None)).into_iter().unzip();
    let mut clients = Vec::new();
    for followed in FOLLOWED {
        let goal = goals[MARKETS.iter().position(|one| *one == followed.0).unwrap()].clone();
        let joined = joined(&hub, followed).await;
        clients.push(tokio::spawn(follow_through(hub.address(), followed, joined, goal)));
    }

    let stop = Arc::new(AtomicBool::new(false));
    let writers = MARKETS.map(|market| {
        let (file, stop, seed) =
            (hub.feed(&format!("{market}.ndjson")), stop.clone(), random.random());
        std::thread::spawn(move || write_on(file, market, seed, stop))
    });
    let tormented = tokio::task::spawn_blocking(move || {
        let times = torment(&mut hub, redis, kills, &mut random);
        (hub, times)
    });
    let (hub, mut times) = tormented.await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let written = writers.map(|writer| writer.join().unwrap());
    for (know, written) in know.iter().zip(&written) {
        know.send_replace(Some(written.lines.len() as u64));
    }

    let mut resumes = 0;
    for (client, (market, speed, depth)) in clients.into_iter().zip(FOLLOWED) {
        let what = format!("{market} {speed} {depth}");
        let done = tokio::time::timeout(PATIENCE, client).await;
        let (copy, resumed) = done.unwrap_or_else(|_| panic!("{what} never had it all")).unwrap();
        let written = &written[MARKETS.iter().position(|one| *one == market).unwrap()];
        assert_eq!(copy.merged_events, written.lines.len() as u64, "{what}");
        assert_eq!(
            (copy.bids.clone(), copy.asks.clone()),
            written.book.window(depth as usize),
            "{what}"
        );
        assert_eq!(copy.snapshots, 1, "{what}");
        let asked = hub.query(&format!(
            r#"{{ orderBook(market: "{market}", depth: {depth}) {{ epoch sequence checksum
                bids {{ price size }} asks {{ price size }} }} }}"#
        ));
        let mut state = Follower::new(1, 8);
        state.apply_snapshot(&asked["orderBook"]);
        assert_eq!((&state.bids, &state.asks), (&copy.bids, &copy.asks), "{what}");
        assert_eq!(asked["orderBook"]["checksum"], copy.checksum(), "{what}");
        resumes += resumed;
    }
    assert!(resumes > 0, "nobody had to resume: this has proven nothing");
    if cache.is_some() {
        let log = hub.log();
        let warm = log.matches("from_cache=1").count() + log.matches("from_cache=2").count();
        assert!(warm > 0, "no start went on from the cache: this has proven nothing");
        loud::say(&format!("{warm} starts went on from the cache"));
    }

    assert!(!hub.log().contains("a new epoch begins"), "a kill is no reason to doubt the log");
    let store = hub.folder().join("data/spreadly.db");
    for (market, written) in MARKETS.into_iter().zip(&written) {
        let logged = hub.logged(&store, &format!("book:{market}"));
        assert_eq!(logged.len(), 1 + written.lines.len(), "{market}");
        assert_eq!(logged[1..], written.lines, "{market}");
    }
    times.sort_unstable();
    let lines: usize = written.iter().map(|written| written.lines.len()).sum();
    loud::say(&format!(
        "{kills} kills, {lines} lines, {resumes} resumes, none lost or doubled; ready again after \
         {:?} (median), {:?} (worst), goal 2 s",
        times[times.len() / 2],
        times[times.len() - 1],
    ));
}
