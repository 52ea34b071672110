//! Lines that a test's feed writes: one market whose book changes in a way that follows from the
//! step's number alone, so that a test can say what the book is after any of them.

use std::collections::BTreeMap;

pub const TIME: &str = "2026-01-01T00:00:00Z";

/// A market with a tick of 0.1, as the checksum's own examples have it.
pub fn definition(market: &str) -> String {
    let (base, quote) = market.split_once('-').unwrap();
    format!(
        r#"{{"kind":"market","market":"{market}","base":"{base}","quote":"{quote}","priceDecimals":1,"sizeDecimals":8,"tickSize":"0.1","lotSize":"0.00000001","status":"ACTIVE","time":"{TIME}"}}"#
    )
}

pub fn delta(market: &str, bids: &[(&str, &str)], asks: &[(&str, &str)]) -> String {
    book("book.delta", market, bids, asks)
}

pub fn snapshot(market: &str, bids: &[(&str, &str)], asks: &[(&str, &str)]) -> String {
    book("book.snapshot", market, bids, asks)
}

fn book(kind: &str, market: &str, bids: &[(&str, &str)], asks: &[(&str, &str)]) -> String {
    let levels = |all: &[(&str, &str)]| serde_json::to_string(all).unwrap();
    format!(
        r#"{{"kind":"{kind}","market":"{market}","bids":{},"asks":{},"time":"{TIME}"}}"#,
        levels(bids),
        levels(asks)
    )
}

/// Defines a market and gives it twelve levels a side.
pub fn beginning(market: &str) -> Vec<String> {
    let side = |best: i32, step: i32| -> Vec<_> {
        (0..12).map(|n| (format!("{}.0", best + step * n), "1.00000000")).collect()
    };
    let (bids, asks) = (side(100, -1), side(101, 1));
    let bids: Vec<_> = bids.iter().map(|(price, size)| (price.as_str(), *size)).collect();
    let asks: Vec<_> = asks.iter().map(|(price, size)| (price.as_str(), *size)).collect();
    vec![definition(market), snapshot(market, &bids, &asks)]
}

/// Step `number`'s one change: the size of one of the five best bids says which step it was.
pub fn step(market: &str, number: u64) -> String {
    let price = format!("{}.0", 100 - number % 5);
    let size = format!("{}.00000000", 2 + number);
    delta(market, &[(&price, &size)], &[])
}

/// The bids after steps `0..steps`, as units of 0.1 and of 10^-8.
pub fn bids_after(steps: u64) -> BTreeMap<u128, u128> {
    let mut bids: BTreeMap<_, _> = (0..12u128).map(|n| ((100 - n) * 10, 100_000_000)).collect();
    for number in 0..steps {
        bids.insert(u128::from(100 - number % 5) * 10, u128::from(2 + number) * 100_000_000);
    }
    bids
}
