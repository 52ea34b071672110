//! A line of a feed becomes an event.

use std::hint::black_box;

use gungraun::prelude::*;
use spreadly::market::event::parse;

/// Ten levels of each side.
fn delta() -> String {
    let level = |price: u32| format!(r#"["{price}.25","{}.5"]"#, price % 7);
    let side = |from: u32| (from..from + 10).map(level).collect::<Vec<_>>().join(",");
    let (bids, asks) = (side(45_270), side(45_290));
    let levels = format!(r#""bids":[{bids}],"asks":[{asks}]"#);
    format!(r#"{{"kind":"book.delta","market":"ERG-USD","id":"120034",{levels}}}"#)
}

fn trade() -> String {
    let line = r#"{"kind":"trade","market":"ERG-USD","id":"120035","price":"45283.50","size":"0.25",
        "takerSide":"BUY","time":"2026-01-31T12:00:00.000001Z","height":1200345}"#;
    line.to_owned()
}

fn order() -> String {
    let line = r#"{"kind":"order.placed","market":"ERG-USD","order":"o120036","account":"9g4f8h",
        "side":"SELL","price":"45283.50","size":"0.25","time":"2026-01-31T12:00:00.000001Z"}"#;
    line.to_owned()
}

fn message() -> String {
    let line = r#"{"kind":"message","topic":"news","id":"120037",
        "data":{"title":"maintenance","from":1769860800,"markets":["ERG-USD","KSM-XBT"]}}"#;
    line.to_owned()
}

#[library_benchmark]
#[bench::book_delta_of_20_levels(delta())]
#[bench::trade(trade())]
#[bench::order_placed(order())]
#[bench::message(message())]
fn parse_line(line: String) -> String {
    assert!(black_box(parse(black_box(line.as_bytes()))).is_ok());
    line
}

library_benchmark_group!(name = line_group, benchmarks = parse_line);
