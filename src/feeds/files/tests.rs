//! What the feed reads of its folder: each line once, over appends, rotations, renames and faults.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::process::Command;
use std::time::SystemTime;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use super::folder::MOST_IN_VAIN;
use super::stream::CHUNK_BYTES;
use super::*;
use crate::ingest::feed_status::{FeedState, FeedStatus};
use crate::ingest::handle::Incoming;
use crate::ingest::sequencer::tests::Hub;
use crate::market::event::MOST_LINE_BYTES;
use crate::market::refusal::Refusal;
use crate::store::{FileProgress, Fingerprint, NewEvent, Progress, Store};

/// A folder, its log and no thread: what the feed does, one step at a time.
struct Bench {
    home: TempDir,
    store: Store,
    folder: Folder,
}

impl Bench {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("feeds")).unwrap();
        let store = Store::open(&home.path().join("log.db")).unwrap();
        let folder = Folder::new(&home.path().join("feeds"), "feeds", vec![], Arc::new(|_| false));
        Self { home, store, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("feeds").join(name)
    }

    fn append(&self, name: &str, text: &str) {
        append(&self.path(name), text);
    }

    fn commit(&mut self, turn: Turn) {
        let event = |line: Vec<u8>| NewEvent {
            topic: "t".into(),
            body: String::from_utf8(line).unwrap().into(),
            ..NewEvent::default()
        };
        let lines: Vec<_> = turn.lines.into_iter().map(|one| event(one.line.unwrap())).collect();
        let progress: Vec<_> = turn.progress.into_iter().map(Progress::from).collect();
        self.store.append(&lines, &progress, 0).unwrap();
    }

    /// Looks and reads until nothing is left.
    fn drain(&mut self) {
        self.folder.look(Ring::Scan).unwrap();
        while self.folder.is_busy() {
            let turn = self.folder.turn();
            self.commit(turn);
            self.folder.look(Ring::Names([].into())).unwrap();
        }
        assert!(self.folder.faults.is_empty());
    }

    /// As after `kill -9`: only what is committed is left.
    fn crash(&mut self) {
        let progress = self.store.file_progress("feeds").unwrap();
        self.folder =
            Folder::new(&self.home.path().join("feeds"), "feeds", progress, Arc::new(|_| false));
        self.folder.late_after = Duration::MAX;
    }

    fn log(&self) -> Vec<String> {
        let all = self.store.read_from(0, usize::MAX).unwrap();
        all.into_iter().map(|event| event.body.into()).collect()
    }
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn files_are_read_in_name_order_and_only_whole_lines() {
    let mut bench = Bench::new();
    bench.append("b.ndjson", "b1\nb2\n");
    bench.append("a.ndjson", "a1\n\r\n  \na2\nhal");
    bench.append("notes.txt", "no\n");
    bench.drain();
    assert_eq!(bench.log(), ["a1", "a2", "b1", "b2"]);
    bench.append("a.ndjson", "f\na4\n");
    bench.drain();
    assert_eq!(bench.log()[4..], ["half", "a4"]);
    let progress = bench.store.file_progress("feeds").unwrap();
    let a = progress.iter().find(|one| &*one.name == "a.ndjson").unwrap();
    assert_eq!((a.offset, a.line), (19, 6));
}

#[test]
fn after_a_crash_each_file_continues_after_its_last_committed_line() {
    let mut bench = Bench::new();
    bench.append("a.ndjson", "1\n2\n");
    bench.drain();
    bench.append("a.ndjson", "3\n");
    bench.folder.look(Ring::Scan).unwrap();
    assert_eq!(bench.folder.turn().lines.len(), 1, "read, and lost with the process");
    bench.crash();
    bench.drain();
    bench.crash();
    bench.drain();
    assert_eq!(bench.log(), ["1", "2", "3"]);
}

#[test]
fn a_rotated_file_is_drained_under_a_name_that_is_not_ours() {
    for crash in [false, true] {
        let mut bench = Bench::new();
        bench.append("a.ndjson", "1\n");
        bench.drain();
        bench.append("a.ndjson", "2\n");
        fs::rename(bench.path("a.ndjson"), bench.path("a.ndjson.1")).unwrap();
        bench.append("a.ndjson", "3\n");
        if crash {
            bench.crash();
        }
        bench.drain();
        bench.append("a.ndjson.1", "4\n");
        bench.append("a.ndjson", "5\n");
        bench.drain();
        let mut log = bench.log();
        log.sort();
        assert_eq!(log, ["1", "2", "3", "4", "5"], "crash {crash}");
    }
}

