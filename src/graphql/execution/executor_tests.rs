//! Requests as clients send them, up to the bytes they get.

use serde_json::json;
use spreadly_subscriptions::{Epoch, Frame, Meters, ResponseStream, Resume, StreamLimits};

use super::*;
use crate::budgets::{AccountLimits, Accounts, HubShare};
use crate::graphql::WriteError;
use crate::graphql::execution::encoder::Encoder;
use crate::graphql::identity::Audience;
use crate::live::{Live, LiveFrame, made};
use crate::market::definition::{MarketDefinition, MarketStatus};
use crate::market::effect::{Applied, Effect};
use crate::market::levels::{LevelChange, Side};
use crate::store::LogReaders;

const MARKET: &str = "ERG-USD";
const BOOK: &str = r#"subscription{orderBook(market:"ERG-USD",depth:2){
    __typename sequence cursor ... on BookSnapshot{reason bids{price size orders}}
    ... on BookDelta{prevSequence mergedEvents bids{price size} asks{price}}}}"#;

/// From an address that nothing is refused to.
fn caller() -> Caller {
    let accounts = Accounts::new(AccountLimits::default(), HubShare::of_shards(1));
    Caller::new(Principal::default(), accounts.of("127.0.0.1".parse().unwrap()))
}

fn executor_with(limits: QueryLimits) -> GraphqlExecutor {
    executor_of(limits, Box::new(|| 3))
}

fn executor_of(
    limits: QueryLimits,
    sockets: Box<dyn Fn() -> u64 + Send + Sync>,
) -> GraphqlExecutor {
    executor_with_readers(1, limits, sockets)
}

fn executor_with_readers(
    readers: usize,
    limits: QueryLimits,
    sockets: Box<dyn Fn() -> u64 + Send + Sync>,
) -> GraphqlExecutor {
    let log = LogReaders::new("nowhere".as_ref(), readers);
    let live = Arc::new(Live::new(Epoch(7), Box::new(|| 1_700_000_000_000_000), 32_768, log));
    for market in [MARKET, "A-B"] {
        live.define(Arc::new(MarketDefinition {
            market: market.into(),
            base: "ERG".into(),
            quote: "USD".into(),
            price_decimals: 4,
            size_decimals: 2,
            tick_size: "0.0001".into(),
            lot_size: "0.01".into(),
            min_size: "0.01".into(),
            status: MarketStatus::Active,
            time: None,
        }));
    }
    let streams = Streams::new(StreamLimits::default(), Arc::new(Meters::default()));
    let hub = HubView { started: 1_699_999_990_000_000, sockets, operations: Box::new(|| 5) };
    let writer = MutationPort::new(|_| async { Err(WriteError::Closed) });
    let encoders = Arc::new(Encoders::new(live, 0, 0));
    let (streams, pool) = (Arc::new(streams), Pool::start(1).unwrap());
    GraphqlExecutor::new(encoders, streams, pool, hub, limits, writer, Principal::default())
}

fn executor() -> GraphqlExecutor {
    executor_with(QueryLimits::default())
}

fn buy(executor: &GraphqlExecutor, sequence: u64, levels: impl Iterator<Item = (u128, u128)>) {
    let level = |(price, size)| LevelChange { side: Side::Buy, price, size, orders: 0 };
    let (market, levels) = (MARKET.into(), levels.map(level).collect());
    let effect = match executor.encoders.live().snapshot(MARKET, 1) {
        None => Effect::Replace { market, levels },
        Some(_) => Effect::Change { market, levels },
    };
    executor.encoders.live().apply(&[Applied {
        sequence,
        time: None,
        effect,
        candles: Vec::new(),
    }]);
}

fn request(query: &str, variables: Value, extensions: Value) -> Request {
    let map = |value: Value| value.as_object().cloned();
    Request {
        query: query.to_owned(),
        operation_name: None,
        variables: map(variables),
        extensions: map(extensions),
    }
}

fn execute(executor: &GraphqlExecutor, query: &str, variables: Value) -> Execution {
    executor.execute(request(query, variables, Value::Null), &caller())
}

fn stream(execution: Execution) -> (Arc<ResponseStream>, Option<String>) {
    match execution {
        Execution::Stream { stream, after, .. } => (stream, after),
        Execution::Refused(errors) => panic!("{}", String::from_utf8_lossy(&errors)),
        Execution::Single(_) => panic!("a single result"),
    }
}

/// The extensions of the first error.
fn refusal(execution: Execution) -> Value {
    match execution {
        Execution::Refused(errors) => {
            let errors: Value = serde_json::from_slice(&errors).unwrap();
            errors[0]["extensions"].clone()
        }
        _ => panic!("not refused"),
    }
}

fn single(execution: Execution) -> Value {
    match execution {
        Execution::Single(result) => {
            let ended = match tokio::runtime::Handle::try_current() {
                Ok(_) => result.now_or_never().unwrap(),
                Err(_) => runtime().block_on(result),
            };
            serde_json::from_slice(&ended.unwrap().json).unwrap()
        }
        Execution::Refused(errors) => panic!("{}", String::from_utf8_lossy(&errors)),
        Execution::Stream { .. } => panic!("a stream"),
    }
}

