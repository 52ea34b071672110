//! The log over commits, kills and faults of its disk.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::checkpoint::MOST_CHECKPOINTS;
use super::log::{RESERVED_AT_ONCE, ROWS};
use super::schema::MOST_SET_ASIDE;
use super::*;

pub(super) fn event(topic: &str, id: Option<&str>, body: &str) -> NewEvent {
    NewEvent {
        topic: topic.into(),
        id: id.map(Into::into),
        kind: KIND,
        body: body.into(),
        ..NewEvent::default()
    }
}

/// Of all events here.
const KIND: &str = "message";

fn knows(store: &Store, topic: &str, id: &str) -> bool {
    store.find(EventId { topic, kind: KIND, id }).unwrap().is_some()
}

fn files<const COUNT: usize>(files: [FileProgress; COUNT]) -> [Progress; COUNT] {
    files.map(Progress::from)
}

fn progress(stream: u64, offset: u64) -> FileProgress {
    FileProgress {
        feed: "feeds".into(),
        stream,
        name: "a.ndjson".into(),
        device: u64::MAX,
        inode: u64::MAX - 1,
        offset,
        line: 3,
        head: Fingerprint { bytes: 256, hash: u64::MAX },
        tail: Fingerprint { bytes: 7, hash: 1 },
        forgotten: false,
    }
}

pub(super) fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data").join("spreadly.db");
    (folder, path)
}

#[test]
fn what_was_appended_is_there_after_reopening_in_the_same_epoch() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    let batch = [event("a", None, "1"), event("b", Some("x"), "2"), event("a", None, "3")];
    let sequences = store.append(&batch, &files([progress(1, 9)]), 77).unwrap().sequences;
    assert_eq!(sequences, [Some(1), Some(2), Some(3)]);
    let epoch = store.epoch();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.epoch(), epoch);
    let all = store.read_from(0, 10).unwrap();
    let bodies: Vec<_> = all.iter().map(|event| (event.sequence, &*event.body)).collect();
    assert_eq!(bodies, [(1, "1"), (2, "2"), (3, "3")]);
    assert_eq!(all[0].received, 77);
    assert_eq!(store.read_from(1, 1).unwrap()[0].sequence, 2);
    assert_eq!(store.read_topic("a", 1, 10).unwrap()[0].sequence, 3);
    assert_eq!(store.read_topic("a", u64::MAX, 10).unwrap(), []);
    assert_eq!(store.file_progress("feeds").unwrap(), [progress(1, 9)]);
    assert_eq!(store.file_progress("other").unwrap(), []);
    let topics =
        [TopicPosition { name: "a".into(), last: 3 }, TopicPosition { name: "b".into(), last: 2 }];
    assert_eq!(store.topics().unwrap(), topics);
    assert_eq!(store.latest("a").unwrap().unwrap().sequence, 3);
    assert_eq!(store.latest("none").unwrap(), None);
}

/// The files as a power cut leaves them that takes what was not on the disk: the write-ahead log
/// as it was when the last fsync was done.
fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
    fs::copy(from.with_extension("db-wal"), to.with_extension("db-wal")).unwrap();
}

