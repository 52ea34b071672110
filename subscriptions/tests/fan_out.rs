//! In which order the sockets of a fan-out are written to.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use spreadly_subscriptions::limits::MOST_URGENT_TURNS;
use spreadly_subscriptions::{Dialect, Limits, Rank, StreamLimits, Turn, Worker};
use tokio::sync::Notify;

use super::board::Board;
use super::client::{Heard, subscribe};
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

/// A worker that publishes an event in each turn, and always has an urgent one.
struct Pressing {
    board: Arc<Board>,
    wake: Arc<Notify>,
    turns: Arc<AtomicUsize>,
}

impl Worker for Pressing {
    fn wake(&self) -> &Notify {
        &self.wake
    }

    fn turn(&self) -> Turn {
        let turns = self.turns.fetch_add(1, Ordering::Relaxed) + 1;
        if turns > 4 * MOST_URGENT_TURNS {
            return Turn::Done { wake_at: None };
        }
        self.board.set(1, turns as u64, 0);
        Turn::Urgent
    }
}

#[test]
fn urgent_turns_come_before_sockets_of_the_last_rank_but_only_a_few_in_a_row() {
    paused(async {
        let (wake, turns) = (Arc::<Notify>::default(), Arc::<AtomicUsize>::default());
        turns.store(usize::MAX / 2, Ordering::Relaxed);
        let hub = Hub::start_with(Limits::default(), StreamLimits::default(), |board| {
            let (board, wake, turns) = (board.clone(), wake.clone(), turns.clone());
            Some(Arc::new(Pressing { board, wake, turns }))
        });
        let mut clients = Vec::new();
        for rank in [Rank::First, Rank::Last] {
            let mut client = hub.connect_ranked(rank, Dialect::TransportWs, 64 << 10);
            client.init().await;
            client.say(&subscribe("1", "fields", json!({}))).await;
            assert!(matches!(client.hear().await, Heard::Message(_)), "a snapshot");
            clients.push(client);
        }
        turns.store(0, Ordering::Relaxed);
        wake.notify_one();
        let mut last = clients.pop().unwrap();
        assert!(matches!(last.hear().await, Heard::Message(_)), "an event");
        assert_eq!(turns.load(Ordering::Relaxed), MOST_URGENT_TURNS + 1);
        // The first rank was sent one frame for each turn by then.
        let (writes, frames) = (hub.meters.writes.get(), hub.meters.frames_delivered.get());
        assert!(writes >= MOST_URGENT_TURNS as u64 + 2, "{writes} writes of {frames} frames");
    });
}
