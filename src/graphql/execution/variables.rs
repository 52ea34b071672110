//! The values that a request gives its variables.

use std::borrow::Cow;

use async_graphql_parser::types::OperationDefinition;
use serde_json::{Map, Value};

/// What a variable is: as given, else its default. `None` where it has neither.
pub fn value<'a>(
    operation: &OperationDefinition,
    variables: Option<&'a Map<String, Value>>,
    name: &str,
) -> Option<Cow<'a, Value>> {
    if let Some(given) = variables.and_then(|all| all.get(name)) {
        return Some(Cow::Borrowed(given));
    }
    let mut all = operation.variable_definitions.iter();
    let own = all.find(|one| *one.node.name.node == *name)?;
    let default = own.node.default_value.as_ref()?;
    default.node.clone().into_json().ok().map(Cow::Owned)
}
