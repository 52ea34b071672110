//! Limits on a document, checked before anything that could cost more than reading it: on its text
//! before it is parsed, on its tree before it is validated. Each check is linear in the document.
//! (A fragment bomb of 300 bytes keeps the library's own validation busy for seconds.)

use std::collections::HashMap;

use async_graphql::Pos;
use async_graphql_parser::Positioned;
use async_graphql_parser::types::{
    ExecutableDocument, Field, OperationDefinition, OperationType, Selection, SelectionSet,
};
use async_graphql_value::{Name, Value};
use serde_json::Map;

use super::weight::Weight;
use super::{introspection, variables};
use crate::graphql::connections::paging::{DEFAULT_PER_PAGE, MOST_PER_PAGE};
use crate::graphql::errors::{ErrorCode, Refused};
use crate::graphql::limits::{DEFAULT_CANDLES, DEFAULT_DEPTH, MOST_CANDLES, QueryLimits};
use crate::live::{MOST_GAPS, MOST_REFUSALS};

/// Most brackets open at once, of any kind. The parser recurses by them; it has a limit for
/// selections (64) but none for lists and objects.
const MOST_NESTING: usize = 64;

/// Longest name, in bytes. An alias comes back with every level of a book: ten thousand times in
/// a deep one.
pub const MOST_NAME_BYTES: usize = 64;

/// How often one place of a result may be selected: the library resolves it each time.
const MOST_REPEATS: usize = 20;

/// Depth allowed from `__schema` and `__type` down: what GraphiQL asks has 15 levels.
const INTROSPECTION_DEPTH: usize = 20;

/// One lexical token by its bytes. Text that is no GraphQL is a token too: the parser refuses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub start: usize,
    pub end: usize,
}

/// The tokens of a document, in order; whitespace, commas and comments are none.
pub struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Tokens<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text: text.as_bytes(), at: 0 }
    }

    fn skip_ignored(&mut self) {
        while let Some(byte) = self.text.get(self.at) {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' | b',' => self.at += 1,
                // The byte order mark, which only makes sense first but is ignored anywhere.
                0xEF if self.text[self.at..].starts_with(b"\xEF\xBB\xBF") => self.at += 3,
                b'#' => {
                    let rest = &self.text[self.at..];
                    let line = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
                    self.at += line.unwrap_or(rest.len());
                }
                _ => break,
            }
        }
    }

    fn block_string_end(&self, from: usize) -> usize {
        let mut at = from;
        while at < self.text.len() {
            let rest = &self.text[at..];
            if rest.starts_with(b"\\\"\"\"") {
                at += 4;
            } else if rest.starts_with(b"\"\"\"") {
                return at + 3;
            } else {
                at += 1;
            }
        }
        at
    }

    fn string_end(&self, from: usize) -> usize {
        let mut at = from;
        while let Some(byte) = self.text.get(at) {
            match byte {
                b'"' => return at + 1,
                b'\\' => at += 2,
                b'\n' | b'\r' => return at,
                _ => at += 1,
            }
        }
        self.text.len()
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        self.skip_ignored();
        let start = self.at;
        let rest = &self.text[start..];
        let run = |part: fn(&u8) -> bool| rest.iter().position(|byte| !part(byte));
        let name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80;
        let number = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-');
        let end = match rest.first()? {
            b'"' if rest.starts_with(b"\"\"\"") => self.block_string_end(start + 3),
            b'"' => self.string_end(start + 1),
            b'.' if rest.starts_with(b"...") => start + 3,
            b'-' | b'0'..=b'9' => start + run(number).unwrap_or(rest.len()),
            byte if name(byte) => start + run(name).unwrap_or(rest.len()),
            _ => start + 1,
        };
        self.at = end;
        Some(Token { start, end })
    }
}

/// Bytes of text that cost the parser as much as a token: it reads strings and comments byte by
/// byte.
const BYTES_OF_A_TOKEN: usize = 5;

