//! Streams of many markets and topics whose frames take long: each step makes one of them.

use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::task::noop_waker;
use spreadly_subscriptions::{Answer, Turn, Worker};

use super::*;
use crate::live::steps::{MOST_STEPS, STEP};

const MARKETS: usize = 10;
const STREAM_COST_RATE: u32 = 100_000;

struct Slow {
    encoders: Encoders,
    live: Arc<Live>,
    encoded: Arc<AtomicUsize>,
    streams: Streams,
}

fn name(market: usize) -> String {
    format!("M{market}-X")
}

impl Slow {
    fn new() -> Self {
        let encoders = Encoders::new(new_live(), 1, STREAM_COST_RATE);
        (0..MARKETS).for_each(|number| define(encoders.live(), &name(number)));
        let live = encoders.state_of(0).clone();
        Self { encoders, live, encoded: Arc::default(), streams: new_streams(1 << 20) }
    }

    /// Takes longer than a step for each frame.
    fn encode(&self) -> Encode {
        let encoded = self.encoded.clone();
        Box::new(move |frame| {
            encoded.fetch_add(1, Ordering::Relaxed);
            let end = Instant::now() + STEP;
            while Instant::now() <= end {
                std::hint::spin_loop();
            }
            plain(frame)
        })
    }

    fn encoded(&self) -> usize {
        self.encoded.swap(0, Ordering::Relaxed)
    }

    /// Of offers, tickers and topics.
    fn open_each(&self) -> [Arc<ResponseStream>; 3] {
        let live = &self.live;
        let markets: Vec<MarketId> = (0..MARKETS).map(|number| name(number).into()).collect();
        let topics = (0..MARKETS).map(|number| LogTopic::Trades(&name(number)).name()).collect();
        [
            live.offer_source(markets.clone(), self.encode()),
            live.ticker_source(markets, self.encode()),
            live.topic_source(topics, 1, self.encode()),
        ]
        .into_iter()
        .zip(["offers", "tickers", "topics"])
        .map(|(source, name)| open(&self.streams, name.to_owned(), || source))
        .collect::<Vec<_>>()
        .try_into()
        .unwrap_or_else(|_| panic!("three"))
    }

    /// Changes the best bid of a market.
    fn event(&self, number: usize, sequence: u64) {
        let mut event = change(sequence, &[(Side::Buy, 5, u128::from(sequence))]);
        if let Effect::Change { market, .. } = &mut event.effect {
            *market = name(number).into();
        }
        self.encoders.apply(vec![event]);
        self.work();
    }

    fn work(&self) {
        while !matches!(self.encoders.worker(0).turn(), Turn::Done { .. }) {}
    }
}

fn later(start: Resume) -> BoxFuture<'static, Answer> {
    match start {
        Resume::Pending(answer) | Resume::Throttled(answer) => answer,
        other => panic!("{other:?}"),
    }
}

fn poll(answer: &mut BoxFuture<'static, Answer>) -> Option<Resume> {
    let waker = noop_waker();
    match Pin::new(answer).poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(answer) => Some(answer.resume),
        Poll::Pending => None,
    }
}

#[test]
fn a_reader_of_many_markets_or_topics_starts_after_steps_of_one_frame() {
    let slow = Slow::new();
    for (number, stream) in slow.open_each().into_iter().enumerate() {
        let mut answer = later(stream.source().join(&stream, None));
        assert_eq!(slow.encoded(), 1, "stream {number}");
        let mut start = None;
        for step in 2..=MARKETS {
            assert!(start.is_none(), "stream {number}, step {step}");
            start = poll(&mut answer);
            assert_eq!(slow.encoded(), 1, "stream {number}, step {step}");
        }
        let Some(Resume::Frames { frames, .. }) = start else { panic!("{start:?}") };
        assert_eq!(frames.len(), MARKETS);
        let again = stream.source().join(&stream, None);
        assert!(matches!(again, Resume::Frames { .. }), "another one has the same frames at once");
        assert_eq!(slow.encoded(), 0);
    }
}

