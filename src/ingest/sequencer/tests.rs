//! The sequencer over a store in a temporary folder: what it takes, refuses and acknowledges.

mod refusals;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::group::GROUP_EVENTS;
use super::*;
use crate::ingest::feed_status::{FeedId, FeedKind, FeedState};
use crate::ingest::handle::Incoming;
use crate::ingest::place::{At, Place};
use crate::ingest::projection::MakeAside;
use crate::ingest::waiters;
use crate::live::Rollback;
use crate::market::book_gap::BookGap;
use crate::market::event;
use crate::market::levels::Side;
use crate::market::trade::MOST_AHEAD;
use crate::recovery::{CachedStates, recover};
use crate::store::Numbered;

/// A plain copy of the books, to compare with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Model {
    books: BTreeMap<String, (u64, BTreeMap<String, u128>)>,
    defined: BTreeMap<String, String>,
    gaps: Vec<Arc<BookGap>>,
    gaps_at: Vec<u64>,
    /// Of everything applied, also of what touches no book.
    pub(crate) sequences: Vec<u64>,
    /// Of these, what was applied on the thread of a file watch.
    pub(crate) by_watch: usize,
}

impl Model {
    fn apply(&mut self, events: &[Applied]) {
        if thread::current().name().is_some_and(|name| name.starts_with("notify-rs")) {
            self.by_watch += events.len();
        }
        for event in events {
            self.sequences.push(event.sequence);
            let (market, levels, replace) = match &event.effect {
                Effect::Define(market) => {
                    let status = format!("{:?}", market.status);
                    self.defined.insert(market.market.to_string(), status);
                    continue;
                }
                Effect::Replace { market, levels } => (market, levels, true),
                Effect::Change { market, levels } => (market, levels, false),
                Effect::Order { update, levels, .. } => (&update.order.market, levels, false),
                Effect::Gap(gap) => {
                    self.gaps.push(gap.clone());
                    self.gaps_at.push(event.sequence);
                    continue;
                }
                Effect::Complete { .. } | Effect::Trade(_) | Effect::Message(_) | Effect::None => {
                    continue;
                }
            };
            let (last, book) = self.books.entry(market.to_string()).or_default();
            assert!(*last < event.sequence, "a book's events come in order");
            *last = event.sequence;
            if replace {
                book.clear();
            }
            for level in levels {
                let key = format!("{} {}", level.side == Side::Buy, level.price);
                book.insert(key.clone(), level.size);
                if level.size == 0 {
                    book.remove(&key);
                }
            }
        }
    }
}

/// A projection that tests look into: its state, and how many events each commit had.
struct ModelProjection(Arc<Mutex<Model>>, Arc<Mutex<Vec<usize>>>);

impl Projection for ModelProjection {
    fn apply(&mut self, events: Vec<Applied>) -> Vec<Applied> {
        self.0.lock().apply(&events);
        self.1.lock().push(events.len());
        events
    }

    fn checkpoint(&mut self, market: &str) -> Option<(u64, Vec<u8>)> {
        let model = self.0.lock();
        let (sequence, book) = model.books.get(market)?;
        Some((*sequence, serde_json::to_vec(book).unwrap()))
    }

    fn aside(&self) -> MakeAside {
        unreachable!("no blocks are undone here")
    }

    fn roll_back(&mut self, _: &Arc<Rollback>) {
        unreachable!("no blocks are undone here")
    }

    fn keep(&mut self, _: &Admission, _: &MarketId) {}
}

pub(crate) struct Hub {
    pub(crate) ingest: IngestHandle,
    pub(crate) thread: JoinHandle<()>,
    pub(crate) board: FeedStatuses,
    pub(crate) feed: FeedId,
    pub(crate) model: Arc<Mutex<Model>>,
    commits: Arc<Mutex<Vec<usize>>>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) replayed: u64,
    waiters: Arc<Waiters>,
    disk: Arc<std::sync::atomic::AtomicI64>,
}

impl Hub {
    pub(crate) fn start(path: &Path, checkpoint_events: u64) -> Self {
        Self::start_owning(path, checkpoint_events, None)
    }

