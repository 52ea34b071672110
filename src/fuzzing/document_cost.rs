//! A GraphQL document as a client sends it: it is refused, or it is small when its fragments are
//! expanded, and it costs at least what it selects.

use std::collections::HashMap;
use std::sync::LazyLock;

use async_graphql_parser::Positioned;
use async_graphql_parser::types::{
    ExecutableDocument, OperationDefinition, OperationType, Selection, SelectionSet,
};
use async_graphql_value::Name;
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Map, Value};

use crate::graphql::QueryLimits;
use crate::graphql::execution::cost::weigh;
use crate::graphql::execution::document::{Documents, root_field};
use crate::graphql::execution::encoder::prepared;
use crate::graphql::execution::executor::{HubSchema, schema};
use crate::graphql::execution::weight::Weight;

/// Of a hub that the document is for.
const MARKETS: usize = 10;

static SCHEMA: LazyLock<HubSchema> = LazyLock::new(|| schema().finish());

/// Takes a document and, after a zero byte, its variables. Returns whether it is within the limits.
pub fn document_cost(data: &[u8]) -> bool {
    let Ok(data) = str::from_utf8(data) else { return false };
    let (text, variables) = data.split_once('\0').unwrap_or((data, ""));
    let variables: Option<Map<String, Value>> = serde_json::from_str(variables).ok();
    let limits = QueryLimits::default();
    let Ok(document) = Documents::default().parse(text, &limits, drop) else { return false };
    let document = &document.tree;
    // Whatever reads a document walks through each fragment as often as it is spread.
    let mut walk = Walk { document, known: HashMap::new() };
    let operations: Vec<_> = document.operations.iter().collect();
    let steps = operations.iter().map(|(_, one)| walk.steps(&one.node.selection_set.node));
    let steps = steps.fold(0usize, usize::saturating_add);
    assert!(steps <= limits.query_complexity, "{steps} steps");
    let mut within = true;
    for (name, operation) in &operations {
        let weight = weigh(document, &operation.node, variables.as_ref(), &limits, MARKETS);
        let Ok(weight) = weight else {
            within = false;
            continue;
        };
        let own = own_fields(&operation.node.selection_set.node);
        assert!(weight.fields >= own, "{weight:?} for {own} fields");
        let grown = with_alias(&operation.node);
        if let Some(more) = grown
            && let Ok(more) = weigh(document, &more, variables.as_ref(), &limits, MARKETS)
        {
            assert!(is_heavier(more, weight), "{more:?} with one field more than {weight:?}");
        }
        let name = name.map(Name::to_string);
        run(text, name, variables.clone().unwrap_or_default(), document, operation);
    }
    within
}

fn is_heavier(more: Weight, than: Weight) -> bool {
    more.fields > than.fields
        && more.level_fields >= than.level_fields
        && more.item_fields >= than.item_fields
        && more.introspection_fields >= than.introspection_fields
}

/// Validates it with the hub's schema. Its resolvers find no hub.
fn run(
    text: &str,
    name: Option<String>,
    variables: Map<String, Value>,
    document: &ExecutableDocument,
    operation: &Positioned<OperationDefinition>,
) {
    let request = prepared(text.to_owned(), name, variables, document.clone());
    if operation.node.ty == OperationType::Subscription {
        let _ = root_field(document, operation);
        let _ = SCHEMA.execute_stream(request).next().now_or_never();
    } else {
        let _ = SCHEMA.execute(request).now_or_never();
    }
}

/// The operation with its first field once more, under another name.
fn with_alias(operation: &OperationDefinition) -> Option<OperationDefinition> {
    let mut grown = operation.clone();
    let items = &mut grown.selection_set.node.items;
    let mut again = items.iter().find(|one| matches!(one.node, Selection::Field(_))).cloned()?;
    if let Selection::Field(field) = &mut again.node {
        field.node.alias = Some(Positioned::new(Name::new("once_more"), field.pos));
    }
    items.push(again);
    Some(grown)
}

/// Those that are written in it, without fragments that are elsewhere.
fn own_fields(set: &SelectionSet) -> usize {
    let own = |selection: &Positioned<Selection>| match &selection.node {
        Selection::Field(field) => 1 + own_fields(&field.node.selection_set.node),
        Selection::InlineFragment(inline) => own_fields(&inline.node.selection_set.node),
        Selection::FragmentSpread(_) => 0,
    };
    set.items.iter().map(own).sum()
}

/// Counts the steps through a document without making them.
struct Walk<'a> {
    document: &'a ExecutableDocument,
    known: HashMap<&'a str, usize>,
}

impl<'a> Walk<'a> {
    fn steps(&mut self, set: &'a SelectionSet) -> usize {
        set.items.iter().fold(0, |sum, selection| {
            let below = match &selection.node {
                Selection::Field(field) => self.steps(&field.node.selection_set.node),
                Selection::InlineFragment(inline) => self.steps(&inline.node.selection_set.node),
                Selection::FragmentSpread(spread) => self.fragment(&spread.node.fragment_name.node),
            };
            sum.saturating_add(1).saturating_add(below)
        })
    }

    fn fragment(&mut self, name: &'a str) -> usize {
        if let Some(known) = self.known.get(name) {
            return *known;
        }
        let document = self.document;
        let Some(fragment) = document.fragments.get(name) else { return 0 };
        let steps = self.steps(&fragment.node.selection_set.node);
        self.known.insert(name, steps);
        steps
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::seeds;

    #[test]
    fn each_seed_of_a_document_is_within_the_limits() {
        for seed in seeds("document_cost") {
            assert!(document_cost(&seed), "{}", String::from_utf8_lossy(&seed));
        }
    }

    /// What a selection set holds, up to three levels deep.
    fn selection() -> impl Strategy<Value = String> {
        let leaf = prop::sample::select(vec![
            "__typename",
            "id",
            "price",
            "sequence",
            "...A",
            "...B",
            "...C",
            "a:id",
        ]);
        let heads = prop::sample::select(vec![
            "orderBook(market:\"A-B\",depth:100)",
            "orderBook(market:\"A-B\",depth:$d)",
            "candles(market:\"A-B\",interval:M1,last:9)",
            "bids",
            "asks",
            "x:bids",
            "markets",
            "__schema",
            "types",
            "fields",
            "__type(name:\"Query\")",
            "...",
            "... on Query",
            "... on BookSnapshot",
        ]);
        leaf.prop_map(str::to_owned).prop_recursive(3, 24, 4, move |inner| {
            (heads.clone(), prop::collection::vec(inner, 1..4))
                .prop_map(|(head, inner)| format!("{head}{{{}}}", inner.join(" ")))
        })
    }

    fn set() -> impl Strategy<Value = String> {
        prop::collection::vec(selection(), 1..5).prop_map(|all| all.join(" "))
    }

    proptest! {
        #[test]
        fn a_document_with_one_field_more_costs_more(
            kind in prop::sample::select(vec!["query", "mutation", "subscription"]),
            (root, one, two) in (set(), set(), set()),
            depth in any::<u16>(),
        ) {
            document_cost(format!(
                "{kind}($d:Int=7){{{root}}} \
                 fragment A on Query{{{one}}} fragment B on Book{{{two}}}\
                 \0{{\"d\":{depth}}}"
            ).as_bytes());
        }

        #[test]
        fn any_bytes_are_a_document_or_are_refused(
            data in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            document_cost(&data);
        }
    }
}
