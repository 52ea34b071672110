//! The queries: one look at the state now.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_graphql::{Context, Error, ID, Object, Result};

use super::connections::{self, Asked, EventConnection, TradeConnection};
use super::context::admit;
use super::errors::{ErrorCode, checked_depth, checked_topic, fault, internal, no_market, state};
use super::execution::offload;
use super::limits::QueryLimits;
use super::types::book::BookSnapshot;
use super::types::candle::{self, Candle, Interval};
use super::types::feed::FeedStatus;
use super::types::hub::Hub;
use super::types::market::Market;
use super::types::order::{self, Order, OrderConnection, OrderFilter};
use super::types::scalars::{Cursor, DateTime, UInt64};
use super::types::ticker::Ticker;
use crate::budgets::{ClientAccount, Work};
use crate::live::Live;
use crate::market::time::Micros;
use crate::market::topic::Topic;
use crate::pool::timed;
use crate::store::{LogReader, ReadError, StoreError};

/// How long a mutation waits for its turn at the log.
const PATIENCE: Duration = Duration::from_secs(5);

/// What `Query.hub` says beyond the live state. It comes from the owner of the sockets.
pub struct HubView {
    /// When the hub started, by its clock.
    pub started: Micros,
    /// Connections open now.
    pub sockets: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Operations running now.
    pub operations: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// Operations that read data once.
pub struct Query;

/// Operations that read data once.
#[Object]
impl Query {
    /// All markets, sorted by id.
    async fn markets(&self, ctx: &Context<'_>) -> Result<Vec<Market>> {
        let definitions = live(ctx)?.definitions();
        offload::before_items(ctx, definitions.len()).await?;
        Ok(definitions.into_iter().map(Market).collect())
    }

    /// One market; null if no market has this id.
    async fn market(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Market>> {
        Ok(live(ctx)?.definition(&id).map(Market))
    }

    /// The best levels of a market's book now; null if there is no such market, or no book yet.
    async fn order_book(
        &self,
        ctx: &Context<'_>,
        market: ID,
        #[graphql(
            default_with = "Some(25)",
            desc = "Largest number of levels on each side, from 1 to the hub's limit (5,000)."
        )]
        depth: Option<i32>,
    ) -> Option<Result<BookSnapshot>> {
        // The sequencer needs the book's lock.
        offload::to_socket(ctx).await;
        // An error inside of an option leaves this field null; around it, it would take the whole
        // result along.
        let snapshot = || {
            let depth = checked_depth(depth, state::<QueryLimits>(ctx)?)?;
            Ok(live(ctx)?.snapshot(&market, depth))
        };
        let snapshot = snapshot().transpose()?;
        if let Ok(book) = &snapshot {
            let selected = |name| {
                let own = ctx.field();
                let sides = own.selection_set().filter(|one| one.name() == name);
                sides.map(|one| one.selection_set().count()).sum::<usize>()
            };
            let fields = selected("bids") * book.bids.len() + selected("asks") * book.asks.len();
            offload::before(ctx, Work::LevelField, fields).await;
        }
        Some(snapshot.map(BookSnapshot))
    }

    /// A market's candles, oldest first and without gaps: the newest `last` of the buckets that
    /// start at `from` or later and before `to`, up to the current one. There are none before a
    /// market's first trade.
    async fn candles(
        &self,
        ctx: &Context<'_>,
        market: ID,
        #[graphql(desc = "The length of a candle.")] interval: Interval,
        from: Option<DateTime>,
        to: Option<DateTime>,
        #[graphql(default_with = "Some(500)", desc = "Number of candles, from 1 to 5,000.")]
        last: Option<i32>,
    ) -> Result<Vec<Candle>> {
        candle::asked(ctx, &market, interval, (from, to), last).await
    }

    /// A market's ticker now; null if there is no such market.
    async fn ticker(&self, ctx: &Context<'_>, market: ID) -> Result<Option<Ticker>> {
        Ok(live(ctx)?.ticker(&market).map(Ticker))
    }

