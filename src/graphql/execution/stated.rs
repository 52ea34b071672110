//! What a subscription states when a client joins it: one frame of each market, or of each feed.

use async_graphql_parser::Positioned;
use async_graphql_parser::types::{Field, OperationDefinition};
use async_graphql_value::Value;
use serde_json::Map;

use super::variables;
use super::weight::Weight;
use crate::graphql::errors::Refused;
use crate::live::MOST_STATED_FIELDS;

/// The lists of a feed's items are in it.
const FEEDS: &str = "feedStatus";
/// Without `markets` it follows all of them.
const ALL_MARKETS: &str = "tickers";

/// Limits the fields of all markets together, and those of all items that a feed lists. A hundred
/// markets with every field once have half of the limit. `field` is the root of a subscription;
/// `all` is how many markets one follows that names none.
pub fn check(
    field: &Positioned<Field>,
    operation: &Positioned<OperationDefinition>,
    variables: &Map<String, serde_json::Value>,
    weight: Weight,
    all: usize,
) -> Result<(), Refused> {
    let stated = match &*field.node.name.node {
        FEEDS => weight.item_fields,
        _ => weight.fields.saturating_mul(markets(field, operation, variables, all)),
    };
    match stated > MOST_STATED_FIELDS {
        true => Err(Refused::limit("stated_fields", MOST_STATED_FIELDS, stated)),
        false => Ok(()),
    }
}

/// How many markets it follows.
fn markets(
    field: &Positioned<Field>,
    operation: &Positioned<OperationDefinition>,
    variables: &Map<String, serde_json::Value>,
    all: usize,
) -> usize {
    let Some(argument) = field.node.get_argument("markets") else {
        return if field.node.name.node == ALL_MARKETS { all } else { 1 };
    };
    match &argument.node {
        Value::List(names) => names.len(),
        Value::Variable(name) => {
            let value = variables::value(&operation.node, Some(variables), name);
            value.and_then(|value| value.as_array().map(Vec::len)).unwrap_or(all)
        }
        _ => all,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{cost, document};
    use super::*;
    use crate::graphql::limits::QueryLimits;
    use crate::live::MOST_GAPS;

    /// With so many fields of each market.
    fn refused(query: &str, variables: serde_json::Value, fields: Option<usize>) -> bool {
        let tree = async_graphql_parser::parse_query(query).unwrap();
        let (_, operation) = tree.operations.iter().next().unwrap();
        let variables = variables.as_object().unwrap();
        let limits = QueryLimits::default();
        let weight = cost::weigh(&tree, &operation.node, Some(variables), &limits, 1).unwrap();
        let weight = Weight { fields: fields.unwrap_or(weight.fields), ..weight };
        let field = document::root_field(&tree, operation).unwrap();
        check(field, operation, variables, weight, 50).is_err()
    }

    #[test]
    fn a_subscription_states_five_thousand_fields_of_all_its_markets_at_most() {
        let none = || serde_json::json!({});
        let most = |markets: usize| Some(MOST_STATED_FIELDS / markets);
        let above = |markets: usize| Some(MOST_STATED_FIELDS / markets + 1);
        for two in [
            "subscription{tickers(markets:[\"A\",\"B\"]){sequence}}",
            "subscription{...R} fragment R on Subscription{tickers(markets:[\"A\",\"B\"]){market}}",
            "subscription{...on Subscription{tickers(markets:[\"A\",\"B\"]){sequence}}}",
        ] {
            assert!(!refused(two, none(), most(2)), "{two}");
            assert!(refused(two, none(), above(2)), "{two}");
        }
        let given = "subscription($m:[ID!]!=[\"A\"]){trades(markets:$m){sequence}}";
        let markets = |count: usize| serde_json::json!({ "m": vec!["A"; count] });
        assert!(!refused(given, markets(100), most(100)));
        assert!(refused(given, markets(100), above(100)));
        assert!(!refused(given, none(), most(1)));
        let everything = "subscription{tickers{sequence}}";
        assert!(!refused(everything, none(), most(50)));
        assert!(refused(everything, none(), above(50)));
    }

    #[test]
    fn the_items_that_a_feed_lists_have_five_thousand_fields_at_most() {
        let refused = |gap_fields: usize| {
            let fields: String = (0..gap_fields).map(|alias| format!("f{alias}:market ")).collect();
            let query = format!("subscription{{feedStatus{{name gaps{{{fields}}}}}}}");
            refused(&query, serde_json::json!({}), None)
        };
        let most = MOST_STATED_FIELDS / MOST_GAPS;
        assert!(!refused(most));
        assert!(refused(most + 1));
    }
}
