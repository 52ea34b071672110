//! Whether an event may enter the log, given the markets defined so far, and what it does to the
//! state. The book itself is elsewhere: this knows each market's precision, where its book comes
//! from, and the open orders.

mod losses;

use std::sync::Arc;

use foldhash::{HashMap, HashSet, HashSetExt as _};

use super::book_gap::BookGap;
use super::definition::{MarketDefinition, MarketId};
use super::effect::Effect;
use super::event::{Body, Event, OrderEvent, WrittenLevel};
use super::fixed::{self, Fixed};
use super::levels::{LevelChange, Side};
use super::orders::{Changed, Orders};
use super::refusal::Refusal;
use super::time::Micros;
use super::topic::Topic;
use super::trade::{Trade, TradeError, WrittenTrade};

/// Most markets of a hub: each costs its book, its rings and a label in the metrics.
pub const MOST_MARKETS: usize = 10_000;

/// Most accounts that ever had an order: each costs the names and last positions of its topics.
pub const MOST_ACCOUNTS: usize = 1_000_000;

/// Where a market's book comes from; settled by its first such event, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BookMode {
    /// `book.*` events: price levels.
    Levels,
    /// `order.*` events: single orders.
    Orders,
}

impl BookMode {
    fn events(self) -> &'static str {
        match self {
            Self::Levels => "`book.*`",
            Self::Orders => "`order.*`",
        }
    }
}

/// An event that may enter the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    /// The ordered stream it belongs to.
    pub topic: Arc<str>,
    pub effect: Effect,
}

struct Market {
    definition: Arc<MarketDefinition>,
    mode: Option<BookMode>,
    /// Its book of price levels had a snapshot.
    has_book: bool,
    /// What its book of price levels missed, if it had no snapshot since. What one that is summed
    /// from orders lacks is with these.
    gap: Option<Arc<BookGap>>,
    /// It has trades, which are at its decimals too.
    traded: bool,
    /// Kept, as every book event is logged under it.
    book_topic: Arc<str>,
    /// The same of order events.
    orders_topic: Arc<str>,
    trades_topic: Arc<str>,
}

/// What all events so far settled.
#[derive(Default)]
pub struct Admission {
    markets: HashMap<MarketId, Market>,
    orders: Orders,
    /// Those that have orders.
    accounts: HashSet<Box<str>>,
    /// Counts the books that became whole.
    made_whole: u64,
}

impl Admission {
    pub fn new() -> Self {
        Self::default()
    }

    /// The ids of all markets.
    pub fn markets(&self) -> impl Iterator<Item = &MarketId> {
        self.markets.keys()
    }

    /// A market as it is now defined.
    pub fn definition(&self, market: &str) -> Option<&Arc<MarketDefinition>> {
        self.markets.get(market).map(|market| &market.definition)
    }

    /// Settles where a market's book comes from, as the log shows it at start-up.
    pub fn settle(&mut self, market: &str, mode: BookMode) {
        if let Some(market) = self.markets.get_mut(market) {
            market.mode = Some(mode);
        }
    }

    /// Settles that a market's book had a snapshot, as a checkpoint shows it.
    pub fn settle_book(&mut self, market: &str) {
        if let Some(market) = self.markets.get_mut(market) {
            market.has_book = true;
            self.made_whole += 1;
        }
    }

    /// Counts the books that became whole: while it is the same, no further book is.
    pub fn made_whole(&self) -> u64 {
        self.made_whole
    }

    /// Where a market's book comes from; `None` while it has none.
    pub fn mode(&self, market: &str) -> Option<BookMode> {
        self.markets.get(market)?.mode
    }

    /// Settles what is left of a market once blocks were undone: without a definition, nothing.
    pub fn resettle(
        &mut self,
        market: &MarketId,
        definition: Option<Arc<MarketDefinition>>,
        mode: Option<BookMode>,
        traded: bool,
    ) {
        let Some(definition) = definition else {
            self.markets.remove(market);
            self.orders.forget(market);
            return;
        };
        let known = self.markets.entry(Arc::clone(market));
        let known = known.or_insert_with(|| Market::new(Arc::clone(&definition)));
        (known.definition, known.mode, known.traded) = (definition, mode, traded);
        // What is left may be without a snapshot. Then a gap is logged that says nothing new.
        (known.has_book, known.gap) = (mode == Some(BookMode::Levels), None);
        self.made_whole += 1;
    }

