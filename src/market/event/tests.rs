//! What a line is read as, which faults are named, and that every limit holds to the byte.

use proptest::prelude::*;

use super::super::{Liquidity, MOST_ID_BYTES};
use super::*;
use crate::market::levels::Side;
use crate::market::topic::Topic;

const TIME: &str = "2026-01-31T12:00:00.000001Z";

fn logged(line: &str) -> String {
    match parse(line.as_bytes()).unwrap().body {
        Body::Trade(trade) => Topic::Trades(&trade.market).to_string(),
        Body::Message(message) => Topic::Message(&message.topic).to_string(),
        Body::BlockApplied | Body::Reverted { .. } | Body::Gap { .. } => Topic::Blocks.to_string(),
        other => panic!("{other:?}"),
    }
}

fn refused(line: &str) -> String {
    parse(line.as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_market_is_read_with_every_field() {
    let line = format!(
        r#"{{"kind":"market","market":"ERG-USD","base":"ERG","quote":"USD","priceDecimals":4,
        "sizeDecimals":8,"tickSize":"0.0001","lotSize":"0.01","status":"HALTED","time":"{TIME}"}}"#
    );
    let event = parse(line.as_bytes()).unwrap();
    let expected = MarketDefinition {
        market: "ERG-USD".into(),
        base: "ERG".into(),
        quote: "USD".into(),
        price_decimals: 4,
        size_decimals: 8,
        tick_size: "0.0001".into(),
        lot_size: "0.01".into(),
        min_size: "0.01".into(),
        status: MarketStatus::Halted,
        time: Some(1_769_860_800_000_001),
    };
    assert_eq!(event.time, Some(1_769_860_800_000_001));
    assert_eq!(event.body, Body::Market(expected));
}

#[test]
fn a_market_without_steps_gets_the_smallest() {
    let line = r#"{"kind":"market","market":"a-b","base":"a","quote":"b","priceDecimals":2,"sizeDecimals":0}"#;
    let Body::Market(market) = parse(line.as_bytes()).unwrap().body else { panic!() };
    assert_eq!((market.tick_size.as_str(), market.lot_size.as_str()), ("0.01", "1"));
    assert_eq!(market.status, MarketStatus::Active);
}

#[test]
fn books_keep_their_levels_as_written() {
    let line = r#"{"kind":"book.delta","market":"XBT-USD","id":"7","bids":[["45283.50","0"]],"asks":[],"extra":{"x":[1]}}"#;
    let event = parse(line.as_bytes()).unwrap();
    assert_eq!(event.id.as_deref(), Some("7"));
    let bids = vec![("45283.50".into(), "0".into())];
    assert_eq!(event.body, Body::BookDelta { market: "XBT-USD".into(), bids, asks: vec![] });
}

