//! The schema's frames of best bids and offers: a thin view of what the live topics publish.

use async_graphql::{ID, Object};

use super::book::PriceLevel;
use super::feed::FeedState;
use super::head::{BookSpeed, SnapshotReason};
use super::market::Market;
use super::scalars::{Cursor, DateTime, UInt64};
use crate::live;

/// The best bid and the best offer of one market.
pub struct BestBidOfferFrame(pub live::Offer);

/// The best bid and the best offer of one market.
#[Object(serial)]
impl BestBidOfferFrame {
    /// The market's id, `BASE-QUOTE`.
    async fn market(&self) -> ID {
        ID(self.0.definition.market.to_string())
    }

    /// The epoch of `sequence`. Sequences of different epochs can't be compared.
    async fn epoch(&self) -> ID {
        ID(self.0.epoch.to_string())
    }

    /// Sequence of the event that last changed the price or size of either.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.0.sequence)
    }

    /// Sequence of the previous change of this market. It equals `sequence` where a quiet offer is
    /// repeated, and is null where this frame is a new start.
    async fn prev_sequence(&self) -> Option<UInt64> {
        self.0.previous.map(UInt64)
    }

    /// The position of this frame.
    async fn cursor(&self) -> Cursor {
        Cursor(self.0.cursor())
    }

    /// Why this frame is a new start; null where it follows the previous frame.
    async fn reason(&self) -> Option<SnapshotReason> {
        self.0.reason.map(SnapshotReason::from)
    }

    /// Changes since `prevSequence`; 0 where the offer is repeated or is a new start.
    async fn merged_events(&self) -> i32 {
        i32::try_from(self.0.merged_events).unwrap_or(i32::MAX)
    }

    /// Null while the book has no bids.
    async fn bid(&self) -> Option<PriceLevel> {
        self.0.bid.map(|level| PriceLevel::new(&self.0.definition, level))
    }

    /// Null while the book has no offers.
    async fn ask(&self) -> Option<PriceLevel> {
        self.0.ask.map(|level| PriceLevel::new(&self.0.definition, level))
    }

    /// Time of the event that last changed the price or size of either, as its source gave it.
    async fn event_time(&self) -> Option<DateTime> {
        self.0.event_time.map(DateTime)
    }

    /// The pace that an overloaded hub slowed this stream to; null where it is as the client asked.
    async fn slowed_to(&self) -> Option<BookSpeed> {
        self.0.slowed_to.map(BookSpeed::from)
    }

    /// The hub's clock.
    async fn publish_time(&self) -> DateTime {
        DateTime(self.0.publish_time)
    }

    /// The market as it is now. A frame comes at once when it changes, such as when trading halts.
    async fn definition(&self) -> Market {
        Market(self.0.definition.clone())
    }

    /// Whether the offer is up to date.
    async fn state(&self) -> FeedState {
        self.0.state.into()
    }

    /// Milliseconds from `eventTime` to `publishTime`; 0 where `eventTime` is null.
    async fn last_event_age_ms(&self) -> i32 {
        live::age_ms(self.0.event_time, self.0.publish_time)
    }
}
