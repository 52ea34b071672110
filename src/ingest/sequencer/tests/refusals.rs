//! Which events are refused, and what is missing of a book afterwards.

use super::*;

#[tokio::test]
async fn a_book_that_missed_an_event_has_one_gap_until_its_next_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    let snapshot = |name: &str| delta(name, 5, 1).replace("delta", "snapshot");
    let too_precise = |name: &str| delta(name, 5, 1).replace("\"5\"", "\"5.55\"");
    let names = ["A-B", "C-D", "E-F", "G-H"];
    let markets: Vec<_> = names.iter().map(|name| market(name, "ACTIVE", name)).collect();
    hub.send(&markets).await;
    let gaps = |hub: &Hub| -> Vec<String> {
        let gaps = std::mem::take(&mut hub.model.lock().gaps);
        assert!(gaps.iter().all(|gap| gap.source.as_deref() == Some("test")));
        gaps.iter().map(|gap| format!("{} {}", gap.market, gap.reason)).collect()
    };
    hub.send(&[snapshot("A-B"), snapshot("C-D"), delta("E-F", 5, 1)]).await;
    let ack = hub.send(&[too_precise("A-B"), too_precise("A-B"), delta("A-B", 6, 1)]).await;
    assert_eq!((ack.accepted, ack.refused), (1, 2), "the gap is no event of the source");
    let reason = "A-B test line 1 (byte 0): market A-B: price \"5.55\" has too many decimals: at \
                  most 1";
    assert_eq!(gaps(&hub), [reason]);
    hub.send(&[snapshot("A-B"), too_precise("A-B")]).await;
    assert_eq!(gaps(&hub).len(), 1, "after the snapshot it has another one");
    hub.send(&[snapshot("A-B")]).await;
    // Nothing is lost by these.
    let others = [
        too_precise("E-F"),
        "{\"kind\":\"message\",\"topic\":\"t\",\"data\":".to_owned(),
        "{\"kind\":\"trade\",\"market\":\"A-B\",\"price\":\"x\"}".to_owned(),
        "{\"kind\":\"trade\",\"market\":\"X-Y\",\"price\":\"1\",\"size\":\"1\"}".to_owned(),
    ];
    assert_eq!(hub.send(&others).await.refused, 4);
    let mutation = hub.batch_of(None, &[too_precise("A-B")]);
    assert_eq!(hub.ingest.deliver(mutation).await.unwrap().refused, 1);
    assert!(gaps(&hub).is_empty());
    // A line that shows its market concerns that one alone.
    hub.send(&["{\"kind\":\"book.delta\",\"market\":\"C-D\",\"bids\":[[\"1".to_owned()]).await;
    assert_eq!(gaps(&hub).len(), 1);
    // One that does not concerns all that its source brings.
    hub.send(&[snapshot("C-D")]).await;
    let mut other = hub.batch(&[snapshot("G-H")]);
    other.lines[0].place.source = "other".into();
    hub.ingest.deliver(other).await.unwrap();
    hub.send(&["\u{1}garbage".to_owned()]).await;
    let mut all = gaps(&hub);
    all.sort_unstable();
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[0].starts_with("A-B test line 1") && all[1].starts_with("C-D"), "{all:?}");
    hub.stop();
    let hub = Hub::start(&path(&folder), 1_000);
    assert_eq!(hub.model.lock().gaps.len(), 5, "they are in the log");
    // Which source brings which topic is in the log too.
    gaps(&hub);
    hub.send(&[snapshot("A-B"), snapshot("C-D"), "\u{1}garbage".to_owned()]).await;
    assert_eq!(gaps(&hub).len(), 2);
}

