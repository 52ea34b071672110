//! The clients of a storm: how they come, what they follow, and how they read.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rand::Rng;
use serde_json::{Value, json};

use super::{MARKETS, Storm, TOPICS};
use crate::hub::tests::checker::Operation;
use crate::hub::tests::client::{Client, Heard};
use crate::hub::tests::document::Document;
use crate::hub::tests::one_thread::Hub;

const MOST_PEERS: usize = 8;
/// Clients that come back at once after a restart.
const CROWD: usize = 4;
/// Operations of clients that are gone; more are forgotten.
const MOST_AWAY: usize = 6;

/// A connected client.
pub(super) struct Peer {
    client: Client,
    operations: HashMap<String, Operation>,
    /// Frames of these may still be on their way.
    completed: HashSet<String>,
    begun: usize,
    /// It does not read before this step.
    pub(super) reads_from: usize,
    is_gone: bool,
}

impl Storm {
    fn peer(&mut self) -> Option<usize> {
        let count = self.peers.len();
        (count > 0).then(|| self.random.random_range(0..count))
    }

    pub(super) async fn connect(&mut self) {
        if self.peers.len() < MOST_PEERS {
            let window = 1 << self.random.random_range(9..15);
            let client = self.hub().connect(window).await;
            self.peers.push(Peer {
                client,
                operations: HashMap::new(),
                completed: HashSet::new(),
                begun: 0,
                reads_from: 0,
                is_gone: false,
            });
        }
    }

    pub(super) async fn subscribe(&mut self) {
        let document = Document::random(&mut self.random, &MARKETS, &TOPICS);
        if let Some(peer) = self.peer() {
            self.begin(peer, Operation::new(document)).await;
        }
    }

    /// Something that was followed before goes on, on any connection.
    pub(super) async fn resume(&mut self) {
        if let Some(peer) = self.peer()
            && !self.away.is_empty()
        {
            let place = self.random.random_range(0..self.away.len());
            let operation = self.away.swap_remove(place);
            self.begin(peer, operation).await;
        }
    }

    async fn begin(&mut self, peer: usize, mut operation: Operation) {
        let peer = &mut self.peers[peer];
        let id = format!("o{}", peer.begun);
        peer.begun += 1;
        self.tally.add("resumes", usize::from(operation.cursor.is_some()));
        let payload = operation.resume();
        let message = json!({"type": "subscribe", "id": id, "payload": payload});
        peer.operations.insert(id, operation);
        say(self.hub.as_ref().unwrap(), peer, &message).await;
    }

    pub(super) async fn complete(&mut self) {
        let Some(peer) = self.peer() else { return };
        let peer = &mut self.peers[peer];
        let mut ids: Vec<_> = peer.operations.keys().cloned().collect();
        ids.sort_unstable();
        if ids.is_empty() {
            return;
        }
        let id = ids.swap_remove(self.random.random_range(0..ids.len()));
        self.away.extend(peer.operations.remove(&id));
        peer.completed.insert(id.clone());
        say(self.hub.as_ref().unwrap(), peer, &json!({"type": "complete", "id": id})).await;
    }

    /// A client vanishes with what it has not read.
    pub(super) fn cut(&mut self) {
        if let Some(peer) = self.peer() {
            self.tally.add("cuts", 1);
            let peer = self.peers.swap_remove(peer);
            self.leave(peer);
        }
    }

    fn leave(&mut self, peer: Peer) {
        let mut operations: Vec<_> = peer.operations.into_iter().collect();
        operations.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        self.away.extend(operations.into_iter().map(|(_, operation)| operation));
    }

    pub(super) fn stall(&mut self) {
        if let Some(peer) = self.peer() {
            self.tally.add("stalls", 1);
            self.peers[peer].reads_from = self.step + self.random.random_range(10..200);
        }
    }

