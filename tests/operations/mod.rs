//! What an operator meets: the command line, the admin port, the terminal client.

mod admin;
mod backup;
mod command_line;
mod proxies;
mod proxy_protocol;
mod rollout;
mod stopping;
mod terminal;
mod tls;
