//! What a question about the schema itself expands to: its size is known before it is answered, as
//! the schema is. A question of 200 bytes can ask for each type's fields' types' fields.

use std::collections::HashMap;
use std::sync::LazyLock;

use async_graphql_parser::types::{ExecutableDocument, Field, Selection, SelectionSet};
use async_graphql_value::Value;
use futures_util::future::FutureExt;
use serde_json::{Map, Value as Json};

use super::executor::schema;
use crate::graphql::errors::Refused;

/// Fields of the schema's description that one answer may have: nearly three times the 5,100 that
/// GraphiQL asks for, which is the largest honest question. Some 20 ms and 250 KB.
pub const INTROSPECTION_FIELDS: usize = 15_000;

/// All that the shape is made of. Wrappers such as `[ID!]!` are at most three deep.
const WHOLE: &str = "{__schema{
    queryType{name} mutationType{name} subscriptionType{name}
    directives{name args{type{...R}}}
    types{name interfaces{name} possibleTypes{name} enumValues(includeDeprecated:true){name}
        inputFields{type{...R}} fields(includeDeprecated:true){type{...R} args{type{...R}}}}}}
    fragment R on __Type{kind name ofType{kind name ofType{kind name ofType{kind name}}}}";

/// The hub's schema never changes, so it is looked at once.
static SHAPE: LazyLock<Shape> = LazyLock::new(Shape::of_the_schema);

/// How many fields of the schema's description an operation's result has.
///
/// # Errors
/// More than [`INTROSPECTION_FIELDS`]; it is not counted how many more.
pub fn weigh(
    document: &ExecutableDocument,
    root: &SelectionSet,
    variables: Option<&Map<String, Json>>,
) -> Result<usize, Refused> {
    let mut roots = Vec::new();
    collect(document, root, &mut roots);
    if roots.is_empty() {
        return Ok(0);
    }
    let shape = &*SHAPE;
    let mut scale = Scale { shape, document, known: HashMap::new() };
    let mut sum = 0usize;
    for field in roots {
        let of = match field.name.node.as_str() {
            "__schema" => Some(shape.schema),
            _ => shape.named(field, variables),
        };
        if let Some(of) = of {
            sum = sum.saturating_add(scale.set(of, &field.selection_set.node));
        }
    }
    match sum {
        sum if sum > INTROSPECTION_FIELDS => {
            Err(Refused::limit("introspection_fields", INTROSPECTION_FIELDS, sum))
        }
        sum => Ok(sum),
    }
}

/// The fields at the root that ask for the schema. Cycles of fragments were refused before.
fn collect<'a>(document: &'a ExecutableDocument, set: &'a SelectionSet, into: &mut Vec<&'a Field>) {
    for selection in &set.items {
        match &selection.node {
            Selection::Field(field) => {
                if matches!(field.node.name.node.as_str(), "__schema" | "__type") {
                    into.push(&field.node);
                }
            }
            Selection::InlineFragment(inline) => {
                collect(document, &inline.node.selection_set.node, into);
            }
            Selection::FragmentSpread(spread) => {
                if let Some(found) = document.fragments.get(&spread.node.fragment_name.node) {
                    collect(document, &found.node.selection_set.node, into);
                }
            }
        }
    }
}

/// Counts, each pair of a part of the schema and a selection once.
struct Scale<'a> {
    shape: &'a Shape,
    document: &'a ExecutableDocument,
    known: HashMap<(usize, *const SelectionSet), usize>,
}

impl<'a> Scale<'a> {
    fn set(&mut self, node: usize, set: &'a SelectionSet) -> usize {
        let key = (node, std::ptr::from_ref(set));
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let mut sum = 0usize;
        for selection in &set.items {
            // Each pair that was looked at is at least one field of the result.
            if sum.max(self.known.len()) > INTROSPECTION_FIELDS {
                return usize::MAX;
            }
            let document = self.document;
            sum = sum.saturating_add(match &selection.node {
                Selection::Field(field) => self.field(node, &field.node),
                Selection::InlineFragment(inline) => {
                    self.set(node, &inline.node.selection_set.node)
                }
                Selection::FragmentSpread(spread) => {
                    let found = document.fragments.get(&spread.node.fragment_name.node);
                    found.map_or(0, |found| self.set(node, &found.node.selection_set.node))
                }
            });
        }
        self.known.insert(key, sum);
        sum
    }

