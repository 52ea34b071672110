//! Single orders: what is open of each, and the price levels they sum up to. An order leaves when
//! it is final; its history is the store's. No clock, no stream, and no matching: orders that cross
//! stay as they are until the chain's events fill them.

mod checkpoint;
mod gaps;
mod units;

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};
use serde::{Deserialize, Serialize};

use super::definition::{MarketDefinition, MarketId};
use super::event::{CanceledOrder, FilledOrder, Liquidity, OrderEvent, OrderType, PlacedOrder};
use super::fixed::{self, Fixed};
use super::levels::{LevelChange, Side};
use super::refusal::Refusal;
use super::time::Micros;
use super::topic::Topic;
pub use checkpoint::OrdersError;
use gaps::Gaps;
pub use gaps::MOST_NAMED_ORDERS;

/// Most orders open at once in all markets: at some 500 bytes each they are half a GiB.
pub const MOST_OPEN_ORDERS: usize = 1_000_000;
/// How much of a foreign text a reason repeats, in characters.
const MOST_QUOTED: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OrderStatus {
    /// Nothing of it is filled.
    Open,
    PartiallyFilled,
    Filled,
    Canceled,
}

impl OrderStatus {
    /// Nothing happens to it any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Filled | Self::Canceled)
    }

    /// As the schema and the store write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::PartiallyFilled => "PARTIALLY_FILLED",
            Self::Filled => "FILLED",
            Self::Canceled => "CANCELED",
        }
    }
}

/// A single order as it is after an event. Prices and sizes in units of its market's decimals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// The same for its whole life, while its box changes.
    pub id: Arc<str>,
    pub market: MarketId,
    pub account: Option<Arc<str>>,
    pub client_id: Option<Box<str>>,
    pub side: Side,
    pub order_type: OrderType,
    /// The market's, for all prices and sizes here: they can't change under its orders.
    pub price_decimals: u8,
    pub size_decimals: u8,
    #[serde(with = "units::optional")]
    pub price: Option<Fixed>,
    /// When it was placed.
    #[serde(with = "units")]
    pub size: Fixed,
    /// Not yet filled; 0 once it is final.
    #[serde(with = "units")]
    pub open: Fixed,
    #[serde(with = "units")]
    pub filled: Fixed,
    pub status: OrderStatus,
    /// The box on the chain that holds the rest of it.
    pub box_id: Option<Box<str>>,
    pub metadata_cid: Option<Box<str>>,
    pub expires_at: Option<Micros>,
    /// At its source.
    pub placed_at: Option<Micros>,
    /// Of its last event, at its source.
    pub updated_at: Option<Micros>,
}

impl Order {
    /// The names of the topics that publish it beside its market's: those of its account.
    pub fn account_topics(&self) -> Vec<Arc<str>> {
        let Some(account) = &self.account else { return Vec::new() };
        [None, Some(&*self.market)]
            .map(|market| Topic::Orders { market, account: Some(account) }.name())
            .into()
    }

    /// Whether it counts in the book.
    fn rests(&self) -> Option<Fixed> {
        self.price.filter(|_| self.order_type == OrderType::Limit && self.open > 0)
    }
}

/// What one event did to an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderUpdate {
    /// As it is afterwards.
    pub order: Order,
    pub change: OrderChange,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OrderChange {
    Placed,
    Filled {
        trade: Option<Box<str>>,
        #[serde(with = "units")]
        price: Fixed,
        #[serde(with = "units")]
        size: Fixed,
        liquidity: Option<Liquidity>,
    },
    Canceled {
        reason: Option<Box<str>>,
    },
}

/// An order's event that is admitted, with the levels that it changes: sizes are absolute.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    pub update: OrderUpdate,
    pub levels: Vec<LevelChange>,
}

/// The open orders of every market.
#[derive(Debug)]
pub struct Orders {
    markets: HashMap<MarketId, MarketOrders>,
    /// Which market an order is of: a fill or a cancellation needs not say it.
    placed: HashMap<Arc<str>, MarketId>,
    /// Of those markets whose books lack something.
    gaps: HashMap<MarketId, Gaps>,
    most_open: usize,
}

#[derive(Debug, Default)]
struct MarketOrders {
    open: HashMap<Arc<str>, Order>,
    /// Size and number of orders at each price of both sides.
    bids: BTreeMap<Fixed, (Fixed, u32)>,
    asks: BTreeMap<Fixed, (Fixed, u32)>,
}

impl Default for Orders {
    fn default() -> Self {
        Self::with_limit(MOST_OPEN_ORDERS)
    }
}

impl Orders {
    pub fn with_limit(most_open: usize) -> Self {
        let (markets, placed, gaps) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { markets, placed, gaps, most_open }
    }

    /// From now on so many orders may be open. What the log has was admitted: it is replayed
    /// without a limit, as its markets are not replayed at one pace.
    pub fn limit(&mut self, most_open: usize) {
        self.most_open = most_open;
    }

