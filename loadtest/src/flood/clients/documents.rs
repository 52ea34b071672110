//! Attackers on WebSockets that read what they are sent: they open operations as fast as the hub
//! lets them, come back after every refusal at the time it names, and after every close.

use super::{Client, RETRY_PAUSE, texts};
use crate::flood::socket::Socket;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;
use tokio::time::Instant;

/// Below the limit of unfinished subscribes (32), which isn't what is attacked.
const IN_FLIGHT: usize = 30;

/// What is done with an operation once it has a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loop {
    /// It stays open.
    Keep,
    /// It is completed, and another takes its place.
    Churn,
    /// The same, of a deep book.
    Deep,
    /// It is a query, which completes by itself.
    Queries,
}

#[derive(Debug, PartialEq, Eq)]
enum Happened {
    Acknowledged,
    Result(u64),
    Ended(u64, Option<Duration>),
}

/// The operations of one socket.
struct Operations {
    /// How many are still to be opened.
    waiting: usize,
    /// By id: whether there was a result.
    open: HashMap<u64, bool>,
    without_result: usize,
    not_before: Instant,
}

pub async fn subscribe(client: &Client, kind: Loop) {
    let spec = &client.spec;
    loop {
        match Socket::open(spec.address, spec.source(client.number), None).await {
            Ok(mut socket) => {
                client.counts.opened();
                let end = live(client, kind, &mut socket).await;
                client.counts.closed(end);
            }
            Err(reason) => client.counts.refused(reason),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Returns how the socket ended.
async fn live(client: &Client, kind: Loop, socket: &mut Socket) -> String {
    let mut acknowledged = false;
    let mut operations = Operations {
        waiting: client.spec.operations,
        open: HashMap::new(),
        without_result: 0,
        not_before: Instant::now(),
    };
    let mut happened = Vec::new();
    loop {
        if acknowledged {
            operations.ask(client, kind, socket);
        }
        let bytes = socket.bytes;
        let is_due = acknowledged && operations.may_ask_later();
        let mut wait_after_error = None;
        let counts_results = operations.without_result > 0 || kind != Loop::Keep;
        let turn = socket.turn(|message| {
            let id = || std::str::from_utf8(message.id).ok()?.parse().ok();
            match message.kind {
                b"next" => {
                    client.counts.frame(&message);
                    if kind == Loop::Queries {
                        // One that failed has its errors in its result.
                        wait_after_error = client.counts.error_in(message.text);
                    }
                    if counts_results && let Some(id) = id() {
                        happened.push(Happened::Result(id));
                    }
                }
                b"connection_ack" => happened.push(Happened::Acknowledged),
                b"error" | b"complete" => {
                    let wait = client.counts.error_in(message.text);
                    happened.extend(id().map(|id| Happened::Ended(id, wait)));
                }
                _ => {}
            }
        });
        let result = tokio::select! {
            result = turn => result,
            () = tokio::time::sleep_until(operations.not_before), if is_due => Ok(()),
        };
        client.counts.bytes(socket.bytes - bytes);
        if let Err(end) = result {
            return end;
        }
        operations.wait(wait_after_error);
        for one in happened.drain(..) {
            match one {
                Happened::Acknowledged => acknowledged = true,
                Happened::Result(id) => operations.result(client, kind, socket, id),
                Happened::Ended(id, wait) => operations.ended(id, wait),
            }
        }
    }
}

impl Operations {
    fn may_ask_later(&self) -> bool {
        self.waiting > 0 && self.without_result < IN_FLIGHT
    }

    fn ask(&mut self, client: &Client, kind: Loop, socket: &mut Socket) {
        let market = &client.spec.market;
        while self.may_ask_later() && Instant::now() >= self.not_before {
            let serial = client.counts.serial();
            let query = match kind {
                Loop::Keep | Loop::Churn => texts::subscription(client.spec.kind, market, serial),
                Loop::Deep => texts::deep_subscription(market, serial),
                Loop::Queries => texts::deep_query(market, serial),
            };
            socket.send(&texts::subscribe_message(serial, &query));
            client.counts.asked();
            self.open.insert(serial, false);
            self.waiting -= 1;
            self.without_result += 1;
        }
    }

    fn result(&mut self, client: &Client, kind: Loop, socket: &mut Socket, id: u64) {
        let Entry::Occupied(mut entry) = self.open.entry(id) else {
            return;
        };
        if !entry.insert(true) {
            self.without_result -= 1;
            client.counts.answered();
            if matches!(kind, Loop::Churn | Loop::Deep) {
                socket.send(&format!(r#"{{"id":"{id}","type":"complete"}}"#));
                entry.remove();
                self.waiting += 1;
            }
        }
    }

    fn ended(&mut self, id: u64, wait: Option<Duration>) {
        let Some(had_result) = self.open.remove(&id) else {
            return;
        };
        self.waiting += 1;
        self.without_result -= usize::from(!had_result);
        self.wait(wait);
    }

    fn wait(&mut self, wait: Option<Duration>) {
        if let Some(wait) = wait {
            self.not_before = self.not_before.max(Instant::now() + wait);
        }
    }
}
