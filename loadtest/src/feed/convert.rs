//! Venue updates into our events (one JSON object each). It holds every market's book, because what
//! a venue leaves unsaid has to be said to a hub: levels that fall out of a fixed depth, and which
//! differences a REST snapshot already contains. Nothing here reads files or clocks.

use super::orders::Orders;
use crate::book::{Book, Side};
use crate::decimal::{DecimalError, decimals_of, printed, smallest_step};
use crate::venues::{Kind, Level, Link, VenueOrder, VenueUpdate, base_and_quote};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// Differences held back until their market's snapshot comes: a REST book arrives a few seconds
/// into a capture at worst. Beyond it the oldest go, which shows as a gap.
const HELD_BACK: usize = 65_536;

/// What a market's events must be printed with; found by reading the whole capture once.
#[derive(Debug, Clone, Default)]
pub struct MarketFacts {
    pub price_decimals: usize,
    pub size_decimals: usize,
    pub first_time: Option<i64>,
}

impl MarketFacts {
    pub fn see(&mut self, update: &VenueUpdate) {
        for (price, size) in update.bids.iter().chain(&update.asks) {
            self.price_decimals = self.price_decimals.max(decimals_of(price));
            self.size_decimals = self.size_decimals.max(decimals_of(size));
        }
        self.first_time = self.first_time.or(update.time);
    }

    pub fn see_order(&mut self, step: &VenueOrder) {
        self.price_decimals = self.price_decimals.max(decimals_of(&step.price));
        self.size_decimals = self.size_decimals.max(decimals_of(&step.open));
        self.size_decimals = self.size_decimals.max(decimals_of(&step.traded));
        self.first_time = self.first_time.or(step.time);
    }
}

/// Counted, and printed as the command's last line.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    pub markets: u64,
    pub snapshots: u64,
    pub deltas: u64,
    /// Differences that the snapshot already contained.
    pub stale: u64,
    /// Messages without a level; they make no event.
    pub empty: u64,
    /// Updates of a market before its snapshot where the venue has no numbers to place them by.
    pub before_snapshot: u64,
    /// Differences still waiting for a snapshot at the end.
    pub unanchored: u64,
    pub gaps: u64,
    /// Removals of levels that fell beyond the channel's depth.
    pub truncated_levels: u64,
    pub checksums_matched: u64,
    pub checksum_faults: u64,
    /// Messages about single orders, by what they say happened.
    pub created: u64,
    pub changed: u64,
    pub deleted: u64,
    /// Orders that were open before the capture began, and the messages about them: a hub refuses
    /// those, as nothing says what these orders were.
    pub earlier_orders: u64,
    pub of_earlier_orders: u64,
    /// Messages that contradict what was said of their order before.
    pub order_faults: u64,
}

/// One event, ready to be written. `due` paces it.
#[derive(Debug)]
pub struct Event {
    pub json: String,
    pub due: Option<i64>,
}

/// What every event has.
#[derive(Serialize)]
pub struct Head<'a> {
    pub kind: &'static str,
    pub market: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BookEvent<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    bids: Vec<(&'a str, &'a str)>,
    asks: Vec<(&'a str, &'a str)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    venue_checksum: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MarketEvent<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    base: &'a str,
    quote: &'a str,
    price_decimals: usize,
    size_decimals: usize,
    tick_size: String,
    lot_size: String,
    status: &'static str,
}

#[derive(Debug)]
struct Market {
    id: String,
    book: Book,
    anchor: Anchor,
    time: Option<i64>,
    orders: Orders,
}

#[derive(Debug)]
enum Anchor {
    /// No snapshot yet: updates wait with the number of their line.
    Waiting(VecDeque<(u64, VenueUpdate)>),
    /// The last number (or clock) that the book contains.
    At(u64),
}

#[derive(Debug)]
pub struct Converter {
    /// `kraken-v1/<file>`; `Some` gives every event an id.
    id_prefix: Option<String>,
    markets: BTreeMap<String, Market>,
    connection_sequence: Option<u64>,
    pub counts: Counts,
    /// Printed for the user and cleared by the caller.
    pub remarks: Vec<String>,
}