    /// The market that an event is of. An order that is not open has none unless the event names
    /// it.
    pub fn market_of(&self, event: &OrderEvent) -> Result<MarketId, Refusal> {
        let (order, named) = match event {
            OrderEvent::Placed(placed) => return Ok(placed.market.clone()),
            OrderEvent::Filled(filled) => (&filled.order, &filled.market),
            OrderEvent::Canceled(canceled) => (&canceled.order, &canceled.market),
        };
        let unknown = || Refusal::UnknownOrder(order.clone());
        let has = self.placed.get(&**order).ok_or_else(unknown)?;
        match named {
            Some(sent) if sent != has => {
                let (has, sent) = (has.clone(), sent.clone());
                Err(Refusal::OtherMarket { order: order.clone(), has, sent })
            }
            _ => Ok(has.clone()),
        }
    }

    /// Takes an event of a market that is defined so. One that is refused changes nothing.
    ///
    /// # Errors
    /// When the order is placed twice or not open, when a fill is beyond what is open, or when a
    /// number does not fit the market. Orders that were final before are not known here.
    pub fn take(
        &mut self,
        definition: &MarketDefinition,
        event: &OrderEvent,
        time: Option<Micros>,
    ) -> Result<Changed, Refusal> {
        let changed = match event {
            OrderEvent::Placed(placed) => self.place(definition, placed, time),
            OrderEvent::Filled(filled) => self.fill(definition, filled, time),
            OrderEvent::Canceled(canceled) => self.cancel(definition, canceled, time),
        }?;
        self.end_gap(&changed.update.order);
        Ok(changed)
    }

    fn place(
        &mut self,
        definition: &MarketDefinition,
        placed: &PlacedOrder,
        time: Option<Micros>,
    ) -> Result<Changed, Refusal> {
        if self.placed.contains_key(&*placed.order) {
            return Err(Refusal::DoubledOrder(placed.order.clone()));
        }
        // Clients leave room for what happened already.
        let most_open = self.most_open / if placed.requested { 2 } else { 1 };
        if self.placed.len() >= most_open {
            return Err(Refusal::TooManyOrders(most_open));
        }
        let price = placed.price.as_ref().map(|text| price(definition, text)).transpose()?;
        let size = size(definition, &placed.size)?;
        let order = Order {
            id: (&*placed.order).into(),
            market: definition.market.clone(),
            account: placed.account.as_deref().map(Arc::from),
            client_id: placed.client_id.clone(),
            side: placed.side,
            order_type: placed.order_type,
            price_decimals: definition.price_decimals,
            size_decimals: definition.size_decimals,
            price,
            size,
            open: size,
            filled: 0,
            status: OrderStatus::Open,
            box_id: placed.box_id.clone(),
            metadata_cid: placed.metadata_cid.clone(),
            expires_at: placed.expires_at,
            placed_at: time,
            updated_at: time,
        };
        let market = self.markets.entry(definition.market.clone()).or_default();
        let levels = match order.rests() {
            Some(price) if placed.requested && market.is_full(order.side, price, size) => {
                let reason = "is too large for its price level".into();
                return Err(fault(definition, "size", &placed.size, reason));
            }
            Some(price) => vec![market.add(order.side, price, size).ok_or_else(|| {
                let reason = "is too large for its price level".into();
                fault(definition, "size", &placed.size, reason)
            })?],
            None => Vec::new(),
        };
        market.open.insert(order.id.clone(), order.clone());
        self.placed.insert(order.id.clone(), definition.market.clone());
        Ok(Changed { update: OrderUpdate { order, change: OrderChange::Placed }, levels })
    }

    fn fill(
        &mut self,
        definition: &MarketDefinition,
        filled: &FilledOrder,
        time: Option<Micros>,
    ) -> Result<Changed, Refusal> {
        let (price, size) = (price(definition, &filled.price)?, size(definition, &filled.size)?);
        let order = self.open(definition, &filled.order)?;
        if size > order.open {
            let written = |size| fixed::format(size, definition.size_decimals);
            let (size, open) = (written(size), written(order.open));
            return Err(Refusal::Overfilled { order: filled.order.clone(), size, open });
        }
        let left = order.open - size;
        let mut after = order.clone();
        after.open = left;
        after.filled += size;
        after.status = if left == 0 { OrderStatus::Filled } else { OrderStatus::PartiallyFilled };
        after.box_id = filled.box_id.clone().or(after.box_id);
        after.updated_at = time;
        let (trade, liquidity) = (filled.trade.clone(), filled.liquidity);
        let change = OrderChange::Filled { trade, price, size, liquidity };
        Ok(self.put(after, change))
    }

    fn cancel(
        &mut self,
        definition: &MarketDefinition,
        canceled: &CanceledOrder,
        time: Option<Micros>,
    ) -> Result<Changed, Refusal> {
        let mut after = self.open(definition, &canceled.order)?.clone();
        after.open = 0;
        after.status = OrderStatus::Canceled;
        after.updated_at = time;
        Ok(self.put(after, OrderChange::Canceled { reason: canceled.reason.clone() }))
    }

