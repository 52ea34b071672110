//! The schema's orders: single ones, frames of them, pages of them.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object, Result, SimpleObject};

use super::feed::FeedState;
use super::head::{BookSpeed, SnapshotReason};
use super::market::Side;
use super::scalars::{Cursor, DateTime, Decimal, UInt64};
use crate::budgets::Work;
use crate::graphql::connections::paging::{self, PageInfo};
use crate::graphql::execution::offload;
use crate::graphql::identity::{acts_for, own};
use crate::graphql::query::{live, read};
use crate::live::{self, Item, ItemBody, LogFrame};
use crate::market::epochs::EpochHistory;
use crate::market::event;
use crate::market::fixed::Fixed;
use crate::market::levels;
use crate::market::orders::{self, OrderChange};
use crate::market::time::Micros;
use crate::market::topic::Topic;
use crate::store::{OrderQuery, StoredOrder};

/// The cursors' name of the list of all orders: positions are of the events that placed them.
const LIST: &str = "orders by placing";

/// How much of an order is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "orders::OrderStatus")]
pub enum OrderStatus {
    /// Nothing of it is filled.
    Open,
    /// Some of it is filled, the rest is open.
    PartiallyFilled,
    /// All of it is filled.
    Filled,
    /// The open rest of the order was canceled.
    Canceled,
}

/// The type of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "event::OrderType")]
pub enum OrderType {
    /// Trades at its price or better, and rests in the book until it is filled or canceled.
    Limit,
    /// Trades at any price, and never rests in the book.
    Market,
}

/// The role of an order in a trade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "event::Liquidity")]
pub enum Liquidity {
    /// The order rested in the book.
    Maker,
    /// The order matched one that rested in the book.
    Taker,
}

/// A single order, after its last event or after the event that it is part of.
#[derive(Clone)]
pub struct Order {
    state: orders::Order,
    /// The reader is the account that placed it.
    own: bool,
}

impl Order {
    /// `own`: the reader is the account that placed it.
    pub fn new(state: orders::Order, own: bool) -> Self {
        Self { state, own }
    }

    fn in_base(&self, size: Fixed) -> Decimal {
        Decimal::new(size, self.state.size_decimals)
    }
}

/// A single order, after its last event or after the event that it is part of.
#[Object(serial)]
impl Order {
    /// The same for its whole life.
    async fn id(&self) -> ID {
        ID(self.state.id.to_string())
    }

    /// The market's id, `BASE-QUOTE`.
    async fn market(&self) -> ID {
        ID(self.state.market.to_string())
    }

    /// The account that placed it; null if its source gives none.
    async fn account(&self) -> Option<ID> {
        self.state.account.as_deref().map(ID::from)
    }

    /// The id that its account gave it; visible to that account only.
    async fn client_id(&self) -> Option<&str> {
        self.state.client_id.as_deref().filter(|_| self.own)
    }

    /// Whether it buys or sells.
    async fn side(&self) -> Side {
        self.state.side.into()
    }

    /// Its type.
    #[graphql(name = "type")]
    async fn order_type(&self) -> OrderType {
        self.state.order_type.into()
    }

    /// In the quote, at the market's precision; null for an order at any price.
    async fn price(&self) -> Option<Decimal> {
        self.state.price.map(|price| Decimal::new(price, self.state.price_decimals))
    }

    /// In the base, at the market's precision, as it was placed.
    async fn size(&self) -> Decimal {
        self.in_base(self.state.size)
    }

    /// The size that can still be filled; 0 after it is filled or canceled.
    async fn open_size(&self) -> Decimal {
        self.in_base(self.state.open)
    }

    /// The size that was filled.
    async fn filled_size(&self) -> Decimal {
        self.in_base(self.state.filled)
    }

    /// Its status.
    async fn status(&self) -> OrderStatus {
        self.state.status.into()
    }

    /// The box on the chain that holds its open size. A fill creates another box.
    async fn box_id(&self) -> Option<ID> {
        self.state.box_id.as_deref().map(ID::from)
    }

    /// CID of its metadata document on IPFS.
    async fn metadata_cid(&self) -> Option<ID> {
        self.state.metadata_cid.as_deref().map(ID::from)
    }

    /// When it expires on the chain.
    async fn expires_at(&self) -> Option<DateTime> {
        self.state.expires_at.map(DateTime)
    }

    /// When it was placed, as its source gave it.
    async fn placed_at(&self) -> Option<DateTime> {
        self.state.placed_at.map(DateTime)
    }

    /// Time of its last event, as its source gave it.
    async fn updated_at(&self) -> Option<DateTime> {
        self.state.updated_at.map(DateTime)
    }
}

