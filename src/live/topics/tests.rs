//! Log topics over a real log: a reader that joins, resumes or lags gets every event once, in
//! order, whatever the rings still hold.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use spreadly_subscriptions::{Cursor, Frame, Meters, OperationKey, StreamLimits, Streams};

use super::topic::MOST_RECENT;
use super::*;
use crate::live::frame::{FeedState, LiveFrame, LogCursor, log_topics};
use crate::live::{Live, MOST_STATED_FIELDS, Rollback, made};
use crate::market::admission::Admission;
use crate::market::effect::Applied;
use crate::market::event::parse;
use crate::market::topic::Topic;
use crate::store::{LogReaders, NewEvent, Store};

const MARKETS: [&str; 3] = ["A-B", "C-D", "E-F"];

/// A hub without its threads: what the sequencer does is done by the test.
struct Hub {
    store: Store,
    admission: Admission,
    live: Arc<Live>,
    streams: Streams,
    encoded: Arc<AtomicU64>,
    _folder: tempfile::TempDir,
}

impl Hub {
    fn new(ring_bytes: usize) -> Self {
        Self::with_readers(ring_bytes, 2)
    }

    fn with_readers(ring_bytes: usize, readers: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.db");
        let store = Store::open(&path).unwrap();
        let log = LogReaders::new(&path, readers);
        let live = Arc::new(Live::new(store.epoch(), Box::new(|| 9_000_000), 16, log));
        let limits = StreamLimits { ring_bytes, ..StreamLimits::default() };
        let streams = Streams::new(limits, Arc::new(Meters::default()));
        let (admission, encoded) = (Admission::new(), Arc::default());
        let mut hub = Self { store, admission, live, streams, encoded, _folder: folder };
        for market in MARKETS {
            hub.send(&format!(
                r#"{{"kind":"market","market":"{market}","base":"A","quote":"B","priceDecimals":2,"sizeDecimals":1}}"#
            ));
        }
        hub
    }

    fn send(&mut self, line: &str) -> u64 {
        let event = parse(line.as_bytes()).unwrap();
        let admitted = self.admission.admit(&event).unwrap();
        let new = NewEvent {
            topic: admitted.topic,
            id: event.id,
            body: line.into(),
            ..NewEvent::default()
        };
        let sequence = self.store.append(&[new], &[], 1).unwrap().sequences[0].unwrap();
        let applied =
            Applied { sequence, time: event.time, effect: admitted.effect, candles: Vec::new() };
        self.live.apply(&[applied]);
        sequence
    }

    fn trade(&mut self, market: usize, size: u64) -> u64 {
        let market = MARKETS[market];
        self.send(&format!(
            r#"{{"kind":"trade","market":"{market}","price":"1.5","size":"{size}","takerSide":"BUY"}}"#
        ))
    }

