//! Who a client is, what only that client may see, and who shares the stream of a subscription.
//! Decided here alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_graphql::{Context, Error, Result};

use super::errors::{ErrorCode, fault, state};

/// The identity that a client proved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Principal {
    /// `None` if the client has not signed in. Until there is sign-in, every client acts for
    /// `identity.development_account`.
    pub account: Option<Arc<str>>,
}

impl Principal {
    fn is(&self, account: Option<&str>) -> bool {
        account.is_some() && self.account.as_deref() == account
    }
}

/// Which operations share the response stream of a subscription, besides having the same document
/// and variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Those of all clients: no result depends on who the client is.
    Everyone,
    /// Those of the same account. A client that has not signed in shares the stream with nobody
    /// but itself.
    Account,
}

impl Audience {
    /// As part of an operation's key. `owner` is what the engine calls the client.
    pub fn key(self, principal: &Principal, owner: u64) -> String {
        match (self, &principal.account) {
            (Self::Everyone, _) => String::new(),
            (Self::Account, Some(account)) => format!("account {account}"),
            (Self::Account, None) => format!("owner {owner}"),
        }
    }
}

/// The principal of a request, for its resolvers. It notes whether a resolver asked for it: results
/// that depend on the client must not be shared with everyone.
#[derive(Default)]
pub struct Identity {
    principal: Principal,
    was_asked: AtomicBool,
}

impl Identity {
    pub fn new(principal: Principal) -> Self {
        Self { principal, was_asked: AtomicBool::new(false) }
    }

    /// Whether a resolver asked who the client is.
    pub fn was_asked(&self) -> bool {
        self.was_asked.load(Ordering::Relaxed)
    }

    fn ask(&self) -> &Principal {
        self.was_asked.store(true, Ordering::Relaxed);
        &self.principal
    }
}

fn asked<'a>(ctx: &Context<'a>) -> Result<&'a Principal> {
    Ok(state::<Arc<Identity>>(ctx)?.ask())
}

/// The account that acts.
///
/// # Errors
/// `UNAUTHENTICATED` if the client has not signed in.
pub(super) fn acting(ctx: &Context<'_>) -> Result<Arc<str>> {
    asked(ctx)?.account.clone().ok_or_else(unauthenticated)
}

/// Whether the client acts for this account.
pub(super) fn acts_for(ctx: &Context<'_>, account: Option<&str>) -> Result<bool> {
    Ok(asked(ctx)?.is(account))
}

/// The account that a client asks for, which must be its own.
///
/// # Errors
/// `UNAUTHENTICATED` if the client has not signed in, `FORBIDDEN` for another account.
pub(super) fn own(ctx: &Context<'_>, account: &str) -> Result<Arc<str>> {
    let acting = acting(ctx)?;
    match *acting == *account {
        true => Ok(acting),
        false => Err(fault(ErrorCode::Forbidden, "this account is not yours")),
    }
}

fn unauthenticated() -> Error {
    fault(ErrorCode::Unauthenticated, "sign in to use this field")
}
