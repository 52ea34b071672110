//! The page of limits against the code. Each row has the value of its constants or keys, and each
//! constant that limits something has a row. The prices on the page are those of the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::{File, assert_ratchet, files, lines_before_tests, top};

/// Constants that are named like limits and have no row, by reason.
const NO_ROW: [(&str, &[&str]); 8] = [
    (
        "the range of a key, which the page of configuration has",
        &[
            "config::sections::limits::MOST_COST",
            "config::sections::limits::MOST_MARKETS",
            "config::sections::identity::MOST_ACCOUNT_BYTES",
            "graphql::mutation::orders::MOST_ACCOUNT_BYTES",
        ],
    ),
    (
        "a size that a format or a type has",
        &[
            "framing::AFTER_ID_BYTES",
            "framing::PREFIX_BYTES",
            "position::HEADER_BYTES",
            "position::POSITION_BYTES",
            "ring::FRAME_OVERHEAD_BYTES",
            "subscribers::INLINE_ID_BYTES",
            "feeds::files::stream::FINGERPRINT_BYTES",
            "store::mark::MOST_BYTES",
        ],
    ),
    (
        "a sum of limits that have rows",
        &["feeds::kafka::producer::LONGEST_WRITE", "feeds::simulator::MOST_RESTING"],
    ),
    (
        "a buffer or a portion: another number would change nothing that a client could see",
        &[
            "codec::CODEC_BUFFER_BYTES",
            "context::READ_BUFFER_BYTES",
            "http::sse::COPIED_BYTES",
            "feeds::files::stream::CHUNK_BYTES",
            "graphql::connections::READ_AT_ONCE",
            "schedule::portions::MOST_PORTIONS",
            "store::log::RESERVED_AT_ONCE",
        ],
    ),
    (
        "an estimate or a ratio of the code's own",
        &[
            "live::frame::ITEM_BYTES",
            "schedule::MOST_OF_USUAL",
            "feeds::kafka::partitions::MOST_REMADE",
        ],
    ),
    (
        "how long a text for people is",
        &[
            "ingest::summary::MOST_NAMED",
            "feeds::kafka::MOST_NOTES",
            "feeds::kafka::brokers::MOST_SAID",
            "graphql::execution::suggestions::MOST_SUGGESTIONS",
            "graphql::execution::syntax::MOST_SHOWN",
            "market::event::fields::MOST_QUOTED",
            "market::orders::MOST_QUOTED",
        ],
    ),
    (
        "the simulator's picture of a market",
        &["feeds::simulator::MOST_CHANGES", "feeds::simulator::MOST_DRAWS"],
    ),
    ("a status of HTTP", &["cli::subscribe::fault::REQUEST_TIMEOUT"]),
];

/// A constant of the code.
#[derive(Debug)]
struct Constant {
    /// Its module and its name, without the crate: `live::topics::replay::LONGEST_WAIT`.
    path: String,
    kind: String,
    value: String,
}

impl Constant {
    fn name(&self) -> &str {
        self.path.rsplit("::").next().unwrap_or(&self.path)
    }

    fn module(&self) -> &str {
        self.path.rsplit_once("::").map_or("", |(module, _)| module)
    }

    /// Whether its name says that it limits something.
    fn is_limit(&self) -> bool {
        let name = self.name();
        let begins = ["MOST_", "LONGEST_"].iter().any(|word| name.starts_with(word));
        let ends = ["_AT_ONCE", "_BYTES", "_DEADLINE", "_TIMEOUT", "_PATIENCE"];
        begins || name == "PATIENCE" || ends.iter().any(|word| name.ends_with(word))
    }
}

/// What a value is, in the smallest unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantity {
    /// Bytes, or how many of something.
    Number(u128),
    Nanos(u128),
}