#[test]
fn a_file_that_is_moved_out_or_removed_is_drained_while_it_is_open() {
    let mut bench = Bench::new();
    let away = bench.home.path().join("away");
    bench.append("a.ndjson", "a1\n");
    bench.append("b.ndjson", "b1\n");
    bench.drain();
    bench.append("a.ndjson", "a2\n");
    bench.append("b.ndjson", "b2\n");
    fs::rename(bench.path("a.ndjson"), &away).unwrap();
    fs::remove_file(bench.path("b.ndjson")).unwrap();
    bench.append("a.ndjson", "new\n");
    bench.drain();
    append(&away, "a3\n");
    bench.drain();
    let mut log = bench.log();
    log.sort();
    assert_eq!(log, ["a1", "a2", "a3", "b1", "b2", "new"]);
}

#[test]
fn an_editors_save_continues_and_a_changed_beginning_is_read_again() {
    let mut bench = Bench::new();
    bench.append("a.ndjson", "1\n2\n");
    bench.drain();
    bench.append("a.tmp", "1\n2\n3\n");
    fs::rename(bench.path("a.tmp"), bench.path("a.ndjson")).unwrap();
    bench.drain();
    assert_eq!(bench.log(), ["1", "2", "3"]);
    bench.append("a.tmp", "x\n2\n3\n4\n");
    fs::rename(bench.path("a.tmp"), bench.path("a.ndjson")).unwrap();
    bench.drain();
    assert_eq!(bench.log()[3..], ["x", "2", "3", "4"]);
}

#[test]
fn a_truncated_file_is_a_new_stream_also_when_it_has_grown_past_the_offset() {
    let mut bench = Bench::new();
    bench.append("a.ndjson", "1\n2\n");
    bench.drain();
    fs::write(bench.path("a.ndjson"), "3\n").unwrap();
    bench.drain();
    fs::write(bench.path("a.ndjson"), "4\n").unwrap();
    bench.drain();
    fs::write(bench.path("a.ndjson"), "5\n6\n7\n").unwrap();
    bench.crash();
    bench.drain();
    assert_eq!(bench.log(), ["1", "2", "3", "4", "5", "6", "7"]);
    assert_eq!(bench.store.file_progress("feeds").unwrap().len(), 1);
}

#[test]
fn a_file_put_back_goes_on_where_it_was() {
    let mut bench = Bench::new();
    bench.append("a.ndjson", "1\n");
    bench.drain();
    fs::remove_file(bench.path("a.ndjson")).unwrap();
    bench.drain();
    bench.crash();
    bench.drain();
    bench.append("a.ndjson", "1\n2\n");
    bench.drain();
    assert_eq!(bench.log(), ["1", "2"]);
}

#[test]
fn names_that_change_hands_keep_their_streams() {
    let mut bench = Bench::new();
    bench.append("a.ndjson", "a1\n");
    bench.append("b.ndjson", "b1\n");
    bench.drain();
    fs::rename(bench.path("a.ndjson"), bench.path("c")).unwrap();
    fs::rename(bench.path("b.ndjson"), bench.path("a.ndjson")).unwrap();
    fs::rename(bench.path("c"), bench.path("b.ndjson")).unwrap();
    bench.append("a.ndjson", "b2\n");
    bench.append("b.ndjson", "a2\n");
    bench.drain();
    bench.crash();
    bench.drain();
    let mut log = bench.log();
    log.sort();
    assert_eq!(log, ["a1", "a2", "b1", "b2"]);
}

#[test]
fn what_is_no_regular_file_of_ours_is_ignored_with_a_reason() {
    use std::os::unix::ffi::OsStrExt as _;
    let mut bench = Bench::new();
    let outside = bench.home.path().join("outside.ndjson");
    append(&outside, "secret\n");
    symlink(&outside, bench.path("link.ndjson")).unwrap();
    fs::create_dir(bench.path("folder.ndjson")).unwrap();
    let fifo = Command::new("mkfifo").arg(bench.path("pipe.ndjson")).status().unwrap();
    assert!(fifo.success());
    let odd = std::ffi::OsStr::from_bytes(b"\xff.ndjson");
    append(&bench.home.path().join("feeds").join(odd), "odd\n");
    bench.append("a.ndjson", "1\n");
    fs::hard_link(bench.path("a.ndjson"), bench.path("b.ndjson")).unwrap();
    bench.drain();
    assert_eq!(bench.log(), ["1"]);
    let note = bench.folder.note().unwrap();
    assert!(note.ends_with(" and 2 more"), "{note}");
    for (name, reason) in [
        ("b.ndjson", "it is another name of a file that is read"),
        ("folder.ndjson", "it is a folder"),
        ("link.ndjson", "it is a symlink"),
    ] {
        assert!(note.contains(&format!("{name} is ignored: {reason}")), "{note}");
    }
    // Also when a pipe comes between the look and the opening.
    assert!(stream::open(&bench.path("pipe.ndjson")).is_err());
    assert!(stream::open(&bench.path("link.ndjson")).is_err());
}

