//! A GraphQL request as a client sends it, over any transport.

use serde_json::{Map, Value};

/// Most values in the JSON of one message or HTTP body. A short value costs the parser, and then
/// memory, some hundred times its bytes.
pub const MOST_JSON_VALUES: usize = 10_000;

/// Whether a JSON text has more values than [`MOST_JSON_VALUES`], keys aside. To be asked before it
/// is parsed.
pub fn has_too_many_values(json: &str) -> bool {
    let (mut values, mut in_string, mut escaped) = (1, false, false);
    // No value is shorter than a byte.
    json.len() > MOST_JSON_VALUES
        && json.bytes().any(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = in_string,
                b'"' => in_string = !in_string,
                b',' | b'[' | b'{' if !in_string => values += 1,
                _ => {}
            }
            values > MOST_JSON_VALUES
        })
}

/// A GraphQL request, from a `subscribe` payload or an HTTP body.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Empty where `extensions.persistedQuery` names a document by its hash.
    pub query: String,
    pub operation_name: Option<String>,
    pub variables: Option<Map<String, Value>>,
    pub extensions: Option<Map<String, Value>>,
}

impl Request {
    /// Reads the fields of a request. Unknown fields are ignored; an optional field may be null.
    ///
    /// # Errors
    /// Which field has a wrong type or is missing.
    pub fn from_fields(mut fields: Map<String, Value>) -> Result<Self, &'static str> {
        let object = |value| match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err("'variables' and 'extensions' must be objects"),
        };
        let query = fields.remove("query");
        let operation_name = match fields.remove("operationName") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name),
            Some(_) => return Err("'operationName' must be a string"),
        };
        let variables = object(fields.remove("variables"))?;
        let extensions = object(fields.remove("extensions"))?;
        let is_persisted = || extensions.as_ref().is_some_and(|all| all.contains_key(PERSISTED));
        let query = match query {
            Some(Value::String(query)) => query,
            None if is_persisted() => String::new(),
            _ => return Err("'query' must be a string"),
        };
        Ok(Self { query, operation_name, variables, extensions })
    }
}

/// The extension that names a document by its hash instead of sending it.
pub const PERSISTED: &str = "persistedQuery";

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    Query,
    Mutation,
    Subscription,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_wherever_they_are_and_no_text_counts_for_more_than_one() {
        let list = |values: usize| format!("[{}]", vec!["0"; values].join(","));
        // The list itself is one.
        assert!(!has_too_many_values(&list(MOST_JSON_VALUES - 1)));
        assert!(has_too_many_values(&list(MOST_JSON_VALUES)));
        for most in ["[", "{\"a\":", "[0,", "\"\\\\\",", "\"\\\"\","] {
            assert!(has_too_many_values(&most.repeat(MOST_JSON_VALUES + 1)), "{most}");
        }
        for text in ["[,{", "\\\"[", "\\\\,"] {
            let text = format!("[\"{}\"]", text.repeat(MOST_JSON_VALUES));
            assert!(!has_too_many_values(&text), "{}", &text[..20]);
        }
    }
}