#[test]
fn an_answer_that_is_made_in_steps_says_what_it_took() {
    let slow = Slow::new();
    for stream in slow.open_each() {
        let answer = later(stream.source().join(&stream, None));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(runtime.block_on(answer).took > std::time::Duration::ZERO);
    }
}

#[test]
fn an_event_between_two_steps_is_in_the_start_and_not_sent_again() {
    let slow = Slow::new();
    let [offers, tickers, _] = slow.open_each();
    for (sequence, stream) in [(3, offers), (7, tickers)] {
        slow.event(0, sequence);
        let mut answer = later(stream.source().join(&stream, None));
        assert!(poll(&mut answer).is_none());
        slow.event(0, sequence + 1);
        slow.event(9, sequence + 2);
        let start = (0..100).find_map(|_| poll(&mut answer));
        let Some(Resume::Frames { frames, next }) = start else { panic!("{start:?}") };
        let sequences: Vec<_> = frames.iter().map(|one| parsed(one)["sequence"].clone()).collect();
        assert_eq!((&sequences[0], &sequences[9]), (&json!(sequence + 1), &json!(sequence + 2)));
        assert_eq!(next, stream.next_index(), "nothing of it follows in the ring");
        slow.event(0, sequence + 3);
        let mut following = Vec::new();
        assert!(stream.read(next, 9, &mut following));
        let [frame] = &following[..] else { panic!("{following:?}") };
        let frame = parsed(frame);
        assert_eq!(
            (&frame["previous"], &frame["sequence"]),
            (&json!(sequence + 1), &json!(sequence + 3))
        );
    }
}

#[test]
fn answers_of_many_steps_take_them_in_turn() {
    let slow = Slow::new();
    let [offers, tickers, topics] = slow.open_each();
    let mut answers: Vec<_> = [offers, tickers, topics]
        .iter()
        .map(|stream| later(stream.source().join(stream, None)))
        .collect();
    slow.encoded();
    let mut step = |one: usize| {
        assert!(poll(&mut answers[one]).is_none());
        slow.encoded()
    };
    assert_eq!([step(0), step(1), step(2)], [1, 0, 0], "the others wait until the next look");
    assert_eq!([step(0), step(1), step(2)], [0, 1, 0], "the first one comes after them");
    assert_eq!([step(1), step(2), step(0)], [0, 1, 0]);
    assert_eq!([step(2), step(0), step(1)], [0, 1, 0]);
    drop(answers.remove(0));
    assert!(poll(&mut answers[0]).is_none());
    assert_eq!(slow.encoded(), 1, "one that is given up holds up nobody");
}

#[test]
fn an_answer_whose_markets_change_all_the_time_comes_after_its_most_steps() {
    let slow = Slow::new();
    let [offers, ..] = slow.open_each();
    let mut answer = later(offers.source().join(&offers, None));
    let mut sequence = 0;
    let steps = (1..).find(|_| {
        for market in 0..MARKETS {
            sequence += 1;
            slow.event(market, sequence);
        }
        poll(&mut answer).is_some()
    });
    assert_eq!(steps, Some(MOST_STEPS));
}

#[test]
fn what_was_left_out_while_nobody_read_is_pushed_in_steps() {
    let slow = Slow::new();
    let [offers, ..] = slow.open_each();
    slow.streams.release(&offers);
    (0..MARKETS).for_each(|market| slow.event(market, market as u64 + 1));
    assert_eq!(offers.next_index(), 0);
    let again = open(&slow.streams, "offers".into(), || panic!("it is open"));
    assert_eq!(again.id(), offers.id());
    offers.source().advance(&offers);
    assert_eq!(offers.next_index(), 1);
    slow.work();
    assert_eq!(offers.next_index(), MARKETS as u64);
}
