//! The mutations of orders. Each is checked here against the current state, then written into the
//! log like any feed's event, and answered with its position.

use std::sync::Arc;

use async_graphql::{Context, Error, ID, InputObject, Object, Result, SimpleObject};
use serde_json::{Map, Value, json};
use spreadly_subscriptions::GraphqlError;

use super::port::{MutationPort, WriteError, Written};
use crate::budgets::Work;
use crate::graphql::connections::paging::List;
use crate::graphql::context::admit;
use crate::graphql::errors::{ErrorCode, fault, limit_exceeded, no_market, of_resolver, state};
use crate::graphql::identity::acting;
use crate::graphql::query::{live, read_in_turn};
use crate::graphql::types::market::Side;
use crate::graphql::types::order::{Order, OrderType, stored_order};
use crate::graphql::types::scalars::{Cursor, DateTime, Decimal, UInt64};
use crate::market::definition::MarketDefinition;
use crate::market::event::MOST_ID_BYTES;
use crate::market::levels;
use crate::market::orders;
use crate::market::refusal::Refusal;
use crate::market::rules::{self, RuleBroken, Wish};
use crate::market::time::{Micros, time_text};
use crate::market::topic::Topic;
use crate::store::{EventId, LogReader, OrderQuery};

/// Longest `clientId`, in bytes: with the account's it makes the id of an event.
const MOST_CLIENT_ID_BYTES: usize = 48;
/// Longest account, in bytes: an address of Ergo has about 51.
const MOST_ACCOUNT_BYTES: usize = 64;
/// Before both of them in the event's id.
const PLACING: &str = "place/";
/// Orders that one `cancelAllOrders` cancels: one write of the log.
const MOST_CANCELED: usize = 1_000;

const _: () =
    assert!(PLACING.len() + MOST_ACCOUNT_BYTES + 1 + MOST_CLIENT_ID_BYTES <= MOST_ID_BYTES);

/// What can be done about orders.
#[derive(Default)]
pub struct OrderMutations;

/// An order to place.
#[derive(InputObject)]
pub struct PlaceOrderInput {
    /// The market's id, `BASE-QUOTE`.
    market: ID,
    /// Buy or sell.
    side: Side,
    /// `LIMIT` unless given.
    #[graphql(name = "type")]
    order_type: Option<OrderType>,
    /// A multiple of the market's tick size. A limit order must have one.
    price: Option<Decimal>,
    /// A multiple of the market's lot size, not below its minimum size.
    size: Decimal,
    /// An id of the client's choice, 1 to 48 bytes. It makes retries safe: the same order under the
    /// same id is not placed again. Another order of the market under the same id is a `CONFLICT`.
    client_id: Option<String>,
    /// When it expires.
    expires_at: Option<DateTime>,
    /// CID of its metadata document on IPFS.
    metadata_cid: Option<String>,
}

/// A placed order, and its position in the log.
#[derive(SimpleObject)]
pub struct PlaceOrderPayload {
    /// The order. If it was placed before, its current state.
    order: Order,
    /// The epoch of `sequence`. Sequences of different epochs can't be compared.
    epoch: ID,
    /// Sequence of the placement. `orders` and the book use the same one.
    sequence: UInt64,
    /// Pass this as `after` of `orders(account:)` to receive what follows.
    cursor: Cursor,
}

/// An order to cancel.
#[derive(InputObject)]
pub struct CancelOrderInput {
    /// The order's id.
    order: ID,
    /// Published with the cancellation.
    reason: Option<String>,
}

/// A canceled order, and the position of the cancellation in the log.
#[derive(SimpleObject)]
pub struct CancelOrderPayload {
    /// The order after the cancellation.
    order: Order,
    /// The epoch of `sequence`. Sequences of different epochs can't be compared.
    epoch: ID,
    /// Sequence of the cancellation.
    sequence: UInt64,
    /// Pass this as `after` of `orders(account:)` to receive what follows.
    cursor: Cursor,
}

/// The result of cancelling many orders.
#[derive(SimpleObject)]
pub struct CancelAllOrdersPayload {
    /// Orders that were canceled. Orders that were filled meanwhile are not counted.
    canceled: i32,
    /// More orders are open than one call cancels (1,000). Call again.
    more: bool,
    /// The epoch of `sequence`. Sequences of different epochs can't be compared.
    epoch: ID,
    /// Sequence of the last cancellation; null if nothing was canceled.
    sequence: Option<UInt64>,
    /// Pass this as `after` of `orders(account:)` to receive what follows.
    cursor: Option<Cursor>,
}

