//! `[identity]`: who clients are.

use std::sync::Arc;

use crate::config::kind::text;
use crate::config::table::{Key, Table};

/// An address of Ergo has about 51.
const MOST_ACCOUNT_BYTES: usize = 64;

/// Who clients are.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentityConfig {
    /// The account of every client; `None`: nobody is signed in.
    pub development_account: Option<Arc<str>>,
}

pub(in crate::config) fn read(table: &mut Table<'_>) -> IdentityConfig {
    IdentityConfig {
        development_account: table.key(Key {
            name: "identity.development_account",
            unit: "",
            takes: text("at most 64 bytes without `/`", account, |account| {
                account.as_deref().unwrap_or_default().to_owned()
            })
            .because("An account is part of ids, where a `/` follows it."),
            default: None,
            does: "The account of every client, for development only; empty means that nobody is \
                   signed in.",
            notes: "Who is not signed in can't place orders. `spreadly dev` sets an account where \
                    none is set. The hub warns where `server.listen` is not loopback.",
        }),
    }
}

/// Empty: none.
fn account(account: &str) -> Result<Option<Arc<str>>, String> {
    if account.len() > MOST_ACCOUNT_BYTES
        || account.chars().any(|one| one.is_control() || one == '/')
    {
        return Err(format!("it must have at most {MOST_ACCOUNT_BYTES} bytes, without / in it"));
    }
    Ok((!account.is_empty()).then(|| account.into()))
}