    /// A market's trades, oldest first. Pages are by position, so new trades cause no gaps and no
    /// duplicates. `from` and `to` compare the times of the trades, and leave out trades without
    /// one.
    async fn trades(
        &self,
        ctx: &Context<'_>,
        market: ID,
        #[graphql(
            default_with = "Some(100)",
            desc = "Largest number of entries in the page, from 1 to 1,000."
        )]
        first: Option<i32>,
        #[graphql(desc = "The page after this cursor.")] after: Option<Cursor>,
        #[graphql(desc = "At this time or later.")] from: Option<DateTime>,
        #[graphql(desc = "Before this time.")] to: Option<DateTime>,
    ) -> Result<TradeConnection> {
        let Some(definition) = live(ctx)?.definition(&market) else {
            return Err(no_market(&market));
        };
        let topic = Topic::Trades(&definition.market).name();
        connections::trades(ctx, Asked { topic, first, after, from, to }).await
    }

    /// The events of a generic topic, oldest first. Pages are by position, so new events cause no
    /// gaps and no duplicates. A page of long events has fewer than `first`.
    async fn events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "1 to 128 characters.")] topic: String,
        #[graphql(
            default_with = "Some(100)",
            desc = "Largest number of entries in the page, from 1 to 1,000."
        )]
        first: Option<i32>,
        #[graphql(desc = "The page after this cursor.")] after: Option<Cursor>,
    ) -> Result<EventConnection> {
        let topic = checked_topic(&topic)?;
        connections::events(ctx, Asked { topic, first, after, from: None, to: None }).await
    }

    /// Orders in the order of their placement, oldest first, including filled and canceled ones.
    async fn orders(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which orders; all if absent.")] filter: Option<OrderFilter>,
        #[graphql(
            default_with = "Some(100)",
            desc = "Largest number of entries in the page, from 1 to 1,000."
        )]
        first: Option<i32>,
        #[graphql(desc = "The page after this cursor.")] after: Option<Cursor>,
    ) -> Result<OrderConnection> {
        order::page(ctx, filter, first, after).await
    }

    /// One order, open or not; null if no order has this id.
    async fn order(&self, ctx: &Context<'_>, id: ID) -> Option<Result<Order>> {
        order::find(ctx, id.0).await.transpose()
    }

    /// The state of each feed.
    async fn feeds(&self, ctx: &Context<'_>) -> Result<Vec<FeedStatus>> {
        let feeds = live(ctx)?.feeds();
        offload::before_items(ctx, feeds.len()).await?;
        Ok(feeds.into_iter().map(FeedStatus::from).collect())
    }

    /// This hub.
    async fn hub(&self, ctx: &Context<'_>) -> Result<Hub> {
        let (live, view) = (live(ctx)?, state::<HubView>(ctx)?);
        let seconds = (live.now() - view.started).max(0) / 1_000_000;
        Ok(Hub {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: ID(live.epoch().to_string()),
            started_at: DateTime(view.started),
            uptime: i32::try_from(seconds).unwrap_or(i32::MAX),
            sockets: UInt64((view.sockets)()),
            operations: UInt64((view.operations)()),
            state: live.feed_states().others().into(),
        })
    }
}

/// Reads the log beside its writer. Waits a moment for a place among the readers of the client's
/// address, and for one among those of all clients. Charges its rows, and what it took beyond them.
///
/// # Errors
/// `RATE_LIMITED` where the address has spent what it may; `UNAVAILABLE` while as many read as may,
/// or while the log can't be read.
pub(super) async fn read<T: Send + 'static>(
    ctx: &Context<'_>,
    rows: impl FnOnce(&T) -> usize,
    read: impl FnOnce(&LogReader) -> std::result::Result<T, StoreError> + Send + 'static,
) -> Result<T> {
    let account = state::<Arc<ClientAccount>>(ctx)?.clone();
    admit(ctx, Work::LogRead, 1)?;
    let place = account.log_reader().await.map_err(|most| {
        let message = format!(
            "limit log_readers_per_address is {most}: your address has as many reads of the log \
             open, try again"
        );
        fault(ErrorCode::Unavailable, &message)
    })?;
    let read = move |log: &LogReader| {
        // Given back when the read is done: its client may be gone long before.
        let _place = place;
        let (found, took) = timed(|| read(log));
        Ok((found?, took))
    };
    let read = live(ctx)?.log().clone().for_query(read);
    let (found, took) = read.await.map_err(unreadable)?;
    let rows = rows(&found);
    account.spend(Work::Row, rows);
    let price = Work::LogRead.nanos() + Work::Row.nanos().saturating_mul(rows as u64);
    account.charge_beyond(took, &AtomicU64::new(price));
    Ok(found)
}

/// The same for mutations, which wait for their turn: one that has written must not fail because
/// others read.
pub(super) async fn read_in_turn<T: Send + 'static>(
    ctx: &Context<'_>,
    read: impl FnOnce(&LogReader) -> std::result::Result<T, StoreError> + Send + 'static,
) -> Result<T> {
    live(ctx)?.log().clone().soon(PATIENCE, read).await.map_err(unreadable)
}

fn unreadable(error: ReadError) -> Error {
    match error {
        ReadError::Busy(_) => fault(ErrorCode::Unavailable, &error.to_string()),
        ReadError::Store(error) if error.is_retryable() => {
            tracing::warn!(%error, "a query could not read the log");
            fault(ErrorCode::Unavailable, "the log can't be read now: try again")
        }
        ReadError::Store(_) | ReadError::Broken(_) => internal(&error.to_string()),
    }
}

/// The live topics.
pub(super) fn live<'a>(ctx: &Context<'a>) -> Result<&'a Arc<Live>> {
    state(ctx)
}
