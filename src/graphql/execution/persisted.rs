//! Documents that clients name by their SHA-256 instead of sending them again: automatic persisted
//! queries, as Apollo's clients speak them. A document enters with the first request that has both.
//! A client that names an unknown document must send it.

use std::hash::RandomState;
use std::sync::Arc;

use quick_cache::UnitWeighter;
use quick_cache::sync::Cache;
use serde_json::Value;
use sha2::{Digest, Sha256};
use spreadly_subscriptions::{PERSISTED, Request};

use super::document;
use crate::graphql::errors::{ErrorCode, Refused};

/// Documents kept. Each has at most `query_bytes` (32 KiB), so all have at most 32 MiB.
const MOST_PERSISTED: usize = 1_024;

/// The message by which stock clients know that they have to send the document.
const NOT_FOUND: &str = "PersistedQueryNotFound";

pub type Hash = [u8; 32];

pub struct Persisted(Cache<Hash, Arc<str>, UnitWeighter, RandomState>);

impl Default for Persisted {
    fn default() -> Self {
        Self(document::cache(MOST_PERSISTED))
    }
}

impl Persisted {
    /// Puts the document that a request names into the request. Returns the hash of a new document
    /// that the request has itself: keep it once it proved to be valid.
    pub fn complete(&self, request: &mut Request) -> Result<Option<Hash>, Refused> {
        let named = request.extensions.as_ref().and_then(|all| all.get(PERSISTED));
        let Some(hash) = named.filter(|named| !named.is_null()).map(hash).transpose()? else {
            return Ok(None);
        };
        let known = self.0.get(&hash);
        if request.query.is_empty() {
            let unknown = || Refused::new(ErrorCode::PersistedQueryNotFound, NOT_FOUND, None);
            request.query = known.ok_or_else(unknown)?.as_ref().to_owned();
            return Ok(None);
        }
        let same = match &known {
            Some(known) => **known == *request.query,
            None => Hash::from(Sha256::digest(&request.query)) == hash,
        };
        if !same {
            let message = "persistedQuery: sha256Hash is not the SHA-256 of the query beside it";
            return Err(Refused::new(ErrorCode::BadRequest, message, None));
        }
        Ok(known.is_none().then_some(hash))
    }

    pub fn keep(&self, hash: Hash, document: &str) {
        self.0.insert(hash, document.into());
    }
}

fn hash(named: &Value) -> Result<Hash, Refused> {
    let refused = |message| Refused::new(ErrorCode::BadRequest, message, None);
    if named.get("version").and_then(Value::as_u64) != Some(1) {
        return Err(refused("persistedQuery: version must be 1"));
    }
    named
        .get("sha256Hash")
        .and_then(Value::as_str)
        .and_then(from_hex)
        .ok_or_else(|| refused("persistedQuery: sha256Hash must be 64 hexadecimal digits"))
}

fn from_hex(text: &str) -> Option<Hash> {
    let digits = text.as_bytes();
    if digits.len() != 2 * size_of::<Hash>() {
        return None;
    }
    let mut hash = Hash::default();
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DOCUMENT: &str = "{__typename}";
    /// Of the line above, by `sha256sum`.
    const SHA256: &str = "ecf4edb46db40b5132295c0291d62fb65d6759a9eedfa4d5d612dd5ec54a6b38";

    fn request(query: &str, persisted: Value) -> Request {
        let fields = json!({"query": query, "extensions": {PERSISTED: persisted}});
        Request::from_fields(fields.as_object().unwrap().clone()).unwrap()
    }

    fn code(refused: Refused) -> String {
        let errors: Value = serde_json::from_slice(&refused.into_bytes()).unwrap();
        errors[0]["extensions"]["code"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_document_that_was_brought_once_is_found_by_its_hash() {
        let persisted = Persisted::default();
        let named = json!({"version": 1, "sha256Hash": SHA256});
        let refused = persisted.complete(&mut request("", named.clone())).unwrap_err();
        assert_eq!(code(refused), "PERSISTED_QUERY_NOT_FOUND");
        let brought = persisted.complete(&mut request(DOCUMENT, named.clone())).unwrap();
        persisted.keep(brought.unwrap(), DOCUMENT);
        let mut by_hash = request("", named.clone());
        assert_eq!(persisted.complete(&mut by_hash).unwrap(), None);
        assert_eq!(by_hash.query, DOCUMENT);
        assert_eq!(persisted.complete(&mut request(DOCUMENT, named)).unwrap(), None);
    }

    #[test]
    fn a_hash_of_something_else_is_refused() {
        let persisted = Persisted::default();
        let named = json!({"version": 1, "sha256Hash": SHA256});
        for known in [false, true] {
            if known {
                persisted.keep(hash(&named).ok().unwrap(), DOCUMENT);
            }
            let refused = persisted.complete(&mut request("{ other }", named.clone()));
            assert_eq!(code(refused.unwrap_err()), "BAD_REQUEST");
        }
        for faulty in [
            json!({"version": 2, "sha256Hash": SHA256}),
            json!({"sha256Hash": SHA256}),
            json!({"version": 1}),
            json!({"version": 1, "sha256Hash": &SHA256[1..]}),
            json!({"version": 1, "sha256Hash": format!("+f{}", &SHA256[2..])}),
            json!("hash"),
        ] {
            let refused = persisted.complete(&mut request(DOCUMENT, faulty));
            assert_eq!(code(refused.unwrap_err()), "BAD_REQUEST");
        }
    }

    #[test]
    fn the_store_of_documents_stays_bounded() {
        let persisted = Persisted::default();
        for number in 0..5_000u32 {
            persisted.keep(Sha256::digest(number.to_be_bytes()).into(), DOCUMENT);
        }
        assert!(persisted.0.len() <= MOST_PERSISTED);
    }
}
