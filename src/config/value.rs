//! A value of a key as a source gives it: typed by TOML in a file, plain text in a variable or a
//! flag.

use std::fmt;

use toml::de::DeValue;

/// How much of a value a fault repeats.
const SHOWN_CHARS: usize = 100;
/// What a fault may repeat of a URL that may hold a password.
const KNOWN_SCHEMES: [&str; 9] = [
    "http:",
    "mysql:",
    "postgres:",
    "postgresql:",
    "redis:",
    "redis-cluster:",
    "redis-sentinel:",
    "rediss:",
    "sqlite:",
];

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Whole(i64),
    Flag(bool),
    List(Vec<Value>),
    /// A TOML value that no key takes: its type.
    Other(String),
    /// From a variable or a flag, where everything is text. The key decides what it is.
    Untyped(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::Untyped(text) => write!(f, "{text:?}"),
            Self::Whole(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::List(all) => {
                let all: Vec<_> = all.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", all.join(", "))
            }
            Self::Other(kind) => write!(f, "a {kind}"),
        }
    }
}

impl Value {
    pub(super) fn from_toml(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Boolean(flag) => Self::Flag(*flag),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| Self::Other("number beyond 64 bits".to_owned()), Self::Whole),
            DeValue::Array(all) => {
                Self::List(all.iter().map(|one| Self::from_toml(one.get_ref())).collect())
            }
            other => Self::Other(other.type_str().to_owned()),
        }
    }

    /// As a file has it.
    pub(super) fn to_toml(&self) -> toml::Value {
        match self {
            Self::Text(text) | Self::Untyped(text) | Self::Other(text) => {
                toml::Value::String(text.clone())
            }
            Self::Whole(number) => toml::Value::Integer(*number),
            Self::Flag(flag) => toml::Value::Boolean(*flag),
            Self::List(all) => toml::Value::Array(all.iter().map(Self::to_toml).collect()),
        }
    }

    /// A list from a variable: `["a", "b"]` as in the file, or `a, b`.
    fn list_from_text(text: &str) -> Self {
        if text.trim_start().starts_with('[')
            && let Ok(parsed) = DeValue::parse(text.trim())
        {
            return Self::from_toml(parsed.get_ref());
        }
        let all = text.split(',').map(str::trim).filter(|one| !one.is_empty());
        Self::List(all.map(|one| Self::Text(one.to_owned())).collect())
    }

    pub(super) fn as_whole(&self) -> Option<u64> {
        match self {
            Self::Whole(number) => u64::try_from(*number).ok(),
            Self::Untyped(text) => text.replace('_', "").parse().ok(),
            _ => None,
        }
    }

    pub(super) fn as_flag(&self) -> Option<bool> {
        match self {
            Self::Flag(flag) => Some(*flag),
            Self::Untyped(text) => text.parse().ok(),
            _ => None,
        }
    }

    pub(super) fn as_text(&self) -> Result<&str, String> {
        match self {
            Self::Text(text) | Self::Untyped(text) => Ok(text),
            _ => Err("it must be a text in quotes".to_owned()),
        }
    }

    /// Each text of a list.
    pub(super) fn as_list(&self) -> Result<Vec<String>, String> {
        let read;
        let list = match self {
            Self::Untyped(text) => {
                read = Self::list_from_text(text);
                &read
            }
            list => list,
        };
        match list {
            Self::List(all) => all.iter().map(|one| one.as_text().map(str::to_owned)).collect(),
            _ => Err("it must be a list of texts, such as [\"…\"]".to_owned()),
        }
    }

    /// As a fault repeats it: short.
    pub(super) fn shortened(&self) -> String {
        let text = self.to_string();
        match text.char_indices().nth(SHOWN_CHARS) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }

    /// As a fault repeats it where it may be a secret: without what could be one.
    pub(super) fn masked(&self) -> String {
        match self {
            Self::Text(text) | Self::Untyped(text) => {
                let scheme = KNOWN_SCHEMES.iter().find(|scheme| text.starts_with(**scheme));
                format!("\"{}…\"", scheme.unwrap_or(&""))
            }
            Self::List(_) => "[…]".to_owned(),
            other => other.to_string(),
        }
    }
}
