//! What the frames of several subscriptions have in common.
//!
//! Each frame type has resolvers of its own for the fields that frames share. `#[graphql(flatten)]`
//! does not fit: the interface of books calls each field as a method of its variants (E0599), and
//! only `slowedTo` and `publishTime` have the same place and description in every type.

use async_graphql::Enum;

use crate::live::{self, SnapshotReason as Reason};

/// How often the hub sends changes of an order book.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "live::Speed")]
pub enum BookSpeed {
    /// Every event that changes the window.
    Raw,
    /// At most every 100 ms, merged.
    #[graphql(name = "MS_100")]
    Ms100,
    /// At most every 250 ms, merged.
    #[graphql(name = "MS_250")]
    Ms250,
    /// At most every second, merged.
    #[graphql(name = "S_1")]
    S1,
}

/// Why a snapshot was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "Reason")]
pub enum SnapshotReason {
    /// The subscription begins.
    Initial,
    /// The client read too slowly for deltas.
    Lagged,
    /// The epoch is new: the log was replaced, or a source lost events.
    EpochChange,
    /// A reorganisation of the chain removed blocks.
    Reorg,
    /// The hub no longer has the changes after the cursor, or the cursor is of another depth.
    ResumeTooOld,
}
