//! What `spreadly subscribe` takes.

use clap::Args;
use serde_json::{Map, Value};
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};

use super::{ClientError, Header, Operation, execute};
use crate::cli::Hub;

pub const EXAMPLES: &str = "\
Examples:
  spreadly subscribe 'subscription { orderBook(market: \"ERG-USD\", depth: 5) { __typename sequence
    ... on BookSnapshot { bids { price size } } ... on BookDelta { bids { price size } } } }'
  spreadly subscribe --variables '{\"markets\": [\"ERG-USD\"]}' \\
    'subscription ($markets: [ID!]!) { bestBidOffer(markets: $markets) { market bid { price } } }'
  spreadly subscribe --pretty '{ markets { id tickSize } hub { version } }'
  spreadly subscribe --count 100 '…' | jq -c .data
  spreadly subscribe --url wss://hub.example --header 'origin: https://app.example' \\
    --init '{\"token\": \"…\"}' '…'

Over wss:// it trusts what the machine trusts. SSL_CERT_FILE=ca.pem trusts another authority.

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
    hub: Hub,
    /// A JSON object
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = object)]
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

/// # Errors
/// What is wrong with it.
pub fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("write it as a JSON object: {error}"))
}

/// # Errors
/// What is wrong with it.
pub fn header(text: &str) -> Result<Header, String> {
    let (name, value) = text.split_once(':').ok_or("write it as 'name: value'")?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|error| error.to_string())?;
    let value = HeaderValue::from_str(value.trim()).map_err(|error| error.to_string())?;
    Ok((name, value))
}

impl Subscribe {
    pub fn run(self) -> Result<(), ClientError> {
        let Self { document, hub, variables, after, count, pretty } = self;
        execute(Operation { opening: hub.opening(), document, variables, after, count, pretty })
    }
}
