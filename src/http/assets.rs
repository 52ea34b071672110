//! What a browser gets: GraphiQL at `/graphiql`, embedded by build.rs, and `/`, which leads there.
//! Everything comes from this origin; a page that names another one is refused by its own policy.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response, StatusCode};

/// One file of the bundle, as it is and compressed.
struct File {
    /// With its content's hash in it, except for [`PAGE`].
    name: &'static str,
    etag: &'static str,
    plain: &'static [u8],
    gzip: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/graphiql.rs"));

/// The one file whose name stays while its content changes.
const PAGE: &str = "page.html";

const MISSING: &str = "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<title>Spreadly: GraphiQL is not in this build</title>
<h1>GraphiQL is not in this build</h1>
<p>It is fetched from npm when the hub is built, and this one was built without it.
<p>Install Node 20 or newer with npm, then build by <code>make run</code>, or by
<code>web/graphiql/build.sh</code> and <code>cargo build</code>.
<p>The API is there all the same: POST to <code>/graphql</code>, open a WebSocket at
<code>/graphql</code>, or type
<pre>spreadly subscribe --pretty '{ markets { id } }'</pre>
</html>
";

/// Nothing from elsewhere and no inline script. Inline style is what Monaco, GraphiQL's editor,
/// writes for each theme and widget, with its icon font in the style sheet. `connect-src 'self'`
/// covers the WebSocket.
const POLICY: &str = "default-src 'none'; script-src 'self'; worker-src 'self'; \
    connect-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self' data:; \
    img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const REVALIDATE: &str = "no-cache";
/// A year, for what has its hash in its name.
const FOR_EVER: &str = "public, max-age=31536000, immutable";

type Page = Response<Full<Bytes>>;

/// The answer to a request for a page; `None` is for the others to answer.
pub fn answer(method: &Method, path: &str, headers: &HeaderMap) -> Option<Page> {
    let name = match path {
        "/" => None,
        "/graphiql" => Some(PAGE),
        _ => Some(path.strip_prefix("/graphiql/")?),
    };
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut page = page(StatusCode::METHOD_NOT_ALLOWED, Bytes::new());
        set(&mut page, header::ALLOW, "GET, HEAD");
        return Some(page);
    }
    let Some(name) = name else {
        let mut page = page(StatusCode::TEMPORARY_REDIRECT, Bytes::new());
        set(&mut page, header::LOCATION, "/graphiql");
        return Some(page);
    };
    match FILES.iter().find(|file| file.name == name) {
        Some(file) => Some(embedded(file, headers)),
        None if name == PAGE => Some(missing()),
        None => None,
    }
}

fn embedded(file: &'static File, headers: &HeaderMap) -> Page {
    let unchanged = words(headers, &header::IF_NONE_MATCH).any(|etag| etag == file.etag);
    let gzip = words(headers, &header::ACCEPT_ENCODING).any(|coding| coding == "gzip");
    let mut page = match (unchanged, gzip) {
        (true, _) => page(StatusCode::NOT_MODIFIED, Bytes::new()),
        (false, true) => page(StatusCode::OK, Bytes::from_static(file.gzip)),
        (false, false) => page(StatusCode::OK, Bytes::from_static(file.plain)),
    };
    if !unchanged {
        set(&mut page, header::CONTENT_TYPE, content_type(file.name));
        if gzip {
            set(&mut page, header::CONTENT_ENCODING, "gzip");
        }
    }
    let caching = if file.name == PAGE { REVALIDATE } else { FOR_EVER };
    set(&mut page, header::CACHE_CONTROL, caching);
    set(&mut page, header::ETAG, file.etag);
    set(&mut page, header::VARY, "accept-encoding");
    page
}

fn missing() -> Page {
    let mut page = page(StatusCode::NOT_FOUND, Bytes::from_static(MISSING.as_bytes()));
    set(&mut page, header::CONTENT_TYPE, content_type(PAGE));
    page
}

fn page(status: StatusCode, body: Bytes) -> Page {
    let mut page = Response::new(Full::new(body));
    *page.status_mut() = status;
    set(&mut page, header::CONTENT_SECURITY_POLICY, POLICY);
    set(&mut page, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(&mut page, header::REFERRER_POLICY, "no-referrer");
    set(&mut page, header::CACHE_CONTROL, REVALIDATE);
    page
}

fn set(page: &mut Page, name: HeaderName, value: &'static str) {
    page.headers_mut().insert(name, HeaderValue::from_static(value));
}

/// What is between the commas of a header, however often it was sent.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.') {
        Some((_, "html")) => "text/html; charset=utf-8",
        Some((_, "js")) => "text/javascript; charset=utf-8",
        Some((_, "css")) => "text/css; charset=utf-8",
        Some((_, "ttf")) => "font/ttf",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_bundle_has_a_type_that_a_browser_takes() {
        for file in FILES {
            assert_ne!(content_type(file.name), "application/octet-stream", "{}", file.name);
        }
    }

    #[test]
    fn a_build_without_graphiql_says_how_to_get_it() {
        let page = missing();
        assert_eq!(page.status(), StatusCode::NOT_FOUND);
        assert_eq!(page.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
        assert!(MISSING.contains("web/graphiql/build.sh"), "{MISSING}");
    }

    #[test]
    fn a_page_is_read_and_nothing_else() {
        let headers = HeaderMap::new();
        let refused = answer(&Method::POST, "/graphiql", &headers).unwrap();
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(refused.headers()[header::ALLOW], "GET, HEAD");
        assert!(answer(&Method::GET, "/graphiql/no-such-file.js", &headers).is_none());
        assert!(answer(&Method::GET, "/graphiqlx", &headers).is_none());
    }
}