/// Before parsing: how long, how many tokens, how deeply nested. Returns the tokens that parsing it
/// is worth.
pub fn check_text(text: &str, limits: &QueryLimits) -> Result<usize, Refused> {
    if text.len() > limits.query_bytes {
        return Err(Refused::limit("query_bytes", limits.query_bytes, text.len()));
    }
    let (mut count, mut nesting, mut deepest) = (0, 0usize, 0);
    for token in Tokens::new(text) {
        count += 1;
        let bytes = token.end - token.start;
        match text.as_bytes()[token.start] {
            b'_' | b'a'..=b'z' | b'A'..=b'Z' if bytes > MOST_NAME_BYTES => {
                return Err(Refused::limit("name_bytes", MOST_NAME_BYTES, bytes));
            }
            b'{' | b'[' | b'(' => nesting += 1,
            b'}' | b']' | b')' => nesting = nesting.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(nesting);
    }
    if count > limits.query_tokens {
        return Err(Refused::limit("query_tokens", limits.query_tokens, count));
    }
    if deepest > MOST_NESTING {
        return Err(Refused::limit("query_depth", limits.query_depth, deepest));
    }
    Ok(count.max(text.len() / BYTES_OF_A_TOKEN))
}

/// What a selection set expands to. Saturating, as the sum of a fragment bomb exceeds any integer.
#[derive(Clone, Copy, Default)]
struct Cost {
    depth: usize,
    /// Below `__schema` and `__type`.
    introspection_depth: usize,
    fields: usize,
    /// Fields, fragment spreads and inline fragments, with their directives and the values of their
    /// arguments: the steps of a walk through it.
    selections: usize,
    aliases: usize,
    /// Below `bids` and `asks`, times the depth; below `candles`, times their number.
    level_fields: usize,
    /// Below other lists, times their items; of those of a subscription, only what a feed lists.
    item_fields: usize,
}

impl Cost {
    fn add(&mut self, other: Self) {
        self.depth = self.depth.max(other.depth);
        self.introspection_depth = self.introspection_depth.max(other.introspection_depth);
        self.fields = self.fields.saturating_add(other.fields);
        self.selections = self.selections.saturating_add(other.selections);
        self.aliases = self.aliases.saturating_add(other.aliases);
        self.level_fields = self.level_fields.saturating_add(other.level_fields);
        self.item_fields = self.item_fields.saturating_add(other.item_fields);
    }

    fn check(&self, limits: &QueryLimits) -> Result<(), Refused> {
        for (name, limit, current) in [
            ("query_complexity", limits.query_complexity, self.selections),
            ("query_depth", limits.query_depth, self.depth),
            ("query_depth", INTROSPECTION_DEPTH, self.introspection_depth),
            ("query_aliases", limits.query_aliases, self.aliases),
        ] {
            if current > limit {
                return Err(Refused::limit(name, limit, current));
            }
        }
        Ok(())
    }
}

/// A selection with its directives and the values of its arguments. Validation looks at each of
/// them as often as the selection is spread.
fn steps(selection: &Selection) -> usize {
    let of_directives = selection.directives().iter().map(|one| 1 + values(&one.node.arguments));
    let of_arguments = match selection {
        Selection::Field(field) => values(&field.node.arguments),
        _ => 0,
    };
    1 + of_arguments + of_directives.sum::<usize>()
}

fn values(arguments: &[(Positioned<Name>, Positioned<Value>)]) -> usize {
    arguments.iter().map(|(_, value)| scalars(&value.node)).sum()
}

/// At least one. The parser has bounded how deep it recurses.
fn scalars(value: &Value) -> usize {
    let inner: usize = match value {
        Value::List(all) => all.iter().map(scalars).sum(),
        Value::Object(all) => all.values().map(scalars).sum(),
        _ => 0,
    };
    inner.max(1)
}

/// Each fragment is weighed once, however often it is spread.
struct Scale<'a, 'd> {
    document: &'a ExecutableDocument,
    /// `None` while a fragment is being weighed: meeting it again is a cycle.
    fragments: HashMap<&'a str, Option<Cost>>,
    /// How many levels, candles or items of another list a field asks for; 0 if it asks for none.
    asked: &'d dyn Fn(&Field) -> usize,
}

impl<'a> Scale<'a, '_> {
    /// `at` is where it is spread.
    fn fragment(&mut self, name: &'a str, at: Option<Pos>) -> Result<Cost, Refused> {
        match self.fragments.get(name) {
            Some(Some(cost)) => return Ok(*cost),
            Some(None) => {
                return Err(Refused::new(
                    ErrorCode::ValidationFailed,
                    "a fragment spreads itself",
                    None,
                ));
            }
            None => {}
        }
        let document = self.document;
        // Validation would refuse it too, but only after others have walked through the document:
        // without a field in them, fragments could be spread in each other without any limit.
        let Some(fragment) = document.fragments.get(name) else {
            let message = format!("Unknown fragment: \"{name}\"");
            return Err(Refused::new(ErrorCode::ValidationFailed, &message, at));
        };
        self.fragments.insert(name, None);
        let cost = self.set(&fragment.node.selection_set.node)?;
        self.fragments.insert(name, Some(cost));
        Ok(cost)
    }

    fn set(&mut self, set: &'a SelectionSet) -> Result<Cost, Refused> {
        let mut sum = Cost::default();
        for selection in &set.items {
            let mut cost = match &selection.node {
                Selection::Field(field) => {
                    let mut cost = self.set(&field.node.selection_set.node)?;
                    match field.node.name.node.as_str() {
                        "bids" | "asks" => cost.level_fields = cost.fields,
                        "orderBook" => {
                            let depth = (self.asked)(&field.node);
                            cost.level_fields = cost.level_fields.saturating_mul(depth);
                        }
                        "candles" if field.node.get_argument("interval").is_some() => {
                            let last = (self.asked)(&field.node);
                            cost.level_fields = cost.fields.saturating_mul(last);
                        }
                        _ => {
                            let items = cost.fields.saturating_mul((self.asked)(&field.node));
                            cost.item_fields = cost.item_fields.max(items);
                        }
                    }
                    cost.fields = cost.fields.saturating_add(1);
                    cost.aliases =
                        cost.aliases.saturating_add(usize::from(field.node.alias.is_some()));
                    cost.depth = cost.depth.saturating_add(1);
                    if matches!(field.node.name.node.as_str(), "__schema" | "__type") {
                        cost.introspection_depth = cost.depth;
                        cost.depth = 1;
                    }
                    cost
                }
                Selection::FragmentSpread(spread) => {
                    self.fragment(&spread.node.fragment_name.node, Some(spread.pos))?
                }
                Selection::InlineFragment(inline) => self.set(&inline.node.selection_set.node)?,
            };
            cost.selections = cost.selections.saturating_add(steps(&selection.node));
            sum.add(cost);
        }
        Ok(sum)
    }
}

