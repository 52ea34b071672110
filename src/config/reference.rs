//! The table as text: the configuration in force, the file with every key at its default, and the
//! reference page.

use std::fmt::Write as _;

use super::source::{self, LATER};
use super::table::Row;
use super::value::Value;

/// Columns of a comment.
const WIDTH: usize = 100;

const FILE_HEAD: &str = "\
# Every key of Spreadly's hub at its default: a hub without a file runs exactly this. Keep the lines
# that you change and drop the rest. `make reference` writes this file from src/config/sections.
#
#   spreadly serve --config spreadly.toml        spreadly check-config spreadly.toml
#
# Flags beat environment variables, which beat the file, which beats these defaults. A variable is
# named after its key: server.listen is SPREADLY__SERVER__LISTEN. It has a list as \"a, b\".
# Relative paths start at the working directory.
";

const FILE_TAIL: &str = "
# Keys of later versions. Setting one is an error, so that nothing is ignored in silence:
#
";

const PAGE_HEAD: &str = "\
<!-- `make reference` writes this page from src/config/sections. -->

# Configuration

[Run and configure a hub](../how-to/run.md) says where a value comes from. `config/spreadly.toml` has
every key at its default; `spreadly config` prints the same file.

- A variable is named after its key: `server.listen` is `SPREADLY__SERVER__LISTEN`. A list is written
  as `a, b`.
- A key that may hold a password is marked with *secret*. The variable with the suffix `_FILE` names
  a file that has its value, for example `SPREADLY__STORE__URL_FILE`.
- Relative paths start at the working directory.
";

/// The configuration in force, as a file that reads back to the same. Passwords are left out.
pub(super) fn effective(rows: &[Row]) -> String {
    let mut out = String::new();
    for (section, rows) in sections(rows) {
        let gap = if out.is_empty() { "" } else { "\n" };
        let _ = writeln!(out, "{gap}[{section}]");
        for row in rows {
            let _ = writeln!(out, "{}", line(row, &row.value));
        }
    }
    out
}

/// A file with every key at its default, with what is known of it.
pub(super) fn documented(rows: &[Row]) -> String {
    let mut out = FILE_HEAD.to_owned();
    for (section, rows) in sections(rows) {
        let _ = write!(out, "\n[{section}]");
        for row in rows {
            let _ = write!(out, "\n{}", comment(&[row.does, row.notes].join(" ")));
            if row.is_secret {
                let variable = source::variable(row.name);
                let text = format!(
                    "It may hold a password: set it by the variable {variable}, or let \
                     {variable}_FILE name a file that has it."
                );
                out.push_str(&comment(&text));
            }
            let takes = ["Takes ", &row.range, " ", row.unit].concat();
            out.push_str(&comment(&format!("{}. {}", takes.trim_end(), row.reason)));
            let _ = writeln!(out, "{}", line(row, &row.default));
        }
    }
    out.push_str(FILE_TAIL);
    for later in LATER {
        let _ = match later.strip_suffix('.') {
            Some(section) => writeln!(out, "#   other keys of [{section}]"),
            None => writeln!(out, "#   {later}"),
        };
    }
    out
}

/// The reference page.
pub(super) fn page(rows: &[Row]) -> String {
    let mut out = PAGE_HEAD.to_owned();
    for (section, rows) in sections(rows) {
        let _ = write!(
            out,
            "\n## {section}\n\n| key | default | unit | takes | what it does |\n\
             |---|---|---|---|---|\n"
        );
        for row in rows {
            let Row { name, unit, range, reason, does, .. } = row;
            let default = row.default.to_toml();
            let takes =
                if reason.is_empty() { range.clone() } else { format!("{range}. {reason}") };
            let secret = if row.is_secret { " *secret*" } else { "" };
            let _ = writeln!(out, "| `{name}`{secret} | `{default}` | {unit} | {takes} | {does} |");
        }
        let mut gap = "\n";
        for row in rows.iter().filter(|row| !row.notes.is_empty()) {
            let _ =
                write!(out, "{gap}{}", wrapped(&format!("- `{}`: {}", row.name, row.notes), "  "));
            gap = "";
        }
    }
    out
}

/// The rows of each section, in order.
fn sections(rows: &[Row]) -> impl Iterator<Item = (&'static str, &[Row])> {
    let section = |row: &Row| row.name.rsplit_once('.').map_or("", |(section, _)| section);
    rows.chunk_by(move |one, next| section(one) == section(next))
        .map(move |rows| (section(&rows[0]), rows))
}

fn line(row: &Row, value: &Value) -> String {
    let name = row.name.rsplit_once('.').map_or(row.name, |(_, name)| name);
    format!("{name} = {}", value.to_toml())
}

fn comment(text: &str) -> String {
    wrapped(&format!("# {text}"), "# ")
}

/// In lines, of which those after the first begin with `indent`.
fn wrapped(text: &str, indent: &str) -> String {
    let mut out = String::new();
    let mut columns = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if columns > 0 && columns + 1 + length > WIDTH {
            out.push('\n');
            out.push_str(indent);
            columns = indent.len();
        } else if columns > 0 {
            out.push(' ');
            columns += 1;
        }
        out.push_str(word);
        columns += length;
    }
    out.push('\n');
    out
}
