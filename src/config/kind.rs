//! What a key takes: a number in a range, one of some words, a list. A kind reads a value into the
//! type that the configuration has, and prints it so that it reads back to the same.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::value::Value;

type Read<T> = Box<dyn Fn(&Value) -> Result<T, String>>;
type Print<T> = Box<dyn Fn(&T) -> Value>;

pub(super) struct Kind<T> {
    read: Read<T>,
    print: Print<T>,
    /// What it takes, in words that follow "takes".
    range: String,
    /// Why it takes nothing else, where that is not plain.
    reason: &'static str,
    is_secret: bool,
}

impl<T: 'static> Kind<T> {
    fn new(
        range: impl Into<String>,
        read: impl Fn(&Value) -> Result<T, String> + 'static,
        print: impl Fn(&T) -> Value + 'static,
    ) -> Self {
        let (read, print) = (Box::new(read), Box::new(print));
        Self { read, print, range: range.into(), reason: "", is_secret: false }
    }

    pub(super) fn because(self, reason: &'static str) -> Self {
        Self { reason, ..self }
    }

    /// It may hold a password: no fault repeats it, and a file may hold it.
    pub(super) fn secret(self) -> Self {
        Self { is_secret: true, ..self }
    }

    /// The same values, as another type.
    pub(super) fn map<U: 'static>(self, to: fn(T) -> U, back: fn(&U) -> T) -> Kind<U> {
        let Self { read, print, range, reason, is_secret } = self;
        Kind {
            read: Box::new(move |value| read(value).map(to)),
            print: Box::new(move |mapped| print(&back(mapped))),
            range,
            reason,
            is_secret,
        }
    }

    pub(super) fn read(&self, value: &Value) -> Result<T, String> {
        (self.read)(value)
    }

    pub(super) fn print(&self, value: &T) -> Value {
        (self.print)(value)
    }

    /// As a fault repeats it.
    pub(super) fn shown(&self, value: &Value) -> String {
        if self.is_secret { value.masked() } else { value.shortened() }
    }

    pub(super) fn range(&self) -> &str {
        &self.range
    }

    pub(super) fn reason(&self) -> &'static str {
        self.reason
    }

    pub(super) fn is_secret(&self) -> bool {
        self.is_secret
    }
}

impl<T: Clone + 'static> Kind<Vec<T>> {
    /// Prints only what may be shown.
    pub(super) fn printing_only(self, may_be_shown: fn(&T) -> bool) -> Self {
        let print = self.print;
        let print = Box::new(move |all: &Vec<T>| {
            print(&all.iter().filter(|one| may_be_shown(one)).cloned().collect())
        });
        Self { print, ..self }
    }
}

pub(super) fn whole<T>(range: RangeInclusive<u64>) -> Kind<T>
where
    T: Copy + TryFrom<u64> + TryInto<i64> + 'static,
{
    in_range(range, "")
}

pub(super) fn millis(range: RangeInclusive<u64>) -> Kind<Duration> {
    in_range(range, " of milliseconds")
        .map(Duration::from_millis, |value| u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
}

fn in_range<T>(range: RangeInclusive<u64>, unit: &'static str) -> Kind<T>
where
    T: Copy + TryFrom<u64> + TryInto<i64> + 'static,
{
    let (from, to) = (*range.start(), *range.end());
    Kind::new(
        format!("{} to {}", grouped(from), grouped(to)),
        move |value| {
            let number = value.as_whole().filter(|number| range.contains(number));
            number
                .and_then(|number| T::try_from(number).ok())
                .ok_or_else(|| format!("it must be a whole number{unit} from {from} to {to}"))
        },
        |value| Value::Whole((*value).try_into().unwrap_or(i64::MAX)),
    )
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

pub(super) fn flag() -> Kind<bool> {
    Kind::new(
        "`true` or `false`",
        |value| value.as_flag().ok_or_else(|| "it must be true or false".to_owned()),
        |flag| Value::Flag(*flag),
    )
}

/// One of the words in quotes, each with what it means.
pub(super) fn one_of<T: Copy + PartialEq + 'static>(
    words: &'static [(&'static str, T)],
) -> Kind<T> {
    let quoted = |quote: &str| -> Vec<String> {
        words.iter().map(|(word, _)| format!("{quote}\"{word}\"{quote}")).collect()
    };
    let names = quoted("").join(", ");
    Kind::new(
        quoted("`").join(" or "),
        move |value| {
            let found = value.as_text().ok();
            let found = found.and_then(|text| words.iter().find(|(word, _)| *word == text));
            found.map(|(_, one)| *one).ok_or_else(|| format!("it must be one of {names}"))
        },
        |value| {
            let found = words.iter().find(|(_, one)| one == value);
            Value::Text(found.map_or("", |(word, _)| word).to_owned())
        },
    )
}

/// A text in quotes, which `read` checks.
pub(super) fn text<T: 'static>(
    range: &str,
    read: fn(&str) -> Result<T, String>,
    print: fn(&T) -> String,
) -> Kind<T> {
    Kind::new(range, move |value| read(value.as_text()?), move |value| Value::Text(print(value)))
}

/// A list of texts, each of which `read` checks.
pub(super) fn list<T: 'static>(
    range: &str,
    read: fn(&str) -> Result<T, String>,
    print: fn(&T) -> String,
) -> Kind<Vec<T>> {
    Kind::new(
        range,
        move |value| value.as_list()?.iter().map(|one| read(one)).collect(),
        move |all: &Vec<T>| Value::List(all.iter().map(|one| Value::Text(print(one))).collect()),
    )
}

pub(super) fn address() -> Kind<SocketAddr> {
    Kind::new(
        "an address and a port",
        |value| {
            let parsed = value.as_text().ok().and_then(|text| text.parse().ok());
            parsed.ok_or_else(|| {
                "it must be an address and a port, such as \"127.0.0.1:4000\" or \"[::]:4000\""
                    .to_owned()
            })
        },
        |address: &SocketAddr| Value::Text(address.to_string()),
    )
}