#[tokio::test]
async fn a_line_of_an_unknown_market_leaves_all_whole_books_of_its_source_in_doubt() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    let snapshot = |name: &str| delta(name, 5, 1).replace("delta", "snapshot");
    let misspelt = |number: u32| [delta(&format!("A-X{number}"), 5, 1)];
    let from_other = async |lines: &[String]| {
        let mut batch = hub.batch(lines);
        batch.lines.iter_mut().for_each(|line| line.place.source = "other".into());
        hub.ingest.deliver(batch).await.unwrap()
    };
    let gaps = || -> Vec<String> {
        let gaps = std::mem::take(&mut hub.model.lock().gaps);
        let mut markets: Vec<_> = gaps.iter().map(|gap| gap.market.to_string()).collect();
        markets.sort_unstable();
        markets
    };
    let names = ["A-B", "C-D", "E-F", "G-H"];
    hub.send(&names.map(|name| market(name, "ACTIVE", name))).await;
    hub.send(&[snapshot("A-B"), snapshot("C-D"), delta("E-F", 5, 1)]).await;
    from_other(&[snapshot("G-H")]).await;
    assert_eq!(hub.send(&misspelt(1)).await.refused, 1);
    let reason = hub.model.lock().gaps[0].reason.clone();
    assert!(
        reason.ends_with("market A-X1 is not defined: send its `market` event first"),
        "{reason}"
    );
    assert_eq!(gaps(), ["A-B", "C-D"], "E-F has no book yet");
    hub.send(&misspelt(2)).await;
    assert!(gaps().is_empty(), "they have gaps already");
    hub.send(&[snapshot("A-B")]).await;
    hub.send(&misspelt(1)).await;
    assert_eq!(gaps(), ["A-B"]);
    // One that has snapshots is a market of its own.
    hub.send(&[snapshot("A-B"), snapshot("X-Y")]).await;
    assert_eq!(gaps(), ["A-B"], "the first snapshot may be misspelt itself");
    hub.send(&[snapshot("A-B"), delta("X-Y", 5, 1), snapshot("X-Y")]).await;
    assert!(gaps().is_empty());
    from_other(&misspelt(4)).await;
    assert_eq!(gaps(), ["G-H"]);
    // What a source brings is learned with its events, also if no book has become whole since.
    hub.send(&[snapshot("A-B")]).await;
    from_other(&misspelt(5)).await;
    assert!(gaps().is_empty());
    from_other(&[delta("A-B", 6, 1)]).await;
    from_other(&misspelt(6)).await;
    assert_eq!(gaps(), ["A-B"]);
    // A market that is defined later is no unknown one any more.
    hub.send(&[market("A-X9", "ACTIVE", "d"), snapshot("A-B")]).await;
    hub.send(&misspelt(9)).await;
    assert!(gaps().is_empty());
}

#[tokio::test]
async fn a_book_has_the_gap_of_an_id_that_is_taken_in_the_place_of_its_event() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    let with_id = |line: String| line.replace('{', "{\"id\":\"1\",");
    let snapshot = delta("A-B", 5, 1).replace("delta", "snapshot");
    let too_precise = delta("A-B", 5, 1).replace("\"5\"", "\"5.55\"");
    let change = with_id(delta("A-B", 6, 1));
    let other = with_id(delta("A-B", 7, 1));
    hub.send(&[market("A-B", "ACTIVE", "d"), snapshot.clone(), change.clone()]).await;
    let gaps = || std::mem::take(&mut hub.model.lock().gaps_at);
    let last = || *hub.model.lock().sequences.last().unwrap();
    let before = last();
    let ack = hub.send(&[delta("A-B", 8, 1), other.clone(), change, delta("A-B", 9, 1)]).await;
    assert_eq!((ack.accepted, ack.known, ack.refused), (2, 1, 1));
    assert_eq!((gaps(), last()), (vec![before + 2], before + 3));
    // One gap is enough, whatever else is missing.
    hub.send(&[other.clone(), too_precise.clone()]).await;
    assert!(gaps().is_empty());
    // A snapshot after it in the same batch ends it.
    hub.send(std::slice::from_ref(&snapshot)).await;
    let before = last();
    hub.send(&[other.clone(), snapshot.clone()]).await;
    assert_eq!(gaps(), [before + 1]);
    hub.send(std::slice::from_ref(&too_precise)).await;
    assert_eq!(gaps(), [before + 3], "the book was whole");
    // One before it does not, nor does a snapshot whose own id is taken.
    hub.send(&[snapshot.clone(), other, too_precise.clone()]).await;
    assert_eq!(gaps().len(), 2, "the second one was admitted before the first was written");
    hub.send(&[with_id(snapshot.clone())]).await;
    let ack = hub.send(&[with_id(snapshot.replace("\"5\"", "\"6\""))]).await;
    assert_eq!((ack.accepted, ack.refused, gaps().len()), (0, 1, 1));
    hub.send(&[too_precise]).await;
    assert!(gaps().is_empty());
}

