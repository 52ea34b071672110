//! The kinds of simulated markets.

/// What makes a market one of its kind. Prices are in ticks and sizes in lots everywhere here but
/// in what is written.
pub(super) struct Listed {
    pub(super) base: &'static str,
    pub(super) quote: &'static str,
    pub(super) price_decimals: u8,
    pub(super) size_decimals: u8,
    /// The step of a price, in units of its last decimal.
    pub(super) tick: u64,
    /// The step of a size, in units of its last decimal.
    pub(super) lot: u64,
    pub(super) start: u64,
    pub(super) typical_size: u64,
    /// How often it moves beside the others.
    pub(super) tempo: u64,
    /// Published order by order, so that others' orders have a place in its book; else by levels.
    pub(super) by_orders: bool,
}

pub(super) const LISTED: [Listed; 4] = [
    Listed {
        base: "ERG",
        quote: "USD",
        price_decimals: 4,
        size_decimals: 8,
        tick: 1,
        lot: 1_000_000,
        start: 8_500,
        typical_size: 25_000,
        tempo: 6,
        by_orders: false,
    },
    Listed {
        base: "SIGUSD",
        quote: "ERG",
        price_decimals: 6,
        size_decimals: 2,
        tick: 100,
        lot: 10,
        start: 11_800,
        typical_size: 5_000,
        tempo: 3,
        by_orders: false,
    },
    Listed {
        base: "SPF",
        quote: "ERG",
        price_decimals: 8,
        size_decimals: 6,
        tick: 500,
        lot: 1_000_000,
        start: 2_500,
        typical_size: 4_000,
        tempo: 1,
        by_orders: false,
    },
    Listed {
        base: "RSN",
        quote: "ERG",
        price_decimals: 6,
        size_decimals: 3,
        tick: 10,
        lot: 1_000,
        start: 7_200,
        typical_size: 1_500,
        tempo: 2,
        by_orders: true,
    },
];