/// Before validation: what the document expands to, all operations together, and each fragment by
/// itself, as validation looks at unused ones too. Returns the steps of a walk through all of it.
pub fn check_document(
    document: &ExecutableDocument,
    limits: &QueryLimits,
) -> Result<usize, Refused> {
    let mut scale = Scale { document, fragments: HashMap::new(), asked: &|_| 0 };
    let mut sum = Cost::default();
    for (_, operation) in document.operations.iter() {
        sum.add(scale.set(&operation.node.selection_set.node)?);
    }
    sum.check(limits)?;
    for (_, operation) in document.operations.iter() {
        check_repeats(document, vec![&operation.node.selection_set.node])?;
    }
    let mut steps = sum.selections;
    for (name, fragment) in &document.fragments {
        let mut cost = scale.fragment(name, None)?;
        steps += own_steps(&fragment.node.selection_set.node);
        if fragment.node.type_condition.node.on.node.starts_with("__") {
            cost.introspection_depth = std::mem::take(&mut cost.depth);
        }
        cost.check(limits)?;
    }
    Ok(steps)
}

fn check_repeats<'a>(
    document: &'a ExecutableDocument,
    mut sets: Vec<&'a SelectionSet>,
) -> Result<(), Refused> {
    let mut places: HashMap<&str, (usize, Vec<&SelectionSet>)> = HashMap::new();
    while let Some(set) = sets.pop() {
        for selection in &set.items {
            match &selection.node {
                Selection::Field(field) => {
                    let key = field.node.response_key().node.as_str();
                    let (repeats, below) = places.entry(key).or_default();
                    *repeats += 1;
                    below.push(&field.node.selection_set.node);
                }
                Selection::FragmentSpread(spread) => {
                    let fragment = document.fragments.get(&spread.node.fragment_name.node);
                    sets.extend(fragment.map(|fragment| &fragment.node.selection_set.node));
                }
                Selection::InlineFragment(inline) => {
                    sets.push(&inline.node.selection_set.node);
                }
            }
        }
    }
    for (repeats, below) in places.into_values() {
        if repeats > MOST_REPEATS {
            return Err(Refused::limit("query_repeats", MOST_REPEATS, repeats));
        }
        check_repeats(document, below)?;
    }
    Ok(())
}

