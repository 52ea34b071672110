//! A simulated market's events as lines.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Listed, Market, Trade};
use crate::market::fixed;

impl Market {
    pub(super) fn definition(&self, time: &str) -> String {
        let Self { name, base, listed, .. } = self;
        let Listed { quote, price_decimals, size_decimals, .. } = listed;
        let (tick, lot) = (self.price(1), self.size(1));
        format!(
            r#"{{"kind":"market","market":"{name}","base":"{base}","quote":"{quote}","priceDecimals":{price_decimals},"sizeDecimals":{size_decimals},"tickSize":"{tick}","lotSize":"{lot}","status":"ACTIVE","time":"{time}"}}"#
        )
    }

    pub(super) fn trade(&self, id: &str, trade: &Trade, time: &str) -> String {
        let taker = trade.taker.name();
        let (price, size) = (self.price(trade.price), self.size(trade.size));
        format!(
            r#"{{"kind":"trade","market":"{}","id":"{id}","price":"{price}","size":"{size}","takerSide":"{taker}","time":"{time}"}}"#,
            self.name
        )
    }

    pub(super) fn price(&self, ticks: u64) -> String {
        fixed::format(u128::from(ticks * self.listed.tick), self.listed.price_decimals)
    }

    pub(super) fn size(&self, lots: u64) -> String {
        fixed::format(u128::from(lots * self.listed.lot), self.listed.size_decimals)
    }

    pub(super) fn snapshot(&self, time: &str) -> String {
        self.levels("book.snapshot", &self.bids, &self.asks, time)
    }

    /// Best first on both sides, as a person reads a book.
    pub(super) fn levels(
        &self,
        kind: &str,
        bids: &BTreeMap<u64, u64>,
        asks: &BTreeMap<u64, u64>,
        time: &str,
    ) -> String {
        let mut line = format!(r#"{{"kind":"{kind}","market":"{}","bids":["#, self.name);
        self.write_levels(&mut line, bids.iter().rev());
        line.push_str(r#"],"asks":["#);
        self.write_levels(&mut line, asks.iter());
        let _ = write!(line, r#"],"time":"{time}"}}"#);
        line
    }

    fn write_levels<'a>(
        &self,
        line: &mut String,
        levels: impl Iterator<Item = (&'a u64, &'a u64)>,
    ) {
        for (place, (price, size)) in levels.enumerate() {
            let comma = if place == 0 { "" } else { "," };
            let (price, size) = (self.price(*price), self.size(*size));
            let _ = write!(line, r#"{comma}["{price}","{size}"]"#);
        }
    }
}
