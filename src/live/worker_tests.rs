//! Streams that workers bring up to date: whatever happens between an event and a worker's turn,
//! nobody misses an event, and each frame is right.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use spreadly_subscriptions::{Pace, Turn, Worker};

use super::*;
use crate::live::encode_worker::{FEW_STREAMS, MARKED_AT_ONCE};
use crate::live::steps::Step;
use crate::market::topic::Topic as LogTopic;

const WORKERS: usize = 3;
/// So little that owners are merged for it now and then.
const STREAM_COST_RATE: u32 = 2_000;

/// Gives a worker a turn; whether there is more to do.
fn works(worker: &impl Worker) -> bool {
    !matches!(worker.turn(), Turn::Done { .. })
}

/// A stream with one client, on a worker.
struct Followed {
    worker: usize,
    document: String,
    client: Client,
}

struct Storm {
    encoders: Encoders,
    streams: Streams,
    history: History,
    followed: Vec<Followed>,
    /// Clients that left a stream which may be kept for them.
    left: Vec<Followed>,
    opened: u64,
}

impl Storm {
    fn new() -> Self {
        let encoders = Encoders::new(new_live(), WORKERS, STREAM_COST_RATE);
        let history = History::from([(0, Sides::default())]);
        Self {
            encoders,
            streams: new_streams(4 << 10),
            history,
            followed: vec![],
            left: vec![],
            opened: 0,
        }
    }

    fn event(&mut self, random: &mut SmallRng) -> Applied {
        let (last, book) = self.history.last_key_value().unwrap();
        let (sequence, mut book) = (last + random.random_range(1..4), book.clone());
        let levels: Vec<_> = (0..random.random_range(0..5))
            .map(|_| {
                let side = if random.random_bool(0.5) { Side::Buy } else { Side::Sell };
                (side, random.random_range(1..20), random.random_range(0..4))
            })
            .collect();
        levels.iter().for_each(|(side, price, size)| book.set(*side, *price, *size));
        self.history.insert(sequence, book);
        change(sequence, &levels)
    }

    /// Each stream is its own: a document that nobody else has.
    fn open(&mut self, random: &mut SmallRng) {
        let (worker, depth) = (random.random_range(0..WORKERS), random.random_range(1..15));
        let speed = [Speed::Raw, Speed::Raw, Speed::Ms100, Speed::S1][random.random_range(0..4)];
        let live = self.encoders.state_of(worker).clone();
        self.opened += 1;
        let document = self.opened.to_string();
        let stream = open(&self.streams, document.clone(), || {
            live.book_source(MARKET, depth, speed, Box::new(plain), None).unwrap()
        });
        let client = match random.random_bool(0.5) {
            true => Client::join(&stream, depth, &self.history),
            false => {
                // A position that the worker has taken in; another one would have to be waited for.
                self.run(worker);
                let back = random.random_range(0..self.history.len().min(60));
                let from = *self.history.keys().rev().nth(back).unwrap();
                Client::resume(&stream, depth, from, &self.history)
            }
        };
        self.followed.push(Followed { worker, document, client });
    }

    fn close(&mut self, random: &mut SmallRng) {
        if !self.followed.is_empty() {
            let gone = random.random_range(0..self.followed.len());
            let gone = self.followed.swap_remove(gone);
            self.streams.release(&gone.client.stream);
            let later = Instant::now() + std::time::Duration::from_secs(3_600);
            self.streams.forget_idle(usize::MAX, later);
        }
    }

    /// A client leaves, and its stream lingers.
    fn leave(&mut self, random: &mut SmallRng) {
        if !self.followed.is_empty() {
            let gone = random.random_range(0..self.followed.len());
            let mut gone = self.followed.swap_remove(gone);
            gone.client.drain(&self.history);
            self.streams.release(&gone.client.stream);
            self.left.push(gone);
        }
    }