impl Converter {
    /// The converter and one `market` event for each market of `facts` (by venue symbol).
    ///
    /// # Errors
    /// When a symbol can't be split into base and quote.
    pub fn new(
        facts: &BTreeMap<String, MarketFacts>,
        id_prefix: Option<String>,
    ) -> Result<(Self, Vec<Event>), String> {
        let mut converter = Self {
            id_prefix,
            markets: BTreeMap::new(),
            connection_sequence: None,
            counts: Counts::default(),
            remarks: Vec::new(),
        };
        let mut events = Vec::with_capacity(facts.len());
        for (symbol, facts) in facts {
            let (base, quote) = base_and_quote(symbol)
                .ok_or_else(|| format!("symbol `{symbol}` has no base and quote"))?;
            let id = format!("{base}-{quote}");
            let event = MarketEvent {
                head: Head {
                    kind: "market",
                    market: &id,
                    id: converter.id_prefix.as_ref().map(|prefix| format!("{prefix}/market/{id}")),
                    time: facts.first_time.and_then(rfc3339_micros),
                },
                base: &base,
                quote: &quote,
                price_decimals: facts.price_decimals,
                size_decimals: facts.size_decimals,
                tick_size: smallest_step(facts.price_decimals),
                lot_size: smallest_step(facts.size_decimals),
                status: "ACTIVE",
            };
            events.push(Event { json: json(&event), due: None });
            converter.counts.markets += 1;
            let book = Book::new(facts.price_decimals, facts.size_decimals);
            let anchor = Anchor::Waiting(VecDeque::new());
            let orders = Orders::default();
            let market = Market { id, book, anchor, time: facts.first_time, orders };
            converter.markets.insert(symbol.clone(), market);
        }
        Ok((converter, events))
    }

    /// A number of the whole connection (Coinbase): the next must be one more.
    pub fn connection_sequence(&mut self, sequence: u64) {
        if let Some(seen) = self.connection_sequence
            && sequence != seen + 1
        {
            self.counts.gaps += 1;
            self.remarks.push(format!("gap: message {seen} of the connection, then {sequence}"));
        }
        self.connection_sequence = Some(sequence);
    }

    /// The events that one venue update makes: none, one, or, for a snapshot that others waited
    /// for, many.
    ///
    /// # Errors
    /// When a number in it isn't of the market's precision, or the market is unknown.
    pub fn update(&mut self, line: u64, update: VenueUpdate) -> Result<Vec<Event>, DecimalError> {
        let Some(mut market) = self.markets.remove(&update.symbol) else {
            // The survey has seen every symbol, so this would be a bug of ours.
            return Err(DecimalError::Malformed(update.symbol));
        };
        let symbol = update.symbol.clone();
        let mut events = Vec::with_capacity(1);
        let result = self.market_update(&mut market, line, update, &mut events);
        self.markets.insert(symbol, market);
        result.map(|()| events)
    }

    /// The events that one message about a single order makes.
    ///
    /// # Errors
    /// As [`Converter::update`].
    pub fn order(&mut self, line: u64, step: &VenueOrder) -> Result<Vec<Event>, DecimalError> {
        let Some(market) = self.markets.get_mut(&step.symbol) else {
            return Err(DecimalError::Malformed(step.symbol.clone()));
        };
        let id = self.id_prefix.as_ref().map(|prefix| format!("{prefix}/{line}/{}", market.id));
        let size_decimals = market.book.size_decimals;
        let (orders, counts) = (&mut market.orders, &mut self.counts);
        let (events, remark) =
            orders.step(&market.id, id.as_deref(), size_decimals, step, counts)?;
        self.remarks.extend(remark.map(|remark| format!("line {line}: {remark}")));
        Ok(events)
    }

    fn market_update(
        &mut self,
        market: &mut Market,
        line: u64,
        update: VenueUpdate,
        events: &mut Vec<Event>,
    ) -> Result<(), DecimalError> {
        match (update.kind, &mut market.anchor) {
            (Kind::Snapshot, anchor) => {
                let held = match anchor {
                    Anchor::Waiting(held) => std::mem::take(held),
                    Anchor::At(_) => VecDeque::new(),
                };
                *anchor = Anchor::At(update.link.last());
                events.push(self.event(market, line, &update)?);
                for (line, update) in held {
                    if update.link == Link::Unnumbered {
                        self.counts.before_snapshot += 1;
                    } else {
                        self.market_update(market, line, update, events)?;
                    }
                }
                Ok(())
            }
            (Kind::Delta, Anchor::Waiting(held)) => {
                if held.len() == HELD_BACK {
                    held.pop_front();
                }
                held.push_back((line, update));
                Ok(())
            }
            (Kind::Delta, Anchor::At(seen)) => {
                let order = update.link.order_after(*seen);
                if order == Order::Stale {
                    self.counts.stale += 1;
                    return Ok(());
                }
                if order == Order::Gap {
                    self.counts.gaps += 1;
                    self.remarks.push(format!(
                        "gap: line {line}, {}: {:?} follows {seen}",
                        market.id, update.link
                    ));
                }
                *seen = update.link.last();
                if update.bids.is_empty() && update.asks.is_empty() && update.checksum.is_none() {
                    self.counts.empty += 1;
                    return Ok(());
                }
                events.push(self.event(market, line, &update)?);
                Ok(())
            }
        }
    }

