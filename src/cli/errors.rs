//! `spreadly errors`: the error codes, HTTP statuses and close codes as a page in Markdown.

use std::fmt::Write as _;

use spreadly_subscriptions::{CloseCode, ErrorCode};

use crate::http::negotiation::refusal_status;

const HEAD: &str = "\
<!-- `make reference` writes this page from the codes' tables. -->

# Errors and close codes

## Error codes

Each error has `extensions.code`. The column \"HTTP\" is the status of a request that did not run,
with `application/graphql-response+json`. [The protocol](protocol.md#graphql-over-http) explains the
statuses of other requests (P-138, P-139).

| code | HTTP | when | what a client does |
|---|---|---|---|
";

const STATUSES: &str = "
## HTTP statuses

These answers come before a request becomes GraphQL.

| status | when |
|---|---|
| 400 | there is no header `Host`, or there are two |
| 403 | the `Origin` is not allowed, or the `Host` on loopback |
| 404 | there is no such path |
| 405 | the method is not allowed; `Allow` names the right one |
| 406 | the hub has no media type that `Accept` names |
| 408 | the body took more than 10 s |
| 413 | the body has more than 256 KiB |
| 415 | the body is not JSON |
| 426 | the WebSocket version is not 13 |
| 429 | the address has too many sockets or connections, or it is `RATE_LIMITED`; then \
`Retry-After` is in seconds |
| 431 | the headers have more than 16 KiB, or there are more than 64 |

## Close codes

The last column says whether stock clients reconnect by themselves.

| code | when | reconnects |
|---|---|---|
";

pub fn page() -> String {
    let mut page = HEAD.to_owned();
    for code in ErrorCode::ALL {
        let (name, status) = (code.name(), refusal_status(code));
        let _ = writeln!(page, "| `{name}` | {status} | {} | {} |", code.when(), code.remedy());
    }
    page.push_str(STATUSES);
    for code in CloseCode::ALL {
        let _ = writeln!(page, "| {} | {} | {} |", code.number(), code.when(), code.reconnects());
    }
    page
}