#[test]
fn sequences_that_a_power_cut_took_are_never_given_out_again() {
    let (folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    store.append(&[event("a", None, "1")], &[], 0).unwrap();
    let cut = folder.path().join("cut.db");
    copy(&path, &cut);
    // Seen by clients, and on no disk.
    let many: Vec<_> = (0..RESERVED_AT_ONCE - 1).map(|_| event("a", None, "lost")).collect();
    let lost = store.append(&many, &[], 0).unwrap().sequences;
    assert_eq!(lost.last(), Some(&Some(RESERVED_AT_ONCE)));
    let mut mended = Store::open(&cut).unwrap();
    assert_ne!(mended.epoch(), store.epoch(), "clients may have seen what was lost");
    assert_eq!(mended.read_from(0, 10).unwrap().len(), 1);
    let next = mended.append(&[event("a", None, "2")], &[], 0).unwrap().sequences;
    assert_eq!(next, [Some(RESERVED_AT_ONCE + 1)]);
    // The next block is on the disk before the first of its numbers is.
    let next = store.append(&[event("a", None, "2")], &[], 0).unwrap().sequences;
    assert_eq!((next[0], store.reserved), (Some(RESERVED_AT_ONCE + 1), 2 * RESERVED_AT_ONCE));
    let on_disk: i64 =
        store.connection.query_row("SELECT reserved FROM log", [], |row| row.get(0)).unwrap();
    assert_eq!(on_disk.cast_unsigned(), 2 * RESERVED_AT_ONCE);
}

#[test]
fn a_clean_stop_skips_no_sequence_and_a_kill_only_what_was_reserved() {
    let (_folder, path) = folder();
    let mut next = 0;
    for clean in [true, false, false, true, true] {
        let mut store = Store::open(&path).unwrap();
        let given = store.append(&[event("a", None, "1")], &[], 0).unwrap().sequences;
        assert_eq!(given, [Some(next + 1)]);
        next += 1;
        match clean {
            true => store.tidy().unwrap(),
            false => next = store.reserved,
        }
    }
    // Also a block that is smaller than a batch is no obstacle.
    let mut store = Store::open(&path).unwrap();
    let many: Vec<_> = (0..2 * RESERVED_AT_ONCE).map(|_| event("a", None, "1")).collect();
    let given = store.append(&many, &[], 0).unwrap().sequences;
    assert_eq!(given.last(), Some(&Some(next + 2 * RESERVED_AT_ONCE)));
}

/// What is to be read of a store.
#[derive(Default)]
struct Model(Vec<(u64, &'static str)>);

const TOPICS: [&str; 4] = ["a", "b", "c", "blocks"];

impl Model {
    fn of(&self, topics: &[&str], after: u64, until: u64) -> Vec<u64> {
        let within = |sequence: u64| after < sequence && sequence <= until;
        let all = self.0.iter().filter(|(at, topic)| within(*at) && topics.contains(topic));
        all.map(|(sequence, _)| *sequence).collect()
    }

    fn assert_reads(&self, store: &Store, random: &mut StdRng) {
        let sequences = |all: Vec<Stored>| -> Vec<u64> {
            all.into_iter().map(|stored| stored.sequence).collect()
        };
        let most = random.random_range(1..60);
        let end = store.last() + 2;
        let (one, other) = (random.random_range(0..end), random.random_range(0..end));
        let (after, until) = (one.min(other), one.max(other));
        let cut = |mut all: Vec<u64>| {
            all.truncate(most);
            all
        };
        let reader = store.reader().unwrap();
        for topic in TOPICS.iter().chain(&["none"]) {
            let all = self.of(&[topic], 0, u64::MAX);
            let read = sequences(store.read_topic(topic, after, most).unwrap());
            assert_eq!(read, cut(self.of(&[topic], after, u64::MAX)), "{topic} {after} {most}");
            let newest = sequences(reader.newest(topic, most).unwrap());
            assert_eq!(newest, all[all.len().saturating_sub(most)..], "{topic} {most}");
            let last = reader.last_until(topic, until).unwrap();
            assert_eq!(last, self.of(&[topic], 0, until).pop(), "{topic} {until}");
        }
        let topics: Vec<Arc<str>> = ["b", "none", "a"].map(Arc::from).into();
        let span = Span { after, until, most, most_bytes: usize::MAX };
        let read = reader.read_span(&topics, &span).unwrap();
        assert!(read.iter().all(|one| {
            self.0.contains(&(one.sequence, ["a", "b"][usize::from(&*one.topic == "b")]))
        }));
        assert_eq!(sequences(read), cut(self.of(&["a", "b"], after, until)), "{span:?}");
        let mut topics: Vec<_> = TOPICS.iter().collect();
        topics.sort_unstable();
        let topics = topics.iter().filter_map(|name| {
            let last = self.of(&[name], 0, u64::MAX).pop()?;
            Some(TopicPosition { name: (**name).into(), last })
        });
        assert_eq!(store.topics().unwrap(), topics.collect::<Vec<_>>());
    }
}

#[test]
fn a_tail_is_written_once_it_is_long_or_old() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    let mut tail_after = |events: usize, now| {
        let batch: Vec<_> = (0..events).map(|_| event("a", None, "1")).collect();
        store.append(&batch, &[], now).unwrap();
        store.tail_events()
    };
    assert_eq!(tail_after(runs::TAIL - 1, 0), runs::TAIL - 1);
    assert_eq!(tail_after(1, 0), runs::TAIL);
    assert_eq!(tail_after(1, 0), 1);
    assert_eq!(tail_after(1, runs::TAIL_AGE - 1), 2);
    assert_eq!(tail_after(1, runs::TAIL_AGE), 1);
    // The clock was set back.
    assert_eq!(tail_after(1, -runs::TAIL_AGE), 1);
}

#[test]
fn a_topic_is_read_from_its_runs_and_the_tail_as_if_it_were_alone_whatever_is_undone() {
    let mut emptied = 0;
    for seed in 0..4 {
        let mut random = StdRng::seed_from_u64(seed);
        let (_folder, path) = folder();
        let mut store = Store::open(&path).unwrap();
        let mut model = Model::default();
        for _ in 0..60 {
            let many = if random.random_bool(0.5) { runs::TAIL } else { 40 };
            let batch: Vec<_> = (0..random.random_range(0..=many))
                .map(|_| event(TOPICS[random.random_range(0..3)], None, "1"))
                .collect();
            let before = store.tail_events();
            match random.random_range(0..24) {
                0 => {
                    drop(store);
                    store = Store::open(&path).unwrap();
                }
                1 => store.reopen().unwrap(),
                2 => {
                    store.disk.store(1, SeqCst);
                    let large = event("a", None, &"x".repeat(1 << 20));
                    assert!(store.append(&[large], &[], 0).is_err(), "seed {seed}");
                    store.disk.store(1_000_000, SeqCst);
                }
                3 => {
                    let from = random.random_range(0..=model.0.len());
                    let gone: Vec<_> = model.0.split_off(from);
                    let (gone, left): (Vec<_>, Vec<_>) =
                        gone.into_iter().partition(|_| random.random_bool(0.5));
                    let undone = store.roll_back(&event("blocks", None, "r"), &[], 0, |log| {
                        gone.iter().try_for_each(|(sequence, _)| log.undo(*sequence, &[]))
                    });
                    model.0.extend(left);
                    model.0.push((undone.unwrap().unwrap().0, "blocks"));
                }
                _ => {
                    let appended = store.append(&batch, &[], 0).unwrap().sequences;
                    let topic = |new: &NewEvent| {
                        *TOPICS.iter().find(|topic| **topic == &*new.topic).unwrap()
                    };
                    let new = appended.into_iter().flatten().zip(batch.iter().map(topic));
                    model.0.extend(new);
                    let kept = if before < runs::TAIL { before } else { 0 };
                    emptied += usize::from(kept < before);
                    assert_eq!(store.tail_events(), kept + batch.len(), "seed {seed}");
                }
            }
            model.assert_reads(&store, &mut random);
        }
    }
    assert!(emptied > 9, "{emptied} tails were written by an append");
}

#[test]
fn two_stores_have_two_epochs() {
    let ((_one, one), (_two, two)) = (folder(), folder());
    assert_ne!(Store::open(&one).unwrap().epoch(), Store::open(&two).unwrap().epoch());
}

#[test]
fn an_id_counts_once_in_its_topic_and_kind_within_a_batch_and_across_batches() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    let other_kind = NewEvent { kind: "trade", ..event("a", Some("x"), "4") };
    let batch = [
        event("a", Some("x"), "1"),
        event("a", Some("x"), "2"),
        event("b", Some("x"), "3"),
        other_kind,
        event("a", None, "5"),
    ];
    let sequences = store.append(&batch, &[], 0).unwrap().sequences;
    assert_eq!(sequences, [Some(1), None, Some(2), Some(3), Some(4)]);
    assert_eq!(store.append(&batch[..4], &[], 0).unwrap().sequences, [None; 4]);
    assert_eq!(store.read_from(0, 10).unwrap().len(), 4);
    let found = |topic, kind| {
        let event = store.find(EventId { topic, kind, id: "x" }).unwrap();
        event.map(|event| event.body)
    };
    assert_eq!(found("a", KIND).as_deref(), Some("1"));
    assert_eq!(found("b", KIND).as_deref(), Some("3"));
    assert_eq!(found("a", "trade").as_deref(), Some("4"));
    assert_eq!(found("b", "trade"), None);
    assert!(!knows(&store, "a", "y"));
}

#[test]
fn each_event_of_a_large_batch_has_the_number_of_its_place_also_after_a_gap() {
    let (_folder, path) = folder();
    let mut next = 1;
    // Killed twice: the numbers continue after what was reserved, far after the newest row.
    for _ in 0..3 {
        let mut store = Store::open(&path).unwrap();
        let bodies: Vec<_> = (0..4 * ROWS).map(|place| place.to_string()).collect();
        let id = |place: usize| (place % 50 == 40).then(|| format!("{next}-{place}"));
        let batch: Vec<_> = bodies
            .iter()
            .enumerate()
            .map(|(place, body)| event("a", id(place).as_deref(), body))
            .collect();
        let given = store.append(&batch, &[], 0).unwrap().sequences;
        let expected: Vec<_> = (next..).take(batch.len()).collect();
        assert_eq!(given, expected.iter().copied().map(Some).collect::<Vec<_>>());
        let stored = store.read_from(next - 1, usize::MAX).unwrap();
        let read: Vec<_> = stored.iter().map(|one| (one.sequence, one.body.to_string())).collect();
        assert_eq!(read, expected.into_iter().zip(bodies).collect::<Vec<_>>());
        // The newest row leaves; its number does not come again.
        let newest = store.last();
        let undone = store.roll_back(&event("blocks", None, "r"), &[], 0, |log| {
            log.undo(newest, &[])?;
            log.undo(log.sequence, &[])
        });
        assert_eq!(undone.unwrap().unwrap().0, newest + 1);
        let batch: Vec<_> = (0..2 * ROWS).map(|_| event("a", None, "again")).collect();
        let given = store.append(&batch, &[], 0).unwrap().sequences;
        assert_eq!(given[..2], [Some(newest + 2), Some(newest + 3)]);
        next = store.reserved + 1;
    }
}

#[test]
fn names_with_quotes_and_nul_are_only_names() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    let name = "a'; DROP TABLE events; --\0\"\n";
    store.append(&[event(name, Some(name), "1")], &[], 0).unwrap();
    assert_eq!(store.read_topic(name, 0, 10).unwrap().len(), 1);
    assert!(knows(&store, name, name));
}

