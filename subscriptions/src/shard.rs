//! One thread's connections. Each connection has its turns in a task of its own. Between them the
//! shard lets its worker encode, hands new frames to subscribers, and checks deadlines.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use slab::Slab;
use tokio::time::{Instant, MissedTickBehavior};

use crate::batch::Rank;
use crate::close::{self, CloseCode};
use crate::connection::{Connection, Guard, SharedConnection};
use crate::context::ShardContext;
use crate::dialect::Dialect;
use crate::executor::{Executor, StreamPermit};
use crate::fanout::FanOut;
use crate::limits::{Limits, SWEEP_INTERVAL};
use crate::meters::Meters;
use crate::rounds::Ticket;
use crate::socket::Socket;
use crate::sse_reader::SseReader;
use crate::stream::ResponseStream;
use crate::worker::{Turn, Worker};

/// How a new socket begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// With the subprotocol that was agreed on.
    Accept(Dialect),
    /// Accepted only to be closed with a reason: a browser can't read an HTTP error.
    Refuse { code: CloseCode, reason: &'static str },
}

/// See the module's text. Lives on one thread, inside a tokio `LocalSet`.
pub struct Shard<S, E: Executor> {
    context: Rc<ShardContext<Connection<S, E>, E>>,
    connections: RefCell<Slab<SharedConnection<S, E>>>,
    fan_out: FanOut,
}

/// Until the worker has something to do.
async fn worker_is_due(worker: Option<&dyn Worker>, wake_at: Option<Instant>) {
    let Some(worker) = worker else { return std::future::pending().await };
    match wake_at {
        Some(at) => drop(tokio::time::timeout_at(at, worker.wake().notified()).await),
        None => worker.wake().notified().await,
    }
}

/// Releases what a connection holds when its task ends, also when it panics.
struct ConnectionGuard<S: Socket, E: Executor> {
    connection: SharedConnection<S, E>,
    shard: Rc<Shard<S, E>>,
    key: usize,
}

impl<S: Socket, E: Executor> Drop for ConnectionGuard<S, E> {
    fn drop(&mut self) {
        self.connection.borrow_mut().end(&self.shard.context);
        self.shard.remove(self.key);
    }
}

impl<S: Socket, E: Executor> Shard<S, E> {
    pub fn new(executor: Arc<E>, limits: Limits, meters: Arc<Meters>) -> Rc<Self> {
        Rc::new(Self {
            context: Rc::new(ShardContext::new(executor, limits, meters)),
            connections: RefCell::default(),
            fan_out: FanOut::default(),
        })
    }

    /// Takes over a socket whose upgrade was answered. `early` are bytes that the client sent
    /// directly after its request. The guard is dropped with the connection.
    pub fn adopt(
        self: &Rc<Self>,
        socket: S,
        opening: Opening,
        early: &[u8],
        client: E::Client,
        rank: Rank,
        guard: Option<Guard>,
    ) {
        let context = &self.context;
        context.set_now();
        let connection = Connection::new(socket, context, client, rank, guard);
        let key = self.connections.borrow_mut().insert(connection.clone());
        match opening {
            Opening::Accept(dialect) => connection.borrow_mut().accept(dialect, early, context),
            Opening::Refuse { code, reason } => {
                connection.borrow_mut().close(code, reason, context);
            }
        }
        if context.draining.get() {
            // The drain began before the upgrade. The shard's sweeps may have ended.
            connection.borrow_mut().close(CloseCode::Restarting, close::RESTARTING, context);
        }
        context.meters.sockets_open.add(1);
        context.meters.sockets_opened.add(1);
        let shard = self.clone();
        tokio::task::spawn_local(async move {
            let guard = ConnectionGuard { connection, shard, key };
            poll_fn(|cx| {
                let context = &guard.shard.context;
                context.set_now();
                guard.connection.borrow_mut().poll(cx, context)
            })
            .await;
        });
    }

