//! Points in time: microseconds as the hub counts them, and their text.

use jiff::Timestamp;

/// Microseconds since 1970 in UTC.
pub type Micros = i64;

/// RFC 3339 UTC with microseconds, as events and the schema write it.
pub fn time_text(micros: Micros) -> String {
    // Outside of the years -9999 to 9999 there is no RFC 3339; admission lets none in, and a clock
    // out there is no reason to stop a hub.
    let time = Timestamp::from_microsecond(micros).unwrap_or_default();
    format!("{time:.6}")
}