/// What can be done about orders.
#[Object]
impl OrderMutations {
    /// Places an order for the signed-in account. The hub checks it against the rules of its
    /// market.
    async fn place_order(
        &self,
        ctx: &Context<'_>,
        input: PlaceOrderInput,
    ) -> Result<PlaceOrderPayload> {
        let account = acting(ctx)?;
        let wanted = Wanted::check(ctx, &account, input)?;
        let written = write(ctx, vec![wanted.line()]).await?;
        let (update, sequence) = match (written.order, written.sequence) {
            (Some(update), Some(sequence)) => (update.order.clone(), sequence),
            _ if written.known > 0 => wanted.placed_before(ctx).await?,
            _ => return Err(refused(written.refusal)),
        };
        let (epoch, cursor) = position(ctx, &account, sequence)?;
        let (order, sequence) = (Order::new(update, true), UInt64(sequence));
        Ok(PlaceOrderPayload { order, epoch, sequence, cursor })
    }

    /// Cancels an open order of the signed-in account.
    async fn cancel_order(
        &self,
        ctx: &Context<'_>,
        input: CancelOrderInput,
    ) -> Result<CancelOrderPayload> {
        let account = acting(ctx)?;
        let id = input.order.0;
        let asked = id.clone();
        let found = read_in_turn(ctx, move |log| log.order(&asked)).await?;
        let Some(found) = found.as_ref().map(stored_order).transpose()? else {
            return Err(fault(ErrorCode::NotFound, "there is no order of this id"));
        };
        if found.account.as_deref() != Some(&*account) {
            return Err(fault(ErrorCode::Forbidden, "this order is not yours"));
        }
        let line = cancellation(&found, input.reason.as_deref(), live(ctx)?.now());
        let written = write(ctx, vec![line]).await?;
        let (Some(update), Some(sequence)) = (written.order, written.sequence) else {
            return Err(refused(written.refusal));
        };
        let (epoch, cursor) = position(ctx, &account, sequence)?;
        let order = Order::new(update.order.clone(), true);
        Ok(CancelOrderPayload { order, epoch, sequence: UInt64(sequence), cursor })
    }

    /// Cancels all open orders of the signed-in account, or those of one market.
    async fn cancel_all_orders(
        &self,
        ctx: &Context<'_>,
        market: Option<ID>,
    ) -> Result<CancelAllOrdersPayload> {
        let account = acting(ctx)?;
        if let Some(market) = &market {
            known_market(ctx, market)?;
        }
        let query = OrderQuery {
            market: market.map(|market| market.0.into()),
            account: Some(account.clone()),
            open: Some(true),
            most: MOST_CANCELED + 1,
            ..OrderQuery::default()
        };
        let mut open = read_in_turn(ctx, move |log| log.orders(&query)).await?;
        let more = open.len() > MOST_CANCELED;
        open.truncate(MOST_CANCELED);
        let now = live(ctx)?.now();
        let lines: Vec<String> = open
            .iter()
            .map(|one| Ok(cancellation(&stored_order(one)?, None, now)))
            .collect::<Result<_>>()?;
        let written = match lines.is_empty() {
            true => Written::default(),
            false => write(ctx, lines).await?,
        };
        let place =
            written.sequence.map(|sequence| position(ctx, &account, sequence)).transpose()?;
        Ok(CancelAllOrdersPayload {
            canceled: i32::try_from(written.accepted).unwrap_or(i32::MAX),
            more,
            epoch: ID(list(ctx, &account)?.epoch().to_string()),
            sequence: written.sequence.map(UInt64),
            cursor: place.map(|(_, cursor)| cursor),
        })
    }
}

/// An order that keeps to the rules, on its way into the log.
struct Wanted {
    input: PlaceOrderInput,
    order_type: OrderType,
    account: Arc<str>,
    now: Micros,
}

impl Wanted {
    fn check(ctx: &Context<'_>, account: &Arc<str>, input: PlaceOrderInput) -> Result<Self> {
        let definition = known_market(ctx, &input.market)?;
        let order_type = input.order_type.unwrap_or(OrderType::Limit);
        if order_type == OrderType::Limit && input.price.is_none() {
            return Err(fault(
                ErrorCode::ValidationFailed,
                "price is missing: a limit order has one",
            ));
        }
        let client_id = input.client_id.as_deref();
        if client_id.is_some_and(|id| id.is_empty() || id.chars().any(char::is_control)) {
            let message = "clientId must not be empty or have control characters";
            return Err(fault(ErrorCode::ValidationFailed, message));
        }
        let length = client_id.map_or(0, str::len);
        if length > MOST_CLIENT_ID_BYTES {
            return Err(limit_exceeded("client_id_bytes", MOST_CLIENT_ID_BYTES, length));
        }
        let now = live(ctx)?.now();
        let wish = Wish {
            price: input.price.as_ref().map(|price| price.0.as_str()),
            size: &input.size.0,
            expires_at: input.expires_at.map(|at| at.0),
        };
        rules::check(&definition, &wish, now).map_err(broken)?;
        Ok(Self { input, order_type, account: account.clone(), now })
    }

    /// Makes placing it again the same event.
    fn event_id(&self) -> Option<String> {
        let client_id = self.input.client_id.as_deref()?;
        Some(format!("{PLACING}{}/{client_id}", self.account))
    }