    fn open(&self, definition: &MarketDefinition, order: &str) -> Result<&Order, Refusal> {
        let market = self.markets.get(&definition.market);
        market
            .and_then(|market| market.open.get(order))
            .ok_or_else(|| Refusal::UnknownOrder(order.into()))
    }

    /// Puts an order that was open as it is now.
    fn put(&mut self, after: Order, change: OrderChange) -> Changed {
        let mut levels = Vec::new();
        if let Some(market) = self.markets.get_mut(&after.market) {
            let before = match after.status.is_final() {
                true => market.open.remove(&after.id),
                false => market.open.insert(after.id.clone(), after.clone()),
            };
            let rested = before.as_ref().and_then(|before| Some((before.rests()?, before.open)));
            if let Some((price, open)) = rested {
                levels.push(market.take_off(after.side, price, open, after.open));
            }
        }
        if after.status.is_final() {
            self.placed.remove(&after.id);
        }
        Changed { update: OrderUpdate { order: after, change }, levels }
    }

    /// An order that is open.
    pub fn get(&self, order: &str) -> Option<&Order> {
        self.markets.get(self.placed.get(order)?)?.open.get(order)
    }

    /// Orders open in all markets.
    pub fn len(&self) -> usize {
        self.placed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.placed.is_empty()
    }

    /// Whether an open order was placed by the same words.
    pub fn is_same(&self, placed: &PlacedOrder) -> bool {
        let Some(open) = self.get(&placed.order) else { return false };
        let number = |text: &str, decimals| fixed::parse(text, decimals).ok();
        let price = placed.price.as_deref().map(|price| number(price, open.price_decimals));
        open.market == placed.market
            && (open.side, open.order_type) == (placed.side, placed.order_type)
            && price == open.price.map(Some)
            && number(&placed.size, open.size_decimals) == Some(open.size)
    }

    /// The market of an order that is open.
    pub fn market_of_open(&self, order: &str) -> Option<&MarketId> {
        self.placed.get(order)
    }

    /// Forgets a market's orders, to be read again from the log.
    pub fn forget(&mut self, market: &str) {
        self.gaps.remove(market);
        if let Some(own) = self.markets.remove(market) {
            own.open.keys().for_each(|order| drop(self.placed.remove(order)));
        }
    }
}

impl MarketOrders {
    fn side(&mut self, side: Side) -> &mut BTreeMap<Fixed, (Fixed, u32)> {
        match side {
            Side::Buy => &mut self.bids,
            Side::Sell => &mut self.asks,
        }
    }

    /// Whether a client's order would take more than half of what a price level can hold.
    fn is_full(&mut self, side: Side, price: Fixed, size: Fixed) -> bool {
        let (now, _) = self.side(side).get(&price).copied().unwrap_or_default();
        now.checked_add(size).is_none_or(|sum| sum > Fixed::MAX / 2)
    }

    /// One order more at a price; `None` if the sum no longer fits.
    fn add(&mut self, side: Side, price: Fixed, size: Fixed) -> Option<LevelChange> {
        let level = self.side(side).entry(price).or_default();
        *level = (level.0.checked_add(size)?, level.1 + 1);
        Some(LevelChange { side, price, size: level.0, orders: level.1 })
    }

    /// An order at a price has less open than before, or left.
    fn take_off(&mut self, side: Side, price: Fixed, before: Fixed, now: Fixed) -> LevelChange {
        let levels = self.side(side);
        let (size, orders) = levels.get(&price).copied().unwrap_or_default();
        let (size, orders) = (size - before + now, orders - u32::from(now == 0));
        match orders {
            0 => levels.remove(&price),
            _ => levels.insert(price, (size, orders)),
        };
        LevelChange { side, price, size, orders }
    }
}

fn price(definition: &MarketDefinition, written: &str) -> Result<Fixed, Refusal> {
    above_zero(definition, "price", written, definition.price_decimals)
}

fn size(definition: &MarketDefinition, written: &str) -> Result<Fixed, Refusal> {
    above_zero(definition, "size", written, definition.size_decimals)
}

fn above_zero(
    definition: &MarketDefinition,
    what: &'static str,
    written: &str,
    decimals: u8,
) -> Result<Fixed, Refusal> {
    match fixed::parse(written, decimals) {
        Ok(0) => Err(fault(definition, what, written, "must be above 0".into())),
        Ok(value) => Ok(value),
        Err(error) => Err(fault(definition, what, written, error.to_string())),
    }
}

fn fault(
    definition: &MarketDefinition,
    what: &'static str,
    written: &str,
    reason: String,
) -> Refusal {
    let written = written.chars().take(MOST_QUOTED).collect();
    Refusal::Level { market: definition.market.clone(), what, written, reason }
}

#[cfg(test)]
mod tests;
