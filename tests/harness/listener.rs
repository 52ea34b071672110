//! One that follows a generic topic over every cut, and believes nothing: the chain must be whole.

use std::net::SocketAddr;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

use super::{Client, Seen};

#[derive(Default)]
pub struct Listener {
    topic: String,
    cursor: Option<String>,
    chain: Option<(String, String)>,
    /// What was published, in the order in which it was received.
    pub received: Vec<Value>,
    /// Why it received something that does not follow what it knew.
    pub reasons: Vec<String>,
}

impl Listener {
    /// Its first frame is there when this returns, so it has a place to come back to.
    pub async fn begin(topic: &str, hub: SocketAddr) -> Self {
        let mut own = Self { topic: topic.to_owned(), ..Self::default() };
        let mut client = own.connect(hub).await;
        let first = client.message().await;
        own.take(&first);
        own
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// After what it has seen.
    pub async fn connect(&self, hub: SocketAddr) -> Client {
        let mut client = Client::reconnected(hub).await;
        let after =
            self.cursor.as_ref().map_or(String::new(), |cursor| format!(r#", after: "{cursor}""#));
        let query = format!(
            r#"subscription {{ events(topic: "{}"{after})
                {{ epoch sequence prevSequence cursor reason events {{ data }} }} }}"#,
            self.topic
        );
        client.try_subscribe("s", &query).await;
        client
    }

    pub fn take(&mut self, message: &Value) {
        assert_eq!(message["type"], "next", "{message}");
        let frame = &message["payload"]["data"]["events"];
        let text = |key: &str| frame[key].as_str().unwrap().to_owned();
        if !frame["prevSequence"].is_null() {
            let expected = Some((text("epoch"), text("prevSequence")));
            assert_eq!(self.chain, expected, "the chain broke: {frame}");
        } else {
            self.reasons.push(text("reason"));
        }
        self.chain = Some((text("epoch"), text("sequence")));
        self.cursor = Some(text("cursor"));
        let events = frame["events"].as_array().unwrap();
        self.received.extend(events.iter().map(|event| event["data"].clone()));
    }

    /// Until so many were received, over all cuts.
    pub async fn follow(&mut self, hub: SocketAddr, enough: usize) {
        let mut client = self.connect(hub).await;
        while self.received.len() < enough {
            match client.seen().await {
                Seen::Message(message) => self.take(&message),
                Seen::Closed(1012 | 1013, _) | Seen::Cut => client = self.connect(hub).await,
                Seen::Closed(code, reason) => panic!("{code} {reason}"),
            }
        }
    }

    /// The same, but goes to any of the hubs after every few frames, `hops` times at least. Returns
    /// how often it did.
    pub async fn hop(
        &mut self,
        hubs: &[SocketAddr],
        enough: usize,
        hops: usize,
        seed: u64,
    ) -> usize {
        let mut random = StdRng::seed_from_u64(seed);
        let mut hopped = 0;
        while self.received.len() < enough || hopped < hops {
            let mut client = self.connect(hubs[random.random_range(0..hubs.len())]).await;
            hopped += 1;
            // Also before the first frame; one that has all hears a heartbeat at most.
            let frames = random.random_range(0..6);
            for _ in 0..frames {
                if self.received.len() >= enough {
                    break;
                }
                match client.seen().await {
                    Seen::Message(message) => self.take(&message),
                    Seen::Closed(1012 | 1013, _) | Seen::Cut => break,
                    Seen::Closed(code, reason) => panic!("{code} {reason}"),
                }
            }
        }
        hopped
    }

    /// Takes what is there and no more; the hub is not to go meanwhile.
    pub async fn rest(&mut self, hub: SocketAddr) {
        let mut client = self.connect(hub).await;
        for message in client.until_pong().await {
            self.take(&message);
        }
    }
}
