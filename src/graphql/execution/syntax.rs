//! A document that is no GraphQL, in one sentence. The parser draws the line that it stopped at,
//! over several lines of text, and names its own rules.

use async_graphql::Pos;
use async_graphql_parser::Error;

use super::document::located;

/// Letters of the document that an error repeats.
const MOST_SHOWN: usize = 24;

/// What is wrong, and where.
pub fn fault(error: &Error, text: &str) -> (String, Option<Pos>) {
    let at = error.positions().next();
    let sentence = match error {
        Error::Syntax { message, start, .. } => {
            let Pos { line, column } = *start;
            let found = found(text, *start);
            let expected = match expected(message) {
                Some(expected) => format!("expected {expected}, but "),
                None => String::new(),
            };
            format!("Syntax error at line {line}, column {column}: {expected}{found}")
        }
        Error::MultipleOperations { .. } => {
            "an operation without a name must be the only one of its document".to_owned()
        }
        Error::MissingOperation => "the document has no operation".to_owned(),
        Error::RecursionLimitExceeded => "the document nests its selections too deeply".to_owned(),
        other => other.to_string(),
    };
    (sentence, at)
}

/// The end of the parser's drawing: `= expected name, value, or type_`.
fn expected(message: &str) -> Option<String> {
    let (_, rules) = message.rsplit_once("= expected ")?;
    let mut all: Vec<_> = Vec::new();
    for rule in rules.split([',', ' ']).filter(|rule| !rule.is_empty() && *rule != "or") {
        let words = match rule {
            "executable_definition" => "an operation or a fragment",
            "selection" => "a field",
            "selection_set" => "`{`",
            "arguments" | "variable_definitions" => "`(`",
            "directive" | "directives" => "`@`",
            "name" => "a name",
            "value" => "a value",
            "const_value" => "a value without variables",
            "variable_definition" => "a variable with its type",
            "type_" => "a type",
            "type_condition" => "`on`",
            "EOI" => "the end of the document",
            other => other,
        };
        if !all.contains(&words) {
            all.push(words);
        }
    }
    let (last, others) = all.split_last()?;
    Some(match others {
        [] => (*last).to_owned(),
        others => format!("{} or {last}", others.join(", ")),
    })
}

/// What is there instead: the token that is or follows at this position.
fn found(text: &str, at: Pos) -> String {
    let is_past = |(start, token): &(Pos, &str)| {
        (start.line, start.column + token.chars().count()) > (at.line, at.column)
    };
    let Some((_, token)) = located(text).find(is_past) else {
        return "the document ends there".to_owned();
    };
    let mut shown: String = token.chars().take(MOST_SHOWN).collect();
    if shown.len() < token.len() {
        shown.push('…');
    }
    match token.starts_with('"') {
        true => format!("found the faulty string `{shown}`"),
        false => format!("found `{shown}`"),
    }
}

#[cfg(test)]
mod tests {
    use async_graphql_parser::parse_query;

    use super::*;

    #[test]
    fn a_syntax_error_is_one_plain_sentence_with_its_place() {
        let any = "an operation or a fragment";
        for (text, place, expected, found) in [
            ("", (1, 1), any, "the document ends there"),
            ("{hub{}}", (1, 6), "a field", "found `}`"),
            ("{a", (1, 3), "`{`, a field, `@` or `(`", "the document ends there"),
            ("{\n  a(b: )}", (2, 8), "a value", "found `)`"),
            ("{é}", (1, 2), "a field", "found `é`"),
            ("muttation{a}", (1, 1), any, "found `muttation`"),
            ("{a(b:01)}", (1, 7), "a name", "found `01`"),
            ("{a(b:\"x\n)}", (1, 6), "a value", "found the faulty string `\"x`"),
            ("query($x){a}", (1, 7), "a variable with its type", "found `$`"),
        ] {
            let (sentence, at) = fault(&parse_query(text).unwrap_err(), text);
            let (line, column) = place;
            let place = format!("Syntax error at line {line}, column {column}");
            assert_eq!(sentence, format!("{place}: expected {expected}, but {found}"), "{text}");
            assert_eq!(at, Some(Pos { line, column }));
        }
        for (text, expected) in [
            ("{a} {b}", "an operation without a name must be the only one of its document"),
            ("query A{a} query A{b}", "operation A is defined twice"),
            ("fragment F on Query{a}", "the document has no operation"),
        ] {
            assert_eq!(fault(&parse_query(text).unwrap_err(), text).0, expected, "{text}");
        }
    }

    #[test]
    fn a_long_token_is_cut() {
        let text = format!("{{a(b:{}", "1".repeat(30_000));
        let (sentence, _) = fault(&parse_query(&text).unwrap_err(), &text);
        assert!(sentence.len() < 200 && !sentence.contains('\n'), "{sentence}");
    }
}