    fn line(&self) -> String {
        let order = format!("{:032x}", rand::random::<u128>());
        let side = levels::Side::from(self.input.side).name();
        let order_type = match self.order_type {
            OrderType::Limit => "LIMIT",
            OrderType::Market => "MARKET",
        };
        let fields = [
            ("kind", Some(json!("order.placed"))),
            ("id", self.event_id().map(Value::from)),
            ("market", Some(json!(*self.input.market))),
            ("order", Some(json!(order))),
            ("account", Some(json!(*self.account))),
            ("side", Some(json!(side))),
            ("type", Some(json!(order_type))),
            ("price", self.input.price.as_ref().map(|price| json!(price.0))),
            ("size", Some(json!(self.input.size.0))),
            ("clientId", self.input.client_id.as_ref().map(|id| json!(id))),
            ("expiresAt", self.input.expires_at.map(|at| json!(time_text(at.0)))),
            ("metadataCid", self.input.metadata_cid.as_ref().map(|cid| json!(cid))),
            ("time", Some(json!(time_text(self.now)))),
            ("requested", Some(json!(true))),
        ];
        let fields = fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        Value::Object(fields.collect::<Map<_, _>>()).to_string()
    }

    /// The order that was placed under the same `clientId`, and the position of that.
    async fn placed_before(&self, ctx: &Context<'_>) -> Result<(orders::Order, u64)> {
        let id = self.event_id().unwrap_or_default();
        let topic = Topic::orders_of(&self.input.market).name();
        let find = move |log: &LogReader| {
            let event = log.find(EventId { topic: &topic, kind: "order.placed", id: &id })?;
            event.map_or(Ok(None), |event| log.order_of_event(event.sequence))
        };
        let found = read_in_turn(ctx, find).await?;
        let Some(found) = found else {
            return Err(fault(
                ErrorCode::Conflict,
                "another event has this clientId: choose a new one",
            ));
        };
        let order = stored_order(&found)?;
        let number = |text: &Decimal, decimals| crate::market::fixed::parse(&text.0, decimals).ok();
        let price = self.input.price.as_ref();
        let same = order.side == self.input.side.into()
            && order.order_type == self.order_type.into()
            && order.price == price.and_then(|price| number(price, order.price_decimals))
            && Some(order.size) == number(&self.input.size, order.size_decimals)
            && order.expires_at == self.input.expires_at.map(|at| at.0)
            && order.metadata_cid.as_deref() == self.input.metadata_cid.as_deref();
        match same {
            true => Ok((order, found.sequence)),
            false => {
                let message = format!(
                    "order {} has this clientId and other values: choose a new clientId",
                    order.id
                );
                Err(fault(ErrorCode::Conflict, &message))
            }
        }
    }
}

fn cancellation(order: &orders::Order, reason: Option<&str>, now: Micros) -> String {
    let orders::Order { id, market, .. } = order;
    let mut event = json!({
        "kind": "order.canceled", "market": **market, "order": **id, "time": time_text(now),
        "requested": true,
    });
    if let Some(reason) = reason {
        event["reason"] = json!(reason);
    }
    event.to_string()
}

fn known_market(ctx: &Context<'_>, market: &str) -> Result<Arc<MarketDefinition>> {
    live(ctx)?.definition(market).ok_or_else(|| no_market(market))
}

async fn write(ctx: &Context<'_>, lines: Vec<String>) -> Result<Written> {
    admit(ctx, Work::Write, lines.len())?;
    state::<MutationPort>(ctx)?.write(lines).await.map_err(WriteError::into_error)
}

/// Epoch and cursor of an event of an account's orders.
fn position(ctx: &Context<'_>, account: &str, sequence: u64) -> Result<(ID, Cursor)> {
    let list = list(ctx, account)?;
    Ok((ID(list.epoch().to_string()), list.cursor(sequence)))
}

fn list(ctx: &Context<'_>, account: &str) -> Result<List> {
    let topic = Topic::Orders { market: None, account: Some(account) }.name();
    Ok(List::new(&topic, live(ctx)?.epochs(&topic)))
}

fn broken(error: RuleBroken) -> Error {
    let (rule, value) = (error.rule(), error.value());
    let fault = GraphqlError::new(ErrorCode::ValidationFailed, error.to_string());
    of_resolver(fault.with("rule", rule).with("value", value.as_str()))
}

/// What the log would not take though it looked right a moment before.
fn refused(refusal: Option<Refusal>) -> Error {
    let Some(refusal) = refusal else {
        return crate::graphql::errors::internal("a mutation without answer");
    };
    let code = match refusal {
        Refusal::UnknownOrder(_) | Refusal::MixedBook { .. } => ErrorCode::Conflict,
        Refusal::TooManyOrders(_) | Refusal::TooManyAccounts(_) => ErrorCode::Unavailable,
        _ => ErrorCode::ValidationFailed,
    };
    fault(code, &refusal.to_string())
}
