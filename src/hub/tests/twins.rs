//! What the tests of the process show, once more on one thread: in milliseconds and without a
//! race. A test here and its twin in `tests/` fail together, unless the fault is in sockets,
//! threads or feeds.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::checker::{Operation, Tally};
use super::client::{Client, Heard};
use super::document::{Document, Field};
use super::model::{Counts, Event, Level, Model, What};
use super::one_thread::{Home, Hub};
use super::paused;

const MARKET: &str = "A-B";
const BOOK: &str = r#"subscription { orderBook(market: "A-B") { __typename epoch sequence checksum
    ... on BookSnapshot { reason bids { price size } asks { price size } }
    ... on BookDelta { prevSequence mergedEvents bids { price size } asks { price size } } } }"#;
const NEWS: &str = r#"subscription { events(topic: "news") { sequence prevSequence reason
    events { sequence data } } }"#;

fn event(what: What) -> Event {
    Event { id: None, height: None, what }
}

fn change(buys: bool, price: u64, size: u64) -> Event {
    let levels = vec![Level { buys, price, size }];
    event(What::Book { market: MARKET, replaces: false, levels })
}

/// A market's first event: a snapshot of one level.
fn begin(buys: bool, price: u64, size: u64) -> Event {
    let levels = vec![Level { buys, price, size }];
    event(What::Book { market: MARKET, replaces: true, levels })
}

fn news(number: u64) -> Event {
    event(What::Message { topic: "news", data: json!(number) })
}

fn at_height(height: u64, event: Event) -> Event {
    Event { height: Some(height), ..event }
}

async fn feed(hub: &Hub, events: &[Event]) {
    let lines: Vec<_> = events.iter().map(Event::line).collect();
    assert_eq!(hub.feed(&lines).await.accepted, events.len());
}

/// A hub with one market, which is event 1.
async fn hub(began: Instant) -> (Home, Hub) {
    let home = Home::new(began);
    let hub = home.start();
    feed(&hub, &[event(What::Define { market: MARKET, status: "ACTIVE" })]).await;
    (home, hub)
}

async fn follow(hub: &Hub, query: &str) -> Client {
    let mut client = hub.connect(1 << 16).await;
    hub.during(client.subscribe("s", query)).await;
    client
}

/// The next frame of the only field that the client follows.
async fn next(hub: &Hub, client: &mut Client) -> Value {
    let payload = hub.during(client.next("s")).await;
    let (_, frame) = payload["data"].as_object().unwrap().iter().next().unwrap();
    frame.clone()
}

/// Whether all that was sent has been read.
async fn has_all(hub: &Hub, client: &mut Client) -> bool {
    hub.settle().await;
    hub.during(client.read()).await.is_empty()
}

#[test]
fn a_snapshot_comes_first_and_then_a_chain_of_changes_with_their_checksums() {
    paused(|began| async move {
        let (_home, hub) = hub(began).await;
        feed(&hub, &[begin(true, 50, 20), change(false, 61, 3)]).await;
        let mut client = follow(&hub, BOOK).await;
        let snapshot = next(&hub, &mut client).await;
        assert_eq!(snapshot["__typename"], "BookSnapshot");
        assert_eq!((&snapshot["reason"], &snapshot["sequence"]), (&json!("INITIAL"), &json!("3")));
        assert_eq!(snapshot["bids"], json!([{"price": "5.0", "size": "2.0"}]));
        assert_eq!(snapshot["asks"], json!([{"price": "6.1", "size": "0.3"}]));
        assert_eq!(snapshot["checksum"], crc32fast::hash(b"6135020"));
        feed(&hub, &[change(true, 50, 0)]).await;
        feed(&hub, &[change(true, 49, 7)]).await;
        let changes = [
            ("3", "4", json!([{"price": "5.0", "size": "0.0"}]), &b"613"[..]),
            ("4", "5", json!([{"price": "4.9", "size": "0.7"}]), b"613497"),
        ];
        for (previous, sequence, bids, covered) in changes {
            let delta = next(&hub, &mut client).await;
            let expected = json!({
                "__typename": "BookDelta", "epoch": snapshot["epoch"], "sequence": sequence,
                "prevSequence": previous, "mergedEvents": 1, "bids": bids, "asks": [],
                "checksum": crc32fast::hash(covered),
            });
            assert_eq!(delta, expected);
        }
        assert!(has_all(&hub, &mut client).await);
    });
}