    fn event(
        &mut self,
        market: &mut Market,
        line: u64,
        update: &VenueUpdate,
    ) -> Result<Event, DecimalError> {
        if update.kind == Kind::Snapshot {
            market.book.clear();
        }
        let mut bids = merged(&mut market.book, Side::Bid, &update.bids)?;
        let mut asks = merged(&mut market.book, Side::Ask, &update.asks)?;
        if let Some(depth) = update.depth {
            let decimals = market.book.price_decimals;
            let (bids_out, asks_out) = market.book.truncate(depth);
            self.counts.truncated_levels += (bids_out.len() + asks_out.len()) as u64;
            for (levels, dropped) in [(&mut bids, bids_out), (&mut asks, asks_out)] {
                for price in dropped {
                    levels.insert(price, (printed(price, decimals), "0".to_owned()));
                }
            }
        }
        if let Some(expected) = update.checksum {
            self.check(market, line, expected);
        }
        market.time = update.time.or(market.time);
        let is_snapshot = update.kind == Kind::Snapshot;
        if is_snapshot {
            self.counts.snapshots += 1;
            // A snapshot has no removals: what isn't in it isn't there.
            bids.retain(|_, (_, size)| size != "0");
            asks.retain(|_, (_, size)| size != "0");
        } else {
            self.counts.deltas += 1;
        }
        let event = BookEvent {
            head: Head {
                kind: if is_snapshot { "book.snapshot" } else { "book.delta" },
                market: &market.id,
                id: self.id_prefix.as_ref().map(|prefix| {
                    // A line of several markets makes several events of that line.
                    format!("{prefix}/{line}/{}", market.id)
                }),
                time: market.time.and_then(rfc3339_micros),
            },
            bids: bids.values().rev().map(borrowed).collect(),
            asks: asks.values().map(borrowed).collect(),
            venue_checksum: update.checksum,
        };
        Ok(Event { json: json(&event), due: update.received.or(update.time) })
    }

    fn check(&mut self, market: &Market, line: u64, expected: u32) {
        let found = market.book.checksum();
        if found == expected {
            self.counts.checksums_matched += 1;
        } else {
            self.counts.checksum_faults += 1;
            self.remarks.push(format!(
                "line {line}, {}: the venue's checksum is {expected}, the book's {found}",
                market.id
            ));
        }
    }

