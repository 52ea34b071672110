//! The best bid and offer of all markets, and the streams that follow some of them. One lock for
//! all of it: a stream spans markets, and its ring wants rising sequences.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use spreadly_subscriptions::{Epoch, Frame, ResponseStream, Start};

use super::book_stream::QUIET_BEATS;
use super::frame::{Encode, FeedState, LiveFrame, Offer};
use crate::market::bbo::BestBidOffer;
use crate::market::book::Level;
use crate::market::event::{MarketDefinition, MarketId, Micros};

pub(super) struct Offers {
    epoch: Epoch,
    state: FeedState,
    /// Of the last event of the log that changed any offer.
    sequence: u64,
    markets: HashMap<MarketId, (Arc<MarketDefinition>, BestBidOffer)>,
    streams: BTreeMap<u64, OfferStream>,
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
    /// The current offer, encoded for an earlier joiner.
    stated: Option<Frame>,
}

impl Offers {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            state: FeedState::Live,
            sequence: 0,
            markets: HashMap::new(),
            streams: BTreeMap::new(),
        }
    }

    pub(super) fn define(&mut self, definition: &Arc<MarketDefinition>) {
        let id = definition.market.clone();
        let (known, _) =
            self.markets.entry(id).or_insert_with(|| (definition.clone(), Default::default()));
        *known = definition.clone();
        for stream in self.streams.values_mut() {
            if let Some(followed) = stream.markets.get_mut(&definition.market) {
                followed.stated = None;
            }
        }
    }

    /// Takes the top of a market's book after an event, and pushes it where it changed; whether
    /// it did.
    pub(super) fn update(
        &mut self,
        market: &MarketId,
        best: (Option<Level>, Option<Level>),
        sequence: u64,
        event_time: Option<Micros>,
        now: Micros,
    ) -> bool {
        let Some((definition, bbo)) = self.markets.get_mut(market) else { return false };
        let Some(previous) = bbo.update(best, sequence, event_time) else { return false };
        self.sequence = self.sequence.max(sequence);
        let offer = offer(self.epoch, self.state, definition, bbo, Some(previous), now);
        for stream in self.streams.values_mut() {
            let Some(followed) = stream.markets.get_mut(market) else { continue };
            *followed = Followed::default();
            let bytes = (stream.encode)(LiveFrame::Offer(offer.clone()));
            stream.stream.push(Frame::new(stream.last, sequence, bytes));
            stream.last = sequence;
        }
        true
    }

    /// The event that put a market's offer there, and when it happened at its source.
    pub(super) fn since(&self, market: &str) -> Option<(u64, Option<Micros>)> {
        self.markets.get(market).map(|(_, bbo)| (bbo.sequence, bbo.event_time))
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
                let Some((definition, bbo)) = self.markets.get(market) else { continue };
                if !due(followed) {
                    continue;
                }
                *followed = Followed::default();
                let previous = Some(bbo.sequence);
                let offer = offer(self.epoch, self.state, definition, bbo, previous, now);
                let bytes = (stream.encode)(LiveFrame::Offer(offer));
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

    /// States the current offer of each market. The same for whoever joins and whoever lagged:
    /// an offer is the whole state, so nothing has to be merged.
    pub(super) fn join(&mut self, stream: &ResponseStream, now: Micros) -> Start {
        let Some(own) = self.streams.get_mut(&stream.id()) else { return Start::TooSlow };
        let mut frames = Vec::with_capacity(own.markets.len());
        for (market, followed) in &mut own.markets {
            let Some((definition, bbo)) = self.markets.get(market) else { continue };
            let sequence = own.last;
            let encode = &mut own.encode;
            let stated = followed.stated.get_or_insert_with(|| {
                let offer = offer(self.epoch, self.state, definition, bbo, None, now);
                Frame::new(sequence, sequence, encode(LiveFrame::Offer(offer)))
            });
            // Encoded at an earlier place of the ring perhaps, when another market changed since.
            frames.push(Frame { previous: sequence, sequence, tail: stated.tail.clone() });
        }
        Start::Frames { frames, next: own.stream.next_index() }
    }
}

fn offer(
    epoch: Epoch,
    state: FeedState,
    definition: &Arc<MarketDefinition>,
    bbo: &BestBidOffer,
    previous: Option<u64>,
    publish_time: Micros,
) -> Offer {
    Offer {
        definition: definition.clone(),
        epoch,
        sequence: bbo.sequence,
        previous,
        bid: bbo.bid,
        ask: bbo.ask,
        event_time: bbo.event_time,
        publish_time,
        state,
    }
}