#[test]
fn a_client_that_was_cut_resumes_after_its_last_frame_also_on_the_next_hub() {
    for is_killed in [false, true] {
        paused(|began| async move {
            let (home, mut hub) = hub(began).await;
            let after = |cursor: &Value| {
                format!(
                    r#"subscription {{ events(topic: "news", after: {cursor}) {{ cursor sequence
                    prevSequence reason events {{ sequence data }} }} }}"#
                )
            };
            feed(&hub, &[news(1)]).await;
            let mut client = follow(&hub, &after(&Value::Null)).await;
            assert_eq!(next(&hub, &mut client).await["sequence"], "2");
            feed(&hub, &[news(2)]).await;
            let frame = next(&hub, &mut client).await;
            assert_eq!(frame["events"], json!([{"sequence": "3", "data": 2}]));
            drop(client);
            feed(&hub, &[news(3), news(4)]).await;
            if is_killed {
                drop(hub);
                hub = home.start();
            }
            let mut client = follow(&hub, &after(&frame["cursor"])).await;
            let mut events = Vec::new();
            let mut last = frame["sequence"].clone();
            while last != "5" {
                let frame = next(&hub, &mut client).await;
                assert_eq!(frame["prevSequence"], last);
                last = frame["sequence"].clone();
                events.extend(frame["events"].as_array().unwrap().clone());
            }
            let expected = json!([{"sequence": "4", "data": 3}, {"sequence": "5", "data": 4}]);
            assert_eq!(Value::from(events), expected);
            assert!(has_all(&hub, &mut client).await);
        });
    }
}

#[test]
fn a_stream_whose_readers_are_all_stalled_is_not_encoded_until_one_takes_frames_again() {
    paused(|began| async move {
        let (_home, hub) = hub(began).await;
        let encoded = || hub.encoders.workers().map(|(own, _)| own.advanced.load(SeqCst)).sum();
        feed(&hub, &[begin(true, 10, 1)]).await;
        let mut client = hub.connect(1 << 10).await;
        hub.during(client.subscribe("s", BOOK)).await;
        let mut last = next(&hub, &mut client).await;
        for size in 2..=20 {
            feed(&hub, &[change(true, 10, size)]).await;
        }
        let before: u64 = encoded();
        assert!(before >= 19, "{before}");
        // The pipe is full, and stays so for longer than `STALLED_READER`.
        hub.advance(Duration::from_secs(2)).await;
        for size in 21..=40 {
            feed(&hub, &[change(true, 10, size)]).await;
        }
        hub.settle().await;
        let unread: u64 = encoded();
        assert!(unread <= before + 1, "{unread} after {before}");
        let mut merged = 0;
        while last["sequence"] != "41" {
            let frame = next(&hub, &mut client).await;
            assert_eq!(frame["prevSequence"], last["sequence"], "{frame}");
            merged += frame["mergedEvents"].as_u64().unwrap();
            last = frame;
        }
        assert_eq!((merged, &last["bids"]), (39, &json!([{"price": "1.0", "size": "4.0"}])));
        // And each event has a frame again.
        for size in 41..=50 {
            feed(&hub, &[change(true, 10, size)]).await;
            assert_eq!(next(&hub, &mut client).await["mergedEvents"], 1);
        }
    });
}

