//! A state as Redis gives it back: it is no state of ours, or it is one that can be put back. Then
//! it is written again as it was, and the market goes on from it.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use spreadly_subscriptions::Epoch;

use crate::cache::entry::STATE_FIELDS;
use crate::cache::{CachedState, Found};
use crate::live::Live;
use crate::live::checkpoint::{book_market, checkpoint, put_back, with_orders};
use crate::market::admission::{Admission, BookMode};
use crate::market::definition::{MarketDefinition, MarketId, MarketStatus, check_market};
use crate::market::effect::{Applied, Effect};
use crate::market::event::{Body, CanceledOrder, Event, FilledOrder, OrderEvent, parse};
use crate::store::{Checkpoint, LogReaders};

/// Touches of a book that its journal keeps: few, so that a short input reaches the limit.
const JOURNAL: usize = 4;
/// The clock of the hub, and the log's epoch.
const NOW: i64 = 1_700_000_000_000_000;
const EPOCH: Epoch = Epoch(7);

/// Takes the fields of a state, a line each, in the order of [`STATE_FIELDS`]. Returns whether it
/// could be put back. Its fingerprint is made for it, as no fuzzer finds one.
pub fn cached_state(data: &[u8]) -> bool {
    let mut lines = data.split(|byte| *byte == b'\n').map(Bytes::copy_from_slice);
    let fields: Vec<_> = STATE_FIELDS.iter().map(|_| lines.next()).collect();
    if let Found::State(read) = Found::read(&fields) {
        assert_eq!(Found::read(&stored(&read)), Found::State(read));
    }
    let text = |place: usize| Some(str::from_utf8(fields[place].as_ref()?).ok()?.to_owned());
    let number = |place| text(place)?.parse().ok();
    let epoch = |place| Some(Epoch(number(place)?));
    let (Some(log), Some(sequence), Some(epoch)) = (epoch(0), number(1), epoch(2)) else {
        return false;
    };
    let (Some(topic), Some(state)) = (text(3), fields[4].clone()) else { return false };
    let state = CachedState { log, epoch, sequence, topic, state };
    let whole = stored(&state);
    assert_eq!(Found::read(&whole), Found::State(state.clone()));
    assert_torn_is_refused(&state, &whole, data);
    let checkpoint =
        Checkpoint { topic: state.topic.as_str().into(), sequence, state: state.state.to_vec() };
    match Market::of(&checkpoint) {
        Some(mut market) => {
            assert_written_the_same(&market, &checkpoint);
            market.goes_on(sequence);
            true
        }
        None => false,
    }
}

/// The fields as Redis gives them back.
fn stored(state: &CachedState) -> Vec<Option<Bytes>> {
    let fields = state.fields();
    let named = |name: &&str| {
        let place = fields[2..].iter().step_by(2).position(|one| one == name.as_bytes())?;
        Some(fields[2 + 2 * place + 1].clone())
    };
    let ordered = fields[..2].iter().cloned().map(Some);
    ordered.chain(STATE_FIELDS[2..].iter().map(named)).collect()
}

/// One byte is another one. Which one, the data decides.
fn assert_torn_is_refused(state: &CachedState, whole: &[Option<Bytes>], data: &[u8]) {
    let byte = |at: usize| data.get(at % data.len().max(1)).copied().unwrap_or_default();
    let mut torn = whole.to_vec();
    let Some(field) = &mut torn[usize::from(byte(1)) % STATE_FIELDS.len()] else { return };
    let mut bytes = field.to_vec();
    let length = bytes.len().max(1);
    if let Some(one) = bytes.get_mut(usize::from(byte(2)) % length) {
        *one = byte(3);
    }
    *field = bytes.into();
    match Found::read(&torn) {
        Found::State(read) => assert_eq!(read, *state),
        Found::Unreadable => {}
        Found::Nothing => panic!("fields that are there are no state"),
    }
}

/// A market that begins from a state.
struct Market {
    id: MarketId,
    live: Arc<Live>,
    admission: Admission,
}

