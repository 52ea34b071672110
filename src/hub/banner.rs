//! How to look at a hub that has just started: one line for programs on stdout, and for people
//! lines on stderr that can be pasted into a shell.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::config::{Config, LogFormat};

/// Where the hub listens: the public and the admin port.
pub type Listening = (SocketAddr, SocketAddr);

pub fn announce((public, admin): Listening, simulated: bool, log: LogFormat) {
    let line = json!({"listening": public.to_string(), "admin": admin.to_string()});
    let mut out = io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        tracing::debug!("nobody reads stdout");
    }
    // Each line of such a log is JSON.
    if simulated && log == LogFormat::Text {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program =
            |name: &str| std::env::current_exe().ok().and_then(|hub| found(name, &hub, &path));
        eprint!("{}", banner((public, admin), &program));
    }
}

/// `program` gives what a shell takes for a program of this name.
fn banner((public, admin): Listening, program: &dyn Fn(&str) -> Option<String>) -> String {
    let spreadly = program("spreadly").unwrap_or_else(|| "spreadly".to_owned());
    let mut text = format!(
        "\n  GraphiQL   http://{public}/graphiql\n  \
         GraphQL    ws://{public}/graphql (graphql-transport-ws), \
         POST http://{public}/graphql\n  \
         admin      http://{admin}/readyz  http://{admin}/metrics\n\n\
         Follow the best prices:\n\n  \
         {spreadly} subscribe --url ws://{public}/graphql \
         'subscription {{ bestBidOffer(markets: [\"ERG-USD\"]) \
         {{ bid {{ price size }} ask {{ price size }} }} }}'\n\n"
    );
    // The hub may have been built alone.
    if let Some(storm) = program("spreadly-storm") {
        let pid = std::process::id();
        text += &format!(
            "Load it with 1,000 clients:\n\n  \
             {storm} run --url ws://{public}/graphql --market ERG-USD --connections 1000 \
             --duration 10 --hub-pid {pid}\n\n"
        );
    }
    text
}

/// A program that lies beside the hub's: its name if a shell finds it by that, else its path.
fn found(name: &str, hub: &Path, path: &OsStr) -> Option<String> {
    let beside = hub.parent()?.join(name);
    if !beside.is_file() {
        return None;
    }
    let same = |one: &PathBuf| one.canonicalize().ok() == beside.canonicalize().ok();
    let first = std::env::split_paths(path).map(|one| one.join(name)).find(|one| one.is_file());
    match first.is_some_and(|first| same(&first)) {
        true => Some(name.to_owned()),
        false => Some(quoted(beside.to_str()?)),
    }
}

/// As a shell reads it: in single quotes, unless all of it is plain.
fn quoted(path: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+".contains(letter);
    match path.chars().all(is_plain) {
        true => path.to_owned(),
        false => format!("'{}'", path.replace('\'', r"'\''")),
    }
}

/// What an operator looks for first when a hub does not do what was meant.
pub fn announce_start(config: &Config, (public, admin): Listening) {
    let feeds = &config.feeds;
    let postgres = feeds.postgres.as_ref().map(|own| own.url.to_string());
    let log = match (&config.store.shared, &postgres) {
        (Some(_), Some(url)) => format!("{url}, replica {}", config.store.path.display()),
        _ => config.store.path.display().to_string(),
    };
    let kafka =
        feeds.kafka.as_ref().map(|own| format!("{} at {}", own.topics.join(","), own.brokers));
    tracing::info!(
        release = env!("CARGO_PKG_VERSION"),
        %public,
        %admin,
        log,
        files = %feeds.files.path.display(),
        postgres = postgres.as_deref().unwrap_or("none"),
        kafka = kafka.as_deref().unwrap_or("none"),
        "the hub starts"
    );
    if let Some(account) = &config.identity.development_account
        && !public.ip().is_loopback()
    {
        let reason = "identity.development_account is set, and server.listen is not loopback: \
                      everyone who reaches this port is that account and places its orders";
        tracing::warn!(%account, listen = %public, "{reason}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_program_is_named_as_a_shell_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let hub = at("spreadly");
        let elsewhere = OsStr::new("/nowhere:/bin");
        assert_eq!(found("spreadly", &hub, elsewhere), None, "nothing is built yet");
        fs::write(&hub, "").unwrap();
        let whole = hub.to_str().unwrap().to_owned();
        assert_eq!(found("spreadly", &hub, elsewhere), Some(whole));
        assert_eq!(found("spreadly", &hub, folder.path().as_os_str()).unwrap(), "spreadly");
        assert_eq!(found("spreadly-storm", &hub, folder.path().as_os_str()), None);
        // Another one of this name comes first.
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("spreadly"), "").unwrap();
        let path = std::env::join_paths([other.path(), folder.path()]).unwrap();
        assert_eq!(found("spreadly", &hub, &path).as_deref(), hub.to_str());
    }

    #[test]
    fn a_path_with_blanks_or_quotes_is_one_word_of_a_shell() {
        assert_eq!(quoted("/opt/spreadly-1.0/spreadly"), "/opt/spreadly-1.0/spreadly");
        assert_eq!(quoted("/My Files/it's"), r"'/My Files/it'\''s'");
    }

    #[test]
    fn a_hub_that_was_built_alone_proposes_no_load_tester() {
        let ports = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let both = banner(ports, &|name| Some(format!("/x/{name}")));
        assert!(both.contains("\n  /x/spreadly subscribe --url ws://127.0.0.1:1/graphql '"));
        assert!(both.contains("\n  /x/spreadly-storm run --url ws://127.0.0.1:1/graphql "));
        let alone = banner(ports, &|name| (name == "spreadly").then(|| name.to_owned()));
        assert!(!alone.contains("spreadly-storm"), "{alone}");
    }
}
