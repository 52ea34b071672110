//! The best bid and offer of all markets, and the streams that follow some of them. One lock for
//! all of it: a stream spans markets, and its ring wants rising sequences.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::{HashMap, HashMapExt as _};
use spreadly_subscriptions::{Frame, ResponseStream, Start};

use super::book_stream::QUIET_BEATS;
use super::frame::{Encode, FeedState, LiveFrame, Offer, SnapshotReason};
use crate::market::bbo::BestBidOffer;
use crate::market::book::Level;
use crate::market::event::{MarketDefinition, MarketId, Micros};
use crate::market::numbering::{Numbering, Undoing};

pub(super) struct Offers {
    state: FeedState,
    /// Of the last event of the log that changed any offer.
    sequence: u64,
    markets: HashMap<MarketId, Own>,
    streams: BTreeMap<u64, OfferStream>,
}

struct Own {
    definition: Arc<MarketDefinition>,
    numbering: Numbering,
    bbo: BestBidOffer,
}

struct OfferStream {
    stream: Arc<ResponseStream>,
    encode: Encode,
    /// Of the last frame in the ring: a sequence of the log, over all markets.
    last: u64,
    markets: BTreeMap<MarketId, Followed>,
}

#[derive(Default)]
struct Followed {
    quiet_beats: u8,
    /// The current offer, encoded for earlier joiners and readers.
    stated: Stated,
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
    /// The offer as a frame tells it, behind the change before it or anew for a reason.
    fn frame(
        &self,
        state: FeedState,
        previous: Result<u64, SnapshotReason>,
        publish_time: Micros,
    ) -> LiveFrame {
        LiveFrame::Offer(Offer {
            definition: self.definition.clone(),
            epoch: self.numbering.epoch(),
            sequence: self.bbo.sequence,
            previous: previous.ok(),
            reason: previous.err(),
            bid: self.bbo.bid,
            ask: self.bbo.ask,
            event_time: self.bbo.event_time,
            publish_time,
            state,
        })
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
    pub(super) fn define(&mut self, definition: &Arc<MarketDefinition>, numbering: &Numbering) {
        let own = self.markets.entry(definition.market.clone()).or_insert_with(|| Own {
            definition: definition.clone(),
            numbering: numbering.clone(),
            bbo: BestBidOffer::default(),
        });
        own.definition = definition.clone();
        for stream in self.streams.values_mut() {
            if let Some(followed) = stream.markets.get_mut(&definition.market) {
                followed.stated.clear();
            }
        }
    }

    /// Takes the top of a market's book after an event, and pushes it where it changed; then when
    /// that was.
    pub(super) fn update(
        &mut self,
        market: &MarketId,
        best: (Option<Level>, Option<Level>),
        sequence: u64,
        event_time: Option<Micros>,
        clock: impl FnOnce() -> Micros,
    ) -> Option<Micros> {
        let own = self.markets.get_mut(market)?;
        let previous = own.bbo.update(best, sequence, event_time)?;
        let now = clock();
        self.push(market, Ok(previous), now);
        Some(now)
    }

    /// A market that was read from the log stands at least where its epoch began.
    pub(super) fn stand(&mut self, market: &str) {
        let Some(own) = self.markets.get_mut(market) else { return };
        own.bbo.sequence = own.bbo.sequence.max(own.numbering.since());
        self.sequence = self.sequence.max(own.bbo.sequence);
    }

    /// Takes what is left of a market once blocks were undone, and tells everyone anew.
    pub(super) fn reorganise(
        &mut self,
        market: &MarketId,
        undoing: Undoing,
        offer: BestBidOffer,
        now: Micros,
    ) {
        let Some(own) = self.markets.get_mut(market) else { return };
        own.numbering.undo(undoing);
        own.bbo = offer;
        let reason = SnapshotReason::of_epoch(&own.numbering);
        self.stand(market);
        self.push(market, Err(reason), now);
    }

    /// Tells a market's offer to whoever follows it.
    fn push(&mut self, market: &MarketId, previous: Result<u64, SnapshotReason>, now: Micros) {
        let Some(own) = self.markets.get(market) else { return };
        let sequence = own.bbo.sequence;
        self.sequence = self.sequence.max(sequence);
        let frame = own.frame(self.state, previous, now);
        for stream in self.streams.values_mut() {
            let Some(followed) = stream.markets.get_mut(market) else { continue };
            *followed = Followed::default();
            let bytes = (stream.encode)(frame.clone());
            stream.stream.push(Frame::new(stream.last, sequence, bytes));
            stream.last = sequence;
        }
    }

    /// What stands at the top of a market's book, and since when.
    pub(super) fn get(&self, market: &str) -> Option<BestBidOffer> {
        self.markets.get(market).map(|own| own.bbo)
    }

    pub(super) fn set_state(&mut self, state: FeedState, now: Micros) {
        self.state = state;
        self.repeat(now, |_| true);
    }

    /// Called each second: what was quiet for long is said again.
    pub(super) fn beat(&mut self, now: Micros) {
        self.repeat(now, |followed| {
            followed.quiet_beats += 1;
            followed.quiet_beats >= QUIET_BEATS
        });
    }

    fn repeat(&mut self, now: Micros, due: impl Fn(&mut Followed) -> bool) {
        for stream in self.streams.values_mut() {
            for (market, followed) in &mut stream.markets {
                let Some(own) = self.markets.get(market) else { continue };
                if !due(followed) {
                    continue;
                }
                *followed = Followed::default();
                let bytes = (stream.encode)(own.frame(self.state, Ok(own.bbo.sequence), now));
                stream.stream.push(Frame::new(stream.last, stream.last, bytes));
            }
        }
    }

    pub(super) fn attach(
        &mut self,
        stream: &Arc<ResponseStream>,
        markets: &[MarketId],
        encode: Encode,
    ) {
        let markets = markets.iter().map(|id| (id.clone(), Followed::default())).collect();
        let last = self.sequence;
        let own = OfferStream { stream: stream.clone(), encode, last, markets };
        self.streams.insert(stream.id(), own);
    }

    pub(super) fn detach(&mut self, stream: &ResponseStream) {
        self.streams.remove(&stream.id());
    }

    /// States the current offer of each market, for who joins.
    pub(super) fn join(&mut self, stream: &ResponseStream, now: Micros) -> Start {
        self.state_all(stream, now, |_| SnapshotReason::Initial)
    }

    /// The same for who lagged: an offer is the whole state, so nothing has to be merged.
    pub(super) fn catch_up(&mut self, stream: &ResponseStream, seen: u64, now: Micros) -> Start {
        self.state_all(stream, now, |own| SnapshotReason::of_lag(seen, &own.numbering))
    }

    fn state_all(
        &mut self,
        stream: &ResponseStream,
        now: Micros,
        reason: impl Fn(&Own) -> SnapshotReason,
    ) -> Start {
        let Some(own) = self.streams.get_mut(&stream.id()) else { return Start::TooSlow };
        let (sequence, encode, state) = (own.last, &mut own.encode, self.state);
        let mut frames = Vec::with_capacity(own.markets.len());
        for (market, followed) in &mut own.markets {
            let Some(known) = self.markets.get(market) else { continue };
            let reason = reason(known);
            let tail = followed.stated.get(reason, || encode(known.frame(state, Err(reason), now)));
            // Encoded at an earlier place of the ring perhaps, when another market changed since.
            frames.push(Frame { previous: sequence, sequence, tail });
        }
        Start::Frames { frames, next: own.stream.next_index() }
    }
}