    fn start_owning(
        path: &Path,
        checkpoint_events: u64,
        ownership: Option<Arc<Ownership>>,
    ) -> Self {
        let store = Store::open(path).unwrap();
        let disk = Arc::clone(&store.disk);
        let model = Arc::new(Mutex::new(Model::default()));
        let mut admission = Admission::new();
        let recovered = recover(
            &store,
            &mut admission,
            &mut |events| model.lock().apply(events),
            &mut |market, sequence, state| {
                let Ok(book) = serde_json::from_slice(state) else { return false };
                model.lock().books.insert(market.into(), (sequence, book));
                true
            },
            CachedStates::new(),
        )
        .unwrap();
        let replayed = recovered.replayed;
        let board = FeedStatuses::new();
        board.sources().restore(&store.topic_sources().unwrap());
        let feed = board.register("test", FeedKind::Files);
        let shutdown = CancellationToken::new();
        let commits = Arc::default();
        let live = Box::new(ModelProjection(Arc::clone(&model), Arc::clone(&commits)));
        let waiters: Arc<Waiters> = Arc::default();
        let own = waiters.clone();
        let config = SequencerConfig {
            checkpoint_events,
            ownership,
            waiters: own,
            shutdown: shutdown.clone(),
        };
        let (ingest, thread) =
            super::start(store, admission, recovered, board.clone(), live, config).unwrap();
        Self { ingest, thread, board, feed, model, commits, shutdown, replayed, waiters, disk }
    }

    pub(crate) fn stop(self) -> Model {
        drop(self.ingest);
        self.thread.join().unwrap();
        std::mem::take(&mut *self.model.lock())
    }

    fn batch(&self, lines: &[String]) -> Batch {
        self.batch_of(Some(self.feed), lines)
    }

    fn batch_of(&self, feed: Option<FeedId>, lines: &[String]) -> Batch {
        let lines = lines.iter().zip(1..).map(|(line, number)| Incoming {
            place: Place { source: "test".into(), at: At::Line { number, byte: 0 } },
            line: Ok(line.clone().into_bytes()),
            numbered: None,
        });
        Batch { feed, lines: lines.collect(), progress: vec![] }
    }

    async fn send(&self, lines: &[String]) -> Ack {
        self.ingest.deliver(self.batch(lines)).await.unwrap()
    }

    pub(crate) async fn until(&self, state: FeedState) {
        let mut changes = self.board.changes();
        while self.board.get(self.feed).unwrap().state != state {
            changes.changed().await.unwrap();
        }
    }
}

fn market(name: &str, status: &str, id: &str) -> String {
    format!(
        r#"{{"kind":"market","id":"{id}","market":"{name}","base":"A","quote":"B","priceDecimals":1,"sizeDecimals":1,"status":"{status}"}}"#
    )
}

fn delta(name: &str, price: u32, size: u32) -> String {
    format!(
        r#"{{"kind":"book.delta","market":"{name}","bids":[["{price}","{size}"]],"asks":[["{}","{size}"]]}}"#,
        price + 1_000
    )
}

fn message(id: u32) -> String {
    format!(r#"{{"kind":"message","topic":"t","id":"m{id}","data":{id}}}"#)
}

fn path(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("log.db")
}

#[tokio::test]
async fn a_batch_is_applied_in_order_and_answered_with_counts() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    let lines = [
        market("A-B", "ACTIVE", "d1"),
        delta("A-B", 5, 1),
        "{".into(),
        message(1),
        message(1),
        delta("X-Y", 5, 1),
    ];
    let ack = hub.send(&lines).await;
    assert_eq!((ack.accepted, ack.known, ack.refused), (3, 1, 2));
    let refusal = ack.last_refusal.clone().unwrap();
    assert_eq!(refusal.place.to_string(), "test line 6 (byte 0)");
    assert_eq!(refusal.reason, Refusal::UnknownMarket("X-Y".into()));
    let status = hub.board.get(hub.feed).unwrap();
    assert_eq!((status.events_total, status.known_total, status.refused_total), (3, 1, 2));
    assert_eq!(status.last_refusal, Some(refusal));
    let sequences = hub.stop().sequences;
    assert_eq!(sequences.len(), 3);
    assert!(sequences.is_sorted());
    assert_eq!(ack.last_sequence, sequences.last().copied());
}

