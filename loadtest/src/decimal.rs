//! Exact decimals as scaled integers. No floating point: a checksum is over digits, and one
//! rounded digit is a wrong book.

use thiserror::Error;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecimalError {
    #[error("`{0}` is not a plain decimal number")]
    Malformed(String),
    #[error("`{text}` has too many decimals: at most {decimals}")]
    TooFine { text: String, decimals: usize },
}

/// How many digits follow the dot, trailing zeros included: venues pad to the market's
/// precision, so the padding is the information.
pub fn decimals_of(text: &str) -> usize {
    text.split_once('.').map_or(0, |(_, fraction)| fraction.len())
}

/// `text` times 10^`decimals`. Its decimal digits are the checksum's "without dot and leading
/// zeros".
///
/// # Errors
/// When it isn't digits with at most one dot, or would need rounding.
pub fn scaled(text: &str, decimals: usize) -> Result<u128, DecimalError> {
    let malformed = || DecimalError::Malformed(text.to_owned());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() {
        return Err(malformed());
    }
    let fraction = if fraction.len() > decimals {
        let (kept, cut) = fraction.split_at_checked(decimals).ok_or_else(malformed)?;
        if cut.bytes().any(|digit| digit != b'0') {
            return Err(DecimalError::TooFine { text: text.to_owned(), decimals });
        }
        kept
    } else {
        fraction
    };
    let mut value: u128 = 0;
    let padding = std::iter::repeat_n(b'0', decimals - fraction.len());
    for digit in whole.bytes().chain(fraction.bytes()).chain(padding) {
        if !digit.is_ascii_digit() {
            return Err(malformed());
        }
        value = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u128::from(digit - b'0')))
            .ok_or_else(malformed)?;
    }
    Ok(value)
}

/// The inverse of [`scaled`], always with `decimals` digits after the dot.
pub fn printed(value: u128, decimals: usize) -> String {
    if decimals == 0 {
        return value.to_string();
    }
    let digits = format!("{value:0>width$}", width = decimals + 1);
    let (whole, fraction) = digits.split_at(digits.len() - decimals);
    format!("{whole}.{fraction}")
}

/// 10^-`decimals`, which is the finest tick a capture with that many digits can show.
pub fn smallest_step(decimals: usize) -> String {
    printed(1, decimals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_keeps_every_digit_and_printing_gives_it_back() {
        assert_eq!(scaled("0.043130", 6), Ok(43_130));
        assert_eq!(scaled("78725", 1), Ok(787_250));
        assert_eq!(printed(43_130, 6), "0.043130");
        assert_eq!(printed(787_250, 1), "78725.0");
        assert_eq!(printed(7, 0), "7");
        assert_eq!(smallest_step(4), "0.0001");
        assert_eq!(smallest_step(0), "1");
    }

    #[test]
    fn zeros_beyond_the_precision_are_cut_and_digits_are_refused() {
        assert_eq!(scaled("1.2500", 2), Ok(125));
        assert!(matches!(scaled("1.2501", 2), Err(DecimalError::TooFine { .. })));
    }

    #[test]
    fn what_is_not_a_plain_number_is_refused() {
        for text in ["", ".5", "-1", "1e5", "1.2.3", "١", "1.é"] {
            assert!(scaled(text, 1).is_err(), "{text}");
        }
    }
}
