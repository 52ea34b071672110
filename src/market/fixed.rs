//! Exact decimals as whole numbers of a market's smallest unit.

use thiserror::Error;

/// A price or size in units of `10^-decimals` of its market, so that comparing and adding is exact.
/// 128 bits hold any 18-decimal token's supply.
pub type Fixed = u128;

/// Most decimals a market may have.
pub const MOST_DECIMALS: u8 = 18;

/// Largest exponent, either way: beyond it no number fits.
const MOST_EXPONENT: u32 = 64;

/// As many digits are below 2^64, whose arithmetic costs a fraction of that of 128 bits.
const U64_DIGITS: usize = 19;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FixedError {
    #[error("is not a plain decimal number such as \"12.5\"")]
    Malformed,
    #[error("has too many decimals: at most {0}")]
    TooPrecise(u8),
    #[error("is too large")]
    TooLarge,
}

/// Reads digits with at most one dot, without a sign, and perhaps an exponent (`7.3e-7`). Zeros
/// beyond `decimals` are fine.
pub fn parse(text: &str, decimals: u8) -> Result<Fixed, FixedError> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || text.ends_with('.') {
        return match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => parse(&plain(mantissa, exponent)?, decimals),
            None => Err(FixedError::Malformed),
        };
    }
    let kept = fraction.trim_end_matches('0');
    if kept.len() > usize::from(decimals) {
        return Err(FixedError::TooPrecise(decimals));
    }
    let unit = 10u128.pow(u32::from(decimals) - kept.len() as u32);
    let mut all = whole.bytes().chain(kept.bytes()).map(|digit| digit - b'0');
    let value = match whole.len() + kept.len() <= U64_DIGITS {
        true => Some(all.fold(0, |value, digit| 10 * value + u64::from(digit)).into()),
        false => {
            all.try_fold(0u128, |value, digit| value.checked_mul(10)?.checked_add(digit.into()))
        }
    };
    value.and_then(|value| value.checked_mul(unit)).ok_or(FixedError::TooLarge)
}

/// Writes a number that has an exponent without one.
fn plain(mantissa: &str, exponent: &str) -> Result<String, FixedError> {
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let exponent: i32 = exponent.parse().map_err(|_| FixedError::Malformed)?;
    if exponent.unsigned_abs() > MOST_EXPONENT
        || whole.is_empty()
        || mantissa.ends_with('.')
        || !digits.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Err(FixedError::Malformed);
    }
    // Zeros on both sides, as many as the dot may be moved.
    let zeros = "0".repeat(MOST_EXPONENT as usize);
    let dot = whole.len() + zeros.len();
    let dot = dot.checked_add_signed(exponent as isize).ok_or(FixedError::Malformed)?;
    let all = format!("{zeros}{digits}{zeros}");
    let (whole, fraction) = all.split_at(dot);
    let whole = whole.trim_start_matches('0');
    // With a last zero, as there are digits after a dot.
    Ok(format!("{}.{fraction}0", if whole.is_empty() { "0" } else { whole }))
}

/// Writes the digits alone, without leading zeros.
pub fn digits(value: Fixed, buffer: &mut itoa::Buffer) -> &str {
    // Arithmetic of 64 bits costs a fraction of that of 128.
    match u64::try_from(value) {
        Ok(small) => buffer.format(small),
        Err(_) => buffer.format(value),
    }
}

/// Writes with exactly `decimals` decimals.
pub fn format(value: Fixed, decimals: u8) -> String {
    let mut buffer = itoa::Buffer::new();
    let digits = digits(value, &mut buffer);
    let decimals = usize::from(decimals);
    let mut text = String::with_capacity(digits.len().max(decimals + 1) + 1);
    let (whole, fraction) = digits.split_at(digits.len().saturating_sub(decimals));
    text.push_str(if whole.is_empty() { "0" } else { whole });
    if decimals > 0 {
        text.push('.');
        text.extend(std::iter::repeat_n('0', decimals - fraction.len()));
        text.push_str(fraction);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bad_numbers_are_named() {
        for text in ["", ".", "1.", ".5", "-1", "+1", "1,5", "0x1", "1.2.3", "NaN", " 1"] {
            assert_eq!(parse(text, 8), Err(FixedError::Malformed), "{text:?}");
            let with_exponent = format!("{text}e1");
            assert_eq!(parse(&with_exponent, 8), Err(FixedError::Malformed), "{with_exponent:?}");
        }
        for text in ["1e", "e1", "1e1e1", "1e1.0", "1e--1", "1e65", "1e-65", "1e99999999999"] {
            assert_eq!(parse(text, 8), Err(FixedError::Malformed), "{text:?}");
        }
        assert_eq!(parse("1.234", 2), Err(FixedError::TooPrecise(2)));
        assert_eq!(parse("1.230", 2), Ok(123));
        assert_eq!(parse(&"9".repeat(40), 0), Err(FixedError::TooLarge));
    }

    #[test]
    fn an_exponent_moves_the_dot_and_loses_nothing() {
        for (text, decimals, value) in [
            ("7.3E-7", 8, Ok(73)),
            ("7.3e-7", 7, Err(FixedError::TooPrecise(7))),
            ("1e5", 0, Ok(100_000)),
            ("1.25e+1", 1, Ok(125)),
            ("1.250e1", 1, Ok(125)),
            ("0e-64", 0, Ok(0)),
            ("0.5e1", 0, Ok(5)),
            ("100e-2", 0, Ok(1)),
            ("12.5e0", 1, Ok(125)),
            ("1e64", 0, Err(FixedError::TooLarge)),
        ] {
            assert_eq!(parse(text, decimals), value, "{text}");
        }
    }

    #[test]
    fn as_many_decimals_are_written_as_the_market_has() {
        for (value, decimals, text) in [
            (0, 0, "0"),
            (0, 2, "0.00"),
            (7, 0, "7"),
            (7, 2, "0.07"),
            (123, 3, "0.123"),
            (1_230, 3, "1.230"),
            (u128::from(u64::MAX) + 1, 18, "18.446744073709551616"),
        ] {
            assert_eq!(format(value, decimals), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(value in 0u128..10u128.pow(30), decimals in 0..=MOST_DECIMALS) {
            prop_assert_eq!(parse(&format(value, decimals), decimals), Ok(value));
        }
    }
}
