//! What an order must keep to that somebody wants to place: the rules of its market. The events of
//! feeds happened already and are not asked.

use super::definition::{MarketDefinition, MarketStatus};
use super::fixed::{self, Fixed, FixedError};
use super::time::{Micros, time_text};

/// An order that somebody wants to place, as written.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    pub price: Option<&'a str>,
    pub size: &'a str,
    pub expires_at: Option<Micros>,
}

/// The rule that an order breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleBroken {
    #[error("market {market} is {status}: it takes no orders")]
    Status { market: String, status: &'static str },
    #[error("{field} {value} {reason}")]
    Number { field: &'static str, value: String, reason: FixedError },
    #[error("price {value} is not above 0 and a multiple of the market's tick size {tick}")]
    Tick { value: String, tick: String },
    #[error("size {value} is not a multiple of the market's lot size {lot}")]
    Lot { value: String, lot: String },
    #[error("size {value} is below the market's minimum size {least}")]
    MinimumSize { value: String, least: String },
    #[error("expiresAt is in the past")]
    Expiry { value: Micros },
}

impl RuleBroken {
    /// By which a program distinguishes them.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Number { field, .. } => field,
            Self::Tick { .. } => "tickSize",
            Self::Lot { .. } => "lotSize",
            Self::MinimumSize { .. } => "minSize",
            Self::Expiry { .. } => "expiresAt",
        }
    }

    /// What broke it.
    pub fn value(&self) -> String {
        match self {
            Self::Status { status, .. } => (*status).to_owned(),
            Self::Number { value, .. }
            | Self::Tick { value, .. }
            | Self::Lot { value, .. }
            | Self::MinimumSize { value, .. } => value.clone(),
            Self::Expiry { value } => time_text(*value),
        }
    }
}

/// Checks an order against its market's rules, at this time.
///
/// # Errors
/// The first rule that it breaks.
pub fn check(market: &MarketDefinition, wish: &Wish<'_>, now: Micros) -> Result<(), RuleBroken> {
    if market.status != MarketStatus::Active {
        let status = market.status.name();
        return Err(RuleBroken::Status { market: market.market.to_string(), status });
    }
    if let Some(price) = wish.price {
        let units = number("price", price, market.price_decimals)?;
        if units == 0 || units % step(&market.tick_size, market.price_decimals) != 0 {
            let (value, tick) = (price.to_owned(), market.tick_size.clone());
            return Err(RuleBroken::Tick { value, tick });
        }
    }
    let size = number("size", wish.size, market.size_decimals)?;
    let value = wish.size.to_owned();
    if size % step(&market.lot_size, market.size_decimals) != 0 {
        return Err(RuleBroken::Lot { value, lot: market.lot_size.clone() });
    }
    if size < step(&market.min_size, market.size_decimals) {
        return Err(RuleBroken::MinimumSize { value, least: market.min_size.clone() });
    }
    match wish.expires_at {
        Some(at) if at <= now => Err(RuleBroken::Expiry { value: at }),
        _ => Ok(()),
    }
}

fn number(field: &'static str, text: &str, decimals: u8) -> Result<Fixed, RuleBroken> {
    fixed::parse(text, decimals).map_err(|reason| {
        let value = text.chars().take(64).collect();
        RuleBroken::Number { field, value, reason }
    })
}

/// A step of the definition, which was checked when it was read: above 0 and at its decimals.
fn step(text: &str, decimals: u8) -> Fixed {
    fixed::parse(text, decimals).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::event::{Body, parse};
    use super::*;

    const NOW: Micros = 1_000_000;

    fn market(status: &str) -> MarketDefinition {
        let line = format!(
            r#"{{"kind":"market","market":"A-B","base":"A","quote":"B","priceDecimals":2,"sizeDecimals":3,"tickSize":"0.05","lotSize":"0.01","minSize":"0.5","status":"{status}"}}"#
        );
        match parse(line.as_bytes()).unwrap().body {
            Body::Market(definition) => definition,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_rule_is_named_with_the_value_that_breaks_it() {
        let fine = Wish { price: Some("1.05"), size: "0.51", expires_at: Some(NOW + 1) };
        assert_eq!(check(&market("ACTIVE"), &fine, NOW), Ok(()));
        assert_eq!(check(&market("ACTIVE"), &Wish { price: None, ..fine }, NOW), Ok(()));
        let broken = [
            ("HALTED", fine, "status", "HALTED", "market A-B is HALTED: it takes no orders"),
            (
                "ACTIVE",
                Wish { price: Some("1.06"), ..fine },
                "tickSize",
                "1.06",
                "price 1.06 is not above 0 and a multiple of the market's tick size 0.05",
            ),
            (
                "ACTIVE",
                Wish { price: Some("0"), ..fine },
                "tickSize",
                "0",
                "price 0 is not above 0 and a multiple of the market's tick size 0.05",
            ),
            (
                "ACTIVE",
                Wish { price: Some("1.055"), ..fine },
                "price",
                "1.055",
                "price 1.055 has too many decimals: at most 2",
            ),
            (
                "ACTIVE",
                Wish { size: "0.515", ..fine },
                "lotSize",
                "0.515",
                "size 0.515 is not a multiple of the market's lot size 0.01",
            ),
            (
                "ACTIVE",
                Wish { size: "0.49", ..fine },
                "minSize",
                "0.49",
                "size 0.49 is below the market's minimum size 0.5",
            ),
            (
                "ACTIVE",
                Wish { expires_at: Some(NOW), ..fine },
                "expiresAt",
                "1970-01-01T00:00:01.000000Z",
                "expiresAt is in the past",
            ),
        ];
        for (status, wish, rule, value, text) in broken {
            let error = check(&market(status), &wish, NOW).unwrap_err();
            assert_eq!((error.rule(), &*error.value(), &*error.to_string()), (rule, value, text));
        }
    }
}