#[tokio::test]
async fn a_definition_sent_again_does_not_undo_a_newer_one() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    let (old, new) = (market("A-B", "ACTIVE", "old"), market("A-B", "HALTED", "new"));
    let ack = hub.send(&[old.clone(), new, old.clone()]).await;
    assert_eq!((ack.accepted, ack.known), (2, 1));
    assert_eq!(hub.send(&[old]).await.known, 1);
    assert_eq!(hub.stop().defined["A-B"], "Halted");
    assert_eq!(Hub::start(&path(&folder), 1_000).stop().defined["A-B"], "Halted");
}

#[tokio::test]
async fn a_full_disk_halts_every_feed_and_nothing_is_lost_when_it_has_room() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    let other = hub.board.register("other", FeedKind::Postgres);
    hub.send(&[message(0)]).await;
    hub.disk.store(1, SeqCst);
    let lines: Vec<_> = (1..=500).map(message).collect();
    let delivery = tokio::spawn({
        let (ingest, batch) = (hub.ingest.clone(), hub.batch(&lines));
        async move { ingest.deliver(batch).await }
    });
    hub.until(FeedState::Halted).await;
    let status = hub.board.get(other).unwrap();
    assert_eq!(status.state, FeedState::Halted);
    assert!(status.reason.unwrap().contains("database or disk is full"));
    assert_eq!(hub.model.lock().sequences.len(), 1);
    hub.disk.store(1_000_000, SeqCst);
    assert_eq!(delivery.await.unwrap().unwrap().accepted, 500);
    hub.until(FeedState::Live).await;
    assert_eq!(hub.stop().sequences.len(), 501);
    assert_eq!(Store::open(&path(&folder)).unwrap().read_from(0, 1_000).unwrap().len(), 501);
}

/// A file system of 1 MiB, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(folder.path())
            .status();
        done.is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_truly_full_disk_halts_and_passes_too() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("NOT RUN: needs the right to mount a tmpfs (root)");
        return;
    };
    let path = disk.0.path().join("log.db");
    let hub = Hub::start(&path, 1_000);
    hub.send(&[message(0)]).await;
    let ballast = disk.0.path().join("ballast");
    let mut size = 1024 * 1024;
    while size > 0 {
        use std::io::Write as _;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&ballast).unwrap();
        if file.write_all(&vec![0; size]).is_err() {
            size /= 2;
        }
    }
    let lines: Vec<_> = (1..=500).map(message).collect();
    let delivery = tokio::spawn({
        let (ingest, batch) = (hub.ingest.clone(), hub.batch(&lines));
        async move { ingest.deliver(batch).await }
    });
    hub.until(FeedState::Halted).await;
    fs::remove_file(&ballast).unwrap();
    assert_eq!(delivery.await.unwrap().unwrap().accepted, 500);
    hub.until(FeedState::Live).await;
    assert_eq!(hub.stop().sequences.len(), 501);
    assert_eq!(Store::open(&path).unwrap().read_from(0, 1_000).unwrap().len(), 501);
}

#[tokio::test]
async fn a_shutdown_while_halted_takes_nothing_and_claims_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    hub.disk.store(1, SeqCst);
    let lines: Vec<_> = (1..=500).map(message).collect();
    let delivery = tokio::spawn({
        let (ingest, batch) = (hub.ingest.clone(), hub.batch(&lines));
        async move { ingest.deliver(batch).await }
    });
    hub.until(FeedState::Halted).await;
    hub.shutdown.cancel();
    assert!(matches!(delivery.await.unwrap(), Err(IngestError::Closed)));
    assert_eq!(hub.stop().sequences, Vec::<u64>::new());
    assert_eq!(Store::open(&path(&folder)).unwrap().read_from(0, 1_000).unwrap(), []);
}

