//! Who a client proved to be, and what is only theirs. Decided here alone.

use std::sync::Arc;

use async_graphql::{Context, Error, Result};

use super::errors::{fault, state};

/// Who a client proved to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Principal {
    /// `None`: a stranger. Until there is sign-in everyone is whom `identity.development_account`
    /// names.
    pub account: Option<Arc<str>>,
}

impl Principal {
    pub fn is(&self, account: Option<&str>) -> bool {
        account.is_some() && self.account.as_deref() == account
    }
}

/// The account that acts.
///
/// # Errors
/// `UNAUTHENTICATED` for a stranger.
pub(super) fn acting(ctx: &Context<'_>) -> Result<Arc<str>> {
    let principal: &Principal = state(ctx)?;
    principal.account.clone().ok_or_else(unauthenticated)
}

/// An account whose own matters are asked for: one's own.
///
/// # Errors
/// `UNAUTHENTICATED` for a stranger, `FORBIDDEN` for somebody else.
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
