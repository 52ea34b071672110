//! The account of a client, and what only that account may see. Only this file decides it.

use std::sync::Arc;

use async_graphql::{Context, Error, Result};

use super::errors::{fault, state};

/// The account of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Principal {
    /// `None` for a client that is not signed in. Until there is sign-in, all clients have the
    /// account of `identity.development_account`.
    pub account: Option<Arc<str>>,
}

impl Principal {
    pub fn is(&self, account: Option<&str>) -> bool {
        account.is_some() && self.account.as_deref() == account
    }
}

/// The client's account.
///
/// # Errors
/// `UNAUTHENTICATED` for a client that is not signed in.
pub(super) fn acting(ctx: &Context<'_>) -> Result<Arc<str>> {
    let principal: &Principal = state(ctx)?;
    principal.account.clone().ok_or_else(unauthenticated)
}

/// The named account, if it is the client's own.
///
/// # Errors
/// `UNAUTHENTICATED` for a client that is not signed in, `FORBIDDEN` for another account.
pub(super) fn own(ctx: &Context<'_>, account: &str) -> Result<Arc<str>> {
    let acting = acting(ctx)?;
    match *acting == *account {
        true => Ok(acting),
        false => Err(fault("FORBIDDEN", "this account is not yours")),
    }
}

fn unauthenticated() -> Error {
    fault("UNAUTHENTICATED", "sign in to use this field")
}
