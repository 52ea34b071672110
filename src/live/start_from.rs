//! Where a reader of several markets starts in each of them.

use spreadly_subscriptions::Position;

use super::frame::SnapshotReason;
use super::market_streams::{MarketEntry, MarketValue};
use crate::market::definition::MarketId;
use crate::market::epochs::ResumeFrom;

/// Where a reader starts.
pub(super) enum StartFrom {
    /// It has nothing.
    Nothing,
    /// After a cursor, which is of one market.
    Cursor(MarketId, Position),
    /// It was too slow, and saw everything up to a sequence.
    Seen(u64),
}

impl StartFrom {
    /// The sequence that it continues after in a market, or why that market's value is stated.
    pub(super) fn after<T: MarketValue>(
        &self,
        market: &MarketEntry<T>,
    ) -> Result<u64, SnapshotReason> {
        match self {
            Self::Cursor(resumed, at) if *resumed == market.definition.market => {
                match market.epochs.resume(at, market.value.sequence()) {
                    ResumeFrom::After(seen) => Ok(seen),
                    ResumeFrom::RolledBack { .. } => Err(SnapshotReason::of_epoch(&market.epochs)),
                    ResumeFrom::Start => Err(SnapshotReason::EpochChange),
                }
            }
            Self::Nothing | Self::Cursor(..) => Err(SnapshotReason::Initial),
            Self::Seen(seen) => Err(SnapshotReason::of_lag(*seen, &market.epochs)),
        }
    }
}
