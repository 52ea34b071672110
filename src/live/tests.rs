//! The live state as clients see it: each client applies the frames that it is sent, and is
//! compared with the whole history at every frame.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use serde_json::{Value, json};
use spreadly_subscriptions::{
    Cursor, Frame, Meters, OperationKey, Position, ResponseStream, Resume, StreamLimits, Streams,
};

use super::frame::book_topic;
use super::*;
use crate::market::book::JOURNAL_TOUCHES;
use crate::market::candles::Candle;
use crate::market::candles::{Interval, Tick};
use crate::market::definition::{MarketDefinition, MarketStatus};
use crate::market::effect::{Applied, Effect};
use crate::market::levels::{Level, LevelChange, Side};
use crate::market::topic::Topic as LogTopic;
use crate::market::trade::Trade;
use crate::pool::{Line, MOST_INLINE_NANOS, Pool};

#[path = "draft_tests.rs"]
mod drafts;
#[path = "step_tests.rs"]
mod steps;
#[path = "worker_tests.rs"]
mod workers;

const EPOCH: Epoch = Epoch(7);
const MARKET: &str = "ERG-USD";

fn definition(market: &str) -> Arc<MarketDefinition> {
    Arc::new(MarketDefinition {
        market: market.into(),
        base: "ERG".into(),
        quote: "USD".into(),
        price_decimals: 2,
        size_decimals: 3,
        tick_size: "0.01".into(),
        lot_size: "0.001".into(),
        min_size: "0.001".into(),
        status: MarketStatus::Active,
        time: None,
    })
}

/// Books are never read back from it.
fn no_log() -> Arc<LogReaders> {
    LogReaders::new("nowhere".as_ref(), 1)
}

fn new_live() -> Arc<Live> {
    let live = Arc::new(Live::new(EPOCH, Box::new(|| 9_000_000), JOURNAL_TOUCHES, no_log()));
    define(&live, MARKET);
    live
}

/// Defines a market, as if it had a snapshot without levels at the beginning of the log.
fn define(live: &Live, market: &str) {
    live.define(definition(market));
    live.market(market).unwrap().state.lock().has_book = true;
}

fn new_streams(ring_bytes: usize) -> Streams {
    Streams::new(StreamLimits { ring_bytes, ..Default::default() }, Arc::new(Meters::default()))
}

fn pair(level: Level) -> (u128, u128) {
    (level.price, level.size)
}

fn pairs(levels: impl Iterator<Item = Level>) -> Vec<(u128, u128)> {
    levels.map(pair).collect()
}

fn plain(frame: LiveFrame) -> Vec<u8> {
    let book = |kind: &str, head: &BookHead, rest: Value| {
        json!({ "kind": kind, "sequence": head.sequence, "checksum": head.checksum,
                "eventTime": head.event_time, "rest": rest })
    };
    let value = match frame {
        LiveFrame::Snapshot(one) => {
            let rest = json!({
                "reason": format!("{:?}", one.reason),
                "bids": pairs(one.bids.iter()),
                "asks": pairs(one.asks.iter()),
            });
            book("snapshot", &one.head, rest)
        }
        LiveFrame::Delta(one) => {
            let rest = json!({ "previous": one.previous, "merged": one.merged_events,
                               "bids": pairs(one.bids.iter().copied()),
                               "asks": pairs(one.asks.iter().copied()) });
            book("delta", &one.head, rest)
        }
        LiveFrame::Heartbeat(one) => {
            book("heartbeat", &one.head, json!({ "state": one.head.state }))
        }
        LiveFrame::Offer(one) => json!({
            "kind": "offer", "market": &*one.definition.market, "sequence": one.sequence,
            "previous": one.previous, "merged": one.merged_events,
            "bid": one.bid.map(pair), "ask": one.ask.map(pair),
            "state": one.state,
        }),
        LiveFrame::Candles(one) => json!({
            "kind": "candles", "sequence": one.sequence, "previous": one.previous,
            "reason": one.reason.map(|reason| format!("{reason:?}")), "merged": one.merged_events,
            "candles": one.candles.iter().map(|candle| {
                let closed = candle.is_closed(one.interval, one.publish_time);
                json!([candle.start, candle.open as u64, candle.high as u64, candle.low as u64,
                       candle.close as u64, candle.volume as u64, candle.count, closed])
            }).collect::<Vec<_>>(),
        }),
        LiveFrame::Ticker(one) => json!({
            "kind": "ticker", "market": &*one.definition.market, "sequence": one.sequence,
            "previous": one.previous, "merged": one.merged_events, "state": one.state,
            "count": one.ticker.and_then(|ticker| ticker.day).map(|day| day.count),
        }),
        LiveFrame::Feed(one) => json!({ "kind": "feed", "name": one.name, "state": one.state }),
        LiveFrame::Log(one) => json!({ "kind": "log", "topic": &*one.topic }),
    };
    value.to_string().into_bytes()
}

fn parsed(frame: &Frame) -> Value {
    serde_json::from_slice(&frame.tail[..frame.tail.len() - 1]).unwrap()
}

fn open(
    streams: &Streams,
    name: String,
    source: impl FnOnce() -> Box<dyn spreadly_subscriptions::Source>,
) -> Arc<ResponseStream> {
    let key = OperationKey {
        document: name,
        operation_name: None,
        variables: String::new(),
        audience: String::new(),
        cursor_extension: false,
    };
    streams.open(key, 0, || Ok(source())).unwrap_or_else(|_| panic!("a stream opens"))
}