#[test]
fn after_a_stall_no_operation_waits_until_a_slow_client_has_all_that_others_send() {
    paused(|began| async move {
        let (_home, hub) = hub(began).await;
        feed(&hub, &[begin(true, 10, 1)]).await;
        let mut client = hub.connect(1 << 10).await;
        for (id, query) in [("book", BOOK), ("news", NEWS)] {
            hub.during(client.subscribe(id, query)).await;
            hub.during(client.next(id)).await;
        }
        let mut size = 0;
        let mut change_book = async || {
            size += 1;
            feed(&hub, &[change(true, 10, size)]).await;
        };
        for _ in 0..20 {
            change_book().await;
        }
        // The pipe is full, and stays so for longer than `STALLED_READER`.
        hub.advance(Duration::from_secs(2)).await;
        feed(&hub, &[news(1)]).await;
        // It reads again, more slowly than its book changes.
        for _ in 0..100 {
            change_book().await;
            change_book().await;
            let Heard::Message(message) = hub.during(client.hear()).await else { panic!("open") };
            if message["id"] == "news" {
                return;
            }
        }
        panic!("the news never comes");
    });
}

#[test]
fn a_refused_event_is_reported_with_its_place_and_the_next_one_is_taken() {
    paused(|began| async move {
        let (_home, hub) = hub(began).await;
        let query = "subscription { feedStatus { name eventsTotal refusedTotal
            lastRefusal { source place reason } } }";
        let mut client = follow(&hub, query).await;
        let first = next(&hub, &mut client).await;
        assert_eq!((&first["name"], &first["refusedTotal"]), (&json!("test"), &json!("0")));
        let lines = [news(1).line(), r#"{"kind":"nonsense"}"#.to_owned(), news(2).line()];
        let ack = hub.feed(&lines).await;
        assert_eq!((ack.accepted, ack.refused), (2, 1));
        let status = next(&hub, &mut client).await;
        assert_eq!((&status["eventsTotal"], &status["refusedTotal"]), (&json!("3"), &json!("1")));
        let refusal = &status["lastRefusal"];
        assert_eq!(
            (&refusal["source"], &refusal["place"]),
            (&json!("test"), &json!("line 2 (byte 0)"))
        );
        let reason = refusal["reason"].as_str().unwrap();
        assert!(reason.starts_with(r#"unknown kind "nonsense""#), "{reason}");
    });
}

#[test]
fn a_rollback_takes_removed_events_back_from_every_client() {
    paused(|began| async move {
        let (_home, hub) = hub(began).await;
        feed(&hub, &[begin(true, 50, 20), news(1)]).await;
        let (mut book, mut list) = (follow(&hub, BOOK).await, follow(&hub, NEWS).await);
        let before = next(&hub, &mut book).await;
        assert_eq!(next(&hub, &mut list).await["sequence"], "3");
        feed(&hub, &[at_height(7, change(true, 50, 0)), at_height(8, news(2)), news(3)]).await;
        assert_eq!(next(&hub, &mut book).await["sequence"], "4");
        for sequence in ["5", "6"] {
            assert_eq!(next(&hub, &mut list).await["sequence"], sequence);
        }
        let ack = hub.feed(&[r#"{"kind":"block.reverted","height":7}"#.to_owned()]).await;
        assert_eq!(ack.accepted, 1);
        let snapshot = next(&hub, &mut book).await;
        assert_eq!((&snapshot["reason"], &snapshot["bids"]), (&json!("REORG"), &before["bids"]));
        assert_ne!(snapshot["epoch"], before["epoch"]);
        // Back to before the first removed event; what remains comes again.
        let back = next(&hub, &mut list).await;
        assert_eq!((&back["reason"], &back["prevSequence"]), (&json!("REORG"), &Value::Null));
        assert_eq!(back["events"], json!([]));
        let again = next(&hub, &mut list).await;
        assert_eq!(again["prevSequence"], back["sequence"]);
        assert_eq!(again["events"], json!([{"sequence": "6", "data": 3}]));
        assert!(has_all(&hub, &mut list).await);
    });
}

#[test]
fn a_client_that_is_cut_among_the_frames_of_a_rollback_gets_all_of_them_again() {
    paused(|began| async move {
        let (_home, hub) = hub(began).await;
        feed(&hub, &[event(What::Define { market: "C-D", status: "ACTIVE" })]).await;
        let trade = |market| at_height(7, event(What::Trade { market, price: 1, size: 1 }));
        let after = |cursor: &Value| {
            format!(
                r#"subscription {{ trades(markets: ["A-B", "C-D"], after: {cursor}) {{ market cursor
                sequence prevSequence reason trades {{ sequence }} }} }}"#
            )
        };
        let mut client = follow(&hub, &after(&Value::Null)).await;
        for _ in 0..2 {
            assert_eq!(next(&hub, &mut client).await["reason"], "INITIAL");
        }
        feed(&hub, &[trade("A-B"), trade("C-D")]).await;
        for sequence in ["3", "4"] {
            assert_eq!(next(&hub, &mut client).await["sequence"], sequence);
        }
        hub.feed(&[r#"{"kind":"block.reverted","height":7}"#.to_owned()]).await;
        let first = next(&hub, &mut client).await;
        drop(client);
        let mut client = follow(&hub, &after(&first["cursor"])).await;
        for market in ["A-B", "C-D"] {
            let frame = next(&hub, &mut client).await;
            assert_eq!((&frame["market"], &frame["reason"]), (&json!(market), &json!("REORG")));
            assert_eq!((&frame["sequence"], &frame["prevSequence"]), (&json!("0"), &Value::Null));
        }
        feed(&hub, &[trade("C-D")]).await;
        let frame = next(&hub, &mut client).await;
        assert_eq!((&frame["market"], &frame["prevSequence"]), (&json!("C-D"), &json!("0")));
        assert!(has_all(&hub, &mut client).await);
    });
}

#[test]
fn what_is_published_over_a_socket_is_answered_and_reaches_a_subscriber_once() {
    paused(|began| async move {
        let (_home, hub) = hub(began).await;
        let mut list = follow(&hub, NEWS).await;
        assert_eq!(next(&hub, &mut list).await["reason"], "INITIAL");
        let mut publisher = hub.connect(1 << 12).await;
        for (id, duplicate) in [("m1", false), ("m2", true)] {
            let query = r#"mutation { publish(topic: "news", id: "x", data: { a: 1 })
                { sequence duplicate } }"#;
            let answered = async {
                publisher.subscribe(id, query).await;
                let answer = publisher.next(id).await;
                let done = publisher.hear().await;
                assert_eq!(done, Heard::Message(json!({"type": "complete", "id": id})));
                answer
            };
            let answer = hub.during(answered).await;
            let expected = json!({"sequence": "2", "duplicate": duplicate});
            assert_eq!(answer["data"]["publish"], expected);
        }
        let frame = next(&hub, &mut list).await;
        assert_eq!(frame["events"], json!([{"sequence": "2", "data": {"a": 1}}]));
        assert!(has_all(&hub, &mut list).await);
    });
}