#[test]
fn a_full_disk_leaves_nothing_half_done_and_passes() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    store.append(&[event("a", None, "first")], &files([progress(1, 5)]), 0).unwrap();
    store.disk.store(1, SeqCst);
    let large: Vec<_> = (0..100).map(|_| event("a", None, &"x".repeat(10_000))).collect();
    let error = store.append(&large, &files([progress(1, 99)]), 0).unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(store.read_from(0, 1000).unwrap().len(), 1);
    assert_eq!(store.file_progress("feeds").unwrap(), [progress(1, 5)]);
    store.disk.store(1_000_000, SeqCst);
    assert_eq!(store.append(&large, &files([progress(1, 99)]), 0).unwrap().sequences.len(), 100);
    assert_eq!(store.read_from(0, 1000).unwrap().len(), 101);
    assert_eq!(store.file_progress("feeds").unwrap(), [progress(1, 99)]);
}

#[test]
fn the_newest_sixteen_checkpoints_are_kept_and_the_newest_but_one_is_restored() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    store.save_checkpoint("a", 10, b"ten").unwrap();
    assert_eq!(store.older_checkpoints().unwrap(), [], "one alone is replayed whole");
    store.save_checkpoint("a", 20, b"twenty").unwrap();
    store.save_checkpoint("a", 30, b"thirty").unwrap();
    store.save_checkpoint("b", 5, b"five").unwrap();
    store.save_checkpoint("b", 6, b"six").unwrap();
    let older = store.older_checkpoints().unwrap();
    let brief: Vec<_> =
        older.iter().map(|one| (&*one.topic, one.sequence, &one.state[..])).collect();
    assert_eq!(brief, [("a", 20, &b"twenty"[..]), ("b", 5, b"five")]);
    assert_eq!(store.newest_checkpoint("a").unwrap(), Some(30));
    assert_eq!(store.newest_checkpoint("c").unwrap(), None);

    let place = |store: &Store, newest: u64| {
        assert_eq!(store.newest_checkpoint("a").unwrap(), Some(newest));
        let count = "SELECT count(*) FROM checkpoints WHERE topic = 'a'";
        store.connection.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    for (sequence, kept) in [(40, 4), (50, 5)] {
        store.save_checkpoint("a", sequence, b"").unwrap();
        assert_eq!(place(&store, sequence), kept);
    }
    for sequence in 51..80 {
        store.save_checkpoint("a", sequence, b"").unwrap();
    }
    assert_eq!(place(&store, 79), MOST_CHECKPOINTS as i64);
    assert_eq!(store.older_checkpoints().unwrap()[0].sequence, 78);
}

