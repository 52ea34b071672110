//! The pool's bounds, and whose work goes first.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use futures_util::FutureExt;

use super::line::{MOST_WAITING, PLACES};
use super::*;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// Work that ends once it is let go, and says when it begins.
struct Gate {
    begun: Receiver<()>,
    go: SyncSender<()>,
}

impl Gate {
    fn new() -> (Self, impl FnOnce() + Send + 'static) {
        let (begins, begun) = sync_channel(1);
        let (go, gone) = sync_channel::<()>(1);
        let work = move || {
            begins.send(()).unwrap();
            gone.recv().unwrap();
        };
        (Self { begun, go }, work)
    }
}

#[test]
fn work_of_an_address_that_asks_for_much_does_not_stand_before_that_of_others() {
    runtime().block_on(async {
        let pool = Pool::start(1).unwrap();
        let (greedy, modest) = (Line::limited(), Line::limited());
        let (gate, work) = Gate::new();
        let first = tokio::spawn(pool.enter(&greedy).await.unwrap().run(work));
        tokio::task::yield_now().await;
        gate.begun.recv().unwrap();
        let (done, order) = sync_channel(64);
        let ask = |line: &Arc<Line>, name: &'static str| {
            let (pool, line, done) = (pool.clone(), line.clone(), done.clone());
            tokio::spawn(async move {
                let place = pool.enter(&line).await.unwrap();
                place.run(move || done.send(name).unwrap()).await.map(drop)
            })
        };
        let mut asked: Vec<_> = (0..20).map(|_| ask(&greedy, "greedy")).collect();
        tokio::task::yield_now().await;
        assert_eq!(pool.queued(), PLACES - 1, "one more runs");
        asked.push(ask(&modest, "modest"));
        tokio::task::yield_now().await;
        gate.go.send(()).unwrap();
        for one in asked {
            one.await.unwrap().unwrap();
        }
        first.await.unwrap().unwrap();
        let order: Vec<_> = order.try_iter().collect();
        let place = order.iter().position(|one| *one == "modest");
        assert_eq!((order.len(), place), (21, Some(PLACES - 1)));
    });
}

#[test]
fn a_job_too_many_waits_until_another_one_ends() {
    runtime().block_on(async {
        let pool = Pool::start(1).unwrap();
        let (line, other) = (Line::exempt(), Line::limited());
        let mut places = Vec::new();
        for _ in 0..MOST_JOBS {
            places.push(pool.enter(&line).await.unwrap());
        }
        assert!(pool.enter(&other).now_or_never().is_none());
        let (_, done) = places.pop().unwrap().run(|| 7).await.unwrap();
        assert_eq!(done, 7);
        assert!(pool.enter(&other).await.is_ok());
    });
}

#[test]
fn a_request_too_many_of_an_address_is_refused_and_one_that_leaves_makes_room() {
    let line = Line::limited();
    let mut waiting: Vec<_> = (0..MOST_WAITING).map(|_| line.wait().ok().unwrap()).collect();
    assert_eq!(line.wait().err(), Some(LineFull(MOST_WAITING)));
    waiting.pop();
    assert!(line.wait().is_ok());
}

#[test]
fn work_whose_client_left_is_not_run_and_gives_its_place_back() {
    runtime().block_on(async {
        let pool = Pool::start(1).unwrap();
        let line = Line::limited();
        let (gate, work) = Gate::new();
        let first = tokio::spawn(pool.enter(&line).await.unwrap().run(work));
        tokio::task::yield_now().await;
        gate.begun.recv().unwrap();
        let place = pool.enter(&line).await.unwrap();
        let mut left = Box::pin(place.run(|| panic!("it must not run")));
        assert!((&mut left).now_or_never().is_none());
        assert_eq!(pool.queued(), 1);
        drop(left);
        gate.go.send(()).unwrap();
        first.await.unwrap().unwrap();
        let (_, done) = pool.enter(&line).await.unwrap().run(|| 7).await.unwrap();
        assert_eq!((done, line.places.available_permits()), (7, PLACES));
    });
}

#[test]
fn work_that_panics_ends_alone() {
    runtime().block_on(async {
        let pool = Pool::start(1).unwrap();
        let line = Line::limited();
        let broken = pool.enter(&line).await.unwrap().run(|| panic!("on purpose")).await;
        assert!(broken.is_err());
        let (_, done) = pool.enter(&line).await.unwrap().run(|| 7).await.unwrap();
        assert_eq!(done, 7);
    });
}

#[test]
fn a_pool_that_is_stopped_ends_what_runs_and_drops_what_waits() {
    runtime().block_on(async {
        let pool = Pool::start(1).unwrap();
        let (gate, work) = Gate::new();
        let line = Line::exempt();
        let runs = tokio::spawn(pool.enter(&line).await.unwrap().run(work));
        let waits = tokio::spawn(pool.enter(&line).await.unwrap().run(|| ()));
        tokio::task::yield_now().await;
        gate.begun.recv().unwrap();
        let stopping = pool.clone();
        let stopped = tokio::task::spawn_blocking(move || stopping.stop());
        assert!(waits.await.unwrap().is_err());
        gate.go.send(()).unwrap();
        stopped.await.unwrap();
        assert!(runs.await.unwrap().is_ok());
        assert!(pool.enter(&line).await.is_err());
    });
}

#[test]
fn work_runs_below_the_priority_of_its_caller() {
    runtime().block_on(async {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let pool = Pool::start(1).unwrap();
        let (_, there) = pool.enter(&Line::limited()).await.unwrap().run(nice).await.unwrap();
        assert_eq!(there, (nice() + NICENESS).min(19));
    });
}
