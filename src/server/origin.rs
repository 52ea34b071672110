//! Which web pages may open a socket: the `Origin` that a browser can't forge.

use hyper::header::{self, HeaderMap};

/// A request without an `Origin` comes from no browser (a bot, a server) and is always admitted;
/// nothing here rests on cookies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginPolicy {
    /// `https://app.example`, compared whole, or `*`. Empty: only pages of the hub's own host.
    allowed: Vec<String>,
}

impl OriginPolicy {
    pub fn new(allowed: &[String]) -> Self {
        let allowed = allowed.iter().map(|one| one.trim_end_matches('/').to_ascii_lowercase());
        Self { allowed: allowed.collect() }
    }

    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else {
            return true;
        };
        let Ok(origin) = origin.to_str().map(str::to_ascii_lowercase) else {
            return false;
        };
        if self.allowed.iter().any(|one| one == "*" || *one == origin) {
            return true;
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        match (origin.split_once("://"), host) {
            (Some(("http" | "https", page)), Some(host)) => page == host.to_ascii_lowercase(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(origin: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "hub.example:4000".parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_foreign_page_is_refused_unless_listed() {
        let own = OriginPolicy::default();
        assert!(own.admits(&request(None)));
        assert!(own.admits(&request(Some("https://hub.example:4000"))));
        for foreign in ["https://evil.example", "null", "https://hub.example:4000.evil.example"] {
            assert!(!own.admits(&request(Some(foreign))), "{foreign}");
        }
        let listed = OriginPolicy::new(&["https://App.example/".to_owned()]);
        assert!(listed.admits(&request(Some("https://app.example"))));
        assert!(!listed.admits(&request(Some("https://evil.example"))));
        assert!(OriginPolicy::new(&["*".to_owned()]).admits(&request(Some("null"))));
    }
}
