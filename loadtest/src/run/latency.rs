//! From when a message's latency counts: a time that the message has.

use super::client::string_after;
use clap::ValueEnum;
use serde::Serialize;

/// The field whose time a latency begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LatencyFrom {
    /// `publishTime`: when the hub made the message
    #[default]
    Publish,
    /// `eventTime`: when the event happened at its source; messages without an event don't count
    Event,
}

impl LatencyFrom {
    /// In each message that counts.
    pub fn field(self) -> &'static str {
        match self {
            Self::Publish => "publishTime",
            Self::Event => "eventTime",
        }
    }

    /// Now minus the message's time, in microseconds. It is negative where the clock that gave the
    /// time is ahead of this machine's. `None` where the message doesn't count.
    pub fn age_micros(self, message: &[u8]) -> Option<i64> {
        let key: &[u8] = match self {
            Self::Publish => b"\"publishTime\":\"",
            Self::Event if !has_event(message) => return None,
            Self::Event => b"\"eventTime\":\"",
        };
        let time: jiff::Timestamp =
            std::str::from_utf8(string_after(message, key)?).ok()?.parse().ok()?;
        Some(jiff::Timestamp::now().as_microsecond() - time.as_microsecond())
    }
}

/// Whether it says what changed. Snapshots and heartbeats repeat the time of an earlier event: they
/// have no `prevSequence`, or that of their own event.
fn has_event(message: &[u8]) -> bool {
    match string_after(message, b"\"prevSequence\":\"") {
        Some(previous) => string_after(message, b"\"sequence\":\"") != Some(previous),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_a_later_time_than_now_has_a_negative_age() {
        let at = |text: &str| {
            LatencyFrom::Publish.age_micros(format!("\"publishTime\":\"{text}\"").as_bytes())
        };
        assert!(at("9998-01-01T00:00:00.000000Z").unwrap() < 0);
        assert!(at("2001-01-01T00:00:00.000000Z").unwrap() > 0);
        assert_eq!(at("then"), None);
    }

    #[test]
    fn only_messages_with_an_event_count_from_its_time() {
        let age = |fields: &str| {
            let time =
                "\"publishTime\":\"2002-01-01T00:00:00Z\",\"eventTime\":\"2001-01-01T00:00:00Z\"";
            let message = format!("{{{fields},{time}}}");
            let age = |from: LatencyFrom| from.age_micros(message.as_bytes());
            assert!(age(LatencyFrom::Publish).is_some());
            age(LatencyFrom::Event)
        };
        assert!(age("\"sequence\":\"7\",\"prevSequence\":\"5\"").is_some());
        assert_eq!(age("\"sequence\":\"7\",\"prevSequence\":\"7\""), None, "a heartbeat");
        assert_eq!(age("\"sequence\":\"7\",\"prevSequence\":null"), None, "a snapshot");
        assert_eq!(age("\"sequence\":\"7\""), None);
    }
}
