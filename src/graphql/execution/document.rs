//! A parsed document, and what decides whether two operations are the same work: the documents that
//! were parsed lately, the operation of a request, and the place of its `after`.

use std::hash::{Hash, RandomState};
use std::sync::Arc;

use async_graphql::Pos;
use async_graphql_parser::types::{
    DocumentOperations, ExecutableDocument, Field, OperationDefinition, OperationType, Selection,
};
use async_graphql_parser::{Positioned, parse_query};
use async_graphql_value::{ConstValue, Value};
use quick_cache::UnitWeighter;
use quick_cache::sync::{Cache, DefaultLifecycle};

use super::cost::{self, Tokens};
use super::syntax;
use crate::graphql::errors::{ErrorCode, Refused};
use crate::graphql::limits::QueryLimits;

/// Documents kept.
const MOST_DOCUMENTS: usize = 1_024;
/// Longer ones are parsed each time: frontends' documents are far shorter, and the cache so stays
/// below 16 MiB of text.
const MOST_CACHED_BYTES: usize = 16 * 1_024;

/// A parsed document within the limits.
#[derive(Debug)]
pub struct Document {
    pub tree: ExecutableDocument,
    /// See [`cost::check_document`].
    pub steps: usize,
}

/// Parsed documents by their text. The hash is keyed, as clients choose the texts.
pub struct Documents(Cache<Box<str>, Arc<Document>, UnitWeighter, RandomState>);

impl Default for Documents {
    fn default() -> Self {
        Self(cache(MOST_DOCUMENTS))
    }
}

/// Of so many entries; those asked for more than once stay longest. Each shard has its own lock.
pub(super) fn cache<K: Eq + Hash, V: Clone>(most: usize) -> Cache<K, V, UnitWeighter, RandomState> {
    let (hasher, lifecycle) = (RandomState::new(), DefaultLifecycle::default());
    Cache::with(most, most as u64, UnitWeighter, hasher, lifecycle)
}

impl Documents {
    /// Parses within the limits, or takes what was parsed before. `charge` gets the number of
    /// tokens that are about to be parsed.
    pub fn parse(
        &self,
        text: &str,
        limits: &QueryLimits,
        charge: impl FnOnce(usize),
    ) -> Result<Arc<Document>, Refused> {
        let cacheable = text.len() <= MOST_CACHED_BYTES;
        if cacheable && let Some(document) = self.0.get(text) {
            return Ok(document);
        }
        charge(cost::check_text(text, limits)?);
        let tree = parse_query(text).map_err(|fault| {
            let (message, at) = syntax::fault(&fault, text);
            Refused::new(ErrorCode::BadRequest, &message, at)
        })?;
        let steps = cost::check_document(&tree, limits)?;
        check_directives(&tree)?;
        let document = Arc::new(Document { tree, steps });
        if cacheable {
            self.0.insert(text.into(), document.clone());
        }
        Ok(document)
    }
}

/// Those that the library never looks at: a variable's, and a fragment's that [`with_plain_root`]
/// leaves out. The schema has no directive for either place.
fn check_directives(document: &ExecutableDocument) -> Result<(), Refused> {
    let of_variables = document.operations.iter().flat_map(|(_, operation)| {
        let variables = operation.node.variable_definitions.iter();
        variables.flat_map(|one| &one.node.directives)
    });
    let of_fragments = document.fragments.values().flat_map(|one| &one.node.directives);
    match of_variables.chain(of_fragments).next() {
        Some(one) => {
            let name = &one.node.name.node;
            let message = format!("Unknown directive \"{name}\" on a variable or a fragment");
            Err(Refused::new(ErrorCode::ValidationFailed, &message, Some(one.pos)))
        }
        None => Ok(()),
    }
}