    /// It comes back with its cursor, and has at once what its worker has taken. True if the stream
    /// was still there.
    fn come_back(&mut self) -> bool {
        let Some(Followed { worker, document, client }) = self.left.pop() else { return false };
        self.run(worker);
        let live = self.encoders.state_of(worker).clone();
        let stream = open(&self.streams, document.clone(), || {
            live.book_source(MARKET, client.depth, Speed::Raw, Box::new(plain), None).unwrap()
        });
        let is_same = Arc::ptr_eq(&stream, &client.stream);
        let seen = client.seen.unwrap();
        let mut client = Client::resume(&stream, client.depth, seen, &self.history);
        client.drain(&self.history);
        if live.follower(stream.id()).unwrap().pace == Pace::Raw && stream.slowed_to().is_none() {
            let current = self.history.last_key_value().unwrap().1;
            assert_eq!(client.book, current.top(client.depth));
        }
        self.followed.push(Followed { worker, document, client });
        is_same
    }

    fn run(&self, worker: usize) {
        while works(self.encoders.worker(worker)) {}
    }
}

/// A stream of a book that was joined at its beginning.
fn joined(live: &Arc<Live>, streams: &Streams, key: usize, encode: Encode) -> Arc<ResponseStream> {
    let stream = open(streams, key.to_string(), || {
        live.book_source(MARKET, 10, Speed::Raw, encode, None).unwrap()
    });
    Client::join(&stream, 10, &History::from([(0, Sides::default())]));
    stream
}

/// Takes so many microseconds at least for each frame.
fn slow(micros: u64) -> Encode {
    Box::new(move |frame| {
        let until = Instant::now() + std::time::Duration::from_micros(micros);
        while Instant::now() < until {}
        plain(frame)
    })
}

#[test]
fn an_event_is_pushed_by_the_worker_and_not_by_the_thread_that_brings_it() {
    let mut random = SmallRng::seed_from_u64(1);
    let mut storm = Storm::new();
    let live = storm.encoders.state_of(0).clone();
    let stream = open_book(&live, &storm.streams, 10, Speed::Raw);
    let client = Client::join(&stream, 10, &storm.history);
    let next = client.next;
    let events: Vec<_> = (0..5).map(|_| storm.event(&mut random)).collect();
    let last = events[4].sequence;
    storm.encoders.apply(events);
    assert_eq!(stream.next_index(), next, "nothing is pushed yet");
    storm.run(0);
    assert!(stream.next_index() > next, "each event that changed the window by itself");
    let later = Client::join(&stream, 10, &storm.history);
    assert_eq!(later.seen, Some(last));
}

#[test]
fn a_reader_that_comes_back_to_a_stream_that_nobody_read_gets_at_once_what_it_missed() {
    let mut storm = Storm::new();
    let live = storm.encoders.state_of(0).clone();
    let stream = open_book(&live, &storm.streams, 20, Speed::Raw);
    let client = Client::join(&stream, 20, &storm.history);
    let seen = client.seen.unwrap();
    storm.streams.release(&stream);
    let event = change(seen + 1, &[(Side::Buy, 7, 3)]);
    let mut book = storm.history[&seen].clone();
    book.set(Side::Buy, 7, 3);
    storm.history.insert(event.sequence, book);
    storm.encoders.apply(vec![event]);
    storm.run(0);
    let again = open_book(&live, &storm.streams, 20, Speed::Raw);
    assert!(Arc::ptr_eq(&stream, &again), "it lingers");
    let mut client = Client::resume(&again, 20, seen, &storm.history);
    client.drain(&storm.history);
    assert_eq!(client.seen, Some(seen + 1));
}

#[test]
fn a_stream_with_several_readers_does_not_wait_until_many_others_are_scheduled() {
    let encoders = Encoders::new(new_live(), 1, STREAM_COST_RATE);
    let (live, streams) = (encoders.state_of(0).clone(), new_streams(1 << 20));
    let opened = |key: usize| joined(&live, &streams, key, Box::new(plain));
    let alone: Vec<_> = (0..100).map(opened).collect();
    let shared = opened(100);
    opened(100);
    let pushed = |stream: &Arc<ResponseStream>| stream.next_index() > 0;
    encoders.apply(vec![change(1, &[(Side::Buy, 5, 1)])]);
    assert!(works(encoders.worker(0)));
    assert!(pushed(&shared) && !alone.iter().any(pushed));
    while works(encoders.worker(0)) {}
    assert!(alone.iter().all(pushed));
}