#[test]
fn a_line_waits_for_the_definition_of_its_market_which_another_file_may_have() {
    let mut bench = Bench::new();
    bench.folder.late_after = Duration::MAX;
    let used =
        |number: u32| format!(r#"{{"kind":"book.delta","market":"A-B","number":{number}}}"#) + "\n";
    bench.append("a.ndjson", &("1\n".to_owned() + &used(1) + &used(2)));
    bench.append("b.ndjson", "2\n");
    bench.drain();
    assert_eq!(bench.log(), ["1", "2"]);
    let reason = "waits for the definition of market A-B".to_owned();
    assert_eq!(bench.folder.note(), Some(format!("a.ndjson: {reason}")));
    assert!(bench.folder.late().is_empty());
    // Its topics are STALE then.
    bench.folder.late_after = Duration::ZERO;
    assert_eq!(
        (bench.folder.note(), bench.folder.late()),
        (None, [("a.ndjson".into(), reason)].into())
    );
    assert_eq!(bench.folder.unread_bytes(), 2 * used(1).len() as u64);
    bench.crash();
    let defined = "{\"kind\":\"market\",\"market\":\"A-B\"}";
    bench.append("c.ndjson", &format!("{defined}\n"));
    bench.drain();
    assert_eq!(bench.folder.note(), None);
    let waited = [used(1), used(2)].map(|line| line.trim_end().to_owned());
    assert_eq!(bench.log()[2..], [&[defined.to_owned()], &waited[..]].concat());
    // A name that begins like a known one is another.
    bench.append("a.ndjson", &used(9).replace("A-B", "A-BC"));
    bench.drain();
    assert!(bench.folder.note().is_some_and(|note| note.ends_with("market A-BC")));
    bench.append("c.ndjson", &format!("{}\n", defined.replace("A-B", "A-BC")));
    bench.drain();
    assert_eq!(bench.log().len(), 7);
}

#[test]
fn a_file_waits_once_for_each_undefined_market_and_for_so_many_of_them() {
    let mut bench = Bench::new();
    let used = |market: &str| format!("{{\"kind\":\"book.delta\",\"market\":\"{market}\"}}\n");
    bench.folder.patience = Duration::MAX;
    for number in 0..MOST_IN_VAIN {
        let (own, before) = (format!("M{number}"), number.checked_sub(1));
        let known = before.map(|before| used(&format!("M{before}"))).unwrap_or_default();
        bench.append("a.ndjson", &(known + &used(&own) + &used(&own)));
        bench.drain();
        // The line of a market that it waited for does not wait again.
        assert_eq!(bench.log().len(), 3 * number, "{own}");
        assert!(bench.folder.note().is_some_and(|note| note.ends_with(&format!("market {own}"))));
        // In vain: it is handed on, for the hub to refuse it.
        bench.folder.patience = Duration::ZERO;
        bench.drain();
        bench.folder.patience = Duration::MAX;
        assert_eq!((bench.log().len(), bench.folder.note()), (3 * number + 2, None));
    }
    bench.append("a.ndjson", &used("one more"));
    bench.drain();
    assert_eq!((bench.log().len(), bench.folder.note()), (3 * MOST_IN_VAIN, None));
}

#[test]
fn a_last_line_without_a_newline_is_reported_until_that_comes() {
    let mut bench = Bench::new();
    bench.append("a.ndjson", "1\n23");
    bench.drain();
    assert_eq!(bench.folder.note(), None, "its writer may be in the middle of it");
    bench.drain();
    bench.drain();
    let note = "a.ndjson: the last 2 bytes have no newline, so they wait for one";
    assert_eq!(bench.folder.note().as_deref(), Some(note));
    bench.append("a.ndjson", "\n");
    bench.drain();
    assert_eq!((bench.folder.note(), bench.log()), (None, vec!["1".into(), "23".into()]));
}

#[test]
fn a_line_that_is_too_long_is_refused_with_its_place_and_the_next_one_read() {
    let mut bench = Bench::new();
    let long = "x".repeat(3 * MOST_LINE_BYTES);
    let most = "y".repeat(MOST_LINE_BYTES);
    bench.append("a.ndjson", "first\n");
    bench.append("a.ndjson", &long);
    let mut turns = vec![];
    let mut step = |bench: &mut Bench| {
        bench.folder.look(Ring::Scan).unwrap();
        while bench.folder.is_busy() {
            let turn = bench.folder.turn();
            turns.extend(turn.lines.into_iter().map(|one| (one.place.to_string(), one.line)));
            assert!(bench.folder.buffer_bytes() <= CHUNK_BYTES * 2);
        }
    };
    step(&mut bench);
    bench.append("a.ndjson", &format!("{long}\n{most}\nlast\n"));
    step(&mut bench);
    assert_eq!(turns.len(), 4);
    assert_eq!(turns[0], ("a.ndjson line 1 (byte 0)".into(), Ok(b"first".to_vec())));
    assert_eq!(turns[1], ("a.ndjson line 2 (byte 6)".into(), Err(Refusal::TooLong)));
    assert_eq!(turns[2].1, Ok(most.into_bytes()));
    assert_eq!(turns[3].1, Ok(b"last".to_vec()));
}

#[test]
fn a_batch_has_so_many_lines_and_so_many_bytes() {
    let mut bench = Bench::new();
    bench.append("a.ndjson", &"line\n".repeat(1_025));
    bench.folder.look(Ring::Scan).unwrap();
    assert_eq!([bench.folder.turn(), bench.folder.turn()].map(|turn| turn.lines.len()), [1_024, 1]);
    let mut bench = Bench::new();
    let line = "x".repeat((64 << 10) - 1) + "\n";
    bench.append("a.ndjson", &line.repeat(20));
    bench.folder.look(Ring::Scan).unwrap();
    assert_eq!([bench.folder.turn(), bench.folder.turn()].map(|turn| turn.lines.len()), [16, 4]);
}

#[test]
fn a_removed_file_is_read_on_only_while_it_is_among_the_last_256() {
    let mut bench = Bench::new();
    let name = |number: usize| format!("{number:03}.ndjson");
    (0..=256).for_each(|number| bench.append(&name(number), "1\n"));
    bench.drain();
    let last_words = |number: usize| {
        let mut file = OpenOptions::new().append(true).open(bench.path(&name(number))).unwrap();
        fs::remove_file(bench.path(&name(number))).unwrap();
        writeln!(file, "last words of {number}").unwrap();
    };
    [0, 1].into_iter().for_each(last_words);
    bench.drain();
    assert_eq!(bench.log()[257..], ["last words of 1"]);
}

/// What an earlier run read of so many files that are gone.
fn gone(count: u64) -> Vec<FileProgress> {
    let none = Fingerprint::default();
    let one = |stream: u64| FileProgress {
        feed: "feeds".into(),
        stream,
        name: format!("gone {stream}.ndjson").into(),
        device: u64::MAX,
        inode: stream,
        offset: 1,
        line: 1,
        head: none,
        tail: none,
        forgotten: false,
    };
    (1..=count).map(one).collect()
}

#[test]
fn of_more_than_ten_thousand_files_that_are_gone_the_oldest_is_forgotten() {
    let mut bench = Bench::new();
    bench.folder =
        Folder::new(&bench.home.path().join("feeds"), "feeds", gone(10_002), Arc::new(|_| false));
    bench.folder.look(Ring::Scan).unwrap();
    let forgotten: Vec<_> = bench.folder.turn().progress;
    assert!(forgotten.iter().all(|one| one.forgotten));
    assert_eq!(forgotten.iter().map(|one| one.stream).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_file_too_many_is_not_read_and_is_named() {
    let mut bench = Bench::new();
    bench.append("new.ndjson", "1\n");
    bench.folder =
        Folder::new(&bench.home.path().join("feeds"), "feeds", gone(100_000), Arc::new(|_| false));
    bench.folder.look(Ring::Scan).unwrap();
    let faults = [("new.ndjson".into(), "more than 100000 files: move old ones".to_owned())];
    assert_eq!(bench.folder.faults, faults.into());
    assert!(bench.folder.turn().lines.is_empty());
    // Those that are long gone were forgotten meanwhile.
    bench.folder.look(Ring::Scan).unwrap();
    assert!(bench.folder.faults.is_empty());
    assert_eq!(bench.folder.turn().lines.len(), 1);
}

#[test]
fn a_large_file_does_not_starve_small_ones() {
    let mut bench = Bench::new();
    bench.append("a.ndjson", &"large\n".repeat(1_000_000));
    bench.append("b.ndjson", "small\n");
    bench.folder.look(Ring::Scan).unwrap();
    let mut turns = 0;
    while !bench.folder.turn().lines.iter().any(|one| &*one.place.source == "b.ndjson") {
        turns += 1;
    }
    assert_eq!(turns, 1, "after one chunk of the large file's");
}

#[test]
fn a_line_that_undoes_blocks_comes_by_itself_and_in_its_place() {
    let mut bench = Bench::new();
    let undo = |height: u64| format!(r#"{{"kind":"block.reverted","height":{height}}}"#);
    let lines = ["1", "2", &undo(7), "", &undo(8), "3", r#"{"data":"block.reverted"}"#, "4"];
    bench.append("a.ndjson", &(lines.join("\n") + "\n"));
    bench.append("b.ndjson", &format!("{}\n5\n", undo(9)));
    bench.folder.look(Ring::Scan).unwrap();
    let mut batches: Vec<Vec<String>> = Vec::new();
    loop {
        let turn = bench.folder.turn();
        if turn.lines.is_empty() && turn.progress.is_empty() {
            break;
        }
        let text = |one: &Incoming| String::from_utf8(one.line.clone().unwrap()).unwrap();
        batches.push(turn.lines.iter().map(text).collect());
        bench.commit(turn);
        // Each is after what was committed, so nothing is read twice or left out.
        bench.crash();
        bench.folder.look(Ring::Scan).unwrap();
    }
    for batch in &batches {
        let alone = batch.iter().any(|line| line.contains(r#""kind":"block.reverted""#));
        assert!(!alone || batch.len() == 1, "{batches:?}");
    }
    let log = bench.log();
    let expected: Vec<_> = lines.iter().filter(|line| !line.is_empty()).collect();
    let of_a: Vec<_> = log.iter().filter(|line| expected.contains(&&&***line)).collect();
    assert_eq!(of_a, expected);
    assert_eq!(log.len(), expected.len() + 2);
}

#[test]
fn every_line_enters_once_whatever_a_writer_does_and_wherever_it_crashes() {
    for seed in 0..20 {
        println!("seed {seed}");
        let (crashes, kinds) = storm(seed);
        assert!(crashes > 0 && kinds.iter().all(|count| *count > 0), "{crashes} {kinds:?}");
    }
}

/// Returns how often it crashed and how often the writer did each of its things.
fn storm(seed: u64) -> (u32, [u32; 8]) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut bench = Bench::new();
    let names = ["a.ndjson", "b.ndjson", "c.ndjson"];
    let (mut crashes, mut kinds, mut next, mut rotated) = (0, [0; 8], 0, 0);
    let mut written = vec![];
    let mut half = std::collections::BTreeMap::<&str, String>::new();
    for _ in 0..600 {
        let name = *names.choose(&mut random).unwrap();
        let kind = random.random_range(0..8);
        let exists = bench.path(name).exists();
        kinds[kind] += 1;
        match kind {
            0 | 1 => {
                let mut text = half.remove(name).unwrap_or_default();
                for _ in 0..random.random_range(0..20) {
                    text +=
                        &format!("{name} {next:06}{}\n", "x".repeat(random.random_range(0..99)));
                    next += 1;
                }
                written.extend(text.lines().map(str::to_owned));
                // Its first half was written before.
                let rest = text.split_once('|').map_or(&*text, |(_, rest)| rest);
                if let Some((before, _)) = text.split_once('|') {
                    let line = before.to_owned() + rest.lines().next().unwrap();
                    let place = written.iter().position(|one| one.contains('|')).unwrap();
                    written[place] = line;
                }
                bench.append(name, rest);
            }
            2 if !half.contains_key(name) => {
                let before = format!("{name} {next:06}ha");
                next += 1;
                bench.append(name, &before);
                half.insert(name, format!("{before}|lf\n"));
            }
            // Rotated to a name that isn't ours (once it is known), and to one that is.
            3 | 4 if exists && !half.contains_key(name) => {
                bench.drain();
                let text = format!("{name} {next:06}\n");
                next += 1;
                written.push(text.trim().into());
                bench.append(name, &text);
                rotated += 1;
                // A file is known by its content: the first line must be in the log before.
                let known = fs::metadata(bench.path(name)).unwrap().len() > text.len() as u64;
                let ending = if kind == 3 && known { "1" } else { "ndjson" };
                let to = format!("{name}.{rotated}.{ending}");
                fs::rename(bench.path(name), bench.path(&to)).unwrap();
            }
            // An editor's save, with a line more.
            5 if exists && !half.contains_key(name) => {
                let mut text = fs::read_to_string(bench.path(name)).unwrap();
                let line = format!("{name} {next:06} edited");
                next += 1;
                text += &format!("{line}\n");
                written.push(line);
                fs::write(bench.path("save.tmp"), text).unwrap();
                fs::rename(bench.path("save.tmp"), bench.path(name)).unwrap();
            }
            // Truncated once drained, or removed.
            6 if exists && !half.contains_key(name) => {
                bench.drain();
                let file = OpenOptions::new().write(true).open(bench.path(name)).unwrap();
                file.set_len(0).unwrap();
            }
            7 if exists && !half.contains_key(name) => {
                bench.drain();
                fs::remove_file(bench.path(name)).unwrap();
            }
            _ => {}
        }
        match random.random_range(0..6) {
            0 => bench.drain(),
            1 => {
                bench.folder.look(Ring::Scan).unwrap();
                let turn = bench.folder.turn();
                bench.commit(turn);
            }
            2 => {
                // As the bell would ring.
                let _ = bench.folder.look(Ring::Names(names.map(Into::into).into()));
                let turn = bench.folder.turn();
                bench.commit(turn);
            }
            3 => {
                bench.folder.look(Ring::Scan).unwrap();
                drop(bench.folder.turn());
                bench.crash();
                crashes += 1;
            }
            _ => {}
        }
    }
    bench.drain();
    let mut log = bench.log();
    log.sort();
    written.retain(|line| !line.contains('|'));
    written.sort();
    let missing: Vec<_> = written.iter().filter(|line| !log.contains(line)).collect();
    let doubled: Vec<_> = log.windows(2).filter(|two| two[0] == two[1]).collect();
    let foreign: Vec<_> = log.iter().filter(|line| !written.contains(line)).collect();
    assert!(missing.is_empty(), "seed {seed} lost {missing:?}");
    assert!(doubled.is_empty() && foreign.is_empty(), "seed {seed}: {doubled:?} {foreign:?}");
    assert_eq!(log.len(), written.len());
    (crashes, kinds)
}

/// The feed as it runs, with the sequencer after it.
struct Running {
    home: TempDir,
    hub: Hub,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(mode: Mode) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), mode)
    }

    fn start_in(home: TempDir, mode: Mode) -> Self {
        let hub = Hub::start(&home.path().join("log.db"), 1_000);
        let config = FilesConfig {
            path: home.path().join("feeds"),
            mode,
            poll_interval: Duration::from_millis(5),
            is_defined: Arc::new(|_| true),
            in_log: Arc::default(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(
            config,
            hub.ingest.clone(),
            hub.board.clone(),
            hub.feed,
            stop.clone(),
        ));
        Self { home, hub, stop, task }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("feeds").join(name)
    }

    async fn until(&self, fact: impl Fn(&FeedStatus) -> bool) -> FeedStatus {
        let mut changes = self.hub.board.changes();
        loop {
            let status = self.hub.board.get(self.hub.feed).unwrap();
            if fact(&status) {
                return status;
            }
            let waited = tokio::time::timeout(Duration::from_secs(30), changes.changed()).await;
            assert!(waited.is_ok(), "{status:?}");
        }
    }

    async fn made(&self) {
        while !self.path("").exists() {
            tokio::task::yield_now().await;
        }
    }

    /// Ends it and returns how many events its log has.
    async fn end(self) -> (TempDir, usize) {
        self.stop.cancel();
        self.task.await.unwrap();
        let status = self.hub.board.get(self.hub.feed).unwrap();
        assert_eq!(status.state, FeedState::ShuttingDown);
        self.hub.stop();
        let store = Store::open(&self.home.path().join("log.db")).unwrap();
        let events = store.read_from(0, usize::MAX).unwrap().len();
        (self.home, events)
    }
}

fn message(number: usize) -> String {
    format!("{{\"kind\":\"message\",\"topic\":\"t\",\"id\":\"{number}\",\"data\":{number}}}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_flows_watched_or_polled_and_goes_on_after_a_restart() {
    for mode in [Mode::Watch, Mode::Poll] {
        let feed = Running::start(mode);
        feed.made().await;
        append(&feed.path("a.ndjson"), &message(1));
        feed.until(|status| status.events_total == 1).await;
        append(&feed.path("a.ndjson"), &message(2));
        append(&feed.path("b.ndjson"), &message(2));
        feed.until(|status| status.events_total == 2 && status.known_total == 1).await;
        append(&feed.path("b.ndjson"), "{\"kind\":\"odd\"}\n");
        let status = feed.until(|status| status.refused_total == 1).await;
        let refusal = status.last_refusal.unwrap();
        assert_eq!(refusal.place.to_string(), "b.ndjson line 2 (byte 49)");
        assert_eq!(refusal.reason, Refusal::UnknownKind("odd".into()));
        let (home, events) = feed.end().await;
        assert_eq!(events, 2);
        append(&home.path().join("feeds/a.ndjson"), &message(3));
        let feed = Running::start_in(home, mode);
        feed.until(|status| status.events_total == 1).await;
        assert_eq!(feed.end().await.1, 3, "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_files_at_once_are_all_read() {
    for renamed in [false, true] {
        let feed = Running::start(Mode::Watch);
        feed.made().await;
        for number in 0..3_000 {
            let name = feed.path(&format!("{number}.ndjson"));
            if renamed {
                let temporary = feed.path(&format!("{number}.tmp"));
                append(&temporary, &message(number));
                fs::rename(temporary, name).unwrap();
            } else {
                append(&name, &message(number));
            }
        }
        let status = feed.until(|status| status.events_total == 3_000).await;
        assert_eq!((status.known_total, status.refused_total), (0, 0));
        assert_eq!(feed.end().await.1, 3_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_gone_halts_the_feed_until_it_is_back() {
    for mode in [Mode::Watch, Mode::Poll] {
        let feed = Running::start(mode);
        feed.made().await;
        append(&feed.path("a.ndjson"), &message(1));
        feed.until(|status| status.events_total == 1).await;
        let away = feed.home.path().join("away");
        fs::rename(feed.path(""), &away).unwrap();
        let status = feed.until(|status| status.state == FeedState::Halted).await;
        assert!(status.reason.unwrap().contains("feeds can't be read (No such file"), "{mode:?}");
        append(&away.join("a.ndjson"), &message(2));
        fs::rename(&away, feed.path("")).unwrap();
        feed.until(|status| status.state == FeedState::Live && status.events_total == 2).await;
        append(&feed.path("a.ndjson"), &message(3));
        feed.until(|status| status.events_total == 3).await;
        assert_eq!(feed.end().await.1, 3);
    }
}

/// Who has root's rights can read every file, so as root this runs itself again as nobody.
#[test]
fn an_unreadable_file_halts_the_feed_names_itself_and_others_flow() {
    const INNER: &str = "SPREADLY_TEST_AS_NOBODY";
    const NOBODY: u32 = 65_534;
    use std::os::unix::process::CommandExt as _;
    let name =
        "feeds::files::tests::an_unreadable_file_halts_the_feed_names_itself_and_others_flow";
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("probe"), "").unwrap();
    fs::set_permissions(home.path().join("probe"), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(home.path().join("probe")).is_ok() {
        assert!(std::env::var_os(INNER).is_none(), "nobody reads everything");
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
        // From a copy: the build's folder may be closed to others.
        let copy = home.path().join("tests");
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let done = Command::new(&copy)
            .args(["--exact", name, "--nocapture"])
            .env(INNER, "1")
            .env("TMPDIR", home.path())
            .current_dir(home.path())
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && output.contains("1 passed"), "{output}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let feed = Running::start(Mode::Watch);
        feed.made().await;
        append(&feed.path("good.ndjson"), &message(1));
        feed.until(|status| status.events_total == 1).await;
        let bad = feed.path("bad.ndjson");
        let mut file =
            OpenOptions::new().create_new(true).append(true).mode(0o000).open(&bad).unwrap();
        file.write_all(message(2).as_bytes()).unwrap();
        let status = feed.until(|status| status.state == FeedState::Halted).await;
        assert_eq!(
            status.reason.as_deref(),
            Some("bad.ndjson: can't be read (Permission denied (os error 13))")
        );
        append(&feed.path("good.ndjson"), &message(3));
        let status = feed.until(|status| status.events_total == 2).await;
        assert_eq!(status.state, FeedState::Halted);
        fs::set_permissions(&bad, fs::Permissions::from_mode(0o600)).unwrap();
        feed.until(|status| status.state == FeedState::Live && status.events_total == 3).await;
        assert_eq!(feed.end().await.1, 3);
    });
}

/// A feed that sleeps, with a sequencer that does not write at once.
fn asleep(bench: &mut Bench) -> Reading {
    let folder =
        Folder::new(&bench.home.path().join("feeds"), "feeds", vec![], Arc::new(|_| false));
    let mut reading = Reading::new(std::mem::replace(&mut bench.folder, folder), Arc::default());
    reading.asleep = true;
    reading.delivered -= LULL;
    reading
}

#[test]
fn the_watch_writes_what_rang_while_the_feed_sleeps_and_leaves_the_rest_to_it() {
    let mut bench = Bench::new();
    bench.append("a.ndjson", &message(1));
    bench.drain();
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::start(&home.path().join("log.db"), 1_000);
    let bell = Doorbell::default();
    let ring = |name: &str| bell.ring_by_hand(name);
    let mut reading = asleep(&mut bench);

    bench.append("a.ndjson", &message(2));
    ring("a.ndjson");
    assert!(reading.answer(&bell, &hub.ingest, hub.feed));
    assert_eq!(hub.board.get(hub.feed).unwrap().events_total, 1);
    assert!(matches!(reading.wake(), Left::Nothing));

    // Awake: the feed takes the ring itself.
    ring("a.ndjson");
    assert!(!reading.answer(&bell, &hub.ingest, hub.feed));
    assert_eq!(bell.take(), Ring::Names(["a.ndjson".into()].into()));

    // A file that left its name wants the whole folder compared.
    reading.asleep = true;
    reading.delivered -= LULL;
    fs::rename(bench.path("a.ndjson"), bench.path("b.ndjson")).unwrap();
    ring("a.ndjson");
    assert!(!reading.answer(&bell, &hub.ingest, hub.feed));
    assert!(!reading.asleep && reading.folder.is_busy());
    assert_eq!(hub.stop().sequences, [1]);
}

#[test]
fn what_the_watch_read_and_could_not_write_is_the_feeds() {
    let mut bench = Bench::new();
    let (ingest, _asked) = IngestHandle::open();
    let bell = Doorbell::default();
    let mut reading = asleep(&mut bench);
    drop(reading.folder.look(Ring::Scan));
    bench.append("a.ndjson", &message(1));
    bell.ring_by_hand("a.ndjson");
    let feed = FeedStatuses::new().register("test", crate::ingest::feed_status::FeedKind::Files);
    assert!(!reading.answer(&bell, &ingest, feed));
    // Further rings wait for the feed.
    reading.delivered -= LULL;
    bench.append("a.ndjson", &message(2));
    bell.ring_by_hand("a.ndjson");
    assert!(!reading.answer(&bell, &ingest, feed));
    let Left::Batch(left) = reading.wake() else { panic!("it was read") };
    assert_eq!(left.batch.lines.len(), 1);
    assert_eq!(bell.take(), Ring::Names(["a.ndjson".into()].into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_enters_once_whether_the_watch_or_the_feed_reads_it() {
    const ALONE: usize = 100;
    /// How many lines the watch may leave to the feed, which may always be awake on a busy machine.
    const MOST_ALONE: usize = 10_000;
    const TOGETHER: usize = 1_000;
    /// How often all of these may be the watch's.
    const MOST_ROUNDS: usize = 10;
    let feed = Running::start(Mode::Watch);
    feed.made().await;
    let mut random = StdRng::seed_from_u64(7);
    let mut alone = (0, 0);
    while alone.0 < ALONE || alone.1 == 0 {
        assert!(alone.0 < MOST_ALONE, "the watch wrote none of {alone:?}");
        let name = ["a.ndjson", "b.ndjson"].choose(&mut random).unwrap();
        append(&feed.path(name), &message(alone.0));
        feed.until(|status| status.events_total == alone.0 as u64 + 1).await;
        alone = (alone.0 + 1, feed.hub.model.lock().by_watch);
        // A line comes alone if none came just before it.
        tokio::time::sleep(LULL * 2).await;
    }
    let (alone_lines, alone) = alone;
    let names = ["a.ndjson", "b.ndjson", "c.ndjson"].map(|name| feed.path(name));
    let (mut all, mut by_watch) = (alone_lines, alone);
    for _ in 0..MOST_ROUNDS {
        let writers: Vec<_> = (0..2)
            .map(|half| {
                let names = names.clone();
                std::thread::spawn(move || {
                    for number in 0..TOGETHER {
                        let id = all + half * TOGETHER + number;
                        append(&names[number % names.len()], &message(id));
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        all += 2 * TOGETHER;
        let status = feed.until(|status| status.events_total == all as u64).await;
        assert_eq!((status.known_total, status.refused_total), (0, 0));
        by_watch = feed.hub.model.lock().by_watch;
        if by_watch < all {
            break;
        }
    }
    println!("by the watch: {alone} of {alone_lines} alone, {by_watch} of {all}");
    assert!(alone > 0 && by_watch < all, "no race: {alone} {by_watch}");
    assert_eq!(feed.end().await.1, all);
}

/// Prints what it costs and asserts no time.
#[tokio::test(flavor = "multi_thread")]
async fn each_of_two_hundred_appends_is_noticed_by_the_watch() {
    let feed = Running::start(Mode::Watch);
    feed.made().await;
    append(&feed.path("a.ndjson"), &message(0));
    feed.until(|status| status.events_total == 1).await;
    let mut delays = vec![];
    for number in 1..=200 {
        let before = SystemTime::now();
        append(&feed.path("a.ndjson"), &message(number));
        feed.until(|status| status.events_total == number as u64 + 1).await;
        delays.push(before.elapsed().unwrap());
    }
    delays.sort();
    println!("append to committed and applied: p50 {:?}, p99 {:?}", delays[100], delays[198]);
    assert_eq!(feed.end().await.1, 201);
}