#[test]
fn a_forgotten_file_is_removed() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    store.append(&[], &files([progress(1, 5), progress(2, 6)]), 0).unwrap();
    store.append(&[], &files([FileProgress { forgotten: true, ..progress(1, 5) }]), 0).unwrap();
    assert_eq!(store.file_progress("feeds").unwrap(), [progress(2, 6)]);
}

#[test]
fn a_feeds_position_is_written_with_what_it_brought() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    assert_eq!(store.feed_position("postgres").unwrap(), None);
    let at = |epoch, position| FeedPosition {
        feed: "postgres".into(),
        epoch,
        position,
        mark: Some(epoch ^ 9),
    };
    let events = [event("a", None, "1")];
    store.append(&events, &[Progress::Position(at(u64::MAX, 7))], 0).unwrap();
    store.append(&[], &[Progress::Position(at(u64::MAX, 9))], 0).unwrap();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.feed_position("postgres").unwrap(), Some(at(u64::MAX, 9)));
    assert_eq!(store.feed_position("kafka").unwrap(), None);
}

#[test]
fn a_reader_sees_what_the_writer_committed() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    let reader = store.reader().unwrap();
    store.append(&[event("a", None, "1")], &[], 0).unwrap();
    assert_eq!(reader.read_topic("a", 0, 10).unwrap().len(), 1);
}

