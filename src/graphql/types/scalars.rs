//! The schema's own scalars, each one representation for one kind of number or text.

use async_graphql::{InputValueError, InputValueResult, Scalar, ScalarType, Value};

use crate::market::fixed::{self, Fixed};
use crate::market::time::{Micros, time_text};

/// Exact decimal, as a string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decimal(pub String);

impl Decimal {
    pub fn new(value: Fixed, decimals: u8) -> Self {
        Self(fixed::format(value, decimals))
    }
}

/// Exact decimal, as a string.
#[Scalar(name = "Decimal")]
impl ScalarType for Decimal {
    fn parse(value: Value) -> InputValueResult<Self> {
        match value {
            Value::String(text) => match fixed::parse(&text, fixed::MOST_DECIMALS) {
                Ok(_) => Ok(Self(text)),
                Err(fault) => Err(InputValueError::custom(fault)),
            },
            other => Err(InputValueError::expected_type(other)),
        }
    }

    fn to_value(&self) -> Value {
        Value::String(self.0.clone())
    }
}

/// Unsigned 64 bit, as a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UInt64(pub u64);

/// Unsigned 64 bit, as a string.
#[Scalar(name = "UInt64")]
impl ScalarType for UInt64 {
    fn parse(value: Value) -> InputValueResult<Self> {
        match value {
            Value::String(text) => Ok(Self(text.parse()?)),
            Value::Number(number) => number
                .as_u64()
                .map(Self)
                .ok_or_else(|| InputValueError::custom("is not an unsigned 64 bit number")),
            other => Err(InputValueError::expected_type(other)),
        }
    }

    fn to_value(&self) -> Value {
        Value::String(self.0.to_string())
    }
}

/// Unsigned 32 bit, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UInt32(pub u32);

/// Unsigned 32 bit, as a number.
#[Scalar(name = "UInt32")]
impl ScalarType for UInt32 {
    fn parse(value: Value) -> InputValueResult<Self> {
        match &value {
            Value::Number(number) => number
                .as_u64()
                .and_then(|number| u32::try_from(number).ok())
                .map(Self)
                .ok_or_else(|| InputValueError::custom("is not an unsigned 32 bit number")),
            _ => Err(InputValueError::expected_type(value)),
        }
    }

    fn to_value(&self) -> Value {
        Value::Number(self.0.into())
    }
}

/// RFC 3339 UTC with microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime(pub Micros);

/// RFC 3339 UTC with microseconds.
#[Scalar(name = "DateTime")]
impl ScalarType for DateTime {
    fn parse(value: Value) -> InputValueResult<Self> {
        match value {
            Value::String(text) => Ok(Self(text.parse::<jiff::Timestamp>()?.as_microsecond())),
            other => Err(InputValueError::expected_type(other)),
        }
    }

    fn to_value(&self) -> Value {
        Value::String(time_text(self.0))
    }
}

/// A position on each topic of one subscription. Clients must not parse it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(pub String);

/// A position on each topic of one subscription. Clients must not parse it.
#[Scalar(name = "Cursor")]
impl ScalarType for Cursor {
    fn parse(value: Value) -> InputValueResult<Self> {
        match value {
            Value::String(text) => Ok(Self(text)),
            other => Err(InputValueError::expected_type(other)),
        }
    }

    fn to_value(&self) -> Value {
        Value::String(self.0.clone())
    }
}

/// Any JSON. The hub sends what its source wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Json(pub Value);

impl Json {
    /// Text that is known to be JSON, to be sent as it is: it may be selected many times.
    ///
    /// `errors::encode` writes what is binary as JSON. Nothing else of the schema is.
    pub fn from_text(text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        // Only between tokens can there be one, where a space means the same. A line of an event
        // stream ends with it.
        bytes
            .iter_mut()
            .filter(|byte| matches!(**byte, b'\n' | b'\r'))
            .for_each(|byte| *byte = b' ');
        Self(Value::Binary(bytes.into()))
    }
}

/// Any JSON. The hub sends what its source wrote.
#[Scalar(name = "JSON")]
impl ScalarType for Json {
    fn parse(value: Value) -> InputValueResult<Self> {
        Ok(Self(value))
    }

    fn to_value(&self) -> Value {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_exactly_six_decimals_and_a_z() {
        let written = |micros| DateTime(micros).to_value().to_string();
        assert_eq!(written(0), "\"1970-01-01T00:00:00.000000Z\"");
        assert_eq!(written(1_700_000_000_123_450), "\"2023-11-14T22:13:20.123450Z\"");
    }

    #[test]
    fn json_is_sent_as_it_was_written_on_one_line() {
        let written = "{\"a\":\n [1.0, 1e15,\t12345678901234567890.5]\r}";
        let response = async_graphql::Response::new(Json::from_text(written).to_value());
        let sent = String::from_utf8(crate::graphql::errors::encode(response, None)).unwrap();
        assert_eq!(sent, "{\"data\":{\"a\":  [1.0, 1e15,\t12345678901234567890.5] }}");
    }

    #[test]
    fn sixty_four_bits_survive_as_text() {
        let value = UInt64(u64::MAX).to_value();
        assert_eq!(value, Value::String("18446744073709551615".into()));
        assert_eq!(UInt64::parse(value).unwrap(), UInt64(u64::MAX));
    }
}
