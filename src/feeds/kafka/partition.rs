//! One partition: how far it is read, and what it means that a record of it was read.

use std::sync::Arc;
use std::time::Instant;

use crate::ingest::handle::Lease;
use crate::store::FeedPosition;

/// One partition, and how far it is read.
pub(super) struct Partition {
    pub(super) topic: String,
    pub(super) number: i32,
    /// Names its progress in the log.
    pub(super) feed: Box<str>,
    /// Of each record's place.
    pub(super) source: Arc<str>,
    /// Of the cluster and the topic.
    pub(super) first_epoch: u64,
    /// The same, and how often it was recreated.
    pub(super) epoch: u64,
    /// The broker that leads it; below 0 if there is none now, so nobody can read it.
    pub(super) leader: i32,
    /// That broker does not answer.
    pub(super) silent: bool,
    /// This hub reads it. Where several share a log one of them does.
    pub(super) ours: bool,
    /// This hub has read it in this session, and another one has read it since.
    pub(super) left: bool,
    /// The next offset.
    pub(super) next: u64,
    /// The offset after its newest record, as its leader said then.
    pub(super) end: u64,
    /// When it said so; `None`: not in this session.
    pub(super) answered: Option<Instant>,
    /// Its end was reached since the session began.
    pub(super) read: bool,
    /// The oldest offset there was when it was begun.
    pub(super) low: u64,
    /// The record before `next` has this [`mark`], if the topic is still the same; it is read once
    /// more.
    pub(super) proof: Option<u64>,
    /// Whether compaction removes records; `None` where the brokers do not say.
    pub(super) compacted: Option<bool>,
    /// It was reported in this session that offsets are missing.
    pub(super) reported_missing: bool,
}

/// Records that are lost.
pub(super) struct Gap {
    pub(super) place: usize,
    /// The offset after it.
    pub(super) next: u64,
    /// For people.
    pub(super) reason: String,
    /// If the topic was created again: how often it was.
    pub(super) remade: Option<u64>,
}

/// What it means that a record was read.
pub(super) enum Met {
    /// It is the next one.
    Next,
    /// It is the last one of before, as it was.
    Known,
    /// It is the next one, after records that are lost.
    AfterGap(Gap),
    /// It is the next one, after some that may be lost; what to report of them, once a session.
    Unclear(String),
    /// It is not of the topic that was read before: that has to be read from its start.
    Other(Gap),
}

/// Of a record: its value, and when it was written in milliseconds since 1970. Two records of one
/// offset in two topics of one name have the same by chance alone.
pub(super) fn mark(value: &[u8], millis: Option<i64>) -> u64 {
    let millis = millis.unwrap_or(0).cast_unsigned();
    (millis << 32) | u64::from(crc32fast::hash(value))
}

impl Partition {
    pub(super) fn new(
        topic: &str,
        number: i32,
        source: String,
        epoch: u64,
        leader: i32,
        compacted: Option<bool>,
    ) -> Self {
        Self {
            topic: topic.to_owned(),
            number,
            feed: format!("kafka:{source}").into(),
            source: source.into(),
            first_epoch: epoch,
            epoch,
            leader,
            silent: false,
            ours: false,
            left: false,
            next: 0,
            end: 0,
            answered: None,
            read: false,
            low: 0,
            proof: None,
            compacted,
            reported_missing: false,
        }
    }

    pub(super) fn is_leaderless(&self) -> bool {
        self.leader < 0
    }

    /// Why nobody can read it now, or this hub can't.
    pub(super) fn fault(&self) -> Option<String> {
        if self.is_leaderless() {
            return Some("it has no leader: start its brokers".to_owned());
        }
        let silent = || format!("its broker {} does not answer", self.leader);
        (self.silent && self.ours).then(silent)
    }

    /// As the log contains it when all before `next` is read.
    pub(super) fn position(&self, next: u64, mark: Option<u64>) -> FeedPosition {
        FeedPosition { feed: self.feed.clone(), epoch: self.epoch, position: next, mark }
    }

    /// Records before the next one to be read are lost.
    pub(super) fn gap(&self, place: usize, reason: String) -> Gap {
        Gap { place, next: self.next, reason, remade: None }
    }

    /// Goes on with the topic of this name that there is now.
    pub(super) fn recreated(&mut self, place: usize) -> Gap {
        self.epoch = self.epoch.wrapping_add(1);
        (self.next, self.proof) = (self.low, None);
        let source = &self.source;
        let reason = format!("{source} was created again, or lost its end: read from its start");
        let remade = Some(self.epoch.wrapping_sub(self.first_epoch));
        Gap { remade, ..self.gap(place, reason) }
    }

    /// Whether its end is reached is for its reader to say.
    pub(super) fn goes_on_elsewhere(&mut self, claimed: &Lease, otherwise: u64) {
        self.next = claimed.position.as_ref().map_or(otherwise, |known| known.position);
        self.end = self.end.max(self.next);
        self.read = true;
    }

    /// A record was read; see [`Met`].
    pub(super) fn meet(&mut self, place: usize, offset: u64, mark: impl FnOnce() -> u64) -> Met {
        let own = self;
        if let Some(proof) = own.proof.take().filter(|_| offset < own.next) {
            if mark() == proof {
                return Met::Known;
            }
            return Met::Other(own.recreated(place));
        }
        let missing = offset.saturating_sub(own.next);
        let next = offset + 1;
        own.next = next;
        own.end = own.end.max(next);
        own.read |= next >= own.end;
        // Without compaction they mark transactions.
        if missing == 0 || own.compacted == Some(false) {
            return Met::Next;
        }
        let (first, last, source) = (offset - missing, offset - 1, &own.source);
        if own.compacted.is_some() {
            let reason = format!(
                "compaction took offsets {first} to {last} of {source} before they were read"
            );
            return Met::AfterGap(Gap { next: offset, ..own.gap(place, reason) });
        }
        if std::mem::replace(&mut own.reported_missing, true) {
            return Met::Next;
        }
        Met::Unclear(format!(
            "{source} has no offsets {first} to {last}: they mark transactions, or compaction took them \
             before they were read, which the brokers do not say"
        ))
    }
}
