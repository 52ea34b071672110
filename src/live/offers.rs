//! The best bid and offer of all markets, and the streams that follow some of them. One lock for
//! all of it: a stream spans markets, and its ring wants rising sequences.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::{HashMap, HashMapExt as _};
use spreadly_subscriptions::{Epoch, Frame, ResponseStream, Resume};

use super::book_stream::QUIET_BEATS;
use super::follower::Touched;
use super::frame::{Encode, FeedState, LiveFrame, Offer, SnapshotReason};
use crate::market::bbo::BestBidOffer;
use crate::market::definition::{MarketDefinition, MarketId};
use crate::market::epochs::{EpochChange, EpochHistory};
use crate::market::levels::Level;
use crate::market::time::Micros;

pub(super) struct Offers {
    state: FeedState,
    /// Of the last event of the log that changed any offer.
    sequence: u64,
    markets: HashMap<MarketId, Own>,
    streams: BTreeMap<u64, OfferStream>,
}

#[derive(Clone)]
pub(super) struct Own {
    definition: Arc<MarketDefinition>,
    epochs: EpochHistory,
    bbo: BestBidOffer,
    /// Counts them.
    changes: u64,
    /// Streams that follow it and push each change.
    raw: BTreeSet<u64>,
}

struct OfferStream {
    stream: Arc<ResponseStream>,
    encode: Encode,
    /// Of the last frame in the ring: a sequence of the log, over all markets.
    last: u64,
    markets: BTreeMap<MarketId, Followed>,
}

/// What of a market a stream has pushed.
struct Followed {
    quiet_beats: u8,
    /// The current offer, encoded for earlier joiners and readers.
    stated: Stated,
    epoch: Epoch,
    sequence: u64,
    changes: u64,
    state: FeedState,
}

/// What was encoded for an earlier reader that was told a state anew, one frame a reason.
#[derive(Default)]
pub(super) struct Stated(Vec<(SnapshotReason, Bytes)>);

impl Stated {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The tail of a frame, see [`Frame`].
    pub(super) fn get(
        &mut self,
        reason: SnapshotReason,
        encode: impl FnOnce() -> Vec<u8>,
    ) -> Bytes {
        if let Some((_, tail)) = self.0.iter().find(|(why, _)| *why == reason) {
            return tail.clone();
        }
        // It may be sent at several places of a ring.
        let Frame { tail, .. } = Frame::new(0, 0, encode());
        self.0.push((reason, tail.clone()));
        tail
    }
}

impl Own {
    /// The offer as a frame says it: after the change before it and so many changes, or stated for
    /// a reason.
    fn frame(
        &self,
        state: FeedState,
        previous: Result<(u64, u64), SnapshotReason>,
        publish_time: Micros,
    ) -> LiveFrame {
        LiveFrame::Offer(Offer {
            definition: self.definition.clone(),
            epoch: self.epochs.epoch(),
            sequence: self.bbo.sequence,
            previous: previous.ok().map(|(sequence, _)| sequence),
            merged_events: previous.ok().map_or(0, |(_, changes)| changes),
            reason: previous.err(),
            bid: self.bbo.bid,
            ask: self.bbo.ask,
            event_time: self.bbo.event_time,
            publish_time,
            slowed_to: None,
            state,
        })
    }

    fn followed(&self, state: FeedState) -> Followed {
        Followed {
            quiet_beats: 0,
            stated: Stated::default(),
            epoch: self.epochs.epoch(),
            sequence: self.bbo.sequence,
            changes: self.changes,
            state,
        }
    }
}

impl Offers {
    pub(super) fn new() -> Self {
        Self {
            state: FeedState::Live,
            sequence: 0,
            markets: HashMap::new(),
            streams: BTreeMap::new(),
        }
    }

