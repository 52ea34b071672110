//! The schema's small types: enums, markets, feeds, the hub. Books and offers are in `frames`.

use std::sync::Arc;

use async_graphql::{Enum, ID, Object, SimpleObject};

use super::scalars::{DateTime, Decimal, UInt64};
use crate::live::{self, FeedView, SnapshotReason as Reason};
use crate::market::event::{self, MarketDefinition, MarketStatus as Status};

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

/// Whether the hub's data is up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "live::FeedState")]
pub enum FeedState {
    /// Up to date.
    Live,
    /// The source is disconnected or late.
    Stale,
    /// The hub can't recover without an operator.
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
    /// Sells the base.
    Sell,
}

/// Whether a market trades.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "Status")]
pub enum MarketStatus {
    /// It trades.
    Active,
    /// Trading is paused.
    Halted,
    /// It never trades again.
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

    /// The asset that is traded; sizes are in it.
    async fn base(&self) -> &str {
        &self.0.base
    }

    /// The asset that pays; prices are in it.
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

/// The state of one feed.
#[derive(SimpleObject)]
pub struct FeedStatus {
    /// As the configuration names it.
    name: String,
    /// What it reads: FILES, POSTGRES, KAFKA or SIMULATOR. LOCAL is the mutations.
    kind: String,
    /// Whether it is up to date.
    state: FeedState,
    /// Why it is not live, or what a live feed skips or only logs.
    reason: Option<String>,
    /// Events taken since the hub started.
    events_total: UInt64,
    /// Events refused since the hub started.
    refused_total: UInt64,
    /// The newest refused event.
    last_refusal: Option<Refusal>,
    /// When the newest event was written to the log, by the hub's clock.
    last_event_time: Option<DateTime>,
    /// What its source has and the log does not have yet: bytes of files, rows of Postgres, records
    /// of Kafka. 0 when it has caught up.
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
    /// The epoch of its sequences.
    pub epoch: ID,
    /// By the hub's clock.
    pub started_at: DateTime,
    /// Seconds since it started.
    pub uptime: i32,
    /// Connections open now.
    pub sockets: UInt64,
    /// Operations running now.
    pub operations: UInt64,
    /// Whether its data is up to date.
    pub state: FeedState,
}
