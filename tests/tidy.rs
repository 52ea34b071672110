//! The rules of the house that no compiler checks: how long files and lines are, which words are
//! used, and that what documents name is there. What breaks a rule today is counted: the count may
//! only fall, and a test that finds fewer says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

mod limits_page;

/// Folders and files of the repository's top level that hold what people write.
const ROOMS: [&str; 10] = [
    ".github",
    "src",
    "subscriptions",
    "config",
    "loadtest",
    "tests",
    "fuzz",
    "benches",
    "web",
    "docs",
];
const DOCUMENTS: [&str; 5] =
    ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];
/// Folders that hold what tools write.
const NOT_OURS: [&str; 4] = ["node_modules", "target", "corpus", "artifacts"];
const SOURCES: [&str; 7] = ["rs", "py", "mjs", "sh", "sql", "toml", "graphql"];

const MOST_COLUMNS: usize = 100;
/// Lines of a file before its tests.
const MOST_LINES: usize = 450;
/// Words of a sentence in a document.
const MOST_WORDS: usize = 25;
/// Bytes of the map of the code, and lines of the first page: longer ones are not read.
const MOST_MAP_BYTES: usize = 12 * 1024;
const MOST_README_LINES: usize = 120;

/// Words that plain English has no need of, and how often each is used today.
const WORDS: [(&str, usize); 9] = [
    ("told", 0),
    ("tell", 0),
    ("tells", 0),
    ("anew", 0),
    ("whoever", 0),
    ("behind", 2),
    ("stands", 0),
    ("stood", 0),
    ("deaf", 0),
];