    /// The hub is gone: clients read what it sent before.
    pub(super) async fn lose_all_peers(&mut self) {
        for peer in 0..self.peers.len() {
            let heard = self.peers[peer].client.read().await;
            self.take_all(peer, heard);
        }
        for peer in std::mem::take(&mut self.peers) {
            self.leave(peer);
        }
    }

    /// A client reads until nothing comes. False if nothing came at all.
    pub(super) async fn read(&mut self, peer: usize) -> bool {
        let mut has_read = false;
        while !self.peers[peer].is_gone {
            let hub = self.hub.as_ref().unwrap();
            let heard = hub.during(self.peers[peer].client.read()).await;
            if heard.is_empty() {
                break;
            }
            has_read = true;
            self.take_all(peer, heard);
            self.hub().settle().await;
        }
        has_read
    }

    fn take_all(&mut self, peer: usize, heard: Vec<Heard>) {
        for heard in heard {
            match heard {
                Heard::Message(message) => self.take_message(peer, &message),
                Heard::Close(code) => {
                    // It did not read, or the hub stopped.
                    assert!([1012, 1013].contains(&code), "closed with {code}");
                    self.tally.add("closed sockets", usize::from(code == 1013));
                    self.peers[peer].is_gone = true;
                }
                Heard::Gone => self.peers[peer].is_gone = true,
            }
        }
    }

    fn take_message(&mut self, peer: usize, message: &Value) {
        let peer = &mut self.peers[peer];
        let id = message["id"].as_str().unwrap();
        if peer.completed.contains(id) {
            return;
        }
        assert_eq!(message["type"], "next", "step {}: {message}", self.step);
        let operation = peer.operations.get_mut(id).unwrap();
        if let Err(fault) = operation.take(&message["payload"], &self.model, &mut self.tally) {
            panic!("step {}: {fault}\nof {}", self.step, operation.position());
        }
    }

    /// Forgets connections that have ended, but not what their clients followed.
    pub(super) fn clear_away(&mut self) {
        while let Some(gone) = self.peers.iter().position(|peer| peer.is_gone) {
            let peer = self.peers.swap_remove(gone);
            self.leave(peer);
        }
    }

    pub(super) fn forget_some(&mut self) {
        while self.away.len() > MOST_AWAY {
            let place = self.random.random_range(0..self.away.len());
            self.away.swap_remove(place);
        }
    }

    /// Clients that are away come back at once, with all that they followed.
    pub(super) async fn come_back(&mut self) {
        while self.peers.len() < CROWD {
            self.connect().await;
        }
        while let Some(operation) = self.away.pop() {
            let peer = self.random.random_range(0..self.peers.len());
            self.begin(peer, operation).await;
        }
    }

    /// Everybody comes back, reads, and holds the last state.
    pub(super) async fn end(&mut self) {
        // A second is the slowest pace, and five are the longest silence. Some clients did not read
        // for so long that they have to come back.
        for _ in 0..20 {
            self.come_back().await;
            self.hub().advance(Duration::from_secs(1)).await;
            for peer in 0..self.peers.len() {
                self.read(peer).await;
            }
            self.clear_away();
        }
        let mut followed = 0;
        for operation in self.peers.iter().flat_map(|peer| peer.operations.values()) {
            assert!(operation.is_up_to_date(&self.model), "{}", operation.position());
            followed += 1;
        }
        assert!(self.away.is_empty());
        assert!(followed > 10, "only {followed} are left to compare");
        assert_eq!(self.hub().jobs_elsewhere(), 0, "the pool's time is not the test's");
        self.peers.clear();
        self.hub().settle().await;
        let meters = &self.hub().meters;
        assert_eq!((meters.sockets_open.get(), meters.readers_open.get()), (0, 0));
        self.hub.take().unwrap().stop().await;
    }
}

/// Sends a message, if the hub takes it.
async fn say(hub: &Hub, peer: &mut Peer, message: &Value) {
    peer.is_gone |= !hub.during(peer.client.say(message)).await;
}