    fn field(&mut self, node: usize, field: &'a Field) -> usize {
        let shape = self.shape;
        let below = shape.nodes[node].get(field.name.node.as_str());
        let below = below.map_or(&[][..], Vec::as_slice);
        below
            .iter()
            .fold(1, |sum, one| sum.saturating_add(self.set(*one, &field.selection_set.node)))
    }
}

/// A part of the schema: what is below each of its fields that has fields of its own.
type Node = HashMap<&'static str, Vec<usize>>;

struct Shape {
    nodes: Vec<Node>,
    schema: usize,
    types: HashMap<String, usize>,
}

impl Shape {
    fn of_the_schema() -> Self {
        let described = schema().finish().execute(WHOLE).now_or_never();
        let described =
            described.and_then(|described| described.data.into_json().ok()).unwrap_or_default();
        Self::read(&described["__schema"])
    }

    fn read(described: &Json) -> Self {
        let mut shape = Self { nodes: Vec::new(), schema: 0, types: HashMap::new() };
        let schema = shape.node();
        shape.schema = schema;
        for one in each(&described["types"]) {
            let node = shape.node();
            shape.types.insert(text(&one["name"]), node);
        }
        for one in each(&described["types"]) {
            let own = shape.types[&text(&one["name"])];
            for name in ["interfaces", "possibleTypes"] {
                let named = each(&one[name]).filter_map(|one| shape.type_of(one)).collect();
                shape.nodes[own].insert(name, named);
            }
            let values = each(&one["enumValues"]).map(|_| shape.node()).collect();
            shape.nodes[own].insert("enumValues", values);
            let inputs = each(&one["inputFields"]).map(|one| shape.typed(one)).collect();
            shape.nodes[own].insert("inputFields", inputs);
            let fields = each(&one["fields"]).map(|one| shape.typed(one)).collect();
            shape.nodes[own].insert("fields", fields);
        }
        for name in ["queryType", "mutationType", "subscriptionType"] {
            let root = shape.type_of(&described[name]).into_iter().collect();
            shape.nodes[schema].insert(name, root);
        }
        let types = shape.types.values().copied().collect();
        shape.nodes[schema].insert("types", types);
        let directives = each(&described["directives"]).map(|one| shape.typed(one)).collect();
        shape.nodes[schema].insert("directives", directives);
        shape
    }

    fn node(&mut self) -> usize {
        self.nodes.push(Node::new());
        self.nodes.len() - 1
    }

    /// A field, an argument or a directive: a type, arguments, or both.
    fn typed(&mut self, described: &Json) -> usize {
        let own = self.node();
        let of = self.type_of(&described["type"]).into_iter().collect();
        self.nodes[own].insert("type", of);
        let args = each(&described["args"]).map(|one| self.typed(one)).collect();
        self.nodes[own].insert("args", args);
        own
    }

    /// A named type, or a wrapper of one.
    fn type_of(&mut self, described: &Json) -> Option<usize> {
        if let Some(named) = described["name"].as_str() {
            return self.types.get(named).copied();
        }
        let inner = self.type_of(described.get("ofType").filter(|inner| !inner.is_null())?)?;
        let own = self.node();
        self.nodes[own].insert("ofType", vec![inner]);
        Some(own)
    }

    /// The type that `__type(name:)` asks for.
    fn named(&self, field: &Field, variables: Option<&Map<String, Json>>) -> Option<usize> {
        let name = match &field.get_argument("name")?.node {
            Value::String(name) => name.as_str(),
            Value::Variable(name) => match variables.and_then(|all| all.get(name.as_str())) {
                Some(given) => given.as_str()?,
                // A default, which only validation knows: as large as the largest.
                None => "Query",
            },
            _ => return None,
        };
        self.types.get(name).copied()
    }
}