#[test]
fn an_event_whose_commit_fails_at_first_is_sent_once_it_is_in_the_log() {
    paused(|began| async move {
        let (home, hub) = hub(began).await;
        let mut list = follow(&hub, NEWS).await;
        assert_eq!(next(&hub, &mut list).await["reason"], "INITIAL");
        hub.failing_commits.store(2, SeqCst);
        feed(&hub, &[news(1)]).await;
        assert_eq!(hub.failing_commits.load(SeqCst), 0);
        let frame = next(&hub, &mut list).await;
        assert_eq!(frame["events"], json!([{"sequence": "2", "data": 1}]));
        assert!(has_all(&hub, &mut list).await);
        // One that the log did not take before the hub ended is nowhere.
        hub.refuse_at_shutdown(super::one_thread::Way::Queue, &[news(2).line()]).await;
        assert!(has_all(&hub, &mut list).await);
        drop(hub);
        let hub = home.start();
        let mut list = follow(&hub, NEWS).await;
        assert_eq!(next(&hub, &mut list).await["sequence"], "2");
    });
}

/// What a client of these events gets, with what the model makes of them.
async fn recorded(began: Instant, document: &Document, events: &[Event]) -> (Model, Vec<Value>) {
    let (_home, hub) = hub(began).await;
    let mut model = Model::default();
    let first = begin(true, 40, 1);
    let ack = hub.feed(&[first.line()]).await;
    model.take(&[first], &Counts::of(&ack), ack.last_sequence);
    let mut client = hub.connect(1 << 16).await;
    let subscribe = json!({"type": "subscribe", "id": "s", "payload": document.payload(None)});
    assert!(hub.during(client.say(&subscribe)).await);
    let mut payloads = vec![hub.during(client.next("s")).await];
    let epoch = payloads[0]["data"][document.name()]["epoch"].as_str().unwrap();
    model.name_epoch(&document.scopes()[0], epoch).unwrap();
    for event in events {
        let ack = hub.feed(&[event.line()]).await;
        model.take(std::slice::from_ref(event), &Counts::of(&ack), ack.last_sequence);
        payloads.push(hub.during(client.next("s")).await);
    }
    hub.advance(Duration::from_secs(5)).await;
    payloads.push(hub.during(client.next("s")).await);
    (model, payloads)
}