/// The operation that a request means.
pub fn operation<'a>(
    document: &'a ExecutableDocument,
    name: Option<&str>,
) -> Result<&'a Positioned<OperationDefinition>, Refused> {
    let found = match (&document.operations, name) {
        (DocumentOperations::Single(operation), None) => Some(operation),
        (DocumentOperations::Multiple(all), None) if all.len() == 1 => all.values().next(),
        (DocumentOperations::Multiple(all), Some(name)) => all.get(name),
        _ => None,
    };
    found.ok_or_else(|| {
        let message = match name {
            Some(_) => "the document has no operation of this name",
            None => "the document has several operations: name one in operationName",
        };
        Refused::new(ErrorCode::BadRequest, message, None)
    })
}

/// The one root field of a subscription.
pub fn root_field<'a>(
    document: &'a ExecutableDocument,
    operation: &'a Positioned<OperationDefinition>,
) -> Result<&'a Positioned<Field>, Refused> {
    debug_assert_eq!(operation.node.ty, OperationType::Subscription);
    let mut fields = Vec::new();
    collect(document, &operation.node.selection_set.node.items, &mut fields)?;
    match fields[..] {
        [field] => Ok(field),
        _ => Err(Refused::new(
            ErrorCode::ValidationFailed,
            "a subscription selects exactly one root field",
            Some(operation.pos),
        )),
    }
}

/// Root fields, through fragments. The guard has seen to it that this ends soon.
fn collect<'a>(
    document: &'a ExecutableDocument,
    items: &'a [Positioned<Selection>],
    into: &mut Vec<&'a Positioned<Field>>,
) -> Result<(), Refused> {
    for item in items {
        let inner = match &item.node {
            Selection::Field(field) => {
                into.push(field);
                continue;
            }
            Selection::InlineFragment(inline) => &inline.node.selection_set,
            Selection::FragmentSpread(spread) => {
                match document.fragments.get(&spread.node.fragment_name.node) {
                    Some(fragment) => &fragment.node.selection_set,
                    None => continue,
                }
            }
        };
        if !item.node.directives().is_empty() {
            let message = "a fragment at the root of a subscription takes no directives";
            return Err(Refused::new(ErrorCode::ValidationFailed, message, Some(item.pos)));
        }
        collect(document, &inner.node.items, into)?;
    }
    Ok(())
}

/// The document with its root field outside of fragments: the library runs no subscription whose
/// root field is in one. `None` where it already does.
pub fn with_plain_root(
    document: &ExecutableDocument,
    operation: &Positioned<OperationDefinition>,
    field: &Positioned<Field>,
) -> Option<ExecutableDocument> {
    let items = &operation.node.selection_set.node.items;
    if let [Positioned { node: Selection::Field(_), .. }] = items[..] {
        return None;
    }
    let mut plain = document.clone();
    let operations: Vec<&mut Positioned<OperationDefinition>> = match &mut plain.operations {
        DocumentOperations::Single(one) => vec![one],
        DocumentOperations::Multiple(all) => all.values_mut().collect(),
    };
    for one in operations.into_iter().filter(|one| one.pos == operation.pos) {
        let selection = Selection::Field(field.clone());
        one.node.selection_set.node.items = vec![Positioned::new(selection, field.pos)];
    }
    // A fragment on the root type was spread there and nowhere else; unused ones are refused.
    plain.fragments.retain(|_, one| one.node.type_condition.node.on.node != "Subscription");
    Some(plain)
}

/// Where a root field's `after` comes from.
#[derive(Debug, PartialEq)]
pub enum After<'a> {
    /// Not given, null, or something that validation will refuse.
    Absent,
    Literal {
        cursor: &'a str,
        at: Pos,
    },
    /// Bound to a variable: its name, its default, whether null is allowed in it.
    Variable {
        name: &'a str,
        default: Option<&'a str>,
        nullable: bool,
    },
}

pub fn after<'a>(operation: &'a OperationDefinition, field: &'a Field) -> After<'a> {
    let Some(argument) = field.get_argument("after") else { return After::Absent };
    match &argument.node {
        Value::String(cursor) => After::Literal { cursor, at: argument.pos },
        Value::Variable(name) => {
            let defined =
                operation.variable_definitions.iter().find(|one| one.node.name.node == *name);
            let Some(defined) = defined else { return After::Absent };
            let default = match defined.node.default_value.as_ref().map(|one| &one.node) {
                Some(ConstValue::String(cursor)) => Some(cursor.as_str()),
                _ => None,
            };
            After::Variable { name, default, nullable: defined.node.var_type.node.nullable }
        }
        _ => After::Absent,
    }
}