#[test]
fn streams_with_several_readers_push_in_one_turn_though_many_others_wait() {
    // Six of these take longer than the moment that an event has among many streams.
    let push_together = || {
        let encoders = Encoders::new(new_live(), 1, 1_000_000);
        let (live, streams) = (encoders.state_of(0).clone(), new_streams(1 << 20));
        let opened = |key: usize| joined(&live, &streams, key, slow(30));
        let _alone: Vec<_> = (0..200).map(opened).collect();
        let shared: Vec<_> = (200..206).map(opened).collect();
        (200..206).for_each(|key| drop(opened(key)));
        (1..=3).any(|sequence| {
            encoders.apply(vec![change(sequence, &[(Side::Buy, 5, u128::from(sequence))])]);
            while live.applied.get() < sequence {
                let _turn = encoders.worker(0).turn();
            }
            let others = live.schedule.lock().waiting();
            others > FEW_STREAMS && shared.iter().all(|one| one.index_after(sequence).is_some())
        })
    };
    // If the thread is suspended, a turn ends early.
    assert!((0..20).any(|_| push_together()));
}

#[test]
fn many_streams_that_events_touch_are_scheduled_in_portions_and_each_once() {
    let encoders = Encoders::new(new_live(), 1, STREAM_COST_RATE);
    let (live, streams) = (encoders.state_of(0).clone(), new_streams(1 << 20));
    let opened = |key: usize| joined(&live, &streams, key, Box::new(plain));
    let alone: Vec<_> = (0..1_000).map(opened).collect();
    let worker = encoders.worker(0);
    encoders.apply(vec![change(1, &[(Side::Buy, 5, 1)])]);
    assert!(works(worker));
    assert!(live.schedule.lock().waiting() <= MARKED_AT_ONCE);
    assert!(worker.unscheduled() > alone.len() / 2);
    // More events than they have time for.
    for sequence in 2..100 {
        encoders.apply(vec![change(sequence, &[(Side::Buy, 5, u128::from(sequence))])]);
        let _turn = worker.turn();
        assert!(worker.unscheduled() <= alone.len());
    }
    // Some were merged, to a second at most.
    let patience = Instant::now() + std::time::Duration::from_secs(20);
    while !alone.iter().all(|stream| stream.index_after(99) == Some(stream.next_index())) {
        assert!(Instant::now() < patience, "some never push");
        let _turn = worker.turn();
    }
}

#[test]
fn an_event_does_not_wait_for_streams_of_other_markets() {
    let encoders = Encoders::new(new_live(), 1, STREAM_COST_RATE);
    let other = "C-D";
    define(encoders.live(), other);
    let (live, streams) = (encoders.state_of(0).clone(), new_streams(1 << 20));
    let opened = |key: usize, market: &str| {
        let stream = open(&streams, format!("{market} {key}"), || {
            live.book_source(market, 10, Speed::Raw, Box::new(plain), None).unwrap()
        });
        assert!(matches!(stream.source().join(&stream, None), Resume::Frames { .. }));
        stream
    };
    let many: Vec<_> = (0..1_000).map(|key| opened(key, MARKET)).collect();
    let (own, _same) = (opened(0, other), opened(0, other));
    let of_other = |sequence: u64| {
        let mut event = change(sequence, &[(Side::Buy, 5, u128::from(sequence))]);
        let Effect::Change { market, .. } = &mut event.effect else { panic!("{event:?}") };
        *market = other.into();
        event
    };
    encoders.apply(vec![change(1, &[(Side::Buy, 5, 1)])]);
    for sequence in 2..5 {
        encoders.apply(vec![of_other(sequence)]);
        // Those after an event of many are scheduled, those that take the event and serve its
        // stream.
        (0..3).for_each(|_| assert!(works(encoders.worker(0))));
        assert_eq!(own.next_index(), sequence - 1);
    }
    assert!(many.iter().any(|stream| stream.next_index() == 0), "none waits: nothing is proven");
}

