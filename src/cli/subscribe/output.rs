//! Results on stdout: a line of JSON each, or many lines for people.

use std::io;

use async_graphql_value::ConstValue;
use serde_json::value::RawValue;
use tokio::io::{AsyncWriteExt as _, Stdout};

pub struct Output {
    stdout: Stdout,
    pretty: bool,
}

impl Output {
    pub fn new(pretty: bool) -> Self {
        Self { stdout: tokio::io::stdout(), pretty }
    }

    /// Returns once the system has all of it, so that a cursor is never ahead of what was read.
    pub async fn write(&mut self, result: &RawValue) -> io::Result<()> {
        let mut text = if self.pretty { indented(result)? } else { one_line(result) };
        text.push('\n');
        self.stdout.write_all(text.as_bytes()).await?;
        self.stdout.flush().await
    }
}

/// As the hub wrote it. Outside strings JSON's line breaks are blanks, inside it has none.
fn one_line(result: &RawValue) -> String {
    result.get().replace(['\n', '\r'], " ")
}

/// The fields stay in the order they were asked for, as this value's objects keep it.
fn indented(result: &RawValue) -> io::Result<String> {
    let value: ConstValue = serde_json::from_str(result.get())?;
    Ok(serde_json::to_string_pretty(&value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_one_line_or_many_and_says_the_same() {
        let text = "{\"data\":{\"b\":\"0.10\",\n\"a\":18446744073709551615}}";
        let result = RawValue::from_string(text.to_owned()).unwrap();
        assert_eq!(one_line(&result), r#"{"data":{"b":"0.10", "a":18446744073709551615}}"#);
        let expected =
            "{\n  \"data\": {\n    \"b\": \"0.10\",\n    \"a\": 18446744073709551615\n  }\n}";
        assert_eq!(indented(&result).unwrap(), expected);
    }
}
