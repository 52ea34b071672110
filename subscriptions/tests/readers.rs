//! Readers that are no WebSockets, as event streams use them.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};
use spreadly_subscriptions::{
    Execution, Executor as _, Limits, Request, SseReader, StreamEnd, StreamLimits, StreamPermit,
};
use tokio::io::DuplexStream;

use super::board::BoardExecutor;
use super::client::{Follower, Heard, frame, subscribe};
use super::{Hub, paused};

fn read(hub: &Hub, query: &str, after: Option<&str>) -> SseReader<DuplexStream, BoardExecutor> {
    let fields = json!({"query": query, "variables": {"after": after}});
    let request = Request::from_fields(fields.as_object().unwrap().clone()).unwrap();
    match hub.executor.execute(request, &()) {
        Execution::Stream { stream, after, permit } => hub.shard.read(stream, after, permit),
        _ => panic!("{query} is a subscription"),
    }
}

async fn follow(reader: &mut SseReader<DuplexStream, BoardExecutor>, copy: &mut Follower, to: u64) {
    while copy.seen != Some(to) {
        for frame in reader.frames().await.unwrap() {
            let result: Value = serde_json::from_slice(&frame.result()).unwrap();
            copy.take(&result["data"]).unwrap();
        }
    }
}

#[test]
fn a_reader_follows_sleeps_and_resumes_without_a_break_and_leaves_nothing() {
    paused(async {
        let streams = StreamLimits { ring_bytes: 8 << 10, ..StreamLimits::default() };
        let hub = Hub::start(Limits::default(), streams);
        let mut reader = read(&hub, "fields", None);
        let mut copy = Follower::default();
        follow(&mut reader, &mut copy, 0).await;
        for value in 0..50 {
            hub.board.set(value % 7, value, 100);
            follow(&mut reader, &mut copy, hub.board.fields().0).await;
        }
        assert_eq!((copy.snapshots, copy.merged), (1, 0));
        for value in 0..300 {
            hub.board.set(value % 7, value, 100);
        }
        follow(&mut reader, &mut copy, hub.board.fields().0).await;
        assert_eq!((copy.snapshots, copy.merged), (1, 1));
        drop(reader);
        hub.board.set(1, 1, 0);
        let mut reader = read(&hub, "fields", copy.seen.map(|seen| seen.to_string()).as_deref());
        follow(&mut reader, &mut copy, hub.board.fields().0).await;
        assert_eq!((copy.snapshots, copy.fields), (1, hub.board.fields().1));
        assert_eq!((hub.meters.sockets_open.get(), hub.meters.readers_open.get()), (1, 1));
        drop(reader);
        hub.is_clean().await;
    });
}

#[test]
fn a_reader_waits_for_its_turn_before_its_source_reads_the_log() {
    struct Late;
    impl StreamPermit for Late {
        fn throttle(&self) -> Option<Duration> {
            Some(Duration::from_secs(7))
        }
    }
    paused(async {
        let hub = Hub::start(Limits::default(), StreamLimits::default());
        for value in 0..9 {
            hub.board.set(1, value, 100);
        }
        let fields = json!({"query": "kept", "variables": {"after": "0"}});
        let request = Request::from_fields(fields.as_object().unwrap().clone()).unwrap();
        let Execution::Stream { stream, after, .. } = hub.executor.execute(request, &()) else {
            panic!("a stream");
        };
        let begin = tokio::time::Instant::now();
        let mut reader = hub.shard.read(stream, after, Some(Box::new(Late)));
        assert!(reader.frames().await.is_ok());
        assert_eq!(begin.elapsed().as_secs(), 7);
    });
}

#[test]
fn a_reader_ends_with_its_reason_refused_too_slow_or_draining() {
    paused(async {
        let streams = StreamLimits { ring_bytes: 1 << 10, ..StreamLimits::default() };
        let hub = Hub::start(Limits::default(), streams);
        let mut refused = read(&hub, "fields", Some("nonsense"));
        assert!(matches!(refused.frames().await, Err(StreamEnd::Refused(_))));
        let mut slow = read(&hub, "log", None);
        assert!(slow.frames().await.is_ok());
        for value in 0..100 {
            hub.board.set(1, value, 100);
        }
        assert!(matches!(slow.frames().await, Err(StreamEnd::CannotContinue)));
        drop((refused, slow));

        let mut readers = [read(&hub, "fields", None), read(&hub, "fields", None)];
        for reader in &mut readers {
            assert!(reader.frames().await.is_ok());
        }
        let begin = tokio::time::Instant::now();
        hub.shard.drain(Duration::from_secs(10));
        for (reader, seconds) in readers.iter_mut().zip([0, 5]) {
            assert!(matches!(reader.frames().await, Err(StreamEnd::Draining)));
            assert_eq!(begin.elapsed().as_secs(), seconds);
        }
        let mut late = read(&hub, "fields", None);
        assert!(matches!(late.frames().await, Err(StreamEnd::Draining)));
    });
}

#[test]
fn a_fan_out_does_not_wait_for_all_connections_that_are_no_sockets() {
    /// Each takes longer than all sockets have of a round.
    fn spawn(hub: &Hub, count: u32) -> Rc<Cell<u32>> {
        let done = Rc::<Cell<u32>>::default();
        for _ in 0..count {
            let (shard, done) = (hub.shard.clone(), done.clone());
            tokio::task::spawn_local(async move {
                let work = async {
                    std::thread::sleep(Duration::from_millis(1));
                    done.set(done.get() + 1);
                };
                shard.in_turn(&(), work).await;
            });
        }
        done
    }
    paused(async {
        let hub = Hub::start(Limits::default(), StreamLimits::default());
        let mut client = hub.connect(1 << 16);
        client.init().await;
        client.say(&subscribe("a", "fields", json!({}))).await;
        assert!(matches!(client.hear().await, Heard::Message(_)));
        let done = spawn(&hub, 50);
        hub.board.set(1, 1, 0);
        assert!(matches!(client.hear().await, Heard::Message(_)));
        assert!(done.get() < 50, "all of them came first");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(done.get(), 50);
        // No rounds follow the last socket of a drain, and yet the others end.
        hub.shard.drain(Duration::ZERO);
        assert!(matches!(client.hear().await, Heard::Close(1012, _)));
        client.send(&frame(0x88, &1012u16.to_be_bytes())).await;
        assert_eq!(client.hear().await, Heard::Gone);
        hub.is_clean().await;
        let done = spawn(&hub, 50);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(done.get(), 50);
    });
}