/// The constants of a file, but for those of its tests.
fn constants(file: &File) -> Vec<Constant> {
    let path = file.path.trim_start_matches("subscriptions/").trim_start_matches("src/");
    let module = path.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
    let lines: Vec<_> = file.text.lines().take(lines_before_tests(&file.text)).collect();
    let declared = |at: usize| {
        let (before, rest) = lines[at].split_once("const ")?;
        let visible = ["", "pub"].contains(&before.trim()) || before.trim().starts_with("pub(");
        let (name, _) = rest.split_once(": ")?;
        let is_name = |name: &str| name.contains(char::is_uppercase) && name == name.to_uppercase();
        if !visible || !is_name(name) {
            return None;
        }
        let text = [&[rest], &lines[at + 1..]].concat().join(" ");
        let (kind, value) = text[name.len() + 2..].split_once(" =")?;
        let value = value.split(';').next()?.split_whitespace().collect::<Vec<_>>().join(" ");
        let is_number = kind != "&str" || value.trim_matches('"').parse::<u64>().is_ok();
        let path = format!("{module}::{name}");
        is_number.then(|| Constant { path, kind: kind.to_owned(), value })
    };
    (0..lines.len()).filter_map(declared).collect()
}

/// The only constant of this name, which may have the end of its module before it.
fn named<'a>(code: &'a [Constant], name: &str) -> Result<&'a Constant, String> {
    let is_named = |one: &&Constant| one.path == name || one.path.ends_with(&format!("::{name}"));
    match code.iter().filter(is_named).collect::<Vec<_>>()[..] {
        [] => Err(format!("{name}: there is no such constant")),
        [one] => Ok(one),
        ref several => {
            Err(format!("{name}: put the module before it, there are {}", several.len()))
        }
    }
}

/// The number that an expression of the module is.
fn number(code: &[Constant], module: &str, text: &str) -> Result<u128, String> {
    let of = |text: &str| number(code, module, text);
    if let Some((one, other)) = text.split_once(" << ") {
        return Ok(of(one)? << of(other)?);
    }
    if let Some((one, other)) = text.split_once(" * ") {
        return Ok(of(one)? * of(other)?);
    }
    let text = text.split(" as ").next().unwrap_or(text).trim();
    if text == "i64::MAX" {
        return Ok(i64::MAX as u128);
    }
    if text.starts_with(|first: char| first.is_ascii_uppercase()) {
        let constant = named(code, &format!("{module}::{text}")).or_else(|_| named(code, text))?;
        return number(code, constant.module(), &constant.value);
    }
    text.trim_matches('"').replace('_', "").parse().map_err(|_| format!("what is {text:?}?"))
}

fn quantity(code: &[Constant], one: &Constant) -> Result<Quantity, String> {
    for (unit, nanos) in [("secs", 1_000_000_000), ("millis", 1_000_000), ("micros", 1_000)] {
        let inner = one.value.strip_prefix(&format!("Duration::from_{unit}("));
        if let Some(inner) = inner.and_then(|inner| inner.strip_suffix(')')) {
            return Ok(Quantity::Nanos(number(code, one.module(), inner)? * nanos));
        }
    }
    let number = number(code, one.module(), &one.value)?;
    let unit = if one.kind == "Micros" { "MICROS" } else { one.name() };
    Ok(match unit.rsplit('_').next() {
        Some("NANOS") => Quantity::Nanos(number),
        Some("MICROS") => Quantity::Nanos(number * 1_000),
        Some("MS") => Quantity::Nanos(number * 1_000_000),
        Some("KIB") => Quantity::Number(number << 10),
        _ => Quantity::Number(number),
    })
}

