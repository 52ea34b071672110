//! Frames that the pool encodes, seen by readers of the stream.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};

use super::*;
use crate::pool::PoolPlace;

/// A stream each of whose frames takes long, but for those of a single level.
struct Long {
    live: Arc<Live>,
    stream: Arc<ResponseStream>,
    history: History,
    pool: Arc<Pool>,
    line: Arc<Line>,
    encoders: Arc<AtomicUsize>,
    _streams: Streams,
}

impl Long {
    fn new(ring_bytes: usize) -> Self {
        let (live, _, history) = busy();
        let streams = new_streams(ring_bytes);
        let (pool, line) = (Pool::start(1).unwrap(), Line::limited());
        let encoders = Arc::<AtomicUsize>::default();
        let made = encoders.clone();
        let long = LongFrames {
            pool: pool.clone(),
            line: line.clone(),
            encoder: Box::new(move || {
                made.fetch_add(1, Ordering::Relaxed);
                Some(Box::new(plain))
            }),
            level_nanos: MOST_INLINE_NANOS,
        };
        let stream = open(&streams, "long".to_owned(), || {
            live.book_source(MARKET, 10, Speed::Raw, Box::new(plain), Some(long)).unwrap()
        });
        Self { live, stream, history, pool, line, encoders, _streams: streams }
    }

    fn join(&self, after: Option<u64>) -> BoxFuture<'static, Resume> {
        let after = after.map(|sequence| cursor(10, EPOCH, sequence));
        soon(self.stream.source().join(&self.stream, after.as_deref()))
    }

    /// Both places that the opener's address has in the pool.
    fn take_places(&self) -> [PoolPlace; 2] {
        block_on(async {
            [self.pool.enter(&self.line).await.unwrap(), self.pool.enter(&self.line).await.unwrap()]
        })
    }

    /// Keeps the pool busy until it is let go.
    fn hold(&self) -> (SyncSender<()>, BoxFuture<'static, ()>) {
        let (go, gone) = sync_channel::<()>(1);
        let (begins, begun): (_, Receiver<()>) = sync_channel(1);
        let (pool, line) = (self.pool.clone(), Line::limited());
        let mut held = async move {
            let place = pool.enter(&line).await.unwrap();
            let work = move || {
                begins.send(()).unwrap();
                gone.recv().unwrap();
            };
            place.run(work).await.unwrap();
        }
        .boxed();
        assert!((&mut held).now_or_never().is_none());
        begun.recv().unwrap();
        (go, held)
    }

    /// An event that changes the best bid's size.
    fn event(&mut self, sequence: u64) {
        let level = (Side::Buy, 9, u128::from(sequence));
        self.live.apply(&[change(sequence, &[level])]);
        let mut book = self.history.last_key_value().unwrap().1.clone();
        book.set(level.0, level.1, level.2);
        self.history.insert(sequence, book);
    }

    fn encodings(&self) -> u64 {
        self.live.snapshot_encodings.load(Ordering::Relaxed)
    }
}

