//! What happens to the hub in a storm: events, faults of its log, rollbacks and restarts.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;

use rand::Rng;
use rand::rngs::SmallRng;
use serde_json::json;

use super::{MARKETS, Storm, TOPICS};
use crate::hub::tests::client::Heard;
use crate::hub::tests::document::{Document, Field};
use crate::hub::tests::model::{Counts, Event, Level, What};
use crate::hub::tests::one_thread::Way;
use crate::ingest::handle::Ack;

/// Lines that no hub takes.
/// Events with an id that may be sent once more.
const LAST_IDS: usize = 9;

/// None is of a book: what a refused event does to one is shown in `broken_lines`.
const NONSENSE: [&str; 4] = [
    r#"{"kind":"message","topic":"news","#,
    r#"{"kind":"message","topic":"news"}"#,
    r#"{"kind":"trade","market":"X-Y","price":"1","size":"1"}"#,
    r#"{"kind":"trade","market":"A-B","price":"0.05","size":"1"}"#,
];

/// Levels, each once, of which bids are always below asks.
fn levels(random: &mut SmallRng, count: Range<usize>, sizes: Range<u64>) -> Vec<Level> {
    let level = |random: &mut SmallRng| {
        let price = random.random_range(1..100);
        (price, Level { buys: price < 50, price, size: random.random_range(sizes.clone()) })
    };
    let levels: BTreeMap<_, _> = (0..random.random_range(count)).map(|_| level(random)).collect();
    levels.into_values().collect()
}

impl Storm {
    pub(super) fn fail_commits(&mut self) {
        let count = self.random.random_range(1..3);
        self.hub().failing_commits.store(count, SeqCst);
        self.tally.add("failed commits", count as usize);
    }

    /// Counts only those that were tried: what is fed may be known or refused.
    pub(super) fn mend_commits(&mut self) {
        let left = self.hub().failing_commits.swap(0, SeqCst);
        *self.tally.0.entry("failed commits".to_owned()).or_default() -= left as usize;
    }

    /// A few events, among them some that are no events and some that are known.
    pub(super) fn events(&mut self) -> Vec<Event> {
        if self.random.random_bool(0.3) {
            self.height += 1;
        }
        (0..self.random.random_range(1..5)).map(|_| self.event()).collect()
    }

    fn event(&mut self) -> Event {
        let random = &mut self.random;
        if !self.with_ids.is_empty() && random.random_bool(0.06) {
            // The same once more.
            return self.with_ids[random.random_range(0..self.with_ids.len())].clone();
        }
        let market = MARKETS[random.random_range(0..2)];
        let what = match random.random_range(0..40) {
            0..24 => What::Book { market, replaces: false, levels: levels(random, 1..4, 0..4) },
            24..26 => What::Book { market, replaces: true, levels: levels(random, 10..40, 1..4) },
            26..30 => What::Trade {
                market,
                price: random.random_range(1..900),
                size: random.random_range(1..50),
            },
            30..37 => {
                let padding = "x".repeat(random.random_range(0..400));
                let data = json!({"number": random.random_range(0..1_000), "padding": padding});
                What::Message { topic: TOPICS[random.random_range(0..2)], data }
            }
            37 => {
                let status = ["ACTIVE", "HALTED"][random.random_range(0..2)];
                What::Define { market, status }
            }
            _ => What::Nonsense(NONSENSE[random.random_range(0..NONSENSE.len())]),
        };
        let is_definition = matches!(what, What::Define { .. });
        let is_of_book = matches!(what, What::Book { .. });
        let id = match random.random_range(0..10) {
            0 if self.ids > 0 && !is_of_book => {
                Some(random.random_range(self.ids.saturating_sub(9)..self.ids))
            }
            0..4 => {
                self.ids += 1;
                Some(self.ids - 1)
            }
            _ => None,
        };
        let id = id.map(|id| format!("e{id}"));
        let has_height = !is_definition && self.random.random_bool(0.6);
        let event = Event { id, height: has_height.then_some(self.height), what };
        if event.id.is_some() {
            if self.with_ids.len() == LAST_IDS {
                self.with_ids.pop_front();
            }
            self.with_ids.push_back(event.clone());
        }
        event
    }

    pub(super) async fn feed(&mut self, events: Vec<Event>) {
        let way = [Way::Queue, Way::Here][self.random.random_range(0..2)];
        let lines: Vec<_> = events.iter().map(Event::line).collect();
        let ack = self.hub().feed_by(way, &lines).await.unwrap();
        self.take(events, &ack);
    }

    fn take(&mut self, events: Vec<Event>, ack: &Ack) {
        let counts = Counts::of(ack);
        self.model.take(&events, &counts, ack.last_sequence);
        self.tally.add("events", counts.accepted);
        self.tally.add("known events", counts.known);
        self.tally.add("refused lines", counts.refused);
        self.last = events;
    }

    pub(super) async fn feed_together(&mut self) {
        let batches = [self.events(), self.events(), self.events()];
        let lines = batches.each_ref().map(|events| events.iter().map(Event::line).collect());
        let acks = self.hub().feed_together(&lines).await;
        for (events, ack) in batches.into_iter().zip(&acks) {
            self.take(events, ack);
        }
    }