#[tokio::test]
async fn who_brings_a_batch_may_write_it_but_not_what_begins_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    let undo = hub.batch(&[r#"{"kind":"block.reverted","height":7}"#.into()]);
    let returned = hub.ingest.try_write(undo).unwrap_err();
    assert_eq!(returned.lines.len(), 1);
    let lines = [message(1), "{".into(), message(1)];
    let ack = hub.ingest.try_write(hub.batch(&lines)).unwrap().unwrap();
    assert_eq!((ack.accepted, ack.known, ack.refused), (1, 1, 1));
    // Both ways lead into one order.
    assert_eq!(hub.send(&[message(2)]).await.last_sequence, Some(2));
    // The sequencer's thread answers before it is idle again.
    let mut batch = hub.batch(&[message(3)]);
    let idle = async {
        loop {
            match hub.ingest.try_write(batch) {
                Ok(ack) => break ack.unwrap(),
                Err(returned) => batch = returned,
            }
            tokio::task::yield_now().await;
        }
    };
    let ack = tokio::time::timeout(Duration::from_secs(10), idle).await.unwrap();
    assert_eq!(ack.last_sequence, Some(3));
    assert_eq!(hub.board.get(hub.feed).unwrap().events_total, 3);
    assert_eq!(hub.stop().sequences, [1, 2, 3]);
    assert_eq!(Store::open(&path(&folder)).unwrap().last(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_one_writes_others_are_given_their_batch_back_and_a_shutdown_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    hub.disk.store(1, SeqCst);
    let (ingest, batch) =
        (hub.ingest.clone(), hub.batch(&(1..=500).map(message).collect::<Vec<_>>()));
    let writing = tokio::task::spawn_blocking(move || ingest.try_write(batch));
    hub.until(FeedState::Halted).await;
    assert!(hub.ingest.try_write(hub.batch(&[message(0)])).is_err());
    hub.shutdown.cancel();
    assert!(matches!(writing.await.unwrap(), Ok(Err(IngestError::Closed))));
    assert_eq!(hub.stop().sequences, Vec::<u64>::new());
}

#[tokio::test]
async fn a_commit_takes_what_waits_up_to_two_thousand_events() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 100_000);
    hub.disk.store(1, SeqCst);
    let batch = |number: u32| {
        let lines: Vec<_> = (512 * number..512 * (number + 1)).map(message).collect();
        hub.batch(&lines)
    };
    let first = hub.ingest.submit(batch(0)).await.unwrap();
    hub.until(FeedState::Halted).await;
    let mut waiting = vec![first];
    for number in 1..=10 {
        waiting.push(hub.ingest.submit(batch(number)).await.unwrap());
    }
    hub.disk.store(100 << 20, SeqCst);
    for one in waiting {
        assert_eq!(one.acknowledged().await.unwrap().accepted, 512);
    }
    assert_eq!(*hub.commits.lock(), [512, GROUP_EVENTS, GROUP_EVENTS, 1_024]);
}

#[tokio::test]
async fn a_mutation_that_was_given_up_while_it_waited_is_not_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    hub.disk.store(1, SeqCst);
    let lines: Vec<_> = (1..=500).map(message).collect();
    let halting = tokio::spawn({
        let (ingest, batch) = (hub.ingest.clone(), hub.batch(&lines));
        async move { ingest.deliver(batch).await }
    });
    hub.until(FeedState::Halted).await;
    let mutation = |number| Batch { feed: None, ..hub.batch(&[message(number)]) };
    let mut given_up = Box::pin(hub.ingest.deliver(mutation(9_000)));
    let mut kept = Box::pin(hub.ingest.deliver(mutation(9_001)));
    for waiting in [&mut given_up, &mut kept] {
        assert!(futures_util::poll!(waiting).is_pending());
    }
    drop(given_up);
    hub.disk.store(1 << 20, SeqCst);
    assert_eq!(halting.await.unwrap().unwrap().accepted, 500);
    assert_eq!(kept.await.unwrap().accepted, 1);
    let counted = hub.board.get(hub.feed).unwrap().events_total;
    assert_eq!((counted, hub.stop().sequences.len()), (500, 501), "no feed's event, and only one");
}