#[test]
fn a_file_that_is_no_database_is_refused_with_what_to_do() {
    let (_folder, path) = folder();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "x".repeat(5_000)).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(!error.is_retryable());
    assert!(error.to_string().contains("is damaged"), "{error}");
    assert!(error.to_string().contains("put a copy of it back"), "{error}");
}

#[test]
fn a_torn_database_is_refused_and_not_written_to() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    let large: Vec<_> = (0..200).map(|_| event("a", None, &"x".repeat(3_000))).collect();
    store.append(&large, &[], 0).unwrap();
    store.tidy().unwrap();
    drop(store);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap().len(), bytes.len() / 2);
}

#[test]
fn a_torn_tail_of_the_write_ahead_log_costs_only_the_torn_commit() {
    let (folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    for body in ["1", "2", "3"] {
        store.append(&[event("a", None, body)], &[], 0).unwrap();
    }
    // As a killed machine leaves them: copied while the writer still has them open.
    let copy = folder.path().join("copy.db");
    fs::copy(&path, &copy).unwrap();
    let wal = fs::read(path.with_extension("db-wal")).unwrap();
    fs::write(copy.with_extension("db-wal"), &wal[..wal.len() - 1_000]).unwrap();
    let reopened = Store::open(&copy).unwrap();
    assert_ne!(reopened.epoch(), store.epoch(), "clients may have seen what was torn");
    assert_eq!(reopened.read_from(0, 10).unwrap().len(), 2);
}

#[test]
fn a_newer_format_and_a_foreign_database_are_left_alone() {
    let (_folder, path) = folder();
    Store::open(&path).unwrap().connection.pragma_update(None, "user_version", 9).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 9, known: 1, .. }), "{error}");
    let foreign = path.with_file_name("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(matches!(Store::open(&foreign).unwrap_err(), StoreError::Foreign { .. }));
}

