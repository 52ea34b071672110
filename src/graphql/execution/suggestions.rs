//! "Did you mean": names of the schema that are near to an unknown one. The library has suggestions
//! too, but makes them for each of thousands of errors, and compares names of any length.

use std::collections::HashMap;
use std::sync::LazyLock;

use async_graphql::ServerError;
use futures_util::future::FutureExt;
use serde_json::Value as Json;

use super::cost::MOST_NAME_BYTES;
use super::executor::schema;
use crate::graphql::errors::MOST_ERRORS;

/// Names that one error proposes.
const MOST_SUGGESTIONS: usize = 3;

const QUESTION: &str = "{__schema{directives{name locations} types{name
    fields(includeDeprecated:true){name args{name}} inputFields{name}
    enumValues(includeDeprecated:true){name}}}}";

/// The hub's schema never changes, so it is looked at once.
static NAMES: LazyLock<Names> = LazyLock::new(Names::of_the_schema);

/// Completes the errors of a document that did not fit the schema.
pub fn add(errors: &mut [ServerError]) {
    for error in errors.iter_mut().take(MOST_ERRORS) {
        // Those of resolvers have a code.
        if error.extensions.is_none()
            && let Some(sentence) = NAMES.question(&error.message)
        {
            let end = if error.message.ends_with('.') { " " } else { ". " };
            error.message.push_str(end);
            error.message.push_str(&sentence);
        }
    }
}

#[derive(Default)]
struct Names {
    /// By type: its fields, those of an input, or the values of an enum.
    members: HashMap<String, Vec<String>>,
    /// By type and field.
    arguments: HashMap<(String, String), Vec<String>>,
    /// Those that a document may have.
    directives: Vec<String>,
}

impl Names {
    fn of_the_schema() -> Self {
        let described = schema().finish().execute(QUESTION).now_or_never();
        let described =
            described.and_then(|described| described.data.into_json().ok()).unwrap_or_default();
        let described = &described["__schema"];
        let mut all = Self::default();
        for one in each(&described["types"]) {
            let own = name(one);
            let lists = ["fields", "inputFields", "enumValues"].map(|list| names(&one[list]));
            for field in each(&one["fields"]) {
                all.arguments.insert((own.clone(), name(field)), names(&field["args"]));
            }
            all.members.insert(own, lists.concat());
        }
        let of_documents = |one: &&Json| each(&one["locations"]).any(|place| place == "FIELD");
        all.directives = each(&described["directives"]).filter(of_documents).map(name).collect();
        all
    }

    /// For a message of the library. Names of GraphQL contain no quotes.
    fn question(&self, message: &str) -> Option<String> {
        let rest = |prefix: &str| message.split_once(prefix).map(|(_, rest)| rest);
        let members = |of: &str| self.members.get(of);
        let (unknown, known) = if let Some(rest) = rest("Unknown field \"") {
            let (unknown, of) = rest.strip_suffix("\".")?.split_once("\" on type \"")?;
            (unknown, members(of)?)
        } else if let Some(rest) = rest("Unknown argument \"") {
            let (unknown, of) = rest.strip_suffix("\".")?.split_once("\" on field \"")?;
            let (field, of) = of.split_once("\" of type \"")?;
            (unknown, self.arguments.get(&(of.to_owned(), field.to_owned()))?)
        } else if let Some(rest) = rest("unknown field \"") {
            let (unknown, of) = rest.strip_suffix('"')?.split_once("\" of type \"")?;
            (unknown, members(of)?)
        } else if let Some(rest) = rest("enumeration type \"") {
            let (of, unknown) =
                rest.strip_suffix('"')?.split_once("\" does not contain the value \"")?;
            (unknown, members(of)?)
        } else {
            (rest("Unknown directive \"")?.strip_suffix('"')?, &self.directives)
        };
        question(unknown, known)
    }
}

fn each(list: &Json) -> impl Iterator<Item = &Json> {
    list.as_array().into_iter().flatten()
}

fn name(of: &Json) -> String {
    of["name"].as_str().unwrap_or_default().to_owned()
}

fn names(list: &Json) -> Vec<String> {
    each(list).map(name).collect()
}

/// Which of these names could be meant.
fn question(unknown: &str, known: &[String]) -> Option<String> {
    if unknown.len() > MOST_NAME_BYTES {
        return None;
    }
    let given = unknown.to_ascii_lowercase();
    let most = given.len() * 2 / 5 + 1;
    let edits = |name: &String| {
        let edits = match name.len().abs_diff(given.len()) {
            apart if apart > most => return None,
            _ => strsim::osa_distance(&given, &name.to_ascii_lowercase()),
        };
        // A name of which every letter was replaced is another name.
        (edits <= most && edits < name.len()).then(|| (edits, name.clone()))
    };
    let mut near: Vec<_> = known.iter().filter_map(edits).collect();
    near.sort_unstable();
    let near: Vec<_> = near.iter().map(|(_, name)| format!("\"{name}\"")).collect();
    let (last, others) = near[..near.len().min(MOST_SUGGESTIONS)].split_last()?;
    Some(match others {
        [] => format!("Did you mean {last}?"),
        others => format!("Did you mean {} or {last}?", others.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_of_the_library_about_an_unknown_name_is_understood() {
        for (query, expected) in [
            ("{markts{id}}", "Did you mean \"markets\" or \"market\"?"),
            ("{hub{verison}}", "Did you mean \"version\"?"),
            ("{orderbook(market:\"A\"){sequence}}", "Did you mean \"orderBook\""),
            ("{orderBook(markte:\"A\"){sequence}}", "Did you mean \"market\"?"),
            ("subscription{feedStatus{nmae}}", "Did you mean \"name\""),
            (
                "subscription{orderBook(market:\"A\",speed:MS_10){sequence}}",
                "Did you mean \"MS_100\"",
            ),
            ("{hub{version @inclde(if:true)}}", "Did you mean \"include\"?"),
            (
                "mutation{placeOrder(input:{market:1,side:BUY,price:1,size:1,clientI:1}){epoch}}",
                "Did you mean \"clientId\"?",
            ),
        ] {
            let mut answer = schema().finish().execute(query).now_or_never().unwrap();
            add(&mut answer.errors);
            let said: Vec<_> = answer.errors.iter().map(|error| &*error.message).collect();
            assert!(said.iter().any(|one| one.contains(expected)), "{query}: {said:?}");
        }
    }

    #[test]
    fn a_name_that_resembles_none_gets_no_question() {
        for query in ["{nothing}", "{x}", "{hub{qqqqqqq}}", "{hub(version:1){version}}"] {
            let mut answer = schema().finish().execute(query).now_or_never().unwrap();
            add(&mut answer.errors);
            assert!(!answer.errors.is_empty());
            for error in answer.errors {
                assert!(!error.message.contains("Did you mean"), "{query}: {}", error.message);
            }
        }
    }

    #[test]
    fn names_of_the_schema_are_shorter_than_half_of_the_longest_that_is_compared() {
        let names = &*NAMES;
        let all = names.members.values().chain(names.arguments.values()).flatten();
        assert!(all.clone().count() > 100);
        let longest = all.max_by_key(|name| name.len()).unwrap();
        assert!(longest.len() * 2 <= MOST_NAME_BYTES, "{longest}");
        assert_eq!(question(&"x".repeat(MOST_NAME_BYTES + 1), &["x".repeat(64)]), None);
    }
}