/// A value as the page has it: a number with commas between thousands, and a unit.
fn written(text: &str) -> Result<Quantity, String> {
    if text == "2^63 - 1" {
        return Ok(Quantity::Number((1 << 63) - 1));
    }
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let number = number.trim_end_matches("/s");
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{}{part}", whole.replace(',', ""));
    let wrong = || format!("{text:?} is no value, such as 1,024 or 0.5 s or 64 KiB");
    let value: u128 = digits.parse().map_err(|_| wrong())?;
    let groups: Vec<_> = whole.split(',').collect();
    let (first, others) = groups.split_first().ok_or_else(wrong)?;
    if !(1..=3).contains(&first.len()) || others.iter().any(|group| group.len() != 3) {
        return Err(wrong());
    }
    let (factor, is_time) = match unit {
        "s" => (1_000_000_000, true),
        "ms" => (1_000_000, true),
        "µs" => (1_000, true),
        "MiB" => (1 << 20, false),
        "KiB" => (1 << 10, false),
        "" | "µs/s" => (1, false),
        _ => return Err(wrong()),
    };
    let tenth = 10u128.pow(part.len() as u32);
    if !(value * factor).is_multiple_of(tenth) {
        return Err(wrong());
    }
    let value = value * factor / tenth;
    Ok(if is_time { Quantity::Nanos(value) } else { Quantity::Number(value) })
}

/// The cells of a table's row.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

/// The defaults of all keys that are numbers, from the page of configuration.
fn defaults(configuration: &str) -> BTreeMap<&str, Quantity> {
    let row = |line| {
        let cells: Vec<&str> = cells(line)?;
        let key = cells.first()?.strip_prefix('`')?.split('`').next()?;
        let number: u128 = cells.get(1)?.trim_matches('`').parse().ok()?;
        let value = match *cells.get(2)? {
            "ms" => Quantity::Nanos(number * 1_000_000),
            "µs" => Quantity::Nanos(number * 1_000),
            _ => Quantity::Number(number),
        };
        Some((key, value))
    };
    configuration.lines().filter_map(row).collect()
}

/// A text without what is in parentheses.
fn without_remarks(text: &str) -> String {
    let part = |part: &str| part.rsplit(')').next().unwrap_or_default().to_owned();
    let mut parts = text.split('(');
    let first = parts.next().unwrap_or_default().to_owned();
    [first].into_iter().chain(parts.map(part)).collect::<String>().trim().to_owned()
}

/// A row of a table of limits.
struct Row<'a> {
    names: Vec<String>,
    values: Vec<String>,
    /// Its last cell.
    test: &'a str,
}

fn rows(page: &str) -> impl Iterator<Item = Row<'_>> {
    let mut are_limits = false;
    page.lines().filter_map(move |line| {
        let cells = cells(line)?;
        let [name, value, .., test] = cells[..] else { return None };
        if name.starts_with("---") {
            return None;
        }
        if !name.contains('`') && value == "value" {
            are_limits = name == "name";
            return None;
        }
        are_limits &= value != "label in metrics";
        let (name, value) = (without_remarks(name), without_remarks(value));
        let names = name.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let values = value.replace("; ", ", ").replace(" to ", ", ");
        let values = values.split(", ").map(str::to_owned).collect();
        are_limits.then_some(Row { names, values, test })
    })
}

/// What the page says wrongly, and what it lacks.
fn faults(page: &str, configuration: &str, code: &[Constant], no_row: &[&str]) -> Vec<String> {
    let defaults = defaults(configuration);
    let (mut faults, mut listed) = (vec![], BTreeSet::new());
    for Row { names, values, .. } in rows(page) {
        if names.is_empty() || names.len() != values.len() {
            faults.push(format!("{names:?} have the values {values:?}"));
            continue;
        }
        for (name, value) in names.iter().zip(values) {
            let real = match defaults.get_key_value(name.as_str()) {
                Some((key, value)) => Ok((*key, *value)),
                None => named(code, name)
                    .and_then(|one| quantity(code, one).map(|value| (one.path.as_str(), value))),
            };
            match real.and_then(|(path, real)| Ok((path, real, written(&value)?))) {
                Ok((path, real, said)) => {
                    listed.insert(path);
                    if real != said {
                        faults.push(format!("{name} is {real:?}, and the page says {value}"));
                    }
                }
                Err(fault) => faults.push(format!("{name}: {fault}")),
            }
        }
    }
    let limits = code.iter().filter(|one| one.is_limit()).map(|one| one.path.as_str());
    let keys = defaults.into_keys().filter(|key| key.starts_with("limits."));
    let without: BTreeSet<_> = limits.chain(keys).filter(|path| !listed.contains(path)).collect();
    let no_row: BTreeSet<_> = no_row.iter().copied().collect();
    faults.extend(without.difference(&no_row).map(|path| format!("{path} has no row")));
    faults.extend(no_row.difference(&without).map(|path| format!("{path} needs no exception")));
    faults
}

