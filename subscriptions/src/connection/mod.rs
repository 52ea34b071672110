//! The owner of one socket: reads what the client sends, asks its session what to do, and is the
//! only one that writes. A connection that can't write keeps indices, not messages.
//!
//! `read` is the way in, `operations` what runs for the client, `write` the way out, `deadlines`
//! what ends or pings a connection by the clock.

mod deadlines;
mod operations;
mod partial;
mod read;
mod running;
mod write;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use self::partial::Partial;
use self::running::Running;
use crate::batch::Rank;
use crate::close::CloseCode;
use crate::codec::Codec;
use crate::context::ShardContext;
use crate::dialect::Dialect;
use crate::executor::{Executor, Grant, InitRefused};
use crate::framing;
use crate::limits::{CLOSE_LINGER, REFUSALS_AT_ONCE};
use crate::rounds::{Ticket, TurnTimer};
use crate::session::Session;
use crate::socket::Socket;

/// A value of the caller that is dropped with the connection, such as a count of sockets.
pub type Guard = Box<dyn std::any::Any>;

type Authentication<E> = BoxFuture<'static, Result<Grant<<E as Executor>::Principal>, InitRefused>>;

/// A connection as its task, its shard's fan-out and its pending queries share it.
pub(crate) type SharedConnection<S, E> = Rc<RefCell<Connection<S, E>>>;

/// In this order in memory: what a fan-out touches of each of thousands of connections comes
/// first and together, as each further cache line costs more than the work done on it.
#[repr(C)]
pub(crate) struct Connection<S, E: Executor> {
    socket: S,
    /// Nothing waits to be written: the fan-out may write at once. Only `flush` and `send_replies`
    /// set it; everything that queues something clears it.
    can_write_inline: bool,
    /// What runs for the client, by the session's slot.
    running: Vec<Option<Running>>,
    /// How many of these read a stream.
    streams: u32,
    /// Wakes this connection's task; `None` before its first turn.
    waker: Option<Waker>,
    ticket: Ticket,
    /// A frame of a stream that left in part. Its rest comes before everything else.
    partial: Option<Box<Partial>>,
    /// Whole WebSocket frames that wait. They come before any result of a stream.
    replies: Vec<u8>,
    /// Slots with something to send that could not be sent at once, each once, in turn.
    waiting: VecDeque<u32>,
    /// A close frame of ours was queued: nothing else is sent, and the socket is dropped at this
    /// time at the latest.
    closing: Option<Instant>,
    /// Since when nothing could be written although something waits.
    stalled_since: Option<Instant>,
    /// Operations that do not count among the readers of their streams, as the socket is full.
    stalled_streams: u32,
    /// Bytes that were written since the last read: our ping may be queued after them.
    unheard_bytes: usize,
    replies_sent: usize,
    /// Set when a turn ended before all messages were handled: bytes that the codec was not given
    /// yet. They may be empty, as the codec itself holds whole messages too.
    unhandled: Option<Vec<u8>>,
    /// Refusals until nothing more is handled before the next sweep.
    refusals_left: i32,
    codec: Codec,
    session: Session,
    /// The check of the client's credentials. Nothing is read meanwhile.
    authenticating: Option<Authentication<E>>,
    /// What the client proved, once it did.
    grant: Option<Grant<E::Principal>>,
    opened: Instant,
    /// When something was last read.
    heard: Instant,
    /// When a full socket last took bytes again, as the peer had read some.
    unblocked: Instant,
    pinged: Instant,
    drain_at: Option<Instant>,
    /// The peer broke the framing, so its messages can't be separated: all further input is thrown
    /// away.
    ignore_input: bool,
    /// The socket is to be dropped.
    dead: bool,
    own: Weak<RefCell<Self>>,
    client: E::Client,
    rank: Rank,
    _guard: Option<Guard>,
}

impl<S: Socket, E: Executor> Connection<S, E> {
    pub(crate) fn new(
        socket: S,
        context: &ShardContext<Self, E>,
        client: E::Client,
        rank: Rank,
        guard: Option<Guard>,
    ) -> SharedConnection<S, E> {
        let now = context.now();
        Rc::new_cyclic(|own| {
            RefCell::new(Self {
                socket,
                can_write_inline: false,
                codec: Codec::new(context.limits.message_bytes_before_ack),
                session: Session::new(&context.limits, now),
                authenticating: None,
                grant: None,
                replies: Vec::new(),
                replies_sent: 0,
                unhandled: None,
                refusals_left: REFUSALS_AT_ONCE,
                partial: None,
                running: Vec::new(),
                streams: 0,
                waiting: VecDeque::new(),
                waker: None,
                ticket: Ticket::default(),
                opened: now,
                heard: now,
                unblocked: now,
                unheard_bytes: 0,
                pinged: now,
                stalled_since: None,
                stalled_streams: 0,
                closing: None,
                drain_at: None,
                ignore_input: false,
                dead: false,
                own: own.clone(),
                client,
                rank,
                _guard: guard,
            })
        })
    }

    /// Before the first turn: the subprotocol, and bytes that came with the upgrade.
    pub(crate) fn accept(
        &mut self,
        dialect: Dialect,
        early: &[u8],
        context: &ShardContext<Self, E>,
    ) {
        self.session.set_dialect(dialect);
        if !early.is_empty() {
            self.handle_input(early, &TurnTimer::start(), context);
        }
    }

    /// The connection's task: ready when the socket is to be dropped.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        context: &ShardContext<Self, E>,
    ) -> Poll<()> {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        if !context.admits(&self.ticket, &self.client, cx.waker()) {
            return Poll::Pending;
        }
        self.can_write_inline = false;
        let begin = std::time::Instant::now();
        let turned = self.read(cx, context).and_then(|()| self.flush(cx, context));
        context.spend(begin.elapsed());
        if turned.is_err() || self.dead {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Releases all that the shard holds for this connection. With hundreds of operations this is
    /// the longest of its turns.
    pub(crate) fn end(&mut self, context: &ShardContext<Self, E>) {
        let begin = std::time::Instant::now();
        self.dead = true;
        self.stop_all(context);
        context.spend(begin.elapsed());
    }

    /// Closes with a code and a reason, unless it closes already.
    pub(crate) fn close(&mut self, code: CloseCode, reason: &str, context: &ShardContext<Self, E>) {
        if self.closing.is_some() {
            return;
        }
        context.meters.closed(code);
        self.authenticating = None;
        self.stop_all(context);
        framing::close_frame(code, reason, &mut self.replies);
        self.closing = Some(context.now() + CLOSE_LINGER);
    }

    /// The peer closes or has answered our close. Sends what is queued, then drops the socket.
    fn peer_closed(&mut self, context: &ShardContext<Self, E>) {
        if self.closing.is_some() {
            self.dead = true;
            return;
        }
        self.authenticating = None;
        self.stop_all(context);
        self.closing = Some(context.now());
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}