/// A text file of the repository: its path from the top, and what it says.
struct File {
    path: String,
    text: String,
}

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name();
        if entry.file_type().unwrap().is_dir() {
            if !NOT_OURS.iter().any(|one| name == *one) {
                walk(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

fn files(endings: &[&str]) -> Vec<File> {
    let top = top();
    let mut paths: Vec<_> = DOCUMENTS.iter().map(|name| top.join(name)).collect();
    ROOMS.iter().for_each(|room| walk(&top.join(room), &mut paths));
    paths.retain(|path| {
        endings.iter().any(|ending| path.extension().is_some_and(|own| own == *ending))
    });
    paths.sort_unstable();
    let read = |path: PathBuf| File {
        path: path.strip_prefix(&top).unwrap().to_str().unwrap().to_owned(),
        text: fs::read_to_string(&path).unwrap(),
    };
    paths.into_iter().map(read).collect()
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Compares what breaks a rule with what is allowed to break it today.
fn assert_ratchet<T: Ord + Debug>(rule: &str, found: &T, allowed: &T) {
    assert!(found <= allowed, "{rule}: {found:?}, and no more than {allowed:?} is allowed");
    assert!(found == allowed, "{rule}: only {found:?} is left, so allow no more than that");
}

#[test]
fn lines_are_no_wider_than_a_hundred_columns() {
    let wide =
        |file: &File| file.text.lines().filter(|line| line.chars().count() > MOST_COLUMNS).count();
    let wide: BTreeMap<_, _> = files(&SOURCES)
        .into_iter()
        .filter(|file| file.path != "config/schema.graphql")
        .map(|file| (wide(&file), file.path))
        .filter(|(lines, _)| *lines > 0)
        .map(|(lines, path)| (path, lines))
        .collect();
    println!("{wide:#?}");
    assert_ratchet("lines above 100 columns", &wide.values().sum(), &122);
}

/// The rooms of `src/`. A room imports only rooms that come later in this list, so there is no
/// circle between rooms.
const IMPORTS_GO_DOWN: [&str; 21] = [
    "fuzzing",
    "cli",
    "hub",
    "telemetry",
    "http",
    "graphql",
    "feeds",
    "shared_log",
    "ingest",
    "recovery",
    "cache",
    "live",
    "store",
    "postgres",
    "budgets",
    "config",
    "market",
    "pool",
    "descriptors",
    "signals",
    "backoff",
];
/// Rooms that meet in a third one and never import each other, in either direction.
const APART: [(&str, &str); 3] = [("graphql", "feeds"), ("http", "graphql"), ("http", "feeds")];

/// What a line of code imports of the crate, by room. Empty for a list, `crate::{…}`: it must be
/// written as one import a room.
fn imports(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split("crate::").skip(1))
        .map(|path| {
            let end = path.find(|letter: char| !(letter.is_alphanumeric() || letter == '_'));
            &path[..end.unwrap_or(path.len())]
        })
}

/// Why one room must not import the other, if so.
fn against_the_order(from: &str, to: &str) -> Option<String> {
    let place = |room: &str| IMPORTS_GO_DOWN.iter().position(|known| *known == room);
    let (Some(above), Some(below)) = (place(from), place(to)) else {
        return Some(format!("{from} imports {to}: add both to the list of rooms"));
    };
    let apart = APART.iter().any(|(one, two)| [(from, to), (to, from)].contains(&(*one, *two)));
    (above > below || apart).then(|| format!("{from} imports {to}"))
}

#[test]
fn rooms_import_each_other_only_downward() {
    let text = "use crate::hub::run;\n// crate::no\nf(crate::cli::X) use crate::{a, b};";
    assert!(imports(text).eq(["hub", "cli", ""]));
    assert!(against_the_order("hub", "").is_some());
    assert_eq!(against_the_order("hub", "market"), None);
    assert_eq!(against_the_order("market", "market"), None);
    assert!(against_the_order("market", "hub").is_some());
    assert!(against_the_order("graphql", "feeds").is_some());
    assert!(against_the_order("hub", "attic").is_some());
    let sources = files(&["rs"]);
    let hub = sources.iter().filter_map(|file| Some((file.path.strip_prefix("src/")?, file)));
    let mut rooms = BTreeSet::new();
    let mut wrong = BTreeSet::new();
    for (path, file) in hub.filter(|(path, _)| !["lib.rs", "main.rs"].contains(path)) {
        let room = path.split('/').next().unwrap_or(path).trim_end_matches(".rs");
        rooms.insert(room);
        wrong.extend(imports(&file.text).filter_map(|to| against_the_order(room, to)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(rooms, BTreeSet::from(IMPORTS_GO_DOWN));
}

/// Lines before the first module of tests.
fn lines_before_tests(text: &str) -> usize {
    let lines: Vec<_> = text.lines().collect();
    let is_module = |line: &str| line.starts_with("mod ") && line.ends_with('{');
    let begins_tests = |pair: &[&str]| pair[0] == "#[cfg(test)]" && is_module(pair[1]);
    lines.windows(2).position(begins_tests).unwrap_or(lines.len())
}

#[test]
fn files_have_no_more_than_450_lines_before_their_tests() {
    let long: BTreeMap<_, _> = files(&["rs"])
        .into_iter()
        .map(|file| (file.path, lines_before_tests(&file.text)))
        .filter(|(path, lines)| *lines > MOST_LINES && !path.contains("tests"))
        .collect();
    let beyond: usize = long.values().map(|lines| lines - MOST_LINES).sum();
    println!("{long:#?}");
    assert_ratchet("long files, and their lines beyond 450", &(long.len(), beyond), &(0, 0));
}

#[test]
fn each_source_file_says_first_what_it_is_for() {
    let silent = files(&["rs"]).into_iter().filter(|file| !file.text.starts_with("//!"));
    let silent: Vec<_> = silent.map(|file| file.path).collect();
    assert!(silent.is_empty(), "{silent:?}");
}

#[test]
fn words_are_plain() {
    let mut found: BTreeMap<_, _> = WORDS.iter().map(|(word, _)| (*word, 0)).collect();
    for file in files(&[&SOURCES[..], &["md"]].concat()) {
        if file.path == "tests/tidy.rs" {
            continue;
        }
        for word in file.text.split(|letter: char| !letter.is_ascii_alphabetic()) {
            if let Some(count) = found.get_mut(word.to_ascii_lowercase().as_str()) {
                *count += 1;
            }
        }
    }
    println!("{found:#?}");
    for (word, allowed) in WORDS {
        assert_ratchet(word, &found[word], &allowed);
    }
}

/// What is between backticks in a document.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.starts_with("    "))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

fn documents() -> Vec<File> {
    files(&["md"])
}

#[test]
fn tests_that_documents_name_exist() {
    let sources = files(&["rs"]);
    let functions: BTreeSet<_> = sources
        .iter()
        .flat_map(|file| file.text.split("fn ").skip(1))
        .map(|after| {
            after.split(|letter: char| !(letter.is_alphanumeric() || letter == '_')).next().unwrap()
        })
        .collect();
    let is_test = |name: &str| {
        let metric = name.starts_with("spreadly_");
        !metric
            && name.matches('_').count() >= 4
            && name.chars().all(|letter| {
                letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_'
            })
    };
    let documents = documents();
    let named: BTreeSet<_> =
        documents.iter().flat_map(|file| quoted(&file.text)).filter(|name| is_test(name)).collect();
    assert!(named.len() > 100, "{}", named.len());
    let missing: Vec<_> = named.difference(&functions).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The text of a document, with "code" for what is quoted as code.
fn prose(text: &str) -> String {
    let mut prose = String::new();
    let (mut fenced, mut quoted) = (false, false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            quoted &= !line.is_empty();
            for (at, part) in line.split('`').enumerate() {
                quoted ^= at > 0;
                prose.push_str(if quoted { "code" } else { part });
            }
        }
        prose.push('\n');
    }
    prose
}

/// Where the links of a document lead to: those in the text and those that are defined by a name.
fn links(text: &str) -> Vec<String> {
    let text = prose(text);
    let inline = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let defined = text.lines().filter(|line| line.starts_with('['));
    let defined = defined.filter_map(|line| line.split_once("]: ").map(|(_, target)| target));
    let local = |target: &&str| !target.contains("://") && !target.starts_with("mailto:");
    inline.chain(defined).filter(local).map(str::to_owned).collect()
}

/// A path that is written in a file, from the top.
fn resolved(file: &str, path: &str) -> String {
    let mut parts: Vec<_> = file.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[test]
fn links_lead_to_pages_parts_and_files_that_are_there() {
    let mut missing = Vec::new();
    let mut checked = 0;
    for document in documents() {
        for target in links(&document.text) {
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = match path {
                "" => document.path.clone(),
                path => resolved(&document.path, path),
            };
            let there = match fs::read_to_string(top().join(&path)) {
                Ok(text) => anchor.is_empty() || anchors(&text).contains(anchor),
                Err(_) => top().join(&path).is_dir(),
            };
            // What the book has not got is a dead link in it.
            let leaves_the_book = document.path.starts_with("docs/") && !path.starts_with("docs/");
            if !there || leaves_the_book {
                missing.push(format!("{}: {target}", document.path));
            }
            checked += 1;
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(checked > 150, "{checked}");
}

#[test]
fn each_reference_of_a_document_is_defined() {
    let mut missing = Vec::new();
    for document in documents() {
        // A page that includes another one defines the references of that one.
        let included = includes(&document).into_iter().map(|path| {
            let text = fs::read_to_string(top().join(path)).unwrap();
            text.split("<!-- ANCHOR_END").next().unwrap().to_owned()
        });
        let text: String = [document.text.clone()].into_iter().chain(included).collect();
        let text = prose(&text);
        let defined: BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix('[')?.split_once("]: ").map(|(name, _)| name))
            .collect();
        let is_record = |name: &str| name.len() == 4 && name.parse::<u32>().is_ok();
        let mut used: BTreeSet<_> =
            text.split("][").skip(1).filter_map(|rest| rest.split(']').next()).collect();
        used.extend(
            text.split('[')
                .filter_map(|rest| rest.split_once(']'))
                .filter(|(name, rest)| is_record(name) && !rest.starts_with('('))
                .map(|(name, _)| name),
        );
        let missing_here = used.difference(&defined);
        missing.extend(missing_here.map(|name| format!("{}: [{name}]", document.path)));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Which files a page of the book includes.
fn includes(document: &File) -> Vec<String> {
    let included = document.text.split("{{#include ").skip(1);
    let path = |rest: &str| rest.split([':', '}']).next().unwrap().to_owned();
    included.map(|rest| resolved(&document.path, &path(rest))).collect()
}

#[test]
fn the_book_has_every_page_and_what_its_pages_include() {
    let contents = fs::read_to_string(top().join("docs/SUMMARY.md")).unwrap();
    let listed: BTreeSet<_> =
        links(&contents).iter().map(|target| format!("docs/{target}")).collect();
    let index = fs::read_to_string(top().join("docs/internals/decisions/index.md")).unwrap();
    let records = links(&index);
    let records = records.iter().map(|target| format!("docs/internals/decisions/{target}"));
    let listed: BTreeSet<_> = listed.into_iter().chain(records).collect();
    let pages: BTreeSet<_> = documents()
        .into_iter()
        .map(|document| document.path)
        .filter(|path| path.starts_with("docs/") && path != "docs/SUMMARY.md")
        .collect();
    assert_eq!(pages, listed);
    for document in documents() {
        for path in includes(&document) {
            assert!(top().join(&path).is_file(), "{} includes {path}", document.path);
        }
    }
}

/// The numbers of rules of the protocol that a text names.
fn rules(text: &str) -> impl Iterator<Item = u32> {
    text.match_indices("P-").filter_map(|(at, _)| {
        let digits = text[at + 2..].split(|letter: char| !letter.is_ascii_digit()).next()?;
        let in_a_word = text[..at].ends_with(char::is_alphanumeric);
        digits.parse().ok().filter(|_| !in_a_word)
    })
}

#[test]
fn each_rule_of_the_protocol_has_a_number_of_its_own_and_those_that_are_cited_exist() {
    let protocol = fs::read_to_string(top().join("docs/reference/protocol.md")).unwrap();
    let beginnings = protocol.lines().filter_map(|line| line.strip_prefix("**P-"));
    let numbers: Vec<u32> = beginnings
        .map(|rest| rest.split_once(".** ").expect("a rule after its number").0.parse().unwrap())
        .collect();
    let own: BTreeSet<_> = numbers.iter().copied().collect();
    assert_eq!(own.len(), numbers.len(), "a number is given twice");
    assert!(own.len() > 200, "{}", own.len());
    for file in files(&[&SOURCES[..], &["md"]].concat()) {
        for number in rules(&file.text) {
            assert!(own.contains(&number), "{} cites P-{number}", file.path);
        }
    }
}

/// The sentences of a document: what is between full stops, colons and semicolons, in one
/// paragraph, list item or cell.
fn sentences(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in prose(text).lines().map(str::trim) {
        let item = line.starts_with("- ")
            || line.split_once(". ").is_some_and(|(number, _)| {
                !number.is_empty() && number.chars().all(|digit| digit.is_ascii_digit())
            });
        if line.is_empty() || item || line.starts_with(['#', '|']) {
            blocks.push(String::new());
        }
        if line.starts_with('|') {
            blocks.extend(line.split(" | ").map(str::to_owned));
            blocks.push(String::new());
        } else if let Some(block) = blocks.last_mut() {
            // The number of a rule and the target of a link are not read aloud.
            let line = line
                .strip_prefix("**P-")
                .and_then(|rest| rest.split_once(' '))
                .map_or(line, |(_, rest)| rest);
            let words = line.split("](").enumerate().map(|(at, part)| match at {
                0 => part,
                _ => part.split_once(')').map_or("", |(_, rest)| rest),
            });
            block.extend(words.chain([" "]));
        }
    }
    let ends =
        |word: &str| word.trim_end_matches(['*', '"', ')']).ends_with(['.', ':', ';', '?', '!']);
    let mut sentences = vec![];
    for block in blocks {
        let mut sentence = vec![];
        for word in block.split_whitespace() {
            if word.contains(char::is_alphanumeric) {
                sentence.push(word);
            }
            if ends(word) {
                sentences.push(std::mem::take(&mut sentence).join(" "));
            }
        }
        sentences.push(sentence.join(" "));
    }
    sentences
}

#[test]
fn sentences_of_documents_have_no_more_than_25_words() {
    let mut long = vec![];
    let mut read = 0;
    for document in documents() {
        for sentence in sentences(&document.text) {
            read += 1;
            if sentence.split(' ').count() > MOST_WORDS {
                long.push(format!("{}: {sentence}", document.path));
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
    assert!(read > 1_000, "{read}");
}

#[test]
fn the_map_of_the_code_and_the_first_page_are_short() {
    let map = fs::read_to_string(top().join("ARCHITECTURE.md")).unwrap();
    assert!(map.len() <= MOST_MAP_BYTES, "{}", map.len());
    let readme = fs::read_to_string(top().join("README.md")).unwrap();
    assert!(readme.lines().count() <= MOST_README_LINES, "{}", readme.lines().count());
}

#[test]
fn documents_that_files_name_are_there() {
    let mut missing = Vec::new();
    for file in files(&[&SOURCES[..], &["md"]].concat()) {
        for word in
            file.text.split(|letter: char| !(letter.is_alphanumeric() || "._-/".contains(letter)))
        {
            let is_document = word.ends_with(".md")
                && file_name(word).starts_with(|first: char| first.is_ascii_uppercase());
            if is_document && !top().join(word.trim_start_matches("../")).exists() {
                missing.push(format!("{}: {word}", file.path));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// What a link to a part of a document may say, as GitHub makes it of a heading.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading
                .chars()
                .filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
            kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
        })
        .collect()
}