    /// Defines a market, numbered so, or redefines it.
    pub(super) fn define(&mut self, definition: &Arc<MarketDefinition>, epochs: &EpochHistory) {
        let own = self.markets.entry(definition.market.clone()).or_insert_with(|| Own {
            definition: definition.clone(),
            epochs: epochs.clone(),
            bbo: BestBidOffer::default(),
            changes: 0,
            raw: BTreeSet::new(),
        });
        own.definition = definition.clone();
        for stream in self.streams.values_mut() {
            if let Some(followed) = stream.markets.get_mut(&definition.market) {
                followed.stated.clear();
            }
        }
    }

    /// A market's offer, to be followed elsewhere.
    pub(super) fn copy(&self, market: &str) -> Option<Own> {
        let own = self.markets.get(market)?.clone();
        Some(Own { raw: BTreeSet::new(), ..own })
    }

    /// Takes over a market's offer as it is elsewhere; those that follow it stay.
    pub(super) fn adopt(&mut self, own: Own) {
        let id = own.definition.market.clone();
        self.sequence = self.sequence.max(own.bbo.sequence);
        let before = self.markets.remove(&id);
        let raw = before.map(|before| before.raw).unwrap_or_default();
        self.markets.insert(id, Own { raw, ..own });
    }

    pub(super) fn forget(&mut self, market: &str) {
        self.markets.remove(market);
    }

    /// Takes the top of a market's book after an event; whether it changed. Those that push each
    /// change are touched.
    pub(super) fn update(
        &mut self,
        market: &MarketId,
        best: (Option<Level>, Option<Level>),
        sequence: u64,
        event_time: Option<Micros>,
        touched: &mut Touched,
    ) -> bool {
        let Some(own) = self.markets.get_mut(market) else { return false };
        if sequence < own.bbo.sequence || own.bbo.update(best, sequence, event_time).is_none() {
            return false;
        }
        own.changes += 1;
        self.sequence = self.sequence.max(sequence);
        touched.extend(&own.raw);
        true
    }

    /// A market that was read from the log stands at least where its epoch began.
    pub(super) fn stand(&mut self, market: &str) {
        let Some(own) = self.markets.get_mut(market) else { return };
        own.bbo.sequence = own.bbo.sequence.max(own.epochs.since());
        self.sequence = self.sequence.max(own.bbo.sequence);
    }

    /// Takes what is left of a market after a rollback: every follower is stated it.
    pub(super) fn roll_back(
        &mut self,
        market: &MarketId,
        change: EpochChange,
        offer: BestBidOffer,
        touched: &mut Touched,
    ) {
        let Some(own) = self.markets.get_mut(market) else { return };
        if own.epochs.since() >= change.at {
            return;
        }
        own.epochs.begin(change);
        own.bbo = offer;
        touched.extend(&own.raw);
        self.stand(market);
    }

    /// What is at the top of a market's book, and since when.
    pub(super) fn get(&self, market: &str) -> Option<BestBidOffer> {
        self.markets.get(market).map(|own| own.bbo)
    }

    pub(super) fn set_state(&mut self, state: FeedState, touched: &mut Touched) {
        self.state = state;
        touched.extend(self.streams.keys());
    }

    /// Pushes what changed since the stream's last frames, of each market at most one frame.
    pub(super) fn advance(&mut self, stream: u64, now: Micros) {
        let Some(own) = self.streams.get_mut(&stream) else { return };
        let mut due: Vec<(u64, &MarketId)> = Vec::new();
        for (market, followed) in &own.markets {
            let Some(known) = self.markets.get(market) else { continue };
            if followed.changes != known.changes
                || followed.state != self.state
                || followed.epoch != known.epochs.epoch()
            {
                due.push((known.bbo.sequence, market));
            }
        }
        if due.is_empty() {
            return;
        }
        due.sort_unstable();
        let due: Vec<_> = due.into_iter().map(|(_, market)| market.clone()).collect();
        for market in due {
            own.push(&market, &self.markets[&market], self.state, now);
        }
    }