#[tokio::test]
async fn recovery_from_checkpoints_equals_replay_of_everything() {
    let seed = 20_261_124;
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder);
    let markets = ["A-B", "C-D", "quiet", "never"];
    let mut sent = 0;
    let mut model = Model::default();
    let mut shortest = u64::MAX;
    for life in 0..8 {
        let hub = Hub::start(&path, 20);
        assert_eq!(hub.model.lock().books, model.books, "life {life}");
        assert_eq!(hub.model.lock().defined, model.defined, "life {life}");
        shortest = if life > 2 { shortest.min(hub.replayed) } else { shortest };
        let mut lines: Vec<_> =
            markets.iter().map(|name| market(name, "ACTIVE", &format!("{life}{name}"))).collect();
        for turn in 0..random.random_range(60..200) {
            let name = if turn % 50 == 0 { "quiet" } else { markets[turn % 2] };
            let (price, size) = (random.random_range(1..30), random.random_range(0..3));
            lines.push(delta(name, price, size));
            if turn % 40 == 0 {
                lines.push(delta(name, price, size).replace("delta", "snapshot"));
            }
        }
        for batch in lines.chunks(7) {
            sent += hub.send(batch).await.accepted;
        }
        model = hub.stop();
    }
    let whole = Hub::start(&path, u64::MAX);
    let with_checkpoints = whole.replayed;
    assert_eq!(whole.stop().books, model.books);
    // Without checkpoints, and with checkpoints that can't be read.
    let database = rusqlite::Connection::open(&path).unwrap();
    database.execute("UPDATE checkpoints SET state = x'00'", []).unwrap();
    let unreadable = Hub::start(&path, u64::MAX);
    let replayed_all = unreadable.replayed;
    assert_eq!(unreadable.stop().books, model.books);
    database.execute("DELETE FROM checkpoints", []).unwrap();
    let none = Hub::start(&path, u64::MAX);
    // Everything but the definitions that newer ones replaced.
    assert_eq!(none.replayed, sent as u64 - 7 * 4);
    assert_eq!(none.replayed, replayed_all);
    assert_eq!(none.stop().books, model.books);
    assert!(with_checkpoints < replayed_all / 2, "{with_checkpoints} of {replayed_all}");
    // Each of the two busy books replays one to two stretches of 20.
    assert!(shortest >= 4 + 2 * 20, "{shortest}");
}

fn placed(order: u32, price: u32, size: u32) -> String {
    format!(
        r#"{{"kind":"order.placed","id":"p{order}","market":"O-P","order":"{order}","account":"9g","side":"SELL","price":"{price}","size":"{size}"}}"#
    )
}

fn filled(order: u32, size: u32) -> String {
    format!(r#"{{"kind":"order.filled","order":"{order}","price":"1","size":"{size}"}}"#)
}

#[tokio::test]
async fn the_larger_a_checkpoint_the_more_events_until_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder);
    let hub = Hub::start(&path, 20);
    let mut lines = vec![market("O-P", "ACTIVE", "o")];
    lines.extend((0..3_000).map(|order| placed(order, 1 + order % 9, 1)));
    for batch in lines.chunks(10) {
        assert_eq!(hub.send(batch).await.refused, 0);
    }
    hub.stop();
    let database = rusqlite::Connection::open(&path).unwrap();
    let mut query = database
        .prepare("SELECT sequence, length(state) FROM checkpoints ORDER BY sequence")
        .unwrap();
    let rows = query.query_map([], |row| Ok([row.get(0)?, row.get(1)?])).unwrap();
    let all: Vec<_> = rows.map(|row| row.unwrap().map(i64::cast_unsigned)).collect();
    assert!(all.len() > 4 && all[all.len() - 1][1] > 100_000, "{all:?}");
    for pair in all.windows(2) {
        let events = pair[1][0] - pair[0][0];
        let wanted = (pair[0][1] / super::CHECKPOINT_BYTES_PER_EVENT).max(20);
        assert!((wanted..wanted + 20).contains(&events), "{all:?}");
    }
}

