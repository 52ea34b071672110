//! The fields of a line before their kind is known, and how each type of field is read.

use std::fmt;

use jiff::Timestamp;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{MOST_ID_BYTES, Text};
use crate::market::fixed::{self, MOST_DECIMALS};
use crate::market::refusal::Refusal;
use crate::market::time::Micros;

/// How much of a foreign text a reason repeats, in characters.
pub(super) const MOST_QUOTED: usize = 64;

/// Every field that some kind knows, not yet read: so a fault can be named by its field, and what
/// is not asked for costs no more than its syntax check.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Fields<'a> {
    #[serde(borrow)]
    pub(super) kind: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) time: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) height: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) block: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) tx: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) market: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) base: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) quote: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) price_decimals: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) size_decimals: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) tick_size: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) lot_size: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) min_size: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) status: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) bids: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) asks: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) price: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) size: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) taker_side: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) order: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) account: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) side: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    pub(super) order_type: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) client_id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) metadata_cid: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) box_id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) expires_at: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) requested: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) trade: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) liquidity: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) reason: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) source: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) topic: Option<&'a RawValue>,
    /// `null` is data too, hence not read as an absent field.
    #[serde(borrow, default, deserialize_with = "present")]
    pub(super) data: Option<&'a RawValue>,
}

fn present<'de: 'a, 'a, D: Deserializer<'de>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

pub(super) type Raw<'a> = Option<&'a RawValue>;

pub(super) fn identifier<'a>(
    raw: Raw<'a>,
    field: &'static str,
) -> Result<Option<Text<'a>>, Refusal> {
    optional(raw, field)?.map(|text| checked_identifier(text, field)).transpose()
}

pub(super) fn is_identifier(text: &str) -> bool {
    (1..=MOST_ID_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

pub(super) fn checked_identifier<'a>(
    text: Text<'a>,
    field: &'static str,
) -> Result<Text<'a>, Refusal> {
    if !is_identifier(&text) {
        let reason = format!("must have 1 to {MOST_ID_BYTES} bytes and no control characters");
        return Err(fault(field, reason));
    }
    Ok(text)
}

pub(super) fn boxed(raw: Raw<'_>, field: &'static str) -> Result<Option<Box<str>>, Refusal> {
    Ok(identifier(raw, field)?.map(Text::into_box))
}

/// A decimal string, as precise as any market may be.
pub(super) fn decimal(raw: Raw<'_>, field: &'static str) -> Result<Box<str>, Refusal> {
    let text: Box<str> = required(raw, field)?;
    fixed::parse(&text, MOST_DECIMALS).map_err(|error| fault(field, error.to_string()))?;
    Ok(text)
}

pub(super) fn time(raw: Raw<'_>, field: &'static str) -> Result<Option<Micros>, Refusal> {
    optional(raw, field)?.map(|text: Text<'_>| checked_time(&text, field)).transpose()
}

pub(super) fn checked_time(text: &str, field: &'static str) -> Result<Micros, Refusal> {
    let time: Timestamp = text.parse().map_err(|_| {
        fault(field, "must be RFC 3339 such as \"2026-01-31T12:00:00.000001Z\"".into())
    })?;
    Ok(time.as_microsecond())
}

pub(super) fn required<'a, T: Deserialize<'a>>(
    raw: Raw<'a>,
    field: &'static str,
) -> Result<T, Refusal> {
    optional(raw, field)?.ok_or(Refusal::Missing(field))
}

pub(super) fn optional<'a, T: Deserialize<'a>>(
    raw: Raw<'a>,
    field: &'static str,
) -> Result<Option<T>, Refusal> {
    raw.map(|raw| serde_json::from_str(raw.get()))
        .transpose()
        .map_err(|error| fault(field, format!("has another type: {}", without_place(&error))))
}

/// A JSON value of which each number and text can be read. A [`RawValue`] also takes numbers beyond
/// all floats and half of a surrogate pair, which no client can be sent.
struct Readable;

impl<'de> Deserialize<'de> for Readable {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

/// Keeps nothing of what it reads.
impl<'de> Visitor<'de> for Readable {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Self, A::Error> {
        while all.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Self, A::Error> {
        while all.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

pub(super) fn readable(raw: &RawValue, field: &'static str) -> Result<(), Refusal> {
    let read = serde_json::from_str::<Readable>(raw.get());
    read.map(drop)
        .map_err(|error| fault(field, format!("is not readable: {}", without_place(&error))))
}

pub(super) fn fault(field: &'static str, reason: String) -> Refusal {
    Refusal::Field { field, reason }
}

/// serde_json's text without its " at line 1 column 9": the hub itself adds the place, once.
pub(super) fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    reason.chars().take(4 * MOST_QUOTED).collect()
}