    fn publish(&mut self, topic: &str) -> u64 {
        self.send(&format!(r#"{{"kind":"message","topic":"{topic}","data":1}}"#))
    }

    /// Removes the blocks of these events.
    fn undo(&mut self, undone: &[(usize, u64)]) {
        let left = self.undo_in_log(undone);
        self.live.roll_back(&left).unwrap();
    }

    /// The same in the log alone: the live state does not follow yet.
    fn undo_in_log(&mut self, undone: &[(usize, u64)]) -> Rollback {
        let mut first = BTreeMap::new();
        for (market, sequence) in undone {
            let first = first.entry(*market).or_insert(*sequence);
            *first = *sequence.min(first);
        }
        let reverted =
            NewEvent { topic: "blocks".into(), body: "{}".into(), ..NewEvent::default() };
        let left = self.store.roll_back(&reverted, &[], 1, |log| {
            undone.iter().try_for_each(|(_, sequence)| log.undo(*sequence, &[]))?;
            let (mut scopes, mut topics) = (Vec::new(), Vec::new());
            for (market, first) in &first {
                let topic = Topic::Trades(MARKETS[*market]).name();
                let last = log.newest(&topic)?.map_or(0, |stored| stored.sequence);
                log.renumber(&scope_of(&topic), *first)?;
                scopes.push((scope_of(&topic), *first));
                topics.push((store::TopicPosition { name: (&*topic).into(), last }, None));
            }
            let (at, undone, markets) = (log.sequence, undone.len() as u64, Vec::new());
            Ok(Rollback { at, of_blocks: true, undone, scopes, markets, topics })
        });
        left.unwrap().unwrap().1
    }

    fn open(&self, markets: &[usize]) -> Arc<ResponseStream> {
        let key = OperationKey {
            document: format!("{markets:?}"),
            operation_name: None,
            variables: String::new(),
            audience: String::new(),
            cursor_extension: false,
        };
        let names = markets.iter().map(|market| Topic::Trades(MARKETS[*market]).name()).collect();
        self.open_as(key, names, 1)
    }

    /// Of a generic topic.
    fn open_topic(&self, name: &str) -> Arc<ResponseStream> {
        let key = OperationKey {
            document: name.to_owned(),
            operation_name: None,
            variables: String::new(),
            audience: String::new(),
            cursor_extension: false,
        };
        self.open_as(key, vec![Topic::Message(name).name()], 1)
    }

    /// With so many fields of each event.
    fn open_as(
        &self,
        key: OperationKey,
        names: Vec<TopicName>,
        fields: usize,
    ) -> Arc<ResponseStream> {
        let encoded = self.encoded.clone();
        let encode: Encode = Box::new(move |frame| {
            encoded.fetch_add(1, Ordering::Relaxed);
            plain(frame)
        });
        let source = self.live.topic_source(names, fields, encode);
        self.streams.open(key, 0, || Ok(source)).unwrap_or_else(|_| panic!("a stream opens"))
    }
}

fn plain(frame: LiveFrame) -> Vec<u8> {
    let LiveFrame::Log(frame) = frame else { panic!("{frame:?}") };
    let items: Vec<_> = frame.items.iter().map(|item| item.sequence).collect();
    let value = json!({
        "topic": &*frame.topic, "sequence": frame.sequence, "previous": frame.previous,
        "items": items, "reason": frame.reason.map(|reason| format!("{reason:?}")),
        "epoch": frame.epoch.to_string(), "cursor": frame.cursor.encode(), "state": frame.state,
    });
    value.to_string().into_bytes()
}

/// A client that checks everything: it keeps a chain for each topic, and the events it received.
#[derive(Default)]
struct Client {
    chain: HashMap<String, u64>,
    received: Vec<u64>,
    topics: HashMap<u64, String>,
    epochs: HashMap<String, String>,
    reorganisations: usize,
    cursor: Option<String>,
    pages: usize,
    /// The engine's share: where it reads on, what it was sent.
    next: u64,
    seen: u64,
    largest: usize,
}

impl Client {
    fn take(&mut self, frame: &Frame) {
        let text = &frame.tail[..frame.tail.len() - 1];
        let data: Value = serde_json::from_slice(text).unwrap();
        let (topic, sequence) =
            (data["topic"].as_str().unwrap(), data["sequence"].as_u64().unwrap());
        let items: Vec<u64> = serde_json::from_value(data["items"].clone()).unwrap();
        let epoch = data["epoch"].as_str().unwrap().to_owned();
        let before = self.epochs.insert(topic.to_owned(), epoch.clone());
        if let Some(previous) = data["previous"].as_u64() {
            if let Some(known) = self.chain.get(topic) {
                assert_eq!((previous, Some(epoch)), (*known, before), "{data}");
            }
        } else if data["reason"] == "Reorg" {
            assert!(items.is_empty(), "{data}");
            self.received.retain(|one| self.topics[one] != topic || *one <= sequence);
            let last = self.received.iter().rfind(|one| self.topics[*one] == topic);
            assert!(last.is_none_or(|last| *last == sequence), "{data}: held up to {last:?}");
            self.reorganisations += 1;
        } else {
            assert!(self.received.is_empty() && items.is_empty(), "{data}");
            assert_eq!(data["reason"], "Initial");
        }
        self.topics.extend(items.iter().map(|item| (*item, topic.to_owned())));
        assert_eq!(items.last().copied().unwrap_or(sequence), sequence, "{data}");
        self.chain.insert(topic.to_owned(), sequence);
        self.largest = self.largest.max(items.len());
        self.received.extend(items);
        self.cursor = Some(data["cursor"].as_str().unwrap().to_owned());
        self.seen = frame.sequence;
    }

    /// What a connection does with a start, to the end of the ring. `between` runs while the log is
    /// read and before what was read is used.
    fn go_on(&mut self, stream: &ResponseStream, mut start: Resume, between: &mut dyn FnMut()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        loop {
            start = match start {
                Resume::Throttled(answer) => {
                    let answer = runtime.block_on(answer);
                    between();
                    answer.resume
                }
                Resume::Page(frames) => {
                    frames.iter().for_each(|frame| self.take(frame));
                    self.pages += 1;
                    stream.source().catch_up(stream, self.seen)
                }
                Resume::Frames { frames, next } => {
                    frames.iter().for_each(|frame| self.take(frame));
                    self.next = next;
                    break;
                }
                Resume::Ring { seen, next } => {
                    (self.seen, self.next) = (seen, next);
                    break;
                }
                other => panic!("{other:?}"),
            };
        }
        let mut frames = Vec::new();
        if stream.read(self.next, usize::MAX, &mut frames) {
            self.next += frames.len() as u64;
            frames.iter().for_each(|frame| self.take(frame));
        } else {
            let start = stream.source().catch_up(stream, self.seen);
            self.go_on(stream, start, between);
        }
    }

    fn join(&mut self, stream: &ResponseStream, between: &mut dyn FnMut()) {
        let start = stream.source().join(stream, self.cursor.clone().as_deref());
        self.go_on(stream, start, between);
    }

    fn read_on(&mut self, stream: &ResponseStream) {
        self.go_on(stream, Resume::Ring { seen: self.seen, next: self.next }, &mut || {});
    }
}

fn refusal(start: Resume) -> Value {
    match start {
        Resume::Refused(errors) => serde_json::from_slice::<Value>(&errors).unwrap()[0].clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_reader_gets_the_position_of_each_topic_and_then_every_event() {
    let mut hub = Hub::new(1 << 20);
    let first = hub.trade(0, 1);
    let stream = hub.open(&[0, 1]);
    let mut client = Client::default();
    client.join(&stream, &mut || {});
    let expected = HashMap::from([("trades:A-B".to_owned(), first), ("trades:C-D".to_owned(), 0)]);
    assert_eq!((&client.chain, client.received.len()), (&expected, 0));
    let received = [hub.trade(1, 1), hub.trade(0, 2), hub.trade(0, 3)];
    hub.trade(2, 9);
    client.read_on(&stream);
    assert_eq!(client.received, received);
}

#[test]
fn an_event_is_encoded_once_for_all_readers_and_a_crowds_page_too() {
    let mut hub = Hub::new(1 << 20);
    let stream = hub.open(&[0]);
    let encoded = hub.encoded.clone();
    let mut clients: Vec<_> = (0..50).map(|_| Client::default()).collect();
    clients.iter_mut().for_each(|client| client.join(&stream, &mut || {}));
    assert_eq!(encoded.load(Ordering::Relaxed), 1, "the topic's position");
    for size in 1..=10 {
        hub.trade(0, size);
    }
    clients.iter_mut().for_each(|client| client.read_on(&stream));
    assert!(clients.iter().all(|client| client.received.len() == 10));
    assert_eq!(encoded.load(Ordering::Relaxed), 11);
    let cursor = LogCursor::decode(
        clients[0].cursor.as_ref().unwrap(),
        log_topics(&[Topic::Trades("A-B").name()]),
    );
    let mut begin = cursor.unwrap();
    begin.position.sequence = 0;
    for _ in 0..50 {
        let mut late = Client { cursor: Some(begin.encode()), ..Client::default() };
        // A stream of its own, so that no ring helps.
        late.join(&hub.open(&[0, 0]), &mut || {});
        assert_eq!((late.received.len(), late.pages, late.largest), (10, 1, 10));
    }
    assert_eq!(encoded.load(Ordering::Relaxed), 12, "ten events in one frame, once");
}

#[test]
fn a_replay_of_many_pages_is_whole_while_events_come() {
    let mut hub = Hub::new(4 << 10);
    let mut all: Vec<_> = (0..2_000).map(|size| hub.trade(size as usize % 2, size + 1)).collect();
    let stream = hub.open(&[0, 1]);
    let topics = log_topics(&[Topic::Trades("A-B").name(), Topic::Trades("C-D").name()]);
    let position = spreadly_subscriptions::Position { epoch: hub.store.epoch(), sequence: 0 };
    let mut client =
        Client { cursor: Some(LogCursor { topics, position }.encode()), ..Client::default() };
    let mut size = 0;
    client.join(&stream, &mut || {
        if size < 40 {
            size += 1;
            all.push(hub.trade(size as usize % 2, size));
        }
    });
    client.read_on(&stream);
    assert_eq!(client.received, all);
    assert!(client.pages >= 4, "{} pages", client.pages);
}

#[test]
fn an_event_in_the_log_that_was_not_pushed_yet_is_not_sent_twice() {
    let mut hub = Hub::new(1 << 20);
    let topics = log_topics(&[Topic::Trades("A-B").name()]);
    let position = spreadly_subscriptions::Position { epoch: hub.store.epoch(), sequence: 0 };
    let mut received: Vec<_> = (1..=3).map(|size| hub.trade(0, size)).collect();
    let stream = hub.open(&[0]);
    // Between the commit and what follows it.
    let line = r#"{"kind":"trade","market":"A-B","price":"1","size":"9"}"#;
    let admitted = hub.admission.admit(&parse(line.as_bytes()).unwrap()).unwrap();
    let new = NewEvent { topic: admitted.topic, body: line.into(), ..NewEvent::default() };
    let sequence = hub.store.append(&[new], &[], 1).unwrap().sequences[0].unwrap();
    let mut client =
        Client { cursor: Some(LogCursor { topics, position }.encode()), ..Client::default() };
    client.join(&stream, &mut || {});
    assert_eq!(client.received, received);
    hub.live.apply(&[Applied {
        sequence,
        time: None,
        effect: admitted.effect,
        candles: Vec::new(),
    }]);
    client.read_on(&stream);
    received.push(sequence);
    assert_eq!(client.received, received);
}

#[test]
fn what_the_log_does_not_have_is_refused_with_the_place_that_was_asked_for() {
    let mut hub = Hub::new(1 << 20);
    let last = hub.trade(0, 1);
    let stream = hub.open(&[0]);
    let topics = log_topics(&[Topic::Trades("A-B").name()]);
    let at = |epoch, sequence| {
        let position = spreadly_subscriptions::Position { epoch, sequence };
        LogCursor { topics, position }.encode()
    };
    let epoch = hub.store.epoch();
    for cursor in [at(Epoch(epoch.0 ^ 1), last), at(epoch, last + 1)] {
        let received = refusal(stream.source().join(&stream, Some(&cursor)));
        assert_eq!(received["extensions"]["code"], "RESYNC_REQUIRED");
        let asked = Cursor::decode(&cursor).unwrap().positions[0].1;
        let requested = json!({
            "epoch": asked.epoch.to_string(), "sequence": asked.sequence.to_string(),
        });
        assert_eq!(received["extensions"]["requested"], requested);
        let floor = json!({ "epoch": epoch.to_string(), "sequence": "0" });
        assert_eq!(received["extensions"]["floor"], floor);
    }
    let position = spreadly_subscriptions::Position { epoch, sequence: last };
    let other = LogCursor { topics: log_topics(&[Topic::Trades("C-D").name()]), position }.encode();
    for cursor in [other.as_str(), "nonsense"] {
        let received = refusal(stream.source().join(&stream, Some(cursor)));
        assert_eq!(received["extensions"]["code"], "BAD_REQUEST");
    }
}

#[test]
fn quiet_topics_beat_and_a_change_of_state_is_sent_at_once() {
    let mut hub = Hub::new(1 << 20);
    let last = hub.trade(0, 1);
    let stream = hub.open(&[0, 1]);
    let frames = |from| {
        let mut frames = Vec::new();
        assert!(stream.read(from, usize::MAX, &mut frames));
        let received = |frame: &Frame| -> Value {
            serde_json::from_slice(&frame.tail[..frame.tail.len() - 1]).unwrap()
        };
        frames.iter().map(received).collect::<Vec<_>>()
    };
    for _ in 0..3 {
        hub.live.heartbeat();
    }
    assert_eq!(stream.next_index(), 0);
    hub.live.heartbeat();
    let beats = frames(0);
    let received: Vec<_> = beats
        .iter()
        .map(|beat| (beat["sequence"].as_u64(), beat["previous"].as_u64(), beat["state"].as_str()))
        .collect();
    assert_eq!(
        received,
        [(Some(last), Some(last), Some("LIVE")), (Some(0), Some(0), Some("LIVE"))]
    );
    hub.live.set_feed_states(FeedStates::all(FeedState::Stale));
    assert!(frames(2).iter().all(|beat| beat["state"] == "STALE"));
    assert_eq!(stream.next_index(), 4);
    // Who resumes at the end while the state is not live hears of it.
    let mut client =
        Client { cursor: beats[1]["cursor"].as_str().map(str::to_owned), ..Client::default() };
    let start = made(stream.source().join(&stream, client.cursor.as_deref()));
    let Resume::Frames { frames, .. } = &start else { panic!("{start:?}") };
    assert_eq!(frames.len(), 2);
    client.go_on(&stream, start, &mut || {});
    hub.live.set_feed_states(FeedStates::all(FeedState::Live));
    assert_eq!(stream.next_index(), 6);
}

#[test]
fn nothing_is_kept_of_topics_that_nobody_published_to() {
    let hub = Hub::new(1 << 20);
    let names = |number: u32| vec![Topic::Message(&format!("t{number}")).name()];
    let mut streams = Vec::new();
    for number in 0..100 {
        let key = OperationKey {
            document: number.to_string(),
            operation_name: None,
            variables: String::new(),
            audience: String::new(),
            cursor_extension: false,
        };
        let source = hub.live.topic_source(names(number), 1, Box::new(plain));
        streams.push(hub.streams.open(key, 0, || Ok(source)).unwrap_or_else(|_| panic!()));
    }
    assert_eq!(hub.live.topics.lock().known(), 100);
    for stream in streams {
        stream.source().detach(&stream);
    }
    assert_eq!(hub.live.topics.lock().known(), 0);
}

#[test]
fn a_generic_topic_too_many_is_forgotten_and_its_chain_goes_on_from_the_log() {
    let mut hub = Hub::new(1 << 20);
    hub.live.topics.lock().keep_idle(3);
    let followed = hub.open_topic("followed");
    let mut follower = Client::default();
    follower.join(&followed, &mut || {});
    let mut received = vec![hub.publish("followed")];
    let markets = hub.live.topics.lock().known();
    let first = hub.publish("t0");
    for number in 1..50 {
        hub.publish(&format!("t{number}"));
    }
    assert_eq!(hub.live.topics.lock().known(), markets + 3);
    assert!(!hub.live.knows_topic("message:t0"));
    received.push(hub.publish("followed"));
    follower.read_on(&followed);
    assert_eq!(follower.received, received, "what is followed is not forgotten");

    // A new subscriber gets the topic's last sequence, and the next event follows it.
    let stream = hub.open_topic("t0");
    let mut client = Client::default();
    client.join(&stream, &mut || {});
    assert_eq!(client.chain["message:t0"], first);
    let second = hub.publish("t0");
    client.read_on(&stream);
    assert_eq!(client.received, [second]);

    // An event that comes before its follower has joined is chained to the last one too.
    let stream = hub.open_topic("t1");
    let begin = LogCursor {
        topics: log_topics(&[Topic::Message("t1").name()]),
        position: spreadly_subscriptions::Position { epoch: hub.store.epoch(), sequence: 0 },
    };
    let newest = hub.publish("t1");
    let mut late = Client { cursor: Some(begin.encode()), ..Client::default() };
    late.join(&stream, &mut || {});
    assert_eq!(late.received.len(), 2);
    assert_eq!(late.received[1], newest);
    // One that nobody follows, too: an earlier cursor resumes after what it saw.
    let third = hub.publish("t2");
    let mut back = Client::default();
    let stream = hub.open_topic("t2");
    back.join(&stream, &mut || {});
    assert_eq!(back.chain["message:t2"], third);
    assert_eq!(hub.live.topics.lock().known(), markets + 2 + 3, "t2 is followed, not idle");
}

#[test]
fn an_event_that_is_written_while_a_forgotten_topic_is_looked_up_is_sent_once() {
    let mut hub = Hub::new(1 << 20);
    hub.live.topics.lock().keep_idle(1);
    let first = hub.publish("t0");
    for number in 1..5 {
        hub.publish(&format!("t{number}"));
    }
    let stream = hub.open_topic("t0");
    let begin = LogCursor {
        topics: log_topics(&[Topic::Message("t0").name()]),
        position: spreadly_subscriptions::Position { epoch: hub.store.epoch(), sequence: 0 },
    };
    let mut client = Client { cursor: Some(begin.encode()), ..Client::default() };
    let start = stream.source().join(&stream, client.cursor.as_deref());
    // The join reads the log after this event.
    let second = hub.publish("t0");
    client.go_on(&stream, start, &mut || {});
    client.read_on(&stream);
    assert_eq!(client.received, [first, second]);
    let third = hub.publish("t0");
    client.read_on(&stream);
    assert_eq!(client.received, [first, second, third]);
}

#[test]
fn after_a_rollback_current_and_resuming_readers_go_back_to_valid_events() {
    let mut hub = Hub::new(1 << 20);
    let all: Vec<_> = (1..=6).map(|size| hub.trade(0, size)).collect();
    let other = hub.trade(1, 1);
    let stream = hub.open(&[0, 1]);
    let topics = log_topics(&[Topic::Trades("A-B").name(), Topic::Trades("C-D").name()]);
    let begin = LogCursor {
        topics,
        position: spreadly_subscriptions::Position { epoch: hub.store.epoch(), sequence: 0 },
    };
    let from_the_start = || Client { cursor: Some(begin.encode()), ..Client::default() };
    let [mut here, mut away, mut early] = [(); 3].map(|()| from_the_start());
    here.join(&stream, &mut || {});
    away.join(&stream, &mut || {});
    assert_eq!(here.received, [&all[..], &[other]].concat());
    // The third and the last: what is between stays valid, and is sent again.
    hub.undo(&[(0, all[2]), (0, all[5])]);
    let next = hub.trade(0, 7);
    let standing = [all[0], all[1], all[3], all[4], other, next];
    here.read_on(&stream);
    assert_eq!((&here.received[..], here.reorganisations), (&standing[..], 2), "one a topic");
    away.join(&stream, &mut || {});
    assert_eq!((&away.received[..], away.reorganisations), (&standing[..], 2));
    // A cursor from before whatever was undone loses nothing and goes on.
    early.join(&stream, &mut || {});
    assert_eq!((&early.received[..], early.reorganisations), (&standing[..], 2));
    // Of today's epoch: as ever.
    away.join(&stream, &mut || {});
    assert_eq!((&away.received[..], away.reorganisations), (&standing[..], 2));
}

#[test]
fn a_crowd_that_goes_back_costs_one_encoding_a_topic() {
    let mut hub = Hub::new(1 << 20);
    hub.trade(0, 1);
    let stream = hub.open(&[0, 1]);
    let mut clients: Vec<_> = (0..50).map(|_| Client::default()).collect();
    clients.iter_mut().for_each(|client| client.join(&stream, &mut || {}));
    let undone = hub.trade(0, 2);
    clients.iter_mut().for_each(|client| client.read_on(&stream));
    let before = hub.encoded.load(Ordering::Relaxed);
    hub.undo(&[(0, undone)]);
    clients.iter_mut().for_each(|client| client.read_on(&stream));
    assert!(clients.iter().all(|client| client.received.is_empty() && client.reorganisations == 2));
    assert_eq!(hub.encoded.load(Ordering::Relaxed) - before, 2);
}

#[test]
fn what_was_read_before_a_rollback_is_not_sent_after_it() {
    let mut hub = Hub::new(1 << 20);
    let all: Vec<_> = (1..=4).map(|size| hub.trade(0, size)).collect();
    let stream = hub.open(&[0]);
    let cursor = at_the_beginning(&hub);
    let Resume::Throttled(reading) = stream.source().join(&stream, Some(&cursor)) else { panic!() };
    hub.undo(&[(0, all[1])]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut client = Client::default();
    client.go_on(&stream, runtime.block_on(reading).resume, &mut || {});
    assert_eq!(client.received, [all[0], all[2], all[3]]);
    assert_eq!(client.reorganisations, 1, "it asked again where to go on");
}

/// The cursor of a client that has seen nothing of the first market.
fn at_the_beginning(hub: &Hub) -> String {
    let topics = log_topics(&[Topic::Trades("A-B").name()]);
    let position = spreadly_subscriptions::Position { epoch: hub.store.epoch(), sequence: 0 };
    LogCursor { topics, position }.encode()
}

/// How a replay ends, and how long that took by a clock that leaps.
fn end_of(start: Resume) -> (Resume, Duration) {
    let Resume::Throttled(reading) = start else { panic!("{start:?}") };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let began = tokio::time::Instant::now();
        let end = tokio::time::timeout(Duration::from_secs(600), reading).await.unwrap().resume;
        (end, began.elapsed())
    })
}

#[test]
fn a_replay_is_given_up_where_the_live_state_does_not_follow_the_log() {
    let mut hub = Hub::new(1 << 20);
    let all: Vec<_> = (1..=4).map(|size| hub.trade(0, size)).collect();
    let (stream, cursor) = (hub.open(&[0]), at_the_beginning(&hub));
    hub.undo_in_log(&[(0, all[1])]);
    let (end, took) = end_of(stream.source().join(&stream, Some(&cursor)));
    assert!(matches!(end, Resume::CannotContinue), "{end:?}");
    assert_eq!(took, 50 * Duration::from_millis(20));
}

#[test]
fn a_replay_that_has_no_turn_at_the_log_is_refused_after_its_longest_wait() {
    let mut hub = Hub::with_readers(1 << 20, 0);
    hub.trade(0, 1);
    let (stream, cursor) = (hub.open(&[0]), at_the_beginning(&hub));
    let (end, took) = end_of(stream.source().join(&stream, Some(&cursor)));
    assert_eq!(refusal(end)["extensions"]["code"], "UNAVAILABLE");
    assert_eq!(took.as_secs(), 10);
}

#[test]
fn of_a_stream_the_four_newest_pages_are_kept_for_further_readers() {
    let mut hub = Hub::new(1 << 20);
    for size in 1..=6 {
        hub.trade(0, size);
    }
    let stream = hub.open(&[0, 0]);
    let encoded = hub.encoded.clone();
    let read_after = |sequence: u64| {
        let topics = log_topics(&[Topic::Trades("A-B").name()]);
        let position = spreadly_subscriptions::Position { epoch: hub.store.epoch(), sequence };
        let cursor = Some(LogCursor { topics, position }.encode());
        let before = encoded.load(Ordering::Relaxed);
        Client { cursor, ..Client::default() }.join(&stream, &mut || {});
        encoded.load(Ordering::Relaxed) - before
    };
    let first = hub.store.read_from(0, 100).unwrap()[2].sequence;
    let pages: Vec<_> = (first..first + 5).map(read_after).collect();
    assert_eq!(pages, [1; 5], "five pages, each read and encoded");
    assert_eq!((first + 1..first + 5).map(read_after).sum::<u64>(), 0, "the newest are kept");
    assert_eq!(read_after(first), 1, "the oldest is not");
}

#[test]
fn events_with_many_fields_come_in_shorter_frames_live_and_from_the_log() {
    let mut hub = Hub::new(1 << 20);
    let key = OperationKey {
        document: "wide".to_owned(),
        operation_name: None,
        variables: String::new(),
        audience: String::new(),
        cursor_extension: false,
    };
    let names = vec![Topic::Trades(MARKETS[0]).name()];
    let stream = hub.open_as(key, names, MOST_STATED_FIELDS / 3);
    let mut client = Client::default();
    client.join(&stream, &mut || {});
    let follower = hub.live.follower(stream.id()).unwrap();
    hub.live.set_pace(&follower, spreadly_subscriptions::Pace::S1);
    let sent: Vec<_> = (1..=8).map(|size| hub.trade(0, size)).collect();
    hub.live.advance(&follower);
    client.read_on(&stream);
    assert_eq!((&client.received, client.largest), (&sent, 3));
    let mut late = Client { cursor: Some(at_the_beginning(&hub)), ..Client::default() };
    stream.invalidate();
    late.join(&stream, &mut || {});
    assert_eq!((&late.received, late.largest), (&sent, 3));
    assert!(late.pages > 0, "it read the log");
}

#[test]
fn a_start_of_many_topics_ends_while_events_come_and_may_be_cut_anywhere() {
    for cut in 1..=3 {
        let mut hub = Hub::new(1 << 20);
        hub.trade(0, 1);
        let stream = hub.open(&[0, 1, 2]);
        let ask = |hub: &Hub| {
            let mut topics = hub.live.topics.lock();
            topics.join(stream.id(), None, 9_000_000, &mut Step::of_one())
        };
        assert!(ask(&hub).is_none());
        let mut sent = vec![hub.trade(1, 1)];
        assert!(ask(&hub).is_none());
        sent.push(hub.trade(2, 1));
        let start = ask(&hub);
        let Some(Continuation::Here(Resume::Frames { frames, .. })) = start else { panic!("late") };
        // It is cut after some of these frames.
        let mut client = Client::default();
        frames[..cut].iter().for_each(|frame| client.take(frame));
        sent.extend((0..3).map(|market| hub.trade(market, 2)));
        client.join(&stream, &mut || {});
        assert_eq!(client.received, sent[cut - 1..], "after {cut} frames");
    }
}

#[derive(Clone, Debug)]
enum Action {
    Trade(usize),
    /// Every other one of so many newest events is undone.
    Undo(usize),
    /// This client reads what there is.
    Read(usize),
    /// This client comes back with its cursor.
    Resume(usize),
    Beat,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0..3usize).prop_map(Action::Trade),
        1 => (1..20usize).prop_map(Action::Undo),
        2 => (0..3usize).prop_map(Action::Read),
        1 => (0..3usize).prop_map(Action::Resume),
        1 => Just(Action::Beat),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_reader_gets_every_event_of_its_topics_once(
        actions in prop::collection::vec(action(), 1..120),
        ring_bytes in prop_oneof![Just(600usize), Just(2_000), Just(1 << 20)],
    ) {
        let mut hub = Hub::new(ring_bytes);
        let followed: [&[usize]; 3] = [&[0], &[0, 1], &[0, 1, 2]];
        let streams = followed.map(|markets| hub.open(markets));
        let mut clients = [(); 3].map(|()| Client::default());
        for (client, stream) in clients.iter_mut().zip(&streams) {
            client.join(stream, &mut || {});
        }
        let mut all = Vec::new();
        for (number, action) in actions.into_iter().enumerate() {
            match action {
                Action::Trade(market) => all.push((market, hub.trade(market, number as u64 + 1))),
                Action::Undo(newest) => {
                    let from = all.len().saturating_sub(newest);
                    let undone: Vec<_> = all[from..].iter().copied().step_by(2).collect();
                    hub.undo(&undone);
                    all.retain(|one| !undone.contains(one));
                }
                Action::Read(one) => clients[one].read_on(&streams[one]),
                Action::Resume(one) => clients[one].join(&streams[one], &mut || {
                    if all.len() % 7 == 3 {
                        all.push((0, hub.trade(0, 1)));
                    }
                    if all.len() % 7 == 5 {
                        hub.undo(&all.split_off(all.len() - 2));
                    }
                }),
                Action::Beat => hub.live.heartbeat(),
            }
        }
        for ((client, stream), markets) in clients.iter_mut().zip(&streams).zip(followed) {
            client.read_on(stream);
            let expected: Vec<_> = all
                .iter()
                .filter(|(market, _)| markets.contains(market))
                .map(|(_, sequence)| *sequence)
                .collect();
            prop_assert_eq!(&client.received, &expected);
        }
    }
}

#[test]
fn a_merged_stream_of_a_topic_loses_nothing() {
    // Fewer events than are kept, and more: those are read from the log.
    for (events, expected) in [(MOST_RECENT, 1), (MOST_RECENT + 1, 0)] {
        let mut hub = Hub::new(1 << 20);
        let stream = hub.open(&[0]);
        let start = made(stream.source().join(&stream, None));
        assert!(matches!(start, Resume::Frames { .. }));
        let follower = hub.live.follower(stream.id()).unwrap();
        hub.live.set_pace(&follower, spreadly_subscriptions::Pace::S1);
        let sent: Vec<_> = (0..events).map(|size| hub.trade(0, size as u64 + 1)).collect();
        assert_eq!(stream.next_index(), 0, "its time has not come");
        hub.live.advance(&follower);
        let mut frames = Vec::new();
        if expected == 0 {
            assert!(!stream.read(0, 9, &mut frames), "its readers ask where they go on");
            assert!(matches!(stream.source().catch_up(&stream, 0), Resume::Throttled(_)));
            continue;
        }
        assert!(stream.read(0, 9, &mut frames));
        assert_eq!(frames.len(), expected);
        let frame: Value =
            serde_json::from_slice(&frames[0].tail[..frames[0].tail.len() - 1]).unwrap();
        assert_eq!(frame["previous"], 0);
        assert_eq!(frame["items"], json!(sent));
    }
}