    /// Settles that an account has orders, as the log shows it at start-up.
    pub fn settle_account(&mut self, account: &str) {
        self.accounts.insert(account.into());
    }

    /// The open orders.
    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// For who brings back what a checkpoint held.
    pub fn orders_mut(&mut self) -> &mut Orders {
        &mut self.orders
    }

    /// Settles that a market has trades, as the log shows it at start-up.
    pub fn settle_trades(&mut self, market: &str) {
        if let Some(market) = self.markets.get_mut(market) {
            market.traded = true;
        }
    }

    /// Checks an event and remembers what it settles. An event that is refused changes nothing.
    pub fn admit(&mut self, event: &Event<'_>) -> Result<Admitted, Refusal> {
        match &event.body {
            Body::Market(definition) => self.define(definition),
            Body::BookSnapshot { market, bids, asks } => {
                let known = self.market(market)?;
                known.check_mode(BookMode::Levels)?;
                let levels = known.levels(bids, asks, Doubled::Refused)?;
                known.mode = Some(BookMode::Levels);
                let was_whole = known.is_whole();
                (known.has_book, known.gap) = (true, None);
                let admitted = known.book(Effect::Replace { market: known.id(), levels });
                self.made_whole += u64::from(!was_whole);
                Ok(admitted)
            }
            Body::BookDelta { market, bids, asks } => {
                let known = self.market(market)?;
                known.check_mode(BookMode::Levels)?;
                let levels = known.levels(bids, asks, Doubled::LastWins)?;
                known.mode = Some(BookMode::Levels);
                Ok(known.book(Effect::Change { market: known.id(), levels }))
            }
            Body::BookGap(gap) => self.lose(gap),
            Body::OrdersComplete(complete) => self.complete(complete),
            Body::Order(order) => self.order(order, event.time),
            Body::Trade(written) => {
                let known = self.market(&written.market)?;
                let trade = Trade::admit(written, &known.definition)
                    .map_err(|error| known.trade_fault(written, error))?;
                known.traded = true;
                let effect = Effect::Trade(Arc::new(trade));
                Ok(Admitted { topic: Arc::clone(&known.trades_topic), effect })
            }
            Body::Message(message) => {
                let topic = Topic::Message(&message.topic).name();
                Ok(Admitted { topic, effect: Effect::Message(Arc::new(message.clone())) })
            }
            // What a rollback or a gap changes is worked out from the log, see `ingest::rollback`.
            Body::BlockApplied | Body::Reverted { .. } | Body::Gap { .. } => {
                Ok(Admitted { topic: Topic::Blocks.name(), effect: Effect::None })
            }
        }
    }

    fn define(&mut self, definition: &MarketDefinition) -> Result<Admitted, Refusal> {
        let id = &definition.market;
        let definition = Arc::new(definition.clone());
        if let Some(known) = self.markets.get_mut(id) {
            let now = &known.definition;
            let same = now.price_decimals == definition.price_decimals
                && now.size_decimals == definition.size_decimals;
            if (known.mode.is_some() || known.traded) && !same {
                return Err(Refusal::DecimalsChanged {
                    market: known.id(),
                    price: now.price_decimals,
                    size: now.size_decimals,
                });
            }
            known.definition = Arc::clone(&definition);
        } else {
            if self.markets.len() >= MOST_MARKETS {
                return Err(Refusal::TooManyMarkets(MOST_MARKETS));
            }
            self.markets.insert(Arc::clone(id), Market::new(Arc::clone(&definition)));
        }
        Ok(Admitted { topic: Topic::Market(id).name(), effect: Effect::Define(definition) })
    }

    fn order(&mut self, event: &OrderEvent, time: Option<Micros>) -> Result<Admitted, Refusal> {
        let id = self.orders.market_of(event)?;
        let known = self.markets.get_mut(&id).ok_or_else(|| Refusal::UnknownMarket(id.clone()))?;
        known.check_mode(BookMode::Orders)?;
        let account = match event {
            OrderEvent::Placed(placed) => placed.account.as_deref(),
            _ => None,
        };
        let new = account.filter(|account| !self.accounts.contains(*account));
        if new.is_some() && self.accounts.len() >= MOST_ACCOUNTS {
            return Err(Refusal::TooManyAccounts(MOST_ACCOUNTS));
        }
        let lacked = self.orders.gap(&id).is_some();
        let Changed { update, levels } = self.orders.take(&known.definition, event, time)?;
        self.accounts.extend(new.map(Box::from));
        let gap = self.orders.gap(&id).cloned();
        let begins = known.mode.replace(BookMode::Orders).is_none();
        self.made_whole += u64::from(begins || (lacked && gap.is_none()));
        let effect = Effect::Order { update: Arc::new(update), levels, gap };
        Ok(Admitted { topic: Arc::clone(&known.orders_topic), effect })
    }

