//! What changed in the best levels of a deep book after one event.

use std::hint::black_box;

use gungraun::prelude::*;
use spreadly::market::book::{Book, Changes};
use spreadly::market::levels::{LevelChange, Side};

/// Levels of each side.
const LEVELS: u128 = 5_000;
/// The worst bid. All asks are above all bids.
const BASE: u128 = 100_000;

/// The best bid and five others change, two asks leave and two come.
pub fn event(round: u128) -> Vec<LevelChange> {
    let change = |side, price, size| LevelChange { side, price, size, orders: 0 };
    let (bid, ask) = (BASE + LEVELS - 1, BASE + LEVELS);
    let bids = (0..6).map(|place| change(Side::Buy, bid - place, 100 + place + round));
    let gone = (1..3).map(|place| change(Side::Sell, ask + place, 0));
    let come = (7..9).map(|place| change(Side::Sell, ask + place, 5 + round));
    bids.chain(gone).chain(come).collect()
}

pub fn whole() -> Vec<LevelChange> {
    let change = |side, price| LevelChange { side, price, size: 50 + price % 7, orders: 0 };
    let bids = (BASE..BASE + LEVELS).map(|price| change(Side::Buy, price));
    let asks = (BASE + LEVELS..BASE + 2 * LEVELS).map(|price| change(Side::Sell, price));
    bids.chain(asks).collect()
}

fn deep() -> Book {
    let mut book = Book::default();
    book.replace(1, &whole());
    book
}

fn with_event() -> Book {
    let mut book = deep();
    book.apply(2, &event(1));
    book
}

#[library_benchmark]
#[bench::of_10_levels(deep(), event(1))]
fn apply_delta(mut book: Book, event: Vec<LevelChange>) -> Book {
    book.apply(2, black_box(&event));
    book
}

#[library_benchmark]
#[bench::depth_25(with_event(), 25)]
#[bench::depth_1000(with_event(), 1_000)]
#[bench::depth_5000(with_event(), 5_000)]
fn window(book: Book, depth: usize) -> (Book, Option<Changes>) {
    let changes = book.changes_since(1, black_box(depth));
    (book, changes)
}

library_benchmark_group!(name = book_group, benchmarks = [apply_delta, window]);
