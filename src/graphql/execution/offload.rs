//! On which thread a query runs. A long query is resolved and encoded on the pool, so that it
//! delays no frames. A cheap one stays on the thread of its socket, as a change of thread costs two
//! wake-ups.
//!
//! A query may change between the two: its resolvers know best what follows. What needs a lock
//! that an event may wait for runs on the socket's thread, as a thread of the pool may be kept
//! from its core while it holds the lock.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use async_graphql::{Name, Positioned, Result};
use async_graphql_parser::types::{FragmentDefinition, Selection, SelectionSet};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use spreadly_subscriptions::SingleResult;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::budgets::{ClientAccount, ExceededLimit, Work};
use crate::graphql::context::charge;
use crate::graphql::errors::Refused;
use crate::pool::{Broken, MOST_INLINE_NANOS, Pool, PoolPlace, Waiting};

/// How long a query waits for the pool, which serves all addresses in turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// When a client may ask again that was refused for want of a place.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What becomes of a query: its result, or a JSON array of errors from before it ran.
pub type Outcome = Result<SingleResult, Bytes>;
pub type Running = BoxFuture<'static, Outcome>;

/// Where a query runs, and where it is to run next.
#[derive(Default)]
pub struct Stage {
    is_in_pool: AtomicBool,
    wants_pool: AtomicBool,
}

impl Stage {
    /// Of work that begins on the pool.
    pub fn in_pool() -> Self {
        Self { is_in_pool: AtomicBool::new(true), wants_pool: AtomicBool::new(true) }
    }

    fn moves(&self) -> bool {
        self.is_in_pool.load(Ordering::Relaxed) != self.wants_pool.load(Ordering::Relaxed)
    }

    /// Takes the next poll to where it is wanted; true on the pool.
    fn arrive(&self) -> bool {
        let in_pool = self.wants_pool.load(Ordering::Relaxed);
        self.is_in_pool.store(in_pool, Ordering::Relaxed);
        in_pool
    }

    /// A query that waits for something else continues on the thread of its socket.
    fn rest(&self) {
        self.wants_pool.store(false, Ordering::Relaxed);
    }

    async fn go(&self, to_pool: bool) {
        poll_fn(|cx| {
            if self.is_in_pool.load(Ordering::Relaxed) == to_pool {
                return Poll::Ready(());
            }
            self.wants_pool.store(to_pool, Ordering::Relaxed);
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

/// To be awaited before a lock is taken that an event may wait for.
pub async fn to_socket(ctx: &async_graphql::Context<'_>) {
    if let Some(stage) = ctx.data_opt::<Arc<Stage>>() {
        stage.go(false).await;
    }
}

/// To be awaited before so much is resolved; goes to the pool where that takes long.
pub async fn before(ctx: &async_graphql::Context<'_>, work: Work, count: usize) {
    let nanos = work.nanos().saturating_mul(count as u64);
    if nanos > MOST_INLINE_NANOS
        && let Some(stage) = ctx.data_opt::<Arc<Stage>>()
    {
        stage.go(true).await;
    }
}

/// What an item of a list costs beside its fields, in fields.
const FIELDS_OF_AN_ITEM: usize = 4;

/// To be awaited before the items of a list are resolved, which it charges.
pub async fn before_items(ctx: &async_graphql::Context<'_>, items: usize) -> Result<()> {
    let below = steps_below(&ctx.item.node.selection_set.node, &ctx.query_env.fragments);
    let fields = items.saturating_mul(FIELDS_OF_AN_ITEM + below);
    charge(ctx, Work::ItemField, fields)?;
    before(ctx, Work::ItemField, fields).await;
    Ok(())
}

/// Selections below a field, fragments expanded, also those that a directive skips: the library
/// walks through all of them for each item. The document's limits bound it.
fn steps_below(set: &SelectionSet, fragments: &Fragments) -> usize {
    let below = |selection: &Selection| match selection {
        Selection::Field(field) => steps_below(&field.node.selection_set.node, fragments),
        Selection::InlineFragment(inline) => {
            steps_below(&inline.node.selection_set.node, fragments)
        }
        Selection::FragmentSpread(spread) => fragments
            .get(&spread.node.fragment_name.node)
            .map_or(0, |fragment| steps_below(&fragment.node.selection_set.node, fragments)),
    };
    set.items.iter().map(|one| 1 + below(&one.node)).sum()
}

type Fragments = HashMap<Name, Positioned<FragmentDefinition>>;

/// Wakes a query that waits for something, wherever it was polled.
#[derive(Default)]
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

/// What runs queries to their end.
pub struct Offload {
    pub pool: Arc<Pool>,
    pub account: Arc<ClientAccount>,
    pub stage: Arc<Stage>,
}

impl Offload {
    /// Runs to its end what was polled already. Awaited on the thread of the socket.
    pub async fn finish(self, running: Running) -> Outcome {
        self.drive(running, None).await
    }

    /// Runs what is known to take long: it holds nothing before it has a place in the pool.
    pub async fn run_long(self, running: Running) -> Outcome {
        let place = self.enter().await.map_err(Refused::into_bytes)?;
        self.drive(running, Some(place)).await
    }

    async fn drive(
        &self,
        mut running: Running,
        mut place: Option<(Waiting, PoolPlace)>,
    ) -> Outcome {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let runtime = Handle::current();
        loop {
            let polled = match self.stage.arrive() {
                false => {
                    let poll = || running.as_mut().poll(&mut Context::from_waker(&waker));
                    self.account.measure(poll)
                }
                true => {
                    let (waiting, entered) = match place.take() {
                        Some(place) => place,
                        None => self.enter().await.map_err(Refused::into_bytes)?,
                    };
                    let (runtime, waker) = (runtime.clone(), waker.clone());
                    let account = self.account.clone();
                    let ran = entered.run(move || {
                        // Its timers and its reads of the log are of the socket's runtime.
                        let _entered = runtime.enter();
                        let poll = || running.as_mut().poll(&mut Context::from_waker(&waker));
                        (account.measure(poll), running)
                    });
                    let (entered, (polled, back)) = ran.await.map_err(broken)?;
                    running = back;
                    place = Some((waiting, entered));
                    polled
                }
            };
            match polled {
                Poll::Ready(outcome) => return outcome,
                Poll::Pending if self.stage.moves() => {}
                Poll::Pending => {
                    place = None;
                    self.stage.rest();
                    woken.0.notified().await;
                }
            }
        }
    }

    async fn enter(&self) -> Result<(Waiting, PoolPlace), Refused> {
        let line = self.account.line();
        let waiting = line.wait().map_err(|full| {
            let refusal = ExceededLimit::WaitingPerAddress;
            self.account.meters().refuse(refusal);
            Refused::waiting(refusal.name(), full.0, RETRY_AFTER)
        })?;
        match tokio::time::timeout(PATIENCE, self.pool.enter(line)).await {
            Ok(Ok(place)) => Ok((waiting, place)),
            Ok(Err(Broken)) | Err(_) => {
                self.account.meters().refuse(ExceededLimit::Pool);
                let message = "the hub is busy with other queries: ask again later";
                Err(Refused::unavailable(message, RETRY_AFTER))
            }
        }
    }
}

fn broken(broken: Broken) -> Bytes {
    Refused::internal(&broken.to_string()).into_bytes()
}