    fn market(&mut self, market: &str) -> Result<&mut Market, Refusal> {
        self.markets.get_mut(market).ok_or_else(|| Refusal::UnknownMarket(market.into()))
    }
}

/// What a price that is given twice on a side means.
#[derive(Clone, Copy, PartialEq)]
enum Doubled {
    /// In a snapshot: which of them holds can't be known.
    Refused,
    /// In a delta: sizes are absolute and in order.
    LastWins,
}

impl Market {
    fn new(definition: Arc<MarketDefinition>) -> Self {
        let id = &definition.market;
        let book_topic = Topic::Book(id).name();
        let (orders_topic, trades_topic) = (Topic::orders_of(id).name(), Topic::Trades(id).name());
        Self {
            definition,
            mode: None,
            has_book: false,
            gap: None,
            traded: false,
            book_topic,
            orders_topic,
            trades_topic,
        }
    }

    fn id(&self) -> MarketId {
        Arc::clone(&self.definition.market)
    }

    /// Whether its book of price levels had a snapshot and misses nothing since.
    fn is_whole(&self) -> bool {
        self.has_book && self.gap.is_none()
    }

    /// See [`Admission::may_lose_levels`].
    fn may_lose_levels(&self, height: Option<u64>) -> bool {
        self.has_book && self.gap.as_ref().is_none_or(|gap| gap.may_go_before(height))
    }

    fn book(&self, effect: Effect) -> Admitted {
        Admitted { topic: Arc::clone(&self.book_topic), effect }
    }

    fn check_mode(&self, sent: BookMode) -> Result<(), Refusal> {
        match self.mode {
            Some(has) if has != sent => Err(Refusal::MixedBook {
                market: self.id(),
                has: has.events(),
                sent: sent.events(),
            }),
            _ => Ok(()),
        }
    }

