//! A cursor as a client sends it: it is refused, or it is what this server would write. It gives a
//! position on one topic at most.

use std::collections::BTreeSet;

use spreadly_subscriptions::{Cursor, Epoch, Position};

use crate::live::{LogCursor, TopicName, log_topics};
use crate::market::candles::Interval;
use crate::market::topic::Topic;

/// Takes a topic's name, a line feed and a cursor. Returns whether the cursor was read.
pub fn cursor(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let (name, text) = text.split_once('\n').unwrap_or(("news", &text));
    let topics = topics(name);
    let read = Cursor::decode(text).inspect(|cursor| assert_eq!(cursor.encode(), text));
    assert_one_topic(text, &topics);
    assert_forged_is_of_no_other(text, &topics);
    read.is_ok()
}

/// Topics whose names are as alike as can be, each once.
fn topics(name: &str) -> BTreeSet<TopicName> {
    let orders = |market, account| Topic::Orders { market, account };
    let alike = [
        Topic::Market(name),
        Topic::Book(name),
        Topic::Trades(name),
        orders(Some(name), None),
        orders(None, Some(name)),
        orders(Some(name), Some(name)),
        Topic::Message(name),
        Topic::Blocks,
        Topic::Bbo(name),
        Topic::Ticker(name),
    ];
    let candles = Interval::ALL.map(|interval| Topic::Candles(name, interval));
    alike.into_iter().chain(candles).map(Topic::name).collect()
}

/// A cursor is of one of the topics at most, also where a subscription follows several.
fn assert_one_topic(text: &str, topics: &BTreeSet<TopicName>) {
    let names: Vec<TopicName> = topics.iter().cloned().collect();
    let sets = names.iter().map(std::slice::from_ref).chain(names.windows(2));
    let mut own = sets.filter_map(|set| LogCursor::decode(text, log_topics(set)).ok());
    let Some(position) = own.next() else { return };
    assert!(own.next().is_none(), "{text} is of two subscriptions");
    let read = Cursor::decode(text).expect("it was read before");
    assert_eq!(read.positions, [(position.topics, position.position)]);
    assert!(read.shape != 0 || position.encode() == text);
}

/// Changes one letter of a topic's cursor. Which topic, which letter and to what, the text decides.
fn assert_forged_is_of_no_other(text: &str, topics: &BTreeSet<TopicName>) {
    let byte = |at: usize| text.as_bytes().get(at).copied().unwrap_or(b'A');
    let (place, at, letter) = (usize::from(byte(9)), byte(13), byte(17));
    let Some(own) = topics.iter().cycle().nth(place) else { return };
    let position = Position { epoch: Epoch(at.into()), sequence: letter.into() };
    let topic = log_topics(std::slice::from_ref(own));
    let mut forged = Cursor::single(0, topic, position).encode().into_bytes();
    let at = usize::from(at) % forged.len();
    forged[at] = letter;
    let forged = String::from_utf8_lossy(&forged);
    for other in topics.iter().filter(|other| *other != own) {
        let read = LogCursor::decode(&forged, log_topics(std::slice::from_ref(other)));
        assert!(read.is_err(), "{forged} was made of {own} and is taken for {other}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::seeds;

    #[test]
    fn each_seed_of_a_cursor_is_read_and_written_the_same() {
        for seed in seeds("cursor") {
            assert!(cursor(&seed), "{}", String::from_utf8_lossy(&seed));
        }
    }

    proptest! {
        #[test]
        fn a_cursor_with_a_changed_letter_is_of_no_other_topic(
            name in "[A-Za-z@:-]{0,12}",
            (shape, topic) in any::<(u32, u64)>(),
            (epoch, sequence) in any::<(u64, u64)>(),
            (at, letter) in any::<(prop::sample::Index, char)>(),
        ) {
            let position = Position { epoch: Epoch(epoch), sequence };
            let whole = Cursor::single(shape, topic, position).encode();
            let read = cursor(format!("{name}\n{whole}").as_bytes());
            prop_assert!(read, "{}", whole);
            let mut letters: Vec<char> = whole.chars().collect();
            *at.get_mut(&mut letters) = letter;
            cursor(format!("{name}\n{}", letters.into_iter().collect::<String>()).as_bytes());
        }

        #[test]
        fn any_bytes_are_a_cursor_or_are_refused(
            data in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            cursor(&data);
        }
    }
}