    /// The shard's own work: the worker's turns, the fan-out and the deadlines. Ends when the shard
    /// drains and its last connection is gone.
    pub async fn run(self: Rc<Self>, worker: Option<Arc<dyn Worker>>) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rung = Vec::new();
        let mut wake_at = None;
        while !self.is_drained() {
            tokio::select! {
                () = self.context.doorbell.rung() => {}
                () = worker_is_due(worker.as_deref(), wake_at) => {}
                _ = sweep.tick() => self.sweep(),
            }
            while let Turn::Again = self.turn(worker.as_deref(), &mut rung, &mut wake_at).await {
                // Sockets and deadlines have their turn between two of the worker's.
                tokio::task::yield_now().await;
                if sweep.tick().now_or_never().is_some() {
                    self.sweep();
                }
            }
        }
        self.context.rounds.end();
    }

    fn is_drained(&self) -> bool {
        let has_readers = || self.context.subscribers.borrow().readers() > 0;
        self.context.draining.get() && self.is_empty() && !has_readers()
    }

    /// Lets the worker push, and delivers what is in the rings.
    async fn turn(
        &self,
        worker: Option<&dyn Worker>,
        rung: &mut Vec<usize>,
        wake_at: &mut Option<Instant>,
    ) -> Turn {
        let turn = worker.map_or(Turn::Done { wake_at: None }, Worker::turn);
        if let Turn::Done { wake_at: next } = turn {
            *wake_at = next;
        }
        self.context.doorbell.take(rung);
        // Unconstrained: tokio's budget would make sockets look full.
        let deliver = self.fan_out.deliver(&self.context, rung);
        let continues = tokio::task::coop::unconstrained(deliver).await;
        self.context.flush_counters();
        let admits = self.context.rounds.begin();
        let again = turn == Turn::Again || continues || admits;
        if again || self.fan_out.take_notified_readers() {
            // There is a backlog. A thread that an event or a client needs may wait for this
            // processor: without this the system would let it wait for up to a tick, 4 ms.
            std::thread::yield_now();
        }
        if again { Turn::Again } else { turn }
    }

    /// Runs the work of a connection that is no WebSocket in turn with the WebSockets: it is polled
    /// while a round of the shard has time left for sockets.
    pub async fn in_turn<T>(&self, client: &E::Client, work: impl Future<Output = T>) -> T {
        let (mut work, ticket) = (pin!(work), Ticket::default());
        poll_fn(|cx| {
            if !self.context.admits(&ticket, client, cx.waker()) {
                return Poll::Pending;
            }
            let begin = std::time::Instant::now();
            let polled = work.as_mut().poll(cx);
            self.context.spend(begin.elapsed());
            polled
        })
        .await
    }

    /// Closes every connection with 1012, evenly spread over `spread`, so that the clients do not
    /// come back all at once.
    pub fn drain(&self, spread: Duration) {
        let context = &self.context;
        context.set_now();
        context.draining.set(true);
        let connections = self.connections.borrow();
        let subscribers = context.subscribers.borrow();
        let count = (connections.len() + subscribers.readers()).max(1) as u32;
        let when = |number: usize| context.now() + spread * number as u32 / count;
        for (number, (_, connection)) in connections.iter().enumerate() {
            connection.borrow_mut().drain_at(when(number));
        }
        for (number, signal) in subscribers.reader_signals().enumerate() {
            signal.drain_at(when(connections.len() + number));
        }
        context.doorbell.wake();
    }

    /// Releases a stream that an execution opened and nobody will read.
    pub fn release(&self, stream: &Arc<ResponseStream>) {
        stream.release();
    }

    /// A reader of a stream that an execution opened, for a connection that is no WebSocket. It
    /// goes on after the cursor `after`, or begins now.
    pub fn read(
        &self,
        stream: Arc<ResponseStream>,
        after: Option<String>,
        permit: Option<Box<dyn StreamPermit>>,
    ) -> SseReader<S, E> {
        SseReader::new(self.context.clone(), stream, after, permit)
    }

    /// Connections alive.
    pub fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn sweep(&self) {
        let context = &self.context;
        context.set_now();
        for (_, connection) in self.connections.borrow().iter() {
            connection.borrow_mut().sweep(context.now(), context);
        }
    }

    /// A connection ended.
    fn remove(&self, key: usize) {
        if self.connections.borrow_mut().try_remove(key).is_some() {
            self.context.meters.sockets_open.subtract(1);
        }
        if self.context.draining.get() {
            self.context.doorbell.wake();
        }
    }
}
