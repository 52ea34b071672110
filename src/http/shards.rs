//! The threads that own the sockets: one current-thread runtime each, and the listener that deals
//! new connections out to them in turn.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use spreadly_subscriptions::{Executor, Limits, Meters, Shard};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection_limits::DescriptorReserve;
use super::listener::Incoming;
use super::routes::{Http, HttpConfig};
use super::waiting_connections::WaitingPlace;
use crate::budgets::{Accounts, ClientAccount};
use crate::live::Encoders;

/// Accepted connections that wait for one shard: a crowd that comes back at once is taken out of
/// the kernel's backlog faster than a shard begins to serve it. Past it the backlog holds them.
const ACCEPTED_WAITING: usize = 8_192;

/// After the last close of a drain: for peers that answer slowly.
const DRAIN_MARGIN: Duration = Duration::from_secs(15);
/// The same in a drain that is to end at once.
const HURRIED_MARGIN: Duration = Duration::from_secs(1);
/// How long handshakes that have begun may take once nobody begins a new one: far more than within
/// a data centre.
const LAST_HANDSHAKES: Duration = Duration::from_millis(20);

/// What a shard needs to serve.
pub struct Parts<E> {
    pub executor: Arc<E>,
    pub encoders: Arc<Encoders>,
    pub limits: Limits,
    pub meters: Arc<Meters>,
    pub http: Arc<HttpConfig>,
    pub accounts: Arc<Accounts>,
    /// Kernel send buffer of each socket in bytes.
    pub send_buffer_bytes: usize,
}

impl<E> Clone for Parts<E> {
    fn clone(&self) -> Self {
        Self {
            executor: self.executor.clone(),
            encoders: self.encoders.clone(),
            limits: self.limits.clone(),
            meters: self.meters.clone(),
            http: self.http.clone(),
            accounts: self.accounts.clone(),
            send_buffer_bytes: self.send_buffer_bytes,
        }
    }
}

type Accepted = (std::net::TcpStream, SocketAddr, WaitingPlace);

/// The running shards.
pub struct Shards {
    accounts: Arc<Accounts>,
    senders: Vec<mpsc::Sender<Accepted>>,
    threads: Vec<JoinHandle<()>>,
    drain: watch::Sender<Option<Duration>>,
}

impl Shards {
    pub fn start<E>(count: usize, parts: &Parts<E>) -> io::Result<Self>
    where
        E: Executor<Client = Arc<ClientAccount>>,
    {
        let (drain, drained) = watch::channel(None);
        let accounts = parts.accounts.clone();
        let mut shards = Self { accounts, senders: Vec::new(), threads: Vec::new(), drain };
        for number in 0..count {
            let (sender, receiver) = mpsc::channel(ACCEPTED_WAITING);
            let (parts, drained) = (parts.clone(), drained.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread =
                std::thread::Builder::new().name(format!("shard-{number}")).spawn(move || {
                    LocalSet::new().block_on(&runtime, serve(number, parts, receiver, drained))
                })?;
            shards.senders.push(sender);
            shards.threads.push(thread);
        }
        Ok(shards)
    }

    /// Deals accepted connections out until asked to stop, and then those that have begun.
    pub async fn accept(
        &self,
        incoming: Incoming,
        stop: CancellationToken,
        reserve: &DescriptorReserve,
    ) {
        let mut turn = 0;
        self.accept_until(stop.cancelled(), &incoming, reserve, &mut turn).await;
        match incoming.drop_new() {
            Ok(()) => {
                let handshakes = tokio::time::sleep(LAST_HANDSHAKES);
                self.accept_until(handshakes, &incoming, reserve, &mut turn).await;
            }
            // The last of them may be reset.
            Err(error) => tracing::debug!(%error, "new connections can't be dropped"),
        }
        for (stream, peer) in incoming.close() {
            turn = (turn + 1) % self.senders.len();
            let waiting = reserve.waiting_place(peer.ip());
            if self.senders[turn].try_send((stream, peer, waiting)).is_err() {
                return;
            }
        }
    }

    /// Deals accepted connections out, beginning after shard `turn`.
    async fn accept_until(
        &self,
        end: impl Future<Output = ()>,
        incoming: &Incoming,
        reserve: &DescriptorReserve,
        turn: &mut usize,
    ) {
        let meters = self.accounts.meters();
        let mut end = pin!(end);
        loop {
            let accepted = tokio::select! {
                accepted = incoming.accept() => accepted,
                () = &mut end => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    reserve.after_error(&error, meters).await;
                    continue;
                }
            };
            let stream = tokio::select! {
                stream = reserve.admit(stream, peer.ip(), meters) => stream,
                () = &mut end => return,
            };
            let Some(stream) = stream else { continue };
            *turn = (*turn + 1) % self.senders.len();
            // Waits while the shard lags: the kernel's backlog is the bound.
            let waiting = reserve.waiting_place(peer.ip());
            if self.senders[*turn].send((stream, peer, waiting)).await.is_err() {
                return;
            }
        }
    }