/// The document's tokens with their positions, counted as the parser counts: it takes `\r` for the
/// start of a line but not for one.
pub(super) fn located(text: &str) -> impl Iterator<Item = (Pos, &str)> {
    let (mut line, mut column, mut seen) = (1, 1, 0);
    Tokens::new(text).map(move |token| {
        for letter in text[seen..token.start].chars() {
            match letter {
                '\r' => column = 1,
                '\n' => (line, column) = (line + 1, 1),
                _ => column += 1,
            }
        }
        seen = token.start;
        (Pos { line, column }, &text[token.start..token.end])
    })
}

/// The document's tokens, one space between them, so that documents are equal that differ in layout
/// only. The string literal at `cut` is replaced by `null`. If its position can't be found it
/// stays: then the stream is not shared, which is slower, not wrong.
pub fn normalised(text: &str, cut: Option<Pos>) -> String {
    let mut whole = String::with_capacity(text.len());
    let mut cuts = 0;
    let mut without = String::with_capacity(text.len());
    for (at, own) in located(text) {
        let is_cut = Some(at) == cut && own.starts_with('"');
        cuts += usize::from(is_cut);
        for (into, part) in [(&mut whole, own), (&mut without, if is_cut { "null" } else { own })] {
            if !into.is_empty() {
                into.push(' ');
            }
            into.push_str(part);
        }
    }
    if cuts == 1 { without } else { whole }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(text: &str) -> String {
        let document = parse_query(text).unwrap();
        let operation = operation(&document, None).unwrap();
        let field = root_field(&document, operation).unwrap();
        match after(&operation.node, &field.node) {
            After::Literal { at, .. } => normalised(text, Some(at)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_literal_is_cut_out_at_any_place() {
        assert_eq!(
            cut("subscription{b(after:\"x\",market:\"after\"){a}}"),
            "subscription { b ( after : null market : \"after\" ) { a } }"
        );
        assert_eq!(
            cut("# é\r\nsubscription {\r\n\tb(m: \"é\" after :\n\"\"\"x \" y\"\"\") { a } }"),
            "subscription { b ( m : \"é\" after : null ) { a } }"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(
            text in "([{}()\\[\\]:$@!.\"#\\\\ \\r\\n,]|on|fragment|subscription|[a-z]|[0-9]|é|\"\"\"|\\PC){0,60}",
        ) {
            let limits = QueryLimits::default();
            if let Ok(document) = Documents::default().parse(&text, &limits, drop) {
                let again = normalised(&text, None);
                prop_assert_eq!(normalised(&again, None), again.clone());
                let reparsed = Documents::default().parse(&again, &limits, drop).unwrap();
                prop_assert_eq!(reparsed.tree.fragments.len(), document.tree.fragments.len());
            }
        }
    }

    #[test]
    fn the_document_table_stays_bounded() {
        let documents = Documents::default();
        let limits = QueryLimits::default();
        for number in 0..5_000 {
            documents.parse(&format!("{{a{number}}}"), &limits, drop).unwrap();
            documents.parse("{always}", &limits, drop).unwrap();
        }
        assert!(documents.0.len() <= MOST_DOCUMENTS);
        assert!(documents.0.get("{always}").is_some());
    }

    #[test]
    fn a_syntax_error_of_a_large_document_does_not_repeat_it() {
        let documents = Documents::default();
        let large = format!("{{a(b:\"{}\") ]", "x".repeat(30_000));
        let errors =
            documents.parse(&large, &QueryLimits::default(), drop).unwrap_err().into_bytes();
        assert!(errors.len() < 300, "{}", errors.len());
        let errors = String::from_utf8_lossy(&errors);
        assert!(errors.contains("\"code\":\"BAD_REQUEST\"") && errors.contains("column 30010"));
    }
}
