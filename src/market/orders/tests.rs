//! Orders against a model that keeps nothing but a list of them.

use proptest::prelude::*;

use super::super::book_gap::{BookGap, Missed};
use super::super::definition::MarketStatus;
use super::super::event::{Body, parse};
use super::*;

fn definition() -> MarketDefinition {
    MarketDefinition {
        market: "A-B".into(),
        base: "A".into(),
        quote: "B".into(),
        price_decimals: 1,
        size_decimals: 2,
        tick_size: "0.1".into(),
        lot_size: "0.01".into(),
        min_size: "0.01".into(),
        status: MarketStatus::Active,
        time: None,
    }
}

fn event(line: &str) -> OrderEvent {
    match parse(line.as_bytes()).unwrap().body {
        Body::Order(event) => *event,
        other => panic!("{other:?}"),
    }
}

fn take(orders: &mut Orders, line: &str) -> Result<Changed, String> {
    let event = event(line);
    orders.market_of(&event).map_err(|refusal| refusal.to_string())?;
    orders.take(&definition(), &event, Some(7)).map_err(|refusal| refusal.to_string())
}

fn placed(order: &str, side: &str, price: &str, size: &str) -> String {
    format!(
        r#"{{"kind":"order.placed","market":"A-B","order":"{order}","account":"9g","side":"{side}","type":"LIMIT","price":"{price}","size":"{size}","boxId":"b0"}}"#
    )
}

fn filled(order: &str, size: &str, box_id: &str) -> String {
    format!(
        r#"{{"kind":"order.filled","order":"{order}","price":"10","size":"{size}","boxId":"{box_id}"}}"#
    )
}