impl Market {
    /// `None` where the state is of no book, or can't be put back.
    fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let id = MarketId::from(book_market(&checkpoint.topic)?);
        check_market(&id).ok()?;
        let definition = Arc::new(MarketDefinition {
            market: id.clone(),
            base: "A".into(),
            quote: "B".into(),
            price_decimals: 2,
            size_decimals: 2,
            tick_size: "0.01".into(),
            lot_size: "0.01".into(),
            min_size: "0.01".into(),
            status: MarketStatus::Active,
            time: None,
        });
        let live =
            Arc::new(Live::new(EPOCH, Box::new(|| NOW), JOURNAL, LogReaders::new("".as_ref(), 1)));
        live.define(definition.clone());
        let mut admission = Admission::new();
        let orders = checkpoint.topic.starts_with("orders");
        let mode = if orders { BookMode::Orders } else { BookMode::Levels };
        admission.resettle(&id, Some(definition), Some(mode), false);
        let mut restore = |market: &str, sequence: u64, state: &[u8]| {
            live.restore(market, sequence, state).is_ok()
        };
        put_back(&mut admission, &mut restore, &id, checkpoint).then_some(())?;
        Some(Self { id, live, admission })
    }

    /// As the cache's writer writes it, with the journal.
    fn written(&self) -> Checkpoint {
        let taken = self.live.state(&self.id, JOURNAL).expect("the market is defined");
        let orders = self.admission.orders().to_checkpoint(&self.id);
        let (topic, state) = match self.admission.mode(&self.id) {
            Some(BookMode::Orders) => with_orders(&self.id, &orders, &taken.to_bytes()),
            _ => checkpoint(&self.admission, &self.id, taken.to_bytes()),
        };
        Checkpoint { topic: topic.into(), sequence: taken.sequence(), state }
    }

    fn orders(&self) -> Vec<Box<str>> {
        let orders = self.admission.orders().to_checkpoint(&self.id);
        let orders: Value = serde_json::from_slice(&orders).expect("orders are JSON");
        let open = orders["open"].as_array().expect("a list of orders");
        open.iter().filter_map(|order| Some(order["id"].as_str()?.into())).collect()
    }

    fn take(&mut self, event: &Event<'_>, sequence: u64) -> bool {
        let Ok(admitted) = self.admission.admit(event) else { return false };
        let (time, effect) = (event.time, admitted.effect);
        if let Effect::Order { update, .. } = &effect {
            serde_json::to_vec(&**update).expect("what clients are sent");
        }
        self.live.apply(&[Applied { sequence, time, effect, candles: Vec::new() }]);
        true
    }

    /// Takes the events that may follow.
    fn goes_on(&mut self, mut sequence: u64) {
        let events = [
            r#""kind":"book.delta","bids":[["1","2"]],"asks":[["9","0"]]"#,
            r#""kind":"book.snapshot","bids":[["2","2"]],"asks":[]"#,
            r#""kind":"order.placed","order":"n","side":"BUY","price":"1","size":"1""#,
        ];
        let lines = events.map(|event| format!(r#"{{"market":"{}",{event}}}"#, self.id));
        for line in lines {
            let event = parse(line.as_bytes()).expect("a line as its format says");
            let Some(next) = sequence.checked_add(1) else { return };
            if self.take(&event, next) {
                sequence = next;
                assert_eq!(self.written().sequence, sequence, "each event counts");
            }
        }
        for order in self.orders() {
            let (market, size) = (None, "0.01".into());
            let (trade, liquidity, box_id, price) = (None, None, None, "1".into());
            let filled =
                FilledOrder { market, order: order.clone(), trade, price, size, liquidity, box_id };
            let canceled = CanceledOrder { market: None, order, reason: None, requested: false };
            for event in [OrderEvent::Filled(filled), OrderEvent::Canceled(canceled)] {
                let body = Body::Order(Box::new(event));
                let event = Event { id: None, time: Some(NOW), height: None, body };
                let Some(next) = sequence.checked_add(1) else { return };
                if self.take(&event, next) {
                    sequence = next;
                }
            }
        }
        assert!(self.orders().is_empty(), "each order was canceled or filled");
    }
}

fn assert_written_the_same(market: &Market, first: &Checkpoint) {
    let written = market.written();
    assert_eq!((&written.topic, written.sequence), (&first.topic, first.sequence));
    // Numbers without zeros in front, and the count of orders where a level had none.
    assert!(written.state.len() <= 2 * first.state.len() + 512, "it grew in memory");
    let again = Market::of(&written).expect("what is written can be read").written();
    assert_eq!(sorted(&again.state), sorted(&written.state));
}

/// Orders are kept in no order.
fn sorted(state: &[u8]) -> Value {
    let mut state: Value = serde_json::from_slice(state).expect("a state is JSON");
    if let Some(orders) = state.pointer_mut("/orders/open").and_then(Value::as_array_mut) {
        orders.sort_unstable_by_key(Value::to_string);
    }
    state
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::fuzzing::seeds;

    #[test]
    fn each_seed_of_a_state_is_put_back_and_written_the_same() {
        for seed in seeds("cached_state") {
            assert!(cached_state(&seed), "{}", String::from_utf8_lossy(&seed));
        }
    }

    fn number() -> impl Strategy<Value = String> {
        prop_oneof![
            100 => (0u64..9).prop_map(|number| number.to_string()),
            3 => Just(u128::MAX.to_string()),
            1 => Just("-1".to_owned()),
            1 => Just("x".to_owned()),
        ]
    }

    /// A JSON list of pairs of numbers.
    fn levels() -> impl Strategy<Value = String> {
        prop::collection::vec((number(), number()), 0..5).prop_map(|levels| {
            let level = |(price, size)| format!(r#"["{price}","{size}"]"#);
            format!("[{}]", levels.into_iter().map(level).collect::<Vec<_>>().join(","))
        })
    }

    fn numbers() -> impl Strategy<Value = String> {
        prop::collection::vec(number(), 0..4).prop_map(|all| format!("[{}]", all.join(",")))
    }

    /// Its sequence, and what is written of it.
    fn book() -> impl Strategy<Value = (u64, String)> {
        let touches = prop::collection::vec((number(), number(), number()), 0..6);
        let touches = touches.prop_map(|all| {
            let touch = |(at, price, size)| format!(r#"[{at},"BUY","{price}","{size}",0]"#);
            format!("[{}]", all.into_iter().map(touch).collect::<Vec<_>>().join(","))
        });
        let journal = (number(), numbers(), touches).prop_map(|(floor, events, touches)| {
            format!(r#","journal":{{"floor":{floor},"events":{events},"touches":{touches}}}"#)
        });
        let journal = prop_oneof![Just(String::new()), journal];
        let sequence = prop_oneof![0u64..9, Just(u64::MAX)];
        (sequence, levels(), levels(), numbers(), journal).prop_map(
            |(sequence, bids, asks, counts, journal)| {
                let levels = format!(r#""bids":{bids},"asks":{asks},"bid_orders":{counts}"#);
                let book = format!(r#"{{"sequence":{sequence},{levels}{journal}}}"#);
                let head = r#""eventTime":null,"offer":null,"hasBook":true,"gap":null"#;
                (sequence, format!(r#"{{{head},"book":{book}}}"#))
            },
        )
    }

    fn order() -> impl Strategy<Value = String> {
        let market = prop_oneof![9 => Just("A-B"), 1 => Just("X")];
        let status = prop_oneof![9 => Just("OPEN"), 1 => Just("FILLED")];
        let decimals = prop_oneof![9 => Just(2), 1 => Just(99)];
        (number(), market, status, decimals, number(), number()).prop_map(
            |(id, market, status, decimals, price, open)| {
                let order = json!({
                    "id": id, "market": market, "account": "9g", "clientId": null,
                    "side": "SELL", "orderType": "LIMIT", "priceDecimals": decimals,
                    "sizeDecimals": 2, "price": price, "size": open, "open": open,
                    "filled": "0", "status": status, "boxId": null, "metadataCid": null,
                    "expiresAt": null, "placedAt": null, "updatedAt": 1,
                });
                order.to_string()
            },
        )
    }

    /// What a book of orders lacks.
    fn gaps() -> impl Strategy<Value = Value> {
        let missed = prop_oneof![
            9 => number().prop_map(|order| json!({ "Order": order })),
            3 => Just(json!("SomeOrder")),
            1 => Just(json!("Levels")),
        ];
        let market = prop_oneof![9 => Just("A-B"), 1 => Just("X")];
        let gap = (market, missed).prop_map(|(market, missed)| {
            json!({ "market": market, "missed": missed, "source": null, "reason": "a fault" })
        });
        let gaps = (prop::collection::vec(gap.clone(), 0..3), prop::option::of(gap), any::<bool>());
        let gaps = gaps.prop_map(|(orders, unknown, knows_all)| {
            json!({ "orders": orders, "unknown": unknown, "knowsAll": knows_all })
        });
        prop_oneof![Just(Value::Null), gaps]
    }

    proptest! {
        #[test]
        fn a_state_of_levels_goes_on_or_is_refused((sequence, book) in book(), ahead in 0..9u64) {
            let sequence = sequence.saturating_add(ahead / 8);
            cached_state(format!("7\n{sequence}\n7\nbook:A-B\n{book}").as_bytes());
        }

        #[test]
        fn a_state_of_orders_goes_on_or_is_refused(
            (sequence, book) in book(),
            orders in prop::collection::vec(order(), 0..5),
            gaps in gaps(),
        ) {
            let orders = format!(r#"{{"open":[{}],"gaps":{gaps}}}"#, orders.join(","));
            let state = format!(r#"{{"orders":{orders},"market":{book}}}"#);
            cached_state(format!("7\n{sequence}\n7\norders:A-B\n{state}").as_bytes());
        }

        #[test]
        fn any_bytes_are_a_state_or_are_refused(
            data in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            cached_state(&data);
        }
    }
}
