//! `spreadly publish`: one event to a generic topic.

use clap::Args;
use serde_json::Value;

use super::Hub;
use super::subscribe::{ClientError, Operation, execute};

pub(super) const EXAMPLES: &str = "\
Examples:
  spreadly publish news '{\"headline\": \"hello\"}'
  spreadly publish --id 2026-11-24/1 news '\"the same id again counts once\"'
  spreadly subscribe 'subscription { events(topic: \"news\") { events { data } } }'
      shows it to each client that follows the topic

Prints the hub's answer as a line of JSON: epoch, sequence and cursor of the event, which is then
in the log. It has one try. Without an answer it is unknown whether it took effect, so give it an
--id and publish it again.

Exit codes: 0 published; 1 refused, or no answer; 2 a fault in the arguments.";

const DOCUMENT: &str = "mutation ($topic: String!, $data: JSON!, $id: ID) {
  publish(topic: $topic, data: $data, id: $id) { topic epoch sequence cursor duplicate }
}";

#[derive(Args)]
pub(super) struct Publish {
    /// 1 to 128 characters
    topic: String,
    /// What to publish: any JSON
    #[arg(value_name = "JSON", value_parser = json)]
    data: Value,
    #[command(flatten)]
    hub: Hub,
    /// Makes it count once, however often it is published
    #[arg(long)]
    id: Option<String>,
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text)
        .map_err(|error| format!("write it as JSON, text in double quotes: {error}"))
}

impl Publish {
    pub(super) fn run(self) -> Result<(), ClientError> {
        let Self { topic, data, hub, id } = self;
        let variables = [("topic", topic.into()), ("data", data), ("id", id.into())];
        execute(Operation {
            opening: hub.opening(),
            document: DOCUMENT.to_owned(),
            variables: variables
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .collect(),
            after: None,
            count: None,
            pretty: false,
        })
    }
}