fn each(list: &Json) -> impl Iterator<Item = &Json> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Json) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use async_graphql_parser::parse_query;

    use super::*;

    /// Fields of an answer, as they were counted.
    fn fields(answer: &Json) -> usize {
        match answer {
            Json::Object(all) => all.values().map(|one| 1 + fields(one)).sum(),
            Json::Array(all) => all.iter().map(fields).sum(),
            _ => 0,
        }
    }

    fn weighed(query: &str) -> Result<usize, Refused> {
        let document = parse_query(query).unwrap();
        let operation = super::super::document::operation(&document, None).unwrap();
        weigh(&document, &operation.node.selection_set.node, None)
    }

    fn answered(query: &str) -> usize {
        let answer = schema().finish().execute(query).now_or_never().unwrap();
        assert!(answer.errors.is_empty(), "{:?}", answer.errors);
        // The root field itself is counted with the fields of the document.
        let answer = answer.data.into_json().unwrap();
        answer.as_object().unwrap().values().map(fields).sum()
    }

    #[test]
    fn a_question_about_the_schema_weighs_exactly_what_its_answer_has() {
        for query in [
            WHOLE,
            "{__schema{types{name possibleTypes{name interfaces{name}}}}}",
            "{__schema{types{...T}}} fragment T on __Type{name fields{name args{name}} enumValues{name}}",
            "{__type(name:\"Query\"){name fields{type{ofType{name fields{name}}}}}}",
            "{a:__type(name:\"Nothing\"){name} b:__type(name:\"Hub\"){fields{name}}}",
            "{__typename}",
        ] {
            assert_eq!(weighed(query).unwrap(), answered(query), "{query}");
        }
    }

    #[test]
    fn a_short_question_with_a_long_answer_is_refused_by_name() {
        let pairs = 8;
        let query = format!(
            "{{__schema{{types{{{}name{}}}}}}}",
            "possibleTypes{interfaces{".repeat(pairs),
            "}}".repeat(pairs),
        );
        assert!(query.len() < 250);
        let refused = weighed(&query).unwrap_err().into_bytes();
        let refused: Json = serde_json::from_slice(&refused).unwrap();
        let extensions = &refused[0]["extensions"];
        assert_eq!(extensions["name"], "introspection_fields");
        assert_eq!(extensions["limit"], INTROSPECTION_FIELDS);
    }

    #[test]
    fn what_graphiql_asks_for_is_half_of_the_limit_at_most() {
        let args = "args(includeDeprecated:true){...V}";
        let query = format!(
            "query{{__schema{{queryType{{name kind}} mutationType{{name kind}}
                subscriptionType{{name kind}} types{{...F}}
                directives{{name description isRepeatable locations {args}}}}}}}
            fragment F on __Type{{kind name description isOneOf
                fields(includeDeprecated:true){{name description {args} type{{...R}} isDeprecated
                    deprecationReason}}
                inputFields(includeDeprecated:true){{...V}} interfaces{{...R}}
                enumValues(includeDeprecated:true){{name description isDeprecated
                    deprecationReason}} possibleTypes{{...R}}}}
            fragment V on __InputValue{{name description type{{...R}} defaultValue isDeprecated
                deprecationReason}}
            fragment R on __Type{{kind name ofType{{kind name ofType{{kind name ofType{{kind name
                ofType{{kind name ofType{{kind name ofType{{kind name}}}}}}}}}}}}}}"
        );
        let weight = weighed(&query).unwrap();
        assert!(weight * 2 < INTROSPECTION_FIELDS, "{weight}");
    }

    #[test]
    fn a_document_made_to_be_hard_to_weigh_is_given_up_at_the_limit() {
        let deep = "fields{type{ofType{...F0}}}".repeat(150);
        let mut query = format!("{{__schema{{types{{{deep}}}}}}}");
        for level in 0..3 {
            let next = level + 1;
            query +=
                &format!("fragment F{level} on __Type{{fields{{type{{...F{next} ...F{next}}}}}}}");
        }
        query += "fragment F3 on __Type{name}";
        assert!(weighed(&query).is_err());
    }
}