/// What an event did to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum OrderEvent {
    /// The order was placed.
    Placed,
    /// Some or all of the order was filled.
    Filled,
    /// The open rest of the order was canceled.
    Canceled,
}

/// One event of an order.
pub struct OrderUpdate {
    sequence: u64,
    time: Option<Micros>,
    update: Arc<orders::OrderUpdate>,
    own: bool,
}

/// Trade, price, size and role.
type Fill<'a> = (&'a Option<Box<str>>, Fixed, Fixed, Option<event::Liquidity>);

impl OrderUpdate {
    fn fill(&self) -> Option<Fill<'_>> {
        match &self.update.change {
            OrderChange::Filled { trade, price, size, liquidity } => {
                Some((trade, *price, *size, *liquidity))
            }
            OrderChange::Placed | OrderChange::Canceled { .. } => None,
        }
    }
}

/// One event of an order.
#[Object(serial)]
impl OrderUpdate {
    /// What happened.
    async fn event(&self) -> OrderEvent {
        match &self.update.change {
            OrderChange::Placed => OrderEvent::Placed,
            OrderChange::Filled { .. } => OrderEvent::Filled,
            OrderChange::Canceled { .. } => OrderEvent::Canceled,
        }
    }

    /// The order after this event.
    async fn order(&self) -> Order {
        Order::new(self.update.order.clone(), self.own)
    }

    /// Of a fill: the trade's id, if its source gives one.
    async fn trade(&self) -> Option<ID> {
        self.fill()?.0.as_deref().map(ID::from)
    }

    /// Of a fill: its price, in the quote.
    async fn fill_price(&self) -> Option<Decimal> {
        Some(Decimal::new(self.fill()?.1, self.update.order.price_decimals))
    }

    /// Of a fill: its size, in the base.
    async fn fill_size(&self) -> Option<Decimal> {
        Some(Decimal::new(self.fill()?.2, self.update.order.size_decimals))
    }

    /// Of a fill: whether the order rested in the book; null if its source does not say.
    async fn liquidity(&self) -> Option<Liquidity> {
        self.fill()?.3.map(Liquidity::from)
    }

    /// Of a cancellation: its reason, if its source gives one.
    async fn reason(&self) -> Option<&str> {
        match &self.update.change {
            OrderChange::Canceled { reason } => reason.as_deref(),
            _ => None,
        }
    }

    /// As its source gave it.
    async fn time(&self) -> Option<DateTime> {
        self.time.map(DateTime)
    }

    /// Sequence of this event, within the epoch.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.sequence)
    }
}

/// Events of orders, without gaps. A frame follows the previous one if and only if its epoch is the
/// same and its `prevSequence` is the previous `sequence`.
pub struct OrderFrame(pub LogFrame);

/// Events of orders, without gaps. A frame follows the previous one if and only if its epoch is the
/// same and its `prevSequence` is the previous `sequence`.
#[Object(serial)]
impl OrderFrame {
    /// As the subscription names it; null if it names none.
    async fn market(&self) -> Option<ID> {
        let (market, _) = topic_parts(&self.0.topic);
        market.map(ID::from)
    }

    /// As the subscription names it; null if it names none.
    async fn account(&self) -> Option<ID> {
        let (_, account) = topic_parts(&self.0.topic);
        account.map(ID::from)
    }

    /// The epoch of `sequence`. Sequences of different epochs can't be compared.
    async fn epoch(&self) -> ID {
        ID(self.0.epoch.to_string())
    }

    /// Sequence of the last event in this frame or before it; 0 while there are no events.
    async fn sequence(&self) -> UInt64 {
        UInt64(self.0.sequence)
    }

    /// Sequence of the event before these. It equals `sequence` in a frame without events, and is
    /// null where the client begins or must go back.
    async fn prev_sequence(&self) -> Option<UInt64> {
        self.0.previous.map(UInt64)
    }

    /// Why `prevSequence` is null. `INITIAL`: the subscription begins. `REORG`: discard all events
    /// after `sequence`; those that remain valid follow. `EPOCH_CHANGE`: events may be missing
    /// before this frame; keep the earlier ones.
    async fn reason(&self) -> Option<SnapshotReason> {
        self.0.reason.map(SnapshotReason::from)
    }

    /// Pass this as `after` to resume with the next frame.
    async fn cursor(&self) -> Cursor {
        Cursor(self.0.cursor.encode())
    }

    /// Oldest first; empty in a heartbeat.
    async fn orders(&self) -> Vec<OrderUpdate> {
        let own = topic_parts(&self.0.topic).1.is_some();
        self.0.items.iter().filter_map(|item| update_of(item, own)).collect()
    }