    /// To be called once after the last line: says which markets never got a snapshot, and what
    /// was open before the capture.
    pub fn finish(&mut self) {
        if self.counts.earlier_orders > 0 {
            let Counts { earlier_orders, of_earlier_orders, .. } = self.counts;
            self.remarks.push(format!(
                "{earlier_orders} orders were open before the capture began, {of_earlier_orders} \
                 messages are about them: a hub refuses these by name, as it never saw them placed"
            ));
        }
        for market in self.markets.values() {
            if let Anchor::Waiting(held) = &market.anchor
                && !held.is_empty()
            {
                self.counts.unanchored += held.len() as u64;
                self.remarks.push(format!(
                    "{}: {} updates but no snapshot to place them on (--snapshot REST.json)",
                    market.id,
                    held.len()
                ));
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Order {
    Next,
    Stale,
    Gap,
}

impl Link {
    fn last(self) -> u64 {
        match self {
            Self::Unnumbered => 0,
            Self::After { last, .. }
            | Self::Range { last, .. }
            | Self::Leaping { last, .. }
            | Self::Clock(last) => last,
        }
    }

    fn order_after(self, seen: u64) -> Order {
        match self {
            Self::Unnumbered => Order::Next,
            Self::After { previous, .. } if previous == seen => Order::Next,
            Self::After { last, .. } if last <= seen => Order::Stale,
            Self::Range { last, .. } | Self::Leaping { last, .. } | Self::Clock(last)
                if last <= seen =>
            {
                Order::Stale
            }
            Self::Range { first, .. } if first <= seen.saturating_add(1) => Order::Next,
            // The first one after the book covers the id of it.
            Self::Leaping { first, previous, .. } if previous == seen || first <= seen => {
                Order::Next
            }
            Self::Clock(_) => Order::Next,
            Self::After { .. } | Self::Range { .. } | Self::Leaping { .. } => Order::Gap,
        }
    }
}

/// Applies levels in the order given and returns what each touched price came to, keyed by price.
fn merged(
    book: &mut Book,
    side: Side,
    levels: &[Level],
) -> Result<BTreeMap<u128, (String, String)>, DecimalError> {
    let mut merged = BTreeMap::new();
    for (price, size) in levels {
        let key = book.set(side, price, size)?;
        let removes = size.bytes().all(|byte| matches!(byte, b'0' | b'.'));
        let size = if removes { "0".to_owned() } else { size.clone() };
        merged.insert(key, (price.clone(), size));
    }
    Ok(merged)
}

fn borrowed((price, size): &(String, String)) -> (&str, &str) {
    (price, size)
}

pub(super) fn rfc3339_micros(micros: i64) -> Option<String> {
    let time = jiff::Timestamp::from_microsecond(micros).ok()?;
    Some(format!("{time:.6}"))
}

pub(super) fn json(event: &impl Serialize) -> String {
    serde_json::to_string(event).expect("strings and numbers always serialize")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(kind: Kind, link: Link, bids: &[(&str, &str)]) -> VenueUpdate {
        let bids = bids.iter().map(|(p, s)| ((*p).to_owned(), (*s).to_owned())).collect();
        VenueUpdate {
            symbol: "A/USD".to_owned(),
            kind,
            depth: Some(2),
            bids,
            asks: Vec::new(),
            time: Some(1_618_678_133_481_570),
            received: None,
            link,
            checksum: None,
        }
    }

    fn converter() -> Converter {
        let facts = MarketFacts { price_decimals: 1, size_decimals: 2, first_time: None };
        let facts = BTreeMap::from([("A/USD".to_owned(), facts)]);
        Converter::new(&facts, None).unwrap().0
    }

    fn jsons(events: Vec<Event>) -> Vec<String> {
        events.into_iter().map(|event| event.json).collect()
    }

    #[test]
    fn a_level_pushed_beyond_the_depth_is_removed_in_the_same_event() {
        let mut converter = converter();
        let levels = [("1.0", "1.00"), ("2.0", "1.00")];
        converter.update(1, update(Kind::Snapshot, Link::Unnumbered, &levels)).unwrap();
        let delta = update(Kind::Delta, Link::Unnumbered, &[("3.0", "1.00"), ("3.0", "2.00")]);
        assert_eq!(
            jsons(converter.update(2, delta).unwrap()),
            [concat!(
                r#"{"kind":"book.delta","market":"A-USD","time":"2021-04-17T16:48:53.481570Z","#,
                r#""bids":[["3.0","2.00"],["1.0","0"]],"asks":[]}"#
            )]
        );
        assert_eq!(converter.counts.truncated_levels, 1);
    }

    #[test]
    fn differences_before_the_snapshot_wait_and_stale_ones_are_dropped() {
        let mut converter = converter();
        for last in 5..=7 {
            let delta = update(Kind::Delta, Link::Range { first: last, last }, &[("1.0", "1.00")]);
            assert!(converter.update(last, delta).unwrap().is_empty());
        }
        let link = Link::Range { first: 6, last: 6 };
        let events = converter.update(9, update(Kind::Snapshot, link, &[])).unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!((converter.counts.stale, converter.counts.gaps), (2, 0));
    }

    #[test]
    fn a_gap_in_the_venues_chain_is_counted_and_reported() {
        let mut converter = converter();
        let link = Link::After { previous: 0, last: 5 };
        converter.update(1, update(Kind::Snapshot, link, &[])).unwrap();
        let link = Link::After { previous: 6, last: 7 };
        converter.update(2, update(Kind::Delta, link, &[("1.0", "1.00")])).unwrap();
        assert_eq!(converter.counts.gaps, 1);
        assert_eq!(converter.remarks.len(), 1);
    }

    #[test]
    fn a_restarted_numbering_that_names_its_predecessor_is_no_gap() {
        assert_eq!(Link::After { previous: 900, last: 3 }.order_after(900), Order::Next);
        assert_eq!(Link::After { previous: 900, last: 3 }.order_after(901), Order::Stale);
        assert_eq!(Link::After { previous: 900, last: 950 }.order_after(901), Order::Gap);
    }

    #[test]
    fn of_ids_that_leap_the_named_one_alone_says_what_follows() {
        let link = |first, last, previous| Link::Leaping { first, last, previous };
        assert_eq!(link(100, 105, 90).order_after(102), Order::Next, "it covers the book's id");
        assert_eq!(link(137, 142, 105).order_after(105), Order::Next);
        assert_eq!(link(180, 190, 150).order_after(142), Order::Gap);
        assert_eq!(link(90, 101, 80).order_after(102), Order::Stale);
    }
}