fn soon(start: Resume) -> BoxFuture<'static, Resume> {
    match start {
        Resume::Pending(answer) => answer.map(|answer| answer.resume).boxed(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_pushed_while_a_snapshot_is_encoded_follows_it() {
    for ring_bytes in [1 << 20, 1] {
        let mut long = Long::new(ring_bytes);
        let (go, held) = long.hold();
        let mut answer = long.join(None);
        assert!((&mut answer).now_or_never().is_none());
        for sequence in 51..=60 {
            long.event(sequence);
        }
        go.send(()).unwrap();
        let start = block_on(async {
            held.await;
            answer.await
        });
        let mut client = Client::empty(&long.stream, 10);
        client.start(start, &long.history);
        assert_eq!((client.seen, &client.snapshots[..]), (Some(50), &["Initial".to_owned()][..]));
        // With a ring of one frame the reader gets a merged delta, which the pool encodes as well.
        let mut frames = Vec::new();
        if !long.stream.read(client.next, usize::MAX, &mut frames) {
            let source = long.stream.source();
            let start = match source.catch_up(&long.stream, 50) {
                Resume::Pending(answer) => block_on(answer).resume,
                start => start,
            };
            client.start(start, &long.history);
        }
        client.drain(&long.history);
        assert_eq!(client.seen, Some(60), "ring of {ring_bytes} bytes");
    }
}

#[test]
fn a_crowd_that_joins_while_a_snapshot_is_encoded_shares_it_also_when_one_leaves() {
    let mut long = Long::new(1 << 20);
    let (go, held) = long.hold();
    let mut crowd: Vec<_> = (0..500).map(|_| long.join(None)).collect();
    for one in &mut crowd {
        assert!(one.now_or_never().is_none());
    }
    // The first one, for which it was begun.
    drop(crowd.remove(0));
    // More frames than may follow an earlier snapshot that is used again.
    for sequence in 51..=100 {
        long.event(sequence);
    }
    crowd.extend((0..500).map(|_| long.join(None)));
    go.send(()).unwrap();
    let starts = block_on(async {
        held.await;
        join_all(crowd).await
    });
    let tails: Vec<_> = starts
        .iter()
        .map(|start| match start {
            Resume::Frames { frames, .. } => frames[0].tail.as_ptr(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(tails.iter().all(|tail| *tail == tails[0]));
    assert_eq!((tails.len(), long.encodings()), (999, 1));
    assert_eq!(long.encoders.load(Ordering::Relaxed), 1);
    // One that comes later does not, as too much follows it by now.
    block_on(long.join(None));
    assert_eq!(long.encodings(), 2);
}

#[test]
fn a_frame_that_nobody_waits_for_any_more_is_not_encoded() {
    let long = Long::new(1 << 20);
    let (go, held) = long.hold();
    let mut crowd: Vec<_> = (0..3).map(|_| long.join(None)).collect();
    for one in &mut crowd {
        assert!(one.now_or_never().is_none());
    }
    assert_eq!(long.pool.queued(), 1);
    drop(crowd);
    go.send(()).unwrap();
    block_on(held);
    block_on(async { long.pool.enter(&long.line).await.unwrap().run(|| ()).await.map(drop) })
        .unwrap();
    assert_eq!(long.encoders.load(Ordering::Relaxed), 0);
    assert!(matches!(block_on(long.join(None)), Resume::Frames { .. }));
    // It is kept for the next one, as nothing followed it.
    assert!(matches!(long.stream.source().join(&long.stream, None), Resume::Frames { .. }));
    assert_eq!(long.encoders.load(Ordering::Relaxed), 1);
}

#[test]
fn nothing_is_copied_before_the_pool_has_a_place() {
    let long = Long::new(1 << 20);
    let places = long.take_places();
    let mut answer = long.join(None);
    assert!((&mut answer).now_or_never().is_none());
    assert_eq!((long.pool.queued(), long.encodings()), (0, 0));
    drop(places);
    assert!(matches!(block_on(answer), Resume::Frames { .. }));
    assert_eq!(long.encodings(), 1);
}

#[test]
fn a_resume_over_many_levels_is_encoded_on_the_pool_and_one_over_a_single_level_is_not() {
    let mut long = Long::new(1);
    let mut client = Client::empty(&long.stream, 10);
    client.seen = Some(20);
    client.book = long.history[&20].top(10);
    let start = block_on(long.join(Some(20)));
    client.start(start, &long.history);
    assert_eq!((client.seen, client.snapshots.len()), (Some(50), 0));
    long.event(51);
    let start = long.stream.source().join(&long.stream, Some(&cursor(10, EPOCH, 50)));
    client.start(start, &long.history);
    client.drain(&long.history);
    assert_eq!(client.seen, Some(51));
    assert_eq!(long.encoders.load(Ordering::Relaxed), 1);
}

#[test]
fn what_several_addresses_read_waits_in_no_line_of_its_opener() {
    let long = Long::new(1 << 20);
    let _places = long.take_places();
    assert!(long.join(None).now_or_never().is_none());
    let key = OperationKey {
        document: "long".to_owned(),
        operation_name: None,
        variables: String::new(),
        audience: String::new(),
        cursor_extension: false,
    };
    let shared = long._streams.open(key, 2, || panic!("it is open")).unwrap();
    assert_eq!(shared.id(), long.stream.id());
    assert!(matches!(block_on(long.join(None)), Resume::Frames { .. }));
}

#[test]
fn a_change_of_many_levels_is_left_to_the_pool_and_shared_by_all_readers() {
    let mut long = Long::new(1 << 20);
    let mut clients: Vec<_> = (0..3).map(|_| Client::empty(&long.stream, 10)).collect();
    for client in &mut clients {
        client.start(long.stream.source().join(&long.stream, None), &long.history);
    }
    let made = long.encoders.load(Ordering::Relaxed);
    let levels = [(Side::Buy, 9, 51), (Side::Sell, 12, 51)];
    long.live.apply(&[change(51, &levels)]);
    let mut book = long.history[&50].clone();
    levels.iter().for_each(|(side, price, size)| book.set(*side, *price, *size));
    long.history.insert(51, book);
    assert!(!long.stream.read(clients[0].next, 9, &mut Vec::new()), "nothing is in the ring");
    for client in &mut clients {
        client.drain(&long.history);
        assert_eq!((client.seen, client.snapshots.len()), (Some(51), 1), "by a delta");
    }
    assert_eq!(long.encoders.load(Ordering::Relaxed) - made, 1, "once for all");
    long.event(52);
    assert!(long.stream.read(clients[0].next, 9, &mut Vec::new()), "a single level is pushed");
    clients.iter_mut().for_each(|client| client.drain(&long.history));
    assert_eq!(clients[2].seen, Some(52));
}

#[test]
fn a_long_book_that_begins_an_epoch_is_left_to_the_pool_with_its_reason() {
    let mut long = Long::new(1 << 20);
    let mut client = Client::empty(&long.stream, 10);
    client.start(block_on(long.join(None)), &long.history);
    let market = long.live.market(MARKET).unwrap();
    let mut touched = Touched::new();
    market.state.lock().book.begin_epoch(60);
    market.state.lock().restate(SnapshotReason::Reorg, &mut touched);
    long.live.advance_all(&touched);
    long.history.insert(60, long.history[&50].clone());
    assert!(!long.stream.read(client.next, 9, &mut Vec::new()), "nothing is in the ring");
    let Resume::Pending(answer) = long.stream.source().catch_up(&long.stream, 50) else { panic!() };
    let Resume::Frames { frames, .. } = block_on(answer).resume else { panic!() };
    assert_eq!(parsed(&frames[0])["rest"]["reason"], "Reorg");
}