#[test]
fn an_event_waits_for_streams_of_its_own_market_no_longer_than_its_budget() {
    let encoders = Encoders::new(new_live(), 1, STREAM_COST_RATE);
    let (live, streams) = (encoders.state_of(0).clone(), new_streams(1 << 20));
    let opened = |key: usize| joined(&live, &streams, key, slow(1_000));
    let all: Vec<_> = (0..100).map(opened).collect();
    for sequence in 1..3 {
        encoders.apply(vec![change(sequence, &[(Side::Buy, 5, u128::from(sequence))])]);
    }
    let worker = encoders.worker(0);
    while live.applied.get() < 2 {
        assert!(works(worker), "the second event is there");
    }
    let of_first = all.iter().filter(|stream| stream.next_index() > 0).count();
    assert!((1..all.len()).contains(&of_first), "{of_first} pushed before the second event");
    while works(worker) {}
    assert!(all.iter().all(|stream| stream.index_after(2) == Some(stream.next_index())));
    assert!(all.iter().any(|stream| stream.next_index() == 1), "one frame for both events");
}

#[test]
fn no_stream_misses_an_event_whatever_happens_before_its_turn() {
    for seed in [1, 7, 20_261_128] {
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let mut storm = Storm::new();
        let (mut raced, mut lost, mut closed, mut came_back) = (0, 0, 0, 0);
        for _ in 0..4_000 {
            match random.random_range(0..20) {
                0..7 => {
                    let count = random.random_range(1..5);
                    let events = (0..count).map(|_| storm.event(&mut random)).collect();
                    storm.encoders.apply(events);
                }
                7..11 => {
                    let _turn = storm.encoders.worker(random.random_range(0..WORKERS)).turn();
                }
                11..13 => {
                    // Events are on their way to the worker while the stream copies the market.
                    let events = (0..2).map(|_| storm.event(&mut random)).collect();
                    storm.encoders.apply(events);
                    storm.open(&mut random);
                    raced += 1;
                }
                13..15 => {
                    closed += usize::from(!storm.followed.is_empty());
                    storm.close(&mut random);
                }
                15 if random.random_bool(0.2) => {
                    storm.encoders.worker(random.random_range(0..WORKERS)).lose_changes();
                    lost += 1;
                }
                15 => {
                    storm.leave(&mut random);
                    if random.random_bool(0.7) {
                        let events = (0..2).map(|_| storm.event(&mut random)).collect();
                        storm.encoders.apply(events);
                        came_back += usize::from(storm.come_back());
                    }
                }
                16 => {
                    let mut state = || match random.random_bool(0.5) {
                        true => FeedState::Live,
                        false => FeedState::Stale,
                    };
                    let topics = [LogTopic::Book("A-B").name(), LogTopic::Trades("A-B").name()];
                    let known = topics.map(|topic| (topic, state())).into_iter().collect();
                    storm.encoders.set_feed_states(FeedStates::new(known, state()));
                }
                _ if !storm.followed.is_empty() => {
                    let place = random.random_range(0..storm.followed.len());
                    let history = &storm.history;
                    storm.followed[place].client.drain(history);
                }
                _ => {}
            }
        }
        assert!(raced > 200 && lost > 10 && closed > 200, "{raced} {lost} {closed}");
        assert!(came_back > 20, "{came_back}");
        let last = *storm.history.last_key_value().unwrap().0;
        (0..WORKERS).for_each(|worker| storm.run(worker));
        for _ in 0..4 {
            (0..WORKERS).for_each(|worker| storm.encoders.state_of(worker).heartbeat());
        }
        for Followed { worker, client, .. } in &mut storm.followed {
            client.drain(&storm.history);
            assert_eq!(client.seen, Some(last), "on worker {worker}");
        }
        while !storm.followed.is_empty() {
            storm.close(&mut random);
        }
        for worker in 0..WORKERS {
            let live = storm.encoders.state_of(worker);
            assert!(live.all().is_empty(), "what nobody follows is not kept");
        }
    }
}

