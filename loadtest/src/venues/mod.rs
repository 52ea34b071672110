//! Recorded venue captures, line by line, into one small common form. Each venue's file knows that
//! venue's words and nothing of our events; `feed::convert` knows our events and no venue.

mod binance;
mod bitstamp;
mod bybit;
mod coinbase;
mod kraken_v1;
mod kraken_v2;
mod okx;

pub use crate::book::Side;
use clap::ValueEnum;
use thiserror::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Kraken WebSocket v1 `book-N`, lines `<unix time>: <json>`
    KrakenV1,
    /// Kraken WebSocket v2 `book`
    KrakenV2,
    /// OKX v5 `books`
    Okx,
    /// Coinbase Advanced Trade `level2`
    Coinbase,
    /// Bybit v5 `orderbook.N`
    Bybit,
    /// Bitstamp `diff_order_book` with its REST snapshot, or `live_orders`
    Bitstamp,
    /// Binance `depthUpdate` with its REST snapshot, alone or as combined streams
    Binance,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Self::KrakenV1 => "kraken-v1",
            Self::KrakenV2 => "kraken-v2",
            Self::Okx => "okx",
            Self::Coinbase => "coinbase",
            Self::Bybit => "bybit",
            Self::Bitstamp => "bitstamp",
            Self::Binance => "binance",
        }
    }

    /// What only that venue writes. A line that says nothing (an ack, a heartbeat) is no answer.
    pub fn guess(line: &str) -> Option<Self> {
        let has = |text: &str| line.contains(text);
        if line.starts_with("wss://ws.kraken.com") || has("\"channelName\":\"book-") {
            Some(Self::KrakenV1)
        } else if has("\"channel\":\"book\"") {
            Some(Self::KrakenV2)
        } else if has("\"channel\":\"l2_data\"") {
            Some(Self::Coinbase)
        } else if has("\"instId\":") {
            Some(Self::Okx)
        } else if has("\"topic\":\"orderbook.") {
            Some(Self::Bybit)
        } else if has("diff_order_book_") || has("\"channel\":\"live_orders_") {
            Some(Self::Bitstamp)
        } else if has("\"depthUpdate\"") {
            Some(Self::Binance)
        } else {
            None
        }
    }
}

#[derive(Debug, Error)]
pub enum VenueError {
    #[error("not the venue's JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Meaning(String),
}

/// One level as the venue printed it: price, size. Digits are kept, since checksums are over them.
pub type Level = (String, String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Snapshot,
    Delta,
}

/// How a venue says what came before. A gap in it means that the capture itself is incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// No numbers: Kraken relies on its checksum.
    Unnumbered,
    /// Names its predecessor exactly. Needn't rise: OKX restarts its numbers after maintenance.
    After { previous: u64, last: u64 },
    /// Covers a range of ids, dense from one message to the next.
    Range { first: u64, last: u64 },
    /// The same, but ids leap from one message to the next: it names the last id before it.
    Leaping { first: u64, last: u64, previous: u64 },
    /// Only a clock: shows what is older than the snapshot, but not what is missing.
    Clock(u64),
}

#[derive(Debug, Clone)]
pub struct VenueUpdate {
    pub symbol: String,
    pub kind: Kind,
    /// Levels a side that a subscriber keeps; the rest is dropped without a message. `None`: all.
    pub depth: Option<usize>,
    pub bids: Vec<Level>,
    pub asks: Vec<Level>,
    /// Microseconds since 1970, the venue's clock. A REST snapshot may have none.
    pub time: Option<i64>,
    /// Microseconds since 1970, the recorder's clock, which alone is sure to rise.
    pub received: Option<i64>,
    pub link: Link,
    pub checksum: Option<u32>,
}

/// What happened to a single order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderStep {
    Created,
    Changed,
    Deleted,
}

/// A message about one single order.
#[derive(Debug, Clone)]
pub struct VenueOrder {
    pub symbol: String,
    pub order: String,
    pub step: OrderStep,
    pub side: Side,
    /// Of the order; of the trade where some was traded. Zero: at any price.
    pub price: String,
    /// Not traded yet, after this message.
    pub open: String,
    /// By this message.
    pub traded: String,
    /// Microseconds since 1970, the venue's clock.
    pub time: Option<i64>,
    /// The message's own name, and that of the one before.
    pub event: String,
    pub previous: String,
}