fn page() -> String {
    fs::read_to_string(top().join("docs/reference/limits.md")).unwrap()
}

#[test]
fn the_page_of_limits_has_the_values_of_the_code_and_every_limit() {
    let is_code = |file: &File| {
        let is_ours = ["src/", "subscriptions/src/"].iter().any(|room| file.path.starts_with(room));
        is_ours && !file.path.ends_with("tests.rs") && !file.path.contains("/tests/")
    };
    let code: Vec<_> =
        files(&["rs"]).iter().filter(|file| is_code(file)).flat_map(constants).collect();
    let configuration = fs::read_to_string(top().join("docs/reference/configuration.md")).unwrap();
    let no_row = NO_ROW.map(|(_, constants)| constants).concat();
    let faults = faults(&page(), &configuration, &code, &no_row);
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(rows(&page()).count() > 150, "{}", rows(&page()).count());
    assert!(code.len() > 250, "{}", code.len());
}

/// Whether a cell names tests, and if not, whether it has a reason.
fn is_tested(cell: &str) -> Result<bool, String> {
    let is_name = |name: &str| name.len() > 2 && name.starts_with('`') && name.ends_with('`');
    let reason = cell.strip_prefix("– (").and_then(|rest| rest.strip_suffix(')'));
    match reason {
        _ if cell.split(", ").all(is_name) => Ok(true),
        Some(reason) if !reason.is_empty() => Ok(false),
        _ => Err(format!("{cell:?} names no test, and gives no reason")),
    }
}

#[test]
fn each_limit_has_a_test_or_a_reason_why_it_has_none() {
    assert_eq!(is_tested("`a`, `b`"), Ok(true));
    assert_eq!(is_tested("– (it is slow)"), Ok(false));
    for wrong in ["", "–", "– ()", "– it is slow", "a", "`a` b", "``", "`a`, b"] {
        assert!(is_tested(wrong).is_err(), "{wrong}");
    }
    let page = page();
    let tested: Vec<bool> = rows(&page).map(|row| is_tested(row.test).unwrap()).collect();
    let untested = tested.iter().filter(|is_tested| !**is_tested).count();
    assert_ratchet("limits without a test", &untested, &24);
}

#[test]
fn the_prices_on_the_page_are_those_of_the_code() {
    let code = fs::read_to_string(top().join("src/budgets/prices.rs")).unwrap();
    let arms = code.lines().filter_map(|line| line.trim().trim_end_matches(',').split_once(" => "));
    let (labels, nanos): (Vec<_>, Vec<_>) = arms.partition(|(_, value)| value.starts_with('"'));
    let nanos: BTreeMap<_, _> = nanos.into_iter().collect();
    let price = |(kind, label): (&str, &str)| {
        (label.trim_matches('"').to_owned(), nanos[kind].replace('_', "").parse().unwrap())
    };
    let prices: BTreeMap<String, u128> = labels.into_iter().map(price).collect();
    let page = page();
    let (_, table) = page.split_once("label in metrics").unwrap();
    let said = table.lines().filter_map(|line| {
        let cells = cells(line)?;
        let Quantity::Nanos(nanos) = written(&format!("{} µs", cells.get(2)?)).ok()? else {
            return None;
        };
        Some((cells[1].trim_matches('`').to_owned(), nanos))
    });
    assert_eq!(said.collect::<BTreeMap<_, _>>(), prices);
    assert_eq!(prices.len(), 17);
}

const CODE: &str = r#"//! Some module.
pub const MOST_THINGS: usize = 1_024;
pub(crate) const ROOM: usize = 4 * MOST_THINGS;
const PAGE_BYTES: usize = 64 << 10;
const PATIENCE: Duration =
    Duration::from_millis(1_500);