    fn levels(
        &self,
        bids: &[WrittenLevel<'_>],
        asks: &[WrittenLevel<'_>],
        doubled: Doubled,
    ) -> Result<Vec<LevelChange>, Refusal> {
        let mut levels = Vec::with_capacity(bids.len() + asks.len());
        self.side(Side::Buy, bids, doubled, &mut levels)?;
        self.side(Side::Sell, asks, doubled, &mut levels)?;
        Ok(levels)
    }

    fn side(
        &self,
        side: Side,
        written: &[WrittenLevel<'_>],
        doubled: Doubled,
        levels: &mut Vec<LevelChange>,
    ) -> Result<(), Refusal> {
        let start = levels.len();
        for (price_text, size_text) in written {
            let price = self.number("price", price_text, self.definition.price_decimals)?;
            let size = self.number("size", size_text, self.definition.size_decimals)?;
            if price == 0 {
                return Err(self.fault("price", price_text, "must be above 0".into()));
            }
            levels.push(LevelChange { side, price, size, orders: 0 });
        }
        let own = &levels[start..];
        // Sides are nearly always one to three levels, or sorted: then nothing is hashed.
        if own.is_sorted_by(|one, next| one.price < next.price)
            || own.is_sorted_by(|one, next| one.price > next.price)
        {
            return Ok(());
        }
        let mut seen = HashSet::with_capacity(own.len());
        let mut last = Vec::with_capacity(own.len());
        for (level, (text, _)) in own.iter().zip(written).rev() {
            if seen.insert(level.price) {
                last.push(*level);
            } else if doubled == Doubled::Refused {
                return Err(Refusal::DoubledPrice {
                    market: self.id(),
                    side: if side == Side::Buy { "bids" } else { "asks" },
                    price: text.to_string(),
                });
            }
        }
        last.reverse();
        levels.truncate(start);
        levels.append(&mut last);
        Ok(())
    }

    fn number(&self, what: &'static str, text: &str, decimals: u8) -> Result<Fixed, Refusal> {
        fixed::parse(text, decimals).map_err(|error| self.fault(what, text, error.to_string()))
    }

    fn trade_fault(&self, written: &WrittenTrade, error: TradeError) -> Refusal {
        match error {
            TradeError::Price(reason) => self.fault("price", &written.price, reason.to_string()),
            TradeError::Size(reason) => self.fault("size", &written.size, reason.to_string()),
        }
    }

    fn fault(&self, what: &'static str, written: &str, reason: String) -> Refusal {
        let written = written.chars().take(64).collect();
        Refusal::Level { market: self.id(), what, written, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::parse;
    use super::*;

    fn send(admission: &mut Admission, line: &str) -> Result<Admitted, String> {
        admission.admit(&parse(line.as_bytes()).unwrap()).map_err(|refusal| refusal.to_string())
    }

    fn define(price: u8, size: u8) -> String {
        format!(
            r#"{{"kind":"market","market":"A-B","base":"A","quote":"B","priceDecimals":{price},"sizeDecimals":{size}}}"#
        )
    }

    fn book(kind: &str, bids: &str, asks: &str) -> String {
        format!(r#"{{"kind":"book.{kind}","market":"A-B","bids":{bids},"asks":{asks}}}"#)
    }

    fn defined() -> Admission {
        let mut admission = Admission::new();
        let admitted = send(&mut admission, &define(1, 2)).unwrap();
        assert_eq!(&*admitted.topic, "market:A-B");
        admission
    }

    #[test]
    fn levels_come_out_at_the_markets_precision() {
        let mut admission = defined();
        let line = book("snapshot", r#"[["10.5","0.1"],["10","2"]]"#, r#"[["11.0","1.25"]]"#);
        let admitted = send(&mut admission, &line).unwrap();
        assert_eq!(&*admitted.topic, "book:A-B");
        let levels = vec![
            LevelChange { side: Side::Buy, price: 105, size: 10, orders: 0 },
            LevelChange { side: Side::Buy, price: 100, size: 200, orders: 0 },
            LevelChange { side: Side::Sell, price: 110, size: 125, orders: 0 },
        ];
        assert_eq!(admitted.effect, Effect::Replace { market: "A-B".into(), levels });
    }

    #[test]
    fn a_market_too_many_is_refused_and_those_that_are_known_may_change() {
        let mut admission = defined();
        let other = |number: usize| define(1, 2).replace("A-B", &format!("M{number}-B"));
        for number in 1..MOST_MARKETS {
            send(&mut admission, &other(number)).unwrap();
        }
        let refused = send(&mut admission, &other(MOST_MARKETS)).unwrap_err();
        assert_eq!(refused, Refusal::TooManyMarkets(MOST_MARKETS).to_string());
        assert!(send(&mut admission, &define(3, 3)).is_ok());
    }

    #[test]
    fn an_account_too_many_is_refused_and_those_that_are_known_place_orders() {
        let mut admission = defined();
        let placed = |order: u32, account: &str| {
            format!(
                r#"{{"kind":"order.placed","order":"{order}","market":"A-B","account":"{account}",
                "side":"BUY","price":"1","size":"1"}}"#
            )
        };
        send(&mut admission, &placed(1, "known")).unwrap();
        let others = (1..MOST_ACCOUNTS).map(|number| number.to_string().into());
        admission.accounts.extend(others);
        let refused = send(&mut admission, &placed(2, "new")).unwrap_err();
        assert_eq!(refused, Refusal::TooManyAccounts(MOST_ACCOUNTS).to_string());
        assert!(send(&mut admission, &placed(2, "known")).is_ok());
    }

    #[test]
    fn in_a_delta_the_last_of_a_doubled_price_wins() {
        let mut admission = defined();
        let line = book("delta", r#"[["10","1"],["11","5"],["10.0","2"]]"#, "[]");
        let Effect::Change { levels, .. } = send(&mut admission, &line).unwrap().effect else {
            panic!()
        };
        let sizes: Vec<_> = levels.iter().map(|level| (level.price, level.size)).collect();
        assert_eq!(sizes, [(110, 500), (100, 200)]);
    }

    #[test]
    fn faulty_levels_are_refused_by_name() {
        let mut admission = defined();
        let all = [
            (
                book("delta", r#"[["10.55","1"]]"#, "[]"),
                "market A-B: price \"10.55\" has too many decimals: at most 1",
            ),
            (
                book("delta", "[]", r#"[["10.5","1.005"]]"#),
                "market A-B: size \"1.005\" has too many decimals: at most 2",
            ),
            (book("delta", r#"[["0","1"]]"#, "[]"), "market A-B: price \"0\" must be above 0"),
            (
                book("delta", r#"[["1","-1"]]"#, "[]"),
                "market A-B: size \"-1\" is not a plain decimal number such as \"12.5\"",
            ),
            (
                book("snapshot", "[]", r#"[["1","1"],["2","1"],["1.0","3"]]"#),
                "market A-B: price \"1\" is given twice among the asks: give each price once",
            ),
        ];
        for (line, reason) in all {
            assert_eq!(send(&mut admission, &line), Err(reason.into()));
        }
    }

    #[test]
    fn the_same_price_may_stand_on_both_sides() {
        let line = book("snapshot", r#"[["1","1"]]"#, r#"[["1","1"]]"#);
        assert!(send(&mut defined(), &line).is_ok());
    }

    #[test]
    fn a_market_must_be_defined_before_it_is_used() {
        let reason = "market A-B is not defined: send its `market` event first";
        let mut admission = Admission::new();
        let trade = r#"{"kind":"trade","market":"A-B","price":"1","size":"1"}"#;
        assert_eq!(send(&mut admission, &book("delta", "[]", "[]")), Err(reason.into()));
        assert_eq!(send(&mut admission, trade), Err(reason.into()));
        assert!(send(&mut defined(), trade).is_ok());
    }

    #[test]
    fn a_trade_is_at_its_markets_precision_or_refused_by_name() {
        let mut admission = defined();
        let trade = |price: &str, size: &str| {
            format!(
                r#"{{"kind":"trade","market":"A-B","id":"7","price":"{price}","size":"{size}","takerSide":"SELL"}}"#
            )
        };
        let admitted = send(&mut admission, &trade("10.50", "3")).unwrap();
        let expected = Trade {
            market: "A-B".into(),
            id: Some("7".into()),
            price: 105,
            size: 300,
            price_decimals: 1,
            size_decimals: 2,
            taker_side: Some(Side::Sell),
        };
        assert_eq!(admitted.effect, Effect::Trade(Arc::new(expected)));
        for (price, size, reason) in [
            ("10.55", "1", "market A-B: price \"10.55\" has too many decimals: at most 1"),
            ("10.5", "0.001", "market A-B: size \"0.001\" has too many decimals: at most 2"),
            ("0.0", "1", "market A-B: price \"0.0\" must be above 0"),
            ("1", "0", "market A-B: size \"0\" must be above 0"),
        ] {
            assert_eq!(send(&mut admission, &trade(price, size)), Err(reason.into()));
        }
        assert!(send(&mut admission, &define(2, 2)).is_err(), "trades are at its decimals too");
    }

    #[test]
    fn a_market_that_mixes_levels_and_orders_is_refused() {
        let order = r#"{"kind":"order.placed","market":"A-B","order":"o","side":"BUY","price":"1","size":"1"}"#;
        let mut by_levels = defined();
        send(&mut by_levels, &book("delta", "[]", "[]")).unwrap();
        let reason = "market A-B takes its book from `book.*` events: one market can't mix them with `order.*` events";
        assert_eq!(send(&mut by_levels, order), Err(reason.into()));
        let mut by_orders = defined();
        send(&mut by_orders, order).unwrap();
        assert!(send(&mut by_orders, &book("delta", "[]", "[]")).is_err());
    }

    #[test]
    fn a_refused_book_event_settles_nothing() {
        let mut admission = defined();
        send(&mut admission, &book("delta", r#"[["0","1"]]"#, "[]")).unwrap_err();
        assert!(send(&mut admission, &define(3, 3)).is_ok());
    }

    #[test]
    fn decimals_change_only_while_there_is_no_book() {
        let mut admission = defined();
        send(&mut admission, &define(2, 2)).unwrap();
        send(&mut admission, &book("delta", r#"[["10.55","1"]]"#, "[]")).unwrap();
        let reason = "market A-B has a book or trades at 2 price and 2 size decimals: they can't change now, define a new market";
        assert_eq!(send(&mut admission, &define(1, 2)), Err(reason.into()));
        assert!(send(&mut admission, &define(2, 2)).is_ok(), "a new status or tick size is fine");
    }
}
