//! A GraphQL request as a client sends it, over any transport.

use serde_json::{Map, Value};

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
