//! The best bid and offer of all markets, and the streams that follow some of them.

use super::feed_states::FeedStates;
use super::frame::{FeedState, LiveFrame, Offer};
use super::market_streams::{FrameLink, MarketEntry, MarketStreams, MarketValue};
use super::pace::Touched;
use crate::market::bbo::BestBidOffer;
use crate::market::definition::MarketId;
use crate::market::epochs::EpochChange;
use crate::market::levels::Level;
use crate::market::time::Micros;

pub(super) type Offers = MarketStreams<BestBidOffer>;

impl MarketValue for BestBidOffer {
    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn set_sequence(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    fn feed_state(states: &FeedStates, market: &str) -> FeedState {
        states.of_book(market)
    }

    /// A heartbeat repeats the offer.
    fn frame(entry: &MarketEntry<Self>, link: FrameLink) -> LiveFrame {
        LiveFrame::Offer(Offer {
            definition: entry.definition.clone(),
            epoch: entry.epochs.epoch(),
            sequence: entry.value.sequence,
            previous: link.previous,
            merged_events: link.merged_events,
            reason: link.reason,
            bid: entry.value.bid,
            ask: entry.value.ask,
            event_time: entry.value.event_time,
            publish_time: link.now,
            slowed_to: None,
            state: link.state,
        })
    }
}

impl Offers {
    /// Takes the top of a market's book after an event; true if it changed.
    pub(super) fn update(
        &mut self,
        market: &MarketId,
        best: (Option<Level>, Option<Level>),
        sequence: u64,
        event_time: Option<Micros>,
        touched: &mut Touched,
    ) -> bool {
        self.change(market, touched, |offer| {
            sequence >= offer.sequence && offer.update(best, sequence, event_time).is_some()
        })
    }

    /// Takes what is left of a market after a rollback.
    pub(super) fn roll_back(
        &mut self,
        market: &MarketId,
        change: EpochChange,
        left: BestBidOffer,
        touched: &mut Touched,
    ) {
        self.begin_epoch(market, change, touched, |offer| *offer = left);
    }

    /// The top of a market's book, and the event that last changed it.
    pub(super) fn get(&self, market: &str) -> Option<BestBidOffer> {
        self.entry(market).map(|entry| entry.value)
    }
}
