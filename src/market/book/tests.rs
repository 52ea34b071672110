//! The book against a slow model: windows, the journal and checkpoints.

use proptest::prelude::*;

use super::*;
use crate::market::fixed::Fixed;

fn change(side: Side, price: Fixed, size: Fixed) -> LevelChange {
    LevelChange { side, price, size, orders: 0 }
}

/// Price and size.
type Pair = (Fixed, Fixed);

fn pairs(levels: &[Level]) -> Vec<Pair> {
    levels.iter().map(|level| (level.price, level.size)).collect()
}

/// The slow way, sharing nothing with the book: plain sorted vectors.
#[derive(Clone, Default, Debug, PartialEq)]
struct Naive {
    bids: Vec<Pair>,
    asks: Vec<Pair>,
}

impl Naive {
    fn set(&mut self, side: Side, price: Fixed, size: Fixed) {
        let levels = if side == Side::Buy { &mut self.bids } else { &mut self.asks };
        levels.retain(|level| level.0 != price);
        if size > 0 {
            levels.push((price, size));
        }
        levels.sort_unstable();
        if side == Side::Buy {
            levels.reverse();
        }
    }

    fn top(&self, depth: usize) -> Self {
        let cut = |levels: &[Pair]| levels.iter().take(depth).copied().collect();
        Self { bids: cut(&self.bids), asks: cut(&self.asks) }
    }

    fn follow(&mut self, changes: &Changes) {
        for (side, levels) in [(Side::Buy, &changes.bids), (Side::Sell, &changes.asks)] {
            for level in levels {
                self.set(side, level.price, level.size);
            }
        }
    }
}

