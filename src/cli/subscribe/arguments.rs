//! What `spreadly subscribe` takes.

use clap::Args;
use serde_json::{Map, Value};

use super::{ClientError, Operation, execute};
use crate::cli::HubUrl;

pub const EXAMPLES: &str = "\
Examples:
  spreadly subscribe 'subscription { orderBook(market: \"ERG-USD\", depth: 5) { __typename sequence
    ... on BookSnapshot { bids { price size } } ... on BookDelta { bids { price size } } } }'
  spreadly subscribe --variables '{\"markets\": [\"ERG-USD\"]}' \\
    'subscription ($markets: [ID!]!) { bestBidOffer(markets: $markets) { market bid { price } } }'
  spreadly subscribe --pretty '{ markets { id tickSize } hub { version } }'
  spreadly subscribe --count 100 '…' | jq -c .data

On stdout is nothing but results, a line of JSON each as the hub wrote it, heartbeats among them;
what happens meanwhile is on stderr. Each result of a stream that can be resumed has its cursor in
extensions.cursor. After a cut the client comes back, waiting 0.2 s at first and 10 s at most, and
resumes after the last cursor, without gaps or duplicates. Give a cursor to --after to go on where
an earlier run ended.

Exit codes: 0 complete, --count reached, or Ctrl-C; 1 the hub refused it, or closed the socket with
a code that trying again would only repeat; 2 a fault in the arguments.";

#[derive(Args)]
pub struct Subscribe {
    /// A GraphQL document with one operation
    document: String,
    #[command(flatten)]
    hub: HubUrl,
    /// A JSON object
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = variables)]
    variables: Map<String, Value>,
    /// Begin after this position instead of with a snapshot
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// End after so many results
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Indent the results, for people
    #[arg(long)]
    pretty: bool,
}

fn variables(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("write it as a JSON object: {error}"))
}

impl Subscribe {
    pub fn run(self) -> Result<(), ClientError> {
        let Self { document, hub, variables, after, count, pretty } = self;
        execute(Operation { endpoint: hub.url, document, variables, after, count, pretty })
    }
}