#[tokio::test]
async fn orders_and_their_book_come_back_from_checkpoints() {
    let seed = 20_261_125;
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder);
    // Open size of each order, a reading of the events that shares nothing with the hub's.
    let mut open = BTreeMap::<u32, (u32, u32)>::new();
    let (mut next, mut sent, mut shortest) = (0, 0, u64::MAX);
    let mut model = Model::default();
    for life in 0..6 {
        let hub = Hub::start(&path, 20);
        assert_eq!(hub.model.lock().books, model.books, "life {life}");
        shortest = if life > 2 { shortest.min(hub.replayed) } else { shortest };
        let mut lines = vec![market("O-P", "ACTIVE", &format!("o{life}"))];
        for _ in 0..random.random_range(60..140) {
            let chosen = open.keys().nth(random.random_range(0..open.len().max(1))).copied();
            match (random.random_range(0..3), chosen) {
                (1, Some(order)) => {
                    let left = open.get_mut(&order).unwrap();
                    let size = random.random_range(1..=left.1);
                    left.1 -= size;
                    open.retain(|_, (_, left)| *left > 0);
                    lines.push(filled(order, size));
                }
                (2, Some(order)) => {
                    open.remove(&order);
                    lines.push(format!(r#"{{"kind":"order.canceled","order":"{order}"}}"#));
                }
                _ => {
                    let (price, size) = (random.random_range(1..9), random.random_range(1..9));
                    open.insert(next, (price, size));
                    lines.push(placed(next, price, size));
                    next += 1;
                }
            }
        }
        for batch in lines.chunks(7) {
            let ack = hub.send(batch).await;
            assert_eq!((ack.accepted, ack.refused), (batch.len(), 0), "{:?}", ack.last_refusal);
            sent += ack.accepted;
        }
        model = hub.stop();
        let mut levels = BTreeMap::new();
        for (price, size) in open.values() {
            *levels.entry(format!("false {}", price * 10)).or_insert(0) += u128::from(size * 10);
        }
        assert_eq!(model.books["O-P"].1, levels, "life {life}");
    }
    assert!(shortest >= 21 && shortest < sent as u64 / 2, "{shortest} of {sent}");
    let database = rusqlite::Connection::open(&path).unwrap();
    for change in ["UPDATE checkpoints SET state = x'00'", "DELETE FROM checkpoints"] {
        database.execute(change, []).unwrap();
        let hub = Hub::start(&path, u64::MAX);
        assert_eq!(hub.replayed, sent as u64 - 5, "all but the older definitions");
        assert_eq!(hub.stop().books, model.books);
    }
    let rows = |query: &str| database.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(rows("SELECT count(*) FROM orders"), i64::from(next));
    assert_eq!(rows("SELECT count(*) FROM orders WHERE open = 1"), open.len() as i64);
    assert_eq!(rows("SELECT count(*) FROM order_updates"), sent as i64 - 6);
}

#[tokio::test]
async fn an_order_is_placed_once_and_its_events_count_once() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    let first = filled(1, 2).replacen('{', r#"{"id":"f","#, 1);
    let lines = [market("O-P", "ACTIVE", "d"), placed(1, 5, 3), first.clone(), first.clone()];
    let ack = hub.send(&lines).await;
    assert_eq!((ack.accepted, ack.known, ack.refused), (3, 1, 0), "{:?}", ack.last_refusal);
    let again = placed(1, 5, 3).replace("\"p1\"", "\"q1\"");
    // Final and placed again: in one group, in a later one, and after a restart.
    let ack = hub.send(&[first.clone(), filled(1, 1), again.clone(), placed(1, 5, 3)]).await;
    assert_eq!((ack.accepted, ack.known, ack.refused), (1, 2, 1));
    assert_eq!(ack.last_refusal.unwrap().reason, Refusal::DoubledOrder("1".into()));
    let fleeting = [placed(2, 5, 1), filled(2, 1), placed(2, 5, 1).replace("\"p2\"", "\"q2\"")];
    let ack = hub.send(&fleeting).await;
    assert_eq!((ack.accepted, ack.refused), (2, 1));
    assert_eq!(ack.last_refusal.unwrap().reason, Refusal::DoubledOrder("2".into()));
    hub.stop();
    let hub = Hub::start(&path(&folder), 1_000);
    let ack = hub.send(&[again, first, filled(1, 1)]).await;
    assert_eq!((ack.accepted, ack.known, ack.refused), (0, 1, 2));
    assert_eq!(ack.last_refusal.unwrap().reason, Refusal::UnknownOrder("1".into()));
}

#[tokio::test]
async fn a_mutation_that_is_refused_leaves_no_gap() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    let asked = |line: String| line.replacen('{', r#"{"requested":true,"#, 1);
    let faulty = |order: u32| placed(order, 5, 3).replace("\"5\"", "\"0\"");
    let lines = [market("O-P", "ACTIVE", "d"), placed(1, 5, 3), asked(faulty(2))];
    assert_eq!(hub.send(&lines).await.refused, 1);
    let taken = asked(placed(3, 5, 3)).replace("\"p3\"", "\"p1\"");
    assert_eq!(hub.send(&[taken]).await.refused, 1);
    assert_eq!(hub.model.lock().gaps, []);
    assert_eq!(hub.send(&[faulty(2)]).await.refused, 1);
    let orders = |gaps: &[Arc<BookGap>]| -> Vec<_> {
        gaps.iter().map(|gap| gap.order().unwrap().to_owned()).collect()
    };
    assert_eq!(orders(&hub.model.lock().gaps), ["2"]);
    // The other content under the id of an order's event.
    assert_eq!(hub.send(&[placed(3, 5, 3).replace("\"p3\"", "\"p1\"")]).await.refused, 1);
    assert_eq!(orders(&hub.model.lock().gaps), ["2", "3"]);
}

#[tokio::test]
async fn a_market_stays_by_orders_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let order =
        r#"{"kind":"order.placed","market":"A-B","order":"o","side":"BUY","price":"1","size":"1"}"#;
    let hub = Hub::start(&path(&folder), 1_000);
    assert_eq!(hub.send(&[market("A-B", "ACTIVE", "d"), order.into()]).await.accepted, 2);
    hub.stop();
    let hub = Hub::start(&path(&folder), 1_000);
    let ack = hub.send(&[delta("A-B", 1, 1)]).await;
    assert!(matches!(ack.last_refusal.unwrap().reason, Refusal::MixedBook { .. }));
}