#[test]
fn a_store_that_was_replaced_is_not_taken_for_the_old_one() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    store.append(&[event("a", None, "1")], &[], 0).unwrap();
    store.reopen().unwrap();
    assert_eq!(store.read_from(0, 10).unwrap().len(), 1);
    for name in ["db", "db-wal", "db-shm"] {
        fs::remove_file(path.with_extension(name)).unwrap();
    }
    assert!(store.reopen().unwrap_err().is_retryable(), "one that is gone may come back");
    // A program that puts another one there ignores the lock.
    let other = path.with_file_name("other.db");
    Store::open(&other).unwrap().tidy().unwrap();
    fs::rename(&other, &path).unwrap();
    assert!(matches!(store.reopen().unwrap_err(), StoreError::Replaced { .. }));
}

#[test]
fn a_write_waits_two_seconds_for_another_program_at_the_file_and_then_fails() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.append(&[event("a", None, "1")], &[], 1).unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().contains("locked"), "{error}");
    other.execute_batch("ROLLBACK").unwrap();
    store.append(&[event("a", None, "1")], &[], 1).unwrap();
}

#[test]
fn a_store_has_one_hub_at_a_time_and_the_error_of_the_second_names_the_file() {
    let (_folder, path) = folder();
    let store = Store::open(&path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(!error.is_retryable());
    let lock = format!("{}.lock", path.display());
    assert!(error.to_string().contains(&lock), "{error}");
    assert!(error.to_string().contains("store.url"), "{error}");
    drop(store);
    Store::open(&path).unwrap();
}

#[test]
fn a_replica_has_the_numbers_of_its_log_and_one_of_another_log_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("replica.db");
    let there = || Store::existing_replica(&path, Synchronous::Normal).unwrap();
    let open = |epoch| Store::open_replica(&path, Synchronous::Normal, Epoch(epoch)).unwrap();
    assert!(there().is_none(), "there is none to begin with");
    // A hub that was killed at once leaves an empty one.
    fs::write(&path, "").unwrap();
    assert!(there().is_none());
    let mut replica = open(7);
    let numbered = |sequence, received| NewEvent {
        numbered: Some(Numbered { sequence, received }),
        ..event("t", None, "{}")
    };
    let appended = replica.append(&[numbered(3, 100), numbered(9, 50)], &[], 1_000).unwrap();
    assert_eq!(appended.sequences, [Some(3), Some(9)]);
    drop(replica);
    for open in [&|| there().unwrap() as Store, &|| open(7)] as [&dyn Fn() -> Store; 2] {
        let replica = open();
        assert_eq!((replica.epoch(), replica.last()), (Epoch(7), 9));
        let stored = replica.read_topic("t", 0, 10).unwrap();
        let read: Vec<_> = stored.iter().map(|one| (one.sequence, one.received)).collect();
        assert_eq!(read, [(3, 100), (9, 50)]);
    }
    let fresh = open(8);
    assert_eq!((fresh.epoch(), fresh.last()), (Epoch(8), 0));
    drop(fresh);
    let aside = || {
        let names = std::fs::read_dir(folder.path()).unwrap().flatten();
        let names = names.map(|file| file.file_name().to_string_lossy().into_owned());
        let mut aside: Vec<_> = names
            .filter_map(|name| name.strip_prefix("replica.db.of-").map(str::to_owned))
            .collect();
        aside.sort_unstable();
        aside
    };
    assert_eq!(aside(), [Epoch(7).to_string()]);
    for epoch in 9..=8 + MOST_SET_ASIDE as u64 {
        drop(open(epoch));
    }
    let kept: Vec<_> = (8..8 + MOST_SET_ASIDE as u64).map(|one| Epoch(one).to_string()).collect();
    assert_eq!(aside(), kept, "the oldest is removed");
}

/// Every file of the folder but the mark, where `with_mark` says so.
fn copy_folder(from: &Path, to: &Path, with_mark: bool) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let name = entry.unwrap().file_name();
        if with_mark || !name.to_string_lossy().contains(".mark-") {
            fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
    }
}

