//! A line of a feed: it is read or refused. One that is read means the same however it is written.

use serde_json::Value;

use crate::market::event::{Body, Event, begins_epochs, parse};

/// Takes any bytes as one line. Returns whether it was read.
pub fn event_line(line: &[u8]) -> bool {
    let event = parse(line);
    let begins = matches!(&event, Ok(Event { body: Body::Reverted { .. } | Body::Gap { .. }, .. }));
    assert_eq!(begins_epochs(line), begins, "a feed delivers such an event by itself");
    let Ok(event) = event else { return false };
    if let Body::Message(message) = &event.body {
        let data = serde_json::from_str::<async_graphql::Value>(&message.data);
        assert!(data.is_ok(), "no client can be sent {}", message.data);
    }
    // Without its escapes and spaces, with its fields in another order.
    if let Some(again) = rewritten(line) {
        let again = parse(again.as_bytes()).expect("the same fields");
        assert_eq!(with_plain_data(event), with_plain_data(again));
    }
    true
}

/// `None` where a field that the hub ignores has a number or text that no program can hold, or
/// where the line would be too long.
fn rewritten(line: &[u8]) -> Option<String> {
    let text = str::from_utf8(line).ok()?;
    let fields: Value = serde_json::from_str(text.strip_prefix('\u{feff}').unwrap_or(text)).ok()?;
    Some(fields.to_string()).filter(|again| again.len() <= line.len())
}

/// `data` is kept as written.
fn with_plain_data(mut event: Event<'_>) -> Event<'_> {
    if let Body::Message(message) = &mut event.body {
        let data: Value = serde_json::from_str(&message.data).expect("it was read before");
        message.data = data.to_string().into();
    }
    event
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::seeds;

    #[test]
    fn each_seed_of_a_line_is_read_and_means_the_same_in_other_words() {
        for seed in seeds("event_line") {
            assert!(event_line(&seed), "{}", String::from_utf8_lossy(&seed));
        }
    }

    /// A field of a line, rarely one that is right.
    fn field() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec![
            "kind", "id", "time", "height", "block", "market", "bids", "asks", "price", "size",
            "order", "side", "reason", "source", "topic", "data", "other",
        ]);
        let value = prop::sample::select(vec![
            r#""message""#,
            r#""block.reverted""#,
            r#""block\u002ereverted""#,
            r#""source.gap""#,
            r#""orders.gap""#,
            r#""orders.complete""#,
            r#""book.delta""#,
            r#""trade""#,
            r#""A-B""#,
            r#""1.50""#,
            r#""\ud83d\ude00""#,
            r#""\ud83d""#,
            r#"[["1","2"]]"#,
            "[]",
            r#"{"a":[1e2,-0.5]}"#,
            "1e400",
            "7",
            "null",
        ]);
        (name, value).prop_map(|(name, value)| format!(r#""{name}" : {value}"#))
    }

    proptest! {
        #[test]
        fn a_line_of_any_fields_is_refused_or_means_the_same_in_other_words(
            kind in prop::sample::select(vec!["message", "trade", "block.reverted", "book.delta"]),
            fields in prop::collection::vec(field(), 0..8),
        ) {
            event_line(format!(r#"{{"kind":"{kind}",{}}}"#, fields.join(",")).as_bytes());
            event_line(format!(r#"{{{}}}"#, fields.join(",")).as_bytes());
        }

        #[test]
        fn any_bytes_are_a_line_or_are_refused(line in prop::collection::vec(any::<u8>(), 0..200)) {
            event_line(&line);
        }
    }
}
