//! In which order the sockets of a fan-out are written to.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use spreadly_subscriptions::{Dialect, Limits, Rank, StreamLimits};

use super::client::{Follower, Heard, subscribe};
use super::{Hub, paused};

/// Sockets of either rank: fewer than a fan-out writes to between two yields.
const SOCKETS: usize = 100;

/// The ranks of sockets in the order in which they are given an event of `fields` streams.
async fn order(fields: usize) -> Vec<Rank> {
    let hub = Hub::start(Limits::default(), StreamLimits::default());
    let seen = Rc::new(RefCell::new(Vec::new()));
    let mut tasks = Vec::new();
    // The sockets of the last rank subscribe first.
    for number in 0..2 * SOCKETS {
        let rank = if number < SOCKETS { Rank::Last } else { Rank::First };
        let mut client = hub.connect_ranked(rank, Dialect::TransportWs, 64 << 10);
        client.init().await;
        for id in 0..fields {
            let variables = json!({ "padding": id });
            client.say(&subscribe(&id.to_string(), "fields", variables)).await;
            assert!(matches!(client.hear().await, Heard::Message(_)), "a snapshot");
        }
        let seen = seen.clone();
        // Tasks run in the order in which they are woken.
        tasks.push(tokio::task::spawn_local(async move {
            for _ in 0..fields {
                assert!(matches!(client.hear().await, Heard::Message(_)), "an event");
                seen.borrow_mut().push(rank);
            }
        }));
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    hub.board.set(1, 1, 0);
    for task in tasks {
        task.await.unwrap();
    }
    Rc::try_unwrap(seen).unwrap().into_inner()
}

/// So many that writing to all of them takes far longer than the time slice after which the fan-out
/// checks for new events.
const CROWD: usize = 10_000;

#[test]
fn a_later_event_reaches_others_before_an_earlier_one_has_reached_a_crowd() {
    paused(async {
        let hub = Hub::start(Limits::default(), StreamLimits::default());
        let (board, seen) = (hub.board.clone(), Rc::new(RefCell::new(Vec::new())));
        let mut tasks = Vec::new();
        for number in 0..=CROWD {
            let rank = if number < CROWD { Rank::Last } else { Rank::First };
            let mut client = hub.connect_ranked(rank, Dialect::TransportWs, 4 << 10);
            client.init().await;
            client.say(&subscribe("1", "fields", json!({}))).await;
            assert!(matches!(client.hear().await, Heard::Message(_)), "a snapshot");
            let (board, seen) = (board.clone(), seen.clone());
            tasks.push(tokio::task::spawn_local(async move {
                for event in 1..=2 {
                    assert!(matches!(client.hear().await, Heard::Message(_)), "an event");
                    seen.borrow_mut().push((rank, event));
                    if number == 0 && event == 1 {
                        board.set(1, 2, 0);
                    }
                }
            }));
        }
        board.set(1, 1, 0);
        for task in tasks {
            task.await.unwrap();
        }
        let seen = seen.borrow();
        assert_eq!(seen.len(), 2 * (CROWD + 1));
        let at = |what| seen.iter().position(|one| *one == what).unwrap();
        let last_of_crowd = seen.iter().rposition(|one| *one == (Rank::Last, 1)).unwrap();
        let (second, first) = (at((Rank::First, 2)), at((Rank::First, 1)));
        assert!(first < at((Rank::Last, 1)));
        assert!(second < last_of_crowd, "{second} of {last_of_crowd}");
    });
}

#[test]
fn sockets_of_the_last_rank_are_written_to_after_all_others() {
    paused(async {
        for streams in [1, 3] {
            let order = order(streams).await;
            let expected = [Rank::First, Rank::Last].map(|rank| vec![rank; SOCKETS * streams]);
            assert_eq!(order, expected.concat(), "{streams} streams");
        }
    });
}

#[test]
fn frames_that_are_pushed_between_full_batches_reach_everyone_once() {
    // Up to more than a write takes, and less than a ring holds.
    const BURST: u64 = 50;
    const EVENTS: u64 = 20_000;
    paused(async {
        let hub = Hub::start(Limits::default(), StreamLimits::default());
        let mut tasks = Vec::new();
        // While the last rank has something left, the shard yields between two fan-outs.
        for rank in [Rank::First, Rank::Last] {
            let mut client = hub.connect_ranked(rank, Dialect::TransportWs, 1 << 20);
            client.init().await;
            client.say(&subscribe("1", "fields", json!({}))).await;
            let Heard::Message(message) = client.hear().await else { panic!("closed") };
            let mut follower = Follower::default();
            follower.take(&message["payload"]["data"]).unwrap();
            let board = hub.board.clone();
            tasks.push(tokio::task::spawn_local(async move {
                while board.fields().1.len() < 2 || follower.seen != Some(board.fields().0) {
                    let Heard::Message(message) = client.hear().await else { panic!("closed") };
                    follower.take(&message["payload"]["data"]).unwrap();
                }
            }));
        }
        let board = hub.board.clone();
        tasks.push(tokio::task::spawn_local(async move {
            let mut random = StdRng::seed_from_u64(1);
            let mut pushed = 0;
            while pushed < EVENTS {
                for value in 0..random.random_range(1..=BURST) {
                    board.set(1, value, 0);
                    pushed += 1;
                }
                tokio::task::yield_now().await;
            }
            board.set(2, 0, 0);
        }));
        for task in tasks {
            let ended = tokio::time::timeout(Duration::from_secs(60), task).await;
            ended.expect("the last frame comes").unwrap();
        }
    });
}
