//! What a subscription states when a client joins it: one frame of each market, or of each feed.

use async_graphql_parser::types::{OperationDefinition, OperationType, Selection};
use async_graphql_value::Value;
use serde_json::Map;

use super::variables;
use super::weight::Weight;
use crate::graphql::errors::Refused;
use crate::live::MOST_STATED_FIELDS;

/// Limits the fields of all markets together, and those of all items that a feed lists. A hundred
/// markets with every field once have half of the limit. `all` is how many markets a subscription
/// follows that names none.
pub fn check(
    operation: &OperationDefinition,
    variables: Option<&Map<String, serde_json::Value>>,
    weight: Weight,
    all: usize,
) -> Result<(), Refused> {
    if operation.ty != OperationType::Subscription {
        return Ok(());
    }
    let markets = markets(operation, variables, all).unwrap_or(1);
    match weight.fields.saturating_mul(markets).max(weight.item_fields) {
        stated if stated > MOST_STATED_FIELDS => {
            Err(Refused::limit("stated_fields", MOST_STATED_FIELDS, stated))
        }
        _ => Ok(()),
    }
}

/// How many markets it follows; `None` if it takes no list of them.
fn markets(
    operation: &OperationDefinition,
    variables: Option<&Map<String, serde_json::Value>>,
    all: usize,
) -> Option<usize> {
    let named = |item: &Selection| {
        let Selection::Field(field) = item else { return None };
        let Some(argument) = field.node.get_argument("markets") else {
            return (field.node.name.node == "tickers").then_some(all);
        };
        match &argument.node {
            Value::List(names) => Some(names.len()),
            Value::Variable(name) => {
                let value = variables::value(operation, variables, name);
                Some(value.and_then(|value| value.as_array().map(Vec::len)).unwrap_or(all))
            }
            _ => Some(all),
        }
    };
    let items = &operation.selection_set.node.items;
    items.iter().filter_map(|item| named(&item.node)).max()
}

#[cfg(test)]
mod tests {
    use super::super::cost;
    use super::*;
    use crate::graphql::limits::QueryLimits;
    use crate::live::MOST_GAPS;

    fn refused(query: &str, variables: serde_json::Value, fields: usize) -> bool {
        let document = async_graphql_parser::parse_query(query).unwrap();
        let (_, operation) = document.operations.iter().next().unwrap();
        let weight = Weight { fields, ..Weight::default() };
        check(&operation.node, variables.as_object(), weight, 50).is_err()
    }

    #[test]
    fn a_subscription_states_five_thousand_fields_of_all_its_markets_at_most() {
        let none = || serde_json::json!({});
        let two = "subscription{tickers(markets:[\"A\",\"B\"]){sequence}}";
        assert!(!refused(two, none(), MOST_STATED_FIELDS / 2));
        assert!(refused(two, none(), MOST_STATED_FIELDS / 2 + 1));
        let given = "subscription($m:[ID!]!=[\"A\"]){trades(markets:$m){sequence}}";
        let markets = |count: usize| serde_json::json!({ "m": vec!["A"; count] });
        assert!(!refused(given, markets(100), MOST_STATED_FIELDS / 100));
        assert!(refused(given, markets(100), MOST_STATED_FIELDS / 100 + 1));
        assert!(!refused(given, none(), MOST_STATED_FIELDS));
        let everything = "subscription{tickers{sequence}}";
        assert!(!refused(everything, none(), MOST_STATED_FIELDS / 50));
        assert!(refused(everything, none(), MOST_STATED_FIELDS / 50 + 1));
        assert!(!refused("{markets{id}}", none(), MOST_STATED_FIELDS + 1));
    }
    #[test]
    fn the_items_that_a_feed_lists_have_five_thousand_fields_at_most() {
        let refused = |kind: &str, gap_fields: usize| {
            let fields: String = (0..gap_fields).map(|alias| format!("f{alias}:market ")).collect();
            let query = format!("{kind}{{feedStatus{{name gaps{{{fields}}}}}}}");
            let document = async_graphql_parser::parse_query(&query).unwrap();
            let (_, operation) = document.operations.iter().next().unwrap();
            let limits = QueryLimits::default();
            let weight = cost::weigh(&document, &operation.node, None, &limits, 1).unwrap();
            check(&operation.node, None, weight, 1).is_err()
        };
        let most = MOST_STATED_FIELDS / MOST_GAPS;
        assert!(!refused("subscription", most));
        assert!(refused("subscription", most + 1));
        assert!(!refused("query", most + 1));
    }
}