const MOST_WAIT_MS: u32 = 2_000;
const HEIGHT: u64 = i64::MAX as u64;
const LONGEST_PAUSE_MS: &str = "50";
const MOST_TEXT: &str = "at most";
const LIST: [u8; 2] = [1, 2];
#[cfg(test)]
mod tests {
    const MOST_TESTS: usize = 5;
}
"#;
const KEYS: &str = "| `limits.wait_ms` | `250` | ms | 1 to 9 | a wait |\n\
    | `limits.streams` | `4096` | streams | | x |\n| `log.format` | `\"text\"` | | | x |\n";
const PAGE: &str = "\
| name | value | what |
|---|---|---|
| `MOST_THINGS` (`things`), `ROOM` | 1,024; 4,096 (or fewer) | x |
| `PAGE_BYTES` | 64 KiB | x |
| `part::PATIENCE` of a part | 1.5 s | x |
| `MOST_WAIT_MS` to `HEIGHT` | 2 s to 2^63 - 1 | x |
| `LONGEST_PAUSE_MS` | 50 ms | x |
| `limits.wait_ms`, `limits.streams` | 0.25 s, 4,096 | x |
";

/// The faults of a page about [`CODE`] and [`KEYS`], with this replaced by that.
fn faults_with(this: &str, that: &str) -> Vec<String> {
    let file = |name: &str| File { path: format!("src/some/{name}/mod.rs"), text: CODE.to_owned() };
    let mut code = constants(&file("part"));
    let other = constants(&file("other")).into_iter().filter(|one| one.name() == "PATIENCE");
    code.extend(other);
    assert!(PAGE.contains(this), "{this}");
    faults(&PAGE.replace(this, that), KEYS, &code, &["some::other::PATIENCE"])
}

#[test]
fn a_page_that_is_right_has_no_faults() {
    assert_eq!(faults_with("x", "x"), Vec::<String>::new());
}

#[test]
fn a_wrong_value_a_wrong_unit_and_a_wrong_name_on_the_page_are_faults() {
    let wrong = [
        ("1,024;", "1,025;"),
        ("4,096 (", "4,069 ("),
        ("1,024;", "1024;"),
        ("1,024;", "10,24;"),
        ("1,024;", "about a thousand;"),
        ("64 KiB", "64"),
        ("64 KiB", "64 MiB"),
        ("64 KiB", "64 kB"),
        ("64 KiB", "64 KiB, 3"),
        ("1.5 s", "1.5 ms"),
        ("1.5 s", "1,500,000,000"),
        ("2 s to", "2,000 to"),
        ("2^63", "2^62"),
        ("50 ms", "51 ms"),
        ("0.25 s", "0.26 s"),
        ("4,096 | x", "4,095 | x"),
        ("part::PATIENCE", "PATIENCE"),
        ("part::PATIENCE", "art::PATIENCE"),
        ("`PAGE_BYTES`", "a page"),
        ("`ROOM`", "`ROOMS`"),
        ("limits.streams", "limits.stream"),
    ];
    for (this, that) in wrong {
        assert!(!faults_with(this, that).is_empty(), "{that} for {this}");
    }
}

#[test]
fn a_limit_or_a_key_without_a_row_and_an_exception_without_need_are_faults() {
    let without = |row: &str| {
        let line = PAGE.lines().find(|line| line.contains(row)).unwrap();
        faults_with(&format!("{line}\n"), "")
    };
    assert_eq!(without("PAGE_BYTES"), ["some::part::PAGE_BYTES has no row"]);
    assert_eq!(without("MOST_THINGS"), ["some::part::MOST_THINGS has no row"]);
    assert_eq!(without("part::PATIENCE"), ["some::part::PATIENCE has no row"]);
    let keys = without("limits.wait_ms");
    assert_eq!(keys, ["limits.streams has no row", "limits.wait_ms has no row"]);
    let needless = faults_with("| `PAGE", "| `other::PATIENCE` | 1.5 s | x |\n| `PAGE");
    assert_eq!(needless, ["some::other::PATIENCE needs no exception"]);
}
