//! A market's price levels as a subscriber holds them, and the checksum over them. Used to follow a
//! venue's capture and to follow the hub; it shares no code with the hub on purpose.

use crate::decimal::{DecimalError, scaled};
use std::collections::BTreeMap;

/// Kraken v2's definition, which the protocol and venues share: ten levels a side.
pub const CHECKSUM_LEVELS: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Bid,
    Ask,
}

/// Keys are prices times 10^`price_decimals`, values sizes times 10^`size_decimals`: integers order
/// and compare exactly, and printed plainly they are the checksum's text.
#[derive(Debug)]
pub struct Book {
    pub price_decimals: usize,
    pub size_decimals: usize,
    pub bids: BTreeMap<u128, u128>,
    pub asks: BTreeMap<u128, u128>,
}

impl Book {
    pub fn new(price_decimals: usize, size_decimals: usize) -> Self {
        Self { price_decimals, size_decimals, bids: BTreeMap::new(), asks: BTreeMap::new() }
    }

    pub fn clear(&mut self) {
        self.bids.clear();
        self.asks.clear();
    }

    /// Sets one level to an absolute size; zero removes it. Returns the price's key.
    ///
    /// # Errors
    /// When price or size isn't a number of the market's precision.
    pub fn set(&mut self, side: Side, price: &str, size: &str) -> Result<u128, DecimalError> {
        let price = scaled(price, self.price_decimals)?;
        let size = scaled(size, self.size_decimals)?;
        let levels = match side {
            Side::Bid => &mut self.bids,
            Side::Ask => &mut self.asks,
        };
        if size == 0 {
            levels.remove(&price);
        } else {
            levels.insert(price, size);
        }
        Ok(price)
    }

    /// Drops what lies beyond the best `depth` levels of each side and returns the prices dropped
    /// (bids, asks). Venues with a fixed depth do this without a message.
    pub fn truncate(&mut self, depth: usize) -> (Vec<u128>, Vec<u128>) {
        let mut dropped = (Vec::new(), Vec::new());
        while self.bids.len() > depth {
            dropped.0.extend(self.bids.pop_first().map(|(price, _)| price));
        }
        while self.asks.len() > depth {
            dropped.1.extend(self.asks.pop_last().map(|(price, _)| price));
        }
        dropped
    }

    /// CRC32 (ISO 3309) of the top ten asks ascending, then the top ten bids descending.
    pub fn checksum(&self) -> u32 {
        let mut text = String::with_capacity(CHECKSUM_LEVELS * 2 * 24);
        let asks = self.asks.iter().take(CHECKSUM_LEVELS);
        let bids = self.bids.iter().rev().take(CHECKSUM_LEVELS);
        for (price, size) in asks.chain(bids) {
            text.push_str(&price.to_string());
            text.push_str(&size.to_string());
        }
        crc32fast::hash(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example in Kraken's documentation of the v2 channel.
    #[test]
    fn the_checksum_is_the_one_kraken_documents() {
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
        ];
        let mut book = Book::new(1, 8);
        for (price, size) in asks {
            book.set(Side::Ask, price, size).unwrap();
        }
        for (price, size) in bids {
            book.set(Side::Bid, price, size).unwrap();
        }
        assert_eq!(book.checksum(), 3310070434);
    }

    #[test]
    fn truncating_drops_the_worst_levels_of_each_side() {
        let mut book = Book::new(0, 0);
        for price in ["1", "2", "3"] {
            book.set(Side::Bid, price, "1").unwrap();
            book.set(Side::Ask, price, "1").unwrap();
        }
        assert_eq!(book.truncate(2), (vec![1], vec![3]));
        assert_eq!(book.truncate(2), (vec![], vec![]));
    }
}