    /// Called each second: what was quiet for long is repeated.
    pub(super) fn beat(&mut self, stream: u64, now: Micros) {
        let Some(own) = self.streams.get_mut(&stream) else { return };
        let quiet: Vec<_> = own
            .markets
            .iter_mut()
            .filter_map(|(market, followed)| {
                followed.quiet_beats += 1;
                (followed.quiet_beats >= QUIET_BEATS).then(|| market.clone())
            })
            .collect();
        for market in quiet {
            if let Some(known) = self.markets.get(&market) {
                own.push(&market, known, self.state, now);
            }
        }
    }

    pub(super) fn attach(
        &mut self,
        stream: &Arc<ResponseStream>,
        markets: &[MarketId],
        encode: Encode,
    ) {
        let id = stream.id();
        let mut followed = BTreeMap::new();
        for market in markets {
            let Some(own) = self.markets.get_mut(market) else { continue };
            own.raw.insert(id);
            followed.insert(market.clone(), own.followed(self.state));
        }
        let stream = stream.clone();
        let own = OfferStream { stream, encode, last: self.sequence, markets: followed };
        self.streams.insert(id, own);
    }

    /// Whether a stream pushes each change.
    pub(super) fn set_raw(&mut self, stream: u64, raw: bool) {
        let Some(own) = self.streams.get(&stream) else { return };
        for market in own.markets.keys() {
            if let Some(known) = self.markets.get_mut(market) {
                match raw {
                    true => known.raw.insert(stream),
                    false => known.raw.remove(&stream),
                };
            }
        }
    }

    pub(super) fn detach(&mut self, stream: &ResponseStream) {
        self.set_raw(stream.id(), false);
        self.streams.remove(&stream.id());
    }

    /// States the current offer of each market, for who joins.
    pub(super) fn join(&mut self, stream: &ResponseStream, now: Micros) -> Resume {
        self.state_all(stream, now, |_| SnapshotReason::Initial)
    }

    /// The same for who lagged: an offer is the whole state, so nothing has to be merged.
    pub(super) fn catch_up(&mut self, stream: &ResponseStream, seen: u64, now: Micros) -> Resume {
        self.state_all(stream, now, |own| SnapshotReason::of_lag(seen, &own.epochs))
    }

    fn state_all(
        &mut self,
        stream: &ResponseStream,
        now: Micros,
        reason: impl Fn(&Own) -> SnapshotReason,
    ) -> Resume {
        // What follows in the ring follows what is stated.
        self.advance(stream.id(), now);
        let Some(own) = self.streams.get_mut(&stream.id()) else { return Resume::TooSlow };
        let (sequence, encode, state) = (own.last, &mut own.encode, self.state);
        let mut frames = Vec::with_capacity(own.markets.len());
        for (market, followed) in &mut own.markets {
            let Some(known) = self.markets.get(market) else { continue };
            let reason = reason(known);
            let tail = followed.stated.get(reason, || encode(known.frame(state, Err(reason), now)));
            // Encoded at an earlier place of the ring perhaps, when another market changed since.
            frames.push(Frame { previous: sequence, sequence, tail });
        }
        Resume::Frames { frames, next: own.stream.next_index() }
    }
}

impl OfferStream {
    /// Pushes a market's offer: after what was pushed of it, or stated where an epoch began.
    fn push(&mut self, market: &MarketId, known: &Own, state: FeedState, now: Micros) {
        let Some(followed) = self.markets.get_mut(market) else { return };
        let previous = match followed.epoch == known.epochs.epoch() {
            true => Ok((followed.sequence, known.changes - followed.changes)),
            false => Err(SnapshotReason::of_epoch(&known.epochs)),
        };
        *followed = known.followed(state);
        let bytes = (self.encode)(known.frame(state, previous, now));
        // Over all markets of the stream, so that its numbers rise.
        let sequence = self.last.max(known.bbo.sequence);
        self.stream.push(Frame::new(self.last, sequence, bytes));
        self.last = sequence;
    }
}
