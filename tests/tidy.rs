//! The rules of the house that no compiler checks: how long files and lines are, which words are
//! used, and that what documents name is there. What breaks a rule today is counted: the count may
//! only fall, and a test that finds fewer says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders and files of the repository's top level that hold what people write.
const ROOMS: [&str; 7] =
    ["src", "subscriptions", "config", "loadtest", "tests", "graphiql", "docs"];
const DOCUMENTS: [&str; 4] = ["README.md", "ARCHITECTURE.md", "PROTOCOL.md", "CHANGELOG.md"];
/// Folders that hold what tools write.
const NOT_OURS: [&str; 4] = ["node_modules", "target", "corpus", "artifacts"];
const SOURCES: [&str; 7] = ["rs", "py", "mjs", "sh", "sql", "toml", "graphql"];

const MOST_COLUMNS: usize = 100;
/// Lines of a file before its tests.
const MOST_LINES: usize = 450;

/// Words that plain English has no need of, and how often each is used today.
const WORDS: [(&str, usize); 9] = [
    ("told", 871),
    ("tell", 72),
    ("tells", 66),
    ("anew", 111),
    ("whoever", 78),
    ("behind", 343),
    ("stands", 195),
    ("stood", 37),
    ("deaf", 5),
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
    assert_ratchet("lines above 100 columns", &wide.values().sum(), &206);
}

/// Lines before the first module of tests.
fn lines_before_tests(text: &str) -> usize {
    let lines: Vec<_> = text.lines().collect();
    let begins_tests = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ");
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
    assert_ratchet("long files, and their lines beyond 450", &(long.len(), beyond), &(16, 2914));
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
        name.matches('_').count() >= 4
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

#[test]
fn links_and_documents_that_are_named_are_there() {
    let mut missing = Vec::new();
    for document in documents() {
        for target in document.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let folder = document.path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let path = match path {
                "" => document.path.clone(),
                path => format!("{folder}/{path}"),
            };
            let path = path.trim_start_matches('/');
            match fs::read_to_string(top().join(path)) {
                Ok(text) if anchor.is_empty() || anchors(&text).contains(anchor) => {}
                Ok(_) => missing.push(format!("{}: {target}", document.path)),
                Err(_) if top().join(path).is_dir() => {}
                Err(_) => missing.push(format!("{}: {target}", document.path)),
            }
        }
    }
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
