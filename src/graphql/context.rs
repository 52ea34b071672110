//! The sender of a request: the principal it proved to be, and the account that pays for its work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_graphql::{Context, Result};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use spreadly_subscriptions::{Answer, StreamPermit};

use super::errors::{rate_limited, state};
use super::identity::Principal;
use crate::budgets::{ClientAccount, StreamCounts, StreamPlace as CountedPlace, Work};
use crate::pool::timed;

/// Of one socket, or of one request over HTTP.
#[derive(Clone)]
pub struct Caller {
    pub principal: Principal,
    pub account: Arc<ClientAccount>,
    /// The response streams that this socket reads.
    pub streams: Arc<StreamCounts>,
    /// Of the response streams that it opens.
    pub owner: u64,
}

impl Caller {
    pub fn new(principal: Principal, account: Arc<ClientAccount>) -> Self {
        let (streams, owner) = (account.socket_streams(), account.socket_owner());
        Self { principal, account, streams, owner }
    }
}

/// An operation's place among the streams that its socket reads.
pub(super) struct ReadPlace {
    pub account: Arc<ClientAccount>,
    /// Nanoseconds that were charged for the next answers of the source.
    pub prepaid: Arc<AtomicU64>,
    pub _counted: CountedPlace,
}

impl StreamPermit for ReadPlace {
    fn throttle(&self) -> Option<Duration> {
        let wait = self.account.turn(Work::Page);
        self.prepaid.fetch_add(Work::Page.nanos(), Ordering::Relaxed);
        wait
    }

    fn is_in_debt(&self) -> bool {
        self.account.is_in_debt()
    }

    fn measure(&self, answer: &mut dyn FnMut()) {
        let ((), took) = timed(answer);
        self.account.charge_beyond(took, &self.prepaid);
    }

    fn in_turn(&self, answer: BoxFuture<'static, Answer>) -> BoxFuture<'static, Answer> {
        self.account.clone().answer_in_turn(answer, self.prepaid.clone()).boxed()
    }
}

/// Lets work of a resolver begin, and charges it.
///
/// # Errors
/// `RATE_LIMITED` where the address has spent what it may.
pub(super) fn admit(ctx: &Context<'_>, work: Work, count: usize) -> Result<()> {
    state::<Arc<ClientAccount>>(ctx)?.admit(work, count).map_err(rate_limited)
}

/// Charges work that a resolver did.
pub(super) fn charge(ctx: &Context<'_>, work: Work, count: usize) -> Result<()> {
    state::<Arc<ClientAccount>>(ctx)?.spend(work, count);
    Ok(())
}