#[tokio::test]
async fn another_event_under_a_known_id_is_refused_and_the_same_one_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    let trade = |name: &str, price: u32| {
        format!(r#"{{"kind":"trade","market":"{name}","id":"1","price":"{price}","size":"1"}}"#)
    };
    let snapshot = delta("A-B", 5, 1).replace("delta", "snapshot");
    let markets = ["A-B", "C-D"].map(|name| market(name, "ACTIVE", name));
    hub.send(&[&markets[..], &[snapshot]].concat()).await;
    let taken = "another event of this topic and kind has the id \"1\": give each an id of its own";
    // In one batch, and in a later one. Another market, or another kind, has ids of its own.
    let ack = hub.send(&[trade("A-B", 1), trade("C-D", 1), trade("A-B", 1), trade("A-B", 2)]).await;
    assert_eq!((ack.accepted, ack.known, ack.refused), (2, 1, 1));
    assert_eq!(ack.last_refusal.unwrap().reason.to_string(), taken);
    let spaced = trade("A-B", 1).replace(",", " , ");
    let ack = hub.send(&[spaced, trade("A-B", 2), trade("A-B", 1)]).await;
    assert_eq!((ack.known, ack.refused), (2, 1));
    let refusal = ack.last_refusal.unwrap();
    assert_eq!(
        (refusal.place.to_string().as_str(), refusal.reason.to_string().as_str()),
        ("test line 2 (byte 0)", taken)
    );
    // A definition, which is looked up before.
    let ack = hub.send(&[market("A-B", "HALTED", "A-B"), markets[0].clone()]).await;
    assert_eq!((ack.known, ack.refused), (1, 1));
    assert!(hub.model.lock().gaps.is_empty());
    // A change of a book that is refused is missing in it.
    let change = delta("A-B", 6, 1).replace("{", "{\"id\":\"1\",");
    let other = change.replace("[\"6", "[\"7");
    assert_ne!(change, other);
    let ack = hub.send(&[change.clone(), other, change]).await;
    assert_eq!((ack.accepted, ack.known, ack.refused), (1, 1, 1));
    let gaps = hub.model.lock().gaps.clone();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert!(gaps[0].reason.ends_with(taken), "{gaps:?}");
}

#[tokio::test]
async fn a_trade_whose_time_is_still_to_come_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&path(&folder), 1_000);
    hub.send(&[market("A-B", "ACTIVE", "d1")]).await;
    let trade = |ahead: i64| {
        let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(ahead);
        let head = r#""kind":"trade","market":"A-B","price":"1","size":"1""#;
        format!(r#"{{{head},"id":"{ahead}","time":"{time}"}}"#)
    };
    let most = i64::try_from(MOST_AHEAD.as_secs()).unwrap();
    let ack =
        hub.send(&[trade(0), trade(most - 5), trade(most + 5), trade(4 * 365 * 86_400)]).await;
    assert_eq!((ack.accepted, ack.refused), (2, 2));
    let reason = ack.last_refusal.unwrap().reason.to_string();
    assert!(reason.contains("ahead of the hub's clock"), "{reason}");
    // What comes from a log is compared with the time at which that took it, on every hub.
    let received = jiff::Timestamp::now().as_microsecond() + 86_400 * 1_000_000;
    let mut batch = hub.batch(&[trade(86_400)]);
    batch.lines[0].numbered = Some(Numbered { sequence: 1_000, received });
    assert_eq!(hub.ingest.deliver(batch).await.unwrap().accepted, 1);
}

#[tokio::test]
async fn what_kafka_owns_is_taken_from_its_feed_and_refused_from_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let ownership = Ownership::new(&["t".to_owned()], &["O-P".to_owned()]);
    let hub = Hub::start_owning(&path(&folder), 1_000, Some(Arc::new(ownership)));
    let kafka = hub.board.register("kafka", FeedKind::Kafka);
    let others = [
        Some(hub.feed),
        Some(hub.board.register("postgres", FeedKind::Postgres)),
        Some(hub.board.register("simulator", FeedKind::Simulator)),
        // A mutation.
        None,
    ];
    let message = r#"{"kind":"message","topic":"t","data":1}"#.to_owned();
    let beginning = [market("O-P", "ACTIVE", "d"), placed(1, 5, 3), message.clone()];
    for other in others {
        let ack = hub.ingest.deliver(hub.batch_of(other, &beginning)).await.unwrap();
        assert_eq!((ack.accepted, ack.refused), (0, 3), "{other:?}");
        assert_eq!(ack.last_refusal.unwrap().reason, Refusal::TopicOfKafka("t".into()));
    }
    let ack = hub.ingest.deliver(hub.batch_of(Some(kafka), &beginning)).await.unwrap();
    assert_eq!((ack.accepted, ack.refused), (3, 0), "{:?}", ack.last_refusal);
    // Whose market the log alone knows.
    assert!(!filled(1, 1).contains("O-P"));
    let ack = hub.send(&[filled(1, 1)]).await;
    assert_eq!(ack.last_refusal.unwrap().reason, Refusal::MarketOfKafka("O-P".into()));
    let ack = hub.send(&[message.replace(r#""t""#, r#""u""#)]).await;
    assert_eq!((ack.accepted, ack.refused), (1, 0));
    assert_eq!(hub.board.get(hub.feed).unwrap().refused_total, 4);
    hub.stop();
}