fn canceled(order: &str) -> String {
    format!(r#"{{"kind":"order.canceled","order":"{order}","reason":"asked"}}"#)
}

fn level(side: Side, price: Fixed, size: Fixed, orders: u32) -> LevelChange {
    LevelChange { side, price, size, orders }
}

#[test]
fn a_partial_fill_moves_the_box_and_keeps_the_order() {
    let mut orders = Orders::default();
    let changed = take(&mut orders, &placed("o1", "SELL", "10.5", "2")).unwrap();
    assert_eq!(changed.levels, [level(Side::Sell, 105, 200, 1)]);
    let changed = take(&mut orders, &filled("o1", "0.5", "b1")).unwrap();
    let order = &changed.update.order;
    assert_eq!((&*order.id, order.box_id.as_deref()), ("o1", Some("b1")));
    assert_eq!((order.open, order.filled), (150, 50));
    assert_eq!(order.status, OrderStatus::PartiallyFilled);
    assert_eq!(changed.levels, [level(Side::Sell, 105, 150, 1)]);
    let changed = take(&mut orders, &filled("o1", "1.5", "b2")).unwrap();
    assert_eq!(changed.update.order.status, OrderStatus::Filled);
    assert_eq!(changed.levels, [level(Side::Sell, 105, 0, 0)]);
    assert!(orders.is_empty(), "what is final leaves");
}

fn gap(order: Option<&str>) -> Arc<BookGap> {
    let missed = Missed::of_order(order);
    Arc::new(BookGap {
        market: "A-B".into(),
        missed,
        height: None,
        source: None,
        reason: "a fault".into(),
    })
}

#[test]
fn a_market_names_so_many_orders_that_missed_an_event() {
    let mut orders = Orders::default();
    let market: MarketId = "A-B".into();
    for number in 0..MOST_NAMED_ORDERS {
        orders.lose(&gap(Some(&number.to_string())));
    }
    assert!(
        orders.has_gap("A-B", Some("0"), None) && !orders.has_gap("A-B", Some("one more"), None)
    );
    assert_eq!(orders.gap("A-B").unwrap().order(), Some("63"));
    // What a checkpoint holds.
    let mut restored = Orders::default();
    restored.restore("A-B", &orders.to_checkpoint("A-B")).unwrap();
    assert_eq!(restored.lacking("7"), std::slice::from_ref(&market));
    for number in 0..MOST_NAMED_ORDERS {
        restored.complete(&market, Some(&number.to_string()));
    }
    assert_eq!(restored.gap("A-B"), None);
    orders.lose(&gap(Some("one more")));
    assert_eq!(orders.gap("A-B").unwrap().missed, Missed::SomeOrder);
    orders.complete(&market, Some("one more"));
    assert!(orders.has_gap("A-B", Some("0"), None) && !orders.knows_all("A-B"));
    orders.complete(&market, None);
    assert!(!orders.has_gap("A-B", None, None) && orders.knows_all("A-B"));
    orders.lose(&gap(None));
    orders.forget("A-B");
    assert!(orders.gap("A-B").is_none() && !orders.knows_all("A-B"));
}

#[test]
fn an_order_that_is_final_lacks_nothing_and_one_that_is_placed_again_may() {
    let mut orders = Orders::default();
    for (order, size) in [("o1", "1"), ("o2", "2"), ("o3", "1")] {
        orders.lose(&gap(Some(order)));
        take(&mut orders, &placed(order, "BUY", "10", size)).unwrap();
        assert!(orders.has_gap("A-B", Some(order), None), "{order}");
    }
    take(&mut orders, &filled("o2", "1", "b1")).unwrap();
    assert!(orders.has_gap("A-B", Some("o2"), None));
    take(&mut orders, &filled("o2", "1", "b2")).unwrap();
    assert!(!orders.has_gap("A-B", Some("o2"), None));
    take(&mut orders, &canceled("o1")).unwrap();
    assert_eq!(orders.gap("A-B").unwrap().order(), Some("o3"));
}

#[test]
fn clients_leave_half_of_the_places_and_of_each_level_to_the_source() {
    let asked = |line: &str| line.replacen('{', r#"{"requested":true,"#, 1);
    let mut orders = Orders::with_limit(4);
    for order in ["o1", "o2"] {
        take(&mut orders, &asked(&placed(order, "BUY", "10", "1"))).unwrap();
    }
    let refused = take(&mut orders, &asked(&placed("o3", "BUY", "10", "1")));
    assert_eq!(refused, Err(Refusal::TooManyOrders(2).to_string()));
    take(&mut orders, &placed("o3", "BUY", "10", "1")).unwrap();
    // What the log has is taken in any case.
    orders.limit(usize::MAX);
    take(&mut orders, &asked(&placed("o4", "BUY", "10", "1"))).unwrap();
    let precise = MarketDefinition { size_decimals: 18, ..definition() };
    let half = fixed::format(Fixed::MAX / 2, 18);
    let send = |orders: &mut Orders, line: &str| {
        let changed = orders.take(&precise, &event(line), None);
        changed.map(drop).map_err(|refusal| refusal.to_string())
    };
    assert_eq!(send(&mut Orders::default(), &asked(&placed("o", "BUY", "9", &half))), Ok(()));
    let mut orders = Orders::default();
    send(&mut orders, &placed("o1", "BUY", "9", "1")).unwrap();
    let refused = send(&mut orders, &asked(&placed("o2", "BUY", "9", &half)));
    assert!(refused.unwrap_err().ends_with("is too large for its price level"));
    send(&mut orders, &placed("o2", "BUY", "9", &half)).unwrap();
}

#[test]
fn a_market_order_never_rests() {
    let mut orders = Orders::default();
    let line = r#"{"kind":"order.placed","market":"A-B","order":"m","side":"BUY","type":"MARKET","price":"11","size":"1"}"#;
    assert_eq!(take(&mut orders, line).unwrap().levels, []);
    assert_eq!(take(&mut orders, &filled("m", "0.4", "b")).unwrap().levels, []);
    assert_eq!(take(&mut orders, &canceled("m")).unwrap().levels, []);
}

#[test]
fn what_can_not_be_is_refused_with_its_reason_and_changes_nothing() {
    let mut orders = Orders::with_limit(2);
    take(&mut orders, &placed("o1", "BUY", "10", "1")).unwrap();
    let other = r#"{"kind":"order.canceled","order":"o1","market":"C-D"}"#;
    let all = [
        (filled("o1", "1.01", "b"), "order \"o1\": a fill of 1.01 is beyond its open size 1.00"),
        (
            filled("o2", "1", "b"),
            "order \"o2\" is not open: it was never placed, or is filled or canceled already",
        ),
        (
            canceled("o2"),
            "order \"o2\" is not open: it was never placed, or is filled or canceled already",
        ),
        (
            placed("o1", "SELL", "11", "1"),
            "order \"o1\" was placed before: give each order an id of its own",
        ),
        (other.to_owned(), "order \"o1\" belongs to market A-B, not to C-D"),
        (placed("o3", "BUY", "0", "1"), "market A-B: price \"0\" must be above 0"),
        (placed("o3", "BUY", "1", "0.00"), "market A-B: size \"0.00\" must be above 0"),
        (
            placed("o3", "BUY", "1.55", "1"),
            "market A-B: price \"1.55\" has too many decimals: at most 1",
        ),
        (filled("o1", "0.001", "b"), "market A-B: size \"0.001\" has too many decimals: at most 2"),
    ];
    for (line, reason) in all {
        assert_eq!(take(&mut orders, &line), Err(reason.to_owned()));
    }
    take(&mut orders, &placed("o2", "BUY", "10", "1")).unwrap();
    let reason = Err("2 orders are open: no more are allowed".to_owned());
    assert_eq!(take(&mut orders, &placed("o3", "BUY", "10", "1")), reason);
    let changed = take(&mut orders, &canceled("o1")).unwrap();
    assert_eq!(changed.levels, [level(Side::Buy, 100, 100, 1)]);
    take(&mut orders, &placed("o3", "BUY", "10", "1")).unwrap();
}

#[test]
fn orders_that_can_not_be_open_are_refused_and_change_nothing() {
    let mut orders = Orders::default();
    take(&mut orders, &placed("one", "BUY", "1.5", "2")).unwrap();
    let open = |orders: &Orders| -> Vec<serde_json::Value> {
        let whole: serde_json::Value =
            serde_json::from_slice(&orders.to_checkpoint("A-B")).unwrap();
        whole["open"].as_array().unwrap().clone()
    };
    let state = |open: &[serde_json::Value]| {
        serde_json::to_vec(&serde_json::json!({ "open": open, "gaps": null })).unwrap()
    };
    let whole = open(&orders);
    let largest = u128::MAX.to_string();
    let mut twice = vec![whole[0].clone(); 2];
    let mut refused = vec![twice.clone()];
    twice[1]["id"] = "two".into();
    for order in &mut twice {
        (order["size"], order["open"]) = (largest.clone().into(), largest.clone().into());
    }
    refused.push(twice);
    for (field, value) in [
        ("market", "X-Y".into()),
        ("status", "FILLED".into()),
        ("open", "0".into()),
        ("open", "1".into()),
        ("filled", largest.into()),
        ("priceDecimals", 19.into()),
    ] {
        let mut order = whole.clone();
        order[0][field] = value;
        refused.push(order);
    }
    for all in refused {
        let refused = orders.restore("A-B", &state(&all));
        assert!(matches!(refused, Err(OrdersError::Impossible(_))), "{all:?}");
        assert_eq!(open(&orders), whole);
    }
    let other = String::from_utf8(state(&whole)).unwrap().replace("A-B", "X-Y");
    assert!(orders.restore("X-Y", other.as_bytes()).is_err(), "it is open in another market");
}

#[test]
fn a_level_whose_sum_does_not_fit_is_refused() {
    let mut orders = Orders::default();
    let fine = MarketDefinition { size_decimals: 18, ..definition() };
    let most = fixed::format(u128::MAX, 18);
    orders.take(&fine, &event(&placed("o1", "BUY", "10", &most)), None).unwrap();
    let second = event(&placed("o2", "BUY", "10", &most));
    let refused = orders.take(&fine, &second, None).unwrap_err().to_string();
    assert!(refused.ends_with("is too large for its price level"), "{refused}");
    assert_eq!(orders.len(), 1);
    let part = event(&filled("o1", "1", "b1"));
    let changed = orders.take(&fine, &part, None).unwrap();
    let left = u128::MAX - 10u128.pow(18);
    assert_eq!(changed.levels[0].size, left, "a part of the largest size");
}

/// An open order of the model: side, price, open size.
type Model = BTreeMap<u8, (Side, Fixed, Fixed)>;

fn sums(model: &Model) -> BTreeMap<(bool, Fixed), (Fixed, u32)> {
    let mut sums = BTreeMap::new();
    for (side, price, open) in model.values() {
        let sum: &mut (Fixed, u32) = sums.entry((*side == Side::Buy, *price)).or_default();
        *sum = (sum.0 + open, sum.1 + 1);
    }
    sums
}

proptest! {
    #[test]
    fn published_levels_are_the_sums_of_the_open_orders(
        steps in prop::collection::vec((0u8..12, 0u8..4, any::<bool>(), 1u128..6, 1u128..90), 1..120),
    ) {
        let mut orders = Orders::default();
        let mut model = Model::new();
        let mut published: BTreeMap<(bool, Fixed), (Fixed, u32)> = BTreeMap::new();
        for (order, what, buys, price, size) in steps {
            let side = if buys { Side::Buy } else { Side::Sell };
            let written = fixed::format(size, 2);
            let known = model.get(&order).copied();
            let (line, possible) = match what {
                0 | 1 => {
                    let name = if buys { "BUY" } else { "SELL" };
                    let line = placed(&order.to_string(), name, &fixed::format(price, 1), &written);
                    if known.is_none() {
                        model.insert(order, (side, price, size));
                    }
                    (line, known.is_none())
                }
                2 => {
                    let fits = known.is_some_and(|(_, _, open)| size <= open);
                    if fits {
                        let left = model.get_mut(&order).unwrap();
                        left.2 -= size;
                        if left.2 == 0 {
                            model.remove(&order);
                        }
                    }
                    (filled(&order.to_string(), &written, "b"), fits)
                }
                _ => (canceled(&order.to_string()), model.remove(&order).is_some()),
            };
            let changed = take(&mut orders, &line);
            prop_assert_eq!(changed.is_ok(), possible);
            for level in changed.map(|changed| changed.levels).unwrap_or_default() {
                let key = (level.side == Side::Buy, level.price);
                match level.size {
                    0 => published.remove(&key),
                    size => published.insert(key, (size, level.orders)),
                };
            }
            prop_assert_eq!(&published, &sums(&model));
            prop_assert_eq!(orders.len(), model.len());
            // What a checkpoint brings back goes on the same way.
            let checkpoint = orders.to_checkpoint("A-B");
            orders.restore("A-B", &checkpoint).unwrap();
        }
    }
}