fn checked(document: &Document, model: &Model, payloads: &[Value]) -> Result<bool, String> {
    let mut operation = Operation::new(document.clone());
    for payload in payloads {
        operation.take(payload, model, &mut Tally::default())?;
    }
    Ok(operation.is_up_to_date(model))
}

/// The control of the storm: what it must not let pass.
#[test]
fn the_checker_finds_each_frame_that_is_dropped_doubled_or_wrong() {
    let book = Field::Book { market: MARKET, depth: 10, speed: "RAW", bids: true, asks: true };
    let changes = [change(true, 50, 20), change(true, 49, 1), change(true, 50, 3)];
    let items = [news(1), news(2), news(3)];
    for (field, events) in [(book, changes), (Field::Events { topic: "news" }, items)] {
        let document = Document::whole(field);
        paused(|began| async move {
            let (model, payloads) = recorded(began, &document, &events).await;
            assert_eq!(checked(&document, &model, &payloads), Ok(true));
            assert_eq!(checked(&document, &model, &payloads[..3]), Ok(false), "not the last");
            let name = document.name();
            for place in 1..4 {
                let mut dropped = payloads.clone();
                dropped.remove(place);
                checked(&document, &model, &dropped).unwrap_err();
                // The same where the next frame pretends to follow.
                let previous = payloads[place - 1]["data"][name]["sequence"].clone();
                let frame = &mut dropped[place]["data"][name];
                if frame["__typename"] == "BookHeartbeat" || frame["items"] == json!([]) {
                    frame["sequence"] = previous.clone();
                }
                if !frame["prevSequence"].is_null() {
                    frame["prevSequence"] = previous;
                }
                let is_last = place == 3;
                match checked(&document, &model, &dropped) {
                    Err(_) => {}
                    Ok(is_up_to_date) => assert!(is_last && !is_up_to_date),
                }
                let mut doubled = payloads.clone();
                doubled.insert(place, payloads[place].clone());
                checked(&document, &model, &doubled).unwrap_err();
            }
            let mut wrong = payloads.clone();
            let frame = &mut wrong[2]["data"][name];
            match name {
                "orderBook" => frame["mergedEvents"] = json!(2),
                _ => frame["items"][0]["data"] = json!(9),
            }
            checked(&document, &model, &wrong).unwrap_err();
        });
    }
}