/// Where a query waits that takes long.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

fn parsed(frame: &Frame) -> Value {
    serde_json::from_slice(&frame.tail[..frame.tail.len() - 1]).unwrap()
}

fn first(stream: &Arc<ResponseStream>) -> Value {
    match made(stream.source().join(stream, None)) {
        Resume::Frames { frames, .. } => parsed(&frames[0]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_book_begins_with_a_snapshot_and_the_next_delta_follows_it() {
    let executor = executor();
    buy(&executor, 4, [(10_000, 150), (9_000, 1)].into_iter());
    let (stream, after) = stream(execute(&executor, BOOK, Value::Null));
    assert_eq!(after, None);
    let snapshot = first(&stream);
    let frame = &snapshot["data"]["orderBook"];
    assert_eq!(frame["__typename"], "BookSnapshot");
    assert_eq!((&frame["sequence"], &frame["reason"]), (&json!("4"), &json!("INITIAL")));
    assert_eq!(
        frame["bids"],
        json!([
            { "price": "1.0000", "size": "1.50", "orders": null },
            { "price": "0.9000", "size": "0.01", "orders": null },
        ])
    );
    buy(&executor, 9, [(11_000, 2)].into_iter());
    let mut frames = Vec::new();
    assert!(stream.read(0, 9, &mut frames));
    let delta = parsed(&frames[0]);
    assert_eq!(delta.get("errors"), None);
    assert_eq!(
        delta["data"]["orderBook"],
        json!({
            "__typename": "BookDelta", "sequence": "9", "prevSequence": "4", "mergedEvents": 1,
            "cursor": delta["data"]["orderBook"]["cursor"], "asks": [],
            "bids": [{ "price": "1.1000", "size": "0.02" }, { "price": "0.9000", "size": "0.00" }],
        })
    );
}

#[test]
fn the_deepest_book_is_resolved_by_one_poll() {
    let executor = executor();
    buy(&executor, 1, (1..=5_000).map(|price| (price, 1)));
    let query =
        "subscription{orderBook(market:\"ERG-USD\",depth:5000){...on BookSnapshot{bids{price}}}}";
    let (stream, _) = stream(execute(&executor, query, Value::Null));
    let snapshot = first(&stream);
    assert_eq!(snapshot["data"]["orderBook"]["bids"].as_array().unwrap().len(), 5_000);
}

#[test]
fn levels_are_the_same_however_they_are_selected() {
    let executor = executor();
    buy(&executor, 1, [(10_000, 5), (9_000, 7)].into_iter());
    let bids = |selection: &str| {
        let query = format!(
            "{{orderBook(market:\"ERG-USD\"){{bids{{{selection}}}}}}} fragment P on PriceLevel{{price}}"
        );
        let query = if selection.contains("...P ") {
            query.as_str()
        } else {
            query.split(" frag").next().unwrap()
        };
        single(execute(&executor, query, json!({ "no": false })))["data"]["orderBook"]["bids"]
            .clone()
    };
    let expected =
        json!([{ "price": "1.0000", "size": "0.05" }, { "price": "0.9000", "size": "0.07" }]);
    for selection in [
        "price size",
        "...P size",
        "size ...on PriceLevel{price}",
        "size price size",
        "price size orders@skip(if:true)",
    ] {
        assert_eq!(bids(selection), expected, "{selection}");
    }
    assert_eq!(bids("p:price o:orders")[1], json!({ "p": "0.9000", "o": null }));
    assert_eq!(bids("__typename")[0], json!({ "__typename": "PriceLevel" }));
}

#[test]
fn however_after_is_given_the_stream_is_the_same() {
    let executor = executor();
    let id = |query: &str, variables: Value, expected: Option<&str>| {
        let (stream, after) = stream(execute(&executor, query, variables));
        assert_eq!(after.as_deref(), expected, "{query}");
        stream.id()
    };
    let literal = |after: &str| {
        format!("subscription($m:ID!){{orderBook(after:{after},market:$m){{sequence}}}}")
    };
    let market = json!({ "m": MARKET });
    let plain = id(&literal("null"), market.clone(), None);
    assert_eq!(id(&literal("\"abc\""), market.clone(), Some("abc")), plain);
    assert_eq!(id(&literal("\"\"\"def\"\"\""), market.clone(), Some("def")), plain);

    for declared in ["Cursor", "Cursor!"] {
        let query = format!(
            "subscription($m:ID!,$a:{declared}){{orderBook(after:$a,market:$m){{sequence}}}}"
        );
        let one = id(&query, json!({ "m": MARKET, "a": "abc" }), Some("abc"));
        let other = json!({ "unused": 1, "a": "def", "m": MARKET });
        assert_eq!(id(&query, other, Some("def")), one, "{declared}");
    }
    let query = "subscription($m:ID!,$a:Cursor=\"ghi\"){orderBook(after:$a,market:$m){sequence}}";
    let one = id(query, market.clone(), Some("ghi"));
    assert_eq!(id(query, json!({ "m": MARKET, "a": "abc" }), Some("abc")), one);
    assert_eq!(id(query, json!({ "m": MARKET, "a": null }), None), one);
    assert_ne!(id(query, json!({ "m": "A-B" }), Some("ghi")), one);

    let wins = json!({ "after": "xyz" });
    let resumed = executor.execute(request(&literal("\"abc\""), market, wins), &caller());
    let (stream, after) = stream(resumed);
    assert_eq!((stream.id(), after.as_deref()), (plain, Some("xyz")));
}

#[test]
fn documents_that_differ_in_layout_only_share_a_stream() {
    let executor = executor();
    let (one, _) = stream(execute(&executor, BOOK, Value::Null));
    let other = format!("# mine\n{}", BOOK.replace(' ', "\t ,\n").replace(",depth", "  depth"));
    let (other, _) = stream(execute(&executor, &other, Value::Null));
    assert_eq!(one.id(), other.id());
}

#[test]
fn a_cursor_that_is_no_text_is_refused() {
    let executor = executor();
    let query = "subscription($a:Cursor){orderBook(market:\"ERG-USD\",after:$a){sequence}}";
    assert_eq!(refusal(execute(&executor, query, json!({ "a": 5 })))["code"], "BAD_REQUEST");
    let query = "subscription{orderBook(market:\"ERG-USD\",after:5){sequence}}";
    assert_eq!(refusal(execute(&executor, query, json!({})))["code"], "VALIDATION_FAILED");
    let query = "subscription($a:Cursor!){orderBook(market:\"ERG-USD\",after:$a){sequence}}";
    assert_eq!(refusal(execute(&executor, query, json!({})))["code"], "VALIDATION_FAILED");
}

#[test]
fn the_cursor_extension_is_there_for_who_asked() {
    let executor = executor();
    let asked = request(BOOK, Value::Null, json!({ "cursor": true }));
    let (with, _) = stream(executor.execute(asked, &caller()));
    let (without, _) = stream(execute(&executor, BOOK, Value::Null));
    assert_ne!(with.id(), without.id());
    let frame = first(&with);
    assert_eq!(frame["extensions"]["cursor"], frame["data"]["orderBook"]["cursor"]);
    assert_eq!(first(&without).get("extensions"), None);
}

#[test]
fn a_root_field_may_stand_in_a_fragment() {
    let executor = executor();
    let query = "query Q{hub{version}} subscription S{...F} fragment F on Subscription{...G}
        fragment G on Subscription{...on Subscription{book:orderBook(market:\"A-B\"){...H}}}
        fragment H on BookFrame{sequence}";
    let mut named = request(query, Value::Null, Value::Null);
    named.operation_name = Some("S".into());
    let (stream, _) = stream(executor.execute(named, &caller()));
    assert_eq!(first(&stream), json!({ "data": { "book": { "sequence": "0" } } }));
}

#[test]
fn a_subscription_has_one_root_field_that_exists() {
    let executor = executor();
    for query in [
        "subscription{a:feedStatus{name} b:feedStatus{name}}",
        "subscription{__typename}",
        "subscription{feedStatus @skip(if:true){name}}",
        "subscription{...F @include(if:false)} fragment F on Subscription{feedStatus{name}}",
        "subscription{nothing}",
        "subscription{orderBook(market:\"A-B\"){nothing}}",
        "subscription{orderBook{sequence}}",
        "subscription{orderBook(market:\"A-B\",depth:0){sequence}}",
        "subscription{bestBidOffer(markets:[]){sequence}}",
        "subscription($s:BookSpeed){orderBook(market:\"A-B\",speed:FAST){sequence}}",
    ] {
        assert_eq!(
            refusal(execute(&executor, query, json!({})))["code"],
            "VALIDATION_FAILED",
            "{query}"
        );
    }
    assert!(executor.streams.is_empty(), "nothing that was refused stays open");
}

#[test]
fn unknown_markets_and_exceeded_limits_have_different_codes() {
    let executor = executor();
    let unknown = "subscription{orderBook(market:\"X-Y\"){sequence}}";
    assert_eq!(refusal(execute(&executor, unknown, json!({}))), json!({ "code": "NOT_FOUND" }));
    let deep = "subscription{orderBook(market:\"A-B\",depth:5001){sequence}}";
    assert_eq!(
        refusal(execute(&executor, deep, json!({}))),
        json!({ "code": "LIMIT_EXCEEDED", "name": "book_depth", "limit": 5_000, "current": 5_001 })
    );
    let many = "subscription($m:[ID!]!){bestBidOffer(markets:$m){sequence}}";
    assert_eq!(
        refusal(execute(&executor, many, json!({ "m": vec!["A-B"; 101] }))),
        json!({ "code": "LIMIT_EXCEEDED", "name": "markets_per_subscription", "limit": 100, "current": 101 })
    );
    assert_eq!(refusal(execute(&executor, "{", json!({})))["code"], "BAD_REQUEST");
    assert_eq!(refusal(execute(&executor, "{a} {b}", json!({})))["code"], "BAD_REQUEST");
    let two = "query A{hub{version}} query B{hub{version}}";
    assert_eq!(refusal(execute(&executor, two, json!({})))["code"], "BAD_REQUEST");
}

#[test]
fn the_levels_of_a_result_are_counted_with_the_depth_however_it_is_given() {
    let executor = executor();
    let levels = "bids{price size} asks{price size}";
    let books = |depth: &str, count: usize| -> String {
        (0..count)
            .map(|one| format!("b{one}:orderBook(market:\"A-B\"{depth}){{{levels}}}"))
            .collect()
    };
    let too_many = |query: &str, variables: Value, current: usize| {
        let extensions = refusal(execute(&executor, query, variables));
        assert_eq!(extensions["code"], "LIMIT_EXCEEDED", "{query}");
        assert_eq!(extensions["name"], "query_list_fields");
        assert_eq!(
            (&extensions["limit"], &extensions["current"]),
            (&json!(100_000), &json!(current))
        );
    };
    let deep = |count| books(",depth:5000", count);
    too_many(&format!("{{{}}}", deep(30)), json!({}), 600_000);
    too_many(&format!("{{{}}}", deep(6)), json!({}), 120_000);
    single(execute(&executor, &format!("{{{}}}", deep(5)), json!({})));
    let by_variable = format!("query($d:Int=5000){{{}}}", books(",depth:$d", 6));
    too_many(&by_variable, json!({}), 120_000);
    too_many(&by_variable, json!({"d": 4_999}), 119_976);
    single(execute(&executor, &by_variable, json!({"d": 25})));
    let spread = "{...A ...B}fragment A on Query{a:orderBook(market:\"A-B\",depth:5000){...L}}
        fragment B on Query{b:orderBook(market:\"A-B\",depth:5000){...L ...L}}
        fragment L on BookSnapshot{bids{price size orders a:price b:price c:price d:price}}";
    too_many(spread, json!({}), 105_000);
    single(execute(&executor, &format!("{{{}}}", books("", 30)), json!({})));
    let whole = "subscription{orderBook(market:\"ERG-USD\",depth:5000){
        ...on BookSnapshot{bids{price size orders} asks{price size orders}}
        ...on BookDelta{bids{price size orders} asks{price size orders}}}}";
    stream(execute(&executor, whole, json!({})));
}

#[test]
fn one_stream_too_many_is_refused_by_the_name_of_its_key() {
    let executor = executor();
    let most_streams = 1;
    let limits = StreamLimits { most_streams, ..StreamLimits::default() };
    let streams = Arc::new(Streams::new(limits, Arc::new(Meters::default())));
    let executor = GraphqlExecutor { streams, ..executor };
    stream(execute(&executor, BOOK, json!({})));
    stream(execute(&executor, BOOK, json!({})));
    let error = refusal(execute(&executor, "subscription{feedStatus{name}}", json!({})));
    assert_eq!(error["name"], "streams");
    assert_eq!(error["limit"], 1);
}

#[test]
fn a_query_answers_from_memory() {
    let executor = executor();
    buy(&executor, 3, [(10_000, 5)].into_iter());
    let query = "{markets{id tickSize status} market(id:\"X-Y\"){id} hub{epoch uptime sockets}
        orderBook(market:\"ERG-USD\",depth:null){sequence depth bids{size}} feeds{name}}";
    assert_eq!(
        single(execute(&executor, query, Value::Null)),
        json!({ "data": {
            "markets": [
                { "id": "A-B", "tickSize": "0.0001", "status": "ACTIVE" },
                { "id": "ERG-USD", "tickSize": "0.0001", "status": "ACTIVE" },
            ],
            "market": null,
            "hub": { "epoch": "0000000000000007", "uptime": 10, "sockets": "3" },
            "orderBook": { "sequence": "3", "depth": 25, "bids": [{ "size": "0.05" }] },
            "feeds": [],
        }})
    );
}

#[test]
fn a_query_that_fails_while_it_runs_has_a_result_and_one_that_is_not_valid_has_none() {
    let executor = executor();
    let ran =
        single(execute(&executor, "{orderBook(market:\"A-B\",depth:-1){sequence}}", json!({})));
    assert_eq!(ran["data"], json!({ "orderBook": null }));
    assert_eq!(ran["errors"][0]["extensions"]["code"], "VALIDATION_FAILED");
    assert_eq!(refusal(execute(&executor, "{nothing}", json!({})))["code"], "VALIDATION_FAILED");
}

#[test]
fn a_refusal_is_small_however_large_the_document() {
    let executor = executor();
    let names: String = (0..600).map(|one| format!("{}{one} ", "x".repeat(48))).collect();
    let Execution::Single(result) = execute(&executor, &format!("{{{names}}}"), json!({})) else {
        panic!("600 fields are much to check")
    };
    let errors = runtime().block_on(result).unwrap_err();
    assert!(errors.len() <= 16 * 1_024, "{}", errors.len());
    let list: Value = serde_json::from_slice(&errors).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 10);
}

#[test]
fn a_fragment_bomb_never_reaches_validation() {
    let executor = executor();
    let mut bomb = String::from("subscription{orderBook(market:\"A-B\"){...F0}}");
    for level in 0..40 {
        let next = level + 1;
        bomb += &format!("fragment F{level} on BookFrame{{...F{next} ...F{next}}}");
    }
    bomb += "fragment F40 on BookFrame{sequence}";
    let extensions = refusal(execute(&executor, &bomb, json!({})));
    assert_eq!(
        (&extensions["code"], &extensions["name"]),
        (&json!("LIMIT_EXCEEDED"), &json!("query_complexity"))
    );
    assert_eq!(extensions["current"], i32::MAX);
}

const INTROSPECTION: &str = "query IntrospectionQuery{__schema{queryType{name} types{...FullType}
    directives{name args{...InputValue}}}}
    fragment FullType on __Type{kind name fields(includeDeprecated:true){name args{...InputValue}
      type{...TypeRef}} inputFields{...InputValue} interfaces{...TypeRef} possibleTypes{...TypeRef}}
    fragment InputValue on __InputValue{name type{...TypeRef} defaultValue}
    fragment TypeRef on __Type{kind name ofType{kind name ofType{kind name ofType{kind name
      ofType{kind name ofType{kind name ofType{kind name ofType{kind name ofType{kind name
      ofType{kind name}}}}}}}}}}";

#[test]
fn introspection_is_a_setting() {
    let answer = single(execute(&executor(), INTROSPECTION, json!({})));
    assert_eq!(answer["data"]["__schema"]["queryType"]["name"], "Query");
    assert_eq!(answer.get("errors"), None);
    let closed = executor_with(QueryLimits { introspection: false, ..Default::default() });
    match execute(&closed, INTROSPECTION, json!({})) {
        Execution::Refused(_) => {}
        other => assert_eq!(single(other)["data"]["__schema"], Value::Null),
    }
}

#[test]
fn offers_and_feeds_are_followed_too() {
    let executor = executor();
    let query = "subscription{bestBidOffer(markets:[\"ERG-USD\",\"A-B\",\"A-B\"]){market bid{price}
        prevSequence state lastEventAgeMs}}";
    let (offers, _) = stream(execute(&executor, query, Value::Null));
    let start = made(offers.source().join(&offers, None));
    let Resume::Frames { frames, .. } = start else { panic!("{start:?}") };
    assert_eq!(frames.len(), 2);
    let offer = json!({ "market": "A-B", "bid": null, "prevSequence": null, "state": "LIVE",
        "lastEventAgeMs": 0 });
    assert_eq!(parsed(&frames[0]), json!({ "data": { "bestBidOffer": offer } }));
    let (feeds, _) = stream(execute(&executor, "subscription{feedStatus{name}}", Value::Null));
    assert!(matches!(feeds.source().join(&feeds, None), Resume::Ring { .. }));
}

#[test]
fn variables_are_compared_without_their_order() {
    let variables = |text: &str| canonical(&serde_json::from_str(text).unwrap());
    assert_eq!(
        variables(r#"{"b":{"y":[{"d":1,"c":2}],"x":1},"a":2}"#),
        r#"{"a":2,"b":{"x":1,"y":[{"c":2,"d":1}]}}"#
    );
}

#[test]
fn a_resolver_that_panics_is_one_error_with_an_id_and_the_next_request_runs() {
    let executor = executor_of(QueryLimits::default(), Box::new(|| panic!("a secret")));
    let Execution::Refused(errors) = execute(&executor, "{ hub { sockets } }", Value::Null) else {
        panic!("not refused")
    };
    assert!(!String::from_utf8_lossy(&errors).contains("secret"));
    let extensions = refusal(Execution::Refused(errors));
    assert_eq!(extensions["code"], "INTERNAL");
    assert_eq!(extensions["id"].as_str().unwrap().len(), 16);
    let next = single(execute(&executor, "{ markets { id } }", Value::Null));
    assert_eq!(next["data"]["markets"][0]["id"], "A-B");
}

#[tokio::test]
async fn a_resolver_that_panics_after_it_waited_is_an_error_too() {
    let panicked = unwinding(async {
        tokio::task::yield_now().await;
        panic!("{} late", "too");
    });
    let errors = panicked.await.unwrap_err();
    assert!(!String::from_utf8_lossy(&errors).contains("late"));
    assert_eq!(refusal(Execution::Refused(errors))["code"], "INTERNAL");
}

#[test]
fn a_panic_within_a_subscription_is_the_error_of_each_frame_from_then_on() {
    let results = Box::pin(futures_util::stream::poll_fn(|_| panic!("out of order")));
    let mut encoder =
        Encoder { slot: Arc::default(), results: Some(results), with_cursor: false, shared: None };
    let view = crate::live::FeedView {
        name: "f".to_owned(),
        kind: "files".to_owned(),
        state: crate::live::FeedState::Live,
        reason: None,
        events_total: 0,
        known_total: 0,
        refused_total: 0,
        last_refusal: None,
        refusals: Vec::new(),
        last_event_time: None,
        lag: None,
        gaps: Vec::new(),
    };
    for _ in 0..2 {
        let result = encoder.encode(LiveFrame::Feed(view.clone()));
        let result: Value = serde_json::from_slice(&result).unwrap();
        assert_eq!(result["errors"][0]["extensions"]["code"], "INTERNAL");
    }
}

#[test]
fn candle_queries_have_limits_and_refuse_unknown_markets() {
    let executor = executor();
    let asked = |rest: &str| {
        let query = format!(r#"{{candles(interval:M1,{rest}){{open}}}}"#);
        let result = single(execute(&executor, &query, json!({})));
        result["errors"][0]["extensions"].clone()
    };
    let limit = json!({
        "code": "LIMIT_EXCEEDED", "name": "candles_per_query", "limit": 5_000, "current": 5_001
    });
    assert_eq!(asked(r#"market:"A-B",last:5001"#), limit);
    assert_eq!(asked(r#"market:"A-B",last:0"#)["code"], "VALIDATION_FAILED");
    assert_eq!(asked(r#"market:"no""#)["code"], "NOT_FOUND");
    let turned = r#"market:"A-B",from:"2026-01-02T00:00:00Z",to:"2026-01-01T00:00:00Z""#;
    assert_eq!(asked(turned)["code"], "VALIDATION_FAILED");
    let fields = "start end open high low close volume quoteVolume vwap count closed";
    let twice = format!(
        r#"{{a:candles(market:"A-B",interval:M1,last:5000){{{fields}}}
            b:candles(market:"A-B",interval:M1,last:5000){{{fields}}}}}"#
    );
    let extensions = refusal(execute(&executor, &twice, json!({})));
    assert_eq!(extensions["name"], "query_list_fields");
    assert_eq!(extensions["current"], 110_000);
    let of_none = r#"subscription{candles(market:"no",interval:M1){sequence}}"#;
    assert_eq!(refusal(execute(&executor, of_none, json!({})))["code"], "NOT_FOUND");
    stream(execute(&executor, "subscription{tickers{sequence}}", json!({})));
}

/// What a query becomes that takes a while.
async fn late(execution: Execution) -> Result<Value, Value> {
    match execution {
        Execution::Single(result) => match result.await {
            Ok(result) => Ok(serde_json::from_slice(&result.json).unwrap()),
            Err(errors) => Err(refusal(Execution::Refused(errors))),
        },
        _ => panic!("no single result"),
    }
}

fn pool_jobs(executor: &GraphqlExecutor) -> u64 {
    executor.pool.meters().jobs.load(std::sync::atomic::Ordering::Relaxed)
}

#[tokio::test]
async fn a_query_that_takes_long_is_resolved_on_the_pool_and_a_cheap_one_where_it_came() {
    let executor = executor();
    buy(&executor, 4, (1..=3_000).map(|price| (price, 1)));
    let book = |depth: usize| {
        format!(r#"{{orderBook(market:"ERG-USD",depth:{depth}){{bids{{price size}}}}}}"#)
    };
    let cheap = single(execute(&executor, &book(100), Value::Null));
    assert_eq!(cheap["data"]["orderBook"]["bids"].as_array().unwrap().len(), 100);
    assert_eq!(pool_jobs(&executor), 0);
    let long = late(execute(&executor, &book(3_000), Value::Null)).await.unwrap();
    let bids = long["data"]["orderBook"]["bids"].as_array().unwrap();
    assert_eq!((bids.len(), &bids[0]), (3_000, &json!({"price": "0.3000", "size": "0.01"})));
    assert_eq!(pool_jobs(&executor), 1);
    // It could be as deep, but is not.
    let effect = Effect::Replace { market: "A-B".into(), levels: Vec::new() };
    let empty = Applied { sequence: 9, time: None, effect, candles: Vec::new() };
    executor.encoders.live().apply(&[empty]);
    let shallow = r#"{orderBook(market:"A-B",depth:3000){bids{price size}}}"#;
    let shallow = late(execute(&executor, shallow, Value::Null)).await.unwrap();
    assert_eq!(shallow["data"]["orderBook"]["bids"], json!([]));
    assert_eq!(pool_jobs(&executor), 1);
}

#[tokio::test]
async fn a_query_that_began_on_the_pool_reads_a_book_where_it_came() {
    let executor = executor();
    buy(&executor, 4, (1..=3_000).map(|price| (price, 1)));
    let query = r#"{
        __schema { types { name fields { name } } }
        orderBook(market: "ERG-USD", depth: 3000) { bids { price size } }
        absent: orderBook(market: "none", depth: 3000) { bids { price } }
    }"#;
    let result = late(execute(&executor, query, Value::Null)).await.unwrap();
    assert_eq!(result["data"]["orderBook"]["bids"].as_array().unwrap().len(), 3_000);
    assert_eq!(result["data"]["absent"], Value::Null);
    assert!(result["data"]["__schema"]["types"].as_array().unwrap().len() > 20);
    // To the schema, back to the books, and to the levels.
    assert_eq!(pool_jobs(&executor), 2);
}

#[tokio::test]
async fn a_long_query_that_is_not_valid_or_fails_is_answered_like_any_other() {
    let executor = executor();
    let ask = |fields: &str| {
        let query = format!(r#"{{orderBook(market:"A-B",depth:3000){{{fields}}}}}"#);
        late(execute(&executor, &query, Value::Null))
    };
    assert_eq!(ask("bids{price size nothing}").await.unwrap_err()["code"], "VALIDATION_FAILED");
    let failing = r#"{
        markets { id }
        candles(market: "none", interval: M1, last: 5000) { open }
        orderBook(market: "A-B", depth: 5000) { bids { price } }
    }"#;
    let failed = late(execute(&executor, failing, Value::Null)).await.unwrap();
    assert_eq!(failed["errors"][0]["extensions"]["code"], "NOT_FOUND");
}

#[tokio::test]
async fn a_long_query_too_many_of_an_address_learns_when_to_ask_again() {
    let executor = executor();
    let accounts = Accounts::new(AccountLimits::default(), HubShare::of_shards(1));
    let account = accounts.of("203.0.113.7".parse().unwrap());
    let waiting: Vec<_> = std::iter::from_fn(|| account.line().wait().ok()).collect();
    let caller = Caller::new(Principal::default(), account.clone());
    let long = r#"{orderBook(market:"A-B",depth:3000){bids{price size}}}"#;
    let ask = || executor.execute(request(long, Value::Null, Value::Null), &caller);
    let refused = late(ask()).await.unwrap_err();
    let expected = json!({
        "code": "RATE_LIMITED", "name": "waiting_per_address", "limit": 256, "retryAfterMs": 1_000
    });
    assert_eq!(refused, expected);
    let refusals: Vec<_> = accounts.meters().refusals().filter(|one| one.1 > 0).collect();
    assert_eq!(refusals, [("waiting_per_address", 1)]);
    drop(waiting);
    assert!(late(ask()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_long_query_that_the_pool_has_no_time_for_is_unavailable() {
    let executor = executor();
    let mut places = Vec::new();
    let line = crate::pool::Line::exempt();
    for _ in 0..crate::pool::MOST_JOBS {
        places.push(executor.pool.enter(&line).await.unwrap());
    }
    let long = r#"{orderBook(market:"A-B",depth:3000){bids{price size}}}"#;
    let refused = late(execute(&executor, long, Value::Null)).await.unwrap_err();
    assert_eq!(refused, json!({"code": "UNAVAILABLE", "retryAfterMs": 1_000}));
}

#[tokio::test(start_paused = true)]
async fn a_mutation_that_has_no_turn_at_the_log_is_unavailable_after_five_seconds() {
    let executor = executor_with_readers(0, QueryLimits::default(), Box::new(|| 3));
    let query = r#"mutation { cancelOrder(input: { order: "x" }) { sequence } }"#;
    let request = request(query, Value::Null, Value::Null);
    let Execution::Single(result) = executor.execute(request, &caller_of(Some("alice"))) else {
        panic!("no result")
    };
    let began = tokio::time::Instant::now();
    let result: Value = serde_json::from_slice(&result.await.unwrap().json).unwrap();
    assert_eq!(result["errors"][0]["extensions"]["code"], "UNAVAILABLE", "{result}");
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn a_deep_snapshot_is_encoded_on_the_pool_by_the_document_of_its_stream() {
    let executor = executor();
    buy(&executor, 4, (1..=3_000).map(|price| (price, 1)));
    let query = "subscription Deep($depth: Int!) {...Root}
        fragment Root on Subscription{book:orderBook(market:\"ERG-USD\",depth:$depth){...Levels}}
        fragment Levels on BookSnapshot{reason sequence depth bids{p:price size}}";
    let join = |depth: u64, extensions: Value| {
        let request = request(query, json!({ "depth": depth }), extensions);
        let (stream, _) = stream(executor.execute(request, &caller()));
        let start = stream.source().join(&stream, None);
        (stream, start)
    };
    let (_here, Resume::Frames { frames, .. }) = join(500, Value::Null) else { panic!("late") };
    let here = parsed(&frames[0]);
    assert_eq!(pool_jobs(&executor), 0);
    let (_there, Resume::Pending(answer)) = join(3_000, json!({ "cursor": true })) else {
        panic!("at once")
    };
    let answer = answer.await;
    let Resume::Frames { frames, .. } = answer.resume else { panic!("no frames") };
    let there = parsed(&frames[0]);
    assert_eq!(pool_jobs(&executor), 1);
    let book = |result: &Value, field: &str| result["data"]["book"][field].clone();
    assert_eq!((book(&there, "reason"), book(&there, "sequence")), (json!("INITIAL"), json!("4")));
    assert_eq!(book(&there, "depth"), 3_000);
    let bids = book(&there, "bids");
    let bids = bids.as_array().unwrap();
    assert_eq!((bids.len(), &bids[..500]), (3_000, &book(&here, "bids").as_array().unwrap()[..]));
    assert!(there["extensions"]["cursor"].is_string());
}

const ORDERS: &str = "subscription($account: ID) { orders(account: $account) { sequence } }";

fn caller_of(account: Option<&str>) -> Caller {
    let caller = caller();
    Caller { principal: Principal { account: account.map(Into::into) }, ..caller }
}

#[test]
fn what_is_private_is_shared_by_operations_of_one_account_alone() {
    let executor = executor();
    let open = |account: Option<&str>, query: &str, named: &str| {
        let request = request(query, json!({"account": named}), Value::Null);
        stream(executor.execute(request, &caller_of(account))).0.id()
    };
    let of_market = r#"subscription { orders(market: "A-B") { sequence } }"#;
    let shared = open(Some("alice"), of_market, "");
    assert_eq!(open(Some("bob"), of_market, ""), shared);
    assert_eq!(open(None, of_market, ""), shared);
    let alice = open(Some("alice"), ORDERS, "alice");
    assert_eq!(open(Some("alice"), ORDERS, "alice"), alice);
    assert_ne!(open(Some("bob"), ORDERS, "bob"), alice);
    for (account, code) in [(Some("bob"), "FORBIDDEN"), (None, "UNAUTHENTICATED")] {
        let request = request(ORDERS, json!({"account": "alice"}), Value::Null);
        assert_eq!(refusal(executor.execute(request, &caller_of(account)))["code"], code);
    }
}

#[test]
fn a_field_without_an_audience_is_private_also_to_clients_without_an_account() {
    let private = |account: Option<&str>, owner| {
        Audience::Account.key(&Principal { account: account.map(Into::into) }, owner)
    };
    let everyone = Audience::Everyone.key(&Principal::default(), 1);
    let keys = [
        private(Some("alice"), 1),
        private(Some("bob"), 1),
        private(Some("1"), 1),
        private(None, 1),
        private(None, 2),
        everyone,
    ];
    let distinct: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!(distinct.len(), keys.len(), "{keys:?}");
    let document =
        async_graphql_parser::parse_query("subscription { positions { size } }").unwrap();
    let operation = document::operation(&document, None).unwrap();
    let field = document::root_field(&document, operation).unwrap();
    assert_eq!(subscription::audience(&field.node), Audience::Account);
}

#[test]
fn a_stream_that_everyone_shares_is_refused_if_a_resolver_asks_who_its_client_is() {
    let executor = executor();
    let variables = json!({"account": "alice"});
    let build = |audience| {
        let request = StreamRequest {
            schema: executor.schema.clone(),
            text: ORDERS.to_owned(),
            name: None,
            variables: variables.as_object().unwrap().clone(),
            principal: Principal { account: Some("alice".into()) },
            audience,
            with_cursor: false,
            suggests: true,
        };
        request.encoder(async_graphql_parser::parse_query(ORDERS).unwrap()).map(drop)
    };
    assert!(build(Audience::Account).is_ok());
    let errors = build(Audience::Everyone).unwrap_err().into_bytes();
    assert!(String::from_utf8_lossy(&errors).contains("INTERNAL"), "{errors:?}");
}

#[test]
fn an_unknown_directive_is_refused_wherever_it_is() {
    let executor = executor();
    for query in [
        "query @nothing{hub{version}}",
        "{hub @nothing{version}}",
        "{hub{version @nothing}}",
        "{nothing @ifdef}",
        "{... @nothing{hub{version}}}",
        "{...F @nothing} fragment F on Query{hub{version}}",
        "{...F} fragment F on Query @nothing{hub{version}}",
        "query($id:ID! @nothing){market(id:$id){id}}",
        "mutation @nothing{cancelAllOrders{orders{id}}}",
        "subscription @nothing{feedStatus{name}}",
        "subscription{feedStatus{name @nothing}}",
        "subscription{...F} fragment F on Subscription @nothing{feedStatus{name}}",
        "query($id:ID! @skip(if:true)){market(id:$id){id}}",
        "query @skip(if:true){hub{version}}",
        "{hub @deprecated{version}}",
    ] {
        let refused = refusal(execute(&executor, query, json!({"id": "A-B"})));
        assert_eq!(refused["code"], "VALIDATION_FAILED", "{query}");
    }
}

#[test]
fn an_unknown_name_gets_a_suggestion_unless_the_schema_is_a_secret() {
    let message = |executor: &GraphqlExecutor, query| match execute(executor, query, json!({})) {
        Execution::Refused(errors) => {
            let errors: Value = serde_json::from_slice(&errors).unwrap();
            errors[0]["message"].as_str().unwrap().to_owned()
        }
        _ => panic!("not refused"),
    };
    let closed = executor_with(QueryLimits { introspection: false, ..Default::default() });
    for (query, plain, question) in [
        ("{hubb{version}}", "Unknown field \"hubb\" on type \"Query\".", " Did you mean \"hub\"?"),
        (
            "subscription{orderBook(market:\"A-B\",deth:1){sequence}}",
            "Unknown argument \"deth\" on field \"orderBook\" of type \"Subscription\".",
            " Did you mean \"depth\"?",
        ),
    ] {
        assert_eq!(message(&executor(), query), format!("{plain}{question}"));
        assert_eq!(message(&closed, query), plain);
    }
}