#[test]
fn what_touches_no_book_goes_to_its_topic() {
    let all = [
        (
            r#"{"kind":"trade","market":"KSM-XBT","id":"1","price":"1.5","size":"2","takerSide":"BUY"}"#,
            "trades:KSM-XBT",
        ),
        (r#"{"kind":"block.applied","height":1200345,"block":"ab"}"#, "blocks"),
        (r#"{"kind":"block.reverted","height":1200345}"#, "blocks"),
        (r#"{"kind":"source.gap","source":"events/0"}"#, "blocks"),
        (r#"{"kind":"message","topic":"news","data":null}"#, "message:news"),
    ];
    for (line, topic) in all {
        assert_eq!(logged(line), topic);
    }
}

#[test]
fn an_orders_events_are_read_with_all_they_say() {
    let order = |line: &str| match parse(line.as_bytes()).unwrap().body {
        Body::Order(event) => *event,
        other => panic!("{other:?}"),
    };
    let line = r#"{"kind":"order.placed","market":"GRT-ETH","order":"o","account":"9g","side":"SELL","type":"LIMIT","price":"1","size":"2","clientId":"c","metadataCid":"bafy","boxId":"b","expiresAt":"1970-01-01T00:00:01Z","requested":true}"#;
    let placed = PlacedOrder {
        market: "GRT-ETH".into(),
        order: "o".into(),
        account: Some("9g".into()),
        side: Side::Sell,
        order_type: OrderType::Limit,
        price: Some("1".into()),
        size: "2".into(),
        client_id: Some("c".into()),
        metadata_cid: Some("bafy".into()),
        box_id: Some("b".into()),
        expires_at: Some(1_000_000),
        requested: true,
    };
    assert_eq!(order(line), OrderEvent::Placed(placed));
    let line = r#"{"kind":"order.filled","order":"o","trade":"t","price":"1","size":"2","liquidity":"MAKER"}"#;
    let filled = FilledOrder {
        market: None,
        order: "o".into(),
        trade: Some("t".into()),
        price: "1".into(),
        size: "2".into(),
        liquidity: Some(Liquidity::Maker),
        box_id: None,
    };
    assert_eq!(order(line), OrderEvent::Filled(filled));
    let line = r#"{"kind":"order.canceled","market":"GRT-ETH","order":"o","reason":"user"}"#;
    let canceled = CanceledOrder {
        market: Some("GRT-ETH".into()),
        order: "o".into(),
        reason: Some("user".into()),
        requested: false,
    };
    assert_eq!(order(line), OrderEvent::Canceled(canceled));
}

#[test]
fn each_fault_is_named() {
    let all = [
        (
            r#"{"kind":"nonsense"}"#,
            "unknown kind \"nonsense\": use one of market, book.snapshot, book.delta, book.gap, trade, order.placed, order.filled, order.canceled, orders.gap, orders.complete, block.applied, block.reverted, source.gap, message",
        ),
        (r#"{"market":"A-B"}"#, "field `kind` is missing"),
        (
            r#"{"kind":5}"#,
            "field `kind` has another type: invalid type: integer `5`, expected a string",
        ),
        (r#"[1]"#, "not a JSON object: one line holds one event, {\"kind\":…}"),
        (r#"{"kind":"trade",}"#, "malformed JSON at column 17: trailing comma"),
        (r#"{"kind":"tra"#, "malformed JSON at column 12: EOF while parsing a string"),
        (r#"{"kind":"trade"} {}"#, "malformed JSON at column 18: trailing characters"),
        (r#"{"kind":"trade","market":"A-B","size":"1"}"#, "field `price` is missing"),
        (
            r#"{"kind":"trade","market":"A-B","price":1.5,"size":"1"}"#,
            "field `price` has another type: invalid type: floating point `1.5`, expected a string",
        ),
        (
            r#"{"kind":"trade","market":"A-B","price":"1e5x","size":"1"}"#,
            "field `price` is not a plain decimal number such as \"12.5\"",
        ),
        (
            r#"{"kind":"trade","market":"../x","price":"1","size":"1"}"#,
            "field `market` must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit",
        ),
        (r#"{"kind":"book.snapshot","market":"A-B","bids":[]}"#, "field `asks` is missing"),
        (
            r#"{"kind":"book.delta","market":"A-B","bids":[["1",2]],"asks":[]}"#,
            "field `bids` has another type: invalid type: integer `2`, expected a string",
        ),
        (
            r#"{"kind":"block.applied","height":-1,"block":"b"}"#,
            "field `height` has another type: invalid value: integer `-1`, expected u64",
        ),
        (
            r#"{"kind":"message","topic":"a\u0000b","data":1}"#,
            "field `topic` must be without control characters",
        ),
        (r#"{"kind":"message","topic":"a"}"#, "field `data` is missing"),
        (
            r#"{"kind":"message","topic":"a","data":[1e400]}"#,
            "field `data` is not readable: number out of range",
        ),
        (
            r#"{"kind":"message","topic":"a","data":{"\ud83d":1}}"#,
            "field `data` is not readable: unexpected end of hex escape",
        ),
        (
            r#"{"kind":"block.reverted","height":1,"time":"yesterday"}"#,
            "field `time` must be RFC 3339 such as \"2026-01-31T12:00:00.000001Z\"",
        ),
        (
            r#"{"kind":"market","market":"A-B","base":"A","quote":"B","priceDecimals":19,"sizeDecimals":1}"#,
            "field `priceDecimals` must be a whole number up to 18",
        ),
        (
            r#"{"kind":"market","market":"A-B","base":"A","quote":"B","priceDecimals":1,"sizeDecimals":1,"tickSize":"0"}"#,
            "field `tickSize` must be above 0",
        ),
    ];
    for (line, reason) in all {
        assert_eq!(refused(line), reason, "{line}");
    }
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_column() {
    assert_eq!(parse(b"{\"kind\":\"\xff\"}"), Err(Refusal::NotUtf8 { column: 10 }));
}

#[test]
fn a_line_that_undoes_blocks_is_known_however_it_is_written() {
    assert!(begins_epochs(br#"{"kind":"block.reverted","height":1}"#));
    assert!(begins_epochs(br#" {"height":1, "kind" : "block\u002ereverted"}"#));
    assert!(!begins_epochs(br#"{"kind":"block.reverted","height":-1}"#));
    assert!(!begins_epochs(br#"{"kind":"message","topic":"t","data":"block.reverted"}"#));
    assert!(!begins_epochs(b"block.reverted \xff"));
    assert!(begins_epochs(br#"{"kind":"source.gap","source":"events/0","reason":"retention"}"#));
    assert!(!begins_epochs(br#"{"kind":"source.gap"}"#));
    assert!(!begins_epochs(br#"{"kind":"book.delta","kind":"block.reverted","height":1}"#));
    assert!(begins_epochs(br#"{"id":"book.delta","kind":"block.reverted","height":1}"#));
}

#[test]
fn a_byte_order_mark_is_no_fault() {
    assert_eq!(logged("\u{feff}{\"kind\":\"block.reverted\",\"height\":1}"), "blocks");
}

#[test]
fn every_limit_holds_to_the_byte() {
    let padded = |bytes: usize| {
        let mut line = br#"{"kind":"block.reverted","height":1}"#.to_vec();
        line.resize(bytes, b' ');
        parse(&line).map(drop)
    };
    assert!(padded(MOST_LINE_BYTES).is_ok());
    assert_eq!(padded(MOST_LINE_BYTES + 1), Err(Refusal::TooLong));
    let reason = |bytes: usize| {
        let reason = "r".repeat(bytes);
        let line = format!(r#"{{"kind":"order.canceled","order":"1","reason":"{reason}"}}"#);
        parse(line.as_bytes()).map(drop)
    };
    assert!(reason(MOST_REASON_BYTES).is_ok());
    assert!(reason(MOST_REASON_BYTES + 1).is_err());
    let data = |data: &str| {
        let line = format!(r#"{{"kind":"message","topic":"t","data":{data}}}"#);
        parse(line.as_bytes()).map(drop)
    };
    let text = |bytes: usize| format!("\"{}\"", "d".repeat(bytes - 2));
    assert!(data(&text(MOST_DATA_BYTES)).is_ok());
    let refused = data(&text(MOST_DATA_BYTES + 1)).unwrap_err().to_string();
    assert!(refused.contains("has 1000001 bytes"), "{refused}");
    let id = |bytes: usize| {
        let id = "i".repeat(bytes);
        parse(format!(r#"{{"kind":"block.reverted","height":1,"id":"{id}"}}"#).as_bytes()).map(drop)
    };
    assert!(id(MOST_ID_BYTES).is_ok());
    assert!(id(MOST_ID_BYTES + 1).is_err());
    let height = |height: u64| {
        parse(format!(r#"{{"kind":"block.reverted","height":{height}}}"#).as_bytes()).map(drop)
    };
    assert!(height(MOST_HEIGHT).is_ok());
    assert!(height(MOST_HEIGHT + 1).is_err());
    let market = |bytes: usize| {
        let id = "M".repeat(bytes);
        let line = format!(
            r#"{{"kind":"market","market":"{id}","base":"A","quote":"B",
            "priceDecimals":1,"sizeDecimals":1}}"#
        );
        parse(line.as_bytes()).map(drop)
    };
    assert!(market(crate::market::definition::MOST_MARKET_BYTES).is_ok());
    assert!(market(crate::market::definition::MOST_MARKET_BYTES + 1).is_err());
    let topic = |characters: usize| {
        let topic = "é".repeat(characters);
        parse(format!(r#"{{"kind":"message","topic":"{topic}","data":1}}"#).as_bytes()).map(drop)
    };
    assert!(topic(MOST_TOPIC_CHARACTERS).is_ok());
    assert!(topic(MOST_TOPIC_CHARACTERS + 1).is_err());
    let source = |bytes: usize| {
        let source = "s".repeat(bytes);
        parse(format!(r#"{{"kind":"source.gap","source":"{source}"}}"#).as_bytes()).is_ok()
    };
    assert!(source(MOST_SOURCE_BYTES));
    assert!(!source(MOST_SOURCE_BYTES + 1) && !source(0));
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        parse(
            format!(r#"{{"kind":"message","topic":"a","data":{open}{close},"x":"[[\"["}}"#)
                .as_bytes(),
        )
        .map(drop)
    };
    assert!(nested(MOST_NESTING - 1).is_ok());
    assert_eq!(nested(MOST_NESTING), Err(Refusal::TooDeep));
    assert_eq!(nested(100_000), Err(Refusal::TooDeep));
}

/// A value that may stand in a book's line, or not.
fn value() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        Just("A-B".to_owned()),
        Just("1.50".to_owned()),
        Just(TIME.to_owned()),
        Just("\\u0041-\\n".to_owned()),
        Just(String::new()),
        Just("i".repeat(MOST_ID_BYTES + 1)),
    ];
    let text = text.prop_map(|text| format!("\"{text}\""));
    let number = prop_oneof![
        Just("null".to_owned()),
        Just("7".to_owned()),
        Just("-1".to_owned()),
        Just(u64::MAX.to_string()),
    ];
    let one = prop_oneof![text, number];
    let level = prop::collection::vec(one.clone(), 1..4);
    let levels = prop::collection::vec(level.prop_map(|all| format!("[{}]", all.join(","))), 0..3);
    prop_oneof![one, levels.prop_map(|all| format!("[{}]", all.join(" , ")))]
}

proptest! {
    #[test]
    fn a_books_line_reads_the_same_by_both_ways(
        kind in prop_oneof![Just("book.delta"), Just("book.snapshot"), Just("book.x")],
        right in prop::collection::vec(prop::bool::weighted(0.9), 5),
        wrong in prop::collection::vec(
            (0..9usize, value()),
            0..3,
        ),
    ) {
        let mut fields = vec![format!(r#""kind":"{kind}""#)];
        let whole = [
            r#""market": "A-B""#.to_owned(),
            r#""bids":[["1.5","2"],["1","0"]]"#.to_owned(),
            r#""asks":[]"#.to_owned(),
            format!(r#""time":"{TIME}""#),
            r#""id":"7" ,"height": 9"#.to_owned(),
        ];
        let there = whole.into_iter().zip(right).filter(|(_, there)| *there);
        fields.extend(there.map(|(field, _)| field));
        const NAMES: [&str; 9] =
            ["market", "bids", "asks", "time", "id", "height", "block", "tx", "unknown"];
        let wrong = wrong.into_iter();
        fields.extend(wrong.map(|(name, value)| format!("\"{}\":{value}", NAMES[name])));
        let line = format!(" {{ {} }} ", fields.join(", "));
        prop_assert_eq!(parse(line.as_bytes()), read_fields(&line));
    }

    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(
        line in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = parse(&line);
    }
}