    /// Time of the last event, as its source gave it.
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

    /// Whether the data is up to date.
    async fn state(&self) -> FeedState {
        self.0.state.into()
    }

    /// Milliseconds from `eventTime` to `publishTime`; 0 where `eventTime` is null.
    async fn last_event_age_ms(&self) -> i32 {
        live::age_ms(self.0.event_time, self.0.publish_time)
    }
}

fn update_of(item: &Item, own: bool) -> Option<OrderUpdate> {
    let ItemBody::Order(update) = &item.body else { return None };
    let (sequence, time, update) = (item.sequence, item.time, update.clone());
    Some(OrderUpdate { sequence, time, update, own })
}

/// Market and account of a topic of orders.
fn topic_parts(topic: &str) -> (Option<&str>, Option<&str>) {
    match Topic::parse(topic) {
        Some(Topic::Orders { market, account }) => (market, account),
        _ => (None, None),
    }
}

/// Which orders to list. All conditions must hold.
#[derive(InputObject, Default)]
pub struct OrderFilter {
    /// Orders of one market.
    market: Option<ID>,
    /// Orders of one account. Only the client's own account is allowed.
    account: Option<ID>,
    /// Orders of one side.
    side: Option<Side>,
    /// Orders in one status.
    status: Option<OrderStatus>,
    /// `true`: orders that can still be filled. `false`: the others.
    open: Option<bool>,
}

/// A page of orders, oldest first.
#[derive(SimpleObject)]
pub struct OrderConnection {
    /// The orders with their cursors.
    edges: Vec<OrderEdge>,
    /// The orders.
    nodes: Vec<Order>,
    /// Position of the page in the list.
    page_info: PageInfo,
}

/// An order in a page.
#[derive(SimpleObject)]
#[graphql(serial)]
pub struct OrderEdge {
    /// Pass this as `after` for the next page.
    cursor: Cursor,
    /// The order.
    node: Order,
}

/// Orders by when they were placed, a page after `after`.
pub async fn page(
    ctx: &Context<'_>,
    filter: Option<OrderFilter>,
    first: Option<i32>,
    after: Option<Cursor>,
) -> Result<OrderConnection> {
    let filter = filter.unwrap_or_default();
    let account = filter.account.map(|account| own(ctx, &account)).transpose()?;
    let first = paging::checked_first(first)?;
    // Of the log itself: a rollback removes orders from the list, and moves no other.
    let list = paging::List::new(&LIST.into(), EpochHistory::new(live(ctx)?.epoch()));
    let begin = after.map(|after| list.begin_after(&after)).transpose()?;
    let query = OrderQuery {
        market: filter.market.map(|market| market.0.into()),
        account,
        side: filter.side.map(|side| levels::Side::from(side).name()),
        status: filter.status.map(|status| orders::OrderStatus::from(status).name()),
        open: filter.open,
        after: begin.unwrap_or(0),
        most: first + 1,
    };
    let mut found = read(ctx, Vec::len, move |log| log.orders(&query)).await?;
    offload::before(ctx, Work::Row, found.len()).await;
    offload::before_items(ctx, found.len()).await?;
    let has_next_page = found.len() > first;
    found.truncate(first);
    let edges: Vec<OrderEdge> = found
        .iter()
        .map(|one| {
            let cursor = list.cursor(one.sequence);
            Ok(OrderEdge { cursor, node: node(ctx, one)? })
        })
        .collect::<Result<_>>()?;
    let cursor = |edge: Option<&OrderEdge>| edge.map(|edge| edge.cursor.clone());
    let page_info = PageInfo {
        has_next_page,
        has_previous_page: begin.is_some(),
        start_cursor: cursor(edges.first()),
        end_cursor: cursor(edges.last()),
    };
    let nodes = edges.iter().map(|edge| edge.node.clone()).collect();
    Ok(OrderConnection { edges, nodes, page_info })
}

/// One order, also one that is long final.
pub async fn find(ctx: &Context<'_>, id: String) -> Result<Option<Order>> {
    let found = read(ctx, |_| 1, move |log| log.order(&id)).await?;
    found.map(|one| node(ctx, &one)).transpose()
}

fn node(ctx: &Context<'_>, stored: &StoredOrder) -> Result<Order> {
    let order = stored_order(stored)?;
    let own = acts_for(ctx, order.account.as_deref())?;
    Ok(Order::new(order, own))
}

pub fn stored_order(stored: &StoredOrder) -> Result<orders::Order> {
    serde_json::from_str(&stored.state)
        .map_err(|error| crate::graphql::errors::internal(&error.to_string()))
}