fn open_book(
    live: &Arc<Live>,
    streams: &Streams,
    depth: usize,
    speed: Speed,
) -> Arc<ResponseStream> {
    open(streams, format!("{depth} {speed:?}"), || {
        live.book_source(MARKET, depth, speed, Box::new(plain), None).unwrap()
    })
}

/// A book whose frames the pool encodes if they have more than one level.
fn open_long_book(
    live: &Arc<Live>,
    streams: &Streams,
    (depth, speed): (usize, Speed),
    pool: &Arc<Pool>,
) -> Arc<ResponseStream> {
    let long = LongFrames {
        pool: pool.clone(),
        line: Line::limited(),
        encoder: Box::new(|| Some(Box::new(plain))),
        level_nanos: MOST_INLINE_NANOS,
    };
    open(streams, format!("long {depth} {speed:?}"), || {
        live.book_source(MARKET, depth, speed, Box::new(plain), Some(long)).unwrap()
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn cursor(depth: usize, epoch: Epoch, sequence: u64) -> String {
    let position = Position { epoch, sequence };
    Cursor::single(depth as u32, book_topic(MARKET), position).encode()
}

fn change(sequence: u64, levels: &[(Side, u128, u128)]) -> Applied {
    let level = |(side, price, size): &(Side, u128, u128)| LevelChange {
        side: *side,
        price: *price,
        size: *size,
        orders: 0,
    };
    let levels = levels.iter().map(level).collect();
    let effect = Effect::Change { market: MARKET.into(), levels };
    Applied { sequence, time: Some(sequence as i64 * 1_000), effect, candles: Vec::new() }
}

/// Price and size by rank, so that the first is the best on either side.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sides([BTreeMap<u128, (u128, u128)>; 2]);

impl Sides {
    fn set(&mut self, side: Side, price: u128, size: u128) {
        let (index, rank) = if side == Side::Buy { (0, u128::MAX - price) } else { (1, price) };
        self.0[index].remove(&rank);
        if size > 0 {
            self.0[index].insert(rank, (price, size));
        }
    }

    fn top(&self, depth: usize) -> Self {
        let cut = |levels: &BTreeMap<_, _>| levels.clone().into_iter().take(depth).collect();
        Self([cut(&self.0[0]), cut(&self.0[1])])
    }

    fn take(&mut self, rest: &Value) {
        for (side, name) in [(Side::Buy, "bids"), (Side::Sell, "asks")] {
            for level in rest[name].as_array().unwrap() {
                let number = |place: usize| u128::from(level[place].as_u64().unwrap());
                self.set(side, number(0), number(1));
            }
        }
    }

    fn checksum(&self) -> u32 {
        let text: String = [1, 0]
            .iter()
            .flat_map(|index| self.0[*index].values().take(10))
            .map(|(price, size)| format!("{price}{size}"))
            .collect();
        crc32fast::hash(text.as_bytes())
    }
}

type History = BTreeMap<u64, Sides>;

struct Client {
    stream: Arc<ResponseStream>,
    depth: usize,
    /// `None` before the first frame.
    seen: Option<u64>,
    next: u64,
    book: Sides,
    snapshots: Vec<String>,
}

impl Client {
    fn join(stream: &Arc<ResponseStream>, depth: usize, history: &History) -> Self {
        let mut client = Self::empty(stream, depth);
        client.start(stream.source().join(stream, None), history);
        client
    }

    fn empty(stream: &Arc<ResponseStream>, depth: usize) -> Self {
        let (book, snapshots) = Default::default();
        Self { stream: stream.clone(), depth, seen: None, next: 0, book, snapshots }
    }

    /// Comes back with what it held at a past sequence.
    fn resume(stream: &Arc<ResponseStream>, depth: usize, from: u64, history: &History) -> Self {
        let mut client = Self::empty(stream, depth);
        client.seen = Some(from);
        client.book = history[&from].top(depth);
        let after = cursor(depth, EPOCH, from);
        client.start(stream.source().join(stream, Some(&after)), history);
        client
    }

    fn start(&mut self, start: Resume, history: &History) {
        match start {
            Resume::Ring { seen, next } => {
                assert_eq!(Some(seen), self.seen);
                self.next = next;
            }
            Resume::Frames { frames, next } => {
                frames.iter().for_each(|frame| self.take(frame, history));
                self.next = next;
            }
            Resume::Pending(answer) => self.start(block_on(answer).resume, history),
            other => panic!("{other:?}"),
        }
    }

    fn drain(&mut self, history: &History) {
        let mut frames = Vec::new();
        while !self.stream.read(self.next, usize::MAX, &mut frames) {
            let start = self.stream.source().catch_up(&self.stream, self.seen.unwrap());
            self.start(start, history);
        }
        for frame in frames {
            self.take(&frame, history);
            self.next += 1;
        }
    }

    fn take(&mut self, frame: &Frame, history: &History) {
        let value = parsed(frame);
        let (rest, sequence) = (&value["rest"], value["sequence"].as_u64().unwrap());
        assert_eq!(sequence, frame.sequence);
        match value["kind"].as_str().unwrap() {
            "snapshot" => {
                self.book = Sides::default();
                self.book.take(rest);
                self.snapshots.push(rest["reason"].as_str().unwrap().to_owned());
            }
            "delta" => {
                let previous = rest["previous"].as_u64().unwrap();
                assert_eq!((Some(previous), previous), (self.seen, frame.previous), "a gap");
                let merged = history.range(previous + 1..=sequence).count() as u64;
                assert_eq!(rest["merged"], merged);
                self.book.take(rest);
            }
            _ => assert_eq!(Some(sequence), self.seen, "a heartbeat moves nothing"),
        }
        self.seen = Some(sequence);
        assert_eq!(self.book, history[&sequence].top(self.depth), "at {sequence}");
        assert_eq!(value["checksum"], history[&sequence].checksum());
        let time = (sequence > 0).then_some(sequence * 1_000);
        assert_eq!(value["eventTime"], json!(time));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Event { replace: bool, gap: u64, levels: Vec<(Side, u128, u128)> },
    Tick,
    Beat,
    State(FeedState),
    Join(usize),
    Resume { stream: usize, back: usize },
    Read(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let side = prop_oneof![Just(Side::Buy), Just(Side::Sell)];
    let level = (side, 1u128..20, 0u128..4);
    let event = (prop::bool::weighted(0.1), 1u64..4, prop::collection::vec(level, 0..5));
    prop_oneof![
        8 => event.prop_map(|(replace, gap, levels)| Step::Event { replace, gap, levels }),
        2 => Just(Step::Tick),
        2 => Just(Step::Beat),
        1 => prop_oneof![Just(FeedState::Live), Just(FeedState::Stale)].prop_map(Step::State),
        2 => (0usize..12).prop_map(Step::Join),
        2 => (0usize..12, 0usize..40).prop_map(|(stream, back)| Step::Resume { stream, back }),
        3 => (0usize..40).prop_map(Step::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_client_that_applies_every_frame_holds_the_book(
        steps in prop::collection::vec(step(), 1..120),
        ring_bytes in prop_oneof![Just(1_500usize), Just(1 << 20)],
    ) {
        let (live, streams) = (new_live(), new_streams(ring_bytes));
        let pool = Pool::start(1).unwrap();
        let shapes = [1, 3, 12].map(|depth| [(depth, Speed::Raw), (depth, Speed::Ms100)]).concat();
        let inline = shapes.iter().map(|(depth, speed)| open_book(&live, &streams, *depth, *speed));
        let long = shapes.iter().map(|shape| open_long_book(&live, &streams, *shape, &pool));
        let open: Vec<_> = inline.chain(long).collect();
        let shapes = shapes.repeat(2);
        let mut history = History::from([(0, Sides::default())]);
        let mut clients: Vec<Client> = Vec::new();
        for step in steps {
            match step {
                Step::Event { replace, gap, levels } => {
                    let (last, book) = history.last_key_value().unwrap();
                    let sequence = last + gap;
                    let mut book = if replace { Sides::default() } else { book.clone() };
                    levels.iter().for_each(|(side, price, size)| book.set(*side, *price, *size));
                    history.insert(sequence, book);
                    let mut event = change(sequence, &levels);
                    if let (true, Effect::Change { market, levels }) = (replace, event.effect.clone()) {
                        event.effect = Effect::Replace { market, levels };
                    }
                    live.apply(&[event]);
                }
                Step::Tick => live.tick(Speed::Ms100),
                Step::Beat => live.heartbeat(),
                Step::State(state) => live.set_feed_states(FeedStates::all(state)),
                Step::Join(index) => {
                    clients.push(Client::join(&open[index], shapes[index].0, &history));
                }
                Step::Resume { stream, back } => {
                    let from = *history.keys().rev().nth(back % history.len()).unwrap();
                    clients.push(Client::resume(&open[stream], shapes[stream].0, from, &history));
                }
                Step::Read(index) if !clients.is_empty() => {
                    let index = index % clients.len();
                    clients[index].drain(&history);
                }
                Step::Read(_) => {}
            }
        }
        (0..4).for_each(|_| live.heartbeat());
        let last = *history.last_key_value().unwrap().0;
        for client in &mut clients {
            client.drain(&history);
            prop_assert_eq!(client.seen, Some(last), "four quiet beats bring everyone to the end");
        }
    }
}

fn busy() -> (Arc<Live>, Streams, History) {
    let (live, streams) = (new_live(), new_streams(1 << 20));
    let mut history = History::from([(0, Sides::default())]);
    for sequence in 1..=50u64 {
        let price = u128::from(sequence % 9 + 1);
        let levels = [(Side::Buy, price, u128::from(sequence)), (Side::Sell, price + 10, 2)];
        live.apply(&[change(sequence, &levels)]);
        let mut book = history[&(sequence - 1)].clone();
        levels.iter().for_each(|(side, price, size)| book.set(*side, *price, *size));
        history.insert(sequence, book);
    }
    (live, streams, history)
}

#[test]
fn a_resume_works_from_every_past_sequence_without_a_snapshot() {
    let (live, streams, history) = busy();
    for depth in [1, 4, 25] {
        let stream = open_book(&live, &streams, depth, Speed::Raw);
        for from in 0..=50 {
            let client = Client::resume(&stream, depth, from, &history);
            assert_eq!((client.seen, client.snapshots.len()), (Some(50), 0));
        }
    }
}

#[test]
fn ten_thousand_joiners_cost_one_encoding() {
    let (live, streams, history) = busy();
    let stream = open_book(&live, &streams, 10, Speed::Raw);
    for _ in 0..5_000 {
        Client::join(&stream, 10, &history);
    }
    live.apply(&[change(60, &[(Side::Buy, 9, 77)])]);
    let history = {
        let mut history = history;
        let mut book = history[&50].clone();
        book.set(Side::Buy, 9, 77);
        history.insert(60, book);
        history
    };
    for _ in 0..5_000 {
        let mut client = Client::join(&stream, 10, &history);
        client.drain(&history);
        assert_eq!(client.seen, Some(60));
    }
    assert_eq!(live.snapshot_encodings.load(Ordering::Relaxed), 1);
}

#[test]
fn a_joiner_gets_an_earlier_snapshot_with_at_most_32_frames_after_it() {
    let (live, streams, _) = busy();
    // Wide enough to outweigh all the deltas that follow.
    let wide: Vec<_> = (100..500).map(|price| (Side::Sell, price, 1_000_000_000)).collect();
    live.apply(&[change(51, &wide)]);
    let stream = open_book(&live, &streams, 500, Speed::Raw);
    let encodings_after_joining = || {
        assert!(matches!(stream.source().join(&stream, None), Resume::Frames { .. }));
        live.snapshot_encodings.load(Ordering::Relaxed)
    };
    assert_eq!(encodings_after_joining(), 1);
    for lag in 1..=32 {
        live.apply(&[change(51 + lag, &[(Side::Sell, 11, 10 + u128::from(lag))])]);
        assert_eq!(encodings_after_joining(), 1, "a lag of {lag} frames");
    }
    live.apply(&[change(84, &[(Side::Sell, 11, 1)])]);
    assert_eq!(encodings_after_joining(), 2);
}

#[test]
fn a_snapshot_above_a_mib_is_not_kept_for_later_joiners() {
    for (bytes, encodings) in [((1 << 20) - 1, 1), (1 << 20, 3)] {
        let (live, streams, _) = busy();
        let encode = Box::new(move |_| vec![b'x'; bytes]);
        let stream = open(&streams, "large".to_owned(), || {
            live.book_source(MARKET, 10, Speed::Raw, encode, None).unwrap()
        });
        for _ in 0..3 {
            assert!(matches!(stream.source().join(&stream, None), Resume::Frames { .. }));
        }
        assert_eq!(live.snapshot_encodings.load(Ordering::Relaxed), encodings, "{bytes}");
    }
}

#[test]
fn a_snapshot_for_joiners_is_encoded_again_after_a_quiet_time() {
    let (live, streams, history) = busy();
    let stream = open_book(&live, &streams, 10, Speed::Raw);
    for encodings in 1..4 {
        (0..3).for_each(|_| drop(Client::join(&stream, 10, &history)));
        assert_eq!(live.snapshot_encodings.load(Ordering::Relaxed), encodings);
        (0..4).for_each(|_| live.heartbeat());
    }
}

#[test]
fn a_merged_stream_that_lags_beyond_the_journal_gets_the_whole_window() {
    let (live, streams, mut history) = busy();
    let stream = open_book(&live, &streams, 10, Speed::S1);
    let mut client = Client::join(&stream, 10, &history);
    let mut book = history[&50].clone();
    // Each event replaces one size, and so is one touch.
    for sequence in 51..=51 + JOURNAL_TOUCHES as u64 {
        let level = (Side::Buy, 9, u128::from(sequence));
        live.apply(&[change(sequence, &[level])]);
        book.set(level.0, level.1, level.2);
    }
    history.insert(51 + JOURNAL_TOUCHES as u64, book);
    live.tick(Speed::S1);
    client.drain(&history);
    assert_eq!(client.snapshots, ["Initial", "Lagged"]);
}

#[test]
fn a_crowd_that_lags_at_the_same_place_shares_one_merge() {
    let (live, streams, history) = busy();
    let stream = open_book(&live, &streams, 10, Speed::Raw);
    let tails: Vec<_> = (0..3)
        .map(|_| match stream.source().catch_up(&stream, 20) {
            Resume::Frames { frames, .. } => frames[0].tail.as_ptr(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((tails[0], tails[0]), (tails[1], tails[2]));
    assert_eq!(history.len(), 51);
}

fn reason(stream: &Arc<ResponseStream>, after: &str) -> String {
    match stream.source().join(stream, Some(after)) {
        Resume::Frames { frames, .. } => {
            parsed(&frames[0])["rest"]["reason"].as_str().unwrap_or("none").to_owned()
        }
        Resume::Refused(errors) => {
            let errors: Value = serde_json::from_slice(&errors).unwrap();
            errors[0]["extensions"]["code"].as_str().unwrap().to_owned()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cursor_that_can_not_be_resumed_gets_a_snapshot_with_the_reason() {
    let (live, streams, _) = busy();
    let stream = open_book(&live, &streams, 10, Speed::Raw);
    assert_eq!(reason(&stream, &cursor(10, Epoch(8), 20)), "EpochChange");
    assert_eq!(reason(&stream, &cursor(10, EPOCH, 51)), "EpochChange");
    assert_eq!(reason(&stream, &cursor(11, EPOCH, 20)), "ResumeTooOld");
    assert_eq!(reason(&stream, "nonsense"), "BAD_REQUEST");
    let position = Position { epoch: EPOCH, sequence: 20 };
    let other = Cursor::single(10, book_topic("A-B"), position).encode();
    assert_eq!(reason(&stream, &other), "BAD_REQUEST");
}

#[test]
fn a_cursor_whose_event_a_power_cut_took_gets_a_snapshot_also_when_others_followed() {
    let (live, streams, _) = busy();
    let stream = open_book(&live, &streams, 10, Speed::Raw);
    // The client saw 55, the log came back with 50 and continues after the reserved sequences.
    assert_eq!(reason(&stream, &cursor(10, EPOCH, 55)), "EpochChange");
    live.apply(&[change(10_001, &[(Side::Buy, 3, 7)])]);
    for lost in [51, 55, 10_000] {
        assert_eq!(reason(&stream, &cursor(10, EPOCH, lost)), "ResumeTooOld");
    }
    assert_eq!(reason(&stream, &cursor(10, EPOCH, 49)), "none", "49 was an event, so a delta");
}

#[test]
fn a_restored_market_goes_on_where_its_checkpoint_was_taken() {
    let (live, _, history) = busy();
    let (sequence, state) = live.checkpoint(MARKET).unwrap();
    assert_eq!(sequence, 50);
    let (restored, streams) = (new_live(), new_streams(1 << 20));
    restored.restore(MARKET, sequence, &state).unwrap();
    let stream = open_book(&restored, &streams, 5, Speed::Raw);
    assert_eq!(reason(&stream, &cursor(5, EPOCH, 49)), "ResumeTooOld");
    let client = Client::resume(&stream, 5, 50, &history);
    assert_eq!(client.snapshots.len(), 0);
    Client::join(&stream, 5, &history);
    // The log is read again from an older place: what the checkpoint holds does not count twice.
    restored.apply(&[change(50, &[(Side::Buy, 1, 9)])]);
    assert_eq!(restored.checkpoint(MARKET).unwrap().1, state);
    let restored = |market, sequence, state: &[u8]| new_live().restore(market, sequence, state);
    assert!(matches!(restored("A-B", 50, &state), Err(RestoreError::UnknownMarket(_))));
    assert!(restored(MARKET, 50, b"{}").is_err());
    for other in [49, 51] {
        let refused = restored(MARKET, other, &state);
        assert!(matches!(refused, Err(RestoreError::OtherSequence { own: 50, .. })), "{other}");
    }
}

#[test]
fn a_restored_offer_keeps_the_event_that_set_it() {
    let live = new_live();
    live.apply(&[change(3, &[(Side::Buy, 10, 1)]), change(5, &[(Side::Buy, 9, 1)])]);
    let (sequence, state) = live.checkpoint(MARKET).unwrap();
    assert_eq!(sequence, 5);
    let mut before: Value = serde_json::from_slice(&state).unwrap();
    before.as_object_mut().unwrap().remove("offer").unwrap();
    for (state, since) in [(state, 3), (before.to_string().into_bytes(), 5)] {
        let (restored, streams) = (new_live(), new_streams(1 << 20));
        restored.restore(MARKET, sequence, &state).unwrap();
        let stream = open(&streams, "offers".into(), || {
            restored.offer_source(vec![MARKET.into()], Box::new(plain))
        });
        let start = made(stream.source().join(&stream, None));
        let Resume::Frames { frames, next } = start else { panic!("{start:?}") };
        assert_eq!(parsed(&frames[0])["sequence"], since);
        restored.apply(&[change(8, &[(Side::Buy, 10, 2)])]);
        let mut frames = Vec::new();
        assert!(stream.read(next, 9, &mut frames));
        assert_eq!(parsed(&frames[0])["previous"], since);
    }
}

#[test]
fn a_book_whose_offer_stays_one_of_another_moment_is_kept_without_it() {
    let live = new_live();
    live.apply(&[change(3, &[(Side::Buy, 10, 1)])]);
    let kept = || -> Value {
        let state = live.state(MARKET, 10).unwrap();
        serde_json::from_slice(&state.to_bytes()).unwrap()
    };
    assert_eq!(kept()["offer"]["sequence"], 3);
    // The book alone.
    let better = LevelChange { side: Side::Buy, price: 11, size: 1, orders: 0 };
    live.market(MARKET).unwrap().state.lock().book.apply(5, &[better]);
    assert_eq!(kept()["offer"], Value::Null);
    assert_eq!(live.state(MARKET, 10).unwrap().sequence(), 5);
}

#[test]
fn a_resume_reaches_back_as_far_as_the_journal_also_in_a_restored_book() {
    let live = Arc::new(Live::new(EPOCH, Box::new(|| 9_000_000), 3, no_log()));
    live.define(definition(MARKET));
    let restored = Arc::new(Live::new(EPOCH, Box::new(|| 9_000_000), 3, no_log()));
    restored.define(definition(MARKET));
    live.apply(&[change(1, &[(Side::Buy, 1, 1)])]);
    let (sequence, state) = live.checkpoint(MARKET).unwrap();
    restored.restore(MARKET, sequence, &state).unwrap();
    for live in [live, restored] {
        let streams = new_streams(1 << 20);
        (2..=9).for_each(|sequence| {
            live.apply(&[change(sequence, &[(Side::Buy, 1, sequence.into())])])
        });
        let stream = open_book(&live, &streams, 10, Speed::Raw);
        assert_eq!(reason(&stream, &cursor(10, EPOCH, 5)), "ResumeTooOld");
        assert_eq!(reason(&stream, &cursor(10, EPOCH, 6)), "none", "three events after 6");
    }
}

#[test]
fn a_quiet_stream_says_so_every_four_seconds_and_an_unseen_event_moves_it_on() {
    let (live, streams, mut history) = busy();
    let stream = open_book(&live, &streams, 1, Speed::Raw);
    let mut client = Client::join(&stream, 1, &history);
    let pushed = |after: u64| stream.next_index() - after;
    (0..3).for_each(|_| live.heartbeat());
    assert_eq!(pushed(0), 0);
    live.heartbeat();
    assert_eq!(pushed(0), 1);
    (0..8).for_each(|_| live.heartbeat());
    assert_eq!(pushed(0), 3);
    live.apply(&[change(51, &[(Side::Buy, 1, 1_000)])]);
    let mut book = history[&50].clone();
    book.set(Side::Buy, 1, 1_000);
    history.insert(51, book);
    assert_eq!(pushed(0), 3, "outside the window");
    (0..4).for_each(|_| live.heartbeat());
    client.drain(&history);
    assert_eq!((client.seen, pushed(0)), (Some(51), 4));
}

#[test]
fn a_stale_feed_is_sent_at_once_to_current_readers_and_to_later_ones() {
    let (live, streams, history) = busy();
    let stream = open_book(&live, &streams, 2, Speed::S1);
    let mut client = Client::join(&stream, 2, &history);
    live.set_feed_states(FeedStates::all(FeedState::Stale));
    live.set_feed_states(FeedStates::all(FeedState::Stale));
    assert_eq!(stream.next_index(), 1);
    client.drain(&history);
    let Resume::Frames { frames, .. } = stream.source().join(&stream, None) else { panic!() };
    assert_eq!(frames.len(), 2);
    assert_eq!(parsed(&frames[1])["rest"]["state"], "STALE");
    live.set_feed_states(FeedStates::all(FeedState::Live));
    let Resume::Frames { frames, .. } = stream.source().join(&stream, None) else { panic!() };
    assert_eq!(frames.len(), 1);
}

#[test]
fn a_book_whose_own_source_is_sound_stays_live_while_others_are_not() {
    let (live, streams, history) = busy();
    let stream = open_book(&live, &streams, 2, Speed::S1);
    let mut client = Client::join(&stream, 2, &history);
    let book = LogTopic::Book(&live.definitions()[0].market).name();
    let states =
        |own| FeedStates::new([(book.clone(), own)].into_iter().collect(), FeedState::Halted);
    live.set_feed_states(states(FeedState::Live));
    assert_eq!(stream.next_index(), 0);
    live.set_feed_states(states(FeedState::Stale));
    assert_eq!(stream.next_index(), 1);
    client.drain(&history);
    assert_eq!(live.feed_states().others(), FeedState::Halted);
}

#[test]
fn other_decimals_begin_an_empty_book_with_a_snapshot_for_every_reader() {
    let (live, streams, history) = busy();
    let stream = open_book(&live, &streams, 2, Speed::Raw);
    Client::join(&stream, 2, &history);
    live.define(definition(MARKET));
    assert_eq!(stream.next_index(), 0, "the same definition again changes nothing");
    let mut other = (*definition(MARKET)).clone();
    other.price_decimals = 4;
    live.define(Arc::new(other));
    let mut frames = Vec::new();
    assert!(stream.read(0, 9, &mut frames));
    assert_eq!(parsed(&frames[0])["rest"]["reason"], "EpochChange");
    assert_eq!(parsed(&frames[0])["rest"]["bids"], json!([]));
}

#[test]
fn offers_are_stated_on_joining_and_then_chained_by_market() {
    let (live, streams) = (new_live(), new_streams(1 << 20));
    live.define(definition("A-B"));
    let stream = open(&streams, "offers".into(), || {
        live.offer_source(vec!["A-B".into(), MARKET.into()], Box::new(plain))
    });
    live.apply(&[change(3, &[(Side::Buy, 10, 1)]), change(4, &[(Side::Buy, 9, 1)])]);
    live.apply(&[change(6, &[(Side::Sell, 12, 1)])]);
    let start = made(stream.source().join(&stream, None));
    let Resume::Frames { frames, next } = start else { panic!("{start:?}") };
    assert_eq!(next, 2, "the event at 4 changed no best price");
    let sent: Vec<_> = frames.iter().map(parsed).collect();
    assert_eq!((&sent[0]["market"], &sent[0]["bid"]), (&json!("A-B"), &Value::Null));
    assert_eq!((&sent[1]["bid"], &sent[1]["ask"]), (&json!([10, 1]), &json!([12, 1])));
    assert_eq!((&sent[1]["sequence"], &sent[1]["previous"]), (&json!(6), &Value::Null));
    live.apply(&[change(8, &[(Side::Buy, 10, 5)])]);
    (0..4).for_each(|_| live.heartbeat());
    let mut frames = Vec::new();
    assert!(stream.read(next, 9, &mut frames));
    let chain: Vec<_> = frames
        .iter()
        .map(parsed)
        .map(|one| (one["market"].clone(), one["previous"].clone(), one["sequence"].clone()))
        .collect();
    let row = |market: &str, previous: u64, sequence: u64| {
        (json!(market), json!(previous), json!(sequence))
    };
    assert_eq!(chain, [row(MARKET, 6, 8), row("A-B", 0, 0), row(MARKET, 8, 8)]);
    assert!(frames.is_sorted_by_key(|frame| frame.sequence));
}

#[test]
fn a_joiner_gets_all_feeds_and_then_each_change() {
    let (live, streams) = (new_live(), new_streams(1 << 20));
    let view = |name: &str, state, events_total| FeedView {
        name: name.into(),
        kind: "files".into(),
        state,
        reason: None,
        events_total,
        known_total: 0,
        refused_total: 0,
        last_refusal: None,
        refusals: Vec::new(),
        last_event_time: None,
        lag: None,
        gaps: Vec::new(),
    };
    let stream = open(&streams, "feeds".into(), || live.feed_source(Box::new(plain)));
    assert!(matches!(stream.source().join(&stream, None), Resume::Ring { next: 0, .. }));
    live.set_feeds(vec![view("a", FeedState::Live, 1), view("b", FeedState::Live, 1)]);
    live.set_feeds(vec![view("a", FeedState::Live, 2), view("b", FeedState::Stale, 1)]);
    assert_eq!(stream.next_index(), 3, "counts alone are no news");
    let Resume::Frames { frames, .. } = stream.source().join(&stream, None) else { panic!() };
    assert_eq!(frames.len(), 2);
    (0..4).for_each(|_| live.heartbeat());
    assert_eq!(stream.next_index(), 5);
}

#[test]
fn a_reader_that_joins_between_events_misses_none() {
    const EVENTS: u64 = 3_000;
    let (live, streams) = (new_live(), new_streams(1 << 14));
    let (mut history, mut book) = (History::from([(0, Sides::default())]), Sides::default());
    let events: Vec<_> = (1..=EVENTS)
        .map(|sequence| {
            let level = (Side::Sell, u128::from(sequence * 7 % 23 + 1), u128::from(sequence % 5));
            book.set(level.0, level.1, level.2);
            history.insert(sequence, book.clone());
            change(sequence, &[level])
        })
        .collect();
    let stream = open_book(&live, &streams, 4, Speed::Raw);
    let raced = std::thread::scope(|scope| {
        let joining = || {
            let (mut between, mut last) = (0, 0);
            while last < EVENTS {
                let mut client = Client::join(&stream, 4, &history);
                between += u64::from((1..EVENTS).contains(&client.seen.unwrap()));
                (0..3).for_each(|_| client.drain(&history));
                last = client.seen.unwrap();
            }
            between
        };
        let joiners = [scope.spawn(joining), scope.spawn(joining)];
        events.chunks(10).for_each(|some| {
            live.apply(some);
            std::thread::yield_now();
        });
        (0..4).for_each(|_| live.heartbeat());
        joiners.map(|one| one.join().unwrap())
    });
    assert_ne!(raced, [0, 0], "nobody joined while events came");
}

#[test]
fn a_stream_that_was_swept_is_forgotten() {
    let (live, streams, _) = busy();
    let stream = open_book(&live, &streams, 2, Speed::Raw);
    streams.release(&stream);
    let later = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    streams.forget_idle(usize::MAX, later);
    live.apply(&[change(51, &[(Side::Buy, 9, 1_000)])]);
    assert_eq!(stream.next_index(), 0);
    assert_eq!(Arc::strong_count(&stream), 1);
}

/// A hub whose clock the test sets, with the candles of its trades kept the plain way.
struct Traded {
    live: Arc<Live>,
    clock: Arc<std::sync::atomic::AtomicI64>,
    candles: BTreeMap<(Interval, Micros), Candle>,
}

const SECOND: Micros = 1_000_000;

impl Traded {
    fn new() -> Self {
        let clock = Arc::new(std::sync::atomic::AtomicI64::new(0));
        let read = clock.clone();
        let now = Box::new(move || read.load(Ordering::Relaxed));
        let live = Arc::new(Live::new(EPOCH, now, JOURNAL_TOUCHES, no_log()));
        define(&live, MARKET);
        Self { live, clock, candles: BTreeMap::new() }
    }

    fn trade(&mut self, sequence: u64, second: i64, price: u128) {
        let tick = Tick { sequence, time: second * SECOND, price, size: 1 };
        let touched = Interval::ALL.map(|interval| {
            let candle = self
                .candles
                .entry((interval, interval.bucket(tick.time)))
                .and_modify(|candle| candle.add(&tick))
                .or_insert_with(|| Candle::begin(interval, &tick));
            candle.clone()
        });
        let trade = Trade {
            market: MARKET.into(),
            id: None,
            price,
            size: 1,
            price_decimals: 2,
            size_decimals: 3,
            taker_side: None,
        };
        let effect = Effect::Trade(Arc::new(trade));
        let candles = touched.into();
        self.live.apply(&[Applied { sequence, time: Some(tick.time), effect, candles }]);
    }

    fn clock(&self, second: i64) {
        self.clock.store(second * SECOND, Ordering::Relaxed);
        self.live.heartbeat();
    }

    fn open(&self, streams: &Streams) -> Arc<ResponseStream> {
        self.open_wide(streams, 1)
    }

    /// With so many fields of each candle.
    fn open_wide(&self, streams: &Streams, fields: usize) -> Arc<ResponseStream> {
        open(streams, format!("{fields} fields"), || {
            self.live.candle_source(MARKET, Interval::M1, fields, Box::new(plain)).unwrap()
        })
    }
}

/// What each frame says: previous, sequence, reason, and of each candle its minute, close, count
/// and whether it is closed.
fn parts(frames: &[Frame]) -> Vec<Value> {
    let one = |frame: &Frame| {
        let frame = parsed(frame);
        let candles = frame["candles"].as_array().unwrap().iter().map(|candle| {
            json!([candle[0].as_i64().unwrap() / 60 / SECOND, candle[4], candle[6], candle[7]])
        });
        json!([frame["previous"], frame["sequence"], frame["reason"], candles.collect::<Vec<_>>()])
    };
    frames.iter().map(one).collect()
}

fn joined(stream: &Arc<ResponseStream>, after: Option<u64>) -> Vec<Value> {
    let position = |sequence| Position { epoch: EPOCH, sequence };
    let topic = frame::candles_topic(MARKET, Interval::M1);
    let after = after.map(|after| Cursor::single(0, topic, position(after)).encode());
    match stream.source().join(stream, after.as_deref()) {
        Resume::Frames { frames, next } => {
            assert_eq!(next, stream.next_index());
            parts(&frames)
        }
        _ => panic!("frames"),
    }
}

#[test]
fn candles_follow_trades_and_the_clock_and_a_late_trade_changes_its_own_bucket() {
    let (mut hub, streams) = (Traded::new(), new_streams(1 << 20));
    hub.clock(10);
    let stream = hub.open(&streams);
    assert_eq!(joined(&stream, None), [json!([null, 0, "Initial", []])]);
    hub.trade(5, 20, 7);
    hub.trade(8, 30, 9);
    hub.clock(61);
    hub.clock(62);
    hub.trade(9, 70, 4);
    hub.trade(12, 40, 6);
    let mut frames = Vec::new();
    assert!(stream.read(0, 99, &mut frames));
    let expected = [
        json!([0, 5, null, [[0, 7, 1, false]]]),
        json!([5, 8, null, [[0, 9, 2, false]]]),
        json!([8, 8, null, [[0, 9, 2, true], [1, 9, 0, false]]]),
        json!([8, 9, null, [[1, 4, 1, false]]]),
        json!([9, 12, null, [[0, 6, 3, true]]]),
    ];
    assert_eq!(parts(&frames), expected);
    (0..4).for_each(|_| hub.clock(63));
    let mut frames = Vec::new();
    assert!(stream.read(5, 99, &mut frames));
    assert_eq!(parts(&frames), [json!([12, 12, null, []])]);
}

#[test]
fn a_clock_that_leaps_closes_eight_candles_of_a_stream_at_most() {
    let (mut hub, streams) = (Traded::new(), new_streams(1 << 20));
    hub.clock(1);
    let stream = hub.open(&streams);
    // From a source whose clock is ahead.
    (0..20).for_each(|minute| hub.trade(minute + 1, 60 * minute as i64 + 1, 7));
    hub.clock(60 * 19 + 2);
    let mut frames = Vec::new();
    assert!(stream.read(0, 99, &mut frames));
    let closed: Vec<_> = (11..19).map(|minute| json!([minute, 7, 1, true])).collect();
    let expected = json!([20, 20, null, closed]);
    assert_eq!(parts(&frames).last(), Some(&expected));
}

#[test]
fn a_resumed_client_gets_every_candle_touched_or_closed_since() {
    let (mut hub, streams) = (Traded::new(), new_streams(1 << 20));
    hub.clock(10);
    hub.trade(5, 20, 7);
    hub.clock(70);
    hub.trade(8, 71, 9);
    hub.trade(9, 72, 3);
    let stream = hub.open(&streams);
    assert_eq!(joined(&stream, Some(9)), [json!([9, 9, null, [[1, 3, 2, false]]])]);
    assert_eq!(joined(&stream, Some(8)), [json!([8, 9, null, [[1, 3, 2, false]]])]);
    let all = json!([5, 9, null, [[0, 7, 1, true], [1, 3, 2, false]]]);
    assert_eq!(joined(&stream, Some(5)), [all]);
    hub.clock(200);
    let closed = json!([9, 9, null, [[1, 3, 2, true], [3, 3, 0, false]]]);
    assert_eq!(joined(&stream, Some(9)), [closed]);
}

#[test]
fn a_cursor_that_can_not_be_resumed_gets_all_candles_with_the_reason() {
    let (mut hub, streams) = (Traded::new(), new_streams(1 << 20));
    hub.clock(10);
    (1..=5_000).for_each(|number| hub.trade(2 * number, 20, 7));
    let stream = hub.open(&streams);
    let reason = |after| joined(&stream, Some(after))[0][2].clone();
    assert_eq!(reason(10_001), "EpochChange", "the log lost its end");
    assert_eq!(reason(9_999), "ResumeTooOld", "no such trade");
    let oldest = 2 * (5_000 - 4_096);
    assert_eq!((reason(oldest), reason(oldest - 2)), (Value::Null, json!("ResumeTooOld")));
    let other = cursor(0, EPOCH, 10);
    assert!(matches!(stream.source().join(&stream, Some(&other)), Resume::Refused(_)));
    let Resume::Frames { frames, .. } = stream.source().catch_up(&stream, 3) else { panic!() };
    assert_eq!(parts(&frames)[0][2], "Lagged");
}

#[test]
fn a_cursor_with_too_many_candles_after_it_for_one_frame_gets_the_newest_with_the_reason() {
    let (mut hub, streams) = (Traded::new(), new_streams(1 << 20));
    for (sequence, second) in [(5, 20), (8, 80), (9, 140), (12, 200)] {
        hub.clock(second);
        hub.trade(sequence, second, 7);
    }
    let wide = hub.open_wide(&streams, MOST_STATED_FIELDS / 3);
    let reason = |stream, after| joined(stream, Some(after))[0][2].clone();
    assert_eq!((reason(&wide, 8), reason(&wide, 5)), (Value::Null, json!("ResumeTooOld")));
    assert_eq!(reason(&hub.open(&streams), 5), Value::Null, "a narrow one has room for all");
}

#[test]
fn a_candle_is_encoded_once_for_all_who_join_at_the_same_place() {
    let (mut hub, streams) = (Traded::new(), new_streams(1 << 20));
    hub.trade(5, 20, 7);
    let stream = hub.open(&streams);
    let join = || match stream.source().join(&stream, None) {
        Resume::Frames { frames, .. } => frames[0].tail.as_ptr(),
        _ => panic!("frames"),
    };
    assert_eq!(join(), join());
}

#[test]
fn a_ticker_chains_over_trades_and_offers_and_is_sent_when_old_minutes_leave() {
    let (mut hub, streams) = (Traded::new(), new_streams(1 << 20));
    hub.clock(100);
    let stream = open(&streams, "tickers".into(), || {
        hub.live.ticker_source(vec![MARKET.into()], Box::new(plain))
    });
    hub.trade(5, 20, 7);
    hub.live.apply(&[change(6, &[(Side::Buy, 10, 1)])]);
    hub.live.apply(&[change(7, &[(Side::Buy, 9, 1)])]);
    hub.trade(9, 80, 7);
    hub.clock(86_399);
    hub.clock(86_400);
    let mut frames = Vec::new();
    assert!(stream.read(0, 99, &mut frames));
    let chain: Vec<_> = frames
        .iter()
        .map(parsed)
        .map(|one| json!([one["previous"], one["sequence"], one["count"]]))
        .collect();
    let expected = [[0, 5, 1], [5, 6, 1], [6, 9, 2], [9, 9, 1]].map(|row| json!(row));
    assert_eq!(chain, expected);
}
