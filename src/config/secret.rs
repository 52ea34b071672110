//! URLs that may hold a password. Only who asks for the secret gets it: `Debug` and `Display` leave
//! it out.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};
use url::{Position, Url, form_urlencoded};

/// A URL as written; empty where there is none.
#[derive(Clone, Default)]
pub struct SecretUrl(SecretString);

impl SecretUrl {
    pub(super) fn new(url: &str) -> Self {
        Self(url.into())
    }

    pub fn is_empty(&self) -> bool {
        self.0.expose_secret().is_empty()
    }

    pub fn secret(&self) -> &SecretString {
        &self.0
    }
}

impl PartialEq for SecretUrl {
    fn eq(&self, other: &Self) -> bool {
        self.0.expose_secret() == other.0.expose_secret()
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.0.expose_secret();
        match without_passwords(url) {
            Some(shown) => f.write_str(&shown),
            None if url.is_empty() => Ok(()),
            // What can't be read as a URL could have its password anywhere after the scheme.
            None => write!(f, "{}:…", url.split_once("://").map_or("", |(scheme, _)| scheme)),
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_string(), f)
    }
}

/// Without the user's password, and without parameters that are named after one.
fn without_passwords(url: &str) -> Option<String> {
    let (first, further) = split_hosts(url)?;
    let mut url = Url::parse(&first).ok()?;
    if url.password().is_some() {
        url.set_password(None).ok()?;
    }
    if let Some(query) = url.query() {
        let is_shown = |pair: &&str| {
            let name = form_urlencoded::parse(pair.as_bytes()).next();
            name.is_none_or(|(name, _)| !name.to_ascii_lowercase().contains("password"))
        };
        let shown: Vec<_> = query.split('&').filter(is_shown).collect();
        let shown = shown.join("&");
        url.set_query(Some(&shown).filter(|shown| !shown.is_empty()).map(String::as_str));
    }
    let (front, back) = (&url[..Position::AfterPort], &url[Position::AfterPort..]);
    Some(format!("{front}{further}{back}"))
}

/// Postgres takes several hosts with commas between them, which a `Url` can't have: the URL with
/// the first of them, and the others. `None` where an `@` comes after the hosts, as Postgres' own
/// parser takes it for the end of a password.
fn split_hosts(url: &str) -> Option<(String, &str)> {
    let start = url.find("://")? + "://".len();
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |end| start + end);
    let hosts = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
    if hosts == start && url[end..].contains('@') {
        return None;
    }
    let further = url[hosts..end].find(',').map_or(end, |comma| hosts + comma);
    Some((format!("{}{}", &url[..further], &url[end..]), &url[further..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_what_may_be_a_password() {
        for (url, shown) in [
            ("", ""),
            ("postgres://hub:hunter2@db/exchange", "postgres://hub@db/exchange"),
            ("postgres://hub:hunter2@a:1,b:2/x?y=z", "postgres://hub@a:1,b:2/x?y=z"),
            ("postgres://hub:hunter2@[::1]:5,c/x", "postgres://hub@[::1]:5,c/x"),
            ("postgres://db/x?user=hub&password=hunter2", "postgres://db/x?user=hub"),
            ("postgres://db/x?p%61ssword=hunter2", "postgres://db/x"),
            ("postgres://hub:hun@ter2@db/x?options=a@b", "postgres://hub@db/x?options=a@b"),
            // Read by Postgres' parser as a password with a slash in it.
            ("postgres://hub:12/hunter2@db/x", "postgres:…"),
            ("postgres://hub:hunter2/@db/x", "postgres:…"),
            ("postgres://hub?hunter2@db/x", "postgres:…"),
            ("hunter2", ":…"),
            ("redis://hub:hunter2@one:1/3?node=two:2", "redis://hub@one:1/3?node=two:2"),
        ] {
            let url = SecretUrl::new(url);
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("{shown:?}"));
        }
    }
}