#[test]
fn a_log_that_is_put_back_from_an_older_copy_begins_a_new_epoch_however_it_was_copied() {
    for (clean, with_mark, in_place) in [
        (true, false, true),
        (true, true, true),
        (true, true, false),
        (false, false, false),
        (false, false, true),
        (false, true, false),
    ] {
        let (folder, path) = folder();
        let data = path.parent().unwrap();
        let mut store = Store::open(&path).unwrap();
        let epoch = store.epoch();
        store.append(&[event("a", None, "1")], &[], 0).unwrap();
        if clean {
            store.tidy().unwrap();
        }
        let kept = folder.path().join("kept");
        copy_folder(data, &kept, with_mark);
        store.append(&[event("a", None, "2"), event("a", None, "3")], &[], 0).unwrap();
        drop(store);
        if !in_place {
            fs::remove_dir_all(data).unwrap();
        }
        mark::tests::after_a_tick(folder.path());
        copy_folder(&kept, data, true);
        for name in ["db-wal", "db-shm"] {
            // What was not in the copy is not there, as an operator who puts it back sees to.
            if !kept.join("spreadly").with_extension(name).exists() {
                let _ = fs::remove_file(path.with_extension(name));
            }
        }
        let mut store = Store::open(&path).unwrap();
        let what = format!("clean {clean}, with its mark {with_mark}, in place {in_place}");
        assert_eq!(store.read_from(0, 10).unwrap().len(), 1, "{what}");
        assert_ne!(store.epoch(), epoch, "{what}");
        // Said once: the new log has a mark of its own.
        let epoch = store.epoch();
        store.append(&[event("a", None, "4")], &[], 0).unwrap();
        drop(store);
        assert_eq!(Store::open(&path).unwrap().epoch(), epoch, "{what}");
    }
}

#[test]
fn a_log_whose_mark_is_gone_or_of_another_log_begins_a_new_epoch() {
    let (_folder, path) = folder();
    let mark = path.with_extension("db.mark-1");
    let mut store = Store::open(&path).unwrap();
    store.append(&[event("a", None, "1")], &[], 0).unwrap();
    let first = store.epoch();
    drop(store);
    assert_eq!(Store::open(&path).unwrap().epoch(), first);
    fs::remove_file(&mark).unwrap();
    let second = Store::open(&path).unwrap().epoch();
    assert_ne!(second, first);
    // Another log with a mark of its own takes the place of this one, which keeps its mark.
    let other = path.with_file_name("other.db");
    Store::open(&other).unwrap().tidy().unwrap();
    let foreign = Store::open(&other).unwrap().epoch();
    fs::rename(&other, &path).unwrap();
    let third = Store::open(&path).unwrap().epoch();
    assert!(third != second && third != foreign);
}

#[test]
fn a_kill_between_a_commit_and_its_mark_is_no_new_epoch() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    store.append(&[event("a", None, "1")], &[], 0).unwrap();
    let mark = store.mark.take();
    store.append(&[event("a", None, "2")], &[], 0).unwrap();
    let epoch = store.epoch();
    drop((store, mark));
    let store = Store::open(&path).unwrap();
    assert_eq!((store.epoch(), store.read_from(0, 10).unwrap().len()), (epoch, 2));
}

#[test]
fn a_log_that_is_put_back_under_a_running_hub_is_not_taken_for_the_old_one() {
    let (folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    store.append(&[event("a", None, "1")], &[], 0).unwrap();
    store.tidy().unwrap();
    let kept = folder.path().join("kept.db");
    fs::copy(&path, &kept).unwrap();
    store.append(&[event("a", None, "2")], &[], 0).unwrap();
    for name in ["db-wal", "db-shm"] {
        fs::remove_file(path.with_extension(name)).unwrap();
    }
    fs::rename(&kept, &path).unwrap();
    assert!(matches!(store.reopen().unwrap_err(), StoreError::Replaced { .. }));
    let epoch = store.epoch();
    drop(store);
    for name in ["db-wal", "db-shm"] {
        let _ = fs::remove_file(path.with_extension(name));
    }
    assert_ne!(Store::open(&path).unwrap().epoch(), epoch);
}

#[test]
fn a_replica_has_no_mark_as_its_epoch_is_that_of_its_log() {
    let (_folder, path) = folder();
    let open = || Store::open_replica(&path, Synchronous::Normal, Epoch(7)).unwrap();
    drop(open());
    assert!(!path.with_extension("db.mark-1").exists());
    assert_eq!(open().epoch(), Epoch(7));
}