fn levels() -> impl Strategy<Value = Vec<LevelChange>> {
    let side = prop_oneof![Just(Side::Buy), Just(Side::Sell)];
    let level =
        (side, 0u128..24, 0u128..4).prop_map(|(side, price, size)| change(side, price, size));
    prop::collection::vec(level, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_reader_that_applies_the_changes_since_any_past_sequence_holds_the_window(
        events in prop::collection::vec((any::<bool>(), 1u64..4, levels()), 1..40),
        depth in 1usize..14,
        most_touches in 1usize..80,
    ) {
        let mut book = Book::with_journal(0, most_touches);
        let mut naive = Naive::default();
        let mut past = vec![(0, naive.clone())];
        for (replace, step, levels) in events {
            let sequence = book.sequence() + step;
            if replace && levels.len() > 3 {
                naive = Naive::default();
                book.replace(sequence, &levels);
            } else {
                book.apply(sequence, &levels);
            }
            for level in &levels {
                naive.set(level.side, level.price, level.size);
            }
            past.push((sequence, naive.clone()));
            for (index, (from, then)) in past.iter().enumerate() {
                let changes = book.changes_since(*from, depth);
                prop_assert_eq!(changes.is_some(), *from >= book.floor());
                prop_assert_eq!(changes.is_some(), book.has_sequence(*from));
                let Some(changes) = changes else { continue };
                prop_assert_eq!(changes.events as usize, past.len() - 1 - index);
                let mut client = then.top(depth);
                let unchanged = client == naive.top(depth);
                client.follow(&changes);
                prop_assert_eq!(&client, &naive.top(depth));
                prop_assert_eq!(changes.is_empty(), unchanged);
            }
        }
        for lost in 0..=book.sequence() + 1 {
            let was = lost >= book.floor() && past.iter().any(|(one, _)| *one == lost);
            prop_assert_eq!(book.has_sequence(lost), was);
        }
        prop_assert!(book.touches.len() <= most_touches);
        prop_assert_eq!(book.changes_since(book.sequence() + 1, depth), None);
    }

    #[test]
    fn a_checkpoint_holds_the_book(events in prop::collection::vec(levels(), 1..20)) {
        let mut book = Book::default();
        for (index, levels) in events.iter().enumerate() {
            book.apply(index as u64 + 1, levels);
        }
        let restored = Book::from_checkpoint(&book.to_checkpoint(), 9).unwrap();
        prop_assert!(restored.bids.iter().eq(book.bids.iter()));
        prop_assert!(restored.asks.iter().eq(book.asks.iter()));
        let sequence = book.sequence();
        prop_assert_eq!((restored.sequence(), restored.floor()), (sequence, sequence));
        prop_assert_eq!(restored.most_touches, 9);
    }

    #[test]
    fn a_restored_state_knows_the_same_changes_as_the_book_as_far_as_its_journal_reaches(
        events in prop::collection::vec(levels(), 1..30),
        journal in 0usize..40,
        depth in 1usize..9,
    ) {
        let mut book = Book::default();
        for (index, levels) in events.iter().enumerate() {
            book.apply(index as u64 + 1, levels);
        }
        let state = book.state(journal);
        let mut restored = Book::from_checkpoint(&state.to_bytes(), 100).unwrap();
        prop_assert!(restored.events.len() <= journal && restored.touches.len() <= journal);
        for more in 0..2 {
            for from in 0..=book.sequence() {
                let changes = restored.changes_since(from, depth);
                prop_assert_eq!(changes.is_some(), from >= restored.floor());
                if changes.is_some() {
                    prop_assert_eq!(changes, book.changes_since(from, depth));
                }
            }
            let next = book.sequence() + 1;
            for one in [&mut book, &mut restored] {
                one.apply(next, &[change(Side::Buy, 3, more)]);
            }
        }
    }
}

#[test]
fn a_level_that_others_push_out_of_the_window_is_published_and_so_is_its_return() {
    let mut book = Book::default();
    book.apply(1, &[change(Side::Sell, 10, 1), change(Side::Sell, 11, 1)]);
    book.apply(2, &[change(Side::Sell, 9, 5)]);
    assert_eq!(pairs(&book.changes_since(1, 2).unwrap().asks), [(9, 5), (11, 0)]);
    book.apply(3, &[change(Side::Sell, 9, 0)]);
    assert_eq!(pairs(&book.changes_since(2, 2).unwrap().asks), [(9, 0), (11, 1)]);
    assert!(book.changes_since(1, 2).unwrap().is_empty());
}

#[test]
fn a_level_whose_order_count_alone_changed_is_published_and_survives_a_checkpoint() {
    let orders = |orders| LevelChange { orders, ..change(Side::Buy, 7, 10) };
    let mut book = Book::default();
    book.apply(1, &[orders(1), change(Side::Sell, 9, 1)]);
    book.apply(2, &[orders(2)]);
    let changes = book.changes_since(1, 5).unwrap();
    assert_eq!(changes.bids, [Level { price: 7, size: 10, orders: 2 }]);
    assert!(changes.asks.is_empty());
    let restored = Book::from_checkpoint(&book.to_checkpoint(), 9).unwrap();
    assert_eq!(restored.best(), book.best());
    book.apply(3, &[change(Side::Buy, 7, 0)]);
    let gone = Level { price: 7, size: 0, orders: 0 };
    assert_eq!(book.changes_since(2, 5).unwrap().bids, [gone]);
}

#[test]
fn removing_an_unknown_level_changes_nothing_but_counts() {
    let mut book = Book::default();
    book.apply(4, &[change(Side::Buy, 7, 0)]);
    let changes = book.changes_since(0, 5).unwrap();
    assert_eq!((changes.events, changes.is_empty(), book.touches.len()), (1, true, 0));
}

#[test]
fn a_replacement_larger_than_the_journal_leaves_no_false_reach() {
    let mut book = Book::with_journal(0, 3);
    let levels: Vec<_> = (1..=5).map(|price| change(Side::Buy, price, 1)).collect();
    book.replace(6, &levels);
    assert_eq!((book.floor(), book.changes_since(0, 5)), (6, None));
    assert!(book.changes_since(6, 5).unwrap().is_empty());
}

#[test]
fn events_that_leave_the_journal_take_the_floor_along_even_if_they_touched_nothing() {
    let mut book = Book::default();
    let all = JOURNAL_TOUCHES as u64 + 5;
    (1..=all).for_each(|sequence| book.apply(sequence, &[]));
    assert_eq!((book.floor(), book.changes_since(4, 1)), (5, None));
    assert_eq!(book.changes_since(5, 1).unwrap().events as usize, JOURNAL_TOUCHES);
}

#[test]
fn bytes_that_are_no_checkpoint_are_refused() {
    assert!(Book::from_checkpoint(b"{}", 9).is_err());
    assert!(Book::from_checkpoint(br#"{"sequence":1,"bids":[["x","1"]],"asks":[]}"#, 9).is_err());
    let empty = br#"{"sequence":1,"bids":[["7","0"]],"asks":[]}"#;
    assert!(matches!(Book::from_checkpoint(empty, 9), Err(CheckpointError::Empty)));
    for (floor, events, whole) in [
        (3, "[4,5]", true),
        (3, "[5,4]", false),
        (4, "[4]", false),
        (5, "[]", true),
        (6, "[]", false),
    ] {
        let journal = format!(r#"{{"floor":{floor},"events":{events},"touches":[]}}"#);
        let text = format!(r#"{{"sequence":5,"bids":[],"asks":[],"journal":{journal}}}"#);
        assert_eq!(Book::from_checkpoint(text.as_bytes(), 9).is_ok(), whole, "{text}");
    }
}
