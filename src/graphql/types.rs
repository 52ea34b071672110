//! The schema's small types: enums, markets, feeds, the hub. Books and offers are in `frames`.

use std::sync::Arc;

use async_graphql::{Enum, ID, Object, SimpleObject};

use super::scalars::{DateTime, Decimal, UInt64};
use crate::live::{self, FeedView, SnapshotReason as Reason};
use crate::market::event::{self, MarketDefinition, MarketStatus as Status};

/// How often an order book stream pushes.
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
    /// The subscription began.
    Initial,
    /// The client read too slowly for deltas.
    Lagged,
    /// The numbering began anew: the log is another one, or events of a source were lost before it.
    EpochChange,
    /// Blocks of the chain were undone.
    Reorg,
    /// What follows the cursor is no longer at hand, or it was of another depth.
    ResumeTooOld,
}

/// Whether what the hub tells is up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "live::FeedState")]
pub enum FeedState {
    /// Up to date.
    Live,
    /// The source is cut off or late.
    Stale,
    /// The hub can't go on by itself.
    Halted,
    /// The hub is about to close its connections.
    ShuttingDown,
}

/// Which side of a market.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "event::Side")]
pub enum Side {
    /// Of who pays the quote.
    Buy,
    /// Of who gives the base.
    Sell,
}

/// Whether a market trades.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "Status")]
pub enum MarketStatus {
    /// It trades.
    Active,
    /// Paused.
    Halted,
    /// For good.
    Closed,
}

/// A pair that trades.
pub struct Market(pub Arc<MarketDefinition>);

/// A pair that trades.
#[Object]
impl Market {
    /// `BASE-QUOTE`.
    async fn id(&self) -> ID {
        ID(self.0.market.to_string())
    }

    /// What is bought and sold; sizes are in it.
    async fn base(&self) -> &str {
        &self.0.base
    }

    /// What it is paid with; prices are in it.
    async fn quote(&self) -> &str {
        &self.0.quote
    }

    /// Decimals of every price.
    async fn price_decimals(&self) -> i32 {
        i32::from(self.0.price_decimals)
    }

    /// Decimals of every size.
    async fn size_decimals(&self) -> i32 {
        i32::from(self.0.size_decimals)
    }

    /// Smallest step of a price, in the quote.
    async fn tick_size(&self) -> Decimal {
        Decimal(self.0.tick_size.clone())
    }

    /// Smallest step of a size, in the base.
    async fn lot_size(&self) -> Decimal {
        Decimal(self.0.lot_size.clone())
    }

    /// Smallest size of an order, in the base.
    async fn min_size(&self) -> Decimal {
        Decimal(self.0.min_size.clone())
    }

    /// Whether it trades.
    async fn status(&self) -> MarketStatus {
        self.0.status.into()
    }
}

/// An event that a feed brought and the hub did not take.
#[derive(SimpleObject)]
pub struct Refusal {
    /// A file, a topic, a table.
    source: String,
    /// Where in the source: a line, an offset, a row.
    place: String,
    /// What was wrong with it.
    reason: String,
}

/// How one feed does.
#[derive(SimpleObject)]
pub struct FeedStatus {
    /// As the configuration names it.
    name: String,
    /// What it reads: FILES, or SIMULATOR in `spreadly dev`.
    kind: String,
    /// Whether it is up to date.
    state: FeedState,
    /// Why it is not live, or what a live feed passes over or only logs.
    reason: Option<String>,
    /// Events taken since the hub started.
    events_total: UInt64,
    /// Events refused since the hub started.
    refused_total: UInt64,
    /// The newest of the refused ones.
    last_refusal: Option<Refusal>,
    /// When the newest event went into the log, by the hub's clock.
    last_event_time: Option<DateTime>,
    /// Bytes at the source that are not in the log yet; 0 when it has caught up.
    lag: Option<UInt64>,
}

impl From<FeedView> for FeedStatus {
    fn from(view: FeedView) -> Self {
        let refusal = |one: live::Refusal| Refusal {
            source: one.source,
            place: one.place,
            reason: one.reason,
        };
        Self {
            name: view.name,
            kind: view.kind,
            state: view.state.into(),
            reason: view.reason,
            events_total: UInt64(view.events_total),
            refused_total: UInt64(view.refused_total),
            last_refusal: view.last_refusal.map(refusal),
            last_event_time: view.last_event_time.map(DateTime),
            lag: view.lag.map(UInt64),
        }
    }
}

/// This hub.
#[derive(SimpleObject)]
pub struct Hub {
    /// Of the program.
    pub version: String,
    /// Which numbering its sequences belong to.
    pub epoch: ID,
    /// By the hub's clock.
    pub started_at: DateTime,
    /// Seconds since it started.
    pub uptime: i32,
    /// Connections open now.
    pub sockets: UInt64,
    /// Operations running now.
    pub operations: UInt64,
    /// Whether what it tells is up to date.
    pub state: FeedState,
}