#[test]
fn offers_tickers_candles_and_topics_are_merged_without_a_break_in_their_chains() {
    let encoders = Encoders::new(new_live(), 1, STREAM_COST_RATE);
    let (live, streams) = (encoders.state_of(0).clone(), new_streams(1 << 20));
    let offers =
        open(&streams, "offers".into(), || live.offer_source(vec![MARKET.into()], Box::new(plain)));
    let tickers = open(&streams, "tickers".into(), || {
        live.ticker_source(vec![MARKET.into()], Box::new(plain))
    });
    for stream in [&offers, &tickers] {
        let start = made(stream.source().join(stream, None));
        assert!(matches!(start, Resume::Frames { .. }));
        let follower = live.follower(stream.id()).unwrap();
        live.set_pace(&follower, spreadly_subscriptions::Pace::S1);
    }
    let events = (1..=9).map(|sequence| change(sequence, &[(Side::Buy, 5, u128::from(sequence))]));
    encoders.apply(events.collect());
    while works(encoders.worker(0)) {}
    for stream in [&offers, &tickers] {
        assert_eq!(stream.next_index(), 0, "its time has not come");
        live.advance(&live.follower(stream.id()).unwrap());
        let mut frames = Vec::new();
        assert!(stream.read(0, 9, &mut frames));
        let [frame] = &frames[..] else { panic!("{frames:?}") };
        let frame = parsed(frame);
        assert_eq!((&frame["previous"], &frame["sequence"]), (&json!(0), &json!(9)), "{frame}");
        assert_eq!(frame["merged"], 9, "{frame}");
    }
}

#[test]
fn a_stream_of_many_markets_pushes_its_heartbeats_in_steps() {
    let encoders = Encoders::new(new_live(), 1, STREAM_COST_RATE);
    let names: Vec<_> = (0..10).map(|number| format!("M{number}-X")).collect();
    names.iter().for_each(|name| define(encoders.live(), name));
    let (live, streams) = (encoders.state_of(0).clone(), new_streams(1 << 20));
    let markets: Vec<MarketId> = names.iter().map(|name| name.as_str().into()).collect();
    let topics: Vec<_> = names.iter().map(|name| LogTopic::Trades(name).name()).collect();
    let sources = [
        live.offer_source(markets.clone(), Box::new(plain)),
        live.ticker_source(markets, Box::new(plain)),
        live.topic_source(topics, 1, Box::new(plain)),
    ];
    for (number, source) in sources.into_iter().enumerate() {
        let stream = open(&streams, number.to_string(), || source);
        made(stream.source().join(&stream, None));
        let follower = live.follower(stream.id()).unwrap();
        let before = stream.next_index();
        let due: Vec<_> = (0..4).map(|_| live.beat(&follower)).collect();
        assert_eq!(due, [false, false, false, true]);
        let one = || live.advance_step(&follower, &mut Step::of_one());
        let steps = (0..).take_while(|_| !one()).count();
        assert_eq!((steps, stream.next_index() - before), (9, 10), "stream {number}");
    }
}

#[test]
fn heartbeats_of_an_owner_over_budget_come_at_a_quarter_of_the_pace() {
    let encoders = Encoders::new(new_live(), 1, 1);
    let (live, streams) = (encoders.state_of(0).clone(), new_streams(1 << 20));
    let all: Vec<_> = (0..20).map(|key| joined(&live, &streams, key, slow(10))).collect();
    encoders.apply(vec![change(1, &[(Side::Buy, 5, 1)])]);
    let worker = encoders.worker(0);
    while works(worker) {}
    assert!(live.schedule.lock().is_over_budget(all[0].id()));
    let before = all[0].next_index();
    (0..32).for_each(|_| worker.beat_all());
    assert_eq!(all[0].next_index() - before, 2, "8 otherwise");
}
