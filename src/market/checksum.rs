//! The checksum a client compares its own book with: CRC32 (ISO 3309) of the best ten levels, as
//! Kraken's API v2 defines it.

use super::book::Book;
use super::fixed;
use super::levels::Level;
use super::levels::Side;

/// Levels of each side that the checksum covers.
const CHECKSUM_DEPTH: usize = 10;

/// Of the book as it is now: asks from the best up, then bids from the best down; each price and
/// size at the market's precision, without the dot and without leading zeros. These are the digits
/// of a [`fixed::Fixed`], so the decimals need not be known here.
pub fn of(book: &Book) -> u32 {
    over(book.levels(Side::Sell, CHECKSUM_DEPTH).chain(book.levels(Side::Buy, CHECKSUM_DEPTH)))
}

fn over(levels: impl Iterator<Item = Level>) -> u32 {
    let mut text = String::with_capacity(2 * CHECKSUM_DEPTH * 24);
    let mut buffer = itoa::Buffer::new();
    for Level { price, size, .. } in levels {
        text.push_str(fixed::digits(price, &mut buffer));
        text.push_str(fixed::digits(size, &mut buffer));
    }
    crc32fast::hash(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::super::fixed::parse;
    use super::super::levels::LevelChange;
    use super::*;

    fn checksum(asks: &[(&str, &str)], bids: &[(&str, &str)], price: u8, size: u8) -> u32 {
        let level = |side| {
            move |(at, of): &(&str, &str)| LevelChange {
                side,
                price: parse(at, price).unwrap(),
                size: parse(of, size).unwrap(),
                orders: 0,
            }
        };
        let mut levels: Vec<_> = asks.iter().map(level(Side::Sell)).collect();
        levels.extend(bids.iter().map(level(Side::Buy)));
        let mut book = Book::default();
        book.replace(1, &levels);
        of(&book)
    }

    #[test]
    fn the_documented_example_gives_the_documented_number() {
        let asks = [
            ("45285.2", "0.00100000"),
            ("45286.4", "1.54571953"),
            ("45286.6", "1.54571109"),
            ("45289.6", "1.54560911"),
            ("45290.2", "0.15890660"),
            ("45291.8", "1.54553491"),
            ("45294.7", "0.04454749"),
            ("45296.1", "0.35380000"),
            ("45297.5", "0.09945542"),
            ("45299.5", "0.18772827"),
            ("45300.0", "9.00000000"),
        ];
        let bids = [
            ("45283.5", "0.10000000"),
            ("45283.4", "1.54582015"),
            ("45282.1", "0.10000000"),
            ("45281.0", "0.10000000"),
            ("45280.3", "1.54592586"),
            ("45279.0", "0.07990000"),
            ("45277.6", "0.03310103"),
            ("45277.5", "0.30000000"),
            ("45277.3", "1.54602737"),
            ("45276.6", "0.15445238"),
            ("45000.0", "9.00000000"),
        ];
        assert_eq!(checksum(&asks, &bids, 1, 8), 3_310_070_434, "the eleventh level is not in it");
    }

    #[test]
    fn an_empty_book_has_the_checksum_of_nothing() {
        assert_eq!(of(&Book::default()), 0);
    }

    #[derive(Deserialize)]
    struct Vector {
        asks: Vec<(String, String)>,
        bids: Vec<(String, String)>,
        crc32: u32,
    }

    #[test]
    fn every_vector_of_the_book_kind_agrees() {
        let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/vectors/checksums.json");
        let path = match std::env::var_os("SPREADLY_TEST_DATA") {
            Some(data) => std::path::Path::new(&data).with_file_name("vectors/checksums.json"),
            None => beside.into(),
        };
        let Ok(text) = std::fs::read(&path) else {
            eprintln!("SKIPPED: no checksum vectors at {}", path.display());
            return;
        };
        let all: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let mut checked = 0;
        for (name, vector) in all.as_object().unwrap() {
            // Other exchanges' vectors have other rules and other fields.
            let Ok(vector) = serde_json::from_value::<Vector>(vector.clone()) else { continue };
            let decimals =
                |written: &String| written.split_once('.').map_or(0, |(_, part)| part.len());
            let price = vector.asks.iter().map(|level| decimals(&level.0)).max().unwrap() as u8;
            let size = vector.asks.iter().map(|level| decimals(&level.1)).max().unwrap() as u8;
            let asks: Vec<_> = vector.asks.iter().map(|(at, of)| (&**at, &**of)).collect();
            let bids: Vec<_> = vector.bids.iter().map(|(at, of)| (&**at, &**of)).collect();
            assert_eq!(checksum(&asks, &bids, price, size), vector.crc32, "{name}");
            checked += 1;
        }
        assert_eq!(checked, 2);
    }
}