    /// Closes every socket with 1012 over `spread` and waits for the threads to end. Closes all at
    /// once as soon as `hurry` is ready.
    pub async fn drain(self, spread: Duration, hurry: impl Future<Output = ()>) {
        let Self { senders, threads, drain, .. } = self;
        drop(senders);
        drain.send_replace(Some(spread));
        let mut ended = tokio::task::spawn_blocking(move || {
            threads.into_iter().filter_map(|thread| thread.join().err()).count()
        });
        let ended = tokio::select! {
            ended = tokio::time::timeout(spread + DRAIN_MARGIN, &mut ended) => ended,
            () = hurry => {
                tracing::info!("asked again: all sockets are closed at once");
                drain.send_replace(Some(Duration::ZERO));
                tokio::time::timeout(HURRIED_MARGIN, ended).await
            }
        };
        match ended {
            Ok(Ok(0)) => {}
            Ok(_) => tracing::error!("a shard's thread panicked"),
            Err(_) => tracing::warn!("sockets were still open after the drain: they are dropped"),
        }
    }
}

/// One shard's thread.
async fn serve<E: Executor<Client = Arc<ClientAccount>>>(
    number: usize,
    parts: Parts<E>,
    mut accepted: mpsc::Receiver<Accepted>,
    mut drained: watch::Receiver<Option<Duration>>,
) {
    let shard = Shard::new(parts.executor.clone(), parts.limits, parts.meters);
    let http = Rc::new(Http {
        config: parts.http,
        accounts: parts.accounts,
        executor: parts.executor,
        shard: shard.clone(),
        leaving: Cell::new(false),
        closing: CancellationToken::new(),
        refusing: Cell::new(0),
        connections: TaskTracker::new(),
    });
    let connections = http.connections.clone();
    let running = tokio::task::spawn_local(shard.clone().run(parts.encoders.worker_here(number)));
    let serve = |(stream, peer, waiting): Accepted| match adopt(stream, parts.send_buffer_bytes) {
        Ok(stream) => {
            connections.spawn_local(http.clone().serve(waiting, stream, peer));
        }
        Err(error) => tracing::debug!(%peer, %error, "connection lost at once"),
    };
    let spread = loop {
        tokio::select! {
            Some(accepted) = accepted.recv() => serve(accepted),
            changed = drained.changed() => {
                let spread = *drained.borrow();
                if changed.is_err() || spread.is_some() {
                    break spread.unwrap_or_default();
                }
            }
        }
    };
    shard.drain(spread);
    http.leaving.set(true);
    // Clients that are connected, and whose turn it was not yet. The listener has ended.
    while let Some(accepted) = accepted.recv().await {
        serve(accepted);
    }
    connections.close();
    let hurrying = {
        let (shard, closing) = (shard.clone(), http.closing.clone());
        async move {
            if drained.changed().await.is_ok() {
                shard.drain(Duration::ZERO);
                closing.cancel();
            }
        }
    };
    tokio::task::spawn_local(hurrying);
    // A proxy may send a request into a connection that it keeps while the hub closes it, and can't
    // send it again. So its pool has the time of the drain to let go of those that are idle.
    tokio::select! {
        _ = tokio::time::timeout(spread, connections.wait()) => {}
        () = http.closing.cancelled() => {}
    }
    http.closing.cancel();
    if running.await.is_err() {
        tracing::error!("a shard ended early");
    }
    // The last answers are still on their way; how long is for the drain to say.
    connections.wait().await;
    // A socket that was opened on a connection that a proxy kept is still to be closed.
    shard.run(None).await;
}

fn adopt(stream: std::net::TcpStream, send_buffer_bytes: usize) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    // Bounds what a reader that stopped costs in the kernel.
    socket2::SockRef::from(&stream).set_send_buffer_size(send_buffer_bytes)?;
    TcpStream::from_std(stream)
}