#[tokio::test]
async fn a_client_that_waits_for_an_event_receives_its_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    hub.send(&[market("O-P", "ACTIVE", "d")]).await;
    let message =
        |topic: &str| format!(r#"{{"kind":"message","id":"m","topic":"{topic}","data":1}}"#);
    let expect = |line: &str| {
        let event = event::parse(line.as_bytes()).unwrap();
        hub.waiters.expect(&waiters::key(&event).unwrap(), line).unwrap()
    };
    let mut order = expect(&placed(1, 5, 3));
    let mut published = expect(&message("t"));
    let mut late = expect(&message("t").replace(":1", ":2"));
    let mut unknown = expect(&filled(7, 1).replacen('{', r#"{"id":"f","#, 1));
    let refused = filled(7, 1).replacen('{', r#"{"id":"f","#, 1);
    // In one group, among others.
    let lines = [message("v").replace("\"m\"", "\"n\""), placed(1, 5, 3), message("t"), refused];
    let ack = hub.send(&lines).await;
    assert_eq!((ack.accepted, ack.refused), (3, 1));
    let (order, published) = (order.outcome().await, published.outcome().await);
    assert_eq!((order.accepted, published.accepted), (1, 1));
    assert_eq!(order.order, ack.order);
    assert_eq!((published.last_sequence, &published.order), (ack.last_sequence, &None));
    assert_eq!(order.last_sequence, ack.last_sequence.map(|last| last - 1));
    assert_eq!(late.outcome().await, Ack::of_known());
    let unknown = unknown.outcome().await;
    assert_eq!((unknown.refused, &unknown.last_refusal), (1, &ack.last_refusal));

    // Known already: before they are admitted, and while they are written.
    for line in [placed(1, 5, 3), message("t")] {
        let mut again = expect(&line);
        assert_eq!(hub.send(&[line]).await.known, 1);
        assert_eq!(again.outcome().await, Ack::of_known());
    }
    hub.stop();
}