/// Without what is spread.
fn own_steps(set: &SelectionSet) -> usize {
    let inner = |selection: &Selection| match selection {
        Selection::Field(field) => own_steps(&field.node.selection_set.node),
        Selection::InlineFragment(inline) => own_steps(&inline.node.selection_set.node),
        Selection::FragmentSpread(_) => 0,
    };
    set.items.iter().map(|one| steps(&one.node) + inner(&one.node)).sum()
}

/// Before an operation runs, when its variables are known: how many fields of list items and of the
/// schema its result may have, on a hub with so many markets.
pub fn weigh(
    document: &ExecutableDocument,
    operation: &OperationDefinition,
    variables: Option<&Map<String, serde_json::Value>>,
    limits: &QueryLimits,
    markets: usize,
) -> Result<Weight, Refused> {
    // What one frame of a subscription holds is not in its document.
    let is_query = operation.ty == OperationType::Query;
    let asked = |field: &Field| {
        let (argument, default, most) = match field.name.node.as_str() {
            "candles" => ("last", DEFAULT_CANDLES, MOST_CANDLES),
            "orderBook" => ("depth", DEFAULT_DEPTH, limits.book_depth),
            "trades" | "events" | "orders" if is_query => {
                ("first", DEFAULT_PER_PAGE, MOST_PER_PAGE)
            }
            "markets" if is_query => return markets,
            "gaps" => return MOST_GAPS,
            "refusals" => return MOST_REFUSALS,
            _ => return 0,
        };
        let whole = |value: &Value| match value {
            Value::Number(number) => number.as_u64(),
            Value::Variable(name) => variables::value(operation, variables, name)?.as_u64(),
            _ => None,
        };
        // What is no number, too small or beyond the hub's limit is refused where it is resolved.
        let asked = field.get_argument(argument).and_then(|value| whole(&value.node));
        let asked = asked.map_or(default, |asked| usize::try_from(asked).unwrap_or(0));
        if asked > most { 0 } else { asked }
    };
    let mut scale = Scale { document, fragments: HashMap::new(), asked: &asked };
    let root = &operation.selection_set.node;
    let Cost { fields, level_fields, item_fields, introspection_depth, .. } = scale.set(root)?;
    let (list_fields, limit) = (level_fields.saturating_add(item_fields), limits.query_list_fields);
    if list_fields > limit {
        return Err(Refused::limit("query_list_fields", limit, list_fields));
    }
    let introspection_fields = match introspection_depth {
        0 => 0,
        _ => introspection::weigh(document, root, variables)?,
    };
    Ok(Weight { fields, steps: 0, level_fields, item_fields, introspection_fields })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(query: &str) -> Option<serde_json::Value> {
        let limits = QueryLimits::default();
        let checked = check_text(query, &limits).and_then(|_| {
            check_document(&async_graphql_parser::parse_query(query).unwrap(), &limits)
        });
        let errors = checked.err()?.into_bytes();
        Some(serde_json::from_slice::<serde_json::Value>(&errors).unwrap()[0]["extensions"].clone())
    }

    fn assert_limit(query: &str, name: &str, limit: usize, current: usize) {
        let extensions = refusal(query).unwrap();
        assert_eq!(extensions["code"], "LIMIT_EXCEEDED");
        assert_eq!(extensions["name"], name);
        assert_eq!(
            (&extensions["limit"], &extensions["current"]),
            (&limit.into(), &current.into())
        );
    }

    #[test]
    fn a_fragment_bomb_is_weighed_without_being_expanded() {
        // 3^60 fields if it were.
        let mut bomb = String::from("{...F0}");
        for level in 0..60 {
            let next = level + 1;
            bomb += &format!("fragment F{level} on Query{{...F{next} ...F{next} ...F{next}}}");
        }
        bomb += "fragment F60 on Query{__typename}";
        assert_limit(&bomb, "query_complexity", 2_000, i32::MAX as usize);
        let unused = bomb.replacen("{...F0}", "{__typename}", 1);
        assert_eq!(refusal(&unused).unwrap()["code"], "LIMIT_EXCEEDED");
    }

    #[test]
    fn a_fragment_bomb_without_fields_is_refused_before_it_is_walked_through() {
        // 3^60 spreads, the last of which is of nothing.
        let mut bomb = String::from("{__schema{description} ...F0}");
        for level in 0..60 {
            let next = level + 1;
            bomb += &format!("fragment F{level} on Query{{...F{next} ...F{next} ...F{next}}}");
        }
        assert_eq!(refusal(&bomb).unwrap()["code"], "VALIDATION_FAILED");
        let limits = QueryLimits::default();
        let document = async_graphql_parser::parse_query("{...A}").unwrap();
        let refused = check_document(&document, &limits).unwrap_err().into_bytes();
        let refused = serde_json::from_slice::<serde_json::Value>(&refused).unwrap();
        assert_eq!(refused[0]["message"], "Unknown fragment: \"A\"");
        assert_eq!(refused[0]["locations"], serde_json::json!([{"line": 1, "column": 2}]));
    }

    #[test]
    fn spreads_count_like_fields_as_each_is_a_step_of_every_later_walk() {
        // A thousand fields, each in forty inline fragments.
        let spreads = |name: &str| format!("...{name} ").repeat(10);
        let nested = format!("{}{{__typename}}{}", "{...on Query".repeat(40), "}".repeat(40));
        let mut query = format!("{{{}}} fragment C on Query{nested}", spreads("A"));
        for (name, next) in [("A", "B"), ("B", "C")] {
            query += &format!("fragment {name} on Query{{{}}}", spreads(next));
        }
        assert_limit(&query, "query_complexity", 2_000, 10 + 100 + 1_000 + 1_000 * 41);
    }

    #[test]
    fn values_of_arguments_and_directives_count_as_often_as_they_are_spread() {
        let values = "1 ".repeat(300);
        let of = |argument: &str| {
            format!("{{{}}} fragment A on Query{{{argument}}}", "...A ".repeat(10))
        };
        // Ten spreads of a field with 300 values.
        let expected = 10 + 10 * 301;
        for argument in [
            format!("candles(from: [{values}])"),
            format!("a @b(c: [{}])", "1 ".repeat(299)),
            format!("a(b: [{}])", format!("{{c: [{}]}} ", "1 ".repeat(100)).repeat(3)),
        ] {
            assert_limit(&of(&argument), "query_complexity", 2_000, expected);
        }
        assert_eq!(refusal(&of("a(b: [1 1 1])")), None);
    }

    #[test]
    fn a_long_string_or_comment_is_charged_like_the_tokens_that_would_cost_as_much() {
        let limits = QueryLimits::default();
        let charged = |text: &str| check_text(text, &limits).unwrap_or_default();
        assert_eq!(charged("{a}"), 3);
        for text in [
            format!("{{a(b: \"{}\")}}", "x".repeat(30_000)),
            format!("{{a}}#{}", "x".repeat(30_000)),
        ] {
            assert!(charged(&text) >= 6_000, "{}", charged(&text));
        }
    }

    #[test]
    fn a_place_of_the_result_is_selected_twenty_times_at_most() {
        let times = |count: usize, text: &str| text.repeat(count);
        assert_eq!(refusal(&format!("{{{}}}", times(20, "a "))), None);
        assert_limit(&format!("{{{}}}", times(21, "a ")), "query_repeats", 20, 21);
        // Aliases are places of their own.
        assert_eq!(refusal(&format!("{{{} b:a c:a}}", times(20, "a "))), None);
        // In fragments, and in several selections of the place around it.
        let spread = format!("{{{}}} fragment F on Query{{... on Query{{a}}}}", times(21, "...F "));
        assert_limit(&spread, "query_repeats", 20, 21);
        let nested = format!("{{{}}}", times(7, "a{b b b} "));
        assert_limit(&nested, "query_repeats", 20, 21);
        assert_eq!(refusal(&format!("{{{}}}", times(6, "a{b b b} "))), None);
        // Places of different operations are different.
        let operations = format!("query A{{{0}}} query B{{{0}}}", times(20, "a "));
        assert_eq!(refusal(&operations), None);
    }

    #[test]
    fn what_is_validated_and_not_run_counts_too() {
        let steps = |query: &str| {
            let document = async_graphql_parser::parse_query(query).unwrap();
            check_document(&document, &QueryLimits::default()).ok()
        };
        assert_eq!(steps("{a b{c}}"), Some(3));
        assert_eq!(steps("query A{a} query B{b{c d}}"), Some(1 + 3));
        // As often as it is spread, and once by itself.
        assert_eq!(steps("{...F ...F} fragment F on Query{a b}"), Some(2 + 2 * 2 + 2));
        assert_eq!(steps("{a} fragment F on Query{...on Query{a(b:[1 2])}}"), Some(1 + 1 + 3));
    }

    #[test]
    fn the_items_of_a_list_are_counted_with_its_longest_length() {
        let weigh = |query: &str| {
            let document = async_graphql_parser::parse_query(query).unwrap();
            let (_, operation) = document.operations.iter().next().unwrap();
            let weight = weigh(&document, &operation.node, None, &QueryLimits::default(), 50);
            weight.map(|weight| weight.item_fields).map_err(|refused| {
                let errors: serde_json::Value =
                    serde_json::from_slice(&refused.into_bytes()).unwrap();
                errors[0]["extensions"]["current"].clone()
            })
        };
        assert_eq!(weigh("{markets{id base}}"), Ok(100));
        assert_eq!(weigh("{trades(market:1){nodes{id}}}"), Ok(2 * 100));
        assert_eq!(weigh("{events(topic:1,first:7){edges{node{data}}}}"), Ok(3 * 7));
        assert_eq!(weigh("query($n:Int=9){orders(first:$n){nodes{id}}}"), Ok(2 * 9));
        // Refused where it is resolved.
        assert_eq!(weigh("{trades(market:1,first:1001){nodes{id}}}"), Ok(0));
        assert_eq!(weigh("subscription{trades(markets:1){trades{id}}}"), Ok(0));
        let twice = "{a:trades(market:1,first:1000){nodes{...T}} b:markets{...T}} fragment T on T";
        let fields = |count: usize| format!("{twice}{{{}}}", "id ".repeat(count));
        assert_eq!(weigh(&fields(90)), Ok(91 * 1_000 + 90 * 50));
        assert_eq!(weigh(&fields(100)), Err((101 * 1_000 + 100 * 50).into()));
    }

    /// The fields of objects in lists that `Query` leads to.
    #[test]
    fn each_list_of_the_schema_is_known_to_be_priced() {
        use async_graphql_parser::types::{BaseType, TypeKind, TypeSystemDefinition};

        let schema = async_graphql_parser::parse_schema(crate::graphql::sdl()).unwrap();
        let mut objects = HashMap::new();
        for definition in schema.definitions {
            if let TypeSystemDefinition::Type(definition) = definition
                && let TypeKind::Object(object) = definition.node.kind
            {
                objects.insert(definition.node.name.node, object.fields);
            }
        }
        let (mut lists, mut seen, mut next) = (Vec::new(), Vec::new(), vec![Name::new("Query")]);
        while let Some(name) = next.pop() {
            for field in &objects[&name] {
                let mut base = &field.node.ty.node.base;
                let is_list = matches!(base, BaseType::List(_));
                while let BaseType::List(item) = base {
                    base = &item.base;
                }
                let BaseType::Named(item) = base else { unreachable!("it is no list any more") };
                if !objects.contains_key(item) {
                    continue;
                }
                if is_list {
                    lists.push(format!("{name}.{}", field.node.name.node));
                }
                if !seen.contains(item) {
                    seen.push(item.clone());
                    next.push(item.clone());
                }
            }
        }
        lists.sort_unstable();
        let known = [
            "BookSnapshot.asks",
            "BookSnapshot.bids",
            "EventConnection.edges",
            "EventConnection.nodes",
            "FeedStatus.gaps",
            "FeedStatus.refusals",
            "OrderConnection.edges",
            "OrderConnection.nodes",
            "Query.candles",
            "Query.feeds",
            "Query.markets",
            "TradeConnection.edges",
            "TradeConnection.nodes",
        ];
        assert_eq!(lists, known);
    }

    #[test]
    fn fragments_that_spread_themselves_are_refused() {
        let query = "{...A} fragment A on Query{...B} fragment B on Query{...A}";
        assert_eq!(refusal(query).unwrap()["code"], "VALIDATION_FAILED");
    }

    #[test]
    fn each_limit_is_named_with_its_number() {
        let nested = |depth: usize| format!("{}{}", "{a".repeat(depth), "}".repeat(depth));
        assert_eq!(refusal(&nested(12)), None);
        assert_limit(&nested(13), "query_depth", 12, 13);
        assert_limit(&nested(500), "query_depth", 12, 500);
        let lists = format!("{{a(b:{}{})}}", "[".repeat(900), "]".repeat(900));
        assert_limit(&lists, "query_depth", 12, 902);
        let aliases: String = (0..31).map(|one| format!("a{one}:__typename ")).collect();
        assert_limit(&format!("{{{aliases}}}"), "query_aliases", 30, 31);
        assert_limit(&format!("{{{}}}", "a ".repeat(1_999)), "query_tokens", 2_000, 2_001);
        // Not by its tokens.
        assert_limit(&format!("{{{}}}", "a ".repeat(1_998)), "query_repeats", 20, 1_998);
        assert_limit(&format!("{{a}}#{}", "é".repeat(20_000)), "query_bytes", 32_768, 40_004);
        assert_limit(&format!("{{{}:a}}", "a".repeat(65)), "name_bytes", 64, 65);
    }

    #[test]
    fn twenty_levels_are_allowed_from_the_schema_down_and_no_more() {
        let from_schema = |depth: usize| {
            format!("{{__schema{}{}}}", "{a".repeat(depth - 1), "}".repeat(depth - 1))
        };
        assert_eq!(refusal(&from_schema(INTROSPECTION_DEPTH)), None);
        let beyond = INTROSPECTION_DEPTH + 1;
        assert_limit(&from_schema(beyond), "query_depth", INTROSPECTION_DEPTH, beyond);
    }

    #[test]
    fn brackets_in_strings_and_comments_are_no_nesting() {
        let inside =
            format!("{{a(b:\"{0}\" c:\"\"\"{0}\\\"\"\" \"{0}\"\"\")#{0}\n}}", "{".repeat(99));
        assert_eq!(refusal(&inside), None);
        assert_eq!(Tokens::new(&inside).count(), 11);
    }

    #[test]
    fn any_text_is_cut_into_tokens_that_cover_it() {
        for text in ["\"", "\"\\", "\"\"\"", "{a(b:\"é\\\"\")}", "é . .. … \u{feff}", "1e+5-", "#"]
        {
            let mut end = 0;
            for token in Tokens::new(text) {
                assert!(token.start >= end && token.end > token.start, "{text:?}");
                end = token.end;
            }
            assert!(end <= text.len());
        }
    }
}