    /// Publishes over a socket; sometimes what was published before.
    pub(super) async fn publish(&mut self) {
        let again = match self.published.last() {
            Some(last) if self.random.random_bool(0.3) => Some(last.clone()),
            _ => None,
        };
        let (id, topic) = match &again {
            Some((id, topic, _)) => (id.clone(), *topic),
            None => {
                let topic = TOPICS[self.random.random_range(0..2)];
                (format!("p{}", self.published.len()), topic)
            }
        };
        let query = format!(
            r#"mutation {{ publish(topic: "{topic}", id: "{id}", data: {{ by: "{id}" }})
            {{ sequence duplicate }} }}"#
        );
        let mut client = self.hub().connect(1 << 12).await;
        let answered = async {
            client.subscribe("m", &query).await;
            client.next("m").await
        };
        let payload = self.hub().during(answered).await;
        let answer = &payload["data"]["publish"];
        let sequence = answer["sequence"].as_str().unwrap().parse().unwrap();
        assert_eq!(answer["duplicate"], again.is_some(), "{answer}");
        if let Some((.., first)) = again {
            assert_eq!(sequence, first);
            self.tally.add("published twice", 1);
            return;
        }
        self.tally.add("published", 1);
        let what = What::Message { topic, data: json!({"by": id}) };
        let event = Event { id: Some(id.clone()), height: None, what };
        let answer = Counts { accepted: 1, ..Counts::default() };
        self.model.take(&[event], &answer, Some(sequence));
        self.published.push((id, topic, sequence));
    }

    pub(super) async fn remove_blocks(&mut self) {
        let height = self.height - self.random.random_range(0..3);
        if self.random.random_bool(0.2) {
            self.fail_commits();
        }
        let line = json!({"kind": "block.reverted", "height": height}).to_string();
        let ack = self.hub().feed(&[line]).await;
        let left = self.hub().failing_commits.swap(0, SeqCst);
        assert_eq!(left, 0, "a rollback is written in any case");
        assert_eq!(ack.accepted, 1);
        self.tally.add("rollbacks", 1);
        let removed = self.model.remove_blocks(height);
        self.tally.add("removed events", removed);
        self.height = height;
        self.name_epochs().await;
    }

    pub(super) async fn lose_events_of_a_source(&mut self) {
        // From now on the source of each book is known, also where a fault lost it.
        let known = MARKETS.map(|market| {
            let what = What::Book { market, replaces: false, levels: Vec::new() };
            Event { id: None, height: None, what }
        });
        self.feed(known.into()).await;
        let line = json!({"kind": "source.gap", "source": "another"}).to_string();
        // No book had an event from there, so none has a gap.
        assert_eq!(self.hub().feed_from("another", &[line]).await.accepted, 1);
        self.tally.add("gaps", 1);
        self.name_epochs().await;
    }

    /// Asks which epoch each scope has.
    pub(super) async fn name_epochs(&mut self) {
        let books = MARKETS.map(|market| Field::Book {
            market,
            depth: 1,
            speed: "RAW",
            bids: true,
            asks: true,
        });
        let trades = MARKETS.map(|market| Field::Trades { markets: vec![market] });
        let events = TOPICS.map(|topic| Field::Events { topic });
        let mut client = self.hub().connect(1 << 14).await;
        for (id, field) in books.into_iter().chain(trades).chain(events).enumerate() {
            let document = Document::whole(field);
            let (id, payload) = (id.to_string(), document.payload(None));
            let first = async {
                let message = json!({"type": "subscribe", "id": id, "payload": payload});
                assert!(client.say(&message).await);
                // Of the operation before, a heartbeat may follow its first frame.
                loop {
                    let Heard::Message(first) = client.hear().await else { panic!("no frame") };
                    if first["id"] == *id {
                        assert!(client.say(&json!({"type": "complete", "id": id})).await);
                        break first["payload"].clone();
                    }
                }
            };
            let first = self.hub().during(first).await;
            let epoch = first["data"][document.name()]["epoch"].as_str().unwrap();
            self.model.name_epoch(&document.scopes()[0], epoch).unwrap();
        }
    }

    /// A kill, a stop, or a shutdown while the log can't be written; then a hub over the same log.
    pub(super) async fn restart(&mut self) {
        let mut again = Vec::new();
        let hub = self.hub.take().unwrap();
        match self.random.random_range(0..3) {
            0 => {
                // What their feed was not acknowledged it sends again. What has no id counts twice.
                self.tally.add("kills", 1);
                again = self.last.iter().filter(|event| event.id.is_some()).cloned().collect();
                drop(hub);
            }
            1 => {
                self.tally.add("stops", 1);
                hub.stop().await;
            }
            _ => {
                self.tally.add("shutdowns at a fault", 1);
                let data = json!("not taken");
                let what = What::Message { topic: TOPICS[0], data };
                again.push(Event { id: None, height: None, what });
                let way = [Way::Queue, Way::Here][self.random.random_range(0..2)];
                hub.refuse_at_shutdown(way, &[again[0].line()]).await;
                drop(hub);
            }
        }
        self.lose_all_peers().await;
        self.hub = Some(self.home.start());
        self.name_epochs().await;
        self.feed(again).await;
        self.come_back().await;
    }
}