#[derive(Debug)]
pub enum Message {
    Book(VenueUpdate),
    Order(VenueOrder),
    /// Numbers every message of the connection, also those about nothing (Coinbase).
    ConnectionSequence(u64),
}

/// A capture being read. It has state: channel numbers, depths and the symbol a snapshot is for are
/// said once, in other lines.
#[derive(Debug)]
pub enum Reader {
    KrakenV1(kraken_v1::Reader),
    KrakenV2(kraken_v2::Reader),
    Okx,
    Coinbase,
    Bybit,
    Bitstamp(bitstamp::Reader),
    Binance(binance::Reader),
}

impl Reader {
    pub fn new(format: Format) -> Self {
        match format {
            Format::KrakenV1 => Self::KrakenV1(kraken_v1::Reader::default()),
            Format::KrakenV2 => Self::KrakenV2(kraken_v2::Reader::default()),
            Format::Okx => Self::Okx,
            Format::Coinbase => Self::Coinbase,
            Format::Bybit => Self::Bybit,
            Format::Bitstamp => Self::Bitstamp(bitstamp::Reader::default()),
            Format::Binance => Self::Binance(binance::Reader::default()),
        }
    }

    /// # Errors
    /// When the line isn't what the venue documents. Lines about something else are no messages.
    pub fn line(&mut self, line: &str) -> Result<Vec<Message>, VenueError> {
        match self {
            Self::KrakenV1(reader) => reader.line(line),
            Self::KrakenV2(reader) => reader.line(line),
            Self::Okx => okx::line(line),
            Self::Coinbase => coinbase::line(line),
            Self::Bybit => bybit::line(line),
            Self::Bitstamp(reader) => reader.line(line),
            Self::Binance(reader) => reader.line(line),
        }
    }
}

/// `BTC/USD`, `BTC-USD` and `BTCUSD` into base and quote. Venues that write them together leave the
/// border to be guessed from the quotes they list.
pub fn base_and_quote(symbol: &str) -> Option<(String, String)> {
    const QUOTES: [&str; 17] = [
        "FDUSD", "USDT", "USDC", "TUSD", "BUSD", "USD", "EUR", "GBP", "CHF", "JPY", "AUD", "CAD",
        "TRY", "BRL", "BTC", "ETH", "BNB",
    ];
    let symbol = symbol.to_ascii_uppercase();
    if let Some((base, quote)) = symbol.split_once(['/', '-', '_']) {
        return (!base.is_empty() && !quote.is_empty())
            .then(|| (base.to_owned(), quote.to_owned()));
    }
    QUOTES.iter().find_map(|quote| {
        let base = symbol.strip_suffix(quote)?;
        (!base.is_empty()).then(|| (base.to_owned(), (*quote).to_owned()))
    })
}

/// `1618678133.62651` as microseconds. By digits, since a double has too few for that.
fn unix_seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let micros: String =
        fraction.chars().chain(std::iter::repeat('0')).take(MICROS_DIGITS).collect();
    whole.parse::<i64>().ok()?.checked_mul(1_000_000)?.checked_add(micros.parse().ok()?)
}

const MICROS_DIGITS: usize = 6;

fn rfc3339(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_microsecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_is_split_at_its_mark_or_at_a_known_quote() {
        let pair = |symbol| base_and_quote(symbol).map(|(base, quote)| format!("{base} {quote}"));
        assert_eq!(pair("XMR/USD").as_deref(), Some("XMR USD"));
        assert_eq!(pair("BTC-USDT").as_deref(), Some("BTC USDT"));
        assert_eq!(pair("btcusd").as_deref(), Some("BTC USD"));
        assert_eq!(pair("BTCFDUSD").as_deref(), Some("BTC FDUSD"));
        assert_eq!(pair("USD"), None);
    }

    #[test]
    fn recorded_seconds_keep_their_microseconds() {
        assert_eq!(unix_seconds("1618678133.62651"), Some(1_618_678_133_626_510));
        assert_eq!(unix_seconds("1618678133.2949052"), Some(1_618_678_133_294_905));
        assert_eq!(unix_seconds("1618678133"), Some(1_618_678_133_000_000));
    }
}
